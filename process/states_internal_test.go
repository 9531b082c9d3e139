package process

import (
	"testing"

	"github.com/millrace-io/millrace"
)

// committed is a commit of some instances whose states have a size.
func committed(w *work, n, size int) (docs []*millrace.Instance) {
	for range n {
		doc := &millrace.Instance{Stream: "job-1", Version: 1, Data: make([]byte, size)}
		w.order = append(w.order, &instance{w: w, doc: doc, state: doc})
		docs = append(docs, doc)
	}
	w.keepStates()
	w.order = nil
	return docs
}

// TestStatesAreBounded: states are kept up to a number and up to what they are of, and an instance whose state cannot be read
// has none.
func TestStatesAreBounded(t *testing.T) {
	w := newWork(&Manager{})
	for range 3 * maxStates / 100 {
		docs := committed(w, 100, 1)
		if len(w.states) > maxStates || w.states[docs[99]] != any(docs[99]) {
			t.Fatalf("%d states", len(w.states))
		}
	}
	w = newWork(&Manager{})
	const size = maxStateBytes / 10
	for n := range 100 {
		docs := committed(w, 1, size)
		// The control: as many fit as there is room for.
		if want := n%10 + 1; len(w.states) != want || w.states[docs[0]] == nil {
			t.Fatalf("%d states of a tenth of the room, want %d", len(w.states), want)
		}
	}
	w.order = []*instance{{w: w, doc: &millrace.Instance{Stream: "job-2", Version: 1}, unread: millrace.ErrCorrupt}}
	before := len(w.states)
	if w.keepStates(); len(w.states) != before {
		t.Error("a state that cannot be read is kept")
	}
}
