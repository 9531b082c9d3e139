package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/millrace-io/millrace/internal/client"
)

// do sends an arrival and everything that follows from it.
func (r *run) do(ctx context.Context, a *arrival) {
	defer r.ledger.answered()
	switch a.kind {
	case webOrder:
		r.webOrder(ctx, a)
	case posBatch:
		r.posBatch(ctx, a)
	case duplicate:
		r.duplicate(ctx, a)
	case malformed:
		r.malformed(ctx, a)
	case unknownType:
		body := fmt.Appendf(nil, `{"id":%q,"stream":%q,"type":"TeleportOrder","data":{"to":"moon"}}`, a.id, "order-"+a.id)
		if got := r.send(ctx, a, "/v1/commands", a.id, body); got.ok() {
			r.expect(a, got, client.StatusDead, "")
		}
	case brokenRule:
		if got := r.send(ctx, a, "/v1/orders", a.id, a.body); got.ok() {
			r.expect(a, got, client.StatusRefused, "line_invalid")
		}
	case stockMove:
		r.stockMove(ctx, a)
	}
}

// answer is what became of one command.
type answer struct {
	id     string
	status string // decided, refused, dead; "" where there was no answer, or none that the API knows
	code   string // of a refusal
	res    *client.Response
}

func (a *answer) ok() bool { return a.status != "" }

// send posts one command and books its outcome. Latency is that of the arrival's first request: from when it was due.
func (r *run) send(ctx context.Context, a *arrival, path, id string, body []byte) answer {
	out := r.post(ctx, path, id, body)
	if a != nil {
		r.ledger.latency(a.kind, time.Since(r.start.Add(a.due)))
	}
	return out
}

func (r *run) post(ctx context.Context, path, id string, body []byte) answer {
	out := answer{id: id}
	res, err := r.client.Post(ctx, path, id, body, answerWait)
	if err != nil {
		r.ledger.lost(id, err)
		return out
	}
	out.res = res
	switch p := res.Problem; {
	case res.Status == http.StatusAccepted:
		s, err := r.client.Settle(ctx, id, settle)
		if err != nil {
			r.ledger.lost(id, err)
			return out
		}
		out.status, out.code = s.Status, s.Code
		r.ledger.saw(s.Cursor)
	case p != nil && !p.Kept():
		r.ledger.surprise("%s: %v", path, p)
		return out
	case p != nil && p.Code == client.CodeDeadLetter:
		out.status = client.StatusDead
	case p != nil:
		out.status, out.code = client.StatusRefused, p.Code
	case res.Err() == nil:
		out.status = client.StatusDecided
	default:
		r.ledger.surprise("%s: %v", path, res.Err())
		return out
	}
	r.ledger.saw(res.Cursor)
	r.ledger.book(id, out.status)
	return out
}

// expect compares an outcome with the one that must come.
func (r *run) expect(a *arrival, got answer, status, code string) bool {
	if got.status == status && (code == "" || got.code == code) {
		return true
	}
	r.ledger.surprise("%s became %s %s, expected %s %s", kindNames[a.kind], got.status, got.code, status, code)
	return false
}

// place places an order.
func (r *run) place(ctx context.Context, a *arrival, o *simOrder) (answer, bool) {
	r.ledger.order(o)
	got := r.send(ctx, a, "/v1/orders", o.id, o.body)
	if !got.ok() {
		o.unclear = true
		return got, false
	}
	if !r.expect(a, got, client.StatusDecided, "") {
		return got, false
	}
	r.ledger.isPlaced(o)
	return got, true
}

func (r *run) webOrder(ctx context.Context, a *arrival) {
	o := a.orders[0]
	if _, ok := r.place(ctx, a, o); !ok {
		return
	}
	shipped := 0
	for _, s := range a.steps {
		key := o.id + "-" + s.verb
		if s.verb == "ship" {
			shipped++
			key = fmt.Sprintf("%s-%d", key, shipped)
		}
		got := r.post(ctx, "/v1/orders/"+o.id+"/"+s.verb, key, []byte(s.body))
		if !got.ok() {
			o.unclear = true
			return
		}
		if !r.expect(a, got, client.StatusDecided, "") {
			o.unclear = true
			return
		}
		o.status = s.status
	}
}

// duplicate sends one request three times: the second and third must be answered as the first was, byte for byte.
func (r *run) duplicate(ctx context.Context, a *arrival) {
	o := a.orders[0]
	first, ok := r.place(ctx, a, o)
	if !ok || first.res.Status == http.StatusAccepted {
		return
	}
	for range 2 {
		again, err := r.client.Post(ctx, "/v1/orders", o.id, o.body, answerWait)
		switch {
		case err != nil:
			r.ledger.lost(o.id, err)
			return
		case again.Status == http.StatusAccepted: // known, but the server had no time to look
		case !again.Replayed:
			r.ledger.surprise("a repeated request is not answered as a replay")
		case again.Status != first.res.Status || !bytes.Equal(again.Body, first.res.Body):
			r.ledger.surprise("a repeated request is answered with other bytes")
		default:
			r.ledger.replayed()
		}
	}
}

