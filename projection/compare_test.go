package projection_test

import (
	"context"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/millracetest"
	"github.com/millrace-io/millrace/projection"
)

// interrupted is a driver that does something when the checkpoints of a consumer were read for the n-th time, before anybody
// knows of them.
type interrupted struct {
	millrace.Driver
	consumer string
	n        int
	then     func()
}

func (d *interrupted) Checkpoints(ctx context.Context, consumer string) (millrace.Cursor, error) {
	c, err := d.Driver.Checkpoints(ctx, consumer)
	if consumer == d.consumer {
		if d.n--; d.n == 0 {
			d.then()
		}
	}
	return c, err
}

// Two generations are compared while one is an event behind the other, and comes up to it at any moment at which somebody looks
// where it is. They do not differ.
func TestComparedWhileOneComesUp(t *testing.T) {
	const looks = 8 // there are as many at each partition, and more while the one does not come
	for n := 1; n <= looks; n++ {
		store := open(t, vfs.NewMem())
		p, _ := deciding(t, store)
		send(t, p, "c", 2, 1)
		s := millrace.NewStream("tally", "s0")
		d := &interrupted{Driver: store.Driver(), n: n}
		store = millrace.NewStore(d)
		svc, err := projection.New(t.Context(), store, []millrace.Projection{version(1, nil)}, projection.Options{
			Run: func(ctx context.Context, _ millrace.Consumer) error { <-ctx.Done(); return nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		m := svc.Model("tallies")
		at := func(generation, position uint64) {
			data, keys, err := millracetest.TallyTable.Encode(&millracetest.TallyDocument{Stream: string(s), Version: position})
			if err != nil {
				t.Fatal(err)
			}
			partition, name := s.Partition(store.Partitions()), m.NameOf(generation)
			if err := store.CommitViews(t.Context(), []millrace.ViewBatch{{
				Consumer: name, Partition: partition, Checkpoint: position,
				Puts: []millrace.Put{{Document: millrace.Document{
					Collection: name + "." + millracetest.TallyTable.Name, Partition: partition, ID: string(s), Data: data, Keys: keys,
				}}},
			}}); err != nil {
				t.Fatal(err)
			}
		}
		for generation := range uint64(2) {
			if _, err := store.Checkpoints(t.Context(), m.NameOf(10+generation)); err != nil { // from now on they are counted
				t.Fatal(err)
			}
		}
		at(10, 2)
		at(11, 1)
		came := false
		d.then = func() { came = true; at(11, 2) }
		d.consumer = m.NameOf(11)
		diff, err := m.Compare(patient(t), 10, 11)
		if !came || err != nil || len(diff.Tables) > 0 || diff.Unsettled > 0 || diff.Uncompared > 0 {
			t.Errorf("at look %d: %+v, %v", n, diff, err)
		}
	}
}
