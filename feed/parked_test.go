package feed_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/millracetest"
)

// running is a processor of tallies that runs as long as the test.
func running(t testing.TB, s *millrace.Store) *command.Processor {
	t.Helper()
	p := command.New(s, registry(t), nil)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return p
}

// parkedCount counts parked streams as an alarm would.
type parkedCount struct{ streams, failed atomic.Int64 }

func (p *parkedCount) Handled(string, []millrace.Recorded) {}
func (p *parkedCount) Failed(string)                       { p.failed.Add(1) }
func (p *parkedCount) Parked(_ string, more int)           { p.streams.Add(int64(more)) }

var badKeys = millrace.NewTable("bad", []string{"x"}, func(*count) []string { panic("keys that cannot be made") })

var fewKeys = millrace.NewTable("few", []string{"x"}, func(*count) []string { return nil })

// An event cannot be handled for good. Its stream is parked with its reason, visibly; its later events wait; everything
// else flows; the checkpoint goes on; and it is the same after a restart. The control is the same without the fault.
func TestStreamIsParked(t *testing.T) {
	isBad := func(e *millrace.Recorded) bool { return e.Stream == "tally-s2" && e.Version == 3 }
	with := func(f func(v millrace.Views, e *millrace.Recorded) error) millrace.Consumer {
		c := tallies()
		project := c.Handle
		c.Handle = func(ctx context.Context, v millrace.Views, e *millrace.Recorded) error {
			if err := project(ctx, v, e); err != nil {
				return err
			}
			if isBad(e) {
				return f(v, e)
			}
			return nil
		}
		return c
	}
	extended := millracetest.Tally()
	extended.Upcasters = map[string]millrace.Upcaster{"Added": func(data []byte) (string, []byte, error) {
		if strings.Contains(string(data), `"n":9999`) {
			return "Unheard", data, nil
		}
		return "AddedNow", data, nil
	}}
	extended.Events = []millrace.Message{millrace.MessageOf[millracetest.Added]("AddedNow")}
	failing := millracetest.Tally()
	failing.Upcasters = map[string]millrace.Upcaster{"Added": func(data []byte) (string, []byte, error) {
		if strings.Contains(string(data), `"n":9999`) {
			return "AddedNow", []byte(`{"n":`), nil
		}
		return "AddedNow", data, nil
	}}
	failing.Events = extended.Events
	cases := []struct {
		name   string
		c      millrace.Consumer
		domain millrace.Definition
		parked bool
	}{
		{"control", with(func(millrace.Views, *millrace.Recorded) error { return nil }), millracetest.Tally(), false},
		{"error", with(func(millrace.Views, *millrace.Recorded) error { return errPassing }), millracetest.Tally(), true},
		{"panic", with(func(millrace.Views, *millrace.Recorded) error { panic("a handler's fault") }), millracetest.Tally(), true},
		{"unknown event type", tallies(), extended, true},
		{"undecodable event", tallies(), failing, true},
		{"keys panic", with(func(v millrace.Views, _ *millrace.Recorded) error { badKeys.Put(v, "x", &count{}); return nil }), millracetest.Tally(), true},
		{"too few keys", with(func(v millrace.Views, _ *millrace.Recorded) error { fewKeys.Put(v, "x", &count{}); return nil }), millracetest.Tally(), true},
	}
	for _, tc := range cases {
		for workers := 1; workers <= 4; workers += 3 {
			t.Run(fmt.Sprintf("%s, workers %d", tc.name, workers), func(t *testing.T) {
				fs := vfs.NewMem()
				s := open(t, fs)
				cs := adds("c", 40, 4) // ten events each
				cs[2+4*2].Data = []byte(`{"n":9999}`)
				send(t, s, registry(t), cs...)
				if err := s.Close(); err != nil { // the newest events are in memory, decoded: they are to be read
					t.Fatal(err)
				}
				s = open(t, fs)
				reg, err := millrace.NewRegistry(tc.domain)
				if err != nil {
					t.Fatal(err)
				}
				var alarm parkedCount
				o := &feed.Options{Workers: workers, Attempts: 3, Backoff: time.Millisecond, Observer: &alarm}
				check := func(when string) {
					t.Helper()
					for i := range 4 {
						stream := fmt.Sprint("tally-s", i)
						want := uint64(10)
						if when == "later" {
							want = 11
						}
						if i == 2 && tc.parked {
							want = 2
						}
						d, err := s.Document(t.Context(), tallyDocuments, millrace.Stream(stream).Partition(4), stream)
						if err != nil {
							t.Fatalf("%s: %s: %v", when, stream, err)
						}
						if doc, err := millracetest.TallyTable.Decode(d.Data); err != nil || doc.Version != want {
							t.Errorf("%s: %s, want version %d (%v)", when, d.Data, want, err)
						}
					}
					d, err := s.Document(t.Context(), "tallies.parked", millrace.Stream("tally-s2").Partition(4), "tally-s2")
					if (err == nil) != tc.parked {
						t.Fatalf("%s: parked: %v", when, err)
					}
					if tc.parked {
						p, err := millrace.ParkedTable.Decode(d.Data)
						if err != nil || p.Version != 3 || p.Attempts != 3 || p.Reason != millrace.ReasonHandler || p.Error == "" || p.Position == 0 || p.Since.IsZero() {
							t.Errorf("%s: %+v %v", when, p, err)
						}
					}
				}
				if err := follow(t, s, reg, tc.c, o); err != nil {
					t.Fatal(err)
				}
				check("first run")
				if n := alarm.streams.Load(); n != 0 {
					t.Errorf("%d streams are still counted as parked by a runner that has ended", n)
				}
				alarm.failed.Store(0)
				var cs2 []millrace.Command
				for i := range 4 {
					cs2 = append(cs2, add(fmt.Sprint("later", i), fmt.Sprint("s", i), 1))
				}
				send(t, s, registry(t), cs2...)
				if err := follow(t, millrace.NewStore(s.Driver()), reg, tc.c, o); err != nil {
					t.Fatal(err)
				}
				check("later")
				if n := alarm.failed.Load(); n != 0 {
					t.Errorf("a parked stream was tried again: %d failures", n)
				}
			})
		}
	}
}

