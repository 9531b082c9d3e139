package pgstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/pgtest"
)

var thingTable = millrace.NewTable[struct{}]("things", nil, nil)

// things are views of the projection p, of some version: each has a column more.
func things(version int) millrace.Reports {
	columns := []millrace.ReportColumn{
		{Name: "id", Path: "/id"},
		{Name: "n", Path: "/n", Type: millrace.ReportInteger, Meaning: "It's a number"},
		{Name: "amount", Path: "/total/amount", Type: millrace.ReportNumber},
		{Name: "done", Path: "/done", Type: millrace.ReportBool},
		{Name: "at", Path: "/at", Type: millrace.ReportTime},
		{Name: "day", Path: "/day", Type: millrace.ReportDay},
	}
	for v := 2; v <= version; v++ {
		columns = append(columns, millrace.ReportColumn{Name: fmt.Sprint("v", v), Path: "/v"})
	}
	view := func(name, where string, columns ...millrace.ReportColumn) millrace.ReportView {
		return millrace.ReportView{Name: name, Meaning: "Some things.", Projection: "p", Table: thingTable.Table, Where: where, Columns: columns}
	}
	return millrace.Reports{Name: "things", Version: version, Views: []millrace.ReportView{
		view("things", "", columns...),
		view("parts", "",
			millrace.ReportColumn{Name: "id", Path: "/id"},
			millrace.ReportColumn{Name: "part", Path: "/more/parts/*/part", Type: millrace.ReportInteger},
			millrace.ReportColumn{Name: "deep", Path: "/more/parts/*/a/b"}),
		view("finished", "/done", millrace.ReportColumn{Name: "id", Path: "/id"}),
		view("sums", "",
			millrace.ReportColumn{Name: "day", Path: "/day", Type: millrace.ReportDay},
			millrace.ReportColumn{Name: "n", Path: "/n", Type: millrace.ReportInteger, Sum: true},
			millrace.ReportColumn{Name: "done", Path: "/done", Type: millrace.ReportBool},
			millrace.ReportColumn{Name: "amount", Path: "/total/amount", Type: millrace.ReportNumber, Sum: true}),
	}}
}

// reporting are options with views.
func reporting(t testing.TB, reports ...millrace.Reports) *Options {
	return four(t, func(o *Options) { o.Reports = reports })
}

// thing is a document of a generation of p.
func thing(generation, partition int, id, data string) millrace.ViewBatch {
	return millrace.ViewBatch{Consumer: fmt.Sprint("p@", generation), Partition: partition, Puts: []millrace.Put{{Document: millrace.Document{
		Collection: fmt.Sprintf("p@%d.things", generation), Partition: partition, ID: id, Data: []byte(data),
	}}}}
}

// pointTo makes a generation the live one, as projections do.
func pointTo(generation int) millrace.ViewBatch {
	return millrace.ViewBatch{Consumer: "projections", Puts: []millrace.Put{{Document: millrace.Document{
		Collection: millrace.LiveCollection, ID: "p", Data: fmt.Appendf(nil, `{"generation":%d,"version":1}`, generation),
	}}}}
}

