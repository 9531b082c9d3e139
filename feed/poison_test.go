package feed_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/feed"
)

// poisoned is a consumer of tallies that fails for some streams, from their second event on, until they are cured. It notes
// what it handles out of order.
type poisoned struct {
	sick map[millrace.Stream]bool

	mu    sync.Mutex
	last  map[millrace.Stream]uint64
	wrong []string
}

func newPoisoned(sick map[millrace.Stream]bool) *poisoned {
	return &poisoned{sick: sick, last: map[millrace.Stream]uint64{}}
}

func (p *poisoned) consumer() millrace.Consumer {
	c := tallies()
	project := c.Handle
	c.Handle = func(ctx context.Context, v millrace.Views, e *millrace.Recorded) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if e.Version > 1 && p.sick[e.Stream] {
			return errors.New("poison")
		}
		// What was undone comes again, from an earlier version on; nothing is ever left out.
		if e.Version > p.last[e.Stream]+1 {
			p.wrong = append(p.wrong, e.ID())
		}
		p.last[e.Stream] = e.Version
		return project(ctx, v, e)
	}
	return c
}

func (p *poisoned) cure() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sick = nil
}

// One stream in a hundred is poison: once these are parked, the others are handled at the rate that they have without any. When
// they are cured and redriven, each stream has had its events in order, and the documents are those of a store without poison.
// In the short form there are 400 streams, and the bound leaves room for a busy machine.
func TestPoisonedStreams(t *testing.T) { poisonedStreams(t, 400, 8, 0.7) }

// TestSoakPoisonedStreams is the long form, with the bound that is promised.
func TestSoakPoisonedStreams(t *testing.T) {
	if os.Getenv("MILLRACE_SOAK") == "" {
		t.Skip("MILLRACE_SOAK is not set")
	}
	poisonedStreams(t, 10_000, 13, 0.95)
}

func poisonedStreams(t *testing.T, streams, rounds int, least float64) {
	t.Helper()
	const each = 40 // events of a stream in a round
	reg := registry(t)
	sick := map[millrace.Stream]bool{}
	for i := 0; i < streams; i += 100 {
		sick[millrace.NewStream("tally", fmt.Sprint("s", i))] = true
	}
	poison, clean := newPoisoned(sick), newPoisoned(nil)
	with, without := open(t, vfs.NewMem()), open(t, vfs.NewMem())
	o := &feed.Options{Attempts: 2, Backoff: time.Millisecond}
	// rate has a consumer handle a round of events, and says how many of healthy streams it did in a second.
	rate := func(s *millrace.Store, p *poisoned) float64 {
		began := time.Now()
		if err := follow(t, s, reg, p.consumer(), o); err != nil {
			t.Fatal(err)
		}
		return float64(each*(streams-len(sick))) / time.Since(began).Seconds()
	}
	var rates, control []float64
	for round := range rounds {
		cs := make([]millrace.Command, streams)
		for i := range cs {
			cs[i] = split(fmt.Sprint("r", round, "-", i), fmt.Sprint("s", i), each)
		}
		for at := 0; at < len(cs); at += 1000 {
			send(t, with, reg, cs[at:min(at+1000, len(cs))]...)
			send(t, without, reg, cs[at:min(at+1000, len(cs))]...)
		}
		var a, b float64
		if round%2 == 0 { // who comes second finds a warmer machine
			a, b = rate(with, poison), rate(without, clean)
		} else {
			b, a = rate(without, clean), rate(with, poison)
		}
		if round == 0 {
			t.Logf("while %d streams are parked: %.0f of %.0f events/s", len(sick), a, b)
			continue
		}
		rates, control = append(rates, a), append(control, b)
	}
	slices.Sort(rates)
	slices.Sort(control)
	got, want := rates[len(rates)/2], control[len(control)/2]
	t.Logf("%.0f of %.0f events/s", got, want)
	if got < least*want {
		t.Errorf("with poison the others have %.0f events/s, and %.0f without", got, want)
	}

	poison.cure()
	redriveAll(t, with, reg, poison.consumer(), o, sick)
	if len(poison.wrong) > 0 {
		t.Errorf("out of order: %v", poison.wrong)
	}
	collections := []string{"tallies.tallies", "tallies.parked", "tallies.asks"}
	if d := cmp.Diff(strings.Split(dump(t, without, collections...), "\n"), strings.Split(dump(t, with, collections...), "\n")); d != "" {
		t.Error(d)
	}
}

// redriveAll runs a consumer until it has gone on with all of the streams.
func redriveAll(t *testing.T, s *millrace.Store, reg *millrace.Registry, c millrace.Consumer, o *feed.Options, parked map[millrace.Stream]bool) {
	t.Helper()
	for stream := range parked {
		if err := feed.Redrive(t.Context(), s, c.Name, "ask "+string(stream), stream, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(patient(t))
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- feed.New(s, reg, c, o).Run(ctx) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for dump(t, s, c.Name+".parked", c.Name+".asks") != "" {
		select {
		case <-tick.C:
		case err := <-ended:
			t.Fatal(err)
		case <-ctx.Done():
			t.Fatal("streams are parked still")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// While many streams are being parked, the others are held up for two of them and not for all: what is well is handled within
// seconds. The control takes every pause in full.
func TestManyPoisonedStreamsHoldUpNobody(t *testing.T) {
	const streams, sick = 400, 100
	try := func(change func(*feed.Runner)) (took time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			s, reg := open(t, vfs.NewMem()), registry(t)
			ill := map[millrace.Stream]bool{}
			for i := range sick {
				ill[millrace.NewStream("tally", fmt.Sprint("s", i))] = true
			}
			p := newPoisoned(ill)
			send(t, s, reg, adds("c", 2*streams, streams)...)
			r := feed.New(s, reg, p.consumer(), &feed.Options{Workers: 2})
			if change != nil {
				change(r)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			began := time.Now()
			go func() { ended <- r.Run(ctx) }()
			if err := s.Wait(ctx, "tallies", s.Head()); err != nil {
				t.Fatal(err)
			}
			took = time.Since(began)
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			n := 0
			for d, err := range s.Documents(t.Context(), millrace.Query{Collection: "tallies.parked", Index: -1, Partition: -1}) {
				if err != nil {
					t.Fatal(err)
				}
				parked, err := millrace.ParkedTable.Decode(d.Data)
				if err != nil || parked.Attempts != 5 || !ill[millrace.Stream(parked.Stream)] {
					t.Errorf("%+v %v", parked, err)
				}
				n++
			}
			if n != sick {
				t.Errorf("%d streams are parked", n)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		return took
	}
	if took := try(nil); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	if took := try(feed.Unrationed); took < 20*time.Second {
		t.Errorf("without the ration it takes %v too", took)
	}
}
