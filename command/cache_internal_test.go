package command

import (
	"fmt"
	"testing"

	"github.com/millrace-io/millrace"
)

// A state whose newest events are not in the store yet must stay, or the next command would be decided on an old one.
// Its neighbour without pins is the control: it goes.
func TestCacheKeepsWhatIsOnItsWay(t *testing.T) {
	c := newCache(4, 1<<20)
	put := func(s string) *entry {
		e := &entry{stream: millrace.Stream(s)}
		c.add(e)
		return e
	}
	pinned := put("pinned")
	pinned.pins.Add(1)
	put("control")
	for i := range 20 {
		put(fmt.Sprint("other", i))
	}
	if c.get("pinned") != pinned {
		t.Error("a pinned state was dropped")
	}
	if c.get("control") != nil {
		t.Error("the cache grows beyond its bound")
	}
	if n := len(c.entries); n > 5 {
		t.Errorf("%d entries", n)
	}
	pinned.pins.Add(-1)
	for i := range 20 {
		put(fmt.Sprint("more", i))
	}
	if c.get("pinned") != nil {
		t.Error("a state that is needed no more stays")
	}
	// The least recently used one goes first.
	put("a")
	put("b")
	put("c")
	put("d")
	c.get("a")
	put("e")
	if c.get("a") == nil || c.get("b") != nil {
		t.Error("not the least recently used one was dropped")
	}
	n := 0
	for e := c.root.next; e != &c.root; e = e.next {
		n++
	}
	if n != len(c.entries) {
		t.Errorf("%d entries in the ring, %d in the map", n, len(c.entries))
	}
}

// A few large states must not take the room of many small ones: the cache counts what they stand for.
func TestCacheIsBoundedByWeight(t *testing.T) {
	c := newCache(1000, 100*entryWeight)
	large := &entry{stream: "large"}
	c.add(large)
	c.grow(large, 40*entryWeight)
	for i := range 200 {
		c.add(&entry{stream: millrace.Stream(fmt.Sprint("small", i))})
		c.get("large")
	}
	if n := len(c.entries); n < 50 || n > 61 {
		t.Errorf("%d entries beside one that takes the room of 40", n)
	}
	sum := 0
	for e := c.root.next; e != &c.root; e = e.next {
		sum += entryWeight + e.weight
	}
	if sum != c.weight || sum > c.bytes {
		t.Errorf("weight %d, counted %d, bound %d", sum, c.weight, c.bytes)
	}
}

// Many small events replace each other in a state; a large one stays in it.
func TestWeigh(t *testing.T) {
	w := 0
	for range 1_000_000 {
		w = weigh(w, 100)
	}
	if w != manySmall {
		t.Errorf("a hot stream weighs %d", w)
	}
	if got := weigh(w, 500_000); got != w+500_000 {
		t.Errorf("a large event weighs %d", got-w)
	}
}
