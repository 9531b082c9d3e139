package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
)

// Options of New; nil is fine.
type Options struct {
	// Partitions limits the consumer to those that this node owns, under their fencing tokens: what has another owner by
	// the time of a commit is refused. Defaults to all, on a store of one process.
	Partitions map[int]uint64
	// Lazy is how long a checkpoint may wait in memory where nothing but the checkpoint would be written. Who waits on
	// another node sees it only when it is written. Defaults to 1 s.
	Lazy time.Duration
	// Gather is the least time between two commits of a worker, in which it takes what comes: where a commit is a round trip
	// and a transaction, a few large ones cost far less than many small ones. After a pause there is no wait. Defaults to
	// none.
	Gather time.Duration
	// Hurry is the same while somebody in this process waits for the consumer. Defaults to Gather.
	Hurry time.Duration
	// Workers share the partitions among them. Defaults to the number of processors, at most 4.
	Workers int
	// Attempts is how often an event is tried before its stream is parked. Defaults to 5.
	Attempts int
	// Backoff is the wait before the second attempt; it doubles with each further one, up to 10 s. Defaults to 50 ms.
	Backoff time.Duration
	// Observer is told what happens. Defaults to nobody.
	Observer Observer
	// Logger gets retries and parked streams. Defaults to nothing.
	Logger *slog.Logger
	// Now is the clock. Defaults to time.Now.
	Now func() time.Time
}

// Observer is told what consumers do. It must be quick and is called by several goroutines.
type Observer interface {
	// Handled: these events, wanted or not, are behind the consumer.
	Handled(consumer string, events []millrace.Recorded)
	// Failed: an attempt failed.
	Failed(consumer string)
	// Parked: so many more streams are given up until somebody redrives them; negative when a runner ends.
	Parked(consumer string, more int)
}

type nobody struct{}

func (nobody) Handled(string, []millrace.Recorded) {}
func (nobody) Failed(string)                       {}
func (nobody) Parked(string, int)                  {}

const (
	maxBackoff = 10 * time.Second
	// readAhead is how many batches may wait for a worker: one is being handled, the next ones are read and decoded.
	readAhead = 2
	// maxGather bounds the events of one commit. A worker that is behind commits seldom: a document that many of the
	// events change is then read and written once. It is also what a fault makes it do again, in pieces.
	maxGather = 32 << 10
	// maxDocuments bounds the documents of one commit, which are in memory, decoded.
	maxDocuments = 16 << 10
	// lazyEvents and Options.Lazy bound how far a checkpoint in the store may be behind where nothing but the checkpoint
	// would be written: many consumers want few of the events.
	lazyEvents  = 16 << 10
	defaultLazy = time.Second
)

// Runner runs one consumer.
type Runner struct {
	o          Options
	store      *millrace.Store
	registry   *millrace.Registry
	c          millrace.Consumer
	partitions []int // of Options.Partitions, in order
	// For the tests that show what comes of it: pauses are taken in full; a parked stream holds nothing; what fails is taken
	// event by event.
	unrationed, unheld, singly bool
}

// New makes a runner for a consumer.
func New(store *millrace.Store, registry *millrace.Registry, c millrace.Consumer, opts *Options) *Runner {
	r := &Runner{store: store, registry: registry, c: c}
	if opts != nil {
		r.o = *opts
	}
	if r.o.Workers == 0 {
		r.o.Workers = min(runtime.GOMAXPROCS(0), 4)
	}
	if r.o.Partitions == nil {
		r.o.Partitions = make(map[int]uint64, store.Partitions())
		for p := range store.Partitions() {
			r.o.Partitions[p] = 0
		}
	}
	r.partitions = slices.Sorted(maps.Keys(r.o.Partitions))
	r.o.Workers = max(min(r.o.Workers, len(r.partitions)), 1)
	if r.o.Lazy == 0 {
		r.o.Lazy = defaultLazy
	}
	if r.o.Hurry == 0 {
		r.o.Hurry = r.o.Gather
	}
	if r.o.Attempts == 0 {
		r.o.Attempts = 5
	}
	if r.o.Backoff == 0 {
		r.o.Backoff = 50 * time.Millisecond
	}
	if r.o.Observer == nil {
		r.o.Observer = nobody{}
	}
	if r.o.Logger == nil {
		r.o.Logger = slog.New(slog.DiscardHandler)
	}
	if r.o.Now == nil {
		r.o.Now = time.Now //nolint:forbidigo // the default of what is injected
	}
	if r.c.Collection == nil {
		name := r.c.Name
		r.c.Collection = func(t *millrace.Table) string { return name + "." + t.Name }
	}
	return r
}

