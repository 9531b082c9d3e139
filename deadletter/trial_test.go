package deadletter_test

import (
	"context"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/letter"
)

// A trial says what would come of redriving now, on the states as they would be then, and keeps nothing: the log stands where
// it stood.
func TestTrial(t *testing.T) {
	onStores(t, func(t *testing.T, open func(options) *world) {
		w := open(options{faulty: every})
		w.kill(add("c1", "a", 1))
		w.kill(add("c2", "a", 7))
		w.kill(add("c3", "a", 3)) // behind one that would die again
		w.kill(add("c4", "b", -1))
		w.kill(add("c5", "b", 5))
		w.kill(millrace.Command{ID: "c6", Stream: "list-c", Type: "Teleport", Data: []byte(`{}`)})
		w.kill(millrace.Command{ID: "c7", Stream: "list-d", Type: "AddNumber", Data: []byte("\xff no JSON")})
		w.kill(add("c8", "e", 8))
		w.act("e", &letter.EditDeadLetter{Letter: w.ref("c8"), By: "ann", Why: "a test", Type: "AddNumber", Data: []byte(`{"n":-8}`)})
		w.kill(add("c9", "f", 9))
		w.act("d", &letter.DiscardDeadLetter{Letter: w.ref("c9"), By: "ann", Why: "a test"})
		w.mustStop()
		w = open(options{faulty: func(n int) bool { return n == 7 }})
		defer w.mustStop()
		w.seen()
		before := w.store.Heads()
		got, err := w.s.Try(w.ctx(), &letter.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		want := &letter.Trial{
			Matched: 8, Decided: 2, Refused: map[string]int{"negative": 2}, Held: 1, Complete: true,
			Dead: map[string]int{millrace.ReasonDecide: 1, millrace.ReasonUnknownType: 1, millrace.ReasonUndecodable: 1},
		}
		if d := cmp.Diff(want, got, cmpopts.IgnoreFields(letter.Trial{}, "Causes")); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff(before, w.store.Heads()); d != "" {
			t.Error(d)
		}
		if backlog := w.store.Backlog(); backlog != 0 {
			t.Errorf("%d commands were kept", backlog)
		}
		causes, err := w.s.Causes(w.ctx(), &letter.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		kinds := map[string]int{}
		for _, c := range causes.Items {
			kinds[c.Reason+" "+c.Type+" "+c.Error] = c.Count
		}
		// Five numbers, and one cause.
		if n := kinds["decision_failed AddNumber panic: cannot add #"]; n != 5 || len(kinds) != 4 || !causes.Complete {
			t.Errorf("%v", kinds)
		}
	})
}

// An answer that takes too long says how far it has come.
func TestTrialIsBounded(t *testing.T) {
	w := start(t, options{fs: vfs.NewMem(), faulty: every})
	defer w.mustStop()
	w.kill(add("c1", "a", 1))
	ctx, cancel := context.WithCancel(w.ctx())
	cancel()
	if got, err := w.s.Try(ctx, &letter.Filter{}); err == nil {
		t.Errorf("of a request that was given up: %+v", got)
	}
}
