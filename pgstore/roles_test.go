package pgstore

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
)

// put writes a document of the consumer of a role under a token.
func put(t *testing.T, s *millrace.Store, token uint64, text string) error {
	t.Helper()
	consumer := roleOf(token).String()
	doc := millrace.Document{Collection: consumer + ".d", ID: "x", Data: []byte(text)}
	return s.CommitViews(patient(t), []millrace.ViewBatch{{Consumer: consumer, Epoch: token, Puts: []millrace.Put{{Document: doc}}}})
}

func takeRole(t *testing.T, l *Leases, partition int) uint64 {
	t.Helper()
	token, ok, err := l.Acquire(patient(t), partition)
	must(t, err)
	if !ok {
		t.Fatalf("partition %d is not free for %s", partition, l.role)
	}
	return token
}

// A partition is decided by one node, followed by a second, and told of by a third. Each may do its part, and when one part goes
// to another node, that one alone is fenced.
func TestRolesHaveOwnersOfTheirOwn(t *testing.T) {
	dsn := server(t).DSN("postgres")
	a, da := node(t, dsn, "a", patientLease)
	b, db := node(t, dsn, "b", patientLease)
	c, dc := node(t, dsn, "c", patientLease)
	acquire(t, a, 0)
	feed := takeRole(t, db.Leases(Feed), 0)
	notify := takeRole(t, dc.Leases(Notify), 0)
	if feed == notify || feed == 1 || notify == 1 {
		t.Errorf("tokens %d and %d", feed, notify)
	}
	if _, ok, err := dc.Leases(Feed).Acquire(patient(t), 0); ok || err != nil {
		t.Errorf("another node has it: %v %v", ok, err)
	}
	must(t, commitOne(a, 0, decided(command("first", 0), true, 1)))
	must(t, put(t, b, feed, `"b"`))
	must(t, put(t, c, notify, `"c"`))
	// Nobody writes under what is another node's.
	for _, err := range []error{put(t, a, feed, `"a"`), put(t, b, notify, `"b"`), put(t, b, 0, `"b"`), put(t, c, feed, `"c"`), put(t, b, feed+1, `"b"`)} {
		if !errors.Is(err, millrace.ErrFenced) {
			t.Errorf("under another's lease: %v", err)
		}
	}
	// The deciding goes to another node, and the feed stays; then the other way round.
	expire(t, dsn, 0)
	acquire(t, c, 0)
	if err := commitOne(a, 0, decided(command("late", 0), true, 1)); !errors.Is(err, millrace.ErrFenced) {
		t.Errorf("a is fenced: %v", err)
	}
	must(t, put(t, b, feed, `"b still"`))
	must(t, db.Leases(Feed).Release(patient(t), 0))
	if err := put(t, b, feed, `"b"`); !errors.Is(err, millrace.ErrFenced) {
		t.Errorf("it is released: %v", err)
	}
	newer := takeRole(t, da.Leases(Feed), 0)
	if newer != feed+1 {
		t.Errorf("token %d behind %d", newer, feed)
	}
	must(t, put(t, a, newer, `"a"`))
	must(t, commitOne(c, 0, decided(command("second", 0), true, 1)))
	must(t, put(t, c, notify, `"c still"`))
	verify(t, a)
}

// lateRole has the owner of a role write a document after another node has taken the role over.
func lateRole(t *testing.T, edit func(string) string) (text string, late error) {
	t.Helper()
	dsn := server(t).DSN("postgres")
	a, da := node(t, dsn, "a", func(o *Options) { patientLease(o); o.edit = edit })
	old := takeRole(t, da.Leases(Feed), 0)
	must(t, put(t, a, old, `"a"`))
	exec(t, dsn, "update fence.leases set lease_until = '-infinity'")
	b, db := node(t, dsn, "b", patientLease)
	token := takeRole(t, db.Leases(Feed), 0)
	late = put(t, a, old, `"late"`)
	doc, err := b.Document(patient(t), "feed.d", 0, "x")
	must(t, err)
	must(t, put(t, b, token, `"b"`))
	if edit == nil && len(da.Leases(Feed).Owned()) != 0 {
		t.Error("a still thinks that it owns the partition")
	}
	return string(doc.Data), late
}

