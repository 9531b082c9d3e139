package projection

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace-io/millrace"
)

const (
	// upgradeEvery is how often a node says that its code is newer, until it is heard.
	upgradeEvery = 5 * time.Second
	// dropAgain is when a generation is removed a second time on a shared store: by then whoever still wrote to it has
	// learnt that it is gone, or has lost his partitions.
	dropAgain = 15 * time.Second
	// repairWithin is how long a repair waits for a node that owns the partition and has the code.
	repairWithin = time.Minute
)

// errOvertaken: the state is not any more what a step went out from.
var errOvertaken = errors.New("the state has changed meanwhile")

// stage is what the coordinator waits for.
type stage struct {
	generation      uint64
	switching, halt bool
	attempt         uint64
}

// course is what he remembers of it. All of that can be found out again.
type course struct {
	stage
	since    time.Time
	aim      millrace.Cursor
	aims     int
	compared chan comparison
	dropped  map[uint64]bool
}

// on is the course of a stage, begun anew where another one was waited for.
func (c *course) on(at stage, now time.Time) {
	if c.since.IsZero() || c.stage != at {
		*c = course{stage: at, since: now, dropped: c.dropped}
	}
}

// coordinate leads the read model while this node owns the partition of its state, and follows the state otherwise.
func (m *Model) coordinate(ctx context.Context) {
	defer m.comparing.Wait()
	c := &course{dropped: map[uint64]bool{}}
	var asked time.Time
	for ctx.Err() == nil {
		before, _ := m.current()
		var err error
		_, leads := m.s.token()
		if leads {
			err = m.step(ctx, c)
		} else {
			*c = course{dropped: map[uint64]bool{}}
			err = m.look(ctx)
		}
		if err == nil {
			err = m.upgrade(ctx, &asked)
		}
		st, _ := m.current()
		if leads && err == nil && before.Revision != st.Revision {
			continue // there may be more to do
		}
		trouble := m.complain(ctx, err)
		_, owned := m.s.o.Owned()
		if !pause(ctx, m.s.lookEvery(st.busy() && !trouble), m.poked, owned) {
			return
		}
	}
}

// upgrade says that this node's code asks for a generation of its own, where it does: when the state is first known, and on a
// shared store again until it is heard.
func (m *Model) upgrade(ctx context.Context, asked *time.Time) error {
	st, _ := m.current()
	first := asked.IsZero()
	if st.Revision == 0 || !first && (!m.s.shared || m.s.o.Now().Sub(*asked) < upgradeEvery) {
		return nil
	}
	if m.newer(st) {
		if _, err := m.post(ctx, ask{Kind: askUpgrade, Version: m.p.Version, Hold: m.s.o.Hold}); err != nil {
			return err
		}
		m.s.o.Logger.Info("the projection's code has changed", "projection", m.p.Name, "from", st.Version, "to", m.p.Version)
	}
	*asked = m.s.o.Now()
	return nil
}

// complain tells of an error that is one: another coordinator, or a state that has moved on, is none.
func (m *Model) complain(ctx context.Context, err error) bool {
	if err == nil || ctx.Err() != nil || errors.Is(err, millrace.ErrFenced) || errors.Is(err, errOvertaken) {
		return false
	}
	m.s.o.Logger.Warn("cannot look after a read model, trying again", "projection", m.p.Name, "error", err)
	return true
}

// newer says whether this node's code asks for a generation of its own. Where nodes of several versions share the store, the
// newest one does so once: what people then decide is not undone by a node that starts. A process alone cannot go on with
// documents of other code.
func (m *Model) newer(st *state) bool {
	switch {
	case m.s.o.Paused(m.p.Name):
		return false
	case m.s.shared:
		return m.p.Version > st.Tried
	}
	return st.Version != m.p.Version || st.Build != nil && st.Build.Version != m.p.Version
}

// step looks at everything once, and does what can be done.
func (m *Model) step(ctx context.Context, c *course) error {
	if err := m.look(ctx); err != nil {
		return err
	}
	if st, _ := m.current(); st.Revision == 0 {
		return m.update(ctx, func(*state) error { return nil })
	}
	all, err := m.asked(ctx)
	if err != nil {
		return err
	}
	for _, a := range all {
		if err := m.answer(ctx, a); err != nil {
			return err
		}
	}
	st, _ := m.current()
	if err := m.drop(ctx, c, st); err != nil {
		return err
	}
	if err := m.expire(ctx, st); err != nil {
		return err
	}
	switch st, _ = m.current(); {
	case st.Switch != nil:
		return m.proceed(ctx, c, st)
	case st.Build != nil && !st.Build.Ready:
		return m.raise(ctx, c, st)
	}
	return nil
}

