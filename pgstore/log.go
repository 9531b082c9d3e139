package pgstore

import (
	"context"
	"fmt"
	"iter"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
)

var _ millrace.Portable = (*Driver)(nil)

// logPage is how many decisions are read at a time.
const logPage = 500

// Log implements millrace.Portable: partition by partition, up to the heads of the time of the call.
func (d *Driver) Log(ctx context.Context) iter.Seq2[millrace.Logged, error] {
	return func(yield func(millrace.Logged, error) bool) {
		if err := d.reads.Enter(); err != nil {
			yield(millrace.Logged{}, err)
			return
		}
		defer d.reads.Leave()
		for p, until := range d.heads.all() {
			for at := int64(0); at < until.ordinal; {
				page, err := d.logged(ctx, p, at, until.ordinal)
				if err == nil && len(page) == 0 {
					err = fmt.Errorf("%w: outcomes: partition %d: outcome %d is missing", millrace.ErrCorrupt, p, at+1)
				}
				if err != nil {
					yield(millrace.Logged{}, readError(ctx, err))
					return
				}
				for i := range page {
					if !yield(millrace.Logged{Partition: p, Decision: page[i]}, nil) {
						return
					}
				}
				at += int64(len(page))
			}
		}
	}
}

// logged reads the decisions of a partition behind an ordinal.
func (d *Driver) logged(ctx context.Context, partition int, after, until int64) ([]millrace.Decision, error) {
	var page []millrace.Decision
	next := after
	events := 0
	err := d.query(ctx, d.sql.log, []any{partition, after, until, logPage}, func(rows pgx.Rows) error {
		var dec millrace.Decision
		var ordinal, position, version, at int64
		var n int
		var status int16
		var encoded, chain []byte
		a, err := scanCommand(rows, &ordinal, &status, &position, &version, &n, &at, &encoded, &chain)
		if err != nil {
			return err
		}
		if next++; ordinal != next || len(chain) != len(dec.Chain) {
			return fmt.Errorf("%w: outcomes: partition %d: outcome %d is missing", millrace.ErrCorrupt, partition, next)
		}
		if encoded != nil {
			if dec, err = millrace.DecodeDecision(encoded); err != nil {
				return err
			}
		}
		dec.Command, dec.Fresh, dec.Fingerprint, dec.Status = a.Command, true, a.Fingerprint, millrace.Status(status) //nolint:gosec // one of four
		dec.Position, dec.Version, dec.Time = uint64(position), uint64(version), nano(at)                             //nolint:gosec // counts events
		copy(dec.Chain[:], chain)
		if n > 0 {
			dec.Events = make([]millrace.NewEvent, n)
		}
		events += n
		page = append(page, dec)
		return nil
	})
	if err != nil || events == 0 {
		return page, err
	}
	// The events of a page are adjacent, in the order of its decisions.
	i, k := 0, 0
	from := page[0].Position
	err = d.query(ctx, d.sql.logEvents, []any{partition, int64(from), int64(from) + int64(events)}, func(rows pgx.Rows) error { //nolint:gosec // counts events
		for i < len(page) && k == len(page[i].Events) {
			i, k = i+1, 0
		}
		var position int64
		var e millrace.NewEvent
		if err := rows.Scan(&position, &e.Type, &e.Data); err != nil {
			return err
		}
		if i == len(page) || uint64(position) != page[i].Position+uint64(k)+1 { //nolint:gosec // counts events
			return fmt.Errorf("%w: events: partition %d: not the events of its outcomes at position %d", millrace.ErrCorrupt, partition, position)
		}
		page[i].Events[k] = e
		k++
		events--
		return nil
	})
	if err == nil && events != 0 {
		err = fmt.Errorf("%w: events: partition %d: %d events behind position %d are missing", millrace.ErrCorrupt, partition, events, from)
	}
	return page, err
}

// Collections implements millrace.Portable.
func (d *Driver) Collections(ctx context.Context) ([]string, error) {
	return d.names(ctx, d.sql.collections)
}

// Consumers implements millrace.Portable.
func (d *Driver) Consumers(ctx context.Context) ([]string, error) {
	return d.names(ctx, d.sql.consumers)
}

func (d *Driver) names(ctx context.Context, sql string) ([]string, error) {
	if err := d.reads.Enter(); err != nil {
		return nil, err
	}
	defer d.reads.Leave()
	var out []string
	err := d.query(ctx, sql, nil, func(rows pgx.Rows) error {
		var name string
		err := rows.Scan(&name)
		out = append(out, name)
		return err
	})
	return out, readError(ctx, err)
}
