package order

import (
	"time"

	"github.com/millrace-io/millrace/internal/money"
)

// The events of an order. At is when the command was accepted, in UTC. They carry every figure that follows from them,
// so that whoever reads them needs no arithmetic.

// OrderPlaced begins every order.
type OrderPlaced struct {
	At         time.Time      `json:"at"`
	CustomerID string         `json:"customer_id,omitempty"`
	Email      string         `json:"email,omitempty"`
	Language   string         `json:"language,omitempty"`
	Channel    Channel        `json:"channel"`
	Currency   money.Currency `json:"currency"`
	Fulfilment FulfilmentKind `json:"fulfilment"`
	Backorder  Backorder      `json:"backorder,omitempty"` // absent for reject
	PlacedAt   time.Time      `json:"placed_at"`
	ShipTo     *Address       `json:"ship_to,omitempty"`
	Lines      []OrderedLine  `json:"lines"`
	Units      int64          `json:"units"` // the sum of the quantities
	Total      money.Amount   `json:"total"`
}

// OrderedLine is a line as it was ordered. LineTotal is in the order's currency.
type OrderedLine struct {
	Line        int           `json:"line"` // from 1
	SKU         string        `json:"sku"`
	Description string        `json:"description,omitempty"`
	Quantity    int64         `json:"quantity"`
	UnitPrice   money.Price   `json:"unit_price"`
	LineTotal   money.Decimal `json:"line_total"`
}

// OrderLinesChanged replaces all lines.
type OrderLinesChanged struct {
	At    time.Time     `json:"at"`
	Lines []OrderedLine `json:"lines"`
	Units int64         `json:"units"`
	Total money.Amount  `json:"total"`
}

// OrderAddressChanged replaces the address.
type OrderAddressChanged struct {
	At     time.Time `json:"at"`
	ShipTo Address   `json:"ship_to"`
}

// OrderConfirmed: lines and address are fixed from here on.
type OrderConfirmed struct {
	At time.Time `json:"at"`
}

// OrderCancelled ends an order before anything was shipped.
type OrderCancelled struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
	// Refund is what was paid and is to be given back; absent where nothing was.
	Refund money.Amount `json:"refund,omitzero"`
}

// OrderPaid: the total was paid.
type OrderPaid struct {
	At time.Time `json:"at"`
	// Name is that of the call by which it was captured at the gateway, and Reference is then the gateway's name for the
	// payment; without a name it was paid by other means.
	Name      string       `json:"name,omitempty"`
	Reference string       `json:"reference,omitempty"`
	Amount    money.Amount `json:"amount"`
}

// OrderPacked: the goods are ready to leave.
type OrderPacked struct {
	At time.Time `json:"at"`
}

// OrderShipped: a parcel left.
type OrderShipped struct {
	At             time.Time      `json:"at"`
	Shipment       int            `json:"shipment"` // the parcel's number, from 1
	Lines          []LineQuantity `json:"lines"`
	Whole          bool           `json:"whole"` // nothing is left to ship
	Carrier        string         `json:"carrier,omitempty"`
	TrackingNumber string         `json:"tracking_number,omitempty"`
}

// LineQuantity is a quantity of one line.
type LineQuantity struct {
	Line     int   `json:"line"`
	Quantity int64 `json:"quantity"`
}

// OrderClosed: what was not shipped is given up.
type OrderClosed struct {
	At     time.Time      `json:"at"`
	Reason string         `json:"reason"`
	Lines  []LineQuantity `json:"lines"` // what is given up
	// Refund is what these goods were sold for, whether it was paid yet or not.
	Refund money.Amount `json:"refund"`
}

// OrderDelivered: everything that was not sent back has arrived.
type OrderDelivered struct {
	At time.Time `json:"at"`
}

// OrderCompleted: delivered and paid, in whichever order.
type OrderCompleted struct {
	At time.Time `json:"at"`
}

// OrderReturned: goods came back.
type OrderReturned struct {
	At     time.Time      `json:"at"`
	Reason string         `json:"reason,omitempty"`
	Lines  []LineQuantity `json:"lines"`
	Whole  bool           `json:"whole"` // everything that was shipped is back
	// Scrapped says that the goods cannot be sold again.
	Scrapped bool `json:"scrapped,omitzero"`
	// Refund is what these goods were sold for, whether it was paid yet or not.
	Refund money.Amount `json:"refund"`
}