// rowsOf are the rows of a query as texts, sorted.
func rowsOf(t testing.TB, dsn, sql string) []string {
	t.Helper()
	conn, err := pgx.Connect(patient(t), dsn)
	must(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	rows, err := conn.Query(patient(t), "select coalesce(r::text, '') from ("+sql+") r")
	must(t, err)
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(t, err)
	slices.Sort(out)
	return out
}

func hasRows(t testing.TB, dsn, sql string, want ...string) {
	t.Helper()
	if d := cmp.Diff(append([]string{}, want...), rowsOf(t, dsn, sql)); d != "" {
		t.Errorf("%s: %s", sql, d)
	}
}

// Columns have their types, what a document lacks is null, arrays become rows, and partitions are added up.
func TestReportColumns(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, in pgtest.Installation) {
		dsn := pgtest.Start(t, pgtest.Options{NoSync: true, Installation: in}).DSN("postgres")
		s := open(t, dsn, reporting(t, things(2)))
		for _, b := range []millrace.ViewBatch{
			thing(1, 0, "a", `{"id":"a","n":7,"total":{"amount":"12345678901234567890.1250"},"done":true,"at":"2026-11-20T12:13:54.383367362Z","day":"2026-11-20","v":"x","more":{"parts":[{"part":1,"a":{"b":"it's \"B\""}},{"part":2}]}}`),
			thing(1, 1, "b", `{"id":"b","n":null,"total":null,"done":false,"more":{"parts":null}}`),
			thing(1, 2, "c", `{"id":"c","day":"2026-11-20","done":true,"n":1,"total":{"amount":"0.5"},"more":{"parts":[]}}`),
			thing(1, 3, "d", `{"id":"x\u0000"}`), // no jsonb
			{Consumer: "q", Puts: []millrace.Put{{Document: millrace.Document{Collection: "q@1.things", ID: "q", Data: []byte(`{"id":"q"}`)}}}},
			{Consumer: "p@1", Puts: []millrace.Put{{Document: millrace.Document{Collection: "p@1.others", ID: "o", Data: []byte(`{"id":"o"}`)}}}},
		} {
			must(t, s.CommitViews(patient(t), []millrace.ViewBatch{b}))
		}
		u := dsn + "&timezone=UTC"
		hasRows(t, u, "select * from s_reporting.things", "(,,,,,,)",
			`(a,7,12345678901234567890.1250,t,"2026-11-20 12:13:54.383367+00",2026-11-20,x)`, "(b,,,f,,,)", "(c,1,0.5,t,,2026-11-20,)")
		hasRows(t, u, "select * from s_reporting.parts", `(a,1,"it's ""B""")`, "(a,2,)")
		hasRows(t, u, "select * from s_reporting.finished", "(a)", "(c)")
		hasRows(t, u, "select * from s_reporting.sums where day is not null", "(2026-11-20,8,t,12345678901234567890.6250)")
		hasRows(t, u, `select table_name, string_agg(data_type, ' ' order by ordinal_position) from information_schema.columns where table_schema = 's_reporting' group by 1`,
			"(finished,text)", `(parts,"text bigint text")`, `(sums,"date bigint boolean numeric")`,
			`(things,"text bigint numeric boolean timestamp with time zone date text")`)
		hasRows(t, u, "select col_description('s_reporting.things'::regclass, 2)", `("It's a number")`)
	})
}

// A reader sees all of one generation, whatever is switched and dropped meanwhile. The control looks at the documents without
// asking which generation is live.
func TestReportsFollowTheLiveGeneration(t *testing.T) {
	live := regexp.MustCompile(`and d\.collection = .*'\.things'`)
	for name, edit := range map[string]func(string) string{
		"":        nil,
		"control": func(text string) string { return live.ReplaceAllString(text, "and d.collection like 'p@%.things'") },
	} {
		t.Run(name, func(t *testing.T) {
			dsn := server(t).DSN("postgres")
			o := reporting(t, things(1))
			o.edit = edit
			s := open(t, dsn, o)
			const documents, generations = 40, 25
			build := func(g int) {
				for p := range 4 {
					b := millrace.ViewBatch{Consumer: fmt.Sprint("p@", g), Partition: p}
					for i := p; i < documents; i += 4 {
						b.Puts = append(b.Puts, thing(g, p, fmt.Sprint(i), fmt.Sprintf(`{"id":"%d","n":%d}`, i, g)).Puts...)
					}
					must(t, s.CommitViews(patient(t), []millrace.ViewBatch{b}))
				}
			}
			build(1)
			first := make(chan struct{})
			ctx, stop := context.WithCancel(patient(t))
			var wg sync.WaitGroup
			torn, looks, between := 0, 0, 0
			wg.Go(func() {
				conn, err := pgx.Connect(ctx, dsn)
				if err != nil {
					t.Error(err)
					close(first)
					return
				}
				defer func() { _ = conn.Close(context.Background()) }()
				for ctx.Err() == nil {
					var n, kinds int
					err := conn.QueryRow(context.Background(), "select count(*), count(distinct n) from s_reporting.things").Scan(&n, &kinds)
					if err != nil {
						t.Error(err)
					}
					if n != documents || kinds != 1 {
						torn++
					}
					if looks++; looks == 1 {
						close(first)
					}
				}
			})
			<-first
			for g := 2; g <= generations; g++ {
				build(g)
				must(t, s.CommitViews(patient(t), []millrace.ViewBatch{pointTo(g)}))
				if name == "" {
					if got := ask[int](t, dsn, "select min(n) from s_reporting.things"); got != g {
						t.Errorf("after the switch to %d readers see %d", g, got)
					}
				}
				if ask[int](t, dsn, "select count(*) from s_reporting.things") != documents { // the old ones are still there
					between++
				}
				must(t, s.DropViews(patient(t), fmt.Sprint("p@", g-1), []string{fmt.Sprintf("p@%d.things", g-1)}))
			}
			stop()
			wg.Wait()
			if isControl := name != ""; torn+between > 0 != isControl {
				t.Errorf("%d of %d looks saw something between two generations, and %d right behind a switch", torn, looks, between)
			}
		})
	}
}

