package localstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/millrace-io/millrace"
)

// Verify implements millrace.Driver. It reads the whole journal and checks its batches, records, both kinds of chain and
// the anchor; then that the index says of every command, stream and pending command what the journal says, and nothing
// else; then Pebble's own files, and that documents and sort entries belong together. It may run beside
// writers: it looks at what was there when it began.
func (d *driver) Verify(ctx context.Context, report func(string)) error {
	if err := d.reads.Enter(); err != nil {
		return err
	}
	defer d.reads.Leave()
	snap := d.db.NewSnapshot()
	defer func() { _ = snap.Close() }()
	v := &verifier{d: d, ctx: ctx, snap: snap, report: report}
	raw, err := get(snap, []byte{keyMeta})
	if err != nil {
		return v.fault(err)
	}
	if raw != nil {
		var ok bool
		if v.state, ok = decodeApplied(raw); !ok {
			report("index: the place in the journal is not readable")
			return nil
		}
	}
	if err := v.fault(v.anchor()); err != nil {
		return err
	}
	if err := v.fault(v.journal()); err != nil {
		return err
	}
	if err := v.fault(v.counts()); err != nil {
		return err
	}
	if err := v.fault(v.documents()); err != nil {
		return err
	}
	if err := d.db.CheckLevels(nil); err != nil {
		report(fmt.Sprintf("index: %v", err))
	}
	return nil
}

type verifier struct {
	d      *driver
	ctx    context.Context
	snap   *pebble.Snapshot
	report func(string)
	state  applied

	heads    []millrace.Head
	commands int64
	pending  int64
	spans    int64
}

// fault reports damage; what is left is why the check could not go on.
func (v *verifier) fault(err error) error {
	if errors.Is(err, millrace.ErrCorrupt) {
		v.report(err.Error())
		return nil
	}
	return err
}

// anchor checks that both slots are readable.
func (v *verifier) anchor() error {
	v.d.anchorMu.Lock()
	defer v.d.anchorMu.Unlock()
	a, damaged, err := readAnchor(v.d.o.FS, v.d.path(anchorName))
	if err != nil {
		return err
	}
	if damaged > 0 {
		v.report(fmt.Sprintf("%s: %d of 2 slots are damaged", anchorName, damaged))
	}
	if a != nil && a.meta != v.d.meta {
		v.report(anchorName + ": belongs to another store")
	}
	return nil
}

// journal reads every batch up to where the index stands.
func (v *verifier) journal() error {
	s, h, err := newScanner(v.d.files, 1)
	if err != nil {
		return err
	}
	defer func() { s.close() }()
	if h.meta != v.d.meta {
		return fmt.Errorf("%w: %s belongs to another store", millrace.ErrCorrupt, segmentName(1))
	}
	v.heads = slices.Clone(h.heads)
	for s.seq <= v.state.seq {
		if err := ctxDone(v.ctx); err != nil {
			return err
		}
		b, err := s.next()
		if errors.Is(err, errEnd) {
			zero, _, rerr := s.rest()
			switch {
			case rerr != nil:
				return rerr
			case !zero:
				return fmt.Errorf("%w: %s: batch %d is damaged", millrace.ErrCorrupt, s.at, s.seq)
			case s.at.segment() >= v.state.end.segment():
				return fmt.Errorf("%w: %s: the journal ends before batch %d", millrace.ErrCorrupt, s.at, s.seq)
			}
			next, err := s.nextSegment()
			if err != nil {
				return err
			}
			if !slices.Equal(next.heads, v.heads) {
				return fmt.Errorf("%w: %s: the header's heads are not those of the log", millrace.ErrCorrupt, s.at)
			}
			continue
		}
		if err != nil {
			return err
		}
		if err := v.batch(&b); err != nil {
			return err
		}
		if b.header.seq == v.state.seq && (b.next != v.state.chain || b.end != v.state.end) {
			return fmt.Errorf("%w: %s: batch %d is not the one that the index was made from", millrace.ErrCorrupt, b.at, v.state.seq)
		}
	}
	return nil
}

// batch checks one batch of the journal against the index.
func (v *verifier) batch(b *scanned) error {
	streams := map[millrace.Stream]openSpan{}
	err := b.entries(func(e *entry) error {
		if e.decision == nil {
			v.commands++
			v.pending++
			return v.command(e.command.ID, func(c *commandEntry) bool {
				return c.command == e.commandAt && c.fingerprint == e.command.Fingerprint() && c.partition == e.partition
			})
		}
		if err := follow(v.heads, &e.record, e.partition, e.decision); err != nil {
			return err
		}
		d := e.decision
		n := uint64(len(d.Events))
		v.heads[e.partition] = d.Head()
		if d.Fresh {
			v.commands++
			if e.command.Fingerprint() != d.Fingerprint {
				v.report(e.record.corrupt("the decision's fingerprint is not its command's").Error())
			}
		} else {
			v.pending--
		}
		if n > 0 {
			sp, ok := streams[d.Command.Stream]
			if !ok {
				sp = openSpan{first: d.Version + 1, span: span{at: e.record.at}}
			}
			if ok && sp.last != d.Version {
				v.report(e.record.corrupt("the stream's versions have a gap").Error())
			}
			sp.last, sp.length = d.Version+n, int(e.record.at-sp.at)+e.record.size //nolint:gosec // in one batch
			streams[d.Command.Stream] = sp
		}
		return v.command(d.Command.ID, func(c *commandEntry) bool {
			return c.decision == e.record.at && c.status == d.Status && c.fingerprint == d.Fingerprint &&
				(!d.Fresh || c.command == e.commandAt)
		})
	})
	if err != nil {
		return err
	}
	for stream, sp := range streams {
		if err := v.stream(stream, &sp); err != nil {
			return err
		}
	}
	return nil
}

