package millrace

import (
	"errors"
	"fmt"
	"time"
)

// Sentinel errors. A refusal is not among them: it is an answer, see [Refusal].
var (
	// ErrInvalid: the input has the wrong form; nothing was kept.
	ErrInvalid = errors.New("invalid")
	// ErrNotFound: no such command, stream, document or read model.
	ErrNotFound = errors.New("not found")
	// ErrKeyReused: the command id was used before with another stream, type or body; nothing was kept.
	ErrKeyReused = errors.New("command id was used before with another content")
	// ErrCursorEpoch: the cursor was given out by another store, or before a restore.
	ErrCursorEpoch = errors.New("cursor belongs to another store or an earlier epoch")
	// ErrFull: the disk is (nearly) full; writes are refused, reads go on.
	ErrFull = errors.New("no space left for new facts")
	// ErrFailed: a write or a sync failed; the store acknowledges nothing any more and must be opened again.
	ErrFailed = errors.New("store failed and must be opened again")
	// ErrClosed: the store or the processor was closed.
	ErrClosed = errors.New("closed")
	// ErrCorrupt: what was read is not what was written. The error's text names the file and the offset.
	ErrCorrupt = errors.New("corrupt")
	// ErrFenced: the partition has another owner by now; nothing was written.
	ErrFenced = errors.New("partition is owned by somebody else")
	// ErrConflict: another node has kept or decided commands meanwhile that the batch should have known of, or an id has
	// another content there. Nothing of the batch was written; the owner must go on from what the store has, see
	// [Store.Reload].
	ErrConflict = errors.New("another node has kept or decided commands meanwhile")
	ErrBehind   = fmt.Errorf("%w: they come first", ErrConflict) // see [Batch].InOrder
	// ErrUnavailable: the backend's server does not answer, or refuses for reasons that pass: it restarts, fails over, has no
	// connection left. It is transient; whether what was being written is there is not known.
	ErrUnavailable = errors.New("database is unavailable")
)

// OverloadError says that a command was not accepted because too much waits already. Nothing was kept; the same
// command may be sent again after RetryAfter.
type OverloadError struct {
	What       string        // what is full, for people: "queue", "backlog"
	RetryAfter time.Duration // when to try again
}

func (e *OverloadError) Error() string {
	return fmt.Sprintf("overloaded: the %s is full, try again in %s", e.What, e.RetryAfter)
}

// FieldError names one fault of an input by a JSON pointer. Detail never repeats the value.
type FieldError struct {
	Pointer string `json:"pointer"`
	Detail  string `json:"detail"`
}
