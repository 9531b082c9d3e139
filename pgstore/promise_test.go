package pgstore

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/pgtest"
)

// waiting says how many backends wait for a standby to confirm a commit.
const waiting = "select count(*)::integer from pg_stat_activity where wait_event = 'SyncRep'"

// await asks until the answer is n or more.
func await(t *testing.T, dsn, sql string, n int) {
	t.Helper()
	ctx := patient(t)
	for ask[int](t, dsn, sql) < n {
		if !pause(ctx, nil, 5*time.Millisecond) {
			t.Fatalf("in vain: %s", sql)
		}
	}
}

// takeOver kills a server whose standby is paused, and has the standby take over as it is. What the server sent waits in the
// standby's socket, and must not be read by it any more.
func takeOver(t *testing.T, from, standby *pgtest.Server, proxy *pgtest.Proxy) {
	t.Helper()
	must(t, from.Kill())
	must(t, standby.Kill())
	must(t, standby.Start())
	must(t, standby.Promote())
	proxy.SetTarget(standby.Addr())
	proxy.Cut()
}

// hangs has a store write while the standby that each commit waits for is paused, for several tries, and then has the standby
// take over. It says how much was acknowledged, and how much of it others could see.
func hangs(t *testing.T, trusting bool) (acked, seen int) {
	t.Helper()
	server := server(t)
	standby := server.Standby(t, true)
	proxy := pgtest.NewProxy(t, server.Addr())
	s := open(t, proxy.DSN("postgres"), four(t, func(o *Options) {
		o.attempt, o.AcceptPatience, o.DecidePatience, o.trusting = 200*time.Millisecond, 3*time.Second, 3*time.Second, trusting
		patientLease(o)
		if trusting {
			o.Fatal = func(error) {} // it lost what it acknowledged
		}
	}))
	must(t, commitOne(s, 0, decided(command("before", 0), true, 1)))
	must(t, standby.Pause())
	var under []<-chan error
	for i := range 4 {
		under = append(under, send(s, &millrace.Batch{Partition: 1, Accepted: []millrace.AcceptedCommand{accepted(command(fmt.Sprint("accepted", i), 1))}}))
	}
	under = append(under, send(s, &millrace.Batch{Partition: 0, Decisions: []millrace.Decision{decided(command("decided", 0), true, 1)}}))
	for _, done := range under {
		if err := <-done; err == nil {
			acked++
		} else if !errors.Is(err, millrace.ErrUnavailable) {
			t.Errorf("it says %v", err)
		}
	}
	seen = ask[int](t, server.DSN("postgres"), "select count(*)::integer from s.keys where id <> 'before'")
	takeOver(t, server, standby, proxy)
	if n := ask[int](t, proxy.DSN("postgres"), "select count(*)::integer from s.keys where id <> 'before'"); n != 0 {
		t.Errorf("the standby has %d commands that it was not to have", n)
	}
	if trusting {
		return acked, seen
	}
	writable(t, s)
	must(t, s.Accept(patient(t), 1, []millrace.AcceptedCommand{accepted(command("after", 1))}))
	acquire(t, s, 0) // whose last decision nobody knew of
	must(t, commitOne(s, 0, decided(command("again", 0), true, 1)))
	verify(t, s)
	return acked, seen
}

// The standby hangs that each commit waits for: nothing is acknowledged that it does not have, however often it is tried,
// and nobody sees it. The control takes what a repetition finds for promised, and cancels what takes too long.
func TestStandbyHangs(t *testing.T) {
	if acked, seen := hangs(t, false); acked != 0 || seen != 0 {
		t.Errorf("%d acknowledged, %d seen", acked, seen)
	}
	t.Run("control", func(t *testing.T) {
		if acked, seen := hangs(t, true); acked == 0 || seen == 0 {
			t.Errorf("%d acknowledged, %d seen: the test notices nothing", acked, seen)
		}
	})
}

