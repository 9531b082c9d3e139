package order

import (
	"fmt"
	"slices"
	"time"

	"github.com/millrace-io/millrace/internal/money"
)

// Status says how far an order has come.
type Status string

// The statuses of an order.
const (
	StatusPlaced         Status = "placed"
	StatusConfirmed      Status = "confirmed"
	StatusPacked         Status = "packed"
	StatusPartlyShipped  Status = "partly_shipped"
	StatusShipped        Status = "shipped"
	StatusDelivered      Status = "delivered"
	StatusCompleted      Status = "completed"
	StatusCancelled      Status = "cancelled"
	StatusPartlyReturned Status = "partly_returned"
	StatusReturned       Status = "returned"
)

// Statuses lists all statuses in the order in which an order may go through them.
func Statuses() []Status {
	return []Status{
		StatusPlaced, StatusConfirmed, StatusPacked, StatusPartlyShipped, StatusShipped, StatusDelivered,
		StatusCompleted, StatusCancelled, StatusPartlyReturned, StatusReturned,
	}
}

// Channel is the way an order came in.
type Channel string

// The channels.
const (
	ChannelWeb    Channel = "web"
	ChannelPOS    Channel = "pos"
	ChannelPhone  Channel = "phone"
	ChannelImport Channel = "import"
)

// FulfilmentKind says who drives an order on.
type FulfilmentKind string

// The kinds of fulfilment.
const (
	FulfilmentManual FulfilmentKind = "manual"
	FulfilmentAuto   FulfilmentKind = "auto"
)

// Backorder says what becomes of an order with fulfilment auto when stock is short.
type Backorder string

// The kinds of backorder. Reject has the order be cancelled, Wait has it wait until all is there, Split has what there is be
// shipped and the rest later.
const (
	BackorderReject Backorder = "reject"
	BackorderWait   Backorder = "wait"
	BackorderSplit  Backorder = "split"
)

// Address is where an order goes. Every part may be missing, but not all of them.
type Address struct {
	Name       string `json:"name,omitempty"`
	Line1      string `json:"line1,omitempty"`
	City       string `json:"city,omitempty"`
	PostalCode string `json:"postal_code,omitempty"`
	Country    string `json:"country,omitempty"`
}

// Order is the state of an order, and as JSON its document and what the API shows: there is one form only. A state is
// never changed; Evolve returns another one.
type Order struct {
	ID         string         `json:"id"`
	Status     Status         `json:"status"`
	Version    uint64         `json:"version"`
	CustomerID string         `json:"customer_id,omitempty"`
	Email      string         `json:"email,omitempty"`
	Language   string         `json:"language,omitempty"`
	Channel    Channel        `json:"channel"`
	Currency   money.Currency `json:"currency,omitzero"` // the zero of an order that was never placed
	Fulfilment FulfilmentKind `json:"fulfilment"`
	Backorder  Backorder      `json:"backorder,omitempty"` // absent for reject
	// LinesVersion is the version that the lines were last changed with; absent for lines as they were placed.
	LinesVersion uint64 `json:"lines_version,omitzero"`

	PlacedAt    time.Time `json:"placed_at"`
	UpdatedAt   time.Time `json:"updated_at"`
	ConfirmedAt time.Time `json:"confirmed_at,omitzero"`
	PaidAt      time.Time `json:"paid_at,omitzero"`
	PackedAt    time.Time `json:"packed_at,omitzero"`
	ShippedAt   time.Time `json:"shipped_at,omitzero"` // when the last of it left, or the rest was given up
	ClosedAt    time.Time `json:"closed_at,omitzero"`  // when the rest was given up
	DeliveredAt time.Time `json:"delivered_at,omitzero"`
	CompletedAt time.Time `json:"completed_at,omitzero"`
	CancelledAt time.Time `json:"cancelled_at,omitzero"`
	ReturnedAt  time.Time `json:"returned_at,omitzero"` // when goods last came back

	CancelReason     string       `json:"cancel_reason,omitempty"`
	CloseReason      string       `json:"close_reason,omitempty"`
	Paid             bool         `json:"paid"`
	PaymentReference string       `json:"payment_reference,omitempty"`
	Payment          *Payment     `json:"payment,omitempty"` // absent where the gateway was never asked
	ShipTo           *Address     `json:"ship_to,omitempty"`
	Lines            []Line       `json:"lines"`
	Units            int64        `json:"units"`
	Total            money.Amount `json:"total,omitzero"`
	Refund           money.Amount `json:"refund,omitzero"` // the sum of all refunds
	Shipments        []Shipment   `json:"shipments,omitempty"`
}

// Line is an ordered line and what became of it.
type Line struct {
	OrderedLine
	Shipped  int64 `json:"shipped"`
	Returned int64 `json:"returned"`
	Dropped  int64 `json:"dropped,omitzero"` // given up before it was shipped
}

// unshipped is what is still to leave.
func (l *Line) unshipped() int64 { return l.Quantity - l.Shipped - l.Dropped }

