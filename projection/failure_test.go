package projection_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
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

var (
	errBroken = errors.New("broken on purpose")
	// errFinal is one that the feed does not try again.
	errFinal = fmt.Errorf("%w: %w", millrace.ErrFenced, errBroken)
)

// fault breaks rebuilds while it is on.
type fault struct {
	on  atomic.Bool
	run func(ctx context.Context, c millrace.Consumer, run func(context.Context, millrace.Consumer) error) error // nil: as it is
	// node is run on one of several nodes.
	node   func(n *node, ctx context.Context, c millrace.Consumer, run func(context.Context, millrace.Consumer) error) error
	commit func(b *millrace.ViewBatch, write func() error) error // nil: as it is
	drop   func(consumer string) error                           // nil: as it is
}

// faultyDriver is a store whose views can fail.
type faultyDriver struct {
	millrace.Driver
	f *fault
}

func (d *faultyDriver) CommitViews(ctx context.Context, batches []millrace.ViewBatch) error {
	write := func() error { return d.Driver.CommitViews(ctx, batches) }
	if d.f.on.Load() && d.f.commit != nil {
		return d.f.commit(&batches[0], write)
	}
	return write()
}

func (d *faultyDriver) DropViews(ctx context.Context, consumer string, collections []string) error {
	if d.f.on.Load() && d.f.drop != nil {
		if err := d.f.drop(consumer); err != nil {
			return err
		}
	}
	return d.Driver.DropViews(ctx, consumer, collections)
}

// serveFaulty is serve with a fault below and around the consumers.
func serveFaulty(t *testing.T, s *millrace.Store, f *fault, p millrace.Projection) (m *projection.Model, stop func() error) {
	t.Helper()
	r := registry(t)
	run := func(ctx context.Context, c millrace.Consumer) error {
		return feed.New(s, r, c, &feed.Options{Backoff: time.Millisecond, Attempts: 2}).Run(ctx)
	}
	svc, err := projection.New(t.Context(), s, []millrace.Projection{p}, projection.Options{
		Run: func(ctx context.Context, c millrace.Consumer) error {
			if f.on.Load() && f.run != nil {
				return f.run(ctx, c, run)
			}
			return run(ctx, c)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- svc.Run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("the service ended with %v", err)
		}
	})
	return svc.Model(p.Name), stop
}

// handlers are faults of the handler for some streams. The feed gives such a stream up and goes on.
func handlers(fail func() error) *fault {
	return &fault{run: func(ctx context.Context, c millrace.Consumer, run func(context.Context, millrace.Consumer) error) error {
		handle := c.Handle
		c.Handle = func(ctx context.Context, v millrace.Views, e *millrace.Recorded) error {
			if c.Rebuilding && e.Stream == "tally-s1" {
				return fail()
			}
			return handle(ctx, v, e)
		}
		return run(ctx, c)
	}}
}

// faults are ways in which a rebuild fails. The control fails in none.
func faults() map[string]*fault {
	next := func(b *millrace.ViewBatch) bool { return b.Consumer == "tallies@2" }
	return map[string]*fault{
		"control":            {},
		"the handler fails":  handlers(func() error { return errBroken }),
		"the handler panics": handlers(func() error { panic("on purpose") }),
		"the consumer ends": {run: func(ctx context.Context, c millrace.Consumer, run func(context.Context, millrace.Consumer) error) error {
			if c.Rebuilding {
				return errBroken
			}
			return run(ctx, c)
		}},
		"the store refuses the documents": {commit: func(b *millrace.ViewBatch, write func() error) error {
			if next(b) {
				return errFinal
			}
			return write()
		}},
		"the store refuses the documents and their removal": {
			commit: func(b *millrace.ViewBatch, write func() error) error {
				if next(b) && b.Partition != 0 {
					return errFinal
				}
				return write()
			},
			drop: func(consumer string) error {
				if consumer == "tallies@2" {
					return errBroken
				}
				return nil
			},
		},
	}
}

