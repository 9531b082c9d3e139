package process_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/process"
)

// patience is how long a test waits for what must come: only a hang reaches it.
const patience = 60 * time.Second

// A job takes one thing from each of some shelves, and is finished; or, where a shelf is empty or it takes too long, gives
// back what it took, and has failed.

type (
	StartJob struct {
		Shelves []string  `json:"shelves"`
		Until   time.Time `json:"until,omitzero"`
	}
	FinishJob struct{}
	FailJob   struct {
		Reason string `json:"reason"`
	}
	CancelJob  struct{}
	JobStarted struct {
		Shelves []string  `json:"shelves"`
		Until   time.Time `json:"until,omitzero"`
	}
	JobFinished  struct{}
	JobCancelled struct{}
	JobFailed    struct {
		Reason string `json:"reason"`
	}
	Job struct {
		Status string `json:"status"`
	}

	FillShelf struct {
		N int `json:"n"`
	}
	TakeThing struct {
		For string `json:"for"`
	}
	GiveThing struct {
		For string `json:"for"`
	}
	ShelfFilled struct {
		N int `json:"n"`
	}
	ThingTaken struct {
		For string `json:"for"`
	}
	ThingGiven struct {
		For string `json:"for"`
	}
	Shelf struct {
		Left  int            `json:"left"`
		Taken map[string]int `json:"taken"` // how often by whom
	}
)

func refuse(code string) *millrace.Refusal {
	return &millrace.Refusal{Kind: millrace.RefusedConflict, Code: code, Detail: code}
}

func jobs() millrace.Definition {
	return millrace.Domain[Job]{
		Category: "job", StateVersion: 1,
		Initial: func(string) Job { return Job{} },
		Decide: func(s Job, c any, _ time.Time) ([]any, *millrace.Refusal) {
			if c, ok := c.(*StartJob); ok {
				if s.Status != "" {
					return nil, refuse("exists")
				}
				return []any{&JobStarted{c.Shelves, c.Until}}, nil
			}
			if s.Status != "started" && s.Status != "cancelled" {
				return nil, refuse("over")
			}
			switch c := c.(type) {
			case *CancelJob:
				return []any{&JobCancelled{}}, nil
			case *FailJob:
				return []any{&JobFailed{c.Reason}}, nil
			}
			if s.Status == "cancelled" {
				return nil, refuse("cancelled")
			}
			return []any{&JobFinished{}}, nil
		},
		Evolve: func(s Job, e any) Job {
			switch e.(type) {
			case *JobStarted:
				return Job{"started"}
			case *JobFinished:
				return Job{"finished"}
			case *JobCancelled:
				return Job{"cancelled"}
			case *JobFailed:
				return Job{"failed"}
			}
			return s
		},
		Commands: []millrace.Message{
			millrace.MessageOf[StartJob]("StartJob"), millrace.MessageOf[FinishJob]("FinishJob"), millrace.MessageOf[FailJob]("FailJob"),
			millrace.MessageOf[CancelJob]("CancelJob"),
		},
		Events: []millrace.Message{
			millrace.MessageOf[JobStarted]("JobStarted"), millrace.MessageOf[JobFinished]("JobFinished"),
			millrace.MessageOf[JobFailed]("JobFailed"), millrace.MessageOf[JobCancelled]("JobCancelled"),
		},
	}
}

func shelves() millrace.Definition {
	return millrace.Domain[Shelf]{
		Category: "shelf", StateVersion: 1,
		Initial: func(string) Shelf { return Shelf{} },
		Decide: func(s Shelf, c any, _ time.Time) ([]any, *millrace.Refusal) {
			switch c := c.(type) {
			case *FillShelf:
				return []any{&ShelfFilled{c.N}}, nil
			case *TakeThing:
				if s.Left == 0 {
					return nil, refuse("empty")
				}
				return []any{&ThingTaken{c.For}}, nil
			case *GiveThing:
				if s.Taken[c.For] == 0 {
					return nil, refuse("not_taken")
				}
				return []any{&ThingGiven{c.For}}, nil
			}
			panic("unknown")
		},
		Evolve: func(s Shelf, e any) Shelf {
			taken := map[string]int{}
			for k, v := range s.Taken {
				taken[k] = v
			}
			s.Taken = taken
			switch e := e.(type) {
			case *ShelfFilled:
				s.Left += e.N
			case *ThingTaken:
				s.Left--
				s.Taken[e.For]++
			case *ThingGiven:
				s.Left++
				s.Taken[e.For]--
			}
			return s
		},
		Commands: []millrace.Message{
			millrace.MessageOf[FillShelf]("FillShelf"), millrace.MessageOf[TakeThing]("TakeThing"), millrace.MessageOf[GiveThing]("GiveThing"),
		},
		Events: []millrace.Message{
			millrace.MessageOf[ShelfFilled]("ShelfFilled"), millrace.MessageOf[ThingTaken]("ThingTaken"), millrace.MessageOf[ThingGiven]("ThingGiven"),
		},
	}
}

