package order

import (
	"slices"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/money"
	"github.com/millrace-io/millrace/internal/payment"
)

// auditOrder is an order as its events make it, and what stock has of it. It is there as soon as either is heard of.
type auditOrder struct {
	version   uint64
	status    Status
	auto      bool
	paid      bool
	otherwise bool // by other means
	parcels   int
	total     money.Amount
	due       int64             // to be given back
	pending   string            // the authorisation that was asked for and has no answer
	standing  []auditAuthorised // neither captured nor voided
	captured  int64
	refunded  int64
	lines     []auditLine
	goods     []auditGoods
}

type auditAuthorised struct {
	payment string
	amount  int64
}

// taken takes an authorisation away that stands, and says what it was of.
func (o *auditOrder) taken(payment string) (amount int64, ok bool) {
	k := slices.IndexFunc(o.standing, func(s auditAuthorised) bool { return s.payment == payment })
	if k < 0 {
		return 0, false
	}
	amount = o.standing[k].amount
	o.standing = slices.Delete(o.standing, k, k+1)
	return amount, true
}

type auditLine struct {
	sku                                  string
	quantity, shipped, dropped, returned int64
	total                                int64
}

// auditGoods is what of an SKU the order and the stock say.
type auditGoods struct {
	sku                                           string
	open, committed, restocked, shipped, returned int64
}

func (a *Audit) order(id string) *auditOrder {
	o := a.orders[id]
	if o == nil {
		if a.orders == nil {
			a.orders = map[string]*auditOrder{}
		}
		o = new(auditOrder)
		a.orders[id] = o
	}
	return o
}

func (a *Audit) goods(id, sku string) *auditGoods { return a.order(id).good(sku) }

func (o *auditOrder) good(sku string) *auditGoods {
	for i := range o.goods {
		if o.goods[i].sku == sku {
			return &o.goods[i]
		}
	}
	o.goods = append(o.goods, auditGoods{sku: sku})
	return &o.goods[len(o.goods)-1]
}

func (a *Audit) addOrder(e *millrace.Recorded) {
	o := a.order(e.Stream.ID())
	a.follows(e, &o.version)
	if !o.allows(e.Body) {
		a.found(BrokenStatus, e.Stream, e.Version, "%T of an order that is %q", e.Body, o.status)
	}
	o.status = statusAfter(o.status, e.Body)
	switch b := e.Body.(type) {
	case *OrderPlaced:
		o.auto = b.Fulfilment == FulfilmentAuto
		a.setLines(e, o, b.Lines, b.Units, b.Total)
	case *OrderLinesChanged:
		a.setLines(e, o, b.Lines, b.Units, b.Total)
	case *OrderCancelled:
		o.due += b.Refund.Minor
	case *OrderShipped:
		if o.parcels++; b.Shipment != o.parcels {
			a.found(BrokenShipped, e.Stream, e.Version, "parcel %d comes as number %d", b.Shipment, o.parcels)
		}
		a.each(e, o, b.Lines, func(l *auditLine, quantity int64) {
			if l.shipped += quantity; l.shipped+l.dropped > l.quantity {
				a.found(BrokenShipped, e.Stream, e.Version, "%d shipped and %d given up of %d", l.shipped, l.dropped, l.quantity)
			}
			o.good(l.sku).shipped += quantity
		})
	case *OrderClosed:
		a.refund(e, o, b.Lines, b.Refund, func(l *auditLine, quantity int64) { l.dropped += quantity })
	case *OrderReturned:
		a.refund(e, o, b.Lines, b.Refund, func(l *auditLine, quantity int64) {
			l.returned += quantity
			if !b.Scrapped {
				o.good(l.sku).returned += quantity
			}
		})
	case *OrderPaid, *OrderPaymentRequested, *OrderPaymentAuthorised, *OrderPaymentDeclined, *OrderPaymentVoided, *OrderRefunded:
		a.addPayment(e, o)
	}
}

