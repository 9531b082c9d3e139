package order

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/money"
	"github.com/millrace-io/millrace/internal/payment"
)

// Calls are named as steps on stock are: a name says what is asked for, whatever order the process hears of things in. An
// authorisation has the number of the version of the lines that it is for, and its void has the same; captures count those that
// were declined before; a refund has the number of what it is for.
//
// Whether an authorisation is wanted does not follow from events alone. So who makes the call says on the order that it is about to
// be asked for, and asks only when that is a fact: whichever life comes next hears of it, has its answer, and undoes it where the order
// has ended.

// refundAll is the refund of all that was captured, of an order that was paid twice or never sent.
const refundAll = 0

// hearPayment takes in what became of the payment. It may be told of calls that it does not know to have made.
func (f *Fulfilling) hearPayment(in *millrace.Input) {
	p := &f.Pay
	answered := func(name string) (n uint64, tries int) {
		p.answered(name)
		return callNumber(name)
	}
	switch e := in.Event.(type) {
	case *OrderPaid:
		if e.Name == "" {
			p.Other = !p.Paid
			p.Paid = true
			return
		}
		answered(e.Name)
		p.gone(func(a authorisation) bool { return a.Payment == e.Reference })
		p.Paid, p.Payment, p.Failures, p.AgainAt = true, e.Reference, 0, time.Time{}
		p.Captured += e.Amount.Minor
	case *OrderPaymentRequested:
		n, _ := callNumber(e.Name)
		if p.Number = max(p.Number, n); p.Ask != e.Name {
			p.Pending = append(slices.Clip(p.Pending), authorisation{Number: n, Amount: e.Amount.Minor})
		}
	case *OrderPaymentAuthorised:
		n, _ := answered(e.Name)
		p.Number = max(p.Number, n)
		p.Pending = without(p.Pending, func(a authorisation) bool { return a.Number == n })
		p.Standing = append(slices.Clip(p.Standing), authorisation{n, e.Amount.Minor, e.Payment})
	case *OrderPaymentVoided:
		n, _ := answered(e.Name)
		p.gone(func(a authorisation) bool { return a.Number == n })
	case *OrderRefunded:
		n, _ := answered(e.Name)
		p.Refunded += e.Amount.Minor
		p.Failures, p.AgainAt = 0, time.Time{}
		p.Dues = slices.DeleteFunc(slices.Clone(p.Dues), func(d due) bool { return uint64(d.n) == n }) //nolint:gosec // a count
	case *OrderPaymentDeclined:
		n, tries := answered(e.Name)
		f.declined(e.Kind, n, tries, in.At)
	}
	if len(p.Dues) == 0 {
		p.Dues = nil
	}
}

// gone takes away authorisations that do not stand any more.
func (p *paying) gone(which func(authorisation) bool) { p.Standing = without(p.Standing, which) }

// without are the authorisations but for some, in a list that the state before does not share.
func without(as []authorisation, which func(authorisation) bool) []authorisation {
	if as = slices.DeleteFunc(slices.Clone(as), which); len(as) == 0 {
		return nil
	}
	return as
}

// withdrawn takes in that an authorisation was not asked for after all: what says so first was refused, by what happened to the order
// meanwhile, of which the process hears. It was cancelled or paid, its lines were changed, or another life has asked for another one.
func (f *Fulfilling) withdrawn(call string, result []byte) {
	p := &f.Pay
	if p.Ask != call || p.kind() != payment.Authorise {
		return
	}
	var r payment.Result
	if jsonx.Unmarshal(result, &r) != nil || r.Status != payment.Withdrawn {
		return // the event says what came of it
	}
	if p.answered(call); r.Code == payment.CodeDead {
		f.stick("the request for " + call + " is a dead letter")
	}
}

// RequestStep names the step that says that an authorisation is about to be asked for, by the name of its call: both have one number.
func RequestStep(call string) string {
	return "request" + strings.TrimPrefix(call, string(payment.Authorise))
}

// answered takes in that nothing more is to come of a call.
func (p *paying) answered(name string) {
	if p.Ask == name {
		p.Ask, p.Amount, p.Of = "", 0, ""
	}
}

// safe is the authorisation that the order's total can be captured of, the newest of them.
func (f *Fulfilling) safe() (a authorisation, ok bool) {
	for _, one := range f.Pay.Standing {
		if one.Amount >= f.Total.Minor && (!ok || one.Number > a.Number) {
			a, ok = one, true
		}
	}
	return a, ok
}

// idle is an authorisation that is not needed.
func (f *Fulfilling) idle() (a authorisation, ok bool) {
	needed, ok := f.safe()
	for _, one := range f.Pay.Standing {
		if !ok || f.free() || f.Pay.Paid || f.over() || one != needed {
			return one, true
		}
	}
	return a, false
}

// over says that there is nothing to pay for any more.
func (f *Fulfilling) over() bool { return f.Status == StatusCancelled || f.Status == StatusReturned }

// callNumber is the number in a call's name, and the try, from 1.
func callNumber(name string) (n uint64, try int) {
	part := strings.Split(name, "-")
	if try = 1; len(part) > 1 {
		n, _ = strconv.ParseUint(part[1], 10, 64) // a name that is not ours has none
	}
	if len(part) > 2 {
		try, _ = strconv.Atoi(part[2])
	}
	return n, try
}

