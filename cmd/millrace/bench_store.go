package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/lease"
	"github.com/millrace-io/millrace/pgstore"
)

const (
	// benchSchema leads the names of the schemas that a bench makes and drops, so that those of a bench that was killed
	// are found.
	benchSchema = "millrace_bench_"
	// dropPatience bounds how long a schema is being dropped: a bench that was interrupted cleans up too.
	dropPatience = time.Minute
)

// schema is a place in a database that a bench has to itself.
type schema struct {
	dsn, name string
	pool      *pgxpool.Pool
}

// newSchema names a schema, and makes it where the bench fills it itself; a store makes its own.
func newSchema(ctx context.Context, dsn string, conns int, create string) (*schema, error) {
	s := &schema{dsn: dsn, name: benchSchema + strings.ToLower(rand.Text())}
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = int32(min(conns, maxConns)) //nolint:gosec // small
	if s.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return nil, err
	}
	if create == "" {
		return s, nil
	}
	conn, err := s.pool.Acquire(ctx)
	if err == nil {
		// Several statements in one text.
		_, err = conn.Conn().PgConn().Exec(ctx, s.sql("create schema {schema}; "+create)).ReadAll()
		conn.Release()
	}
	if err != nil {
		return nil, errors.Join(err, s.drop(ctx))
	}
	return s, nil
}

// sql fills in the schema's name.
func (s *schema) sql(text string) string {
	return strings.ReplaceAll(text, "{schema}", pgx.Identifier{s.name}.Sanitize())
}

// written is how many bytes its tables and indexes take.
func (s *schema) written(ctx context.Context) (n int64, err error) {
	err = s.pool.QueryRow(ctx, `select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint from pg_class c
		join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relkind = 'r'`, s.name).Scan(&n)
	return n, err
}

// drop removes all of it, even where the bench was interrupted.
func (s *schema) drop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropPatience)
	defer cancel()
	_, err := s.pool.Exec(ctx, s.sql("drop schema if exists {schema} cascade"))
	s.pool.Close()
	if err != nil {
		return fmt.Errorf("schema %s stays behind: %w", s.name, err)
	}
	return nil
}

// benchStore is a store in a schema of its own, with the leases that a node has.
type benchStore struct {
	*schema
	store   *millrace.Store
	cluster *cluster
}

// openBenchStore makes a store that nobody else knows.
func openBenchStore(ctx context.Context, dsn string, log *slog.Logger) (*benchStore, error) {
	s, err := newSchema(ctx, dsn, 1, "")
	if err != nil {
		return nil, err
	}
	store, c, err := openShared(ctx, dsn, pgstore.Options{Schema: s.name, Logger: log})
	if err != nil {
		return nil, errors.Join(err, s.drop(ctx))
	}
	return &benchStore{schema: s, store: store, cluster: c}, nil
}

func (b *benchStore) close(ctx context.Context) error {
	return errors.Join(b.store.Close(), b.drop(ctx))
}

// ownsAll waits until the node owns every partition in some roles: the taking is not part of any figure.
func (b *benchStore) ownsAll(ctx context.Context, roles ...*lease.Manager) error {
	for _, m := range roles {
		for {
			owned, changed := m.Owned()
			if len(owned) == b.store.Partitions() {
				break
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// newSharedBed is a node on a store in a database.
func newSharedBed(ctx context.Context, o *benchOptions, no nodeOptions) (*bed, error) {
	s, err := openBenchStore(ctx, o.store, no.log)
	if err != nil {
		return nil, err
	}
	no.cluster = s.cluster
	n, err := newNode(ctx, s.store, no)
	if err != nil {
		return nil, errors.Join(err, s.close(ctx))
	}
	stop := running(ctx, n.run)
	b := &bed{n: n, size: func() (int64, error) { return s.written(ctx) }, stop: func() error { return errors.Join(stop(), s.close(ctx)) }}
	if err := s.ownsAll(ctx, s.cluster.leases, s.cluster.feed); err != nil {
		return nil, errors.Join(err, b.stop())
	}
	return b, nil
}

// running runs something until stop is called.
func running(ctx context.Context, run func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	return func() error { cancel(); return <-done }
}

// withSharedProcessor runs f on a processor alone, which owns all partitions of a store in a database.
func withSharedProcessor(ctx context.Context, o *benchOptions, paused bool, f func(p *command.Processor, size sizer) error) error {
	s, err := openBenchStore(ctx, o.store, warnings())
	if err != nil {
		return err
	}
	registry, err := millrace.NewRegistry(order.Domains()...)
	if err != nil {
		return errors.Join(err, s.close(ctx))
	}
	p := newProcessor(s.store, registry, command.Options{Paused: paused}, s.cluster)
	stop := running(ctx, s.cluster.decide)
	err = s.ownsAll(ctx, s.cluster.leases)
	if err == nil {
		err = f(p, func() (int64, error) { return s.written(ctx) })
	}
	return errors.Join(err, stop(), s.close(ctx))
}

// benchAccept measures in process how many commands are kept, and nothing more: deciding stands still.
func benchAccept(ctx context.Context, o *benchOptions, items int, naive *control) (*result, error) {
	r := &result{Name: "accept", Unit: "commands/s", Clients: o.clients}
	err := withSharedProcessor(ctx, o, true, func(p *command.Processor, size sizer) error {
		return o.measure(r, "-accept", items, size, func(lat *latencies) error {
			return spread(ctx, o.clients, items, lat, func(_, i int) error {
				_, err := p.Accept(ctx, orderCommand("a"+strconv.Itoa(i)))
				return err
			})
		})
	})
	if err != nil {
		return nil, err
	}
	r.Control, r.Ratio = naive, r.Rate/naive.Rate
	return r, nil
}
