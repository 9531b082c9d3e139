package order

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/payment"
)

const (
	autoLines = `"lines":[{"sku":"A","quantity":2,"unit_price":"2.50"},{"sku":"C","quantity":1,"unit_price":"1"},{"sku":"A","quantity":1,"unit_price":"2"}]}`
	autoBody  = `{"customer_id":"c-17","currency":"GBP",` + autoLines
)

func backordered(policy string) string {
	return `{"customer_id":"c-17","currency":"GBP","backorder":"` + policy + `",` + autoLines
}

// fulfilmentStates are the states of the process, each with the way there: from a world of 10 A and 10 C, or 10 A alone.
var fulfilmentStates = []struct {
	state string
	body  string
	short bool // no C
	o     FulfilmentOptions
	no    payment.Kind // what the gateway declines
	then  func(w *world)
}{
	{state: FulfilmentReserving, body: autoBody},
	{state: FulfilmentBackordered, body: backordered("wait"), short: true},
	{state: FulfilmentAuthorising, body: autoBody},
	{state: FulfilmentAwaitingPayment, body: autoBody, o: FulfilmentOptions{Payment: PaymentManual}},
	{state: FulfilmentConfirming, body: autoBody},
	{state: FulfilmentPacking, body: autoBody},
	{state: FulfilmentShipping, body: autoBody},
	{state: FulfilmentPartlyShipped, body: backordered("split"), short: true},
	{state: FulfilmentDelivering, body: autoBody},
	{state: FulfilmentSettling, body: autoBody},
	{state: FulfilmentUndoing, body: autoBody, short: true},
	{state: FulfilmentPaymentDeclined, body: autoBody, o: FulfilmentOptions{Until: UntilConfirmed}, no: payment.Authorise, then: func(w *world) {
		w.client(w.orders[0].name, "ConfirmOrder", `{}`)
		w.client(w.orders[0].name, "PackOrder", `{}`)
		w.client(w.orders[0].name, "ShipOrder", `{}`)
	}},
	{state: FulfilmentCaptureDeclined, body: autoBody, no: payment.Capture},
	{state: FulfilmentRefundDeclined, body: autoBody, no: payment.Refund, then: func(w *world) {
		w.calmly(func() bool { return w.orders[0].doc.now.State == FulfilmentCompleted })
		w.client(w.orders[0].name, "ReturnOrder", `{"lines":[{"line":1,"quantity":1}]}`)
	}},
	{state: FulfilmentCompleted, body: autoBody},
	{state: FulfilmentCancelled, body: autoBody, short: true},
	{state: FulfilmentReturned, body: autoBody, then: func(w *world) {
		w.calmly(func() bool { return w.orders[0].doc.now.State == FulfilmentCompleted })
		w.client(w.orders[0].name, "ReturnOrder", `{}`)
	}},
}

// reach makes a world whose one order is in a state.
func reach(t *testing.T, k int) *world {
	t.Helper()
	c := &fulfilmentStates[k]
	w := newWorld(t, 1, c.o)
	w.faults.always = func(kind payment.Kind) bool { return kind != c.no }
	w.client("stock-A", "ReceiveStock", `{"quantity":10}`)
	if !c.short {
		w.client("stock-C", "ReceiveStock", `{"quantity":10}`)
	}
	w.place("42", c.body)
	if c.then != nil {
		c.then(w)
	}
	w.calmly(func() bool { return w.orders[0].doc.now.State == c.state })
	if got := w.orders[0].doc.now; got.State != c.state {
		t.Fatalf("%s was not reached, but %s (%s): %s", c.state, got.State, got.Waits, w.orders[0].doc.state)
	}
	return w
}

