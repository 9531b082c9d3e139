package payment_test

import (
	"testing"

	"github.com/millrace-io/millrace/internal/paymenttest"
	"github.com/millrace-io/millrace/payment"
)

func TestAccount(t *testing.T) {
	paymenttest.RunGateway(t, func(*testing.T) paymenttest.Subject { return paymenttest.Subject{Gateway: payment.Account()} })
}
