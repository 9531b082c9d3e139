package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/pgtest"
)

// What one client fails of, the others need not say again, nor go on beside it.
func TestSpreadEndsWithTheFirstError(t *testing.T) {
	broken := errors.New("broken")
	var lat latencies
	var calls atomic.Int64
	err := spread(t.Context(), 8, 1<<20, &lat, func(_, i int) error {
		if calls.Add(1) >= 100 {
			return fmt.Errorf("item %d: %w", i, broken)
		}
		return nil
	})
	if !errors.Is(err, broken) || len(joined(err)) != 1 {
		t.Errorf("a failure: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = spread(ctx, 8, 1<<20, &lat, func(int, int) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	})
	if err == nil || err.Error() != context.Canceled.Error() {
		t.Errorf("an interruption: %v", err)
	}
	if err := spread(t.Context(), 3, 10, &lat, func(int, int) error { return nil }); err != nil {
		t.Error(err)
	}
}

// An interrupted bench says that it was interrupted, once, and what went wrong besides.
func TestInterrupted(t *testing.T) {
	behind := fmt.Errorf("schema x stays behind: %w", errors.New("it is locked"))
	err := interrupted(errors.Join(context.Canceled, errors.Join(fmt.Errorf("%w: %w", errors.New("away"), context.Canceled), behind), context.Canceled))
	if want := "interrupted\nschema x stays behind: it is locked"; err.Error() != want || client.ExitCode(err) != client.ExitInterrupted {
		t.Errorf("%q, exit code %d", err, client.ExitCode(err))
	}
}

// Ctrl-C, whatever the bench is at: one line, the exit code of an interruption, and nothing left behind.
func TestInterruptedBench(t *testing.T) {
	dsn := pgtest.Start(t, pgtest.Options{}).DSN("postgres")
	const schemas = "select count(*) from pg_namespace where nspname like 'millrace%'"
	dir := t.TempDir()
	for name, b := range map[string]struct {
		args  []string
		begun func() bool
	}{
		"a control": {[]string{"decide", "--items", "10000000", "--store", dsn}, func() bool { return rowOf[int](t, dsn, schemas) > 0 }},
		"a node": {[]string{"feed", "--rate", "100", "--duration", "1h", "--store", dsn}, func() bool {
			return rowOf[int](t, dsn, "select count(*) from pg_stat_user_tables where relname = 'events' and n_tup_ins > 0") > 0
		}},
		"a data folder": {[]string{"decide", "--items", "10000000", "--dir", dir}, func() bool { return len(entries(t, dir)) > 0 }},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := launch(t, binary(t), append([]string{"bench"}, b.args...)...)
			if err != nil {
				t.Fatal(err)
			}
			for !b.begun() {
				if err := client.Pause(t.Context(), time.Millisecond); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			if code := p.exit(t); code != client.ExitInterrupted || p.stderr.String() != "millrace: interrupted\n" || p.stdout.String() != "" {
				t.Errorf("exit code %d: %q %q", code, p.stdout.String(), p.stderr.String())
			}
			if n, left := rowOf[int](t, dsn, schemas), entries(t, dir); n != 0 || len(left) != 0 {
				t.Errorf("%d schemas and %v are left behind", n, left)
			}
		})
	}
}

func entries(t *testing.T, dir string) []os.DirEntry {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return all
}
