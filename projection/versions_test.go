package projection_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/millracetest"
	"github.com/millrace-io/millrace/projection"
)

// other is version 2 of the projection: it leaves s0 out, doubles the totals of s1 and s2, and has a document of s3 more.
func other() millrace.Projection {
	p := version(2, nil)
	project := p.Project
	p.Project = func(v millrace.Views, e *millrace.Recorded) error {
		switch e.Stream {
		case "tally-s0":
			return nil
		case "tally-s3":
			millracetest.TallyTable.Put(v, "more", &millracetest.TallyDocument{Stream: "more", Version: e.Version})
		case "tally-s1", "tally-s2":
			added, ok := e.Body.(*millracetest.Added)
			if !ok {
				return errors.New("not a tally's event")
			}
			millracetest.TallyTable.Put(v, string(e.Stream), &millracetest.TallyDocument{Stream: string(e.Stream), Total: 2 * added.Total, Version: e.Version})
			return nil
		}
		return project(v, e)
	}
	return p
}

// What changed code changes is counted before anybody sees it: built and held, compared, and only then switched to. Held, it
// is kept up to date. Discarded, nothing of it stays.
func TestDifferencesAreCounted(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, _ := deciding(t, s)
	old, stopOld := serve(t, s, millracetest.Tallies())
	send(t, p, "c", 60, 6)
	wait(t, old.Model("tallies"), s.Head())
	if err := stopOld(); err != nil {
		t.Fatal(err)
	}
	// The code is the same by its number, so that nothing is rebuilt by itself.
	changed := other()
	changed.Version = 1
	svc, _ := serve(t, s, changed)
	m := svc.Model("tallies")
	before := dump(t, m)
	ready := func(st projection.Status) bool { return st.Rebuild != nil && st.Rebuild.Ready }
	for generation := uint64(2); generation < 4; generation++ {
		if err := m.Rebuild(patient(t), true); err != nil {
			t.Fatal(err)
		}
		st := status(t, m, ready)
		want := &projection.Differences{Documents: 7, Tables: []projection.TableDifferences{{Table: "tallies", Missing: 1, Extra: 1, Different: 2}}}
		examples := st.Rebuild.Differences.Tables[0].Examples
		st.Rebuild.Differences.Tables[0].Examples = nil
		if d := cmp.Diff(want, st.Rebuild.Differences); d != "" || len(examples) != 4 || strings.Contains(fmt.Sprint(examples), "s4") || !differs(st) {
			t.Errorf("%s such as %v", d, examples)
		}
		if st.Generation != 1 || st.Rebuild.Generation != generation || dump(t, m) != before {
			t.Errorf("it is switched to already: %+v", st)
		}
		if err := m.Rebuild(patient(t), false); !errors.Is(err, projection.ErrBusy) {
			t.Errorf("another rebuild while one is held: %v", err)
		}
		if generation == 2 {
			if err := m.Discard(patient(t)); err != nil {
				t.Error(err)
			}
			gone(t, s, "tallies@2")
			if st, err := m.Status(t.Context()); err != nil || st.Rebuild.Ready || st.LastError != nil || st.Rebuild.Reason != projection.ReasonDiscarded {
				t.Errorf("%+v %v", st, err)
			}
			if err := m.Switch(patient(t), 2); !errors.Is(err, projection.ErrNoGeneration) {
				t.Errorf("a switch to what was discarded: %v", err)
			}
			if err := m.Discard(patient(t)); !errors.Is(err, projection.ErrNoGeneration) {
				t.Errorf("nothing to discard: %v", err)
			}
		}
	}
	send(t, p, "d", 60, 6)
	wait(t, m, s.Head())
	if err := m.Switch(patient(t), 0); err != nil {
		t.Fatal(err)
	}
	status(t, m, func(st projection.Status) bool { return st.Generation == 3 })
	if got := dump(t, m); strings.Contains(got, `"tally-s0"`) || !strings.Contains(got, `"stream":"more","total":0,"version":20`) {
		t.Errorf("the held generation is not up to date:\n%s", got)
	}
}

