package payment

import (
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"
)

const (
	// MaxText bounds in bytes the names that a request holds, of an order and of a payment: they are names of streams here, and
	// stand in addresses there.
	MaxText = 200
	// RepairPause is how long a request waits for its next attempt that a gateway will not take as it is: until a person has
	// repaired the settings or the gateway. It is as long as the longest pause of a process.
	RepairPause = 5 * time.Minute
)

// UnknownError says that the answer is not known. The request may have been done, and is made again under its key.
type UnknownError struct {
	Err   error
	After time.Duration // when the gateway wants to be asked again; zero where it does not say
}

func (e *UnknownError) Error() string { return "the payment gateway gave no answer: " + e.Err.Error() }

// Unwrap gives what came instead.
func (e *UnknownError) Unwrap() error { return e.Err }

// RetryAfter is when the gateway wants to be asked again; zero where it does not say.
func (e *UnknownError) RetryAfter() time.Duration { return e.After }

// RefusedError says that a gateway does not take the request as it is: it is set up wrongly, or the request contradicts its
// books. That is no answer to whether money may be taken, so it is never a decline. A person has to look.
type RefusedError struct {
	Status int    // of HTTP; zero where there was none
	Code   string // what the gateway says, for programs; empty where it says nothing
	After  time.Duration
}

func (e *RefusedError) Error() string {
	said := "the payment gateway does not take the request"
	if e.Code != "" {
		said += ": " + e.Code
	}
	if e.Status != 0 {
		said += " (HTTP " + strconv.Itoa(e.Status) + ")"
	}
	return said
}

// RetryAfter is [RepairPause], or longer where the gateway wants that.
func (e *RefusedError) RetryAfter() time.Duration { return max(e.After, RepairPause) }

// CodeInvalid is the code of a request that no gateway is asked.
const CodeInvalid = "invalid_request"

// Check says what is wrong with a request that is wrong whatever the gateway. An amount of nothing is right: goods may be free.
// Errors: those that are a [*RefusedError] with [CodeInvalid].
func (r *Request) Check() error {
	switch {
	case r.Kind != Authorise && r.Kind != Capture && r.Kind != Void && r.Kind != Refund:
		return invalid("has an unknown kind")
	case r.OrderID == "" || len(r.OrderID) > MaxText || !utf8.ValidString(r.OrderID):
		return invalid("must name an order")
	case r.Amount.Currency == 0 || r.Amount.Minor < 0:
		return invalid("must have an amount of a currency, not below zero")
	case r.Kind == Authorise && r.Payment != "":
		return invalid("of a new payment cannot name it")
	case r.Kind != Authorise && !ValidName(r.Payment):
		return invalid("must name the payment")
	}
	return nil
}

func invalid(detail string) error {
	return fmt.Errorf("the request %s: %w", detail, &RefusedError{Code: CodeInvalid})
}

// ValidName says whether a text can be a gateway's name for a payment: letters, digits and -_.~:, and not dots alone. Such a
// name stands in an address as it is.
func ValidName(s string) bool {
	dots := true
	for i := range len(s) {
		c := s[i]
		if !letterOrDigit(c) && c != '-' && c != '_' && c != '.' && c != '~' && c != ':' {
			return false
		}
		dots = dots && c == '.'
	}
	return !dots && len(s) <= MaxText
}

// maxCode bounds a code in bytes: it is for programs.
const maxCode = 64

// ValidCode says whether a text can be a code: letters, digits and -_. and not too long. A text for people is none: it may hold
// what is nobody's business.
func ValidCode(s string) bool {
	for i := range len(s) {
		if c := s[i]; !letterOrDigit(c) && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return s != "" && len(s) <= maxCode
}

func letterOrDigit(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}