// allows says whether an event may happen to an order as it is. What happens outside, payments, may always.
func (o *auditOrder) allows(event any) bool {
	switch event.(type) {
	case *OrderPlaced:
		return o.status == ""
	case *OrderLinesChanged, *OrderAddressChanged, *OrderConfirmed:
		return o.status == StatusPlaced
	case *OrderPacked:
		return o.status == StatusConfirmed
	case *OrderCancelled:
		return o.status == StatusPlaced || o.status == StatusConfirmed || o.status == StatusPacked
	case *OrderShipped:
		return o.status == StatusPacked || o.status == StatusPartlyShipped
	case *OrderClosed:
		return o.status == StatusPartlyShipped
	case *OrderDelivered:
		return o.status == StatusShipped || o.status == StatusPartlyReturned
	case *OrderCompleted:
		return o.status == StatusDelivered
	case *OrderReturned:
		return o.status == StatusShipped || o.status == StatusDelivered || o.status == StatusCompleted || o.status == StatusPartlyReturned
	case *OrderPaymentRequested:
		return o.status != "" && !o.over()
	case *OrderPaid, *OrderPaymentAuthorised, *OrderPaymentDeclined, *OrderPaymentVoided, *OrderRefunded:
		return o.status != ""
	}
	return false
}

func (a *Audit) setLines(e *millrace.Recorded, o *auditOrder, lines []OrderedLine, units int64, total money.Amount) {
	a.lines(e, lines, units, total)
	m := a.money(total.Currency)
	if o.lines != nil {
		m.Ordered = m.Ordered.Sub(o.total.Decimal())
	}
	m.Ordered = m.Ordered.Add(total.Decimal())
	o.total, o.lines = total, make([]auditLine, len(lines))
	for i := range lines {
		o.lines[i] = auditLine{sku: lines[i].SKU, quantity: lines[i].Quantity, total: lines[i].LineTotal.Minor}
	}
}

// each goes through quantities of lines.
func (a *Audit) each(e *millrace.Recorded, o *auditOrder, lines []LineQuantity, do func(l *auditLine, quantity int64)) {
	for _, q := range lines {
		if q.Line < 1 || q.Line > len(o.lines) || q.Quantity < 1 {
			a.found(BrokenTotal, e.Stream, e.Version, "%d of line %d", q.Quantity, q.Line)
			continue
		}
		do(&o.lines[q.Line-1], q.Quantity)
	}
}

// refund checks what goods were sold for that come back or are given up.
func (a *Audit) refund(e *millrace.Recorded, o *auditOrder, lines []LineQuantity, says money.Amount, take func(*auditLine, int64)) {
	var refund int64
	a.each(e, o, lines, func(l *auditLine, quantity int64) {
		share := func() int64 {
			part, _ := money.Amount{Minor: l.total}.Share(l.dropped+l.returned, l.quantity) // a share of what fits fits
			return part.Minor
		}
		before := share()
		take(l, quantity)
		refund += share() - before
		if l.returned > l.shipped || l.shipped+l.dropped > l.quantity {
			a.found(BrokenReturned, e.Stream, e.Version, "%d back and %d given up of %d, of which %d were shipped", l.returned, l.dropped, l.quantity, l.shipped)
		}
	})
	if refund != says.Minor {
		a.found(BrokenRefund, e.Stream, e.Version, "it is to refund %s, and its goods were sold for %d in minor units", says, refund)
	}
	o.due += says.Minor
}

