package order

import (
	"time"

	"github.com/millrace-io/millrace/internal/jsonx"
)

// What an order's process sends, and what comes of it, once or more for each order that is carried through.

const (
	// momentSize is that of bodies that only say when, and of commands on stock.
	momentSize = 64
	callSize   = 192
)

func appendMoment(dst []byte, at time.Time) []byte {
	o := object{jsonx.Writer{Dst: sized(dst, momentSize)}}
	o.Time(`{"at":`, at)
	return o.End()
}

// AppendJSON appends the event as JSON.
func (e *OrderConfirmed) AppendJSON(dst []byte) []byte { return appendMoment(dst, e.At) }

// AppendJSON appends the event as JSON.
func (e *OrderPacked) AppendJSON(dst []byte) []byte { return appendMoment(dst, e.At) }

// AppendJSON appends the event as JSON.
func (e *OrderDelivered) AppendJSON(dst []byte) []byte { return appendMoment(dst, e.At) }

// AppendJSON appends the event as JSON.
func (e *OrderCompleted) AppendJSON(dst []byte) []byte { return appendMoment(dst, e.At) }

// AppendJSON appends the event as JSON.
func (e *OrderShipped) AppendJSON(dst []byte) []byte {
	o := object{jsonx.Writer{Dst: sized(dst, callSize)}}
	o.Time(`{"at":`, e.At)
	o.Int(`,"shipment":`, int64(e.Shipment))
	o.Name(`,"lines":`)
	o.Dst = appendQuantities(o.Dst, e.Lines)
	o.Bool(`,"whole":`, e.Whole)
	o.TextIf(`,"carrier":`, e.Carrier)
	o.TextIf(`,"tracking_number":`, e.TrackingNumber)
	return o.End()
}

// AppendJSON appends the event as JSON.
func (e *OrderPaid) AppendJSON(dst []byte) []byte {
	o := object{jsonx.Writer{Dst: sized(dst, callSize)}}
	o.Time(`{"at":`, e.At)
	o.TextIf(`,"name":`, e.Name)
	o.TextIf(`,"reference":`, e.Reference)
	o.amount(`,"amount":`, e.Amount)
	return o.End()
}

// AppendJSON appends the event as JSON.
func (e *OrderPaymentRequested) AppendJSON(dst []byte) []byte {
	o := object{jsonx.Writer{Dst: sized(dst, callSize)}}
	o.Time(`{"at":`, e.At)
	o.Text(`,"name":`, e.Name)
	o.amount(`,"amount":`, e.Amount)
	return o.End()
}

// AppendJSON appends the event as JSON.
func (e *OrderPaymentAuthorised) AppendJSON(dst []byte) []byte {
	o := object{jsonx.Writer{Dst: sized(dst, callSize)}}
	o.Time(`{"at":`, e.At)
	o.Text(`,"name":`, e.Name)
	o.TextIf(`,"payment":`, e.Payment)
	o.amount(`,"amount":`, e.Amount)
	return o.End()
}

// AppendJSON appends the command as JSON.
func (c *RequestPayment) AppendJSON(dst []byte) []byte {
	o := object{jsonx.Writer{Dst: sized(dst, callSize)}}
	o.Text(`{"name":`, c.Name)
	o.amount(`,"amount":`, c.Amount)
	return o.End()
}

// AppendJSON appends the command as JSON.
func (c *RecordPayment) AppendJSON(dst []byte) []byte {
	o := object{jsonx.Writer{Dst: sized(dst, callSize)}}
	o.Text(`{"name":`, c.Name)
	o.Text(`,"kind":`, string(c.Kind))
	o.Text(`,"status":`, string(c.Status))
	o.TextIf(`,"payment":`, c.Payment)
	o.amount(`,"amount":`, c.Amount)
	o.TextIf(`,"code":`, c.Code)
	return o.End()
}

// AppendJSON appends the command as JSON.
func (c *ReserveStock) AppendJSON(dst []byte) []byte {
	o := object{jsonx.Writer{Dst: sized(dst, momentSize)}}
	o.Text(`{"reservation":`, c.Reservation)
	if c.Quantity == nil {
		o.Name(`,"quantity":null`)
	} else {
		o.Int(`,"quantity":`, *c.Quantity)
	}
	return o.End()
}

// AppendJSON appends the command as JSON.
func (c *CommitStock) AppendJSON(dst []byte) []byte {
	o := object{jsonx.Writer{Dst: sized(dst, momentSize)}}
	o.Text(`{"reservation":`, c.Reservation)
	if c.Quantity != nil {
		o.Int(`,"quantity":`, *c.Quantity)
	}
	return o.End()
}
