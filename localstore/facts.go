package localstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/cockroachdb/pebble/v2"

	"github.com/millrace-io/millrace"
)

// feedEvents is how many events a feed gathers into one piece: enough to make a consumer's commit worth its cost.
const feedEvents = 2048

// errNoCommand is the usual answer, since most commands are new: it is made once.
var errNoCommand = fmt.Errorf("%w: no command of that id", millrace.ErrNotFound)

func (d *driver) lookup(id string) (commandEntry, bool, error) {
	if d.known.absentCommand(id) {
		return commandEntry{}, false, nil
	}
	v, closer, err := d.db.Get(commandKey(nil, id))
	if errors.Is(err, pebble.ErrNotFound) {
		return commandEntry{}, false, nil
	}
	if err != nil {
		return commandEntry{}, false, indexError(err)
	}
	e, err := decodeCommandEntry(v)
	return e, true, errors.Join(err, closer.Close())
}

// Lookup implements millrace.Driver.
func (d *driver) Lookup(_ context.Context, id string) (millrace.Outcome, error) {
	if err := d.reads.Enter(); err != nil {
		return millrace.Outcome{}, err
	}
	defer d.reads.Leave()
	e, ok, err := d.lookup(id)
	if err != nil {
		return millrace.Outcome{}, err
	}
	if !ok {
		return millrace.Outcome{}, errNoCommand
	}
	if e.decision == 0 {
		c, err := d.readCommand(e.command, id)
		if err != nil {
			return millrace.Outcome{}, err
		}
		return millrace.Outcome{
			CommandID: id, Stream: c.Stream, Partition: e.partition, Fingerprint: e.fingerprint,
			Status: millrace.StatusAccepted, Time: c.Time,
		}, nil
	}
	r, err := d.files.readRecord(e.decision)
	if err != nil {
		return millrace.Outcome{}, err
	}
	p, dec, err := r.decision()
	if err != nil {
		return millrace.Outcome{}, err
	}
	if dec.Command.ID != id {
		return millrace.Outcome{}, r.corrupt("the index points to the decision of another command")
	}
	return dec.Outcome(p), nil
}

// readCommand reads the command that the index says is there. Its id is compared: a record of another place may be
// valid in itself.
func (d *driver) readCommand(at loc, id string) (millrace.Command, error) {
	r, err := d.files.readRecord(at)
	if err != nil {
		return millrace.Command{}, err
	}
	_, c, err := r.command()
	if err == nil && c.ID != id {
		err = r.corrupt("the index points to another command")
	}
	return c, err
}

// Command implements millrace.Driver.
func (d *driver) Command(_ context.Context, id string) (millrace.Command, error) {
	if err := d.reads.Enter(); err != nil {
		return millrace.Command{}, err
	}
	defer d.reads.Leave()
	e, ok, err := d.lookup(id)
	if err != nil {
		return millrace.Command{}, err
	}
	if !ok {
		return millrace.Command{}, errNoCommand
	}
	return d.readCommand(e.command, id)
}

// Pending implements millrace.Driver.
func (d *driver) Pending(ctx context.Context, partition int) iter.Seq2[millrace.AcceptedCommand, error] {
	return func(yield func(millrace.AcceptedCommand, error) bool) {
		if err := d.reads.Enter(); err != nil {
			yield(millrace.AcceptedCommand{}, err)
			return
		}
		defer d.reads.Leave()
		prefix := pendingKey(nil, partition, 0)[:3]
		it, err := d.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: prefix, UpperBound: prefixEnd(prefix)})
		if err != nil {
			yield(millrace.AcceptedCommand{}, indexError(err))
			return
		}
		defer func() { _ = it.Close() }() // its error is looked at below
		for ok := it.First(); ok; ok = it.Next() {
			if err := ctxDone(ctx); err != nil {
				yield(millrace.AcceptedCommand{}, err)
				return
			}
			id, err := it.ValueAndErr()
			if err != nil {
				yield(millrace.AcceptedCommand{}, indexError(err))
				return
			}
			c, err := d.readCommand(loc(binary.BigEndian.Uint64(it.Key()[3:])), string(id))
			if err != nil {
				yield(millrace.AcceptedCommand{}, err)
				return
			}
			if !yield(millrace.AcceptedCommand{Command: &c, Fingerprint: c.Fingerprint()}, nil) {
				return
			}
		}
		if err := it.Error(); err != nil {
			yield(millrace.AcceptedCommand{}, indexError(err))
		}
	}
}

// Version implements millrace.Driver.
func (d *driver) Version(_ context.Context, s millrace.Stream) (uint64, error) {
	if err := d.reads.Enter(); err != nil {
		return 0, err
	}
	defer d.reads.Leave()
	if d.known.absentStream(s) {
		return 0, nil
	}
	// The newest span says it. A key of its own for the newest version would save this look, which only a stream that is
	// not in memory needs, and cost each command a third more in the index.
	it, err := d.db.NewIter(&pebble.IterOptions{LowerBound: spanKey(nil, s, 0), UpperBound: spanKey(nil, s, ^uint64(0))})
	if err != nil {
		return 0, indexError(err)
	}
	var newest span
	if it.Last() {
		v, verr := it.ValueAndErr()
		if err = verr; err == nil {
			newest, err = decodeSpan(v)
		}
	}
	if cerr := it.Close(); err == nil && cerr != nil {
		err = cerr
	}
	if err != nil && !errors.Is(err, millrace.ErrCorrupt) {
		err = indexError(err)
	}
	return newest.last, err
}

