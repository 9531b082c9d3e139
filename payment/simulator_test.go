package payment_test

import (
	"net/http"
	"testing"

	"github.com/millrace-io/millrace/internal/paymenttest"
	"github.com/millrace-io/millrace/sim/gateway"
)

// TestHTTP holds the adapter to the contract, against the simulator, and both to the document.
func TestHTTP(t *testing.T) {
	router := theDocument(t)
	paymenttest.RunGateway(t, func(t *testing.T) paymenttest.Subject {
		g, err := gateway.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		h := judge(router, g, func(r *http.Request, status int, answer []byte, err error) {
			if err != nil {
				t.Errorf("%s is not as the document says: %v\nanswer: %d %s", r.URL.Path, err, status, answer)
			}
		})
		return paymenttest.Subject{Gateway: dial(t, serve(t, h).URL, nil), Books: func(order string) (b paymenttest.Books) {
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

// TestFaultsFitTheDocument: a gateway that declines, fails and is down still answers as the document says.
func TestFaultsFitTheDocument(t *testing.T) {
	router := theDocument(t)
	for _, c := range []struct {
		faults gateway.Faults
		status int
	}{
		{gateway.Faults{Decline: 1}, http.StatusPaymentRequired},
		{gateway.Faults{Fail: 1}, http.StatusInternalServerError},
		{gateway.Faults{Down: true}, http.StatusServiceUnavailable},
	} {
		g, err := gateway.New(&gateway.Options{Faults: c.faults})
		if err != nil {
			t.Fatal(err)
		}
		s := serve(t, judge(router, g, func(_ *http.Request, status int, answer []byte, err error) {
			if err != nil || status != c.status {
				t.Errorf("%+v: %d %s %v, want %d", c.faults, status, answer, err, c.status)
			}
		}))
		_, _ = dial(t, s.URL, nil).Do(t.Context(), "k", authorise()) // other tests hold what it makes of it
	}
}
