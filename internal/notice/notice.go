// Package notice is the form of a notification: what a customer, or a customer's program, is told about an order. The domain
// makes notices, and those who send them need nothing else.
package notice

import (
	"strings"
	"time"
	"unicode/utf8"

	"github.com/millrace-io/millrace/internal/money"
)

// Kind is what happened.
type Kind string

// The kinds.
const (
	Placed    Kind = "placed"
	Confirmed Kind = "confirmed"
	Shipped   Kind = "shipped" // one for each parcel
	Delivered Kind = "delivered"
	Cancelled Kind = "cancelled"
	Refunded  Kind = "refunded" // one for each time that goods came back
)

// Kinds lists all kinds.
func Kinds() []Kind { return []Kind{Placed, Confirmed, Shipped, Delivered, Cancelled, Refunded} }

// Channel is a way to tell it.
type Channel string

// The channels.
const (
	Email   Channel = "email"
	Log     Channel = "log"
	Webhook Channel = "webhook"
)

// Channels lists all channels.
func Channels() []Channel { return []Channel{Log, Email, Webhook} }

const (
	// MaxLines bounds the lines of a notice: a mail that lists more is not read, and each waits in its order's document until
	// it is sent.
	MaxLines = 50
	// MaxDescription bounds the description of a line in a notice, in characters: one line of a mail.
	MaxDescription = 100
)

// Notice is a notification by one channel. It holds all that its text needs, so that sending it asks nobody.
type Notice struct {
	Kind       Kind           `json:"kind"`
	Channel    Channel        `json:"channel,omitempty"`
	At         time.Time      `json:"at"` // when it happened
	OrderID    string         `json:"order_id"`
	CustomerID string         `json:"customer_id,omitempty"`
	Email      string         `json:"email,omitempty"`
	Language   string         `json:"language,omitempty"` // as the order has it
	Currency   money.Currency `json:"currency"`
	Total      money.Amount   `json:"total"`
	// Lines are those of the order; of a parcel or of goods that came back, what is in them. More counts those beyond
	// MaxLines.
	Lines  []Line  `json:"lines,omitempty"`
	More   int     `json:"more_lines,omitzero"`
	Parcel *Parcel `json:"parcel,omitempty"`
	Reason string  `json:"reason,omitempty"`
	// Refund is what is given back.
	Refund money.Amount `json:"refund,omitzero"`
}

// Line is a line of an order, or a part of it. UnitPrice and Total are absent for a part.
type Line struct {
	Line        int            `json:"line"` // its number in the order, from 1
	SKU         string         `json:"sku"`
	Description string         `json:"description,omitempty"`
	Quantity    int64          `json:"quantity"`
	UnitPrice   *money.Price   `json:"unit_price,omitempty"`
	Total       *money.Decimal `json:"line_total,omitempty"`
}

// Parcel is a shipment.
type Parcel struct {
	Number         int    `json:"number"` // from 1
	Last           bool   `json:"last"`   // nothing is left to ship
	Carrier        string `json:"carrier,omitempty"`
	TrackingNumber string `json:"tracking_number,omitempty"`
}

// Short cuts a description to MaxDescription.
func Short(description string) string {
	if utf8.RuneCountInString(description) <= MaxDescription {
		return description
	}
	n := 0
	for i := range description {
		if n++; n == MaxDescription {
			return strings.TrimRight(description[:i], " ") + "…"
		}
	}
	return description
}

// The statuses of a result.
const (
	Sent      = "sent"
	Rejected  = "rejected"  // for good: it is not tried again
	Withdrawn = "cancelled" // nobody sends by its channel any more
)

// Result is what became of a notice, for good.
type Result struct {
	Status string `json:"status"`
	Detail string `json:"detail,omitempty"`
}

// UnreachableError says that nobody can be told by a channel at present, whoever it is: the server at its other end is away.
type UnreachableError struct{ Err error }

func (e *UnreachableError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *UnreachableError) Unwrap() error { return e.Err }
