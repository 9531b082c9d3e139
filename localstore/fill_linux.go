package localstore

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// fillDirect fills a file with zeros past the page cache: filling a segment through it costs a copy and as much dirty
// memory, and its one large flush holds up the syncs of the segment in use. done is false where the file system has no
// direct access; nothing is written then.
func fillDirect(path string, size int64) (done bool, err error) {
	if size%pageSize != 0 {
		return false, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_DIRECT, 0) //nolint:gosec // our own file
	if errors.Is(err, syscall.EINVAL) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open segment: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := aligned(int(min(size, fillChunk)))
	for off := int64(0); off < size; {
		n, err := f.WriteAt(buf[:min(size-off, int64(len(buf)))], off)
		if err != nil {
			if off == 0 && errors.Is(err, syscall.EINVAL) {
				return false, nil
			}
			return false, fmt.Errorf("fill segment: %w", err)
		}
		off += int64(n)
	}
	return true, nil
}

// aligned makes a buffer that begins at a page, as direct access asks.
func aligned(size int) []byte {
	buf := make([]byte, size+pageSize)
	off := pageSize - int(uintptr(unsafe.Pointer(unsafe.SliceData(buf)))%pageSize) //nolint:gosec // only its value is looked at
	return buf[off : off+size]
}
