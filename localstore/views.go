package localstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"github.com/millrace-io/millrace"
)

func documentKey(b []byte, collection string, partition int, id string) []byte {
	b = append(append(append(b, keyDocument), collection...), 0)
	b = binary.BigEndian.AppendUint16(b, uint16(partition)) //nolint:gosec // below MaxPartitions
	return append(b, id...)
}

func sortPrefix(b []byte, collection string, index int) []byte {
	b = append(append(append(b, keySort), collection...), 0)
	return append(b, byte(index)) //nolint:gosec // a table has few indexes
}

// appendSort writes a NUL of a sort key as NUL 0xff, so that the NUL 0x01 behind the key sorts before everything that a
// longer key may go on with, and the key's end is never taken for a part of it.
func appendSort(b []byte, key string) []byte {
	for {
		i := strings.IndexByte(key, 0)
		if i < 0 {
			return append(b, key...)
		}
		b = append(append(b, key[:i]...), 0, 0xff)
		key = key[i+1:]
	}
}

func sortKey(b []byte, collection string, index int, key string, partition int, id string) []byte {
	b = append(appendSort(sortPrefix(b, collection, index), key), 0, 1)
	b = binary.BigEndian.AppendUint16(b, uint16(partition)) //nolint:gosec // below MaxPartitions
	return append(b, id...)
}

func checkpointKey(b []byte, consumer string, partition int) []byte {
	b = append(append(append(b, keyCheckpoint), consumer...), 0)
	return binary.BigEndian.AppendUint16(b, uint16(partition)) //nolint:gosec // below MaxPartitions
}

// A document's value is the number of its sort keys, each led by its length, and its bytes.
func appendDocument(b []byte, d *millrace.Document) []byte {
	b = binary.AppendUvarint(b, uint64(len(d.Keys)))
	for _, k := range d.Keys {
		b = binary.AppendUvarint(b, uint64(len(k)))
		b = append(b, k...)
	}
	return append(b, d.Data...)
}

func decodeDocument(d *millrace.Document, v []byte) error {
	bad := fmt.Errorf("%w: index: document of collection %s", millrace.ErrCorrupt, d.Collection)
	n, w := binary.Uvarint(v)
	if w <= 0 || n > uint64(len(v)) {
		return bad
	}
	v = v[w:]
	if n > 0 {
		d.Keys = make([]string, n)
	}
	for i := range d.Keys {
		k, w := binary.Uvarint(v)
		if w <= 0 || k > uint64(len(v)-w) { //nolint:gosec // checked to be positive
			return bad
		}
		d.Keys[i] = string(v[w : w+int(k)]) //nolint:gosec // checked above
		v = v[w+int(k):]                    //nolint:gosec // checked above
	}
	d.Data = bytes.Clone(v)
	return nil
}

// Document implements millrace.Driver.
func (d *driver) Document(_ context.Context, collection string, partition int, id string) (millrace.Document, error) {
	if err := d.reads.Enter(); err != nil {
		return millrace.Document{}, err
	}
	defer d.reads.Leave()
	return readDocument(d.db, collection, partition, id)
}

func readDocument(r pebble.Reader, collection string, partition int, id string) (millrace.Document, error) {
	doc := millrace.Document{Collection: collection, Partition: partition, ID: id}
	var buf [128]byte
	v, closer, err := r.Get(documentKey(buf[:0], collection, partition, id))
	if errors.Is(err, pebble.ErrNotFound) {
		return doc, millrace.ErrNotFound
	}
	if err != nil {
		return doc, indexError(err)
	}
	err = decodeDocument(&doc, v)
	return doc, errors.Join(err, closer.Close())
}

