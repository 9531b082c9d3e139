// Package projection makes read models: documents that follow from events by a pure function.
//
// The documents of a projection form a generation. A rebuild makes another generation from the first event on, beside the
// live one, compares the two, and switches over when it has caught up: a reader sees all of the old one or all of the new
// one, on whichever node, and never an older state than before. The generation that was live is kept for a while, and
// followed, so that the way back is a switch too. A rebuild that fails leaves the live generation as it is. A projection
// whose code has another version than its documents is rebuilt.
//
// Where several nodes share a store, each makes the documents of the partitions that it owns. What is live and what is being
// built stands in one document, which the owner of its partition alone can write: he coordinates, the others follow. All that
// he knows stands in the store, so that another can take over between any two of his steps.
package projection

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
)

// Options of New.
type Options struct {
	// Run runs a consumer until ctx ends, over the partitions that this node owns. It is required: wiring passes the feed's
	// runner.
	Run func(ctx context.Context, c millrace.Consumer) error
	// Repair makes the documents of one stream again, in a partition that this node owns under the token, while the consumer
	// does not run here. Wiring passes the feed's. Defaults to none, and then no stream can be repaired.
	Repair func(ctx context.Context, c millrace.Consumer, s millrace.Stream, own []millrace.DocumentName, token uint64) error
	// Owned are the partitions of this node with their fencing tokens, and what is closed when they are others, on a store that
	// several nodes share. Defaults to all of them, on a store of one process.
	Owned func() (partitions map[int]uint64, changed <-chan struct{})
	// Owners names the owner of each partition. Defaults to nobody knowing.
	Owners func(ctx context.Context) (map[int]string, error)
	// Node is this node's name. Defaults to none.
	Node string
	// Paused says whether a projection stands still on this node: its documents of this node's partitions are left where they
	// are. It is asked again and again. Defaults to never.
	Paused func(projection string) bool
	// Hold builds the generation that a change of the code asks for, and compares it, and leaves the switch to people.
	Hold bool
	// Keep is how long a generation is kept that was live; negative is not at all. Defaults to 1 h.
	Keep time.Duration
	// Logger gets rebuilds. Defaults to nothing.
	Logger *slog.Logger
	// Now is the clock. Defaults to time.Now.
	Now func() time.Time

	// For controls of tests.
	without without
	fresh   time.Duration
}

// without are protections that a control does without.
type without struct {
	aim   bool // a generation need not have come up to the live one
	halt  bool // the live consumers go on
	fresh bool // readers go by what their node knows
	begin bool // a consumer does not ask whether it may begin
}

const (
	defaultKeep = time.Hour
	// idleLook is how often the documents about the read models are looked at while nothing is on its way; on a store of
	// one process whoever changes them also tells.
	idleLook = 500 * time.Millisecond
	// busyLook and busyLookShared are how often while something is.
	busyLook       = 5 * time.Millisecond
	busyLookShared = 50 * time.Millisecond
)

// Service runs the projections of a program and answers for their read models.
type Service struct {
	o      Options
	shared bool
	fresh  time.Duration // freshFor
	store  *millrace.Store
	models map[string]*Model
	order  []*Model
	// writing: one change of the documents about the read models at a time. They share a consumer.
	writing sync.Mutex
}

// Model is one read model. It implements millrace.ReadModel.
type Model struct {
	s *Service
	p millrace.Projection
	// known is what this node knows of the read model.
	known atomic.Pointer[known]
	poked chan struct{} // the coordinator has something to do

	comparing sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{}   // closed when known changes
	running map[uint64]bool // generations whose consumers run here
}

// known is a state, and since when it is: it was true at some time after at, and not older than any that a look could find
// which began at settled or later.
type known struct {
	*state
	at, settled time.Time
}

// New makes the read models of projections.
func New(ctx context.Context, store *millrace.Store, projections []millrace.Projection, opts Options) (*Service, error) {
	if opts.Run == nil {
		return nil, errors.New("projection: Options.Run is required")
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now //nolint:forbidigo // the default of what is injected
	}
	if opts.Paused == nil {
		opts.Paused = func(string) bool { return false }
	}
	if opts.Keep == 0 {
		opts.Keep = defaultKeep
	}
	s := &Service{o: opts, store: store, shared: opts.Owned != nil, fresh: cmp.Or(opts.fresh, freshFor), models: map[string]*Model{}}
	if !s.shared {
		all, never := make(map[int]uint64, store.Partitions()), make(chan struct{})
		for p := range store.Partitions() {
			all[p] = 0
		}
		s.o.Owned = func() (map[int]uint64, <-chan struct{}) { return all, never }
	}
	for _, p := range projections {
		if s.models[p.Name] != nil || p.Name == "" || p.Project == nil {
			return nil, fmt.Errorf("projection %q: needs a name of its own and Project", p.Name)
		}
		m := &Model{s: s, p: p, poked: make(chan struct{}, 1), changed: make(chan struct{}), running: map[uint64]bool{}}
		if err := m.look(ctx); err != nil {
			return nil, err
		}
		s.models[p.Name] = m
		s.order = append(s.order, m)
	}
	return s, nil
}

// Model finds a read model by its projection's name; nil where there is none.
func (s *Service) Model(name string) *Model { return s.models[name] }

// Run keeps all read models up to date until ctx ends (nil) or the store fails.
func (s *Service) Run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, m := range s.order {
		g.Go(func() error { m.coordinate(gctx); return nil })
		g.Go(func() error { return m.follow(gctx) })
	}
	return g.Wait()
}

// Consumers are the names of the live consumers, for metrics.
func (s *Service) Consumers() map[string]string {
	out := map[string]string{}
	for _, m := range s.order {
		out[m.p.Name] = m.name(m.live())
	}
	return out
}

// lookEvery is how often to look.
func (s *Service) lookEvery(busy bool) time.Duration {
	switch {
	case !busy:
		return idleLook
	case s.shared:
		return busyLookShared
	}
	return busyLook
}

// pause waits; false where ctx ends first. Any of the channels ends it early; nil is none.
func pause(ctx context.Context, wait time.Duration, early ...<-chan struct{}) bool {
	t := time.NewTimer(wait)
	defer t.Stop()
	var a, b, c <-chan struct{}
	for i, to := range []*<-chan struct{}{&a, &b, &c} {
		if i < len(early) {
			*to = early[i]
		}
	}
	select {
	case <-t.C:
	case <-a:
	case <-b:
	case <-c:
	case <-ctx.Done():
		return false
	}
	return true
}
