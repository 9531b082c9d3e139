package localstore

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/millrace-io/millrace"
)

// The on-disk format is written down in docs/reference/journal-format.md; the constants here and that page change
// together. All integers are little-endian.

const (
	formatVersion = 1

	// blockSize is what headers are rounded up to: the unit in which disks and file systems tear.
	blockSize = 4096

	segmentMagic = "MRJSEG01"
	anchorMagic  = "MRJANC01"
	batchMagic   = 0x424a524d // "MRJB" as it stands in the file

	// batchAlign is where a batch may begin. Recovery looks for lost batches at these offsets only.
	batchAlign      = 8
	batchHeaderSize = 72
	recordOverhead  = 9 // length, checksum, type
)

// The types of records in a batch.
const (
	recordCommand  = 1
	recordDecision = 2
)

// Where a decision's command stands.
const (
	commandBefore  = 1 // in the record directly before
	commandEarlier = 2 // in a record of its own, somewhere before; the id finds it
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// loc is the place of a record or batch in the journal: segment number and offset in the segment.
type loc uint64

func makeLoc(segment uint64, offset int64) loc { return loc(segment<<32 | uint64(offset)) } //nolint:gosec // offsets are below 4 GiB
func (l loc) segment() uint64                  { return uint64(l) >> 32 }
func (l loc) offset() int64                    { return int64(uint64(l) & math.MaxUint32) }
func (l loc) String() string                   { return fmt.Sprintf("%s:%d", segmentName(l.segment()), l.offset()) }

func segmentName(n uint64) string { return fmt.Sprintf("%016d.mrj", n) }

// segmentHeader opens each segment: who it belongs to, and everything that a reader must know of what lies before.
type segmentHeader struct {
	meta     millrace.Meta
	segment  uint64
	firstSeq uint64   // the sequence number of its first batch
	prev     [32]byte // the journal chain before that batch
	heads    []millrace.Head
}

const (
	headSize       = 8 + 32
	maxStoreID     = 64
	segmentFixed   = 8 + 4 + 4 + 8 + 8 + 8 + 4 + 32 + 1 + maxStoreID
	anchorFixed    = 8 + 4 + 4 + 8 + 1 + 8 + 8 + 32 + 4 + 1 + maxStoreID
	checksumLength = 4
)

func roundUp(n, to int) int { return (n + to - 1) / to * to }

func headerSize(partitions int) int {
	return roundUp(segmentFixed+headSize*partitions+checksumLength, blockSize)
}

func appendID(dst []byte, id string) []byte {
	dst = append(dst, byte(len(id))) //nolint:gosec // at most maxStoreID
	dst = append(dst, id...)
	return append(dst, make([]byte, maxStoreID-len(id))...)
}

func appendHeads(dst []byte, heads []millrace.Head) []byte {
	for _, h := range heads {
		dst = binary.LittleEndian.AppendUint64(dst, h.Position)
		dst = append(dst, h.Chain[:]...)
	}
	return dst
}

// seal pads a block to size and puts its checksum into the last four bytes.
func seal(dst []byte, size int) []byte {
	dst = append(dst, make([]byte, size-checksumLength-len(dst))...)
	return binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst, castagnoli))
}

// unseal checks the checksum that seal wrote.
func unseal(b []byte) bool {
	n := len(b) - checksumLength
	return n > 0 && crc32.Checksum(b[:n], castagnoli) == binary.LittleEndian.Uint32(b[n:])
}

func (h *segmentHeader) encode() []byte {
	size := headerSize(h.meta.Partitions)
	b := make([]byte, 0, size)
	b = append(b, segmentMagic...)
	b = binary.LittleEndian.AppendUint32(b, formatVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(size)) //nolint:gosec // bounded by MaxPartitions
	b = binary.LittleEndian.AppendUint64(b, h.meta.Epoch)
	b = binary.LittleEndian.AppendUint64(b, h.segment)
	b = binary.LittleEndian.AppendUint64(b, h.firstSeq)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.meta.Partitions)) //nolint:gosec // bounded
	b = append(b, h.prev[:]...)
	b = appendID(b, h.meta.ID)
	b = appendHeads(b, h.heads)
	return seal(b, size)
}

