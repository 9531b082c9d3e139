package localstore

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/millrace-io/millrace"
)

// scanBuffer is how much of a segment is read at once: large enough for a disk, small enough to stay in the cache.
const scanBuffer = 1 << 20

// scanner reads the batches of a journal in order and checks that each follows the one before.
type scanner struct {
	files *segmentFiles
	meta  millrace.Meta

	f     *segmentFile
	at    loc
	seq   uint64   // of the next batch
	chain [32]byte // before the next batch
	buf   []byte
	off   int64 // of buf in the segment
}

// scanned is one batch. Its records share memory with the scanner until the next call.
type scanned struct {
	header  batchHeader
	at      loc
	end     loc
	next    [32]byte
	payload []byte
}

// errEnd: there is no valid batch here. The reason may be the journal's end, or damage: the caller knows more.
var errEnd = errors.New("no batch here")

// newScanner starts at the first batch of a segment and returns the segment's header too.
func newScanner(files *segmentFiles, segment uint64) (*scanner, *segmentHeader, error) {
	s := &scanner{files: files}
	h, err := s.enter(segment)
	if err != nil {
		return nil, nil, err
	}
	s.meta, s.seq, s.chain = h.meta, h.firstSeq, h.prev
	return s, h, nil
}

// enter opens a segment and reads its header.
func (s *scanner) enter(segment uint64) (*segmentHeader, error) {
	f, err := s.files.acquire(segment)
	if err != nil {
		return nil, err
	}
	s.close()
	s.f, s.buf, s.off = f, s.buf[:0], 0
	corrupt := func(why string) error {
		return fmt.Errorf("%w: %s: %s", millrace.ErrCorrupt, makeLoc(segment, 0), why)
	}
	b, err := s.window(0, 16)
	if err != nil {
		return nil, err
	}
	if len(b) < 16 {
		return nil, corrupt("the segment is shorter than its header")
	}
	size, err := headerLength(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", segmentName(segment), err)
	}
	if size == 0 {
		return nil, corrupt("not a segment header")
	}
	if b, err = s.window(0, size); err != nil {
		return nil, err
	}
	h, ok := decodeSegmentHeader(b)
	if len(b) < size || !ok {
		return nil, corrupt("segment header checksum does not match")
	}
	if h.segment != segment {
		return nil, corrupt(fmt.Sprintf("the file holds segment %d", h.segment))
	}
	s.at = makeLoc(segment, int64(size))
	return h, nil
}

func (s *scanner) close() {
	if s.f != nil {
		s.files.release(s.f)
		s.f = nil
	}
}

// window returns up to n bytes at an offset of the segment; fewer where the file ends.
func (s *scanner) window(off int64, n int) ([]byte, error) {
	if off >= s.off && off+int64(n) <= s.off+int64(len(s.buf)) {
		return s.buf[off-s.off:][:n], nil
	}
	// No more than there is: a damaged length must not decide how much memory is taken.
	want := int(min(int64(max(n, scanBuffer)), max(s.f.size-off, 0)))
	if cap(s.buf) < want {
		s.buf = make([]byte, want)
	}
	s.buf = s.buf[:want]
	got, err := s.f.f.ReadAt(s.buf, off)
	s.buf, s.off = s.buf[:got], off
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s: %w", makeLoc(s.at.segment(), off), err)
	}
	return s.buf[:min(n, got)], nil
}

// forget drops what was read ahead.
func (s *scanner) forget() { s.buf = s.buf[:0] }

