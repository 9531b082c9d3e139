package projection

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace-io/millrace"
)

// IncompleteError says that a rebuild has given streams up that the live documents follow. Switching to it would take
// documents away from readers.
type IncompleteError struct {
	Streams int             // how many
	First   millrace.Stream // one of them; the log has all, with their events
}

func (e *IncompleteError) Error() string {
	return fmt.Sprintf("the handler failed for events of %d streams that the live documents follow, such as %s", e.Streams, e.First)
}

// abandon gives up a rebuild: its documents go, what is live stays, and the status says why. Another may be asked for then.
func (m *Model) abandon(ctx context.Context, next uint64, cause error) {
	if ctx.Err() != nil {
		return // stopped, or the live consumer has failed: the next start begins anew
	}
	if err := m.drop(ctx, next); err != nil {
		if ctx.Err() != nil {
			return
		}
		// They harm nobody: the next rebuild and the next start remove them first of all.
		cause = errors.Join(cause, fmt.Errorf("its documents are still there: %w", err))
	}
	m.mu.Lock()
	m.rebuild.Done, m.rebuild.Finished = true, m.s.o.Now().UTC()
	m.rebuild.Error, m.rebuild.Cause = cause.Error(), cause
	m.mu.Unlock()
	m.s.o.Logger.Error("the rebuild failed, and the read model stays as it was", "projection", m.p.Name, "generation", next, "error", cause)
}

// complete says no to a generation that has given up streams which the live one follows. Streams that both have given up
// are no reason: the rebuild is no worse.
func (m *Model) complete(ctx context.Context, live, next uint64) error {
	after, err := m.parked(ctx, next)
	if err != nil || len(after) == 0 {
		return err
	}
	before, err := m.parked(ctx, live)
	if err != nil {
		return err
	}
	known := make(map[millrace.Stream]bool, len(before))
	for _, s := range before {
		known[s] = true
	}
	after = slices.DeleteFunc(after, func(s millrace.Stream) bool { return known[s] })
	if len(after) == 0 {
		return nil
	}
	return &IncompleteError{Streams: len(after), First: after[0]}
}

func (m *Model) parkedCollection(generation uint64) string {
	return m.name(generation) + "." + millrace.ParkedName
}

// parked are the streams that a generation has given up.
func (m *Model) parked(ctx context.Context, generation uint64) ([]millrace.Stream, error) {
	var streams []millrace.Stream
	for d, err := range m.s.store.Documents(ctx, millrace.Query{Collection: m.parkedCollection(generation), Index: -1, Partition: -1}) {
		if err != nil {
			return nil, err
		}
		streams = append(streams, millrace.Stream(d.ID))
	}
	return streams, nil
}
