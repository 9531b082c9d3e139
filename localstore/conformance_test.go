package localstore_test

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/millracetest"
)

// smallStore opens stores of small segments in memory, so that even short histories roll them.
func smallStore(t testing.TB, partitions int) millracetest.Harness {
	fs := vfs.NewMem()
	return millracetest.Harness{Open: func() (*millrace.Store, error) {
		return localstore.Open("store", &localstore.Options{
			FS: fs, Partitions: partitions, SegmentSize: 128 << 10, CacheSize: 1 << 20, MemTableSize: 256 << 10,
			Fatal: func(err error) { t.Errorf("fatal: %v", err) },
		})
	}}
}

func TestConformance(t *testing.T) { millracetest.RunStore(t, smallStore) }

// diskStore opens stores as they are opened for work, on the disk.
func diskStore(t testing.TB, partitions int) millracetest.Harness {
	dir := t.TempDir()
	return millracetest.Harness{Open: func() (*millrace.Store, error) {
		return localstore.Open(dir, &localstore.Options{Partitions: partitions, Fatal: func(err error) { t.Errorf("fatal: %v", err) }})
	}}
}

func BenchmarkStore(b *testing.B) { millracetest.BenchStore(b, diskStore) }
