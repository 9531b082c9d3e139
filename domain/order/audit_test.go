package order

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/money"
)

// soundStreams are streams in which everything adds up: an order that was sent in parts and came back in part, one that was
// cancelled, and the stock of both.
func soundStreams(t *testing.T) []millrace.Recorded {
	t.Helper()
	w := newWorld(t, 1, FulfilmentOptions{})
	for _, c := range []struct {
		stream    millrace.Stream
		typ, body string
	}{
		{"stock-A", "ReceiveStock", `{"quantity":10}`},
		{"stock-A", "AdjustStock", `{"delta":-1,"reason":"broken"}`},
		{"order-1", "PlaceOrder", `{"currency":"GBP","backorder":"split","lines":[{"sku":"A","quantity":3,"unit_price":"0.333333"},{"sku":"A","quantity":2,"unit_price":"1"}]}`},
		{"stock-A", "ReserveStock", `{"reservation":"order-1/1","quantity":5}`},
		{"order-1", "RequestPayment", requested("3.00")},
		{"order-1", "RecordPayment", approved("authorise-1", "authorise", "3.00")},
		{"order-1", "ConfirmOrder", `{"version":1}`},
		{"order-1", "PackOrder", `{}`},
		{"order-1", "ShipOrder", `{"lines":[{"line":1,"quantity":3}]}`},
		{"stock-A", "CommitStock", `{"reservation":"order-1/1","quantity":3}`},
		{"order-1", "RecordPayment", approved("capture-1", "capture", "3.00")},
		{"order-1", "CloseOrder", `{"reason":"out_of_stock"}`},
		{"stock-A", "ReleaseStock", `{"reservation":"order-1/1"}`},
		{"order-1", "RecordPayment", approved("refund-1", "refund", "2.00")},
		{"order-1", "DeliverOrder", `{}`},
		{"order-1", "ReturnOrder", `{"lines":[{"line":1,"quantity":1}]}`},
		{"stock-A", "ReceiveStock", `{"quantity":1,"reference":"order-1/1"}`},
		{"order-1", "RecordPayment", approved("refund-2", "refund", "0.33")},
		{"order-2", "PlaceOrder", `{"currency":"GBP","lines":[{"sku":"A","quantity":1,"unit_price":"1"}]}`},
		{"order-2", "RequestPayment", requested("1.00")},
		{"order-2", "RecordPayment", strings.ReplaceAll(approved("authorise-1", "authorise", "1.00"), "p-1", "p-2")},
		{"order-2", "CancelOrder", `{"reason":"x"}`},
		{"order-2", "RecordPayment", strings.ReplaceAll(approved("void-1", "void", "1.00"), "p-1", "p-2")},
		{"return-1", "RecordReturn", `{"currency":"GBP","lines":[{"sku":"A","quantity":1,"unit_price":"1"}]}`},
	} {
		w.client(c.stream, c.typ, c.body)
		if o := w.outcomes[fmt.Sprintf("client-%d", w.ids)]; o.Refusal != nil {
			t.Fatalf("%s of %s: %s", c.typ, c.stream, o.Refusal.Code)
		}
	}
	var events []millrace.Recorded
	for _, name := range []millrace.Stream{"order-1", "order-2", "stock-A", "return-1"} {
		events = append(events, w.stream(name).events...)
	}
	return events
}

func approved(name, kind, amount string) string {
	return recordPayment(name, kind, "approved", amount).body
}

func requested(amount string) string { return requestPayment("authorise-1", amount).body }

// change replaces the n-th body of a type by another.
func change[T any](n int, how func(e *T)) func(events []millrace.Recorded) []millrace.Recorded {
	return func(events []millrace.Recorded) []millrace.Recorded {
		for i := range events {
			if b, ok := events[i].Body.(*T); ok {
				if n--; n == 0 {
					other := *b
					how(&other)
					events[i].Body = &other
					return events
				}
			}
		}
		panic("there is no such event")
	}
}

// leaveOut takes the n-th event of a type away, and has those behind it move up.
func leaveOut[T any](n int) func(events []millrace.Recorded) []millrace.Recorded {
	return func(events []millrace.Recorded) []millrace.Recorded {
		for i := range events {
			if _, ok := events[i].Body.(*T); ok {
				if n--; n == 0 {
					for k := i + 1; k < len(events) && events[k].Stream == events[i].Stream; k++ {
						events[k].Version--
					}
					return slices.Delete(events, i, i+1)
				}
			}
		}
		panic("there is no such event")
	}
}

