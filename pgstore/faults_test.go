package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/pgtest"
)

// loaded is a store with clients: in each partition one decides one command after the other and one accepts, and notes
// what was acknowledged.
type loaded struct {
	t *testing.T
	s *millrace.Store

	mu       sync.Mutex
	acked    map[string]bool // true where it was decided
	unsure   []asked         // what a client was told no answer to, which was its last
	moved    chan struct{}   // closed and replaced when something was acknowledged
	stop     chan struct{}
	wg       sync.WaitGroup
	failures []error
}

// asked is what a client asked for.
type asked struct {
	c         *millrace.Command
	partition int
	decides   bool
	events    int
}

func (a *asked) of(s *millrace.Store) error {
	if a.decides {
		return commitOne(s, a.partition, decided(a.c, true, a.events))
	}
	return s.Accept(context.Background(), a.partition, []millrace.AcceptedCommand{accepted(a.c)})
}

func load(t *testing.T, s *millrace.Store) *loaded { return loadAs(t, s, "") }

// loadAs is load with clients of another name: a second load of a store.
func loadAs(t *testing.T, s *millrace.Store, name string) *loaded {
	l := &loaded{t: t, s: s, acked: map[string]bool{}, moved: make(chan struct{}), stop: make(chan struct{})}
	for p := range s.Partitions() {
		l.wg.Go(func() {
			l.each(func(i int) asked { return asked{command(fmt.Sprintf("%sd-%d-%d", name, p, i), p), p, true, 1 + i%3} })
		})
		l.wg.Go(func() {
			l.each(func(i int) asked { return asked{c: command(fmt.Sprintf("%sa-%d-%d", name, p, i), p), partition: p} })
		})
	}
	return l
}

func (l *loaded) each(next func(i int) asked) {
	for i := 0; ; i++ {
		select {
		case <-l.stop:
			return
		default:
		}
		a := next(i)
		err := a.of(l.s)
		l.mu.Lock()
		if err != nil {
			l.failures, l.unsure = append(l.failures, err), append(l.unsure, a)
			l.mu.Unlock()
			return
		}
		l.acked[a.c.ID] = a.decides
		close(l.moved)
		l.moved = make(chan struct{})
		l.mu.Unlock()
	}
}

// more waits until n more are acknowledged.
func (l *loaded) more(n int) {
	l.t.Helper()
	ctx := patient(l.t)
	l.mu.Lock()
	want := len(l.acked) + n
	for len(l.acked) < want && l.failures == nil {
		moved := l.moved
		l.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			l.t.Fatal("nothing is acknowledged any more")
		}
		l.mu.Lock()
	}
	l.mu.Unlock()
}

// end stops the clients.
func (l *loaded) end() {
	close(l.stop)
	l.wg.Wait()
	for _, err := range l.failures {
		l.t.Errorf("a client was told %v", err)
	}
}

// refused waits until every client was told no, and gives what they were told: of nobody who was told so is it known whether
// the store has it.
func (l *loaded) refused() []error {
	l.t.Helper()
	ended := make(chan struct{})
	go func() { l.wg.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-patient(l.t).Done():
		l.t.Fatal("somebody is still waiting")
	}
	return l.failures
}

// again asks once more for all that clients were told no to, as they do: what is there already is not done again.
func (l *loaded) again() {
	l.t.Helper()
	for _, a := range l.unsure {
		o, err := l.s.Lookup(patient(l.t), a.c.ID)
		if a.decides && err == nil && o.Status == millrace.StatusDecided {
			l.t.Logf("%s was decided, and nobody was told", a.c.ID)
		} else if err := a.of(l.s); err != nil {
			l.t.Errorf("%s, asked again: %v", a.c.ID, err)
		}
		l.acked[a.c.ID] = a.decides
	}
	l.failures, l.unsure = nil, nil
}

// check looks for everything that was acknowledged, in a store that may be another one.
func (l *loaded) check(s *millrace.Store) {
	l.t.Helper()
	ctx := patient(l.t)
	for id, decided := range l.acked {
		want := millrace.StatusAccepted
		if decided {
			want = millrace.StatusDecided
		}
		o, err := s.Lookup(ctx, id)
		if err != nil || o.Status != want {
			l.t.Errorf("%s was acknowledged: %v %v", id, o.Status, err)
		}
	}
	seen := map[string]bool{}
	for batch, err := range s.Feed(ctx, millrace.FeedOptions{}) {
		must(l.t, err)
		for i := range batch {
			id := batch[i].ID()
			if seen[id] {
				l.t.Errorf("%s is in the feed twice", id)
			}
			seen[id] = true
		}
	}
	verify(l.t, s)
	l.t.Logf("%d acknowledged, %d events", len(l.acked), len(seen))
}

