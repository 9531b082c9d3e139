package feed_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/millracetest/nodes"
	"github.com/millrace-io/millrace/pgstore"
)

// sharing are the options of a consumer whose commits are transactions: those of a node of serve --store.
var sharing = feed.Options{
	Attempts: 2, Backoff: time.Millisecond, Lazy: 200 * time.Millisecond, Gather: 50 * time.Millisecond, Hurry: 10 * time.Millisecond, Workers: 1,
}

// TestPoisonedStreamsOnNodes is the same over two nodes, each with half of the partitions, of one PostgreSQL. Its rate is told, and no
// bound is demanded: it is over in a moment.
func TestPoisonedStreamsOnNodes(t *testing.T) {
	poisonedNodes(t, poisoning{streams: 200, rounds: 2, each: 5, of: best, o: sharing})
}

// TestSoakPoisonedStreamsOnNodes is the long form, with the bound that is promised.
func TestSoakPoisonedStreamsOnNodes(t *testing.T) {
	if os.Getenv("MILLRACE_SOAK") == "" {
		t.Skip("MILLRACE_SOAK is not set")
	}
	poisonedNodes(t, poisoning{streams: 10_000, rounds: 12, each: 20, of: median, least: 0.95, o: sharing})
}

func poisonedNodes(t *testing.T, size poisoning) {
	t.Helper()
	dsn := pgtest.Start(t, pgtest.Options{NoSync: true}).DSN("postgres")
	size.compare(t, startPair(t, dsn, "poisoned"), startPair(t, dsn, "control"))
}

// pair is two nodes that share a store.
type pair struct {
	t     testing.TB
	nodes [2]*nodes.Node
}

// startPair starts two nodes, and returns when each has its half of the partitions.
func startPair(t testing.TB, dsn, schema string) *pair {
	t.Helper()
	const partitions, ttl = 8, 2 * time.Second
	p := &pair{t: t}
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
		for _, n := range p.nodes {
			if n != nil {
				_ = n.Store.Close()
			}
		}
	})
	for i := range p.nodes {
		n, err := nodes.Open(ctx, dsn, registry(t), pgstore.Options{
			Schema: schema, Node: fmt.Sprint("n", i), Partitions: partitions, LeaseTTL: ttl, NoSync: true,
			Fatal: func(err error) { t.Errorf("store failed: %v", err) },
		})
		if err != nil {
			t.Fatal(err)
		}
		p.nodes[i] = n
	}
	for _, n := range p.nodes {
		g.Go(func() error { return n.Run(ctx) })
	}
	for _, n := range p.nodes {
		for {
			owned, changed := n.Leases.Owned()
			if len(owned) == partitions/len(p.nodes) {
				break
			}
			select {
			case <-changed:
			case <-patient(t).Done():
				t.Fatal("the partitions are not shared out")
			}
		}
	}
	return p
}

func (p *pair) store() *millrace.Store { return p.nodes[0].Store }

// head is how far the store has come: a node knows at once what it has decided, and of others a moment later.
func (p *pair) head() millrace.Cursor {
	head := p.nodes[0].Store.Head()
	for i, at := range p.nodes[1].Store.Head().Positions {
		head.Positions[i] = max(head.Positions[i], at)
	}
	return head
}

// send has commands decided, half of them by way of each node.
func (p *pair) send(cs []millrace.Command) {
	p.t.Helper()
	ctx := patient(p.t)
	var accepted []millrace.Accepted
	for i, n := range p.nodes {
		half := len(cs) / len(p.nodes)
		accepted = append(accepted, n.Intake.AcceptAll(ctx, cs[i*half:(i+1)*half])...)
	}
	for _, a := range accepted {
		if a.Err != nil {
			p.t.Fatal(a.Err)
		}
		if o, err := a.Receipt.Wait(ctx); err != nil || o.Status != millrace.StatusDecided {
			p.t.Fatalf("%+v %v", o, err)
		}
	}
}

func (p *pair) run(ctx context.Context, c millrace.Consumer, o *feed.Options) error {
	var g errgroup.Group
	for _, n := range p.nodes {
		g.Go(func() error { return n.Follow(ctx, c, *o) })
	}
	return g.Wait()
}
