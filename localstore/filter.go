package localstore

import (
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"

	"github.com/millrace-io/millrace"
)

// filter says of most keys that are not in the index that they are not, without asking Pebble. Nearly every command
// is new, and so are most streams, and to find that out Pebble looks through its memory tables each time: two
// look-ups took a fifth of a decision. It is a Bloom filter whose probes for one key lie in one cache line.
//
// Keys are added before they become visible in the index, so a "no" is always right. A filter of an existing store
// is filled in the background after Open; until then it says "maybe" to everything.
type filter struct {
	blocks [][filterBlock]atomic.Uint64
	ready  atomic.Bool
}

const (
	// filterBlock words are a cache line.
	filterBlock = 8
	// filterBytes is the filter's size: ten bits each for 26 million keys. With more keys it says "maybe" more often, and
	// Pebble, which has filters of its own, answers.
	filterBytes = 32 << 20
	// filterProbes bits are set for a key: enough for one error in a hundred at ten bits a key.
	filterProbes = 6
)

func newFilter(bytes int) *filter {
	return &filter{blocks: make([][filterBlock]atomic.Uint64, max(bytes/(8*filterBlock), 1))}
}

// line finds a key's cache line and the bits that it has there. The high half of the hash names the line; the whole of
// it, stirred, gives nine bits for each probe.
func (f *filter) line(key []byte) (line *[filterBlock]atomic.Uint64, bits uint64) {
	h := xxhash.Sum64(key)
	return &f.blocks[(h>>32)*uint64(len(f.blocks))>>32], h * 0x9e3779b97f4a7c15
}

func (f *filter) add(key []byte) {
	line, bits := f.line(key)
	for range filterProbes {
		word, bit := &line[bits>>61], uint64(1)<<(bits>>55&63)
		if word.Load()&bit == 0 {
			word.Or(bit)
		}
		bits = bits<<9 | bits>>55
	}
}

// absentCommand and absentStream keep the key on the stack, which Pebble would not let them.
func (f *filter) absentCommand(id string) bool {
	var buf [128]byte
	return f.absent(commandKey(buf[:0], id))
}

func (f *filter) absentStream(s millrace.Stream) bool {
	var buf [256]byte
	return f.absent(appendStream(buf[:0], s))
}

// absent says that a key is certainly not in the index.
func (f *filter) absent(key []byte) bool {
	if !f.ready.Load() {
		return false
	}
	line, bits := f.line(key)
	for range filterProbes {
		if line[bits>>61].Load()&(1<<(bits>>55&63)) == 0 {
			return true
		}
		bits = bits<<9 | bits>>55
	}
	return false
}

// fill adds what the index holds and makes the filter answer. Keys that are added meanwhile are in it already.
func (f *filter) fill(db *pebble.DB, stop <-chan struct{}) error {
	// A span's key is the stream's, a NUL and a version.
	for _, k := range []struct {
		kind byte
		tail int
	}{{keyCommand, 0}, {keySpan, 1 + 8}} {
		prefix := []byte{k.kind}
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: prefixEnd(prefix)})
		if err != nil {
			return indexError(err)
		}
		n := 0
		for ok := it.First(); ok; ok = it.Next() {
			f.add(it.Key()[:max(len(it.Key())-k.tail, 1)])
			if n++; n%4096 == 0 {
				select {
				case <-stop:
					return it.Close()
				default:
				}
			}
		}
		if err := it.Close(); err != nil {
			return indexError(err)
		}
	}
	f.ready.Store(true)
	return nil
}