// shortPatience keeps what must fail from taking long.
func shortPatience(o *Options) {
	o.AcceptPatience, o.DecidePatience = 300*time.Millisecond, 300*time.Millisecond
}

// four are the options of a store of four partitions in the schema s.
func four(t testing.TB, change func(*Options)) *Options {
	o := options(t, "s")
	o.Partitions = 4
	if change != nil {
		change(o)
	}
	return o
}

// The database dies under load and comes back: every client waits and goes on, nothing that was acknowledged is lost, and
// nothing is there twice. Sync is on: the promise is about the disk.
func TestRestartsUnderLoad(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, in pgtest.Installation) {
		server := pgtest.Start(t, pgtest.Options{Installation: in})
		s := open(t, server.DSN("postgres"), four(t, nil))
		l := load(t, s)
		l.more(200)
		for _, fail := range []func() error{
			func() error { return server.Restart(pgtest.Immediate) },
			func() error { return server.Restart(pgtest.Fast) },
			func() error { return errors.Join(server.Kill(), server.Start()) },
			func() error {
				pid := ask[int](t, server.DSN("postgres"), "select pid from pg_stat_activity where application_name = 'millrace' limit 1")
				return server.KillBackend(pid)
			},
		} {
			must(t, fail())
			l.more(200)
		}
		l.end()
		l.check(s)
		must(t, s.Close())
		again := open(t, server.DSN("postgres"), four(t, nil))
		l.check(again)
	})
}

// Connections are cut again and again, each time with answers on their way.
func TestConnectionsCutUnderLoad(t *testing.T) {
	server := server(t)
	proxy := pgtest.NewProxy(t, server.Addr())
	s := open(t, proxy.DSN("postgres"), four(t, nil))
	l := load(t, s)
	for i := range 40 {
		l.more(20)
		proxy.SetDelay(time.Duration(i%3) * time.Millisecond)
		proxy.Cut()
	}
	l.end()
	l.check(s)
}

// The answer to a commit is lost: the driver finds out that it was written, and writes it once.
func TestLostAnswers(t *testing.T) {
	server := server(t)
	proxy := pgtest.NewProxy(t, server.Addr())
	s := open(t, proxy.DSN("postgres"), four(t, func(o *Options) { o.NoListen = true }))
	ctx := patient(t)
	awaitLoss := func(lost <-chan struct{}) {
		t.Helper()
		select {
		case <-lost:
		case <-ctx.Done():
			t.Fatal("no answer was lost")
		}
	}
	for i := range 5 {
		id := fmt.Sprint("decided", i)
		lost := proxy.LoseAnswer(id)
		must(t, commitOne(s, 1, decided(command(id, 1), true, 2)))
		awaitLoss(lost)
		id = fmt.Sprint("accepted", i)
		lost = proxy.LoseAnswer(id)
		must(t, s.Accept(ctx, 1, []millrace.AcceptedCommand{accepted(command(id, 1))}))
		awaitLoss(lost)
		id = fmt.Sprint("accepted", i, "+")
		lost = proxy.LoseAnswer(id)
		must(t, <-send(s, &millrace.Batch{Partition: 1, Accepted: []millrace.AcceptedCommand{accepted(command(id, 1))}, Decisions: []millrace.Decision{
			decided(command(fmt.Sprint("accepted", i), 1), false, 1),
		}}))
		awaitLoss(lost)
		doc := fmt.Sprintf(`"document %d"`, i)
		lost = proxy.LoseAnswer(doc)
		must(t, s.CommitViews(ctx, []millrace.ViewBatch{{Consumer: "c", Partition: 1, Checkpoint: uint64(i), Puts: []millrace.Put{
			{Document: millrace.Document{Collection: "c.d", Partition: 1, ID: "x", Data: []byte(doc), Keys: []string{fmt.Sprint(i)}}, Old: old(i)},
		}}}))
		awaitLoss(lost)
	}
	if h := s.Heads()[1]; h.Position != 15 {
		t.Errorf("the head is at %d", h.Position)
	}
	if n := ask[int](t, server.DSN("postgres"), "select count(*) from s.outcomes"); n != 10 {
		t.Errorf("%d outcomes", n)
	}
	for s.Backlog() != 5 && pause(ctx, nil, time.Millisecond) { // a count after a lost answer is right with the next one that is due
		must(t, driverOf(s).inquire(ctx, false))
	}
	if n := s.Backlog(); n != 5 {
		t.Errorf("a backlog of %d", n)
	}
	verify(t, s)
}

