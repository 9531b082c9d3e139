package pgstore

import (
	"flag"
	"testing"

	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/millracetest"
)

// TestConformance holds the backend to the rules of the contract, on every major there is; in short mode on one.
func TestConformance(t *testing.T) {
	if testing.Short() {
		millracetest.RunStore(t, stores(server(t), nil))
		return
	}
	pgtest.Each(t, func(t *testing.T, in pgtest.Installation) {
		millracetest.RunStore(t, stores(pgtest.Start(t, pgtest.Options{Installation: in, NoSync: true, Settings: manyTables}), nil))
	})
}

// TestConformanceApart writes each partition, and the claims of ids, in transactions of their own, as Citus needs it.
func TestConformanceApart(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	checks := flag.Lookup("rapid.checks").Value
	defer func(old string) { _ = checks.Set(old) }(checks.String())
	if err := checks.Set("15"); err != nil {
		t.Fatal(err)
	}
	millracetest.RunStore(t, stores(server(t), func(o *Options) { o.groups, o.separateClaims = 1, true }))
}

func BenchmarkStore(b *testing.B) {
	millracetest.BenchStore(b, stores(benchServer(b), func(o *Options) { o.NoSync = false }))
}