func (a *Audit) addPayment(e *millrace.Recorded, o *auditOrder) {
	m := a.money(o.total.Currency)
	switch b := e.Body.(type) {
	case *OrderPaid:
		if b.Name == "" {
			if o.paid || b.Amount != o.total {
				a.found(BrokenPaid, e.Stream, e.Version, "%s of %s is paid; paid before: %t", b.Amount, o.total, o.paid)
			}
			o.paid, o.otherwise = true, true
			m.Otherwise = m.Otherwise.Add(b.Amount.Decimal())
			return
		}
		stood, _ := o.taken(b.Reference)
		switch {
		case o.captured > 0:
			a.found(BrokenCapture, e.Stream, e.Version, "captured twice")
		case b.Amount.Minor > stood:
			a.found(BrokenCapture, e.Stream, e.Version, "%s is captured of an authorisation of %d in minor units", b.Amount, stood)
		}
		o.paid = true
		o.captured += b.Amount.Minor
		m.Captured = m.Captured.Add(b.Amount.Decimal())
	case *OrderPaymentRequested:
		if o.paid || o.pending != "" || b.Amount != o.total {
			a.found(BrokenAuthorised, e.Stream, e.Version, "%s of %s is asked for; paid before: %t, without an answer: %q",
				b.Amount, o.total, o.paid, o.pending)
		}
		o.pending = b.Name
	case *OrderPaymentAuthorised:
		o.answered(a, e, b.Name)
		if slices.ContainsFunc(o.standing, func(s auditAuthorised) bool { return s.payment == b.Payment }) {
			a.found(BrokenAuthorised, e.Stream, e.Version, "authorised under a name that stands")
		}
		o.standing = append(o.standing, auditAuthorised{b.Payment, b.Amount.Minor})
		m.Authorised = m.Authorised.Add(b.Amount.Decimal())
	case *OrderPaymentVoided:
		if stood, ok := o.taken(b.Payment); !ok || stood != b.Amount.Minor {
			a.found(BrokenAuthorised, e.Stream, e.Version, "%s is voided, and %d in minor units stood", b.Amount, stood)
		}
		m.Voided = m.Voided.Add(b.Amount.Decimal())
	case *OrderRefunded:
		if o.refunded += b.Amount.Minor; o.refunded > o.captured {
			a.found(BrokenRefund, e.Stream, e.Version, "%d given back of %d captured, in minor units", o.refunded, o.captured)
		}
		m.Refunded = m.Refunded.Add(b.Amount.Decimal())
	case *OrderPaymentDeclined:
		switch b.Kind {
		case payment.Authorise:
			o.answered(a, e, b.Name)
		case payment.Void: // it lapses
			o.taken(b.Payment)
		case payment.Capture, payment.Refund:
		}
	}
}

// answered checks that it was said before it was asked for what the gateway has answered. Who drives orders by hand asks as they like.
func (o *auditOrder) answered(a *Audit, e *millrace.Recorded, name string) {
	if o.auto && o.pending != name {
		a.found(BrokenAuthorised, e.Stream, e.Version, "an authorisation has an answer and was not asked for")
	}
	o.pending = ""
}

// over says whether there is nothing to pay for any more.
func (o *auditOrder) over() bool { return o.status == StatusCancelled || o.status == StatusReturned }

// ended says whether nothing is to come of the order by itself.
func (o *auditOrder) ended() bool {
	switch o.status {
	case StatusCancelled, StatusCompleted, StatusReturned, StatusPartlyReturned:
		return true
	}
	return false
}

// finish checks an order against the stock. Orders that people drive do with stock what they do.
func (o *auditOrder) finish(a *Audit, s millrace.Stream, settled bool) {
	if o.version > 0 && !o.auto {
		return
	}
	ended := settled && o.ended()
	for i := range o.goods {
		g := &o.goods[i]
		switch {
		case o.version == 0 && (g.open != 0 || g.committed != 0):
			if settled {
				a.found(BrokenNoOrder, s, 0, "stock %s is reserved for an order that there is not", g.sku)
			}
			continue
		case o.version == 0:
			continue
		}
		if g.committed > g.shipped || ended && g.committed != g.shipped {
			a.found(BrokenCommitted, s, 0, "%d of %s were shipped and %d have left the stock", g.shipped, g.sku, g.committed)
		}
		if g.restocked > g.returned || ended && g.restocked != g.returned {
			a.found(BrokenRestocked, s, 0, "%d of %s came back and %d are in the stock", g.returned, g.sku, g.restocked)
		}
		if ended && g.open != 0 {
			a.found(BrokenHeld, s, 0, "%d of %s are reserved for an order that is %s", g.open, g.sku, o.status)
		}
	}
	if !ended {
		return
	}
	if o.pending != "" {
		a.found(BrokenPending, s, 0, "%s of an order that is %s has no answer", o.pending, o.status)
	}
	if len(o.standing) > 0 {
		a.found(BrokenStanding, s, 0, "%d in minor units are authorised for an order that is %s", o.standing[0].amount, o.status)
	}
	want := o.total.Minor - o.due
	if o.otherwise || o.status == StatusCancelled {
		want = 0
	}
	if o.captured > 0 && o.captured-o.refunded != want {
		a.found(BrokenBalance, s, 0, "%d captured and %d given back, in minor units, of a total of %s of which %d are to be given back",
			o.captured, o.refunded, o.total, o.due)
	}
}
