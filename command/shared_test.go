package command_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/localstore"
)

// cluster is several processors on one store, each of which serves the partitions that it is told to.
type cluster struct {
	t     *testing.T
	s     *millrace.Store
	nodes []*command.Processor
	mu    sync.Mutex
	owner []int // by partition; -1 for nobody
	stop  []func() error
	epoch uint64
}

// newCluster starts nodes that own nothing. What one of them keeps, all are told of a moment later.
func newCluster(t *testing.T, s *millrace.Store, nodes int) *cluster {
	return newClusterWith(t, s, nodes, &command.Options{Shared: true})
}

func newClusterWith(t *testing.T, s *millrace.Store, nodes int, o *command.Options) *cluster {
	return newClusterOf(t, s, registry(t), nodes, o)
}

func newClusterOf(t *testing.T, s *millrace.Store, reg *millrace.Registry, nodes int, o *command.Options) *cluster {
	c := &cluster{t: t, s: s}
	ctx, cancel := context.WithCancel(context.Background())
	var ran sync.WaitGroup
	for range nodes {
		p := command.New(s, reg, o)
		c.nodes = append(c.nodes, p)
		ran.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	for range s.Partitions() {
		c.owner, c.stop = append(c.owner, -1), append(c.stop, nil)
	}
	ran.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			for p := range s.Partitions() {
				for _, n := range c.nodes {
					n.Look(p)
				}
			}
		}
	})
	t.Cleanup(func() {
		for p := range c.owner {
			c.give(p, -1)
		}
		cancel()
		ran.Wait()
	})
	return c
}

// give moves a partition to another node, or to nobody.
func (c *cluster) give(partition, node int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if stop := c.stop[partition]; stop != nil {
		if err := stop(); err != nil && !errors.Is(err, millrace.ErrFenced) {
			c.t.Error(err)
		}
	}
	c.owner[partition], c.stop[partition] = node, nil
	if node < 0 {
		return
	}
	c.epoch++
	c.s.Own(partition, c.epoch)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.nodes[node].Serve(ctx, partition) }()
	c.stop[partition] = func() error { cancel(); return <-ended }
}

// Partitions move between nodes all the time while clients send to all of them, now to one node, now to another. Every
// command is decided once, each client's in the order in which it sent them, and whoever waits is answered, whichever
// node he asked.
func TestPartitionsMoveBetweenNodes(t *testing.T) {
	const clients, each, nodes, partitions = 6, 150, 3, 4
	s := openWith(t, vfs.NewMem(), func(o *localstore.Options) { o.Partitions = partitions })
	c := newCluster(t, s, nodes)
	ctx := patient(t)
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(client), 1)) //nolint:gosec // a test's choices
			for i := range each {
				id, stream := fmt.Sprintf("c%d-%03d", client, i), fmt.Sprint("s", rng.IntN(9))
				r, err := c.nodes[rng.IntN(nodes)].Accept(ctx, add(id, stream, 1))
				if err != nil {
					t.Error(err)
					return
				}
				if rng.IntN(4) == 0 {
					if o, err := r.Wait(ctx); err != nil || o.Status != millrace.StatusDecided || o.CommandID != id {
						t.Errorf("%s: %+v %v", id, o, err)
						return
					}
				}
				// The same again, to another node: the same answer.
				if rng.IntN(20) == 0 {
					r, err := c.nodes[rng.IntN(nodes)].Accept(ctx, add(id, stream, 1))
					if err != nil || !r.Replayed {
						t.Errorf("%s again: %v", id, err)
						return
					}
					if o, err := r.Wait(ctx); err != nil || o.CommandID != id {
						t.Errorf("%s again: %+v %v", id, o, err)
					}
				}
			}
		})
	}
	moved := make(chan struct{})
	var sent atomic.Bool
	go func() {
		defer close(moved)
		rng := rand.New(rand.NewPCG(7, 7)) //nolint:gosec // a test's choices
		for !sent.Load() {
			c.give(rng.IntN(partitions), rng.IntN(nodes+1)-1)
		}
		for p := range partitions {
			c.give(p, p%nodes)
		}
	}()
	wg.Wait()
	sent.Store(true)
	<-moved
	for i := range 9 {
		decided(t, c.nodes[0], add(fmt.Sprint("end", i), fmt.Sprint("s", i), 1))
	}
	last := map[string]string{}
	total := 0
	for i := range 9 {
		for _, id := range commandsOf(t, s, fmt.Sprint("s", i)) {
			total++
			if id[0] == 'c' {
				key := fmt.Sprint(id[:2], i)
				if id <= last[key] {
					t.Errorf("s%d: %s was decided after %s", i, id, last[key])
				}
				last[key] = id
			}
		}
	}
	if total != clients*each+9 {
		t.Errorf("%d commands were decided, want %d", total, clients*each+9)
	}
	verify(t, s)
	// What a node handed over with somebody waiting for it goes when the node next asks for outcomes.
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i, n := range c.nodes {
		for n.InFlight() != 0 || n.Queued() != 0 {
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("node %d still has %d commands, %d of them count", i, n.InFlight(), n.Queued())
			}
		}
	}
}

