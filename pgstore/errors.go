package pgstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

var (
	// ErrSchema: the tables are not those that this version works with.
	ErrSchema = errors.New("database schema")
)

// ConflictError says which commands made a batch fail. It is [millrace.ErrConflict].
type ConflictError struct {
	Partition int
	IDs       []string // of the commands, in no order; empty where the database did not say
	Behind    bool     // other nodes' commands come first
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("partition %d: %d commands: %v", e.Partition, len(e.IDs), millrace.ErrConflict)
}

// Unwrap makes errors.Is find millrace.ErrConflict, and millrace.ErrBehind where it is one.
func (e *ConflictError) Unwrap() error {
	if e.Behind {
		return millrace.ErrBehind
	}
	return millrace.ErrConflict
}

// The states that the functions of the migrations raise.
const (
	stateFenced   = "MR001"
	stateConflict = "MR002"
	stateToken    = "MR003"
	stateBehind   = "MR004"

	stateTaken = "23505" // unique_violation
)

// fault is what an error of the database means to a writer.
type fault int

const (
	faultNone     fault = iota
	faultPasses         // try again; what was sent may have been written
	faultFenced         // stateFenced
	faultConflict       // stateConflict, stateBehind, or a unique index that says the same
	faultToken          // stateToken
	faultInvalid        // the input cannot be kept
	faultFull           // no room on the disk: it passes when somebody makes room
	faultLocked         // somebody holds a row: the others need not wait with it
)

// classify says what an error means. What is not known passes: a wrong guess costs tries, and the other wrong guess
// would end a process for a trouble that is over by then.
func classify(err error) fault {
	if err == nil {
		return faultNone
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return faultPasses
	}
	switch pg.Code {
	case stateFenced:
		return faultFenced
	case stateConflict, stateBehind, stateTaken:
		return faultConflict
	case stateToken:
		return faultToken
	case "53100": // disk_full
		return faultFull
	case "55P03", "57014", "40P01", "40001": // lock_not_available, query_canceled, deadlock_detected, serialization_failure
		return faultLocked
	}
	switch pg.Code[:2] {
	case "22", "23", "54": // data exception, integrity constraint violation, program limit exceeded
		return faultInvalid
	}
	return faultPasses
}

// behind says whether a transaction was refused because other nodes' commands come first.
func behind(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == stateBehind
}

// claimed says whether a transaction failed because the id of one of its commands was not free.
func claimed(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == stateTaken && pg.TableName == "keys"
}

// conflicting are the ids that a conflict names.
func conflicting(err error) []string {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Detail == "" {
		return nil
	}
	var ids []string
	if jsonx.Unmarshal([]byte(pg.Detail), &ids) == nil {
		return ids
	}
	return nil
}

// unavailable wraps an error that passes.
func unavailable(err error) error { return fmt.Errorf("%w: %w", millrace.ErrUnavailable, err) }

// readError is what a reader is told of an error of the database.
func readError(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, millrace.ErrClosed), errors.Is(err, millrace.ErrCorrupt), errors.Is(err, millrace.ErrUnavailable):
		return err
	case classify(err) == faultInvalid:
		return fmt.Errorf("%w: %w", millrace.ErrInvalid, err)
	}
	return unavailable(err)
}

// lost says whether an error is that of a connection, so that a read on another one may succeed at once.
func lost(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
	}
	return strings.HasPrefix(pg.Code, "57P") || strings.HasPrefix(pg.Code, "08") || pg.Code == "40001" || pg.Code == "40P01"
}

// answered says whether the database itself refused, while it works: it is read-only, its disk is full.
func answered(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && !lost(err)
}
