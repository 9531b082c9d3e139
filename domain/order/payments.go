package order

import (
	"slices"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonfast"
	"github.com/millrace-io/millrace/internal/money"
	"github.com/millrace-io/millrace/internal/payment"
)

// What a payment gateway answered is a fact on the order's stream, as what a customer was told is one: documents can be lost
// with the newest facts that they follow from, and then nobody must be charged again. That it is to be asked for an
// authorisation is a fact before it is: captures, voids and refunds follow from events, and whoever hears those asks again;
// an authorisation hangs on stock and on timers too, and would be asked for by nobody once the order is cancelled.

// RequestPayment says that the gateway is about to be asked for an authorisation. Nobody is asked before it is decided, and
// nobody if it is refused.
type RequestPayment struct {
	Name   string       `json:"name"` // of the call: authorise-1
	Amount money.Amount `json:"amount"`
}

// Validate checks the form.
func (c *RequestPayment) Validate() []millrace.FieldError {
	var f faults
	f.call(c.Name, c.Amount)
	return f
}

// call checks the name of a call and its amount.
func (f *faults) call(name string, amount money.Amount) {
	f.addIf("/name", idFault(name, millrace.MaxStepName, true))
	switch {
	case amount == money.Amount{}:
		f.add("/amount", missing)
	case amount.Minor < 0:
		f.add("/amount", "must not be below zero")
	}
}

// RecordPayment says what a call to the payment gateway came to, for good. Its command's id is that of the call. Nothing that
// happened in the world is refused: whatever the order's status, it is recorded; but once.
type RecordPayment struct {
	Name    string         `json:"name"` // authorise-1
	Kind    payment.Kind   `json:"kind"`
	Status  payment.Status `json:"status"`
	Payment string         `json:"payment,omitempty"` // the gateway's name for the authorisation
	Amount  money.Amount   `json:"amount"`
	Code    string         `json:"code,omitempty"` // why it was declined
}

// Validate checks the form.
func (c *RecordPayment) Validate() []millrace.FieldError {
	var f faults
	f.call(c.Name, c.Amount)
	switch c.Kind {
	case payment.Authorise, payment.Capture, payment.Void, payment.Refund:
	default:
		f.add("/kind", "must be authorise, capture, void or refund")
	}
	switch c.Status {
	case payment.Approved, payment.Declined:
	default:
		f.add("/status", "must be approved or declined")
	}
	f.text("/payment", c.Payment, MaxReason, false)
	f.text("/code", c.Code, MaxReason, false)
	return f
}

// OrderPaymentRequested: the gateway is, or may have been, asked for an authorisation.
type OrderPaymentRequested struct {
	At     time.Time    `json:"at"`
	Name   string       `json:"name"`
	Amount money.Amount `json:"amount"`
}

// OrderPaymentAuthorised: the gateway has set money aside.
type OrderPaymentAuthorised struct {
	At      time.Time    `json:"at"`
	Name    string       `json:"name"`
	Payment string       `json:"payment,omitempty"`
	Amount  money.Amount `json:"amount"`
}

// OrderPaymentDeclined: the gateway has said no.
type OrderPaymentDeclined struct {
	At      time.Time    `json:"at"`
	Name    string       `json:"name"`
	Kind    payment.Kind `json:"kind"` // what it was asked for
	Payment string       `json:"payment,omitempty"`
	Amount  money.Amount `json:"amount"`
	Code    string       `json:"code,omitempty"`
}

// OrderPaymentVoided: the gateway has let money go that it had set aside.
type OrderPaymentVoided struct {
	At      time.Time    `json:"at"`
	Name    string       `json:"name"`
	Payment string       `json:"payment,omitempty"`
	Amount  money.Amount `json:"amount"`
}

// OrderRefunded: the gateway has given money back.
type OrderRefunded struct {
	At      time.Time    `json:"at"`
	Name    string       `json:"name"`
	Payment string       `json:"payment,omitempty"`
	Amount  money.Amount `json:"amount"`
}

// PaymentStatus says how far an order's payment at the gateway has come.
type PaymentStatus string

// The statuses of a payment.
const (
	PaymentRequested  PaymentStatus = "requested"
	PaymentAuthorised PaymentStatus = "authorised"
	PaymentDeclined   PaymentStatus = "declined"
	PaymentCaptured   PaymentStatus = "captured"
	PaymentVoided     PaymentStatus = "voided"
)