// command checks an index entry of a command.
func (v *verifier) command(id string, ok func(*commandEntry) bool) error {
	raw, err := get(v.snap, commandKey(nil, id))
	if err != nil {
		return err
	}
	if raw == nil {
		v.report("index: a command of the journal is missing")
		return nil
	}
	c, err := decodeCommandEntry(raw)
	if err != nil {
		return err
	}
	if !ok(&c) {
		v.report(fmt.Sprintf("index: the entry of the command at %s is not what the journal says", c.command))
	}
	return nil
}

// stream checks a stream's span, and that it continues the one before.
func (v *verifier) stream(s millrace.Stream, want *openSpan) error {
	v.spans++
	raw, err := get(v.snap, spanKey(nil, s, want.first))
	if err != nil {
		return err
	}
	if raw == nil {
		v.report(fmt.Sprintf("index: the span at %s is missing", want.at))
		return nil
	}
	got, err := decodeSpan(raw)
	if err != nil {
		return err
	}
	if got != want.span {
		v.report(fmt.Sprintf("index: the span at %s is not what the journal says", want.at))
	}
	if want.first > 1 {
		it, err := v.snap.NewIter(&pebble.IterOptions{LowerBound: spanKey(nil, s, 0), UpperBound: spanKey(nil, s, want.first)})
		if err != nil {
			return indexError(err)
		}
		before := span{}
		if it.Last() {
			val, verr := it.ValueAndErr()
			if verr == nil {
				before, verr = decodeSpan(val)
			}
			err = verr
		}
		if err = errors.Join(err, it.Close()); err != nil {
			return indexError(err)
		}
		if before.last+1 != want.first {
			v.report(fmt.Sprintf("%s: the stream's versions have a gap before %d", want.at, want.first))
		}
	}
	return nil
}

// counts checks that the index has nothing that the journal has not.
func (v *verifier) counts() error {
	for _, c := range []struct {
		kind byte
		want int64
		what string
	}{
		{keyCommand, v.commands, "commands"}, {keyPending, v.pending, "pending commands"},
		{keySpan, v.spans, "spans"},
	} {
		n := int64(0)
		if err := v.each([]byte{c.kind}, func(_, _ []byte) error { n++; return nil }); err != nil {
			return err
		}
		if n != c.want {
			v.report(fmt.Sprintf("index: %d %s, but the journal has %d", n, c.what, c.want))
		}
	}
	if v.state.backlog != v.pending {
		v.report(fmt.Sprintf("index: backlog of %d, but the journal has %d", v.state.backlog, v.pending))
	}
	return nil
}

// documents checks that documents and sort entries belong together and that checkpoints are not ahead of the log.
func (v *verifier) documents() error {
	entries, keys := 0, 0
	err := v.each([]byte{keyDocument}, func(key, val []byte) error {
		collection, rest, ok := bytes.Cut(key[1:], []byte{0})
		if !ok || len(rest) < 2 {
			return fmt.Errorf("%w: index: document key", millrace.ErrCorrupt)
		}
		doc := millrace.Document{Collection: string(collection), Partition: int(binary.BigEndian.Uint16(rest)), ID: string(rest[2:])}
		if err := decodeDocument(&doc, val); err != nil {
			return err
		}
		for i, k := range doc.Keys {
			if k == "" {
				continue
			}
			keys++
			raw, err := get(v.snap, sortKey(nil, doc.Collection, i, k, doc.Partition, doc.ID))
			if err != nil {
				return err
			}
			if raw == nil {
				v.report("index: a document of collection " + doc.Collection + " lacks a sort entry")
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := v.each([]byte{keySort}, func(_, _ []byte) error { entries++; return nil }); err != nil {
		return err
	}
	if entries != keys {
		v.report(fmt.Sprintf("index: %d sort entries for %d sort keys", entries, keys))
	}
	return v.each([]byte{keyCheckpoint}, func(key, val []byte) error {
		p := int(binary.BigEndian.Uint16(key[len(key)-2:]))
		if len(val) != 8 || p >= len(v.heads) || binary.LittleEndian.Uint64(val) > v.heads[p].Position {
			v.report("index: a checkpoint is ahead of the log")
		}
		return nil
	})
}

// each calls f for all keys with a prefix.
func (v *verifier) each(prefix []byte, f func(key, val []byte) error) (err error) {
	it, err := v.snap.NewIterWithContext(v.ctx, &pebble.IterOptions{LowerBound: prefix, UpperBound: prefixEnd(prefix)})
	if err != nil {
		return indexError(err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		if err := ctxDone(v.ctx); err != nil {
			return err
		}
		val, err := it.ValueAndErr()
		if err != nil {
			return indexError(err)
		}
		if err := f(it.Key(), val); err != nil {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return indexError(err)
	}
	return nil
}
