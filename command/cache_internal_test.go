package command

import (
	"fmt"
	"testing"

	"github.com/millrace-io/millrace"
)

// A state whose newest events are not in the store yet must stay, or the next command would be decided on an old one.
// Its neighbour without pins is the control: it goes.
func TestCacheKeepsWhatIsOnItsWay(t *testing.T) {
	c := newCache(4)
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
