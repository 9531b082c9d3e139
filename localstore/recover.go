package localstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/id"
)

// The folders and files of a store.
const (
	journalDir = "journal"
	indexDir   = "index"
	lockName   = "LOCK"
	// rebuildName is an empty file: the index is damaged, and the next Open makes it again.
	rebuildName = "REBUILD-INDEX"
)

// recovered is what a journal was found to hold.
type recovered struct {
	meta    millrace.Meta
	segment uint64 // the last one
	end     loc
	seq     uint64
	chain   [32]byte
	heads   []millrace.Head
	torn    bool // something unfinished stands behind the end
}

// listSegments returns the numbers of the segment files, in order, and refuses anything that does not belong there.
func listSegments(fs vfs.FS, dir string) ([]uint64, error) {
	names, err := fs.List(dir)
	if err != nil {
		return nil, fmt.Errorf("list journal: %w", err)
	}
	var segments []uint64
	for _, name := range names {
		digits, ok := strings.CutSuffix(name, ".mrj")
		n, err := strconv.ParseUint(digits, 10, 32)
		if !ok || err != nil || segmentName(n) != name || n == 0 {
			return nil, fmt.Errorf("%w: journal holds the unknown file %q", millrace.ErrCorrupt, name)
		}
		segments = append(segments, n)
	}
	slices.Sort(segments)
	for i, n := range segments {
		if n != segments[0]+uint64(i) {
			return nil, fmt.Errorf("%w: journal segment %s is missing", millrace.ErrCorrupt, segmentName(n-1))
		}
	}
	if len(segments) > 0 && segments[0] != 1 {
		return nil, fmt.Errorf("%w: journal segment %s is missing", millrace.ErrCorrupt, segmentName(1))
	}
	return segments, nil
}

// create makes an empty store. Everything is durable before the anchor is, and without an anchor there is no store: a
// creation that was interrupted begins anew.
func create(o *Options, root string) error {
	fs := o.FS
	dir := fs.PathJoin(root, journalDir)
	if err := fs.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove an interrupted creation: %w", err)
	}
	if err := fs.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("create journal: %w", err)
	}
	meta := millrace.Meta{ID: id.New(), Epoch: 1, Partitions: o.Partitions}
	if o.Copy != nil {
		meta = *o.Copy
	}
	j := newJournal(o, dir, meta)
	j.heads = make([]millrace.Head, o.Partitions)
	if err := createSegment(o, dir, 1); err != nil {
		return err
	}
	if err := j.openSegment(1); err != nil {
		return err
	}
	if err := j.f.Close(); err != nil {
		return fmt.Errorf("close segment: %w", err)
	}
	if err := syncDir(fs, root); err != nil {
		return err
	}
	if err := syncParents(fs, root); err != nil {
		return err
	}
	// The anchor appears whole or not at all: it is written under another name first.
	tmp := fs.PathJoin(root, anchorName+".new")
	f, err := fs.Create(tmp, journalCategory)
	if err != nil {
		return fmt.Errorf("create %s: %w", anchorName, err)
	}
	a := anchor{meta: meta, end: j.end(), heads: j.heads}
	for _, a.counter = range []uint64{2, 1} { // slot 0 is that of even counters
		if _, err := f.Write(a.encode()); err != nil {
			return errors.Join(fmt.Errorf("write %s: %w", anchorName, err), f.Close())
		}
	}
	if err := f.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync %s: %w", anchorName, err), f.Close())
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("close %s: %w", anchorName, err)
	}
	if err := fs.Rename(tmp, fs.PathJoin(root, anchorName)); err != nil {
		return fmt.Errorf("name %s: %w", anchorName, err)
	}
	return syncDir(fs, root)
}

// syncParents makes the folder's own name durable, and those of the folders above, which may be as new. Folders that
// we may not open are not ours and were there before.
func syncParents(fs vfs.FS, dir string) error {
	for {
		parent := fs.PathDir(dir)
		if parent == dir {
			return nil
		}
		if err := syncDir(fs, parent); err != nil && !errors.Is(err, os.ErrPermission) {
			return err
		}
		dir = parent
	}
}

// holdsFacts says whether any segment holds a batch: then the store was in use, and a missing anchor is a loss.
func holdsFacts(fs vfs.FS, dir string, segments []uint64) (bool, error) {
	files := &segmentFiles{fs: fs, dir: dir, open: map[uint64]*segmentFile{}}
	defer files.close()
	for _, n := range segments {
		f, err := files.acquire(n)
		if err != nil {
			return false, err
		}
		s := scanner{files: files, f: f, at: makeLoc(n, 0)}
		_, lost, err := s.rest()
		s.close()
		if err != nil {
			return false, err
		}
		if lost != 0 {
			return true, nil
		}
	}
	return false, nil
}