// Documents implements millrace.Driver.
func (d *driver) Documents(ctx context.Context, q millrace.Query) iter.Seq2[millrace.Document, error] {
	return func(yield func(millrace.Document, error) bool) {
		if err := d.reads.Enter(); err != nil {
			yield(millrace.Document{}, err)
			return
		}
		defer d.reads.Leave()
		// A snapshot, so that an index entry and its document belong together.
		snap := d.db.NewSnapshot()
		defer func() { _ = snap.Close() }()
		fail := func(err error) { yield(millrace.Document{}, err) }
		lower, upper := bounds(&q)
		it, err := snap.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: lower, UpperBound: upper})
		if err != nil {
			fail(indexError(err))
			return
		}
		defer func() { _ = it.Close() }() // its error is looked at below
		step := it.Next
		ok := false
		switch {
		case !q.Reverse && q.After == nil:
			ok = it.First()
		case !q.Reverse:
			k := placeKey(&q)
			if ok = it.SeekGE(k); ok && bytes.Equal(it.Key(), k) {
				ok = it.Next()
			}
		case q.After == nil:
			step, ok = it.Prev, it.Last()
		default:
			step, ok = it.Prev, it.SeekLT(placeKey(&q))
		}
		for ; ok; ok = step() {
			if err := ctxDone(ctx); err != nil {
				fail(err)
				return
			}
			doc, keep, err := documentAt(snap, it, &q)
			if err != nil {
				fail(err)
				return
			}
			if keep && !yield(doc, nil) {
				return
			}
		}
		if err := it.Error(); err != nil {
			fail(indexError(err))
		}
	}
}

// documentAt reads the document that an iterator stands at.
func documentAt(r pebble.Reader, it *pebble.Iterator, q *millrace.Query) (doc millrace.Document, keep bool, err error) {
	v, err := it.ValueAndErr()
	if err != nil {
		return doc, false, indexError(err)
	}
	if q.Index < 0 {
		k := it.Key()[1+len(q.Collection)+1:]
		doc = millrace.Document{Collection: q.Collection, Partition: int(binary.BigEndian.Uint16(k)), ID: string(k[2:])}
		// Without a partition the bounds span them all, so the limits are checked here.
		if q.Partition < 0 && (!strings.HasPrefix(doc.ID, q.Prefix) || doc.ID < q.From || q.To != "" && doc.ID >= q.To) {
			return doc, false, nil
		}
		return doc, true, decodeDocument(&doc, v)
	}
	if len(v) < 2 {
		return doc, false, fmt.Errorf("%w: index: sort entry of collection %s", millrace.ErrCorrupt, q.Collection)
	}
	partition := int(binary.BigEndian.Uint16(v))
	if q.Partition >= 0 && q.Partition != partition {
		return doc, false, nil
	}
	doc, err = readDocument(r, q.Collection, partition, string(v[2:]))
	if errors.Is(err, millrace.ErrNotFound) {
		err = fmt.Errorf("%w: index: sort entry of collection %s without its document", millrace.ErrCorrupt, q.Collection)
	}
	return doc, true, err
}

func placeKey(q *millrace.Query) []byte {
	if q.Index < 0 {
		return documentKey(nil, q.Collection, q.After.Partition, q.After.ID)
	}
	return sortKey(nil, q.Collection, q.Index, q.After.Key, q.After.Partition, q.After.ID)
}

// bounds are the first key of a query and the one behind its last.
func bounds(q *millrace.Query) (lower, upper []byte) {
	if q.Index < 0 {
		if q.Partition < 0 {
			lower = append(append([]byte{keyDocument}, q.Collection...), 0)
			return lower, prefixEnd(lower)
		}
		base := documentKey(nil, q.Collection, q.Partition, "")
		return limits(q, base, func(b []byte, id string) []byte { return append(b, id...) })
	}
	return limits(q, sortPrefix(nil, q.Collection, q.Index), appendSort)
}

// limits are the bounds of a query's keys behind base.
func limits(q *millrace.Query, base []byte, appendKey func([]byte, string) []byte) (lower, upper []byte) {
	lower = appendKey(bytes.Clone(base), q.Prefix)
	upper = prefixEnd(lower)
	if q.From > q.Prefix {
		lower = appendKey(bytes.Clone(base), q.From)
	}
	if q.To != "" {
		if to := appendKey(bytes.Clone(base), q.To); bytes.Compare(to, upper) < 0 {
			upper = to
		}
	}
	if bytes.Compare(upper, lower) < 0 {
		upper = lower // nothing
	}
	return lower, upper
}

