package httpapi

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strings"

	"github.com/millrace-io/millrace"
)

const (
	pageCursorVersion = 1
	pageCursorMAC     = 16
	// maxPageCursor bounds a token before it is decoded: a place's key has a few parts of an id's length each.
	maxPageCursor = 4 << 10
)

// sealer makes and opens page cursors. A cursor is opaque to clients: it may hold an index key, which is none of their
// business to build, and a place that a client made up could make a query read what its filters exclude. It is therefore
// authenticated, and bound to the query that it continues.
//
// The MAC's key is made from the store's id, so that cursors outlive a restart and are the same on every node. The id is
// not given out by the API, but it is no secret of the kind that keeps money safe; what it protects here is a query's
// meaning, not access.
type sealer struct{ key [sha256.Size]byte }

func newSealer(storeID string) *sealer {
	return &sealer{key: sha256.Sum256([]byte("millrace page cursor\x00" + storeID))}
}

// mac covers the query and the payload, each in a form that cannot be taken for another pair.
func (s *sealer) mac(dst []byte, query string, payload []byte) []byte {
	h := hmac.New(sha256.New, s.key[:])
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(len(query)))
	_, _ = h.Write(n[:]) // a hash never fails
	_, _ = h.Write([]byte(query))
	_, _ = h.Write(payload)
	return h.Sum(dst)[:len(dst)+pageCursorMAC]
}

func (s *sealer) seal(query string, payload []byte) string {
	buf := append(make([]byte, 0, 1+len(payload)+sha256.Size), pageCursorVersion)
	buf = append(buf, payload...)
	return base64.RawURLEncoding.EncodeToString(s.mac(buf, query, buf))
}

// open returns what seal was given for the same query.
func (s *sealer) open(query, token string) ([]byte, bool) {
	if len(token) > maxPageCursor || strings.ContainsAny(token, "\r\n") { // which the decoder would pass over
		return nil, false
	}
	buf, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(buf) < 1+pageCursorMAC || buf[0] != pageCursorVersion {
		return nil, false
	}
	body, sum := buf[:len(buf)-pageCursorMAC], buf[len(buf)-pageCursorMAC:]
	if !hmac.Equal(sum, s.mac(nil, query, body)) {
		return nil, false
	}
	return body[1:], true
}

// sealPlace makes a cursor that continues a list behind a place.
func (s *sealer) sealPlace(query string, p millrace.Place) string {
	buf := binary.AppendUvarint(make([]byte, 0, 64), uint64(p.Partition)) //nolint:gosec // an index is not negative
	buf = binary.AppendUvarint(buf, uint64(len(p.Key)))
	buf = append(buf, p.Key...)
	return s.seal(query, append(buf, p.ID...))
}

func (s *sealer) openPlace(query, token string) (*millrace.Place, bool) {
	buf, ok := s.open(query, token)
	if !ok {
		return nil, false
	}
	partition, n := binary.Uvarint(buf)
	if n <= 0 || partition >= millrace.MaxPartitions {
		return nil, false
	}
	buf = buf[n:]
	size, n := binary.Uvarint(buf)
	if n <= 0 {
		return nil, false
	}
	buf = buf[n:]
	if size > uint64(len(buf)) {
		return nil, false
	}
	return &millrace.Place{Key: string(buf[:size]), Partition: int(partition), ID: string(buf[size:])}, true
}

// sealVersion makes a cursor that continues a stream's events from a version on.
func (s *sealer) sealVersion(query string, from uint64) string {
	return s.seal(query, binary.AppendUvarint(nil, from))
}

func (s *sealer) openVersion(query, token string) (uint64, bool) {
	buf, ok := s.open(query, token)
	if !ok {
		return 0, false
	}
	v, n := binary.Uvarint(buf)
	return v, n == len(buf) && n > 0
}
