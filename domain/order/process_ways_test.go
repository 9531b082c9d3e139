package order

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/payment"
)

// asking is where the gateway was asked for an authorisation, and what it said is not known.
const asking = "asking"

// killedAndCancelled has a server be killed that is between the gateway's yes and its record, all documents be lost, and the order be
// cancelled before the next life comes to it.
func killedAndCancelled(w *world, i *managed) {
	i.doc = i.saved[0].clone()
	i.restart(false)
	w.client(i.name, "CancelOrder", `{"reason":"x"}`)
}

// TestWaysOfAnOrder: which way an order goes, told by its events, and where it ends. Each is a promise of the package comment.
func TestWaysOfAnOrder(t *testing.T) {
	auto := func(more string) string { return `{"currency":"GBP",` + more + autoLines }
	all := "OrderPlaced OrderPaymentRequested OrderPaymentAuthorised OrderConfirmed OrderPacked OrderShipped "
	for _, c := range []struct {
		name        string
		body        string
		a, c        int // stock
		o           FulfilmentOptions
		no          payment.Kind
		at          string // where then is done: a state, or asking; confirming where it does not matter
		then        func(w *world, i *managed)
		state, want string
	}{
		{name: "the way of most", body: auto(""), a: 3, c: 1, state: "completed", want: all + "OrderDelivered OrderPaid OrderCompleted"},
		{name: "nothing to pay", body: `{"currency":"GBP","lines":[{"sku":"A","quantity":1,"unit_price":"0"}]}`, a: 1, state: "completed",
			want: "OrderPlaced OrderConfirmed OrderPacked OrderShipped OrderDelivered OrderCompleted"},
		{name: "out of stock", body: auto(""), a: 3, state: "cancelled", want: "OrderPlaced OrderCancelled:out_of_stock"},
		{name: "waits, in vain", body: auto(`"backorder":"wait",`), a: 3, state: "cancelled", want: "OrderPlaced OrderCancelled:out_of_stock"},
		{name: "waits", body: auto(`"backorder":"wait",`), a: 3, then: func(w *world, _ *managed) {
			w.now = w.now.Add(5 * time.Hour)
			w.client("stock-C", "ReceiveStock", `{"quantity":1}`)
		}, state: "completed", want: all + "OrderDelivered OrderPaid OrderCompleted"},
		{name: "in parts", body: auto(`"backorder":"split",`), a: 3, then: func(w *world, _ *managed) {
			w.client("stock-C", "ReceiveStock", `{"quantity":1}`)
		}, state: "completed", want: all + "OrderPaid OrderShipped OrderDelivered OrderCompleted"},
		{name: "in parts, and the rest never comes", body: auto(`"backorder":"split",`), a: 3, state: "closed",
			want: all + "OrderPaid OrderClosed OrderDelivered OrderCompleted OrderRefunded"},
		{name: "in parts, of which there is none", body: auto(`"backorder":"split",`), state: "cancelled", want: "OrderPlaced OrderCancelled:out_of_stock"},
		{name: "declined", body: auto(""), a: 3, c: 1, no: payment.Authorise, state: "cancelled",
			want: "OrderPlaced OrderPaymentRequested OrderPaymentDeclined OrderCancelled:payment_declined"},
		{name: "captures are declined", body: auto(""), a: 3, c: 1, no: payment.Capture, state: "capture_declined",
			want: all + "OrderDelivered" + strings.Repeat(" OrderPaymentDeclined", 8)},
		{name: "nobody pays", body: auto(""), a: 3, c: 1, o: FulfilmentOptions{Payment: PaymentManual}, state: "cancelled",
			want: "OrderPlaced OrderCancelled:payment_timeout"},
		{name: "held for too long", body: auto(""), a: 3, c: 1, o: FulfilmentOptions{Payment: PaymentManual, PaymentTimeout: 2 * time.Hour},
			state: "cancelled", want: "OrderPlaced OrderCancelled:reservation_expired"},
		{name: "paid by other means", body: auto(""), a: 3, c: 1, at: asking, then: func(w *world, i *managed) {
			w.client(i.name, "MarkOrderPaid", `{"reference":"cash"}`)
		}, state: "completed", want: "OrderPlaced OrderPaymentRequested OrderPaid OrderConfirmed OrderPacked OrderShipped OrderDelivered OrderCompleted OrderPaymentAuthorised OrderPaymentVoided"},
		{name: "cancelled while it is being authorised", body: auto(""), a: 3, c: 1, at: asking, then: func(w *world, i *managed) {
			w.client(i.name, "CancelOrder", `{"reason":"x"}`)
		}, state: "cancelled", want: "OrderPlaced OrderPaymentRequested OrderCancelled:x OrderPaymentAuthorised OrderPaymentVoided"},
		{name: "cancelled before it is asked for", body: auto(""), a: 3, c: 1, at: FulfilmentAuthorising, then: func(w *world, i *managed) {
			w.client(i.name, "CancelOrder", `{"reason":"x"}`)
		}, state: "cancelled", want: "OrderPlaced OrderCancelled:x"},
		{name: "paid before it is asked for", body: auto(""), a: 3, c: 1, at: FulfilmentAuthorising, then: func(w *world, i *managed) {
			w.client(i.name, "MarkOrderPaid", `{"reference":"cash"}`)
		}, state: "completed", want: "OrderPlaced OrderPaid OrderConfirmed OrderPacked OrderShipped OrderDelivered OrderCompleted"},
		{name: "changed before it is asked for", body: auto(""), a: 5, c: 1, at: FulfilmentAuthorising, then: func(w *world, i *managed) {
			w.client(i.name, "ChangeOrder", `{"lines":[{"sku":"A","quantity":5,"unit_price":"9"}]}`)
		}, state: "completed", want: "OrderPlaced OrderLinesChanged OrderPaymentRequested OrderPaymentAuthorised OrderConfirmed OrderPacked OrderShipped OrderDelivered OrderPaid OrderCompleted"},
		{name: "killed before the answer is recorded, and cancelled", body: auto(""), a: 3, c: 1, at: asking, then: killedAndCancelled,
			state: "cancelled", want: "OrderPlaced OrderPaymentRequested OrderCancelled:x OrderPaymentAuthorised OrderPaymentVoided"},
		{name: "changed to less", body: auto(""), a: 3, c: 1, at: asking, then: func(w *world, i *managed) {
			w.client(i.name, "ChangeOrder", `{"lines":[{"sku":"A","quantity":1,"unit_price":"1"}]}`)
		}, state: "completed", want: "OrderPlaced OrderPaymentRequested OrderLinesChanged OrderPaymentAuthorised OrderConfirmed OrderPacked OrderShipped OrderDelivered OrderPaid OrderCompleted"},
		{name: "changed to more", body: auto(""), a: 5, c: 1, at: asking, then: func(w *world, i *managed) {
			w.client(i.name, "ChangeOrder", `{"lines":[{"sku":"A","quantity":5,"unit_price":"9"}]}`)
		}, state: "completed", want: "OrderPlaced OrderPaymentRequested OrderLinesChanged OrderPaymentAuthorised OrderPaymentVoided OrderPaymentRequested OrderPaymentAuthorised OrderConfirmed OrderPacked OrderShipped OrderDelivered OrderPaid OrderCompleted"},
		{name: "changed when it is about to be confirmed", body: auto(""), a: 5, c: 1, at: asking, then: func(w *world, i *managed) {
			i.call("authorise-1", 2)
			w.client(i.name, "ChangeOrder", `{"lines":[{"sku":"A","quantity":5,"unit_price":"1"}]}`)
			i.hear() // that it was authorised, after which it sends a confirmation of what it was
			w.calmly(func() bool { return i.doc.steps["confirm-1"] == "" && i.doc.now.State == FulfilmentConfirming })
			if o := w.outcomes["process/fulfilment/order-42/confirm-1"]; o.Refusal == nil || o.Refusal.Code != CodeLinesChanged {
				w.t.Fatalf("the confirmation came to %+v", o)
			}
		}, state: "completed", want: "OrderPlaced OrderPaymentRequested OrderPaymentAuthorised OrderLinesChanged OrderConfirmed OrderPacked OrderShipped OrderDelivered OrderPaid OrderCompleted"},
		{name: "comes back", body: auto(""), a: 3, c: 1, then: func(w *world, i *managed) {
			w.rest()
			w.client(i.name, "ReturnOrder", `{"lines":[{"line":1,"quantity":1}]}`)
			w.client(i.name, "ReturnOrder", `{"restock":false}`)
		}, state: "returned", want: all + "OrderDelivered OrderPaid OrderCompleted OrderReturned OrderReturned OrderRefunded OrderRefunded"},
		{name: "driven until it is packed", body: auto(""), a: 3, c: 1, o: FulfilmentOptions{Until: UntilPacked}, then: func(w *world, i *managed) {
			w.rest()
			w.client(i.name, "ShipOrder", `{"carrier":"Post"}`)
		}, state: "delivering", want: all + "OrderPaid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 1, c.o)
			w.faults.always = func(kind payment.Kind) bool { return kind != c.no }
			for sku, quantity := range map[string]int{"A": c.a, "C": c.c} {
				if quantity > 0 {
					w.client(millrace.NewStream(CategoryStock, sku), "ReceiveStock", fmt.Sprintf(`{"quantity":%d}`, quantity))
				}
			}
			i := w.place("42", c.body)
			if c.then != nil {
				w.calmly(func() bool {
					return i.doc.now.State == cmp.Or(c.at, FulfilmentConfirming) || c.at == asking && len(i.open()) > 0
				})
				if c.at == asking {
					i.call("authorise-1", 1)
				}
				c.then(w, i)
			}
			w.calmly(func() bool { return false })
			for len(i.doc.timers) > 0 {
				w.now = i.doc.timers[0].At
				for _, other := range i.doc.timers {
					if other.At.Before(w.now) {
						w.now = other.At
					}
				}
				i.fire()
				w.calmly(func() bool { return false })
			}
			var got []string
			for _, e := range w.stream(i.name).events {
				if b, ok := e.Body.(*OrderCancelled); ok {
					e.Type += ":" + b.Reason
				}
				got = append(got, e.Type)
			}
			if strings.Join(got, " ") != c.want || i.doc.now.State != c.state {
				t.Errorf("%s (%s):\n%s\nwant %s:\n%s", i.doc.now.State, i.doc.now.Waits, strings.Join(got, " "), c.state, c.want)
			}
			if f := w.audit.Finish(true); len(f.Broken) > 0 {
				t.Errorf("%+v", f.Broken)
			}
			if held := w.standingOf("42"); held != 0 && slices.Contains(ends, i.doc.now.State) {
				t.Errorf("the gateway holds %d", held)
			}
		})
	}
}
