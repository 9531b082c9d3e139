package pgstore

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/millracetest"
)

// TestMain makes properties be tried half as often as usual: each try makes a store in a database, and the suite leaves a
// minute for all of them.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "50"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// patience bounds what a test waits for.
const patience = 60 * time.Second

func patient(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// schemas numbers the stores of a test process.
var schemas atomic.Int64

// stores makes stores in one database of one server, each in a schema of its own.
func stores(s *pgtest.Server, change func(*Options)) millracetest.Factory {
	return storesAt(s, s.DSN("postgres"), change)
}

// storesAt makes them over another way to the server.
func storesAt(s *pgtest.Server, dsn string, change func(*Options)) millracetest.Factory {
	return func(t testing.TB, partitions int) millracetest.Harness {
		schema := fmt.Sprintf("store_%d", schemas.Add(1))
		t.Cleanup(func() { exec(t, s.DSN("postgres"), "drop schema if exists "+quoted(schema)+" cascade") })
		return millracetest.Harness{
			Many: 6000,
			Open: func() (*millrace.Store, error) {
				o := options(t, schema)
				o.Partitions = partitions
				if change != nil {
					change(o)
				}
				return Open(context.Background(), dsn, o)
			},
		}
	}
}

func options(t testing.TB, schema string) *Options {
	return &Options{
		Schema: schema, Node: "node", OwnAll: true, NoSync: true,
		Fatal: func(err error) { t.Errorf("fatal: %v", err) },
	}
}

// manyTables is for tests that drop many tables at once, which takes locks.
var manyTables = map[string]string{"max_locks_per_transaction": "256"}

// server starts a server without sync.
func server(t testing.TB) *pgtest.Server {
	t.Helper()
	return pgtest.Start(t, pgtest.Options{NoSync: true, Settings: manyTables})
}

// exec runs a statement in a connection of its own.
func exec(t testing.TB, dsn, sql string, args ...any) {
	t.Helper()
	ctx := patient(t)
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, sql, args...); err != nil {
		t.Errorf("%s: %v", sql, err)
	}
}

// ask reads one value.
func ask[T any](t testing.TB, dsn, sql string, args ...any) (out T) {
	t.Helper()
	ctx := patient(t)
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if err := conn.QueryRow(ctx, sql, args...).Scan(&out); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return out
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open opens a store and closes it when the test ends.
func open(t testing.TB, dsn string, o *Options) *millrace.Store {
	t.Helper()
	s, err := Open(patient(t), dsn, o)
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func driverOf(s *millrace.Store) *Driver {
	return s.Driver().(*Driver) //nolint:forcetypeassert // a store of this package
}

// refused says whether the server refuses a statement for lack of rights.
func refused(t testing.TB, dsn, sql string) bool {
	t.Helper()
	ctx := patient(t)
	conn, err := pgx.Connect(ctx, dsn)
	must(t, err)
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql)
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "42501"
}
