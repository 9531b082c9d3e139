package pgstore

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/millrace-io/millrace"
)

// statementsIn are the statements of the migrations, without comments, in one line each, lower case. Functions count as
// one.
func statementsIn(t *testing.T) []string {
	t.Helper()
	todo, err := steps(&Options{Schema: "s"})
	must(t, err)
	var out []string
	for _, m := range todo {
		text := regexp.MustCompile(`--[^\n]*`).ReplaceAllString(m.text, "")
		inBody := false
		var b strings.Builder
		for i, part := range strings.Split(text, "$$") {
			if inBody = i%2 == 1; inBody {
				b.WriteString(strings.ReplaceAll(part, ";", "\x00"))
				continue
			}
			b.WriteString(part)
		}
		for _, s := range strings.Split(b.String(), ";") {
			s = strings.ToLower(strings.Join(strings.Fields(strings.ReplaceAll(s, "\x00", ";")), " "))
			if s != "" {
				out = append(out, s)
			}
		}
	}
	return out
}

var (
	tableOf  = regexp.MustCompile(`^create table "s"\.(\w+) \((.*)\)( with \(.*\))?$`)
	keyOf    = regexp.MustCompile(`(?:primary key|unique) \((\w+)`)
	inlineOf = regexp.MustCompile(`(\w+) [^,(]*\b(?:primary key|unique)\b`)
	indexOf  = regexp.MustCompile(`^create( unique)? index \w+ on "s"\.(\w+) \((\w+)`)
)

// violations says how statements break the rules that let Citus distribute the tables.
func violations(statements []string) []string {
	var out []string
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	column := map[string]string{"store": "one", "nodes": "name"} // the column that leads every key
	for _, d := range distributed {
		column[d.table] = d.column
	}
	seen := map[string]bool{}
	for _, s := range statements {
		for _, word := range []string{"references", "foreign key", "sequence", "serial", "identity", "nextval", "unlogged", "trigger"} {
			if regexp.MustCompile(`\b(big|small)?` + word + `\b`).MatchString(s) {
				bad("%q has %s", s[:min(len(s), 60)], word)
			}
		}
		if m := tableOf.FindStringSubmatch(s); m != nil {
			table := m[1]
			seen[table] = true
			keys := 0
			for _, k := range keyOf.FindAllStringSubmatch(m[2], -1) {
				if keys++; k[1] != column[table] {
					bad("a key of %s begins with %s", table, k[1])
				}
			}
			body := regexp.MustCompile(`(primary key|unique) \([^)]*\)`).ReplaceAllString(m[2], "")
			for _, k := range inlineOf.FindAllStringSubmatch(body, -1) {
				if keys++; k[1] != column[table] {
					bad("a key of %s is %s", table, k[1])
				}
			}
			if keys == 0 {
				bad("%s has no key", table)
			}
			if column[table] == "" {
				bad("%s is not distributed", table)
			}
		} else if strings.HasPrefix(s, "create table") || strings.HasPrefix(s, "create unlogged") {
			bad("a table that is not understood: %s", s)
		}
		if m := indexOf.FindStringSubmatch(s); m != nil && m[3] != column[m[2]] {
			bad("an index of %s begins with %s", m[2], m[3])
		}
	}
	for table := range column {
		if !seen[table] {
			bad("there is no table %s", table)
		}
	}
	return out
}

// TestCitusRules reads the migrations: every table can be distributed, and every transaction stays on one partition.
func TestCitusRules(t *testing.T) {
	statements := statementsIn(t)
	for _, v := range violations(statements) {
		t.Error(v)
	}
	for _, spoilt := range []string{
		`create table "s".more (id text primary key)`,
		`create table "s".events (position bigint, partition integer, primary key (position, partition))`,
		`create table "s".events (partition integer primary key, id text unique)`,
		`create table "s".events (partition integer references "s".partitions, primary key (partition))`,
		`create table "s".events (partition integer, n bigserial, primary key (partition, n))`,
		`create table "s".events (partition integer, n bigint generated always as identity, primary key (partition, n))`,
		`create table "s".events (partition integer)`,
		`create unlogged table "s".events (partition integer primary key)`,
		`create unique index x on "s".events (stream, version)`,
		`create sequence "s".n`,
	} {
		if len(violations(append(slices.Clone(statements), spoilt))) == 0 {
			t.Errorf("%s breaks no rule", spoilt)
		}
	}
}

