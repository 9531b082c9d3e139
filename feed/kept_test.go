package feed_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/millracetest"
)

// A document that every commit changes is read once, not once a commit. What a handler did to a document that it did
// not put back is in no later commit, though: not where the commit succeeded, and not where it failed.
func TestDocumentsBetweenCommits(t *testing.T) {
	const events = 60
	s := open(t, vfs.NewMem())
	send(t, s, registry(t), adds("c", events, 1)...)
	single := sliced(t, s, 1, nil)
	var reads atomic.Int64
	single.Driver().(*hooks).document = func(string, string) error { reads.Add(1); return nil } //nolint:forcetypeassert // it is
	c := tallies()
	var failed atomic.Bool
	c.Handle = func(_ context.Context, v millrace.Views, e *millrace.Recorded) error {
		sum, err := millracetest.TallyTable.Get(v, "sum")
		if err != nil {
			return err
		}
		if sum == nil {
			sum = &millracetest.TallyDocument{Stream: "sum"}
		}
		switch {
		case e.Version%10 == 5: // changed, and not put back
			sum.Total += 1000
			return nil
		case e.Version%10 == 7 && failed.CompareAndSwap(false, true):
			sum.Total += 1_000_000
			millracetest.TallyTable.Put(v, "sum", sum)
			return fmt.Errorf("not yet")
		case e.Version%10 == 8:
			failed.Store(false)
		}
		sum.Total++
		sum.Version = e.Version
		millracetest.TallyTable.Put(v, "sum", sum)
		return nil
	}
	if err := follow(t, single, registry(t), c, &feed.Options{Workers: 1, Backoff: 1}); err != nil {
		t.Fatal(err)
	}
	doc, err := s.Document(t.Context(), tallyDocuments, millrace.Stream("tally-s0").Partition(s.Partitions()), "sum")
	if err != nil {
		t.Fatal(err)
	}
	got, err := millracetest.TallyTable.Decode(doc.Data)
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(events - events/10); got.Total != want {
		t.Errorf("the sum is %d, want %d", got.Total, want)
	}
	// Once at the start, and again after each of the six that were not put back and of the six that failed.
	if n := reads.Load(); n > events/2 {
		t.Errorf("%d reads for %d commits", n, events)
	}
}