// The same while events come in for streams that both make alike: what differs is counted exactly, and what moves too fast to be
// compared is no difference.
func TestDifferencesAreCountedUnderLoad(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, _ := deciding(t, s)
	old, stopOld := serve(t, s, millracetest.Tallies())
	send(t, p, "c", 60, 6)
	wait(t, old.Model("tallies"), s.Head())
	if err := stopOld(); err != nil {
		t.Fatal(err)
	}
	// Each partition moves.
	var moving []string
	for i := 0; len(moving) < s.Partitions(); i++ {
		name := fmt.Sprint("m", i)
		if millrace.NewStream("tally", name).Partition(s.Partitions()) == len(moving) {
			moving = append(moving, name)
		}
	}
	ctx, cancel := context.WithCancel(patient(t))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ctx.Err() == nil; i++ {
			r, err := p.Accept(ctx, add(fmt.Sprint("l", i), moving[i%len(moving)], 1))
			if err == nil {
				_, _ = r.Wait(ctx) // it ends with the test
			}
		}
	}()
	changed := other()
	changed.Version = 1
	svc, _ := serve(t, s, changed)
	m := svc.Model("tallies")
	for range 5 {
		if err := m.Rebuild(patient(t), true); err != nil {
			t.Fatal(err)
		}
		st := status(t, m, func(st projection.Status) bool { return st.Rebuild != nil && st.Rebuild.Ready })
		d := st.Rebuild.Differences
		if len(d.Tables) != 1 || d.Tables[0].Missing != 1 || d.Tables[0].Extra != 1 || d.Tables[0].Different != 2 || d.Uncompared > 0 || d.Unsettled > uint64(len(moving)) {
			t.Errorf("%+v", d)
		}
		if err := m.Discard(patient(t)); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	<-ended
}

