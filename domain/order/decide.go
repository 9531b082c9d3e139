package order

import (
	"fmt"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/money"
)

// The codes of refusals of orders. They are for programs and never change.
const (
	CodeOrderNotFound       = "order_not_found"
	CodeOrderExists         = "order_exists"
	CodeOrderNotChangeable  = "order_not_changeable"
	CodeOrderNotConfirmable = "order_not_confirmable"
	CodeOrderNotCancellable = "order_not_cancellable"
	CodeOrderNotPayable     = "order_not_payable"
	CodeOrderAlreadyPaid    = "order_already_paid"
	CodePaymentPending      = "payment_pending"
	CodeOrderNotPackable    = "order_not_packable"
	CodeOrderNotShippable   = "order_not_shippable"
	CodeOrderNotDeliverable = "order_not_deliverable"
	CodeOrderNotReturnable  = "order_not_returnable"
	CodeOrderNotClosable    = "order_not_closable"
	CodeLinesChanged        = "lines_changed"

	CodeQuantityNotShippable  = "quantity_not_shippable"
	CodeQuantityNotReturnable = "quantity_not_returnable"
	CodeTooManyShipments      = "too_many_shipments"

	CodeLineInvalid     = "line_invalid"
	CodeLineUnknown     = "line_unknown"
	CodeTotalTooLarge   = "total_too_large"
	CodeAmountMismatch  = "amount_mismatch"
	CodeIDMismatch      = "id_mismatch"
	CodeIDInvalid       = "id_invalid"
	CodeCurrencyInvalid = "currency_invalid"
)

func rule(code, detail string, errors ...millrace.FieldError) *millrace.Refusal {
	return &millrace.Refusal{Kind: millrace.RefusedRule, Code: code, Detail: detail, Errors: errors}
}

func conflict(code, detail string) *millrace.Refusal {
	return &millrace.Refusal{Kind: millrace.RefusedConflict, Code: code, Detail: detail}
}

func notFound(code, detail string) *millrace.Refusal {
	return &millrace.Refusal{Kind: millrace.RefusedNotFound, Code: code, Detail: detail}
}

// wrongStatus refuses what does not fit the order's status. The status is ours, not an input.
func (o *Order) wrongStatus(code, wish string) *millrace.Refusal {
	return conflict(code, "an order that is "+string(o.Status)+" cannot be "+wish)
}

func decideOrder(o *Order, command any, at time.Time) ([]any, *millrace.Refusal) {
	at = at.UTC()
	if c, ok := command.(*PlaceOrder); ok {
		return o.place(c, at)
	}
	if !o.Exists() {
		return nil, notFound(CodeOrderNotFound, "there is no order with this id")
	}
	switch c := command.(type) {
	case *ChangeOrder:
		return o.change(c, at)
	case *ConfirmOrder:
		return o.confirm(c, at)
	case *PackOrder:
		return o.step(StatusConfirmed, StatusPacked, &OrderPacked{At: at}, CodeOrderNotPackable, "packed")
	case *CancelOrder:
		return o.cancel(c, at)
	case *CloseOrder:
		return o.close(c, at)
	case *MarkOrderPaid:
		return o.pay(c, at)
	case *RequestPayment:
		return o.request(c, at)
	case *RecordPayment:
		return o.record(c, at)
	case *ShipOrder:
		return o.shipments(c, at)
	case *DeliverOrder:
		return o.deliver(at)
	case *ReturnOrder:
		return o.giveBack(c, at)
	}
	panic(fmt.Sprintf("order: command %T is not declared", command))
}

// step is a command that leads from one status to the next and does nothing else.
func (o *Order) step(from, to Status, event any, code, wish string) ([]any, *millrace.Refusal) {
	switch o.Status {
	case from:
		return []any{event}, nil
	case to:
		return nil, nil
	}
	return nil, o.wrongStatus(code, wish)
}

