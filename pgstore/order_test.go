package pgstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
	processor "github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/millracetest"
)

// What an owner decides without having kept it first is refused while another node's commands wait in the partition, but for
// those that the owner knows of; and only there.
func TestFreshDecisionsComeInOrder(t *testing.T) {
	dsn := server(t).DSN("postgres")
	a, _ := node(t, dsn, "a", nil)
	b, _ := node(t, dsn, "b", nil)
	acquire(t, a, 0, 1)
	waits := command("waits", 1)
	must(t, b.Accept(patient(t), 1, []millrace.AcceptedCommand{accepted(waits)}))
	fresh := func(id string, partition int, held ...string) *millrace.Batch {
		return &millrace.Batch{
			Partition: partition, InOrder: true, Held: held,
			Decisions: []millrace.Decision{decided(command(id, partition), true, 1)},
		}
	}
	if err := <-send(a, fresh("early", 1)); !errors.Is(err, millrace.ErrConflict) || !errors.Is(err, millrace.ErrBehind) {
		t.Errorf("before another node's command: %v", err)
	}
	if _, err := a.Lookup(patient(t), "early"); !errors.Is(err, millrace.ErrNotFound) {
		t.Errorf("what was refused is there: %v", err)
	}
	// What was made on top of it fails with it, until the owner begins anew.
	if err := <-send(a, fresh("on top", 1)); !errors.Is(err, millrace.ErrConflict) {
		t.Errorf("on top of what was refused: %v", err)
	}
	a.Reload(1)
	must(t, <-send(a, fresh("elsewhere", 0)))
	must(t, <-send(a, fresh("known", 1, "waits")))
	together := fresh("together", 1)
	together.Decisions = append(together.Decisions, decided(waits, false, 1))
	must(t, <-send(a, together))
	must(t, <-send(a, fresh("alone", 1)))
	verify(t, a)
}

// nodeOf is a node with a processor: no leases of its own accord, and it is told of nothing.
func nodeOf(t *testing.T, dsn, name string, change func(*Options)) (*millrace.Store, *processor.Processor) {
	t.Helper()
	var p *processor.Processor
	var ready sync.WaitGroup
	ready.Add(1)
	s, _ := node(t, dsn, name, func(o *Options) {
		o.LeaseTTL, o.Poll, o.NoListen = time.Hour, time.Hour, true
		o.Undecided = func(partition int) { ready.Wait(); p.Look(partition) }
		if change != nil {
			change(o)
		}
	})
	registry, err := millrace.NewRegistry(millracetest.Tally())
	must(t, err)
	p = processor.New(s, registry, &processor.Options{Shared: true})
	ready.Done()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s, p
}

// serve has a node decide a partition until the function that it returns is called.
func serve(t *testing.T, s *millrace.Store, p *processor.Processor, partition int) (stop func()) {
	t.Helper()
	acquire(t, s, partition)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx, partition) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("partition %d: %v", partition, err)
		}
		must(t, driverOf(s).Release(context.Background(), partition))
	})
}

// direct sends commands to the owner of a stream until it decides them without keeping them first: by one transaction. It says
// how many that took.
func direct(t *testing.T, s *millrace.Store, p *processor.Processor, stream string) (sent int) {
	t.Helper()
	ctx := patient(t)
	for {
		before := driverOf(s).Stats().Transactions
		r, err := p.Accept(ctx, addTo(fmt.Sprint("warm ", stream, sent), stream))
		must(t, err)
		_, err = r.Wait(ctx)
		must(t, err)
		if sent++; driverOf(s).Stats().Transactions == before+1 {
			return sent
		}
	}
}

func addTo(id, stream string) millrace.Command {
	return millrace.Command{ID: id, Stream: millrace.NewStream("tally", stream), Type: "Add", Data: []byte(`{"n":1}`)}
}

// decidedBy are the commands of a stream's events, in their order.
func decidedBy(t *testing.T, s *millrace.Store, stream string) (ids []string) {
	t.Helper()
	for e, err := range s.Events(patient(t), millrace.NewStream("tally", stream), 1) {
		must(t, err)
		ids = append(ids, e.CommandID)
	}
	return ids
}

