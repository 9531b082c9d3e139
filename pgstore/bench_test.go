package pgstore

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/pgtest"
)

// benchServer is a server with sync and enough memory.
func benchServer(b *testing.B) *pgtest.Server {
	return pgtest.Start(b, pgtest.Options{Settings: map[string]string{"shared_buffers": "512MB", "max_wal_size": "4GB", "max_locks_per_transaction": "256"}})
}

const clients = 64

// parallel has the clients do b.N things.
func parallel(b *testing.B, do func(client, n int) error) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for c := range clients {
		wg.Go(func() {
			for {
				n := left.Add(-1)
				if n < 0 {
					return
				}
				if err := do(c, int(n)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "orders/s")
}

// BenchmarkIntake compares acceptances by 64 clients with controls on the same server: one transaction for each order, as
// pgx does it, with the same rows but without any of the rules; and one partition in each of our transactions.
func BenchmarkIntake(b *testing.B) {
	data := []byte(`{"lines":"` + strings.Repeat("x", 280) + `"}`)
	run := func(change func(*Options)) func(b *testing.B) {
		return func(b *testing.B) {
			s, err := stores(benchServer(b), func(o *Options) { o.NoSync = false; change(o) })(b, millrace.DefaultPartitions).Open()
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			parallel(b, func(_, n int) error {
				c := &millrace.Command{ID: fmt.Sprintf("order %d", n), Stream: millrace.Stream(fmt.Sprintf("order-%d", n)), Type: "Place", Data: data, Time: day, CorrelationID: "x"}
				return s.Accept(context.Background(), c.Stream.Partition(s.Partitions()), []millrace.AcceptedCommand{accepted(c)})
			})
			st := driverOf(s).Stats()
			b.ReportMetric(float64(st.Commands)/float64(st.Transactions), "orders/tx")
		}
	}
	for _, w := range []int{1, 2, 3, 4} {
		b.Run(fmt.Sprintf("writers=%d", w), run(func(o *Options) { o.Writers = w }))
	}
	b.Run("onePartitionPerTransaction", run(func(o *Options) { o.groups, o.Writers = 1, 4 }))
	b.Run("separateClaims", run(func(o *Options) { o.separateClaims = true }))
	b.Run("naive", func(b *testing.B) {
		s := benchServer(b)
		cfg, err := pgxpool.ParseConfig(s.DSN("postgres"))
		if err != nil {
			b.Fatal(err)
		}
		cfg.MaxConns = 32
		pool, err := pgxpool.NewWithConfig(b.Context(), cfg)
		if err != nil {
			b.Fatal(err)
		}
		defer pool.Close()
		exec(b, s.DSN("postgres"), "create table orders (id text primary key, stream text, type text, data bytea, at bigint)")
		exec(b, s.DSN("postgres"), "create table queue (at timestamptz default now(), id text primary key)")
		parallel(b, func(_, n int) error {
			return pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error {
				if _, err := tx.Exec(context.Background(), "insert into orders values ($1, $2, $3, $4, $5)", fmt.Sprintf("order %d", n), fmt.Sprintf("order-%d", n), "Place", data, int64(n)); err != nil {
					return err
				}
				_, err := tx.Exec(context.Background(), "insert into queue (id) values ($1)", fmt.Sprintf("order %d", n))
				return err
			})
		})
	})
}

// BenchmarkDecide commits decisions of one event, 256 in a batch.
func BenchmarkDecide(b *testing.B) {
	data := []byte(`{"lines":"` + strings.Repeat("x", 280) + `"}`)
	s, err := stores(benchServer(b), func(o *Options) { o.NoSync = false })(b, millrace.DefaultPartitions).Open()
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	const batch, inFlight = 256, 8
	slots := make(chan struct{}, inFlight)
	b.ResetTimer()
	for n := 0; n < b.N; {
		p := (n / batch) % millrace.DefaultPartitions
		w := &millrace.Batch{Partition: p}
		for range batch {
			c := &millrace.Command{ID: fmt.Sprintf("order %d", n), Stream: millrace.Stream(fmt.Sprintf("order-%d", n)), Type: "Place", Data: data, Time: day, CorrelationID: "x"}
			d := decided(c, true, 0)
			d.Events = []millrace.NewEvent{{Type: "Placed", Data: data}}
			w.Decisions = append(w.Decisions, d)
			n++
		}
		slots <- struct{}{}
		s.Commit(w, func(err error) {
			if err != nil {
				b.Error(err)
			}
			<-slots
		})
	}
	for range inFlight {
		slots <- struct{}{}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "orders/s")
}
