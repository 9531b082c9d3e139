// Package paymenttest is the conformance suite of payment gateways.
package paymenttest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/millrace-io/millrace/internal/money"
	"github.com/millrace-io/millrace/internal/payment"
)

// Books are what a gateway did for an order, in minor units, over all its payments.
type Books struct {
	Payments                               int
	Authorised, Captured, Voided, Refunded int64
}

// Subject is a gateway under test.
type Subject struct {
	Gateway payment.Gateway
	// Books tells what was done for an order. Nil for a gateway that keeps no books, which has nothing to contradict either.
	Books func(order string) Books
}

// RunGateway holds a gateway to the contract of [payment.Gateway]. Each part gets a subject of its own, which behaves.
func RunGateway(t *testing.T, factory func(t *testing.T) Subject) {
	for _, part := range []struct {
		name string
		run  func(t *testing.T, s *Subject)
	}{
		{"TheWay", theWay},
		{"Again", again},
		{"AtOnce", atOnce},
		{"Ended", ended},
		{"Senseless", senseless},
		{"AnotherRequest", anotherRequest},
		{"Contradictions", contradictions},
		{"Names", names},
	} {
		t.Run(part.name, func(t *testing.T) {
			s := factory(t)
			part.run(t, &s)
		})
	}
}

func euros(minor int64) money.Amount {
	c, _ := money.ParseCurrency("EUR")
	return money.Amount{Minor: minor, Currency: c}
}

// do makes an attempt that must be approved, and gives the payment's name.
func (s *Subject) do(t *testing.T, key string, r payment.Request) string {
	t.Helper()
	got, err := s.Gateway.Do(t.Context(), key, &r)
	if err != nil || got.Status != payment.Approved || !payment.ValidName(got.Payment) || got.Code != "" {
		t.Fatalf("%s of %s: %+v %v, want it approved", r.Kind, r.Amount, got, err)
	}
	if r.Payment != "" && got.Payment != r.Payment {
		t.Fatalf("%s of payment %s names %s", r.Kind, r.Payment, got.Payment)
	}
	return got.Payment
}

// refuse makes an attempt that must not be taken: it is not approved, nor declined, which would be a word about money.
func (s *Subject) refuse(t *testing.T, key string, r payment.Request) {
	t.Helper()
	got, err := s.Gateway.Do(t.Context(), key, &r)
	var refused *payment.RefusedError
	if !errors.As(err, &refused) || refused.RetryAfter() < payment.RepairPause || got != (payment.Result{}) {
		t.Errorf("%s of %s: %+v %v, want a RefusedError", r.Kind, r.Amount, got, err)
	}
}

func (s *Subject) check(t *testing.T, order string, want Books) {
	t.Helper()
	if s.Books == nil {
		return
	}
	if got := s.Books(order); got != want {
		t.Errorf("order %s: %+v, want %+v", order, got, want)
	}
}

// theWay: authorised, captured in part, refunded twice; authorised and voided; free goods.
func theWay(t *testing.T, s *Subject) {
	p := s.do(t, "a", payment.Request{Kind: payment.Authorise, OrderID: "1", Amount: euros(1530)})
	s.do(t, "c", payment.Request{Kind: payment.Capture, OrderID: "1", Payment: p, Amount: euros(1000)})
	s.do(t, "r1", payment.Request{Kind: payment.Refund, OrderID: "1", Payment: p, Amount: euros(400)})
	s.do(t, "r2", payment.Request{Kind: payment.Refund, OrderID: "1", Payment: p, Amount: euros(600)})
	s.check(t, "1", Books{Payments: 1, Authorised: 1530, Captured: 1000, Refunded: 1000})

	p = s.do(t, "a2", payment.Request{Kind: payment.Authorise, OrderID: "2", Amount: euros(99)})
	s.do(t, "v2", payment.Request{Kind: payment.Void, OrderID: "2", Payment: p, Amount: euros(99)})
	s.check(t, "2", Books{Payments: 1, Authorised: 99, Voided: 99})

	p = s.do(t, "a3", payment.Request{Kind: payment.Authorise, OrderID: "3", Amount: euros(0)})
	s.do(t, "c3", payment.Request{Kind: payment.Capture, OrderID: "3", Payment: p, Amount: euros(0)})
	s.check(t, "3", Books{Payments: 1})
}

// again: however often a request is made under its key, also after later ones, it has one effect and one answer.
func again(t *testing.T, s *Subject) {
	authorise := payment.Request{Kind: payment.Authorise, OrderID: "1", Amount: euros(1530)}
	p := s.do(t, "a", authorise)
	capture := payment.Request{Kind: payment.Capture, OrderID: "1", Payment: p, Amount: euros(1530)}
	refund := payment.Request{Kind: payment.Refund, OrderID: "1", Payment: p, Amount: euros(30)}
	for range 3 {
		if got := s.do(t, "a", authorise); got != p {
			t.Errorf("again: payment %s, want %s", got, p)
		}
		s.do(t, "c", capture)
		s.do(t, "r", refund)
	}
	s.check(t, "1", Books{Payments: 1, Authorised: 1530, Captured: 1530, Refunded: 30})
}

// atOnce: the same request many times at the same time has one effect, and those who are answered hear the same.
func atOnce(t *testing.T, s *Subject) {
	r := payment.Request{Kind: payment.Authorise, OrderID: "1", Amount: euros(700)}
	var wg sync.WaitGroup
	got := make([]payment.Result, 16)
	errs := make([]error, len(got))
	for i := range got {
		wg.Go(func() { got[i], errs[i] = s.Gateway.Do(t.Context(), "a", &r) })
	}
	wg.Wait()
	want := payment.Result{Status: payment.Approved, Payment: s.do(t, "a", r)}
	for i := range got {
		if errs[i] == nil && got[i] != want {
			t.Errorf("%+v, want %+v", got[i], want)
		}
	}
	s.check(t, "1", Books{Payments: 1, Authorised: 700})
}

