package order

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
)

var worldSKUs = []string{"A", "B b", "C"}

// act has a person or the world do something, mostly sensible.
func (w *world) act() {
	i := w.orders[w.r.IntN(len(w.orders))]
	sku := millrace.NewStream(CategoryStock, worldSKUs[w.r.IntN(len(worldSKUs))])
	switch w.r.IntN(22) {
	case 0:
		w.client(i.name, "CancelOrder", `{"reason":"changed my mind"}`)
	case 1, 2:
		w.client(i.name, "ChangeOrder", `{"lines":[`+w.lines()+`]}`)
	case 3:
		w.client(i.name, "MarkOrderPaid", `{"reference":"cash"}`)
	case 4, 5, 6:
		body := `{}`
		if w.r.IntN(2) == 0 {
			body = fmt.Sprintf(`{"lines":[{"line":1,"quantity":%d}],"restock":%t}`, 1+w.r.IntN(2), w.r.IntN(3) > 0)
		}
		w.client(i.name, "ReturnOrder", body)
	case 7:
		w.client(i.name, "ConfirmOrder", `{}`)
	case 8:
		w.client(i.name, "PackOrder", `{}`)
	case 9:
		if w.r.IntN(2) == 0 {
			w.client(i.name, "ShipOrder", `{"lines":[{"line":1,"quantity":1}]}`)
		}
	case 10:
		w.client(i.name, "CloseOrder", `{"reason":"enough"}`)
	case 11:
		w.client(i.name, "DeliverOrder", `{}`)
	case 12, 13, 14, 15:
		w.client(sku, "ReceiveStock", fmt.Sprintf(`{"quantity":%d}`, 1+w.r.IntN(5)))
	case 16:
		w.client(sku, "AdjustStock", fmt.Sprintf(`{"delta":%d,"reason":"count"}`, w.r.IntN(5)-3))
	case 17, 18:
		w.now = w.now.Add(time.Duration(w.r.IntN(40)) * time.Minute)
	case 19:
		if w.r.IntN(3) == 0 {
			w.now = w.now.Add(time.Duration(w.r.IntN(40)) * time.Hour)
		}
	case 20:
		i.restart(false)
	case 21:
		i.restart(true)
	}
}

func (w *world) lines() string {
	var lines []string
	for range 1 + w.r.IntN(4) {
		price := []string{"2.55", "0.333333", "1", "0"}[w.r.IntN(4)]
		lines = append(lines, fmt.Sprintf(`{"sku":%q,"quantity":%d,"unit_price":%q}`, worldSKUs[w.r.IntN(len(worldSKUs))], 1+w.r.IntN(4), price))
	}
	return strings.Join(lines, ",")
}

// ends are the states in which an order may be left for ever, and stops those that wait for a person.
var (
	ends = []string{FulfilmentCompleted, FulfilmentClosed, FulfilmentCancelled, FulfilmentPartlyReturned, FulfilmentReturned}
	pays = []string{FulfilmentPaymentDeclined, FulfilmentCaptureDeclined, FulfilmentAwaitingPayment}
)

// worldOptions are settings by turns.
func worldOptions(seed uint64) FulfilmentOptions {
	var o FulfilmentOptions
	if seed%5 == 0 {
		o.Payment = PaymentManual
	}
	o.Until = []FulfilmentUntil{UntilDelivered, UntilDelivered, UntilDelivered, UntilShipped, UntilPacked, UntilConfirmed}[seed/5%6]
	return o
}

