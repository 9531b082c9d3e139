package order

import (
	"github.com/millrace-io/millrace/internal/jsonfast"
	"github.com/millrace-io/millrace/internal/money"
)

// The bodies that are read for every order read their own JSON in the forms in which it mostly comes: see package
// jsonfast. Whatever gives up here is read by the generic decoder, and tests hold the two to the same reading.

// Which part of its bytes the strings of an order take, one in so many. These are guesses: too low a part and the
// strings have a second allocation, too high and the order keeps memory that it does not use.
const (
	commandText = 3 // prices are strings there
	ownText     = 4 // of the event and the document
)

func fulfilment(s *jsonfast.Scanner) FulfilmentKind {
	return jsonfast.Word(s, FulfilmentManual, FulfilmentAuto)
}

func backorder(s *jsonfast.Scanner) Backorder {
	return jsonfast.Word(s, BackorderReject, BackorderWait, BackorderSplit)
}

func channel(s *jsonfast.Scanner) Channel {
	return jsonfast.Word(s, ChannelWeb, ChannelPOS, ChannelPhone, ChannelImport)
}

func status(s *jsonfast.Scanner) Status {
	return jsonfast.Word(s, StatusPlaced, StatusConfirmed, StatusPacked, StatusPartlyShipped, StatusShipped,
		StatusDelivered, StatusCompleted, StatusCancelled, StatusPartlyReturned, StatusReturned)
}

func currency(s *jsonfast.Scanner) (c money.Currency) {
	if c.UnmarshalText(s.Raw()) != nil {
		s.GiveUp()
	}
	return c
}

func price(s *jsonfast.Scanner) (p money.Price) {
	if p.UnmarshalText(s.Raw()) != nil {
		s.GiveUp()
	}
	return p
}

func decimal(s *jsonfast.Scanner) (d money.Decimal) {
	if d.UnmarshalText(s.Raw()) != nil {
		s.GiveUp()
	}
	return d
}

func sum(s *jsonfast.Scanner) (v money.Sum) {
	if v.UnmarshalText(s.Raw()) != nil {
		s.GiveUp()
	}
	return v
}

// amount needs both members, and the decimals of the currency, as [money.Amount] does.
func amount(s *jsonfast.Scanner) money.Amount {
	var d money.Decimal
	var c money.Currency
	members := 0
	for o := (jsonfast.Object{}); s.Next(&o); members++ {
		switch string(o.Name) {
		case "amount":
			d = decimal(s)
		case "currency":
			c = currency(s)
		default:
			s.GiveUp()
		}
	}
	if members != 2 || int(d.Places) != c.Exponent() {
		s.GiveUp()
	}
	return money.Amount{Minor: d.Minor, Currency: c}
}

func address(s *jsonfast.Scanner) *Address {
	a := new(Address)
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch string(o.Name) {
		case "name":
			a.Name = s.Text()
		case "line1":
			a.Line1 = s.Text()
		case "city":
			a.City = s.Text()
		case "postal_code":
			a.PostalCode = s.Text()
		case "country":
			a.Country = s.Text()
		default:
			s.GiveUp()
		}
	}
	return a
}

// empty reads a body that says nothing.
func empty(data []byte) bool {
	s := jsonfast.New(data)
	for o := (jsonfast.Object{}); s.Next(&o); {
		s.GiveUp()
	}
	return s.Done()
}

// DecodeJSON reads the common form of the command.
func (c *PlaceOrder) DecodeJSON(data []byte) bool {
	s := jsonfast.New(data)
	s.Reserve(len(data) / commandText)
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch string(o.Name) {
		case "id":
			c.ID = s.Text()
		case "customer_id":
			c.CustomerID = s.Text()
		case "email":
			c.Email = s.Text()
		case "language":
			c.Language = s.Text()
		case "channel":
			c.Channel = channel(&s)
		case "currency":
			c.Currency = s.Text()
		case "fulfilment":
			c.Fulfilment = fulfilment(&s)
		case "backorder":
			c.Backorder = backorder(&s)
		case "placed_at":
			at := s.Time()
			c.PlacedAt = &at
		case "ship_to":
			c.ShipTo = address(&s)
		case "lines":
			c.Lines = lineRequests(&s)
		default:
			s.GiveUp()
		}
	}
	return s.Done()
}

func lineRequests(s *jsonfast.Scanner) []LineRequest {
	n := s.Guess()
	lines := make([]LineRequest, 0, n)
	quantities := make([]int64, 0, n) // one allocation; where it grows, the lines before keep the old one
	for a := (jsonfast.Array{}); s.Element(&a); {
		lines = append(lines, LineRequest{})
		l := &lines[len(lines)-1]
		for o := (jsonfast.Object{}); s.Next(&o); {
			switch string(o.Name) {
			case "sku":
				l.SKU = s.Text()
			case "description":
				l.Description = s.Text()
			case "quantity":
				quantities = append(quantities, s.Int64())
				l.Quantity = &quantities[len(quantities)-1]
			case "unit_price":
				l.UnitPrice = s.Text()
			default:
				s.GiveUp()
			}
		}
	}
	return lines
}

// DecodeJSON reads the common form of the command.
func (c *ConfirmOrder) DecodeJSON(data []byte) bool {
	s := jsonfast.New(data)
	for o := (jsonfast.Object{}); s.Next(&o); {
		if string(o.Name) != "version" {
			s.GiveUp()
		}
		c.Version = s.Uint64()
	}
	return s.Done()
}

// DecodeJSON reads the common form of the command.
func (*PackOrder) DecodeJSON(data []byte) bool { return empty(data) }

// DecodeJSON reads the common form of the command.
func (*DeliverOrder) DecodeJSON(data []byte) bool { return empty(data) }

// DecodeJSON reads the common form of the command.
func (c *MarkOrderPaid) DecodeJSON(data []byte) bool {
	s := jsonfast.New(data)
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch string(o.Name) {
		case "reference":
			c.Reference = s.Text()
		case "amount":
			paid := amount(&s)
			c.Amount = &paid
		default:
			s.GiveUp()
		}
	}
	return s.Done()
}

// DecodeJSON reads the common form of the command.
func (c *ShipOrder) DecodeJSON(data []byte) bool {
	s := jsonfast.New(data)
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch string(o.Name) {
		case "lines":
			c.Lines = quantityRequests(&s)
		case "carrier":
			c.Carrier = s.Text()
		case "tracking_number":
			c.TrackingNumber = s.Text()
		default:
			s.GiveUp()
		}
	}
	return s.Done()
}

func quantityRequests(s *jsonfast.Scanner) []QuantityRequest {
	lines := make([]QuantityRequest, 0, s.Guess())
	quantities := make([]int64, 0, cap(lines)) // as in lineRequests
	for a := (jsonfast.Array{}); s.Element(&a); {
		lines = append(lines, QuantityRequest{})
		l := &lines[len(lines)-1]
		for o := (jsonfast.Object{}); s.Next(&o); {
			switch string(o.Name) {
			case "line":
				l.Line = s.Int()
			case "quantity":
				quantities = append(quantities, s.Int64())
				l.Quantity = &quantities[len(quantities)-1]
			default:
				s.GiveUp()
			}
		}
	}
	return lines
}
