package projection_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/millracetest"
	"github.com/millrace-io/millrace/projection"
)

// The coordinator is killed at each of its steps, right before it is written down or right after. Another node takes over:
// the rebuild ends once and for all, readers of the other node never see an older state, and nothing is left behind.
func TestCoordinatorIsKilledAtEachStep(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for many leases to end")
	}
	const most = 20
	for step := 1; step < most; step++ {
		done := false
		for _, written := range []bool{false, true} {
			t.Run(fmt.Sprintf("step %d, written: %v", step, written), func(t *testing.T) {
				done = killedAt(t, step, written)
			})
		}
		if done || t.Failed() {
			if step < 5 && !t.Failed() {
				t.Errorf("a rebuild has only %d steps", step-1)
			}
			return
		}
	}
	t.Error("a rebuild takes too many steps")
}

// killedAt kills the coordinator at a step; done says that there was no such step.
func killedAt(t *testing.T, step int, written bool) (done bool) {
	c := newCluster(t)
	change := func(o *projection.Options) { o.Keep = -1 }
	a, b := c.pair(change)
	status(t, a.Model, func(st projection.Status) bool { return st.Gap == 0 })
	died := make(chan struct{})
	var steps atomic.Int32
	var hit atomic.Bool
	c.f.commit = func(batch *millrace.ViewBatch, write func() error) error {
		if batch.Consumer != "projections" {
			return write()
		}
		if steps.Add(1) != int32(step) { //nolint:gosec // small
			return write()
		}
		hit.Store(true)
		if written {
			if err := write(); err != nil {
				return err
			}
		}
		a.dead.Store(true)
		close(died)
		return errFinal
	}
	c.f.on.Store(true)
	asked := make(chan error, 1)
	go func() { asked <- b.Rebuild(patient(t), false) }()
	live := make(chan struct{})
	ctx, cancel := context.WithCancel(patient(t))
	defer cancel()
	go func() {
		defer close(live)
		for ctx.Err() == nil {
			if st, err := b.Status(ctx); err == nil && st.Generation == 2 {
				return
			}
		}
	}()
	select {
	case <-died:
	case <-live:
		if done = !hit.Load(); done {
			c.f.on.Store(false)
			break
		}
		<-died // the last step was written
	}
	if !done {
		a.stop()
		b.seize(0)
		b.seize(1)
	}
	if err := <-asked; err != nil {
		t.Errorf("the request: %v", err)
	}
	<-live
	st := rebuilt(t, b.Model)
	if st.Generation != 2 || !identical(st) || st.Previous != nil {
		t.Errorf("%+v %+v", st, st.Rebuild)
	}
	b.adds("d", 40, 8)
	assertFresh(t, c)
	gone(t, b.store, "tallies@1")
	if st := rebuild(t, b.Model); st.Generation != 3 || !identical(st) {
		t.Errorf("another rebuild: %+v", st)
	}
	return done
}

// A node that builds its partitions is killed in the middle. Whoever takes them over goes on where it stood.
func TestBuilderIsKilled(t *testing.T) {
	c := newCluster(t)
	h := newHold(t, 10)
	a, b := c.node("a", millracetest.Tallies(), nil), c.node("b", millracetest.Tallies(), nil)
	c.f.node = func(n *node, ctx context.Context, cons millrace.Consumer, run func(context.Context, millrace.Consumer) error) error {
		handle := cons.Handle
		cons.Handle = func(ctx context.Context, v millrace.Views, e *millrace.Recorded) error {
			if n == b && cons.Name == "tallies@2" {
				h.pass(e)
			}
			return handle(ctx, v, e)
		}
		return run(ctx, cons)
	}
	c.f.on.Store(true)
	a.take(0, 1)
	b.take(2, 3)
	a.adds("c", 100, 8)
	b.caught()
	if err := a.Rebuild(patient(t), false); err != nil {
		t.Fatal(err)
	}
	<-h.reached
	go h.open() // it is killed while it works
	b.stop()
	a.seize(2)
	a.seize(3)
	if st := rebuilt(t, a.Model); st.Generation != 2 || !identical(st) || st.Rebuild.Events != 100 {
		t.Errorf("%+v %+v", st, st.Rebuild)
	}
	assertFresh(t, c)
}

