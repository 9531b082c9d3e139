package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/pgstore"
)

// rowOf runs a statement that gives one value.
func rowOf[T any](t *testing.T, dsn, sql string) (v T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// TestBenchesOnPostgreSQL: as on a data folder, and nothing of it is left in the database.
func TestBenchesOnPostgreSQL(t *testing.T) {
	dsn := pgtest.Start(t, pgtest.Options{}).DSN("postgres")
	for _, b := range []struct {
		name  string
		args  []string
		parts string
	}{
		{"intake", []string{"--items", "200"}, "intake"},
		{"decide", []string{"--items", "1000"}, "accept decide decide-batch"},
		{"feed", []string{"--rate", "50", "--duration", "500ms"}, "feed"},
		{"rebuild", []string{"--items", "200"}, "rebuild"},
		{"flash-sale", []string{"--items", "200"}, "flash-sale"},
	} {
		t.Run(b.name, func(t *testing.T) {
			stdout, stderr, code := runs(t, append([]string{"bench", b.name, "--clients", "8", "--store", dsn, "--output", "json"}, b.args...)...)
			if code != 0 {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			var all []map[string]any
			if stdout[0] != '[' {
				stdout = "[" + stdout + "]"
			}
			if err := json.Unmarshal([]byte(stdout), &all); err != nil {
				t.Fatalf("%v: %s", err, stdout)
			}
			var parts []string
			for _, r := range all {
				hasFigures(t, r)
				parts = append(parts, r["name"].(string)) //nolint:forcetypeassert // hasFigures is less strict than this
				if n, ok := r["bytes_per_item"].(float64); !ok || n <= 0 {
					t.Errorf("%v takes %v bytes each", r["name"], n)
				}
			}
			if got := strings.Join(parts, " "); got != b.parts {
				t.Errorf("the parts are %s", got)
			}
			if n := rowOf[int](t, dsn, "select count(*) from pg_namespace where nspname like 'millrace%'"); n != 0 {
				t.Errorf("%d schemas are left behind", n)
			}
		})
	}
}

// TestVerifyPostgreSQL: it makes nothing, it may run beside a node, and it finds what somebody has changed.
func TestVerifyPostgreSQL(t *testing.T) {
	dsn := pgtest.Start(t, pgtest.Options{}).DSN("postgres")
	stdout, stderr, code := runs(t, "verify", "--store", dsn)
	if code != 2 || stdout != "" || !strings.Contains(stderr, "holds no store") {
		t.Errorf("an empty database: exit code %d, %q, %q", code, stdout, stderr)
	}
	if n := rowOf[int](t, dsn, "select count(*) from pg_namespace where nspname like 'millrace%'"); n != 0 {
		t.Error("verify has made a store")
	}
	stdout, stderr, code = runs(t, "copy", "--from", dsn, "--to", t.TempDir())
	if code != 2 || stdout != "" || !strings.Contains(stderr, "holds no store") {
		t.Errorf("a copy of an empty database: exit code %d, %q, %q", code, stdout, stderr)
	}

	store, err := pgstore.Open(t.Context(), dsn, &pgstore.Options{Partitions: 2, Node: "a", OwnAll: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	waiting := orderCommand("1")
	if err := store.Accept(t.Context(), waiting.Stream.Partition(2), []millrace.AcceptedCommand{{Command: &waiting, Fingerprint: waiting.Fingerprint()}}); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code = runs(t, "verify", "--store", dsn)
	if code != 0 || stdout != "all is well: 0 events, 1 commands undecided\n" {
		t.Errorf("beside a node: exit code %d, %q, %q", code, stdout, stderr)
	}
	owners := rowOf[int](t, dsn, "select count(*) from millrace.partitions where owner = 'a' and epoch = 1")
	if owners != 2 {
		t.Errorf("the node has %d of its 2 partitions left", owners)
	}

	// A newer program has been there, and its tables are not this one's to judge, nor to change.
	known := rowOf[int](t, dsn, "select max(version_id) from millrace.goose_db_version")
	rowOf[int](t, dsn, "insert into millrace.goose_db_version (version_id, is_applied) values (4711, true) returning 1")
	for _, args := range [][]string{{"verify", "--store", dsn}, {"copy", "--from", dsn, "--to", t.TempDir()}} {
		stdout, stderr, code = runs(t, args...)
		if code != 1 || stdout != "" || !strings.Contains(stderr, "version 4711") || !strings.Contains(stderr, "run a newer program") {
			t.Errorf("%s of newer tables: exit code %d: %q, %q", args[0], code, stdout, stderr)
		}
	}
	rowOf[int](t, dsn, "delete from millrace.goose_db_version where version_id = 4711 returning 1")
	if n := rowOf[int](t, dsn, "select max(version_id) from millrace.goose_db_version"); n != known {
		t.Errorf("the tables are of version %d, and were of %d", n, known)
	}

	changed := rowOf[string](t, dsn, "with x as (update millrace.commands set data = '{}' returning id) select id from x")
	if changed != "1" {
		t.Fatalf("%q was changed", changed)
	}
	stdout, stderr, code = runs(t, "verify", "--store", dsn, "--output", "json")
	if code != 3 || !strings.HasPrefix(stdout, `{"ok":false,"problems":["commands: partition `) || !strings.Contains(stderr, "problems") {
		t.Errorf("exit code %d: %q, %q", code, stdout, stderr)
	}
}
