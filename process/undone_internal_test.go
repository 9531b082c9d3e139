package process

import (
	"testing"

	"github.com/millrace-io/millrace"
)

// looked are the documents of a partition in which an instance is looked for, and nothing is found.
type looked struct {
	millrace.Views
	times int
}

func (l *looked) Load(*millrace.Table, string) (any, error) {
	l.times++
	return nil, nil //nolint:nilnil // as said
}

// TestUndoneIsForgotten: a stream that is seen at its first event has no instance, and nobody looks for one. Where the commit with
// that event came to nothing, that is not known any more: it may have come to something after all, its answer lost. The control is a
// commit that did not come to nothing.
func TestUndoneIsForgotten(t *testing.T) {
	p, err := millrace.Process[string]{
		Name: "passing", Category: "job",
		Initial: func(millrace.Stream) string { return "" },
		Evolve:  func(s string, _ *millrace.Input) string { return s },
		React:   func(string) millrace.Reaction { return millrace.Reaction{} },
	}.Manager()
	if err != nil {
		t.Fatal(err)
	}
	for _, undone := range []bool{false, true} {
		w := newWork(New(nil, nil, nil, p, nil))
		v := new(looked)
		if err := w.Handle(t.Context(), v, &millrace.Recorded{Stream: "job-1", Version: 1}); err != nil || v.times > 0 {
			t.Fatalf("looked for %d times (%v)", v.times, err)
		}
		end, want := w.Committed, 0
		if undone {
			end, want = w.Undone, 1
		}
		end()
		if i, err := w.load(v, 0, "job-1", false); i != nil || err != nil || v.times != want {
			t.Errorf("undone: %t, looked for %d times, want %d (%v, %v)", undone, v.times, want, i, err)
		}
	}
}
