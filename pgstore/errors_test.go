package pgstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-io/millrace"
)

func TestClassify(t *testing.T) {
	state := func(code string) error { return fmt.Errorf("write: %w", &pgconn.PgError{Code: code}) }
	for _, c := range []struct {
		err  error
		want fault
	}{
		{nil, faultNone},
		{io.ErrUnexpectedEOF, faultPasses}, {context.DeadlineExceeded, faultPasses}, {state("57P01"), faultPasses},
		{state("53300"), faultPasses}, {state("25006"), faultPasses}, {state("42501"), faultPasses}, {state("XX000"), faultPasses},
		{state("08006"), faultPasses}, {state("58030"), faultPasses},
		{state("53100"), faultFull},
		{state("40001"), faultLocked}, {state("40P01"), faultLocked}, {state("55P03"), faultLocked}, {state("57014"), faultLocked},
		{state("MR001"), faultFenced}, {state("MR002"), faultConflict}, {state("23505"), faultConflict}, {state("MR003"), faultToken},
		{state("22021"), faultInvalid}, {state("23502"), faultInvalid}, {state("54000"), faultInvalid},
	} {
		if got := classify(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
	ids := conflicting(&pgconn.PgError{Detail: `["a","b\"c"]`})
	if !slices.Equal(ids, []string{"a", `b"c`}) || conflicting(&pgconn.PgError{Detail: "Key (id)=(x) already exists."}) != nil || conflicting(io.EOF) != nil {
		t.Errorf("ids %q", ids)
	}
}

// Whatever passes is said to pass, a full disk in the words of the contracts, and nothing that passes is ErrFailed.
func TestWritableSaysWhatPasses(t *testing.T) {
	s := open(t, server(t).DSN("postgres"), four(t, nil))
	d := driverOf(s)
	d.reached(&pgconn.PgError{Code: "53100"}, true)
	if err := s.Writable(); !errors.Is(err, millrace.ErrFull) {
		t.Errorf("a full disk: %v", err)
	}
	d.reached(nil, false) // that reads go on says nothing
	if err := s.Writable(); !errors.Is(err, millrace.ErrFull) {
		t.Errorf("a full disk, after a read: %v", err)
	}
	must(t, commitOne(s, 1, decided(command("c", 1), true, 1)))
	must(t, s.Writable())
	d.reached(io.EOF, true)
	if err := s.Writable(); err != nil && (!errors.Is(err, millrace.ErrUnavailable) || !millrace.IsTransient(err)) {
		t.Errorf("a lost connection: %v", err)
	}
}
