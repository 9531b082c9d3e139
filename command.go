package millrace

import (
	"context"
	"crypto/sha256"
	"time"
)

const (
	// MaxCommandID bounds a command id (= idempotency key) in bytes, as the Idempotency-Key draft does.
	MaxCommandID = 255
	// MaxTypeName bounds the name of a command or event type.
	MaxTypeName = 100
	// MaxCommandData bounds a command's body in bytes. An order of 5,000 lines takes about 600 KB.
	MaxCommandData = 1 << 20
)

// Command is a wish, in the imperative: it may be refused. ID is the idempotency key, unique over the whole store.
type Command struct {
	ID     string
	Stream Stream
	Type   string
	// Data is the body as it came, byte for byte: what was checked is what is fingerprinted and kept.
	Data []byte
	// Expected is the version the stream must be at, or nil for any. Another version refuses the command.
	Expected *uint64
	// Time is when the command was accepted. It is the only clock a decision sees.
	Time          time.Time
	CorrelationID string // defaults to ID
	CausationID   string // what led to the command: an event's id, or empty
	Source        string // the door it came through: http, import, kafka …

	// Body is Data decoded, where the door has done that already. It is never stored.
	Body any
}

// Fingerprint identifies what a command asks for: SHA-256 over stream, type and body, each led by its length.
type Fingerprint [sha256.Size]byte

// Fingerprint computes the command's fingerprint. The id, the time and the ids of its story are not part of it.
func (c *Command) Fingerprint() Fingerprint {
	// One buffer and one call: three writes to a streaming hash cost more than the copy.
	// A small one stays on the stack.
	var small [1024]byte
	buf := appendString(small[:0], string(c.Stream))
	buf = appendString(buf, c.Type)
	buf = appendBytes(buf, c.Data)
	return sha256.Sum256(buf)
}

// Status says how far a command has come.
type Status uint8

// The statuses of a command. Every accepted command ends as exactly one of the last three, for ever.
const (
	StatusAccepted Status = iota + 1 // kept, not decided yet
	StatusDecided                    // its events (possibly none) are in the log
	StatusRefused                    // a business answer: the rules say no
	StatusDead                       // a dead letter: it could not be mapped or decided
)

var statusNames = [...]string{StatusAccepted: "accepted", StatusDecided: "decided", StatusRefused: "refused", StatusDead: "dead"}

func (s Status) String() string {
	if int(s) < len(statusNames) && statusNames[s] != "" {
		return statusNames[s]
	}
	return "unknown"
}

// RefusalKind is the family of a refusal; each has one HTTP status.
type RefusalKind uint8

// The kinds of refusal.
const (
	RefusedRule     RefusalKind = iota + 1 // the content breaks a rule: 422
	RefusedConflict                        // the state does not allow it: 409
	RefusedNotFound                        // there is nothing to act on: 404
	RefusedVersion                         // the stream is not at the expected version: 412
)

// Refusal is a business answer, kept as the command's outcome. It is never an error.
type Refusal struct {
	Kind   RefusalKind  `json:"kind"`
	Code   string       `json:"code"`   // stable, for programs: "order_cancelled"
	Detail string       `json:"detail"` // for people; never repeats an input value
	Errors []FieldError `json:"errors,omitempty"`
}

// Failure says why a command became a dead letter.
type Failure struct {
	Reason   string `json:"reason"` // one of the Reason constants
	Error    string `json:"error"`
	Attempts int    `json:"attempts"`
}

// The reasons of dead letters: a closed list, documented in docs/reference.
const (
	ReasonUnknownType = "unknown_type"     // no command of that type is known
	ReasonUndecodable = "undecodable"      // the body does not fit the type
	ReasonDecide      = "decision_failed"  // the decision panicked or broke a contract
	ReasonState       = "state_unreadable" // the stream's own events cannot be read or folded
	ReasonHandler     = "handler_failed"   // a consumer's handler failed for good
)

// Outcome is what became of a command.
type Outcome struct {
	CommandID   string
	Stream      Stream
	Partition   int
	Fingerprint Fingerprint
	Status      Status
	// Position is the partition's head right after the outcome: what a reader must have seen to see its effect.
	Position uint64
	Version  uint64 // the stream's version right after the outcome
	Events   int    // how many events it led to; they end at Version
	Time     time.Time
	Refusal  *Refusal // of StatusRefused
	Failure  *Failure // of StatusDead
}

// Done says whether the outcome is final.
func (o *Outcome) Done() bool { return o.Status > StatusAccepted }

// Receipt is the proof that a command is on disk. Receipts of the same command are interchangeable.
type Receipt struct {
	CommandID string
	Stream    Stream
	// Replayed: the command was known before; nothing new was kept.
	Replayed bool

	settled *Outcome
	waiter  Waiter
}

// Waiter knows when a command has its final outcome.
type Waiter interface {
	// Await returns the final outcome, or ctx's error where that comes first, or [ErrClosed] where nobody decides any
	// more; the command stays accepted then.
	Await(ctx context.Context) (Outcome, error)
}

// NewReceipt makes a receipt whose outcome is known.
func NewReceipt(o Outcome, replayed bool) *Receipt {
	return &Receipt{CommandID: o.CommandID, Stream: o.Stream, Replayed: replayed, settled: &o}
}

// NewPendingReceipt makes a receipt whose outcome w will know.
func NewPendingReceipt(id string, s Stream, replayed bool, w Waiter) *Receipt {
	return &Receipt{CommandID: id, Stream: s, Replayed: replayed, waiter: w}
}

// Wait returns the final outcome; for its errors see [Waiter].
func (r *Receipt) Wait(ctx context.Context) (Outcome, error) {
	if r.settled != nil {
		return *r.settled, nil
	}
	return r.waiter.Await(ctx)
}

// Intake is the one door in.
type Intake interface {
	// Accept keeps the command and returns when it is on disk, never before. A known id with the same fingerprint
	// answers the first receipt again. Errors: [ErrInvalid] (form), [ErrKeyReused], [*OverloadError], [ErrFull],
	// [ErrFailed], [ErrClosed]; and ctx's error, after which the command may or may not have been kept.
	Accept(ctx context.Context, c Command) (*Receipt, error)
	// AcceptAll accepts many at once, in order for each stream, and returns when all are on disk. The results
	// stand in the order of the commands; each command fails alone.
	AcceptAll(ctx context.Context, cs []Command) []Accepted
}

// Accepted is one result of AcceptAll.
type Accepted struct {
	Receipt *Receipt
	Err     error
}
