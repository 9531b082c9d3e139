package payment_test

import (
	"testing"

	"github.com/millrace-io/millrace/internal/paymenttest"
	"github.com/millrace-io/millrace/sim/gateway"
)

// TestHTTP holds the adapter to the contract, against the simulator.
func TestHTTP(t *testing.T) {
	paymenttest.RunGateway(t, func(t *testing.T) paymenttest.Subject {
		g, err := gateway.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		return paymenttest.Subject{Gateway: dial(t, serve(t, g).URL, nil), Books: func(order string) (b paymenttest.Books) {
			l, _ := g.Order(order)
			for _, p := range l.Payments {
				b.Payments++
				b.Authorised, b.Captured = b.Authorised+p.Authorised.Minor, b.Captured+p.Captured.Minor
				b.Voided, b.Refunded = b.Voided+p.Voided.Minor, b.Refunded+p.Refunded.Minor
			}
			return b
		}}
	})
}
