package projection_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/millracetest"
	"github.com/millrace-io/millrace/projection"
)

// isSwitch says whether a commit makes another generation the live one.
func isSwitch(b *millrace.ViewBatch, generation int) bool {
	return b.Consumer == "projections" && strings.Contains(string(b.Puts[0].Data), fmt.Sprintf(`,"generation":%d,"version":`, generation))
}

// watched is the stream that readers look at.
const watched = millrace.Stream("tally-s1")

// seenBy reads how far readers see the stream, by its events.
func seenBy(ctx context.Context, t *testing.T, m *projection.Model) uint64 {
	t.Helper()
	doc, err := m.Get(ctx, millracetest.TallyTable.Table, watched.Partition(nodePartitions), string(watched))
	if errors.Is(err, millrace.ErrNotFound) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	v, err := millracetest.TallyTable.Decode(doc.Data)
	if err != nil {
		t.Fatal(err)
	}
	return v.Version
}

// A switch before the other generation has come up would show readers the past. The control does it.
func TestSwitchComesWhenCaughtUp(t *testing.T) {
	for _, without := range []string{"", "aim"} {
		t.Run("without "+without, func(t *testing.T) {
			c := newCluster(t)
			h := newHold(t, 30)
			c.f.node = func(_ *node, ctx context.Context, cons millrace.Consumer, run func(context.Context, millrace.Consumer) error) error {
				handle := cons.Handle
				cons.Handle = func(ctx context.Context, v millrace.Views, e *millrace.Recorded) error {
					if cons.Name == "tallies@2" {
						h.pass(e)
					}
					return handle(ctx, v, e)
				}
				return run(ctx, cons)
			}
			c.f.on.Store(true)
			change := func(o *projection.Options) { o.Without(without) }
			a, b := c.node("a", millracetest.Tallies(), change), c.node("b", millracetest.Tallies(), change)
			a.take(0, 1)
			b.take(2, 3)
			a.adds("c", 100, 5)
			b.caught()
			t.Cleanup(h.open) // before the nodes are stopped
			before := dump(t, b.Model)
			if err := b.Rebuild(patient(t), false); err != nil {
				t.Fatal(err)
			}
			<-h.reached
			if without != "" {
				eventually(t, "readers see the past", func() bool { return dump(t, b.Model) != before })
				return
			}
			st, err := a.Status(patient(t))
			if err != nil || st.Generation != 1 || st.Rebuild.Done || dump(t, a.Model) != before || dump(t, b.Model) != before {
				t.Errorf("%+v %v", st, err)
			}
			if r := st.Rebuild; r.Total != 100 || r.Events >= 100 || len(r.Nodes) != 2 || r.Nodes[0].Node != "a" || r.Nodes[1].Partitions != 2 || r.Partitions > 3 {
				t.Errorf("%+v", r)
			}
			h.open()
			if st := rebuilt(t, b.Model); st.Generation != 2 || !identical(st) || st.Rebuild.Events != 100 {
				t.Errorf("%+v %+v", st, st.Rebuild)
			}
			if dump(t, a.Model) != before || dump(t, b.Model) != before {
				t.Error("readers see something else")
			}
		})
	}
}

// While the switch is being written down, an event comes. The live documents stand still by then, on all nodes, so that
// nobody has seen it who sees the other ones afterwards. In the control they go on, and the event is gone again.
func TestLiveStandsStillDuringTheSwitch(t *testing.T) {
	for _, without := range []string{"", "halt"} {
		t.Run("without "+without, func(t *testing.T) {
			c := newCluster(t)
			change := func(o *projection.Options) { o.Without(without) }
			a, b := c.node("a", millracetest.Tallies(), change), c.node("b", millracetest.Tallies(), change)
			a.take(0, 1)
			b.take(2, 3)
			a.adds("c", 40, 4)
			b.caught()
			var during, after uint64
			done := make(chan struct{})
			h := newHold(t, 0)
			var late atomic.Bool
			c.f.node = func(_ *node, ctx context.Context, cons millrace.Consumer, run func(context.Context, millrace.Consumer) error) error {
				handle := cons.Handle
				cons.Handle = func(ctx context.Context, v millrace.Views, e *millrace.Recorded) error {
					if late.Load() && cons.Name == "tallies@2" && without != "" {
						h.pass(e)
					}
					return handle(ctx, v, e)
				}
				return run(ctx, cons)
			}
			once := sync.Once{}
			c.f.commit = func(batch *millrace.ViewBatch, write func() error) error {
				if !isSwitch(batch, 2) {
					return write()
				}
				once.Do(func() {
					late.Store(true)
					b.adds("late", 4, 4)
					if without != "" {
						eventually(t, "the live documents have it", func() bool { return seenBy(t.Context(), t, b.Model) == 11 })
					} else {
						wait := millrace.At(b.store.Meta().Epoch, watched.Partition(nodePartitions), b.store.Head().Position(watched.Partition(nodePartitions)))
						if err := b.store.Wait(patient(t), "tallies@2", wait); err != nil {
							t.Error(err)
						}
					}
					during = seenBy(t.Context(), t, b.Model)
				})
				err := write()
				after = seenBy(t.Context(), t, b.Model)
				close(done)
				return err
			}
			c.f.on.Store(true)
			t.Cleanup(h.open)
			if st := rebuild(t, a.Model); st.Generation != 2 {
				t.Errorf("%+v", st)
			}
			<-done
			if without == "" && (during != 10 || after != 11) || without != "" && (during != 11 || after != 10) {
				t.Errorf("readers saw version %d before the switch and %d after it", during, after)
			}
		})
	}
}

