package projection

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace-io/millrace"
)

// errNotWanted ends a consumer whose generation is not to be made, or not just now. It is final, so that whoever runs the
// consumer does not begin it again.
var errNotWanted = fmt.Errorf("%w: a generation that is to be made now", millrace.ErrNotFound)

// consumer is the consumer of one generation.
func (m *Model) consumer(generation uint64, rebuilding bool) millrace.Consumer {
	// Asked for with each document, so they are put together once.
	names := make(map[*millrace.Table]string, len(m.p.Tables))
	for _, t := range m.p.Tables {
		names[t] = m.collection(generation, t)
	}
	return millrace.Consumer{
		Name: m.name(generation), Categories: m.p.Categories, Rebuilding: rebuilding,
		Begin:  func(ctx context.Context) error { return m.wanted(ctx, generation) },
		Handle: func(_ context.Context, v millrace.Views, e *millrace.Recorded) error { return m.p.Project(v, e) },
		Collection: func(t *millrace.Table) string {
			if name, ok := names[t]; ok {
				return name
			}
			return m.collection(generation, t) // the feed's own
		},
	}
}

// wanted asks the store whether a generation is to be made. A node that has just been given a partition may know an old
// state: its owner before has said that the live consumer stands still there, and that must hold.
func (m *Model) wanted(ctx context.Context, generation uint64) error {
	if m.s.o.without.begin {
		return nil
	}
	if err := m.look(ctx); err != nil {
		return err
	}
	st, _ := m.current()
	if _, ok := m.makes(st)[generation]; !ok {
		return errNotWanted
	}
	return nil
}

// makes are the generations whose consumers run on this node, and whether nobody reads them: those of its code. Others
// are made by nodes that have theirs, or stand still.
func (m *Model) makes(st *state) map[uint64]bool {
	out := map[uint64]bool{}
	if m.s.o.Paused(m.p.Name) || st.Revision == 0 {
		return out
	}
	if st.Version == m.p.Version && (st.Switch == nil || !st.Switch.Halt || m.s.o.without.halt) {
		out[st.Generation] = false
	}
	if p := st.Previous; p != nil && p.Version == m.p.Version {
		out[p.Generation] = true
	}
	if b := st.Build; b != nil && b.Version == m.p.Version {
		out[b.Generation] = true
	}
	return out
}

// run is a consumer that runs here.
type run struct {
	generation uint64
	rebuilding bool
	stop       context.CancelFunc
	ended      chan struct{}
	err        error // when ended is closed
	told       bool  // the coordinator knows
}

func (r *run) hasEnded() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// runs are the consumers of a read model that run on this node.
type runs struct {
	m   *Model
	ctx context.Context //nolint:containedctx // of all of them
	all map[uint64]*run
	any chan struct{} // one has ended
}

// follow runs the consumers of this node's partitions that the state asks for, until ctx ends or the live one fails.
func (m *Model) follow(ctx context.Context) error {
	r := &runs{m: m, ctx: ctx, all: map[uint64]*run{}, any: make(chan struct{}, 1)}
	defer r.stopAll()
	for ctx.Err() == nil {
		st, changed := m.current()
		want := m.makes(st)
		for generation, one := range r.all {
			if rebuilding, ok := want[generation]; !ok || rebuilding != one.rebuilding {
				r.stop(generation)
			}
		}
		waits := st.Switch != nil && st.Switch.Halt && !m.s.o.without.halt && !m.halt(ctx, st)
		waits = m.repairAll(ctx, st, r) || waits
		for generation, rebuilding := range want {
			if r.all[generation] == nil {
				r.start(generation, rebuilding)
			}
		}
		again, err := r.look(st)
		if err != nil {
			return err
		}
		_, other := m.s.o.Owned()
		if !pause(ctx, m.s.lookEvery(waits || again), changed, r.any, other) {
			break
		}
	}
	return nil
}

func (r *runs) start(generation uint64, rebuilding bool) {
	ctx, cancel := context.WithCancel(r.ctx)
	one := &run{generation: generation, rebuilding: rebuilding, stop: cancel, ended: make(chan struct{})}
	r.all[generation] = one
	r.m.runsHere(generation, true)
	go func() {
		err := r.m.s.o.Run(ctx, r.m.consumer(generation, rebuilding))
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			err = nil // one that was stopped before it had begun may call that an error; it is none
		}
		one.err = err
		r.m.runsHere(generation, false)
		close(one.ended)
		select {
		case r.any <- struct{}{}:
		default:
		}
	}()
}

// stop ends a consumer and waits for it: nothing of it is written afterwards.
func (r *runs) stop(generation uint64) {
	if one := r.all[generation]; one != nil {
		one.stop()
		<-one.ended
		delete(r.all, generation)
	}
}

func (r *runs) stopAll() {
	for _, one := range r.all {
		one.stop()
	}
	for generation := range r.all {
		r.stop(generation)
	}
}

