package sim

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace/internal/client"
)

// lookers is how many reads of the reconciliation are on their way at the same time.
const lookers = 32

// totals is GET /v1/order-totals added up.
type totals struct {
	orders, units int64
	minor         map[string]int64
}

// totals reads the server's totals of the run's day.
func (r *run) totals(ctx context.Context, cursor string) (totals, error) {
	q := url.Values{"from": {r.day}, "to": {r.day}}
	if cursor != "" {
		q.Set("min_cursor", cursor)
	}
	out := totals{minor: map[string]int64{}}
	res, err := r.client.Get(ctx, "/v1/order-totals?"+q.Encode())
	if err != nil {
		return out, err
	}
	if err := res.Err(); err != nil {
		return out, err
	}
	m, err := client.Members(res.Body)
	if err != nil {
		return out, fmt.Errorf("read the server's totals: %w", err)
	}
	for _, row := range m.List("items") {
		var orders, units int64
		minor, ok := client.Minor(row.Text("amount"))
		if !row.Into("orders", &orders) || !row.Into("units", &units) || !ok {
			return out, fmt.Errorf("the server's totals lack orders, units or an amount")
		}
		if row.Text("day") != r.day {
			continue
		}
		out.orders += orders
		out.units += units
		out.minor[row.Text("currency")] += minor
	}
	return out, nil
}

// tally compares one figure: what was sent, and what the server has.
type tally struct {
	mu           sync.Mutex
	sent, server int64
	detail       string
	failed       bool
}

func (t *tally) add(sent, server int64, format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sent += sent
	t.server += server
	if sent != server && !t.failed {
		t.failed, t.detail = true, fmt.Sprintf(format, args...)
	}
}

func (t *tally) check(name string) Check {
	return Check{Name: name, Sent: t.sent, Server: t.server, OK: t.sent == t.server && !t.failed, Detail: t.detail}
}

// reconcile compares the ledger with the server.
func (r *run) reconcile(ctx context.Context, rep *Report, before totals) error {
	if err := r.checkCommands(ctx, rep); err != nil {
		return err
	}
	cursor := r.ledger.reach()
	if err := r.checkOrders(ctx, rep, cursor); err != nil {
		return err
	}
	if err := r.checkStock(ctx, rep, cursor); err != nil {
		return err
	}
	if r.day == "" {
		return nil
	}
	return r.checkTotals(ctx, rep, before, cursor)
}

// each calls f for all items, several at a time.
func each[T any](ctx context.Context, items []T, f func(context.Context, T) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(lookers)
	for _, item := range items {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error { return f(ctx, item) })
	}
	return g.Wait()
}

