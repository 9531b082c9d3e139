package order

import (
	"time"

	"pgregory.net/rapid"

	"github.com/millrace-io/millrace/internal/money"
)

// drawer makes random bodies: any text, any number, any member missing.
type drawer struct {
	t        *rapid.T
	currency money.Currency
}

func (d drawer) bool() bool { return rapid.Bool().Draw(d.t, "bool") }
func (d drawer) int() int64 { return rapid.Int64Range(-1<<62, 1<<62).Draw(d.t, "int") }

func (d drawer) text() string {
	return rapid.OneOf(rapid.Just(""), rapid.StringOf(rapid.RuneFrom([]rune("ab\"\\/<&>\x01\x1f\x7f\t\n\u2028é€😀 ")))).Draw(d.t, "text")
}

func (d drawer) time() time.Time {
	return time.Unix(rapid.Int64Range(0, 253402300799).Draw(d.t, "seconds"),
		rapid.SampledFrom([]int64{0, 1, 500_000_000, 999_999_999, 120_000}).Draw(d.t, "nanos")).UTC()
}

func (d drawer) timeOrNone() time.Time {
	if d.bool() {
		return time.Time{}
	}
	return d.time()
}

func (d drawer) amount() money.Amount { return money.Amount{Minor: d.int(), Currency: d.currency} }

func (d drawer) address() *Address {
	if d.bool() {
		return nil
	}
	a := Address{d.text(), d.text(), d.text(), d.text(), d.text()}
	return &a
}

func (d drawer) lines() []OrderedLine {
	out := make([]OrderedLine, rapid.IntRange(0, 3).Draw(d.t, "lines"))
	for i := range out {
		out[i] = OrderedLine{
			i + 1, d.text(), d.text(), d.int(), money.Price(rapid.Int64Range(-int64(money.MaxPrice), int64(money.MaxPrice)).Draw(d.t, "price")),
			d.amount().Decimal(),
		}
	}
	return out
}

func (d drawer) quantities() []LineQuantity {
	out := make([]LineQuantity, rapid.IntRange(0, 3).Draw(d.t, "quantities"))
	for i := range out {
		out[i] = LineQuantity{i + 1, d.int()}
	}
	return out
}

func (d drawer) placed() *OrderPlaced {
	return &OrderPlaced{
		d.time(), d.text(), d.text(), d.text(), Channel(d.text()), d.currency, FulfilmentKind(d.text()), Backorder(d.text()), d.time(), d.address(), d.lines(), d.int(), d.amount(),
	}
}

func (d drawer) order() *Order {
	o := &Order{
		ID: d.text(), Status: Status(d.text()), Version: rapid.Uint64().Draw(d.t, "version"), CustomerID: d.text(), Email: d.text(), Language: d.text(),
		Channel: Channel(d.text()), Currency: d.currency, Fulfilment: FulfilmentKind(d.text()), PlacedAt: d.time(), UpdatedAt: d.time(),
		ConfirmedAt: d.timeOrNone(), PaidAt: d.timeOrNone(), PackedAt: d.timeOrNone(), ShippedAt: d.timeOrNone(),
		DeliveredAt: d.timeOrNone(), CompletedAt: d.timeOrNone(), CancelledAt: d.timeOrNone(), ReturnedAt: d.timeOrNone(),
		Backorder: Backorder(d.text()), LinesVersion: uint64(rapid.IntRange(0, 3).Draw(d.t, "lines version")), //nolint:gosec // not negative
		ClosedAt: d.timeOrNone(), CloseReason: d.text(), Payment: d.payment(),
		CancelReason: d.text(), Paid: d.bool(), PaymentReference: d.text(), ShipTo: d.address(), Lines: stateLines(d.lines()),
		Units: d.int(), Total: d.amount(),
	}
	for i := range o.Lines {
		o.Lines[i].Shipped, o.Lines[i].Returned = d.int(), d.int()
		if d.bool() {
			o.Lines[i].Dropped = d.int()
		}
	}
	if d.bool() {
		o.Refund = d.amount()
	}
	for i := range rapid.IntRange(0, 2).Draw(d.t, "shipments") {
		o.Shipments = append(o.Shipments, Shipment{i + 1, d.time(), d.text(), d.text(), d.quantities()})
	}
	return o
}

func (d drawer) amountOrNone() money.Amount {
	if d.bool() {
		return money.Amount{}
	}
	return d.amount()
}

func (d drawer) payment() *Payment {
	if d.bool() {
		return nil
	}
	p := &Payment{PaymentStatus(d.text()), d.text(), d.text(), d.amountOrNone(), d.amountOrNone(), d.amountOrNone(), nil, d.text()}
	for range rapid.IntRange(0, 3).Draw(d.t, "recorded") {
		p.Recorded = append(p.Recorded, d.text())
	}
	return p
}
