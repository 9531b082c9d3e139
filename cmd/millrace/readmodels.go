package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/pgstore"
	"github.com/millrace-io/millrace/projection"
)

// projectionOptions wires the read models.
func (n *node) projectionOptions() projection.Options {
	o := projection.Options{
		Run: n.follow, Paused: n.control.stands, Hold: n.o.holdReadModels, Logger: n.log,
		Repair: func(ctx context.Context, c millrace.Consumer, s millrace.Stream, own []millrace.DocumentName, token uint64) error {
			return feed.Repair(ctx, n.store, n.registry, c, s, own, token)
		},
	}
	if n.cluster != nil {
		o.Node, o.Owned, o.Owners = n.cluster.driver.Node(), n.cluster.feed.Owned, n.cluster.owners
	}
	return o
}

// owners names who makes the documents of each partition, where somebody does.
func (c *cluster) owners(ctx context.Context) (map[int]string, error) {
	all, err := c.driver.Leases(pgstore.Feed).Nodes(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[int]string, len(all))
	for _, l := range all {
		if l.Left > 0 {
			out[l.Partition] = l.Node
		}
	}
	return out, nil
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
	slices.SortFunc(out, func(a, b httpapi.ProjectionStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

func (p projections) model(name string) (*projection.Model, error) {
	m := p.s.Model(name)
	if m == nil {
		return nil, fmt.Errorf("%w: no projection of that name", millrace.ErrNotFound)
	}
	return m, nil
}

// Status implements httpapi.Projections.
func (p projections) Status(ctx context.Context, name string) (httpapi.ProjectionStatus, error) {
	m, err := p.model(name)
	if err != nil {
		return httpapi.ProjectionStatus{}, err
	}
	st, err := m.Status(ctx)
	return projectionStatus(&st), err
}

// Rebuild implements httpapi.Projections.
func (p projections) Rebuild(ctx context.Context, name string, hold bool) error {
	err := p.ask(name, func(m *projection.Model) error { return m.Rebuild(ctx, hold) })
	if errors.Is(err, httpapi.ErrRebuilding) {
		return nil
	}
	return err
}

// Switch implements httpapi.Projections.
func (p projections) Switch(ctx context.Context, name string, generation uint64) error {
	return p.ask(name, func(m *projection.Model) error { return m.Switch(ctx, generation) })
}

// Discard implements httpapi.Projections.
func (p projections) Discard(ctx context.Context, name string) error {
	return p.ask(name, func(m *projection.Model) error { return m.Discard(ctx) })
}

// Repair implements httpapi.Projections.
func (p projections) Repair(ctx context.Context, name string, s millrace.Stream) error {
	return p.ask(name, func(m *projection.Model) error { return m.Repair(ctx, s) })
}

// askErrors are the errors of what is asked of read models, as the API knows them.
var askErrors = []struct{ is, as error }{
	{projection.ErrBusy, httpapi.ErrRebuilding},
	{projection.ErrPaused, httpapi.ErrPaused},
	{projection.ErrNoGeneration, httpapi.ErrNoGeneration},
	{projection.ErrOtherCode, httpapi.ErrOtherCode},
	{projection.ErrNotByStream, httpapi.ErrNotByStream},
	{projection.ErrNoAnswer, httpapi.ErrNoAnswer},
}

func (p projections) ask(name string, do func(*projection.Model) error) error {
	m, err := p.model(name)
	if err != nil {
		return err
	}
	err = do(m)
	for _, e := range askErrors {
		if errors.Is(err, e.is) {
			return fmt.Errorf("%w: %w", e.as, err)
		}
	}
	return err
}

func projectionStatus(st *projection.Status) httpapi.ProjectionStatus {
	out := httpapi.ProjectionStatus{
		Name: st.Name, Version: st.Version, Code: st.Code, State: "live", Gap: st.Gap, Lag: st.Lag.Seconds(), Parked: st.Parked,
		Cursor: st.Cursor, Generation: st.Generation,
	}
	if p := st.Previous; p != nil {
		out.Previous = &httpapi.PreviousGeneration{Generation: p.Generation, Version: p.Version, Until: p.Until}
	}
	if r := st.Rebuild; r != nil {
		out.Identical, out.Rebuild = r.Identical(), rebuildStatus(r)
		switch {
		case r.Ready:
			out.State = "ready"
		case !r.Done:
			out.State = "rebuilding"
		}
	}
	if st.Switching {
		out.State = "switching"
	}
	for i := range st.Repairs {
		r := &st.Repairs[i]
		one := httpapi.RepairStatus{Stream: r.Stream, Asked: r.Asked, Finished: r.Finished}
		if r.Error != "" {
			one.Error = faultText(r.Reason)
		}
		out.Repairs = append(out.Repairs, one)
	}
	if f := st.LastError; f != nil {
		out.LastError = &httpapi.ProjectionError{What: f.What, At: f.At, Stream: f.Stream, Node: f.Node, Error: faultText(f.Reason)}
	}
	return out
}

func rebuildStatus(r *projection.Rebuild) *httpapi.RebuildStatus {
	out := &httpapi.RebuildStatus{
		Generation: r.Generation, Version: r.Version, Hold: r.Hold, Ready: r.Ready, Started: r.Started, Finished: r.Finished,
		Events: r.Events, Total: r.Total, Done: r.Partitions,
	}
	for _, n := range r.Nodes {
		out.Nodes = append(out.Nodes, httpapi.NodeRebuild{Node: n.Node, Partitions: n.Partitions, Done: n.Done, Events: n.Events, Total: n.Total})
	}
	if r.Error != "" {
		out.Error = faultText(r.Reason)
	}
	if d := r.Differences; d != nil {
		out.Differences = &httpapi.Differences{
			Documents: d.Documents, Unsettled: d.Unsettled, Uncompared: d.Uncompared, Tables: []httpapi.TableDifferences{},
		}
		for _, t := range d.Tables {
			out.Differences.Tables = append(out.Differences.Tables, httpapi.TableDifferences{
				Table: t.Table, Missing: t.Missing, Extra: t.Extra, Different: t.Different, Examples: t.Examples,
			})
		}
	}
	return out
}

// faultText says to a client why something failed. The cause itself is in the log and in the store: it may hold values and
// paths.
func faultText(reason string) string {
	switch reason {
	case projection.ReasonIncomplete:
		return "the projection failed for events of streams that the live documents follow; the log has the cause"
	case projection.ReasonFull:
		return "the disk is full or nearly so"
	case projection.ReasonCorrupt:
		return "the store holds something that cannot be read; the log has the cause"
	case projection.ReasonBehind:
		return "it did not come up to the live one: no node runs the code that could continue it"
	case projection.ReasonReplaced:
		return "another version of the code took its place"
	case projection.ReasonDiscarded:
		return "it was discarded"
	case millrace.ReasonHandler:
		return "the projection failed for an event of the stream, which waits; the log has the cause"
	}
	return "it could not go on; the log has the cause"
}