// answer does what a message asks for, and keeps what came of it, in one commit.
func (m *Model) answer(ctx context.Context, a ask) error {
	return m.update(ctx, func(st *state) error {
		if slices.ContainsFunc(st.Answers, func(old answer) bool { return old.ID == a.id }) {
			return nil // it was sent twice
		}
		st.Answers = append(st.Answers, answer{ID: a.id, Code: codeOf(m.apply(ctx, st, &a))})
		return nil
	}, a)
}

// apply changes the state as a message asks. Errors: those with a code.
func (m *Model) apply(ctx context.Context, st *state, a *ask) error {
	switch a.Kind {
	case askRebuild:
		if st.Switch != nil || st.Build != nil && st.Build.Version >= a.Version {
			return ErrBusy
		}
		m.giveUp(ctx, st, ReasonReplaced, fmt.Errorf("newer code was asked for: version %d", a.Version), "")
		m.begin(st, a)
	case askUpgrade:
		if b := st.Build; b != nil && (b.Version == a.Version || m.s.shared && b.Version > a.Version) {
			return nil
		}
		m.giveUp(ctx, st, ReasonReplaced, fmt.Errorf("the code is of version %d now", a.Version), "")
		if st.Version != a.Version && (!m.s.shared || a.Version > st.Tried) {
			st.Switch = nil
			m.begin(st, a)
		}
	case askSwitch:
		return m.askedToSwitch(st, a)
	case askDiscard:
		switch {
		case st.Build != nil:
			m.giveUp(ctx, st, ReasonDiscarded, errors.New("it was discarded"), "")
		case st.Previous != nil:
			m.forget(st)
		default:
			return ErrNoGeneration
		}
	case askRepair:
		switch {
		case st.Build != nil || st.Switch != nil:
			return ErrBusy
		case st.Version != a.Version:
			return ErrOtherCode
		}
		st.Repairs = append(st.Repairs, Repair{ID: a.id, Stream: a.Stream, Asked: m.now()})
		st.Repairs = st.Repairs[max(0, len(st.Repairs)-maxRepairs):]
	case tellFailed:
		if st.Build != nil && st.Build.Generation == a.Generation {
			m.giveUpAs(ctx, st, a.Reason, a.Error, a.Node)
		}
	case tellRepaired:
		m.repaired(st, a.Repair, a.Reason, a.Error, a.Node)
	}
	return nil
}

// now is the time as it comes back from the store: without the reading of the monotonic clock.
func (m *Model) now() time.Time { return m.s.o.Now().UTC().Round(0) }

// begin begins a generation. The one that was kept goes, so that there are never more than two.
func (m *Model) begin(st *state, a *ask) {
	m.forget(st)
	st.Newest++
	st.Tried = max(st.Tried, a.Version)
	st.Build = &Rebuild{Generation: st.Newest, Version: a.Version, Hold: a.Hold, Started: m.now()}
	m.s.o.Logger.Info("a read model is being rebuilt", "projection", m.p.Name, "generation", st.Newest, "version", a.Version)
}

// forget gives up the generation that was live before, and a switch back to it.
func (m *Model) forget(st *state) {
	if st.Previous == nil {
		return
	}
	if st.Switch != nil && st.Switch.To == st.Previous.Generation {
		st.Switch = nil
	}
	st.Dropping = append(st.Dropping, dropping{st.Previous.Generation, m.now()})
	st.Previous = nil
}

// giveUp ends what is being built, if anything is: its documents go, what is live stays, and the status says why.
func (m *Model) giveUp(ctx context.Context, st *state, reason string, cause error, node string) {
	if st.Build != nil {
		m.giveUpAs(ctx, st, reason, cause.Error(), node)
	}
}

func (m *Model) giveUpAs(ctx context.Context, st *state, reason, cause, node string) {
	b := st.Build
	st.Build = nil
	if at, err := m.s.store.Checkpoints(ctx, m.name(b.Generation)); err == nil {
		b.count(at) // for the curious: without it, nothing is said
	}
	if st.Switch != nil && st.Switch.To == b.Generation {
		st.Switch = nil
	}
	st.Dropping = append(st.Dropping, dropping{b.Generation, m.now()})
	b.Done, b.Ready, b.Finished, b.Reason, b.Error = true, false, m.now(), reason, cause
	st.Last = b
	log := m.s.o.Logger.Info
	if reason != ReasonDiscarded && reason != ReasonReplaced {
		st.Fault = &Fault{What: "rebuild", At: b.Finished, Reason: reason, Error: cause, Node: node}
		log = m.s.o.Logger.Error
	}
	log("a rebuild was given up, and the read model stays as it was", "projection", m.p.Name, "generation", b.Generation, "reason", reason, "error", cause)
}