func (o *Order) place(c *PlaceOrder, at time.Time) ([]any, *millrace.Refusal) {
	if c.ID != "" && c.ID != o.ID {
		return nil, rule(CodeIDMismatch, "the id in the body is not the id of the order",
			millrace.FieldError{Pointer: "/id", Detail: "must be the id of the order"})
	}
	e := &OrderPlaced{
		At: at, CustomerID: c.CustomerID, Email: c.Email, Language: c.Language, Channel: c.Channel, Fulfilment: c.Fulfilment,
		Backorder: c.Backorder, PlacedAt: at, ShipTo: c.ShipTo,
	}
	if e.Channel == "" {
		e.Channel = ChannelWeb
	}
	if e.Fulfilment == "" {
		e.Fulfilment = FulfilmentAuto
	}
	if e.Backorder == BackorderReject {
		e.Backorder = ""
	}
	if e.ShipTo != nil && *e.ShipTo == (Address{}) {
		e.ShipTo = nil
	}
	if c.PlacedAt != nil {
		e.PlacedAt = c.PlacedAt.UTC()
	}
	refusal := e.price(c)
	if o.Exists() {
		if refusal == nil && o.holds(e, c.PlacedAt != nil) {
			return nil, nil
		}
		return nil, conflict(CodeOrderExists, "there is an order with this id and another content")
	}
	if detail := IDFault(o.ID); detail != "" {
		return nil, rule(CodeIDInvalid, "the order's id "+detail)
	}
	if refusal != nil {
		return nil, refusal
	}
	return []any{e}, nil
}

func (e *OrderPlaced) price(c *PlaceOrder) *millrace.Refusal {
	var refusal *millrace.Refusal
	if e.Currency, refusal = parseCurrency(c.Currency); refusal != nil {
		return refusal
	}
	e.Lines, e.Units, e.Total, refusal = priceLines(c.Lines, e.Currency)
	return refusal
}

// holds says whether the order has, as it stands now, the content of a placing.
func (o *Order) holds(e *OrderPlaced, timed bool) bool {
	var to Address
	if e.ShipTo != nil {
		to = *e.ShipTo
	}
	return o.CustomerID == e.CustomerID && o.Email == e.Email && o.Language == e.Language && o.Channel == e.Channel && o.Currency == e.Currency &&
		o.Fulfilment == e.Fulfilment && o.Backorder == e.Backorder && (!timed || o.PlacedAt.Equal(e.PlacedAt)) && o.Address() == to && o.hasLines(e.Lines)
}

func (o *Order) hasLines(lines []OrderedLine) bool {
	if len(lines) != len(o.Lines) {
		return false
	}
	for i := range lines {
		if lines[i] != o.Lines[i].OrderedLine {
			return false
		}
	}
	return true
}

func parseCurrency(code string) (money.Currency, *millrace.Refusal) {
	c, ok := money.ParseCurrency(code)
	if !ok { // Validate has seen to it, where it was asked
		return 0, rule(CodeCurrencyInvalid, "the currency is not known",
			millrace.FieldError{Pointer: "/currency", Detail: "must be a currency code of ISO 4217"})
	}
	return c, nil
}

func (o *Order) change(c *ChangeOrder, at time.Time) ([]any, *millrace.Refusal) {
	if o.Status != StatusPlaced {
		return nil, o.wrongStatus(CodeOrderNotChangeable, "changed")
	}
	var events []any
	if c.Lines != nil {
		lines, units, total, refusal := priceLines(c.Lines, o.Currency)
		if refusal != nil {
			return nil, refusal
		}
		if !o.hasLines(lines) {
			if o.Paid {
				return nil, conflict(CodeOrderNotChangeable, "the lines of an order that is paid cannot be changed")
			}
			events = append(events, &OrderLinesChanged{At: at, Lines: lines, Units: units, Total: total})
		}
	}
	if c.ShipTo != nil && *c.ShipTo != o.Address() {
		events = append(events, &OrderAddressChanged{At: at, ShipTo: *c.ShipTo})
	}
	return events, nil
}

func (o *Order) confirm(c *ConfirmOrder, at time.Time) ([]any, *millrace.Refusal) {
	if o.Status == StatusPlaced && c.Version != 0 && o.LinesVersion > c.Version {
		return nil, conflict(CodeLinesChanged, "the lines were changed since that version")
	}
	return o.step(StatusPlaced, StatusConfirmed, &OrderConfirmed{At: at}, CodeOrderNotConfirmable, "confirmed")
}

func (o *Order) close(c *CloseOrder, at time.Time) ([]any, *millrace.Refusal) {
	switch {
	case !o.ClosedAt.IsZero():
		return nil, nil
	case o.Status != StatusPartlyShipped:
		return nil, o.wrongStatus(CodeOrderNotClosable, "closed")
	}
	lines := o.everything((*Line).unshipped)
	return []any{&OrderClosed{At: at, Reason: c.Reason, Lines: lines, Refund: o.share(lines)}}, nil
}

