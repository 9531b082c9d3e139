package pgstore

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var migrations embed.FS

// versionTable is where goose keeps what was applied; in the store's schema.
const versionTable = "goose_db_version"

// ErrNoStore: the schema holds no store, and [Options.NoMigrate] keeps Open from making one. It is [ErrSchema].
var ErrNoStore = fmt.Errorf("%w: it holds no store", ErrSchema)

// The lock of those who migrate is tried every second for five minutes.
const (
	lockSeconds = 1
	lockTries   = 300
)

// migration is one file of migrations.
type migration struct {
	version int64
	text    string
}

// steps are the migrations in order, their schema filled in. They are handed to goose as functions and not as files,
// because the schema's name is the user's, and a search path that would save naming it is state of a session, which a
// pool in transaction mode has none of.
func steps(o *Options) ([]migration, error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	out := make([]migration, 0, len(names))
	for _, name := range names {
		number, _, _ := strings.Cut(path.Base(name), "_")
		version, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("migration %s: %w", name, err)
		}
		text, err := migrations.ReadFile(name)
		if err != nil {
			return nil, err
		}
		m := migration{version: version, text: string(text)}
		if o.edit != nil {
			m.text = o.edit(m.text)
		}
		m.text = strings.ReplaceAll(m.text, "{schema}", quoted(o.Schema))
		out = append(out, m)
	}
	return append(out, o.more...), nil
}

// quoted is an identifier as SQL writes it.
func quoted(name string) string { return pgx.Identifier{name}.Sanitize() }

// Migrate brings the tables and the views for reports up to this version, and creates the store where there is none. [Open]
// does so too, unless [Options.NoMigrate] says otherwise, which counts for nothing here; a deployment whose nodes may not
// change tables calls Migrate before, by a role that may. Errors: [ErrSchema], [ErrReports].
func Migrate(ctx context.Context, dsn string, opts *Options) error {
	o, err := opts.withDefaults()
	if err != nil {
		return err
	}
	o.NoMigrate = false
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return fmt.Errorf("pgstore: %w", err)
	}
	return migrate(ctx, cfg, &o)
}

// migrate applies what is missing. Where nothing is, it only reads, so that a role without rights to tables, or a pool
// without sessions, is enough for a node that starts.
func migrate(ctx context.Context, cfg *pgx.ConnConfig, o *Options) (err error) {
	todo, err := steps(o)
	if err != nil {
		return err
	}
	newest := todo[len(todo)-1].version
	cfg = cfg.Copy()
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol // a migration is many statements in one text
	db := stdlib.OpenDB(*cfg)
	defer func() { err = errors.Join(err, db.Close()) }()
	have, err := schemaVersion(ctx, db, o)
	switch {
	case err != nil:
		return err
	case have == 0 && o.NoMigrate:
		return ErrNoStore
	case have < newest && o.NoMigrate:
		return fmt.Errorf("%w: it is of version %d, and this program works with version %d: let a node of this program migrate it, or run an older program",
			ErrSchema, have, newest)
	case have > newest:
		return fmt.Errorf("%w: it is of version %d, and this program knows versions up to %d only: run a newer program", ErrSchema, have, newest)
	case have < newest:
		if err := applyDirectly(ctx, db, o, todo); err != nil {
			return fmt.Errorf("%w: from version %d to %d: %w", ErrSchema, have, newest, err)
		}
	}
	if err := create(ctx, db, o); err != nil {
		return err
	}
	if o.NoMigrate {
		return nil
	}
	return report(ctx, db, o)
}

// migrationLock is the lock of those who migrate: one for each schema, so that two stores of one database need not wait
// for each other.
func (o *Options) migrationLock() int64 {
	return int64(crc32.ChecksumIEEE([]byte("millrace " + o.Schema)))
}

// applyDirectly applies migrations over a connection that has a session, where one is named.
func applyDirectly(ctx context.Context, db *sql.DB, o *Options, todo []migration) (err error) {
	if o.ListenDSN != "" {
		cfg, err := pgx.ParseConfig(o.ListenDSN)
		if err != nil {
			return err
		}
		cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
		db = stdlib.OpenDB(*cfg)
		defer func() { err = errors.Join(err, db.Close()) }()
	}
	return apply(ctx, db, o, todo)
}

// schemaVersion is the newest migration that was applied, 0 for none.
func schemaVersion(ctx context.Context, db *sql.DB, o *Options) (int64, error) {
	var v sql.NullInt64
	err := db.QueryRowContext(ctx, "select max(version_id) from "+quoted(o.Schema)+"."+versionTable+" where is_applied").Scan(&v)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "3F000") { // undefined_table, invalid_schema_name
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the version of the schema: %w", err)
	}
	return v.Int64, nil
}