// drop removes the documents of generations that were given up.
func (m *Model) drop(ctx context.Context, c *course, st *state) error {
	for _, d := range st.Dropping {
		m.mu.Lock()
		runs := m.running[d.Generation]
		m.mu.Unlock()
		age := m.s.o.Now().Sub(d.Since)
		old := age > dropAgain
		// Readers of other nodes may still be at it: they find out after settle (read.go, Query).
		if runs || m.s.shared && age < m.s.settle() || m.s.shared && !old && c.dropped[d.Generation] {
			continue
		}
		collections := []string{m.parkedCollection(d.Generation), m.collection(d.Generation, millrace.AsksTable.Table)}
		for _, t := range m.p.Tables {
			collections = append(collections, m.collection(d.Generation, t))
		}
		if err := m.s.store.DropViews(ctx, m.name(d.Generation), collections); err != nil {
			m.complain(ctx, err) // they harm nobody: it is tried again
			continue
		}
		c.dropped[d.Generation] = true
		if m.s.shared && !old {
			continue
		}
		err := m.update(ctx, func(st *state) error {
			st.Dropping = slices.DeleteFunc(st.Dropping, func(o dropping) bool { return o.Generation == d.Generation })
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// expire ends what has had its time.
func (m *Model) expire(ctx context.Context, st *state) error {
	now := m.now()
	if p := st.Previous; p != nil && st.Switch == nil && now.After(p.Until) {
		return m.update(ctx, func(st *state) error {
			if st.Previous == nil || st.Previous.Generation != p.Generation || st.Switch != nil {
				return errOvertaken
			}
			m.forget(st)
			return nil
		})
	}
	for i := range st.Repairs {
		if r := st.Repairs[i]; !r.Done() && now.Sub(r.Asked) > repairWithin {
			return m.update(ctx, func(st *state) error {
				m.repaired(st, r.ID, ReasonFailed, "no node that owns the stream's partition could do it in time", "")
				return nil
			})
		}
	}
	return nil
}

// raise takes what is being built further: when it has caught up it is compared, and then switched to or held.
func (m *Model) raise(ctx context.Context, c *course, st *state) error {
	b := *st.Build
	c.on(stage{generation: b.Generation}, m.s.o.Now())
	of := func(change func(st *state)) func(*state) error {
		return func(st *state) error {
			if st.Build == nil || st.Build.Generation != b.Generation || st.Switch != nil {
				return errOvertaken
			}
			change(st)
			return nil
		}
	}
	if b.Caught.IsZero() {
		if ok, err := m.caught(ctx, c, b.Generation); !ok || err != nil {
			return err
		}
		return m.update(ctx, of(func(st *state) { st.Build.Caught = m.now() }))
	}
	if b.Version == st.Version {
		if err := m.complete(ctx, st.Generation, b.Generation); err != nil {
			return m.refuse(ctx, b.Generation, err)
		}
	}
	var d *Differences
	if b.Version == st.Version || b.Hold {
		switch {
		case st.repairing():
			return nil // its documents change in place
		case c.compared == nil:
			c.compared = m.compareAside(ctx, st.Generation, b.Generation)
			return nil
		}
		select {
		case r := <-c.compared:
			if c.compared = nil; r.err != nil {
				return m.refuse(ctx, b.Generation, r.err)
			}
			d = r.differences
		default:
			return nil
		}
	}
	return m.update(ctx, of(func(st *state) {
		st.Build.Differences = d
		if st.Build.Hold {
			st.Build.Ready = true
			return
		}
		st.Switch = &change{To: b.Generation, Asked: m.now(), Attempt: st.Switches}
	}))
}

// refuse gives up what is being built, where an error says that it will not do; another error is nothing but an error.
func (m *Model) refuse(ctx context.Context, generation uint64, err error) error {
	if reason := reasonOf(err); ctx.Err() == nil && (reason == ReasonIncomplete || reason == ReasonCorrupt) {
		return m.update(ctx, func(st *state) error {
			if st.Build == nil || st.Build.Generation != generation {
				return errOvertaken
			}
			m.giveUp(ctx, st, reason, err, m.s.o.Node)
			return nil
		})
	}
	return err
}

// caught says whether a generation has come up to the head. The head moves on meanwhile; the second aim is for what came in
// on the way to the first.
func (m *Model) caught(ctx context.Context, c *course, generation uint64) (bool, error) {
	if m.s.o.without.aim {
		return true, nil
	}
	if c.aims == 0 {
		c.aim, c.aims = m.s.store.Head(), 1
	}
	at, err := m.reached(ctx, generation)
	if err != nil {
		return false, err
	}
	for at.Covers(c.aim) {
		if c.aims == 2 {
			return true, nil
		}
		c.aim, c.aims = m.s.store.Head(), 2
	}
	return false, nil
}

// reached is where a generation stands. On a shared store that is what is written: what this process remembers of it, a
// database that crashed may have lost since.
func (m *Model) reached(ctx context.Context, generation uint64) (millrace.Cursor, error) {
	if m.s.shared {
		return m.s.store.Driver().Checkpoints(ctx, m.name(generation))
	}
	return m.s.store.Checkpoints(ctx, m.name(generation))
}