// next reads the batch at the scanner's place: errEnd where there is none, ErrCorrupt where there is one that is
// damaged or does not follow the one before.
func (s *scanner) next() (scanned, error) {
	off := s.at.offset()
	b, err := s.window(off, batchHeaderSize)
	if err != nil {
		return scanned{}, err
	}
	h, next, ok := decodeBatchHeader(b)
	if !ok {
		return scanned{}, errEnd
	}
	corrupt := func(why string) error { return fmt.Errorf("%w: %s: %s", millrace.ErrCorrupt, s.at, why) }
	if h.seq != s.seq || h.prev != s.chain {
		return scanned{}, corrupt(fmt.Sprintf("batch %d does not follow batch %d", h.seq, s.seq-1))
	}
	b, err = s.window(off, h.size())
	if err != nil {
		return scanned{}, err
	}
	if len(b) < batchHeaderSize+h.length {
		return scanned{}, errEnd
	}
	payload := b[batchHeaderSize:][:h.length:h.length]
	if crc32.Checksum(payload, castagnoli) != h.crc {
		return scanned{}, errEnd
	}
	out := scanned{header: h, at: s.at, next: next, payload: payload, end: makeLoc(s.at.segment(), off+int64(h.size()))}
	s.at, s.seq, s.chain = out.end, h.seq+1, next
	return out, nil
}

// nextSegment goes on in the following segment, which must continue exactly where this one ends.
func (s *scanner) nextSegment() (*segmentHeader, error) {
	h, err := s.enter(s.at.segment() + 1)
	if err != nil {
		return nil, err
	}
	corrupt := func(why string) error { return fmt.Errorf("%w: %s: %s", millrace.ErrCorrupt, s.at, why) }
	switch {
	case h.meta.ID != s.meta.ID || h.meta.Partitions != s.meta.Partitions:
		return nil, corrupt("the segment belongs to another store")
	case h.firstSeq != s.seq || h.prev != s.chain:
		return nil, corrupt("the segment does not continue the one before: something is missing or damaged")
	}
	return h, nil
}

// rest says whether everything from the scanner's place to the end of the segment is zero, and where the first
// batch is that is valid in itself, if any.
func (s *scanner) rest() (zero bool, lost loc, err error) {
	zero = true
	off := s.at.offset()
	segment := s.at.segment()
	for {
		b, err := s.window(off, scanBuffer)
		if err != nil {
			return false, 0, err
		}
		if len(b) == 0 {
			return zero, lost, nil
		}
		for i := 0; i < len(b); i++ {
			if b[i] == 0 {
				continue
			}
			zero = false
			if (off+int64(i))%batchAlign != 0 || lost != 0 || len(b)-i < 4 || b[i] != byte(batchMagic&0xff) {
				continue
			}
			if s.batchAt(off + int64(i)) {
				return false, makeLoc(segment, off+int64(i)), nil
			}
			if b, err = s.window(off, scanBuffer); err != nil { // batchAt may have moved the window
				return false, 0, err
			}
		}
		off += int64(len(b))
	}
}

// batchAt says whether a whole batch, valid in itself and newer than the scanner's place, stands at an offset.
func (s *scanner) batchAt(off int64) bool {
	b, err := s.window(off, batchHeaderSize)
	if err != nil {
		return false
	}
	h, _, ok := decodeBatchHeader(b)
	if !ok || h.seq < s.seq {
		return false
	}
	b, err = s.window(off, batchHeaderSize+h.length)
	return err == nil && len(b) == batchHeaderSize+h.length && crc32.Checksum(b[batchHeaderSize:], castagnoli) == h.crc
}

// records splits a batch into its records. A batch whose checksum is right but whose records are not was never
// written by us.
func (b *scanned) records(yield func(record) error) error {
	rest, at := b.payload, b.at+batchHeaderSize
	for n := range b.header.records {
		r, ok := splitRecord(rest, at)
		if !ok {
			return fmt.Errorf("%w: %s: record %d of the batch is damaged", millrace.ErrCorrupt, at, n)
		}
		if err := yield(r); err != nil {
			return err
		}
		rest, at = rest[r.size:], at+loc(r.size) //nolint:gosec // sizes are not negative
	}
	if len(rest) != 0 {
		return fmt.Errorf("%w: %s: bytes behind the last record", millrace.ErrCorrupt, at)
	}
	return nil
}
