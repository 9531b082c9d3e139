package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/api"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/deadletter"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/domain/system"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/letter"
	"github.com/millrace-io/millrace/internal/metrics"
	"github.com/millrace-io/millrace/internal/notice"
	"github.com/millrace-io/millrace/notify"
	"github.com/millrace-io/millrace/projection"
)

// node is a running Millrace without its listeners: everything is wired here.
type node struct {
	store       *millrace.Store
	registry    *millrace.Registry
	processor   *command.Processor
	projections *projection.Service
	metrics     *metrics.Metrics
	letters     *deadletter.Service
	notifier    *notifier  // nil where nobody is told anything
	fulfiller   *fulfiller // nil where orders wait for commands
	api         *httpapi.API
	cluster     *cluster // nil on a store of one process
	control     *controls
	log         *slog.Logger
	o           nodeOptions
}

type nodeOptions struct {
	pauseCommand, pauseFeed bool
	maxBacklog              int64
	holdReadModels          bool
	cluster                 *cluster
	roles                   roles
	notify                  map[notice.Channel]notify.Send
	fulfil                  *fulfilment
	log                     *slog.Logger
}

// newNode wires a store to everything else.
func newNode(ctx context.Context, store *millrace.Store, o nodeOptions) (*node, error) {
	n := &node{store: store, cluster: o.cluster, log: o.log, o: o}
	var err error
	if n.registry, err = millrace.NewRegistry(domains()...); err != nil {
		return nil, err
	}
	v := httpapi.ReadVersion()
	n.metrics = metrics.New(metrics.Version{Version: v.Version, Revision: v.Revision, Go: v.Go},
		append(system.Categories(), order.CategoryOrder, order.CategoryStock, order.CategoryReturn, order.CategoryNotification), time.Now)
	n.processor = newProcessor(store, n.registry, command.Options{
		Paused: o.pauseCommand, Always: []string{system.CategoryConsumer}, MaxBacklog: o.maxBacklog, Observer: n.metrics, Logger: o.log,
	}, o.cluster)
	if n.control, err = newControls(ctx, n); err != nil {
		return nil, err
	}
	n.projections, err = projection.New(ctx, store, readModels(), n.projectionOptions())
	if err != nil {
		return nil, err
	}
	n.letters = deadletter.New(store, n.registry, n.processor, n.projections.Model(letter.Projection), &deadletter.Options{Logger: o.log})
	if len(o.notify) > 0 {
		n.notifier = newNotifier(n, o.notify)
	}
	if o.fulfil != nil {
		n.fulfiller = &fulfiller{n: n, f: o.fulfil}
	}
	n.api, err = httpapi.New(httpapi.Config{
		Store: store, Registry: n.registry, Intake: n.processor,
		Resources: n.resources(), Reports: n.reports(), Projections: projections{n.projections},
		DeadLetters: n.letters, System: system.Categories(), Internal: order.Internal(), Own: order.Own, Consumers: consumers{n}, Control: n.control, Processes: n.processes(),
		Nodes:       n.nodes(),
		Unavailable: []error{millrace.ErrUnavailable, projection.ErrReplaced},
		Document:    api.OpenAPI, Logger: o.log,
		Observe: func(r httpapi.Observation) { n.metrics.Request(r.Route, r.Method, r.Status, r.Duration) },
	})
	if err != nil {
		return nil, err
	}
	n.metrics.Watch(metrics.Gauges{
		Queued:  func() float64 { return float64(n.processor.Queued()) },
		Backlog: func() float64 { return float64(store.Backlog()) },
		Gap:     n.gaps,
		Letters: newOpenLetters(n).read,
		Paused:  n.control.paused,
		Unowned: n.unowned,
		Head: func() float64 {
			sum := uint64(0)
			for _, p := range store.Head().Positions {
				sum += p
			}
			return float64(sum)
		},
		Writable: func() float64 {
			if store.Writable() != nil {
				return 0
			}
			return 1
		},
	})
	return n, nil
}

// domains are the rules of all that the log holds.
func domains() []millrace.Definition { return append(order.Domains(), system.Domains()...) }

// readModels are those of all that the log holds.
func readModels() []millrace.Projection { return append(order.Projections(), system.Projections()...) }

// follow runs a consumer of the role feed, while it does not stand still.
func (n *node) follow(ctx context.Context, c millrace.Consumer) error {
	return n.followAs(ctx, c, roleFeed)
}

// followAs runs a consumer of a role.
func (n *node) followAs(ctx context.Context, c millrace.Consumer, role string) error {
	run := func(ctx context.Context, o *feed.Options) error {
		o.Observer, o.Logger = n.metrics, n.log
		return feed.New(n.store, n.registry, c, o).Run(ctx)
	}
	return n.control.follow(ctx, c.Name, func(ctx context.Context) error {
		if n.cluster != nil {
			leases := n.cluster.feed
			if role == roleNotify {
				leases = n.cluster.notify
			}
			return n.cluster.follow(ctx, leases, run, n.log)
		}
		return run(ctx, &feed.Options{})
	})
}

