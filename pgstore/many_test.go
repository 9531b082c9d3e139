package pgstore

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/millrace-io/millrace"
)

// foundTogether checks that readers of many commands find some, wherever they lie, in the order in which they ask, and nothing for
// ids that nobody has.
func foundTogether(t *testing.T, s *millrace.Store, cs ...*millrace.Command) {
	t.Helper()
	ids, want := []string{"nobody's"}, []millrace.Command{}
	for _, c := range cs {
		ids, want = append(ids, c.ID, "nobody's"), append(want, *c)
	}
	got, err := collect(driverOf(s).Commands(patient(t), ids))
	if err != nil || !reflect.DeepEqual(got, want) { // cmp would look at every byte of the bodies
		t.Errorf("%d were found together, of %d; or others, or in another order: %v", len(got), len(want), err)
	}
}

// Many commands are read in pieces of a bounded size, whatever size each has.
func TestManyCommands(t *testing.T) {
	s := open(t, server(t).DSN("postgres"), four(t, nil))
	var cs []*millrace.Command
	var of [4][]millrace.AcceptedCommand
	for i := range 3 * maxLookups / 2 {
		c := command(fmt.Sprint("c", i), i%4)
		if i%100 == 0 { // six of them are a piece
			c.Data = bytes.Repeat([]byte("x"), commandBytes/5)
		}
		cs = append(cs, c)
		of[i%4] = append(of[i%4], accepted(c))
	}
	for p, as := range of {
		must(t, s.Accept(patient(t), p, as))
	}
	foundTogether(t, s, cs...)
}

// Who waits for a decision may be told that nobody has a command that is not decided; others who ask at the same time are told that
// it is there.
func TestOnlyDecisions(t *testing.T) {
	dsn := server(t).DSN("postgres")
	s, _ := node(t, dsn, "a", nil)
	acquire(t, s, 1)
	kept, done := command("kept", 1), command("done", 1)
	must(t, s.Accept(patient(t), 1, []millrace.AcceptedCommand{accepted(kept)}))
	must(t, commitOne(s, 1, decided(done, true, 1)))
	found := s.Lookups(patient(t), []millrace.Inquiry{
		{ID: "kept", Decided: true}, {ID: "done", Decided: true}, {ID: "nobody's", Decided: true},
	})
	if f := found[0]; f.Outcome.Done() || f.Err != nil && !errors.Is(f.Err, millrace.ErrNotFound) {
		t.Errorf("%+v", f)
	}
	if f := found[1]; f.Err != nil || f.Outcome.Status != millrace.StatusDecided {
		t.Errorf("%+v", f)
	}
	if f := found[2]; !errors.Is(f.Err, millrace.ErrNotFound) {
		t.Errorf("%+v", f)
	}
	for _, f := range s.Lookups(patient(t), []millrace.Inquiry{{ID: "kept", Decided: true}, {ID: "kept"}})[1:] {
		if f.Err != nil || f.Outcome.Status != millrace.StatusAccepted {
			t.Errorf("%+v", f)
		}
	}
}