// look finds consumers that have ended by themselves. again asks for another look soon. The error is the live one's: there
// is nothing that this node could do for its readers any more.
func (r *runs) look(st *state) (again bool, err error) {
	for generation, one := range r.all {
		if !one.hasEnded() {
			continue
		}
		switch {
		case one.err == nil: // the store is closed
		case errors.Is(one.err, errNotWanted):
			delete(r.all, generation) // the state has changed, and asks for it again or not
			again = true
		case generation == st.Generation && !one.rebuilding:
			return false, one.err
		case one.told:
		case st.Build != nil && st.Build.Generation == generation:
			a := ask{Kind: tellFailed, Generation: generation, Reason: reasonOf(one.err), Error: one.err.Error()}
			if _, err := r.m.post(r.ctx, a); err != nil {
				again = true
				continue
			}
			one.told = true
		default:
			one.told = true
			r.m.s.o.Logger.Error("a generation that was live is not followed any more", "projection", r.m.p.Name, "generation", generation, "error", one.err)
		}
	}
	return again, nil
}

// runsHere notes whether a consumer runs.
func (m *Model) runsHere(generation uint64, runs bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if runs {
		m.running[generation] = true
		return
	}
	delete(m.running, generation)
	m.poke()
}

// halt says of each partition of this node that its live consumer stands still, which it does. The word is the consumer's
// last commit there: what was sent before and is still on its way finds another commit in its place, and is refused. False
// asks to be called again.
func (m *Model) halt(ctx context.Context, st *state) bool {
	owned, _ := m.s.o.Owned()
	said, err := m.halts(ctx)
	if err != nil {
		return false
	}
	var batches []millrace.ViewBatch
	var at millrace.Cursor
	for p, token := range owned {
		if h, ok := said[p]; ok && h.Attempt == st.Switch.Attempt {
			continue
		}
		if len(batches) == 0 {
			if at, err = m.s.store.Resume(ctx, m.name(st.Generation)); err != nil {
				return false
			}
		}
		data, _, err := haltedTable.Encode(&halted{Attempt: st.Switch.Attempt, Position: at.Position(p)})
		if err != nil {
			return false
		}
		doc := millrace.Document{Collection: haltedCollection, Partition: p, ID: m.p.Name, Data: data}
		batches = append(batches, millrace.ViewBatch{
			Consumer: m.name(st.Generation), Partition: p, Epoch: token, Checkpoint: at.Position(p), Puts: []millrace.Put{{Document: doc}},
		})
	}
	if len(batches) == 0 {
		return true
	}
	slices.SortFunc(batches, func(a, b millrace.ViewBatch) int { return a.Partition - b.Partition })
	if err := m.s.store.CommitViews(ctx, batches); err != nil {
		if ctx.Err() == nil {
			m.s.o.Logger.Debug("cannot say that the live consumer stands still, trying again", "projection", m.p.Name, "error", err)
		}
		return false
	}
	m.poke()
	return true
}

// halts are the newest words of all partitions' owners.
func (m *Model) halts(ctx context.Context) (map[int]halted, error) {
	out := map[int]halted{}
	q := millrace.Query{Collection: haltedCollection, Index: -1, Partition: -1, Prefix: m.p.Name}
	for d, err := range m.s.store.Documents(ctx, q) {
		if err != nil {
			return nil, err
		}
		if d.ID != m.p.Name {
			continue // its name begins alike
		}
		h, err := haltedTable.Decode(d.Data)
		if err != nil {
			return nil, err
		}
		out[d.Partition] = *h
	}
	return out, nil
}

// repairAll makes the streams' documents that are to be repaired in this node's partitions. True asks to be called again.
func (m *Model) repairAll(ctx context.Context, st *state, r *runs) (again bool) {
	if st.Version != m.p.Version || m.s.o.Paused(m.p.Name) || m.s.o.Repair == nil || m.p.OfStream == nil {
		return false
	}
	owned, _ := m.s.o.Owned()
	for i := range st.Repairs {
		one := &st.Repairs[i]
		stream := millrace.Stream(one.Stream)
		token, mine := owned[stream.Partition(m.s.store.Partitions())]
		if one.Done() || !mine {
			continue
		}
		generations := []uint64{st.Generation}
		if st.Previous != nil && st.Previous.Version == m.p.Version {
			generations = append(generations, st.Previous.Generation)
		}
		var err error
		for _, generation := range generations {
			r.stop(generation) // it is begun again afterwards, and knows nothing of the stream's trouble
			if err == nil {
				err = m.s.o.Repair(ctx, m.consumer(generation, true), stream, m.p.OfStream(stream), token)
			}
		}
		// Another owner will do it, or the database will be back.
		if errors.Is(err, millrace.ErrFenced) || ctx.Err() != nil {
			return true
		}
		a := ask{Kind: tellRepaired, Repair: one.ID}
		if err != nil {
			a.Reason, a.Error = reasonOf(err), err.Error()
			m.s.o.Logger.Error("a stream's documents cannot be made again", "projection", m.p.Name, "stream", stream, "error", err)
		}
		if _, err := m.post(ctx, a); err != nil {
			return true
		}
		m.await(ctx, one.ID)
	}
	return false
}

// repairPatience is how long a node waits to hear that its repair is written down, before it does it again.
const repairPatience = 2 * time.Second

// await waits until a repair is written down as done.
func (m *Model) await(ctx context.Context, repair string) {
	ctx, cancel := context.WithTimeout(ctx, repairPatience)
	defer cancel()
	for {
		st, changed := m.current()
		if i := slices.IndexFunc(st.Repairs, func(r Repair) bool { return r.ID == repair }); i < 0 || st.Repairs[i].Done() {
			return
		}
		if !pause(ctx, m.s.lookEvery(true), changed) {
			return
		}
	}
}
