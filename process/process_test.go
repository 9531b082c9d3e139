package process_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/process"
)

// Jobs take from shelves in other partitions; where one is empty, everything taken is given back.
func TestJobs(t *testing.T) {
	w := start(t, worldOptions{})
	filled := map[string]int{"a": 30, "b": 20, "c": 10}
	for shelf, n := range filled {
		w.fill(shelf, n)
	}
	started := map[string][]string{}
	for n := range 40 {
		name := fmt.Sprint("j", n)
		started[name] = [][]string{{"a", "b"}, {"a", "b", "c"}, {"c"}, {}}[n%4]
		w.job(name, time.Time{}, started[name]...)
	}
	finished := 0
	for name := range started {
		i := w.until(name, done)
		if i.Failed != "" || i.Pending() != 0 {
			t.Errorf("%+v", i)
		}
		if i.State == "finished" {
			finished++
		}
	}
	if finished < 20 || finished == 40 {
		t.Errorf("%d jobs were finished", finished)
	}
	w.balance(filled, started)
	w.mustStop()
}

// slow is an intake that hands commands for one stream on when the gate is open; until then their outcomes are awaited.
type slow struct {
	millrace.Intake
	stream millrace.Stream
	gate   chan struct{}
}

func (s *slow) AcceptAll(ctx context.Context, cs []millrace.Command) []millrace.Accepted {
	out := make([]millrace.Accepted, len(cs))
	for i, c := range cs {
		if c.Stream != s.stream {
			out[i] = s.Intake.AcceptAll(ctx, cs[i:i+1])[0]
			continue
		}
		out[i].Receipt = millrace.NewPendingReceipt(c.ID, c.Stream, false, waiter(func(ctx context.Context) (o millrace.Outcome, err error) {
			select {
			case <-s.gate:
			case <-ctx.Done():
				return o, ctx.Err()
			}
			r, err := s.Accept(ctx, c)
			if err != nil {
				return o, err
			}
			return r.Wait(ctx)
		}))
	}
	return out
}

type waiter func(ctx context.Context) (millrace.Outcome, error)

func (w waiter) Await(ctx context.Context) (millrace.Outcome, error) { return w(ctx) }

// newSlow is one for shelf b.
func newSlow() (*slow, func(millrace.Intake) millrace.Intake) {
	s := &slow{stream: "shelf-b", gate: make(chan struct{})}
	return s, func(i millrace.Intake) millrace.Intake {
		s.Intake = i
		return s
	}
}

// A job waits longer than it may: its timer fires, and what was taken is given back, also what comes late. The timer fires not a
// moment early, and where the clock jumps, when the clock says so.
func TestTimerFires(t *testing.T) {
	for _, jump := range []time.Duration{0, 50 * time.Second, -time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			var off atomic.Int64
			now := func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
			slow, hold := newSlow()
			w := start(t, worldOptions{intake: hold, now: now})
			w.fill("a", 1)
			w.fill("b", 1)
			w.job("j", now().Add(time.Minute), "a", "b")
			synctest.Wait()
			off.Store(int64(jump))
			<-time.After(time.Minute - jump - time.Millisecond)
			synctest.Wait()
			if i := w.instance("j"); i.State != "taking" || len(i.Timers) != 1 || i.Pending() != 1 {
				t.Errorf("jump %s: before its time: %+v", jump, i)
			}
			<-time.After(time.Millisecond + process.LookEvery)
			synctest.Wait()
			if i := w.instance("j"); i.State != "giving back" || len(i.Timers) != 0 {
				t.Errorf("jump %s: after its time: %+v", jump, i)
			}
			off.Store(int64(jump - 3*time.Minute)) // it does not fire again
			<-time.After(4 * time.Minute)
			close(slow.gate)
			i := w.until("j", done)
			if i.State != "failed" || len(i.Fired) != 0 || len(i.Steps) != 5 {
				t.Errorf("jump %s: %+v", jump, i)
			}
			w.balance(map[string]int{"a": 1, "b": 1}, map[string][]string{"j": {"a", "b"}})
			w.mustStop()
		})
	}
}