// ended: a caller who is gone gets an error or the answer, and the request counts once when it is made again.
func ended(t *testing.T, s *Subject) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := payment.Request{Kind: payment.Authorise, OrderID: "1", Amount: euros(700)}
	if got, err := s.Gateway.Do(ctx, "a", &r); err == nil && got.Status != payment.Approved {
		t.Errorf("%+v", got)
	}
	s.do(t, "a", r)
	s.check(t, "1", Books{Payments: 1, Authorised: 700})
}

// senseless: what is wrong whatever the gateway is not taken.
func senseless(t *testing.T, s *Subject) {
	for n, r := range []payment.Request{
		{OrderID: "1", Amount: euros(1)},
		{Kind: "steal", OrderID: "1", Amount: euros(1)},
		{Kind: payment.Authorise, Amount: euros(1)},
		{Kind: payment.Authorise, OrderID: "1"},
		{Kind: payment.Authorise, OrderID: "1", Amount: euros(-1)},
		{Kind: payment.Authorise, OrderID: "1", Payment: "p", Amount: euros(1)},
		{Kind: payment.Authorise, OrderID: "\xff", Amount: euros(1)},
		{Kind: payment.Capture, OrderID: "1", Amount: euros(1)},
		{Kind: payment.Capture, OrderID: "1", Payment: "..", Amount: euros(1)},
		{Kind: payment.Void, OrderID: "1", Payment: "a/../b", Amount: euros(1)},
		{Kind: payment.Refund, OrderID: "1", Payment: "a?b", Amount: euros(1)},
	} {
		s.refuse(t, fmt.Sprintf("k%d", n), r)
	}
	s.check(t, "1", Books{})
}

// anotherRequest: a key that was used for something means that for ever.
func anotherRequest(t *testing.T, s *Subject) {
	if s.Books == nil {
		t.Skip("it keeps no books")
	}
	p := s.do(t, "a", payment.Request{Kind: payment.Authorise, OrderID: "1", Amount: euros(700)})
	q := s.do(t, "b", payment.Request{Kind: payment.Authorise, OrderID: "1", Amount: euros(700)})
	s.do(t, "c", payment.Request{Kind: payment.Capture, OrderID: "1", Payment: p, Amount: euros(700)})
	for _, r := range []payment.Request{
		{Kind: payment.Authorise, OrderID: "1", Amount: euros(701)},
		{Kind: payment.Authorise, OrderID: "2", Amount: euros(700)},
		{Kind: payment.Void, OrderID: "1", Payment: p, Amount: euros(700)},
	} {
		s.refuse(t, "a", r)
	}
	s.refuse(t, "c", payment.Request{Kind: payment.Capture, OrderID: "1", Payment: q, Amount: euros(700)})
	s.check(t, "1", Books{Payments: 2, Authorised: 1400, Captured: 700})
	s.check(t, "2", Books{})
}

// contradictions: what the books do not allow is not taken, and can be asked for rightly under the same key.
func contradictions(t *testing.T, s *Subject) {
	if s.Books == nil {
		t.Skip("it keeps no books")
	}
	ask := func(kind payment.Kind, order, p string, minor int64) payment.Request {
		return payment.Request{Kind: kind, OrderID: order, Payment: p, Amount: euros(minor)}
	}
	p := s.do(t, "a", ask(payment.Authorise, "1", "", 700))
	s.refuse(t, "c", ask(payment.Capture, "1", p, 701))
	s.refuse(t, "c2", ask(payment.Capture, "1", "nobody", 1))
	s.refuse(t, "c3", ask(payment.Capture, "2", p, 1))
	s.refuse(t, "v", ask(payment.Void, "1", p, 699))
	s.refuse(t, "r", ask(payment.Refund, "1", p, 1))
	pounds := ask(payment.Capture, "1", p, 700)
	pounds.Amount.Currency, _ = money.ParseCurrency("GBP")
	s.refuse(t, "c4", pounds)
	s.check(t, "1", Books{Payments: 1, Authorised: 700})
	s.do(t, "c", ask(payment.Capture, "1", p, 600))
	s.refuse(t, "c5", ask(payment.Capture, "1", p, 100))
	s.refuse(t, "v2", ask(payment.Void, "1", p, 700))
	s.do(t, "r2", ask(payment.Refund, "1", p, 599))
	s.refuse(t, "r3", ask(payment.Refund, "1", p, 2))
	s.check(t, "1", Books{Payments: 1, Authorised: 700, Captured: 600, Refunded: 599})
	s.do(t, "r3", ask(payment.Refund, "1", p, 1))

	p = s.do(t, "a2", ask(payment.Authorise, "2", "", 5))
	s.do(t, "v3", ask(payment.Void, "2", p, 5))
	s.refuse(t, "v4", ask(payment.Void, "2", p, 5))
	s.refuse(t, "c6", ask(payment.Capture, "2", p, 5))
	s.check(t, "2", Books{Payments: 1, Authorised: 5, Voided: 5})
}

// names: keys and orders are whatever ids are here. Keys that differ by little are two.
func names(t *testing.T, s *Subject) {
	for _, order := range []string{"Größe 7", "a/b", "100%", "\"quoted\"", "order-1:authorise"} {
		r := payment.Request{Kind: payment.Authorise, OrderID: order, Amount: euros(10)}
		for _, key := range []string{order, order + " ", order + "%20", order + "/"} {
			s.do(t, key, r)
		}
		s.check(t, order, Books{Payments: 4, Authorised: 40})
	}
}
