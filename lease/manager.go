package lease

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/millrace-io/millrace"
)

// Backend is what a store that several nodes share offers besides [millrace.Driver].
type Backend interface {
	// Acquire takes a partition that is free, under a new epoch; ok is false where another node has it.
	Acquire(ctx context.Context, partition int) (epoch uint64, ok bool, err error)
	// Renew extends all leases of this node and names the partitions that are not its own any more.
	Renew(ctx context.Context) (lost []int, err error)
	// Owned are the partitions whose leases this node has, as far as it knows.
	Owned() []int
	// Release ends the lease of a partition.
	Release(ctx context.Context, partition int) error
	// Join says that this node is there for another while, and which nodes are, itself among them, in order.
	Join(ctx context.Context) (nodes []string, err error)
	// Leave says that it is going: its share is the others' from now on.
	Leave(ctx context.Context) error
	// Free are the partitions that nobody owns or whose owner's lease is over.
	Free(ctx context.Context) ([]int, error)
}

// Options of New.
type Options struct {
	Node       string
	Partitions int
	// Every is how often leases are renewed and shares looked at: a third of a lease's time, so that two renewals may fail.
	Every time.Duration
	// Serve does the owner's work for a partition until ctx ends or it cannot go on. It is called anew while the partition
	// is owned, and has returned before the partition is handed over.
	Serve func(ctx context.Context, partition int, epoch uint64) error
	// Prefer are partitions that are taken before others, where they are free. Defaults to none.
	Prefer func() []int
	// Logger gets what moves. Defaults to nothing.
	Logger *slog.Logger
}

// Manager owns this node's share.
type Manager struct {
	o Options
	b Backend

	mu      sync.Mutex
	owned   map[int]*served
	ending  map[int]*served // not owned any more, and still at work
	changed chan struct{}   // closed when owned changes
}

// served is a partition that is owned.
type served struct {
	epoch uint64
	stop  context.CancelFunc
	ended chan struct{}
	// release: the lease is to be ended when the work has.
	release bool
}

func (s *served) hasEnded() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// New makes a manager that owns nothing yet.
func New(b Backend, o Options) *Manager {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Manager{o: o, b: b, owned: map[int]*served{}, ending: map[int]*served{}, changed: make(chan struct{})}
}

// Owned are the partitions of this node with their epochs, and what is closed when they are others.
func (m *Manager) Owned() (partitions map[int]uint64, changed <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	partitions = make(map[int]uint64, len(m.owned))
	for p, s := range m.owned {
		partitions[p] = s.epoch
	}
	return partitions, m.changed
}

// mine are the partitions of this node, in order.
func (m *Manager) mine() []int {
	owned, _ := m.Owned()
	return slices.Sorted(maps.Keys(owned))
}

// Run keeps this node's share until ctx ends. Then it hands everything over, for which ctx leaves it a while.
func (m *Manager) Run(ctx context.Context) error {
	t := time.NewTicker(m.o.Every)
	defer t.Stop()
	for {
		// A round is not cut short: a word that nobody waits for any more, that this node is there or takes a partition, could be
		// written behind the word that it goes, and its share would be nobody's for a lease's time.
		m.round(context.WithoutCancel(ctx))
		select {
		case <-ctx.Done():
			return m.leave(context.WithoutCancel(ctx))
		case <-t.C:
		}
	}
}

// round renews what is owned, and gives up or takes what the share asks for. What fails is tried in the next round:
// until then the leases hold, or end.
func (m *Manager) round(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, m.o.Every)
	defer cancel()
	lost, err := m.b.Renew(ctx)
	m.drop(lost)
	m.drop(m.refused())
	if err == nil {
		err = m.finish(ctx)
	}
	if err == nil {
		err = m.spread(ctx)
	}
	if err != nil && ctx.Err() == nil {
		m.o.Logger.Warn("cannot look after the leases, trying again", "error", err)
	}
}

// spread brings what is owned to this node's share.
func (m *Manager) spread(ctx context.Context) error {
	nodes, err := m.b.Join(ctx)
	if err != nil {
		return err
	}
	owned := m.mine()
	share := Share(nodes, m.o.Node, m.o.Partitions)
	if n := len(owned) - share; n > 0 {
		// The last ones: whoever comes takes from the end, and the others stay where they are.
		return m.release(ctx, owned[len(owned)-n:])
	}
	if len(owned) == share {
		return nil
	}
	free, err := m.b.Free(ctx)
	if err != nil {
		return err
	}
	for _, p := range m.preferred(free) {
		if len(owned) == share {
			break
		}
		epoch, ok, err := m.b.Acquire(ctx, p)
		if err != nil {
			return err
		}
		if ok {
			m.take(p, epoch)
			owned = append(owned, p)
		}
	}
	return nil
}

