package gateway

import (
	"math"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/millrace-io/millrace/internal/money"
	pay "github.com/millrace-io/millrace/internal/payment"
)

// Why a request is not taken: what it asks for contradicts the books. None of it is remembered under the key.
const (
	// CodeKeyReused: another request was done under this key.
	CodeKeyReused = "idempotency_key_reused"
	// CodeUnknown: the order has no such payment.
	CodeUnknown = "payment_unknown"
	// CodeCaptured and CodeVoided: a payment is captured or voided once, and not both.
	CodeCaptured = "already_captured"
	CodeVoided   = "already_voided"
	// CodeNotCaptured: there is nothing to give back.
	CodeNotCaptured = "not_captured"
	// CodeAmount: more than is there, or of another currency; of a void, another amount than was authorised.
	CodeAmount = "amount_mismatch"
)

// The kinds, as indexes and as what is kept.
const (
	authorise = iota
	capture
	void
	refund
	kindCount
)

var kindNames = [kindCount]pay.Kind{pay.Authorise, pay.Capture, pay.Void, pay.Refund}

// kindOf is the index of a kind that was checked.
func kindOf(k pay.Kind) int {
	switch k {
	case pay.Capture:
		return capture
	case pay.Void:
		return void
	case pay.Refund:
		return refund
	case pay.Authorise:
	}
	return authorise
}

// keyShard has the operations under some of the keys. Its lock is held while one is worked on, and that of the order within it.
type keyShard struct {
	mu         sync.Mutex
	operations map[string]*operation
}

// operation is what is known of a key. There are millions: it is kept small.
type operation struct {
	key      string
	book     *book  // nil until something was done
	code     string // why it was declined
	minor    int64
	payment  string // its name; none of a declined authorisation
	attempts uint32
	failures uint32
	losses   uint32
	kind     uint8
	currency money.Currency
}

func (op *operation) done() bool { return op.book != nil }

// is says whether a request is the one that was done.
func (op *operation) is(r *pay.Request) bool {
	return kindNames[op.kind] == r.Kind && op.book.order == r.OrderID && (op.kind == authorise || op.payment == r.Payment) &&
		op.minor == r.Amount.Minor && op.currency == r.Amount.Currency
}

func (op *operation) result() pay.Result {
	if op.code != "" {
		return pay.Result{Status: pay.Declined, Code: op.code}
	}
	return pay.Result{Status: pay.Approved, Payment: op.payment}
}

// orderShard has the books of some of the orders.
type orderShard struct {
	mu    sync.Mutex
	books map[string]*book
}

// book is what was done for an order.
type book struct {
	order      string
	payments   []authorisation
	operations []*operation
}

// authorisation is one payment: what was set aside, and what became of it, in minor units.
type authorisation struct {
	name                           string
	authorised, captured, refunded int64
	currency                       money.Currency
	isCaptured, isVoided           bool
}

