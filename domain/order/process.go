package order

import (
	"slices"
	"time"

	"github.com/millrace-io/millrace"
)

// ProcessFulfilment is the name of the process that carries orders through.
const ProcessFulfilment = "fulfilment"

// FulfilmentPayment says how orders are paid.
type FulfilmentPayment int

// PaymentGateway has the gateway be asked, by calls. PaymentManual waits for somebody to say that an order is paid before it
// is confirmed.
const (
	PaymentGateway FulfilmentPayment = iota
	PaymentManual
)

// FulfilmentUntil says how far the process drives orders by itself. What comes after is left to people and to other systems;
// what they do is reacted to all the same.
type FulfilmentUntil string

// The ends of the process's own driving.
const (
	UntilConfirmed FulfilmentUntil = "confirmed"
	UntilPacked    FulfilmentUntil = "packed"
	UntilShipped   FulfilmentUntil = "shipped"
	UntilDelivered FulfilmentUntil = "delivered"
)

// FulfilmentOptions are the settings of the process; the zero of each is its default.
type FulfilmentOptions struct {
	// Payment says how orders are paid. Defaults to PaymentGateway.
	Payment FulfilmentPayment
	// Until is how far the process drives. Defaults to UntilDelivered.
	Until FulfilmentUntil
	// PaymentTimeout is how long an order waits for its payment before it is cancelled. Defaults to 15 minutes.
	PaymentTimeout time.Duration
	// ReservationExpiry is how long an order may hold stock without being confirmed. It does not run while stock is waited
	// for. Defaults to an hour.
	ReservationExpiry time.Duration
	// BackorderFor is how long stock is waited for. Defaults to 7 days.
	BackorderFor time.Duration
	// BackorderRetry is how long after stock was short it is asked for again, doubling up to 6 hours. Defaults to a minute.
	BackorderRetry time.Duration
}

const (
	defaultPaymentTimeout    = 15 * time.Minute
	defaultReservationExpiry = time.Hour
	defaultBackorderFor      = 7 * 24 * time.Hour
	defaultBackorderRetry    = time.Minute
	// maxBackorderRetry is the longest wait between two tries: a delivery in the morning is noticed on the same day.
	maxBackorderRetry = 6 * time.Hour
	// payAgain is how long after a capture or a refund was declined it is made again: banks look at limits by the day.
	payAgain = 24 * time.Hour
	// maxPayAgain is how often: a week.
	maxPayAgain = 7

	// maxUnderWay bounds the commands on stock whose outcomes are awaited at a time. The largest order is done in a few dozen
	// rounds, and one round is no flood.
	maxUnderWay = 256
	// maxReserved bounds the reservations of an order in its life: one for each line, and what changes of lines lead to.
	maxReserved = MaxLines + 3000
	// maxRetried bounds how often reservations of an order are tried again, all together. With their commits, releases and
	// restocks the steps stay within [millrace.MaxSteps].
	maxRetried = 4000
	// maxRestocked bounds the restocks of an order: what comes back after them is received by people.
	maxRestocked = 10_000
	// maxAuthorises and maxRefunds bound the calls: with as many voids as authorisations, and a week of captures, they stay
	// below [millrace.MaxCalls] whatever comes.
	maxAuthorises = 50
	maxRefunds    = 120
)

// The reasons for which the process cancels orders, or closes them.
const (
	ReasonOutOfStock         = "out_of_stock"
	ReasonReservationFailed  = "reservation_failed"
	ReasonReservationExpired = "reservation_expired"
	ReasonPaymentDeclined    = "payment_declined"
	ReasonPaymentTimeout     = "payment_timeout"
)

