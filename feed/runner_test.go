package feed_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	"github.com/millrace-io/millrace/millracetest"
)

const tallyDocuments = "tallies.tallies"

// order checks what a consumer sees: each stream's versions without gaps, and after a restart or another attempt never
// from further on than the next one that it has not seen.
type order struct {
	t    testing.TB
	mu   sync.Mutex
	run  map[millrace.Stream]uint64 // the last version in this run
	seen map[millrace.Stream]uint64 // the newest version in any run
}

func watch(t testing.TB) *order {
	return &order{t: t, run: map[millrace.Stream]uint64{}, seen: map[millrace.Stream]uint64{}}
}

func (o *order) restart() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.run)
}

func (o *order) consumer(c millrace.Consumer) millrace.Consumer {
	handle := c.Handle
	c.Handle = func(ctx context.Context, v millrace.Views, e *millrace.Recorded) error {
		o.mu.Lock()
		last, again := o.run[e.Stream]
		if again && e.Version > last+1 || e.Version > o.seen[e.Stream]+1 {
			o.t.Errorf("%s comes behind version %d; version %d was the newest seen", e.ID(), last, o.seen[e.Stream])
		}
		o.run[e.Stream] = e.Version
		o.seen[e.Stream] = max(o.seen[e.Stream], e.Version)
		o.mu.Unlock()
		return handle(ctx, v, e)
	}
	return c
}

// To be stopped is no failure, however early it comes: before the consumer has read where it stands, too.
func TestStoppedBeforeItBegan(t *testing.T) {
	s := open(t, vfs.NewMem())
	send(t, s, registry(t), adds("c", 3, 1)...)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// A backend that asks ctx before it answers, as one over a network does.
	slow := millrace.NewStore(&cancelled{s.Driver()})
	if err := feed.New(slow, registry(t), tallies(), nil).Run(ctx); err != nil {
		t.Error(err)
	}
}