// Run follows the feed until ctx ends (nil) or the store cannot be read or written any more. A consumer with effects that is
// to be rebuilt is refused ([millrace.ErrInvalid]).
func (r *Runner) Run(ctx context.Context) error {
	if r.c.Rebuilding && r.c.Effects {
		return fmt.Errorf("%w: consumer %s has effects, which a rebuild would repeat", millrace.ErrInvalid, r.c.Name)
	}
	err := r.run(ctx)
	if err == nil || ctx.Err() != nil || errors.Is(err, millrace.ErrClosed) {
		return nil //nolint:nilerr // an ended ctx is how a runner stops
	}
	return fmt.Errorf("consumer %s: %w", r.c.Name, err)
}

func (r *Runner) run(ctx context.Context) error {
	if r.c.Begin != nil {
		if err := r.c.Begin(ctx); err != nil {
			return err
		}
	}
	from, err := r.store.Resume(ctx, r.c.Name)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	workers := make([]*worker, r.o.Workers)
	for i := range workers {
		if workers[i], err = r.newWorker(gctx, i); err != nil {
			return err
		}
		workers[i].at = from.Clone().Positions
	}
	for _, w := range workers {
		g.Go(func() error { return w.run(gctx) })
	}
	g.Go(func() error {
		for events, err := range r.store.Feed(gctx, millrace.FeedOptions{After: from, Partitions: r.partitions, Follow: true}) {
			if err != nil {
				return err
			}
			if !deal(gctx, workers, events) {
				break
			}
		}
		return millrace.ErrClosed // ends the workers too
	})
	return g.Wait()
}

