package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/feed"
	pay "github.com/millrace-io/millrace/internal/payment"
	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/internal/powercut"
	"github.com/millrace-io/millrace/lease"
	"github.com/millrace-io/millrace/pgstore"
)

const (
	// deadPatience is for how long a node goes on trying to write whose database is out of reach for good.
	deadPatience = 50 * time.Millisecond
	// cutLease never ends by itself while a test runs, however slow the machine: the test says when a dead node's lease time is over.
	cutLease = time.Hour
	cutEvery = 50 * time.Millisecond
)

// onDatabase is ground in a schema of a database. A life is a node's; the node dies by the loss of all its connections, and the next
// life is another node, which takes over when the leases of the dead one are over.
type onDatabase struct {
	db     *pgtest.Server
	proxy  *pgtest.Proxy
	schema string
	lives  int
	dead   bool
}

func newDatabase(t *testing.T, db *pgtest.Server, schema string) *onDatabase {
	t.Helper()
	return &onDatabase{db: db, proxy: pgtest.NewProxy(t, db.Addr()), schema: schema}
}

// cut is the node's end as the database sees it: what it has sent is carried out or not, and nothing more comes.
func (d *onDatabase) cut() {
	d.dead = true
	_ = d.proxy.Refuse(true) // closing a listener
	d.proxy.Cut()
}

func (d *onDatabase) live(t *testing.T, b beginning) *fulfilLife {
	t.Helper()
	dsn := d.proxy.DSN("postgres")
	if d.dead {
		dsn = d.db.DSN("postgres")
		// The lease time passes.
		for _, sql := range []string{"update %s.partitions set lease_until = '-infinity'", "update %s.nodes set until = '-infinity'"} {
			if err := execSQL(t, dsn, fmt.Sprintf(sql, d.schema)); err != nil {
				t.Fatal(err)
			}
		}
	}
	d.lives++
	cl := &cluster{life: t.Context()}
	store, err := pgstore.Open(t.Context(), dsn, &pgstore.Options{
		Schema: d.schema, Node: fmt.Sprintf("node-%d", d.lives), Partitions: 2, LeaseTTL: cutLease, NoSync: true,
		AcceptPatience: deadPatience, DecidePatience: deadPatience,
		Undecided: func(partition int) {
			if p := cl.processor.Load(); p != nil {
				p.Look(partition)
			}
		},
		Fatal: func(err error) { t.Errorf("fatal: %v", err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	cl.driver = store.Driver().(*pgstore.Driver) //nolint:forcetypeassert // it has just been opened
	if b.plug != nil {
		b.plug.Driver = cl.driver
		store = millrace.NewStore(&powercut.Shared{Shared: cl.driver, At: b.plug})
	}
	cl.leases = lease.New(cl.driver, lease.Options{
		Node: cl.driver.Node(), Partitions: store.Partitions(), Every: cutEvery,
		Serve: func(ctx context.Context, partition int, epoch uint64) error {
			store.Own(partition, epoch)
			return cl.processor.Load().Serve(ctx, partition)
		},
	})
	registry := newRegistry(t)
	l, c := newFulfilLife(t, store, registry, newProcessor(store, registry, command.Options{}, cl), b.gateway, b.without)
	deciding := l.decides(t, b, cl.decide)
	following := running(t.Context(), func(ctx context.Context) error {
		return cl.follow(ctx, cl.leases, func(ctx context.Context, o *feed.Options) error { return feed.New(store, registry, c, o).Run(ctx) }, slog.New(slog.DiscardHandler))
	})
	l.stop = func() error {
		err := errors.Join(following(), deciding(), store.Close())
		if d.dead && b.plug != nil {
			return nil // what a dead node says
		}
		return err
	}
	return l
}

// TestFulfilmentOfDyingNodes: a node dies before or after a write to the database, and another one takes over. The orders come to
// their ends, the gateway is asked for nothing twice, and no stock is reserved twice or left over. The control asks the gateway
// under fresh keys, and takes twice.
func TestFulfilmentOfDyingNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("a database, and -short is set")
	}
	t.Parallel()
	db := pgtest.Start(t, pgtest.Options{NoSync: true})
	for i, c := range []cutting{
		{said: pay.Authorise}, {said: pay.Capture, after: true}, {said: pay.Authorise, without: keys},
	} {
		cut, faults := fulfilCutAt(t, newDatabase(t, db, fmt.Sprintf("cut_%d", i)), c)
		if !cut || (len(faults) > 0) != (c.without == keys) {
			t.Errorf("%s: it has happened: %v; %q", c, cut, faults)
		}
	}
}

// TestSoakFulfilmentOfDyingNodes has a node die before and after each write.
func TestSoakFulfilmentOfDyingNodes(t *testing.T) {
	if os.Getenv("MILLRACE_SOAK") == "" {
		t.Skip("MILLRACE_SOAK is not set")
	}
	db := pgtest.Start(t, pgtest.Options{NoSync: true})
	for _, after := range []bool{false, true} {
		n := 1
		for ; ; n++ {
			c := cutting{n: n, after: after}
			cut, faults := fulfilCutAt(t, newDatabase(t, db, fmt.Sprintf("cut_%d_%t", n, after)), c)
			if !cut {
				break
			}
			for _, f := range faults {
				t.Errorf("%s: %s", c, f)
			}
		}
		t.Logf("after=%v: %d writes", after, n-1)
	}
}