func (r *run) malformed(ctx context.Context, a *arrival) {
	res, err := r.client.Post(ctx, "/v1/orders", a.id, a.body, answerWait)
	r.ledger.latency(a.kind, time.Since(r.start.Add(a.due)))
	switch {
	case err != nil:
		r.ledger.lost("", err)
	case res.Status != http.StatusBadRequest || res.Problem == nil || res.Problem.Code == "":
		r.ledger.surprise("a malformed document is answered with %d", res.Status)
	default:
		r.ledger.malformed(a.id)
	}
}

type commandLine struct {
	ID     string `json:"id"`
	Stream string `json:"stream"`
	Type   string `json:"type"`
	Data   any    `json:"data"`
}

type paid struct {
	Reference string `json:"reference"`
}

// posBatch sends a store's receipts: each a sale that is placed, confirmed and paid at once.
func (r *run) posBatch(ctx context.Context, a *arrival) {
	var lines [][]byte
	for _, o := range a.orders {
		r.ledger.order(o)
		stream := "order-" + o.id
		place := append(append([]byte(`{"id":"`+o.id+`","stream":"`+stream+`","type":"PlaceOrder","data":`), o.body...), '}')
		lines = append(lines, place,
			encode(&commandLine{o.id + "-confirm", stream, "ConfirmOrder", struct{}{}}),
			encode(&commandLine{o.id + "-pay", stream, "MarkOrderPaid", paid{"till-" + o.id}}))
	}
	answers, err := r.client.Commands(ctx, lines, answerWait)
	r.ledger.latency(a.kind, time.Since(r.start.Add(a.due)))
	if err != nil {
		for _, o := range a.orders {
			o.unclear = true
			for _, s := range []string{"", "-confirm", "-pay"} {
				r.ledger.unclear(o.id + s)
			}
		}
		r.ledger.lost("", err)
		return
	}
	for i := range answers {
		r.sale(ctx, a.orders[i/3], i%3, &answers[i])
	}
}

// sale books the answer to one of the three commands of a sale.
func (r *run) sale(ctx context.Context, o *simOrder, which int, got *client.LineResult) {
	id := o.id + [...]string{"", "-confirm", "-pay"}[which]
	if got.Problem != nil {
		r.ledger.surprise("a sale: %v", got.Problem)
		return
	}
	s := got.CommandState
	if !s.Done() {
		var err error
		if s, err = r.client.Settle(ctx, id, settle); err != nil {
			o.unclear = true
			r.ledger.lost(id, err)
			return
		}
	}
	r.ledger.saw(s.Cursor)
	r.ledger.book(id, s.Status)
	if s.Status != client.StatusDecided {
		r.ledger.surprise("a sale became %s %s", s.Status, s.Code)
		return
	}
	switch which {
	case 0:
		r.ledger.isPlaced(o)
	case 1:
		o.status = "confirmed"
	}
}

func (r *run) stockMove(ctx context.Context, a *arrival) {
	m, path := &a.move, "/v1/stock/"+a.move.sku+"/"
	if m.receive {
		got := r.send(ctx, a, path+"receive", a.id, fmt.Appendf(nil, `{"quantity":%d,"reference":%q}`, m.quantity, a.id))
		r.moved(a, got, m.quantity, 0)
		return
	}
	got := r.send(ctx, a, path+"reserve", a.id, fmt.Appendf(nil, `{"reservation":%q,"quantity":%d}`, a.id, m.quantity))
	if got.status == client.StatusRefused && got.code == "stock_insufficient" {
		return // a good answer: nothing is promised that is not there
	}
	if !r.moved(a, got, 0, m.quantity) || m.then == "" {
		return
	}
	got = r.post(ctx, path+m.then, a.id+"-"+m.then, fmt.Appendf(nil, `{"reservation":%q}`, a.id))
	if m.then == "commit" {
		r.moved(a, got, -m.quantity, -m.quantity)
	} else {
		r.moved(a, got, 0, -m.quantity)
	}
}

// moved books a movement of stock that must have been decided.
func (r *run) moved(a *arrival, got answer, onHand, reserved int64) bool {
	if !got.ok() {
		r.ledger.stockUnclear(a.move.sku)
		return false
	}
	if !r.expect(a, got, client.StatusDecided, "") {
		return false
	}
	r.ledger.stock(a.move.sku, onHand, reserved)
	return true
}

var kindNames = [...]string{
	webOrder: "web order", posBatch: "batch", duplicate: "repeated order", malformed: "malformed document",
	unknownType: "unknown command", brokenRule: "order against the rules", stockMove: "stock movement",
}

// isGivenUp: the run was ended, which is nobody's fault.
func isGivenUp(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