// A rebuild that fails, however it fails, ends nothing but itself: its status says why, readers see what they saw, the live
// model goes on, nothing of the new generation stays, a start finds the old one, and another rebuild may be asked for and
// succeeds. The control is the same without a fault: it switches.
func TestFailedRebuild(t *testing.T) {
	for name, f := range faults() {
		t.Run(name, func(t *testing.T) {
			s := millrace.NewStore(&faultyDriver{open(t, vfs.NewMem()).Driver(), f})
			p, _ := deciding(t, s)
			// The fault is on from the start: the run of the live consumer is one of those that it watches.
			f.on.Store(true)
			m, stop := serveFaulty(t, s, f, millracetest.Tallies())
			send(t, p, "c", 100, 5)
			wait(t, m, s.Head())
			want := dump(t, m)
			st := rebuild(t, m)
			if name == "control" {
				if st.Generation != 2 || st.Rebuild.Error != "" || st.Rebuild.Reason != "" {
					t.Fatalf("the control: %+v %+v", st, st.Rebuild)
				}
				return
			}
			isIncomplete := st.Rebuild.Reason == projection.ReasonIncomplete && strings.Contains(st.Rebuild.Error, "1 streams that the live documents follow, such as tally-s1")
			if st.Generation != 1 || st.Parked != 0 || st.Rebuild.Error == "" || st.Rebuild.Finished.IsZero() || st.Rebuild.Identical() != nil ||
				isIncomplete != strings.HasPrefix(name, "the handler") || !isIncomplete && !broken(st) {
				t.Errorf("%+v %+v", st, st.Rebuild)
			}
			if d := cmp.Diff(want, dump(t, m)); d != "" {
				t.Errorf("readers see something else:\n%s", d)
			}
			f.on.Store(false)
			gone(t, s, "tallies@2")
			// The live model goes on.
			send(t, p, "d", 50, 5)
			wait(t, m, s.Head())
			want = dump(t, m)
			if err := stop(); err != nil {
				t.Errorf("the service ended with %v", err)
			}
			m, _ = serveFaulty(t, s, f, millracetest.Tallies())
			if d := cmp.Diff(want, dump(t, m)); d != "" {
				t.Errorf("the next start finds something else:\n%s", d)
			}
			if st := rebuild(t, m); st.Generation != 3 || st.Rebuild.Error != "" || !identical(st) {
				t.Errorf("another rebuild: %+v %+v", st, st.Rebuild)
			}
		})
	}
}

// gone waits until nothing is left of a generation.
func gone(t *testing.T, s *millrace.Store, generation string) {
	t.Helper()
	eventually(t, generation+" is gone", func() bool {
		for _, table := range []string{millracetest.TallyTable.Name, millrace.ParkedName} {
			for _, err := range s.Documents(t.Context(), millrace.Query{Collection: generation + "." + table, Index: -1, Partition: -1}) {
				if err != nil {
					t.Error(err)
				}
				return false
			}
		}
		c, err := s.Driver().Checkpoints(t.Context(), generation)
		return err == nil && fmt.Sprint(c.Positions) == fmt.Sprint(make([]uint64, s.Partitions()))
	})
}

// A switch that cannot be written down is tried again, and readers see the old documents meanwhile; one that is written
// down counts, whatever its writer was told.
func TestSwitchIsRefused(t *testing.T) {
	switches := func(b *millrace.ViewBatch) bool {
		return b.Consumer == "projections" && strings.Contains(string(b.Puts[0].Data), `,"generation":2,"version":1,`)
	}
	for name, f := range map[string]*fault{
		"control": {},
		"refused": {commit: func(b *millrace.ViewBatch, write func() error) error {
			if switches(b) {
				return errBroken
			}
			return write()
		}},
		"written and reported as refused": {commit: func(b *millrace.ViewBatch, write func() error) error {
			if switches(b) {
				return errors.Join(write(), errBroken)
			}
			return write()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var refused atomic.Int32
			if commit := f.commit; commit != nil {
				f.commit = func(b *millrace.ViewBatch, write func() error) error {
					err := commit(b, write)
					if err != nil {
						refused.Add(1)
					}
					return err
				}
			}
			s := millrace.NewStore(&faultyDriver{open(t, vfs.NewMem()).Driver(), f})
			p, _ := deciding(t, s)
			m, _ := serveFaulty(t, s, f, millracetest.Tallies())
			send(t, p, "c", 100, 5)
			wait(t, m, s.Head())
			want := dump(t, m)
			f.on.Store(true)
			if err := m.Rebuild(patient(t), false); err != nil {
				t.Fatal(err)
			}
			if name == "refused" {
				eventually(t, "the switch is tried again and again", func() bool { return refused.Load() > 3 })
				if st, err := m.Status(t.Context()); err != nil || st.Generation != 1 || !st.Switching || dump(t, m) != want {
					t.Errorf("%+v %v", st, err)
				}
				f.on.Store(false)
			}
			if st := rebuilt(t, m); st.Generation != 2 || st.Rebuild.Error != "" || !identical(st) {
				t.Errorf("%+v %+v", st, st.Rebuild)
			}
			if d := cmp.Diff(want, dump(t, m)); d != "" {
				t.Error(d)
			}
		})
	}
}

