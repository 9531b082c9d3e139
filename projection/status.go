package projection

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/millrace-io/millrace"
)

// Rebuild is a generation that is being built, waits to be switched to, or has ended one way or the other.
type Rebuild struct {
	Generation uint64    `json:"generation"`
	Version    int       `json:"version"` // of the code that makes it
	Hold       bool      `json:"hold,omitzero"`
	Started    time.Time `json:"started"`
	Caught     time.Time `json:"caught_up,omitzero"` // what follows is the comparison and the switch
	Ready      bool      `json:"ready,omitzero"`     // it is complete, is kept up to date, and waits for a person
	Done       bool      `json:"done,omitzero"`
	Finished   time.Time `json:"finished,omitzero"`
	Events     uint64    `json:"events,omitzero"` // behind it, over all partitions
	Total      uint64    `json:"total,omitzero"`  // in the log
	// Partitions is how many have come up to the head.
	Partitions int `json:"-"`
	// Nodes tells the progress by the owners of the partitions, where they are known.
	Nodes []NodeProgress `json:"-"`
	// Error says why a rebuild that is done came to nothing; the live generation is then the one from before. It may hold
	// values and paths: it is for operators. Reason is one of the Reason constants.
	Error  string `json:"error,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Differences are those to the generation that was live when it had caught up; nil where they were not looked for.
	Differences *Differences `json:"differences,omitempty"`
}

// Identical says whether the new documents were byte for byte the old ones; nil where that is not known.
func (r *Rebuild) Identical() *bool {
	if r.Differences == nil {
		return nil
	}
	return r.Differences.None()
}

// count fills in the events of one that has ended.
func (r *Rebuild) count(at millrace.Cursor) {
	r.Events = 0
	for _, position := range at.Positions {
		r.Events += position
	}
	r.Total = r.Events
}

// NodeProgress is how far a node is with its partitions.
type NodeProgress struct {
	Node       string // empty where nobody owns them
	Partitions int    // that it owns
	Done       int    // that have come up to the head
	Events     uint64
	Total      uint64
}

// Repair is a stream whose documents were, or are to be, made again.
type Repair struct {
	ID       string    `json:"id"`
	Stream   string    `json:"stream"`
	Asked    time.Time `json:"asked"`
	Finished time.Time `json:"finished,omitzero"`
	Reason   string    `json:"reason,omitempty"` // why it came to nothing
	Error    string    `json:"error,omitempty"`
}

// Done says whether it has ended.
func (r *Repair) Done() bool { return !r.Finished.IsZero() }

func (st *state) repairing() bool {
	return slices.ContainsFunc(st.Repairs, func(r Repair) bool { return !r.Done() })
}

// Status is what there is to know of a read model, on any node.
type Status struct {
	Name       string
	Version    int    // of the code that made the live generation
	Code       int    // the version that this node runs
	Generation uint64 // the live one
	Cursor     string
	Position   uint64        // events behind it, over all partitions
	Gap        uint64        // events before it
	Lag        time.Duration // how long the oldest of them has been there
	Parked     int           // streams that were given up until somebody repairs them
	Switching  bool
	Previous   *Previous
	Rebuild    *Rebuild // the present one, or else the newest
	Repairs    []Repair
	LastError  *Fault
}

// Status says how the read model stands.
func (m *Model) Status(ctx context.Context) (Status, error) {
	if m.s.shared {
		if err := m.look(ctx); err != nil {
			return Status{}, err
		}
	}
	st, _ := m.current()
	out := Status{
		Name: m.p.Name, Version: st.Version, Code: m.p.Version, Generation: st.Generation, Switching: st.Switch != nil,
		Previous: st.Previous, Repairs: slices.Clone(st.Repairs), LastError: st.Fault,
	}
	c, err := m.s.store.Checkpoints(ctx, m.name(st.Generation))
	if err != nil {
		return out, err
	}
	head := m.s.store.Head()
	out.Cursor = c.String()
	for p, pos := range head.Positions {
		out.Position += c.Position(p)
		out.Gap += pos - min(c.Position(p), pos)
	}
	if out.Lag, err = m.lag(ctx, c, head); err != nil {
		return out, err
	}
	parked, err := m.parked(ctx, st.Generation)
	if err != nil {
		return out, err
	}
	if out.Parked = len(parked); out.Parked > 0 {
		p := slices.MaxFunc(parked, func(a, b millrace.Parked) int { return a.Since.Compare(b.Since) })
		if out.LastError == nil || p.Since.After(out.LastError.At) {
			out.LastError = &Fault{What: "parked", At: p.Since, Reason: p.Reason, Stream: p.Stream, Error: p.Error}
		}
	}
	switch {
	case st.Build != nil:
		b := *st.Build
		out.Rebuild = &b
		err = m.progress(ctx, &b, head)
	case st.Last != nil:
		b := *st.Last
		if out.Rebuild = &b; b.Error == "" {
			b.Partitions = len(head.Positions)
		}
	}
	return out, err
}

// maxLagging bounds the partitions in which the oldest event is looked for: those with the most events.
const maxLagging = 16

// lag is the age of the oldest event that a cursor does not cover.
func (m *Model) lag(ctx context.Context, c, head millrace.Cursor) (time.Duration, error) {
	var behind []int
	for p, pos := range head.Positions {
		if c.Position(p) < pos {
			behind = append(behind, p)
		}
	}
	gap := func(p int) uint64 { return head.Positions[p] - c.Position(p) }
	slices.SortFunc(behind, func(a, b int) int { return cmp.Compare(gap(b), gap(a)) })
	var oldest time.Time
	for _, p := range behind[:min(len(behind), maxLagging)] {
		for events, err := range m.s.store.Feed(ctx, millrace.FeedOptions{After: c, Partitions: []int{p}}) {
			if err != nil {
				return 0, err
			}
			if len(events) > 0 && (oldest.IsZero() || events[0].Time.Before(oldest)) {
				oldest = events[0].Time
			}
			break
		}
	}
	if oldest.IsZero() {
		return 0, nil
	}
	return max(0, m.s.o.Now().Sub(oldest)), nil
}

// progress fills in how far a rebuild is.
func (m *Model) progress(ctx context.Context, b *Rebuild, head millrace.Cursor) error {
	at, err := m.s.store.Checkpoints(ctx, m.name(b.Generation))
	if err != nil {
		return err
	}
	var owners map[int]string
	if m.s.o.Owners != nil {
		if owners, err = m.s.o.Owners(ctx); err != nil {
			return err
		}
	}
	nodes := map[string]*NodeProgress{}
	for p, total := range head.Positions {
		n := nodes[owners[p]]
		if n == nil {
			n = &NodeProgress{Node: owners[p]}
			nodes[n.Node] = n
		}
		events := min(at.Position(p), total)
		n.Partitions++
		n.Events += events
		n.Total += total
		b.Events += events
		b.Total += total
		if events == total {
			n.Done++
			b.Partitions++
		}
	}
	if owners != nil {
		for _, n := range nodes {
			b.Nodes = append(b.Nodes, *n)
		}
		slices.SortFunc(b.Nodes, func(a, b NodeProgress) int { return cmp.Compare(a.Node, b.Node) })
	}
	return nil
}

// List says how all read models stand, in the order in which they were declared.
func (s *Service) List(ctx context.Context) ([]Status, error) {
	var out []Status
	for _, m := range s.order {
		st, err := m.Status(ctx)
		if err != nil {
			return nil, err
		}
		out = append(out, st)
	}
	return out, nil
}
