package pgtest

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A disk that is full has no room for a byte, and room again when it is emptied; nothing of it is left.
func TestSmallDisk(t *testing.T) {
	var d *Disk
	t.Run("full", func(t *testing.T) {
		d = SmallDisk(t, 4<<20)
		more := filepath.Join(d.Dir(), "more")
		must(t, d.Fill())
		if err := os.WriteFile(more, []byte("x"), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a byte more: %v", err)
		}
		must(t, d.Empty())
		must(t, os.WriteFile(more, make([]byte, 1<<20), 0o600))
	})
	if d == nil {
		return // skipped
	}
	if _, err := os.Stat(d.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", d.Dir(), err)
	}
}
