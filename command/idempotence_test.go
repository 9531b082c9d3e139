package command_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
)

// crowd submits one command from many clients at once. All must get the same outcome; it returns that and how many of
// the receipts were not replays.
func crowd(t *testing.T, p *command.Processor, c millrace.Command, clients int) (millrace.Outcome, int) {
	t.Helper()
	ctx := patient(t)
	outcomes := make([]millrace.Outcome, clients)
	var first atomic.Int64
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for i := range clients {
		wg.Go(func() {
			<-begin
			r, err := p.Accept(ctx, c)
			if err != nil {
				t.Errorf("accept: %v", err)
				return
			}
			if !r.Replayed {
				first.Add(1)
			}
			if outcomes[i], err = r.Wait(ctx); err != nil {
				t.Errorf("wait: %v", err)
			}
		})
	}
	close(begin)
	wg.Wait()
	for i := range outcomes {
		if d := cmp.Diff(outcomes[0], outcomes[i]); d != "" {
			t.Fatalf("two clients got different outcomes:\n%s", d)
		}
	}
	return outcomes[0], int(first.Load())
}

// Every kind of outcome, submitted a hundred times at once, again, with another body, to another partition, and after a
// restart: decided once, and the answer never changes.
func TestOneDecisionForManySubmissions(t *testing.T) {
	cases := []struct {
		name   string
		c      millrace.Command
		status millrace.Status
	}{
		{"decided", add("k", "a", 5), millrace.StatusDecided},
		{"nothing to do", add("k", "a", 0), millrace.StatusDecided},
		{"refused", add("k", "a", -1), millrace.StatusRefused},
		{"dead", millrace.Command{ID: "k", Stream: "tally-a", Type: "Explode", Data: []byte(`{}`)}, millrace.StatusDead},
		{"unknown", millrace.Command{ID: "k", Stream: "tally-a", Type: "Nonsense", Data: []byte(`{}`)}, millrace.StatusDead},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			fs := vfs.NewMem()
			s := open(t, fs)
			p, stop := start(t, s, nil)
			want, first := crowd(t, p, tc.c, 100)
			if want.Status != tc.status || first != 1 {
				t.Errorf("status %s, %d receipts that are not replays", want.Status, first)
			}
			events := want.Events
			same := func(when string) {
				t.Helper()
				got, first := crowd(t, p, tc.c, 10)
				if d := cmp.Diff(want, got); d != "" || first != 0 {
					t.Errorf("%s: %d new receipts, outcome differs:\n%s", when, first, d)
				}
				for name, c := range map[string]millrace.Command{
					"another body": add("k", "a", 77), "another type": {ID: "k", Stream: "tally-a", Type: "Split", Data: tc.c.Data},
					"another partition": add("k", elsewhere(s, "a"), 5),
				} {
					if _, err := p.Accept(patient(t), c); !errors.Is(err, millrace.ErrKeyReused) {
						t.Errorf("%s, %s: %v", when, name, err)
					}
				}
				if n := len(commandsOf(t, s, "a")); n != events {
					t.Errorf("%s: %d events", when, n)
				}
			}
			same("later")
			if n := p.InFlight(); n != 0 {
				t.Errorf("%d commands are still held", n)
			}
			stop()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, fs)
			p, stop = start(t, s, nil)
			same("after a restart")
			stop()
			verify(t, s)
		})
	}
}

// elsewhere is an id whose stream lives in another partition.
func elsewhere(s *millrace.Store, id string) string {
	n := s.Partitions()
	for i := 0; ; i++ {
		if other := fmt.Sprint(id, i); millrace.NewStream("tally", other).Partition(n) != millrace.NewStream("tally", id).Partition(n) {
			return other
		}
	}
}

