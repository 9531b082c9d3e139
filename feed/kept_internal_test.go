package feed

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/localstore"
)

type keptDocument struct {
	Text string `json:"text"`
}

// keptTest is a consumer's views over a store that has the documents of no commit but of the first: what a view knows of the
// others it has kept.
type keptTest struct {
	t     *testing.T
	views *views
	table *millrace.Table
}

func newKeptTest(t *testing.T) *keptTest {
	t.Helper()
	store, err := localstore.Open("data", &localstore.Options{FS: vfs.NewMem(), Partitions: 1, Fatal: func(err error) { panic(err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	table := millrace.NewTable[keptDocument]("kept", nil, nil)
	return &keptTest{t: t, table: table.Table, views: &views{
		ctx: t.Context(), store: store, consumer: &millrace.Consumer{Name: "c", Collection: func(t *millrace.Table) string { return "c." + t.Name }}, docs: map[docKey]*doc{}, kept: map[docKey]*doc{},
	}}
}

// commit puts documents of a size, and commits.
func (k *keptTest) commit(size int, ids ...string) {
	k.t.Helper()
	k.views.reset()
	for _, id := range ids {
		k.views.Save(k.table, id, &keptDocument{strings.Repeat("x", size)})
	}
	if _, err := k.views.puts(); err != nil {
		k.t.Fatal(err)
	}
	k.views.settle()
}

func (k *keptTest) has(id string) bool { return k.views.kept[docKey{k.table, id}] != nil }

// holds compares what is kept with its account.
func (k *keptTest) holds() {
	k.t.Helper()
	sum := 0
	for _, d := range k.views.kept {
		sum += d.counted
	}
	if sum != k.views.size || sum > maxKept {
		k.t.Errorf("%d bytes are kept, and %d counted", sum, k.views.size)
	}
}

// TestKeptAreBounded: kept documents have a bound in bytes, those that were used last stay, and one that is larger than all of
// the room does not stay at all.
func TestKeptAreBounded(t *testing.T) {
	k := newKeptTest(t)
	const size = maxKept / 10
	k.commit(size, "hot")
	for i := range 100 {
		k.commit(size, fmt.Sprint("cold", i))
		k.commit(size, "hot")
		k.holds()
	}
	if !k.has("hot") || !k.has("cold99") {
		t.Error("what was used last is gone")
	}
	// The control: as old as the hot one by its first use, and not used again.
	if k.has("cold0") || k.has("cold50") {
		t.Error("what was used long ago is kept")
	}
	if k.commit(maxKept+1, "huge"); k.has("huge") || len(k.views.kept) > 0 {
		t.Error("a document larger than the room is kept")
	}
	k.holds()
}

// TestKeptUsesAreBounded: a document that is used for ever does not make the list of uses grow.
func TestKeptUsesAreBounded(t *testing.T) {
	k := newKeptTest(t)
	for range 5000 {
		k.commit(10, "one")
	}
	if n := len(k.views.uses); n > 1100 || !k.has("one") {
		t.Errorf("%d uses", n)
	}
	k.holds()
}

// TestKeptAfterAFailedCommit: what a commit that came to nothing did to kept documents is forgotten with them. Where it
// succeeded they stay, which is the control.
func TestKeptAfterAFailedCommit(t *testing.T) {
	for _, fails := range []bool{true, false} {
		k := newKeptTest(t)
		k.commit(1, "a", "b")
		v, err := k.views.Load(k.table, "a")
		if err != nil {
			t.Fatal(err)
		}
		v.(*keptDocument).Text = "changed" //nolint:forcetypeassert // it is
		k.views.Save(k.table, "a", v)
		if _, err := k.views.puts(); err != nil {
			t.Fatal(err)
		}
		if !fails {
			k.views.settle()
		}
		k.views.reset()
		if v, err = k.views.Load(k.table, "a"); err != nil {
			t.Fatal(err)
		}
		if d, ok := v.(*keptDocument); ok == fails || ok && d.Text != "changed" {
			t.Errorf("fails %v: %+v", fails, v)
		}
		if k.has("b") == fails {
			t.Errorf("fails %v: the other one", fails)
		}
		k.holds()
	}
}

// TestKeptIsWhatWasPut: a document that was read and not put back, or removed, is not kept: its handler may have changed it.
func TestKeptIsWhatWasPut(t *testing.T) {
	k := newKeptTest(t)
	k.commit(1, "read", "removed", "put")
	k.views.reset()
	for _, id := range []string{"read", "removed", "put"} {
		if v, err := k.views.Load(k.table, id); err != nil || v == nil {
			t.Fatalf("%s: %v, %v", id, v, err)
		}
	}
	k.views.Remove(k.table, "removed")
	k.views.Save(k.table, "put", &keptDocument{"new"})
	if _, err := k.views.puts(); err != nil {
		t.Fatal(err)
	}
	k.views.settle()
	if k.has("read") || k.has("removed") || !k.has("put") {
		t.Errorf("read %v, removed %v, put %v", k.has("read"), k.has("removed"), k.has("put"))
	}
	k.holds()
}
