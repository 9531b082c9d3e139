package localstore

import (
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/bloom"
)

// filter says of most keys that are not in the index that they are not, without asking Pebble. Nearly every command
// is new, and so are most streams, and to find that out Pebble looks through its memory tables each time: two
// look-ups took a fifth of a decision.
//
// Keys are added before they become visible in the index, so a "no" is always right. A filter of an existing store
// is filled in the background after Open; until then it says "maybe" to everything.
type filter struct {
	keys  *bloom.Filter
	ready atomic.Bool
}

// filterBytes is the filter's size: ten bits each for 26 million keys. With more keys it says "maybe" more often, and
// Pebble, which has filters of its own, answers.
const filterBytes = 32 << 20

func newFilter(bytes int) *filter { return &filter{keys: bloom.New(bytes)} }

func (f *filter) add(key []byte) { f.keys.Add(xxhash.Sum64(key)) }

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
func (f *filter) absent(key []byte) bool { return f.ready.Load() && f.keys.Absent(xxhash.Sum64(key)) }

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
