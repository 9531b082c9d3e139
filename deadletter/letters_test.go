package deadletter_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/system"
	"github.com/millrace-io/millrace/internal/letter"
)

// What died of a fault of the code is sent again when the fault is mended: it is decided, under an id of its own, as a part of
// the same story, and that is the end of it.
func TestRedriveAfterTheFaultIsMended(t *testing.T) {
	onStores(t, func(t *testing.T, open func(options) *world) {
		w := open(options{faulty: every})
		w.kill(add("c1", "a", 1))
		w.kill(add("c2", "a", 2))
		if got := w.listed(letter.Filter{}, letter.Open); got != "c1 c2" {
			t.Errorf("open: %s", got)
		}
		w.mustStop()
		w = open(options{})
		defer w.mustStop()
		if o := w.redrive("k1", "c1"); o.Status != millrace.StatusDecided {
			t.Fatalf("%+v", o)
		}
		it := w.untilStatus("c1", letter.Redriven)
		if a := it.State.Answer; a == nil || a.Status != "decided" || a.Attempt != 1 {
			t.Errorf("%+v", a)
		}
		if d := cmp.Diff([]int{1}, w.numbers("a")); d != "" {
			t.Error(d)
		}
		sent, err := w.store.Command(w.ctx(), letter.SentID(letter.Stream("c1"), 1))
		if err != nil || sent.CorrelationID != "story of c1" || sent.CausationID != "deadletter-c1/1" || string(sent.Data) != `{"n":1}` {
			t.Errorf("%+v %v", sent, err)
		}
		for key, body := range map[string]any{
			"k2": &letter.RedriveDeadLetter{Letter: w.ref("c1"), By: "ann"},
			"k3": &letter.EditDeadLetter{Letter: w.ref("c1"), By: "ann", Why: "no", Type: "AddNumber", Data: []byte(`{}`)},
			"k4": &letter.DiscardDeadLetter{Letter: w.ref("c1"), By: "ann", Why: "no"},
		} {
			if o := w.act(key, body); o.Refusal == nil || o.Refusal.Code != system.CodeLetterRedriven {
				t.Errorf("%T of what is redriven: %+v", body, o)
			}
		}
		if o := w.redrive("k1", "c1"); o.Status != millrace.StatusDecided { // the same request again
			t.Errorf("%+v", o)
		}
		if got := w.listed(letter.Filter{}, letter.Open) + "/" + w.listed(letter.Filter{}, letter.Redriven); got != "c2/c1" {
			t.Errorf("open and redriven: %s", got)
		}
		if o := w.act("k5", &letter.DiscardDeadLetter{Letter: w.ref("c2"), By: "ann", Why: "a test"}); o.Status != millrace.StatusDecided {
			t.Errorf("%+v", o)
		}
		if o := w.redrive("k6", "c2"); o.Refusal == nil || o.Refusal.Code != system.CodeLetterDiscarded {
			t.Errorf("a discarded one: %+v", o)
		}
	})
}

// What dies again is open again, with the new failure, and no dead letter of its own.
func TestDiedAgain(t *testing.T) {
	onStores(t, func(t *testing.T, open func(options) *world) {
		w := open(options{faulty: every})
		w.kill(add("c1", "a", 1))
		for n := 1; n <= 2; n++ {
			w.redrive(strings.Repeat("k", n), "c1")
			w.until("it died again", func() bool { st := w.item("c1").State; return st.Answer != nil && st.Answer.Attempt == n })
			it := w.item("c1")
			if a := it.State.Answer; it.Status() != letter.Open || a.Status != "dead" || a.Code != millrace.ReasonDecide || !strings.Contains(a.Error, "cannot add 1") {
				t.Errorf("%+v %+v", it.State, a)
			}
		}
		if got := w.listed(letter.Filter{}, ""); got != "c1" {
			t.Errorf("listed: %s", got)
		}
		if _, _, err := w.s.Get(w.ctx(), letter.SentID(letter.Stream("c1"), 1)); err == nil {
			t.Error("an attempt is a dead letter of its own")
		}
		w.mustStop()
		w = open(options{})
		defer w.mustStop()
		w.redrive("k3", "c1")
		if a := w.untilStatus("c1", letter.Redriven).State.Answer; a.Attempt != 3 || a.Status != "decided" {
			t.Errorf("%+v", a)
		}
		if d := cmp.Diff([]int{1}, w.numbers("a")); d != "" {
			t.Error(d)
		}
	})
}

// An edit is sent in place of what came, the newest one where there are several; what came is kept.
func TestEditIsSentInPlaceOfTheOriginal(t *testing.T) {
	onStores(t, func(t *testing.T, open func(options) *world) {
		w := open(options{faulty: func(n int) bool { return n == 1 }})
		defer w.mustStop()
		w.kill(add("c1", "a", 1))
		w.act("e1", &letter.EditDeadLetter{Letter: w.ref("c1"), By: "ann", Why: "a typing error", Type: "AddNumber", Data: []byte(`{"n": 5}`)})
		w.act("e2", &letter.EditDeadLetter{Letter: w.ref("c1"), By: "bob", Why: "another", Type: "AddNumber", Data: []byte(`{"n": 6}`)})
		it := w.item("c1")
		if string(it.Letter.Data) != `{"n":1}` || string(it.State.Edit.Data) != `{"n":6}` || it.State.Edits != 2 {
			t.Errorf("%s, edited %+v", it.Letter.Data, it.State)
		}
		w.redrive("k1", "c1")
		w.untilStatus("c1", letter.Redriven)
		if d := cmp.Diff([]int{6}, w.numbers("a")); d != "" {
			t.Error(d)
		}
	})
}