// A consumer that stops while its checkpoint is being written has not failed, and says nothing of it; one that cannot write
// it says so.
func TestStopWhileTheCheckpointIsWritten(t *testing.T) {
	s := open(t, vfs.NewMem())
	send(t, s, registry(t), adds("c", 3, 1)...)
	var log bytes.Buffer
	ctx, stop := context.WithCancel(patient(t))
	defer stop()
	d := &stopped{Driver: s.Driver(), stop: stop}
	c := millrace.Consumer{Name: "idle", Categories: []string{"tally"}, Handle: func(context.Context, millrace.Views, *millrace.Recorded) error { return nil }}
	o := &feed.Options{Lazy: time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	if err := feed.New(millrace.NewStore(d), registry(t), c, o).Run(ctx); err != nil {
		t.Error(err)
	}
	if lines := strings.Split(strings.TrimSpace(log.String()), "\n"); len(lines) != 1 || !strings.Contains(lines[0], "away") {
		t.Errorf("the log says %q", log.String())
	}
	if at, err := s.Checkpoints(t.Context(), "idle"); err != nil || !at.Covers(s.Head()) {
		t.Errorf("the checkpoint is at %v of %v: %v", at, s.Head(), err)
	}
}

// stopped is a backend that is away at first, and then is asked to write when the consumer is told to stop.
type stopped struct {
	millrace.Driver
	stop  context.CancelFunc
	calls int
}

func (d *stopped) CommitViews(ctx context.Context, batches []millrace.ViewBatch) error {
	switch d.calls++; d.calls {
	case 1:
		return errors.New("away")
	case 2:
		d.stop()
		return ctx.Err()
	}
	return d.Driver.CommitViews(ctx, batches)
}

type cancelled struct{ millrace.Driver }

func (c *cancelled) Checkpoints(ctx context.Context, consumer string) (millrace.Cursor, error) {
	if err := ctx.Err(); err != nil {
		return millrace.Cursor{}, err
	}
	return c.Driver.Checkpoints(ctx, consumer)
}

// A consumer dies at each of its commits, before it or right after it, and begins again. Its documents end as those of a
// consumer that was never disturbed, byte for byte, for every number of workers and size of a piece of the feed.
func TestDocumentsAfterDyingAtEachCommit(t *testing.T) {
	const events = 120
	for workers := 1; workers <= 4; workers++ {
		chunk := []int{40, 7, 13, 25}[workers-1]
		t.Run(fmt.Sprintf("workers %d, pieces of %d", workers, chunk), func(t *testing.T) {
			s := open(t, vfs.NewMem())
			send(t, s, registry(t), adds("c", events, 11)...)
			o := &feed.Options{Workers: workers}
			if err := follow(t, s, registry(t), tallies(), o); err != nil {
				t.Fatal(err)
			}
			want := dump(t, s, tallyDocuments)
			for _, written := range []bool{false, true} {
				for k := 1; ; k++ {
					if err := s.DropViews(t.Context(), "tallies", []string{tallyDocuments}); err != nil {
						t.Fatal(err)
					}
					var calls atomic.Int64
					dying := sliced(t, s, chunk, func([]millrace.ViewBatch) (before, after error) {
						if calls.Add(1) < int64(k) {
							return nil, nil
						}
						if written {
							return nil, millrace.ErrFailed
						}
						return millrace.ErrFailed, nil
					})
					w := watch(t)
					err := follow(t, dying, registry(t), w.consumer(tallies()), o)
					if err == nil {
						if k < events/chunk {
							t.Fatalf("only %d commits", k)
						}
						break // k is beyond the last commit
					}
					if !errors.Is(err, millrace.ErrFailed) {
						t.Fatal(err)
					}
					w.restart()
					if err := follow(t, millrace.NewStore(s.Driver()), registry(t), w.consumer(tallies()), o); err != nil {
						t.Fatal(err)
					}
					if d := cmp.Diff(want, dump(t, s, tallyDocuments)); d != "" {
						t.Fatalf("died at commit %d (written: %v):\n%s", k, written, d)
					}
				}
			}
		})
	}
}

// The plug is pulled at each commit of a consumer. What the disk has lost of the documents is made again.
func TestDocumentsAfterPowerCuts(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := open(t, fs)
	send(t, s, registry(t), adds("c", 100, 7)...)
	var cuts []*vfs.MemFS
	slow := sliced(t, s, 10, func([]millrace.ViewBatch) (before, after error) {
		cuts = append(cuts, fs.CrashClone(vfs.CrashCloneCfg{}))
		return nil, nil
	})
	if err := follow(t, slow, registry(t), tallies(), nil); err != nil {
		t.Fatal(err)
	}
	want := dump(t, s, tallyDocuments)
	if len(cuts) < 10 {
		t.Fatalf("only %d commits", len(cuts))
	}
	for i, fs := range cuts {
		s := open(t, fs)
		if err := follow(t, s, registry(t), tallies(), nil); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, dump(t, s, tallyDocuments)); d != "" {
			t.Errorf("cut %d:\n%s", i, d)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// An event fails a few times. It is tried again after growing waits, its stream's later events wait for it, and what the
// failed attempts wrote leaves no trace.
func TestRetryWithBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, vfs.NewMem())
		send(t, s, registry(t), adds("c", 40, 4)...)
		var attempts []time.Time
		c := tallies()
		project := c.Handle
		c.Handle = func(ctx context.Context, v millrace.Views, e *millrace.Recorded) error {
			err := project(ctx, v, e) // it has written already when it fails
			if e.Stream == "tally-s2" && e.Version == 5 {
				if attempts = append(attempts, time.Now()); len(attempts) < 5 {
					return errPassing
				}
			}
			return err
		}
		o := &feed.Options{Workers: 1, Backoff: 100 * time.Millisecond}
		if err := follow(t, s, registry(t), watch(t).consumer(c), o); err != nil {
			t.Fatal(err)
		}
		// The first attempt is the batch's; the event's own begin at once and are spaced by the backoff.
		var waits []time.Duration
		for i := 1; i < len(attempts); i++ {
			waits = append(waits, attempts[i].Sub(attempts[i-1]))
		}
		if d := cmp.Diff([]time.Duration{0, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond}, waits); d != "" {
			t.Error(d)
		}
		got := dump(t, s, tallyDocuments, "tallies.parked")
		fresh := open(t, vfs.NewMem())
		send(t, fresh, registry(t), adds("c", 40, 4)...)
		if err := follow(t, fresh, registry(t), tallies(), nil); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(dump(t, fresh, tallyDocuments), got); d != "" {
			t.Error(d)
		}
		if err := errors.Join(s.Close(), fresh.Close()); err != nil {
			t.Error(err)
		}
	})
}

