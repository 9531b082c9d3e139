package order

import (
	"time"

	"github.com/millrace-io/millrace/internal/jsonfast"
)

// DecodeJSON reads the common form of the event.
func (e *OrderPlaced) DecodeJSON(data []byte) bool {
	s := jsonfast.New(data)
	s.Reserve(len(data) / ownText)
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch string(o.Name) {
		case "at":
			e.At = s.Time()
		case "customer_id":
			e.CustomerID = s.Text()
		case "email":
			e.Email = s.Text()
		case "language":
			e.Language = s.Text()
		case "channel":
			e.Channel = channel(&s)
		case "currency":
			e.Currency = currency(&s)
		case "fulfilment":
			e.Fulfilment = fulfilment(&s)
		case "backorder":
			e.Backorder = backorder(&s)
		case "placed_at":
			e.PlacedAt = s.Time()
		case "ship_to":
			e.ShipTo = address(&s)
		case "lines":
			e.Lines = orderedLines(&s)
		case "units":
			e.Units = s.Int64()
		case "total":
			e.Total = amount(&s)
		default:
			s.GiveUp()
		}
	}
	return s.Done()
}

// member reads a member of a line and says whether it is one.
func (l *OrderedLine) member(s *jsonfast.Scanner, name []byte) bool {
	switch string(name) {
	case "line":
		l.Line = s.Int()
	case "sku":
		l.SKU = s.Text()
	case "description":
		l.Description = s.Text()
	case "quantity":
		l.Quantity = s.Int64()
	case "unit_price":
		l.UnitPrice = price(s)
	case "line_total":
		l.LineTotal = decimal(s)
	default:
		return false
	}
	return true
}

func orderedLines(s *jsonfast.Scanner) []OrderedLine {
	lines := make([]OrderedLine, 0, s.Guess())
	for a := (jsonfast.Array{}); s.Element(&a); {
		lines = append(lines, OrderedLine{})
		l := &lines[len(lines)-1]
		for o := (jsonfast.Object{}); s.Next(&o); {
			if !l.member(s, o.Name) {
				s.GiveUp()
			}
		}
	}
	return lines
}

// onlyAt reads an event that says no more than when it was.
func onlyAt(data []byte, at *time.Time) bool {
	s := jsonfast.New(data)
	for o := (jsonfast.Object{}); s.Next(&o); {
		if string(o.Name) != "at" {
			s.GiveUp()
		}
		*at = s.Time()
	}
	return s.Done()
}

// DecodeJSON reads the common form of the event.
func (e *OrderConfirmed) DecodeJSON(data []byte) bool { return onlyAt(data, &e.At) }

// DecodeJSON reads the common form of the event.
func (e *OrderPacked) DecodeJSON(data []byte) bool { return onlyAt(data, &e.At) }

// DecodeJSON reads the common form of the event.
func (e *OrderDelivered) DecodeJSON(data []byte) bool { return onlyAt(data, &e.At) }

// DecodeJSON reads the common form of the event.
func (e *OrderCompleted) DecodeJSON(data []byte) bool { return onlyAt(data, &e.At) }

// DecodeJSON reads the common form of the event.
func (e *OrderPaid) DecodeJSON(data []byte) bool {
	s := jsonfast.New(data)
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch string(o.Name) {
		case "at":
			e.At = s.Time()
		case "name":
			e.Name = s.Text()
		case "reference":
			e.Reference = s.Text()
		case "amount":
			e.Amount = amount(&s)
		default:
			s.GiveUp()
		}
	}
	return s.Done()
}

// DecodeJSON reads the common form of the event.
func (e *OrderShipped) DecodeJSON(data []byte) bool {
	s := jsonfast.New(data)
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch string(o.Name) {
		case "at":
			e.At = s.Time()
		case "shipment":
			e.Shipment = s.Int()
		case "lines":
			e.Lines = lineQuantities(&s)
		case "whole":
			e.Whole = s.Bool()
		case "carrier":
			e.Carrier = s.Text()
		case "tracking_number":
			e.TrackingNumber = s.Text()
		default:
			s.GiveUp()
		}
	}
	return s.Done()
}

func lineQuantities(s *jsonfast.Scanner) []LineQuantity {
	lines := make([]LineQuantity, 0, s.Guess())
	for a := (jsonfast.Array{}); s.Element(&a); {
		var l LineQuantity
		for o := (jsonfast.Object{}); s.Next(&o); {
			switch string(o.Name) {
			case "line":
				l.Line = s.Int()
			case "quantity":
				l.Quantity = s.Int64()
			default:
				s.GiveUp()
			}
		}
		lines = append(lines, l)
	}
	return lines
}