// The store refuses an owner's commit, because another node has the partition by now. Nobody is told a wrong outcome, and
// the next owner decides what is left.
func TestFencedOwner(t *testing.T) {
	inner := openWith(t, vfs.NewMem(), func(o *localstore.Options) { o.Partitions = 1 })
	var fence atomic.Bool
	var refused atomic.Int64
	s := hooked(inner, &hooks{append: func(b *millrace.Batch, done func(error)) (take bool, instead func(error)) {
		if len(b.Decisions) > 0 && fence.Load() {
			refused.Add(1)
			go done(millrace.ErrFenced)
			return false, nil
		}
		return true, nil
	}})
	c := newCluster(t, s, 2)
	c.give(0, 0)
	ctx := patient(t)
	decided(t, c.nodes[0], add("first", "a", 1))
	fence.Store(true)
	var receipts []*millrace.Receipt
	for i := range 30 {
		r, err := c.nodes[i%2].Accept(ctx, add(fmt.Sprint("c", i), fmt.Sprint("s", i%3), 1))
		if err != nil {
			t.Fatal(err)
		}
		receipts = append(receipts, r)
	}
	for refused.Load() == 0 {
		if ctx.Err() != nil {
			t.Fatal("the owner does not decide")
		}
		c.nodes[0].Look(0)
	}
	for _, r := range receipts {
		if o := outcome(t, s, r.CommandID); o.Status != millrace.StatusAccepted {
			t.Errorf("%+v", o)
		}
	}
	fence.Store(false)
	c.give(0, 1)
	for _, r := range receipts {
		if o, err := r.Wait(ctx); err != nil || o.Status != millrace.StatusDecided {
			t.Errorf("%s: %+v %v", r.CommandID, o, err)
		}
	}
	verify(t, s)
}

// One id with two contents reaches two nodes at once. The store keeps the one that comes first. The owner, through whose own
// door the other one came, decides what the store has, and the other sender is told.
func TestOneKeyWithTwoContentsAtTwoNodes(t *testing.T) {
	inner := openWith(t, vfs.NewMem(), func(o *localstore.Options) { o.Partitions = 1 })
	arrived, decide := make(chan struct{}), make(chan struct{})
	s := hooked(inner, &hooks{append: func(b *millrace.Batch, done func(error)) (take bool, instead func(error)) {
		if len(b.Accepted) == 1 && b.Accepted[0].Command.Stream == "tally-late" {
			close(arrived)
			go func() {
				<-decide
				done(millrace.ErrKeyReused)
			}()
			return false, nil
		}
		return true, nil
	}})
	c := newCluster(t, s, 2)
	c.give(0, 0)
	ctx := patient(t)
	late := make(chan error, 1)
	go func() {
		_, err := c.nodes[0].Accept(ctx, add("x", "late", 1000))
		late <- err
	}()
	<-arrived
	r, err := c.nodes[1].Accept(ctx, add("x", "first", 1))
	if err != nil {
		t.Fatal(err)
	}
	o, err := r.Wait(ctx)
	if err != nil || o.Status != millrace.StatusDecided || o.Stream != "tally-first" {
		t.Errorf("%+v %v", o, err)
	}
	close(decide)
	if err := <-late; !errors.Is(err, millrace.ErrKeyReused) {
		t.Errorf("the other one is told %v", err)
	}
	if got := commandsOf(t, s, "late"); len(got) != 0 {
		t.Errorf("what was refused was decided: %v", got)
	}
	verify(t, s)
}
