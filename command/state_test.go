package command_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/millracetest"
)

// Far more streams than the cache holds, and many clients: totals and versions are those of a plain sum.
func TestSmallCacheManyStreams(t *testing.T) {
	const streams = 300
	s := open(t, vfs.NewMem())
	p, stop := start(t, s, &command.Options{CacheStreams: 16})
	var sums, counts [streams]atomic.Int64
	var wg sync.WaitGroup
	for c := range 16 {
		wg.Go(func() {
			ctx := patient(t)
			rnd := rand.New(rand.NewPCG(uint64(c), 1)) //nolint:gosec // a test's numbers need not be secret
			for i := range 200 {
				k, n := rnd.IntN(streams), rnd.IntN(100)-10
				if rnd.IntN(3) == 0 {
					k %= 5 // some are hot
				}
				r, err := p.Accept(ctx, add(fmt.Sprintf("c%d-%d", c, i), fmt.Sprint(k), n))
				if err != nil {
					t.Error(err)
					return
				}
				if rnd.IntN(4) == 0 {
					if _, err := r.Wait(ctx); err != nil {
						t.Error(err)
					}
				}
				if n > 0 {
					sums[k].Add(int64(n))
					counts[k].Add(1)
				}
			}
		})
	}
	wg.Wait()
	for k := range streams {
		o := decided(t, p, add(fmt.Sprint("last", k), fmt.Sprint(k), 1))
		if want := uint64(counts[k].Load()) + 1; o.Version != want { //nolint:gosec // a count
			t.Errorf("stream %d: version %d, want %d", k, o.Version, want)
		}
		total, last := int64(0), int64(0)
		for e, err := range s.Events(t.Context(), millrace.NewStream("tally", fmt.Sprint(k)), 1) {
			if err != nil {
				t.Fatal(err)
			}
			if _, err := registry(t).Body(&e); err != nil {
				t.Fatal(err)
			}
			added := e.Body.(*millracetest.Added) //nolint:forcetypeassert // tallies have one event
			if total, last = total+added.N, added.Total; total != last {
				t.Fatalf("stream %d: total %d at version %d, the sum is %d", k, last, e.Version, total)
			}
		}
		if want := sums[k].Load() + 1; total != want {
			t.Errorf("stream %d: total %d, want %d", k, total, want)
		}
	}
	if n := p.Cached(); n > 4*(16+1) {
		t.Errorf("%d states in memory", n)
	}
	stop()
	verify(t, s)
}

// A stream's decision is on its way to the disk and the store knows nothing of it. So many other streams come by that the
// cache would have dropped its state; the next command must be decided on that state all the same.
func TestStateOnItsWayToTheDisk(t *testing.T) {
	way := newGate(t)
	var mu sync.Mutex
	var late []func()
	var slow atomic.Bool
	var kept atomic.Int64
	letGo := func() {
		mu.Lock()
		defer mu.Unlock()
		way.open()
		for _, f := range late {
			f()
		}
		late = nil
	}
	h := &hooks{}
	h.append = func(b *millrace.Batch, done func(error)) (bool, func(error)) {
		mu.Lock()
		defer mu.Unlock()
		kept.Add(int64(len(b.Accepted)))
		if !slow.Load() || way.isOpen() {
			return true, nil
		}
		late = append(late, func() { h.Driver.Append(b, done) })
		return false, nil
	}
	s := hooked(openWith(t, vfs.NewMem(), func(o *localstore.Options) { o.Partitions = 1 }), h)
	p := runWith(t, s, registry(t), &command.Options{CacheStreams: 16})
	t.Cleanup(letGo)
	catchUp(t, p.Processor, &kept)
	decided(t, p.Processor, add("first", "a", 1))
	slow.Store(true)
	var wg sync.WaitGroup
	wg.Go(func() {
		var cs []millrace.Command
		for i := range 200 {
			cs = append(cs, add(fmt.Sprint("c", i), fmt.Sprint("other", i), 1))
			if i%50 == 0 {
				cs = append(cs, add(fmt.Sprint("a", i), "a", 1))
			}
		}
		for _, a := range p.AcceptAll(patient(t), cs) {
			if a.Err != nil {
				t.Error(a.Err)
				continue
			}
			// One that was kept alone because its loop was slow is accepted long before it is decided.
			if o, err := a.Receipt.Wait(patient(t)); err != nil || o.Status != millrace.StatusDecided {
				t.Errorf("%+v %v", o, err)
			}
		}
	})
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx := patient(t); p.Queued() < 204; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%d commands are on their way", p.Queued())
		}
	}
	letGo()
	wg.Wait()
	if n := len(commandsOf(t, s, "a")); n != 5 {
		t.Errorf("%d events", n)
	}
	if o := decided(t, p.Processor, add("last", "a", 1)); o.Version != 6 {
		t.Errorf("%+v", o)
	}
	verify(t, s)
}

// telling is the tally domain with a command that is refused with the state as its detail.
func telling(stateVersion int) millrace.Domain[millracetest.TallyState] {
	d := millracetest.Tally()
	d.StateVersion = stateVersion
	decide := d.Decide
	d.Decide = func(s millracetest.TallyState, c any, at time.Time) ([]any, *millrace.Refusal) {
		if a, ok := c.(*millracetest.Add); ok && a.Note == "tell" {
			return nil, &millrace.Refusal{Kind: millrace.RefusedRule, Code: "state", Detail: fmt.Sprintf("%+v", s)}
		}
		return decide(s, c, at)
	}
	return d
}