// Events implements millrace.Driver.
func (d *driver) Events(ctx context.Context, s millrace.Stream, from uint64) iter.Seq2[millrace.Recorded, error] {
	return func(yield func(millrace.Recorded, error) bool) {
		if err := d.reads.Enter(); err != nil {
			yield(millrace.Recorded{}, err)
			return
		}
		defer d.reads.Leave()
		from = max(from, 1)
		lower := spanKey(nil, s, 0)
		it, err := d.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: lower, UpperBound: spanKey(nil, s, ^uint64(0))})
		if err != nil {
			yield(millrace.Recorded{}, indexError(err))
			return
		}
		defer func() { _ = it.Close() }() // its error is looked at below
		// The span that holds version from begins at it or before it.
		ok := it.SeekLT(spanKey(nil, s, from+1))
		if !ok {
			ok = it.First()
		}
		next := from
		for ; ok; ok = it.Next() {
			if err := ctxDone(ctx); err != nil {
				yield(millrace.Recorded{}, err)
				return
			}
			v, err := it.ValueAndErr()
			if err != nil {
				yield(millrace.Recorded{}, indexError(err))
				return
			}
			sp, err := decodeSpan(v)
			if err != nil {
				yield(millrace.Recorded{}, err)
				return
			}
			if sp.last < from {
				continue
			}
			more, err := d.spanEvents(s, sp, &next, yield)
			if err != nil {
				yield(millrace.Recorded{}, err)
				return
			}
			if !more {
				return
			}
		}
		if err := it.Error(); err != nil {
			yield(millrace.Recorded{}, indexError(err))
		}
	}
}

// spanEvents yields the events of a stream in one span, from version *next on.
func (d *driver) spanEvents(s millrace.Stream, sp span, next *uint64, yield func(millrace.Recorded, error) bool) (more bool, err error) {
	b, err := d.files.readSpan(sp.at, sp.length)
	if err != nil {
		return false, err
	}
	at := sp.at
	for len(b) > 0 {
		r, ok := splitRecord(b, at)
		if !ok {
			return false, r0(at).corrupt("record checksum does not match")
		}
		b, at = b[r.size:], at+loc(r.size) //nolint:gosec // not negative
		if r.kind != recordDecision {
			continue
		}
		p, dec, err := r.decision()
		if err != nil {
			return false, err
		}
		if dec.Command.Stream != s {
			continue
		}
		for _, e := range dec.Recorded(p) {
			if e.Version < *next {
				continue
			}
			if e.Version != *next {
				return false, r.corrupt(fmt.Sprintf("version %d of a stream is missing", *next))
			}
			*next++
			if !yield(e, nil) {
				return false, nil
			}
		}
	}
	if *next != sp.last+1 {
		return false, r0(sp.at).corrupt("a span does not hold the versions that the index says")
	}
	return true, nil
}

// r0 names a place for an error.
func r0(at loc) *record { return &record{at: at} }

// Feed implements millrace.Driver.
func (d *driver) Feed(ctx context.Context, o millrace.FeedOptions) iter.Seq2[[]millrace.Recorded, error] {
	return func(yield func([]millrace.Recorded, error) bool) {
		if err := d.reads.Enter(); err != nil {
			yield(nil, err)
			return
		}
		defer d.reads.Leave()
		f := &feed{d: d, wanted: nil, after: o.After.Clone()}
		defer f.close()
		if o.Partitions != nil {
			f.wanted = make([]bool, d.meta.Partitions)
			for _, p := range o.Partitions {
				if p < 0 || p >= d.meta.Partitions {
					yield(nil, fmt.Errorf("%w: the store has no such partition", millrace.ErrInvalid))
					return
				}
				f.wanted[p] = true
			}
		}
		stop, heads := d.tail.last()
		if !o.Follow {
			f.until = positions(heads)
		}
		if err := f.start(); err != nil {
			yield(nil, err)
			return
		}
		var buf []millrace.Recorded
		for {
			if err := ctxDone(ctx); err != nil {
				if !o.Follow {
					yield(nil, err)
				}
				return
			}
			if !o.Follow && f.seq >= stop.seq {
				return
			}
			var err error
			buf, err = f.read(buf[:0])
			if err != nil {
				yield(nil, err)
				return
			}
			if len(buf) > 0 {
				if !yield(buf, nil) {
					return
				}
				continue
			}
			if head, _ := d.tail.last(); f.seq < head.seq || !o.Follow {
				continue
			}
			moved, closed := d.tail.wait(f.seq)
			if closed {
				return
			}
			select {
			case <-moved:
			case <-ctx.Done():
			}
		}
	}
}

