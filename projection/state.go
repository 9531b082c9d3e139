package projection

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/id"
)

// state is the document about a read model: which generation is live, and what is on its way. Each change of it is one
// commit of the owner of its partition.
type state struct {
	// Revision counts the changes.
	Revision   uint64 `json:"revision"`
	Generation uint64 `json:"generation"` // the live one
	Version    int    `json:"version"`    // of the code that makes it
	// Newest is the highest number that a generation was given. No number is given twice: who is late with a write for one
	// that was given up must not meet another.
	Newest uint64 `json:"newest"`
	// Tried is the highest version of the code for which a generation was begun.
	Tried int `json:"tried"`
	// Previous was live before, and is kept. While there is a Build there is none: at most two generations take room.
	Previous *Previous `json:"previous,omitempty"`
	Build    *Rebuild  `json:"build,omitempty"`
	Switch   *change   `json:"switch,omitempty"`
	// Switches counts the attempts to switch.
	Switches uint64     `json:"switches"`
	Dropping []dropping `json:"dropping,omitempty"`
	// Last is the newest rebuild that has ended.
	Last    *Rebuild `json:"last,omitempty"`
	Fault   *Fault   `json:"fault,omitempty"`
	Repairs []Repair `json:"repairs,omitempty"`
	// Answers are those to the newest messages.
	Answers []answer `json:"answers,omitempty"`
}

// Previous is a generation that was live.
type Previous struct {
	Generation uint64    `json:"generation"`
	Version    int       `json:"version"`
	Until      time.Time `json:"until"` // then it is removed
}

// change is a switch that is on its way. See switch.go.
type change struct {
	To      uint64    `json:"to"`
	Attempt uint64    `json:"attempt"`
	Asked   time.Time `json:"asked"`
	// Halt: the consumers of the live generation stand still.
	Halt bool `json:"halt,omitzero"`
}

// dropping is a generation that is being removed.
type dropping struct {
	Generation uint64    `json:"generation"`
	Since      time.Time `json:"since"`
}

// answer is what came of a message.
type answer struct {
	ID   string `json:"id"`
	Code string `json:"code"` // of refusals; empty where there is nothing to say
}

// What is kept of answers and repairs.
const (
	maxAnswers = 32
	maxRepairs = 8
)

// The kinds of messages to the coordinator.
const (
	askRebuild   = "rebuild"
	askUpgrade   = "upgrade" // a rebuild that nobody asked for: the code has another version
	askSwitch    = "switch"
	askDiscard   = "discard"
	askRepair    = "repair"
	tellFailed   = "failed"   // a consumer of what is being built has ended
	tellRepaired = "repaired" // or could not be
)

// ask is a message to the coordinator.
type ask struct {
	Kind       string `json:"kind"`
	Version    int    `json:"version,omitzero"`
	Generation uint64 `json:"generation,omitzero"`
	Hold       bool   `json:"hold,omitzero"`
	Stream     string `json:"stream,omitempty"`
	Repair     string `json:"repair,omitempty"` // id of the message that asked for it
	Node       string `json:"node,omitempty"`
	Reason     string `json:"reason,omitempty"`
	Error      string `json:"error,omitempty"`
	id         string // of its document, without the projection's name
}

// halted is what the owner of a partition says when its live consumer stands still.
type halted struct {
	Attempt  uint64 `json:"attempt"`
	Position uint64 `json:"position"` // where it stands
}

// The documents about the read models. The first two kinds are in one partition, whose owner coordinates; the third is in
// each.
const (
	pointers            = "projections"
	pointerPartition    = 0
	pointerCollection   = millrace.LiveCollection
	postboxCollection   = pointers + ".asked"
	haltedCollection    = pointers + ".halted"
	idSeparator         = "/"
	firstGeneration     = 1
	defaultAnswerWithin = 10 * time.Second
)

var (
	stateTable  = millrace.NewTable[state]("live", nil, nil)
	askTable    = millrace.NewTable[ask]("asked", nil, nil)
	haltedTable = millrace.NewTable[halted]("halted", nil, nil)
)

// read reads the state; nil where there is none yet.
func (m *Model) read(ctx context.Context) (*state, error) {
	doc, err := m.s.store.Document(ctx, pointerCollection, pointerPartition, m.p.Name)
	if errors.Is(err, millrace.ErrNotFound) {
		return nil, nil //nolint:nilnil // none is an answer
	}
	if err != nil {
		return nil, err
	}
	st, err := stateTable.Decode(doc.Data)
	if err == nil {
		st.Newest, st.Tried = max(st.Newest, st.Generation), max(st.Tried, st.Version) // of a store from before there were these
	}
	return st, err
}

// look takes over what the store says. Where there is nothing yet, the first generation is live for readers, and nobody
// makes it before that is written down.
func (m *Model) look(ctx context.Context) error {
	at := m.s.o.Now()
	st, err := m.read(ctx)
	if err != nil {
		return err
	}
	m.observe(st, at, at)
	return nil
}