// Two bodies race for one id: one of them wins, and everybody who sent the other is told so.
func TestTwoBodiesRaceForOneID(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, stop := start(t, s, nil)
	defer stop()
	ctx := patient(t)
	for round := range 50 {
		var wins [2]atomic.Int64
		var wg sync.WaitGroup
		other := elsewhere(s, "a")
		for i := range 20 {
			wg.Go(func() {
				stream := "a"
				if i%2 == 1 {
					stream = other
				}
				r, err := p.Accept(ctx, add(fmt.Sprint("k", round), stream, 1))
				switch {
				case err == nil:
					wins[i%2].Add(1)
					if _, err := r.Wait(ctx); err != nil {
						t.Error(err)
					}
				case !errors.Is(err, millrace.ErrKeyReused):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if a, b := wins[0].Load(), wins[1].Load(); a+b != 10 || a*b != 0 {
			t.Fatalf("round %d: %d and %d receipts", round, a, b)
		}
	}
}

// The same crowd while the processor is behind: commands are kept alone and found in the backlog.
func TestOneDecisionWhileBehind(t *testing.T) {
	fs := vfs.NewMem()
	for round := range 12 {
		s := open(t, fs)
		p, stop := start(t, s, nil) // behind at first
		var wg sync.WaitGroup
		for k := range 5 {
			wg.Go(func() { crowd(t, p, add(fmt.Sprintf("k%d-%d", round, k), "a", 1), 20) })
		}
		wg.Wait()
		if n := len(commandsOf(t, s, "a")); n != 5*(round+1) {
			t.Fatalf("round %d: %d events", round, n)
		}
		if n := p.InFlight(); n != 0 {
			t.Errorf("%d commands are still held", n)
		}
		stop()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	verify(t, open(t, fs))
}

// Many clients expect the same version: one of them gets it, the others are refused for good, and the refusal stays.
func TestExpectedVersion(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, stop := start(t, s, nil)
	defer stop()
	ctx := patient(t)
	for version := range uint64(20) {
		var won atomic.Int64
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				c := add(fmt.Sprintf("v%d-%d", version, i), "a", 1)
				c.Expected = &version
				r, err := p.Accept(ctx, c)
				if err != nil {
					t.Error(err)
					return
				}
				o, err := r.Wait(ctx)
				switch {
				case err != nil:
					t.Error(err)
				case o.Status == millrace.StatusDecided:
					won.Add(1)
				case o.Status != millrace.StatusRefused || o.Refusal.Kind != millrace.RefusedVersion || o.Refusal.Code != "version_conflict":
					t.Errorf("%+v", o)
				default:
					if d := cmp.Diff(o, outcome(t, s, c.ID)); d != "" {
						t.Errorf("the store has another outcome:\n%s", d)
					}
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("version %d: %d winners", version, won.Load())
		}
	}
	if n := len(commandsOf(t, s, "a")); n != 20 {
		t.Errorf("%d events", n)
	}
}

// What has the wrong form is refused before anything is kept, and does not use up the id.
func TestInvalidCommandsAreNotKept(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, stop := start(t, s, nil)
	defer stop()
	long := func(n int) string { return string(make([]byte, n)) }
	for name, change := range map[string]func(*millrace.Command){
		"no id": func(c *millrace.Command) { c.ID = "" }, "control character": func(c *millrace.Command) { c.ID = "a\nb" },
		"long id": func(c *millrace.Command) { c.ID = long(millrace.MaxCommandID + 1) }, "no stream": func(c *millrace.Command) { c.Stream = "" },
		"no category": func(c *millrace.Command) { c.Stream = "tally" }, "no type": func(c *millrace.Command) { c.Type = "" },
		"bad correlation id": func(c *millrace.Command) { c.CorrelationID = "\x00" }, "bad source": func(c *millrace.Command) { c.Source = "\xff" },
		"too much data": func(c *millrace.Command) { c.Data = make([]byte, millrace.MaxCommandData+1) },
	} {
		c := add("k", "a", 1)
		change(&c)
		if _, err := p.Accept(patient(t), c); !errors.Is(err, millrace.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Lookup(t.Context(), "k"); !errors.Is(err, millrace.ErrNotFound) {
		t.Errorf("the id is used up: %v", err)
	}
	if o := decided(t, p, add("k", "a", 1)); o.Status != millrace.StatusDecided || o.Version != 1 {
		t.Errorf("%+v", o)
	}
}