// A client is told that his command is kept, by one node, and sends the next one to another, which decides the partition
// and was not told of the first. The first is decided first. Without the store's look at what waits it is not.
func TestOrderOverTwoNodes(t *testing.T) {
	for _, guarded := range []bool{true, false} {
		t.Run(fmt.Sprintf("guarded %v", guarded), func(t *testing.T) {
			dsn := server(t).DSN("postgres")
			open := func(o *Options) {
				if !guarded {
					o.edit = instead(t, "p.id <> all(g_held))", "p.id <> all(g_held) and false)")
				}
			}
			a, pa := nodeOf(t, dsn, "a", open)
			_, pb := nodeOf(t, dsn, "b", open)
			partition := millrace.NewStream("tally", "x").Partition(4)
			defer serve(t, a, pa, partition)()
			ctx := patient(t)
			warm := direct(t, a, pa, "x")
			first, err := pb.Accept(ctx, addTo("first", "x"))
			must(t, err)
			second, err := pa.Accept(ctx, addTo("second", "x"))
			must(t, err)
			_, err = second.Wait(ctx)
			must(t, err)
			got := strings.Join(decidedBy(t, a, "x")[warm:], " ")
			if want := map[bool]string{true: "first second", false: "second"}[guarded]; got != want {
				t.Errorf("decided: %s; want %s", got, want)
			}
			if guarded {
				o, err := first.Wait(ctx)
				if err != nil || o.Version != uint64(warm)+1 { //nolint:gosec // small
					t.Errorf("%+v %v", o, err)
				}
			}
			verify(t, a)
		})
	}
}

// Clients send to both nodes, one command after the other or many in one call, while the partitions move between the nodes
// all the time. Everything is decided once, each client's in the order in which it sent them.
func TestOrderWhilePartitionsMove(t *testing.T) {
	const clients, rounds, partitions = 5, 60, 4
	dsn := server(t).DSN("postgres")
	told := func(o *Options) { o.Poll, o.NoListen = 5*time.Millisecond, false }
	stores, procs := make([]*millrace.Store, 2), make([]*processor.Processor, 2)
	for i, name := range []string{"a", "b"} {
		stores[i], procs[i] = nodeOf(t, dsn, name, told)
	}
	ctx := patient(t)
	var wg sync.WaitGroup
	sent := make([]map[string][]string, clients) // by stream
	for c := range clients {
		sent[c] = map[string][]string{}
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(c), 3)) //nolint:gosec // a test's choices
			for i := range rounds {
				var many []millrace.Command
				for k := range 1 + rng.IntN(3)*rng.IntN(60) {
					id, stream := fmt.Sprintf("c%d-%d-%d", c, i, k), fmt.Sprint("s", rng.IntN(7))
					many = append(many, addTo(id, stream))
					sent[c][stream] = append(sent[c][stream], id)
				}
				for _, a := range procs[rng.IntN(2)].AcceptAll(ctx, many) {
					if a.Err != nil {
						t.Error(a.Err)
						return
					}
					if rng.IntN(10) == 0 {
						if o, err := a.Receipt.Wait(ctx); err != nil || o.Status != millrace.StatusDecided {
							t.Errorf("%+v %v", o, err)
							return
						}
					}
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	rng := rand.New(rand.NewPCG(9, 9)) //nolint:gosec // a test's choices
	stop := make([]func(), partitions)
	for p := range partitions {
		stop[p] = serve(t, stores[p%2], procs[p%2], p)
	}
	moves := 0
	for goOn := true; goOn; moves++ {
		// Not before something was decided: a partition that moves all the time gets nowhere, and shows nothing.
		before := positions(stores)
		for goOn && positions(stores) < before+20 {
			select {
			case <-done:
				goOn = false
			default:
				goOn = pause(ctx, done, time.Millisecond)
			}
		}
		p, n := rng.IntN(partitions), rng.IntN(2)
		stop[p]()
		stop[p] = serve(t, stores[n], procs[n], p)
	}
	for p := range partitions {
		defer stop[p]()
	}
	t.Logf("%d moves", moves)
	total := 0
	for i := range 7 {
		stream := fmt.Sprint("s", i)
		r, err := procs[0].Accept(ctx, addTo("end"+stream, stream))
		must(t, err)
		_, err = r.Wait(ctx)
		must(t, err)
		got := decidedBy(t, stores[1], stream)
		total += len(got)
		for c := range clients {
			var mine []string
			for _, id := range got {
				if strings.HasPrefix(id, fmt.Sprintf("c%d-", c)) {
					mine = append(mine, id)
				}
			}
			if want := sent[c][stream]; strings.Join(mine, " ") != strings.Join(want, " ") {
				t.Errorf("client %d, stream %s: %d decided, %d sent, or in another order:\n%v\n%v", c, stream, len(mine), len(want), mine, want)
			}
		}
	}
	t.Logf("%d commands", total)
	verify(t, stores[0])
}

// positions are how many events two nodes know of.
func positions(stores []*millrace.Store) (n uint64) {
	for _, s := range stores {
		for _, h := range s.Heads() {
			n += h.Position
		}
	}
	return n
}

// The partition's row is held by somebody for long. Who has sent a command to its owner is told after as long as for any
// command that cannot be kept, not after as long as decisions are tried, and may send it again.
func TestOwnerThatCannotWriteSaysSo(t *testing.T) {
	dsn := server(t).DSN("postgres")
	s, p := nodeOf(t, dsn, "a", func(o *Options) { o.AcceptPatience, o.DecidePatience = 100*time.Millisecond, time.Hour })
	partition := millrace.NewStream("tally", "x").Partition(4)
	acquire(t, s, partition)
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(patient(t), partition) }()
	ctx := patient(t)
	warm := direct(t, s, p, "x")
	held := begin(t, dsn, fmt.Sprintf("select from fence.partitions where partition = %d for update", partition))
	for _, a := range p.AcceptAll(ctx, []millrace.Command{addTo("one", "x"), addTo("two", "x")}) {
		if !errors.Is(a.Err, millrace.ErrUnavailable) {
			t.Errorf("who waits is told %v", a.Err)
		}
	}
	must(t, held.Rollback(ctx))
	if err := <-ended; !errors.Is(err, millrace.ErrUnavailable) {
		t.Errorf("the partition's work ended with %v", err)
	}
	defer serve(t, s, p, partition)()
	for _, a := range p.AcceptAll(ctx, []millrace.Command{addTo("one", "x"), addTo("two", "x")}) {
		must(t, a.Err)
		if o, err := a.Receipt.Wait(ctx); err != nil || o.Status != millrace.StatusDecided {
			t.Errorf("%+v %v", o, err)
		}
	}
	if got := strings.Join(decidedBy(t, s, "x")[warm:], " "); got != "one two" {
		t.Errorf("decided: %s", got)
	}
	verify(t, s)
}

