package order

import (
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/money"
)

// The commands of an order. Their JSON is the body of the API's requests, byte for byte. Numbers that must be given
// are pointers, so that leaving one out is told from zero.

// PlaceOrder asks for a new order.
type PlaceOrder struct {
	// ID, where it is given, must be the id of the stream.
	ID         string         `json:"id,omitempty"`
	CustomerID string         `json:"customer_id,omitempty"`
	Email      string         `json:"email,omitempty"`    // where notifications go to; none by e-mail without it
	Language   string         `json:"language,omitempty"` // of the notifications, as BCP 47 has it: de, en-GB
	Channel    Channel        `json:"channel,omitempty"`  // defaults to web
	Currency   string         `json:"currency"`
	Fulfilment FulfilmentKind `json:"fulfilment,omitempty"` // defaults to auto
	Backorder  Backorder      `json:"backorder,omitempty"`  // defaults to reject
	PlacedAt   *time.Time     `json:"placed_at,omitempty"`  // defaults to the time of acceptance
	ShipTo     *Address       `json:"ship_to,omitempty"`
	Lines      []LineRequest  `json:"lines"`
}

// LineRequest is a line as it is asked for. UnitPrice is a decimal number as text: see [money.ParsePrice].
type LineRequest struct {
	SKU         string `json:"sku"`
	Description string `json:"description,omitempty"`
	Quantity    *int64 `json:"quantity"`
	UnitPrice   string `json:"unit_price"`
}

// ChangeOrder replaces the lines, the address or both of an order that is not confirmed.
type ChangeOrder struct {
	Lines  []LineRequest `json:"lines,omitempty"`
	ShipTo *Address      `json:"ship_to,omitempty"`
}

// ConfirmOrder confirms an order.
type ConfirmOrder struct {
	// Version, where it is given, is the order's version that the sender has seen: lines that were changed since are not
	// confirmed by it.
	Version uint64 `json:"version,omitzero"`
}

// CancelOrder cancels an order of which nothing is shipped.
type CancelOrder struct {
	Reason string `json:"reason"`
}

// CloseOrder gives up what was not shipped of an order that is partly shipped.
type CloseOrder struct {
	Reason string `json:"reason"`
}

// MarkOrderPaid says that the order's total was paid, by other means than the gateway.
type MarkOrderPaid struct {
	Reference string `json:"reference,omitempty"`
	// Amount, where it is given, must equal the total.
	Amount *money.Amount `json:"amount,omitempty"`
}

// PackOrder says that the goods are packed.
type PackOrder struct{}

// ShipOrder says that goods left; without lines, everything that is left.
type ShipOrder struct {
	Lines          []QuantityRequest `json:"lines,omitempty"`
	Carrier        string            `json:"carrier,omitempty"`
	TrackingNumber string            `json:"tracking_number,omitempty"`
}

// DeliverOrder says that everything arrived.
type DeliverOrder struct{}

// ReturnOrder says that goods came back; without lines, everything that was shipped and is not back yet.
type ReturnOrder struct {
	Lines  []QuantityRequest `json:"lines,omitempty"`
	Reason string            `json:"reason,omitempty"`
	// Restock says whether the goods can be sold again. Defaults to true.
	Restock *bool `json:"restock,omitempty"`
}

// QuantityRequest names a quantity of one line. Lines are counted from 1.
type QuantityRequest struct {
	Line     int    `json:"line"`
	Quantity *int64 `json:"quantity"`
}

// Validate checks the form.
func (c *PlaceOrder) Validate() []millrace.FieldError {
	var f faults
	f.id("/id", c.ID)
	f.id("/customer_id", c.CustomerID)
	f.addIf("/email", emailFault(c.Email))
	f.addIf("/language", languageFault(c.Language))
	switch c.Channel {
	case "", ChannelWeb, ChannelPOS, ChannelPhone, ChannelImport:
	default:
		f.add("/channel", "must be web, pos, phone or import")
	}
	switch c.Fulfilment {
	case "", FulfilmentManual, FulfilmentAuto:
	default:
		f.add("/fulfilment", "must be manual or auto")
	}
	switch c.Backorder {
	case "", BackorderReject, BackorderWait, BackorderSplit:
	default:
		f.add("/backorder", "must be reject, wait or split")
	}
	f.currency("/currency", c.Currency)
	f.time("/placed_at", c.PlacedAt)
	f.address(c.ShipTo)
	f.lines(c.Lines)
	return f
}

// Validate checks the form.
func (c *ChangeOrder) Validate() []millrace.FieldError {
	var f faults
	if c.Lines == nil && c.ShipTo == nil {
		f.add("", "must have lines, ship_to or both")
	}
	if c.Lines != nil {
		f.lines(c.Lines)
	}
	f.address(c.ShipTo)
	return f
}

// Validate checks the form.
func (c *CancelOrder) Validate() []millrace.FieldError {
	var f faults
	f.text("/reason", c.Reason, MaxReason, true)
	return f
}

// Validate checks the form.
func (c *CloseOrder) Validate() []millrace.FieldError {
	var f faults
	f.text("/reason", c.Reason, MaxReason, true)
	return f
}

// Validate checks the form.
func (c *MarkOrderPaid) Validate() []millrace.FieldError {
	var f faults
	f.text("/reference", c.Reference, MaxReason, false)
	return f
}

// Validate checks the form.
func (c *ShipOrder) Validate() []millrace.FieldError {
	var f faults
	f.quantities(c.Lines)
	f.text("/carrier", c.Carrier, MaxReason, false)
	f.text("/tracking_number", c.TrackingNumber, MaxReason, false)
	return f
}

// Validate checks the form.
func (c *ReturnOrder) Validate() []millrace.FieldError {
	var f faults
	f.quantities(c.Lines)
	f.text("/reason", c.Reason, MaxReason, false)
	return f
}
