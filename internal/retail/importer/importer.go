// Package importer sends a file of the retail data set to a running server and accounts for every invoice of it.
//
// Invoices are sent in file order over a fixed number of lanes. All invoices of a customer take the same lane, so that
// their order is kept; those without a customer have nobody to be in order with and are spread by their number. Nothing
// in memory remembers what was sent: the ids do, on the server. A run that was broken off is repeated from the start, and
// what is there already is answered as a replay.
//
// A server may break off in the middle of a request, and then the same request, sent again there or to another server, is
// answered as a replay too, although it is this run's own. Such an invoice counts as what it became, once: a replay is what
// an earlier run brought. Where a request was sent in vain before it was answered as a replay, the time of the command's
// acceptance tells the two apart.
package importer

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/retail"
)

const (
	// DefaultConcurrency is the lanes where nobody says otherwise: enough to fill a server's group commits on two cores.
	DefaultConcurrency = 16
	// MaxConcurrency bounds the lanes; each holds a connection and a few invoices.
	MaxConcurrency = 256
	// DefaultSettle is how long a command that was kept may wait for its decision.
	DefaultSettle = 2 * time.Minute

	// answerWait is what the server is asked to wait for an outcome.
	answerWait = 30 * time.Second
	// laneQueue is the invoices that wait in a lane. With too few, one slow customer stops all the others.
	laneQueue = 32
	// clockSlack is by how much the clocks of several servers may differ before an invoice of this run can pass for one of an
	// earlier run; and an earlier run must have ended so long ago to be told from this one.
	clockSlack = 5 * time.Second
	// receiptBatch is the stock receipts that are sent in one request: a large invoice takes two.
	receiptBatch = 500
)

// Outcome is what became of one invoice.
type Outcome string

// The outcomes of an invoice: each ends as exactly one of them.
const (
	Ordered    Outcome = "order"
	Returned   Outcome = "return"
	Refused    Outcome = "refused"
	DeadLetter Outcome = "dead_letter"
	Replayed   Outcome = "replayed"
)

// Rejection is an invoice that became neither an order nor a return in this run.
type Rejection struct {
	Invoice string              `json:"invoice"`
	ID      string              `json:"id"`
	Line    int                 `json:"line"` // of the file, where the invoice starts
	Outcome Outcome             `json:"outcome"`
	Code    string              `json:"code"`
	Detail  string              `json:"detail,omitempty"`
	Errors  []client.FieldError `json:"errors,omitempty"`
}

// Summary accounts for a run.
type Summary struct {
	Invoices    int `json:"invoices"`
	Orders      int `json:"orders"`
	Returns     int `json:"returns"`
	Refused     int `json:"refused"`
	DeadLetters int `json:"dead_letters"`
	Replayed    int `json:"replayed"`
	// Lines are the rows of the file that belong to these invoices.
	Lines int `json:"lines"`
	// Units and TotalMinor are of the orders of this run, ReturnedUnits and ReturnedMinor of its returns. The amounts are the
	// server's own, in minor units; they are left out where the server answers an order without its total.
	Units         int64  `json:"units"`
	ReturnedUnits int64  `json:"returned_units"`
	Currency      string `json:"currency"`
	TotalMinor    *int64 `json:"total_minor,omitempty"`
	ReturnedMinor *int64 `json:"returned_minor,omitempty"`
	// StockReceipts are the receipts of this run into stock, StockReplayed those of an earlier run, StockRefused
	// those that the server refused.
	StockReceipts int `json:"stock_receipts"`
	StockReplayed int `json:"stock_replayed"`
	StockRefused  int `json:"stock_refused"`
	// Fulfilment counts the orders by where they have come to: "completed", "cancelled". Unfinished are those among them that
	// were on their way still when the run ended. Only of a file whose orders carry themselves through.
	Fulfilment map[string]int `json:"fulfilment,omitempty"`
	Unfinished int            `json:"unfinished,omitzero"`
	Seconds    float64        `json:"seconds"`
}

// Check says whether every invoice ended as exactly one thing.
func (s *Summary) Check(expected int) error {
	sum := s.Orders + s.Returns + s.Refused + s.DeadLetters + s.Replayed
	if s.Invoices != expected || s.Invoices != sum {
		return fmt.Errorf("the accounts do not balance: %d invoices in the file, %d sent, %d outcomes", expected, s.Invoices, sum)
	}
	return nil
}