// fulfilmentInputs is everything that the process may hear of, in its own time and out of it.
func fulfilmentInputs() []struct {
	name string
	in   millrace.Input
} {
	at := start.Add(30 * 24 * time.Hour)
	type input = struct {
		name string
		in   millrace.Input
	}
	var out []input
	event := func(name string, body any) {
		out = append(out, input{name, millrace.Input{At: at, Event: body, Version: 1000}})
	}
	one := []LineQuantity{{1, 1}}
	line := OrderedLine{Line: 1, SKU: "A", Quantity: 1, LineTotal: gbp(250).Decimal()}
	more := OrderedLine{Line: 1, SKU: "C", Quantity: 9, LineTotal: gbp(2250).Decimal()}
	event("placed", &OrderPlaced{Fulfilment: FulfilmentAuto, Lines: []OrderedLine{line}, Total: gbp(250)})
	event("fewer lines", &OrderLinesChanged{Lines: []OrderedLine{line}, Total: gbp(250)})
	event("more lines", &OrderLinesChanged{Lines: []OrderedLine{more}, Total: gbp(2250)})
	event("address changed", &OrderAddressChanged{})
	event("confirmed", &OrderConfirmed{})
	event("cancelled", &OrderCancelled{Reason: "x"})
	event("packed", &OrderPacked{})
	event("one shipped", &OrderShipped{Shipment: 1, Lines: one})
	event("all shipped", &OrderShipped{Shipment: 1, Lines: []LineQuantity{{1, 2}, {2, 1}, {3, 1}}, Whole: true})
	event("closed", &OrderClosed{Lines: one, Refund: gbp(250)})
	event("delivered", &OrderDelivered{})
	event("completed", &OrderCompleted{})
	event("one returned", &OrderReturned{Lines: one, Refund: gbp(250)})
	event("one scrapped", &OrderReturned{Lines: one, Refund: gbp(250), Scrapped: true})
	event("paid otherwise", &OrderPaid{Amount: gbp(800)})
	event("captured", &OrderPaid{Name: "capture-1", Reference: "p", Amount: gbp(800)})
	event("authorisation requested", &OrderPaymentRequested{Name: "authorise-1", Amount: gbp(800)})
	event("another requested", &OrderPaymentRequested{Name: "authorise-2", Amount: gbp(900)})
	event("authorised", &OrderPaymentAuthorised{Name: "authorise-1", Payment: "p", Amount: gbp(800)})
	event("authorisation declined", &OrderPaymentDeclined{Name: "authorise-1", Kind: payment.Authorise})
	event("void declined", &OrderPaymentDeclined{Name: "void-1", Kind: payment.Void})
	event("refund declined", &OrderPaymentDeclined{Name: "refund-1", Kind: payment.Refund})
	event("voided", &OrderPaymentVoided{Name: "void-1", Payment: "p", Amount: gbp(800)})
	event("refunded", &OrderRefunded{Name: "refund-1", Payment: "p", Amount: gbp(250)})
	for _, step := range []string{"reserve-1", "release-1", "commit-1-1", "restock-1", "confirm-1", "pack", "ship-1", "deliver", "cancel-stock", "nothing", "reserve-x"} {
		outcome := func(name string, o *millrace.Outcome) {
			o.Time = at
			out = append(out, input{step + " " + name, millrace.Input{At: at, Step: step, Outcome: o}})
		}
		outcome("decided", &millrace.Outcome{Status: millrace.StatusDecided})
		outcome("short", &millrace.Outcome{Status: millrace.StatusRefused, Refusal: conflict(CodeStockInsufficient, "less")})
		outcome("refused", &millrace.Outcome{Status: millrace.StatusRefused, Refusal: conflict(CodeTooManyReservations, "more")})
		outcome("dead", &millrace.Outcome{Status: millrace.StatusDead, Failure: &millrace.Failure{Reason: "panic"}})
	}
	for _, timer := range []string{timerPayment, timerExpiry, timerRetry, timerBackorder, timerPayAgain, "nothing"} {
		out = append(out, input{"timer " + timer, millrace.Input{At: at, Timer: timer}})
	}
	out = append(out, input{"an answer", millrace.Input{At: at, Call: "authorise-1", Result: []byte(`{}`)}}, input{"nothing", millrace.Input{At: at}},
		input{"withdrawn", millrace.Input{At: at, Call: "authorise-1", Result: []byte(`{"status":"withdrawn","code":"order_not_payable"}`)}},
		input{"withdrawn, dead", millrace.Input{At: at, Call: "authorise-1", Result: []byte(`{"status":"withdrawn","code":"dead_letter"}`)}})
	return out
}