// doing is the state of the process of jobs.
type doing struct {
	Job     string            `json:"job"`
	Shelves []string          `json:"shelves"`
	Until   time.Time         `json:"until,omitzero"`
	Took    map[string]string `json:"took"` // by shelf: asked, taken, none; then asked_back, back
	Why     string            `json:"why"`
	Over    string            `json:"over"`
}

func process1() millrace.Process[doing] {
	return millrace.Process[doing]{
		Name: "jobs", Category: "job",
		Initial: func(s millrace.Stream) doing { return doing{Job: s.ID(), Took: map[string]string{}} },
		Evolve: func(s doing, in *millrace.Input) doing {
			took := map[string]string{}
			for k, v := range s.Took {
				took[k] = v
			}
			s.Took = took
			switch e := in.Event.(type) {
			case *JobStarted:
				s.Shelves, s.Until = e.Shelves, e.Until
			case *JobCancelled:
				s.Why = "cancelled"
			case *JobFinished:
				s.Over = "finished"
			case *JobFailed:
				s.Over = "failed"
			}
			if in.Timer == "until" && s.Why == "" && !s.all("taken") {
				s.Why = "late"
			}
			if in.Outcome != nil {
				what, shelf, _ := strings.Cut(in.Step, " ")
				switch {
				case what == "take" && in.Outcome.Status == millrace.StatusDecided:
					s.Took[shelf] = "taken"
				case what == "take":
					if s.Took[shelf] = "none"; s.Why == "" {
						s.Why = "empty"
					}
				case what == "give":
					s.Took[shelf] = "back"
				}
			}
			return s
		},
		React: func(s doing) millrace.Reaction {
			r := millrace.Reaction{State: "taking", Key: "key of " + s.Job}
			switch {
			case s.Over != "" && s.open() == 0 && (s.Over == "finished" || !slices.Contains(s.values(), "taken")):
				return millrace.Reaction{State: s.Over, Done: true}
			case s.Why == "" && s.all("taken"):
				r.State = "finishing"
				r.Steps = []millrace.Step{{Name: "finish", Stream: millrace.NewStream("job", s.Job), Command: &FinishJob{}}}
				return r
			case s.Why != "":
				r.State, r.Waits = "giving back", fmt.Sprint(s.open(), " shelves")
				for _, shelf := range s.Shelves {
					if s.Took[shelf] == "taken" {
						r.Steps = append(r.Steps, millrace.Step{Name: "give " + shelf, Stream: millrace.NewStream("shelf", shelf), Command: &GiveThing{s.Job}})
					}
				}
				if s.open() == 0 && len(r.Steps) == 0 {
					r.Steps = []millrace.Step{{Name: "fail", Stream: millrace.NewStream("job", s.Job), Command: &FailJob{s.Why}}}
				}
				return r
			}
			for _, shelf := range s.Shelves {
				r.Steps = append(r.Steps, millrace.Step{Name: "take " + shelf, Stream: millrace.NewStream("shelf", shelf), Command: &TakeThing{s.Job}})
			}
			if !s.Until.IsZero() {
				r.Timers = []millrace.Timer{{Name: "until", At: s.Until}}
			}
			return r
		},
	}
}

func (s doing) values() (out []string) {
	for _, v := range s.Took {
		out = append(out, v)
	}
	return out
}

func (s doing) all(what string) bool {
	n := 0
	for _, v := range s.Took {
		if v == what {
			n++
		}
	}
	return n == len(s.Shelves)
}

// open counts the shelves whose answer is awaited.
func (s doing) open() int { return len(s.Shelves) - len(s.Took) }