// Options of [Run].
type Options struct {
	// ReceiveStock receives the goods of an order into stock before it is placed. Defaults to not.
	ReceiveStock bool
	// Concurrency is the number of lanes. Defaults to DefaultConcurrency.
	Concurrency int
	// Settle is how long a kept command may wait for its decision. Defaults to DefaultSettle.
	Settle time.Duration
	// Fulfil waits, when everything was sent, until the orders have come to their ends; for as long as Settle without any that
	// does. Defaults to not.
	Fulfil bool
	// OnFulfilled is told how many orders have come to their ends, of how many. Defaults to nothing.
	OnFulfilled func(done, of int)
	// OnDone is told of every invoice when it has its outcome, one at a time. Rejection is nil for orders, returns and
	// replays. Defaults to nothing.
	OnDone func(i *retail.Invoice, o Outcome, r *Rejection) error
}

// Run sends a file. The summary is complete where the error is nil; otherwise it covers what had an outcome by then. Errors:
// ctx's; [*client.UnavailableError]; [client.ErrUndecided]; OnDone's; a [*client.Problem] of a server that does not do what
// the API says.
func Run(ctx context.Context, c *client.Client, f *retail.File, o *Options) (*Summary, error) {
	if o == nil {
		o = &Options{}
	}
	r := &run{client: c, file: f, Options: *o, done: make(chan result)}
	if r.Concurrency <= 0 {
		r.Concurrency = DefaultConcurrency
	}
	r.Concurrency = min(r.Concurrency, MaxConcurrency)
	if r.Settle <= 0 {
		r.Settle = DefaultSettle
	}
	r.start = time.Now()
	group, running := errgroup.WithContext(ctx)
	lanes := make([]chan *retail.Invoice, r.Concurrency)
	workers, working := errgroup.WithContext(running)
	for i := range lanes {
		lanes[i] = make(chan *retail.Invoice, laneQueue)
		workers.Go(func() error { return r.lane(working, lanes[i]) })
	}
	group.Go(func() error {
		defer func() {
			for _, l := range lanes {
				close(l)
			}
		}()
		for i := range f.Invoices() {
			select {
			case lanes[laneOf(i, len(lanes))] <- i:
			case <-working.Done():
				return nil // the workers say why
			}
		}
		return nil
	})
	group.Go(func() error {
		defer close(r.done)
		return workers.Wait()
	})
	sum := &Summary{Currency: retail.Currency}
	tally := tally{Summary: sum, waits: r.Fulfil}
	group.Go(func() error {
		var failed error
		for res := range r.done {
			tally.add(&res)
			if r.OnDone != nil && failed == nil {
				failed = r.OnDone(res.invoice, res.outcome, res.rejection)
			}
			if failed != nil {
				return failed
			}
		}
		return nil
	})
	err := group.Wait()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	tally.finish()
	if err == nil && r.Fulfil {
		err = r.fulfil(ctx, tally.placed, sum)
	}
	sum.Seconds = time.Since(r.start).Seconds()
	return sum, err
}

// laneOf spreads invoices over lanes: by customer, where there is one.
func laneOf(i *retail.Invoice, lanes int) int {
	key := "invoice " + i.Number
	if i.CustomerID != "" {
		key = "customer " + i.CustomerID
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(key))           // a hash never fails
	return int(h.Sum64() % uint64(lanes)) //nolint:gosec // both fit
}

// result is an invoice with its outcome.
type result struct {
	invoice   *retail.Invoice
	outcome   Outcome
	rejection *Rejection
	minor     int64 // of an order or a return: its total
	hasMinor  bool
	receipts  receipts
	stands    bool // of a replay: it was not refused, nor is it a dead letter
}

type receipts struct{ fresh, replayed, refused int }

// tally adds results up; one goroutine does so.
type tally struct {
	*Summary
	total, returned int64
	unknown         bool     // a total was not told
	placed          []string // the ids of the orders, those of earlier runs included, where they are to be waited for
	waits           bool
}

func (t *tally) add(r *result) {
	t.Invoices++
	t.Lines += r.invoice.Rows
	t.StockReceipts += r.receipts.fresh
	t.StockReplayed += r.receipts.replayed
	t.StockRefused += r.receipts.refused
	if t.waits && r.invoice.Kind == retail.Sale && (r.outcome == Ordered || r.outcome == Replayed && r.stands) {
		t.placed = append(t.placed, r.invoice.ID())
	}
	switch r.outcome {
	case Ordered:
		t.Orders++
		t.Units += r.invoice.Units()
		t.total += r.minor
		t.unknown = t.unknown || !r.hasMinor
	case Returned:
		t.Returns++
		t.ReturnedUnits += r.invoice.Units()
		t.returned += r.minor
		t.unknown = t.unknown || !r.hasMinor
	case Refused:
		t.Refused++
	case DeadLetter:
		t.DeadLetters++
	case Replayed:
		t.Replayed++
	}
}

func (t *tally) finish() {
	if !t.unknown {
		t.TotalMinor, t.ReturnedMinor = &t.total, &t.returned
	}
}

// run is one import on its way.
type run struct {
	Options
	client *client.Client
	file   *retail.File
	start  time.Time
	done   chan result
}