// fields reads fixed-width fields of a block whose checksum was right; running over its end is a bug, not damage.
type fields struct{ b []byte }

func (f *fields) take(n int) []byte { b := f.b[:n]; f.b = f.b[n:]; return b }
func (f *fields) u32() uint32       { return binary.LittleEndian.Uint32(f.take(4)) }
func (f *fields) u64() uint64       { return binary.LittleEndian.Uint64(f.take(8)) }
func (f *fields) hash() (h [32]byte) {
	copy(h[:], f.take(32))
	return h
}

func (f *fields) id() string {
	b := f.take(1 + maxStoreID)
	return string(b[1 : 1+min(int(b[0]), maxStoreID)])
}

func (f *fields) heads(n int) []millrace.Head {
	heads := make([]millrace.Head, n)
	for i := range heads {
		heads[i] = millrace.Head{Position: f.u64(), Chain: f.hash()}
	}
	return heads
}

// headerLength says how long the segment header that begins with these 16 bytes is, 0 where it is none.
func headerLength(b []byte) (int, error) {
	if string(b[:8]) != segmentMagic {
		return 0, nil
	}
	version, size := binary.LittleEndian.Uint32(b[8:]), int(binary.LittleEndian.Uint32(b[12:]))
	if version != formatVersion {
		return 0, fmt.Errorf("journal format %d is not known to this version", version)
	}
	if size < headerSize(1) || size > headerSize(millrace.MaxPartitions) || size%blockSize != 0 {
		return 0, nil
	}
	return size, nil
}

func decodeSegmentHeader(b []byte) (*segmentHeader, bool) {
	if !unseal(b) {
		return nil, false
	}
	f := fields{b[16:]}
	h := &segmentHeader{}
	h.meta.Epoch, h.segment, h.firstSeq = f.u64(), f.u64(), f.u64()
	h.meta.Partitions = int(f.u32())
	if h.meta.Partitions < 1 || headerSize(h.meta.Partitions) != len(b) {
		return nil, false
	}
	h.prev, h.meta.ID = f.hash(), f.id()
	h.heads = f.heads(h.meta.Partitions)
	return h, true
}

// batchHeader leads each batch.
type batchHeader struct {
	seq     uint64
	time    time.Time
	length  int // of the payload, without padding
	records int
	crc     uint32   // of the payload
	prev    [32]byte // the journal chain before the batch
}

// put writes the header into b and returns the journal chain after the batch: SHA-256 over the header, which holds
// the chain before it and the payload's checksum.
func (h *batchHeader) put(b []byte) [32]byte {
	binary.LittleEndian.PutUint32(b[0:], batchMagic)
	binary.LittleEndian.PutUint32(b[4:], uint32(h.length)) //nolint:gosec // below the segment size
	binary.LittleEndian.PutUint64(b[8:], h.seq)
	binary.LittleEndian.PutUint64(b[16:], uint64(h.time.UnixNano()))
	binary.LittleEndian.PutUint32(b[24:], uint32(h.records)) //nolint:gosec // below length
	binary.LittleEndian.PutUint32(b[28:], h.crc)
	copy(b[32:], h.prev[:])
	binary.LittleEndian.PutUint32(b[64:], crc32.Checksum(b[:64], castagnoli))
	binary.LittleEndian.PutUint32(b[68:], 0)
	return sha256.Sum256(b[:64])
}