// TestEveryStateAndInput writes what each input does in each state of the process, once: the state that follows and the steps and
// calls that are wanted then. The table is read by people. None of them has the process break its contract.
func TestEveryStateAndInput(t *testing.T) {
	var b strings.Builder
	b.WriteString("# What each input does in each state of the process: the state after it, and what is wanted then. Inputs after which all is as it was are left out.\n")
	for k := range fulfilmentStates {
		i := reach(t, k).orders[0]
		fmt.Fprintf(&b, "\n%s: %s\n", i.doc.now.State, wanted(i.doc.now))
		for _, in := range fulfilmentInputs() {
			j := *i
			j.doc = i.doc.clone()
			j.arrived = nil
			w := *i.w
			w.accepted, w.waiting = map[string]millrace.Command{}, map[millrace.Stream][]string{}
			j.w, j.asked = &w, map[string]string{}
			j.apply(&in.in)
			if j.doc.now.State != i.doc.now.State || wanted(j.doc.now) != wanted(i.doc.now) {
				fmt.Fprintf(&b, "  %-28s %s: %s\n", in.name, j.doc.now.State, wanted(j.doc.now))
			}
		}
	}
	golden(t, "testdata/fulfilment.txt", b.String())
}

// wanted is what a reaction wants, in a line.
func wanted(r millrace.Reaction) string {
	var out []string
	for _, s := range r.Steps {
		out = append(out, s.Name)
	}
	for _, c := range r.Calls {
		out = append(out, c.Name)
	}
	for _, t := range r.Timers {
		out = append(out, "timer "+t.Name)
	}
	if r.Done {
		out = append(out, "done")
	}
	slices.Sort(out)
	if r.Waits != "" {
		out = append(out, "("+r.Waits+")")
	}
	return strings.Join(out, " ")
}

// TestOthersAreLeftAlone: an order that people drive has no state and wants nothing, whatever comes of it; and so has an order
// whose placing the process has not heard of.
func TestOthersAreLeftAlone(t *testing.T) {
	m, err := Fulfilment(FulfilmentOptions{}).Manager()
	if err != nil {
		t.Fatal(err)
	}
	state := m.Initial("order-42")
	first, _ := m.EncodeState(state)
	inputs := fulfilmentInputs()
	inputs[0].in.Event = &OrderPlaced{Fulfilment: FulfilmentManual, Total: gbp(250)}
	for _, in := range inputs {
		state = m.Evolve(state, &in.in)
		r, err := m.React(state)
		if now, _ := m.EncodeState(state); err != nil || r.State != "" || len(r.Steps)+len(r.Calls)+len(r.Timers) > 0 || string(now) != string(first) {
			t.Fatalf("%s: %+v %s (%v)", in.name, r, now, err)
		}
	}
}

// TestStateIsSmall: the state of a usual order is written at each commit.
func TestStateIsSmall(t *testing.T) {
	const most = 420
	for k := range fulfilmentStates {
		if i := reach(t, k).orders[0]; len(i.doc.state) > most {
			t.Errorf("%s has %d bytes: %s", i.doc.now.State, len(i.doc.state), i.doc.state)
		}
	}
}

// TestLargestOrderIsCarriedThrough: an order of the most lines, reserved, shipped and taken back in rounds of commands that are no
// flood, within the steps that an instance may have; and one that is cancelled at once.
func TestLargestOrderIsCarriedThrough(t *testing.T) {
	var lines []string
	for n := range MaxLines {
		lines = append(lines, fmt.Sprintf(`{"sku":"S%d","quantity":1,"unit_price":"0.01"}`, n))
	}
	body := `{"currency":"GBP","lines":[` + strings.Join(lines, ",") + `]}`
	for _, cancelled := range []bool{false, true} {
		if testing.Short() && !cancelled {
			continue // it takes its time
		}
		l := newLargest(t)
		l.event(body)
		if cancelled {
			l.hear(&OrderCancelled{Reason: "x"})
		}
		l.run()
		if !cancelled {
			l.hear(&OrderReturned{Lines: l.everything(), Whole: true, Refund: gbp(5000)})
			l.run()
			if l.r.State != FulfilmentReturned || l.most > 2*maxUnderWay+1 {
				t.Errorf("%s (%s), with %d steps at a time", l.r.State, l.r.Waits, l.most)
			}
		} else if l.r.State != FulfilmentCancelled {
			t.Errorf("%s (%s)", l.r.State, l.r.Waits)
		}
		if len(l.sent) > millrace.MaxSteps {
			t.Errorf("%d steps", len(l.sent))
		}
		t.Logf("%d steps, at most %d at a time, %d inputs, a state of %d bytes at most", len(l.sent), l.most, l.inputs, l.bytes)
	}
}
