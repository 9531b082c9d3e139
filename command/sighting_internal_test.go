package command

import (
	"fmt"
	"testing"

	"github.com/millrace-io/millrace"
)

// What was dropped since a mark is never missed, however much was dropped; what was dropped before it does not count.
func TestDropsSince(t *testing.T) {
	d := newDrops()
	if d.since("a", 0) {
		t.Error("nothing was dropped")
	}
	d.add("a")
	mark := d.count.Load()
	if !d.since("a", mark-1) || d.since("a", mark) || d.since("b", mark-1) {
		t.Error("a drop, and no other, comes after the mark before it and not after its own")
	}
	for i := range 3 * maxDrops {
		at := d.count.Load()
		d.add(millrace.Stream(fmt.Sprint("s", i)))
		for back := range uint64(min(i+1, 5)) {
			if s := millrace.Stream(fmt.Sprint("s", uint64(i)-back)); !d.since(s, at-back) {
				t.Fatalf("the drop of %s was forgotten", s)
			}
		}
	}
	if !d.since("a", mark) {
		t.Error("a mark so old that drops after it are forgotten counts")
	}
	if n := len(d.now) + len(d.before); n > 2*maxDrops {
		t.Errorf("%d drops are remembered", n)
	}
}