// A change of the code by its number is built and compared, too, and left to people where they want it so.
func TestChangedVersionIsHeld(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, _ := deciding(t, s)
	old, stopOld := serve(t, s, millracetest.Tallies())
	send(t, p, "c", 60, 6)
	wait(t, old.Model("tallies"), s.Head())
	before := dump(t, old.Model("tallies"))
	if err := stopOld(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a start changes nothing
		svc, stop := serveAs(t, s, projection.Options{Hold: true}, other())
		m := svc.Model("tallies")
		st := status(t, m, func(st projection.Status) bool { return st.Rebuild != nil && st.Rebuild.Ready })
		if d := st.Rebuild.Differences; len(d.Tables) != 1 || d.Tables[0].Different != 2 || d.Uncompared != 0 || st.Rebuild.Generation != 2 || dump(t, m) != before {
			t.Errorf("%+v %+v", st, d)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
	svc, _ := serve(t, s, other())
	m := svc.Model("tallies")
	if err := m.Switch(patient(t), 0); err != nil {
		t.Fatal(err)
	}
	if st := status(t, m, func(st projection.Status) bool { return st.Generation == 2 }); st.Version != 2 || dump(t, m) == before {
		t.Errorf("%+v", st)
	}
}

// The way back: the generation that was live is kept and followed, and switching to it and forth again shows nobody an
// older state. It goes when the next one is begun, or when its time is over.
func TestSwitchBackUnderLoad(t *testing.T) {
	c := newCluster(t)
	a, b := c.node("a", millracetest.Tallies(), nil), c.node("b", millracetest.Tallies(), nil)
	a.take(0, 1)
	b.take(2, 3)
	a.adds("c", 60, 17)
	b.caught()
	l := newLoad(t, c, 17)
	rebuild(t, a.Model)
	for i, n := range []*node{b, a, b, a} {
		to := uint64(1 + i%2)
		if err := n.Switch(patient(t), to); err != nil {
			t.Fatal(err)
		}
		st := status(t, n.Model, func(st projection.Status) bool { return st.Generation == to })
		if st.Previous == nil || st.Previous.Generation != 3-to {
			t.Errorf("%+v", st)
		}
	}
	l.end()
	assertFresh(t, c)
	if err := b.Switch(patient(t), 9); !errors.Is(err, projection.ErrNoGeneration) {
		t.Errorf("a switch to what never was: %v", err)
	}
	if st := rebuild(t, b.Model); st.Generation != 3 || st.Previous.Generation != 2 {
		t.Errorf("%+v", st)
	}
	gone(t, a.store, "tallies@1")
	if err := a.Discard(patient(t)); err != nil {
		t.Error(err)
	}
	gone(t, a.store, "tallies@2")
	assertFresh(t, c)
}

// It is kept for a while, and no longer.
func TestPreviousGenerationExpires(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, _ := deciding(t, s)
	var late atomic.Bool
	svc, _ := serveAs(t, s, projection.Options{
		Keep: time.Minute,
		Now: func() time.Time {
			if late.Load() {
				return time.Now().Add(2 * time.Minute)
			}
			return time.Now()
		},
	}, millracetest.Tallies())
	m := svc.Model("tallies")
	send(t, p, "c", 60, 6)
	wait(t, m, s.Head())
	if st := rebuild(t, m); st.Previous == nil || st.Previous.Generation != 1 {
		t.Errorf("%+v", st)
	}
	late.Store(true)
	gone(t, s, "tallies@1")
	if st, err := m.Status(t.Context()); err != nil || st.Previous != nil || st.Generation != 2 {
		t.Errorf("%+v %v", st, err)
	}
}

// A rolling change of the code. Nodes of the old version go on with the live documents of their partitions, and are not
// hindered; the new version's are built by the nodes that have it, and become the live ones when those own everything. A node
// of the old version then shows them. It can be asked to go back, and what people decided is not undone by a node that starts.
func TestRollingChange(t *testing.T) {
	c := newCluster(t)
	a, b := c.pair(nil)
	n := c.node("new", double(nil), nil)
	st := status(t, b.Model, func(st projection.Status) bool { return st.Rebuild != nil })
	if st.Generation != 1 || st.Rebuild.Version != 2 {
		t.Errorf("%+v", st)
	}
	n.take(3)
	a.adds("d", 40, 8)
	// The old nodes go on in their partitions; the new one does in its own, with its own generation.
	reach := func(m *node, consumer string, partitions ...int) {
		t.Helper()
		head := c.latest()
		want := millrace.Cursor{Epoch: head.Epoch, Positions: make([]uint64, nodePartitions)}
		for _, p := range partitions {
			want.Positions[p] = head.Position(p)
		}
		if err := m.store.Wait(patient(t), consumer, want); err != nil {
			t.Fatal(err)
		}
	}
	reach(a, "tallies@1", 0, 1, 2)
	reach(a, "tallies@2", 3)
	if at, err := n.store.Checkpoints(patient(t), "tallies@2"); err != nil || at.Position(0)+at.Position(1)+at.Position(2) != 0 {
		t.Errorf("an old node has built the new version: %v %v", at, err)
	}
	if st, err := n.Status(patient(t)); err != nil || st.Generation != 1 || st.Version != 1 || st.Code != 2 || st.Rebuild.Partitions < 1 {
		t.Errorf("%+v %v", st, err)
	}
	n.take(0, 1, 2)
	for _, m := range c.all {
		if st := status(t, m.Model, func(st projection.Status) bool { return st.Generation == 2 }); st.Version != 2 || st.Rebuild.Error != "" {
			t.Errorf("%+v", st)
		}
		m.caught()
	}
	if dump(t, a.Model) != dump(t, n.Model) || !strings.Contains(dump(t, a.Model), `"total":`) {
		t.Error("nodes show different documents")
	}
	// And back. Nobody but the old code can go on with the old documents.
	if err := n.Switch(patient(t), 1); !errors.Is(err, projection.ErrOtherCode) {
		t.Errorf("a node without the code: %v", err)
	}
	a.take(0, 1, 2, 3)
	if err := b.Switch(patient(t), 1); err != nil {
		t.Fatal(err)
	}
	status(t, b.Model, func(st projection.Status) bool { return st.Generation == 1 && st.Version == 1 })
	a.adds("e", 40, 8)
	b.caught()
	late := c.node("late", double(nil), nil)
	late.take(0, 1, 2, 3)
	st = status(t, late.Model, func(st projection.Status) bool { return st.Code == 2 })
	if st.Generation != 1 || st.Rebuild.Generation != 2 {
		t.Errorf("a node that starts undoes what was decided: %+v", st)
	}
	if st := rebuild(t, late.Model); st.Generation != 3 || st.Version != 2 {
		t.Errorf("%+v", st)
	}
}

// A rebuild fails on one of the nodes, by its handler or by its consumer. What is live stays, on all nodes, and all of them
// tell why; nothing of it stays; and another one succeeds.
func TestFailedRebuildOverNodes(t *testing.T) {
	for name, c := range map[string]struct {
		reason string
		f      func(ctx context.Context, c millrace.Consumer, run func(context.Context, millrace.Consumer) error) error
	}{
		"handler": {projection.ReasonIncomplete, func(ctx context.Context, c millrace.Consumer, run func(context.Context, millrace.Consumer) error) error {
			c.Handle = func(context.Context, millrace.Views, *millrace.Recorded) error { return errBroken }
			return run(ctx, c)
		}},
		"consumer": {projection.ReasonFailed, func(context.Context, millrace.Consumer, func(context.Context, millrace.Consumer) error) error {
			return errFinal
		}},
	} {
		t.Run(name, func(t *testing.T) {
			cl := newCluster(t)
			a, b := cl.node("a", millracetest.Tallies(), nil), cl.node("b", millracetest.Tallies(), nil)
			cl.f.node = func(n *node, ctx context.Context, cons millrace.Consumer, run func(context.Context, millrace.Consumer) error) error {
				if n == b && cons.Name == "tallies@2" {
					return c.f(ctx, cons, run)
				}
				return run(ctx, cons)
			}
			cl.f.on.Store(true)
			a.take(0, 1)
			b.take(2, 3)
			a.adds("c", 40, 8)
			b.caught()
			before := dump(t, a.Model)
			if err := a.Rebuild(patient(t), false); err != nil {
				t.Fatal(err)
			}
			for _, n := range cl.all {
				st := rebuilt(t, n.Model)
				if st.Generation != 1 || st.Rebuild.Reason != c.reason || st.Rebuild.Error == "" || st.LastError == nil || st.LastError.What != "rebuild" {
					t.Errorf("%s: %+v %+v", n.db.Node(), st, st.Rebuild)
				}
				if dump(t, n.Model) != before {
					t.Errorf("%s shows something else", n.db.Node())
				}
			}
			gone(t, a.store, "tallies@2")
			if st := rebuild(t, b.Model); st.Generation != 3 || !identical(st) || st.LastError != nil {
				t.Errorf("%+v", st)
			}
		})
	}
}

// One of the nodes is paused. The rebuild waits for its partitions, visibly, and ends when it comes back.
func TestRebuildOverAPausedNode(t *testing.T) {
	c := newCluster(t)
	a, b := c.pair(nil)
	b.stop()
	b = c.node("b", millracetest.Tallies(), func(o *projection.Options) { o.Paused = always })
	b.take(2, 3)
	if err := b.Rebuild(patient(t), false); !errors.Is(err, projection.ErrPaused) {
		t.Errorf("a paused node: %v", err)
	}
	if err := a.Rebuild(patient(t), false); err != nil {
		t.Fatal(err)
	}
	st := status(t, b.Model, func(st projection.Status) bool { return st.Rebuild.Partitions == 2 })
	if st.Rebuild.Done || st.Generation != 1 {
		t.Errorf("%+v", st)
	}
	b.stop()
	b = c.node("b", millracetest.Tallies(), nil)
	b.take(2, 3)
	if st := rebuilt(t, a.Model); st.Generation != 2 || !identical(st) {
		t.Errorf("%+v", st)
	}
	// A paused node follows a switch, and takes part in it.
	b.stop()
	b = c.node("b", millracetest.Tallies(), func(o *projection.Options) { o.Paused = always })
	b.take(2, 3)
	if err := a.Switch(patient(t), 1); err != nil {
		t.Fatal(err)
	}
	status(t, b.Model, func(st projection.Status) bool { return st.Generation == 1 })
}

// A stream was given up, and another one's document was changed behind the model's back. Each is made again by itself, at
// any node, and the stream goes on. What depends on several streams is refused.
func TestRepair(t *testing.T) {
	c := newCluster(t)
	var broken atomic.Bool
	p := millracetest.Tallies()
	project := p.Project
	p.Project = func(v millrace.Views, e *millrace.Recorded) error {
		if broken.Load() && e.Stream == "tally-s1" {
			return errBroken
		}
		return project(v, e)
	}
	a, b := c.node("a", p, nil), c.node("b", p, nil)
	a.take(0, 1)
	b.take(2, 3)
	a.adds("c", 40, 8)
	b.caught()
	broken.Store(true)
	a.adds("d", 40, 8)
	b.caught()
	for _, n := range c.all {
		st := status(t, n.Model, func(st projection.Status) bool { return st.Parked == 1 })
		if e := st.LastError; e == nil || e.What != "parked" || e.Stream != "tally-s1" || e.Error == "" {
			t.Errorf("%+v", e)
		}
	}
	broken.Store(false)
	repair := func(n *node, stream millrace.Stream) projection.Repair {
		t.Helper()
		if err := n.Repair(patient(t), stream); err != nil {
			t.Fatal(err)
		}
		st := status(t, n.Model, func(st projection.Status) bool { return st.Repairs[len(st.Repairs)-1].Done() })
		return st.Repairs[len(st.Repairs)-1]
	}
	owner, asked := a, b
	if owned, _ := b.own(); owned[millrace.Stream("tally-s1").Partition(nodePartitions)] > 0 {
		owner, asked = b, a
	}
	if r := repair(asked, "tally-s1"); r.Error != "" || r.Stream != "tally-s1" {
		t.Errorf("%+v", r)
	}
	// Its document is changed by hand.
	at := millrace.Stream("tally-s1").Partition(nodePartitions)
	doc, err := owner.Get(patient(t), millracetest.TallyTable.Table, at, "tally-s1")
	if err != nil {
		t.Fatal(err)
	}
	good := dump(t, a.Model)
	bad := doc
	bad.Data = []byte(`{"what":"is this"}`)
	owned, _ := owner.own()
	if err := owner.store.CommitViews(patient(t), []millrace.ViewBatch{{Consumer: "hand", Partition: at, Epoch: owned[at], Puts: []millrace.Put{{Document: bad, Old: doc.Keys}}}}); err != nil {
		t.Fatal(err)
	}
	if r := repair(owner, "tally-s1"); r.Error != "" || dump(t, b.Model) != good {
		t.Errorf("%+v\n%s", r, cmp.Diff(good, dump(t, b.Model)))
	}
	a.adds("e", 40, 8)
	assertFresh(t, c)
	broken.Store(true)
	if r := repair(asked, "tally-s1"); r.Error == "" {
		t.Error("a repair by a handler that fails succeeds")
	}
	assertFresh(t, c)
	for want, stream := range map[error]millrace.Stream{millrace.ErrInvalid: "other-s1", millrace.ErrNotFound: "tally-nobody"} {
		if err := a.Repair(patient(t), stream); !errors.Is(err, want) {
			t.Errorf("%s: %v", stream, err)
		}
	}
}

// Documents that depend on several streams cannot be made again for one: where the projection says so, and where it says
// something else than what it does.
func TestRepairOfTotals(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, _ := deciding(t, s)
	sums := millracetest.Tallies()
	project := sums.Project
	sums.Project = func(v millrace.Views, e *millrace.Recorded) error {
		sum, err := millracetest.TallyTable.Get(v, "sum")
		if err != nil {
			return err
		}
		if sum == nil {
			sum = &millracetest.TallyDocument{Stream: "sum"}
		}
		sum.Version++
		millracetest.TallyTable.Put(v, "sum", sum)
		return project(v, e)
	}
	send(t, p, "c", 40, 8)
	for _, says := range []bool{false, true} {
		one := sums
		if !says {
			one.OfStream = nil
		}
		svc, stop := serveAs(t, s, projection.Options{
			Repair: func(ctx context.Context, c millrace.Consumer, stream millrace.Stream, own []millrace.DocumentName, token uint64) error {
				return feed.Repair(ctx, s, registry(t), c, stream, own, token)
			},
		}, one)
		m := svc.Model("tallies")
		wait(t, m, s.Head())
		before := dump(t, m)
		err := m.Repair(patient(t), "tally-s1")
		if says {
			if err != nil {
				t.Error(err)
			}
			st := status(t, m, func(st projection.Status) bool { return len(st.Repairs) > 0 && st.Repairs[0].Done() })
			if !strings.Contains(st.Repairs[0].Error, "not the stream's own") {
				t.Errorf("%+v", st.Repairs)
			}
		} else if !errors.Is(err, projection.ErrNotByStream) {
			t.Error(err)
		}
		if dump(t, m) != before {
			t.Error("something was changed")
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
}