// inspect reads the newest part of the journal and finds where it ends. It begins at the segment in which the index
// stands (from), or the anchor's, whichever is older; what lies before is checked by verify and whenever it is read.
func inspect(files *segmentFiles, segments []uint64, a *anchor, from loc, visit func(*scanned) error) (*recovered, error) {
	last := segments[len(segments)-1]
	if a.end.segment() > last {
		return nil, fmt.Errorf("%w: journal segment %s is missing: the anchor says that it holds batch %d",
			millrace.ErrCorrupt, segmentName(a.end.segment()), a.seq)
	}
	start := min(a.end.segment(), max(from.segment(), 1))
	s, h, err := newScanner(files, start)
	if err != nil {
		return nil, err
	}
	defer func() { s.close() }()
	if h.meta != a.meta {
		return nil, fmt.Errorf("%w: %s belongs to another store than %s", millrace.ErrCorrupt, segmentName(start), anchorName)
	}
	r := &recovered{meta: a.meta, segment: start, heads: slices.Clone(h.heads)}
	for {
		b, err := s.next()
		if err == nil {
			// Where it ends is not compared: the anchor's place may be behind the header of the next segment.
			if b.header.seq == a.seq && b.next != a.chain {
				return nil, fmt.Errorf("%w: %s: batch %d is not the one that the anchor knows", millrace.ErrCorrupt, b.at, a.seq)
			}
			if err := visit(&b); err != nil {
				return nil, err
			}
			continue
		}
		if !errors.Is(err, errEnd) {
			return nil, err
		}
		zero, lost, err := s.rest()
		if err != nil {
			return nil, err
		}
		if lost != 0 {
			return nil, fmt.Errorf("%w: %s: batch %d is damaged or missing, but a later one stands at %s", millrace.ErrCorrupt, s.at, s.seq, lost)
		}
		if s.at.segment() == last {
			r.torn = !zero
			break
		}
		// A segment that is left is followed by one that continues it. The one exception: the last file may be a
		// prepared segment, or one whose header was being written.
		if s.at.segment()+1 == last {
			unused, err := unusedSegment(files, last)
			if err != nil {
				return nil, err
			}
			if unused {
				r.torn = !zero
				break
			}
		}
		if !zero {
			return nil, fmt.Errorf("%w: %s: damaged, but a later segment exists", millrace.ErrCorrupt, s.at)
		}
		if _, err := s.nextSegment(); err != nil {
			return nil, err
		}
	}
	r.segment, r.end, r.seq, r.chain = s.at.segment(), s.at, s.seq-1, s.chain
	switch {
	case r.seq < a.seq:
		return nil, fmt.Errorf("%w: %s: the journal ends with batch %d, but batch %d was acknowledged: %d batches are missing or damaged",
			millrace.ErrCorrupt, r.end, r.seq, a.seq, a.seq-r.seq)
	case r.seq == a.seq && r.chain != a.chain:
		return nil, fmt.Errorf("%w: %s: batch %d is not the one that the anchor knows", millrace.ErrCorrupt, r.end, r.seq)
	case a.clean && (r.seq != a.seq || r.torn):
		return nil, fmt.Errorf("%w: %s: the store was closed at batch %d, but there is more in the journal", millrace.ErrCorrupt, r.end, a.seq)
	}
	return r, nil
}

// unusedSegment says whether a segment was never written to: it has no valid header and no batch. Its header was
// perhaps being written; nothing of it was acknowledged.
func unusedSegment(files *segmentFiles, n uint64) (bool, error) {
	f, err := files.acquire(n)
	if err != nil {
		return false, err
	}
	s := scanner{files: files, f: f, at: makeLoc(n, 0)}
	defer s.close()
	b, err := s.window(0, blockSize)
	if err != nil {
		return false, err
	}
	if len(b) >= 16 {
		size, err := headerLength(b)
		if err != nil {
			return false, err
		}
		if size > 0 {
			if b, err = s.window(0, size); err != nil {
				return false, err
			}
			if _, ok := decodeSegmentHeader(b); ok {
				return false, nil
			}
		}
	}
	_, lost, err := s.rest()
	return lost == 0, err
}

// cut removes what stands behind the journal's end and makes what stands before it durable: it may so far have been
// in memory only, and from now on it is shown to readers.
func cut(o *Options, dir string, r *recovered) (vfs.File, int64, error) {
	path := o.FS.PathJoin(dir, segmentName(r.end.segment()))
	f, err := o.FS.OpenReadWrite(path, journalCategory)
	if err != nil {
		return nil, 0, fmt.Errorf("open segment: %w", err)
	}
	size, err := cutFile(f, r)
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, size, nil
}

func cutFile(f vfs.File, r *recovered) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("stat segment: %w", err)
	}
	var buf []byte
	if r.torn {
		buf = make([]byte, fillChunk)
	}
	for off := r.end.offset(); r.torn && off < st.Size(); {
		n, err := f.ReadAt(buf[:min(st.Size()-off, fillChunk)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("read the torn end: %w", err)
		}
		if slices.ContainsFunc(buf[:n], func(b byte) bool { return b != 0 }) {
			clear(buf[:n])
			if _, err := f.WriteAt(buf[:n], off); err != nil {
				return 0, fmt.Errorf("cut the torn end: %w", err)
			}
		}
		off += int64(n)
	}
	if err := f.Sync(); err != nil {
		return 0, fmt.Errorf("sync segment: %w", err)
	}
	return st.Size(), nil
}

// readApplied reads the index's own place in the journal; the zero value where the index is new.
func readApplied(db *pebble.DB) (applied, error) {
	v, err := get(db, []byte{keyMeta})
	if err != nil || v == nil {
		return applied{}, err
	}
	a, ok := decodeApplied(v)
	if !ok {
		return a, fmt.Errorf("%w: index: the place in the journal is not readable", millrace.ErrCorrupt)
	}
	return a, nil
}
