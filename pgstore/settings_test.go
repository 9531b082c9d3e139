package pgstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/pgtest"
)

// injected has every third write of facts and views fail with a state, in the database itself: behind it everything is as
// after a real one. The counter is a sequence, which no rollback takes back.
const injected = `
create sequence s.writes;
create function s.fail() returns trigger language plpgsql as $$
begin
	if nextval('s.writes') % 3 = 0 then
		raise exception using errcode = '%s', message = 'injected';
	end if;
	return null;
end $$;
create trigger fail after insert on s.commands for each statement execute function s.fail();
create trigger fail after insert on s.outcomes for each statement execute function s.fail();
create trigger fail after insert on s.documents for each statement execute function s.fail();
`

// Transactions fail again and again for reasons that pass: nobody who waits is told of it, and nothing is lost or there
// twice. The control is a state that does not pass: then somebody is told.
func TestStatesThatPass(t *testing.T) {
	for state, passes := range map[string]bool{
		"40001": true,  // serialization_failure
		"40P01": true,  // deadlock_detected
		"55P03": true,  // lock_not_available: a lock timeout
		"57014": true,  // query_canceled: a statement timeout
		"53300": true,  // too_many_connections: of a pool in between
		"57P01": true,  // admin_shutdown
		"25006": true,  // read_only_sql_transaction
		"22023": false, // invalid_parameter_value
	} {
		t.Run(state, func(t *testing.T) {
			dsn := server(t).DSN("postgres")
			s := open(t, dsn, four(t, nil))
			exec(t, dsn, strings.ReplaceAll(injected, "%s", state))
			l := load(t, s)
			if !passes {
				if errs := l.refused(); len(errs) == 0 {
					t.Error("nobody was told of what does not pass")
				}
				return
			}
			views := keepViews(t, s)
			l.more(300)
			l.end()
			views()
			l.check(s)
			if n := ask[int](t, dsn, "select last_value from s.writes"); n < 30 {
				t.Errorf("only %d writes", n)
			}
		})
	}
}

// Somebody else's transaction stays open and idle, with a row of a partition, the claim of an id, or a snapshot: what needs
// the row waits, all else goes on, and when it ends nothing is lost. It is so too where the role of the nodes has short
// timeouts, which end a statement before it gives up by itself.
func TestIdleInTransactionElsewhere(t *testing.T) {
	for _, timeouts := range []string{"", "alter role millrace set statement_timeout = '300ms'; alter role millrace set lock_timeout = '100ms'"} {
		t.Run(map[bool]string{true: "usual timeouts", false: "short timeouts"}[timeouts == ""], func(t *testing.T) {
			dsn := server(t).DSN("postgres")
			s := open(t, dsn, four(t, func(o *Options) { o.LeaseTTL = time.Hour }))
			if timeouts != "" {
				exec(t, dsn, timeouts)
				must(t, s.Close()) // roles' settings are those of new sessions
				s = open(t, dsn, four(t, func(o *Options) { o.LeaseTTL = time.Hour }))
			}
			ctx := patient(t)
			idle := func(sql string) pgx.Tx {
				conn, err := pgx.Connect(ctx, dsn)
				must(t, err)
				t.Cleanup(func() { _ = conn.Close(context.Background()) })
				tx, err := conn.Begin(ctx)
				must(t, err)
				_, err = tx.Exec(ctx, sql)
				must(t, err)
				return tx
			}
			row := idle("select from s.partitions where partition = 0 for update")
			claim := idle("insert into s.keys (id, partition, fingerprint) values ('claimed', 1, '\\x00')")
			snapshot := idle("set transaction isolation level repeatable read; select count(*) from s.events")
			held := send(s, &millrace.Batch{Partition: 0, Decisions: []millrace.Decision{decided(command("held", 0), true, 1)}})
			claimed := make(chan error, 1)
			go func() {
				claimed <- s.Accept(ctx, 1, []millrace.AcceptedCommand{accepted(command("claimed", 1))})
			}()
			for i := range 100 {
				must(t, commitOne(s, 2+i%2, decided(command(fmt.Sprint("free", i), 2+i%2), true, 1)))
				must(t, s.Accept(ctx, 2, []millrace.AcceptedCommand{accepted(command(fmt.Sprint("kept", i), 2))}))
			}
			select {
			case err := <-held:
				t.Errorf("the partition that is held: %v", err)
			case err := <-claimed:
				t.Errorf("the id that is claimed: %v", err)
			default:
			}
			if n := ask[int](t, dsn, "select count(*) from pg_stat_activity where application_name = 'millrace' and state like 'idle in transaction%'"); n != 0 {
				t.Errorf("%d of the store's own sessions are idle in a transaction", n)
			}
			must(t, row.Rollback(ctx))
			must(t, <-held)
			must(t, claim.Rollback(ctx))
			must(t, <-claimed)
			must(t, snapshot.Rollback(ctx))
			verify(t, s)
		})
	}
}

