package order

import (
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/money"
	"github.com/millrace-io/millrace/internal/payment"
)

// The states of the process, for people and for lists. Those from Completed on are ends.
const (
	FulfilmentReserving       = "reserving"
	FulfilmentBackordered     = "backordered"
	FulfilmentAuthorising     = "authorising"
	FulfilmentAwaitingPayment = "awaiting_payment"
	FulfilmentConfirming      = "confirming"
	FulfilmentPacking         = "packing"
	FulfilmentShipping        = "shipping"
	FulfilmentPartlyShipped   = "partly_shipped"
	FulfilmentDelivering      = "delivering"
	FulfilmentSettling        = "settling"
	FulfilmentUndoing         = "undoing"
	// These wait for a person, or for another day.
	FulfilmentPaymentDeclined = "payment_declined"
	FulfilmentCaptureDeclined = "capture_declined"
	FulfilmentRefundDeclined  = "refund_declined"
	FulfilmentStuck           = "stuck"

	FulfilmentCompleted      = "completed"
	FulfilmentClosed         = "closed"
	FulfilmentCancelled      = "cancelled"
	FulfilmentPartlyReturned = "partly_returned"
	FulfilmentReturned       = "returned"
)

func (f *Fulfilling) react(o *FulfilmentOptions) millrace.Reaction {
	if f.Status == "" {
		return millrace.Reaction{}
	}
	r := millrace.Reaction{Key: f.Customer, Steps: f.stockSteps(), Timers: f.timers(o), Calls: f.calls(o)}
	l := f.look()
	own := f.own(o, &l)
	if own.Name != "" && own.Name != f.Settled {
		r.Steps = append(r.Steps, own)
	}
	r.State, r.Waits = f.stands(o, &l)
	switch {
	case f.Stuck != "":
		r.State, r.Waits = FulfilmentStuck, f.Stuck
	case own.Name != "" && own.Name == f.Settled && f.Refused != "":
		// An event that explains it may be on its way, and then another step is wanted.
		r.State, r.Waits = FulfilmentStuck, own.Name+" was refused: "+f.Refused
	}
	switch r.State {
	case FulfilmentCompleted, FulfilmentClosed, FulfilmentCancelled, FulfilmentPartlyReturned, FulfilmentReturned:
		r.Done = true
	}
	return r
}

// own is the next step on the order itself; one without a name where there is none.
func (f *Fulfilling) own(o *FulfilmentOptions, l *outlook) millrace.Step {
	step := func(name string, command any) millrace.Step {
		return millrace.Step{Name: name, Stream: millrace.NewStream(CategoryOrder, f.ID), Command: command}
	}
	goes := f.ready(l) && f.payable()
	switch {
	case f.failing():
		return step(cancelStep(f.Fail), &CancelOrder{Reason: f.Fail})
	case f.Status == StatusPlaced && goes:
		return step(stepConfirm+"-"+strconv.FormatUint(f.LinesVersion, 10), &ConfirmOrder{Version: f.LinesVersion})
	case f.Status == StatusConfirmed && goes && o.drives(UntilPacked):
		return step(stepPack, &PackOrder{})
	case f.Status == StatusPartlyShipped && f.GaveUp && !l.asking() && !goes:
		return step("close", &CloseOrder{Reason: ReasonOutOfStock})
	case (f.Status == StatusPacked || f.Status == StatusPartlyShipped) && goes && o.drives(UntilShipped):
		return step(f.parcel(l))
	case (f.Status == StatusShipped || f.Status == StatusPartlyReturned) && !f.Delivered && o.drives(UntilDelivered):
		return step("deliver", &DeliverOrder{})
	}
	return millrace.Step{}
}

// cancelStep names the cancellation for a reason by its last word: what is cancelled for another one is another command.
func cancelStep(reason string) string {
	return "cancel-" + reason[strings.LastIndexByte(reason, '_')+1:]
}

// parcel is what is to be shipped next: everything, or the lines of which there is stock, whose name says which.
func (f *Fulfilling) parcel(l *outlook) (name string, command *ShipOrder) {
	name, command = "ship-"+strconv.Itoa(f.Parcels+1), &ShipOrder{}
	if l.whole() {
		return name, command
	}
	digest := fnv.New32a()
	for _, q := range f.shippable() {
		command.Lines = append(command.Lines, QuantityRequest{Line: q.Line, Quantity: new(q.Quantity)})
		_, _ = digest.Write(appendNumbers(nil, ' ', int64(q.Line), q.Quantity, 0)) // never fails
	}
	return name + "-" + strconv.FormatUint(uint64(digest.Sum32()), 16), command
}

// stands says where the order stands and what it waits for.
func (f *Fulfilling) stands(o *FulfilmentOptions, l *outlook) (state, waits string) {
	switch {
	case f.Status == StatusCancelled && f.declinedRefund():
		return f.refundDeclined()
	case f.Status == StatusCancelled && !f.settled(o, l):
		return FulfilmentUndoing, f.unsettled(l)
	case f.Status == StatusCancelled:
		return FulfilmentCancelled, f.otherRefund()
	case f.failing():
		return FulfilmentUndoing, "the order to be cancelled: " + f.Fail
	case f.cancellable():
		return f.standsBeforeShipping(o, l)
	case f.Status == StatusPartlyShipped:
		return f.standsPartlyShipped(o, l)
	}
	return f.standsShipped(o, l)
}

