// Package projection makes read models: documents that follow from events by a pure function.
//
// The documents of a projection form a generation. A rebuild makes the next generation from the first event on, beside
// the live one, and switches over when it has caught up: a reader sees all of the old one or all of the new one. A rebuild
// that fails leaves the live generation as it is. A
// projection whose code has another version than its documents is rebuilt when it starts.
package projection

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
)

// Options of New; nil is fine.
type Options struct {
	// Run runs a consumer until ctx ends. It is required: wiring passes the feed's runner.
	Run func(ctx context.Context, c millrace.Consumer) error
	// Paused leaves the read models where they are.
	Paused bool
	// Shared: other nodes make the same read models, each those of its partitions. They cannot be rebuilt then.
	Shared bool
	// Logger gets rebuilds. Defaults to nothing.
	Logger *slog.Logger
	// Now is the clock. Defaults to time.Now.
	Now func() time.Time
}

// Service runs the projections of a program and answers for their read models.
type Service struct {
	o      Options
	store  *millrace.Store
	models map[string]*Model
	order  []*Model
	// pointing is held while a pointer is written: all have one checkpoint, and a shared store refuses one of two commits
	// that move it at once.
	pointing sync.Mutex
}

// Model is one read model. It implements millrace.ReadModel.
type Model struct {
	s *Service
	p millrace.Projection
	// live is the generation that readers see.
	live atomic.Uint64
	want chan struct{} // a rebuild was asked for
	// unnamed: no document says yet which code makes the live generation.
	unnamed bool

	mu       sync.Mutex
	version  int           // of the code that made the live generation
	switched chan struct{} // closed when the live generation changes
	rebuild  *Rebuild
	seen     *atomic.Uint64 // events that the rebuild has handled
}

// Rebuild is the state of a projection's newest rebuild.
type Rebuild struct {
	Generation uint64    `json:"generation"`
	Started    time.Time `json:"started"`
	Done       bool      `json:"done"`
	Caught     time.Time `json:"caught_up,omitzero"` // what follows is the comparison and the switch
	Finished   time.Time `json:"finished,omitzero"`
	Events     uint64    `json:"events"` // handled so far
	// Error says why a rebuild that is done has failed; the live generation is then the one from before. It may hold values
	// and paths: it is for operators.
	Error string `json:"error,omitempty"`
	// Cause is Error as a value.
	Cause error `json:"-"`
	// Identical says whether the new documents were byte for byte the old ones; absent where the old ones stood at
	// another position when they were compared.
	Identical *bool `json:"identical,omitempty"`
}

// Status is what there is to know of a read model.
type Status struct {
	Name       string   `json:"name"`
	Version    int      `json:"version"`
	Generation uint64   `json:"generation"`
	Cursor     string   `json:"cursor"`
	Position   uint64   `json:"position"` // events behind it, over all partitions
	Gap        uint64   `json:"gap"`      // events before it
	Parked     int      `json:"parked"`   // streams that were given up until somebody redrives them
	Rebuild    *Rebuild `json:"rebuild,omitempty"`
}

// pointer is the document that says which generation is live.
type pointer struct {
	Generation uint64 `json:"generation"`
	Version    int    `json:"version"`
}

// The pointers' place. They are documents of no consumer; their checkpoint stays 0.
const (
	pointers          = "projections"
	pointerCollection = millrace.LiveCollection
)

var pointerTable = millrace.NewTable[pointer]("live", nil, nil)

// The errors of Rebuild.
var (
	// ErrBusy: the projection is being rebuilt already.
	ErrBusy = errors.New("the projection is being rebuilt already")
	// ErrPaused: the read models stand still, so that a rebuild would never be done.
	ErrPaused = errors.New("the read models are paused")
)

