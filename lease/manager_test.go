package lease_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-io/millrace/lease"
)

const (
	partitions = 16
	ttl        = 6 * time.Second
	every      = time.Second
	arrival    = 300 * time.Millisecond
)

// table is what all nodes share: the leases and who is there.
type table struct {
	mu     sync.Mutex
	owner  [partitions]string
	epoch  [partitions]uint64
	until  [partitions]time.Time
	nodes  map[string]time.Time
	broken map[string]bool // nodes that cannot reach it
	work   map[string]int  // partitions at work, by node and partition: more than one is an error
	taken  []string        // what was done, for messages
	// slow has a node's words that it is there arrive after a while, whether it waits for that or not; each is announced.
	slow map[string]chan<- struct{}
}

var errBroken = errors.New("the backend is away")

// backend is a node's way to the table.
type backend struct {
	t    *table
	node string
	// known are the epochs of what the node thinks that it owns.
	known map[int]uint64
}

func (b *backend) reach() error {
	if b.t.broken[b.node] {
		return errBroken
	}
	return nil
}

func (b *backend) Acquire(_ context.Context, p int) (uint64, bool, error) {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	if err := b.reach(); err != nil {
		return 0, false, err
	}
	if b.t.owner[p] != "" && b.t.owner[p] != b.node && time.Now().Before(b.t.until[p]) {
		return 0, false, nil
	}
	b.t.owner[p], b.t.until[p] = b.node, time.Now().Add(ttl)
	b.t.epoch[p]++
	b.known[p] = b.t.epoch[p]
	b.t.taken = append(b.t.taken, fmt.Sprintf("%s takes %d", b.node, p))
	return b.t.epoch[p], true, nil
}

func (b *backend) Renew(context.Context) (lost []int, err error) {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	if err := b.reach(); err != nil {
		return nil, err
	}
	for p, epoch := range b.known {
		if b.t.epoch[p] != epoch || b.t.owner[p] != b.node {
			delete(b.known, p)
			lost = append(lost, p)
			continue
		}
		b.t.until[p] = time.Now().Add(ttl)
	}
	return lost, nil
}

func (b *backend) Owned() []int {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	return slices.Collect(maps.Keys(b.known))
}

func (b *backend) Release(_ context.Context, p int) error {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	if err := b.reach(); err != nil {
		return err
	}
	if b.known[p] == b.t.epoch[p] {
		b.t.owner[p] = ""
	}
	delete(b.known, p)
	return nil
}

func (b *backend) Join(ctx context.Context) ([]string, error) {
	b.t.mu.Lock()
	slow := b.t.slow[b.node]
	b.t.mu.Unlock()
	if slow == nil {
		return b.join()
	}
	var nodes []string
	var err error
	arrived := make(chan struct{})
	time.AfterFunc(arrival, func() { nodes, err = b.join(); close(arrived) })
	slow <- struct{}{}
	select {
	case <-arrived:
		return nodes, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (b *backend) join() ([]string, error) {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	if err := b.reach(); err != nil {
		return nil, err
	}
	b.t.nodes[b.node] = time.Now().Add(ttl)
	var out []string
	for n, until := range b.t.nodes {
		if time.Now().Before(until) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

func (b *backend) Leave(context.Context) error {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	if err := b.reach(); err != nil {
		return err
	}
	delete(b.t.nodes, b.node)
	return nil
}

func (b *backend) Free(context.Context) ([]int, error) {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	if err := b.reach(); err != nil {
		return nil, err
	}
	var out []int
	for p, owner := range b.t.owner {
		if owner == "" || !time.Now().Before(b.t.until[p]) {
			out = append(out, p)
		}
	}
	return out, nil
}

// world is a table and the nodes on it.
type world struct {
	t     *testing.T
	table *table
	stop  map[string]func()
	nodes map[string]*lease.Manager
}

func newWorld(t *testing.T) *world {
	return &world{t: t, stop: map[string]func(){}, nodes: map[string]*lease.Manager{}, table: &table{
		nodes: map[string]time.Time{}, broken: map[string]bool{}, work: map[string]int{},
	}}
}

// start starts a node. Its work for a partition takes a while to stop.
func (w *world) start(node string, stopping time.Duration) {
	b := &backend{t: w.table, node: node, known: map[int]uint64{}}
	m := lease.New(b, lease.Options{Node: node, Partitions: partitions, Every: every, Serve: func(ctx context.Context, p int, epoch uint64) error {
		key := fmt.Sprint(node, "/", p)
		w.table.mu.Lock()
		if w.table.work[key]++; w.table.work[key] > 1 {
			w.t.Errorf("%s serves partition %d twice at once", node, p)
		}
		w.table.mu.Unlock()
		<-ctx.Done()
		time.Sleep(stopping) //nolint:forbidigo // fake time
		w.table.mu.Lock()
		defer w.table.mu.Unlock()
		w.table.work[key]--
		if w.table.owner[p] != node && w.table.epoch[p] == epoch {
			w.t.Errorf("%s handed partition %d over before its work had ended", node, p)
		}
		return nil
	}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := m.Run(ctx); err != nil {
			w.t.Error(err)
		}
	}()
	w.nodes[node] = m
	w.stop[node] = func() { cancel(); <-ended }
}

// kill makes a node vanish without a word: it cannot reach the table any more.
func (w *world) kill(node string) {
	w.table.mu.Lock()
	defer w.table.mu.Unlock()
	w.table.broken[node] = true
}

func (w *world) heal(node string) {
	w.table.mu.Lock()
	defer w.table.mu.Unlock()
	delete(w.table.broken, node)
}

// shares are how many partitions each node owns by the table.
func (w *world) shares() map[string]int {
	w.table.mu.Lock()
	defer w.table.mu.Unlock()
	out := map[string]int{}
	for p, owner := range w.table.owner {
		if owner != "" && time.Now().Before(w.table.until[p]) {
			out[owner]++
		}
	}
	return out
}

// settles waits until the shares are as wanted, and says how long that took.
func (w *world) settles(within time.Duration, want map[string]int) time.Duration {
	w.t.Helper()
	began := time.Now()
	for {
		synctest.Wait()
		if got := w.shares(); fmt.Sprint(got) == fmt.Sprint(want) {
			return time.Since(began)
		} else if time.Since(began) > within {
			w.t.Fatalf("the shares are %v after %s, want %v\n%v", got, time.Since(began), want, w.table.taken)
		}
		time.Sleep(50 * time.Millisecond) //nolint:forbidigo // fake time
	}
}

func (w *world) end() {
	for _, stop := range w.stop {
		stop()
	}
}

// Nodes come, go in order and vanish; the partitions are spread evenly each time, and soon.
func TestSharesFollowTheNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.end()
		w.start("a", 0)
		w.settles(2*every, map[string]int{"a": 16})
		w.start("b", 100*time.Millisecond)
		w.settles(3*every, map[string]int{"a": 8, "b": 8})
		w.start("c", 0)
		w.settles(4*every, map[string]int{"a": 6, "b": 5, "c": 5})
		w.stop["b"]()
		delete(w.stop, "b")
		t.Logf("after a stop: %s", w.settles(2*time.Second, map[string]int{"a": 8, "c": 8}))
		w.kill("a")
		t.Logf("after a kill: %s", w.settles(10*time.Second, map[string]int{"c": 16}))
		// It was only away: what it had is lost, and it gets a new share.
		w.heal("a")
		w.settles(4*every, map[string]int{"a": 8, "c": 8})
		if owned, _ := w.nodes["a"].Owned(); len(owned) != 8 {
			t.Errorf("a thinks that it owns %v", owned)
		}
	})
}

// A node is told to stop while its word that it is there is on its way: it goes after that, or nobody would take what it had
// until its word is too old.
func TestStopWhileItJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.end()
		w.start("a", 0)
		w.start("b", 0)
		w.settles(3*every, map[string]int{"a": 8, "b": 8})
		slow := make(chan struct{})
		w.table.mu.Lock()
		w.table.slow = map[string]chan<- struct{}{"b": slow}
		w.table.mu.Unlock()
		<-slow
		w.stop["b"]()
		delete(w.stop, "b")
		t.Logf("after a stop: %s", w.settles(2*time.Second, map[string]int{"a": 16}))
	})
}

