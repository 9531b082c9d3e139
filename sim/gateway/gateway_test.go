package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/internal/money"
	pay "github.com/millrace-io/millrace/internal/payment"
	"github.com/millrace-io/millrace/internal/paymenttest"
	"github.com/millrace-io/millrace/sim/gateway"
)

func newGateway(t *testing.T, o *gateway.Options) *gateway.Gateway {
	t.Helper()
	g, err := gateway.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// booksOf sums up what a gateway did for an order.
func booksOf(g *gateway.Gateway) func(order string) paymenttest.Books {
	return func(order string) paymenttest.Books {
		l, _ := g.Order(order)
		b := paymenttest.Books{Payments: len(l.Payments)}
		for _, p := range l.Payments {
			b.Authorised += p.Authorised.Minor
			b.Captured += p.Captured.Minor
			b.Voided += p.Voided.Minor
			b.Refunded += p.Refunded.Minor
		}
		return b
	}
}

func TestGateway(t *testing.T) {
	paymenttest.RunGateway(t, func(t *testing.T) paymenttest.Subject {
		g := newGateway(t, nil)
		return paymenttest.Subject{Gateway: g, Books: booksOf(g)}
	})
}

func pounds(minor int64) money.Amount {
	c, _ := money.ParseCurrency("GBP")
	return money.Amount{Minor: minor, Currency: c}
}

func authorise(order string) *pay.Request {
	return &pay.Request{Kind: pay.Authorise, OrderID: order, Amount: pounds(1530)}
}

// TestDeclines: the share that was asked for, by the same orders for the same seed, whatever the order of calls.
func TestDeclines(t *testing.T) {
	const orders = 4000
	outcomes := func(seed uint64, backwards bool) (map[string]pay.Result, int) {
		g := newGateway(t, &gateway.Options{Seed: seed, Faults: gateway.Faults{Decline: 0.1}})
		out, declined := map[string]pay.Result{}, 0
		for n := range orders {
			if backwards {
				n = orders - 1 - n
			}
			order := fmt.Sprint("o-", n)
			r, err := g.Do(t.Context(), "key of "+order, authorise(order))
			if err != nil {
				t.Fatal(err)
			}
			out[order] = r
			if r.Status == pay.Declined {
				declined++
			}
		}
		if l := g.Ledger(); l.Requests[pay.Authorise] != (gateway.Tally{Attempts: orders, Approved: int64(orders - declined), Declined: int64(declined)}) {
			t.Errorf("%+v", l)
		}
		return out, declined
	}
	first, declined := outcomes(1, false)
	if declined < orders/10*8/10 || declined > orders/10*12/10 {
		t.Errorf("%d of %d declined", declined, orders)
	}
	codes := map[string]int{}
	for _, r := range first {
		codes[r.Code]++
		if r.Status == pay.Declined && r.Payment != "" {
			t.Errorf("%+v", r)
		}
	}
	for _, code := range []string{gateway.CodeCardDeclined, gateway.CodeExpiredCard, gateway.CodeInsufficientFunds} {
		if codes[code] < declined/6 {
			t.Errorf("%d declined: %v", declined, codes)
		}
	}
	if again, _ := outcomes(1, true); !cmp.Equal(first, again) {
		t.Error("the order of calls changes who is declined")
	}
	if other, _ := outcomes(2, false); cmp.Equal(first, other) {
		t.Error("the seed changes nothing")
	}
	// What was declined stays so, whatever the faults are now; and captures are not declined.
	g := newGateway(t, &gateway.Options{Faults: gateway.Faults{Decline: 1}})
	no, err := g.Do(t.Context(), "a", authorise("1"))
	if err != nil || no.Status != pay.Declined {
		t.Fatalf("%+v %v", no, err)
	}
	if err := g.SetFaults(&gateway.Faults{}); err != nil {
		t.Fatal(err)
	}
	if got, err := g.Do(t.Context(), "a", authorise("1")); err != nil || got != no {
		t.Errorf("%+v %v, want %+v", got, err, no)
	}
	if yes, err := g.Do(t.Context(), "b", authorise("1")); err != nil || yes.Status != pay.Approved {
		t.Errorf("%+v %v", yes, err)
	}
}

// TestLost: the money is taken, and the answer comes at the attempt that was asked for.
func TestLost(t *testing.T) {
	g := newGateway(t, &gateway.Options{Faults: gateway.Faults{Lose: 1, LoseTimes: 2, Fail: 1, FailTimes: 3}})
	for n := range 5 {
		_, err := g.Do(t.Context(), "a", authorise("1"))
		var unknown *pay.UnknownError
		if !errors.As(err, &unknown) {
			t.Fatalf("attempt %d: %v", n+1, err)
		}
		want := paymenttest.Books{}
		if n >= 3 {
			want = paymenttest.Books{Payments: 1, Authorised: 1530}
		}
		if got := booksOf(g)("1"); got != want {
			t.Errorf("attempt %d: %+v, want %+v", n+1, got, want)
		}
	}
	if r, err := g.Do(t.Context(), "a", authorise("1")); err != nil || r.Status != pay.Approved {
		t.Errorf("%+v %v", r, err)
	}
	l := g.Ledger()
	if l.Failed != 3 || l.Lost != 2 || l.Repeated != 5 || l.Requests[pay.Authorise] != (gateway.Tally{Attempts: 6, Approved: 1}) {
		t.Errorf("%+v", l)
	}
	if o, ok := g.Order("1"); !ok || len(o.Operations) != 1 || o.Operations[0].Attempts != 6 || o.Operations[0].Key != "a" {
		t.Errorf("%+v", o)
	}
}

// TestWaiting: slow answers are slow, those that hang do so until the caller gives up or the gateway is closed, and both are of
// requests that were done.
func TestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, &gateway.Options{Faults: gateway.Faults{Slow: 1, SlowMS: 2500}})
		began := time.Now()
		if r, err := g.Do(t.Context(), "a", authorise("1")); err != nil || r.Status != pay.Approved || time.Since(began) != 2500*time.Millisecond {
			t.Errorf("%+v %v after %s", r, err, time.Since(began))
		}
		if err := g.SetFaults(&gateway.Faults{Hang: 1}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		began = time.Now()
		if _, err := g.Do(ctx, "b", authorise("2")); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 10*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		if got := booksOf(g)("2"); got.Authorised != 1530 {
			t.Errorf("%+v", got)
		}
		time.AfterFunc(time.Second, g.Close)
		if _, err := g.Do(t.Context(), "c", authorise("3")); err == nil || time.Since(began) != 11*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

// TestDown: the gateway is down at the end of each period, says for how long, and does nothing meanwhile.
func TestDown(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	g := newGateway(t, &gateway.Options{Faults: gateway.Faults{DownForMS: 4000, DownEveryMS: 10_000}, Now: func() time.Time { return now }})
	for second := range 25 {
		key := fmt.Sprint("k", second)
		r, err := g.Do(t.Context(), key, authorise(key))
		var unknown *pay.UnknownError
		switch down := second%10 >= 6; {
		case !down && (err != nil || r.Status != pay.Approved):
			t.Errorf("second %d: %+v %v", second, r, err)
		case down && (!errors.As(err, &unknown) || unknown.RetryAfter() != time.Duration(10-second%10)*time.Second):
			t.Errorf("second %d: %v", second, err)
		}
		now = now.Add(time.Second)
	}
	if l := g.Ledger(); l.Unavailable != 8 || l.Payments != 17 || l.Orders != 17 {
		t.Errorf("%+v", l)
	}
	if err := g.SetFaults(&gateway.Faults{Down: true}); err != nil {
		t.Fatal(err)
	}
	var unknown *pay.UnknownError
	if _, err := g.Do(t.Context(), "k0", authorise("k0")); !errors.As(err, &unknown) || unknown.RetryAfter() != 0 {
		t.Errorf("%v", err)
	}
}

// TestManyAtOnce: many clients that all make the same requests, some of which contradict each other, take no more than there is,
// and each key's effect once.
func TestManyAtOnce(t *testing.T) {
	const clients, orders = 8, 20
	g := newGateway(t, &gateway.Options{Faults: gateway.Faults{Lose: 0.3, Fail: 0.3, LoseTimes: 2}})
	ask := func(key string, r pay.Request) (pay.Result, error) {
		for {
			got, err := g.Do(t.Context(), key, &r)
			var unknown *pay.UnknownError
			if !errors.As(err, &unknown) {
				return got, err
			}
		}
	}
	var wg sync.WaitGroup
	for n := range clients {
		wg.Go(func() {
			for o := range orders {
				order := fmt.Sprint("o-", o)
				a, err := ask(order+"/a", *authorise(order))
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := ask(order+"/c", pay.Request{Kind: pay.Capture, OrderID: order, Payment: a.Payment, Amount: pounds(1000)}); err != nil {
					t.Error(err)
				}
				// Two of these fit into what was captured, whichever come first.
				_, _ = ask(fmt.Sprint(order, "/r", n), pay.Request{Kind: pay.Refund, OrderID: order, Payment: a.Payment, Amount: pounds(400)})
				_, _ = g.Order(order)
			}
			_ = g.Ledger()
		})
	}
	wg.Wait()
	for o := range orders {
		if got := booksOf(g)(fmt.Sprint("o-", o)); got != (paymenttest.Books{Payments: 1, Authorised: 1530, Captured: 1000, Refunded: 800}) {
			t.Errorf("%+v", got)
		}
	}
	l := g.Ledger()
	if r := l.Requests[pay.Refund]; r.Approved != 2*orders || r.Refused != (clients-2)*orders {
		t.Errorf("%+v", l)
	}
}

func TestFaultsCheck(t *testing.T) {
	for _, f := range []gateway.Faults{
		{Decline: -0.1}, {Lose: 1.1}, {LoseTimes: -1}, {FailTimes: 1001}, {SlowMS: -1}, {SlowMS: 60_001}, {DownForMS: 1},
		{DownForMS: -1}, {DownEveryMS: 86_400_001},
	} {
		if _, err := gateway.New(&gateway.Options{Faults: f}); err == nil {
			t.Errorf("%+v is taken", f)
		}
	}
}
