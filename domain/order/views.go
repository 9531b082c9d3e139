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
	ProjectionStock   = "stock"
	ProjectionReturns = "returns"
)

// The versions of the projections: a change of a projection or of its documents is a change of its number.
const (
	ordersProjectionVersion  = 3
	stockProjectionVersion   = 1
	returnsProjectionVersion = 1
)

// Projections are the read models of orders, stock and returns.
func Projections() []millrace.Projection {
	return []millrace.Projection{
		{
			Name: ProjectionOrders, Version: ordersProjectionVersion, Categories: []string{CategoryOrder},
			Tables: []*millrace.Table{OrdersTable.Table, DaysTable.Table}, Project: projectOrders,
		},
		{
			Name: ProjectionStock, Version: stockProjectionVersion, Categories: []string{CategoryStock},
			Tables: []*millrace.Table{LevelsTable.Table}, Project: projectStock, OfStream: ofStream(LevelsTable.Table),
		},
		{
			Name: ProjectionReturns, Version: returnsProjectionVersion, Categories: []string{CategoryReturn},
			Tables: []*millrace.Table{ReturnsTable.Table}, Project: projectReturns, OfStream: ofStream(ReturnsTable.Table),
		},
	}
}

// ofStream names the one document of a stream in a table. The read model of orders has none of that: its totals follow from
// many streams.
func ofStream(t *millrace.Table) func(millrace.Stream) []millrace.DocumentName {
	return func(s millrace.Stream) []millrace.DocumentName {
		return []millrace.DocumentName{{Table: t, ID: s.ID()}}
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

// projectOrders keeps an order's document, and counts it in the bucket of its day, status and currency.
func projectOrders(v millrace.Views, e *millrace.Recorded) error {
	id := e.Stream.ID()
	if e.Version == 1 {
		o := evolveOrder(initialOrder(id), e.Body)
		OrdersTable.Insert(v, id, o)
		return countOrder(v, o)
	}
	before, err := OrdersTable.Get(v, id)
	switch {
	case err != nil:
		return err
	case before == nil:
		return errNoDocument(e)
	}
	after := evolveOrder(before, e.Body)
	OrdersTable.Put(v, id, after)
	if before.Status == after.Status && before.Units == after.Units && before.Total == after.Total {
		return nil // counted as it is
	}
	if err := uncountOrder(v, before); err != nil {
		return err
	}
	return countOrder(v, after)
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

// bucket is the id of the Day that counts the order.
func bucket(o *Order) string {
	var buf [64]byte // one allocation instead of three
	b := o.PlacedAt.UTC().AppendFormat(buf[:0], time.DateOnly)
	b = append(append(b, '/'), o.Status...)
	return string(append(append(b, '/'), o.Currency.String()...))
}

func countOrder(v millrace.Views, o *Order) error {
	id := bucket(o)
	d, err := DaysTable.Get(v, id)
	if err != nil {
		return err
	}
	if d == nil {
		d = &Day{Day: dayOf(o.PlacedAt), Status: o.Status, Currency: o.Currency}
	}
	d.Orders++
	d.Units += o.Units
	d.Amount = d.Amount.Add(o.Total.Decimal())
	DaysTable.Put(v, id, d)
	return nil
}

func uncountOrder(v millrace.Views, o *Order) error {
	id := bucket(o)
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
	d.Units -= o.Units
	d.Amount = d.Amount.Sub(o.Total.Decimal())
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
