// Package payment holds the words that orders and payment gateways have in common.
package payment

import (
	"context"

	"github.com/millrace-io/millrace/internal/money"
)

// Kind is what is asked of a gateway.
type Kind string

// The kinds of requests. Authorise has money set aside, Capture takes what was set aside, Void lets it go again, Refund gives
// back what was taken.
const (
	Authorise Kind = "authorise"
	Capture   Kind = "capture"
	Void      Kind = "void"
	Refund    Kind = "refund"
)

// Request is one request.
type Request struct {
	Kind    Kind   `json:"kind"`
	OrderID string `json:"order_id"`
	// Payment is the gateway's name for the authorisation that is captured, voided or refunded.
	Payment string       `json:"payment,omitempty"`
	Amount  money.Amount `json:"amount"`
}

// Status is a gateway's answer. Both are final.
type Status string

// The answers.
const (
	Approved Status = "approved"
	Declined Status = "declined"
)

// Withdrawn is no answer of a gateway: nobody was asked, because the order was not to be paid any more when that was to be said. Its
// code is that of the refusal, or [CodeDead].
const Withdrawn Status = "withdrawn"

// CodeDead is the code of what was withdrawn because what was to say so became a dead letter.
const CodeDead = "dead_letter"

// Result is what a request came to.
type Result struct {
	Status  Status `json:"status"`
	Payment string `json:"payment,omitempty"` // the gateway's name for the authorisation
	Code    string `json:"code,omitempty"`    // why it was declined, for programs
}

// Gateway takes payments. However often it is asked under one key, it does one thing and gives one answer.
type Gateway interface {
	// Do makes one attempt. An error says that the answer is not known: the same request is then made again, under the same
	// key, until there is one. A no is an answer.
	Do(ctx context.Context, key string, r *Request) (Result, error)
}
