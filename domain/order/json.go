package order

import (
	"strconv"
	"time"

	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/money"
)

// The bodies that are written for every order write their own JSON, because reflection costs more than all rules of this
// package together. A test holds what they write to what the generic encoder writes, byte for byte.

// object appends the members of a JSON object, each behind a literal `"name":`.
type object struct{ dst []byte }

// name begins a member. The literal has its comma or brace in front.
func (o *object) name(literal string) { o.dst = append(o.dst, literal...) }

func (o *object) string(literal, s string) {
	o.dst = jsonx.AppendString(append(o.dst, literal...), s)
}

func (o *object) stringIf(literal, s string) {
	if s != "" {
		o.string(literal, s)
	}
}

// currency needs no escaping.
func (o *object) currency(c money.Currency) {
	o.dst = append(append(append(o.dst, `,"currency":"`...), c.String()...), '"')
}

func (o *object) int(literal string, v int64) {
	o.dst = strconv.AppendInt(append(o.dst, literal...), v, 10)
}

func (o *object) intIf(literal string, v int64) {
	if v != 0 {
		o.int(literal, v)
	}
}

func (o *object) uint(literal string, v uint64) {
	o.dst = strconv.AppendUint(append(o.dst, literal...), v, 10)
}

func (o *object) bool(literal string, v bool) {
	o.dst = strconv.AppendBool(append(o.dst, literal...), v)
}

func (o *object) time(literal string, t time.Time) {
	o.dst = append(append(o.dst, literal...), '"')
	o.dst = append(t.AppendFormat(o.dst, time.RFC3339Nano), '"')
}

func (o *object) timeIf(literal string, t time.Time) {
	if !t.IsZero() {
		o.time(literal, t)
	}
}

func (o *object) amount(literal string, a money.Amount) {
	o.dst = a.AppendJSON(append(o.dst, literal...))
}

func (o *object) end() []byte { return append(o.dst, '}') }

func (o *object) address(literal string, a *Address) {
	if a == nil || *a == (Address{}) {
		return // json/v2 calls an object without members empty, too
	}
	o.name(literal)
	start := len(o.dst)
	o.stringIf(`,"name":`, a.Name)
	o.stringIf(`,"line1":`, a.Line1)
	o.stringIf(`,"city":`, a.City)
	o.stringIf(`,"postal_code":`, a.PostalCode)
	o.stringIf(`,"country":`, a.Country)
	o.dst[start] = '{'
	o.dst = append(o.dst, '}')
}

// head appends a line's members without the closing brace.
func (l *OrderedLine) head(dst []byte) []byte {
	o := object{dst}
	o.int(`{"line":`, int64(l.Line))
	o.string(`,"sku":`, l.SKU)
	o.stringIf(`,"description":`, l.Description)
	o.int(`,"quantity":`, l.Quantity)
	o.name(`,"unit_price":`)
	o.dst = l.UnitPrice.AppendJSON(o.dst)
	o.name(`,"line_total":`)
	return l.LineTotal.AppendJSON(o.dst)
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
		o := object{dst}
		if i > 0 {
			o.name(",")
		}
		o.int(`{"line":`, int64(lines[i].Line))
		o.int(`,"quantity":`, lines[i].Quantity)
		dst = o.end()
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
	o := object{sized(dst, headSize+lineSize*len(e.Lines))}
	o.time(`{"at":`, e.At)
	o.stringIf(`,"customer_id":`, e.CustomerID)
	o.stringIf(`,"email":`, e.Email)
	o.stringIf(`,"language":`, e.Language)
	o.string(`,"channel":`, string(e.Channel))
	o.currency(e.Currency)
	o.string(`,"fulfilment":`, string(e.Fulfilment))
	o.stringIf(`,"backorder":`, string(e.Backorder))
	o.time(`,"placed_at":`, e.PlacedAt)
	o.address(`,"ship_to":`, e.ShipTo)
	o.name(`,"lines":`)
	o.dst = appendOrdered(o.dst, e.Lines)
	o.int(`,"units":`, e.Units)
	o.amount(`,"total":`, e.Total)
	return o.end()
}

