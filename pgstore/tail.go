package pgstore

import (
	"sync"

	"github.com/millrace-io/millrace"
)

// The bounds of the newest events of own partitions that are kept in memory for readers who keep up, over all
// partitions; each has its equal part.
const (
	tailEvents = 32 << 10
	tailBytes  = 32 << 20
)

// tail is the newest part of a partition's log in memory.
type tail struct {
	mu     sync.Mutex
	start  uint64 // the position before the first of events
	events []millrace.Recorded
	bytes  int

	mostEvents, mostBytes int
}

func newTails(n int) []tail {
	out := make([]tail, n)
	for i := range out {
		out[i].mostEvents, out[i].mostBytes = max(tailEvents/n, 64), max(tailBytes/n, 64<<10)
	}
	return out
}

// push appends events; where they do not continue what is there, they are all there is.
func (t *tail) push(events []millrace.Recorded) {
	if len(events) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if events[0].Position != t.start+uint64(len(t.events))+1 {
		t.start, t.events, t.bytes = events[0].Position-1, nil, 0
	}
	t.events = append(t.events, events...)
	for i := range events {
		t.bytes += len(events[i].Data)
	}
	drop := 0
	for len(t.events)-drop > t.mostEvents || t.bytes > t.mostBytes && drop < len(t.events) {
		t.bytes -= len(t.events[drop].Data)
		t.events[drop] = millrace.Recorded{}
		drop++
	}
	t.start += uint64(drop)
	t.events = t.events[drop:]
}

// read appends up to most events behind a position and up to another; ok is false where the tail does not hold them.
func (t *tail) read(dst []millrace.Recorded, after, until uint64, most int) (out []millrace.Recorded, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	end := t.start + uint64(len(t.events))
	if after < t.start || after >= end {
		return dst, false
	}
	n := min(min(until, end)-after, uint64(max(most, 0)))
	from := after - t.start
	return append(dst, t.events[from:from+n]...), true
}
