package pgstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
)

// A node that has found nothing for long takes the commands of a large call for new without asking. Where they are not, since
// another node has had them, or has begun their streams, nobody is told anything else than had it asked, and those that came
// with them are decided in their order. The control takes the key away that refuses a version that is there: then a stream has
// two first events.
func TestWrongGuesses(t *testing.T) {
	for _, guarded := range []bool{true, false} {
		t.Run(fmt.Sprintf("guarded %v", guarded), func(t *testing.T) { testWrongGuesses(t, guarded) })
	}
}

func testWrongGuesses(t *testing.T, guarded bool) {
	dsn := server(t).DSN("postgres")
	open := func(o *Options) {
		o.Poll, o.NoListen = 5*time.Millisecond, false
		if !guarded {
			o.edit = instead(t, "unique (partition, stream, version)", "check (version > 0)")
		}
	}
	a, pa := nodeOf(t, dsn, "a", open)
	b, pb := nodeOf(t, dsn, "b", open)
	ctx := patient(t)
	all := func(p millrace.Intake, cs ...millrace.Command) []millrace.Accepted {
		t.Helper()
		as := p.AcceptAll(ctx, cs)
		for _, x := range as {
			if x.Err == nil {
				_, err := x.Receipt.Wait(ctx)
				must(t, err)
			}
		}
		return as
	}
	stop := make([]func(), b.Partitions())
	for p := range stop {
		stop[p] = serve(t, b, pb, p)
	}
	all(pb, addTo("old same", "s1"), addTo("old other", "s2"), addTo("old stream", "s3"))
	for p := range stop {
		stop[p]()
		defer serve(t, a, pa, p)()
	}
	// Every inquiry of a command that the owner looks up names its stream.
	look := &driverOf(a).look
	var asked atomic.Int64
	find := look.ask
	look.ask = func(ctx context.Context, batch []*question[lookup]) error {
		for _, q := range batch {
			if q.q.Stream != "" {
				asked.Add(1)
			}
		}
		return find(ctx, batch)
	}
	for s := range a.Partitions() {
		direct(t, a, pa, streamIn(a, s))
	}
	sent := 0
	fresh := func(n int) (cs []millrace.Command) {
		for range n {
			sent++
			cs = append(cs, addTo(fmt.Sprint("new", sent), fmt.Sprint("new", sent)))
		}
		return cs
	}
	for before := int64(-1); asked.Load() != before; {
		if sent > 20_000 {
			t.Fatal("it asks all the time")
		}
		before = asked.Load()
		all(pa, fresh(1000)...)
	}
	other := addTo("old other", "s2")
	other.Data = []byte(`{"n":5}`)
	known := []millrace.Command{addTo("old same", "s1"), other}
	if !guarded {
		known = nil
	}
	many := append(fresh(50), append(known, addTo("one", "s3"), addTo("two", "s3"), addTo("a", "t"))...)
	many = append(append(many, fresh(50)...), addTo("b", "t"))
	before := asked.Load()
	as := all(pa, many...)
	if asked.Load() != before {
		t.Fatal("it has asked")
	}
	for i, x := range as {
		switch id := many[i].ID; {
		case id == "old other":
			if !errors.Is(x.Err, millrace.ErrKeyReused) {
				t.Errorf("the same id with another content: %v", x.Err)
			}
		case x.Err != nil:
			t.Errorf("%s: %v", id, x.Err)
		case x.Receipt.Replayed != (id == "old same"):
			t.Errorf("%s: replayed %v", id, x.Receipt.Replayed)
		}
	}
	problems := 0
	must(t, a.Verify(ctx, func(problem string) {
		if problems++; guarded {
			t.Error(problem)
		}
	}))
	if !guarded {
		if problems == 0 {
			t.Error("it makes no difference")
		}
		return
	}
	got := strings.Join(decidedBy(t, a, "s3"), " ") + ", " + strings.Join(decidedBy(t, a, "t"), " ")
	if got != "old stream one two, a b" {
		t.Errorf("decided: %s", got)
	}
	before = asked.Load()
	if all(pa, fresh(10)...); asked.Load() != before+10 {
		t.Error("after a wrong guess it does not ask")
	}
}

// streamIn is a tally in a partition.
func streamIn(s *millrace.Store, partition int) string {
	for i := 0; ; i++ {
		if name := fmt.Sprint("in", i); millrace.NewStream("tally", name).Partition(s.Partitions()) == partition {
			return name
		}
	}
}