func apply(ctx context.Context, db *sql.DB, o *Options, todo []migration) error {
	// Two nodes may do so at once; whoever is second finds it there.
	if _, err := db.ExecContext(ctx, "create schema if not exists "+quoted(o.Schema)); err != nil {
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "23505" && pg.Code != "42P06" { // unique_violation, duplicate_schema
			return fmt.Errorf("create the schema: %w", err)
		}
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(o.migrationLock()), lock.WithLockTimeout(lockSeconds, lockTries))
	if err != nil {
		return err
	}
	var funcs []*goose.Migration
	for _, m := range todo {
		up := func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, m.text)
			return err
		}
		funcs = append(funcs, goose.NewGoMigration(m.version, &goose.GoFunc{RunTx: up}, nil))
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, nil,
		goose.WithGoMigrations(funcs...), goose.WithDisableGlobalRegistry(true), goose.WithSessionLocker(locker),
		goose.WithTableName(o.Schema+"."+versionTable), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	_, err = p.Up(ctx)
	return err
}

// distributed are the tables by the column that Citus distributes them by.
var distributed = []struct{ table, column string }{
	{"partitions", "partition"}, {"commands", "partition"}, {"pending", "partition"}, {"outcomes", "partition"},
	{"leases", "partition"}, {"events", "partition"}, {"documents", "partition"}, {"document_keys", "partition"}, {"checkpoints", "partition"},
	{"keys", "id"},
}

// references are the small tables that Citus keeps everywhere.
var references = []string{"store", "nodes"}

// create makes the store in empty tables; of nodes that start at once, one does.
func create(ctx context.Context, db *sql.DB, o *Options) error {
	schema := quoted(o.Schema)
	var n int
	if err := db.QueryRowContext(ctx, "select count(*) from "+schema+".store s where s.partitions = (select count(*) from "+schema+".partitions)").Scan(&n); err != nil {
		return fmt.Errorf("read the store: %w", err)
	}
	if n == 1 {
		return nil
	}
	if o.NoMigrate {
		return ErrNoStore
	}
	if o.Citus {
		if err := distribute(ctx, db, o); err != nil {
			return err
		}
	}
	const newStore = `insert into %s.store (one, id, epoch, partitions) values (1, coalesce($1::text, gen_random_uuid()::text), $2, $3) on conflict do nothing`
	var identity *string
	epoch := int64(1)
	if o.Copy != nil {
		identity, epoch = &o.Copy.ID, int64(o.Copy.Epoch) //nolint:gosec // counts restores
	}
	if _, err := db.ExecContext(ctx, fmt.Sprintf(newStore, schema), identity, epoch, o.Partitions); err != nil {
		return fmt.Errorf("create the store: %w", err)
	}
	const newPartitions = `insert into %s.partitions (partition, chain)
		select g, decode(repeat('00', 32), 'hex') from generate_series(0, (select partitions - 1 from %s.store)) g on conflict do nothing`
	if _, err := db.ExecContext(ctx, fmt.Sprintf(newPartitions, schema, schema)); err != nil {
		return fmt.Errorf("create the partitions: %w", err)
	}
	return nil
}

// distribute hands the empty tables to Citus. A table that it has already stays as it is.
func distribute(ctx context.Context, db *sql.DB, o *Options) error {
	var n int
	if err := db.QueryRowContext(ctx, "select count(*) from pg_extension where extname = 'citus'").Scan(&n); err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("%w: the database lacks the extension citus: create it, or do without distribution", ErrSchema)
	}
	run := func(call, table string, args ...any) error {
		name := quoted(o.Schema) + "." + table
		var have int
		if err := db.QueryRowContext(ctx, "select count(*) from pg_dist_partition where logicalrel = $1::text::regclass", name).Scan(&have); err != nil {
			return err
		}
		if have > 0 {
			return nil
		}
		_, err := db.ExecContext(ctx, call, append([]any{name}, args...)...)
		return err
	}
	for _, table := range references {
		if err := run("select create_reference_table($1::text)", table); err != nil {
			return fmt.Errorf("distribute %s: %w", table, err)
		}
	}
	for _, t := range distributed {
		if err := run("select create_distributed_table($1::text, $2::text)", t.table, t.column); err != nil {
			return fmt.Errorf("distribute %s: %w", t.table, err)
		}
	}
	return nil
}