// run decides and follows until ctx ends.
func (n *node) run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	// Calls that are on their way are recorded before the deciding ends, or the next start makes them again.
	deciding, stop := context.WithCancel(context.WithoutCancel(gctx))
	var calling sync.WaitGroup
	for _, run := range n.callers() {
		calling.Add(1)
		g.Go(func() error {
			defer calling.Done()
			return run(gctx)
		})
	}
	g.Go(func() error {
		defer stop()
		<-gctx.Done()
		calling.Wait()
		return nil
	})
	switch cl := n.cluster; {
	case cl == nil:
		g.Go(func() error { return n.processor.Run(deciding) })
	case n.o.roles.has(roleCommand):
		g.Go(func() error { return cl.decide(deciding) })
	default:
		g.Go(func() error { return cl.accept(deciding) })
	}
	// Where the node does not have the role feed it owns nothing there, and only sees which generations are live.
	g.Go(func() error { return n.projections.Run(gctx) })
	if n.o.roles.has(roleFeed) {
		g.Go(func() error { return n.follow(gctx, command.Snapshots(n.store, n.registry)) })
		g.Go(func() error { return n.followLetters(gctx) })
	}
	n.lead(gctx, g)
	g.Go(func() error { return n.control.run(gctx) })
	return g.Wait()
}

// tells says whether this node tells customers.
func (n *node) tells() bool { return n.notifier != nil && n.o.roles.has(roleNotify) }

// callers are what does something in the world outside.
func (n *node) callers() (all []func(context.Context) error) {
	switch {
	case n.notifier == nil:
	case n.tells():
		all = append(all, n.notifier.run)
	default: // what this node accepts from now on is told by those that come
		all = append(all, func(ctx context.Context) error {
			_, err := n.notifier.since(ctx)
			return err
		})
	}
	if n.fulfiller != nil && n.o.roles.has(roleFeed) {
		all = append(all, n.fulfiller.run)
	}
	return all
}

// lead takes the node's share of the partitions in each of its roles beside the deciding.
func (n *node) lead(ctx context.Context, g *errgroup.Group) {
	cl := n.cluster
	if cl == nil {
		return
	}
	if n.o.roles.has(roleIntake) {
		g.Go(func() error { return cl.attend(ctx) })
	}
	if n.o.roles.has(roleFeed) {
		g.Go(func() error { return cl.lead(ctx, cl.feed) })
	}
	if n.tells() {
		g.Go(func() error { return cl.lead(ctx, cl.notify) })
	}
}

// admin is the handler for operators.
func (n *node) admin() *httpapi.Admin {
	return httpapi.NewAdmin(&httpapi.AdminOptions{
		Metrics: n.metrics.Handler(),
		Ready: []httpapi.Check{
			{Name: "store", Run: func(context.Context) error {
				// A full disk is an operator's matter; reads go on, so the node stays in.
				if err := n.store.Writable(); err != nil && !errors.Is(err, millrace.ErrFull) {
					return err
				}
				return nil
			}},
		},
		// What nobody does elsewhere is no reason to take no requests here: they are kept, and what there is can be read.
		Notes: n.notes(),
	})
}

// notes are what /readyz tells of beside.
func (n *node) notes() []httpapi.Check {
	cl := n.cluster
	if cl == nil {
		return nil
	}
	return []httpapi.Check{
		{Name: roleCommand, Run: func(ctx context.Context) error {
			return cl.unattended(ctx, roleCommand, "commands are kept and not decided")
		}},
		{Name: roleFeed, Run: func(ctx context.Context) error { return cl.unattended(ctx, roleFeed, "read models stand still") }},
	}
}

// unowned counts the partitions without an owner by role, for metrics; none where the database is away.
func (n *node) unowned() map[string]float64 {
	out := map[string]float64{}
	if n.cluster == nil {
		return out
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaseEvery)
	defer cancel()
	all, err := n.cluster.unowned(ctx)
	if err != nil {
		return out
	}
	for role, partitions := range all {
		out[role] = float64(partitions)
	}
	return out
}

// gaps counts the events between each consumer and the head.
func (n *node) gaps() map[string]float64 {
	names := consumers{n}.Names()
	head := n.store.Head()
	out := make(map[string]float64, len(names))
	for name, consumer := range names {
		c, err := n.store.Checkpoints(context.Background(), consumer)
		if err != nil {
			continue
		}
		gap := uint64(0)
		for p, pos := range head.Positions {
			gap += pos - min(c.Position(p), pos)
		}
		out[name] = float64(gap)
	}
	return out
}

// caughtUp waits until all read models have seen what is in the log now.
func (n *node) caughtUp(ctx context.Context) error {
	head := n.store.Head()
	for _, name := range n.projections.Consumers() {
		if err := n.store.Wait(ctx, name, head); err != nil {
			return err
		}
	}
	return nil
}
