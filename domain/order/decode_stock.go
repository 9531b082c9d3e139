package order

import (
	"time"

	"github.com/millrace-io/millrace/internal/jsonfast"
)

// DecodeJSON reads the common form of the command.
func (c *ReceiveStock) DecodeJSON(data []byte) bool {
	s := jsonfast.New(data)
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch string(o.Name) {
		case "quantity":
			quantity := s.Int64()
			c.Quantity = &quantity
		case "reference":
			c.Reference = s.Text()
		default:
			s.GiveUp()
		}
	}
	return s.Done()
}

// DecodeJSON reads the common form of the command.
func (c *ReserveStock) DecodeJSON(data []byte) bool {
	s := jsonfast.New(data)
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch string(o.Name) {
		case "reservation":
			c.Reservation = s.Text()
		case "quantity":
			quantity := s.Int64()
			c.Quantity = &quantity
		default:
			s.GiveUp()
		}
	}
	return s.Done()
}

// reservationPart reads a command that says which reservation it is about, and perhaps how much of it.
func reservationPart(data []byte, id *string, quantity **int64) bool {
	s := jsonfast.New(data)
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch string(o.Name) {
		case "reservation":
			*id = s.Text()
		case "quantity":
			part := s.Int64()
			*quantity = &part
		default:
			s.GiveUp()
		}
	}
	return s.Done()
}

// DecodeJSON reads the common form of the command.
func (c *ReleaseStock) DecodeJSON(data []byte) bool {
	return reservationPart(data, &c.Reservation, &c.Quantity)
}

// DecodeJSON reads the common form of the command.
func (c *CommitStock) DecodeJSON(data []byte) bool {
	return reservationPart(data, &c.Reservation, &c.Quantity)
}

// member reads a member of the levels and says whether it is one.
func (l *Levels) member(s *jsonfast.Scanner, name []byte) bool {
	switch string(name) {
	case "on_hand":
		l.OnHand = s.Int64()
	case "reserved":
		l.Reserved = s.Int64()
	case "available":
		l.Available = s.Int64()
	default:
		return false
	}
	return true
}

// decodeReservation reads the event of a reservation: there are three types of the same members.
func decodeReservation(data []byte, at *time.Time, id *string, quantity *int64, l *Levels) bool {
	s := jsonfast.New(data)
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch string(o.Name) {
		case "at":
			*at = s.Time()
		case "reservation":
			*id = s.Text()
		case "quantity":
			*quantity = s.Int64()
		default:
			if !l.member(&s, o.Name) {
				s.GiveUp()
			}
		}
	}
	return s.Done()
}

// DecodeJSON reads the common form of the event.
func (e *StockReserved) DecodeJSON(data []byte) bool {
	return decodeReservation(data, &e.At, &e.Reservation, &e.Quantity, &e.Levels)
}

// DecodeJSON reads the common form of the event.
func (e *StockReleased) DecodeJSON(data []byte) bool {
	return decodeReservation(data, &e.At, &e.Reservation, &e.Quantity, &e.Levels)
}

// DecodeJSON reads the common form of the event.
func (e *StockCommitted) DecodeJSON(data []byte) bool {
	return decodeReservation(data, &e.At, &e.Reservation, &e.Quantity, &e.Levels)
}

// DecodeJSON reads the common form of the document.
func (d *Level) DecodeJSON(data []byte) bool {
	s := jsonfast.New(data)
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch string(o.Name) {
		case "sku":
			d.SKU = s.Text()
		case "on_hand":
			d.OnHand = s.Int64()
		case "reserved":
			d.Reserved = s.Int64()
		case "available":
			d.Available = s.Int64()
		case "version":
			d.Version = s.Uint64()
		default:
			s.GiveUp()
		}
	}
	return s.Done()
}
