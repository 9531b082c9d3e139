package pgstore

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
)

// The sizes of pages that iterators read. No connection is held while the caller works on one. The first is small, for
// callers who want only the beginning; each is larger than the one before.
const (
	firstPage = 64
	lastPage  = 1024
)

func nextPage(n int) int { return min(4*n, lastPage) }

// scanCommand reads commandColumns or freshColumns behind other columns.
func scanCommand(rows pgx.Rows, before ...any) (millrace.AcceptedCommand, error) {
	c := &millrace.Command{}
	var at int64
	var expected *int64
	var fp []byte
	err := rows.Scan(append(before, &c.ID, &c.Stream, &c.Type, &at, &expected, &c.CorrelationID, &c.CausationID, &c.Source, &c.Data, &fp)...)
	if err != nil {
		return millrace.AcceptedCommand{}, err
	}
	c.Time = nano(at)
	if expected != nil {
		v := uint64(*expected) //nolint:gosec // its highest bit was taken for a sign
		c.Expected = &v
	}
	a := millrace.AcceptedCommand{Command: c}
	if copy(a.Fingerprint[:], fp) != len(a.Fingerprint) {
		return a, fmt.Errorf("%w: commands: a fingerprint of %d bytes", millrace.ErrCorrupt, len(fp))
	}
	return a, nil
}

// Command implements millrace.Driver.
func (d *Driver) Command(ctx context.Context, id string) (millrace.Command, error) {
	if err := d.reads.Enter(); err != nil {
		return millrace.Command{}, err
	}
	defer d.reads.Leave()
	partition, ordinal := -1, int64(0)
	err := d.query(ctx, d.sql.keysOf, []any{[]string{id}}, func(rows pgx.Rows) error { return rows.Scan(&partition, &ordinal) })
	if err != nil {
		return millrace.Command{}, readError(ctx, err)
	}
	if partition < 0 {
		return millrace.Command{}, errNoCommand
	}
	var a millrace.AcceptedCommand
	err = d.query(ctx, d.sql.command, []any{partition, id, ordinal}, func(rows pgx.Rows) (err error) {
		a, err = scanCommand(rows)
		return err
	})
	if err != nil {
		return millrace.Command{}, readError(ctx, err)
	}
	if a.Command == nil {
		return millrace.Command{}, errNoCommand // its id was claimed and nothing kept
	}
	return *a.Command, nil
}

// commandBytes bounds what one query brings of many commands, but for the first one, which may be larger.
const commandBytes = 2 << 20

// Commands yields the accepted commands of some ids, in their order; ids that nobody has are left out. It is a few round trips for
// all, and what is read ahead of the caller is bounded. Errors: [millrace.ErrCorrupt], and those of every read.
func (d *Driver) Commands(ctx context.Context, ids []string) iter.Seq2[millrace.Command, error] {
	return func(yield func(millrace.Command, error) bool) {
		if err := d.reads.Enter(); err != nil {
			yield(millrace.Command{}, err)
			return
		}
		defer d.reads.Leave()
		for len(ids) > 0 {
			l := look{ids: ids[:min(len(ids), maxLookups)]}
			ids = ids[len(l.ids):]
			if err := d.lookUp(ctx, &l); err != nil {
				yield(millrace.Command{}, readError(ctx, err))
				return
			}
			for rest := l.inOrder(); len(rest.known) > 0; {
				page, n, err := d.someCommands(ctx, &rest)
				for i := range page {
					if !yield(*page[i].Command, nil) {
						return
					}
				}
				if err != nil {
					yield(millrace.Command{}, readError(ctx, err))
					return
				}
				rest.known, rest.in, rest.ordinals = rest.known[n:], rest.in[n:], rest.ordinals[n:]
			}
		}
	}
}

// someCommands reads the first of some commands, and says how many of the ids that was about.
func (d *Driver) someCommands(ctx context.Context, l *look) (page []millrace.AcceptedCommand, n int, err error) {
	err = d.query(ctx, d.sql.commands, []any{l.in, l.known, l.ordinals, commandBytes}, func(rows pgx.Rows) error {
		a, err := scanCommand(rows, &n)
		if err == nil {
			page = append(page, a)
		}
		return err
	})
	if len(page) == 0 {
		n = len(l.known) // their ids were claimed and nothing kept
	}
	return page, n, err
}

