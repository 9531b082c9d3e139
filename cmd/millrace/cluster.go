package main

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/lease"
	"github.com/millrace-io/millrace/pgstore"
)

const (
	// leaseTTL and leaseEvery: five renewals may fail; a node that vanished is replaced within 7 s, one that stops within
	// a second.
	leaseTTL   = 6 * time.Second
	leaseEvery = time.Second
	// sharedLazy is how long a checkpoint that changes no document may be known to this node only: who waits for it on
	// another node waits so much longer. Every consumer writes one so often while events come that it does not want.
	sharedLazy = 200 * time.Millisecond
	// sharedGather is what a read model of a busy node may be behind for the sake of larger commits, sharedHurry the same
	// while somebody on this node waits for it, and sharedWorkers how many commit at a time: a transaction costs as much as
	// the documents of some twenty orders.
	sharedGather  = 50 * time.Millisecond
	sharedHurry   = 10 * time.Millisecond
	sharedWorkers = 1
	// followAgain is the pause before consumers begin anew that the store refused.
	followAgain = 200 * time.Millisecond
)

// cluster is what a node has that shares its store with others.
type cluster struct {
	driver *pgstore.Driver
	leases *lease.Manager // of the deciding
	feed   *lease.Manager
	notify *lease.Manager
	calls  map[string]*underway // by role
	// processor decides the partitions that this node owns. The store is opened before there is one.
	processor atomic.Pointer[command.Processor]
	// life ends when the node is told to stop, long before its last request is answered.
	life context.Context //nolint:containedctx // the command's, as the store's opening has it
}

// openShared opens a store in PostgreSQL that several nodes share, and what a node has for it. Leases and what is told of
// undecided commands are the node's; all else is as o says.
func openShared(ctx context.Context, dsn string, o pgstore.Options) (*millrace.Store, *cluster, error) {
	c := &cluster{life: ctx, calls: map[string]*underway{roleFeed: newUnderway(), roleNotify: newUnderway()}}
	o.LeaseTTL = leaseTTL
	o.Undecided = func(partition int) {
		if p := c.processor.Load(); p != nil {
			p.Look(partition)
		}
	}
	store, err := pgstore.Open(ctx, dsn, &o)
	if err != nil {
		return nil, nil, err
	}
	c.driver = store.Driver().(*pgstore.Driver) //nolint:forcetypeassert // it has just been opened
	c.leases = lease.New(c.driver, lease.Options{
		Node: c.driver.Node(), Partitions: store.Partitions(), Every: leaseEvery, Logger: o.Logger,
		Serve: func(ctx context.Context, partition int, epoch uint64) error {
			store.Own(partition, epoch)
			return c.processor.Load().Serve(ctx, partition)
		},
	})
	c.newLeases(store.Partitions(), lease.Options{Logger: o.Logger})
	return store, c, nil
}

// sqlReports are the views of all domains for those who ask the database.
func sqlReports() []millrace.Reports { return []millrace.Reports{order.Reports()} }

// newProcessor makes the processor that decides the commands of a store; c is nil on a store of one process.
func newProcessor(store *millrace.Store, registry *millrace.Registry, o command.Options, c *cluster) *command.Processor {
	o.Shared = c != nil
	p := command.New(store, registry, &o)
	if c != nil {
		c.processor.Store(p)
	}
	return p
}

// accept has a node that decides nothing accept commands.
func (c *cluster) accept(ctx context.Context) error { return c.processor.Load().Run(ctx) }

// decide decides the partitions that this node owns. They are handed over as soon as the node is told to stop, while it
// still answers requests: one that takes long, or a connection on which none ever comes, must not keep others from
// deciding. The processor stops last: what is on its way then is another node's, and who waits for it here is told.
func (c *cluster) decide(ctx context.Context) error {
	g, gctx := errgroup.WithContext(context.WithoutCancel(ctx))
	inner, stop := context.WithCancel(gctx)
	g.Go(func() error { return c.processor.Load().Run(inner) })
	g.Go(func() error {
		defer stop()
		led, end := context.WithCancel(gctx)
		defer end()
		defer context.AfterFunc(ctx, end)()
		if err := c.lead(led, c.leases); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-gctx.Done():
		}
		return nil
	})
	return g.Wait()
}

// follow runs a consumer over the partitions that this node owns in a role, whichever they are, until ctx ends.
func (c *cluster) follow(ctx context.Context, leases *lease.Manager, run func(ctx context.Context, o *feed.Options) error, log *slog.Logger) error {
	for ctx.Err() == nil {
		owned, changed := leases.Owned()
		if len(owned) == 0 {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		inner, stop := context.WithCancel(ctx)
		go func() {
			select {
			case <-changed:
				stop()
			case <-inner.Done():
			}
		}()
		err := run(inner, &feed.Options{Partitions: owned, Lazy: sharedLazy, Gather: sharedGather, Hurry: sharedHurry, Workers: sharedWorkers})
		stop()
		if err == nil {
			continue
		}
		// Another owner, or a database that is away: the leases will tell.
		if !errors.Is(err, millrace.ErrFenced) && !millrace.IsTransient(err) {
			return err
		}
		log.Warn("a consumer begins anew", "error", err)
		t := time.NewTimer(followAgain)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
	return nil
}
