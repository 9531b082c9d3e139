package pgtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Disk is a small file system, which a test can fill. It lies in memory.
type Disk struct {
	dir string
}

// SmallDisk mounts a disk of so many bytes, for [Options.Dir], and takes it away when the test ends. Only root may mount;
// where this process may not, the test is skipped.
func SmallDisk(t testing.TB, size int64) *Disk {
	t.Helper()
	dir, err := os.MkdirTemp("", "millrace-disk-")
	if err != nil {
		t.Fatal(err)
	}
	if err := mount(dir, size); err != nil {
		_ = os.Remove(dir) // it is empty
		t.Skipf("no disk to fill: to mount one needs root, and the right to: %v", err)
	}
	d := &Disk{dir: dir}
	t.Cleanup(func() {
		if err := errors.Join(unmount(dir), os.Remove(dir)); err != nil {
			t.Errorf("take the small disk away: %v", err)
		}
	})
	return d
}

// Dir is where it is mounted.
func (d *Disk) Dir() string { return d.dir }

func (d *Disk) ballast() string { return filepath.Join(d.dir, "ballast") }

// Fill takes all the space that is left, to the last block.
func (d *Disk) Fill() error {
	f, err := os.OpenFile(d.ballast(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for len(zeros) > 0 {
		if _, err = f.Write(zeros); errors.Is(err, syscall.ENOSPC) {
			zeros, err = zeros[:len(zeros)/2], nil // what was left has been written, or less is
		}
		if err != nil {
			break
		}
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("fill the disk: %w", err)
	}
	return nil
}

// Empty gives the space back.
func (d *Disk) Empty() error { return os.Remove(d.ballast()) }
