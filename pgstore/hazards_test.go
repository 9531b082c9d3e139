package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/pgtest"
)

// hazards is a store under the schedules at which feeds over PostgreSQL lose events or stand still: a node that owns
// every partition, another one that only reads and has followed the feed from its beginning, and beside them the
// table of a feed as one writes it at first, which each test of a hazard must see fail.
type hazards struct {
	*testing.T
	server *pgtest.Server
	db     string
	dsn    string
	a, b   *millrace.Store
	live   *follower
	n      int // events
	calls  int
}

// newHazards makes the world of one hazard in a database of its own.
func newHazards(t *testing.T, s *pgtest.Server) *hazards {
	t.Helper()
	h := &hazards{T: t, server: s, db: fmt.Sprint("hazard", schemas.Add(1))}
	must(t, s.CreateDatabase(h.db))
	h.dsn = s.DSN(h.db)
	h.a, _ = node(t, h.dsn, "a", patientLease)
	h.b, _ = node(t, h.dsn, "b", patientLease)
	acquire(t, h.a, 0, 1, 2, 3)
	h.live = followed(t, h.b)
	exec(t, h.dsn, `create schema naive`)
	exec(t, h.dsn, `create sequence naive.numbers`)
	exec(t, h.dsn, `create table naive.events (pos bigint primary key default nextval('naive.numbers'), xid xid8 not null default pg_current_xact_id())`)
	return h
}

// follower reads a feed as it grows.
type follower struct {
	mu    sync.Mutex
	n     int
	moved chan struct{}
	err   error
}