func (r *run) lane(ctx context.Context, in <-chan *retail.Invoice) error {
	for i := range in {
		res, err := r.one(ctx, i)
		if err != nil {
			return fmt.Errorf("invoice %s: %w", i.Number, err)
		}
		select {
		case r.done <- res:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// one sends one invoice and finds out what became of it.
func (r *run) one(ctx context.Context, i *retail.Invoice) (result, error) {
	res := result{invoice: i}
	if r.ReceiveStock && i.Kind == retail.Sale {
		var err error
		if res.receipts, err = r.receive(ctx, i); err != nil {
			return res, err
		}
	}
	answer, err := r.post(ctx, i)
	if err != nil {
		return res, err
	}
	if p := answer.Problem; p != nil && i.Kind != retail.Unmapped && notKept(p) {
		// The server does not take the form of it, and has kept nothing. The invoice must not vanish.
		if answer, err = r.post(ctx, r.file.Reject(i, rejectReason(p))); err != nil {
			return res, err
		}
		i = &retail.Invoice{Kind: retail.Unmapped, Number: i.Number, Line: i.Line, Reason: rejectReason(p)}
	}
	return res, r.judge(ctx, i, answer, &res)
}

func (r *run) post(ctx context.Context, i *retail.Invoice) (*client.Response, error) {
	req, err := i.Request()
	if err != nil {
		return nil, err
	}
	return r.client.Post(ctx, req.Path, i.ID(), req.Body, answerWait)
}

// notKept: the body has the wrong form or size. (Another media type, route or method would mean another kind of server.)
func notKept(p *client.Problem) bool {
	return (p.Status == http.StatusBadRequest && p.Code != "invalid_header") || p.Status == http.StatusRequestEntityTooLarge
}

// rejectReason is the same in every run, so that the dead letter is.
func rejectReason(p *client.Problem) string {
	text := "the server does not take the form of the invoice: " + p.Code
	for k, e := range p.Errors {
		if k == 10 {
			break
		}
		text += "; " + strings.TrimSpace(e.Pointer+" "+e.Detail)
	}
	return text
}

// judge turns the answer for an invoice into its outcome.
func (r *run) judge(ctx context.Context, i *retail.Invoice, a *client.Response, res *result) error {
	switch p := a.Problem; {
	case p != nil && p.Code == client.CodeKeyReused:
		return r.reused(ctx, i, p, res)
	case p != nil && !p.Kept():
		return p
	case a.Status == http.StatusAccepted:
		return r.undecided(ctx, i, a, res)
	case a.Replayed:
		earlier, err := r.isEarlier(ctx, i.ID(), a.Doubt)
		if err != nil {
			return err
		}
		if earlier {
			res.outcome, res.stands = Replayed, a.Problem == nil
			return nil
		}
	}
	return r.became(i, a, res)
}

// became books what an answer says of an invoice of this run.
func (r *run) became(i *retail.Invoice, a *client.Response, res *result) error {
	switch p := a.Problem; {
	case p != nil && p.Code == client.CodeDeadLetter:
		res.reject(i, DeadLetter, "unmapped", i.Reason, nil)
		if i.Kind != retail.Unmapped {
			res.reject(i, DeadLetter, p.Code, p.Detail, p.Errors)
		}
	case p != nil:
		res.reject(i, Refused, p.Code, p.Detail, p.Errors)
	case a.Status >= 200 && a.Status < 300:
		return r.succeeded(i, a.Body, res)
	default:
		return a.Err()
	}
	return nil
}

// isEarlier says whether a command that was answered as a replay was there before this run. Without doubt it was: nothing
// else can have brought it. Otherwise the server is asked when it came.
func (r *run) isEarlier(ctx context.Context, id string, doubt bool) (bool, error) {
	if !doubt {
		return true, nil
	}
	s, _, err := r.client.Command(ctx, id)
	return err == nil && r.before(&s), err
}

// before says whether a command was accepted before this run began, by the server's clock. A command of which the server
// does not say when it came is this run's: its outcome is then told, rather than left out.
func (r *run) before(s *client.CommandState) bool {
	if s.AcceptedAt.IsZero() {
		return false
	}
	began := r.start
	if !s.AnsweredAt.IsZero() {
		began = began.Add(time.Until(s.AnsweredAt)) // by how much the server's clock is ahead of this one
	}
	return s.AcceptedAt.Before(began.Add(-clockSlack))
}

// succeeded reads the total off the answer. An answer may also be a receipt, without one.
func (r *run) succeeded(i *retail.Invoice, body []byte, res *result) error {
	m, err := client.Members(body)
	if err != nil {
		return fmt.Errorf("read the server's answer: %w", err)
	}
	if i.Kind == retail.Unmapped {
		if m.Text("status") != client.StatusDead {
			return errors.New("the server does not keep a command of an unknown type as a dead letter")
		}
		res.reject(i, DeadLetter, "unmapped", i.Reason, nil)
		return nil
	}
	res.outcome = Ordered
	if i.Kind == retail.Credit {
		res.outcome = Returned
	}
	if total := m.Object("total"); total != nil {
		res.minor, res.hasMinor = client.Minor(total.Text("amount"))
	}
	return nil
}

// undecided waits for a command that was kept but not decided while the server waited.
func (r *run) undecided(ctx context.Context, i *retail.Invoice, a *client.Response, res *result) error {
	s, err := r.client.Settle(ctx, i.ID(), r.Settle)
	if err != nil {
		return err
	}
	switch {
	case a.Replayed && (!a.Doubt || r.before(&s)):
		res.outcome, res.stands = Replayed, s.Status == client.StatusDecided
	case s.Status == client.StatusRefused:
		res.reject(i, Refused, s.Code, s.Detail, s.Errors)
	case s.Status == client.StatusDead && i.Kind == retail.Unmapped:
		res.reject(i, DeadLetter, "unmapped", i.Reason, nil)
	case s.Status == client.StatusDead:
		res.reject(i, DeadLetter, client.CodeDeadLetter, s.Code+": "+s.Detail, nil)
	case i.Kind == retail.Unmapped:
		return errors.New("the server does not keep a command of an unknown type as a dead letter")
	default:
		return r.total(ctx, i, s.Cursor, res)
	}
	return nil
}

// total asks for the total of an order that was decided while nobody waited.
func (r *run) total(ctx context.Context, i *retail.Invoice, cursor string, res *result) error {
	path := "/v1/orders/" + i.ID()
	if i.Kind == retail.Credit {
		path = "/v1/returns/" + i.ID()
	}
	// The same request again is answered from the outcome, without any read model's delay.
	a, err := r.post(ctx, i)
	if err == nil && a.Problem == nil && a.Status != http.StatusAccepted {
		return r.succeeded(i, a.Body, res)
	}
	// Any server may answer the read: the cursor makes it one that has seen the decision.
	if cursor != "" {
		path += "?min_cursor=" + url.QueryEscape(cursor)
	}
	a, err = r.client.Get(ctx, path)
	var late *client.Problem
	if err != nil && (!errors.As(err, &late) || late.Code != client.CodeNotCaughtUp) {
		return err
	}
	// What the invoice became is known. A read model that stands still takes no more from it than the total.
	if err == nil && a.Status == http.StatusOK {
		return r.succeeded(i, a.Body, res)
	}
	return r.succeeded(i, []byte("{}"), res)
}

// reused: the invoice's key belongs to another content: the file has changed since an earlier run, or the zone, or the
// server takes a form now that it did not take then. The invoice is on the server as it was then.
func (r *run) reused(ctx context.Context, i *retail.Invoice, p *client.Problem, res *result) error {
	s, ok, err := r.client.Command(ctx, i.ID())
	if err != nil {
		return err
	}
	if ok && s.Status == client.StatusDead && i.Kind == retail.Unmapped {
		res.outcome = Replayed
		return nil
	}
	res.reject(i, Refused, p.Code, "the server has another invoice of this number from an earlier import", nil)
	return nil
}

func (res *result) reject(i *retail.Invoice, o Outcome, code, detail string, faults []client.FieldError) {
	res.outcome = o
	res.rejection = &Rejection{Invoice: i.Number, ID: i.ID(), Line: i.Line, Outcome: o, Code: code, Detail: detail, Errors: faults}
}

// receive sends the stock receipts of an invoice.
func (r *run) receive(ctx context.Context, i *retail.Invoice) (receipts, error) {
	var out receipts
	lines, err := i.Receipts()
	if err != nil {
		return out, err
	}
	for len(lines) > 0 {
		n := min(len(lines), receiptBatch)
		answers, err := r.client.Commands(ctx, lines[:n], answerWait)
		if err != nil {
			return out, err
		}
		lines = lines[n:]
		for k := range answers {
			if answers[k].Problem != nil {
				out.refused++
			} else if err := r.receipt(ctx, &answers[k], &out); err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

// receipt books one receipt that was kept.
func (r *run) receipt(ctx context.Context, a *client.LineResult, out *receipts) error {
	if a.Replayed {
		earlier, err := r.isEarlier(ctx, a.ID, a.Doubt)
		if err != nil {
			return err
		}
		if earlier {
			out.replayed++
			return nil
		}
	}
	s := a.CommandState
	if !s.Done() {
		var err error
		if s, err = r.client.Settle(ctx, a.ID, r.Settle); err != nil {
			return err
		}
	}
	if s.Status == client.StatusDecided {
		out.fresh++
	} else {
		out.refused++
	}
	return nil
}