// A command commits so late that the page it belongs into was read already, and its client sends the next one. A reader that
// reads on does not see the second before the first.
func TestPendingPagesKeepTheOrder(t *testing.T) {
	dsn := server(t).DSN("postgres")
	s, _ := node(t, dsn, "a", nil)
	ctx := patient(t)
	var many []millrace.AcceptedCommand
	for i := range firstPage + 10 {
		many = append(many, accepted(command(fmt.Sprint("early", i), 1)))
	}
	// The late one is inserted first, which decides its place, and committed when the first page has been read.
	late, second := command("late", 1), command("second", 1)
	must(t, s.Accept(ctx, 1, []millrace.AcceptedCommand{accepted(late)}))
	exec(t, dsn, `delete from fence.pending`)
	conn, err := pgx.Connect(ctx, dsn)
	must(t, err)
	defer func() { _ = conn.Close(ctx) }()
	inserting, err := conn.Begin(ctx)
	must(t, err)
	_, err = inserting.Exec(ctx, `insert into fence.pending values (1, clock_timestamp(), 1, 'late')`)
	must(t, err)
	must(t, s.Accept(ctx, 1, many))
	var seen []string
	for c, err := range s.Pending(ctx, 1) {
		must(t, err)
		if len(seen) == 0 {
			must(t, inserting.Commit(ctx))
			must(t, s.Accept(ctx, 1, []millrace.AcceptedCommand{accepted(second)}))
		}
		seen = append(seen, c.Command.ID)
	}
	if len(seen) != len(many) {
		t.Errorf("%d commands, want %d: %v", len(seen), len(many), seen)
	}
	seen = nil
	for c, err := range s.Pending(ctx, 1) {
		must(t, err)
		seen = append(seen, c.Command.ID)
	}
	if len(seen) != len(many)+2 || seen[0] != "late" || seen[len(seen)-1] != "second" {
		t.Errorf("the next reader sees %d commands, %v", len(seen), seen)
	}
}