func old(i int) []string {
	if i == 0 {
		return nil
	}
	return []string{fmt.Sprint(i - 1)}
}

// While the database is away the store says so, before anybody waits for it, and what could not be written fails in its
// time. The partition whose decisions were under way is given up, and can be acquired again.
func TestDatabaseAway(t *testing.T) {
	server := server(t)
	proxy := pgtest.NewProxy(t, server.Addr())
	s := open(t, proxy.DSN("postgres"), four(t, func(o *Options) { shortPatience(o); o.OwnAll = false }))
	acquire(t, s, 0, 1)
	must(t, commitOne(s, 0, decided(command("before", 0), true, 1)))
	must(t, proxy.Refuse(true))
	proxy.Cut()
	err := s.Accept(patient(t), 2, []millrace.AcceptedCommand{accepted(command("away", 2))})
	if !errors.Is(err, millrace.ErrUnavailable) || !millrace.IsTransient(err) {
		t.Errorf("an acceptance says %v", err)
	}
	if err := s.Writable(); !errors.Is(err, millrace.ErrUnavailable) || errors.Is(err, millrace.ErrFailed) {
		t.Errorf("the store says that it is %v", err)
	}
	if err := commitOne(s, 0, decided(command("unsure", 0), true, 1)); !errors.Is(err, millrace.ErrUnavailable) {
		t.Errorf("a decision says %v", err)
	}
	if err := commitOne(s, 0, decided(command("behind", 0), true, 1)); !errors.Is(err, millrace.ErrFenced) {
		t.Errorf("a decision behind one of which nobody knows says %v", err)
	}
	if _, err := s.Lookup(patient(t), "before"); !errors.Is(err, millrace.ErrUnavailable) {
		t.Errorf("a lookup says %v", err)
	}
	if err := s.CommitViews(patient(t), []millrace.ViewBatch{{Consumer: "c", Partition: 1}}); !errors.Is(err, millrace.ErrUnavailable) {
		t.Errorf("views say %v", err)
	}
	must(t, proxy.Refuse(false))
	writable(t, s)
	lost, err := driverOf(s).Renew(patient(t))
	if must(t, err); !slices.Equal(lost, []int{0}) {
		t.Errorf("lost %v", lost)
	}
	if free, err := driverOf(s).Free(patient(t)); err != nil || !slices.Equal(free, []int{0, 2, 3}) {
		t.Errorf("free %v (%v)", free, err)
	}
	acquire(t, s, 0)
	must(t, commitOne(s, 0, decided(command("after", 0), true, 1)))
	verify(t, s)
}

// writable waits until the store takes facts again.
func writable(t *testing.T, s *millrace.Store) {
	t.Helper()
	ctx := patient(t)
	began := time.Now()
	for s.Writable() != nil {
		if !pause(ctx, nil, 5*time.Millisecond) {
			t.Fatalf("still not writable: %v", s.Writable())
		}
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %s until the store was writable again", took)
	}
}

// A database that refuses writes but answers reads: reads go on.
func TestReadOnlyDatabase(t *testing.T) {
	server := server(t)
	s := open(t, server.DSN("postgres"), four(t, shortPatience))
	must(t, commitOne(s, 0, decided(command("before", 0), true, 1)))
	must(t, server.ReadOnly(true))
	err := s.Accept(patient(t), 2, []millrace.AcceptedCommand{accepted(command("refused", 2))})
	if !errors.Is(err, millrace.ErrUnavailable) || !errors.Is(s.Writable(), millrace.ErrUnavailable) {
		t.Errorf("an acceptance says %v, and the store %v", err, s.Writable())
	}
	if _, err := s.Lookup(patient(t), "before"); err != nil {
		t.Errorf("a read: %v", err)
	}
	must(t, server.ReadOnly(false))
	writable(t, s)
	must(t, s.Accept(patient(t), 2, []millrace.AcceptedCommand{accepted(command("taken", 2))}))
	verify(t, s)
}