// Fulfilment is the process that carries orders through whose fulfilment is auto: see the rules in the package comment. Its
// calls are requests to a payment gateway, of the type payment.Request; what they come to it hears from the events that
// [RecordPayment] leads to. Who makes an authorisation has [RequestPayment] be decided before, under the id of [RequestStep], and asks
// nobody if it is refused: the answer is payment.Withdrawn then.
func Fulfilment(o FulfilmentOptions) millrace.Process[*Fulfilling] {
	o.defaults()
	return millrace.Process[*Fulfilling]{
		Name: ProcessFulfilment, Category: CategoryOrder,
		Initial: func(s millrace.Stream) *Fulfilling { return &Fulfilling{ID: s.ID()} },
		Evolve:  func(f *Fulfilling, in *millrace.Input) *Fulfilling { return f.evolve(&o, in) },
		React:   func(f *Fulfilling) millrace.Reaction { return f.react(&o) },
	}
}

func (o *FulfilmentOptions) defaults() {
	set := func(d *time.Duration, otherwise time.Duration) {
		if *d <= 0 {
			*d = otherwise
		}
	}
	set(&o.PaymentTimeout, defaultPaymentTimeout)
	set(&o.ReservationExpiry, defaultReservationExpiry)
	set(&o.BackorderFor, defaultBackorderFor)
	set(&o.BackorderRetry, defaultBackorderRetry)
	if o.Until == "" {
		o.Until = UntilDelivered
	}
}

// drives says whether the process leads orders to a status by itself.
func (o *FulfilmentOptions) drives(to FulfilmentUntil) bool {
	ends := []FulfilmentUntil{UntilConfirmed, UntilPacked, UntilShipped, UntilDelivered}
	return slices.Index(ends, to) <= slices.Index(ends, o.Until)
}

func (f *Fulfilling) evolve(o *FulfilmentOptions, in *millrace.Input) *Fulfilling {
	n := *f
	n.Goods = slices.Clone(f.Goods) // what is behind the holds is copied where it changes
	n.before = f.Goods
	switch {
	case in.Event != nil:
		if in.Version != 0 && in.Version <= f.Version {
			return f
		}
		placed, ok := in.Event.(*OrderPlaced)
		if f.Status == "" && (!ok || placed.Fulfilment != FulfilmentAuto) {
			return f
		}
		n.Version = max(in.Version, f.Version)
		if _, confirmed := in.Event.(*OrderConfirmed); !confirmed || f.Status != StatusPacked { // see ahead
			n.Status = statusAfter(f.Status, in.Event)
		}
		n.hear(in)
	case f.Status == "":
		return f
	case in.Outcome != nil:
		n.settle(in.Step, in.Outcome)
	case in.Call != "":
		n.withdrawn(in.Call, in.Result)
	case in.Timer != "":
		n.fire(o, in.Timer, in.At)
	}
	l := n.planStock(o, in.At)
	n.planPayment(o, in.At, &l)
	return &n
}

// hear takes an event in. Events come in order, each once.
func (f *Fulfilling) hear(in *millrace.Input) {
	switch e := in.Event.(type) {
	case *OrderPlaced:
		f.Customer, f.Backorder = e.CustomerID, e.Backorder
		f.setLines(in.Version, e.Lines)
		f.Total = e.Total
	case *OrderLinesChanged:
		f.setLines(in.Version, e.Lines)
		f.Total = e.Total
	case *OrderCancelled:
		f.drop(in.Version, f.everythingLeft())
		f.Pay.Due += e.Refund.Minor
	case *OrderClosed:
		f.Closed = true
		f.drop(in.Version, e.Lines)
		f.Pay.owe(e.Refund.Minor)
	case *OrderShipped:
		f.ship(e)
	case *OrderDelivered:
		f.Delivered = true
	case *OrderReturned:
		f.Returns++
		f.Pay.owe(e.Refund.Minor)
		if !e.Scrapped {
			f.takeIn(e.Lines)
		}
	case *OrderPaid, *OrderPaymentRequested, *OrderPaymentAuthorised, *OrderPaymentDeclined, *OrderPaymentVoided, *OrderRefunded:
		f.hearPayment(in)
	}
}

func (f *Fulfilling) everythingLeft() []LineQuantity {
	var lines []LineQuantity
	for i := range f.Lines {
		if f.Lines[i].left > 0 {
			lines = append(lines, LineQuantity{i + 1, f.Lines[i].left})
		}
	}
	return lines
}