// live is one life of a world: orders, chance, and rest. It gives what the audit found, and how often orders ended how.
func (w *world) live(orders, acts int, tally map[string]int) []Finding {
	w.t.Helper()
	for _, sku := range worldSKUs {
		w.client(millrace.NewStream(CategoryStock, sku), "ReceiveStock", fmt.Sprintf(`{"quantity":%d}`, 2+w.r.IntN(14)))
	}
	for n := range orders {
		backorder := []string{"reject", "wait", "split"}[w.r.IntN(3)]
		w.place(fmt.Sprint(n+1), fmt.Sprintf(`{"customer_id":"c-%d","currency":"GBP","backorder":%q,"lines":[%s]}`, n, backorder, w.lines()))
		for range acts {
			for range w.r.IntN(8) {
				w.turn(false)
			}
			if w.r.IntN(4) == 0 {
				w.act()
			}
		}
		if f := w.audit.Finish(false); len(f.Broken) > 0 {
			return f.Broken
		}
	}
	w.rest()
	// What waits for a person gets one.
	for range 4 {
		for _, i := range w.orders {
			switch {
			case slices.Contains(pays, i.doc.now.State):
				w.client(i.name, "MarkOrderPaid", `{"reference":"cash"}`)
			case !slices.Contains(ends, i.doc.now.State):
				for _, verb := range []string{"PackOrder", "ShipOrder", "DeliverOrder"} {
					w.client(i.name, verb, `{}`)
				}
			}
		}
		w.rest()
	}
	var stuck []millrace.Stream
	for _, i := range w.orders {
		state, waits := i.doc.now.State, i.doc.now.Waits
		tally[state]++
		switch {
		case state == FulfilmentStuck && strings.HasSuffix(waits, "that left without any"),
			state == FulfilmentRefundDeclined && strings.HasSuffix(waits, "by hand"):
			stuck = append(stuck, i.name)
		case !slices.Contains(ends, state):
			w.t.Fatalf("%s is left %s (%s): %s", i.name, state, waits, i.doc.state)
		case !i.doc.now.Done || len(i.doc.timers) > 0:
			w.t.Fatalf("%s is left %s with %v", i.name, state, i.doc.timers)
		}
	}
	return slices.DeleteFunc(w.audit.Finish(true).Broken, func(f Finding) bool { return slices.Contains(stuck, f.Stream) })
}

// TestFulfilment: whatever happens in whatever order, every order comes to an end that has a name, nothing is reserved and
// nothing authorised for it then, it was charged once at most, and stock and money add up at every step.
func TestFulfilment(t *testing.T) {
	const worlds, orders = 150, 5
	tally := map[string]int{}
	for seed := range uint64(worlds) {
		oneWorld(t, seed, orders, tally)
	}
	t.Logf("%v", tally)
	for _, state := range ends {
		if tally[state] == 0 {
			t.Errorf("no order ended %s", state)
		}
	}
	if n := tally[FulfilmentStuck] + tally[FulfilmentRefundDeclined]; n > worlds*orders/20 {
		t.Errorf("%d orders are stuck", n)
	}
}

// TestSoakFulfilment is the same for as long as it is told to.
func TestSoakFulfilment(t *testing.T) {
	soak, err := time.ParseDuration(os.Getenv("MILLRACE_SOAK"))
	if err != nil {
		t.Skip("MILLRACE_SOAK is not set")
	}
	tally := map[string]int{}
	for began, seed := time.Now(), uint64(1_000_000); time.Since(began) < soak; seed++ {
		oneWorld(t, seed, 6, tally)
	}
	t.Logf("%v", tally)
}

func oneWorld(t *testing.T, seed uint64, orders int, tally map[string]int) {
	t.Helper()
	w := newWorld(seedTB{t, seed}, seed, worldOptions(seed))
	for _, f := range w.live(orders, 40, tally) {
		t.Errorf("seed %d: %+v%s", seed, f, w.standing())
	}
	for _, i := range w.orders {
		times, taken := w.captured(i.name.ID())
		if times > 1 {
			t.Errorf("seed %d: %s was charged %d times", seed, i.name, times)
		}
		if held := w.standingOf(i.name.ID()); held != 0 && slices.Contains(ends, i.doc.now.State) {
			t.Errorf("seed %d: the gateway holds %d for %s", seed, held, i.name)
		}
		o := w.stream(i.name).order()
		if o.Payment != nil && o.Payment.Captured.Minor != taken || o.Payment == nil && taken > 0 {
			t.Errorf("seed %d: %s was charged %d and knows of %+v", seed, i.name, taken, o.Payment)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// seedTB says which seed it was.
type seedTB struct {
	*testing.T
	seed uint64
}

func (t seedTB) Fatal(args ...any) {
	t.Helper()
	t.T.Fatal(append([]any{"seed", t.seed}, args...)...)
}

func (t seedTB) Fatalf(format string, args ...any) {
	t.Helper()
	t.T.Fatalf("seed %d: "+format, append([]any{t.seed}, args...)...)
}
