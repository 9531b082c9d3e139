package pgtest

import (
	"errors"
	"fmt"
	"syscall"
)

// mount puts a file system in memory over a folder, open to all as the folder for temporary files is.
func mount(dir string, size int64) error {
	return syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, fmt.Sprintf("size=%d,mode=755", size))
}

// unmount takes it away even if somebody still holds a file there, and says so.
func unmount(dir string) error {
	err := syscall.Unmount(dir, 0)
	if err == nil {
		return nil
	}
	return errors.Join(fmt.Errorf("unmount %s: %w", dir, err), syscall.Unmount(dir, syscall.MNT_DETACH))
}
