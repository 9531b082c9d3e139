package order

import (
	"fmt"
	"slices"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/money"
)

// RecordReturn records goods that came back without an order to book them on. Quantities are what came back.
type RecordReturn struct {
	// ID, where it is given, must be the id of the stream.
	ID              string        `json:"id,omitempty"`
	CustomerID      string        `json:"customer_id,omitempty"`
	Currency        string        `json:"currency"`
	ReturnedAt      *time.Time    `json:"returned_at,omitempty"` // defaults to the time of acceptance
	Reason          string        `json:"reason,omitempty"`
	OriginalOrderID string        `json:"original_order_id,omitempty"`
	Lines           []LineRequest `json:"lines"`
}

// Validate checks the form.
func (c *RecordReturn) Validate() []millrace.FieldError {
	var f faults
	f.id("/id", c.ID)
	f.id("/customer_id", c.CustomerID)
	f.currency("/currency", c.Currency)
	f.time("/returned_at", c.ReturnedAt)
	f.text("/reason", c.Reason, MaxReason, false)
	f.id("/original_order_id", c.OriginalOrderID)
	f.lines(c.Lines)
	return f
}

// GoodsReturned is the one event of a return.
type GoodsReturned struct {
	At              time.Time      `json:"at"`
	CustomerID      string         `json:"customer_id,omitempty"`
	Currency        money.Currency `json:"currency"`
	ReturnedAt      time.Time      `json:"returned_at"`
	Reason          string         `json:"reason,omitempty"`
	OriginalOrderID string         `json:"original_order_id,omitempty"`
	Lines           []OrderedLine  `json:"lines"`
	Units           int64          `json:"units"`
	Total           money.Amount   `json:"total"`
}

// Return is the state of a return, and as JSON its document and what the API shows. It is never changed.
type Return struct {
	ID              string         `json:"id"`
	Version         uint64         `json:"version"`
	CustomerID      string         `json:"customer_id,omitempty"`
	Currency        money.Currency `json:"currency,omitzero"`
	ReturnedAt      time.Time      `json:"returned_at"`
	UpdatedAt       time.Time      `json:"updated_at"`
	Reason          string         `json:"reason,omitempty"`
	OriginalOrderID string         `json:"original_order_id,omitempty"`
	Lines           []OrderedLine  `json:"lines"`
	Units           int64          `json:"units"`
	Total           money.Amount   `json:"total,omitzero"`
}

// CodeReturnExists refuses a return whose id is taken by another content.
const CodeReturnExists = "return_exists"

// Exists says whether the return was recorded.
func (r *Return) Exists() bool { return r.Version > 0 }

func initialReturn(id string) *Return { return &Return{ID: id} }

func evolveReturn(r *Return, event any) *Return {
	e, ok := event.(*GoodsReturned)
	if !ok {
		panic(fmt.Sprintf("order: event %T is not declared", event))
	}
	return &Return{
		ID: r.ID, Version: r.Version + 1, CustomerID: e.CustomerID, Currency: e.Currency, ReturnedAt: e.ReturnedAt,
		UpdatedAt: e.At, Reason: e.Reason, OriginalOrderID: e.OriginalOrderID, Lines: e.Lines, Units: e.Units, Total: e.Total,
	}
}

func decideReturn(r *Return, command any, at time.Time) ([]any, *millrace.Refusal) {
	c, ok := command.(*RecordReturn)
	if !ok {
		panic(fmt.Sprintf("order: command %T is not declared", command))
	}
	if c.ID != "" && c.ID != r.ID {
		return nil, rule(CodeIDMismatch, "the id in the body is not the id of the return",
			millrace.FieldError{Pointer: "/id", Detail: "must be the id of the return"})
	}
	at = at.UTC()
	e := &GoodsReturned{
		At: at, CustomerID: c.CustomerID, ReturnedAt: at, Reason: c.Reason, OriginalOrderID: c.OriginalOrderID,
	}
	if c.ReturnedAt != nil {
		e.ReturnedAt = c.ReturnedAt.UTC()
	}
	var refusal *millrace.Refusal
	if e.Currency, refusal = parseCurrency(c.Currency); refusal == nil {
		e.Lines, e.Units, e.Total, refusal = priceLines(c.Lines, e.Currency)
	}
	if r.Exists() {
		if refusal == nil && r.holds(e, c.ReturnedAt != nil) {
			return nil, nil
		}
		return nil, conflict(CodeReturnExists, "there is a return with this id and another content")
	}
	if detail := IDFault(r.ID); detail != "" {
		return nil, rule(CodeIDInvalid, "the return's id "+detail)
	}
	if refusal != nil {
		return nil, refusal
	}
	return []any{e}, nil
}

// holds says whether the return has the content of a recording.
func (r *Return) holds(e *GoodsReturned, timed bool) bool {
	return r.CustomerID == e.CustomerID && r.Currency == e.Currency && (!timed || r.ReturnedAt.Equal(e.ReturnedAt)) &&
		r.Reason == e.Reason && r.OriginalOrderID == e.OriginalOrderID && slices.Equal(r.Lines, e.Lines)
}
