package localstore

import (
	"slices"
	"sync"

	"github.com/millrace-io/millrace"
)

// tail is the newest part of the feed in memory, for readers who keep up, and the store's visible head.
type tail struct {
	mu      sync.Mutex
	head    durable // without requests
	heads   []millrace.Head
	batches []tailBatch // contiguous, the newest last
	start   []uint64    // the positions before the first of batches
	events  int
	bytes   int
	moved   chan struct{} // closed when the head moves; nil while nobody waits
	closed  bool
}

// tailBatch is one batch of the journal with its events decoded.
type tailBatch struct {
	seq    uint64
	end    loc
	events []millrace.Recorded
	bytes  int
}

func (t *tail) init(_ loc, heads []millrace.Head, head durable) {
	t.head, t.heads = head, slices.Clone(heads)
	t.start = positions(heads)
}

func positions(heads []millrace.Head) []uint64 {
	out := make([]uint64, len(heads))
	for i, h := range heads {
		out[i] = h.Position
	}
	return out
}

// push makes a durable batch visible.
func (t *tail) push(b *durable, events int, heads []millrace.Head) {
	tb := tailBatch{seq: b.seq, end: b.end}
	if events > 0 {
		tb.events = make([]millrace.Recorded, 0, events)
		for _, r := range b.reqs {
			for i := range r.batch.Decisions {
				tb.events = append(tb.events, r.batch.Decisions[i].Recorded(r.batch.Partition)...)
			}
		}
		for i := range tb.events {
			tb.bytes += len(tb.events[i].Data)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.head = durable{seq: b.seq, end: b.end, chain: b.chain}
	t.heads = append(t.heads[:0], heads...)
	t.batches = append(t.batches, tb)
	t.events += len(tb.events)
	t.bytes += tb.bytes
	drop := 0
	for t.events > tailEvents || t.bytes > tailBytes || len(t.batches)-drop > tailEvents {
		old := &t.batches[drop]
		for i := range old.events {
			t.start[old.events[i].Partition] = old.events[i].Position
		}
		t.events -= len(old.events)
		t.bytes -= old.bytes
		*old = tailBatch{}
		drop++
	}
	t.batches = t.batches[drop:]
	if t.moved != nil {
		close(t.moved)
		t.moved = nil
	}
}

// last is the visible head.
func (t *tail) last() (durable, []millrace.Head) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.head, slices.Clone(t.heads)
}

// wait returns a channel that is closed when the head moves beyond seq; closed at once where it has already, or where
// the store is closed.
func (t *tail) wait(seq uint64) (moved <-chan struct{}, closed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, true
	}
	if t.moved == nil {
		t.moved = make(chan struct{})
	}
	if t.head.seq > seq {
		done := make(chan struct{})
		close(done)
		return done, false
	}
	return t.moved, false
}

// wake ends all waiting for good.
func (t *tail) wake() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.moved != nil {
		close(t.moved)
		t.moved = nil
	}
}

// begin says behind which batch a reader of the tail must start to miss nothing behind the cursor; ok is false
// where that is older than the tail.
func (t *tail) begin(after millrace.Cursor) (seq uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p, pos := range t.start {
		if after.Position(p) < pos {
			return 0, false
		}
	}
	if len(t.batches) == 0 {
		return t.head.seq, true
	}
	return t.batches[0].seq - 1, true
}

// read appends the events of the batches behind seq to dst, up to most events (at least one batch), and returns the
// last batch read. ok is false where the tail no longer holds the batch behind seq.
func (t *tail) read(seq uint64, dst []millrace.Recorded, most int) (out []millrace.Recorded, last uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if seq >= t.head.seq {
		return dst, seq, true
	}
	if len(t.batches) == 0 || t.batches[0].seq > seq+1 {
		return dst, seq, false
	}
	for i := int(seq + 1 - t.batches[0].seq); i < len(t.batches); i++ { //nolint:gosec // within the tail
		b := &t.batches[i]
		if len(dst) > 0 && len(dst)+len(b.events) > most {
			break
		}
		dst = append(dst, b.events...)
		seq = b.seq
	}
	return dst, seq, true
}