// Without another start: the same service rebuilds again after a failure, and again fails, and again.
func TestFailedRebuildIsAskedForAgain(t *testing.T) {
	f := handlers(func() error { return errBroken })
	s := millrace.NewStore(&faultyDriver{open(t, vfs.NewMem()).Driver(), f})
	p, _ := deciding(t, s)
	m, _ := serveFaulty(t, s, f, millracetest.Tallies())
	send(t, p, "c", 100, 5)
	wait(t, m, s.Head())
	f.on.Store(true)
	for range 3 {
		if st := rebuild(t, m); st.Generation != 1 || st.Rebuild.Error == "" || st.Rebuild.Events == 0 {
			t.Errorf("%+v %+v", st, st.Rebuild)
		}
	}
	f.on.Store(false)
	if st := rebuild(t, m); st.Generation != 5 || st.Rebuild.Error != "" || !identical(st) {
		t.Errorf("%+v %+v", st, st.Rebuild)
	}
}

// New code that cannot be run does not take the old documents away either: they stand still, and the status says why.
func TestFailedRebuildOfNewCode(t *testing.T) {
	f := &fault{run: func(context.Context, millrace.Consumer, func(context.Context, millrace.Consumer) error) error {
		return errBroken
	}}
	s := millrace.NewStore(&faultyDriver{open(t, vfs.NewMem()).Driver(), f})
	p, _ := deciding(t, s)
	m, stop := serveFaulty(t, s, f, millracetest.Tallies())
	send(t, p, "c", 100, 5)
	wait(t, m, s.Head())
	want := dump(t, m)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	f.on.Store(true)
	m, _ = serveFaulty(t, s, f, double(nil))
	if st := rebuilt(t, m); st.Generation != 1 || st.Version != 1 || !broken(st) {
		t.Errorf("%+v %+v", st, st.Rebuild)
	}
	if d := cmp.Diff(want, dump(t, m)); d != "" {
		t.Errorf("readers see something else:\n%s", d)
	}
	f.on.Store(false)
	if st := rebuild(t, m); st.Generation != 3 || st.Version != 2 || st.Rebuild.Error != "" {
		t.Errorf("%+v %+v", st, st.Rebuild)
	}
	if dump(t, m) == want {
		t.Error("readers still see the documents of the old code")
	}
}

// A stream that the live documents have given up too is no reason to keep them: the rebuild is no worse.
func TestRebuildWithAStreamThatWasParkedBefore(t *testing.T) {
	f := &fault{run: func(ctx context.Context, c millrace.Consumer, run func(context.Context, millrace.Consumer) error) error {
		handle := c.Handle
		c.Handle = func(ctx context.Context, v millrace.Views, e *millrace.Recorded) error {
			if e.Stream == "tally-s1" {
				return errBroken
			}
			return handle(ctx, v, e)
		}
		return run(ctx, c)
	}}
	f.on.Store(true)
	s := millrace.NewStore(&faultyDriver{open(t, vfs.NewMem()).Driver(), f})
	p, _ := deciding(t, s)
	m, _ := serveFaulty(t, s, f, millracetest.Tallies())
	send(t, p, "c", 100, 5)
	wait(t, m, s.Head())
	if st := rebuild(t, m); st.Generation != 2 || st.Parked != 1 || st.Rebuild.Error != "" || !identical(st) {
		t.Errorf("%+v %+v", st, st.Rebuild)
	}
}

// A consumer that was stopped may say so by ctx's error: that is no failure of a rebuild, nor of the service.
func TestStoppedConsumersAreNoFailure(t *testing.T) {
	f := &fault{run: func(ctx context.Context, c millrace.Consumer, run func(context.Context, millrace.Consumer) error) error {
		if err := run(ctx, c); err != nil {
			return err
		}
		return fmt.Errorf("stopped: %w", ctx.Err())
	}}
	f.on.Store(true)
	s := millrace.NewStore(&faultyDriver{open(t, vfs.NewMem()).Driver(), f})
	p, _ := deciding(t, s)
	m, stop := serveFaulty(t, s, f, millracetest.Tallies())
	send(t, p, "c", 100, 5)
	wait(t, m, s.Head())
	if st := rebuild(t, m); st.Generation != 2 || st.Rebuild.Error != "" {
		t.Errorf("%+v %+v", st, st.Rebuild)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// broken says whether a rebuild failed by the fault, and says so.
func broken(st projection.Status) bool {
	return st.Rebuild.Reason == projection.ReasonFailed && strings.Contains(st.Rebuild.Error, errBroken.Error())
}
