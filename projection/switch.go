package projection

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace-io/millrace"
)

// A switch. Readers must never see an older state than before, on whichever node, though each owner commits to the live
// generation on his own:
//
//  1. The state names the switch. From then on readers on other nodes ask for the state with each read instead of going by
//     what they know (read.go); those who do not know of the switch yet do after freshFor, for which the coordinator waits.
//  2. When the other generation has come up to the head, the state says that the live consumers stand still. Each owner
//     stops his, and says where it stands, in one commit with the consumer's last (follow.go, halt). An owner that comes
//     later asks for the state before he begins. So nothing is written to the live generation any more.
//  3. When the other generation has come at least there in all partitions, the state names it as the live one. All readers
//     see that with their next read, and its consumers have never stood still.
//
// Where 3 does not come in time, the live consumers go on, and 2 is tried again later. Each attempt has its number: words
// of an earlier one count for nothing.
const (
	// freshFor is how long a node may go by a state that it has read, on a shared store.
	freshFor = 1500 * time.Millisecond
	// haltPatience is how long the live consumers stand still at most.
	haltPatience = 5 * time.Second
	// backPatience is how long a generation that was live before may take to come up again.
	backPatience = 30 * time.Second
)

// settle is how long readers are given to learn of a switch: longer than they may go by what they know.
func (s *Service) settle() time.Duration { return s.fresh + s.fresh/4 }

// askedToSwitch begins a switch.
func (m *Model) askedToSwitch(st *state, a *ask) error {
	to, version := a.Generation, 0
	switch {
	case to == st.Generation:
		return nil
	case st.Build != nil && st.Build.Ready && (to == 0 || to == st.Build.Generation):
		to, version = st.Build.Generation, st.Build.Version
	case st.Previous != nil && to == st.Previous.Generation:
		version = st.Previous.Version
	default:
		return ErrNoGeneration
	}
	switch {
	case st.Switch != nil && st.Switch.To == to:
		return nil
	case st.Switch != nil:
		return ErrBusy
	case version != a.Version:
		return ErrOtherCode
	}
	st.Fault = nil
	st.Switch = &change{To: to, Asked: m.now(), Attempt: st.Switches}
	return nil
}

// proceed takes a switch further.
func (m *Model) proceed(ctx context.Context, c *course, st *state) error {
	sw := *st.Switch
	now := m.s.o.Now()
	c.on(stage{generation: sw.To, switching: true, halt: sw.Halt, attempt: sw.Attempt}, now)
	with := func(change func(st *state)) func(*state) error {
		return func(st *state) error {
			if st.Switch == nil || *st.Switch != sw {
				return errOvertaken
			}
			change(st)
			return nil
		}
	}
	if sw.Halt {
		return m.land(ctx, c, st, with)
	}
	if m.s.shared && now.Sub(c.since) < m.s.settle() {
		return nil
	}
	switch ok, err := m.caught(ctx, c, sw.To); {
	case err != nil:
		return err
	case ok:
		return m.update(ctx, with(func(st *state) {
			st.Switches++
			st.Switch.Halt, st.Switch.Attempt = true, st.Switches
		}))
	case st.Build == nil && now.Sub(c.since) > backPatience:
		m.s.o.Logger.Error("a read model cannot be switched back", "projection", m.p.Name, "generation", sw.To, "error", errBehind)
		return m.update(ctx, with(func(st *state) {
			st.Switch = nil
			st.Fault = &Fault{What: "switch", At: m.now(), Reason: ReasonBehind, Error: fmt.Sprintf("generation %d: %v", sw.To, errBehind)}
		}))
	}
	return nil
}

// land switches when all live consumers stand still and the other generation has come to where they stand.
func (m *Model) land(ctx context.Context, c *course, st *state, with func(func(*state)) func(*state) error) error {
	sw := *st.Switch
	said, err := m.halts(ctx)
	if err != nil {
		return err
	}
	stand := millrace.Cursor{Epoch: m.s.store.Meta().Epoch, Positions: make([]uint64, m.s.store.Partitions())}
	still := true
	for p := range stand.Positions {
		still = still && (said[p].Attempt == sw.Attempt || m.s.o.without.halt)
		stand.Positions[p] = said[p].Position
	}
	at, err := m.reached(ctx, sw.To)
	if err != nil {
		return err
	}
	if !still || !at.Covers(stand) && !m.s.o.without.aim {
		if m.s.o.Now().Sub(c.since) < haltPatience {
			return nil
		}
		m.s.o.Logger.Warn("a switch takes too long and is tried again later", "projection", m.p.Name, "generation", sw.To)
		return m.update(ctx, with(func(st *state) { st.Switch.Halt = false }))
	}
	if b := st.Build; b != nil && b.Version == st.Version {
		if err := m.complete(ctx, st.Generation, b.Generation); err != nil { // of the last events
			return m.refuse(ctx, b.Generation, err)
		}
	}
	return m.update(ctx, with(func(st *state) { m.switched(st, at) }))
}

// switched makes the generation that a switch leads to the live one. at is where it stands.
func (m *Model) switched(st *state, at millrace.Cursor) {
	old := Previous{Generation: st.Generation, Version: st.Version, Until: m.now().Add(m.s.o.Keep)}
	st.Generation = st.Switch.To
	if b := st.Build; b != nil {
		st.Version = b.Version
		b.Done, b.Ready, b.Finished = true, false, m.now()
		b.count(at)
		st.Last, st.Build = b, nil
	} else {
		st.Version = st.Previous.Version
	}
	st.Switch, st.Fault = nil, nil
	if st.Previous = &old; m.s.o.Keep < 0 {
		m.forget(st)
	}
	m.s.o.Logger.Info("a read model was switched", "projection", m.p.Name, "generation", st.Generation, "from", old.Generation)
}