// feed is one reader of the feed: from the journal until it has reached the tail, from there in memory.
type feed struct {
	d      *driver
	wanted []bool // partitions; nil for all
	after  millrace.Cursor
	until  []uint64 // positions behind which nothing is yielded; nil for no end
	seq    uint64   // the last batch read
	scan   *scanner
	raw    []millrace.Recorded
}

func (f *feed) close() {
	if f.scan != nil {
		f.scan.close()
		f.scan = nil
	}
}

// start finds the batch to begin at.
func (f *feed) start() error {
	if seq, ok := f.d.tail.begin(f.after); ok {
		f.seq = seq
		return nil
	}
	// The last segment at whose beginning none of the partitions had passed the cursor.
	head, _ := f.d.tail.last()
	lo, hi := uint64(1), head.end.segment()
	for lo < hi {
		mid := (lo + hi + 1) / 2
		heads, err := f.d.headsAt(mid)
		if err != nil {
			return err
		}
		ahead := false
		for p, h := range heads {
			if (f.wanted == nil || f.wanted[p]) && h.Position > f.after.Position(p) {
				ahead = true
			}
		}
		if ahead {
			hi = mid - 1
		} else {
			lo = mid
		}
	}
	s, h, err := newScanner(f.d.files, lo)
	if err != nil {
		return err
	}
	f.scan, f.seq = s, h.firstSeq-1
	return nil
}

// read appends the next events to dst; none where the reader is at the head or where batches held none.
func (f *feed) read(dst []millrace.Recorded) ([]millrace.Recorded, error) {
	for {
		var ok bool
		f.raw, f.seq, ok = f.d.tail.read(f.seq, f.raw[:0], feedEvents)
		if ok {
			f.close() // the journal is behind us now; where the tail runs away, the scan begins anew
			return f.filter(dst), nil
		}
		if f.scan == nil {
			if err := f.rescan(); err != nil {
				return dst, err
			}
		}
		if f.scan != nil {
			err := f.readJournal()
			return f.filter(dst), err
		}
	}
}

// readJournal appends events of the journal to f.raw.
func (f *feed) readJournal() error {
	head, _ := f.d.tail.last()
	for len(f.raw) < feedEvents && f.seq < head.seq {
		b, err := f.scanNext()
		if err != nil {
			return err
		}
		f.seq = b.header.seq
		if err := b.events(&f.raw); err != nil {
			return err
		}
	}
	return nil
}

// scanNext reads the batch behind f.seq, which is known to exist.
func (f *feed) scanNext() (scanned, error) {
	for {
		b, err := f.scan.next()
		if errors.Is(err, errEnd) {
			// What was read ahead may be older than the batch.
			f.scan.forget()
			b, err = f.scan.next()
		}
		if !errors.Is(err, errEnd) {
			return b, err
		}
		if head, _ := f.d.tail.last(); f.scan.at.segment() >= head.end.segment() {
			return b, r0(f.scan.at).corrupt(fmt.Sprintf("batch %d is damaged", f.seq+1))
		}
		if _, err := f.scan.nextSegment(); err != nil {
			return b, err
		}
	}
}

// rescan finds the batch behind f.seq in the journal again, after the tail dropped it before this reader had come to it.
func (f *feed) rescan() error {
	seq := f.seq
	if err := f.start(); err != nil {
		return err
	}
	for f.scan != nil && f.seq < seq {
		b, err := f.scanNext()
		if err != nil {
			return err
		}
		f.seq = b.header.seq
	}
	return nil
}

// filter moves what is wanted and new from raw to dst, and the cursor with it.
func (f *feed) filter(dst []millrace.Recorded) []millrace.Recorded {
	for i := range f.raw {
		e := &f.raw[i]
		if f.wanted != nil && !f.wanted[e.Partition] || e.Position <= f.after.Position(e.Partition) ||
			f.until != nil && e.Position > f.until[e.Partition] {
			continue
		}
		for len(f.after.Positions) <= e.Partition {
			f.after.Positions = append(f.after.Positions, 0)
		}
		f.after.Positions[e.Partition] = e.Position
		dst = append(dst, *e)
	}
	return dst
}

// events appends the events of a batch to dst. Their data is copied: the scanner's buffer moves on.
func (b *scanned) events(dst *[]millrace.Recorded) error {
	var owned []byte
	at := b.at + batchHeaderSize
	rest := b.payload
	for range b.header.records {
		r, ok := splitRecord(rest, at)
		if !ok {
			return r0(at).corrupt("record checksum does not match")
		}
		rest, at = rest[r.size:], at+loc(r.size) //nolint:gosec // not negative
		if r.kind != recordDecision {
			continue
		}
		if owned == nil {
			owned = make([]byte, 0, len(rest)+r.size)
		}
		start := len(owned)
		owned = append(owned, r.body...)
		r.body = owned[start:len(owned):len(owned)]
		p, dec, err := r.decision()
		if err != nil {
			return err
		}
		*dst = append(*dst, dec.Recorded(p)...)
	}
	return nil
}
