//go:build linux

package main

import (
	"context"
	"testing"
	"time"

	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/internal/retail/retailtest"
)

// retailPatience bounds the import of six months of a real shop with all its orders carried through, by two nodes of which one is
// killed on the way. It takes minutes on two processors that have nothing else to do.
const retailPatience = 25 * time.Minute

// TestClusterRealOrdersFulfilled has six months of a real shop's orders carried through by two nodes.
func TestClusterRealOrdersFulfilled(t *testing.T) {
	name, want := clusterRealFile(t)
	clusterFulfils(t, name, &want)
}

// TestClusterOrdersFulfilled does so with a file of the same shape, with everything that is odd in the real one and some damage.
func TestClusterOrdersFulfilled(t *testing.T) {
	clusterBeside(t)
	name, want := retailFile(t, retailtest.Options{Seed: 24, Invoices: 80, Damage: true})
	clusterFulfils(t, name, &want)
}

// clusterFulfils is fulfilsExactly on two nodes that share a database. One of them is killed when half of the orders are placed, and
// comes again under its name, at another address: who imports goes on with the other one.
func clusterFulfils(t *testing.T, name string, want *retailtest.Expected) {
	dsn := pgtest.Start(t, pgtest.Options{}).DSN("postgres")
	f := &fleet{t: t, flags: []string{"--store", dsn}, nodes: map[string]*server{}}
	f.start("node-1", 1)
	f.start("node-2", 2)
	killed, other := f.nodes["node-1"], f.nodes["node-2"]
	began := time.Now()
	p, err := launch(t, binary(t), importFulfilled(name, killed, other)...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), retailPatience)
	defer cancel()
	awaitPlaced(ctx, t, other, p, want.Orders/2)
	killed.kill()
	half := time.Since(began)
	f.start("node-1", 2)
	again := f.nodes["node-1"]
	select {
	case <-p.done:
	case <-ctx.Done():
		t.Fatalf("the import does not end: %s", p.stderr.String())
	}
	out, took := readFulfilled(t, p, want), time.Since(began)
	out.isAgain(t, want)
	var left map[string]int64
	for _, s := range []*server{other, again} {
		left = isFulfilled(t, s, want)
	}
	for _, s := range []*server{other, again} {
		s.stop(t)
	}
	for _, s := range []*server{killed, other, again} {
		s.saysNoError(t)
	}
	v := verifiesDomain(t, "--store", dsn)
	addsUp(t, v, want, left)
	t.Logf("%d orders of %d pieces and %d pence are completed after %s, in %d events; a node was killed after %s; %d returns, %d answers were asked for again",
		want.Orders, want.Units, want.Minor, round(took), v.Totals.Events, round(half), want.Returns, out.Replayed)
}

// awaitPlaced waits until a server shows so many orders, while an import is under way.
func awaitPlaced(ctx context.Context, t *testing.T, s *server, importing *process, orders int) {
	t.Helper()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		var totals struct{ Items []struct{ Orders int } }
		s.get(t, "/v1/order-totals").into(t, &totals)
		n := 0
		for _, row := range totals.Items {
			n += row.Orders
		}
		if n >= orders {
			return
		}
		select {
		case <-tick.C:
		case <-importing.done:
			t.Fatalf("the import ended with %d orders: %s", n, importing.stderr.String())
		case <-ctx.Done():
			t.Fatalf("there are %d orders, and %d are awaited", n, orders)
		}
	}
}