// apply does what is asked, and enters it in the book. The lock of the key is held.
func (g *Gateway) apply(op *operation, r *pay.Request, decline string) (pay.Result, *pay.RefusedError) {
	s := &g.orders[g.hash("order", "", r.OrderID)%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.books[r.OrderID]
	name := r.Payment
	switch {
	case r.Kind != pay.Authorise:
		p := b.find(name)
		if p == nil {
			return pay.Result{}, refused(http.StatusNotFound, CodeUnknown)
		}
		if code := p.change(r); code != "" {
			return pay.Result{}, refused(http.StatusUnprocessableEntity, code)
		}
	case b == nil:
		b = &book{order: r.OrderID}
		s.books[r.OrderID] = b
	}
	if r.Kind == pay.Authorise && decline == "" {
		name = "pay-" + strconv.FormatUint(g.hash("payment", "", op.key), 36)
		b.payments = append(b.payments, authorisation{name: name, authorised: r.Amount.Minor, currency: r.Amount.Currency})
	}
	op.book, op.code, op.payment, op.kind = b, decline, name, uint8(kindOf(r.Kind)) //nolint:gosec // there are four
	op.minor, op.currency = r.Amount.Minor, r.Amount.Currency
	b.operations = append(b.operations, op)
	tally := &g.counts.kinds[op.kind]
	if decline != "" {
		tally.declined.Add(1)
	} else {
		tally.approved.Add(1)
	}
	return op.result(), nil
}

// find finds a payment; a book that is nil has none.
func (b *book) find(name string) *authorisation {
	if b != nil {
		for i := range b.payments {
			if b.payments[i].name == name {
				return &b.payments[i]
			}
		}
	}
	return nil
}

// change enters a request in a payment, or says why it cannot be.
func (p *authorisation) change(r *pay.Request) (code string) {
	if p.currency != r.Amount.Currency {
		return CodeAmount
	}
	switch r.Kind {
	case pay.Capture, pay.Void:
		switch {
		case p.isCaptured:
			return CodeCaptured
		case p.isVoided:
			return CodeVoided
		case r.Amount.Minor > p.authorised, r.Kind == pay.Void && r.Amount.Minor != p.authorised:
			return CodeAmount
		case r.Kind == pay.Void:
			p.isVoided = true
		default:
			p.isCaptured, p.captured = true, r.Amount.Minor
		}
	case pay.Refund:
		switch {
		case !p.isCaptured:
			return CodeNotCaptured
		case r.Amount.Minor > p.captured-p.refunded:
			return CodeAmount
		}
		p.refunded += r.Amount.Minor
	case pay.Authorise:
	}
	return ""
}

// counts are what happened, whatever came of it.
type counts struct {
	kinds                                            [kindCount]tally
	repeated, failed, lost, twice, slow, unavailable atomic.Int64
}

// tally counts requests of one kind: attempts, and what was done or not taken.
type tally struct{ attempts, approved, declined, refused atomic.Int64 }

// Ledger is what was taken, in all. Of each currency, authorised = open + captured + released + voided.
type Ledger struct {
	Orders     int              `json:"orders"`
	Payments   int              `json:"payments"`
	Currencies []CurrencyTotals `json:"currencies"`
	// Requests are those of each kind.
	Requests map[pay.Kind]Tally `json:"requests"`
	// Repeated are attempts under a key that was used before; Lost are answers that were cut or hung, Unavailable are attempts
	// while it was down, which are counted nowhere else.
	Repeated    int64 `json:"repeated"`
	Failed      int64 `json:"failed"`
	Lost        int64 `json:"lost"`
	Twice       int64 `json:"twice"`
	Slow        int64 `json:"slow"`
	Unavailable int64 `json:"unavailable"`
}

// Tally counts requests of a kind: attempts; keys that were approved and declined; attempts that were not taken.
type Tally struct {
	Attempts int64 `json:"attempts"`
	Approved int64 `json:"approved"`
	Declined int64 `json:"declined"`
	Refused  int64 `json:"refused"`
}

// CurrencyTotals are amounts of one currency.
type CurrencyTotals struct {
	Currency   money.Currency `json:"currency"`
	Authorised money.Sum      `json:"authorised"`
	Open       money.Sum      `json:"open"`     // set aside still
	Captured   money.Sum      `json:"captured"` // taken, refunds included
	Released   money.Sum      `json:"released"` // what a capture left of the authorisation
	Voided     money.Sum      `json:"voided"`
	Refunded   money.Sum      `json:"refunded"`
}

// Ledger adds up the books. While requests are made, those of an order are whole, and those of several need not be of one moment.
func (g *Gateway) Ledger() Ledger {
	l := Ledger{Currencies: []CurrencyTotals{}, Requests: make(map[pay.Kind]Tally, kindCount)}
	var totals [math.MaxUint8 + 1]*CurrencyTotals
	for i := range g.orders {
		s := &g.orders[i]
		s.mu.Lock()
		for _, b := range s.books {
			l.Orders++
			for at := range b.payments {
				l.Payments++
				p := &b.payments[at]
				if totals[p.currency] == nil {
					totals[p.currency] = &CurrencyTotals{Currency: p.currency}
				}
				totals[p.currency].add(p)
			}
		}
		s.mu.Unlock()
	}
	for _, c := range totals {
		if c != nil {
			l.Currencies = append(l.Currencies, *c)
		}
	}
	for i := range g.counts.kinds {
		t := &g.counts.kinds[i]
		l.Requests[kindNames[i]] = Tally{t.attempts.Load(), t.approved.Load(), t.declined.Load(), t.refused.Load()}
	}
	c := &g.counts
	l.Repeated, l.Failed, l.Lost = c.repeated.Load(), c.failed.Load(), c.lost.Load()
	l.Twice, l.Slow, l.Unavailable = c.twice.Load(), c.slow.Load(), c.unavailable.Load()
	return l
}

func (c *CurrencyTotals) add(p *authorisation) {
	of := func(minor int64) money.Decimal { return money.Amount{Minor: minor, Currency: p.currency}.Decimal() }
	c.Authorised = c.Authorised.Add(of(p.authorised))
	c.Captured, c.Refunded = c.Captured.Add(of(p.captured)), c.Refunded.Add(of(p.refunded))
	var open, released, voided int64
	switch rest := p.authorised - p.captured; {
	case p.isCaptured:
		released = rest
	case p.isVoided:
		voided = rest
	default:
		open = rest
	}
	c.Open, c.Released, c.Voided = c.Open.Add(of(open)), c.Released.Add(of(released)), c.Voided.Add(of(voided))
}

// OrderLedger is what was done for an order.
type OrderLedger struct {
	OrderID    string      `json:"order_id"`
	Payments   []Payment   `json:"payments"`
	Operations []Operation `json:"operations"` // in the order in which they were done
}

// Payment is an authorisation, and what became of it.
type Payment struct {
	Payment    string       `json:"payment"`
	Authorised money.Amount `json:"authorised"`
	Captured   money.Amount `json:"captured"`
	Voided     money.Amount `json:"voided"`
	Refunded   money.Amount `json:"refunded"`
}

// Operation is what was done under a key. What was declined is done too.
type Operation struct {
	Key      string       `json:"key"`
	Kind     pay.Kind     `json:"kind"`
	Payment  string       `json:"payment,omitempty"`
	Amount   money.Amount `json:"amount"`
	Status   pay.Status   `json:"status"`
	Code     string       `json:"code,omitempty"`
	Attempts int          `json:"attempts"`
}

// Order is what was done for an order, and whether anything was.
func (g *Gateway) Order(id string) (OrderLedger, bool) {
	s := &g.orders[g.hash("order", "", id)%shards]
	l := OrderLedger{OrderID: id, Payments: []Payment{}, Operations: []Operation{}}
	s.mu.Lock()
	b := s.books[id]
	if b == nil {
		s.mu.Unlock()
		return l, false
	}
	for i := range b.payments {
		p := &b.payments[i]
		of := func(minor int64) money.Amount { return money.Amount{Minor: minor, Currency: p.currency} }
		shown := Payment{Payment: p.name, Authorised: of(p.authorised), Captured: of(p.captured), Voided: of(0), Refunded: of(p.refunded)}
		if p.isVoided {
			shown.Voided = of(p.authorised)
		}
		l.Payments = append(l.Payments, shown)
	}
	for _, op := range b.operations {
		r := op.result()
		l.Operations = append(l.Operations, Operation{
			Key: op.key, Kind: kindNames[op.kind], Payment: r.Payment, Amount: money.Amount{Minor: op.minor, Currency: op.currency},
			Status: r.Status, Code: r.Code,
		})
	}
	s.mu.Unlock()
	// Attempts go on after what was done, under the locks of the keys, which are taken before those of orders.
	for i := range l.Operations {
		l.Operations[i].Attempts = g.attempts(l.Operations[i].Key)
	}
	return l, true
}

func (g *Gateway) attempts(key string) int {
	k := &g.keys[g.hash("key", "", key)%shards]
	k.mu.Lock()
	defer k.mu.Unlock()
	return int(k.operations[key].attempts)
}
