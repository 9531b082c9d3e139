package order

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/money"
)

// maxFindings bounds the findings that an audit keeps; the others are counted.
const maxFindings = 100

// The invariants of an audit, by name. The first ones hold at every version of a stream, the others between streams.
const (
	BrokenVersions    = "versions"    // a stream's versions are 1, 2, 3 …
	BrokenEvent       = "event"       // the event belongs to the stream's category
	BrokenLevels      = "levels"      // an event has the stock levels that follow from all before it
	BrokenStock       = "stock"       // on_hand ≥ reserved ≥ 0
	BrokenReservation = "reservation" // what is released or committed is reserved, and an id is reserved once at a time
	BrokenTotal       = "total"       // line totals are price × quantity, and totals are their sums
	BrokenStatus      = "status"      // an order goes the way that the rules allow
	BrokenShipped     = "shipped"     // shipped + dropped ≤ ordered, and parcels are counted
	BrokenReturned    = "returned"    // returned ≤ shipped
	BrokenRefund      = "refund"      // refunds of a line add up to its total, and money given back was taken
	BrokenPaid        = "paid"        // paid once, and for the total
	BrokenCapture     = "capture"     // captured once, at most what was authorised
	BrokenAuthorised  = "authorised"  // only what was asked for is authorised, only what stands is voided, and each has a name of its own

	BrokenCommitted = "committed"     // what left the stock is what was shipped
	BrokenRestocked = "restocked"     // what came back into the stock is what was returned
	BrokenHeld      = "held"          // nothing is reserved for an order that has ended
	BrokenStanding  = "standing"      // no authorisation stands for an order that has ended
	BrokenPending   = "pending"       // nor is the answer to one unknown
	BrokenBalance   = "balance"       // captured − refunded is the total less what is to be given back
	BrokenNoOrder   = "order_unknown" // a reservation is of an order that there is
)

// Finding is a broken invariant.
type Finding struct {
	Name    string          `json:"name"`
	Stream  millrace.Stream `json:"stream"`
	Version uint64          `json:"version,omitzero"` // of the event that showed it; zero for those between streams
	Detail  string          `json:"detail"`
}

// AuditTotals are sums over all streams.
type AuditTotals struct {
	Events int64 `json:"events"`
	Orders int64 `json:"orders"`
	// Units of all SKUs. OnHand is Received + Adjusted − Committed.
	Received  int64 `json:"received"`
	Adjusted  int64 `json:"adjusted"`
	Committed int64 `json:"committed"`
	OnHand    int64 `json:"on_hand"`
	Reserved  int64 `json:"reserved"`
	// Money by currency.
	Money map[string]*AuditMoney `json:"money,omitempty"`
}

// AuditMoney are sums of one currency.
type AuditMoney struct {
	Ordered    money.Sum `json:"ordered"`
	Authorised money.Sum `json:"authorised"`
	Captured   money.Sum `json:"captured"`
	Voided     money.Sum `json:"voided"`
	Refunded   money.Sum `json:"refunded"`
	Otherwise  money.Sum `json:"otherwise"` // paid by other means
}

// Findings is what an audit comes to.
type Findings struct {
	Broken []Finding   `json:"broken,omitempty"` // the first 100
	More   int         `json:"more,omitzero"`    // how many there were besides
	Totals AuditTotals `json:"totals"`
}

// Audit recomputes stock and money from events alone and says where they do not add up. It takes the streams of orders, stock
// and returns in any order, each with its versions in order. Its memory is some 200 bytes for each order and 100 for each of its
// lines, and as much for each SKU and each open reservation; other events leave nothing behind. It is not for use by several
// goroutines at once. The zero Audit is ready.
type Audit struct {
	orders map[string]*auditOrder
	stocks map[string]*auditStock
	last   map[millrace.Stream]uint64 // of returns
	broken []Finding
	more   int
	totals AuditTotals
}

// Add takes the next event of a stream, whose Body must be decoded. Streams of other categories are left alone.
func (a *Audit) Add(e *millrace.Recorded) {
	switch e.Stream.Category() {
	case CategoryOrder:
		a.addOrder(e)
	case CategoryStock:
		a.addStock(e)
	case CategoryReturn:
		a.addReturn(e)
	default:
		return
	}
	a.totals.Events++
}

