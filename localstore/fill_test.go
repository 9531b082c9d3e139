package localstore

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A new segment is full of zeros to its size, whether or not the file system has direct access, and whatever stood there.
func TestSegmentIsFilled(t *testing.T) {
	for _, size := range []int64{256 << 10, fillChunk + 3*pageSize, fillChunk + 512} {
		o, err := (&Options{FS: vfs.Default, SegmentSize: size}).withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		o.SegmentSize = size
		dir := t.TempDir()
		path := filepath.Join(dir, segmentName(1))
		if err := os.WriteFile(path, bytes.Repeat([]byte{7}, 2*fillChunk), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := createSegment(&o, dir, 1); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path) //nolint:gosec // the test's own
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, make([]byte, size)) {
			t.Errorf("a segment of %d bytes has %d bytes, or not all of them are zero", size, len(got))
		}
	}
}