// A timer that is not wanted any more has no effect, and leaves nothing behind.
func TestTimerCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, worldOptions{})
		w.fill("a", 1)
		w.job("j", time.Now().Add(time.Minute), "a")
		before := w.until("j", done)
		<-time.After(2 * time.Minute)
		synctest.Wait()
		if d := cmp.Diff(before, w.instance("j")); d != "" || before.State != "finished" {
			t.Errorf("%+v\n%s", before, d)
		}
		if left := w.ids("jobs.timers"); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		w.mustStop()
	})
}

// What fell due while nothing ran fires after the start, and outcomes that were awaited then are asked for again.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		_, hold := newSlow()
		w := start(t, worldOptions{fs: fs, intake: hold})
		w.fill("a", 2)
		w.fill("b", 1)
		w.job("late", time.Now().Add(time.Minute), "a", "b")
		w.job("patient", time.Time{}, "a", "b")
		synctest.Wait()
		w.mustStop()
		<-time.After(2 * time.Minute)
		w = start(t, worldOptions{fs: fs})
		states := []string{w.until("late", done).State, w.until("patient", done).State}
		// Whichever took from b: the other one has given back.
		if states[0] != "failed" {
			t.Errorf("the job that was too late is %s", states[0])
		}
		w.balance(map[string]int{"a": 2, "b": 1}, map[string][]string{"late": {"a", "b"}, "patient": {"a", "b"}})
		w.mustStop()
	})
}

// A job is cancelled while it takes: what is taken then, and what comes later, is given back.
func TestCancelInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow, hold := newSlow()
		w := start(t, worldOptions{intake: hold})
		w.fill("a", 1)
		w.fill("b", 1)
		w.job("j", time.Time{}, "a", "b")
		synctest.Wait()
		w.send("cancel", "job-j", &CancelJob{})
		synctest.Wait()
		if i := w.instance("j"); i.State != "giving back" || i.Waits != "1 shelves" {
			t.Errorf("%+v", i)
		}
		close(slow.gate)
		if i := w.until("j", done); i.State != "failed" {
			t.Errorf("%+v", i)
		}
		w.balance(map[string]int{"a": 1, "b": 1}, map[string][]string{"j": {"a", "b"}})
		w.mustStop()
	})
}

// Intake refuses for a while, for reasons that pass: the process waits with it, and nothing is lost or sent twice.
func TestIntakeIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		w := start(t, worldOptions{intake: func(i millrace.Intake) millrace.Intake {
			return intakeFunc(func(ctx context.Context, cs []millrace.Command) []millrace.Accepted {
				if k := n.Add(1); k <= 5 {
					out := make([]millrace.Accepted, len(cs))
					for i := range out {
						out[i].Err = []error{&millrace.OverloadError{What: "queue"}, millrace.ErrFull, millrace.ErrUnavailable}[int(k)%3]
					}
					return out
				}
				return i.AcceptAll(ctx, cs)
			})
		}})
		w.fill("a", 1)
		w.job("j", time.Time{}, "a")
		if i := w.until("j", done); i.State != "finished" {
			t.Errorf("%+v", i)
		}
		w.balance(map[string]int{"a": 1}, map[string][]string{"j": {"a"}})
		w.mustStop()
	})
}

type intakeFunc func(ctx context.Context, cs []millrace.Command) []millrace.Accepted

func (f intakeFunc) AcceptAll(ctx context.Context, cs []millrace.Command) []millrace.Accepted {
	return f(ctx, cs)
}
func (f intakeFunc) Accept(ctx context.Context, c millrace.Command) (*millrace.Receipt, error) {
	a := f(ctx, []millrace.Command{c})[0]
	return a.Receipt, a.Err
}

