package pgstore

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/millracetest"
)

// fewSessions has a pool's clients share less than one session each, so that none has one for long.
var fewSessions = map[string]string{"default_pool_size": "3"}

// TestConformanceBehindPooler holds the backend to the rules of the contract behind pgbouncer in transaction mode.
func TestConformanceBehindPooler(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	checks := flag.Lookup("rapid.checks").Value
	defer func(old string) { _ = checks.Set(old) }(checks.String())
	if err := checks.Set("15"); err != nil {
		t.Fatal(err)
	}
	server := server(t)
	pooler := pgtest.StartPooler(t, server, fewSessions)
	millracetest.RunStore(t, storesAt(server, pooler.DSN("postgres"), func(o *Options) { o.ListenDSN = server.DSN("postgres") }))
}

// Two nodes behind pgbouncer in transaction mode, under load: commands, decisions, feed, leases and documents. pgbouncer and
// the database restart. Nothing acknowledged is lost or there twice; the other node hears of everything, over a connection
// of its own or by polling.
func TestBehindPooler(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(o *Options, direct string)
	}{
		{"notified", func(o *Options, direct string) { o.ListenDSN, o.Poll = direct, time.Hour }},
		{"polled", func(o *Options, _ string) { o.NoListen, o.Poll = true, 10*time.Millisecond }},
		{"notifications lost", func(o *Options, _ string) { o.Poll = 10 * time.Millisecond }},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := pgtest.Start(t, pgtest.Options{})
			pooler := pgtest.StartPooler(t, server, fewSessions)
			direct := server.DSN("postgres")
			must(t, Migrate(patient(t), direct, four(t, nil)))
			a := open(t, pooler.DSN("postgres"), four(t, func(o *Options) { c.change(o, direct); o.LeaseTTL = 2 * time.Second }))
			b := open(t, pooler.DSN("postgres"), four(t, func(o *Options) { c.change(o, direct); o.Node, o.OwnAll = "b", false }))
			for ctx := patient(t); driverOf(b).o.ListenDSN != "" && !driverOf(b).Stats().Listening; {
				pause(ctx, nil, time.Millisecond)
			}
			l := load(t, a)
			views := keepViews(t, a)
			l.more(300)
			for _, fail := range []func() error{pooler.Restart, func() error { return server.Restart(pgtest.Fast) }, pooler.Restart} {
				must(t, fail())
				l.more(300)
			}
			l.end()
			views()
			if driverOf(a).named.Load() && !pooler.KeepsStatements() {
				t.Error("writes are sent by names that the pool does not keep")
			}
			must(t, b.WaitLog(patient(t), a.Head()))
			l.check(b)
			if n := ask[int](t, direct, "select count(*) from s.partitions where owner = 'node' and lease_until > clock_timestamp()"); n != 4 {
				t.Errorf("the node has the leases of %d partitions", n)
			}
		})
	}
}

// keepViews commits a document of each partition again and again until it is told to end, and then looks whether they are
// what was written last. It does what a consumer does: what could not be written now it writes again, and where another
// commit came in between, which is its own whose answer was lost, it begins anew.
func keepViews(t *testing.T, s *millrace.Store) (end func()) {
	stop := make(chan struct{})
	last := make([]int, s.Partitions())
	ctx := patient(t)
	var wg sync.WaitGroup
	for p := range s.Partitions() {
		wg.Go(func() {
			for i := 1; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				put := millrace.Put{Document: millrace.Document{
					Collection: "c.d", Partition: p, ID: "x", Data: fmt.Append(nil, i), Keys: []string{fmt.Sprint(i)},
				}}
				if i > 1 {
					put.Old = []string{fmt.Sprint(i - 1)}
				}
				c := fmt.Sprint("c", p)
				err := s.CommitViews(ctx, []millrace.ViewBatch{{Consumer: c, Partition: p, Puts: []millrace.Put{put}}})
				for errors.Is(err, millrace.ErrUnavailable) || errors.Is(err, millrace.ErrFenced) {
					if _, err = s.Resume(ctx, c); err == nil {
						err = s.CommitViews(ctx, []millrace.ViewBatch{{Consumer: c, Partition: p, Puts: []millrace.Put{put}}})
					}
				}
				if err != nil {
					t.Errorf("document %d of partition %d: %v", i, p, err)
					return
				}
				last[p] = i
			}
		})
	}
	return func() {
		t.Helper()
		close(stop)
		wg.Wait()
		for p, want := range last {
			d, err := s.Document(patient(t), "c.d", p, "x")
			if err != nil || string(d.Data) != fmt.Sprint(want) || want == 0 {
				t.Errorf("partition %d: document %d was written last, and it is %s (%v)", p, want, d.Data, err)
			}
		}
	}
}

// Nodes that start behind a pool on an empty database make its tables over the direct connection: one store comes of it.
func TestMigrateBesidePooler(t *testing.T) {
	server := server(t)
	pooler := pgtest.StartPooler(t, server, fewSessions)
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			s, err := Open(patient(t), pooler.DSN("postgres"), four(t, func(o *Options) {
				o.Node, o.OwnAll, o.ListenDSN = fmt.Sprint("n", i), false, server.DSN("postgres")
			}))
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := ask[int](t, server.DSN("postgres"), "select count(*) from pg_locks where locktype = 'advisory'"); n != 0 {
		t.Errorf("%d locks of those who migrate are still held", n)
	}
}

// The control of writes that are sent unnamed once a pool has forgotten one: where the DSN asks for names, behind a pgbouncer
// that does not keep them, statements fail. One that does keep them serves them too.
func TestNamedStatementsBehindPooler(t *testing.T) {
	server := server(t)
	direct := server.DSN("postgres")
	must(t, Migrate(patient(t), direct, four(t, nil)))
	for _, kept := range []string{"0", "100"} {
		t.Run(kept, func(t *testing.T) {
			settings := map[string]string{"default_pool_size": "3"}
			pooler := pgtest.StartPooler(t, server, settings)
			switch {
			case pooler.KeepsStatements():
				settings["max_prepared_statements"] = kept
				pooler = pgtest.StartPooler(t, server, settings)
			case kept != "0":
				t.Skip("this pgbouncer keeps no statements: it is older than 1.21")
			}
			err := namedStatements(t, pooler.DSN("postgres")+"&default_query_exec_mode=cache_statement")
			if kept == "0" && err == nil {
				t.Error("statements of other sessions were found")
			} else if kept != "0" && err != nil {
				t.Error(err)
			}
		})
	}
}

// namedStatements has several callers write and read at the same time, and returns the first error of the database.
func namedStatements(t *testing.T, dsn string) error {
	ctx, cancel := context.WithTimeout(patient(t), 20*time.Second)
	defer cancel()
	s, err := Open(ctx, dsn, four(t, func(o *Options) { shortPatience(o); o.OwnAll, o.NoListen = false, true }))
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	errs := make(chan error, 4)
	for p := range 4 {
		go func() {
			var err error
			for i := 0; i < 100 && err == nil; i++ {
				c := command(fmt.Sprint(p, "-", i), p)
				if err = s.Accept(ctx, p, []millrace.AcceptedCommand{accepted(c)}); err == nil {
					_, err = s.Lookup(ctx, c.ID)
				}
			}
			errs <- err
		}()
	}
	return errors.Join(<-errs, <-errs, <-errs, <-errs)
}