func decodeBatchHeader(b []byte) (h batchHeader, next [32]byte, ok bool) {
	if len(b) < batchHeaderSize || binary.LittleEndian.Uint32(b) != batchMagic ||
		binary.LittleEndian.Uint32(b[64:]) != crc32.Checksum(b[:64], castagnoli) || binary.LittleEndian.Uint32(b[68:]) != 0 {
		return h, next, false
	}
	f := fields{b[4:]}
	h.length = int(f.u32())
	h.seq = f.u64()
	h.time = time.Unix(0, int64(f.u64())).UTC() //nolint:gosec // two's complement
	h.records = int(f.u32())
	h.crc = f.u32()
	h.prev = f.hash()
	return h, sha256.Sum256(b[:64]), true
}

// size is what the batch takes in the segment.
func (h *batchHeader) size() int { return roundUp(batchHeaderSize+h.length, batchAlign) }

// appendRecord appends a record; fill appends the body.
func appendRecord(dst []byte, kind byte, fill func([]byte) []byte) []byte {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0, kind)
	dst = fill(dst)
	body := dst[start+8:]                                           // type and body
	binary.LittleEndian.PutUint32(dst[start:], uint32(len(body)-1)) //nolint:gosec // below the segment size
	binary.LittleEndian.PutUint32(dst[start+4:], crc32.Checksum(body, castagnoli))
	return dst
}

func appendCommandRecord(dst []byte, partition int, c *millrace.Command) []byte {
	return appendRecord(dst, recordCommand, func(b []byte) []byte {
		b = binary.LittleEndian.AppendUint16(b, uint16(partition)) //nolint:gosec // below MaxPartitions
		return millrace.AppendCommand(b, c)
	})
}

func appendDecisionRecord(dst []byte, partition int, d *millrace.Decision) []byte {
	return appendRecord(dst, recordDecision, func(b []byte) []byte {
		b = binary.LittleEndian.AppendUint16(b, uint16(partition)) //nolint:gosec // below MaxPartitions
		b = append(b, d.Chain[:]...)
		if d.Fresh {
			b = append(b, commandBefore)
		} else {
			b = append(b, commandEarlier)
		}
		return append(b, d.Encoded...)
	})
}

// record is one record as it was read.
type record struct {
	kind byte
	at   loc
	size int
	body []byte
}

// splitRecord takes the record at the front of b.
func splitRecord(b []byte, at loc) (record, bool) {
	if len(b) < recordOverhead {
		return record{}, false
	}
	n := int(binary.LittleEndian.Uint32(b))
	if n > len(b)-recordOverhead || crc32.Checksum(b[8:recordOverhead+n], castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return record{}, false
	}
	return record{kind: b[8], at: at, size: recordOverhead + n, body: b[recordOverhead : recordOverhead+n : recordOverhead+n]}, true
}

func (r *record) corrupt(why string) error {
	return fmt.Errorf("%w: %s: %s", millrace.ErrCorrupt, r.at, why)
}

// command reads a command record.
func (r *record) command() (partition int, c millrace.Command, err error) {
	if r.kind != recordCommand || len(r.body) < 2 {
		return 0, c, r.corrupt("not a command record")
	}
	c, err = millrace.DecodeCommand(r.body[2:])
	if err != nil {
		return 0, c, r.corrupt(err.Error())
	}
	return int(binary.LittleEndian.Uint16(r.body)), c, nil
}

// decision reads a decision record. Fresh says that its command stands in the record before.
func (r *record) decision() (partition int, d millrace.Decision, err error) {
	const fixed = 2 + 32 + 1
	if r.kind != recordDecision || len(r.body) < fixed {
		return 0, d, r.corrupt("not a decision record")
	}
	how := r.body[fixed-1]
	if how != commandBefore && how != commandEarlier {
		return 0, d, r.corrupt("decision refers to its command in an unknown way")
	}
	d, err = millrace.DecodeDecision(r.body[fixed:])
	if err != nil {
		return 0, d, r.corrupt(err.Error())
	}
	d.Fresh = how == commandBefore
	copy(d.Chain[:], r.body[2:])
	return int(binary.LittleEndian.Uint16(r.body)), d, nil
}
