package process_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/lease"
	"github.com/millrace-io/millrace/pgstore"
	"github.com/millrace-io/millrace/process"
)

// node is one of several that share a database: it decides the partitions that it leases, and runs the process in them.
type node struct {
	*world
	leases *lease.Manager
}

const nodePartitions = 4

func startNode(t *testing.T, dsn, name string) *node {
	t.Helper()
	var n *node
	var ready sync.WaitGroup
	ready.Add(1)
	s, err := pgstore.Open(context.Background(), dsn, &pgstore.Options{
		Node: name, Partitions: nodePartitions, LeaseTTL: time.Second, NoSync: true,
		Undecided: func(partition int) { ready.Wait(); n.p.Look(partition) },
	})
	if err != nil {
		t.Fatal(err)
	}
	reg := registry(t)
	n = &node{world: &world{t: t, name: "jobs", s: s, p: command.New(s, reg, &command.Options{Shared: true})}}
	ready.Done()
	manager, err := process1().Manager()
	if err != nil {
		t.Fatal(err)
	}
	m := process.New(s, reg, n.p, manager, nil)
	n.leases = lease.New(s.Driver().(*pgstore.Driver), lease.Options{ //nolint:forcetypeassert // it has just been opened
		Node: name, Partitions: nodePartitions, Every: 100 * time.Millisecond,
		Serve: func(ctx context.Context, partition int, epoch uint64) error {
			s.Own(partition, epoch)
			return n.p.Serve(ctx, partition)
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	n.run(ctx, n.p.Run)
	n.run(ctx, n.leases.Run)
	n.run(ctx, func(ctx context.Context) error { return n.follow(ctx, reg, m.Consumer()) })
	return n
}

// follow runs a consumer over the partitions that the node owns, whichever they are.
func (n *node) follow(ctx context.Context, reg *millrace.Registry, c millrace.Consumer) error {
	for ctx.Err() == nil {
		owned, changed := n.leases.Owned()
		inner, stop := context.WithCancel(ctx)
		go func() {
			select {
			case <-changed:
				stop()
			case <-inner.Done():
			}
		}()
		var err error
		if len(owned) > 0 {
			err = feed.New(n.s, reg, c, &feed.Options{Partitions: owned, Workers: 1}).Run(inner)
		} else {
			<-inner.Done()
		}
		stop()
		if err != nil && !errors.Is(err, millrace.ErrFenced) && !millrace.IsTransient(err) {
			return err
		}
	}
	return nil
}

// Jobs are sent to whichever node, while nodes come and go and their partitions with them: every job comes to its end, and
// has taken what it should, once.
func TestJobsOverNodes(t *testing.T) {
	dsn := pgtest.Start(t, pgtest.Options{NoSync: true}).DSN("postgres")
	rng := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test's choices
	nodes := []*node{startNode(t, dsn, "n0"), startNode(t, dsn, "n1")}
	filled := map[string]int{"a": 60, "b": 40, "c": 30, "d": 200}
	for shelf, k := range filled {
		nodes[0].fill(shelf, k)
	}
	started := map[string][]string{}
	for round := range 6 {
		for k := range 25 {
			name := fmt.Sprintf("j%d-%d", round, k)
			started[name] = [][]string{{"a", "b"}, {"b", "c", "d"}, {"c", "a"}, {"d"}}[k%4]
			nodes[rng.IntN(len(nodes))].job(name, time.Time{}, started[name]...)
		}
		// One goes, another one comes.
		gone := nodes[round%2]
		nodes[round%2] = startNode(t, dsn, fmt.Sprint("n", round+2))
		gone.mustStop()
	}
	for name := range started {
		if i := nodes[0].until(name, func(i *millrace.Instance) bool { return i.Done || i.Failed != "" }); i.Failed != "" {
			t.Errorf("%+v", i)
		}
	}
	nodes[1].balance(filled, started)
	for _, n := range nodes {
		n.mustStop()
	}
}
