package pgstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-io/millrace/internal/jsonx"
)

// ErrReports: the views for reports are not those of this program. The store works without them.
var ErrReports = errors.New("views for reports")

// reportLock is how long a view that is to change is waited for: a report that runs holds it, and everybody who asks
// after us waits behind us.
const reportLock = "5s"

// stamped finds in what is said of a view which set, version and content made it.
var stamped = regexp.MustCompile(`\(millrace reports ([a-z0-9_]+) (\d+)\.(\d+) ([0-9a-f]{16})\)$`)

// stamp is what every view of a set is marked with.
func (s *reportSet) stamp() string {
	return fmt.Sprintf("(millrace reports %s %s %s)", s.name, s.version, s.digest)
}

// reportMark is a stamp that was read.
type reportMark struct {
	set     string
	version reportVersion
	stamp   string
}

// relation is what there is in the schema of reports.
type relation struct {
	Name    string `json:"name"`
	Comment string `json:"comment"`
	mark    *reportMark
}

// report makes the views, where those that are there are of an older version. Where nothing is to be done it only reads,
// and waits for nobody, so that a node needs no rights to them.
func report(ctx context.Context, db *sql.DB, o *Options) error {
	sets, err := reportSets(o)
	if err != nil || len(sets) == 0 {
		return err
	}
	todo, _, err := outdated(ctx, db, o, sets)
	if err != nil || len(todo) == 0 {
		return err
	}
	// Read committed: what is read under the lock is what those left who held it before, whatever the server's default is.
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrReports, err)
	}
	if err := makeReports(ctx, tx, o, sets); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("%w: %w", ErrReports, err)
	}
	return nil
}