// A coordinator is away while another one takes over, and then comes back: it can write nothing.
func TestCoordinatorComesBack(t *testing.T) {
	c := newCluster(t)
	a, b := c.pair(nil)
	away, back := make(chan struct{}), make(chan struct{})
	var once sync.Once
	c.f.commit = func(batch *millrace.ViewBatch, write func() error) error {
		if isSwitch(batch, 2) {
			first := false
			once.Do(func() { first = true })
			if first {
				close(away)
				<-back
				err := write()
				if err == nil {
					t.Error("a coordinator that was away writes a switch")
				}
				return err
			}
		}
		return write()
	}
	c.f.on.Store(true)
	if err := b.Rebuild(patient(t), false); err != nil {
		t.Fatal(err)
	}
	<-away
	a.away.Store(true)
	b.seize(0)
	b.seize(1)
	if st := rebuilt(t, b.Model); st.Generation != 2 || !identical(st) {
		t.Errorf("%+v", st)
	}
	if err := b.Discard(patient(t)); err != nil {
		t.Error(err)
	}
	close(back)
	a.away.Store(false)
	eventually(t, "it knows that it lost its partitions", func() bool { owned, _ := a.own(); return len(owned) == 0 })
	b.adds("d", 40, 8)
	assertFresh(t, c)
	if st := rebuild(t, a.Model); st.Generation != 3 || !identical(st) {
		t.Errorf("%+v", st)
	}
}

// On one machine the plug is pulled at each step. What was live is live, or what was switched to is, and the rebuild goes on
// or can be asked for again.
func TestPowerCutAtEachStep(t *testing.T) {
	fs := vfs.NewCrashableMem()
	f := &fault{}
	s := millrace.NewStore(&faultyDriver{open(t, fs).Driver(), f})
	p, stopDeciding := deciding(t, s)
	m, stop := serveFaulty(t, s, f, millracetest.Tallies())
	send(t, p, "c", 200, 5)
	wait(t, m, s.Head())
	stopDeciding()
	want := dump(t, m)
	var mu sync.Mutex
	var cuts []*vfs.MemFS
	cut := func() {
		rng := rand.New(rand.NewPCG(1, uint64(len(cuts)))) //nolint:gosec // reproducible on purpose
		cuts = append(cuts, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng}))
	}
	f.commit = func(batch *millrace.ViewBatch, write func() error) error {
		if batch.Consumer != "projections" {
			return write()
		}
		mu.Lock()
		defer mu.Unlock()
		cut()
		defer cut()
		return write()
	}
	f.on.Store(true)
	rebuild(t, m)
	if err := m.Switch(patient(t), 1); err != nil {
		t.Fatal(err)
	}
	status(t, m, func(st projection.Status) bool { return st.Generation == 1 })
	if err := stop(); err != nil {
		t.Error(err)
	}
	f.on.Store(false)
	if len(cuts) < 12 {
		t.Fatalf("only %d steps", len(cuts))
	}
	for i, cut := range cuts {
		s := open(t, cut)
		svc, stop := serve(t, s, millracetest.Tallies())
		m := svc.Model("tallies")
		wait(t, m, s.Head())
		if dump(t, m) != want {
			t.Errorf("cut %d: readers see something else", i)
		}
		status(t, m, func(st projection.Status) bool { return !st.Switching && (st.Rebuild == nil || st.Rebuild.Done) })
		if st := rebuild(t, m); !identical(st) || dump(t, m) != want {
			t.Errorf("cut %d: %+v", i, st)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// On one machine a server is started with its feed paused while a rebuild is on its way. It stands still with everything else,
// and goes on with the next start.
func TestRebuildIsPaused(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, _ := deciding(t, s)
	r := registry(t)
	reached := make(chan struct{})
	once := sync.OnceFunc(func() { close(reached) })
	// It builds until it is stopped, and never gets to the end.
	endless := func(ctx context.Context, c millrace.Consumer) error {
		handle := c.Handle
		c.Handle = func(ctx context.Context, v millrace.Views, e *millrace.Recorded) error {
			if c.Rebuilding && e.Version > 10 {
				once()
				<-ctx.Done()
				return ctx.Err()
			}
			return handle(ctx, v, e)
		}
		return feed.New(s, r, c, nil).Run(ctx)
	}
	svc, stop := serveAs(t, s, projection.Options{Run: endless}, millracetest.Tallies())
	m := svc.Model("tallies")
	send(t, p, "c", 100, 5)
	wait(t, m, s.Head())
	if err := m.Rebuild(patient(t), false); err != nil {
		t.Fatal(err)
	}
	<-reached
	if err := stop(); err != nil {
		t.Error(err)
	}
	svc, stop = serveAs(t, s, projection.Options{Paused: always}, millracetest.Tallies())
	send(t, p, "d", 20, 5)
	st, err := svc.Model("tallies").Status(t.Context())
	if err != nil || st.Generation != 1 || st.Rebuild == nil || st.Rebuild.Done || st.Gap != 20 {
		t.Errorf("%+v %v", st, err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	svc, _ = serve(t, s, millracetest.Tallies())
	if st := rebuilt(t, svc.Model("tallies")); st.Generation != 2 || !identical(st) || st.Rebuild.Events != 120 {
		t.Errorf("%+v %+v", st, st.Rebuild)
	}
}