// observe takes over a state that a look has found, or that was written, between two times. Of two looks the one that began
// later counts; beside a change, the newer revision does where they met. Otherwise a state may go back: a database that crashed
// has lost the newest.
func (m *Model) observe(st *state, at, settled time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.known.Load()
	if st == nil {
		st = &state{Generation: firstGeneration, Version: m.p.Version}
	}
	if old != nil && (st.Revision < old.Revision && at.Before(old.settled) || st.Revision == old.Revision && at.Before(old.at)) {
		return
	}
	m.known.Store(&known{st, at, settled})
	if old == nil || old.Revision != st.Revision || old.Generation != st.Generation {
		close(m.changed)
		m.changed = make(chan struct{})
	}
}

// look as it is known, and what is closed when that changes.
func (m *Model) current() (*state, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.known.Load().state, m.changed
}

func (m *Model) live() uint64 { return m.known.Load().Generation }

// busy says whether something is on its way that takes more than a look now and then.
func (st *state) busy() bool {
	return st.Revision == 0 || st.Switch != nil || st.Build != nil && !st.Build.Ready || len(st.Dropping) > 0 || st.repairing()
}

// has says whether a generation is one to be made.
func (st *state) has(generation uint64) bool {
	return generation == st.Generation || st.Previous != nil && generation == st.Previous.Generation ||
		st.Build != nil && generation == st.Build.Generation
}

// token says whether this node is the coordinator, and under which fencing token.
func (s *Service) token() (uint64, bool) {
	owned, _ := s.o.Owned()
	token, ok := owned[pointerPartition]
	return token, ok
}

// update changes the state in one commit, which also removes the messages that are dealt with. Another coordinator's change in
// between makes it fail ([millrace.ErrFenced]).
func (m *Model) update(ctx context.Context, change func(st *state) error, done ...ask) error {
	m.s.writing.Lock()
	defer m.s.writing.Unlock()
	token, ok := m.s.token()
	if !ok {
		return millrace.ErrFenced
	}
	at := m.s.o.Now()
	// Before the state is read: from here on a commit of somebody else makes ours fail.
	if _, err := m.s.store.Resume(ctx, pointers); err != nil {
		return err
	}
	st, err := m.read(ctx)
	if err != nil {
		return err
	}
	if st == nil {
		st = &state{Generation: firstGeneration, Version: m.p.Version, Newest: firstGeneration, Tried: m.p.Version}
	}
	if err := change(st); err != nil {
		return err
	}
	st.Revision++
	st.Answers = st.Answers[max(0, len(st.Answers)-maxAnswers):]
	data, keys, err := stateTable.Encode(st)
	if err != nil {
		return err
	}
	puts := []millrace.Put{{Document: millrace.Document{Collection: pointerCollection, Partition: pointerPartition, ID: m.p.Name, Data: data, Keys: keys}}}
	for _, a := range done {
		puts = append(puts, millrace.Put{Delete: true, Document: millrace.Document{Collection: postboxCollection, Partition: pointerPartition, ID: m.p.Name + idSeparator + a.id}})
	}
	err = m.s.store.CommitViews(ctx, []millrace.ViewBatch{{Consumer: pointers, Partition: pointerPartition, Epoch: token, Puts: puts}})
	if err != nil {
		return err
	}
	m.observe(st, at, m.s.o.Now())
	return nil
}

// post sends a message to the coordinator, whichever node that is.
func (m *Model) post(ctx context.Context, a ask) (string, error) {
	a.Node = m.s.o.Node
	data, _, err := askTable.Encode(&a)
	if err != nil {
		return "", err
	}
	key := id.New()
	doc := millrace.Document{Collection: postboxCollection, Partition: pointerPartition, ID: m.p.Name + idSeparator + key, Data: data}
	if err := m.s.store.Post(ctx, doc); err != nil {
		return "", err
	}
	m.poke()
	return key, nil
}

func (m *Model) poke() {
	select {
	case m.poked <- struct{}{}:
	default:
	}
}

// asked are the messages to the coordinator, in the order in which they were sent.
func (m *Model) asked(ctx context.Context) ([]ask, error) {
	prefix := m.p.Name + idSeparator
	var out []ask
	q := millrace.Query{Collection: postboxCollection, Index: -1, Partition: pointerPartition, Prefix: prefix}
	for d, err := range m.s.store.Documents(ctx, q) {
		if err != nil {
			return nil, err
		}
		a, err := askTable.Decode(d.Data)
		if err != nil {
			return nil, err
		}
		a.id = d.ID[len(prefix):]
		out = append(out, *a)
	}
	return out, nil
}

// request sends a message and waits for its answer.
func (m *Model) request(ctx context.Context, a ask) error {
	ctx, cancel := context.WithTimeoutCause(ctx, defaultAnswerWithin, ErrNoAnswer)
	defer cancel()
	key, err := m.post(ctx, a)
	if err != nil {
		return err
	}
	for {
		st, changed := m.current()
		if i := slices.IndexFunc(st.Answers, func(a answer) bool { return a.ID == key }); i >= 0 {
			return refusal(st.Answers[i].Code)
		}
		if !pause(ctx, m.s.lookEvery(true), changed) {
			return context.Cause(ctx)
		}
		if m.s.shared {
			if err := m.look(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

// name is the consumer of a generation.
func (m *Model) name(generation uint64) string {
	return m.p.Name + millrace.GenerationMark + strconv.FormatUint(generation, 10)
}

func (m *Model) collection(generation uint64, t *millrace.Table) string {
	return m.name(generation) + "." + t.Name
}
