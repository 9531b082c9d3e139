package order

import (
	"time"

	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/money"
)

// The bodies that are written for every order write their own JSON, because reflection costs more than all rules of this
// package together. A test holds what they write to what the generic encoder writes, byte for byte.

// object appends the members of a JSON object.
type object struct{ jsonx.Writer }

// currency needs no escaping.
func (o *object) currency(c money.Currency) {
	o.Dst = append(append(append(o.Dst, `,"currency":"`...), c.String()...), '"')
}

func (o *object) amount(literal string, a money.Amount) {
	o.Dst = a.AppendJSON(append(o.Dst, literal...))
}

func (o *object) address(literal string, a *Address) {
	if a == nil || *a == (Address{}) {
		return // json/v2 calls an object without members empty, too
	}
	o.Name(literal)
	start := len(o.Dst)
	o.TextIf(`,"name":`, a.Name)
	o.TextIf(`,"line1":`, a.Line1)
	o.TextIf(`,"city":`, a.City)
	o.TextIf(`,"postal_code":`, a.PostalCode)
	o.TextIf(`,"country":`, a.Country)
	o.Dst[start] = '{'
	o.Dst = append(o.Dst, '}')
}

// head appends a line's members without the closing brace.
func (l *OrderedLine) head(dst []byte) []byte {
	o := object{jsonx.Writer{Dst: dst}}
	o.Int(`{"line":`, int64(l.Line))
	o.Text(`,"sku":`, l.SKU)
	o.TextIf(`,"description":`, l.Description)
	o.Int(`,"quantity":`, l.Quantity)
	o.Name(`,"unit_price":`)
	o.Dst = l.UnitPrice.AppendJSON(o.Dst)
	o.Name(`,"line_total":`)
	return l.LineTotal.AppendJSON(o.Dst)
}

func appendOrdered(dst []byte, lines []OrderedLine) []byte {
	dst = append(dst, '[')
	for i := range lines {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(lines[i].head(dst), '}')
	}
	return append(dst, ']')
}

func appendQuantities(dst []byte, lines []LineQuantity) []byte {
	dst = append(dst, '[')
	for i := range lines {
		o := object{jsonx.Writer{Dst: dst}}
		if i > 0 {
			o.Name(",")
		}
		o.Int(`{"line":`, int64(lines[i].Line))
		o.Int(`,"quantity":`, lines[i].Quantity)
		dst = o.End()
	}
	return append(dst, ']')
}

// Sizes that nearly all bodies fit into, so that they are written with one allocation.
const (
	headSize  = 384
	lineSize  = 160
	smallSize = 240 // bodies without lines
)

func sized(dst []byte, size int) []byte {
	if dst == nil {
		return make([]byte, 0, size)
	}
	return dst
}

// AppendJSON appends the event as JSON.
func (e *OrderPlaced) AppendJSON(dst []byte) []byte {
	o := object{jsonx.Writer{Dst: sized(dst, headSize+lineSize*len(e.Lines))}}
	o.Time(`{"at":`, e.At)
	o.TextIf(`,"customer_id":`, e.CustomerID)
	o.TextIf(`,"email":`, e.Email)
	o.TextIf(`,"language":`, e.Language)
	o.Text(`,"channel":`, string(e.Channel))
	o.currency(e.Currency)
	o.Text(`,"fulfilment":`, string(e.Fulfilment))
	o.TextIf(`,"backorder":`, string(e.Backorder))
	o.Time(`,"placed_at":`, e.PlacedAt)
	o.address(`,"ship_to":`, e.ShipTo)
	o.Name(`,"lines":`)
	o.Dst = appendOrdered(o.Dst, e.Lines)
	o.Int(`,"units":`, e.Units)
	o.amount(`,"total":`, e.Total)
	return o.End()
}