func registry(t testing.TB) *millrace.Registry {
	t.Helper()
	r, err := millrace.NewRegistry(jobs(), shelves())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// world is a store with all that runs on it.
type world struct {
	t      testing.TB
	name   string // of the process
	s      *millrace.Store
	p      *command.Processor
	cancel context.CancelFunc
	ended  []chan error
}

type worldOptions struct {
	fs      vfs.FS
	paused  bool // nothing is decided
	now     func() time.Time
	process millrace.Process[doing]
	wrap    func(*millrace.Store) *millrace.Store
	intake  func(millrace.Intake) millrace.Intake
	change  func(*process.Manager)
	manager *millrace.ProcessManager // instead of process
	options *process.Options
}

func start(t testing.TB, o worldOptions) *world {
	t.Helper()
	if o.fs == nil {
		o.fs = vfs.NewMem()
	}
	if o.process.Name == "" {
		o.process = process1()
	}
	s, err := localstore.Open("data", &localstore.Options{
		FS: o.fs, Partitions: 4, SegmentSize: 1 << 20, CacheSize: 8 << 20, MemTableSize: 4 << 20, Fatal: func(error) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	if o.wrap != nil {
		s = o.wrap(s)
	}
	w := &world{t: t, s: s}
	reg := registry(t)
	w.p = command.New(s, reg, &command.Options{Paused: o.paused})
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	manager := o.manager
	if manager == nil {
		if manager, err = o.process.Manager(); err != nil {
			t.Fatal(err)
		}
	}
	w.name = manager.Name
	if o.options == nil {
		o.options = &process.Options{Now: o.now}
	}
	var intake millrace.Intake = w.p
	if o.intake != nil {
		intake = o.intake(intake)
	}
	m := process.New(s, reg, intake, manager, o.options)
	if o.change != nil {
		o.change(m)
	}
	w.run(ctx, w.p.Run)
	w.run(ctx, feed.New(s, reg, m.Consumer(), &feed.Options{Now: o.now}).Run)
	return w
}

func (w *world) run(ctx context.Context, f func(context.Context) error) {
	ended := make(chan error, 1)
	w.ended = append(w.ended, ended)
	go func() { ended <- f(ctx) }()
}

// stop ends all; what failed on the way is the result.
func (w *world) stop() error {
	w.cancel()
	var errs []error
	for _, e := range w.ended {
		errs = append(errs, <-e)
	}
	return errors.Join(append(errs, w.s.Close())...)
}

func (w *world) mustStop() {
	w.t.Helper()
	if err := w.stop(); err != nil {
		w.t.Error(err)
	}
}

// send has a command decided.
func (w *world) send(id string, s millrace.Stream, body any) {
	w.t.Helper()
	name, data, err := registry(w.t).EncodeCommand(body)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := w.p.Accept(ctx, millrace.Command{ID: id, Stream: s, Type: name, Data: data})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := r.Wait(ctx); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) fill(shelf string, n int) {
	w.send("fill "+shelf, millrace.NewStream("shelf", shelf), &FillShelf{n})
}

func (w *world) job(name string, until time.Time, shelves ...string) {
	w.send("start "+name, millrace.NewStream("job", name), &StartJob{shelves, until})
}

// instance is the document of a job's instance; nil where there is none.
func (w *world) instance(job string) *millrace.Instance {
	w.t.Helper()
	s := millrace.NewStream("job", job)
	d, err := w.s.Document(context.Background(), w.name+".instances", s.Partition(w.s.Partitions()), string(s))
	if errors.Is(err, millrace.ErrNotFound) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	i, err := millrace.InstancesTable.Decode(d.Data)
	if err != nil {
		w.t.Fatal(err)
	}
	return i
}

// ids are those of the documents of a collection, in order.
func (w *world) ids(collection string) (ids []string) {
	w.t.Helper()
	for d, err := range w.s.Documents(context.Background(), millrace.Query{Collection: collection, Index: -1, Partition: -1}) {
		if err != nil {
			w.t.Fatal(err)
		}
		ids = append(ids, d.ID)
	}
	slices.Sort(ids)
	return ids
}

// until waits for an instance to be as is wanted, each time that the process has moved on.
func (w *world) until(job string, ok func(*millrace.Instance) bool) *millrace.Instance {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if i := w.instance(job); i != nil && ok(i) {
			return i
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatalf("the instance of %s is %+v", job, w.instance(job))
		}
	}
}

func done(i *millrace.Instance) bool { return i.Done }

// fold is a stream's state as its events say.
func fold[S any](w *world, s millrace.Stream) S {
	w.t.Helper()
	reg := registry(w.t)
	c, _ := reg.Category(s)
	state := c.Initial(s)
	for e, err := range w.s.Events(context.Background(), s, 1) {
		if err != nil {
			w.t.Fatal(err)
		}
		body, err := reg.Body(&e)
		if err != nil {
			w.t.Fatal(err)
		}
		state = c.Evolve(state, body)
	}
	return state.(S) //nolint:forcetypeassert // the test knows
}

// balance checks that every finished job has taken one thing from each of its shelves, and every other one nothing.
func (w *world) balance(filled map[string]int, started map[string][]string) {
	w.t.Helper()
	for _, f := range w.unbalanced(filled, started) {
		w.t.Error(f)
	}
}

func (w *world) unbalanced(filled map[string]int, started map[string][]string) (faults []string) {
	w.t.Helper()
	left := map[string]int{}
	for shelf, n := range filled {
		left[shelf] = n
	}
	for job, of := range started {
		status := fold[Job](w, millrace.NewStream("job", job)).Status
		for _, shelf := range of {
			want := 0
			if status == "finished" {
				want = 1
			}
			left[shelf] -= want
			if got := fold[Shelf](w, millrace.NewStream("shelf", shelf)).Taken[job]; got != want {
				faults = append(faults, fmt.Sprintf("%s is %s and has taken %d from %s", job, status, got, shelf))
			}
		}
	}
	for shelf, n := range left {
		if got := fold[Shelf](w, millrace.NewStream("shelf", shelf)).Left; got != n || got < 0 {
			faults = append(faults, fmt.Sprintf("%s has %d left, and should have %d", shelf, got, n))
		}
	}
	return faults
}
