package pgstore

import (
	"context"
	"fmt"
	"iter"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
)

const (
	// feedEvents is how many events a feed gathers into one piece: enough to make a consumer's commit worth its cost.
	feedEvents = 2048
	// feedBytes bounds what one query of a feed brings of each partition, but for the first event, which may be larger.
	feedBytes = 2 << 20
	// feedEach is the least that a query asks of each partition, however many are behind.
	feedEach = 32
	// feedPartitions is how many partitions one query reads from.
	feedPartitions = 64
)

// Feed implements millrace.Driver. Positions are given by the owner in the transaction that locks the partition's row,
// so whoever sees a position sees all before it: there is no gap to wait for, and one that shows is damage.
func (d *Driver) Feed(ctx context.Context, o millrace.FeedOptions) iter.Seq2[[]millrace.Recorded, error] {
	return func(yield func([]millrace.Recorded, error) bool) {
		if err := d.reads.Enter(); err != nil {
			yield(nil, err)
			return
		}
		defer d.reads.Leave()
		f, err := d.newFeed(ctx, o)
		if err != nil {
			yield(nil, err)
			return
		}
		for {
			if err := ctx.Err(); err != nil {
				if !o.Follow {
					yield(nil, err)
				}
				return
			}
			moved, closed := d.heads.wait()
			if closed {
				if !o.Follow {
					yield(nil, millrace.ErrClosed)
				}
				return
			}
			piece, err := f.read(ctx)
			if err != nil {
				if ctx.Err() == nil || !o.Follow {
					yield(nil, readError(ctx, err))
				}
				return
			}
			if len(piece) > 0 {
				if !yield(piece, nil) {
					return
				}
				continue
			}
			if !o.Follow {
				return
			}
			select {
			case <-moved:
			case <-ctx.Done():
			}
		}
	}
}

// feed is one reader.
type feed struct {
	d      *Driver
	wanted []int
	at     []uint64 // by partition
	until  []uint64 // nil for no end
	first  int      // of wanted: who is read first next, so that a busy partition does not hold the others up
	buf    []millrace.Recorded
}

func (d *Driver) newFeed(ctx context.Context, o millrace.FeedOptions) (*feed, error) {
	n := d.meta.Partitions
	f := &feed{d: d, at: make([]uint64, n)}
	is := make([]bool, n)
	for _, p := range o.Partitions {
		if p < 0 || p >= n {
			return nil, fmt.Errorf("%w: the store has no such partition", millrace.ErrInvalid)
		}
		is[p] = true
	}
	for p := range n {
		if f.at[p] = o.After.Position(p); o.Partitions == nil || is[p] {
			f.wanted = append(f.wanted, p)
		}
	}
	if o.Follow {
		return f, nil
	}
	if len(d.Owned()) < n { // others may have gone on
		if err := d.refresh(ctx, false); err != nil {
			return nil, readError(ctx, err)
		}
	}
	f.until = make([]uint64, n)
	for p, h := range d.heads.all() {
		f.until[p] = h.Position
	}
	return f, nil
}

// read gathers the next piece: from memory where it is there, from the database otherwise; nothing at the end.
func (f *feed) read(ctx context.Context) ([]millrace.Recorded, error) {
	f.buf = f.buf[:0]
	var behind []int
	ends := f.until
	if ends == nil {
		for _, h := range f.d.heads.all() {
			ends = append(ends, h.Position)
		}
	}
	for i := range f.wanted {
		p := f.wanted[(f.first+i)%len(f.wanted)]
		if f.at[p] >= ends[p] {
			continue
		}
		n := len(f.buf)
		var ok bool
		f.buf, ok = f.d.tails[p].read(f.buf, f.at[p], ends[p], feedEvents-n)
		if !ok {
			if len(behind) < feedPartitions {
				behind = append(behind, p)
			}
			continue
		}
		f.at[p] += uint64(len(f.buf) - n) //nolint:gosec // it grew
	}
	if f.first++; f.first >= len(f.wanted) {
		f.first = 0
	}
	if len(behind) == 0 || len(f.buf) >= feedEvents {
		return f.buf, nil
	}
	return f.buf, f.fetch(ctx, behind, ends)
}

// fetch reads from the database.
func (f *feed) fetch(ctx context.Context, behind []int, ends []uint64) error {
	after := make([]int64, len(behind))
	until := make([]int64, len(behind))
	for i, p := range behind {
		after[i], until[i] = int64(f.at[p]), int64(ends[p]) //nolint:gosec // counts events
	}
	limit := max((feedEvents-len(f.buf))/len(behind), feedEach)
	args := []any{int32s(behind), after, until, limit, feedBytes}
	n := len(f.buf)
	err := f.d.query(ctx, f.d.sql.feed, args, func(rows pgx.Rows) error {
		var e millrace.Recorded
		if err := scanEvent(rows, &e, &e.Partition, &e.Position, &e.Stream, &e.Version); err != nil {
			return err
		}
		if e.Position != f.at[e.Partition]+1 {
			return missing(e.Partition, f.at[e.Partition]+1)
		}
		f.at[e.Partition] = e.Position
		f.buf = append(f.buf, e)
		return nil
	})
	if err != nil {
		f.buf = f.buf[:n] // the reader may not go on
		return err
	}
	for i, p := range behind {
		if f.at[p] == uint64(after[i]) { //nolint:gosec // counts events
			return missing(p, f.at[p]+1)
		}
	}
	return nil
}

func missing(partition int, position uint64) error {
	return fmt.Errorf("%w: events: partition %d: position %d is missing", millrace.ErrCorrupt, partition, position)
}