// TestAuditFinds breaks streams that are sound in each way once, and the audit says which. The streams as they are, are its
// control.
func TestAuditFinds(t *testing.T) {
	for _, c := range []struct {
		name   string
		breaks func([]millrace.Recorded) []millrace.Recorded
		want   string
	}{
		{"nothing", func(e []millrace.Recorded) []millrace.Recorded { return e }, ""},
		{"a version is missing", func(e []millrace.Recorded) []millrace.Recorded { return slices.Delete(e, 2, 3) }, BrokenVersions},
		{"levels are wrong", change(1, func(e *StockAdjusted) { e.OnHand++ }), BrokenLevels},
		{"stock appears", change(1, func(e *StockReceived) { e.Quantity++ }), BrokenLevels},
		{"more is committed than is reserved", change(1, func(e *StockCommitted) { e.Quantity = 6 }), BrokenReservation},
		{"a reservation is lost", leaveOut[StockReserved](1), BrokenReservation},
		{"less is on hand than is reserved", change(1, func(e *StockReserved) { e.Quantity = 10 }), BrokenStock},
		{"a line total is wrong", change(1, func(e *OrderPlaced) { e.Lines = slices.Clone(e.Lines); e.Lines[0].LineTotal.Minor++ }), BrokenTotal},
		{"a total is wrong", change(1, func(e *OrderPlaced) { e.Total.Minor++ }), BrokenTotal},
		{"a return's total is wrong", change(1, func(e *GoodsReturned) { e.Units++ }), BrokenTotal},
		{"packed without being confirmed", leaveOut[OrderConfirmed](1), BrokenStatus},
		{"more is shipped than was ordered", change(1, func(e *OrderShipped) { e.Lines = []LineQuantity{{1, 4}} }), BrokenShipped},
		{"a parcel has a wrong number", change(1, func(e *OrderShipped) { e.Shipment = 2 }), BrokenShipped},
		{"more comes back than was shipped", change(1, func(e *OrderReturned) { e.Lines = []LineQuantity{{1, 4}} }), BrokenReturned},
		{"a refund is too large", change(1, func(e *OrderReturned) { e.Refund.Minor++ }), BrokenRefund},
		{"closing refunds too little", change(1, func(e *OrderClosed) { e.Refund.Minor-- }), BrokenRefund},
		{"more is given back than was taken", change(1, func(e *OrderRefunded) { e.Amount.Minor = 301 }), BrokenRefund},
		{"more is captured than was authorised", change(1, func(e *OrderPaid) { e.Amount.Minor++ }), BrokenCapture},
		{"captured without an authorisation", leaveOut[OrderPaymentAuthorised](1), BrokenCapture},
		{"authorised without being asked for", leaveOut[OrderPaymentRequested](1), BrokenAuthorised},
		{"another amount is asked for", change(1, func(e *OrderPaymentRequested) { e.Amount.Minor++ }), BrokenAuthorised},
		{"voided without an authorisation", leaveOut[OrderPaymentAuthorised](2), BrokenAuthorised},
		{"paid otherwise, and not the total", change(1, func(e *OrderPaid) { e.Name, e.Amount.Minor = "", 1 }), BrokenPaid},
		{"what was shipped has not left", leaveOut[StockCommitted](1), BrokenCommitted},
		{"more has left than was shipped", change(1, func(e *StockCommitted) { e.Quantity++ }), BrokenCommitted},
		{"what came back is not in the stock", change(2, func(e *StockReceived) { e.Reference = "" }), BrokenRestocked},
		{"what came back is in the stock twice", change(2, func(e *StockReceived) { e.Quantity++ }), BrokenRestocked},
		{"something stays reserved", leaveOut[StockReleased](1), BrokenHeld},
		{"an authorisation has no answer", leaveOut[OrderPaymentAuthorised](2), BrokenPending},
		{"an authorisation stays", leaveOut[OrderPaymentVoided](1), BrokenStanding},
		{"a refund is not made", leaveOut[OrderRefunded](1), BrokenBalance},
		{"a reservation is of no order", change(1, func(e *StockReserved) { e.Reservation = "order-9/1" }), BrokenNoOrder},
		{"an event is of another category", func(e []millrace.Recorded) []millrace.Recorded {
			e[len(e)-1].Body = &StockReceived{}
			return e
		}, BrokenEvent},
	} {
		t.Run(c.name, func(t *testing.T) {
			events := c.breaks(soundStreams(t))
			for _, order := range []string{"as it is", "the other way round"} {
				var a Audit
				for _, s := range streamsOf(events, order != "as it is") {
					for i := range events {
						if events[i].Stream == s {
							a.Add(&events[i])
						}
					}
				}
				found := a.Finish(true)
				has := slices.ContainsFunc(found.Broken, func(f Finding) bool { return f.Name == c.want })
				if has != (c.want != "") || c.want == "" && len(found.Broken) > 0 {
					t.Errorf("%s: %+v, want %q", order, found.Broken, c.want)
				}
			}
		})
	}
}

