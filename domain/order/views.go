package order

import (
	"fmt"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/money"
)

// The tables of the read models. They are declarations and hold no state. Indexes are named by the constants below.
var (
	// OrdersTable holds an [Order] for each order, by its id.
	OrdersTable = millrace.NewTable("orders", []string{"placed_at", "customer", "status"}, orderKeys)
	// DaysTable holds a [Day] for each day, status and currency of a partition.
	DaysTable = millrace.NewTable("days", []string{"day"}, dayKeys)
	// MembersTable holds, for each order, the bucket of DaysTable that counts it. It is the projection's own.
	MembersTable = millrace.NewTable[Member]("members", nil, nil)
	// LevelsTable holds a [Level] for each SKU, by the SKU.
	LevelsTable = millrace.NewTable("levels", []string{"sku"}, levelKeys)
	// ReturnsTable holds a [Return] for each return, by its id.
	ReturnsTable = millrace.NewTable("returns", []string{"returned_at", "customer"}, returnKeys)
)

// The numbers of the indexes, and the parts of their keys.
const (
	OrdersByPlacedAt = 0 // TimeKey(placed_at), id
	OrdersByCustomer = 1 // customer id, TimeKey(placed_at), id; orders without a customer are not in it
	OrdersByStatus   = 2 // status, TimeKey(placed_at), id

	DaysByDay = 0 // day, status, currency

	LevelsBySKU = 0 // SKU

	ReturnsByReturnedAt = 0 // TimeKey(returned_at), id
	ReturnsByCustomer   = 1 // customer id, TimeKey(returned_at), id; returns without a customer are not in it
)

// The names of the projections.
const (
	ProjectionOrders  = "orders"
	ProjectionTotals  = "totals"
	ProjectionStock   = "stock"
	ProjectionReturns = "returns"
)

// The versions of the projections: a change of a projection or of its documents is a change of its number.
const (
	ordersProjectionVersion  = 1
	totalsProjectionVersion  = 1
	stockProjectionVersion   = 1
	returnsProjectionVersion = 1
)

// Projections are the read models of orders, stock and returns.
func Projections() []millrace.Projection {
	return []millrace.Projection{
		{
			Name: ProjectionOrders, Version: ordersProjectionVersion, Categories: []string{CategoryOrder},
			Tables: []*millrace.Table{OrdersTable.Table}, Project: projectOrders,
		},
		{
			Name: ProjectionTotals, Version: totalsProjectionVersion, Categories: []string{CategoryOrder},
			Tables: []*millrace.Table{DaysTable.Table, MembersTable.Table}, Project: projectTotals,
		},
		{
			Name: ProjectionStock, Version: stockProjectionVersion, Categories: []string{CategoryStock},
			Tables: []*millrace.Table{LevelsTable.Table}, Project: projectStock,
		},
		{
			Name: ProjectionReturns, Version: returnsProjectionVersion, Categories: []string{CategoryReturn},
			Tables: []*millrace.Table{ReturnsTable.Table}, Project: projectReturns,
		},
	}
}

// TimeKey writes a time so that the order of the texts is the order of the times: in UTC, always nine decimals.
func TimeKey(t time.Time) string {
	return t.UTC().Format("2006-01-02T15:04:05.000000000Z")
}

// dayOf is the day of a time in UTC.
func dayOf(t time.Time) string { return t.UTC().Format(time.DateOnly) }

func orderKeys(o *Order) []string {
	at := TimeKey(o.PlacedAt)
	return []string{
		millrace.Key(at, o.ID), customerKey(o.CustomerID, at, o.ID), millrace.Key(string(o.Status), at, o.ID),
	}
}

func customerKey(customer, at, id string) string {
	if customer == "" {
		return ""
	}
	return millrace.Key(customer, at, id)
}

func dayKeys(d *Day) []string {
	return []string{millrace.Key(d.Day, string(d.Status), d.Currency.String())}
}

func levelKeys(l *Level) []string { return []string{millrace.Key(l.SKU)} }

func returnKeys(r *Return) []string {
	at := TimeKey(r.ReturnedAt)
	return []string{millrace.Key(at, r.ID), customerKey(r.CustomerID, at, r.ID)}
}

