package httpapi_test

import (
	"time"

	"github.com/millrace-io/millrace/domain/order"
)

func dayKey(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// addDay sums the days of several partitions.
func addDay(row, doc any) any {
	d, _ := doc.(*order.Day)
	sum, ok := row.(*order.Day)
	if !ok {
		return d
	}
	sum.Orders += d.Orders
	sum.Units += d.Units
	sum.Amount = sum.Amount.Plus(d.Amount)
	return sum
}
