package pgstore

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/pgtest"
)

// The hazards of [TestFeedHazards] that need another server, or a connection that is lost.

// tables are those of a store, as one would copy them.
var tables = []string{
	"store", "partitions", "leases", "keys", "commands", "pending", "outcomes", "events", "documents", "document_keys", "checkpoints",
}

// copyTables carries the rows of a store over to the empty tables of another one, as a logical copy does.
func copyTables(t *testing.T, from, to string) {
	t.Helper()
	ctx := patient(t)
	source, err := pgx.Connect(ctx, from)
	must(t, err)
	defer func() { _ = source.Close(ctx) }()
	target, err := pgx.Connect(ctx, to)
	must(t, err)
	defer func() { _ = target.Close(ctx) }()
	for _, name := range tables {
		var rows bytes.Buffer
		_, err := source.PgConn().CopyTo(ctx, &rows, "copy fence."+name+" to stdout")
		must(t, err)
		_, err = target.Exec(ctx, "truncate fence."+name)
		must(t, err)
		_, err = target.PgConn().CopyFrom(ctx, &rows, "copy fence."+name+" from stdin")
		must(t, err)
	}
}

func (h *hazards) anotherCluster() {
	exec(h, h.dsn, "do $$ begin for i in 1..2000 loop perform pg_current_xact_id(); commit; end loop; end $$")
	exec(h, h.dsn, insertNaive)
	h.write()
	to := server(h.T).DSN("postgres")
	exec(h, to, "create schema naive")
	exec(h, to, "create table naive.events (pos bigint, xid xid8)")
	exec(h, to, "insert into naive.events values (1, $1::text::xid8)", ask[string](h, h.dsn, "select xid::text from naive.events"))
	r := &naive{hazards: &hazards{T: h.T, dsn: to}, and: beforeOldest}
	r.control("a transaction id of another cluster is of the future for ever")

	const ids = "select count(*) from information_schema.columns where table_schema = 'fence' and udt_name in ('xid', 'xid8')"
	if n := ask[int](h, h.dsn, ids); n != 0 {
		h.Errorf("%d columns hold transaction ids", n)
	}
	meta, cursor := h.a.Meta(), h.a.Head()
	with := func(o *Options) { patientLease(o); o.Copy = &meta }
	empty, _ := node(h.T, to, "c", with)
	must(h, empty.Close())
	copyTables(h.T, h.dsn, to)
	c, _ := node(h.T, to, "c", with)
	live := followed(h.T, c)
	must(h, c.CheckCursor(cursor))
	there := &hazards{T: h.T, dsn: to, a: c, b: c, live: live, n: h.n, calls: h.calls}
	there.sees("in the other cluster")
	for p := range 4 {
		expire(h, to, p)
	}
	acquire(h, c, 0, 1, 2, 3)
	there.write()
	there.sees("behind what was copied")
	verify(h, c)
}

func (h *hazards) replica() {
	standby := h.server.Standby(h.T, false)
	ctx := patient(h)
	at := ask[string](h, h.dsn, "select pg_current_wal_flush_lsn()::text")
	for ask[bool](h, standby.DSN(h.db), "select pg_last_wal_replay_lsn() < $1::pg_lsn", at) {
		if !pause(ctx, nil, time.Millisecond) {
			h.Fatal("the standby does not follow")
		}
	}
	ask[bool](h, standby.DSN(h.db), "select pg_wal_replay_pause() is null")
	exec(h, h.dsn, insertNaive)
	h.write()
	r := &naive{hazards: &hazards{T: h.T, dsn: standby.DSN(h.db)}}
	r.control("what was committed is not there")
	// Of several hosts a store takes the primary; where there is none, see TestOpenOnStandby.
	both := pgtest.DSN(standby.Addr()+","+h.server.Addr(), h.db)
	c, _ := node(h.T, both, "c", patientLease)
	there := &hazards{T: h.T, live: followed(h.T, c), n: h.n}
	there.sees("where a replica is named first")
}

func (h *hazards) lostNotification() {
	ctx := patient(h)
	listen := func() *pgx.Conn {
		conn, err := pgx.Connect(ctx, h.dsn)
		must(h, err)
		_, err = conn.Exec(ctx, "listen naive")
		must(h, err)
		return conn
	}
	must(h, listen().Close(ctx))
	exec(h, h.dsn, insertNaive)
	exec(h, h.dsn, "notify naive, 'lost'")
	again := listen()
	defer func() { _ = again.Close(ctx) }()
	exec(h, h.dsn, "notify naive, 'next'")
	n, err := again.WaitForNotification(ctx)
	if must(h, err); n.Payload != "next" {
		h.Errorf("the control hears %s: nothing was lost", n.Payload)
	}
	// The listeners of both nodes are cut off again and again.
	for range 5 {
		exec(h, h.dsn, "select pg_terminate_backend(pid) from pg_stat_activity where query like 'listen %'")
		h.write()
		h.sees("without notifications")
	}
	if n := ask[int](h, h.dsn, "select count(*) from pg_proc where pronamespace = 'fence'::regnamespace and prosrc ~* 'notify'"); n != 0 {
		h.Errorf("%d functions that write notify, and would make all commits wait for each other", n)
	}
}

func positionsUsedAgain(t *testing.T) {
	if err := reused(t, false); !errors.Is(err, millrace.ErrFailed) {
		t.Errorf("a node that knows other events at these positions ends itself with %v", err)
	}
	server := server(t)
	standby := server.Standby(t, false)
	proxy := pgtest.NewProxy(t, server.Addr())
	const insert = "insert into naive values ($1, pg_current_xact_id(), $2)"
	exec(t, proxy.DSN("postgres"), "create table naive (pos bigint, xid xid8, data text)")
	await(t, standby.DSN("postgres"), "select count(*)::integer from pg_class where relname = 'naive'", 1)
	must(t, standby.Pause())
	exec(t, proxy.DSN("postgres"), insert, 1, "acknowledged")
	last := ask[int64](t, proxy.DSN("postgres"), "select max(pos) from naive")
	takeOver(t, server, standby, proxy)
	exec(t, proxy.DSN("postgres"), insert, 1, "another")
	exec(t, proxy.DSN("postgres"), insert, 2, "next")
	if read := ask[string](t, proxy.DSN("postgres"), "select string_agg(data, ' ') from naive where pos > $1", last); read != "next" {
		t.Errorf("the control reads %s: the test notices nothing", read)
	}
}
