package command

import (
	"context"
	"errors"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-io/millrace"
)

// partition is one loop with its queue.
type partition struct {
	p     *Processor
	index int
	cache *cache
	wake  chan struct{} // there is something to look at

	mu    sync.Mutex
	queue []*item
	// working are the items the loop has taken and not committed yet; rescue looks at them too.
	working []*item
	// behind: undecided commands may be in the store that the loop does not have. New ones are then kept alone, behind
	// them.
	behind bool
	// gather has new commands wait in the queue although the loop is behind: it is about to have caught up, and would never
	// if it had to wait for a moment in which nobody keeps one. Nothing of the queue is decided meanwhile.
	gather bool
	// held are the ids of the commands that are in the store undecided and that the loop knows of, for the store to let
	// others pass them by. Of a shared store only.
	held     map[string]struct{}
	inFlight int // decisions on their way to the disk
	bytes    int // of their commands
	maxBytes int // of them, at the most
	closed   bool

	// alone counts acceptances on their way to the disk, behind the back of the loop. It and failed are no concern of
	// mu: a store that refuses at once calls back while mu is held. Only who holds mu counts up.
	alone  atomic.Int64
	failed atomic.Pointer[error]
	// kept counts the commands that this node has left to the store since the partition is served: what is found there
	// beyond that is other nodes'.
	kept atomic.Int64

	// asked: there may be commands in the store that a paused loop decides.
	asked atomic.Bool

	served atomic.Uint64 // counts the times that this node has served the partition; 0 while it does not
	times  uint64        // the last one
	drops  *drops

	// The loop's own: versions of streams that were asked for ahead, for the commands at hand.
	versions map[millrace.Stream]seenVersion
	// Streams that wait for another attempt, in the order of their items.
	blocked map[millrace.Stream]*blocked
	waiting int       // items in blocked
	skipped bool      // the last look at the backlog left commands of blocked streams there
	found   int64     // commands found in the store, see kept
	foreign time.Time // when another node's were last among them
	refused time.Time // when the store last refused a commit because of them
	paused  bool      // it decides the commands of Options.Always only
	looked  time.Time // when it last looked for them
}

// blocked is a stream whose next command could not be decided for a reason that may pass. Its later commands wait
// behind it: the first of them here, the rest in the store, so that a stream that is stuck takes neither memory nor the
// queue's room from the others.
type blocked struct {
	items []*item
	tries int
	next  time.Time
	// spilled: later commands of the stream are in the store. Only what is read from there may be decided next.
	spilled bool
}

// maxBlocked is how many commands of a blocked stream are in memory: enough for a good commit when it gets free.
const maxBlocked = 64

// full says that further commands of the stream stay in the store.
func (b *blocked) full() bool { return b != nil && len(b.items) >= maxBlocked }

// maxInFlight and minInFlightBytes: the decisions of a partition that wait for the disk are bounded in number, and their
// commands in bytes to the partition's share of maxQueueBytes, but not to less than what makes a good commit.
const (
	maxInFlight      = 4096
	minInFlightBytes = 256 << 10
)

func newPartition(p *Processor, index int) *partition {
	s := &partition{
		p: p, index: index, wake: make(chan struct{}, 1), behind: true,
		held:     map[string]struct{}{},
		blocked:  map[millrace.Stream]*blocked{},
		versions: map[millrace.Stream]seenVersion{},
		maxBytes: max(maxQueueBytes/p.store.Partitions(), minInFlightBytes),
	}
	if p.direct {
		s.drops = newDrops()
	}
	s.cache = p.newCache(s.drops)
	return s
}

func (s *partition) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// put takes new commands in.
func (s *partition) put(items ...*item) {
	s.mu.Lock()
	switch {
	case s.closed:
		s.mu.Unlock()
		for _, it := range items {
			s.p.release(1, len(it.cmd.Data))
			_ = s.p.giveUp(it, millrace.ErrClosed)
		}
	case s.behind && !s.gather:
		for _, it := range items {
			it.admitted = true
			it.kept.Store(alone)
			s.keep(it, false)
		}
		s.mu.Unlock()
	default:
		first := len(s.queue) == 0
		for _, it := range items {
			it.loaded, it.admitted = true, true
		}
		s.queue = append(s.queue, items...)
		s.mu.Unlock()
		if first {
			s.signal()
		}
	}
}