// A process that breaks its contract stops for the instance at hand, whatever the input was; all others go on.
func TestFaultyProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var circles atomic.Int64
		var mended atomic.Bool
		p := process1()
		evolve, react := p.Evolve, p.React
		p.Evolve = func(s doing, in *millrace.Input) doing {
			if !mended.Load() && (s.Job == "event" || s.Job == "outcome" && in.Outcome != nil || s.Job == "timer" && in.Timer != "") {
				panic("no")
			}
			return evolve(s, in)
		}
		p.React = func(s doing) millrace.Reaction {
			r := react(s)
			switch s.Job {
			case "circle":
				r.Steps = append(r.Steps, millrace.Step{Name: fmt.Sprint("again", circles.Add(1)), Stream: "shelf-a", Command: &FillShelf{0}})
			case "unknown":
				r.Steps = append(r.Steps, millrace.Step{Name: "x", Stream: "shelf-a", Command: &struct{}{}})
			case "reused":
				r.Steps = append(r.Steps, millrace.Step{Name: "x", Stream: "shelf-a", Command: &FillShelf{0}})
			}
			return r
		}
		slow, hold := newSlow()
		w := start(t, worldOptions{process: p, intake: hold})
		w.fill("a", 100)
		w.send(millrace.StepID("jobs", "job-reused", "x"), "shelf-c", &FillShelf{1}) // somebody else has taken the id
		w.job("event", time.Time{}, "a")
		w.job("unknown", time.Time{}, "a")
		w.job("outcome", time.Time{}, "a")
		w.job("timer", time.Now().Add(time.Minute), "a", "b")
		w.job("reused", time.Time{}, "a")
		w.job("circle", time.Time{}, "a", "b")
		w.job("good", time.Time{}, "a")
		if i := w.until("good", done); i.State != "finished" {
			t.Errorf("%+v", i)
		}
		for _, job := range []string{"outcome", "reused", "timer", "circle"} {
			if i := w.until(job, func(i *millrace.Instance) bool { return i.Failed != "" }); i.Done {
				t.Errorf("%+v", i)
			}
		}
		// Where an event is at fault it waits with all that follow, as for every consumer. So do the events that come for an
		// instance that has stopped: this one had finished its job already.
		if d := cmp.Diff([]string{"job-event", "job-reused", "job-unknown"}, w.ids("jobs.parked")); d != "" {
			t.Error(d)
		}
		// When the process is mended, they go on where they were, also with what has come meanwhile.
		w.send("cancel", "job-event", &CancelJob{})
		mended.Store(true)
		close(slow.gate)
		for _, job := range []string{"event", "outcome", "timer"} {
			if err := feed.Redrive(t.Context(), w.s, "jobs", "redrive "+job, millrace.NewStream("job", job), time.Now()); err != nil {
				t.Error(err)
			}
		}
		for job, state := range map[string]string{"event": "failed", "outcome": "finished", "timer": "failed"} {
			if i := w.until(job, done); i.State != state || i.Failed != "" {
				t.Errorf("%+v", i)
			}
		}
		taken := fold[Shelf](w, "shelf-a").Taken
		if taken["event"] != 0 || taken["outcome"] != 1 || taken["timer"] != 0 || taken["good"] != 1 {
			t.Errorf("%v", taken)
		}
		w.mustStop()
	})
}

// watcher notes how late timers fired.
type watcher struct {
	mu   sync.Mutex
	late []time.Duration
}

func (*watcher) Sent(string, int)                    {}
func (*watcher) Called(string, time.Duration, error) {}
func (*watcher) Stopped(string)                      {}
func (w *watcher) Fired(_ string, late time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.late = append(w.late, late)
}

// Many timers are pending, and some of them fall due each moment: each fires once, not early, and no later than the clock is
// looked at. Time stands still while somebody works: how long the work takes, the soak tells.
func TestManyTimers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { manyTimers(t, 3000, 1500, process.LookEvery) })
}

// The same with a million on a real clock: 99 of 100 fire within a second.
func TestSoakTimers(t *testing.T) {
	if os.Getenv("MILLRACE_SOAK") == "" {
		t.Skip("a soak: make soak")
	}
	manyTimers(t, 1_000_000, 20_000, time.Second)
}

