package order

import (
	"fmt"
	"time"

	"github.com/millrace-io/millrace"
)

// The commands of stock.

// ReceiveStock says that goods came in.
type ReceiveStock struct {
	Quantity  *int64 `json:"quantity"`
	Reference string `json:"reference,omitempty"`
}

// AdjustStock corrects on_hand: breakage, theft, a count.
type AdjustStock struct {
	Delta  *int64 `json:"delta"`
	Reason string `json:"reason"`
}

// ReserveStock promises a quantity under an id.
type ReserveStock struct {
	Reservation string `json:"reservation"`
	Quantity    *int64 `json:"quantity"`
}

// ReleaseStock gives a reservation up, or a part of it.
type ReleaseStock struct {
	Reservation string `json:"reservation"`
	Quantity    *int64 `json:"quantity,omitempty"` // defaults to all that is left of the reservation
}

// CommitStock says that the goods of a reservation left, or a part of them.
type CommitStock struct {
	Reservation string `json:"reservation"`
	Quantity    *int64 `json:"quantity,omitempty"` // as above
}

// Validate checks the form.
func (c *ReceiveStock) Validate() []millrace.FieldError {
	var f faults
	f.quantity("/quantity", c.Quantity)
	f.text("/reference", c.Reference, MaxReason, false)
	return f
}

// Validate checks the form.
func (c *AdjustStock) Validate() []millrace.FieldError {
	var f faults
	f.quantity("/delta", c.Delta)
	f.text("/reason", c.Reason, MaxReason, true)
	return f
}

// Validate checks the form.
func (c *ReserveStock) Validate() []millrace.FieldError {
	var f faults
	f.reservation(c.Reservation)
	f.quantity("/quantity", c.Quantity)
	return f
}

// Validate checks the form.
func (c *ReleaseStock) Validate() []millrace.FieldError { return partFaults(c.Reservation, c.Quantity) }

// Validate checks the form.
func (c *CommitStock) Validate() []millrace.FieldError { return partFaults(c.Reservation, c.Quantity) }

func partFaults(reservation string, quantity *int64) []millrace.FieldError {
	var f faults
	f.reservation(reservation)
	if quantity != nil {
		f.quantity("/quantity", quantity)
	}
	return f
}

// Levels are how much there is after an event. Every event of stock has them.
type Levels struct {
	OnHand    int64 `json:"on_hand"`
	Reserved  int64 `json:"reserved"`
	Available int64 `json:"available"`
}

func levels(onHand, reserved int64) Levels { return Levels{onHand, reserved, onHand - reserved} }

// StockReceived: goods came in.
type StockReceived struct {
	At        time.Time `json:"at"`
	Quantity  int64     `json:"quantity"`
	Reference string    `json:"reference,omitempty"`
	Levels
}

// StockAdjusted: on_hand was corrected.
type StockAdjusted struct {
	At     time.Time `json:"at"`
	Delta  int64     `json:"delta"`
	Reason string    `json:"reason"`
	Levels
}

// StockReserved: a quantity is promised.
type StockReserved struct {
	At          time.Time `json:"at"`
	Reservation string    `json:"reservation"`
	Quantity    int64     `json:"quantity"`
	Levels
}

// StockReleased: a reservation, or a part of it, was given up.
type StockReleased struct {
	At          time.Time `json:"at"`
	Reservation string    `json:"reservation"`
	Quantity    int64     `json:"quantity"`
	Levels
}

// StockCommitted: the goods of a reservation, or a part of them, left.
type StockCommitted struct {
	At          time.Time `json:"at"`
	Reservation string    `json:"reservation"`
	Quantity    int64     `json:"quantity"`
	Levels
}

// Stock is the state of an SKU. What others see of it is its [Level]. A state is never changed; Evolve returns another
// one.
type Stock struct {
	SKU          string       `json:"sku"`
	OnHand       int64        `json:"on_hand"`
	Reserved     int64        `json:"reserved"`
	Version      uint64       `json:"version"`
	Reservations Reservations `json:"reservations"`
}

// Level is the document of an SKU and what the API shows.
type Level struct {
	SKU       string `json:"sku"`
	OnHand    int64  `json:"on_hand"`
	Reserved  int64  `json:"reserved"`
	Available int64  `json:"available"`
	Version   uint64 `json:"version"`
}

// Level is what others see of the stock.
func (s *Stock) Level() *Level { return newLevel(s.SKU, s.Version, levels(s.OnHand, s.Reserved)) }

func newLevel(sku string, version uint64, l Levels) *Level {
	return &Level{SKU: sku, OnHand: l.OnHand, Reserved: l.Reserved, Available: l.Available, Version: version}
}

func initialStock(sku string) *Stock { return &Stock{SKU: sku} }

// levelsOf are the levels after any event of stock.
func levelsOf(event any) (Levels, bool) {
	switch e := event.(type) {
	case *StockReceived:
		return e.Levels, true
	case *StockAdjusted:
		return e.Levels, true
	case *StockReserved:
		return e.Levels, true
	case *StockReleased:
		return e.Levels, true
	case *StockCommitted:
		return e.Levels, true
	}
	return Levels{}, false
}

func evolveStock(s *Stock, event any) *Stock {
	l, ok := levelsOf(event)
	if !ok {
		panic(fmt.Sprintf("order: event %T is not declared", event))
	}
	n := &Stock{SKU: s.SKU, OnHand: l.OnHand, Reserved: l.Reserved, Version: s.Version + 1, Reservations: s.Reservations}
	switch e := event.(type) {
	case *StockReserved:
		n.Reservations = s.Reservations.With(e.Reservation, e.Quantity)
	case *StockReleased:
		n.Reservations = s.Reservations.less(e.Reservation, e.Quantity)
	case *StockCommitted:
		n.Reservations = s.Reservations.less(e.Reservation, e.Quantity)
	}
	return n
}

// less is the map with a quantity less for a reservation, and without it where nothing is left.
func (r Reservations) less(id string, quantity int64) Reservations {
	if left, _ := r.Get(id); left > quantity {
		return r.With(id, left-quantity)
	}
	return r.Without(id)
}