func followed(t *testing.T, s *millrace.Store) *follower {
	f := &follower{moved: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	t.Cleanup(func() { cancel(); <-ended })
	go func() {
		defer close(ended)
		next := make([]uint64, s.Partitions())
		for batch, err := range s.Feed(ctx, millrace.FeedOptions{Follow: true}) {
			for i := range batch {
				e := &batch[i]
				if next[e.Partition]++; e.Position != next[e.Partition] && err == nil {
					err = fmt.Errorf("partition %d: position %d came when %d was due", e.Partition, e.Position, next[e.Partition])
				}
			}
			f.mu.Lock()
			f.n, f.err = f.n+len(batch), errors.Join(f.err, err)
			close(f.moved)
			f.moved = make(chan struct{})
			f.mu.Unlock()
		}
	}()
	return f
}

// sees waits until the reader has seen all that was committed, each event once and in its place.
func (h *hazards) sees(when string) {
	h.Helper()
	f, ctx := h.live, patient(h)
	for {
		f.mu.Lock()
		n, moved, err := f.n, f.moved, f.err
		f.mu.Unlock()
		if err != nil || n > h.n {
			h.Fatalf("%s: %d of %d events: %v", when, n, h.n, err)
		}
		if n == h.n {
			return
		}
		select {
		case <-moved:
		case <-ctx.Done():
			h.Fatalf("%s: the reader stands still at %d of %d events", when, n, h.n)
		}
	}
}

// write decides a command with two events in each of some partitions, all of them if none is named.
func (h *hazards) write(partitions ...int) {
	h.Helper()
	if partitions == nil {
		partitions = []int{0, 1, 2, 3}
	}
	for _, p := range partitions {
		h.calls++
		must(h, commitOne(h.a, p, decided(command(fmt.Sprint("w", h.calls), p), true, 2)))
		h.n += 2
	}
}

// begin opens a transaction in a connection of its own.
func begin(t *testing.T, dsn string, sqls ...string) pgx.Tx {
	t.Helper()
	conn, err := pgx.Connect(patient(t), dsn)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	tx, err := conn.Begin(patient(t))
	must(t, err)
	for _, sql := range sqls {
		run(t, tx, sql)
	}
	return tx
}

func run(t *testing.T, tx pgx.Tx, sql string, args ...any) {
	t.Helper()
	_, err := tx.Exec(patient(t), sql, args...)
	must(t, err)
}

// one reads a value in a transaction.
func one[T any](t *testing.T, tx pgx.Tx, sql string, args ...any) (v T) {
	t.Helper()
	must(t, tx.QueryRow(patient(t), sql, args...).Scan(&v))
	return v
}

// decideIn has the owner's decision of two events written within a transaction that the test commits, or does not. The
// owner learns nothing of it: it must acquire the partition before it goes on there.
func (h *hazards) decideIn(tx pgx.Tx, partition int) error {
	h.Helper()
	h.calls++
	d := driverOf(h.a)
	c := d.next(partition, decided(command(fmt.Sprint("in", h.calls), partition), true, 2))
	var added, removed int64
	return d.call(patient(h), d.sql.decide, d.decideParams(c, true, true), &added, &removed)(tx.Conn())
}

// next is a transaction of one decision behind the head of a partition.
func (d *Driver) next(partition int, one millrace.Decision) *commit {
	from := d.heads.get(partition)
	one.Position = from.Position
	one.Encoded = millrace.AppendDecision(nil, &one)
	one.Chain = millrace.NextChain(from.Chain, one.Encoded)
	return d.w.build([]*part{{
		partition: partition, epoch: d.leases.epoch(partition), from: from,
		reqs: []*request{{batch: &millrace.Batch{Partition: partition, Decisions: []millrace.Decision{one}}}},
	}})
}

// commit ends a transaction of decideIn, and has the owner go on from there.
func (h *hazards) commit(tx pgx.Tx, partition int) {
	h.Helper()
	must(h, tx.Commit(patient(h)))
	h.n += 2
	acquire(h, h.a, partition)
}

// naive is a feed as one writes it at first. Its reader asks for what is behind the last position that it has seen.
type naive struct {
	*hazards
	and  string // what it asks for besides
	last int64
}

// read is what the reader sees next.
func (r *naive) read() []int64 {
	r.Helper()
	all := ask[[]int64](r, r.dsn, `select coalesce(array_agg(pos order by pos), '{}') from naive.events where pos > $1 `+r.and, r.last)
	if len(all) > 0 {
		r.last = all[len(all)-1]
	}
	return all
}

// control wants a naive reader to see these and nothing else.
func (r *naive) control(what string, want ...int64) {
	r.Helper()
	if got := r.read(); !slices.Equal(got, want) {
		r.Errorf("the control reads %v, not %v: %s", got, want, what)
	}
}

const (
	insertNaive = "insert into naive.events default values"
	// beforeOldest is the usual remedy: only what no running transaction can precede.
	beforeOldest = "and xid < pg_snapshot_xmin(pg_current_snapshot())"
)

// Each of the ten hazards of change feeds over PostgreSQL, and what belongs to it: no event is skipped or comes twice, a
// partition stands still at most while somebody holds its row, and the others never do.
func TestFeedHazards(t *testing.T) {
	s := server(t)
	for _, hazard := range []struct {
		name string
		test func(h *hazards)
	}{
		{"1 who numbers first commits last", (*hazards).slowCommit},
		{"1 a rollback leaves a gap", (*hazards).rollback},
		{"1 a command that commits late is found late", (*hazards).lateCommand},
		{"2 an older transaction writes the later position", (*hazards).olderTransaction},
		{"3 a number is taken before there is a transaction", (*hazards).numberBefore},
		{"4 a long transaction", func(h *hazards) { h.longTransaction(h.dsn) }},
		{"4 a long transaction in another database", func(h *hazards) {
			must(h, h.server.CreateDatabase("other"))
			h.longTransaction(h.server.DSN("other"))
		}},
		{"4 an orphan prepared transaction", (*hazards).orphan},
		{"4 a long transaction that only reads", (*hazards).longRead},
		{"5 a lock is waited for in an old snapshot", (*hazards).oldSnapshot},
		{"6 a sequence with a cache, and one that is set back", (*hazards).cachedSequence},
		{"7 the log moves to another cluster", (*hazards).anotherCluster},
		{"8 a replica", (*hazards).replica},
		{"9 notifications are lost", (*hazards).lostNotification},
	} {
		t.Run(hazard.name, func(t *testing.T) {
			h := newHazards(t, s)
			h.write()
			h.sees("before")
			hazard.test(h)
			h.sees("at the end")
			verify(t, h.a)
		})
	}
	t.Run("10 positions are used again after a failover", positionsUsedAgain)
}

func (h *hazards) slowCommit() {
	slow := begin(h.T, h.dsn, insertNaive) // 1
	must(h, h.decideIn(slow, 2))
	exec(h, h.dsn, insertNaive) // 2
	h.write(0, 1, 3)
	h.sees("while a partition's row is held")
	r := &naive{hazards: h}
	r.control("the later one is there", 2)
	h.commit(slow, 2)
	h.sees("when it is free")
	r.control("the earlier one is skipped")
	h.write()
}

func (h *hazards) rollback() {
	slow := begin(h.T, h.dsn, insertNaive) // 1
	must(h, h.decideIn(slow, 2))
	must(h, slow.Rollback(patient(h)))
	exec(h, h.dsn, insertNaive) // 2
	r := &naive{hazards: h, and: "and pos = (select count(*) from naive.events e where e.pos <= events.pos)"}
	r.control("who waits for gaps to be filled waits for ever")
	h.write()
}

func (h *hazards) lateCommand() {
	late := command("late", 2)
	fp := late.Fingerprint()
	slow := begin(h.T, h.dsn)
	c := &commit{seen: map[string]*millrace.Fingerprint{}}
	c.keep(2, late, &fp)
	var added int64
	must(h, driverOf(h.a).call(patient(h), driverOf(h.a).sql.keep, driverOf(h.a).keepParams(c, true, true), &added)(slow.Conn()))
	early := command("early", 2)
	must(h, h.a.Accept(patient(h), 2, []millrace.AcceptedCommand{accepted(early)}))
	pending := func(want ...string) {
		h.Helper()
		var got []string
		for a, err := range h.a.Pending(patient(h), 2) {
			must(h, err)
			got = append(got, a.Command.ID)
		}
		if !slices.Equal(got, want) {
			h.Errorf("undecided are %v, not %v", got, want)
		}
	}
	pending("early")
	must(h, commitOne(h.a, 2, decided(early, false, 1)))
	h.n++
	h.write()
	h.sees("while a command is kept and not committed")
	pending()
	must(h, slow.Commit(patient(h)))
	pending("late")
	must(h, commitOne(h.a, 2, decided(late, false, 1)))
	h.n++
}

func (h *hazards) olderTransaction() {
	older := begin(h.T, h.dsn, "select pg_current_xact_id()")
	newer := begin(h.T, h.dsn, insertNaive) // 1
	must(h, h.decideIn(newer, 2))
	run(h.T, older, insertNaive) // 2
	must(h, h.decideIn(older, 3))
	h.commit(older, 3)
	h.sees("while the newer one is under way")
	r := &naive{hazards: h, and: beforeOldest}
	r.control("the older transaction's position", 2)
	h.commit(newer, 2)
	r.control("the newer one's, which is lower, is skipped")
	h.write()
}

func (h *hazards) numberBefore() {
	// The sequence writes down that 32 numbers are taken, so that the next ones need no transaction id.
	exec(h, h.dsn, "select nextval('naive.numbers')")
	early := begin(h.T, h.dsn)
	number := one[int64](h.T, early, "select nextval('naive.numbers')")
	if one[bool](h.T, early, "select pg_current_xact_id_if_assigned() is not null") {
		h.Error("the control has an id with its number: this is another schedule")
	}
	epoch, from := driverOf(h.a).leases.epoch(2), driverOf(h.a).heads.get(2)
	if p := one[uint64](h.T, early, "select position from fence.partitions where partition = 2"); p != from.Position {
		h.Errorf("position %d", p)
	}
	exec(h, h.dsn, insertNaive)
	h.write() // in partition 2 too: the position that was read is taken
	r := &naive{hazards: h, and: beforeOldest}
	r.control("nobody who could fill the gap is seen", number+1)
	run(h.T, early, "insert into naive.events (pos) values ($1)", number)
	_, err := early.Exec(patient(h), `update fence.partitions set position = $1 where partition = 2 and epoch = $2 and position = $3`, from.Position+2, epoch, from.Position)
	must(h, err)
	must(h, early.Commit(patient(h)))
	r.control("the gap is filled and skipped")
	if p := ask[uint64](h, h.dsn, "select position from fence.partitions where partition = 2"); p != from.Position+2 {
		h.Errorf("the head is at %d", p)
	}
}

// longTransaction: it holds nothing but an id, here or in another database of the server.
func (h *hazards) longTransaction(dsn string) {
	exec(h, dsn, "create table bystander (n int)")
	long := begin(h.T, dsn, "insert into bystander values (1)")
	exec(h, h.dsn, insertNaive) // 1
	h.write()
	h.sees("beside a long transaction")
	r := &naive{hazards: h, and: beforeOldest}
	r.control("a reader behind the oldest transaction stands still")
	must(h, long.Rollback(patient(h)))
	r.control("and goes on when it ends", 1)
	h.write()
}

func (h *hazards) orphan() {
	exec(h, h.dsn, "create table bystander (n int)")
	tx := begin(h.T, h.dsn, "insert into bystander values (1)", "prepare transaction 'orphan'")
	_ = tx.Rollback(patient(h)) // there is none any more
	must(h, h.server.Restart(pgtest.Fast))
	ctx := patient(h)
	for h.b.Writable() != nil || h.a.Writable() != nil {
		if !pause(ctx, nil, time.Millisecond) {
			h.Fatal("the database does not come back")
		}
	}
	exec(h, h.dsn, insertNaive)
	h.write()
	h.sees("beside a prepared transaction")
	r := &naive{hazards: h, and: beforeOldest}
	r.control("a reader behind the oldest transaction stands still, over a restart too")
	exec(h, h.dsn, "rollback prepared 'orphan'")
	if got := r.read(); len(got) != 1 {
		h.Errorf("the control reads %v after it", got)
	}
	h.write()
}

func (h *hazards) longRead() {
	long := begin(h.T, h.dsn, "set transaction isolation level repeatable read", "select count(*) from fence.events")
	exec(h, h.dsn, insertNaive)
	h.write()
	h.sees("beside a long transaction that reads")
	r := &naive{hazards: h, and: beforeOldest}
	r.control("it has no id, and holds up nobody", 1)
	must(h, long.Rollback(patient(h)))
}

func (h *hazards) oldSnapshot() {
	const next = "select coalesce(max(pos), 0) from naive.events"
	expire(h, h.dsn, 2)
	slow := begin(h.T, h.dsn, "select pg_advisory_xact_lock(7)", insertNaive)
	must(h, h.decideIn(slow, 2))
	old := begin(h.T, h.dsn, "set transaction isolation level repeatable read")
	locked := make(chan error, 1)
	go func() {
		_, err := old.Exec(context.Background(), "select pg_advisory_xact_lock(7)")
		locked <- err
	}()
	// A node of a database whose transactions keep their first snapshot unless they ask for another.
	dsn := h.dsn + "&options=-c%20default_transaction_isolation%3Drepeatable%5C%20read"
	c, dc := node(h.T, dsn, "c", patientLease)
	if level := ask[string](h, dsn, "show transaction_isolation"); level != "repeatable read" {
		h.Fatalf("the level is %s", level)
	}
	expire(h, h.dsn, 3)
	acquire(h, c, 3)
	// It waits for the row that the slow commit holds, with a snapshot from before that commit.
	type taken struct {
		epoch uint64
		err   error
	}
	got := make(chan taken, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		for {
			epoch, ok, err := dc.Acquire(ctx, 2)
			if ok || ctx.Err() != nil {
				got <- taken{epoch, err}
				return
			}
		}
	}()
	await(h.T, h.dsn, "select count(*)::integer from pg_stat_activity where wait_event_type = 'Lock'", 2)
	must(h, slow.Commit(patient(h)))
	h.n += 2
	must(h, <-locked)
	if n := one[int64](h.T, old, next); n != 0 {
		h.Errorf("the control sees position %d after it waited: this is another schedule", n)
	}
	if n := ask[int64](h, h.dsn, next); n != 1 {
		h.Errorf("there is position %d", n)
	}
	must(h, old.Rollback(patient(h)))
	e := <-got
	must(h, e.err)
	c.Own(2, e.epoch)
	if p := c.Heads()[2].Position; p != 4 {
		h.Errorf("the new owner begins at position %d", p)
	}
	for p := range 2 {
		must(h, commitOne(c, 2+p, decided(command(fmt.Sprint("c", p), 2+p), true, 1)))
		h.n++
	}
}

func (h *hazards) cachedSequence() {
	exec(h, h.dsn, "create sequence naive.cached cache 10")
	exec(h, h.dsn, "alter table naive.events alter pos set default nextval('naive.cached')")
	first := begin(h.T, h.dsn, "select nextval('naive.cached')") // it has 1 to 10 for itself
	exec(h, h.dsn, insertNaive)
	r := &naive{hazards: h}
	r.control("another session's number", 11)
	run(h.T, first, insertNaive)
	must(h, first.Commit(patient(h)))
	r.control("the first session's 2, which was committed after it, is skipped")
	exec(h, h.dsn, "select setval('naive.cached', 4)")
	exec(h, h.dsn, insertNaive)
	r.control("what comes after the sequence was set back is skipped")
	// There is none in a store.
	if n := ask[int](h, h.dsn, "select count(*) from pg_sequences where schemaname = 'fence'"); n > 1 {
		h.Errorf("%d sequences", n)
	} else if n == 1 && !strings.HasPrefix(ask[string](h, h.dsn, "select sequencename::text from pg_sequences where schemaname = 'fence'"), "goose") {
		h.Error("a sequence that is not the migrations'")
	}
	// Two owners in turn continue each other.
	acquireFrom := func(s *millrace.Store) {
		expire(h, h.dsn, 2)
		acquire(h, s, 2)
	}
	for i := range 3 {
		acquireFrom(h.b)
		must(h, commitOne(h.b, 2, decided(command(fmt.Sprint("b", i), 2), true, 1)))
		acquireFrom(h.a)
		must(h, commitOne(h.a, 2, decided(command(fmt.Sprint("a", i), 2), true, 1)))
		h.n += 2
	}
}
