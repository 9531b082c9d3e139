package localstore

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
)

// TestDeadLettersAreDocuments: a dead letter is found as a document with its body, whether its command came with the
// decision or was kept before it, and an index made again from the journal has the same documents.
func TestDeadLettersAreDocuments(t *testing.T) {
	fs := vfs.NewMem()
	o := &Options{FS: fs, Partitions: 2, SegmentSize: minSegmentSize, Fatal: func(err error) { t.Error(err) }}
	s, err := Open("data", o)
	if err != nil {
		t.Fatal(err)
	}
	commit := func(b *millrace.Batch) {
		done := make(chan error, 1)
		s.Commit(b, func(err error) { done <- err })
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for i, c := range []millrace.Command{
		{ID: "fresh", Stream: "order-1", Type: "Teleport", Data: []byte(`{"to":"moon"}`), Time: at, CorrelationID: "fresh", Source: "http"},
		{ID: "kept", Stream: "order-1", Type: "Teleport", Data: []byte("\xff not JSON"), Time: at, CorrelationID: "kept"},
	} {
		p := c.Stream.Partition(2)
		d := millrace.Decision{
			Command: &c, Fresh: i == 0, Fingerprint: c.Fingerprint(), Status: millrace.StatusDead, Time: at,
			Failure: &millrace.Failure{Reason: millrace.ReasonUnknownType, Error: "unknown command type", Attempts: 1},
		}
		if !d.Fresh {
			commit(&millrace.Batch{Partition: p, Accepted: []millrace.AcceptedCommand{{Command: &c, Fingerprint: c.Fingerprint()}}})
		}
		commit(&millrace.Batch{Partition: p, Decisions: []millrace.Decision{d}})
	}
	letters := func() (out []millrace.DeadLetter) {
		t.Helper()
		q := millrace.Query{Collection: millrace.DeadLetterCollection, Index: millrace.DeadLettersByReason, Partition: -1, Prefix: millrace.KeyPrefix(millrace.ReasonUnknownType)}
		for doc, err := range s.Documents(t.Context(), q) {
			if err != nil {
				t.Fatal(err)
			}
			l, err := millrace.DeadLetterTable.Decode(doc.Data)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, *l)
		}
		return out
	}
	want := []millrace.DeadLetter{
		{CommandID: "fresh", Stream: "order-1", Type: "Teleport", Reason: "unknown_type", Error: "unknown command type", Attempts: 1, Source: "http", CorrelationID: "fresh", AcceptedAt: at, Data: []byte(`{"to":"moon"}`)},
		{CommandID: "kept", Stream: "order-1", Type: "Teleport", Reason: "unknown_type", Error: "unknown command type", Attempts: 1, CorrelationID: "kept", AcceptedAt: at, Raw: []byte("\xff not JSON")},
	}
	if diff := cmp.Diff(want, letters()); diff != "" {
		t.Error(diff)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := fs.RemoveAll("data/index"); err != nil {
		t.Fatal(err)
	}
	if s, err = Open("data", o); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, letters()); diff != "" {
		t.Error("after the index was made again:", diff)
	}
	if err := s.Verify(t.Context(), func(p string) { t.Error(p) }); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