// A node that hears of nothing answers its readers by the state all the same. The control goes by what it knows.
func TestReadersOfABlindNodeSeeTheSwitch(t *testing.T) {
	for _, without := range []string{"", "fresh"} {
		t.Run("without "+without, func(t *testing.T) {
			c := newCluster(t)
			a := c.node("a", millracetest.Tallies(), func(o *projection.Options) { o.Keep = -1 })
			b := c.node("b", millracetest.Tallies(), func(o *projection.Options) { o.Without(without) })
			a.take(0, 1, 2, 3)
			a.adds("c", 40, 4)
			b.caught()
			closed := make(chan struct{})
			b.blind.Store(&closed)
			t.Cleanup(func() { close(closed) })
			rebuild(t, a.Model)
			a.adds("d", 4, 4)
			a.caught()
			ctx := context.WithValue(patient(t), reader{}, true)
			if got := seenBy(ctx, t, b.Model); (got == 11) != (without == "") || seenBy(ctx, t, a.Model) != 11 {
				t.Errorf("version %d", got)
			}
		})
	}
}

// When all live consumers stand still, a partition goes to a node that knows nothing of the switch. It asks before it
// begins. The control does not, and goes on with documents that nobody will see.
func TestNewOwnerDuringTheSwitch(t *testing.T) {
	for _, without := range []string{"", "begin"} {
		t.Run("without "+without, func(t *testing.T) {
			c := newCluster(t)
			a, b := c.pair(nil)
			began := make(chan error, 1)
			closed := make(chan struct{})
			c.f.node = func(n *node, ctx context.Context, cons millrace.Consumer, run func(context.Context, millrace.Consumer) error) error {
				if n.db.Node() != "d" || cons.Name != "tallies@1" || cons.Rebuilding {
					return run(ctx, cons)
				}
				tell := func(err error) error {
					select {
					case began <- err:
					default: // of a later time
					}
					return err
				}
				begin := cons.Begin
				cons.Begin = func(ctx context.Context) error { return tell(begin(ctx)) }
				err := run(ctx, cons)
				_ = tell(errors.New("it was stopped")) // the node has heard of the switch before it began
				return err
			}
			// Its consumers begin with the fault on, so that they are watched.
			c.f.on.Store(true)
			d := c.node("d", millracetest.Tallies(), func(o *projection.Options) { o.Without(without) })
			d.caught()
			open := sync.OnceFunc(func() { close(closed) })
			t.Cleanup(open)
			var got error
			once := sync.Once{}
			c.f.commit = func(batch *millrace.ViewBatch, write func() error) error {
				if isSwitch(batch, 2) {
					once.Do(func() {
						d.take(3)
						if without == "" {
							open()
						}
						select {
						case got = <-began:
						case <-patient(t).Done():
							t.Error("its consumer does not begin")
						}
					})
				}
				return write()
			}
			d.blind.Store(&closed)
			if err := a.Rebuild(patient(t), false); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the switch", func() bool {
				st, err := a.Status(t.Context())
				return err == nil && st.Generation == 2
			})
			open()
			if (got == nil) != (without != "") {
				t.Errorf("the live consumer of the new owner: %v", got)
			}
			d.adds("e", 40, 8)
			for _, n := range []*node{a, b, d} {
				n.caught()
			}
			assertFresh(t, c)
		})
	}
}

// A list is read page by page, and its documents go in between. The reader is told: what he has is not all of it.
func TestListOfAGenerationThatGoes(t *testing.T) {
	c := newCluster(t)
	a := c.node("a", millracetest.Tallies(), func(o *projection.Options) { o.Keep = -1 })
	b := c.node("b", millracetest.Tallies(), nil)
	a.take(0, 1, 2, 3)
	const streams = 600 // several pages
	a.adds("c", streams, streams)
	b.caught()
	read := 0
	for _, err := range b.Query(patient(t), millracetest.TallyTable.Table, millrace.Query{Index: 0, Partition: -1}) {
		if err != nil {
			if !errors.Is(err, projection.ErrReplaced) || read >= streams {
				t.Errorf("after %d documents: %v", read, err)
			}
			return
		}
		if read++; read == 1 {
			rebuild(t, a.Model)
			gone(t, a.store, "tallies@1")
		}
	}
	t.Errorf("a list of %d documents of %d", read, streams)
}
