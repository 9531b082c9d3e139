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
// and the older one goes. Each order comes to its end, is charged once, and nothing of it is left over.
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
		s.tap.arm("", p.kind, 5, p.at, func() { first.kill(); close(killed) })
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
}

const (
	// takeOverEvery is after how many kills the other node takes over before the dead one comes again; otherwise that comes at once, and
	// has its partitions before their leases end. It is odd, so that either node is taken over from.
	takeOverEvery = 7
	// The long form kills manyKills times among manyOrders orders, as the one on the embedded store.
	manyKills, manyOrders = 120, 600
)

// TestClusterKillFulfilment is TestKillFulfilment on two nodes, which are killed in turn, and come again.
func TestClusterKillFulfilment(t *testing.T) {
	clusterBeside(t)
	k := &killing{seed: 43, kills: 2, points: []killPoint{{pay.Authorise, done}, {pay.Capture, answered}}}
	orders := 20
	if clusterTimes() > 1 {
		k.kills, k.points, orders = manyKills, killPoints(), manyOrders
	}
	dsn := pgtest.Start(t, pgtest.Options{}).DSN("postgres")
	s := newShop(t, k.seed, orders, shopFaults)
	f := &fleet{t: t, nodes: map[string]*server{}}
	names := []string{"node-1", "node-2"}
	urls := map[string]string{}
	for _, name := range names {
		urls[name] = s.urlOf(t, name)
	}
	var told []*server
	come := func(name string, of int) {
		f.flags = []string{"--store", dsn, "--payments", urls[name], "--backorder-retry", "200ms"}
		f.start(name, of)
		told = append(told, f.nodes[name])
		s.doors.add(f.nodes[name])
	}
	come(names[0], 1)
	come(names[1], 2)
	s.stockUp(t)
	k.victim = func(round int) (*server, string) {
		name := names[round%2]
		return f.nodes[name], name
	}
	k.died = func(round int) {
		name, other := names[round%2], names[1-round%2]
		s.doors.remove(f.nodes[name])
		if round%takeOverEvery == takeOverEvery-1 {
			f.settled(f.nodes[other], 1)
		}
		come(name, 2)
	}
	s.killWhileBuying(t, k)
	account := s.settle(t, f.nodes[names[0]])
	for _, name := range names {
		f.nodes[name].stop(t)
	}
	for _, one := range told {
		one.saysNoError(t)
	}
	s.agrees(t, account, verifiesDomain(t, "--store", dsn))
}

// TestClusterKillFulfilmentControl is TestKillFulfilmentControl on a database, where no document is lost with its node either.
func TestClusterKillFulfilmentControl(t *testing.T) {
	clusterBeside(t)
	dsn := pgtest.Start(t, pgtest.Options{}).DSN("postgres")
	killWithoutKeys(t, 44, func(url string) *server {
		f := &fleet{t: t, flags: []string{"--store", dsn, "--payments", url}, nodes: map[string]*server{}}
		f.start("node-1", 1)
		return f.nodes["node-1"]
	})
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
