package pgstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

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

// A node that owns nothing posts a message; the partition's owner reads it, and deletes it in a commit of his own. Posting
// the same message again, as one does whose answer was lost, makes no second one.
func TestPostFromAnyNode(t *testing.T) {
	dsn := server(t).DSN("postgres")
	a, _ := node(t, dsn, "a", patientLease)
	b, db := node(t, dsn, "b", patientLease)
	acquire(t, a, 0, 1)
	doc := millrace.Document{Collection: "post", Partition: 1, ID: "m", Data: []byte(`{"n":1}`)}
	if len(db.Owned()) != 0 {
		t.Fatal("b owns something")
	}
	for range 2 {
		must(t, b.Post(patient(t), doc))
	}
	n := 0
	for d, err := range a.Documents(patient(t), millrace.Query{Collection: "post", Index: -1, Partition: 1}) {
		must(t, err)
		if n++; string(d.Data) != string(doc.Data) {
			t.Errorf("%s", d.Data)
		}
	}
	if n != 1 {
		t.Errorf("%d messages", n)
	}
	read := []millrace.ViewBatch{{Consumer: "c", Partition: 1, Puts: []millrace.Put{{Delete: true, Document: doc}}}}
	if err := b.CommitViews(patient(t), read); !errors.Is(err, millrace.ErrFenced) {
		t.Errorf("somebody else deletes it: %v", err)
	}
	must(t, a.CommitViews(patient(t), read))
	if _, err := b.Document(patient(t), "post", 1, "m"); !errors.Is(err, millrace.ErrNotFound) {
		t.Errorf("it is still there: %v", err)
	}
	doc.Partition = 17
	if err := b.Post(patient(t), doc); !errors.Is(err, millrace.ErrInvalid) {
		t.Errorf("a partition that there is not: %v", err)
	}
	verify(t, a)
}