// manyTimers has a number of timers pend, of which some fall due over three seconds while all are there.
func manyTimers(t *testing.T, pending, due int, bound time.Duration) {
	var seen watcher
	_, hold := newSlow()
	w := start(t, worldOptions{intake: hold, options: &process.Options{Observer: &seen}})
	began := time.Now()
	far := began.Add(1000 * time.Hour)
	jobs := func(prefix string, n int, until func(i int) time.Time) {
		var cs []millrace.Command
		for i := range n {
			name, data, err := registry(t).EncodeCommand(&StartJob{[]string{"b"}, until(i)})
			if err != nil {
				t.Fatal(err)
			}
			id := fmt.Sprint(prefix, i)
			cs = append(cs, millrace.Command{ID: "start " + id, Stream: millrace.NewStream("job", id), Type: name, Data: data})
			if len(cs) == 500 || i+1 == n {
				for _, a := range w.p.AcceptAll(t.Context(), cs) {
					if a.Err != nil {
						t.Fatal(a.Err)
					}
				}
				cs = nil
			}
		}
	}
	jobs("far", pending-due, func(int) time.Time { return far })
	if err := w.s.Wait(t.Context(), w.name, w.s.Head()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d timers pend after %s", pending-due, time.Since(began).Round(time.Millisecond))
	// Far enough from now that the process has all of them in time.
	first := time.Now().Add(time.Second + time.Duration(due)*200*time.Microsecond)
	jobs("due", due, func(i int) time.Time { return first.Add(time.Duration(i) * 3 * time.Second / time.Duration(due)) })
	for i := range due {
		w.until(fmt.Sprint("due", i), func(i *millrace.Instance) bool { return i.State == "giving back" })
	}
	w.mustStop()
	slices.Sort(seen.late)
	if len(seen.late) != due {
		t.Fatalf("%d timers fired, and %d were due", len(seen.late), due)
	}
	least, p99 := seen.late[0], seen.late[len(seen.late)*99/100]
	t.Logf("late: least %s, median %s, p99 %s, most %s", least, seen.late[len(seen.late)/2], p99, seen.late[len(seen.late)-1])
	if least < 0 || p99 > bound {
		t.Errorf("early, or late by %s", p99)
	}
}

// A process that says nothing of a stream keeps nothing of it, whatever comes for it, and in however many commits; what comes
// when it has something to say is kept from then on.
func TestPassedBy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := process1()
		evolve, react := p.Evolve, p.React
		p.Evolve = func(s doing, in *millrace.Input) doing {
			if s.Why == "seen" {
				t.Error("a state that is not kept has come back")
			}
			s = evolve(s, in)
			if strings.HasPrefix(s.Job, "other") {
				s.Why = "seen"
			}
			return s
		}
		p.React = func(s doing) millrace.Reaction {
			if strings.HasPrefix(s.Job, "other") {
				return millrace.Reaction{}
			}
			return react(s)
		}
		var looks atomic.Int64
		w := start(t, worldOptions{process: p, wrap: func(s *millrace.Store) *millrace.Store {
			return millrace.NewStore(&looking{s.Driver(), &looks})
		}})
		w.fill("a", 10)
		for i := range 10 {
			w.job(fmt.Sprint("other", i), time.Time{}, "a")
			w.send(fmt.Sprint("cancel", i), millrace.NewStream("job", fmt.Sprint("other", i)), &CancelJob{})
		}
		w.job("mine", time.Time{}, "a")
		w.until("mine", done)
		if err := w.s.Wait(t.Context(), "jobs", w.s.Head()); err != nil {
			t.Error(err)
		}
		if d := cmp.Diff([]string{"job-mine"}, w.ids("jobs.instances")); d != "" {
			t.Error(d)
		}
		// On a shared store a look is a round trip: nobody looks for what cannot be there.
		if n := looks.Load(); n != 0 {
			t.Errorf("instances were looked for %d times", n)
		}
		w.balance(map[string]int{"a": 10}, map[string][]string{"mine": {"a"}})
		w.mustStop()
	})
}

// looking counts how often instances are looked for in the store.
type looking struct {
	millrace.Driver
	looks *atomic.Int64
}

func (l *looking) Document(ctx context.Context, collection string, partition int, id string) (millrace.Document, error) {
	if collection == "jobs.instances" && strings.HasPrefix(id, "job-other") {
		l.looks.Add(1)
	}
	return l.Driver.Document(ctx, collection, partition, id)
}
