package pgstore

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/lease"
)

var _ lease.Backend = (*Driver)(nil)

// clock is a clock that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func TestLeases(t *testing.T) {
	dsn := server(t).DSN("postgres")
	a, da := node(t, dsn, "a", patientLease)
	b, db := node(t, dsn, "b", patientLease)
	ctx := patient(t)
	acquire(t, a, 0, 1, 2)
	if _, ok, err := db.Acquire(ctx, 1); ok || err != nil {
		t.Errorf("b takes what is a's: %v %v", ok, err)
	}
	if _, _, err := db.Acquire(ctx, 4); !errors.Is(err, millrace.ErrInvalid) {
		t.Errorf("a partition that there is not: %v", err)
	}
	first, _, err := da.Acquire(ctx, 1) // again, under a new epoch
	must(t, err)
	second, ok, err := da.Acquire(ctx, 1)
	if !ok || err != nil || second != first+1 {
		t.Errorf("epoch %d after %d: %v %v", second, first, ok, err)
	}
	a.Own(1, first)
	if err := commitOne(a, 1, decided(command("old", 1), true, 1)); !errors.Is(err, millrace.ErrFenced) {
		t.Errorf("a batch of the epoch before: %v", err)
	}
	a.Own(1, second)
	must(t, commitOne(a, 1, decided(command("new", 1), true, 1)))
	if err := a.CommitViews(ctx, []millrace.ViewBatch{{Consumer: "c", Partition: 1, Epoch: first}}); !errors.Is(err, millrace.ErrFenced) {
		t.Errorf("views of the epoch before: %v", err)
	}
	if err := commitOne(b, 1, decided(command("other", 1), true, 1)); !errors.Is(err, millrace.ErrFenced) {
		t.Errorf("who owns nothing commits: %v", err)
	}

	expire(t, dsn, 0)
	acquire(t, b, 0)
	lost, err := da.Renew(ctx)
	if must(t, err); !slices.Equal(lost, []int{0}) || !slices.Equal(da.Owned(), []int{1, 2}) {
		t.Errorf("lost %v, owns %v", lost, da.Owned())
	}
	// Handed over at once, with all that was on its way.
	done := send(a, &millrace.Batch{Partition: 2, Decisions: []millrace.Decision{decided(command("last", 2), true, 3)}})
	must(t, da.Release(ctx, 2))
	must(t, <-done)
	acquire(t, b, 2)
	if h := b.Heads()[2]; h.Position != 3 {
		t.Errorf("b took over at position %d", h.Position)
	}
	must(t, commitOne(b, 2, decided(command("follows", 2), true, 1)))

	for i, d := range []*Driver{db, da} {
		names, err := d.Join(ctx)
		if want := []string{"a", "b"}[1-i:]; err != nil || !slices.Equal(names, want) {
			t.Errorf("nodes %q, want %q (%v)", names, want, err)
		}
	}
	if free, err := da.Free(ctx); err != nil || !slices.Equal(free, []int{3}) {
		t.Errorf("free %v (%v)", free, err)
	}
	must(t, db.Leave(ctx))
	if names, err := da.Join(ctx); err != nil || !slices.Equal(names, []string{"a"}) {
		t.Errorf("nodes %q after b has left (%v)", names, err)
	}

	leases, err := da.Nodes(ctx)
	must(t, err)
	var owners []string
	for _, l := range leases {
		owners = append(owners, l.Node)
		if (l.Node != "") != (l.Left > 0 && l.Left <= time.Hour) || l.Node == "" && l.Left > 0 {
			t.Errorf("%+v", l)
		}
	}
	if !slices.Equal(owners, []string{"b", "a", "b", ""}) {
		t.Errorf("owners %q", owners)
	}
	must(t, a.Close())
	acquire(t, b, 1) // a closed store owns nothing
	verify(t, b)
}

// A node that cannot renew stops before the database gives its partitions away, by its own clock.
func TestLeaseEndsHereFirst(t *testing.T) {
	server := server(t)
	proxy := pgtest.NewProxy(t, server.Addr())
	c := &clock{at: time.Now()}
	const ttl = time.Hour
	a, da := node(t, proxy.DSN("postgres"), "a", func(o *Options) { o.LeaseTTL, o.Now = ttl, c.now })
	acquire(t, a, 0, 1)
	c.add(ttl / 2)
	_, err := da.Renew(patient(t))
	must(t, err)
	c.add(ttl / 2)
	if !slices.Equal(da.Owned(), []int{0, 1}) {
		t.Errorf("a lease that was renewed is over: %v", da.Owned())
	}
	must(t, commitOne(a, 0, decided(command("in time", 0), true, 1)))
	must(t, proxy.Refuse(true))
	proxy.Cut()
	c.add(ttl/2 - ttl/clockMargin)
	if err := commitOne(a, 0, decided(command("too late", 0), true, 1)); !errors.Is(err, millrace.ErrFenced) {
		t.Errorf("a commit under a lease that is over: %v", err)
	}
	lost, err := da.Renew(patient(t))
	if err != nil || !slices.Equal(lost, []int{0, 1}) || len(da.Owned()) != 0 {
		t.Errorf("lost %v, owns %v (%v)", lost, da.Owned(), err)
	}
	// The database has the lease still.
	if left := ask[float64](t, server.DSN("postgres"), "select extract(epoch from lease_until - clock_timestamp())::float8 from fence.partitions where partition = 0"); left <= 0 {
		t.Errorf("the database gave the partition away %g seconds before", -left)
	}
	must(t, proxy.Refuse(false))
}

// A node that was killed is followed when its leases are over; one that comes again under its name need not wait.
func TestOwnAllTakesOver(t *testing.T) {
	dsn := server(t).DSN("postgres")
	const ttl = time.Second
	killed := func(name string) {
		s, d := node(t, dsn, name, func(o *Options) { o.LeaseTTL = ttl })
		acquire(t, s, 0, 1, 2, 3)
		// Its leases stay behind.
		for p := range 4 {
			d.leases.end(p, d.leases.epoch(p))
		}
		must(t, s.Close())
	}
	own := func(name string) time.Duration {
		began := time.Now()
		o := options(t, "fence")
		o.Node = name
		s := open(t, dsn, o)
		took := time.Since(began)
		must(t, commitOne(s, 0, decided(command(name, 0), true, 1)))
		must(t, s.Close())
		return took
	}
	killed("a")
	if took := own("b"); took < ttl/2 || took > 5*ttl {
		t.Errorf("another node took over after %s", took)
	}
	killed("a")
	if took := own("a"); took > ttl/2 {
		t.Errorf("the node itself waited %s", took)
	}
}

// With OwnAll a node keeps its partitions over an outage that is longer than its leases, since nobody else took them.
func TestOwnAllOutlivesOutage(t *testing.T) {
	server := server(t)
	s := open(t, server.DSN("postgres"), four(t, func(o *Options) { o.LeaseTTL = minTTL }))
	must(t, commitOne(s, 0, decided(command("before", 0), true, 1)))
	must(t, server.Stop(pgtest.Fast))
	ctx, cancel := context.WithTimeout(t.Context(), 4*minTTL)
	defer cancel()
	done := send(s, &millrace.Batch{Partition: 0, Decisions: []millrace.Decision{decided(command("during", 0), true, 1)}})
	<-ctx.Done()
	must(t, server.Start())
	must(t, <-done)
	must(t, commitOne(s, 0, decided(command("after", 0), true, 1)))
	verify(t, s)
}