// keep makes a command durable without its decision; s.mu is held, so that a decision of it comes later. The item
// stays with the loop where the loop has it, else the loop will find it in the store.
func (s *partition) keep(it *item, loopHasIt bool) {
	s.alone.Add(1)
	if loopHasIt {
		s.hold(it)
	} else {
		s.kept.Add(1)
	}
	admitted := it.admitted && !loopHasIt
	if admitted {
		it.admitted = false
	}
	b := &millrace.Batch{Partition: s.index, Accepted: []millrace.AcceptedCommand{{Command: &it.cmd, Fingerprint: it.fp}}}
	s.p.store.Commit(b, func(err error) {
		it.written(b.Accepted[0].Known, err)
		// On a shared store the next acceptance may succeed; the loop has its own troubles.
		if err != nil && (!s.p.o.Shared || errors.Is(err, millrace.ErrFailed)) {
			s.fail(err)
		}
		if admitted {
			s.p.release(1, len(it.cmd.Data))
		}
		if !loopHasIt {
			if err != nil {
				s.p.flight.leave(it)
				it.doneIs(nil)
			} else {
				// The loop may have found it in the store before us.
				it.forgotten = s.p.flight.forget(it)
			}
		}
		it.storedIs(err)
		s.alone.Add(-1)
		if s.p.always(it.cmd.Stream) {
			s.asked.Store(true)
		}
		s.signal()
	})
}

// fail remembers the first fault of the store that it cannot recover from; the loop ends with it.
func (s *partition) fail(err error) {
	if !errors.Is(err, millrace.ErrClosed) {
		s.failed.CompareAndSwap(nil, &err)
	}
}

// rescue keeps commands alone that came before a time and have not been decided. On a shared store not while decisions are
// on their way: the command would be written behind them, and would get before them where they are refused.
func (s *partition) rescue(before time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.p.o.Shared && s.inFlight > 0 {
		return
	}
	for _, list := range [][]*item{s.working, s.queue} {
		for _, it := range list {
			if it.began.Before(before) && it.kept.CompareAndSwap(fresh, alone) {
				s.keep(it, true)
			}
		}
	}
}

// run decides until ctx ends, or with errTurned where the processor is paused or resumed.
func (s *partition) run(ctx context.Context) error {
	for {
		if s.turned() {
			return errTurned
		}
		items, behind, err := s.take()
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return nil
		case len(items) > 0:
			s.decideAll(ctx, items)
			continue
		case behind && s.mayLook():
			more, err := s.drain(ctx)
			if err != nil && ctx.Err() == nil {
				// The backlog cannot be read now; it is still there.
				s.p.o.Logger.Warn("cannot read the backlog", "partition", s.index, "error", err)
			}
			if more && err == nil {
				continue
			}
		}
		if !s.sleep(ctx, behind) {
			return nil
		}
	}
}

// finish closes the partition and waits for what is on its way to the disk.
func (s *partition) finish() {
	for {
		s.mu.Lock()
		s.closed = true
		n := s.inFlight + int(s.alone.Load())
		s.mu.Unlock()
		if n == 0 {
			return
		}
		<-s.wake
	}
}

// take hands the loop what waits: new commands and those whose time for another attempt has come.
func (s *partition) take() (items []*item, behind bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failed.Load(); err != nil {
		return nil, false, *err
	}
	if s.full() {
		return nil, s.behind, nil
	}
	now := s.p.o.Now()
	for _, b := range s.blocked {
		if !b.next.After(now) {
			items = append(items, b.items...)
			s.waiting -= len(b.items)
			b.items = nil
		}
	}
	n := min(len(s.queue), s.p.o.MaxBatch)
	if s.gather {
		n = 0
	}
	if items == nil {
		items = s.queue[:n:n]
	} else {
		items = append(items, s.queue[:n]...)
	}
	if n == len(s.queue) {
		s.queue = nil
	} else {
		s.queue = s.queue[n:]
	}
	s.working = items
	return items, s.behind, nil
}