// shown has a commit be seen that its server has promised to nobody: somebody ends its wait for the standby, as a server does
// whose first process is killed. Then the standby takes over. It says what the owner was told in the end, and whether another
// node, which had seen the commit, ended itself.
func shown(t *testing.T, trusting bool) (ended bool, owner error) {
	t.Helper()
	server := server(t)
	standby := server.Standby(t, true)
	proxy := pgtest.NewProxy(t, server.Addr())
	with := func(o *Options) {
		patientLease(o)
		o.trusting = trusting
		o.Poll, o.Fatal = 10*time.Millisecond, func(error) {}
	}
	a, da := node(t, proxy.DSN("postgres"), "a", with)
	b, db := node(t, proxy.DSN("postgres"), "b", with)
	acquire(t, a, 1)
	acquire(t, b, 2)
	must(t, commitOne(a, 1, decided(command("before", 1), true, 1)))
	for b.Heads()[1].Position != 1 {
		must(t, db.inquire(patient(t), false))
	}
	// From now on the head is sure to b: it is answered a commit behind it.
	if lost, err := db.Renew(patient(t)); err != nil || len(lost) > 0 {
		t.Fatal(lost, err)
	}
	must(t, standby.Pause())
	done := send(a, &millrace.Batch{Partition: 1, Decisions: []millrace.Decision{decided(command("shown", 1), true, 2)}})
	await(t, server.DSN("postgres"), waiting, 1)
	if p := b.Heads()[1].Position; p != 1 {
		t.Errorf("b sees position %d before it is promised", p)
	}
	exec(t, server.DSN("postgres"), "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
	for ctx := patient(t); b.Heads()[1].Position != 3; {
		if !pause(ctx, nil, time.Millisecond) {
			t.Fatal("b does not see it")
		}
	}
	takeOver(t, server, standby, proxy)
	owner = <-done
	for ctx := patient(t); db.failure() == nil; {
		// Both look at the database that took over.
		if err := errors.Join(da.inquire(ctx, false), db.inquire(ctx, false)); err == nil {
			break
		}
		if !pause(ctx, nil, time.Millisecond) {
			t.Fatal("the database does not come back")
		}
	}
	if ended = db.failure() != nil; !ended && owner == nil && !trusting {
		goOn(t, a, b)
	}
	return ended, owner
}

// goOn has both nodes of shown go on, in the database that took over.
func goOn(t *testing.T, a, b *millrace.Store) {
	t.Helper()
	if p := b.Heads()[1].Position; p != 3 {
		t.Errorf("b knows position %d", p)
	}
	must(t, follow(patient(t), b, 3))
	if o, err := b.Lookup(patient(t), "shown"); err != nil || o.Position != 3 {
		t.Errorf("what was written again is %+v (%v)", o, err)
	}
	must(t, commitOne(b, 2, decided(command("after", 2), true, 1)))
	must(t, commitOne(a, 1, decided(command("next", 1), true, 1)))
	verify(t, b)
}

// What everybody could see for a moment, and nobody was promised, is gone with the database. Its owner writes it again, once,
// and the nodes that saw it go on. The control ends itself over it, or has acknowledged what is gone.
func TestSeenAndNotPromised(t *testing.T) {
	if ended, owner := shown(t, false); owner != nil || ended {
		t.Errorf("the owner was told %v; the other node ended itself: %v", owner, ended)
	}
	t.Run("control", func(t *testing.T) {
		if ended, owner := shown(t, true); owner != nil || !ended {
			t.Errorf("the owner was told %v, the other node ended itself %v: the test notices nothing", owner, ended)
		}
	})
}

// reused has a standby that lagged take over, and another node go on there before the first one looks: beyond the positions
// that the first one was acknowledged. It says what the first one then ended itself with, if it did.
func reused(t *testing.T, trusting bool) error {
	t.Helper()
	server := server(t)
	standby := server.Standby(t, false)
	proxy := pgtest.NewProxy(t, server.Addr())
	fatal := make(chan error, 1)
	a, da := node(t, proxy.DSN("postgres"), "a", func(o *Options) {
		patientLease(o)
		o.NoListen, o.Poll, o.trusting, o.Fatal = true, time.Hour, trusting, func(err error) { fatal <- err }
	})
	acquire(t, a, 0)
	must(t, commitOne(a, 0, decided(command("kept", 0), true, 1)))
	ctx := patient(t)
	at := ask[string](t, server.DSN("postgres"), "select pg_current_wal_flush_lsn()::text")
	for ask[bool](t, standby.DSN("postgres"), "select pg_last_wal_replay_lsn() < $1::pg_lsn", at) {
		if !pause(ctx, nil, time.Millisecond) {
			t.Fatal("the standby does not follow")
		}
	}
	must(t, standby.Pause())
	must(t, commitOne(a, 0, decided(command("lost", 0), true, 1)))
	takeOver(t, server, standby, proxy)
	expire(t, standby.DSN("postgres"), 0)
	b, _ := node(t, standby.DSN("postgres"), "b", patientLease)
	acquire(t, b, 0)
	if p := b.Heads()[0].Position; p != 1 {
		t.Fatalf("the standby is at position %d and was to lag", p)
	}
	for i := range 3 {
		must(t, commitOne(b, 0, decided(command(fmt.Sprint("other", i), 0), true, 1)))
	}
	if err := da.inquire(ctx, false); err != nil && !errors.Is(err, millrace.ErrFailed) {
		t.Errorf("a look at the database says %v", err)
	}
	select {
	case err := <-fatal:
		return err
	default:
		return nil
	}
}

// Positions that were acknowledged have other events after a failover that lost them: a node notices also where the log is
// longer by then than it was. The control compares lengths alone.
func TestReusedPositions(t *testing.T) {
	if err := reused(t, false); !errors.Is(err, millrace.ErrFailed) {
		t.Errorf("the node ended with %v", err)
	}
	t.Run("control", func(t *testing.T) {
		if err := reused(t, true); err != nil {
			t.Errorf("the node ended with %v: the test notices nothing", err)
		}
	})
}
