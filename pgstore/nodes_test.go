package pgstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
)

// follow reads a feed until it has seen n events, and says how.
func follow(ctx context.Context, s *millrace.Store, n int) error {
	next := make([]uint64, s.Partitions())
	for batch, err := range s.Feed(ctx, millrace.FeedOptions{Follow: true}) {
		if err != nil {
			return err
		}
		for i := range batch {
			e := &batch[i]
			if next[e.Partition]++; e.Position != next[e.Partition] {
				return fmt.Errorf("partition %d: position %d came when %d was due", e.Partition, e.Position, next[e.Partition])
			}
			n--
		}
		if n <= 0 {
			return nil
		}
	}
	return fmt.Errorf("%d events are missing: %w", n, ctx.Err())
}

// A cursor that one node has given out can be waited for on another one, in the log itself; who waits for what never comes
// is let go by its own end, and by the store's.
func TestWaitForTheLogOfAnotherNode(t *testing.T) {
	dsn := server(t).DSN("postgres")
	a := open(t, dsn, four(t, nil))
	b := open(t, dsn, four(t, func(o *Options) { o.Node, o.OwnAll, o.NoListen, o.Poll = "b", false, true, 10*time.Millisecond }))
	for i := range 20 {
		must(t, commitOne(a, i%4, decided(command(fmt.Sprint("c", i), i%4), true, 2)))
		must(t, b.WaitLog(patient(t), a.Head()))
		if !b.Head().Covers(a.Head()) {
			t.Errorf("%v is behind %v", b.Head(), a.Head())
		}
	}
	future := a.Head()
	future.Positions[2]++
	ctx, cancel := context.WithCancel(patient(t))
	ended := make(chan error, 1)
	go func() { ended <- b.WaitLog(ctx, future) }()
	must(t, commitOne(a, 1, decided(command("elsewhere", 1), true, 1)))
	must(t, b.WaitLog(patient(t), a.Head()))
	select {
	case err := <-ended:
		t.Errorf("what has not come is there: %v", err)
	default:
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("a wait that is given up: %v", err)
	}
	go func() { ended <- b.WaitLog(patient(t), future) }()
	must(t, b.Close())
	if err := <-ended; !errors.Is(err, millrace.ErrClosed) {
		t.Errorf("a wait for a store that is closed: %v", err)
	}
	if err := a.WaitLog(patient(t), millrace.At(a.Meta().Epoch+1, 0, 1)); !errors.Is(err, millrace.ErrCursorEpoch) {
		t.Errorf("a cursor of another time: %v", err)
	}
}

// What one node writes another one reads: its feed, its heads, its backlog; told by notifications, and by polling where
// there are none, or where the listener's connection is lost again and again.
func TestOtherNodesSeeIt(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Options)
		cut    bool
	}{
		{name: "notified", change: func(o *Options) { o.Poll = time.Hour }},
		{name: "polled", change: func(o *Options) { o.NoListen, o.Poll = true, 10*time.Millisecond }},
		{name: "listener lost", change: func(o *Options) { o.Poll = 10 * time.Millisecond }, cut: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dsn := server(t).DSN("postgres")
			hinted := make(chan int, 1000)
			a, da := node(t, dsn, "a", func(o *Options) {
				c.change(o)
				o.Undecided = func(p int) {
					select {
					case hinted <- p:
					default:
					}
				}
			})
			b, _ := node(t, dsn, "b", c.change)
			acquire(t, a, 0)
			acquire(t, b, 1, 2)
			ctx := patient(t)
			if !da.o.NoListen {
				for !da.Stats().Listening {
					pause(ctx, nil, time.Millisecond)
				}
			}
			const n = 300
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := follow(ctx, a, n); err != nil {
					t.Error(err)
				}
			})
			for i := range n {
				must(t, commitOne(b, 1+i%2, decided(command(fmt.Sprint(i), 1+i%2), true, 1)))
				if c.cut && i%50 == 0 {
					exec(t, dsn, "select pg_terminate_backend(pid) from pg_stat_activity where query like 'listen%'")
				}
			}
			wg.Wait()
			must(t, b.Accept(ctx, 0, []millrace.AcceptedCommand{accepted(command("for a", 0))}))
			select {
			case p := <-hinted:
				if p != 0 {
					t.Errorf("told of partition %d", p)
				}
			case <-ctx.Done():
				t.Fatal("the owner is not told of a command that another node kept")
			}
			for a.Backlog() != 1 {
				if !pause(ctx, nil, time.Millisecond) {
					t.Fatalf("backlog %d", a.Backlog())
				}
			}
			must(t, commitOne(a, 0, decided(command("for a", 0), false, 1)))
			if n := a.Backlog(); n != 0 {
				t.Errorf("backlog %d", n)
			}
			s := da.Stats()
			t.Logf("%+v", s)
			if c.name == "notified" && (s.Notifications == 0 || s.MovedTold == 0) || s.MovedTold+s.MovedPolled == 0 || s.SinceLook > time.Minute {
				t.Errorf("%+v", s)
			}
			verify(t, a)
		})
	}
}