// AppendJSON appends the order as JSON.
func (d *Order) AppendJSON(dst []byte) []byte {
	o := object{jsonx.Writer{Dst: sized(dst, headSize+lineSize*len(d.Lines))}}
	o.Text(`{"id":`, d.ID)
	o.Text(`,"status":`, string(d.Status))
	o.Uint(`,"version":`, d.Version)
	o.TextIf(`,"customer_id":`, d.CustomerID)
	o.TextIf(`,"email":`, d.Email)
	o.TextIf(`,"language":`, d.Language)
	o.Text(`,"channel":`, string(d.Channel))
	if d.Currency != 0 {
		o.currency(d.Currency)
	}
	o.Text(`,"fulfilment":`, string(d.Fulfilment))
	o.TextIf(`,"backorder":`, string(d.Backorder))
	if d.LinesVersion != 0 {
		o.Uint(`,"lines_version":`, d.LinesVersion)
	}
	o.Time(`,"placed_at":`, d.PlacedAt)
	o.Time(`,"updated_at":`, d.UpdatedAt)
	o.TimeIf(`,"confirmed_at":`, d.ConfirmedAt)
	o.TimeIf(`,"paid_at":`, d.PaidAt)
	o.TimeIf(`,"packed_at":`, d.PackedAt)
	o.TimeIf(`,"shipped_at":`, d.ShippedAt)
	o.TimeIf(`,"closed_at":`, d.ClosedAt)
	o.TimeIf(`,"delivered_at":`, d.DeliveredAt)
	o.TimeIf(`,"completed_at":`, d.CompletedAt)
	o.TimeIf(`,"cancelled_at":`, d.CancelledAt)
	o.TimeIf(`,"returned_at":`, d.ReturnedAt)
	o.TextIf(`,"cancel_reason":`, d.CancelReason)
	o.TextIf(`,"close_reason":`, d.CloseReason)
	o.Bool(`,"paid":`, d.Paid)
	o.TextIf(`,"payment_reference":`, d.PaymentReference)
	o.payment(d.Payment)
	o.address(`,"ship_to":`, d.ShipTo)
	o.Name(`,"lines":[`)
	for i := range d.Lines {
		if i > 0 {
			o.Name(",")
		}
		o.Dst = d.Lines[i].head(o.Dst)
		o.Int(`,"shipped":`, d.Lines[i].Shipped)
		o.Int(`,"returned":`, d.Lines[i].Returned)
		o.IntIf(`,"dropped":`, d.Lines[i].Dropped)
		o.Name("}")
	}
	o.Int(`],"units":`, d.Units)
	if d.Total != (money.Amount{}) {
		o.amount(`,"total":`, d.Total)
	}
	if d.Refund != (money.Amount{}) {
		o.amount(`,"refund":`, d.Refund)
	}
	o.shipments(d.Shipments)
	return o.End()
}

func (o *object) shipments(shipments []Shipment) {
	if len(shipments) == 0 {
		return
	}
	o.Name(`,"shipments":[`)
	for i := range shipments {
		s := &shipments[i]
		if i > 0 {
			o.Name(",")
		}
		o.Int(`{"shipment":`, int64(s.Shipment))
		o.Time(`,"shipped_at":`, s.ShippedAt)
		o.TextIf(`,"carrier":`, s.Carrier)
		o.TextIf(`,"tracking_number":`, s.TrackingNumber)
		o.Name(`,"lines":`)
		o.Dst = append(appendQuantities(o.Dst, s.Lines), '}')
	}
	o.Name("]")
}

func (o *object) levels(l Levels) []byte {
	o.Int(`,"on_hand":`, l.OnHand)
	o.Int(`,"reserved":`, l.Reserved)
	o.Int(`,"available":`, l.Available)
	return o.End()
}

func appendReservation(dst []byte, at time.Time, id string, quantity int64, l Levels) []byte {
	o := object{jsonx.Writer{Dst: sized(dst, smallSize)}}
	o.Time(`{"at":`, at)
	o.Text(`,"reservation":`, id)
	o.Int(`,"quantity":`, quantity)
	return o.levels(l)
}

// AppendJSON appends the event as JSON.
func (e *StockReserved) AppendJSON(dst []byte) []byte {
	return appendReservation(dst, e.At, e.Reservation, e.Quantity, e.Levels)
}

// AppendJSON appends the event as JSON.
func (e *StockReleased) AppendJSON(dst []byte) []byte {
	return appendReservation(dst, e.At, e.Reservation, e.Quantity, e.Levels)
}

// AppendJSON appends the event as JSON.
func (e *StockCommitted) AppendJSON(dst []byte) []byte {
	return appendReservation(dst, e.At, e.Reservation, e.Quantity, e.Levels)
}

// AppendJSON appends the document as JSON.
func (d *Level) AppendJSON(dst []byte) []byte {
	o := object{jsonx.Writer{Dst: sized(dst, smallSize)}}
	o.Text(`{"sku":`, d.SKU)
	o.Int(`,"on_hand":`, d.OnHand)
	o.Int(`,"reserved":`, d.Reserved)
	o.Int(`,"available":`, d.Available)
	o.Uint(`,"version":`, d.Version)
	return o.End()
}

// AppendJSON appends the document as JSON.
func (d *Day) AppendJSON(dst []byte) []byte {
	o := object{jsonx.Writer{Dst: sized(dst, smallSize)}}
	o.Text(`{"day":`, d.Day)
	o.Text(`,"status":`, string(d.Status))
	o.currency(d.Currency)
	o.Int(`,"orders":`, d.Orders)
	o.Int(`,"units":`, d.Units)
	o.Name(`,"amount":"`)
	o.Dst, _ = d.Amount.AppendText(o.Dst) // never fails
	o.Name(`"`)
	return o.End()
}
