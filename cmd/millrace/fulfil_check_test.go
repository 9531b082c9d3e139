package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/money"
	pay "github.com/millrace-io/millrace/internal/payment"
	"github.com/millrace-io/millrace/sim/gateway"
)

// account is what became of a shop's orders.
type account struct {
	// ends counts them, by status and reason.
	ends map[string]int
	// faults are what does not add up.
	faults []string
}

func (a *account) fault(format string, args ...any) {
	a.faults = append(a.faults, fmt.Sprintf(format, args...))
}

// settle waits until the servers have nothing left to do, and settles accounts.
func (s *shopWorld) settle(t *testing.T, at *server) *account {
	t.Helper()
	at.instances(t, len(s.buyers))
	a := &account{ends: map[string]int{}}
	s.mu.Lock()
	a.faults = append(a.faults, s.faults...)
	s.mu.Unlock()
	stock := map[string]int64{}
	for sku, n := range s.received {
		stock[sku] = n
	}
	cursor := at.head(t, "orders/"+s.buyers[0].id)
	for _, b := range s.buyers {
		var o order.Order
		body := at.do(t, call{method: http.MethodGet, path: "/v1/orders/" + b.id + "?min_cursor=" + cursor, prefer: "wait=60"}, http.StatusOK).body
		if err := jsonx.Unmarshal(body, &o); err != nil {
			t.Fatal(err)
		}
		a.order(b, &o)
		a.payments(s.gateway, b, &o)
		for i := range o.Lines {
			l := &o.Lines[i]
			if stock[l.SKU] -= l.Shipped; b.restock {
				stock[l.SKU] += l.Returned
			}
		}
	}
	for sku, want := range stock {
		var level struct {
			OnHand   int64 `json:"on_hand"`
			Reserved int64 `json:"reserved"`
		}
		at.do(t, call{method: http.MethodGet, path: "/v1/stock/" + sku + "?min_cursor=" + cursor, prefer: "wait=60"}, http.StatusOK).into(t, &level)
		if level.OnHand != want || level.Reserved != 0 {
			a.fault("%s: %d on hand and %d reserved, and there are to be %d", sku, level.OnHand, level.Reserved, want)
		}
	}
	return a
}

// instances waits until the process has seen everything, and the instances of so many orders have come to their ends.
func (s *server) instances(t *testing.T, orders int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		s.untilConsumer(t, order.ProcessFulfilment, func(c consumerState) bool { return c.Gap == 0 })
		var left []string
		n := 0
		pages(t, s, "/v1/processes/fulfilment/instances?limit=200", func(i millrace.Instance) {
			if n++; !i.Done || i.Failed != "" {
				left = append(left, fmt.Sprintf("%s is %s and waits for %s %s", i.Stream, i.State, i.Waits, i.Failed))
			}
		})
		if len(left) == 0 && n == orders && s.consumer(t, order.ProcessFulfilment).Gap == 0 {
			return
		}
		if client.Pause(ctx, shopLook) != nil {
			t.Fatalf("%d of %d orders have not come to their ends: %v\n%s", len(left), n, left[:min(5, len(left))], s.stderr.String())
		}
	}
}

// order wants an order in an end that its customer can understand.
func (a *account) order(b *buyer, o *order.Order) {
	end := string(o.Status)
	if o.CancelReason != "" {
		end += ": " + o.CancelReason
	}
	a.ends[end]++
	want := []string{"completed"}
	back := int64(0)
	for i := range o.Lines {
		back += o.Lines[i].Returned
		if o.Lines[i].Returned != b.back[i] {
			a.fault("%s: %d of line %d came back, and the customer sent %d", b.id, o.Lines[i].Returned, i+1, b.back[i])
		}
	}
	switch {
	case b.cancelled:
		want = []string{"cancelled: changed_my_mind"}
	case b.sent && back == o.Units:
		want = []string{"returned"}
	case b.sent:
		want = []string{"partly_returned"}
	case b.backorder == "" && slices.ContainsFunc(b.lines, func(l item) bool { return l.SKU == scarceSKU }):
		want = append(want, "cancelled: out_of_stock")
	}
	if !b.sent {
		want = append(want, "cancelled: payment_declined") // the gateway's ledger says whether
	}
	if b.cancelled {
		want = append(want, "cancelled: out_of_stock")
	}
	if !slices.Contains(want, end) {
		a.fault("%s is %s, and was to be one of %q", b.id, end, want)
	}
}