func (f *Fulfilling) standsBeforeShipping(o *FulfilmentOptions, l *outlook) (state, waits string) {
	switch {
	case l.asking():
		return FulfilmentReserving, count(l.missing, "stock of ", " SKU")
	case !f.ready(l):
		return FulfilmentBackordered, count(l.missing, "stock of ", " SKU")
	case !f.payable() && o.Payment == PaymentManual:
		return FulfilmentAwaitingPayment, f.Total.String() + " to be paid"
	case !f.payable():
		return FulfilmentAuthorising, "an authorisation of " + f.Total.String()
	case f.Status == StatusPlaced:
		return FulfilmentConfirming, "the order to be confirmed"
	case f.Status == StatusConfirmed:
		return FulfilmentPacking, "the order to be packed"
	}
	return FulfilmentShipping, "the order to be shipped"
}

func (f *Fulfilling) standsPartlyShipped(o *FulfilmentOptions, l *outlook) (state, waits string) {
	if state, waits := f.standsUnpaid(o); state != "" {
		return state, waits
	}
	if l.missing > 0 && !f.GaveUp {
		return FulfilmentPartlyShipped, count(l.missing, "stock of ", " SKU")
	}
	if f.GaveUp && !l.whole() {
		return FulfilmentPartlyShipped, "the rest to be given up"
	}
	return FulfilmentPartlyShipped, "the rest to be shipped"
}

// standsUnpaid is where an order stands that was shipped and whose money cannot be had.
func (f *Fulfilling) standsUnpaid(o *FulfilmentOptions) (state, waits string) {
	p := &f.Pay
	switch {
	case f.free() || p.Paid || f.Status == StatusReturned:
		return "", ""
	case o.Payment == PaymentManual:
		if f.Delivered {
			return FulfilmentAwaitingPayment, f.Total.String() + " to be paid"
		}
	case p.Declined:
		return FulfilmentPaymentDeclined, f.Total.String() + " to be paid by other means"
	case p.Captures > 0 && p.Captures <= maxPayAgain:
		return FulfilmentCaptureDeclined, "the next try to capture " + f.Total.String()
	case p.Captures > 0:
		return FulfilmentCaptureDeclined, f.Total.String() + " to be paid by other means"
	}
	return "", ""
}

func (f *Fulfilling) standsShipped(o *FulfilmentOptions, l *outlook) (state, waits string) {
	if state, waits := f.standsUnpaid(o); state != "" {
		return state, waits
	}
	switch {
	case f.declinedRefund():
		return f.refundDeclined()
	case f.Pay.Refunds >= maxRefunds && f.Pay.Ask == "" && f.owes():
		return FulfilmentStuck, "a refund by hand: there were as many as there can be"
	case f.GaveUp && l.short > 0:
		return FulfilmentStuck, count(l.missing, "stock of ", " SKU") + " that left without any"
	case f.Status == StatusShipped && !f.Delivered, f.Status == StatusPartlyReturned && !f.Delivered && o.drives(UntilDelivered):
		return FulfilmentDelivering, "the order to be delivered"
	case !f.settled(o, l):
		return FulfilmentSettling, f.unsettled(l)
	case f.Status == StatusReturned:
		return FulfilmentReturned, f.otherRefund()
	case f.Status == StatusPartlyReturned:
		return FulfilmentPartlyReturned, f.otherRefund()
	case f.Status == StatusDelivered:
		return FulfilmentSettling, f.Total.String() + " to be paid"
	case f.Closed:
		return FulfilmentClosed, f.otherRefund()
	}
	return FulfilmentCompleted, ""
}

func (f *Fulfilling) owes() bool {
	_, ok := f.owed()
	return ok
}

func (f *Fulfilling) declinedRefund() bool { return f.Pay.Failures > 0 && f.owes() }

func (f *Fulfilling) refundDeclined() (state, waits string) {
	d, _ := f.owed()
	owed := money.Amount{Minor: d.amount, Currency: f.Total.Currency}
	if f.Pay.Failures > maxPayAgain {
		return FulfilmentRefundDeclined, owed.String() + " to be given back by hand"
	}
	return FulfilmentRefundDeclined, "the next try to give " + owed.String() + " back"
}

// otherRefund says what is to be given back by who was paid, if not by the gateway.
func (f *Fulfilling) otherRefund() string {
	if !f.Pay.Other || f.Pay.Due == 0 {
		return ""
	}
	return money.Amount{Minor: f.Pay.Due, Currency: f.Total.Currency}.String() + " to be given back by other means"
}

// settled says whether nothing is under way any more.
func (f *Fulfilling) settled(o *FulfilmentOptions, l *outlook) bool {
	p := &f.Pay
	paying := o.Payment == PaymentGateway && (p.Ask != "" || len(p.Standing) > 0 || f.owes())
	return l.open+len(f.Restocks) == 0 && !paying
}

// unsettled says what is under way.
func (f *Fulfilling) unsettled(l *outlook) string {
	n := l.underWay() + len(f.Restocks)
	switch kind := f.Pay.kind(); {
	case n > 0:
		return count(n, "", " command") + " on stock"
	case kind == payment.Authorise:
		return "the answer to an authorisation"
	case kind != "":
		return "the answer to a " + string(kind)
	}
	return "the rest to be settled"
}

// count is a number of things in words.
func count(n int, before, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return before + strconv.Itoa(n) + thing
}
