package httpapi_test

import (
	"time"

	"github.com/millrace-io/millrace/domain/order"
)

func dayKey(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// addDay sums the days of several partitions.
func addDay(row, doc any) any {
	d := doc.(*order.Day)
	if row == nil {
		return d
	}
	sum := row.(*order.Day)
	sum.Orders += d.Orders
	sum.Units += d.Units
	sum.Amount = sum.Amount.Plus(d.Amount)
	return sum
}
