package transfer_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/pgstore"
	"github.com/millrace-io/millrace/transfer"
)

// From one machine to PostgreSQL and back: the same answers in all three, the same positions and chains, and a cursor that
// one of them gave is good in the others. Commands that waited are decided in the copy.
func TestToPostgresAndBack(t *testing.T) {
	server := pgtest.Start(t, pgtest.Options{NoSync: true})
	from := local(t, vfs.NewMem(), localstore.Options{Partitions: 4})
	lived(t, from)
	want := dump(t, from)
	meta := from.Meta()

	shared, err := pgstore.Open(patient(t), server.DSN("postgres"), &pgstore.Options{OwnAll: true, NoSync: true, Copy: &meta})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = shared.Close() }()
	there, err := transfer.Copy(patient(t), from, shared, transfer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(want, "\n"), strings.Split(dump(t, shared), "\n")); d != "" {
		t.Errorf("PostgreSQL has something else:\n%s", d)
	}

	home := local(t, vfs.NewMem(), localstore.Options{Copy: &meta})
	back, err := transfer.Copy(patient(t), shared, home, transfer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if there.Decisions != back.Decisions || there.Events != back.Events || there.Pending != back.Pending || there.Documents != back.Documents {
		t.Errorf("there %+v\nand back %+v", there, back)
	}
	if d := cmp.Diff(strings.Split(want, "\n"), strings.Split(dump(t, home), "\n")); d != "" {
		t.Errorf("what comes back is something else:\n%s", d)
	}
	for name, s := range map[string]*millrace.Store{"PostgreSQL": shared, "back": home} {
		if err := s.Wait(patient(t), "tallies", from.Head()); err != nil {
			t.Errorf("%s: a cursor of the source: %v", name, err)
		}
	}
	if _, err := pgstore.Open(patient(t), server.DSN("postgres"), &pgstore.Options{NoSync: true, Copy: &millrace.Meta{ID: "x", Epoch: 1, Partitions: 4}}); !errors.Is(err, millrace.ErrInvalid) {
		t.Errorf("a schema that holds another store: %v", err)
	}
}
