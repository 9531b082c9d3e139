package feed_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"strings"
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

// ledger is what a stream's events have left behind. Only what was committed is in it: what was undone has not happened.
type ledger struct {
	Stream   string   `json:"stream"`
	Total    int64    `json:"total"`
	Events   uint64   `json:"events"`  // how many
	Version  uint64   `json:"version"` // of the last one
	Disorder []uint64 `json:"disorder,omitempty"`
}

var ledgers = millrace.NewTable[ledger]("ledgers", nil, nil)

// poisoned is a consumer that keeps a ledger for each tally. Of some streams it fails for the second event until they are cured:
// it is the feed that keeps it from those behind.
type poisoned struct {
	sick atomic.Pointer[map[millrace.Stream]bool]
	// unwritable: what it fails with is not an error but a ledger that cannot be encoded.
	unwritable bool
}

func newPoisoned(sick map[millrace.Stream]bool) *poisoned {
	p := &poisoned{}
	p.sick.Store(&sick)
	return p
}

func (p *poisoned) cure() { p.sick.Store(&map[millrace.Stream]bool{}) }

func (p *poisoned) consumer() millrace.Consumer {
	c := tallies()
	c.Handle = func(_ context.Context, v millrace.Views, e *millrace.Recorded) error {
		if e.Version == 2 && (*p.sick.Load())[e.Stream] {
			if !p.unwritable {
				return errors.New("poison")
			}
			ledgers.Put(v, string(e.Stream), &ledger{Stream: "\xff"})
			return nil
		}
		l, err := ledgers.Get(v, string(e.Stream))
		if err != nil {
			return err
		}
		if l == nil {
			l = &ledger{Stream: string(e.Stream)}
		}
		if e.Version != l.Version+1 {
			l.Disorder = append(l.Disorder, e.Version)
		}
		l.Events, l.Version, l.Total = l.Events+1, e.Version, e.Body.(*millracetest.Added).Total //nolint:forcetypeassert // there is no other
		ledgers.Put(v, string(e.Stream), l)
		return nil
	}
	return c
}

// place is where commands are decided and consumers run: a store, or one that several nodes share.
type place interface {
	store() *millrace.Store
	head() millrace.Cursor
	send(cs []millrace.Command)
	run(ctx context.Context, c millrace.Consumer, o *feed.Options) error
}

// alone is a store of one process.
type alone struct {
	t   testing.TB
	s   *millrace.Store
	reg *millrace.Registry
}

func (a *alone) store() *millrace.Store     { return a.s }
func (a *alone) head() millrace.Cursor      { return a.s.Head() }
func (a *alone) send(cs []millrace.Command) { send(a.t, a.s, a.reg, cs...) }
func (a *alone) run(ctx context.Context, c millrace.Consumer, o *feed.Options) error {
	return feed.New(a.s, a.reg, c, o).Run(ctx)
}

// poisoning is the size of a test with poisoned streams, one in a hundred.
type poisoning struct {
	streams, rounds int
	each            int                     // events of a stream in a round
	of              func([]float64) float64 // the rate that counts, of those of all rounds but the first
	least           float64                 // part of the rate without poison; 0 where it is only told
	o               feed.Options
}

// best is for rounds of milliseconds: what else the machine does meanwhile is as long, and only takes away.
func best(rates []float64) float64 { return slices.Max(rates) }

func median(rates []float64) float64 { return slices.Sorted(slices.Values(rates))[len(rates)/2] }

func (p poisoning) sick() map[millrace.Stream]bool {
	sick := map[millrace.Stream]bool{}
	for i := 0; i < p.streams; i += 100 {
		sick[millrace.NewStream("tally", fmt.Sprint("s", i))] = true
	}
	return sick
}

// inMemory is how a consumer runs on a store whose commits are in memory.
var inMemory = feed.Options{Attempts: 2, Backoff: time.Millisecond}

// One stream in a hundred is poison: once these are parked, the others are handled at the rate that they have without any. When
// they are cured and redriven, each stream has had its events in order and each once, and the documents are those of a store
// without poison. In the short form there are 400 streams, and the bound leaves room for a busy machine.
func TestPoisonedStreams(t *testing.T) {
	poisonedStreams(t, poisoning{streams: 400, rounds: 8, each: 40, of: best, least: 0.7, o: inMemory})
}