// Several nodes start at once in an empty database: one store comes of it.
func TestOpenAtOnce(t *testing.T) {
	dsn := server(t).DSN("postgres")
	const nodes = 6
	var wg sync.WaitGroup
	found := make([]*millrace.Store, nodes)
	for i := range nodes {
		wg.Go(func() {
			o := options(t, "s")
			o.Node, o.OwnAll, o.Partitions = fmt.Sprint("n", i), false, 4+i
			s, err := Open(patient(t), dsn, o)
			if err != nil {
				t.Error(err)
				return
			}
			found[i] = s
		})
	}
	wg.Wait()
	for _, s := range found {
		if s == nil {
			continue
		}
		if s.Meta() != found[0].Meta() || len(s.Heads()) != s.Partitions() {
			t.Errorf("%+v and %+v", s.Meta(), found[0].Meta())
		}
		verify(t, s)
		must(t, s.Close())
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	dsn := server(t).DSN("postgres")
	must(t, open(t, dsn, four(t, nil)).Close())
	exec(t, dsn, "insert into s.goose_db_version (version_id, is_applied) values (4711, true)")
	s, err := Open(patient(t), dsn, four(t, nil))
	if err == nil {
		_ = s.Close()
	}
	if !errors.Is(err, ErrSchema) || !strings.Contains(err.Error(), "4711") {
		t.Errorf("a newer schema: %v", err)
	}
}

// A tool that only looks leaves the tables as they are, whatever their version, and makes no store.
func TestNoMigrate(t *testing.T) {
	dsn := server(t).DSN("postgres")
	look := func(change func(*Options)) error {
		o := four(t, change)
		o.OwnAll, o.NoMigrate = false, true
		s, err := Open(patient(t), dsn, o)
		if err == nil {
			verify(t, s)
			must(t, s.Close())
		}
		return err
	}
	schemas := func() int {
		return ask[int](t, dsn, "select count(*) from pg_namespace where nspname = 's'")
	}
	newest := func() int { return ask[int](t, dsn, "select max(version_id) from s.goose_db_version") }
	if err := look(nil); !errors.Is(err, ErrNoStore) || !errors.Is(err, ErrSchema) {
		t.Errorf("an empty database: %v", err)
	}
	if schemas() != 0 {
		t.Error("a schema was made")
	}
	s := open(t, dsn, four(t, nil))
	must(t, commitOne(s, 1, decided(command("c", 1), true, 2)))
	must(t, s.Close())
	must(t, look(nil))

	// A program with one migration more: it looks, and the older program still finds what it knows.
	version := newest()
	newer := func(o *Options) { o.more = []migration{{int64(version) + 1, "create table s.more ()"}} }
	err := look(newer)
	if !errors.Is(err, ErrSchema) || errors.Is(err, ErrNoStore) || !strings.Contains(err.Error(), "let a node of this program migrate it") {
		t.Errorf("an older schema: %v", err)
	}
	if n := newest(); n != version {
		t.Errorf("the schema is of version %d by looking at it", n)
	}
	must(t, look(nil))

	// The control: without the option it is migrated, and then too new for the older program, with the option or without.
	must(t, open(t, dsn, four(t, newer)).Close())
	if n := newest(); n != version+1 {
		t.Errorf("the schema is of version %d after a node of the newer program", n)
	}
	if err := look(nil); !errors.Is(err, ErrSchema) || !strings.Contains(err.Error(), "run a newer program") {
		t.Errorf("a newer schema: %v", err)
	}
	must(t, look(newer))

	// Migrate stands for itself, and between migrating and making the store there is none.
	exec(t, dsn, "drop schema s cascade")
	o := four(t, nil)
	o.NoMigrate = true
	must(t, Migrate(patient(t), dsn, o))
	exec(t, dsn, "delete from s.partitions")
	if err := look(nil); !errors.Is(err, ErrNoStore) {
		t.Errorf("tables without a store: %v", err)
	}
}

// What would break the promises is refused at the start.
func TestUnsafeServerIsRefused(t *testing.T) {
	dsn := server(t).DSN("postgres")
	o := four(t, nil)
	o.NoSync = false
	s, err := Open(patient(t), dsn, o)
	if err == nil {
		_ = s.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "fsync") {
		t.Errorf("a server without fsync: %v", err)
	}
	o = four(t, nil)
	o.Citus, o.Schema = true, "c"
	if s, err = Open(patient(t), dsn, o); err == nil {
		_ = s.Close()
	}
	if !errors.Is(err, ErrSchema) || !strings.Contains(err.Error(), "citus") {
		t.Errorf("a database without citus: %v", err)
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{
		{Partitions: -1}, {Partitions: millrace.MaxPartitions + 1}, {Schema: "Upper"}, {Schema: `quo"te`}, {Schema: strings.Repeat("s", 64)},
		{Node: "two words"}, {Node: "new\nline"}, {LeaseTTL: 1}, {PoolSize: 2}, {PoolSize: 5, Writers: 3}, {Writers: -1}, {Poll: 1},
	} {
		if s, err := Open(context.Background(), "postgres://nowhere.invalid/", &o); err == nil {
			_ = s.Close()
			t.Errorf("%+v is taken", o)
		}
	}
}

// as is a DSN for another role.
func as(t *testing.T, dsn, role string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	must(t, err)
	u.User = url.User(role)
	return u.String()
}

// A node needs no more than RuntimeGrants gives, and that is not enough to change what happened.
func TestRuntimeRole(t *testing.T) {
	dsn := server(t).DSN("postgres")
	must(t, Migrate(patient(t), dsn, four(t, nil)))
	exec(t, dsn, "create role runtime login")
	exec(t, dsn, RuntimeGrants("s", "runtime"))
	s := open(t, as(t, dsn, "runtime"), four(t, nil))
	ctx := patient(t)
	kept := command("kept", 1)
	must(t, s.Accept(ctx, 1, []millrace.AcceptedCommand{accepted(kept)}))
	dead := decided(command("dead", 1), true, 0)
	dead.Status, dead.Failure = millrace.StatusDead, &millrace.Failure{Reason: millrace.ReasonDecide, Error: "why"}
	must(t, commitOne(s, 1, decided(kept, false, 2), dead, decided(command("new", 1), true, 1)))
	doc := millrace.Put{Document: millrace.Document{Collection: "c.d", Partition: 1, ID: "x", Data: []byte(`{}`), Keys: []string{"k"}}}
	must(t, s.CommitViews(ctx, []millrace.ViewBatch{{Consumer: "c", Partition: 1, Checkpoint: 3, Puts: []millrace.Put{doc}}}))
	doc.Old, doc.Delete = doc.Keys, true
	must(t, s.CommitViews(ctx, []millrace.ViewBatch{{Consumer: "c", Partition: 1, Checkpoint: 3, Puts: []millrace.Put{doc}}}))
	must(t, s.DropViews(ctx, "c", []string{"c.d"}))
	must(t, driverOf(s).Release(ctx, 2))
	if err := follow(ctx, s, 3); err != nil {
		t.Error(err)
	}
	if _, err := s.Document(ctx, millrace.DeadLetterCollection, 1, "dead"); err != nil {
		t.Error(err)
	}
	verify(t, s)
	must(t, s.Close())
	for _, sql := range []string{
		"update s.events set data = ''", "delete from s.events", "delete from s.outcomes", "update s.outcomes set data = ''", "update s.commands set data = ''", "delete from s.keys",
		"update s.store set epoch = 2", "drop table s.events", "create table s.more ()",
	} {
		conn := as(t, dsn, "runtime")
		if !refused(t, conn, sql) {
			t.Errorf("the role may %q", sql)
		}
	}
	// Where there is something to migrate, it says what is missing.
	exec(t, dsn, "drop schema s cascade")
	again, err := Open(ctx, as(t, dsn, "runtime"), four(t, nil))
	if err == nil {
		_ = again.Close()
	}
	if !errors.Is(err, ErrSchema) {
		t.Errorf("a role that may not migrate: %v", err)
	}
}