// A busy worker commits once in Gather, and once in Hurry while somebody waits for what it has; after a pause, at once.
func TestGather(t *testing.T) {
	const gather, hurry = time.Second, 100 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		s := open(t, vfs.NewMem())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- feed.New(s, registry(t), tallies(), &feed.Options{Workers: 1, Gather: gather, Hurry: hurry}).Run(ctx)
		}()
		n := 0
		next := func() { // one more event; the worker has it when this returns
			n++
			send(t, s, registry(t), add(fmt.Sprint("c", n), "s", 1))
			synctest.Wait()
		}
		seen := func() bool {
			synctest.Wait()
			at, err := s.Checkpoints(ctx, "tallies")
			if err != nil {
				t.Fatal(err)
			}
			return at.Covers(s.Head())
		}
		next()
		if !seen() {
			t.Error("the first event waits")
		}
		next()
		<-time.After(gather - time.Nanosecond)
		if seen() {
			t.Error("two commits follow each other too soon")
		}
		<-time.After(time.Nanosecond)
		if !seen() {
			t.Error("the second commit is late")
		}
		next()
		began := time.Now()
		if err := s.Wait(ctx, "tallies", s.Head()); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != hurry {
			t.Errorf("who waits has waited for %s", took)
		}
		<-time.After(gather)
		next()
		if !seen() {
			t.Error("an event after a pause waits")
		}
		cancel()
		if err := errors.Join(<-ended, s.Close()); err != nil {
			t.Error(err)
		}
	})
}

// The store's own trouble is nobody's poison: commits and reads fail now and then, nothing is parked, and the documents
// are right.
func TestTransientStoreFailures(t *testing.T) {
	for workers := 1; workers <= 4; workers++ {
		s := open(t, vfs.NewMem())
		send(t, s, registry(t), adds("c", 200, 11)...)
		var n atomic.Int64
		fail := func() error {
			if n.Add(1)%3 != 0 {
				return nil
			}
			return errPassing
		}
		h := &hooks{Driver: s.Driver()}
		h.commit = func([]millrace.ViewBatch) (before, after error) { return fail(), nil }
		h.document = func(string, string) error { return fail() }
		o := &feed.Options{Workers: workers, Backoff: time.Millisecond, Attempts: 1}
		if err := follow(t, millrace.NewStore(h), registry(t), tallies(), o); err != nil {
			t.Fatal(err)
		}
		got := dump(t, s, tallyDocuments, "tallies.parked")
		if err := follow(t, s, registry(t), renamed(tallies(), "control"), nil); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(dump(t, s, tallyDocuments), got); d != "" {
			t.Errorf("something is parked:\n%s", d)
		}
		if err := s.DropViews(t.Context(), "tallies", []string{tallyDocuments}); err != nil {
			t.Fatal(err)
		}
		if err := follow(t, s, registry(t), tallies(), nil); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(dump(t, s, tallyDocuments), got); d != "" {
			t.Errorf("workers %d:\n%s", workers, d)
		}
	}
}

func renamed(c millrace.Consumer, name string) millrace.Consumer {
	c.Name = name
	return c
}