// A role for reports reads the views, and nothing else: not even by a function of its own, which the server would ask about
// rows that a view leaves out. The control has no barrier against that.
func TestReportRole(t *testing.T) {
	dsn := server(t).DSN("postgres")
	s := open(t, dsn, reporting(t, things(1)))
	must(t, s.CommitViews(patient(t), []millrace.ViewBatch{thing(1, 0, "a", `{"id":"a","done":true}`), thing(1, 1, "b", `{"id":"secret"}`)}))
	exec(t, dsn, "create role analyst login")
	analyst := as(t, dsn, "analyst")
	if !refused(t, analyst, "select * from s_reporting.things") {
		t.Error("a role without grants reads")
	}
	exec(t, dsn, ReportGrants("s_reporting", "analyst"))
	hasRows(t, analyst, "select id from s_reporting.finished", "(a)")
	for _, sql := range []string{
		"select * from s.documents", "select * from s.events", "select * from s.commands", "select * from s.store", "select * from s.partitions",
		"select s.drop_views(0, 'p', array['p'])", "drop view s_reporting.finished", "create view s_reporting.mine as select 1", "create table s_reporting.mine ()",
	} {
		if !refused(t, analyst, sql) {
			t.Errorf("the role may %q", sql)
		}
	}
	// To write through a view is not possible for anybody.
	for _, sql := range []string{"insert into s_reporting.finished values ('x')", "update s_reporting.finished set id = 'x'", "delete from s_reporting.finished"} {
		conn, err := pgx.Connect(patient(t), dsn)
		must(t, err)
		if _, err := conn.Exec(patient(t), sql); err == nil {
			t.Errorf("the owner may %q", sql)
		}
		must(t, conn.Close(patient(t)))
	}
	leaked := func() string {
		conn, err := pgx.Connect(patient(t), analyst)
		must(t, err)
		defer func() { _ = conn.Close(context.Background()) }()
		for _, sql := range []string{
			`create function pg_temp.tell(text) returns boolean language plpgsql cost 0.0000001 as $$ begin perform set_config('my.told', current_setting('my.told', true) || ' ' || $1, false); return true; end $$`,
			"set my.told = ''; set enable_indexscan = off; set enable_bitmapscan = off", "select * from s_reporting.finished where pg_temp.tell(id)",
		} {
			_, err := conn.Exec(patient(t), sql)
			must(t, err)
		}
		var told string
		must(t, conn.QueryRow(patient(t), "select current_setting('my.told')").Scan(&told))
		return told
	}
	if told := leaked(); told != " a" {
		t.Errorf("a function is asked about%s", told)
	}
	exec(t, dsn, "alter view s_reporting.finished reset (security_barrier)")
	if told := leaked(); !strings.Contains(told, "secret") {
		t.Errorf("the control: a function is asked about%s", told)
	}
}

// logged are the lines that a store logs.
func logged(o *Options) *bytes.Buffer {
	var b bytes.Buffer
	o.Logger = slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return &b
}

func version(t *testing.T, dsn string) string {
	t.Helper()
	m := stamped.FindStringSubmatch(ask[string](t, dsn, "select coalesce(obj_description(to_regclass('s_reporting.things')), '')"))
	if m == nil {
		return ""
	}
	return m[2]
}