// New makes the read models of projections.
func New(ctx context.Context, store *millrace.Store, projections []millrace.Projection, opts Options) (*Service, error) {
	if opts.Run == nil {
		return nil, errors.New("projection: Options.Run is required")
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now //nolint:forbidigo // the default of what is injected
	}
	s := &Service{o: opts, store: store, models: map[string]*Model{}}
	for _, p := range projections {
		if s.models[p.Name] != nil || p.Name == "" || p.Project == nil {
			return nil, fmt.Errorf("projection %q: needs a name of its own and Project", p.Name)
		}
		m := &Model{s: s, p: p, version: p.Version, want: make(chan struct{}, 1), switched: make(chan struct{}), seen: new(atomic.Uint64)}
		m.live.Store(1)
		ptr, err := s.pointer(ctx, p.Name)
		if err != nil {
			return nil, err
		}
		if m.unnamed = ptr == nil; ptr != nil {
			m.live.Store(ptr.Generation)
			m.version = ptr.Version
		}
		s.models[p.Name] = m
		s.order = append(s.order, m)
	}
	return s, nil
}

func (s *Service) pointer(ctx context.Context, name string) (*pointer, error) {
	doc, err := s.store.Document(ctx, pointerCollection, 0, name)
	if errors.Is(err, millrace.ErrNotFound) {
		return nil, nil //nolint:nilnil // none is an answer
	}
	if err != nil {
		return nil, err
	}
	return pointerTable.Decode(doc.Data)
}

func (s *Service) point(ctx context.Context, name string, p pointer) error {
	data, keys, err := pointerTable.Encode(&p)
	if err != nil {
		return err
	}
	s.pointing.Lock()
	defer s.pointing.Unlock()
	put := millrace.Put{Document: millrace.Document{Collection: pointerCollection, ID: name, Data: data, Keys: keys}}
	return s.store.CommitViews(ctx, []millrace.ViewBatch{{Consumer: pointers, Puts: []millrace.Put{put}}})
}

// Model finds a read model by its projection's name; nil where there is none.
func (s *Service) Model(name string) *Model { return s.models[name] }