// Somebody holds the row of a partition: the others go on, and that one when the row is free.
func TestLockedPartition(t *testing.T) {
	server := server(t)
	dsn := server.DSN("postgres")
	s := open(t, dsn, four(t, func(o *Options) {
		o.Writers, o.LeaseTTL = 1, time.Hour
		o.AcceptPatience = patience // the row is held for as long as the others take, on a slow machine too
	}))
	ctx := patient(t)
	conn, err := pgx.Connect(ctx, dsn)
	must(t, err)
	defer func() { _ = conn.Close(ctx) }()
	tx, err := conn.Begin(ctx)
	must(t, err)
	_, err = tx.Exec(ctx, "select from s.partitions where partition = 0 for update")
	must(t, err)
	held := send(s, &millrace.Batch{Partition: 0, Decisions: []millrace.Decision{decided(command("held", 0), true, 1)}})
	for i := range 100 {
		must(t, commitOne(s, 1+i%3, decided(command(fmt.Sprint("free", i), 1+i%3), true, 1)))
	}
	select {
	case err := <-held:
		t.Fatalf("the partition that is held: %v", err)
	default:
	}
	must(t, tx.Rollback(ctx))
	must(t, <-held)
	verify(t, s)
}

// No connection is left on the server: what is written waits, and goes on.
func TestTooManyConnections(t *testing.T) {
	server := pgtest.Start(t, pgtest.Options{NoSync: true, Settings: map[string]string{"max_connections": "14", "superuser_reserved_connections": "0", "max_wal_senders": "0"}})
	s := open(t, server.DSN("postgres"), four(t, nil))
	ctx := patient(t)
	var others []*pgx.Conn
	for {
		c, err := pgx.Connect(ctx, server.DSN("postgres"))
		if err != nil {
			break
		}
		others = append(others, c)
	}
	proxyCutAll(t, others[0])
	for { // and the ones that the store had
		c, err := pgx.Connect(ctx, server.DSN("postgres"))
		if err != nil {
			break
		}
		others = append(others, c)
	}
	l := load(t, s)
	for _, c := range others {
		_ = c.Close(ctx)
	}
	l.more(200)
	l.end()
	l.check(s)
}

// proxyCutAll ends the store's connections on the server.
func proxyCutAll(t *testing.T, c *pgx.Conn) {
	t.Helper()
	_, err := c.Exec(patient(t), "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'millrace'")
	must(t, err)
}

// A standby that follows in step takes over: nothing that was acknowledged is lost.
func TestFailover(t *testing.T) {
	server := server(t)
	standby := server.Standby(t, true)
	proxy := pgtest.NewProxy(t, server.Addr())
	s := open(t, proxy.DSN("postgres"), four(t, nil))
	l := load(t, s)
	l.more(200)
	must(t, server.Kill())
	must(t, standby.Promote())
	proxy.SetTarget(standby.Addr())
	proxy.Cut()
	l.more(200)
	l.end()
	l.check(s)
}

// A standby that lagged takes over: what was acknowledged is gone, and the store says so instead of going on.
func TestFailoverThatLosesIsNoticed(t *testing.T) {
	server := server(t)
	proxy := pgtest.NewProxy(t, server.Addr())
	fatal := make(chan error, 1)
	s := open(t, proxy.DSN("postgres"), four(t, func(o *Options) { o.Fatal = func(err error) { fatal <- err } }))
	must(t, commitOne(s, 0, decided(command("before", 0), true, 1)))
	standby := server.Standby(t, false)
	must(t, standby.Pause())
	must(t, commitOne(s, 0, decided(command("lost", 0), true, 1)))
	must(t, server.Kill())
	// What the server sent waits in the standby's socket. A stop in order would wake the standby for it, and it might read
	// and keep the commit that it is to lack.
	must(t, standby.Kill())
	must(t, standby.Start())
	must(t, standby.Promote())
	proxy.SetTarget(standby.Addr())
	proxy.Cut()
	select {
	case err := <-fatal:
		if !errors.Is(err, millrace.ErrFailed) {
			t.Errorf("fatal: %v", err)
		}
	case <-patient(t).Done():
		t.Fatal("nobody noticed")
	}
	if err := commitOne(s, 0, decided(command("after", 0), true, 1)); !errors.Is(err, millrace.ErrFailed) {
		t.Errorf("a commit says %v", err)
	}
}

// A standby is no place to open a store.
func TestOpenOnStandby(t *testing.T) {
	server := server(t)
	standby := server.Standby(t, false)
	must(t, open(t, server.DSN("postgres"), four(t, nil)).Close())
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	s, err := Open(ctx, standby.DSN("postgres"), four(t, nil))
	if err == nil {
		_ = s.Close()
		t.Error("a store on a standby")
	}
}
