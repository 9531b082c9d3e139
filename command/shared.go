package command

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-io/millrace"
)

// watchEvery is how often the outcomes of commands are asked for that another node decides and somebody here waits for.
const watchEvery = 20 * time.Millisecond

// Serve decides the commands of a partition that this node owns, on a shared store, until ctx ends, or with an error
// where the store refuses: [millrace.ErrFenced] where the partition has another owner by now. What it had in its hands
// is left in the store for the next owner, and whoever waits here for an outcome gets it from there. The caller has told
// the store of the ownership ([millrace.Store.Own]). A partition is served once at a time, and not after Run has ended:
// ctx must end no later than Run's.
func (p *Processor) Serve(ctx context.Context, partition int) error {
	if !p.o.Shared {
		return errors.New("command: Serve is for shared stores")
	}
	p.serving.Add(1)
	defer p.serving.Done()
	s := p.parts[partition]
	s.refused = time.Time{} // what another ownership met is over
	for {
		s.begin()
		s.serve()
		err := s.run(ctx)
		s.retire()
		switch {
		case errors.Is(err, errTurned):
		case err == nil, ctx.Err() != nil && errors.Is(err, millrace.ErrConflict): // what was refused is in the store by now
			return nil
		case ctx.Err() == nil && errors.Is(err, millrace.ErrConflict) && s.calmed():
			p.o.Logger.Debug("other nodes' commands come first", "partition", partition, "error", err)
			p.store.Reload(partition)
		default:
			return fmt.Errorf("partition %d: %w", partition, err)
		}
	}
}

// serve begins: the backlog comes first.
func (s *partition) serve() {
	s.kept.Store(s.alone.Load())
	s.found = 0
	s.times++
	s.served.Store(s.times)
	s.signal()
}

// calmed notes that the store has refused a commit because of other nodes' commands. It is false where that happens again at
// once: then something else is wrong.
func (s *partition) calmed() bool {
	now := s.p.o.Now()
	again := now.Sub(s.refused) < calm
	s.refused, s.foreign = now, now
	return !again
}

// Look makes the loop of a partition look for commands that other nodes have kept.
func (p *Processor) Look(partition int) {
	s := p.parts[partition]
	s.mu.Lock()
	if !s.behind {
		s.behind, s.gather = true, true
	}
	s.mu.Unlock()
	s.asked.Store(true)
	s.signal()
}

// lost ends an item whose commit failed. On a shared store another node may have the partition by now: the command is
// kept for it.
func (s *partition) lost(it *item, err error) {
	if !s.p.o.Shared || errors.Is(err, millrace.ErrClosed) || errors.Is(err, millrace.ErrFailed) || errors.Is(err, millrace.ErrInvalid) {
		s.p.lose(it, err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	it.admitted = false // the commit has counted it out
	if errors.Is(err, millrace.ErrUnavailable) && it.kept.Load() == withFate {
		s.p.lose(it, err) // it was tried for as long as a client waits
		return
	}
	s.hand(it)
}

// handOr leaves an item to the store, or loses it where the store was away for as long as a client waits; s.mu is held.
func (s *partition) handOr(it *item, away error) {
	if away != nil && it.kept.CompareAndSwap(fresh, withFate) {
		s.discount(it)
		s.p.lose(it, away)
		return
	}
	s.hand(it)
}

// hand leaves an item to the store; s.mu is held.
func (s *partition) hand(it *item) {
	it.loaded, it.drained, it.blocked = false, false, false
	delete(s.held, it.cmd.ID)
	if it.kept.CompareAndSwap(fresh, alone) || it.kept.CompareAndSwap(withFate, alone) {
		s.keep(it, false)
		return
	}
	// It is in the store. Those who wait for it find it among the ones in flight.
	s.kept.Add(1)
	s.discount(it)
	s.p.flight.unhold(it)
}

// retire gives everything back that the loop has: first what is on its way and may be refused, then what it had taken and
// not begun with, then what waited behind that. Until then new commands wait in the queue, so that those that came
// together stay in their order.
func (s *partition) retire() {
	var away error
	if err := s.failed.Load(); err != nil && errors.Is(*err, millrace.ErrUnavailable) {
		away = *err
	}
	s.served.Store(0)
	s.mu.Lock()
	s.behind, s.gather = true, true
	for s.inFlight > 0 {
		s.mu.Unlock()
		<-s.wake
		s.mu.Lock()
	}
	for _, it := range s.working {
		s.handOr(it, away)
	}
	for _, b := range s.blocked {
		for _, it := range b.items {
			s.hand(it)
		}
	}
	for _, it := range s.queue {
		s.handOr(it, away)
	}
	s.queue, s.working = nil, nil
	s.gather = false
	for s.alone.Load() > 0 {
		s.mu.Unlock()
		<-s.wake
		s.mu.Lock()
	}
	clear(s.held)
	s.mu.Unlock()
	clear(s.blocked)
	clear(s.versions)
	s.waiting, s.skipped = 0, false
	s.cache = s.p.newCache(s.drops)
	if s.p.o.Shared {
		s.failed.Store(nil) // where the store is this process's own it is final
	}
}

// watch asks for the outcomes that other nodes decide: for all of them together, as each question is a round trip.
func (p *Processor) watch(ctx context.Context) error {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		its := p.flight.elsewhere()
		qs := make([]millrace.Inquiry, len(its))
		for i, it := range its {
			qs[i] = millrace.Inquiry{ID: it.cmd.ID, Decided: true}
		}
		for i, f := range p.store.Lookups(ctx, qs) {
			// Where the store is away the next round asks again.
			if f.Err == nil && f.Outcome.Done() {
				p.flight.leave(its[i])
				its[i].doneIs(&f.Outcome)
			}
		}
	}
}

// unhold takes an item off the loop that is in the store. It stays for those who wait.
func (f *flight) unhold(it *item) {
	s := f.shard(it.cmd.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	it.held = false
	if it.kept.Load() == fromStore && it.waiters == 0 && s.items[it.cmd.ID] == it {
		delete(s.items, it.cmd.ID)
	}
}

// elsewhere are the items that are in the store and in no loop's hands here.
func (f *flight) elsewhere() []*item {
	var out []*item
	for i := range f.shards {
		s := &f.shards[i]
		s.mu.Lock()
		for _, it := range s.items {
			if !it.held && it.isStored.Load() && !it.ended.Load() {
				out = append(out, it)
			}
		}
		s.mu.Unlock()
	}
	return out
}