// Payment is what the gateway did for an order. It is never changed.
type Payment struct {
	Status     PaymentStatus `json:"status"`
	Payment    string        `json:"payment,omitempty"`   // the gateway's name for it
	Code       string        `json:"code,omitempty"`      // why it last said no
	Authorised money.Amount  `json:"authorised,omitzero"` // by the last authorisation
	Captured   money.Amount  `json:"captured,omitzero"`   // taken
	Refunded   money.Amount  `json:"refunded,omitzero"`   // given back of it
	Recorded   []string      `json:"recorded,omitempty"`  // the calls whose answers are known
	Requested  string        `json:"requested,omitempty"` // the authorisation whose answer is not known
}

func (o *Order) recorded() []string {
	if o.Payment == nil {
		return nil
	}
	return o.Payment.Recorded
}

func (o *Order) request(c *RequestPayment, at time.Time) ([]any, *millrace.Refusal) {
	pending := ""
	if o.Payment != nil {
		pending = o.Payment.Requested
	}
	switch {
	case pending == c.Name || slices.Contains(o.recorded(), c.Name):
		return nil, nil
	case o.Status == StatusCancelled || o.Status == StatusReturned:
		return nil, o.wrongStatus(CodeOrderNotPayable, "paid")
	case o.Paid:
		return nil, conflict(CodeOrderAlreadyPaid, "the order is paid already")
	case c.Amount != o.Total:
		return nil, rule(CodeAmountMismatch, "the amount is not the total of the order",
			millrace.FieldError{Pointer: "/amount", Detail: "must be the total of the order"})
	case pending != "":
		return nil, conflict(CodePaymentPending, "the answer to another authorisation of the order is not known yet")
	}
	return []any{&OrderPaymentRequested{At: at, Name: c.Name, Amount: c.Amount}}, nil
}

func (o *Order) record(c *RecordPayment, at time.Time) ([]any, *millrace.Refusal) {
	switch {
	case slices.Contains(o.recorded(), c.Name):
		return nil, nil
	case c.Amount.Currency != o.Currency: // this did not happen to this order
		return nil, rule(CodeAmountMismatch, "the amount is not in the order's currency",
			millrace.FieldError{Pointer: "/amount", Detail: "must be in the order's currency"})
	case c.Status == payment.Declined:
		return []any{&OrderPaymentDeclined{At: at, Name: c.Name, Kind: c.Kind, Payment: c.Payment, Amount: c.Amount, Code: c.Code}}, nil
	}
	switch c.Kind {
	case payment.Authorise:
		return []any{&OrderPaymentAuthorised{At: at, Name: c.Name, Payment: c.Payment, Amount: c.Amount}}, nil
	case payment.Void:
		return []any{&OrderPaymentVoided{At: at, Name: c.Name, Payment: c.Payment, Amount: c.Amount}}, nil
	case payment.Refund:
		return []any{&OrderRefunded{At: at, Name: c.Name, Payment: c.Payment, Amount: c.Amount}}, nil
	}
	events := []any{&OrderPaid{At: at, Name: c.Name, Reference: c.Payment, Amount: c.Amount}}
	if o.Status == StatusDelivered {
		events = append(events, &OrderCompleted{At: at})
	}
	return events, nil
}

// settle works on the copy that evolveOrder returns.
func (o *Order) settle(event any) {
	var p Payment
	if o.Payment != nil {
		p = *o.Payment
	}
	known := func(at time.Time, name, gateway string) {
		o.UpdatedAt = at
		p.Recorded = append(slices.Clip(p.Recorded), name)
		if p.Requested == name {
			p.Requested = ""
		}
		if gateway != "" {
			p.Payment = gateway
		}
	}
	switch e := event.(type) {
	case *OrderPaid:
		o.UpdatedAt = e.At
		if !o.Paid {
			o.PaidAt, o.Paid, o.PaymentReference = e.At, true, e.Reference
		}
		if e.Name == "" {
			return
		}
		known(e.At, e.Name, e.Reference)
		p.Status, p.Captured = PaymentCaptured, plus(p.Captured, e.Amount)
	case *OrderPaymentRequested:
		o.UpdatedAt = e.At
		p.Status, p.Requested = PaymentRequested, e.Name
	case *OrderPaymentAuthorised:
		known(e.At, e.Name, e.Payment)
		p.Status, p.Authorised, p.Code = PaymentAuthorised, e.Amount, ""
	case *OrderPaymentDeclined:
		known(e.At, e.Name, "")
		p.Code = e.Code
		if e.Kind == payment.Authorise || p.Status == "" {
			p.Status = PaymentDeclined
		}
	case *OrderPaymentVoided:
		known(e.At, e.Name, e.Payment)
		p.Status = PaymentVoided
	case *OrderRefunded:
		known(e.At, e.Name, e.Payment)
		p.Refunded = plus(p.Refunded, e.Amount)
		if p.Status == "" {
			p.Status = PaymentCaptured
		}
	}
	o.Payment = &p
}

