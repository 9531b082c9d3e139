package command_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/millracetest"
)

// patience is how long a test waits for what must come: far more than it takes, so that only a hang reaches it.
const patience = 30 * time.Second

func patient(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// openWith opens a small store; Close is the caller's, or happens at the end of the test.
func openWith(t testing.TB, fs vfs.FS, change func(*localstore.Options)) *millrace.Store {
	t.Helper()
	o := &localstore.Options{
		FS: fs, Partitions: 4, SegmentSize: 1 << 20, CacheSize: 8 << 20, MemTableSize: 4 << 20,
		Fatal: func(err error) { t.Errorf("store failed: %v", err) },
	}
	if change != nil {
		change(o)
	}
	s, err := localstore.Open("data", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func open(t testing.TB, fs vfs.FS) *millrace.Store {
	t.Helper()
	return openWith(t, fs, nil)
}

// pullPlug is the disk as it would be after a power cut now: what was synced, and nothing else.
func pullPlug(fs *vfs.MemFS) *vfs.MemFS { return fs.CrashClone(vfs.CrashCloneCfg{}) }

func registry(t testing.TB) *millrace.Registry {
	t.Helper()
	return registryOf(t, millracetest.Tally())
}

func registryOf(t testing.TB, d millrace.Definition) *millrace.Registry {
	t.Helper()
	r, err := millrace.NewRegistry(d)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// running is a processor that runs.
type running struct {
	*command.Processor
	cancel context.CancelFunc
	ended  chan struct{}
	err    error
}

func (r *running) stop() error {
	r.cancel()
	<-r.ended
	return r.err
}

// runWith runs a processor until the test stops it; what Run returns is the test's to look at.
func runWith(t testing.TB, s *millrace.Store, reg *millrace.Registry, o *command.Options) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Processor: command.New(s, reg, o), cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		r.err = r.Run(ctx)
	}()
	t.Cleanup(func() { _ = r.stop() })
	return r
}

// start runs a processor of tallies that must not fail, until the returned function is called.
func start(t testing.TB, s *millrace.Store, o *command.Options) (*command.Processor, func()) {
	t.Helper()
	r := runWith(t, s, registry(t), o)
	return r.Processor, func() {
		t.Helper()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	}
}

func add(id, stream string, n int) millrace.Command {
	return addNote(id, stream, n, "")
}

func addNote(id, stream string, n int, note string) millrace.Command {
	data := fmt.Appendf(nil, `{"n":%d}`, n)
	if note != "" {
		data = fmt.Appendf(nil, `{"n":%d,"note":%q}`, n, note)
	}
	return millrace.Command{ID: id, Stream: millrace.NewStream("tally", stream), Type: "Add", Data: data}
}

// decided accepts a command and waits for its outcome.
func decided(t testing.TB, p *command.Processor, c millrace.Command) millrace.Outcome {
	t.Helper()
	ctx := patient(t)
	r, err := p.Accept(ctx, c)
	if err != nil {
		t.Fatalf("accept %s: %v", c.ID, err)
	}
	o, err := r.Wait(ctx)
	if err != nil {
		t.Fatalf("wait for %s: %v", c.ID, err)
	}
	return o
}

// outcome is what the store says of a command.
func outcome(t testing.TB, s *millrace.Store, id string) millrace.Outcome {
	t.Helper()
	o, err := s.Lookup(t.Context(), id)
	if err != nil {
		t.Fatalf("lookup %s: %v", id, err)
	}
	return o
}

// commandsOf are the ids of the commands that a stream's events come from, in the order of the events; it checks that
// the versions have no gaps and that each Add has one event.
func commandsOf(t testing.TB, s *millrace.Store, stream string) []string {
	t.Helper()
	var ids []string
	for e, err := range s.Events(t.Context(), millrace.NewStream("tally", stream), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Version != uint64(len(ids))+1 {
			t.Fatalf("stream %s: version %d behind version %d", stream, e.Version, len(ids))
		}
		ids = append(ids, e.CommandID)
	}
	return ids
}

func verify(t testing.TB, s *millrace.Store) {
	t.Helper()
	if err := s.Verify(t.Context(), func(p string) { t.Error(p) }); err != nil {
		t.Error(err)
	}
}

// hooks is a driver whose calls a test can see, delay and let fail.
type hooks struct {
	millrace.Driver
	beforeLookup, afterLookup func(id string)
	version                   func(s millrace.Stream) error
	events                    func(s millrace.Stream, from uint64) error
	pending                   func(partition int, yielded int) error
	append                    func(b *millrace.Batch, done func(error)) (take bool, instead func(error))
	read                      atomic.Int64 // events that were read of streams
}

func (h *hooks) Lookup(ctx context.Context, id string) (millrace.Outcome, error) {
	if h.beforeLookup != nil {
		h.beforeLookup(id)
	}
	o, err := h.Driver.Lookup(ctx, id)
	if h.afterLookup != nil {
		h.afterLookup(id)
	}
	return o, err
}

func (h *hooks) Version(ctx context.Context, s millrace.Stream) (uint64, error) {
	if h.version != nil {
		if err := h.version(s); err != nil {
			return 0, err
		}
	}
	return h.Driver.Version(ctx, s)
}

func (h *hooks) Events(ctx context.Context, s millrace.Stream, from uint64) iter.Seq2[millrace.Recorded, error] {
	return func(yield func(millrace.Recorded, error) bool) {
		if h.events != nil {
			if err := h.events(s, from); err != nil {
				yield(millrace.Recorded{}, err)
				return
			}
		}
		for e, err := range h.Driver.Events(ctx, s, from) {
			h.read.Add(1)
			if !yield(e, err) {
				return
			}
		}
	}
}

func (h *hooks) Pending(ctx context.Context, partition int) iter.Seq2[millrace.AcceptedCommand, error] {
	return func(yield func(millrace.AcceptedCommand, error) bool) {
		n := 0
		for c, err := range h.Driver.Pending(ctx, partition) {
			if h.pending != nil {
				if ferr := h.pending(partition, n); ferr != nil {
					yield(millrace.AcceptedCommand{}, ferr)
					return
				}
			}
			n++
			if !yield(c, err) {
				return
			}
		}
		if h.pending != nil && n == 0 {
			if ferr := h.pending(partition, -1); ferr != nil {
				yield(millrace.AcceptedCommand{}, ferr)
			}
		}
	}
}

func (h *hooks) Append(b *millrace.Batch, done func(error)) {
	if h.append != nil {
		take, instead := h.append(b, done)
		if !take {
			return
		}
		if instead != nil {
			done = instead
		}
	}
	h.Driver.Append(b, done)
}

// hooked puts hooks around a store's driver.
func hooked(s *millrace.Store, h *hooks) *millrace.Store {
	h.Driver = s.Driver()
	return millrace.NewStore(h)
}

// counted is a store that counts the commands that are kept alone.
func counted(s *millrace.Store) (*millrace.Store, *atomic.Int64) {
	kept := new(atomic.Int64)
	return hooked(s, &hooks{append: func(b *millrace.Batch, _ func(error)) (bool, func(error)) {
		kept.Add(int64(len(b.Accepted)))
		return true, nil
	}}), kept
}

// catchUp sends commands to streams of all partitions until each of them is decided in one commit with its acceptance. A
// busy machine may keep single ones alone.
func catchUp(t testing.TB, p *command.Processor, kept *atomic.Int64) {
	t.Helper()
	row := 0
	for i := 0; row < 20; i++ {
		before := kept.Load()
		decided(t, p, add(fmt.Sprint("catch-up", i), fmt.Sprint("catch-up", i%20), 1))
		if row++; kept.Load() != before {
			row = 0
		}
		if i > 2000 {
			t.Fatal("commands are kept alone although there is no backlog")
		}
	}
}

// errPassing is a trouble of the store that passes by itself.
var errPassing = errors.New("the store does not answer just now")

// gate keeps goroutines back until it is opened. Its first visitor can be waited for.
type gate struct {
	once, arrive sync.Once
	reached      chan struct{}
	opened       chan struct{}
}

func newGate(t testing.TB) *gate {
	g := &gate{reached: make(chan struct{}), opened: make(chan struct{})}
	t.Cleanup(g.open)
	return g
}

func (g *gate) open() { g.once.Do(func() { close(g.opened) }) }

func (g *gate) pass() {
	g.arrive.Do(func() { close(g.reached) })
	<-g.opened
}

func (g *gate) isOpen() bool {
	select {
	case <-g.opened:
		return true
	default:
		return false
	}
}

// awaitVisitor waits until somebody stands at the gate.
func (g *gate) awaitVisitor(t testing.TB) {
	t.Helper()
	select {
	case <-g.reached:
	case <-patient(t).Done():
		t.Fatal("nobody came to the gate")
	}
}

// noted is the tally domain with something done before the decision of a command with a note.
func noted(before func(note string) ([]any, bool)) millrace.Domain[millracetest.TallyState] {
	d := millracetest.Tally()
	decide := d.Decide
	d.Decide = func(s millracetest.TallyState, c any, at time.Time) ([]any, *millrace.Refusal) {
		if a, ok := c.(*millracetest.Add); ok && a.Note != "" {
			if events, instead := before(a.Note); instead {
				return events, nil
			}
		}
		return decide(s, c, at)
	}
	return d
}