// The hazards of feeds that follow a sequence or the oldest transaction: a writer that is slow to commit, one that is
// rolled back, long transactions here and in another database, a prepared one that nobody ends. None of them makes
// an event be skipped, and none but the one that holds a partition's row stalls anything.
func TestFeedHazards(t *testing.T) {
	server := server(t)
	dsn := server.DSN("postgres")
	must(t, server.CreateDatabase("other"))
	s := open(t, dsn, four(t, nil))
	ctx := patient(t)
	begin := func(dsn string, sqls ...string) pgx.Tx {
		t.Helper()
		conn, err := pgx.Connect(ctx, dsn)
		must(t, err)
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		tx, err := conn.Begin(ctx)
		must(t, err)
		for _, sql := range sqls {
			_, err = tx.Exec(ctx, sql)
			must(t, err)
		}
		return tx
	}
	n := 0
	write := func() {
		t.Helper()
		for p := range 4 {
			must(t, commitOne(s, p, decided(command(fmt.Sprint("e", n), p), true, 2)))
			n += 2
		}
	}
	seen := func(what string) {
		t.Helper()
		if err := follow(ctx, s, n); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	exec(t, dsn, "create table s.bystander (n int)")
	exec(t, server.DSN("other"), "create table bystander (n int)")
	for _, hazard := range []struct {
		name string
		tx   func() pgx.Tx
	}{
		{"a long transaction with an id", func() pgx.Tx { return begin(dsn, "insert into s.bystander values (1)") }},
		{"one in another database", func() pgx.Tx { return begin(server.DSN("other"), "insert into bystander values (1)") }},
		{"a long transaction that reads", func() pgx.Tx {
			return begin(dsn, "set transaction isolation level repeatable read", "select count(*) from s.events")
		}},
		{"one that has kept a command and does not commit", func() pgx.Tx {
			return begin(dsn, "insert into s.commands values (1, 'slow', 'tally-x', 'Add', 0, null, '', '', '', '', '')", "insert into s.pending values (1, now(), 1, 'slow')")
		}},
	} {
		t.Run(hazard.name, func(t *testing.T) {
			tx := hazard.tx()
			write()
			seen(hazard.name)
			must(t, tx.Rollback(ctx)) // and the rollback leaves no gap
			write()
			seen(hazard.name)
		})
	}
	t.Run("an orphan prepared transaction", func(t *testing.T) {
		tx := begin(dsn, "insert into s.bystander values (2)", "prepare transaction 'orphan'")
		defer exec(t, dsn, "rollback prepared 'orphan'")
		_ = tx.Rollback(ctx) // there is none any more
		write()
		seen("orphan")
	})
	t.Run("a command that commits late is found late", func(t *testing.T) {
		c := command("late", 2)
		tx := begin(dsn)
		_, err := tx.Exec(ctx, `select s.keep(true, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`, []int32{2}, []string{c.ID}, []bool{false}, []string{string(c.Stream)}, []string{c.Type},
			[]int64{c.Time.UnixNano()}, []bool{false}, []int64{0}, []string{c.CorrelationID}, []string{""}, []string{c.Source}, [][]byte{c.Data}, [][]byte{fingerprint(c)})
		must(t, err)
		early := command("early", 2)
		must(t, s.Accept(ctx, 2, []millrace.AcceptedCommand{accepted(early)}))
		must(t, commitOne(s, 2, decided(early, false, 1)))
		n++
		for a, err := range s.Pending(ctx, 2) {
			t.Errorf("pending: %+v %v", a, err)
		}
		must(t, tx.Commit(ctx))
		found := 0
		for a, err := range s.Pending(ctx, 2) {
			must(t, err)
			if found++; a.Command.ID != "late" {
				t.Errorf("pending: %s", a.Command.ID)
			}
		}
		if found != 1 {
			t.Errorf("%d pending", found)
		}
		must(t, commitOne(s, 2, decided(c, false, 1)))
		n++
		seen("late")
	})
	exec(t, dsn, "drop table s.bystander")
	verify(t, s)
}

func fingerprint(c *millrace.Command) []byte {
	fp := c.Fingerprint()
	return fp[:]
}

// Readers who take their time hold no connection: with more of them than the pool has, everybody else goes on.
func TestSlowReadersHoldNothing(t *testing.T) {
	dsn := server(t).DSN("postgres")
	s := open(t, dsn, four(t, func(o *Options) { o.PoolSize, o.Writers = minPool, 1 }))
	ctx := patient(t)
	for p := range 4 {
		c := command("x", p)
		b := &millrace.Batch{Partition: p, Decisions: []millrace.Decision{decided(&millrace.Command{ID: fmt.Sprint("x", p), Stream: c.Stream, Type: "Add", Time: day}, true, 300)}}
		for i := range 100 {
			b.Accepted = append(b.Accepted, accepted(command(fmt.Sprint("w", p, "-", i), p)))
		}
		must(t, <-send(s, b))
	}
	stream := command("x", 0).Stream
	hold := make(chan struct{})
	var held, wg sync.WaitGroup
	slow := func(seq func(func() bool)) {
		held.Add(1)
		wg.Go(func() {
			first := true
			seq(func() bool {
				if first {
					first = false
					held.Done()
					<-hold
				}
				return true
			})
		})
	}
	for range 10 {
		slow(func(next func() bool) {
			for _, err := range s.Events(ctx, stream, 1) {
				if err != nil || !next() {
					t.Error(err)
				}
			}
		})
		slow(func(next func() bool) {
			for _, err := range s.Feed(ctx, millrace.FeedOptions{}) {
				if err != nil || !next() {
					t.Error(err)
				}
			}
		})
		slow(func(next func() bool) {
			for _, err := range s.Pending(ctx, 1) {
				if err != nil || !next() {
					t.Error(err)
				}
			}
		})
	}
	held.Wait()
	for i := range 20 {
		must(t, commitOne(s, i%4, decided(command(fmt.Sprint("meanwhile", i), i%4), true, 1)))
		_, err := s.Lookup(ctx, fmt.Sprint("meanwhile", i))
		must(t, err)
	}
	close(hold)
	wg.Wait()
}