// TestAuditComparesEachEvent: what does not add up at one event is found there, though the sums are right again at the next and at the end.
// That the events as they are have no fault, TestAuditFinds shows.
func TestAuditComparesEachEvent(t *testing.T) {
	var sound Audit
	first, last := -1, -1
	for i, e := range soundStreams(t) {
		sound.Add(&e)
		if e.Stream == "stock-A" {
			if last = i; first < 0 {
				first = i
			}
		}
	}
	want := sound.Finish(true).Totals
	for i := first; i < last; i++ {
		events := soundStreams(t)
		events[i].Body, events[i+1].Body = events[i+1].Body, events[i].Body
		var a Audit
		for k := range events {
			a.Add(&events[k])
		}
		f := a.Finish(true)
		at := slices.IndexFunc(f.Broken, func(f Finding) bool {
			return f.Name == BrokenLevels && f.Stream == "stock-A" && f.Version == events[i].Version
		})
		if got := f.Totals; at < 0 || got.OnHand != want.OnHand || got.Committed != want.Committed || got.Reserved != want.Reserved {
			t.Errorf("versions %d and %d are swapped, and the audit says %+v", events[i].Version, events[i+1].Version, f)
		}
	}
}

func streamsOf(events []millrace.Recorded, reversed bool) []millrace.Stream {
	var out []millrace.Stream
	for i := range events {
		if !slices.Contains(out, events[i].Stream) {
			out = append(out, events[i].Stream)
		}
	}
	if reversed {
		slices.Reverse(out)
	}
	return out
}

// TestAuditTotals: the sums are those of the events, and what is under way is no fault before all is at rest.
func TestAuditTotals(t *testing.T) {
	events := leaveOut[OrderRefunded](2)(leaveOut[OrderPaymentVoided](1)(soundStreams(t)))
	var a Audit
	for i := range events {
		a.Add(&events[i])
	}
	a.Add(&millrace.Recorded{Stream: "notification-1", Version: 1})
	f := a.Finish(false)
	if len(f.Broken) > 0 {
		t.Errorf("%+v", f.Broken)
	}
	got := f.Totals
	m := got.Money["GBP"]
	if got.Orders != 2 || got.Received != 11 || got.Adjusted != -1 || got.Committed != 3 || got.OnHand != 7 || got.Reserved != 0 || m == nil {
		t.Fatalf("%+v", got)
	}
	sums := []money.Sum{m.Ordered, m.Authorised, m.Captured, m.Voided, m.Refunded, m.Otherwise}
	if s := fmt.Sprint(sums); s != "[4.00 4.00 3.00 0 2.00 0]" {
		t.Error(s)
	}
}

// TestAuditIsBounded: there may be any number of faults.
func TestAuditIsBounded(t *testing.T) {
	var a Audit
	for range maxFindings + 5 {
		a.Add(&millrace.Recorded{Stream: "stock-A", Version: 7, Body: &OrderPacked{}})
	}
	if f := a.Finish(false); len(f.Broken) != maxFindings || f.More != 2*(maxFindings+5)-maxFindings {
		t.Errorf("%d, and %d more", len(f.Broken), f.More)
	}
}