// AppendJSON appends the order as JSON.
func (d *Order) AppendJSON(dst []byte) []byte {
	o := object{sized(dst, headSize+lineSize*len(d.Lines))}
	o.string(`{"id":`, d.ID)
	o.string(`,"status":`, string(d.Status))
	o.uint(`,"version":`, d.Version)
	o.stringIf(`,"customer_id":`, d.CustomerID)
	o.stringIf(`,"email":`, d.Email)
	o.stringIf(`,"language":`, d.Language)
	o.string(`,"channel":`, string(d.Channel))
	if d.Currency != 0 {
		o.currency(d.Currency)
	}
	o.string(`,"fulfilment":`, string(d.Fulfilment))
	o.stringIf(`,"backorder":`, string(d.Backorder))
	if d.LinesVersion != 0 {
		o.uint(`,"lines_version":`, d.LinesVersion)
	}
	o.time(`,"placed_at":`, d.PlacedAt)
	o.time(`,"updated_at":`, d.UpdatedAt)
	o.timeIf(`,"confirmed_at":`, d.ConfirmedAt)
	o.timeIf(`,"paid_at":`, d.PaidAt)
	o.timeIf(`,"packed_at":`, d.PackedAt)
	o.timeIf(`,"shipped_at":`, d.ShippedAt)
	o.timeIf(`,"closed_at":`, d.ClosedAt)
	o.timeIf(`,"delivered_at":`, d.DeliveredAt)
	o.timeIf(`,"completed_at":`, d.CompletedAt)
	o.timeIf(`,"cancelled_at":`, d.CancelledAt)
	o.timeIf(`,"returned_at":`, d.ReturnedAt)
	o.stringIf(`,"cancel_reason":`, d.CancelReason)
	o.stringIf(`,"close_reason":`, d.CloseReason)
	o.bool(`,"paid":`, d.Paid)
	o.stringIf(`,"payment_reference":`, d.PaymentReference)
	o.payment(d.Payment)
	o.address(`,"ship_to":`, d.ShipTo)
	o.name(`,"lines":[`)
	for i := range d.Lines {
		if i > 0 {
			o.name(",")
		}
		o.dst = d.Lines[i].head(o.dst)
		o.int(`,"shipped":`, d.Lines[i].Shipped)
		o.int(`,"returned":`, d.Lines[i].Returned)
		o.intIf(`,"dropped":`, d.Lines[i].Dropped)
		o.name("}")
	}
	o.int(`],"units":`, d.Units)
	if d.Total != (money.Amount{}) {
		o.amount(`,"total":`, d.Total)
	}
	if d.Refund != (money.Amount{}) {
		o.amount(`,"refund":`, d.Refund)
	}
	o.shipments(d.Shipments)
	return o.end()
}

func (o *object) shipments(shipments []Shipment) {
	if len(shipments) == 0 {
		return
	}
	o.name(`,"shipments":[`)
	for i := range shipments {
		s := &shipments[i]
		if i > 0 {
			o.name(",")
		}
		o.int(`{"shipment":`, int64(s.Shipment))
		o.time(`,"shipped_at":`, s.ShippedAt)
		o.stringIf(`,"carrier":`, s.Carrier)
		o.stringIf(`,"tracking_number":`, s.TrackingNumber)
		o.name(`,"lines":`)
		o.dst = append(appendQuantities(o.dst, s.Lines), '}')
	}
	o.name("]")
}

func (o *object) levels(l Levels) []byte {
	o.int(`,"on_hand":`, l.OnHand)
	o.int(`,"reserved":`, l.Reserved)
	o.int(`,"available":`, l.Available)
	return o.end()
}

func appendReservation(dst []byte, at time.Time, id string, quantity int64, l Levels) []byte {
	o := object{sized(dst, smallSize)}
	o.time(`{"at":`, at)
	o.string(`,"reservation":`, id)
	o.int(`,"quantity":`, quantity)
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
	o := object{sized(dst, smallSize)}
	o.string(`{"sku":`, d.SKU)
	o.int(`,"on_hand":`, d.OnHand)
	o.int(`,"reserved":`, d.Reserved)
	o.int(`,"available":`, d.Available)
	o.uint(`,"version":`, d.Version)
	return o.end()
}

// AppendJSON appends the document as JSON.
func (d *Day) AppendJSON(dst []byte) []byte {
	o := object{sized(dst, smallSize)}
	o.string(`{"day":`, d.Day)
	o.string(`,"status":`, string(d.Status))
	o.currency(d.Currency)
	o.int(`,"orders":`, d.Orders)
	o.int(`,"units":`, d.Units)
	o.name(`,"amount":"`)
	o.dst, _ = d.Amount.AppendText(o.dst) // never fails
	o.name(`"`)
	return o.end()
}