// TestSoakPoisonedStreams is the long form, with the bound that is promised.
func TestSoakPoisonedStreams(t *testing.T) {
	if os.Getenv("MILLRACE_SOAK") == "" {
		t.Skip("MILLRACE_SOAK is not set")
	}
	poisonedStreams(t, poisoning{streams: 10_000, rounds: 13, each: 40, of: median, least: 0.95, o: inMemory})
}

func poisonedStreams(t *testing.T, size poisoning) {
	t.Helper()
	reg := registry(t)
	size.compare(t, &alone{t, open(t, vfs.NewMem()), reg}, &alone{t, open(t, vfs.NewMem()), reg})
}

// compare has events handled at two places, with and without poison, in rounds: who begins changes, for who comes second finds
// a warmer machine. The first round is the one in which streams are parked.
func (p poisoning) compare(t *testing.T, with, without place) {
	t.Helper()
	sick := p.sick()
	ill, well := newPoisoned(sick), newPoisoned(nil)
	// rate has a consumer handle a round of events, and says how many of healthy streams it did in a second.
	rate := func(at place, c *poisoned) float64 {
		began := time.Now()
		handleAll(t, at, c.consumer(), &p.o)
		return float64(p.each*(p.streams-len(sick))) / time.Since(began).Seconds()
	}
	var rates, control []float64
	for round := range p.rounds {
		p.send(round, with, without)
		var a, b float64
		if round%2 == 0 {
			a, b = rate(with, ill), rate(without, well)
		} else {
			b, a = rate(without, well), rate(with, ill)
		}
		p.check(t, with, uint64(p.each*(round+1)), sick) //nolint:gosec // a small number
		if round == 0 {
			t.Logf("while %d streams are parked: %.0f of %.0f events/s", len(sick), a, b)
			continue
		}
		rates, control = append(rates, a), append(control, b)
	}
	t.Logf("%.0f of %.0f", rates, control)
	got, want := p.of(rates), p.of(control)
	t.Logf("%.0f of %.0f events/s, %.3f", got, want, got/want)
	if got < p.least*want {
		t.Errorf("with poison the others have %.0f events/s, and %.0f without", got, want)
	}

	ill.cure()
	redriveAll(t, with, ill.consumer(), &p.o, sick)
	p.check(t, with, uint64(p.each*p.rounds), nil) //nolint:gosec // a small number
	collections := []string{"tallies.ledgers", "tallies.parked", "tallies.asks"}
	if d := cmp.Diff(strings.Split(dump(t, without.store(), collections...), "\n"), strings.Split(dump(t, with.store(), collections...), "\n")); d != "" {
		t.Error(d)
	}
}

// send has a round of events decided at some places, so many for each stream.
func (p poisoning) send(round int, places ...place) {
	cs := make([]millrace.Command, p.streams)
	for i := range cs {
		cs[i] = split(fmt.Sprint("r", round, "-", i), fmt.Sprint("s", i), p.each)
	}
	for _, at := range places {
		for some := range slices.Chunk(cs, 1000) {
			at.send(some)
		}
	}
}

// check demands that each healthy stream has had its first so many events, in order and each once, and each sick one the first
// alone; and that those which are sick are parked, and no others.
func (p poisoning) check(t *testing.T, at place, events uint64, sick map[millrace.Stream]bool) {
	t.Helper()
	seen := 0
	for l := range documents(t, at.store(), ledgers, "tallies") {
		want := ledger{Stream: l.Stream, Total: int64(events), Events: events, Version: events} //nolint:gosec // a small number
		if sick[millrace.Stream(l.Stream)] {
			want.Total, want.Events, want.Version = 1, 1, 1
		}
		if d := cmp.Diff(&want, l); d != "" {
			t.Errorf("%s: %s", l.Stream, d)
		}
		seen++
	}
	if seen != p.streams {
		t.Errorf("%d streams have a ledger, of %d", seen, p.streams)
	}
	parked := 0
	for d := range documents(t, at.store(), millrace.ParkedTable, "tallies") {
		if !sick[millrace.Stream(d.Stream)] || d.Version != 2 || d.Attempts != p.o.Attempts {
			t.Errorf("%+v is parked", d)
		}
		parked++
	}
	if parked != len(sick) {
		t.Errorf("%d streams are parked, of %d", parked, len(sick))
	}
}