// sleep waits for something to do; false when ctx has ended.
func (s *partition) sleep(ctx context.Context, behind bool) bool {
	var due <-chan time.Time
	if wait, ok := s.nextTry(behind); ok {
		t := time.NewTimer(wait)
		defer t.Stop()
		due = t.C
	}
	select {
	case <-s.wake:
	case <-due:
	case <-ctx.Done():
		return false
	}
	return true
}

// nextTry is when the loop must look again by itself. While no more may be on its way to the disk, the disk wakes it.
func (s *partition) nextTry(behind bool) (time.Duration, bool) {
	if !s.roomInFlight() {
		return 0, false
	}
	wait, ok := s.nextDrain(behind)
	now := s.p.o.Now()
	for _, b := range s.blocked {
		if len(b.items) == 0 {
			continue
		}
		if d := max(b.next.Sub(now), 0); !ok || d < wait {
			wait, ok = d, true
		}
	}
	return wait, ok
}

// drain decides the backlog, and finds out when there is none any more: from then on new commands come through memory.
// It returns false when it must be called again later.
func (s *partition) drain(ctx context.Context) (more bool, err error) {
	// What is decided but not yet on disk would be read as undecided. And what waits for another attempt takes memory.
	if s.waiting > s.maxWaiting() {
		s.ungather()
		return false, nil
	}
	if !s.settled() {
		return false, nil
	}
	s.looks()
	rest := s.alone.Load() == 0
	quiet := rest && s.gathers() // whatever is kept alone from here on is the loop's already
	found := 0
	s.skipped = false
	for page, err := range s.pages(ctx) {
		if err != nil {
			s.asked.Store(true)
			return false, err
		}
		found += len(page)
		s.mu.Lock()
		s.working = page
		s.mu.Unlock()
		s.decideAll(ctx, page)
		for !s.roomInFlight() {
			select {
			case <-s.wake:
			case <-ctx.Done():
				return false, nil
			}
		}
		if s.waiting > s.maxWaiting() || s.turned() {
			break // the rest stays in the store
		}
	}
	if s.found += int64(found); s.found > s.kept.Load() {
		s.foreign = s.p.o.Now()
		s.found = s.kept.Load()
	}
	if s.paused && found > 0 {
		s.asked.Store(true) // the store may not have handed out all at once
	}
	return s.turn(found, rest, quiet), nil
}

// turn lets new commands come through memory again when nothing is left in the store, in two steps: it has them gathered,
// waits for those that are being kept alone, and finds nothing at the next look. rest and quiet say how it was when the
// look began. It returns whether to look again at once.
func (s *partition) turn(found int, rest, quiet bool) (more bool) {
	if found == 0 && rest && !s.skipped {
		s.unspill()
	}
	if s.skipped || !s.mayTurn() || found > s.p.o.MaxBatch {
		s.ungather()
		return found > 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if found == 0 && quiet {
		s.behind, s.gather = false, false
		return true
	}
	s.gather = true
	return found > 0 || s.alone.Load() == 0
}

// ungather leaves to the store what was gathered, behind what was kept there before.
func (s *partition) ungather() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.gather {
		return
	}
	s.gather = false
	for _, it := range s.queue {
		s.hand(it)
	}
	s.queue = nil
}

// mayTurn says whether new commands may be decided without being kept first: not while the processor is paused, and on a
// shared store not where other nodes have just kept some: the next of theirs would make the store refuse ours.
func (s *partition) mayTurn() bool {
	if s.paused || s.turned() {
		return false
	}
	return !s.p.o.Shared || s.p.direct && s.p.o.Now().Sub(s.foreign) >= calm
}

// calm is for how long no other node must have kept a command in a partition before its owner decides its own without
// keeping them first.
const calm = time.Second

// nextDrain is when the loop must look at the backlog again by itself. Of what other nodes keep, the store tells; what was
// skipped is for the blocked streams' own time.
func (s *partition) nextDrain(behind bool) (time.Duration, bool) {
	switch {
	case !behind || s.skipped:
		return 0, false
	case s.paused:
		return max(pausedLook-s.p.o.Now().Sub(s.looked), firstRetry), s.asked.Load()
	case !s.p.o.Shared || s.gathers():
		return firstRetry, true
	case !s.p.direct:
		return 0, false
	}
	return max(calm-s.p.o.Now().Sub(s.foreign), firstRetry), true
}

