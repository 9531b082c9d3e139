package order_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
)

// TestOwn: whatever the id of an order is, what the process calls its reservations and returns is its own; what people call
// theirs is not, which is the control.
func TestOwn(t *testing.T) {
	bodies := func(id string) []any {
		return []any{
			&order.ReserveStock{Reservation: id}, &order.ReleaseStock{Reservation: id}, &order.CommitStock{Reservation: id},
			&order.ReceiveStock{Reference: id},
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		id := rapid.StringN(1, 40, order.MaxID).Draw(r, "order")
		n := rapid.IntRange(0, 100_000).Draw(r, "number")
		for _, b := range bodies(order.ReservationOf(id, n)) {
			if len(order.Own(b)) != 1 {
				r.Errorf("%+v can be sent by clients", b)
			}
		}
	})
	for _, id := range []string{"", "basket-1/1", "order-1", "order-1/x", "order-1/", "order-/1", "1/1", "Order-1/1", "delivery of order-1/1 "} {
		for _, b := range bodies(id) {
			if faults := order.Own(b); len(faults) > 0 {
				t.Errorf("%+v: %v", b, faults)
			}
		}
	}
	if faults := order.Own(&order.PlaceOrder{ID: "order-1/1"}); len(faults) > 0 {
		t.Errorf("%v", faults)
	}
}

// TestInternal: the commands that only servers send are commands of the domain.
func TestInternal(t *testing.T) {
	r, err := millrace.NewRegistry(order.Domains()...)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range order.Internal() {
		if _, ok := r.Knows(name); !ok {
			t.Errorf("%s is no command", name)
		}
	}
}
