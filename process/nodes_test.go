package process_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/millracetest/nodes"
	"github.com/millrace-io/millrace/pgstore"
	"github.com/millrace-io/millrace/process"
)

// node is one of several that share a database: it decides the partitions that it leases, and runs the process in them.
type node struct{ *world }

func startNode(t *testing.T, dsn, name string) *node {
	t.Helper()
	reg := registry(t)
	leased, err := nodes.Open(context.Background(), dsn, reg, pgstore.Options{
		Node: name, Partitions: 4, LeaseTTL: time.Second, NoSync: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{world: &world{t: t, name: "jobs", s: leased.Store, p: leased.Intake}}
	manager, err := process1().Manager()
	if err != nil {
		t.Fatal(err)
	}
	c := process.New(n.s, reg, n.p, manager, nil).Consumer()
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	n.run(ctx, leased.Run)
	n.run(ctx, func(ctx context.Context) error { return leased.Follow(ctx, c, feed.Options{Workers: 1}) })
	return n
}

// Jobs are sent to whichever node, while nodes come and go and their partitions with them: every job comes to its end, and
// has taken what it should, once.
func TestJobsOverNodes(t *testing.T) {
	dsn := pgtest.Start(t, pgtest.Options{NoSync: true}).DSN("postgres")
	rng := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test's choices
	running := []*node{startNode(t, dsn, "n0"), startNode(t, dsn, "n1")}
	filled := map[string]int{"a": 60, "b": 40, "c": 30, "d": 200}
	for shelf, k := range filled {
		running[0].fill(shelf, k)
	}
	started := map[string][]string{}
	for round := range 6 {
		for k := range 25 {
			name := fmt.Sprintf("j%d-%d", round, k)
			started[name] = [][]string{{"a", "b"}, {"b", "c", "d"}, {"c", "a"}, {"d"}}[k%4]
			running[rng.IntN(len(running))].job(name, time.Time{}, started[name]...)
		}
		// One goes, another one comes.
		gone := running[round%2]
		running[round%2] = startNode(t, dsn, fmt.Sprint("n", round+2))
		gone.mustStop()
	}
	for name := range started {
		if i := running[0].until(name, func(i *millrace.Instance) bool { return i.Done || i.Failed != "" }); i.Failed != "" {
			t.Errorf("%+v", i)
		}
	}
	running[1].balance(filled, started)
	for _, n := range running {
		n.mustStop()
	}
}
