// Package nodes runs nodes of a shared store within one process, for tests. Each has a connection pool, leases and a processor
// of its own, as a process of serve --store has, and one set of leases for deciding and following.
package nodes

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/lease"
	"github.com/millrace-io/millrace/pgstore"
)

// Node is one of several that share a database: it decides the partitions that it leases.
type Node struct {
	Store  *millrace.Store // whoever has opened the node closes it
	Intake *command.Processor
	Leases *lease.Manager

	registry *millrace.Registry
}

// renewals is how often a lease is renewed within its time: a busy machine may miss most of them, and shares are looked at as
// often, which is what tests wait for.
const renewals = 10

// Open opens a node on a database; it owns nothing until Run. The options' name, number of partitions and time of a lease must be
// set, and Undecided is the node's own. Errors: those of [pgstore.Open].
func Open(ctx context.Context, dsn string, registry *millrace.Registry, o pgstore.Options) (*Node, error) {
	n := &Node{registry: registry}
	ready := make(chan struct{}) // the store is opened before there is a processor
	o.Undecided = func(partition int) { <-ready; n.Intake.Look(partition) }
	var err error
	if n.Store, err = pgstore.Open(ctx, dsn, &o); err != nil {
		return nil, err
	}
	n.Intake = command.New(n.Store, registry, &command.Options{Shared: true})
	close(ready)
	n.Leases = lease.New(n.Store.Driver().(*pgstore.Driver), lease.Options{ //nolint:forcetypeassert // it has just been opened
		Node: o.Node, Partitions: o.Partitions, Every: o.LeaseTTL / renewals,
		Serve: func(ctx context.Context, partition int, epoch uint64) error {
			n.Store.Own(partition, epoch)
			return n.Intake.Serve(ctx, partition)
		},
	})
	return n, nil
}

// Run takes the node's share of the partitions and decides them until ctx ends; then it hands them over (nil).
func (n *Node) Run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.Intake.Run(gctx) })
	g.Go(func() error { return n.Leases.Run(gctx) })
	return g.Wait()
}

// Follow runs a consumer over the partitions that the node leases until ctx ends.
func (n *Node) Follow(ctx context.Context, c millrace.Consumer, o feed.Options) error {
	return Follow(ctx, n.Leases, func(ctx context.Context, owned map[int]uint64) error {
		o.Partitions = owned
		return feed.New(n.Store, n.registry, c, &o).Run(ctx)
	})
}

// Follow calls run with the partitions that are leased, and their epochs, until ctx ends: again whenever these are others, and
// after faults that pass or that only say so. Any other fault ends it.
func Follow(ctx context.Context, leases *lease.Manager, run func(ctx context.Context, owned map[int]uint64) error) error {
	for ctx.Err() == nil {
		owned, changed := leases.Owned()
		inner, stop := context.WithCancel(ctx)
		go func() {
			select {
			case <-changed:
				stop()
			case <-inner.Done():
			}
		}()
		var err error
		if len(owned) > 0 {
			err = run(inner, owned)
		} else {
			<-inner.Done()
		}
		stop()
		if err != nil && !errors.Is(err, millrace.ErrFenced) && !millrace.IsTransient(err) {
			return err
		}
	}
	return nil
}