// documents are those of a consumer's table.
func documents[T any](t *testing.T, s *millrace.Store, table millrace.TableOf[T], consumer string) iter.Seq[*T] {
	t.Helper()
	return func(yield func(*T) bool) {
		for d, err := range s.Documents(t.Context(), millrace.Query{Collection: consumer + "." + table.Name, Index: -1, Partition: -1}) {
			if err != nil {
				t.Fatal(err)
			}
			doc, err := table.Decode(d.Data)
			if err != nil {
				t.Fatal(err)
			}
			if !yield(doc) {
				return
			}
		}
	}
}

// handleAll runs a consumer until it has seen everything.
func handleAll(t *testing.T, at place, c millrace.Consumer, o *feed.Options) {
	t.Helper()
	run := func(ctx context.Context) error { return at.run(ctx, c, o) }
	if err := followed(t, at.store(), c.Name, at.head(), run); err != nil {
		t.Fatal(err)
	}
}

// redriveAll runs a consumer until it has gone on with all of the streams.
func redriveAll(t *testing.T, at place, c millrace.Consumer, o *feed.Options, parked map[millrace.Stream]bool) {
	t.Helper()
	for stream := range parked {
		if err := feed.Redrive(t.Context(), at.store(), c.Name, "ask "+string(stream), stream, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(patient(t))
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- at.run(ctx, c, o) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for dump(t, at.store(), c.Name+".parked", c.Name+".asks") != "" {
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

// A batch with poison in it is taken apart in a few commits for each poisoned event, however many others there are, whether it is
// the handler that fails or the document that cannot be encoded. The control has a commit for each event.
func TestPoisonIsFoundInFewCommits(t *testing.T) {
	const streams, sick, each = 400, 4, 3
	commits := func(unwritable bool, change func(*feed.Runner)) (n int) {
		reg := registry(t)
		s := open(t, vfs.NewMem())
		size := poisoning{streams: streams, each: each, o: inMemory}
		size.send(0, &alone{t, s, reg})
		counted := millrace.NewStore(&hooks{Driver: s.Driver(), commit: func([]millrace.ViewBatch) (before, after error) {
			n++
			return nil, nil
		}})
		p := newPoisoned(size.sick())
		p.unwritable = unwritable
		r := feed.New(counted, reg, p.consumer(), &feed.Options{Attempts: 2, Backoff: time.Millisecond, Workers: 1})
		if change != nil {
			change(r)
		}
		if err := followed(t, counted, "tallies", s.Head(), r.Run); err != nil {
			t.Fatal(err)
		}
		size.check(t, &alone{t, s, reg}, each, size.sick())
		return n
	}
	// For each that fails: those before it, its parking, and room for batches that come in pieces; where it has to be found by
	// halves, log2 of 1,200 more.
	for _, c := range []struct {
		unwritable bool
		most       int
	}{{false, 4 * sick}, {true, 15 * sick}} {
		if n := commits(c.unwritable, nil); n > c.most {
			t.Errorf("%d commits, and %d would do", n, c.most)
		} else {
			t.Logf("%d commits", n)
		}
	}
	if n := commits(false, feed.Singly); n < streams {
		t.Errorf("event by event there are %d commits", n)
	}
}

// unheld is a store on which a parked stream holds nothing.
type unheld struct{ *alone }

func (u unheld) run(ctx context.Context, c millrace.Consumer, o *feed.Options) error {
	r := feed.New(u.s, u.reg, c, o)
	feed.Unheld(r)
	return r.Run(ctx)
}

// The control of the order: what is behind a poisoned event is handled all the same, and the ledgers show it.
func TestPoisonedStreamsControl(t *testing.T) {
	size := poisoning{streams: 200, each: 3, o: inMemory}
	at := &alone{t, open(t, vfs.NewMem()), registry(t)}
	ill := newPoisoned(size.sick())
	size.send(0, at)
	handleAll(t, unheld{at}, ill.consumer(), &size.o)
	ill.cure()
	redriveAll(t, at, ill.consumer(), &size.o, size.sick())
	disordered := map[millrace.Stream]bool{}
	for l := range documents(t, at.s, ledgers, "tallies") {
		if len(l.Disorder) > 0 {
			disordered[millrace.Stream(l.Stream)] = true
		}
	}
	if d := cmp.Diff(size.sick(), disordered); d != "" {
		t.Errorf("out of order: %s", d)
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
			for d := range documents(t, s, millrace.ParkedTable, "tallies") {
				if d.Attempts != 5 || !ill[millrace.Stream(d.Stream)] {
					t.Errorf("%+v", d)
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
