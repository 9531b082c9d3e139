package localstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
)

// maxOpenSegments bounds the segment files that are held open for reading.
const maxOpenSegments = 128

// segmentFiles opens segments for reading and keeps some of them open.
type segmentFiles struct {
	fs  vfs.FS
	dir string

	mu   sync.Mutex
	open map[uint64]*segmentFile
}

type segmentFile struct {
	f    vfs.File
	refs int
	size int64
}

// acquire opens a segment; the caller must release it. A missing file is corruption: only whoever knows that a
// segment must be there asks for it.
func (s *segmentFiles) acquire(n uint64) (*segmentFile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.open[n]; f != nil {
		f.refs++
		return f, nil
	}
	f, err := s.fs.Open(s.fs.PathJoin(s.dir, segmentName(n)))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: segment %s is missing", millrace.ErrCorrupt, segmentName(n))
		}
		return nil, fmt.Errorf("open segment: %w", err) // too many open files, for instance: that passes
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("stat segment %s: %w", segmentName(n), err), f.Close())
	}
	for k, o := range s.open {
		if len(s.open) < maxOpenSegments {
			break
		}
		if o.refs == 0 {
			delete(s.open, k)
			_ = o.f.Close() // read only: nothing to lose
		}
	}
	sf := &segmentFile{f: f, refs: 1, size: st.Size()}
	s.open[n] = sf
	return sf, nil
}

func (s *segmentFiles) release(f *segmentFile) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.refs--
}

func (s *segmentFiles) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, f := range s.open {
		delete(s.open, n)
		_ = f.f.Close() // read only
	}
}

// readGuess is what a read of one record takes at first: most records fit, and a second read is for the others.
const readGuess = 4096

// readRecord reads one record and checks it.
func (s *segmentFiles) readRecord(at loc) (record, error) {
	f, err := s.acquire(at.segment())
	if err != nil {
		return record{}, err
	}
	defer s.release(f)
	b := make([]byte, readGuess)
	n, err := f.f.ReadAt(b, at.offset())
	if err != nil && !errors.Is(err, io.EOF) {
		return record{}, fmt.Errorf("read %s: %w", at, err)
	}
	b = b[:n]
	if len(b) < recordOverhead {
		return record{}, fmt.Errorf("%w: %s: the file ends before the record", millrace.ErrCorrupt, at)
	}
	want := recordOverhead + int(uint32(b[0])|uint32(b[1])<<8|uint32(b[2])<<16|uint32(b[3])<<24)
	if want > len(b) {
		// A damaged length must not decide how much memory is taken.
		if int64(want) > f.size-at.offset() {
			return record{}, fmt.Errorf("%w: %s: the file ends within the record", millrace.ErrCorrupt, at)
		}
		have := len(b)
		b = append(b, make([]byte, want-have)...)
		if _, err := f.f.ReadAt(b[have:], at.offset()+int64(have)); err != nil {
			if errors.Is(err, io.EOF) {
				return record{}, fmt.Errorf("%w: %s: the file ends within the record", millrace.ErrCorrupt, at)
			}
			return record{}, fmt.Errorf("read %s: %w", at, err)
		}
	}
	r, ok := splitRecord(b, at)
	if !ok {
		return record{}, fmt.Errorf("%w: %s: record checksum does not match", millrace.ErrCorrupt, at)
	}
	return r, nil
}

// readSpan reads a stretch of records that the index vouches for.
func (s *segmentFiles) readSpan(at loc, length int) ([]byte, error) {
	f, err := s.acquire(at.segment())
	if err != nil {
		return nil, err
	}
	defer s.release(f)
	if int64(length) > f.size-at.offset() {
		return nil, fmt.Errorf("%w: %s: the file ends within %d bytes", millrace.ErrCorrupt, at, length)
	}
	b := make([]byte, length)
	if _, err := f.f.ReadAt(b, at.offset()); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: %s: the file ends within %d bytes", millrace.ErrCorrupt, at, length)
		}
		return nil, fmt.Errorf("read %s: %w", at, err)
	}
	return b, nil
}
