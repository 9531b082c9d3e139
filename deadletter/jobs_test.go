package deadletter_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/deadletter"
	"github.com/millrace-io/millrace/internal/letter"
	"github.com/millrace-io/millrace/internal/pgtest"
)

// job sends a command of a job.
func (w *world) job(key, id string, body any) millrace.Outcome {
	w.t.Helper()
	name, data, err := w.reg.EncodeCommand(body)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.send(millrace.Command{ID: key, Stream: letter.JobStream(id), Type: name, Data: data})
}

func (w *world) startJob(id string, c letter.StartRedriveJob) {
	w.t.Helper()
	if c.Rate == 0 {
		c.Rate = letter.MaxRate
	}
	c.By = "ann"
	if o := w.job("start "+id, id, &c); o.Status != millrace.StatusDecided {
		w.t.Fatalf("%+v", o)
	}
}

func (w *world) untilJob(id string, want letter.JobStatus) *letter.Job {
	w.t.Helper()
	var last *letter.Job
	w.until("job "+id+" is "+string(want), func() bool {
		j, err := w.s.Job(w.t.Context(), id)
		if err != nil && !errors.Is(err, millrace.ErrNotFound) {
			w.t.Fatal(err)
		}
		last = j
		return err == nil && j.Status == want
	})
	return last
}

// fill makes n dead letters in some lists: the numbers of each list rise from 1.
func (w *world) fill(n, over int) {
	w.t.Helper()
	const most = 256
	for at := 0; at < n; at += most {
		var cs []millrace.Command
		for i := at; i < min(at+most, n); i++ {
			cs = append(cs, add(fmt.Sprintf("c%06d", i), fmt.Sprint("l", i%over), i/over+1))
		}
		for _, a := range w.intake.AcceptAll(w.ctx(), cs) {
			if a.Err != nil {
				w.t.Fatal(a.Err)
			}
			if o, err := a.Receipt.Wait(w.ctx()); err != nil || o.Status != millrace.StatusDead {
				w.t.Fatal(o, err)
			}
		}
	}
}

// whole checks that each list has all its numbers, each once, in order.
func (w *world) whole(n, over int) {
	w.t.Helper()
	for l := range over {
		want := make([]int, 0, n/over+1)
		for i := l; i < n; i += over {
			want = append(want, i/over+1)
		}
		if got := w.numbers(fmt.Sprint("l", l)); !slices.Equal(got, want) {
			w.t.Errorf("list %d has %v, want %v", l, got, want)
		}
	}
}

// A job redrives all that is a dead letter when it begins, each once and those of each stream in order, whoever runs it: it is
// paused, goes on, and the store is closed and opened again in the middle of pages.
func TestJobOverRestarts(t *testing.T) {
	const over = 7
	n := short(300, 120)
	onStores(t, func(t *testing.T, open func(options) *world) {
		w := open(options{faulty: every})
		w.fill(n, over)
		w.mustStop()
		small := &deadletter.Options{Page: 40, AtOnce: 4}
		w = open(options{service: small})
		w.startJob("j", letter.StartRedriveJob{Rate: short(2000, 200)})
		w.until("it has begun", func() bool { return len(w.numbers("l0")) > 3 })
		w.mustStop()
		w = open(options{service: small})
		w.until("it goes on", func() bool { j, err := w.s.Job(t.Context(), "j"); return err == nil && j.Page > 1 })
		w.job("pause", "j", &letter.PauseRedriveJob{By: "ann"})
		if j := w.untilJob("j", letter.JobPaused); j.Counts.Total() == n {
			t.Log("it was through before it was paused")
		}
		w.mustStop()
		w = open(options{service: small})
		defer w.mustStop()
		w.job("resume", "j", &letter.ResumeRedriveJob{By: "ann"})
		j := w.untilJob("j", letter.JobDone)
		if want := (letter.Counts{Decided: n}); j.Counts != want {
			t.Errorf("%+v, want %+v", j.Counts, want)
		}
		w.whole(n, over)
		if got := w.listed(letter.Filter{}, letter.Open); got != "" {
			t.Errorf("open: %s", got)
		}
	})
}

// What dies again holds those behind it in its stream, and no others; they are open, and another job takes them. The control
// does not wait for what becomes of those before, and a stream gets its numbers in another order.
func TestJobKeepsOrder(t *testing.T) {
	const n, over = 60, 3
	try := func(change func(*deadletter.Service)) (letter.Counts, []int) {
		fs := vfs.NewMem()
		w := start(t, options{fs: fs, faulty: every})
		w.fill(n, over)
		w.mustStop()
		// The seventh number of list 1 dies again.
		w = start(t, options{fs: fs, faulty: func(k int) bool { return k == 7 }, change: change, service: &deadletter.Options{Page: 8}})
		w.startJob("j", letter.StartRedriveJob{Filter: letter.Filter{Stream: "list-l1"}})
		j := w.untilJob("j", letter.JobDone)
		w.mustStop()
		w = start(t, options{fs: fs, change: change})
		defer w.mustStop()
		w.startJob("again", letter.StartRedriveJob{})
		w.untilJob("again", letter.JobDone)
		if change == nil {
			w.whole(n, over)
		}
		return j.Counts, w.numbers("l1")
	}
	counts, _ := try(nil)
	if want := (letter.Counts{Decided: 6, Dead: 1, Held: 13}); counts != want {
		t.Errorf("%+v, want %+v", counts, want)
	}
	if _, got := try(deadletter.Disorderly); slices.IsSorted(got) {
		t.Errorf("without the rule the order is kept too: %v", got)
	}
}

