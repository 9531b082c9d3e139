package localstore

import (
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// op names what is about to happen to a file.
type op struct {
	kind string // create, write, sync, rename, remove, mkdir, link, open, read, list, stat
	path string
}

// changes says whether the operation may change what is on the disk.
func (o op) changes() bool {
	switch o.kind {
	case "create", "write", "sync", "rename", "remove", "mkdir", "link":
		return true
	}
	return false
}

// errHalf makes a write reach the disk by half; then the disk is full.
var errHalf = errors.New("half of it")

// hookFS asks before every operation. What the hook returns is the operation's error.
type hookFS struct {
	vfs.FS
	before func(op) error
}

func (h *hookFS) ask(kind, path string) error {
	err := h.before(op{kind, path})
	if err == nil || errors.Is(err, errHalf) {
		return err
	}
	return &os.PathError{Op: kind, Path: path, Err: err}
}

func (h *hookFS) file(kind, path string, open func() (vfs.File, error)) (vfs.File, error) {
	if err := h.ask(kind, path); err != nil {
		return nil, err
	}
	f, err := open()
	if err != nil {
		return nil, err
	}
	return &hookFile{File: f, h: h, path: path}, nil
}

func (h *hookFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return h.file("create", name, func() (vfs.File, error) { return h.FS.Create(name, c) })
}

func (h *hookFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	return h.file("open", name, func() (vfs.File, error) { return h.FS.Open(name, opts...) })
}

func (h *hookFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return h.file("open", name, func() (vfs.File, error) { return h.FS.OpenReadWrite(name, c, opts...) })
}

func (h *hookFS) OpenDir(name string) (vfs.File, error) {
	return h.file("open", name, func() (vfs.File, error) { return h.FS.OpenDir(name) })
}

func (h *hookFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return h.file("rename", newname, func() (vfs.File, error) { return h.FS.ReuseForWrite(oldname, newname, c) })
}

func (h *hookFS) Link(oldname, newname string) error {
	if err := h.ask("link", newname); err != nil {
		return err
	}
	return h.FS.Link(oldname, newname)
}

func (h *hookFS) Remove(name string) error {
	if err := h.ask("remove", name); err != nil {
		return err
	}
	return h.FS.Remove(name)
}

func (h *hookFS) RemoveAll(name string) error {
	if err := h.ask("remove", name); err != nil {
		return err
	}
	return h.FS.RemoveAll(name)
}

func (h *hookFS) Rename(oldname, newname string) error {
	if err := h.ask("rename", newname); err != nil {
		return err
	}
	return h.FS.Rename(oldname, newname)
}

func (h *hookFS) MkdirAll(dir string, perm os.FileMode) error {
	if err := h.ask("mkdir", dir); err != nil {
		return err
	}
	return h.FS.MkdirAll(dir, perm)
}

func (h *hookFS) List(dir string) ([]string, error) {
	if err := h.ask("list", dir); err != nil {
		return nil, err
	}
	return h.FS.List(dir)
}

func (h *hookFS) Stat(name string) (vfs.FileInfo, error) {
	if err := h.ask("stat", name); err != nil {
		return nil, err
	}
	return h.FS.Stat(name)
}

func (h *hookFS) Unwrap() vfs.FS { return h.FS }

type hookFile struct {
	vfs.File
	h    *hookFS
	path string
}

// write writes half where the hook says so.
func (f *hookFile) write(p []byte, write func([]byte) (int, error)) (int, error) {
	err := f.h.ask("write", f.path)
	if errors.Is(err, errHalf) {
		n, err := write(p[:len(p)/2])
		return n, errors.Join(err, &os.PathError{Op: "write", Path: f.path, Err: syscall.ENOSPC})
	}
	if err != nil {
		return 0, err
	}
	return write(p)
}

func (f *hookFile) Write(p []byte) (int, error) { return f.write(p, f.File.Write) }

func (f *hookFile) WriteAt(p []byte, off int64) (int, error) {
	return f.write(p, func(p []byte) (int, error) { return f.File.WriteAt(p, off) })
}

func (f *hookFile) Read(p []byte) (int, error) {
	if err := f.h.ask("read", f.path); err != nil {
		return 0, err
	}
	return f.File.Read(p)
}

func (f *hookFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.h.ask("read", f.path); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *hookFile) Sync() error {
	if err := f.h.ask("sync", f.path); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *hookFile) SyncData() error {
	if err := f.h.ask("sync", f.path); err != nil {
		return err
	}
	return f.File.SyncData()
}

func (f *hookFile) SyncTo(length int64) (bool, error) {
	if err := f.h.ask("sync", f.path); err != nil {
		return false, err
	}
	return f.File.SyncTo(length)
}

var _ io.ReaderAt = (*hookFile)(nil)
