package feed_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/millracetest"
)

// patience is how long a test waits for what must come: only a hang reaches it.
const patience = 30 * time.Second

func patient(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func open(t testing.TB, fs vfs.FS) *millrace.Store {
	t.Helper()
	s, err := localstore.Open("data", &localstore.Options{
		FS: fs, Partitions: 4, SegmentSize: 1 << 20, CacheSize: 8 << 20, MemTableSize: 4 << 20,
		Fatal: func(err error) { t.Errorf("store failed: %v", err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func registry(t testing.TB) *millrace.Registry {
	t.Helper()
	r, err := millrace.NewRegistry(millracetest.Tally())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// send decides commands, in order.
func send(t testing.TB, s *millrace.Store, reg *millrace.Registry, cs ...millrace.Command) {
	t.Helper()
	p := command.New(s, reg, nil)
	ctx, cancel := context.WithCancel(patient(t))
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	for _, a := range p.AcceptAll(ctx, cs) {
		if a.Err != nil {
			t.Fatal(a.Err)
		}
		if o, err := a.Receipt.Wait(ctx); err != nil || o.Status != millrace.StatusDecided {
			t.Fatalf("%+v %v", o, err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func add(id, stream string, n int) millrace.Command {
	return millrace.Command{ID: id, Stream: millrace.NewStream("tally", stream), Type: "Add", Data: fmt.Appendf(nil, `{"n":%d}`, n)}
}

func split(id, stream string, n int) millrace.Command {
	return millrace.Command{ID: id, Stream: millrace.NewStream("tally", stream), Type: "Split", Data: fmt.Appendf(nil, `{"n":%d}`, n)}
}

// adds are n commands over some streams.
func adds(prefix string, n, streams int) []millrace.Command {
	cs := make([]millrace.Command, n)
	for i := range cs {
		cs[i] = add(fmt.Sprint(prefix, i), fmt.Sprint("s", i%streams), i%7+1)
	}
	return cs
}

// tallies is the consumer of the tallies' documents.
func tallies() millrace.Consumer {
	project := millracetest.Tallies().Project
	return millrace.Consumer{Name: "tallies", Categories: []string{"tally"}, Handle: func(_ context.Context, v millrace.Views, e *millrace.Recorded) error {
		return project(v, e)
	}}
}

// follow runs a consumer until it has seen everything; what Run returns otherwise is the result.
func follow(t testing.TB, s *millrace.Store, reg *millrace.Registry, c millrace.Consumer, o *feed.Options) error {
	t.Helper()
	return followed(t, s, c.Name, s.Head(), feed.New(s, reg, c, o).Run)
}

// followed runs what runs a consumer until that has come to a head; what it returns otherwise is the result.
func followed(t testing.TB, s *millrace.Store, consumer string, head millrace.Cursor, run func(context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithCancel(patient(t))
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	seen := make(chan error, 1)
	go func() { seen <- s.Wait(ctx, consumer, head) }()
	select {
	case err := <-ended:
		cancel()
		<-seen //nolint:errcheck // it ends with the ctx
		return err
	case err := <-seen:
		if err != nil {
			t.Fatalf("the consumer does not come to the end: %v", err)
		}
		cancel()
		return <-ended
	}
}

// dump is everything that a consumer has in the store.
func dump(t testing.TB, s *millrace.Store, collections ...string) string {
	t.Helper()
	var b strings.Builder
	for _, c := range collections {
		for d, err := range s.Documents(t.Context(), millrace.Query{Collection: c, Index: -1, Partition: -1}) {
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "%s %d %q %q %s\n", c, d.Partition, d.ID, d.Keys, d.Data)
		}
	}
	return b.String()
}

// hooks is a driver whose calls a test can see, slice and let fail.
type hooks struct {
	millrace.Driver
	mu       sync.Mutex
	commit   func(batches []millrace.ViewBatch) (before, after error)
	document func(collection, id string) error
	chunk    int                        // how many events the feed yields at once; 0: as they come
	settled  func(last millrace.Cursor) // called after each chunk
}

func (h *hooks) CommitViews(ctx context.Context, batches []millrace.ViewBatch) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var before, after error
	if h.commit != nil {
		before, after = h.commit(batches)
	}
	if before != nil {
		return before
	}
	if err := h.Driver.CommitViews(ctx, batches); err != nil {
		return err
	}
	return after
}

func (h *hooks) Document(ctx context.Context, collection string, partition int, id string) (millrace.Document, error) {
	if h.document != nil {
		if err := h.document(collection, id); err != nil {
			return millrace.Document{}, err
		}
	}
	return h.Driver.Document(ctx, collection, partition, id)
}

func (h *hooks) Feed(ctx context.Context, o millrace.FeedOptions) iter.Seq2[[]millrace.Recorded, error] {
	if h.chunk == 0 {
		return h.Driver.Feed(ctx, o)
	}
	return func(yield func([]millrace.Recorded, error) bool) {
		at := o.After.Clone()
		at.Epoch = h.Meta().Epoch
		for len(at.Positions) < h.Meta().Partitions {
			at.Positions = append(at.Positions, 0)
		}
		for events, err := range h.Driver.Feed(ctx, o) {
			if err != nil {
				yield(nil, err)
				return
			}
			for len(events) > 0 {
				n := min(h.chunk, len(events))
				for _, e := range events[:n] {
					at.Positions[e.Partition] = e.Position
				}
				if !yield(events[:n:n], nil) {
					return
				}
				events = events[n:]
				h.settled(at)
			}
		}
	}
}

// sliced makes a feed's chunk a commit: the next one comes when the one before is behind the consumer.
func sliced(t testing.TB, s *millrace.Store, chunk int, commit func([]millrace.ViewBatch) (before, after error)) *millrace.Store {
	t.Helper()
	h := &hooks{Driver: s.Driver(), chunk: chunk, commit: commit}
	out := millrace.NewStore(h)
	ctx, cancel := context.WithCancel(patient(t))
	t.Cleanup(cancel)
	h.commit = func(b []millrace.ViewBatch) (before, after error) {
		if commit != nil {
			before, after = commit(b)
		}
		if before != nil || after != nil {
			cancel() // the runner ends: nobody waits for the chunk any more
		}
		return before, after
	}
	h.settled = func(at millrace.Cursor) { _ = out.Wait(ctx, "tallies", at) }
	return out
}

// errPassing is a trouble that passes by itself.
var errPassing = errors.New("not just now")