// A job that is stopped is over: what it has not sent is open. What somebody else has discarded is skipped, what is refused has
// its answer.
func TestJobStoppedSkippedRefused(t *testing.T) {
	fs := vfs.NewMem()
	w := start(t, options{fs: fs, faulty: every})
	w.kill(add("c1", "a", 1))
	w.kill(add("c2", "b", -1))
	w.kill(add("c3", "c", 3))
	w.act("d", &letter.DiscardDeadLetter{Letter: w.ref("c3"), By: "ann", Why: "a test"})
	w.mustStop()
	w = start(t, options{fs: fs})
	defer w.mustStop()
	w.startJob("j", letter.StartRedriveJob{})
	j := w.untilJob("j", letter.JobDone)
	if want := (letter.Counts{Decided: 1, Refused: 1, Skipped: 1}); j.Counts != want {
		t.Errorf("%+v, want %+v", j.Counts, want)
	}
	if o := w.job("stop", "j", &letter.StopRedriveJob{By: "ann"}); o.Refusal == nil || o.Refusal.Code != "redrive_job_over" {
		t.Errorf("%+v", o)
	}
	if a := w.item("c2").State.Answer; a.Status != "refused" || a.Code != "negative" {
		t.Errorf("%+v", a)
	}
}

// Over several nodes a job is run by whoever has its partition, and goes on when that one is gone in the middle of a page.
func TestJobOverNodes(t *testing.T) {
	const over = 11
	n := short(400, 200)
	dsn := pgtest.Start(t, pgtest.Options{NoSync: true}).DSN("postgres")
	node := func(name string, faulty func(int) bool) *world {
		return start(t, options{dsn: dsn, node: name, faulty: faulty, service: &deadletter.Options{Page: 50, AtOnce: 8}})
	}
	w := node("n0", every)
	w.fill(n, over)
	w.mustStop()
	nodes := []*world{node("n1", none), node("n2", none)}
	nodes[0].startJob("j", letter.StartRedriveJob{Rate: 1000})
	for round := range 3 {
		w := nodes[round%2]
		seen := 0
		if j, err := w.s.Job(w.ctx(), "j"); err == nil {
			seen = j.Page
		}
		w.until("it moves on", func() bool {
			j, err := w.s.Job(w.ctx(), "j")
			return err == nil && (j.Page > seen || j.Status == letter.JobDone)
		})
		nodes[round%2] = node(fmt.Sprint("n", round+3), none)
		w.mustStop() // its partitions go to the others
	}
	j := nodes[0].untilJob("j", letter.JobDone)
	if want := (letter.Counts{Decided: n}); j.Counts != want {
		t.Errorf("%+v, want %+v", j.Counts, want)
	}
	nodes[1].whole(n, over)
	for _, w := range nodes {
		w.mustStop()
	}
}

// Many are drained at a rate, in a memory that does not grow with them, stopped half-way and gone on with: none is lost, none
// doubled. In the ordinary form there are 3,000, in TestSoakDrain 100,000.
func TestDrain(t *testing.T) { drain(t, short(3_000, 1_000), 300, short(1500, 500)) }

// TestSoakDrain is the long form of TestDrain.
func TestSoakDrain(t *testing.T) {
	if os.Getenv("MILLRACE_SOAK") == "" {
		t.Skip("MILLRACE_SOAK is not set")
	}
	drain(t, 100_000, 10_000, 2500)
}

// maxGrowth bounds what a drain may hold: the states that the processor remembers, by their number and not by that of the dead
// letters, and a page.
const maxGrowth = 96 << 20

func drain(t *testing.T, n, over, rate int) {
	t.Helper()
	dir := t.TempDir() // a disk in memory would be what grows
	w := start(t, options{dir: dir, faulty: every})
	w.fill(n, over)
	w.mustStop()
	w = start(t, options{dir: dir})
	runtime.GC()
	var before, most runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	w.startJob("j", letter.StartRedriveJob{Rate: rate})
	w.untilWithin(30*time.Minute, "it is half-way", func() bool { j, err := w.s.Job(t.Context(), "j"); return err == nil && j.Counts.Total() >= n/2 })
	w.job("pause", "j", &letter.PauseRedriveJob{By: "ann"})
	half := w.untilJob("j", letter.JobPaused)
	runtime.GC()
	runtime.ReadMemStats(&most)
	took := time.Since(began)
	// The cap counts what was sent: pages are spread evenly, and the first of each goes at once.
	if least := time.Duration(half.Counts.Total()-half.Page) * time.Second / time.Duration(rate); took < least {
		t.Errorf("%d took %v, and the rate allows for %v", half.Counts.Total(), took, least)
	}
	more := int64(most.HeapAlloc) - int64(before.HeapAlloc) //nolint:gosec // far below 2⁶³
	t.Logf("%d in %v, at %d in a second; %d KiB more in the heap", half.Counts.Total(), took, rate, more>>10)
	if more > maxGrowth {
		t.Errorf("the heap has grown by %d MiB", more>>20)
	}
	w.mustStop()
	w = start(t, options{dir: dir})
	defer w.mustStop()
	w.job("resume", "j", &letter.ResumeRedriveJob{By: "ann"})
	w.untilWithin(30*time.Minute, "it is done", func() bool { j, err := w.s.Job(t.Context(), "j"); return err == nil && j.Status == letter.JobDone })
	j, err := w.s.Job(t.Context(), "j")
	if want := (letter.Counts{Decided: n}); err != nil || j.Counts != want {
		t.Errorf("%+v %v, want %+v", j.Counts, err, want)
	}
	w.whole(n, over)
}