// Pending implements millrace.Driver. Each page is a snapshot of its own, later than the one before, and a command that
// commits late belongs into a page that was read already. One that was sent after that one was acknowledged must not be
// seen before it: so the pages behind the first end with what had been accepted when the first was asked for. Whatever
// was acknowledged before one of those was committed by then, and is in its place.
func (d *Driver) Pending(ctx context.Context, partition int) iter.Seq2[millrace.AcceptedCommand, error] {
	return func(yield func(millrace.AcceptedCommand, error) bool) {
		if err := d.reads.Enter(); err != nil {
			yield(millrace.AcceptedCommand{}, err)
			return
		}
		defer d.reads.Leave()
		var asked time.Time  // for the first page, by the database's clock
		var until *time.Time // of the pages behind it
		var at time.Time     // of the last one
		var seq int32
		var id string
		for size := firstPage; ; size = nextPage(size) {
			var page []millrace.AcceptedCommand
			err := d.query(ctx, d.sql.pending, []any{partition, at, seq, id, size, until}, func(rows pgx.Rows) error {
				a, err := scanCommand(rows, &asked, &at, &seq)
				if err == nil {
					id = a.Command.ID
					page = append(page, a)
				}
				return err
			})
			for i := range page {
				if ctx.Err() != nil {
					yield(millrace.AcceptedCommand{}, ctx.Err())
					return
				}
				if !yield(page[i], nil) {
					return
				}
			}
			if err != nil {
				yield(millrace.AcceptedCommand{}, readError(ctx, err))
				return
			}
			if len(page) < size {
				return
			}
			if until == nil {
				first := asked
				until = &first
			}
		}
	}
}

// PendingOf implements millrace.Shared. It ends with the first so many: who has decided those asks again.
func (d *Driver) PendingOf(ctx context.Context, partition int, category string) iter.Seq2[millrace.AcceptedCommand, error] {
	return func(yield func(millrace.AcceptedCommand, error) bool) {
		if err := millrace.NewStream(category, "x").Validate(); err != nil {
			yield(millrace.AcceptedCommand{}, err)
			return
		}
		if err := d.reads.Enter(); err != nil {
			yield(millrace.AcceptedCommand{}, err)
			return
		}
		defer d.reads.Leave()
		var page []millrace.AcceptedCommand
		var at time.Time
		var seq int32
		sql := strings.ReplaceAll(d.sql.pendingOf, "$C", category) // letters and digits, as was checked
		err := d.query(ctx, sql, []any{partition, lastPage}, func(rows pgx.Rows) error {
			a, err := scanCommand(rows, &at, &seq)
			if err == nil {
				page = append(page, a)
			}
			return err
		})
		if err != nil {
			yield(millrace.AcceptedCommand{}, readError(ctx, err))
			return
		}
		for i := range page {
			if !yield(page[i], nil) {
				return
			}
		}
	}
}

// Version implements millrace.Driver.
func (d *Driver) Version(ctx context.Context, s millrace.Stream) (uint64, error) {
	if err := d.reads.Enter(); err != nil {
		return 0, err
	}
	defer d.reads.Leave()
	var v int64
	err := d.query(ctx, d.sql.version, []any{s.Partition(d.meta.Partitions), string(s)}, func(rows pgx.Rows) error { return rows.Scan(&v) })
	return uint64(v), readError(ctx, err) //nolint:gosec // counts events
}

// Events implements millrace.Driver.
func (d *Driver) Events(ctx context.Context, s millrace.Stream, from uint64) iter.Seq2[millrace.Recorded, error] {
	return func(yield func(millrace.Recorded, error) bool) {
		if err := d.reads.Enter(); err != nil {
			yield(millrace.Recorded{}, err)
			return
		}
		defer d.reads.Leave()
		p := s.Partition(d.meta.Partitions)
		next := max(from, 1)
		for size := firstPage; ; size = nextPage(size) {
			var page []millrace.Recorded
			err := d.query(ctx, d.sql.events, []any{p, string(s), int64(next), size}, func(rows pgx.Rows) error { //nolint:gosec // counts events
				e := millrace.Recorded{Partition: p, Stream: s}
				if err := scanEvent(rows, &e, &e.Position, &e.Version); err != nil {
					return err
				}
				page = append(page, e)
				return nil
			})
			if err != nil {
				yield(millrace.Recorded{}, readError(ctx, err))
				return
			}
			for i := range page {
				if ctx.Err() != nil {
					yield(millrace.Recorded{}, ctx.Err())
					return
				}
				if page[i].Version != next {
					yield(millrace.Recorded{}, fmt.Errorf("%w: events: partition %d: version %d of a stream is missing", millrace.ErrCorrupt, p, next))
					return
				}
				next++
				if !yield(page[i], nil) {
					return
				}
			}
			if len(page) < size {
				return
			}
		}
	}
}

// scanEvent reads type, data, time and ids of an event behind other columns.
func scanEvent(rows pgx.Rows, e *millrace.Recorded, before ...any) error {
	var at int64
	if err := rows.Scan(append(before, &e.Type, &e.Data, &at, &e.CommandID, &e.CorrelationID)...); err != nil {
		return err
	}
	e.Time, e.CausationID = nano(at), e.CommandID
	return nil
}