// checkCommands looks up what was acknowledged: every command has the outcome that was answered, and what was malformed left
// nothing. A command without an answer has the outcome that is found.
func (r *run) checkCommands(ctx context.Context, rep *Report) error {
	var ids, unanswered []string
	for id, status := range r.ledger.commands {
		if status == "" {
			unanswered = append(unanswered, id)
		} else {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	if n := r.LookUp; n > 0 && len(ids) > n {
		sample := make([]string, n)
		for i := range sample {
			sample[i] = ids[i*len(ids)/n]
		}
		ids = sample
	}
	byStatus := map[string]*tally{client.StatusDecided: {}, client.StatusRefused: {}, client.StatusDead: {}}
	err := each(ctx, ids, func(ctx context.Context, id string) error {
		s, ok, err := r.client.Command(ctx, id)
		if err != nil {
			return err
		}
		want, got := r.ledger.commands[id], s.Status
		if !ok {
			got = "not known"
		}
		byStatus[want].add(1, b2i(got == want), "command %s was answered as %s and is %s", id, want, got)
		return nil
	})
	if err != nil {
		return err
	}
	for _, status := range []string{client.StatusDecided, client.StatusRefused, client.StatusDead} {
		rep.Checks = append(rep.Checks, byStatus[status].check("commands "+status))
	}
	if err := r.lookUpUnanswered(ctx, unanswered); err != nil {
		return err
	}
	var nothing tally
	err = each(ctx, r.ledger.bad, func(ctx context.Context, id string) error {
		_, kept, err := r.client.Command(ctx, id)
		if err == nil {
			nothing.add(0, b2i(kept), "malformed request %s was kept", id)
		}
		return err
	})
	rep.Checks = append(rep.Checks, nothing.check("malformed requests kept"))
	return err
}

// lookUpUnanswered finds out what became of requests that had no answer.
func (r *run) lookUpUnanswered(ctx context.Context, ids []string) error {
	return each(ctx, ids, func(ctx context.Context, id string) error {
		s, ok, err := r.client.Command(ctx, id)
		if err == nil && ok && !s.Done() {
			s, err = r.client.Settle(ctx, id, settle)
		}
		if err == nil && ok {
			r.ledger.saw(s.Cursor)
			r.ledger.book(id, s.Status)
		}
		return err
	})
}

func b2i(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// read reads a document that has come as far as the cursor. One that is not there is nil.
func (r *run) read(ctx context.Context, path, cursor string) (client.Object, error) {
	if cursor != "" {
		path += "?min_cursor=" + url.QueryEscape(cursor)
	}
	res, err := r.client.Get(ctx, path)
	switch {
	case err != nil:
		return nil, err
	case res.Status == http.StatusNotFound:
		return nil, nil
	case res.Err() != nil:
		return nil, res.Err()
	}
	return client.Members(res.Body)
}

// checkOrders reads every order back: its status and its total.
func (r *run) checkOrders(ctx context.Context, rep *Report, cursor string) error {
	var there, status, total tally
	err := each(ctx, r.ledger.orders, func(ctx context.Context, o *simOrder) error {
		m, err := r.read(ctx, "/v1/orders/"+o.id, cursor)
		if err != nil {
			return err
		}
		if o.unclear && !o.placed {
			if m != nil { // that is how it turned out
				r.ledger.isPlaced(o)
			}
		}
		there.add(b2i(o.placed), b2i(m != nil), "order %s", o.id)
		if m == nil || !o.placed {
			return nil
		}
		minor, _ := client.Minor(m.Object("total").Text("amount"))
		total.add(o.minor, minor, "order %s", o.id)
		if !o.unclear {
			status.add(1, b2i(m.Text("status") == o.status), "order %s is %s and must be %s", o.id, m.Text("status"), o.status)
		}
		return nil
	})
	rep.Checks = append(rep.Checks, there.check("orders read back"), status.check("orders in their status"), total.check("order totals read back"))
	return err
}

// checkStock reads the levels of all SKUs of the run.
func (r *run) checkStock(ctx context.Context, rep *Report, cursor string) error {
	var onHand, reserved, sane tally
	for sku, want := range r.ledger.levels {
		m, err := r.read(ctx, "/v1/stock/"+sku, cursor)
		if err != nil {
			return err
		}
		var have, promised, available int64
		m.Into("on_hand", &have)
		m.Into("reserved", &promised)
		m.Into("available", &available)
		sane.add(0, b2i(promised < 0 || promised > have || available != have-promised), "%s has %d, of which %d are promised", sku, have, promised)
		if !want.unclear {
			onHand.add(want.onHand, have, "%s has %d and must have %d", sku, have, want.onHand)
			reserved.add(want.reserved, promised, "%s promises %d and must promise %d", sku, promised, want.reserved)
		}
	}
	rep.Checks = append(rep.Checks, onHand.check("stock on hand"), reserved.check("stock reserved"), sane.check("stock oversold"))
	return nil
}

// checkTotals compares the server's totals of the run's day, which nobody else writes to.
func (r *run) checkTotals(ctx context.Context, rep *Report, before totals, cursor string) error {
	after, err := r.totals(ctx, cursor)
	if err != nil {
		return err
	}
	sent := totals{minor: map[string]int64{}}
	for _, o := range r.ledger.orders {
		if o.placed {
			sent.orders++
			sent.units += o.units
			sent.minor[o.currency] += o.minor
		}
	}
	compare := func(name string, sent, before, after int64) {
		var t tally
		t.add(sent, after-before, "by order-totals of %s", r.day)
		rep.Checks = append(rep.Checks, t.check(name))
	}
	compare("totals: orders", sent.orders, before.orders, after.orders)
	compare("totals: units", sent.units, before.units, after.units)
	for _, currency := range []string{"EUR", "GBP"} {
		compare("totals: "+currency, sent.minor[currency], before.minor[currency], after.minor[currency])
	}
	return nil
}