// CommitViews implements millrace.Driver. All batches become visible together; nothing is synced: what a crash takes
// is made again from the facts.
func (d *driver) CommitViews(_ context.Context, batches []millrace.ViewBatch) error {
	if err := d.reads.Enter(); err != nil {
		return err
	}
	defer d.reads.Leave()
	if err := d.failure(); err != nil {
		return err
	}
	size := 0
	for i := range batches {
		for k := range batches[i].Puts {
			size += 128 + len(batches[i].Puts[k].Data)
		}
	}
	b := d.db.NewBatchWithSize(size + 64)
	var key, val []byte
	for i := range batches {
		vb := &batches[i]
		for k := range vb.Puts {
			var err error
			if key, val, err = put(b, &vb.Puts[k], key, val); err != nil {
				return errors.Join(err, b.Close())
			}
		}
		key = checkpointKey(key[:0], vb.Consumer, vb.Partition)
		val = binary.LittleEndian.AppendUint64(val[:0], vb.Checkpoint)
		if err := b.Set(key, val, nil); err != nil {
			return errors.Join(err, b.Close())
		}
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return indexError(err)
	}
	return nil
}

// put writes one document and its sort entries; entries that do not change are left alone.
func put(b *pebble.Batch, p *millrace.Put, key, val []byte) (k, v []byte, err error) {
	for i, old := range p.Old {
		if old == "" || !p.Delete && i < len(p.Keys) && p.Keys[i] == old {
			continue
		}
		key = sortKey(key[:0], p.Collection, i, old, p.Partition, p.ID)
		if err := b.Delete(key, nil); err != nil {
			return key, val, err
		}
	}
	key = documentKey(key[:0], p.Collection, p.Partition, p.ID)
	if p.Delete {
		return key, val, b.Delete(key, nil)
	}
	val = appendDocument(val[:0], &p.Document)
	if err := b.Set(key, val, nil); err != nil {
		return key, val, err
	}
	for i, sort := range p.Keys {
		if sort == "" || i < len(p.Old) && p.Old[i] == sort {
			continue
		}
		key = sortKey(key[:0], p.Collection, i, sort, p.Partition, p.ID)
		val = binary.BigEndian.AppendUint16(val[:0], uint16(p.Partition)) //nolint:gosec // below MaxPartitions
		val = append(val, p.ID...)
		if err := b.Set(key, val, nil); err != nil {
			return key, val, err
		}
	}
	return key, val, nil
}

// Checkpoints implements millrace.Driver.
func (d *driver) Checkpoints(_ context.Context, consumer string) (millrace.Cursor, error) {
	if err := d.reads.Enter(); err != nil {
		return millrace.Cursor{}, err
	}
	defer d.reads.Leave()
	c := millrace.Cursor{Epoch: d.meta.Epoch, Positions: make([]uint64, d.meta.Partitions)}
	for p := range c.Positions {
		v, err := get(d.db, checkpointKey(nil, consumer, p))
		if err != nil {
			return c, err
		}
		if v == nil {
			continue
		}
		if len(v) != 8 {
			return c, fmt.Errorf("%w: index: checkpoint of %s", millrace.ErrCorrupt, consumer)
		}
		c.Positions[p] = binary.LittleEndian.Uint64(v)
	}
	return c, nil
}

// DropViews implements millrace.Driver.
func (d *driver) DropViews(_ context.Context, consumer string, collections []string) error {
	if err := d.reads.Enter(); err != nil {
		return err
	}
	defer d.reads.Leave()
	b := d.db.NewBatch()
	prefixes := [][]byte{append(append([]byte{keyCheckpoint}, consumer...), 0)}
	for _, c := range collections {
		for _, kind := range []byte{keyDocument, keySort} {
			prefixes = append(prefixes, append(append([]byte{kind}, c...), 0))
		}
	}
	for _, p := range prefixes {
		if err := b.DeleteRange(p, prefixEnd(p), nil); err != nil {
			return errors.Join(err, b.Close())
		}
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return indexError(err)
	}
	return nil
}