// Newer views replace older ones, and never the other way round. What stands on a view stays where its columns go on; who may
// read it may still do so when it was made anew.
func TestReportVersions(t *testing.T) {
	dsn := server(t).DSN("postgres")
	must(t, Migrate(patient(t), dsn, reporting(t, things(1))))
	exec(t, dsn, "create role analyst login; "+ReportGrants("s_reporting", "analyst")+"; create view public.mine as select id from s_reporting.things")
	analyst := as(t, dsn, "analyst")
	for _, step := range []struct{ declared, want int }{{2, 2}, {1, 2}, {2, 2}, {4, 4}, {3, 4}} {
		must(t, Migrate(patient(t), dsn, reporting(t, things(step.declared))))
		if got := version(t, dsn); got != fmt.Sprint(step.want) {
			t.Errorf("after a program of version %d they are of version %s", step.declared, got)
		}
		hasRows(t, analyst, "select * from s_reporting.things")
	}
	hasRows(t, dsn, "select * from public.mine")

	// Another column in the middle: the view must be made anew, and somebody's view stands on it.
	other := things(5)
	other.Views[0].Columns = slices.Delete(other.Views[0].Columns, 1, 2)
	other.Views = slices.Delete(other.Views, 2, 3)
	err := Migrate(patient(t), dsn, reporting(t, other))
	if !errors.Is(err, ErrReports) || !strings.Contains(err.Error(), "mine") {
		t.Errorf("a view that cannot be replaced: %v", err)
	}
	o := reporting(t, other)
	said := logged(o)
	must(t, open(t, dsn, o).Close())
	if !strings.Contains(said.String(), "mine") {
		t.Errorf("a store that opens without its reports says %q", said)
	}
	if got := version(t, dsn); got != "4" {
		t.Errorf("they are of version %s after what failed", got)
	}
	exec(t, dsn, "drop view public.mine")
	must(t, Migrate(patient(t), dsn, reporting(t, other)))
	hasRows(t, analyst, "select * from s_reporting.things")
	hasRows(t, dsn, "select relname from pg_class where relnamespace = 's_reporting'::regnamespace", "(parts)", "(sums)", "(things)")
}

// What somebody dropped is there again; what is not ours is left alone; a changed view wants a new version. Sets of several
// domains do not know of each other.
func TestReportsOfOthers(t *testing.T) {
	dsn := server(t).DSN("postgres")
	second := millrace.Reports{Name: "second", Version: 1, Views: []millrace.ReportView{{
		Name: "seconds", Projection: "p", Table: thingTable.Table, Columns: []millrace.ReportColumn{{Name: "id", Path: "/id"}},
	}}}
	must(t, Migrate(patient(t), dsn, reporting(t, things(1), second)))
	must(t, Migrate(patient(t), dsn, reporting(t, things(2))))
	hasRows(t, dsn, "select * from s_reporting.seconds")
	exec(t, dsn, "drop view s_reporting.things, s_reporting.sums")
	must(t, Migrate(patient(t), dsn, reporting(t, things(2))))
	hasRows(t, dsn, "select * from s_reporting.things")
	hasRows(t, dsn, "select * from s_reporting.sums")

	changed := things(2)
	changed.Views[0].Columns[0].Path = "/other"
	if err := Migrate(patient(t), dsn, reporting(t, changed)); !errors.Is(err, ErrReports) {
		t.Errorf("another content under the same version: %v", err)
	}
	exec(t, dsn, "drop view s_reporting.parts; create table s_reporting.parts (mine int)")
	if err := Migrate(patient(t), dsn, reporting(t, things(3))); !errors.Is(err, ErrReports) || !strings.Contains(err.Error(), "parts") {
		t.Errorf("a table in the way: %v", err)
	}
	hasRows(t, dsn, "select mine from s_reporting.parts")
}

// A node without rights to the views starts, with the views of its version, with older ones and without any, and says so.
func TestRuntimeRoleNeedsNoReports(t *testing.T) {
	dsn := server(t).DSN("postgres")
	must(t, Migrate(patient(t), dsn, four(t, nil)))
	exec(t, dsn, "create role runtime login; "+RuntimeGrants("s", "runtime"))
	start := func(version int) string {
		o := reporting(t, things(version))
		said := logged(o)
		must(t, open(t, as(t, dsn, "runtime"), o).Close())
		return said.String()
	}
	if said := start(1); !strings.Contains(said, "s_reporting") {
		t.Errorf("without views: %q", said)
	}
	must(t, Migrate(patient(t), dsn, reporting(t, things(1))))
	if said := start(1); said != "" {
		t.Errorf("with its views: %q", said)
	}
	if said := start(2); said == "" {
		t.Error("older views are not mentioned")
	}
	if got := version(t, dsn); got != "1" {
		t.Errorf("the views are of version %s", got)
	}
	// A schema of its own is enough for a role that makes views.
	exec(t, dsn, "drop schema s_reporting cascade; create role owner login; create schema s_reporting authorization owner; grant usage on schema s to owner; grant select on all tables in schema s to owner")
	must(t, Migrate(patient(t), as(t, dsn, "owner"), reporting(t, things(1))))
}