// All nodes start at once.
func TestAllStartAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.end()
		for _, n := range []string{"a", "b", "c", "d", "e"} {
			w.start(n, 0)
		}
		w.settles(5*every, map[string]int{"a": 4, "b": 3, "c": 3, "d": 3, "e": 3})
	})
}

// Work that takes long to stop is waited for: its partitions are handed over afterwards, and nothing is served twice.
func TestWorkThatStopsSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.end()
		w.start("a", 4*time.Second)
		w.settles(2*every, map[string]int{"a": 16})
		w.start("b", 0)
		w.settles(10*time.Second, map[string]int{"a": 8, "b": 8})
		w.stop["b"]()
		delete(w.stop, "b")
		w.settles(10*time.Second, map[string]int{"a": 16})
	})
}

// More nodes than partitions: the last ones own nothing, and take over when others go.
func TestMoreNodesThanPartitions(t *testing.T) {
	nodes := []string{}
	for i := range partitions + 2 {
		nodes = append(nodes, fmt.Sprintf("n%02d", i))
	}
	total := 0
	for _, n := range nodes {
		total += lease.Share(nodes, n, partitions)
	}
	if total != partitions || lease.Share(nodes, "n17", partitions) != 0 || lease.Share(nodes, "stranger", partitions) != 0 {
		t.Errorf("%d partitions are spread", total)
	}
}

// Of what is free a node takes first what it prefers, whatever the order of the partitions. Without a preference, which is the
// control, it takes the first ones.
func TestPreferredFirst(t *testing.T) {
	odd := []int{1, 3, 5, 7, 9, 11, 13, 15}
	for _, c := range []struct {
		prefer func() []int
		want   []int
	}{{func() []int { return odd }, odd}, {nil, []int{0, 1, 2, 3, 4, 5, 6, 7}}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.table.nodes["b"] = time.Now().Add(time.Hour) // another one, to which the other half belongs
			m := lease.New(&backend{t: w.table, node: "a", known: map[int]uint64{}}, lease.Options{
				Node: "a", Partitions: partitions, Every: every, Prefer: c.prefer,
				Serve: func(ctx context.Context, _ int, _ uint64) error { <-ctx.Done(); return nil },
			})
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- m.Run(ctx) }()
			synctest.Wait()
			owned, _ := m.Owned()
			if got := slices.Sorted(maps.Keys(owned)); !slices.Equal(got, c.want) {
				t.Errorf("owned are %v, want %v", got, c.want)
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}