// count is a document that shows when an event is handled twice.
type count struct {
	Events int `json:"events"`
}

var countTable = millrace.NewTable[count]("counts", nil, nil)

// A checkpoint that stands for no document cannot be written just now. The documents that were committed before are not
// written a second time.
func TestCheckpointAloneFails(t *testing.T) {
	const few = 50
	s := open(t, vfs.NewMem())
	var cs []millrace.Command
	for i := range 40 {
		cs = append(cs, split(fmt.Sprint("other", i), fmt.Sprint("other", i), 1000))
	}
	for i := range few {
		cs = append(cs, add(fmt.Sprint("few", i), "few", 1))
	}
	send(t, s, registry(t), cs...)
	h := &hooks{Driver: s.Driver()}
	var failed atomic.Int64
	h.commit = func(batches []millrace.ViewBatch) (before, after error) {
		for i := range batches {
			if len(batches[i].Puts) > 0 {
				return nil, nil
			}
		}
		failed.Add(1)
		return errPassing, nil
	}
	c := millrace.Consumer{Name: "counter", Handle: func(_ context.Context, v millrace.Views, e *millrace.Recorded) error {
		if e.Stream != "tally-few" {
			return nil
		}
		doc, err := countTable.Get(v, "few")
		if err != nil {
			return err
		}
		if doc == nil {
			doc = &count{}
		}
		doc.Events++
		countTable.Put(v, "few", doc)
		return nil
	}}
	if err := follow(t, millrace.NewStore(h), registry(t), c, &feed.Options{Workers: 1}); err != nil && !errors.Is(err, errPassing) {
		t.Fatal(err)
	}
	if failed.Load() == 0 {
		t.Fatal("no checkpoint was written alone: the test shows nothing")
	}
	if err := follow(t, millrace.NewStore(s.Driver()), registry(t), c, nil); err != nil {
		t.Fatal(err)
	}
	doc, err := s.Document(t.Context(), "counter.counts", millrace.Stream("tally-few").Partition(4), "few")
	if err != nil {
		t.Fatal(err)
	}
	if string(doc.Data) != fmt.Sprintf(`{"events":%d}`, few) {
		t.Errorf("%d events lead to %s", few, doc.Data)
	}
}

// Whoever waited for his cursor sees his documents.
func TestWaitThenRead(t *testing.T) {
	s := open(t, vfs.NewMem())
	ctx, cancel := context.WithCancel(patient(t))
	ended := make(chan error, 1)
	go func() { ended <- feed.New(s, registry(t), tallies(), nil).Run(ctx) }()
	p := running(t, s)
	var clients sync.WaitGroup
	for c := range 8 {
		clients.Go(func() {
			for i := range 50 {
				r, err := p.Accept(ctx, add(fmt.Sprintf("c%d-%d", c, i), fmt.Sprint("s", c%3), 1))
				if err != nil {
					t.Error(err)
					return
				}
				o, err := r.Wait(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				if err := s.Wait(ctx, "tallies", s.Cursor(&o)); err != nil {
					t.Error(err)
					return
				}
				d, err := s.Document(ctx, tallyDocuments, o.Partition, string(o.Stream))
				if err != nil {
					t.Error(err)
					return
				}
				if doc, err := millracetest.TallyTable.Decode(d.Data); err != nil || doc.Version < o.Version {
					t.Errorf("version %d was waited for, %s is there (%v)", o.Version, d.Data, err)
				}
			}
		})
	}
	clients.Wait()
	short, stop := context.WithCancel(ctx)
	stop()
	beyond := s.Head()
	beyond.Positions[1] += 1000
	if err := s.Wait(short, "tallies", beyond); !errors.Is(err, context.Canceled) {
		t.Errorf("a wait for the future says %v", err)
	}
	beyond.Epoch++
	if err := s.Wait(ctx, "tallies", beyond); !errors.Is(err, millrace.ErrCursorEpoch) {
		t.Errorf("a cursor of another epoch: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