// Shipment is one parcel.
type Shipment struct {
	Shipment       int            `json:"shipment"` // its number, from 1
	ShippedAt      time.Time      `json:"shipped_at"`
	Carrier        string         `json:"carrier,omitempty"`
	TrackingNumber string         `json:"tracking_number,omitempty"`
	Lines          []LineQuantity `json:"lines"`
}

// Exists says whether the order was placed.
func (o *Order) Exists() bool { return o.Version > 0 }

// Address is the address, or the empty one.
func (o *Order) Address() Address {
	if o.ShipTo == nil {
		return Address{}
	}
	return *o.ShipTo
}

func initialOrder(id string) *Order { return &Order{ID: id} }

// statusAfter is the status that an event leads to.
func statusAfter(before Status, event any) Status {
	switch e := event.(type) {
	case *OrderPlaced:
		return StatusPlaced
	case *OrderConfirmed:
		return StatusConfirmed
	case *OrderCancelled:
		return StatusCancelled
	case *OrderPacked:
		return StatusPacked
	case *OrderShipped:
		if e.Whole {
			return StatusShipped
		}
		return StatusPartlyShipped
	case *OrderClosed:
		return StatusShipped
	case *OrderDelivered:
		if before == StatusPartlyReturned { // what came back outranks what arrived
			return before
		}
		return StatusDelivered
	case *OrderCompleted:
		return StatusCompleted
	case *OrderReturned:
		if e.Whole {
			return StatusReturned
		}
		return StatusPartlyReturned
	}
	return before // lines, address and payment
}

func evolveOrder(o *Order, event any) *Order {
	n := *o
	n.Version++
	n.Status = statusAfter(o.Status, event)
	switch e := event.(type) {
	case *OrderPlaced:
		n.UpdatedAt, n.PlacedAt = e.At, e.PlacedAt
		n.CustomerID, n.Channel, n.Currency, n.Fulfilment = e.CustomerID, e.Channel, e.Currency, e.Fulfilment
		n.Email, n.Language, n.Backorder = e.Email, e.Language, e.Backorder
		n.ShipTo, n.Lines, n.Units, n.Total = e.ShipTo, stateLines(e.Lines), e.Units, e.Total
	case *OrderLinesChanged:
		n.UpdatedAt, n.LinesVersion = e.At, n.Version
		n.Lines, n.Units, n.Total = stateLines(e.Lines), e.Units, e.Total
	case *OrderAddressChanged:
		n.UpdatedAt, n.ShipTo = e.At, &e.ShipTo
	case *OrderConfirmed:
		n.UpdatedAt, n.ConfirmedAt = e.At, e.At
	case *OrderCancelled:
		n.UpdatedAt, n.CancelledAt, n.CancelReason, n.Refund = e.At, e.At, e.Reason, e.Refund
	case *OrderPaid, *OrderPaymentRequested, *OrderPaymentAuthorised, *OrderPaymentDeclined, *OrderPaymentVoided, *OrderRefunded:
		n.settle(event)
	case *OrderPacked:
		n.UpdatedAt, n.PackedAt = e.At, e.At
	case *OrderShipped:
		n.ship(e)
	case *OrderClosed:
		n.drop(e)
	case *OrderDelivered:
		n.UpdatedAt, n.DeliveredAt = e.At, e.At
	case *OrderCompleted:
		n.UpdatedAt, n.CompletedAt = e.At, e.At
	case *OrderReturned:
		n.takeBack(e)
	default:
		panic(fmt.Sprintf("order: event %T is not declared", event))
	}
	return &n
}

func stateLines(lines []OrderedLine) []Line {
	out := make([]Line, len(lines))
	for i := range lines {
		out[i].OrderedLine = lines[i]
	}
	return out
}

// ship, drop and takeBack work on the copy that evolveOrder returns; what it shares with the old state they replace.
func (o *Order) ship(e *OrderShipped) {
	o.UpdatedAt = e.At
	if e.Whole {
		o.ShippedAt = e.At
	}
	o.Lines = slices.Clone(o.Lines)
	for _, l := range e.Lines {
		o.Lines[l.Line-1].Shipped += l.Quantity
	}
	o.Shipments = append(slices.Clip(o.Shipments), Shipment{
		Shipment: e.Shipment, ShippedAt: e.At, Carrier: e.Carrier, TrackingNumber: e.TrackingNumber, Lines: e.Lines,
	})
}

func (o *Order) drop(e *OrderClosed) {
	o.UpdatedAt, o.ShippedAt, o.ClosedAt, o.CloseReason = e.At, e.At, e.At, e.Reason
	o.Lines = slices.Clone(o.Lines)
	for _, l := range e.Lines {
		o.Lines[l.Line-1].Dropped += l.Quantity
	}
	o.refund(e.Refund)
}

func (o *Order) takeBack(e *OrderReturned) {
	o.UpdatedAt, o.ReturnedAt = e.At, e.At
	o.Lines = slices.Clone(o.Lines)
	for _, l := range e.Lines {
		o.Lines[l.Line-1].Returned += l.Quantity
	}
	o.refund(e.Refund)
}

// refund adds to what is to be given back, which is at most the total.
func (o *Order) refund(a money.Amount) {
	o.Refund = money.Amount{Minor: o.Refund.Minor + a.Minor, Currency: a.Currency}
}