// The epoch of the role is looked at in the transaction that writes. In the control it is not, and the document is written over.
func TestFencedOwnerOfARole(t *testing.T) {
	if text, late := lateRole(t, nil); !errors.Is(late, millrace.ErrFenced) || text != `"a"` {
		t.Errorf("a fenced owner's document: %v, and it is %s", late, text)
	}
	t.Run("control", func(t *testing.T) {
		if text, late := lateRole(t, without(t, " and l.epoch = u.epoch -- the fence of a role")); late != nil || text != `"late"` {
			t.Errorf("without the fence: %v, and it is %s", late, text)
		}
	})
}

// Who is there in a role is its own matter, and so is what is free, what is renewed and what is lost.
func TestLeasesOfARole(t *testing.T) {
	dsn := server(t).DSN("postgres")
	_, da := node(t, dsn, "a", patientLease)
	_, db := node(t, dsn, "b", patientLease)
	ctx := patient(t)
	join := func(want []string, join func() ([]string, error)) {
		t.Helper()
		got, err := join()
		must(t, err)
		if !slices.Equal(got, want) {
			t.Errorf("%q are there, want %q", got, want)
		}
	}
	fa, fb := da.Leases(Feed), db.Leases(Feed)
	join([]string{"a"}, func() ([]string, error) { return da.Join(ctx) })
	join([]string{"b"}, func() ([]string, error) { return fb.Join(ctx) })
	join([]string{"a", "b"}, func() ([]string, error) { return fa.Join(ctx) })
	must(t, db.Attend(ctx, "intake"))
	members, err := db.Members(ctx)
	must(t, err)
	if d := cmp.Diff(map[string][]string{"a": {"command", "feed"}, "b": {"feed", "intake"}}, members); d != "" {
		t.Error(d)
	}
	must(t, fa.Leave(ctx))
	join([]string{"b"}, func() ([]string, error) { return fb.Join(ctx) })
	join([]string{"a"}, func() ([]string, error) { return da.Join(ctx) })

	one, two := takeRole(t, fa, 1), takeRole(t, fa, 2)
	free := func(l *Leases, want ...int) {
		t.Helper()
		got, err := l.Free(ctx)
		must(t, err)
		if !slices.Equal(got, want) {
			t.Errorf("free are %v, want %v", got, want)
		}
	}
	free(fb, 0, 3)
	free(fa, 0, 3)
	free(da.Leases(Notify), 0, 1, 2, 3)
	if lost, err := fa.Renew(ctx); err != nil || len(lost) > 0 {
		t.Errorf("lost %v %v", lost, err)
	}
	exec(t, dsn, "update fence.leases set lease_until = '-infinity' where partition = 1")
	takeRole(t, fb, 1)
	if lost, err := fa.Renew(ctx); err != nil || !slices.Equal(lost, []int{1}) || !slices.Equal(fa.Owned(), []int{2}) {
		t.Errorf("lost %v, left %v, %v", lost, fa.Owned(), err)
	}
	all, err := fb.Nodes(ctx)
	must(t, err)
	want := []Lease{{Partition: 0}, {Partition: 1, Node: "b", Epoch: epochOf(one) + 1}, {Partition: 2, Node: "a", Epoch: epochOf(two)}, {Partition: 3}}
	for i := range all {
		if (all[i].Left > 0) != (all[i].Node != "") || all[i].Left > time.Hour {
			t.Errorf("%+v", all[i])
		}
		all[i].Left = 0
	}
	if d := cmp.Diff(want, all); d != "" {
		t.Error(d)
	}
	if _, _, err := fa.Acquire(ctx, 4); !errors.Is(err, millrace.ErrInvalid) {
		t.Errorf("a partition that is not there: %v", err)
	}
}