// makeReports is what one node does, and the others find done.
func makeReports(ctx context.Context, tx *sql.Tx, o *Options, sets []reportSet) error {
	run := func(what, text string) error {
		if _, err := tx.ExecContext(ctx, text); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrReports, what, explained(err))
		}
		return nil
	}
	// The lock of those who migrate, up to the end of the transaction. Names mean PostgreSQL's own, whoever has put others
	// in the way.
	err := run("begin", fmt.Sprintf("set local search_path = pg_catalog, pg_temp; set local standard_conforming_strings = on;"+
		"select pg_advisory_xact_lock(%d)", o.migrationLock()))
	if err != nil {
		return err
	}
	todo, there, err := outdated(ctx, tx, o, sets)
	if err != nil || len(todo) == 0 {
		return err
	}
	if err := run("begin", "set local lock_timeout = '"+reportLock+"'"); err != nil {
		return err
	}
	var schemas int
	if err := tx.QueryRowContext(ctx, "select count(*) from pg_namespace where nspname = "+literal(o.ReportSchema)).Scan(&schemas); err != nil {
		return fmt.Errorf("%w: %w", ErrReports, err)
	}
	if schemas == 0 { // "if not exists" asks for rights that a schema of one's own can do without
		if err := run("create the schema "+o.ReportSchema, "create schema "+quoted(o.ReportSchema)); err != nil {
			return err
		}
	}
	for _, set := range todo {
		kept := map[string]bool{}
		for _, v := range set.views {
			kept[v.name] = true
			if err := putView(ctx, tx, o, &v, there[v.name] != nil); err != nil {
				return fmt.Errorf("%w: %s: %w", ErrReports, v.name, explained(err))
			}
		}
		for name, r := range there {
			if r.mark != nil && r.mark.set == set.name && !kept[name] {
				if err := run("remove "+name, "drop view "+o.reportView(name)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// putView makes a view or changes it. One whose columns go on is changed in its place, so that what stands on it can
// stay; another one is made anew, which PostgreSQL refuses where something stands on it.
func putView(ctx context.Context, tx *sql.Tx, o *Options, v *reportText, replace bool) error {
	name := o.reportView(v.name)
	create := "create or replace view " + name + " with (security_barrier) as\n" + v.query + ";\n" + v.comments //nolint:gosec // its names and texts are quoted where they were put in
	if !replace {
		_, err := tx.ExecContext(ctx, create)
		return err
	}
	_, err := tx.ExecContext(ctx, "savepoint view;\n"+create+"release savepoint view")
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "42P16" { // invalid_table_definition: other columns
		return err
	}
	_, err = tx.ExecContext(ctx, "rollback to savepoint view;\ndrop view "+name+";\n"+create)
	return err
}

// explained adds what PostgreSQL says beside its message: what stands on a view, whose rights are missing.
func explained(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Detail != "" {
		return fmt.Errorf("%w: %s", err, pg.Detail)
	}
	return err
}

// querier is a database or a transaction.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// outdated are the sets whose views are not there, or are those of an older version, and all that there is in the schema
// by name. A set that is there in a newer version is left alone.
func outdated(ctx context.Context, db querier, o *Options, sets []reportSet) ([]reportSet, map[string]*relation, error) {
	there, err := relations(ctx, db, o)
	if err != nil {
		return nil, nil, err
	}
	var todo []reportSet
	for i := range sets {
		old, err := sets[i].compare(there)
		if err != nil {
			return nil, nil, err
		}
		if old {
			todo = append(todo, sets[i])
		}
	}
	return todo, there, nil
}

// compare says whether a set is to be made.
func (s *reportSet) compare(there map[string]*relation) (bool, error) {
	marks, current := 0, 0
	for _, r := range there {
		if r.mark == nil || r.mark.set != s.name {
			continue
		}
		marks++
		switch m := r.mark; {
		case m.stamp == s.stamp():
			current++
		case s.version.less(m.version):
			return false, nil
		case m.version == s.version:
			return false, fmt.Errorf("%w: the views %s of version %s that are there have another content: changed views need another version",
				ErrReports, s.name, s.version)
		}
	}
	for i := range s.views {
		switch r := there[s.views[i].name]; {
		case r == nil:
			return true, nil
		case r.mark == nil || r.mark.set != s.name:
			return false, fmt.Errorf("%w: there is something else of the name %s", ErrReports, r.Name)
		}
	}
	return marks != current || current != len(s.views), nil
}

// relations are what there is in the schema of reports. Everybody may read that.
func relations(ctx context.Context, db querier, o *Options) (map[string]*relation, error) {
	var text []byte
	err := db.QueryRowContext(ctx, `select coalesce(json_agg(json_build_object('name', c.relname,
			'comment', coalesce(case when c.relkind = 'v' then obj_description(c.oid, 'pg_class') end, ''))), '[]')
		from pg_class c join pg_namespace n on n.oid = c.relnamespace
		where n.nspname = `+literal(o.ReportSchema)).Scan(&text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReports, err)
	}
	var all []*relation
	if err := jsonx.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReports, err)
	}
	there := make(map[string]*relation, len(all))
	for _, r := range all {
		r.mark = readMark(r.Comment)
		there[r.Name] = r
	}
	return there, nil
}

// readMark reads the stamp of a view, nil where it has none.
func readMark(comment string) *reportMark {
	m := stamped.FindStringSubmatch(comment)
	if m == nil {
		return nil
	}
	version, err := strconv.Atoi(m[2])
	format, ferr := strconv.Atoi(m[3])
	if err != nil || ferr != nil {
		return nil
	}
	return &reportMark{set: m[1], version: reportVersion{version, format}, stamp: m[0]}
}

// ReportGrants are the statements that let a role read the views for reports, those to come too, and nothing else. They are to
// be run by the role that makes the views. schema is [Options.ReportSchema].
func ReportGrants(schema, role string) string {
	return strings.NewReplacer("S", quoted(schema), "R", quoted(role)).Replace(`grant usage on schema S to R;
grant select on all tables in schema S to R;
alter default privileges in schema S grant select on tables to R;
`)
}