// tell asks a new processor for the state of stream a, and how many events it read for that.
func tell(t testing.TB, s *millrace.Store, stateVersion int, id string) (state string, read int64) {
	t.Helper()
	h := &hooks{}
	p := runWith(t, hooked(s, h), registryOf(t, telling(stateVersion)), nil)
	o := decided(t, p.Processor, addNote(id, "a", 1, "tell"))
	if o.Refusal == nil {
		t.Fatalf("%+v", o)
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	return fmt.Sprintf("version %d %s", o.Version, o.Refusal.Detail), h.read.Load()
}

// takeSnapshots runs the consumer that writes snapshots until it has seen everything.
func takeSnapshots(t testing.TB, s *millrace.Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(patient(t))
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- feed.New(s, registry(t), command.Snapshots(s, registry(t)), nil).Run(ctx) }()
	if err := s.Wait(ctx, "snapshots", s.Head()); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func split(id, stream string, n int) millrace.Command {
	return millrace.Command{ID: id, Stream: millrace.NewStream("tally", stream), Type: "Split", Data: fmt.Appendf(nil, `{"n":%d}`, n)}
}

// A snapshot saves reading and changes no answer: with it, without it, with one of another version, and with one that
// cannot be read.
func TestSnapshots(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, stop := start(t, s, nil)
	const events = 7*50 + 30
	for i := range 7 {
		decided(t, p, split(fmt.Sprint("c", i), "a", 50))
	}
	decided(t, p, split("rest", "a", 30))
	decided(t, p, split("short", "b", 30))
	stop()
	want, read := tell(t, s, 1, "before")
	if want != fmt.Sprintf("version %d {Total:%d Count:%d}", events, events, events) || read != events {
		t.Fatalf("without a snapshot: %s after reading %d events", want, read)
	}
	takeSnapshots(t, s)
	doc, err := s.Document(t.Context(), command.SnapshotCollection(), millrace.Stream("tally-a").Partition(s.Partitions()), "tally-a")
	if err != nil {
		t.Fatal(err)
	}
	check := func(when string, version int, wantRead int64) {
		t.Helper()
		got, read := tell(t, s, version, when)
		if got != want || read != wantRead {
			t.Errorf("%s: %s after reading %d events, want %s after %d", when, got, read, want, wantRead)
		}
	}
	check("with a snapshot", 1, events%command.SnapshotEvery)
	check("other state version", 2, events)
	doc.Data = []byte(`{"state_version":1,"version":300,"state":{"total":"damaged"}}`)
	if err := s.CommitViews(t.Context(), []millrace.ViewBatch{{Consumer: "test", Partition: doc.Partition, Puts: []millrace.Put{{Document: doc}}}}); err != nil {
		t.Fatal(err)
	}
	check("damaged", 1, events)
	doc.Data = []byte(`{"state_version":1,"version":9999,"state":{"total":1,"count":1}}`)
	if err := s.CommitViews(t.Context(), []millrace.ViewBatch{{Consumer: "test", Partition: doc.Partition, Puts: []millrace.Put{{Document: doc}}}}); err != nil {
		t.Fatal(err)
	}
	check("from a lost future", 1, events)
	if err := s.DropViews(t.Context(), "snapshots", []string{command.SnapshotCollection()}); err != nil {
		t.Fatal(err)
	}
	check("deleted", 1, events)
	takeSnapshots(t, s)
	check("made again", 1, events%command.SnapshotEvery)
	if _, err := s.Document(t.Context(), command.SnapshotCollection(), millrace.Stream("tally-b").Partition(s.Partitions()), "tally-b"); !errors.Is(err, millrace.ErrNotFound) {
		t.Errorf("a short stream has a snapshot: %v", err)
	}
}

// Whatever was done to a stream, and whenever snapshots were taken in between: the state from a snapshot is the state from
// the first event on, and less than SnapshotEvery events are read.
func TestSnapshotEqualsReplay(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := open(t, vfs.NewMem())
		steps := rapid.SliceOfN(rapid.IntRange(-5, 120), 1, 5).Draw(rt, "steps")
		var total int64
		for i, n := range steps {
			p, stop := start(t, s, nil)
			if n <= 0 {
				takeSnapshots(t, s)
				decided(t, p, add(fmt.Sprint("add", i), "a", n))
			} else {
				decided(t, p, split(fmt.Sprint("split", i), "a", n))
				total += int64(n)
			}
			stop()
		}
		takeSnapshots(t, s)
		want := fmt.Sprintf("version %d {Total:%d Count:%d}", total, total, total)
		if got, read := tell(t, s, 1, "with"); got != want || read >= command.SnapshotEvery {
			rt.Errorf("from the snapshot: %s after %d events, want %s", got, read, want)
		}
		if got, read := tell(t, s, 2, "without"); got != want || read != total {
			rt.Errorf("from the events: %s after %d events, want %s", got, read, want)
		}
		if err := s.Close(); err != nil {
			rt.Error(err)
		}
	})
}
