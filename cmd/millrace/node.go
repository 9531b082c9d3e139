package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/api"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/metrics"
	"github.com/millrace-io/millrace/projection"
)

// node is a running Millrace without its listeners: everything is wired here.
type node struct {
	store       *millrace.Store
	registry    *millrace.Registry
	processor   *command.Processor
	projections *projection.Service
	metrics     *metrics.Metrics
	api         *httpapi.API
	cluster     *cluster // nil on a store of one process
	log         *slog.Logger
	o           nodeOptions
}

type nodeOptions struct {
	pauseCommand, pauseFeed bool
	maxBacklog              int64
	cluster                 *cluster
	log                     *slog.Logger
}

// newNode wires a store to everything else.
func newNode(ctx context.Context, store *millrace.Store, o nodeOptions) (*node, error) {
	n := &node{store: store, cluster: o.cluster, log: o.log, o: o}
	var err error
	if n.registry, err = millrace.NewRegistry(order.Domains()...); err != nil {
		return nil, err
	}
	v := httpapi.ReadVersion()
	n.metrics = metrics.New(metrics.Version{Version: v.Version, Revision: v.Revision, Go: v.Go},
		[]string{order.CategoryOrder, order.CategoryStock, order.CategoryReturn}, time.Now)
	n.processor = newProcessor(store, n.registry, command.Options{
		Paused: o.pauseCommand, MaxBacklog: o.maxBacklog, Observer: n.metrics, Logger: o.log,
	}, o.cluster)
	n.projections, err = projection.New(ctx, store, order.Projections(), projection.Options{
		Run: n.follow, Paused: o.pauseFeed, Shared: o.cluster != nil, Logger: o.log,
	})
	if err != nil {
		return nil, err
	}
	n.api, err = httpapi.New(httpapi.Config{
		Store: store, Registry: n.registry, Intake: n.processor,
		Resources: n.resources(), Reports: n.reports(), Projections: projections{n.projections},
		Nodes:       n.nodes(),
		Unavailable: []error{millrace.ErrUnavailable},
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

// follow runs a consumer.
func (n *node) follow(ctx context.Context, c millrace.Consumer) error {
	run := func(ctx context.Context, o *feed.Options) error {
		o.Observer, o.Logger = n.metrics, n.log
		return feed.New(n.store, n.registry, c, o).Run(ctx)
	}
	if n.cluster != nil {
		return n.cluster.follow(ctx, run, n.log)
	}
	return run(ctx, &feed.Options{})
}

// run decides and follows until ctx ends.
func (n *node) run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	if n.cluster == nil {
		g.Go(func() error { return n.processor.Run(gctx) })
	} else {
		g.Go(func() error { return n.cluster.decide(gctx) })
	}
	g.Go(func() error { return n.projections.Run(gctx) })
	if !n.o.pauseFeed {
		g.Go(func() error { return n.follow(gctx, command.Snapshots(n.store, n.registry)) })
	}
	return g.Wait()
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
	})
}

// gaps counts the events between each consumer and the head.
func (n *node) gaps() map[string]float64 {
	consumers := n.projections.Consumers()
	consumers[command.SnapshotsName] = command.SnapshotsName
	head := n.store.Head()
	out := make(map[string]float64, len(consumers))
	for name, consumer := range consumers {
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

// projections shows the service to the API.
type projections struct{ s *projection.Service }

// List implements httpapi.Projections.
func (p projections) List(ctx context.Context) ([]httpapi.ProjectionStatus, error) {
	all, err := p.s.List(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]httpapi.ProjectionStatus, 0, len(all))
	for i := range all {
		out = append(out, projectionStatus(&all[i]))
	}
	slices.SortFunc(out, func(a, b httpapi.ProjectionStatus) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Status implements httpapi.Projections.
func (p projections) Status(ctx context.Context, name string) (httpapi.ProjectionStatus, error) {
	m := p.s.Model(name)
	if m == nil {
		return httpapi.ProjectionStatus{}, fmt.Errorf("%w: no projection of that name", millrace.ErrNotFound)
	}
	st, err := m.Status(ctx)
	return projectionStatus(&st), err
}

// Rebuild implements httpapi.Projections.
func (p projections) Rebuild(_ context.Context, name string) error {
	m := p.s.Model(name)
	if m == nil {
		return fmt.Errorf("%w: no projection of that name", millrace.ErrNotFound)
	}
	switch err := m.Rebuild(); {
	case errors.Is(err, projection.ErrBusy):
		return nil
	case errors.Is(err, projection.ErrShared):
		return fmt.Errorf("%w: %w", httpapi.ErrShared, err)
	case errors.Is(err, projection.ErrPaused):
		return fmt.Errorf("%w: %w", httpapi.ErrPaused, err)
	default:
		return err
	}
}

func projectionStatus(st *projection.Status) httpapi.ProjectionStatus {
	out := httpapi.ProjectionStatus{
		Name: st.Name, Version: st.Version, State: "live", Gap: st.Gap, Parked: st.Parked, Cursor: st.Cursor, Generation: st.Generation,
	}
	if r := st.Rebuild; r != nil {
		out.Identical = r.Identical
		if !r.Done {
			out.State = "rebuilding"
		}
		out.Rebuild = &httpapi.RebuildStatus{
			Generation: r.Generation, Started: r.Started, Finished: r.Finished, Events: r.Events, Error: rebuildFault(r.Cause),
		}
	}
	return out
}

// rebuildFault says to a client why a rebuild failed. The cause itself is in the log: it may hold values and paths.
func rebuildFault(cause error) string {
	var incomplete *projection.IncompleteError
	switch {
	case cause == nil:
		return ""
	case errors.As(cause, &incomplete):
		return fmt.Sprintf("the projection failed for events of %d streams that the live documents follow; the log has the cause", incomplete.Streams)
	case errors.Is(cause, millrace.ErrFull):
		return "the disk is full or nearly so"
	case errors.Is(cause, millrace.ErrCorrupt):
		return "the store holds something that cannot be read; the log has the cause"
	}
	return "it could not go on; the log has the cause"
}