func (s *partition) gathers() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gather
}

// hold notes a command that is undecided in the store and in the loop's hands; s.mu is held.
func (s *partition) hold(it *item) {
	if s.p.direct {
		s.held[it.cmd.ID] = struct{}{}
	}
}

// unspill forgets which streams had commands in the store, once nothing is left there.
func (s *partition) unspill() {
	for stream, b := range s.blocked {
		if b.spilled = false; len(b.items) == 0 {
			delete(s.blocked, stream)
		}
	}
}

// maxWaiting bounds how much of a backlog is in memory because it waits for another attempt.
func (s *partition) maxWaiting() int { return max(s.p.o.MaxQueue/len(s.p.parts), s.p.o.MaxBatch) }

// settled says whether nothing is on its way to the disk.
func (s *partition) settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inFlight == 0 && s.failed.Load() == nil
}

func (s *partition) roomInFlight() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.full() || s.failed.Load() != nil
}

// full says whether enough is on its way to the disk; s.mu is held.
func (s *partition) full() bool { return s.inFlight >= maxInFlight || s.bytes >= s.maxBytes }

// undecided yields the store's undecided commands as items: the ones in flight where somebody waits for them.
func (s *partition) undecided(ctx context.Context) iter.Seq2[*item, error] {
	return func(yield func(*item, error) bool) {
		for c, err := range s.backlog(ctx) {
			if err != nil {
				yield(nil, err)
				return
			}
			if b := s.blocked[c.Command.Stream]; b.full() {
				s.skipped, b.spilled = true, true
				continue
			}
			it := s.p.newItem(*c.Command, c.Fingerprint, s.p.o.Now())
			it.kept.Store(fromStore)
			it.storedIs(nil)
			it = s.p.flight.hold(it)
			if !yield(it, nil) {
				return
			}
		}
	}
}

// pages groups the undecided commands that the loop does not have yet.
func (s *partition) pages(ctx context.Context) iter.Seq2[[]*item, error] {
	return func(yield func([]*item, error) bool) {
		var page []*item
		size := 0
		for it, err := range s.undecided(ctx) {
			if err != nil {
				// What was read before is ours already: nobody would look at it again.
				if len(page) == 0 || yield(page, nil) {
					yield(nil, err)
				}
				return
			}
			s.mu.Lock()
			had := it.loaded
			it.loaded, it.drained = true, true
			s.hold(it)
			s.mu.Unlock()
			if had {
				continue
			}
			size += len(it.cmd.Data)
			if it.cmd.Body == nil && it.failure == nil {
				it.map_(s.p.registry)
			}
			if page = append(page, it); len(page) >= s.p.o.MaxBatch || size >= s.maxBytes {
				if !yield(page, nil) {
					return
				}
				page, size = nil, 0
			}
		}
		if len(page) > 0 {
			yield(page, nil)
		}
	}
}

// commit hands a batch to the store. The items are settled when it is durable, in the store's goroutine.
func (s *partition) commit(b *millrace.Batch, items []*item, entries []*entry) {
	size, admitted, admittedSize := 0, 0, 0
	for _, it := range items {
		size += len(it.cmd.Data)
		if it.admitted {
			admitted++
			admittedSize += len(it.cmd.Data)
		}
	}
	s.mu.Lock()
	s.inFlight += len(items)
	s.bytes += size
	s.mu.Unlock()
	s.p.store.Commit(b, func(err error) {
		if err != nil {
			s.fail(err)
		}
		// Room comes first: who is told that his command is stored may send the next one.
		s.p.release(admitted, admittedSize)
		for i, it := range items {
			if e := entries[i]; e != nil {
				e.pins.Add(-1)
			}
			it.written(b.Decisions[i].Known, err)
			if err != nil {
				s.lost(it, err)
				continue
			}
			o := b.Decisions[i].Outcome(s.index)
			s.p.settle(it, &o)
		}
		s.p.o.Observer.Committed(len(items))
		s.mu.Lock()
		full := s.full()
		s.inFlight -= len(items)
		s.bytes -= size
		look := full || s.closed || s.behind || s.failed.Load() != nil
		s.mu.Unlock()
		if look {
			s.signal()
		}
	})
}