// Nodes of several versions start at once, whatever transactions are by default: the newest views stay, and no start fails.
func TestReportsMadeAtOnce(t *testing.T) {
	for _, level := range []string{"read committed", "serializable"} {
		t.Run(level, func(t *testing.T) {
			dsn := pgtest.Start(t, pgtest.Options{NoSync: true, Settings: map[string]string{"default_transaction_isolation": level}}).DSN("postgres")
			for round := range 3 {
				var wg sync.WaitGroup
				for i := range 6 {
					wg.Go(func() {
						if err := Migrate(patient(t), dsn, reporting(t, things(1+round*3+i%3))); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				if got, want := version(t, dsn), fmt.Sprint(3+round*3); got != want {
					t.Errorf("the views are of version %s, want %s", got, want)
				}
			}
		})
	}
}

// A report that runs for hours does not keep a node from starting.
func TestReportThatRunsWhileViewsChange(t *testing.T) {
	dsn := server(t).DSN("postgres")
	must(t, Migrate(patient(t), dsn, reporting(t, things(1))))
	conn, err := pgx.Connect(patient(t), dsn)
	must(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(patient(t), "begin; select * from s_reporting.things")
	must(t, err)
	o := reporting(t, things(2))
	said := logged(o)
	must(t, open(t, dsn, o).Close())
	var pg *pgconn.PgError
	if err := Migrate(patient(t), dsn, reporting(t, things(2))); !errors.As(err, &pg) || pg.Code != "55P03" || said.Len() == 0 {
		t.Errorf("a view in use: %v; the log %q", err, said)
	}
	_, err = conn.Exec(patient(t), "commit")
	must(t, err)
	must(t, Migrate(patient(t), dsn, reporting(t, things(2))))
	if got := version(t, dsn); got != "2" {
		t.Errorf("the views are of version %s", got)
	}
}

// What could not be made is refused before anything is opened.
func TestReportDeclarations(t *testing.T) {
	for name, spoil := range map[string]func(o *Options, r *millrace.Reports){
		"no name":               func(_ *Options, r *millrace.Reports) { r.Name = "" },
		"no version":            func(_ *Options, r *millrace.Reports) { r.Version = 0 },
		"a view's name":         func(_ *Options, r *millrace.Reports) { r.Views[0].Name = `"` },
		"a view twice":          func(_ *Options, r *millrace.Reports) { r.Views[1].Name = r.Views[0].Name },
		"no table":              func(_ *Options, r *millrace.Reports) { r.Views[0].Table = nil },
		"no projection":         func(_ *Options, r *millrace.Reports) { r.Views[0].Projection = "" },
		"no columns":            func(_ *Options, r *millrace.Reports) { r.Views[0].Columns = nil },
		"sums alone":            func(_ *Options, r *millrace.Reports) { r.Views[3].Columns = r.Views[3].Columns[1:2] },
		"where":                 func(_ *Options, r *millrace.Reports) { r.Views[0].Where = "/a/*/b" },
		"a column's name":       func(_ *Options, r *millrace.Reports) { r.Views[0].Columns[0].Name = "Id" },
		"a column twice":        func(_ *Options, r *millrace.Reports) { r.Views[0].Columns[0].Name = "n" },
		"a path":                func(_ *Options, r *millrace.Reports) { r.Views[0].Columns[0].Path = "id" },
		"a path with a quote":   func(_ *Options, r *millrace.Reports) { r.Views[0].Columns[0].Path = "/i'd" },
		"two stars":             func(_ *Options, r *millrace.Reports) { r.Views[1].Columns[1].Path = "/a/*/b/*/c" },
		"a star at the end":     func(_ *Options, r *millrace.Reports) { r.Views[1].Columns[1].Path = "/a/*" },
		"two arrays":            func(_ *Options, r *millrace.Reports) { r.Views[1].Columns[1].Path = "/others/*/c" },
		"a type":                func(_ *Options, r *millrace.Reports) { r.Views[0].Columns[0].Type = 99 },
		"a text to be added up": func(_ *Options, r *millrace.Reports) { r.Views[0].Columns[0].Sum = true },
		"two of one name": func(o *Options, r *millrace.Reports) {
			o.Reports = append(o.Reports, millrace.Reports{Name: r.Name, Version: 1})
		},
		"the store's schema": func(o *Options, _ *millrace.Reports) { o.ReportSchema = o.Schema },
		"a schema's name":    func(o *Options, _ *millrace.Reports) { o.ReportSchema = "Upper" },
		"a long schema":      func(o *Options, _ *millrace.Reports) { o.Schema = strings.Repeat("s", 60) },
	} {
		o := reporting(t, things(1))
		if _, err := o.withDefaults(); err != nil {
			t.Fatal(err)
		}
		spoil(o, &o.Reports[0])
		if err := Migrate(t.Context(), "postgres://nowhere.invalid/", o); err == nil || errors.Is(err, ErrReports) || !strings.HasPrefix(err.Error(), "pgstore: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
