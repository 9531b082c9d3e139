package feed

import (
	"context"
	"errors"
	"fmt"

	"github.com/millrace-io/millrace"
)

// Repair makes the documents of one stream again from its events, in place, and ends the stream's parking: what own names
// is replaced, or removed where the events make no such document. The consumer must be one whose documents of a stream
// follow from that stream's events alone; one that touches others is refused ([millrace.ErrInvalid]). It must not be running
// in the stream's partition, which this node must own under the token. Nothing is written where an event fails.
//
// The documents are those of the consumer's checkpoint, as if the stream had never failed: when the consumer runs again, it
// goes on with the stream's next event.
func Repair(ctx context.Context, store *millrace.Store, registry *millrace.Registry, c millrace.Consumer,
	stream millrace.Stream, own []millrace.DocumentName, token uint64,
) error {
	if c.Effects {
		return fmt.Errorf("%w: consumer %s has effects, which a repair would repeat", millrace.ErrInvalid, c.Name)
	}
	partition := stream.Partition(store.Partitions())
	r := New(store, registry, c, &Options{Partitions: map[int]uint64{partition: token}})
	at, err := store.Resume(ctx, c.Name)
	if err != nil {
		return err
	}
	w := &worker{r: r, views: make([]*views, store.Partitions())}
	v := w.view(ctx, partition)
	allowed := map[docKey]bool{}
	for _, name := range own {
		k := docKey{name.Table, name.ID}
		allowed[k] = true
		v.replace(k)
	}
	millrace.ParkedTable.Delete(v, string(stream))
	allowed[docKey{millrace.ParkedTable.Table, string(stream)}] = true
	for e, err := range store.Events(ctx, stream, 1) {
		if err != nil {
			return fmt.Errorf("repair %s: %w", stream, err)
		}
		if e.Position > at.Position(partition) {
			break
		}
		if !w.wanted(&e) {
			continue
		}
		if err := w.call(ctx, v, &e); err != nil {
			return fmt.Errorf("repair %s: event %s: %w", stream, e.ID(), err)
		}
		for _, d := range v.order {
			if !allowed[d.docKey] {
				return fmt.Errorf("%w: repair %s: event %s touches document %s of table %s, which is not the stream's own", millrace.ErrInvalid, stream, e.ID(), d.id, d.table.Name)
			}
		}
	}
	b := w.batch(partition, at.Position(partition))
	if b.Puts, err = v.puts(); err != nil {
		return fmt.Errorf("repair %s: %w", stream, err)
	}
	return store.CommitViews(ctx, []millrace.ViewBatch{b})
}

// replace begins a document that the store may have as if it had none. One that cannot be decoded is no hindrance: its
// keys are known, and its bytes go.
func (v *views) replace(k docKey) {
	d := &doc{docKey: k, read: true, dirty: true}
	stored, err := v.store.Document(v.ctx, v.consumer.Collection(k.table), v.partition, k.id)
	switch {
	case err == nil:
		if d.old = stored.Keys; d.old == nil {
			d.old = []string{}
		}
	case !errors.Is(err, millrace.ErrNotFound):
		d.err = err
	}
	v.docs[k] = d
	v.order = append(v.order, d)
}