// Finish says what was found so far, and between the streams as they are now; more may be added then. settled says that the
// processes were at rest: then what an order's end leads to must be done, and not only be under way.
func (a *Audit) Finish(settled bool) Findings {
	return a.FinishSome(func(string) bool { return settled })
}

// FinishSome is [Audit.Finish] where some orders are settled, by their ids, and others are not.
func (a *Audit) FinishSome(settled func(id string) bool) Findings {
	found := &Audit{broken: slices.Clone(a.broken), more: a.more}
	for _, id := range slices.Sorted(maps.Keys(a.orders)) {
		a.orders[id].finish(found, millrace.NewStream(CategoryOrder, id), settled(id))
	}
	totals := a.totals
	totals.Orders = 0
	for _, o := range a.orders {
		if o.version > 0 {
			totals.Orders++
		}
	}
	for _, s := range a.stocks {
		totals.OnHand += s.onHand
		totals.Reserved += s.reserved
	}
	if totals.OnHand != totals.Received+totals.Adjusted-totals.Committed {
		found.found(BrokenStock, "", 0, "%d on hand, but %d received, %d adjusted and %d committed",
			totals.OnHand, totals.Received, totals.Adjusted, totals.Committed)
	}
	totals.Money = make(map[string]*AuditMoney, len(a.totals.Money))
	for code, m := range a.totals.Money {
		totals.Money[code] = new(*m)
	}
	return Findings{Broken: found.broken, More: found.more, Totals: totals}
}

func (a *Audit) found(name string, s millrace.Stream, version uint64, format string, args ...any) {
	if len(a.broken) >= maxFindings {
		a.more++
		return
	}
	a.broken = append(a.broken, Finding{Name: name, Stream: s, Version: version, Detail: fmt.Sprintf(format, args...)})
}

// follows checks that an event is the next of its stream.
func (a *Audit) follows(e *millrace.Recorded, last *uint64) {
	if e.Version != *last+1 {
		a.found(BrokenVersions, e.Stream, e.Version, "version %d after %d", e.Version, *last)
	}
	*last = e.Version
}

func (a *Audit) money(c money.Currency) *AuditMoney {
	if a.totals.Money == nil {
		a.totals.Money = map[string]*AuditMoney{}
	}
	m := a.totals.Money[c.String()]
	if m == nil {
		m = new(AuditMoney)
		a.totals.Money[c.String()] = m
	}
	return m
}

// orderOf is the order of a reservation or of a reference of goods that came back, where the process made it.
func orderOf(id string) (orderID string, ok bool) {
	id, ok = strings.CutPrefix(id, CategoryOrder+"-")
	at := strings.LastIndexByte(id, '/')
	if !ok || at < 1 {
		return "", false
	}
	for _, c := range []byte(id[at+1:]) {
		if c < '0' || c > '9' {
			return "", false
		}
	}
	return id[:at], len(id) > at+1
}

// addReturn checks goods that came back without an order.
func (a *Audit) addReturn(e *millrace.Recorded) {
	if a.last == nil {
		a.last = map[millrace.Stream]uint64{}
	}
	last := a.last[e.Stream]
	a.follows(e, &last)
	a.last[e.Stream] = last
	r, ok := e.Body.(*GoodsReturned)
	if !ok {
		a.found(BrokenEvent, e.Stream, e.Version, "%T", e.Body)
		return
	}
	a.lines(e, r.Lines, r.Units, r.Total)
}

// lines checks what lines come to.
func (a *Audit) lines(e *millrace.Recorded, lines []OrderedLine, units int64, total money.Amount) {
	var sum, count int64
	for i := range lines {
		l := &lines[i]
		amount, err := l.UnitPrice.Times(l.Quantity, total.Currency)
		if err != nil || amount.Decimal() != l.LineTotal {
			a.found(BrokenTotal, e.Stream, e.Version, "line %d: %s × %d is not %s", i+1, l.UnitPrice, l.Quantity, l.LineTotal)
		}
		sum += l.LineTotal.Minor
		count += l.Quantity
	}
	if sum != total.Minor || count != units {
		a.found(BrokenTotal, e.Stream, e.Version, "the lines come to %d in minor units and %d units, and it has %s and %d",
			sum, count, total, units)
	}
}
