package command

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
)

// watchEvery is how often the outcomes of commands are asked for that another node decides and somebody here waits for.
const watchEvery = 20 * time.Millisecond

// watchers is how many of them are asked for at a time; a store answers those who ask together by one query.
const watchers = 64

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
	if p.o.Paused {
		<-ctx.Done()
		return nil
	}
	s := p.parts[partition]
	s.signal() // the backlog comes first
	err := s.run(ctx)
	s.retire()
	if err != nil {
		return fmt.Errorf("partition %d: %w", partition, err)
	}
	return nil
}

// Look makes the loop of a partition look for commands that other nodes have kept.
func (p *Processor) Look(partition int) { p.parts[partition].signal() }

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
	s.hand(it)
}

// hand leaves an item to the store; s.mu is held.
func (s *partition) hand(it *item) {
	it.loaded, it.drained, it.blocked = false, false, false
	if it.kept.CompareAndSwap(fresh, alone) || it.kept.CompareAndSwap(withFate, alone) {
		s.keep(it, false)
		return
	}
	// It is in the store. Those who wait for it find it among the ones in flight.
	s.discount(it)
	s.p.flight.unhold(it)
}

// retire gives everything back that the loop has.
func (s *partition) retire() {
	s.mu.Lock()
	for _, it := range s.queue {
		s.hand(it)
	}
	s.queue, s.working = nil, nil
	for _, b := range s.blocked {
		for _, it := range b.items {
			s.hand(it)
		}
	}
	s.mu.Unlock()
	for {
		s.mu.Lock()
		n := s.inFlight + int(s.alone.Load())
		s.mu.Unlock()
		if n == 0 {
			break
		}
		<-s.wake
	}
	clear(s.blocked)
	s.waiting, s.skipped = 0, false
	s.cache = s.p.newCache()
	s.failed.Store(nil)
}

// watch asks for the outcomes that other nodes decide.
func (p *Processor) watch(ctx context.Context) error {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(watchers)
		for _, it := range p.flight.elsewhere() {
			g.Go(func() error {
				o, err := p.store.Lookup(gctx, it.cmd.ID)
				if err != nil {
					return nil //nolint:nilerr // the store is away; the next round asks again
				}
				if o.Done() {
					p.flight.leave(it)
					it.doneIs(&o)
				}
				return nil
			})
		}
		_ = g.Wait() // none of them returns an error
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