// deal hands each worker its part of a batch.
func deal(ctx context.Context, workers []*worker, events []millrace.Recorded) bool {
	for i, w := range workers {
		n := 0
		for k := range events {
			if events[k].Partition%len(workers) == i {
				n++
			}
		}
		if n == 0 {
			continue
		}
		part := make([]millrace.Recorded, 0, n)
		for k := range events {
			if events[k].Partition%len(workers) == i {
				part = append(part, events[k])
			}
		}
		select {
		case w.in <- part:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// worker handles the events of some of the partitions.
type worker struct {
	r      *Runner
	index  int
	in     chan []millrace.Recorded
	views  []*views // by partition; nil where it has none
	parked map[millrace.Stream]bool
	goOn   chan struct{} // a redrive has more to do
	// lazy are checkpoints that are not in the store yet, by partition, and lazyCount the events they have passed.
	lazy      map[int]uint64
	lazyCount int
	committed time.Time // when the last commit was sent
	at        []uint64  // how far each partition has come, as its checkpoint will say
	work      millrace.Work
	// left is for how long the worker may still pause between attempts at events that fail, as of rationed.
	left     time.Duration
	rationed time.Time
}

func (r *Runner) newWorker(ctx context.Context, index int) (*worker, error) {
	w := &worker{
		r: r, index: index, in: make(chan []millrace.Recorded, readAhead),
		views: make([]*views, r.store.Partitions()), parked: map[millrace.Stream]bool{}, goOn: make(chan struct{}, 1),
		lazy: map[int]uint64{},
	}
	for _, p := range r.partitions {
		if p%r.o.Workers != index {
			continue
		}
		q := millrace.Query{Collection: r.c.Collection(millrace.ParkedTable.Table), Index: -1, Partition: p}
		for d, err := range r.store.Documents(ctx, q) {
			if err != nil {
				return nil, err
			}
			w.parked[millrace.Stream(d.ID)] = true
		}
	}
	return w, nil
}

func (w *worker) run(ctx context.Context) error {
	w.alarm(len(w.parked))
	defer func() { w.alarm(-len(w.parked)) }()
	var wake <-chan struct{}
	if w.r.c.Work != nil {
		w.work = w.r.c.Work()
		defer w.work.End()
		var err error
		if wake, err = w.work.Begin(ctx, w.own(), func(s millrace.Stream) bool { return w.parked[s] }); err != nil {
			return err
		}
	}
	idle := time.NewTicker(w.r.o.Lazy)
	defer idle.Stop()
	asks := time.NewTicker(askEvery)
	defer asks.Stop()
	for {
		select {
		case events := <-w.in:
			if err := w.handle(ctx, events); err != nil {
				return err
			}
		case <-wake:
			if err := w.turn(ctx); err != nil {
				return err
			}
		case <-idle.C:
			if err := w.persist(ctx); err != nil {
				return err
			}
		case <-asks.C:
			if err := w.answer(ctx); err != nil {
				return err
			}
		case <-w.goOn:
			if err := w.answer(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			// The checkpoints are true as they stand; this only saves the next start some reading.
			return w.persist(context.WithoutCancel(ctx))
		}
	}
}

// handle takes a batch, and what else has come meanwhile, as one commit. Where an event fails, all of it is undone, and it is
// taken apart, so that the fault is that event's alone.
func (w *worker) handle(ctx context.Context, events []millrace.Recorded) error {
	w.begin()
	taken := [][]millrace.Recorded{events}
	sound, err := w.apply(ctx, events)
	for n := len(events); err == nil && n < maxGather && w.documents() < maxDocuments; n += len(events) {
		var ok bool
		if events, ok = w.more(ctx, events); !ok {
			break
		}
		taken = append(taken, events)
		var more int
		more, err = w.apply(ctx, events)
		sound += more
	}
	if err == nil {
		err = w.commit(ctx, taken)
	}
	if err = w.undo(err); err == nil || final(ctx, err) {
		return err
	}
	w.r.o.Logger.Warn("a batch failed and is taken apart", "consumer", w.r.c.Name, "error", err)
	return w.apart(ctx, slices.Concat(taken...), sound)
}

// farBehind is the gap in events from which a worker waits for its next batch instead of committing what it has: readers
// of a read model that old do not notice.
const farBehind = 8 << 10

// more takes the next batch into the same commit: one that has come already, or, far behind, one that is sure to come.
func (w *worker) more(ctx context.Context, last []millrace.Recorded) (events []millrace.Recorded, ok bool) {
	select {
	case events = <-w.in:
		return events, true
	default:
	}
	e := &last[len(last)-1]
	if head := w.r.store.Head().Position(e.Partition); head-e.Position < farBehind/uint64(len(w.views)) {
		return w.gather(ctx)
	}
	select {
	case events = <-w.in:
		return events, true
	case <-ctx.Done():
		return nil, false
	}
}

// gather waits for another batch as long as it is too early for a commit.
func (w *worker) gather(ctx context.Context) (events []millrace.Recorded, ok bool) {
	if w.r.o.Gather == 0 {
		return nil, false
	}
	awaited := w.r.store.Awaited(w.r.c.Name)
	for least := w.r.o.Gather; ; {
		select {
		case <-awaited:
			least, awaited = w.r.o.Hurry, nil
		default:
		}
		wait := least - w.r.o.Now().Sub(w.committed)
		if wait <= 0 {
			return nil, false
		}
		t := time.NewTimer(wait)
		select {
		case events = <-w.in:
			t.Stop()
			return events, true
		case <-awaited:
			t.Stop()
		case <-t.C:
			return nil, false
		case <-ctx.Done():
			t.Stop()
			return nil, false
		}
	}
}

// documents is how many documents the commit at hand holds so far.
func (w *worker) documents() int {
	n := 0
	for _, v := range w.views {
		if v != nil {
			n += len(v.order)
		}
	}
	return n
}

// try handles events and commits what comes of them, all or nothing. Where it fails, so many of them were sound before.
func (w *worker) try(ctx context.Context, events []millrace.Recorded) (sound int, err error) {
	w.begin()
	sound, err = w.apply(ctx, events)
	if err == nil {
		err = w.commit(ctx, [][]millrace.Recorded{events})
	}
	return sound, w.undo(err)
}

// begin forgets what an earlier attempt left.
func (w *worker) begin() {
	for _, v := range w.views {
		if v != nil {
			v.reset()
		}
	}
}

// apply calls the handler for the events that it wants. Where it fails, so many of them were handled before.
func (w *worker) apply(ctx context.Context, events []millrace.Recorded) (sound int, err error) {
	for i := range events {
		e := &events[i]
		if !w.wanted(e) || w.parked[e.Stream] && !w.r.unheld {
			continue
		}
		if err := w.call(ctx, w.view(ctx, e.Partition), e); err != nil {
			return i, err
		}
	}
	return len(events), nil
}

func (w *worker) view(ctx context.Context, partition int) *views {
	v := w.views[partition]
	if v == nil {
		v = &views{store: w.r.store, consumer: &w.r.c, partition: partition, docs: map[docKey]*doc{}, kept: map[docKey]*doc{}}
		w.views[partition] = v
	}
	v.ctx = ctx
	return v
}

func (w *worker) wanted(e *millrace.Recorded) bool {
	if len(w.r.c.Categories) == 0 {
		return true
	}
	return w.r.c.Wants(e.Stream.Category())
}

// call runs the handler. A panic is an error like any other.
func (w *worker) call(ctx context.Context, v *views, e *millrace.Recorded) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &handlerError{fmt.Errorf("panic: %v", p)}
		}
	}()
	if _, err := w.r.registry.Body(e); err != nil {
		return &handlerError{err}
	}
	handle := w.r.c.Handle
	if w.work != nil {
		handle = w.work.Handle
	}
	if err := handle(ctx, v, e); err != nil {
		// A document that could not be read is the store's trouble.
		for _, d := range v.order {
			if d.err != nil {
				return d.err
			}
		}
		return &handlerError{err}
	}
	return nil
}

// commit writes the documents and the checkpoints of all partitions in events. A checkpoint alone is only moved in
// memory, for those who wait for it, and written with the next documents or a little later.
func (w *worker) commit(ctx context.Context, taken [][]millrace.Recorded) error {
	last, err := w.settle(ctx)
	if err != nil {
		return err
	}
	for _, events := range taken {
		for i := range events {
			last[events[i].Partition] = events[i].Position
		}
	}
	batches := make([]millrace.ViewBatch, 0, len(last))
	for p := w.index; p < len(w.views); p += w.r.o.Workers {
		position, ok := last[p]
		if !ok {
			continue
		}
		b := w.batch(p, position)
		if v := w.views[p]; v != nil {
			if b.Puts, err = v.puts(); err != nil {
				return err
			}
		}
		if len(b.Puts) == 0 {
			w.lazy[p] = position
			w.r.store.Advance(w.r.c.Name, p, position)
			continue
		}
		delete(w.lazy, p)
		batches = append(batches, b)
	}
	if len(batches) > 0 {
		w.committed = w.r.o.Now()
		if err := w.r.store.CommitViews(ctx, batches); err != nil {
			return err
		}
	}
	for _, v := range w.views {
		if v != nil && len(v.order) > 0 {
			v.settle()
		}
	}
	for p, position := range last {
		w.at[p] = position
	}
	if w.work != nil {
		w.work.Committed()
	}
	for _, events := range taken {
		w.lazyCount += len(events)
		if !w.r.c.Rebuilding {
			w.r.o.Observer.Handled(w.r.c.Name, events)
		}
	}
	if w.lazyCount >= lazyEvents {
		return w.persist(ctx)
	}
	return nil
}

func (w *worker) batch(partition int, position uint64) millrace.ViewBatch {
	return millrace.ViewBatch{Consumer: w.r.c.Name, Partition: partition, Epoch: w.r.o.Partitions[partition], Checkpoint: position}
}

// persist writes the checkpoints that were only moved in memory.
func (w *worker) persist(ctx context.Context) error {
	w.lazyCount = 0
	if len(w.lazy) == 0 {
		return nil
	}
	batches := make([]millrace.ViewBatch, 0, len(w.lazy))
	for p, position := range w.lazy {
		batches = append(batches, w.batch(p, position))
	}
	if err := w.r.store.CommitViews(ctx, batches); err != nil {
		// It is tried again a little later. Nobody may take it for a failure of the documents: they are committed, and
		// their events must not be handled again.
		// Where the consumer stops, its end writes them.
		if millrace.IsTransient(err) {
			if ctx.Err() != nil {
				return nil
			}
			w.r.o.Logger.Warn("cannot write checkpoints, trying again", "consumer", w.r.c.Name, "error", err)
			return nil
		}
		return err
	}
	clear(w.lazy)
	return nil
}
