package millrace

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
)

// Cursor is a place in the feed: the position reached in each partition, and the store's epoch. A cursor may
// name fewer partitions than the store has; the ones it does not name stand at 0.
type Cursor struct {
	Epoch     uint64
	Positions []uint64
}

const cursorVersion = 1

// At is a cursor that names one partition only: what a command's answer carries.
func At(epoch uint64, partition int, position uint64) Cursor {
	c := Cursor{Epoch: epoch, Positions: make([]uint64, partition+1)}
	c.Positions[partition] = position
	return c
}

// Position is the position reached in a partition.
func (c Cursor) Position(partition int) uint64 {
	if partition < len(c.Positions) {
		return c.Positions[partition]
	}
	return 0
}

// Covers says whether c has come at least as far as o in every partition.
func (c Cursor) Covers(o Cursor) bool {
	for p, pos := range o.Positions {
		if c.Position(p) < pos {
			return false
		}
	}
	return true
}

// Clone is a copy that shares nothing.
func (c Cursor) Clone() Cursor {
	return Cursor{Epoch: c.Epoch, Positions: append([]uint64(nil), c.Positions...)}
}

// String is the opaque token: version, epoch, then partition and position of each partition that is not at 0,
// and a checksum against typing errors, in URL-safe base64.
func (c Cursor) String() string {
	buf := make([]byte, 0, 64)
	buf = append(buf, cursorVersion)
	buf = binary.AppendUvarint(buf, c.Epoch)
	for p, pos := range c.Positions {
		if pos > 0 {
			buf = binary.AppendUvarint(buf, uint64(p))
			buf = binary.AppendUvarint(buf, pos)
		}
	}
	buf = binary.LittleEndian.AppendUint32(buf, crc32.Checksum(buf, castagnoli))
	return base64.RawURLEncoding.EncodeToString(buf)
}

// maxCursorToken bounds a token before it is decoded: all partitions, both numbers at their longest.
const maxCursorToken = 4 * (1 + (1+2*MaxPartitions)*binary.MaxVarintLen64 + 4) / 3

// ParseCursor reads a token. Anything that String did not make is [ErrInvalid].
func ParseCursor(token string) (Cursor, error) {
	bad := fmt.Errorf("%w: malformed cursor", ErrInvalid)
	// The decoder skips line breaks; a token has one spelling only.
	if len(token) > maxCursorToken || strings.ContainsAny(token, "\r\n") {
		return Cursor{}, bad
	}
	buf, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(buf) < 6 || buf[0] != cursorVersion {
		return Cursor{}, bad
	}
	body, sum := buf[:len(buf)-4], buf[len(buf)-4:]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(sum) {
		return Cursor{}, bad
	}
	r := reader{buf: body[1:]}
	c := Cursor{Epoch: r.uvarint()}
	last := -1
	for len(r.buf) > 0 && r.err == nil {
		p, pos := r.uvarint(), r.uvarint()
		if r.err != nil || p >= MaxPartitions || int(p) <= last || pos == 0 {
			return Cursor{}, bad
		}
		last = int(p)
		for len(c.Positions) <= last {
			c.Positions = append(c.Positions, 0)
		}
		c.Positions[last] = pos
	}
	if r.err != nil {
		return Cursor{}, bad
	}
	return c, nil
}
