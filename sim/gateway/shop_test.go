package gateway_test

import (
	"errors"
	"net"
	"net/http/httptest"
	"testing"
	"time"

	"pgregory.net/rapid"

	pay "github.com/millrace-io/millrace/internal/payment"
	"github.com/millrace-io/millrace/internal/paymenttest"
	"github.com/millrace-io/millrace/payment"
	"github.com/millrace-io/millrace/sim/gateway"
)

// shop is a client that asks until it is answered, and goes on asking now and then.
type shop struct {
	r        *rapid.T
	t        *testing.T
	g        *gateway.Gateway
	client   pay.Gateway
	answers  map[string]pay.Result // by key
	requests map[string]pay.Request
	keys     []string
}

// maxTries is more than faults can take: the most that fail and that are lost, and what follows a change of faults.
const maxTries = 40

// ask makes a request until it is answered. Where the gateway is down, somebody brings it up again after a few attempts.
func (s *shop) ask(key string, q pay.Request) pay.Result {
	for try := range maxTries {
		got, err := s.client.Do(s.t.Context(), key, &q)
		var refused *pay.RefusedError
		switch {
		case err == nil:
			s.heard(key, q, got)
			return got
		case errors.As(err, &refused):
			s.r.Fatalf("%s under %s: %v", q.Kind, key, err)
		case try == 3 || rapid.IntRange(0, 9).Draw(s.r, "change") == 0:
			f := drawFaults(s.r)
			f.Down = false
			if err := s.g.SetFaults(&f); err != nil {
				s.r.Fatal(err)
			}
		}
	}
	s.r.Fatalf("%s under %s: no answer", q.Kind, key)
	return pay.Result{}
}

func (s *shop) heard(key string, q pay.Request, got pay.Result) {
	if first, ok := s.answers[key]; ok && first != got {
		s.r.Fatalf("%s under %s: %+v, and before %+v", q.Kind, key, got, first)
	} else if !ok {
		s.answers[key], s.requests[key] = got, q
		s.keys = append(s.keys, key)
	}
}

// live takes an order through payments, repeating what was asked before now and then.
func (s *shop) live(order string) {
	minor := rapid.Int64Range(0, 1_000_000).Draw(s.r, "amount")
	do := func(kind pay.Kind, name, payment string, minor int64) pay.Result {
		got := s.ask(order+"/"+name, pay.Request{Kind: kind, OrderID: order, Payment: payment, Amount: pounds(minor)})
		for rapid.IntRange(0, 2).Draw(s.r, "again") == 0 {
			key := rapid.SampledFrom(s.keys).Draw(s.r, "key")
			s.ask(key, s.requests[key])
		}
		return got
	}
	got := do(pay.Authorise, "authorise", "", minor)
	if got.Status == pay.Declined {
		return
	}
	if rapid.IntRange(0, 3).Draw(s.r, "void") == 0 {
		do(pay.Void, "void", got.Payment, minor)
		return
	}
	taken := rapid.Int64Range(0, minor).Draw(s.r, "captured")
	do(pay.Capture, "capture", got.Payment, taken)
	for _, name := range []string{"refund 1", "refund 2"} {
		back := rapid.Int64Range(0, taken).Draw(s.r, "refunded")
		do(pay.Refund, name, got.Payment, back)
		taken -= back
	}
}

// check holds the books to what was answered: each key's effect is there once.
func (s *shop) check() {
	want, authorised := map[string]paymenttest.Books{}, int64(0)
	for _, key := range s.keys {
		q := s.requests[key]
		b := want[q.OrderID]
		if s.answers[key].Status == pay.Approved {
			switch q.Kind {
			case pay.Authorise:
				b.Payments++
				b.Authorised += q.Amount.Minor
				authorised += q.Amount.Minor
			case pay.Capture:
				b.Captured += q.Amount.Minor
			case pay.Void:
				b.Voided += q.Amount.Minor
			case pay.Refund:
				b.Refunded += q.Amount.Minor
			}
		}
		want[q.OrderID] = b
	}
	for order, b := range want {
		if got := booksOf(s.g)(order); got != b {
			s.r.Errorf("%s: the gateway has %+v, the shop %+v", order, got, b)
		}
	}
	l := s.g.Ledger()
	for _, c := range l.Currencies {
		sum := c.Open.Plus(c.Captured).Plus(c.Released).Plus(c.Voided)
		if sum.String() != c.Authorised.String() || c.Authorised.String() != pounds(authorised).Decimal().String() {
			s.r.Errorf("%+v: %s in all, want %d", c, sum, authorised)
		}
	}
	if l.Orders != len(want) {
		s.r.Errorf("%d orders, want %d", l.Orders, len(want))
	}
}

// reachIn is reach for a draw of a property, which closes both itself.
func reachIn(r *rapid.T, g *gateway.Gateway) (*payment.HTTP, *httptest.Server) {
	s := httptest.NewServer(g)
	h, err := payment.NewHTTP(s.URL, &payment.Options{Timeout: 5 * time.Second})
	if err != nil {
		r.Fatal(err)
	}
	return h, s
}

func dialRaw(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