func (o *Order) cancel(c *CancelOrder, at time.Time) ([]any, *millrace.Refusal) {
	switch o.Status {
	case StatusCancelled:
		return nil, nil
	case StatusPlaced, StatusConfirmed, StatusPacked:
		e := &OrderCancelled{At: at, Reason: c.Reason}
		if o.Paid {
			e.Refund = o.Total
		}
		return []any{e}, nil
	}
	return nil, o.wrongStatus(CodeOrderNotCancellable, "cancelled")
}

func (o *Order) pay(c *MarkOrderPaid, at time.Time) ([]any, *millrace.Refusal) {
	if c.Amount != nil && *c.Amount != o.Total {
		return nil, rule(CodeAmountMismatch, "the amount is not the total of the order",
			millrace.FieldError{Pointer: "/amount", Detail: "must be the total of the order"})
	}
	switch {
	case o.Paid && (c.Reference == "" || c.Reference == o.PaymentReference):
		return nil, nil
	case o.Paid:
		return nil, conflict(CodeOrderAlreadyPaid, "the order is paid already, under another reference")
	case o.Status == StatusCancelled || o.Status == StatusReturned:
		return nil, o.wrongStatus(CodeOrderNotPayable, "paid")
	}
	events := []any{&OrderPaid{At: at, Reference: c.Reference, Amount: o.Total}}
	if o.Status == StatusDelivered {
		events = append(events, &OrderCompleted{At: at})
	}
	return events, nil
}

func (o *Order) shipments(c *ShipOrder, at time.Time) ([]any, *millrace.Refusal) {
	switch {
	case o.Status == StatusShipped && len(c.Lines) == 0:
		return nil, nil
	case o.Status != StatusPacked && o.Status != StatusPartlyShipped:
		return nil, o.wrongStatus(CodeOrderNotShippable, "shipped")
	case len(o.Shipments) == MaxShipments:
		return nil, conflict(CodeTooManyShipments, "the order has as many shipments as it can have")
	}
	lines, whole, refusal := o.pick(c.Lines, (*Line).unshipped,
		CodeQuantityNotShippable, "more than is left to ship")
	if refusal != nil {
		return nil, refusal
	}
	parcelled := len(lines)
	for i := range o.Shipments {
		parcelled += len(o.Shipments[i].Lines)
	}
	if parcelled > MaxShipmentLines {
		return nil, conflict(CodeTooManyShipments, "the shipments of the order have as many lines as they can have")
	}
	return []any{&OrderShipped{
		At: at, Shipment: len(o.Shipments) + 1, Lines: lines, Whole: whole, Carrier: c.Carrier, TrackingNumber: c.TrackingNumber,
	}}, nil
}

func (o *Order) deliver(at time.Time) ([]any, *millrace.Refusal) {
	switch {
	case !o.DeliveredAt.IsZero():
		return nil, nil
	case o.Status == StatusPartlyReturned:
		return []any{&OrderDelivered{At: at}}, nil
	case o.Status != StatusShipped:
		return nil, o.wrongStatus(CodeOrderNotDeliverable, "delivered")
	case o.Paid || o.Total.Minor == 0:
		return []any{&OrderDelivered{At: at}, &OrderCompleted{At: at}}, nil
	}
	return []any{&OrderDelivered{At: at}}, nil
}

func (o *Order) giveBack(c *ReturnOrder, at time.Time) ([]any, *millrace.Refusal) {
	switch o.Status {
	case StatusShipped, StatusDelivered, StatusCompleted, StatusPartlyReturned:
	case StatusReturned:
		if len(c.Lines) == 0 {
			return nil, nil
		}
		fallthrough
	default:
		return nil, o.wrongStatus(CodeOrderNotReturnable, "returned")
	}
	lines, whole, refusal := o.pick(c.Lines, func(l *Line) int64 { return l.Shipped - l.Returned },
		CodeQuantityNotReturnable, "more than was shipped and is not back yet")
	if refusal != nil {
		return nil, refusal
	}
	return []any{&OrderReturned{
		At: at, Reason: c.Reason, Lines: lines, Whole: whole, Scrapped: c.Restock != nil && !*c.Restock, Refund: o.share(lines),
	}}, nil
}
