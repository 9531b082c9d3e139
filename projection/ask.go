package projection

import (
	"context"
	"fmt"

	"github.com/millrace-io/millrace"
)

// What people ask of a read model. Any node can be asked: the request goes to the coordinator through the store, and returns
// when he has taken it. Errors of all: [ErrNoAnswer], those of the store.

// Rebuild asks for another generation, made by this node's code. With hold it is compared and then kept up to date until
// [Model.Switch] or [Model.Discard]. Errors: [ErrBusy], [ErrPaused].
func (m *Model) Rebuild(ctx context.Context, hold bool) error {
	if m.s.o.Paused(m.p.Name) {
		return ErrPaused
	}
	return m.request(ctx, ask{Kind: askRebuild, Version: m.p.Version, Hold: hold})
}

// Switch asks to make another generation the live one: the one that was built and held (0, or its number), or the one that
// was live before. It must be of the code that this node runs. The switch itself comes a little later, as soon as the
// generation has come up to the live one. Errors: [ErrNoGeneration], [ErrOtherCode], [ErrBusy], [ErrPaused].
func (m *Model) Switch(ctx context.Context, generation uint64) error {
	if m.s.o.Paused(m.p.Name) {
		return ErrPaused
	}
	return m.request(ctx, ask{Kind: askSwitch, Version: m.p.Version, Generation: generation})
}

// Discard removes the generation beside the live one: what is being built or is held, or else the one that was live before.
// Errors: [ErrNoGeneration].
func (m *Model) Discard(ctx context.Context) error {
	return m.request(ctx, ask{Kind: askDiscard})
}

// Repair asks to make the documents of one stream again from its events, and to go on with it where it was given up. The
// status tells what came of it. Errors: [ErrNotByStream], [ErrBusy], [ErrPaused], [ErrOtherCode]; [millrace.ErrInvalid] for
// a stream that the projection does not follow; [millrace.ErrNotFound] for one without events.
func (m *Model) Repair(ctx context.Context, s millrace.Stream) error {
	if m.s.o.Paused(m.p.Name) {
		return ErrPaused
	}
	if m.p.OfStream == nil || m.s.o.Repair == nil {
		return ErrNotByStream
	}
	c := millrace.Consumer{Categories: m.p.Categories}
	if !c.Wants(s.Category()) {
		return fmt.Errorf("%w: the projection does not follow streams of this category", millrace.ErrInvalid)
	}
	switch version, err := m.s.store.Version(ctx, s); {
	case err != nil:
		return err
	case version == 0:
		return fmt.Errorf("%w: no such stream", millrace.ErrNotFound)
	}
	return m.request(ctx, ask{Kind: askRepair, Version: m.p.Version, Stream: string(s)})
}

// repaired notes what came of a repair.
func (m *Model) repaired(st *state, id, reason, cause, node string) {
	for i := range st.Repairs {
		r := &st.Repairs[i]
		if r.ID != id || r.Done() {
			continue
		}
		if r.Finished, r.Reason, r.Error = m.now(), reason, cause; cause != "" {
			st.Fault = &Fault{What: "repair", At: r.Finished, Reason: reason, Stream: r.Stream, Error: cause, Node: node}
			continue
		}
		if f := st.Fault; f != nil && f.What == "repair" && f.Stream == r.Stream {
			st.Fault = nil
		}
		m.s.o.Logger.Info("a stream's documents were made again", "projection", m.p.Name, "stream", r.Stream)
	}
}