// plus adds amounts of an order's one currency. Amounts of orders are far from the end of 64 bits.
func plus(a, b money.Amount) money.Amount {
	return money.Amount{Minor: a.Minor + b.Minor, Currency: b.Currency}
}

func paymentObject(s *jsonfast.Scanner) *Payment {
	p := new(Payment)
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch string(o.Name) {
		case "status":
			p.Status = jsonfast.Word(s, PaymentRequested, PaymentAuthorised, PaymentDeclined, PaymentCaptured, PaymentVoided)
		case "payment":
			p.Payment = s.Text()
		case "code":
			p.Code = s.Text()
		case "authorised":
			p.Authorised = amount(s)
		case "captured":
			p.Captured = amount(s)
		case "refunded":
			p.Refunded = amount(s)
		case "recorded":
			p.Recorded = []string{}
			for a := (jsonfast.Array{}); s.Element(&a); {
				p.Recorded = append(p.Recorded, s.Text())
			}
		case "requested":
			p.Requested = s.Text()
		default:
			s.GiveUp()
		}
	}
	return p
}

func (o *object) payment(p *Payment) {
	if p == nil {
		return
	}
	o.Text(`,"payment":{"status":`, string(p.Status))
	o.TextIf(`,"payment":`, p.Payment)
	o.TextIf(`,"code":`, p.Code)
	o.amountIf(`,"authorised":`, p.Authorised)
	o.amountIf(`,"captured":`, p.Captured)
	o.amountIf(`,"refunded":`, p.Refunded)
	for i, name := range p.Recorded {
		literal := ","
		if i == 0 {
			literal = `,"recorded":[`
		}
		o.Text(literal, name)
	}
	if len(p.Recorded) > 0 {
		o.Name("]")
	}
	o.TextIf(`,"requested":`, p.Requested)
	o.Name("}")
}

func (o *object) amountIf(literal string, a money.Amount) {
	if a != (money.Amount{}) {
		o.amount(literal, a)
	}
}

// DecodeJSON reads the common form of the command.
func (c *RecordPayment) DecodeJSON(data []byte) bool {
	s := jsonfast.New(data)
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch string(o.Name) {
		case "name":
			c.Name = s.Text()
		case "kind":
			c.Kind = jsonfast.Word(&s, payment.Authorise, payment.Capture, payment.Void, payment.Refund)
		case "status":
			c.Status = jsonfast.Word(&s, payment.Approved, payment.Declined)
		case "payment":
			c.Payment = s.Text()
		case "amount":
			c.Amount = amount(&s)
		case "code":
			c.Code = s.Text()
		default:
			s.GiveUp()
		}
	}
	return s.Done()
}

// DecodeJSON reads the common form of the command.
func (c *RequestPayment) DecodeJSON(data []byte) bool {
	return authorisationObject(data, nil, &c.Name, nil, &c.Amount)
}

// DecodeJSON reads the common form of the event.
func (e *OrderPaymentRequested) DecodeJSON(data []byte) bool {
	return authorisationObject(data, &e.At, &e.Name, nil, &e.Amount)
}

// DecodeJSON reads the common form of the event.
func (e *OrderPaymentAuthorised) DecodeJSON(data []byte) bool {
	return authorisationObject(data, &e.At, &e.Name, &e.Payment, &e.Amount)
}

// authorisationObject reads what is said of an authorisation. Members that a body does not have are nil.
func authorisationObject(data []byte, at *time.Time, name, gateway *string, of *money.Amount) bool {
	s := jsonfast.New(data)
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch member := string(o.Name); {
		case member == "at" && at != nil:
			*at = s.Time()
		case member == "name":
			*name = s.Text()
		case member == "payment" && gateway != nil:
			*gateway = s.Text()
		case member == "amount":
			*of = amount(&s)
		default:
			s.GiveUp()
		}
	}
	return s.Done()
}