// setLines takes in lines that replace all there were. Goods keep their places; of those that are wanted otherwise, the
// difference is reserved or given up.
func (f *Fulfilling) setLines(version uint64, lines []OrderedLine) {
	f.LinesVersion = max(version, 1)
	at := make(map[string]int, len(f.Goods)+len(lines))
	for i := range f.Goods {
		at[f.Goods[i].sku] = i
	}
	wanted := make([]int64, len(f.Goods), len(f.Goods)+len(lines))
	f.Lines = make(openLines, len(lines))
	for i := range lines {
		l := &lines[i]
		k, ok := at[l.SKU]
		if !ok {
			k = len(f.Goods)
			at[l.SKU] = k
			f.Goods, wanted = append(f.Goods, good{sku: l.SKU}), append(wanted, 0)
		}
		wanted[k] += l.Quantity
		f.Lines[i] = openLine{k, l.Quantity}
	}
	for i, quantity := range wanted {
		switch it := &f.Goods[i]; {
		case quantity > it.left:
			f.want(it, quantity-it.left)
		case quantity < it.left:
			f.unwant(it, version, it.left-quantity)
		}
	}
	if f.Reserved > maxReserved {
		f.fail(ReasonReservationFailed)
	}
}

// fail has the order be cancelled, for the first reason that there is.
func (f *Fulfilling) fail(reason string) {
	if f.Fail == "" {
		f.Fail = reason
	}
}

// stick says what a person has to look at: the first that there is.
func (f *Fulfilling) stick(what string) {
	if f.Stuck == "" {
		f.Stuck = what
	}
}

// giveUp has stock be waited for no longer.
func (f *Fulfilling) giveUp() {
	if f.GaveUp = true; f.Parcels == 0 {
		f.fail(ReasonOutOfStock)
	}
}

// cancellable says whether the order can be cancelled still.
func (f *Fulfilling) cancellable() bool {
	return f.Status == StatusPlaced || f.Status == StatusConfirmed || f.Status == StatusPacked
}

// failing says that the order is to be cancelled and is not yet.
func (f *Fulfilling) failing() bool { return f.Fail != "" && f.cancellable() }

// The timers of the process.
const (
	timerPayment   = "payment"
	timerExpiry    = "expiry"
	timerRetry     = "retry"
	timerBackorder = "backorder"
	timerPayAgain  = "pay-again"
)

// timers are those that are to be pending.
func (f *Fulfilling) timers(o *FulfilmentOptions) []millrace.Timer {
	var out []millrace.Timer
	add := func(name string, since time.Time, after time.Duration) {
		if !since.IsZero() {
			out = append(out, millrace.Timer{Name: name, At: since.Add(after)})
		}
	}
	if f.Status == StatusCancelled || f.failing() {
		return nil
	}
	if f.cancellable() {
		add(timerPayment, f.Pay.Since, o.PaymentTimeout)
	}
	if f.Status == StatusPlaced && f.ShortAt.IsZero() {
		add(timerExpiry, f.HeldAt, o.ReservationExpiry)
	}
	if !f.GaveUp {
		add(timerRetry, f.RetryAt, 0)
		add(timerBackorder, f.ShortAt, o.BackorderFor)
	}
	add(timerPayAgain, f.Pay.AgainAt, 0)
	return out
}

// fire takes in that a timer has fired. One that is not wanted any more, or comes early, changes nothing.
func (f *Fulfilling) fire(o *FulfilmentOptions, name string, at time.Time) {
	timers := f.timers(o)
	k := slices.IndexFunc(timers, func(t millrace.Timer) bool { return t.Name == name && !at.Before(t.At) })
	if k < 0 {
		return
	}
	switch name {
	case timerPayment:
		f.fail(ReasonPaymentTimeout)
	case timerExpiry:
		f.fail(ReasonReservationExpired)
	case timerRetry:
		f.retry()
	case timerBackorder:
		f.giveUp()
	case timerPayAgain:
		f.Pay.AgainAt = time.Time{}
	}
}
