package pgstore

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/pgtest"
)

// Whatever way statements are sent, they give the same answers; those that are sent unnamed, as by default, leave
// nothing in the server's session, which is what pgbouncer's transaction mode asks for.
func TestStatementsNeedNoSession(t *testing.T) {
	for _, mode := range []string{"cache_describe", "exec", "cache_statement", "describe_exec"} {
		t.Run(mode, func(t *testing.T) {
			dsn := server(t).DSN("postgres") + "&default_query_exec_mode=" + mode
			s := open(t, dsn, four(t, func(o *Options) { o.NoListen = true }))
			ctx := patient(t)
			for i := range 10 {
				c := command(fmt.Sprint("c", i), 1)
				must(t, s.Accept(ctx, 1, []millrace.AcceptedCommand{accepted(c)}))
				must(t, commitOne(s, 1, decided(c, false, 2)))
				must(t, s.CommitViews(ctx, []millrace.ViewBatch{{Consumer: "c", Partition: 1, Checkpoint: uint64(i), Puts: []millrace.Put{
					{Document: millrace.Document{Collection: "c.d", Partition: 1, ID: fmt.Sprint(i), Data: []byte("1"), Keys: []string{"k"}}},
				}}}))
			}
			docs, err := collect(s.Documents(ctx, millrace.Query{Collection: "c.d", Index: 0, Partition: -1}))
			if err != nil || len(docs) != 10 {
				t.Errorf("%d documents: %v", len(docs), err)
			}
			if err := follow(ctx, s, 20); err != nil {
				t.Error(err)
			}
			verify(t, s)
			left := 0
			for _, conn := range driverOf(s).pool.AcquireAllIdle(ctx) {
				var n, settings int
				must(t, conn.Conn().PgConn().Exec(ctx, "select 1").Close())
				must(t, conn.QueryRow(ctx, "select (select count(*) from pg_prepared_statements where name <> ''), (select count(*) from pg_settings where source = 'session')", pgx.QueryExecModeSimpleProtocol).Scan(&n, &settings))
				if left += n; settings > 0 {
					t.Errorf("%d settings in a session", settings)
				}
				conn.Release()
			}
			if named := mode == "cache_statement"; (left > 0) != named {
				t.Errorf("%d prepared statements in sessions", left)
			}
		})
	}
}

// A database whose transactions are stricter by default makes more tries, and the same answers.
func TestOtherIsolationLevels(t *testing.T) {
	for _, level := range []string{"repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			server := pgtest.Start(t, pgtest.Options{NoSync: true, Settings: map[string]string{"default_transaction_isolation": level}})
			s := open(t, server.DSN("postgres"), four(t, nil))
			l := load(t, s)
			l.more(400)
			l.end()
			l.check(s)
		})
	}
}

// A store that is closed leaves nothing behind in the process, with or without a database.
func TestCloseLeavesNothing(t *testing.T) {
	server := server(t)
	proxy := pgtest.NewProxy(t, server.Addr())
	leaks := goleak.IgnoreCurrent()
	s, err := Open(patient(t), proxy.DSN("postgres"), four(t, nil))
	must(t, err)
	must(t, commitOne(s, 1, decided(command("c", 1), true, 1)))
	must(t, s.Close())
	s, err = Open(patient(t), proxy.DSN("postgres"), four(t, func(o *Options) { o.AcceptPatience = patience }))
	must(t, err)
	must(t, proxy.Refuse(true))
	proxy.Cut()
	done := send(s, &millrace.Batch{Partition: 1, Accepted: []millrace.AcceptedCommand{accepted(command("away", 1))}})
	must(t, s.Close()) // it tries for a while, and gives up
	if err := <-done; err == nil {
		t.Error("what could not be written was acknowledged")
	}
	if s, err := Open(t.Context(), "postgres://nobody@127.0.0.1:1/none", four(t, nil)); err == nil {
		_ = s.Close()
		t.Error("a store without a database")
	}
	goleak.VerifyNone(t, leaks)
}
