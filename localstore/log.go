package localstore

import (
	"bytes"
	"context"
	"iter"

	"github.com/cockroachdb/pebble/v2"

	"github.com/millrace-io/millrace"
)

var _ millrace.Portable = (*driver)(nil)

// Log implements millrace.Portable: the journal from its beginning.
func (d *driver) Log(ctx context.Context) iter.Seq2[millrace.Logged, error] {
	return func(yield func(millrace.Logged, error) bool) {
		if err := d.reads.Enter(); err != nil {
			yield(millrace.Logged{}, err)
			return
		}
		defer d.reads.Leave()
		head, _ := d.tail.last()
		s, h, err := newScanner(d.files, 1)
		if err != nil {
			yield(millrace.Logged{}, err)
			return
		}
		f := &feed{d: d, scan: s, seq: h.firstSeq - 1}
		defer f.close()
		for f.seq < head.seq {
			if err := ctxDone(ctx); err != nil {
				yield(millrace.Logged{}, err)
				return
			}
			b, err := f.scanNext()
			if err != nil {
				yield(millrace.Logged{}, err)
				return
			}
			f.seq = b.header.seq
			b.payload = bytes.Clone(b.payload) // the scanner's buffer moves on
			more, err := d.logged(&b, yield)
			if err != nil {
				yield(millrace.Logged{}, err)
			}
			if err != nil || !more {
				return
			}
		}
	}
}

// logged yields the decisions of a batch.
func (d *driver) logged(b *scanned, yield func(millrace.Logged, error) bool) (more bool, err error) {
	more = true
	err = b.entries(func(e *entry) error {
		if e.decision == nil || !more {
			return nil
		}
		c := e.command
		if c == nil { // it was kept before
			at, ok, err := d.lookup(e.decision.Command.ID)
			if err != nil {
				return err
			}
			if !ok {
				return e.record.corrupt("the decision's command is not in the index")
			}
			kept, err := d.readCommand(at.command, e.decision.Command.ID)
			if err != nil {
				return err
			}
			c = &kept
		}
		e.decision.Command, e.decision.Fresh = c, true
		more = yield(millrace.Logged{Partition: e.partition, Decision: *e.decision}, nil)
		return nil
	})
	return more, err
}

// Collections implements millrace.Portable.
func (d *driver) Collections(ctx context.Context) ([]string, error) {
	return d.names(ctx, keyDocument)
}

// Consumers implements millrace.Portable.
func (d *driver) Consumers(ctx context.Context) ([]string, error) {
	return d.names(ctx, keyCheckpoint)
}

// names are the different first parts of the keys of a kind, up to their NUL.
func (d *driver) names(ctx context.Context, kind byte) ([]string, error) {
	if err := d.reads.Enter(); err != nil {
		return nil, err
	}
	defer d.reads.Leave()
	prefix := []byte{kind}
	it, err := d.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: prefix, UpperBound: prefixEnd(prefix)})
	if err != nil {
		return nil, indexError(err)
	}
	var out []string
	for ok := it.First(); ok; {
		name, _, _ := bytes.Cut(it.Key()[1:], []byte{0})
		out = append(out, string(name))
		ok = it.SeekGE(append(append([]byte{kind}, name...), 1)) // behind all of this name
	}
	err = it.Error()
	if cerr := it.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, indexError(err)
	}
	return out, nil
}
