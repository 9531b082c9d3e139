package command

import (
	"sync/atomic"

	"github.com/millrace-io/millrace"
)

// entry is the state of one stream as its loop sees it: ahead of the store by what is on its way to the disk.
type entry struct {
	stream   millrace.Stream
	category *millrace.Category
	folded
	// guessed: version 0 is a guess, and nothing was decided on it yet.
	guessed bool
	// pins counts commits on their way. The store does not know their events yet, so the entry must not be dropped.
	pins       atomic.Int32
	prev, next *entry
}

// cache keeps the states of a partition's most recently used streams. Only the loop touches it, but for pins.
type cache struct {
	streams int    // the most entries
	bytes   int    // the most weight
	weight  int    // of all entries
	drops   *drops // is told what is dropped; nil where nobody asks
	entries map[millrace.Stream]*entry
	root    entry // of the ring; root.next is the most recently used
}

func newCache(streams, bytes int) *cache {
	c := &cache{streams: streams, bytes: bytes, entries: map[millrace.Stream]*entry{}}
	c.root.prev, c.root.next = &c.root, &c.root
	return c
}

func (c *cache) get(s millrace.Stream) *entry {
	e := c.entries[s]
	if e != nil {
		e.unlink()
		c.front(e)
	}
	return e
}

// entryWeight is what an entry takes besides the bytes that its state stands for.
const entryWeight = 512

// add puts an entry in and drops the least recently used ones that nobody needs. The cache may grow beyond its bounds
// by what is pinned, which the number of commands in flight bounds.
func (c *cache) add(e *entry) {
	c.entries[e.stream] = e
	c.weight += entryWeight + e.weight
	c.front(e)
	c.trim(e)
}

// grow counts an event into an entry's weight.
func (c *cache) grow(e *entry, event int) {
	before := e.weight
	e.weight = weigh(before, event)
	if c.entries[e.stream] == e {
		c.weight += e.weight - before
	}
}

// trim drops entries while there are too many, but for one that is in use.
func (c *cache) trim(keep *entry) {
	for old := c.root.prev; (len(c.entries) > c.streams || c.weight > c.bytes) && old != &c.root; {
		before := old.prev
		if old != keep && old.pins.Load() == 0 {
			c.drop(old)
		}
		old = before
	}
}

func (c *cache) drop(e *entry) {
	e.unlink()
	delete(c.entries, e.stream)
	c.weight -= entryWeight + e.weight
	if c.drops != nil {
		c.drops.add(e.stream)
	}
}

func (e *entry) unlink() { e.prev.next, e.next.prev = e.next, e.prev }

func (c *cache) front(e *entry) {
	e.prev, e.next = &c.root, c.root.next
	e.prev.next, e.next.prev = e, e
}