// errNoDocument: an event came without the ones before it. Somebody must look at it; the feed parks the stream.
func errNoDocument(e *millrace.Recorded) error {
	return fmt.Errorf("%w: no document for event %s, which is not its stream's first", millrace.ErrCorrupt, e.ID())
}

func projectOrders(v millrace.Views, e *millrace.Recorded) error {
	id := e.Stream.ID()
	if e.Version == 1 {
		OrdersTable.Insert(v, id, evolveOrder(initialOrder(id), e.Body))
		return nil
	}
	o, err := OrdersTable.Get(v, id)
	switch {
	case err != nil:
		return err
	case o == nil:
		return errNoDocument(e)
	}
	OrdersTable.Put(v, id, evolveOrder(o, e.Body))
	return nil
}

// Day counts the orders of one day (of placed_at, in UTC), status and currency in one partition. Whoever reads it adds
// up the partitions.
type Day struct {
	Day      string         `json:"day"` // 2010-12-01
	Status   Status         `json:"status"`
	Currency money.Currency `json:"currency"`
	Orders   int64          `json:"orders"`
	Units    int64          `json:"units"`
	Amount   money.Sum      `json:"amount"` // the sum of the orders' totals
}

// Member is where and how an order is counted.
type Member struct {
	Day      string         `json:"day"`
	Status   Status         `json:"status"`
	Currency money.Currency `json:"currency"`
	Units    int64          `json:"units"`
	Amount   money.Decimal  `json:"amount"`
}

func (m *Member) bucket() string { return m.Day + "/" + string(m.Status) + "/" + m.Currency.String() }

func projectTotals(v millrace.Views, e *millrace.Recorded) error {
	id := e.Stream.ID()
	if placed, ok := e.Body.(*OrderPlaced); ok {
		m := &Member{
			Day: dayOf(placed.PlacedAt), Status: StatusPlaced, Currency: placed.Currency,
			Units: placed.Units, Amount: placed.Total.Decimal(),
		}
		MembersTable.Insert(v, id, m)
		return m.count(v)
	}
	before, err := MembersTable.Get(v, id)
	switch {
	case err != nil:
		return err
	case before == nil:
		return errNoDocument(e)
	}
	after := *before
	after.Status = statusAfter(before.Status, e.Body)
	if changed, ok := e.Body.(*OrderLinesChanged); ok {
		after.Units, after.Amount = changed.Units, changed.Total.Decimal()
	}
	if after == *before {
		return nil
	}
	if err := before.uncount(v); err != nil {
		return err
	}
	MembersTable.Put(v, id, &after)
	return after.count(v)
}

func (m *Member) count(v millrace.Views) error {
	id := m.bucket()
	d, err := DaysTable.Get(v, id)
	if err != nil {
		return err
	}
	if d == nil {
		d = &Day{Day: m.Day, Status: m.Status, Currency: m.Currency}
	}
	d.Orders++
	d.Units += m.Units
	d.Amount = d.Amount.Add(m.Amount)
	DaysTable.Put(v, id, d)
	return nil
}

func (m *Member) uncount(v millrace.Views) error {
	id := m.bucket()
	d, err := DaysTable.Get(v, id)
	switch {
	case err != nil:
		return err
	case d == nil:
		return fmt.Errorf("%w: an order is counted in a bucket that is not there", millrace.ErrCorrupt)
	}
	if d.Orders--; d.Orders == 0 {
		DaysTable.Delete(v, id)
		return nil
	}
	d.Units -= m.Units
	d.Amount = d.Amount.Sub(m.Amount)
	DaysTable.Put(v, id, d)
	return nil
}

func projectStock(v millrace.Views, e *millrace.Recorded) error {
	l, ok := levelsOf(e.Body)
	if !ok {
		return fmt.Errorf("%w: event %s has no stock levels", millrace.ErrCorrupt, e.ID())
	}
	sku := e.Stream.ID()
	if e.Version == 1 {
		LevelsTable.Insert(v, sku, newLevel(sku, e.Version, l))
	} else {
		LevelsTable.Put(v, sku, newLevel(sku, e.Version, l))
	}
	return nil
}

func projectReturns(v millrace.Views, e *millrace.Recorded) error {
	id := e.Stream.ID()
	ReturnsTable.Insert(v, id, evolveReturn(initialReturn(id), e.Body))
	return nil
}