// The alarm counts a stream as parked while the runner runs, also after a restart.
func TestParkedStreamsAreCounted(t *testing.T) {
	s := open(t, vfs.NewMem())
	send(t, s, registry(t), adds("c", 40, 4)...)
	c := tallies()
	c.Handle = func(_ context.Context, _ millrace.Views, e *millrace.Recorded) error {
		if e.Stream != "tally-s0" {
			return errPassing
		}
		return nil
	}
	for range 2 {
		var alarm parkedCount
		ctx, cancel := context.WithCancel(patient(t))
		ended := make(chan error, 1)
		st := millrace.NewStore(s.Driver())
		go func() {
			ended <- feed.New(st, registry(t), c, &feed.Options{Attempts: 1, Backoff: time.Millisecond, Observer: &alarm}).Run(ctx)
		}()
		tick := time.NewTicker(time.Millisecond)
		for alarm.streams.Load() != 3 {
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("%d parked streams are counted", alarm.streams.Load())
			}
		}
		tick.Stop()
		if err := st.Wait(ctx, c.Name, st.Head()); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if n := alarm.streams.Load(); n != 0 {
			t.Errorf("%d after the end", n)
		}
	}
}

// A document that cannot be decoded parks the stream that needs it, instead of stopping everything.
func TestUnreadableDocument(t *testing.T) {
	s := open(t, vfs.NewMem())
	send(t, s, registry(t), adds("c", 40, 4)...)
	if err := follow(t, s, registry(t), tallies(), nil); err != nil {
		t.Fatal(err)
	}
	p := millrace.Stream("tally-s1").Partition(4)
	d, err := s.Document(t.Context(), tallyDocuments, p, "tally-s1")
	if err != nil {
		t.Fatal(err)
	}
	d.Data = []byte(`{"stream":17}`)
	at, err := s.Checkpoints(t.Context(), "tallies")
	if err != nil {
		t.Fatal(err)
	}
	batch := millrace.ViewBatch{Consumer: "tallies", Partition: p, Checkpoint: at.Position(p), Puts: []millrace.Put{{Document: d, Old: d.Keys}}}
	if err := s.CommitViews(t.Context(), []millrace.ViewBatch{batch}); err != nil {
		t.Fatal(err)
	}
	send(t, s, registry(t), adds("d", 40, 4)...)
	if err := follow(t, s, registry(t), tallies(), &feed.Options{Attempts: 2, Backoff: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if got := dump(t, s, "tallies.parked"); strings.Count(got, "\n") != 1 || !strings.Contains(got, "tally-s1") {
		t.Errorf("parked:\n%s", got)
	}
	if got := dump(t, s, tallyDocuments); strings.Count(got, `"version":20`) != 3 {
		t.Errorf("documents:\n%s", got)
	}
}

// The commit that parks a stream fails for a while; the stream is parked all the same.
func TestParkingIsRetried(t *testing.T) {
	s := open(t, vfs.NewMem())
	send(t, s, registry(t), adds("c", 8, 4)...)
	h := &hooks{Driver: s.Driver()}
	var tries atomic.Int64
	h.commit = func(batches []millrace.ViewBatch) (before, after error) {
		for i := range batches {
			for k := range batches[i].Puts {
				if strings.HasSuffix(batches[i].Puts[k].Collection, ".parked") && tries.Add(1) < 4 {
					return errPassing, nil
				}
			}
		}
		return nil, nil
	}
	c := tallies()
	c.Handle = func(_ context.Context, _ millrace.Views, e *millrace.Recorded) error {
		if e.Stream == "tally-s0" {
			return errPassing
		}
		return nil
	}
	if err := follow(t, millrace.NewStore(h), registry(t), c, &feed.Options{Attempts: 1, Backoff: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if got := dump(t, s, "tallies.parked"); strings.Count(got, "\n") != 1 || tries.Load() != 4 {
		t.Errorf("after %d tries: %s", tries.Load(), got)
	}
}