// DecodeJSON reads the common form of the document.
func (d *Order) DecodeJSON(data []byte) bool {
	s := jsonfast.New(data)
	s.Reserve(len(data) / ownText)
	for o := (jsonfast.Object{}); s.Next(&o); {
		if !d.headMember(&s, o.Name) && !d.laterMember(&s, o.Name) {
			s.GiveUp()
		}
	}
	return s.Done()
}

// headMember reads a member that most orders have, and laterMember those that some have or get; they say whether it is one.
func (d *Order) headMember(s *jsonfast.Scanner, name []byte) bool {
	switch string(name) {
	case "id":
		d.ID = s.Text()
	case "status":
		d.Status = status(s)
	case "version":
		d.Version = s.Uint64()
	case "customer_id":
		d.CustomerID = s.Text()
	case "channel":
		d.Channel = channel(s)
	case "currency":
		d.Currency = currency(s)
	case "fulfilment":
		d.Fulfilment = fulfilment(s)
	case "placed_at":
		d.PlacedAt = s.Time()
	case "updated_at":
		d.UpdatedAt = s.Time()
	case "paid":
		d.Paid = s.Bool()
	case "ship_to":
		d.ShipTo = address(s)
	case "lines":
		d.Lines = documentLines(s)
	case "units":
		d.Units = s.Int64()
	case "total":
		d.Total = amount(s)
	default:
		return false
	}
	return true
}

func (d *Order) laterMember(s *jsonfast.Scanner, name []byte) bool {
	switch string(name) {
	case "confirmed_at":
		d.ConfirmedAt = s.Time()
	case "paid_at":
		d.PaidAt = s.Time()
	case "packed_at":
		d.PackedAt = s.Time()
	case "shipped_at":
		d.ShippedAt = s.Time()
	case "delivered_at":
		d.DeliveredAt = s.Time()
	case "completed_at":
		d.CompletedAt = s.Time()
	case "cancelled_at":
		d.CancelledAt = s.Time()
	case "returned_at":
		d.ReturnedAt = s.Time()
	case "cancel_reason":
		d.CancelReason = s.Text()
	case "closed_at":
		d.ClosedAt = s.Time()
	case "close_reason":
		d.CloseReason = s.Text()
	case "backorder":
		d.Backorder = backorder(s)
	case "lines_version":
		d.LinesVersion = s.Uint64()
	case "payment":
		d.Payment = paymentObject(s)
	case "email":
		d.Email = s.Text()
	case "language":
		d.Language = s.Text()
	case "payment_reference":
		d.PaymentReference = s.Text()
	case "refund":
		d.Refund = amount(s)
	case "shipments":
		d.Shipments = shipments(s)
	default:
		return false
	}
	return true
}

func documentLines(s *jsonfast.Scanner) []Line {
	lines := make([]Line, 0, s.Guess())
	for a := (jsonfast.Array{}); s.Element(&a); {
		lines = append(lines, Line{})
		l := &lines[len(lines)-1]
		for o := (jsonfast.Object{}); s.Next(&o); {
			switch string(o.Name) {
			case "shipped":
				l.Shipped = s.Int64()
			case "returned":
				l.Returned = s.Int64()
			case "dropped":
				l.Dropped = s.Int64()
			default:
				if !l.member(s, o.Name) {
					s.GiveUp()
				}
			}
		}
	}
	return lines
}

func shipments(s *jsonfast.Scanner) []Shipment {
	parcels := []Shipment{}
	for a := (jsonfast.Array{}); s.Element(&a); {
		var p Shipment
		for o := (jsonfast.Object{}); s.Next(&o); {
			switch string(o.Name) {
			case "shipment":
				p.Shipment = s.Int()
			case "shipped_at":
				p.ShippedAt = s.Time()
			case "carrier":
				p.Carrier = s.Text()
			case "tracking_number":
				p.TrackingNumber = s.Text()
			case "lines":
				p.Lines = lineQuantities(s)
			default:
				s.GiveUp()
			}
		}
		parcels = append(parcels, p)
	}
	return parcels
}

// DecodeJSON reads the common form of the document.
func (d *Day) DecodeJSON(data []byte) bool {
	s := jsonfast.New(data)
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch string(o.Name) {
		case "day":
			d.Day = s.Text()
		case "status":
			d.Status = status(&s)
		case "currency":
			d.Currency = currency(&s)
		case "orders":
			d.Orders = s.Int64()
		case "units":
			d.Units = s.Int64()
		case "amount":
			d.Amount = sum(&s)
		default:
			s.GiveUp()
		}
	}
	return s.Done()
}
