package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/millrace-io/millrace/internal/jsonx"
)

// The exit codes of the command line.
const (
	ExitFailed      = 1
	ExitUsage       = 2
	ExitCheck       = 3 // it ran, and what it found is not as it must be
	ExitUnavailable = 4
	ExitInterrupted = 130
)

// FieldError names one fault of a request by a JSON pointer.
type FieldError struct {
	Pointer string `json:"pointer"`
	Detail  string `json:"detail"`
}

// Problem is an answer of application/problem+json.
type Problem struct {
	Type     string       `json:"type"`
	Title    string       `json:"title"`
	Status   int          `json:"status"`
	Detail   string       `json:"detail"`
	Instance string       `json:"instance"`
	Code     string       `json:"code"`
	Errors   []FieldError `json:"errors"`
	TraceID  string       `json:"traceId"`
}

func (p *Problem) Error() string {
	text := fmt.Sprintf("the server answers %d %s", p.Status, p.Code)
	if p.Detail != "" {
		text += ": " + p.Detail
	}
	for i, e := range p.Errors {
		if i == 3 {
			return text + fmt.Sprintf(" (and %d more)", len(p.Errors)-i)
		}
		text += "; " + strings.TrimSpace(e.Pointer+" "+e.Detail)
	}
	return text
}

// Codes of problems that mean more to a client than their status does.
const (
	CodeDeadLetter = "dead_letter"
	CodeKeyReused  = "idempotency_key_reused"
	// CodeNotCaughtUp: the read model has not come as far as the cursor that the read names.
	CodeNotCaughtUp = "not_caught_up"

	codeOverloaded = "overloaded" // nothing was kept
)

// Kept says whether the problem is the outcome of a command, which stays the same for ever, rather than a fault of this
// request, of which nothing was kept.
func (p *Problem) Kept() bool {
	if strings.HasPrefix(p.Instance, "/v1/commands/") {
		return true
	}
	switch p.Status {
	case 409, 412, 422:
		return p.Code != CodeKeyReused
	}
	return false
}

// parseProblem reads a problem leniently: members that are not known here are passed over, because servers grow.
func parseProblem(status int, body []byte) *Problem {
	p := &Problem{Status: status}
	m, err := Members(body)
	if err != nil {
		p.Code, p.Detail = "not_a_problem", "the answer is not application/problem+json"
		return p
	}
	m.Into("type", &p.Type)
	m.Into("title", &p.Title)
	m.Into("detail", &p.Detail)
	m.Into("instance", &p.Instance)
	m.Into("code", &p.Code)
	m.Into("traceId", &p.TraceID)
	for _, e := range m.List("errors") {
		var f FieldError
		e.Into("pointer", &f.Pointer)
		e.Into("detail", &f.Detail)
		p.Errors = append(p.Errors, f)
	}
	return p
}

// Object is a JSON object of which only some members are of interest.
type Object map[string]jsonx.RawValue

// Members reads an object one level deep.
func Members(data []byte) (Object, error) {
	var m Object
	if err := jsonx.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	return m, nil
}

// Into decodes a member into v and says whether that worked. A missing member leaves v as it is.
func (o Object) Into(name string, v any) bool {
	raw, ok := o[name]
	return ok && jsonx.Unmarshal(raw, v) == nil
}

// Object gives a member that is itself an object, or nil.
func (o Object) Object(name string) Object {
	raw, ok := o[name]
	if !ok {
		return nil
	}
	m, err := Members(raw)
	if err != nil {
		return nil
	}
	return m
}

// List gives the objects of a member that is a list of them.
func (o Object) List(name string) []Object {
	var raw []Object
	if !o.Into(name, &raw) {
		return nil
	}
	return raw
}

// Text gives a member that is a string, or "".
func (o Object) Text(name string) string {
	var s string
	o.Into(name, &s)
	return s
}

// UnavailableError says that no server did what was asked within the time for it. What was sent may have been kept.
type UnavailableError struct {
	Servers  []string
	Attempts int
	After    time.Duration
	Last     error // what the last attempt met
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("%s: not available for %s (%d attempts): %v",
		strings.Join(e.Servers, ", "), e.After.Round(100*time.Millisecond), e.Attempts, e.Last)
}

// Unwrap gives what the last attempt met.
func (e *UnavailableError) Unwrap() error { return e.Last }

// ExitCode is the exit code for a remote that is not available.
func (e *UnavailableError) ExitCode() int { return ExitUnavailable }

// codedError gives an error its exit code.
type codedError struct {
	code int
	err  error
}

// WithCode gives an error an exit code.
func WithCode(code int, err error) error { return &codedError{code, err} }

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }
func (e *codedError) ExitCode() int { return e.code }

// ExitCode maps an error to the exit code of the process.
func ExitCode(err error) int {
	var coded interface{ ExitCode() int }
	switch {
	case err == nil:
		return 0
	case errors.As(err, &coded):
		return coded.ExitCode()
	case errors.Is(err, context.Canceled):
		return ExitInterrupted
	}
	return ExitFailed
}