// Run keeps all read models up to date until ctx ends (nil) or the store fails.
func (s *Service) Run(ctx context.Context) error {
	if s.o.Paused {
		<-ctx.Done()
		return nil
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, m := range s.order {
		if s.o.Shared {
			g.Go(func() error { return m.share(gctx) })
			continue
		}
		g.Go(func() error { return m.run(gctx) })
	}
	return g.Wait()
}

// consumer is the consumer of one generation.
func (m *Model) consumer(generation uint64) millrace.Consumer {
	// Asked for with each document, so they are put together once.
	names := make(map[*millrace.Table]string, len(m.p.Tables))
	for _, t := range m.p.Tables {
		names[t] = m.collection(generation, t)
	}
	return millrace.Consumer{
		Name: m.name(generation), Categories: m.p.Categories,
		Handle: func(_ context.Context, v millrace.Views, e *millrace.Recorded) error { return m.p.Project(v, e) },
		Collection: func(t *millrace.Table) string {
			if name, ok := names[t]; ok {
				return name
			}
			return m.collection(generation, t) // the feed's own
		},
	}
}

func (m *Model) name(generation uint64) string {
	return m.p.Name + millrace.GenerationMark + strconv.FormatUint(generation, 10)
}

func (m *Model) collection(generation uint64, t *millrace.Table) string {
	return m.name(generation) + "." + t.Name
}

// run keeps the live generation up to date, and makes a new one when that is asked for. A generation of other code is
// shown as it stands until its successor has caught up: the code that could continue it is gone.
func (m *Model) run(ctx context.Context) error {
	if err := m.tidy(ctx); err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // stopped
		}
		return err
	}
	stale := m.version != m.p.Version
	if stale {
		m.s.o.Logger.Info("the projection's code has changed", "projection", m.p.Name, "from", m.version, "to", m.p.Version)
		if err := m.Rebuild(); err != nil && !errors.Is(err, ErrBusy) {
			return err
		}
	}
	for ctx.Err() == nil {
		generation := m.live.Load()
		g, gctx := errgroup.WithContext(ctx)
		live, stop := context.WithCancel(gctx)
		ended := make(chan struct{})
		g.Go(func() error {
			defer close(ended)
			if stale {
				return nil
			}
			return m.consume(live, m.consumer(generation))
		})
		g.Go(func() error {
			defer stop()
			select {
			case <-m.want:
				return m.replace(gctx, stale, func() { stop(); <-ended })
			case <-gctx.Done():
				return nil
			}
		})
		if err := g.Wait(); err != nil {
			return err
		}
		if m.live.Load() != generation {
			stale = false
			// Its consumer has ended, so nothing writes to it any more.
			if err := m.drop(ctx, generation); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
	return nil
}

// tidy writes down which code makes the first generation, so that later code knows that it is another, and removes what
// a crash has left of the generations around the live one.
func (m *Model) tidy(ctx context.Context) error {
	live := m.live.Load()
	if m.unnamed {
		if err := m.s.point(ctx, m.p.Name, pointer{Generation: live, Version: m.version}); err != nil {
			return err
		}
		m.unnamed = false
	}
	if live > 1 {
		if err := m.drop(ctx, live-1); err != nil {
			return err
		}
	}
	return m.drop(ctx, live+1)
}

// Rebuild asks the running service to build the read model again. Errors: [ErrBusy], [ErrPaused], [ErrShared].
func (m *Model) Rebuild() error {
	if m.s.o.Paused {
		return ErrPaused
	}
	if m.s.o.Shared {
		return ErrShared
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rebuild != nil && !m.rebuild.Done {
		return ErrBusy
	}
	m.rebuild = &Rebuild{Generation: m.live.Load() + 1, Started: m.s.o.Now().UTC()}
	m.seen.Store(0)
	m.want <- struct{}{} // there is room: no other rebuild is under way
	return nil
}

// replace builds the next generation beside the live one and switches over. halt stops the consumer of the live one. A
// rebuild that fails is no error of the service: it is abandoned, and the live generation stays. The error is one of the
// store, where it cannot be known any more which generation is live.
func (m *Model) replace(ctx context.Context, stale bool, halt func()) error {
	live := m.live.Load()
	next := live + 1
	same, err := m.build(ctx, next, stale)
	if err == nil {
		err = m.overtake(ctx, next, halt)
	}
	if err == nil && !stale {
		err = m.complete(ctx, live, next) // of the last events
	}
	if err == nil {
		if err = m.s.point(ctx, m.p.Name, pointer{Generation: next, Version: m.p.Version}); err != nil && ctx.Err() == nil {
			// It may have been written all the same. The next start must not find it, without the documents.
			if back := m.s.point(ctx, m.p.Name, pointer{Generation: live, Version: m.version}); back != nil {
				return fmt.Errorf("rebuild %s: %w", m.p.Name, errors.Join(err, back))
			}
		}
	}
	if err != nil {
		m.abandon(ctx, next, err)
		return nil
	}
	m.mu.Lock()
	m.live.Store(next)
	m.version = m.p.Version
	close(m.switched)
	m.switched = make(chan struct{})
	m.rebuild.Done, m.rebuild.Finished, m.rebuild.Identical = true, m.s.o.Now().UTC(), same
	m.mu.Unlock()
	m.s.o.Logger.Info("read model rebuilt", "projection", m.p.Name, "generation", next)
	return nil
}

// drop removes a generation.
func (m *Model) drop(ctx context.Context, generation uint64) error {
	collections := []string{m.parkedCollection(generation)}
	for _, t := range m.p.Tables {
		collections = append(collections, m.collection(generation, t))
	}
	return m.s.store.DropViews(ctx, m.name(generation), collections)
}

// build runs the consumer of a new generation until it has caught up, and compares it with the live one.
func (m *Model) build(ctx context.Context, next uint64, stale bool) (same *bool, err error) {
	if err := m.drop(ctx, next); err != nil { // of a rebuild that was interrupted
		return nil, err
	}
	c := m.consumer(next)
	c.Rebuilding = true
	project := c.Handle
	c.Handle = func(ctx context.Context, v millrace.Views, e *millrace.Recorded) error {
		m.seen.Add(1)
		return project(ctx, v, e)
	}
	err = m.follow(ctx, c, func(ctx context.Context) error {
		// The head moves on meanwhile; the second wait is for what came in during the first.
		for range 2 {
			if err := m.s.store.Wait(ctx, c.Name, m.s.store.Head()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.rebuild.Caught = m.s.o.Now().UTC()
	m.mu.Unlock()
	if stale {
		return nil, nil //nolint:nilnil // other code, other documents: nothing to compare
	}
	if err := m.complete(ctx, m.live.Load(), next); err != nil {
		return nil, err
	}
	return m.compare(ctx, m.live.Load(), next)
}

// consume runs a consumer until ctx ends. One that was stopped before it had begun may call that an error; it is none.
func (m *Model) consume(ctx context.Context, c millrace.Consumer) error {
	err := m.s.o.Run(ctx, c)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// follow runs a consumer until a function returns.
func (m *Model) follow(ctx context.Context, c millrace.Consumer, until func(ctx context.Context) error) error {
	g, gctx := errgroup.WithContext(ctx)
	run, stop := context.WithCancel(gctx)
	g.Go(func() error { return m.consume(run, c) })
	g.Go(func() error {
		defer stop()
		return until(gctx)
	})
	return g.Wait()
}

// overtake lets a generation that was built come up to the live one, which has moved on during the comparison, so that
// no reader sees the past after the switch. The live one stands still for the last few events only.
func (m *Model) overtake(ctx context.Context, next uint64, halt func()) error {
	c := m.consumer(next)
	c.Rebuilding = true
	return m.follow(ctx, c, func(ctx context.Context) error {
		if err := m.s.store.Wait(ctx, c.Name, m.s.store.Head()); err != nil {
			return err
		}
		halt()
		at, err := m.s.store.Checkpoints(ctx, m.name(m.live.Load()))
		if err != nil {
			return err
		}
		return m.s.store.Wait(ctx, c.Name, at)
	})
}

// compare says whether two generations have the same documents; nil where they do not stand at the same position.
func (m *Model) compare(ctx context.Context, a, b uint64) (*bool, error) {
	before, err := m.s.store.Checkpoints(ctx, m.name(a))
	if err != nil {
		return nil, err
	}
	at, err := m.s.store.Checkpoints(ctx, m.name(b))
	if err != nil {
		return nil, err
	}
	if !before.Covers(at) || !at.Covers(before) {
		return nil, nil //nolint:nilnil // not comparable
	}
	da, err := m.digest(ctx, a)
	if err != nil {
		return nil, err
	}
	db, err := m.digest(ctx, b)
	if err != nil {
		return nil, err
	}
	after, err := m.s.store.Checkpoints(ctx, m.name(a))
	if err != nil || !before.Covers(after) {
		return nil, err
	}
	same := da == db
	if !same {
		m.s.o.Logger.Error("the rebuilt read model differs from the one before", "projection", m.p.Name)
	}
	return &same, nil
}

// digest is a hash over all documents of a generation, with their keys, in the order of partition and id.
func (m *Model) digest(ctx context.Context, generation uint64) (string, error) {
	h := sha256.New()
	var buf []byte
	field := func(b string) { buf = append(binary.AppendUvarint(buf, uint64(len(b))), b...) }
	for _, t := range m.p.Tables {
		for d, err := range m.s.store.Documents(ctx, millrace.Query{Collection: m.collection(generation, t), Index: -1, Partition: -1}) {
			if err != nil {
				return "", err
			}
			buf = binary.AppendUvarint(buf[:0], uint64(d.Partition)) //nolint:gosec // not negative
			field(t.Name)
			field(d.ID)
			for _, k := range d.Keys {
				field(k)
			}
			field(string(d.Data))
			_, _ = h.Write(buf) // a hash never fails
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Digest is a hash over all documents that readers see now. Two stores with the same facts have the same digests.
func (m *Model) Digest(ctx context.Context) (string, error) { return m.digest(ctx, m.live.Load()) }

// Status says how the read model stands.
func (m *Model) Status(ctx context.Context) (Status, error) {
	m.mu.Lock()
	live := m.live.Load()
	st := Status{Name: m.p.Name, Version: m.version, Generation: live}
	if m.rebuild != nil {
		r := *m.rebuild
		r.Events = m.seen.Load()
		st.Rebuild = &r
	}
	m.mu.Unlock()
	c, err := m.s.store.Checkpoints(ctx, m.name(live))
	if err != nil {
		return st, err
	}
	parked, err := m.parked(ctx, live)
	if err != nil {
		return st, err
	}
	st.Parked = len(parked)
	st.Cursor = c.String()
	for p, pos := range m.s.store.Head().Positions {
		st.Position += c.Position(p)
		st.Gap += pos - min(c.Position(p), pos)
	}
	return st, nil
}

// List says how all read models stand, in the order in which they were declared.
func (s *Service) List(ctx context.Context) ([]Status, error) {
	var out []Status
	for _, m := range s.order {
		st, err := m.Status(ctx)
		if err != nil {
			return nil, err
		}
		out = append(out, st)
	}
	return out, nil
}

// Consumers are the names of the live consumers, for metrics.
func (s *Service) Consumers() map[string]string {
	out := map[string]string{}
	for _, m := range s.order {
		out[m.p.Name] = m.name(m.live.Load())
	}
	return out
}

// Get implements millrace.ReadModel.
func (m *Model) Get(ctx context.Context, t *millrace.Table, partition int, id string) (millrace.Document, error) {
	for {
		live := m.live.Load()
		doc, err := m.s.store.Document(ctx, m.collection(live, t), partition, id)
		// A generation that was dropped between the two lines is empty.
		if errors.Is(err, millrace.ErrNotFound) && m.live.Load() != live {
			continue
		}
		return doc, err
	}
}

// Query implements millrace.ReadModel.
func (m *Model) Query(ctx context.Context, t *millrace.Table, q millrace.Query) iter.Seq2[millrace.Document, error] {
	return func(yield func(millrace.Document, error) bool) {
		for {
			live := m.live.Load()
			q.Collection = m.collection(live, t)
			empty := true
			for d, err := range m.s.store.Documents(ctx, q) {
				empty = false
				if !yield(d, err) {
					return
				}
			}
			if !empty || m.live.Load() == live {
				return
			}
		}
	}
}

// Wait implements millrace.ReadModel.
func (m *Model) Wait(ctx context.Context, c millrace.Cursor) error {
	if err := m.s.store.CheckCursor(c); err != nil {
		return err
	}
	for !m.Cursor().Covers(c) {
		m.mu.Lock()
		live, switched := m.live.Load(), m.switched
		m.mu.Unlock()
		// Whoever waits for a generation that is replaced waits on for the new one.
		wctx, cancel := context.WithCancel(ctx)
		go func() {
			select {
			case <-switched:
				cancel()
			case <-wctx.Done():
			}
		}()
		err := m.s.store.Wait(wctx, m.name(live), c)
		cancel()
		if err == nil || ctx.Err() != nil || m.live.Load() == live {
			return err
		}
	}
	return nil
}

// Cursor implements millrace.ReadModel.
func (m *Model) Cursor() millrace.Cursor {
	c, err := m.s.store.Checkpoints(context.Background(), m.name(m.live.Load()))
	if err != nil {
		return millrace.Cursor{}
	}
	return c
}
