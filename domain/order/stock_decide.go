package order

import (
	"fmt"
	"time"

	"github.com/millrace-io/millrace"
)

// The codes of refusals of stock. They are for programs and never change.
const (
	CodeStockInsufficient   = "stock_insufficient"
	CodeStockTooLarge       = "stock_too_large"
	CodeReservationExists   = "reservation_exists"
	CodeReservationUnknown  = "reservation_unknown"
	CodeTooManyReservations = "too_many_reservations"
	CodeQuantityInvalid     = "quantity_invalid"
	CodeQuantityNotReserved = "quantity_not_reserved"
	CodeSKUInvalid          = "sku_invalid"
)

func decideStock(s *Stock, command any, at time.Time) ([]any, *millrace.Refusal) {
	at = at.UTC()
	if s.Version == 0 {
		if detail := SKUFault(s.SKU); detail != "" {
			return nil, rule(CodeSKUInvalid, "the SKU "+detail)
		}
	}
	switch c := command.(type) {
	case *ReceiveStock:
		return s.receive(c, at)
	case *AdjustStock:
		return s.adjust(c, at)
	case *ReserveStock:
		return s.reserve(c, at)
	case *ReleaseStock:
		quantity, refusal := s.part(c.Reservation, c.Quantity)
		if refusal != nil {
			return nil, refusal
		}
		return []any{&StockReleased{
			At: at, Reservation: c.Reservation, Quantity: quantity, Levels: levels(s.OnHand, s.Reserved-quantity),
		}}, nil
	case *CommitStock:
		quantity, refusal := s.part(c.Reservation, c.Quantity)
		if refusal != nil {
			return nil, refusal
		}
		return []any{&StockCommitted{
			At: at, Reservation: c.Reservation, Quantity: quantity, Levels: levels(s.OnHand-quantity, s.Reserved-quantity),
		}}, nil
	}
	panic(fmt.Sprintf("order: command %T is not declared", command))
}

// part is the quantity of a reservation that a command means: what it names, or all that is left.
func (s *Stock) part(reservation string, quantity *int64) (int64, *millrace.Refusal) {
	left, ok := s.Reservations.Get(reservation)
	switch {
	case !ok:
		return 0, notFound(CodeReservationUnknown, "there is no open reservation with this id")
	case quantity == nil:
		return left, nil
	case *quantity < 1:
		return 0, quantityInvalid()
	case *quantity > left:
		return 0, conflict(CodeQuantityNotReserved, "less is left of the reservation")
	}
	return *quantity, nil
}

func quantityInvalid() *millrace.Refusal {
	return rule(CodeQuantityInvalid, "the quantity must be at least 1",
		millrace.FieldError{Pointer: "/quantity", Detail: "must be at least 1"})
}

func (s *Stock) receive(c *ReceiveStock, at time.Time) ([]any, *millrace.Refusal) {
	if c.Quantity == nil || *c.Quantity < 1 {
		return nil, quantityInvalid()
	}
	if *c.Quantity > MaxStock-s.OnHand {
		return nil, conflict(CodeStockTooLarge, "there would be more on hand than can be")
	}
	return []any{&StockReceived{
		At: at, Quantity: *c.Quantity, Reference: c.Reference, Levels: levels(s.OnHand+*c.Quantity, s.Reserved),
	}}, nil
}

func (s *Stock) adjust(c *AdjustStock, at time.Time) ([]any, *millrace.Refusal) {
	switch {
	case c.Delta == nil || *c.Delta == 0:
		return nil, nil
	case *c.Delta > MaxStock-s.OnHand:
		return nil, conflict(CodeStockTooLarge, "there would be more on hand than can be")
	case *c.Delta < s.Reserved-s.OnHand:
		return nil, conflict(CodeStockInsufficient, "there would be less on hand than is reserved")
	}
	return []any{&StockAdjusted{
		At: at, Delta: *c.Delta, Reason: c.Reason, Levels: levels(s.OnHand+*c.Delta, s.Reserved),
	}}, nil
}

func (s *Stock) reserve(c *ReserveStock, at time.Time) ([]any, *millrace.Refusal) {
	if c.Quantity == nil || *c.Quantity < 1 {
		return nil, quantityInvalid()
	}
	if quantity, ok := s.Reservations.Get(c.Reservation); ok {
		if quantity == *c.Quantity {
			return nil, nil
		}
		return nil, conflict(CodeReservationExists, "there is a reservation with this id and another quantity")
	}
	switch {
	case *c.Quantity > s.OnHand-s.Reserved:
		return nil, conflict(CodeStockInsufficient, "there is less available than is to be reserved")
	case s.Reservations.Len() >= MaxReservations:
		return nil, conflict(CodeTooManyReservations, "there are as many open reservations as there can be")
	}
	return []any{&StockReserved{
		At: at, Reservation: c.Reservation, Quantity: *c.Quantity, Levels: levels(s.OnHand, s.Reserved+*c.Quantity),
	}}, nil
}