// Readers that hang have all the connections that they may have: commands are kept and decided, and leases renewed, as if
// there were none.
func TestPoolExhaustedByReaders(t *testing.T) {
	dsn := server(t).DSN("postgres")
	s := open(t, dsn, four(t, func(o *Options) { o.PoolSize, o.Writers, o.LeaseTTL = 5, 1, 2*time.Second }))
	ctx := patient(t)
	must(t, s.CommitViews(ctx, []millrace.ViewBatch{{Consumer: "c", Partition: 1, Puts: []millrace.Put{
		{Document: millrace.Document{Collection: "c.d", Partition: 1, ID: "x", Data: []byte("1")}},
	}}}))
	conn, err := pgx.Connect(ctx, dsn)
	must(t, err)
	defer func() { _ = conn.Close(ctx) }()
	tx, err := conn.Begin(ctx)
	must(t, err)
	_, err = tx.Exec(ctx, "lock table s.documents in access exclusive mode")
	must(t, err)
	var readers sync.WaitGroup
	for range 20 {
		readers.Go(func() {
			if d, err := s.Document(ctx, "c.d", 1, "x"); err != nil || string(d.Data) != "1" {
				t.Errorf("a reader: %s %v", d.Data, err)
			}
		})
	}
	d := driverOf(s)
	for len(d.slots) < cap(d.slots) {
		pause(ctx, nil, time.Millisecond)
	}
	until := time.Now().Add(3 * time.Second) // longer than a lease
	n := 0
	for time.Now().Before(until) {
		must(t, commitOne(s, n%4, decided(command(fmt.Sprint("d", n), n%4), true, 1)))
		must(t, s.Accept(ctx, n%4, []millrace.AcceptedCommand{accepted(command(fmt.Sprint("a", n), n%4))}))
		n++
	}
	if got := len(d.Owned()); got != 4 {
		t.Errorf("%d of 4 partitions are left", got)
	}
	must(t, tx.Rollback(ctx))
	readers.Wait()
	verify(t, s)
}

// The name of the database leads to a standby for a while, which is behind: a store must not take what that shows for the
// truth. It is unavailable, and goes on when the name leads to the primary again. That a standby which lags is noticed
// when it takes over is what TestFailoverThatLosesIsNoticed shows.
func TestPointedAtStandby(t *testing.T) {
	server := server(t)
	standby := server.Standby(t, false)
	proxy := pgtest.NewProxy(t, server.Addr())
	s := open(t, proxy.DSN("postgres"), four(t, func(o *Options) { shortPatience(o); o.OwnAll, o.LeaseTTL = false, time.Hour }))
	acquire(t, s, 0, 1, 2, 3)
	must(t, commitOne(s, 0, decided(command("before", 0), true, 1)))
	exec(t, standby.DSN("postgres"), "select pg_wal_replay_pause()")
	l := load(t, s)
	l.more(200)
	proxy.SetTarget(standby.Addr())
	proxy.Cut()
	for _, err := range l.refused() {
		if !errors.Is(err, millrace.ErrUnavailable) && !errors.Is(err, millrace.ErrFenced) {
			t.Errorf("a client was told %v", err)
		}
	}
	if _, err := s.Lookup(patient(t), "before"); !errors.Is(err, millrace.ErrUnavailable) {
		t.Errorf("a read says %v", err)
	}
	proxy.SetTarget(server.Addr())
	proxy.Cut()
	recovered(t, s)
	l.again()
	after := loadAs(t, s, "after-")
	after.more(100)
	after.end()
	l.check(s)
	after.check(s)
}