// An edit and what came are never both sent, also where somebody edits what another one is redriving. The control has rules
// that let everything be done at any time, and sends both.
func TestEditAndOriginalAreNeverBothSent(t *testing.T) {
	try := func(rules []millrace.Definition) []int {
		fs := vfs.NewMem()
		w := start(t, options{fs: fs, faulty: every})
		w.kill(add("c1", "a", 1))
		w.mustStop()
		w = start(t, options{fs: fs, system: rules, paused: true}) // nobody has sent it yet
		w.redrive("k1", "c1")
		w.act("k2", &letter.EditDeadLetter{Letter: w.ref("c1"), By: "ann", Why: "wrong", Type: "AddNumber", Data: []byte(`{"n": 7}`)})
		w.redrive("k3", "c1")
		w.mustStop()
		w = start(t, options{fs: fs, system: rules})
		defer w.mustStop()
		w.untilStatus("c1", letter.Redriven)
		return w.numbers("a")
	}
	if d := cmp.Diff([]int{1}, try(system.Domains())); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]int{1, 7}, try(lenientRules(t))); d != "" {
		t.Errorf("without the rule not both are sent: %s", d)
	}
}

// lenientRules let everything be done with a dead letter at any time.
func lenientRules(t *testing.T) []millrace.Definition {
	t.Helper()
	strict, err := millrace.NewRegistry(system.Domains()...)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := strict.Category(letter.Stream("x"))
	all := system.Domains()
	i := slices.IndexFunc(all, func(d millrace.Definition) bool { _, ok := d.(millrace.Domain[*letter.State]); return ok })
	d := all[i].(millrace.Domain[*letter.State]) //nolint:forcetypeassert // as found
	d.Decide = func(s *letter.State, command any, at time.Time) ([]any, *millrace.Refusal) {
		if _, ok := command.(*letter.RecordRedrive); !ok {
			open := *s
			open.Status = letter.Open
			s = &open
		}
		return c.Decide(s, command, at)
	}
	all[i] = d
	return all
}

// A list shows each dead letter with what was done with it, whichever index it is read by and wherever it is continued, and
// leaves out what a filter excludes.
func TestScan(t *testing.T) {
	onStores(t, func(t *testing.T, open func(options) *world) {
		w := open(options{faulty: every})
		var all []string
		for i := range 12 {
			id := fmt.Sprintf("c%02d", i)
			all = append(all, id)
			c := add(id, fmt.Sprint("l", i%3), 1)
			if i%4 == 0 {
				c.Type = "Teleport"
			}
			w.kill(c)
			if i%5 == 0 {
				w.act("d"+id, &letter.DiscardDeadLetter{Letter: w.ref(id), By: "ann", Why: "a test"})
			}
		}
		defer w.mustStop()
		half := w.item("c06").Letter.AcceptedAt
		for _, c := range []struct {
			f               letter.Filter
			open, discarded string
		}{
			{letter.Filter{}, "c01 c02 c03 c04 c06 c07 c08 c09 c11", "c00 c05 c10"},
			{letter.Filter{Reason: millrace.ReasonUnknownType}, "c04 c08", "c00"},
			{letter.Filter{Stream: "list-l1"}, "c01 c04 c07", "c10"},
			{letter.Filter{Stream: "list-l1", Reason: millrace.ReasonDecide}, "c01 c07", "c10"},
			{letter.Filter{Type: "Teleport"}, "c04 c08", "c00"},
			{letter.Filter{Source: "elsewhere"}, "", ""},
			{letter.Filter{From: half}, "c06 c07 c08 c09 c11", "c10"},
			{letter.Filter{To: half, Reason: millrace.ReasonDecide}, "c01 c02 c03", "c05"},
		} {
			if got := w.listed(c.f, letter.Open); got != c.open {
				t.Errorf("%+v, open: %s, want %s", c.f, got, c.open)
			}
			if got := w.listed(c.f, letter.Discarded); got != c.discarded {
				t.Errorf("%+v, discarded: %s, want %s", c.f, got, c.discarded)
			}
			// One by one, each time from where the last one stood.
			var after *millrace.Place
			var ids []string
			for more := true; more; {
				more = false
				for it, err := range w.s.Scan(t.Context(), c.f.Order(), after) {
					if err != nil {
						t.Fatal(err)
					}
					more, after = true, &it.Place
					if discarded := it.Status() == letter.Discarded; discarded != slices.Contains([]string{"c00", "c05", "c10"}, it.Letter.CommandID) {
						t.Errorf("%+v: %s is %s", c.f, it.Letter.CommandID, it.Status())
					}
					if c.f.Fits(it.Letter) {
						ids = append(ids, it.Letter.CommandID)
					}
					break
				}
			}
			want := strings.Fields(c.open + " " + c.discarded)
			slices.Sort(want)
			if d := cmp.Diff(want, ids, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%+v: %s", c.f, d)
			}
		}
		if d := cmp.Diff(strings.Join(all, " "), w.listed(letter.Filter{}, "")); d != "" {
			t.Error(d)
		}
		w.untilStatus("c05", letter.Discarded)
	})
}
