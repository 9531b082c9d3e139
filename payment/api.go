package payment

import (
	"errors"
	"fmt"
	"strings"

	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/money"
	pay "github.com/millrace-io/millrace/internal/payment"
)

const (
	// PathPayments is where payments are made; what is done with one is below it, by the payment's name and the verb.
	PathPayments = "/v1/payments"
	// KeyHeader carries the key of a request.
	KeyHeader = "Idempotency-Key"
	// MaxKey bounds a key in bytes, as it is in the header: an id of a call is three names of streams at most, and each byte of it
	// may need three there.
	MaxKey = 2048
)

// Body is what is posted.
type Body struct {
	OrderID string       `json:"order_id"`
	Amount  money.Amount `json:"amount"`
}

// Answer is what comes back. It repeats what was asked.
type Answer struct {
	Key     string       `json:"key"`
	Kind    pay.Kind     `json:"kind"`
	OrderID string       `json:"order_id"`
	Amount  money.Amount `json:"amount"`
	Status  pay.Status   `json:"status"`
	Payment string       `json:"payment,omitempty"`
	Code    string       `json:"code,omitempty"`
}

// codeDeclined stands in for a reason that a gateway does not give, or not by a code.
const codeDeclined = "declined"

// HeaderKey is a key as it is in the header: what is not printable ASCII, and the space and the percent sign, as %XX. A header
// takes nothing else whole on every way.
func HeaderKey(key string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	b.Grow(len(key))
	for i := range len(key) {
		c := key[i]
		if c > ' ' && c < 0x7f && c != '%' {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(hex[c>>4])
		b.WriteByte(hex[c&15])
	}
	return b.String()
}

// ReadAnswer reads an answer. Members that it does not know are passed over: a gateway may say more. Errors tell what is wrong
// with it and repeat nothing of it.
func ReadAnswer(data []byte) (Answer, error) {
	var members map[string]jsonx.RawValue
	if err := jsonx.Unmarshal(data, &members); err != nil {
		return Answer{}, err
	}
	var a Answer
	for _, m := range []struct {
		name string
		to   any
		must bool
	}{
		{"key", &a.Key, true},
		{"kind", &a.Kind, true},
		{"order_id", &a.OrderID, true},
		{"amount", &a.Amount, true},
		{"status", &a.Status, true},
		{"payment", &a.Payment, false},
		{"code", &a.Code, false},
	} {
		value := members[m.name]
		if len(value) == 0 || string(value) == "null" {
			if m.must {
				return Answer{}, fmt.Errorf("member %s is missing", m.name)
			}
			continue
		}
		if err := jsonx.Unmarshal(value, m.to); err != nil {
			return Answer{}, fmt.Errorf("member %s: %w", m.name, err)
		}
	}
	switch {
	case a.Status != pay.Approved && a.Status != pay.Declined:
		return Answer{}, errors.New("member status is neither approved nor declined")
	case a.Payment != "" && !pay.ValidName(a.Payment):
		return Answer{}, errors.New("member payment is no name of a payment")
	case a.Status == pay.Approved && a.Payment == "":
		return Answer{}, errors.New("member payment is missing")
	}
	return a, nil
}

// to is what the answer means, if it is the one to a request.
func (a *Answer) to(key string, r *pay.Request) (pay.Result, error) {
	switch {
	case a.Key != key:
		return pay.Result{}, errors.New("it is the answer to another key")
	case a.Kind != r.Kind:
		return pay.Result{}, errors.New("it is the answer to a request of another kind")
	case a.OrderID != r.OrderID:
		return pay.Result{}, errors.New("it is the answer for another order")
	case a.Amount != r.Amount:
		return pay.Result{}, errors.New("it is the answer for another amount")
	case r.Payment != "" && a.Payment != "" && a.Payment != r.Payment:
		return pay.Result{}, errors.New("it is the answer for another payment")
	}
	if a.Status == pay.Approved {
		return pay.Result{Status: pay.Approved, Payment: a.Payment}, nil
	}
	code := a.Code
	if !pay.ValidCode(code) {
		code = codeDeclined
	}
	return pay.Result{Status: pay.Declined, Payment: r.Payment, Code: code}, nil
}

// problemCode is the code in a body that is no answer, or nothing.
func problemCode(data []byte) string {
	var members map[string]jsonx.RawValue
	var code string
	if jsonx.Unmarshal(data, &members) != nil || jsonx.Unmarshal(members["code"], &code) != nil || !pay.ValidCode(code) {
		return ""
	}
	return code
}
