package millrace

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"
)

const (
	// MaxStreamName bounds a stream's name in bytes: it stands in every index key of the stream.
	MaxStreamName = 200
	// MaxPartitions bounds the partitions of a store: the heads of all of them stand in every segment header
	// and in the anchor.
	MaxPartitions = 1024
	// DefaultPartitions is what a store is created with where nobody says otherwise.
	DefaultPartitions = 16
)

// Stream is the name of one thing's history: a category, a hyphen and an id, as in "order-42".
// The category says which rules apply; the id is the caller's and may itself hold hyphens.
type Stream string

// NewStream joins a category and an id. It does not check them: see [Stream.Validate].
func NewStream(category, id string) Stream { return Stream(category + "-" + id) }

// Category is what stands before the first hyphen, or "" where there is none.
func (s Stream) Category() string {
	category, _, ok := strings.Cut(string(s), "-")
	if !ok {
		return ""
	}
	return category
}

// ID is what stands behind the first hyphen.
func (s Stream) ID() string {
	_, id, _ := strings.Cut(string(s), "-")
	return id
}

// Partition is the stream's partition in a store of n: xxhash64 of the name, mod n. It is the same on every
// backend and in every version, because a stream must be found where it was once written.
func (s Stream) Partition(n int) int {
	return int(xxhash.Sum64String(string(s)) % uint64(n)) //nolint:gosec // n is at most MaxPartitions
}

// Validate says what is wrong with the name: the category is lower-case letters and digits and starts with a
// letter, the id is not empty, is valid UTF-8 and holds no control character, and both together take at most
// [MaxStreamName] bytes.
func (s Stream) Validate() error {
	if len(s) > MaxStreamName {
		return fmt.Errorf("%w: stream name is longer than %d bytes", ErrInvalid, MaxStreamName)
	}
	category := s.Category()
	if category == "" {
		return fmt.Errorf("%w: stream name has no category before a hyphen", ErrInvalid)
	}
	for i := range len(category) {
		c := category[i]
		if (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return fmt.Errorf("%w: stream category must be lower-case letters and digits", ErrInvalid)
		}
	}
	return ValidateID("stream id", s.ID(), MaxStreamName)
}

// ValidateID says what is wrong with an identifier that a client chose: it must not be empty, not be longer
// than limit bytes, be valid UTF-8 and hold no control characters. The text never repeats the value.
func ValidateID(what, id string, limit int) error {
	switch {
	case id == "":
		return fmt.Errorf("%w: %s is empty", ErrInvalid, what)
	case len(id) > limit:
		return fmt.Errorf("%w: %s is longer than %d bytes", ErrInvalid, what, limit)
	case !utf8.ValidString(id):
		return fmt.Errorf("%w: %s is not valid UTF-8", ErrInvalid, what)
	}
	for _, r := range id {
		if r < 0x20 || (r >= 0x7f && r < 0xa0) {
			return fmt.Errorf("%w: %s holds a control character", ErrInvalid, what)
		}
	}
	return nil
}
