//go:build linux

package main

import (
	"context"
	"fmt"
	"testing"

	pay "github.com/millrace-io/millrace/internal/payment"
	"github.com/millrace-io/millrace/internal/pgtest"
)

// TestClusterFulfilment: two nodes carry orders through while one is killed on a side of a call to the gateway, another one comes,
// and the older one goes. Each order comes to its end, is charged once, and nothing of it is left over: documents are in the
// database, so that not even an authorisation lapses.
func TestClusterFulfilment(t *testing.T) {
	clusterBeside(t)
	const orders = 60
	db := pgtest.Start(t, pgtest.Options{})
	s := newShop(t, 41, orders*clusterTimes(), shopFaults)
	f := &fleet{t: t, flags: []string{"--store", db.DSN("postgres"), "--payments", s.url, "--backorder-retry", "200ms"}, nodes: map[string]*server{}}
	var told []*server
	come := func(of int) *server {
		t.Helper()
		name := fmt.Sprintf("node-%d", len(told)+1)
		f.start(name, of)
		one := f.nodes[name]
		told = append(told, one)
		s.doors.add(one)
		return one
	}
	first, second := come(1), come(2)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s.stockUp(t)
	left := s.buyers
	buy := func() {
		s.buy(ctx, left[:orders/3])
		left = left[orders/3:]
	}
	for round := range clusterTimes() {
		p := []killPoint{{pay.Authorise, answered}, {pay.Authorise, done}, {pay.Capture, unheard}}[round]
		killed := make(chan struct{})
		s.tap.arm(p.kind, 5, p.at, func() { first.kill(); close(killed) })
		buy()
		select {
		case <-killed:
		case <-ctx.Done():
			t.Fatal("the gateway is not asked")
		}
		s.doors.remove(first)
		buy()
		f.settled(second, 1)
		third := come(2)
		buy()
		s.doors.remove(second)
		second.stop(t)
		f.settled(third, 1)
		if first = third; len(left) > 0 {
			second = come(2)
		}
	}
	s.receive(t, lateSKU, int64(2*len(s.buyers)))
	s.buying.Wait()
	account := s.settle(t, first)
	first.stop(t)
	for _, one := range told {
		one.saysNoError(t)
	}
	s.agrees(t, account, verifiesDomain(t, "--store", db.DSN("postgres")))
	if account.lapsed > 0 {
		t.Errorf("%d authorisations lapse", account.lapsed)
	}
}

// TestClusterBuyers: a thousand people want one of a hundred pieces of two nodes in turn.
func TestClusterBuyers(t *testing.T) {
	clusterBeside(t)
	dsn := pgtest.Start(t, pgtest.Options{}).DSN("postgres")
	nodes := sharing(t, dsn, 2)
	buyAll(t, nodes...)
	for _, s := range nodes {
		s.stop(t)
	}
	soldOut(t, verifiesDomain(t, "--store", dsn))
}

// TestClusterRebuildUnderFulfilment is TestRebuildUnderFulfilment on two nodes, which are asked in turn.
func TestClusterRebuildUnderFulfilment(t *testing.T) {
	if testing.Short() {
		t.Skip("a database and two processes, and -short is set")
	}
	dsn := pgtest.Start(t, pgtest.Options{}).DSN("postgres")
	s := newRebuiltShop(t, 60)
	f := &fleet{t: t, flags: append(s.flags, "--store", dsn), nodes: map[string]*server{}}
	f.start("a", 1)
	f.start("b", 2)
	a, b := f.nodes["a"], f.nodes["b"]
	s.rebuildWhileBuying(t, 5*shopLook, a, b) // a rebuild takes seconds here
	b.stop(t)
	f.settled(a, 1)
	s.toldAndPaidOnce(t, a)
	a.stop(t)
	s.agrees(t, s.account, verifiesDomain(t, "--store", dsn))
}