// preferred are partitions in the order in which they are to be taken.
func (m *Manager) preferred(free []int) []int {
	if m.o.Prefer == nil {
		return free
	}
	first := m.o.Prefer()
	slices.SortStableFunc(free, func(a, b int) int {
		switch pa, pb := slices.Contains(first, a), slices.Contains(first, b); {
		case pa && !pb:
			return -1
		case pb && !pa:
			return 1
		}
		return 0
	})
	return free
}

// Share is how many partitions belong to a node: the same number for all, and one more for the first ones in order until
// none is left.
func Share(nodes []string, node string, partitions int) int {
	i := slices.Index(nodes, node)
	if i < 0 {
		return 0
	}
	share := partitions / len(nodes)
	if i < partitions%len(nodes) {
		share++
	}
	return share
}

// take begins to serve a partition.
func (m *Manager) take(p int, epoch uint64) {
	// Not in the context of Run: a partition is served until it is given up in order.
	ctx, cancel := context.WithCancel(context.Background())
	s := &served{epoch: epoch, stop: cancel, ended: make(chan struct{})}
	m.mu.Lock()
	old := m.ending[p]
	delete(m.ending, p)
	m.owned[p] = s
	m.tell()
	m.mu.Unlock()
	m.o.Logger.Info("partition taken", "partition", p, "epoch", epoch)
	go func() {
		defer close(s.ended)
		if old != nil {
			<-old.ended
		}
		m.serve(ctx, p, epoch)
	}()
}

// tell says that owned has changed; m.mu is held.
func (m *Manager) tell() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// serve calls Serve again and again while the partition is owned.
func (m *Manager) serve(ctx context.Context, p int, epoch uint64) {
	for {
		err := m.o.Serve(ctx, p, epoch)
		if ctx.Err() != nil {
			return
		}
		m.o.Logger.Warn("a partition's work ended, beginning again", "partition", p, "error", err)
		if errors.Is(err, millrace.ErrClosed) || errors.Is(err, millrace.ErrFailed) {
			return
		}
		wait := time.NewTimer(m.o.Every / again)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return
		}
	}
}

// again is the part of a round that passes before work that ended is begun again.
const again = 10

// drop stops the work for partitions that are lost. It does not wait: nothing that comes of it can be written.
func (m *Manager) drop(lost []int) {
	for _, p := range lost {
		if s := m.end(p, false); s != nil {
			m.o.Logger.Warn("partition lost", "partition", p, "epoch", s.epoch)
		}
	}
}

// refused are the partitions that the backend has found to be another node's when it wrote.
func (m *Manager) refused() []int {
	has := m.b.Owned()
	return slices.DeleteFunc(m.mine(), func(p int) bool { return slices.Contains(has, p) })
}

// end stops the work for a partition; nil where it is not owned.
func (m *Manager) end(p int, release bool) *served {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.owned[p]
	if s != nil {
		s.release = release
		s.stop()
		delete(m.owned, p)
		m.ending[p] = s
		m.tell()
	}
	return s
}

// finish ends the leases of what is at rest.
func (m *Manager) finish(ctx context.Context) error {
	m.mu.Lock()
	rest := map[int]bool{}
	for p, s := range m.ending {
		if s.hasEnded() {
			rest[p] = s.release
			delete(m.ending, p)
		}
	}
	m.mu.Unlock()
	var errs []error
	for p, release := range rest {
		if release {
			errs = append(errs, m.b.Release(ctx, p))
			m.o.Logger.Info("partition handed over", "partition", p)
		}
	}
	return errors.Join(errs...)
}

// release hands partitions over: their work ends first, all at once, so that the next owner finds everything written. What
// does not end in time is handed over by a later round.
func (m *Manager) release(ctx context.Context, partitions []int) error {
	var ending []*served
	for _, p := range partitions {
		if s := m.end(p, true); s != nil {
			ending = append(ending, s)
		}
	}
	for _, s := range ending {
		select {
		case <-s.ended:
		case <-ctx.Done():
		}
	}
	return m.finish(ctx)
}

// leaveGrace bounds how long a node that stops looks after its partitions; then their leases end by themselves.
const leaveGrace = 10 * time.Second

// leave hands over all that is owned.
func (m *Manager) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaveGrace)
	defer cancel()
	owned := m.mine()
	if err := errors.Join(m.b.Leave(ctx), m.release(ctx, owned), ctx.Err()); err != nil {
		m.o.Logger.Warn("partitions could not be handed over; their leases end by themselves", "error", err)
	}
	return nil
}