// declined takes in that the gateway said no.
func (f *Fulfilling) declined(kind payment.Kind, n uint64, try int, at time.Time) {
	p := &f.Pay
	switch kind {
	case payment.Authorise:
		p.Pending = without(p.Pending, func(a authorisation) bool { return a.Number == n })
		if p.Number = max(p.Number, n); n == f.LinesVersion || f.Parcels > 0 {
			p.Declined = true
		}
		if f.cancellable() {
			f.fail(ReasonPaymentDeclined)
		}
		return
	case payment.Void: // what cannot be voided lapses by itself
		p.gone(func(a authorisation) bool { return a.Number == n })
		return
	case payment.Capture:
		p.Captures++
	case payment.Refund:
		p.Dues = slices.Clone(p.Dues)
		for i := range p.Dues {
			if d := &p.Dues[i]; uint64(d.n) == n { //nolint:gosec // a count
				d.tries = max(d.tries, try)
			}
		}
	}
	if p.Failures++; p.Failures <= maxPayAgain {
		p.AgainAt = at.Add(payAgain)
	}
}

// owe takes in that goods came back or were given up that had been sold for an amount.
func (p *paying) owe(amount int64) {
	if amount > 0 {
		p.Numbered++
		p.Due += amount
		p.Dues = append(slices.Clip(p.Dues), due{n: p.Numbered, amount: amount})
	}
}

// free says whether an order costs nothing.
func (f *Fulfilling) free() bool { return f.Total.Minor == 0 }

// payable says whether the order's money is there or safe, so that goods may be sent.
func (f *Fulfilling) payable() bool {
	a, ok := f.safe()
	voiding, _ := callNumber(f.Pay.Ask)
	return f.free() || f.Pay.Paid || ok && (f.Pay.kind() != payment.Void || voiding != a.Number)
}

// owed is the next thing that is to be given back of what was captured. What the order was paid by otherwise the process has
// not and does not give back; what it took besides, it does.
func (f *Fulfilling) owed() (d due, ok bool) {
	p := &f.Pay
	left := p.Captured - p.Refunded
	switch {
	case left <= 0:
		return due{}, false
	case p.Other || f.Status == StatusCancelled:
		return due{n: refundAll, amount: left, tries: p.Failures}, true
	case len(p.Dues) == 0:
		return due{}, false
	}
	d = p.Dues[0]
	d.amount = min(d.amount, left)
	return d, true
}

// planPayment decides on the next call. There is one at a time: what the gateway holds for an order is never more than one
// authorisation, and what was asked for is wanted until its answer is a fact, because it may have been done.
func (f *Fulfilling) planPayment(o *FulfilmentOptions, at time.Time, l *outlook) {
	p := &f.Pay
	switch waits := f.cancellable() && !f.payable(); {
	case !waits, p.Ask == "" && !f.ready(l):
		p.Since = time.Time{}
	case p.Since.IsZero() && !f.failing():
		p.Since = at
	}
	if o.Payment == PaymentManual || p.Ask != "" {
		return
	}
	d, owed := f.owed()
	safe, is := f.safe()
	idle, isIdle := f.idle()
	switch {
	case len(p.Pending) > 0: // it was asked for in another life
		p.Authorises++
		p.ask(payment.Authorise, p.Pending[0].Number, 0, p.Pending[0].Amount, "")
	case owed:
		if p.AgainAt.IsZero() && p.Failures <= maxPayAgain && p.Refunds < maxRefunds {
			p.Refunds++
			p.ask(payment.Refund, uint64(d.n), d.tries, d.amount, p.Payment) //nolint:gosec // a count
		}
	case isIdle:
		p.ask(payment.Void, idle.Number, 0, idle.Amount, idle.Payment)
	case f.free() || p.Paid || f.over():
	case is:
		if f.Parcels > 0 && p.AgainAt.IsZero() && p.Captures <= maxPayAgain {
			p.ask(payment.Capture, uint64(p.Captures)+1, 0, f.Total.Minor, safe.Payment) //nolint:gosec // a count
		}
	case p.Declined || f.failing() || f.Parcels == 0 && !f.ready(l) || p.Number >= f.LinesVersion:
	case p.Authorises >= maxAuthorises:
		if p.Declined = true; f.cancellable() {
			f.fail(ReasonPaymentDeclined)
		}
	default:
		p.Authorises++
		p.Number = f.LinesVersion
		p.ask(payment.Authorise, p.Number, 0, f.Total.Minor, "")
	}
}

func (p *paying) ask(kind payment.Kind, n uint64, tries int, amount int64, of string) {
	p.Ask, p.Amount, p.Of = string(kind)+"-"+strconv.FormatUint(n, 10), amount, of
	if tries > 0 {
		p.Ask += "-" + strconv.Itoa(tries+1)
	}
}

// kind is what is asked for now.
func (p *paying) kind() payment.Kind {
	kind, _, _ := strings.Cut(p.Ask, "-")
	return payment.Kind(kind)
}

// calls are those whose answers are not facts yet.
func (f *Fulfilling) calls(o *FulfilmentOptions) []millrace.Call {
	p := &f.Pay
	if p.Ask == "" || o.Payment == PaymentManual {
		return nil
	}
	return []millrace.Call{{Name: p.Ask, Request: payment.Request{
		Kind: p.kind(), OrderID: f.ID, Payment: p.Of, Amount: money.Amount{Minor: p.Amount, Currency: f.Total.Currency},
	}}}
}
