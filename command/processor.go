package command

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
)

// Processor accepts commands and decides them. It implements [millrace.Intake].
type Processor struct {
	o        Options
	store    *millrace.Store
	registry *millrace.Registry
	loader   loader
	flight   *flight
	parts    []*partition
	// inMemory and inBytes count the commands that came in and are neither decided nor left to the store, which
	// MaxQueue and maxQueueBytes bound. A backlog that is read back does not count: it must not keep new ones out.
	inMemory atomic.Int64
	inBytes  atomic.Int64
	closed   atomic.Bool
	serving  sync.WaitGroup
	paused   atomic.Bool
	// direct: the store refuses what would come before other nodes' commands, so that the owner of a partition may decide
	// its own without keeping them first.
	direct bool
	// guesses is nil where nothing is guessed: where not direct.
	guesses *guesses
	// trusting takes sightings for true, for the test that shows what comes of it.
	trusting bool
}

var _ millrace.Intake = (*Processor)(nil)

// New makes a processor. It accepts from now on and decides while Run runs. A store has one processor.
func New(store *millrace.Store, registry *millrace.Registry, opts *Options) *Processor {
	p := &Processor{
		o: opts.withDefaults(), store: store, registry: registry,
		loader: loader{store: store, registry: registry}, flight: newFlight(),
	}
	if p.direct = p.o.Shared && store.Shared(); p.direct {
		p.guesses = newGuesses()
	}
	p.paused.Store(p.o.Paused)
	for i := range store.Partitions() {
		p.parts = append(p.parts, newPartition(p, i))
	}
	return p
}

// newCache is a partition's share.
func (p *Processor) newCache(d *drops) *cache {
	n := p.store.Partitions()
	c := newCache(max(p.o.CacheStreams/n, 16), p.o.CacheBytes/n)
	c.drops = d
	return c
}

// Run decides until ctx ends. Then it finishes what is in its hands, and leaves the rest in the store for the next
// run. It returns nil, or why the store failed.
func (p *Processor) Run(ctx context.Context) error {
	defer p.end()
	g, gctx := errgroup.WithContext(ctx)
	if p.o.Shared {
		g.Go(func() error { return p.watch(gctx) })
	}
	for _, part := range p.parts {
		if p.o.Shared {
			break
		}
		g.Go(func() error { return part.loop(gctx) })
	}
	g.Go(func() error { return p.rescue(gctx) })
	return g.Wait()
}

// end closes the door, waits for what is on its way to the disk, and tells everybody who still waits.
func (p *Processor) end() {
	p.closed.Store(true)
	p.serving.Wait()
	for _, part := range p.parts {
		part.finish()
	}
	p.flight.drain(func(it *item) {
		it.storedIs(millrace.ErrClosed)
		it.doneIs(nil)
	})
}

// rescue keeps commands alone that have waited too long for their loop, so that a slow decision does not keep others
// from being accepted.
func (p *Processor) rescue(ctx context.Context) error {
	after := stuckAfter
	if p.o.Shared {
		after = stuckAfterShared
	}
	t := time.NewTicker(after)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		before := p.o.Now().Add(-after)
		for _, part := range p.parts {
			part.rescue(before)
		}
	}
}

// Queued is how many commands are in memory on their way to a decision, without those that were read back from a
// backlog.
func (p *Processor) Queued() int64 { return p.inMemory.Load() }

// settle ends an item with its outcome.
func (p *Processor) settle(it *item, o *millrace.Outcome) {
	p.flight.leave(it)
	it.doneIs(o)
	it.storedIs(nil)
	p.o.Observer.Decided(o.Stream.Category(), o.Status, p.o.Now().Sub(it.cmd.Time))
}

// lose ends an item whose commit failed. A command that was on disk before stays accepted.
func (p *Processor) lose(it *item, err error) {
	p.flight.leave(it)
	it.storedIs(err)
	it.doneIs(nil)
}