// payments compares what was taken for an order with what was owed.
func (a *account) payments(g *gateway.Gateway, b *buyer, o *order.Order) {
	owed := o.Total.Minor - o.Refund.Minor
	if o.Status == order.StatusCancelled {
		owed = 0
	}
	l, _ := g.Order(b.id)
	var taken, open int64
	charges, declines := 0, 0
	for _, p := range l.Payments {
		taken += p.Captured.Minor - p.Refunded.Minor
		switch {
		case p.Captured.Minor > 0:
			charges++
		case p.Voided.Minor != p.Authorised.Minor:
			open += p.Authorised.Minor
		}
	}
	for i := range l.Operations {
		if op := &l.Operations[i]; op.Status == pay.Declined {
			declines++
		}
	}
	if taken != owed || open != 0 || charges > 1 || len(l.Payments) > 1 {
		a.fault("%s: %d is owed and %d was taken, by %d of %d payments, and %d is set aside still: %+v", b.id, owed, taken, charges, len(l.Payments), open, l.Operations)
	}
	if declined := o.CancelReason == order.ReasonPaymentDeclined; declined && declines == 0 || declines > 0 && o.Status != order.StatusCancelled {
		a.fault("%s is %s %s, and the gateway said no %d times", b.id, o.Status, o.CancelReason, declines)
	}
}

// verifiesDomain wants `millrace verify --domain` to find nothing wrong.
func verifiesDomain(t *testing.T, where ...string) *domainVerdict {
	t.Helper()
	stdout, stderr, code := runs(t, append([]string{"verify", "--domain", "--output", "json"}, where...)...)
	var v verdict
	if err := jsonx.Unmarshal([]byte(stdout), &v); err != nil || code != 0 || v.Domain == nil || len(v.Domain.Broken) > 0 {
		t.Fatalf("verify --domain: exit code %d, %v: %s %s", code, err, stdout, stderr)
	}
	return v.Domain
}

// sameSum: the sum of no amounts, and that of amounts of 0.00, are both nothing.
func sameSum(a, b money.Sum) bool { return a == b || a.IsZero() && b.IsZero() }

// agrees wants the events to say of money what the gateway's ledger says.
func (s *shopWorld) agrees(t *testing.T, a *account, v *domainVerdict) {
	t.Helper()
	if v.Unsettled != 0 {
		t.Errorf("%d orders are unsettled", v.Unsettled)
	}
	l := s.gateway.Ledger()
	if len(l.Currencies) != 1 || v.Totals.Money["EUR"] == nil {
		t.Fatalf("%+v %+v", l, v.Totals)
	}
	g, m := &l.Currencies[0], v.Totals.Money["EUR"]
	if !sameSum(g.Captured, m.Captured) || !sameSum(g.Refunded, m.Refunded) || !sameSum(g.Voided, m.Voided) || !sameSum(g.Authorised, m.Authorised) {
		t.Errorf("the gateway has taken %+v, and the events say %+v", g, m)
	}
	if int(v.Totals.Orders) != len(s.buyers) || v.Totals.Reserved != 0 {
		t.Errorf("%+v", v.Totals)
	}
	for _, f := range a.faults {
		t.Error(f)
	}
	t.Logf("%d orders: %v; the gateway was asked %+v, %d times again, %d answers were lost",
		len(s.buyers), a.ends, l.Requests, l.Repeated, l.Lost)
}

// finished says how many customers have been served.
func (s *shopWorld) finished() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// served waits until so many customers have been served.
func (s *shopWorld) served(ctx context.Context, n int) {
	tick := time.NewTicker(shopLook)
	defer tick.Stop()
	for s.finished() < n {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
