package command

import (
	"sync/atomic"

	"github.com/millrace-io/millrace"
)

// sighting is a stream's version as the store had it when a command for it came in: asked together with the command's id, so
// that the loop need not ask again. It still holds where all that this node has decided since is in the loop's memory:
//
//   - the loop has served the partition ever since (served), or another node may have moved the stream on;
//   - the stream was not dropped from memory since (drops): while it was there, more may have been decided.
//
// What was dropped before was durable by then, so that the look into the store saw it.
type sighting struct {
	served  uint64 // 0: none
	drops   uint64
	version uint64
}

// inquiry is what the store is asked about a new item. The marks are taken before it is asked.
func (p *Processor) inquiry(it *item) millrace.Inquiry {
	q := millrace.Inquiry{ID: it.cmd.ID}
	if !p.direct {
		return q
	}
	s := p.parts[it.partition]
	if it.seen.served = s.served.Load(); it.seen.served != 0 {
		it.seen.drops = s.drops.count.Load()
		q.Stream = it.cmd.Stream
	}
	return q
}

// holds says whether what was seen of an item's stream, which is not in memory, is what the store has now.
func (s *partition) holds(it *item) bool {
	return it.seen.served != 0 &&
		(it.seen.served == s.served.Load() && !s.drops.since(it.cmd.Stream, it.seen.drops) || s.p.trusting)
}

// maxDrops is how many of the streams that were dropped are remembered, twice: as many as come in and are dropped again while
// a command waits for its loop. Older sightings count for nothing.
const maxDrops = 4096

// drops are the streams that were lately dropped from memory. Only the loop touches it, but for count.
type drops struct {
	count       atomic.Uint64
	now, before map[millrace.Stream]uint64 // the count at each stream's last drop
	begin, from uint64                     // the counts from which on they have all
}

func newDrops() *drops { return &drops{now: map[millrace.Stream]uint64{}} }

func (d *drops) add(s millrace.Stream) {
	n := d.count.Add(1)
	if d.now[s] = n; len(d.now) >= maxDrops {
		d.before, d.from = d.now, d.begin
		d.now, d.begin = map[millrace.Stream]uint64{}, n
	}
}

// since says whether a stream may have been dropped since a count was taken.
func (d *drops) since(s millrace.Stream, count uint64) bool {
	return count < d.from || d.now[s] > count || d.before[s] > count
}
