package pgstore

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/localstore"
)

// TestSameAnswersAsTheEmbeddedStore runs one random history on both stores and compares every answer: positions and chains
// of the same batches, outcomes, feeds, streams, the order of what waits, documents and checkpoints.
func TestSameAnswersAsTheEmbeddedStore(t *testing.T) {
	server := server(t)
	factory := stores(server, nil)
	rapid.Check(t, func(r *rapid.T) {
		local, err := localstore.Open("data", &localstore.Options{FS: vfs.NewMem(), Partitions: 4, SegmentSize: 128 << 10, CacheSize: 1 << 20, MemTableSize: 256 << 10})
		if err != nil {
			r.Fatal(err)
		}
		remote, err := factory(t, 4).Open()
		if err != nil {
			r.Fatal(err)
		}
		defer func() { _, _ = local.Close(), remote.Close() }()
		h := &twins{r: r, t: t, stores: []*millrace.Store{local, remote}, versions: map[millrace.Stream]uint64{}, keys: map[string][]string{}}
		r.Repeat(map[string]func(*rapid.T){"write": h.write, "views": h.views, "query": h.query, "": func(*rapid.T) {}})
		h.compare()
	})
}

// twins are the two stores and what is common to them.
type twins struct {
	r        *rapid.T
	t        *testing.T
	stores   []*millrace.Store
	n        int
	ids      []string
	pending  [4][]*millrace.Command
	versions map[millrace.Stream]uint64
	keys     map[string][]string
}

// both asks both stores and compares what they say. The error counts by whether there is one.
func both[T any](h *twins, what string, ask func(*millrace.Store) (T, error)) T {
	a, aerr := ask(h.stores[0])
	b, berr := ask(h.stores[1])
	if (aerr == nil) != (berr == nil) {
		h.r.Fatalf("%s: the embedded store says %v, this one %v", what, aerr, berr)
	}
	opts := []cmp.Option{cmpopts.EquateEmpty(), cmpopts.IgnoreFields(millrace.Recorded{}, "Body"), cmpopts.IgnoreFields(millrace.Command{}, "Body")}
	if diff := cmp.Diff(a, b, opts...); diff != "" {
		h.r.Fatalf("%s: embedded -, this +:\n%s", what, diff)
	}
	return a
}

func (h *twins) command(r *rapid.T, p int) *millrace.Command {
	h.n++
	c := command(fmt.Sprintf("c%d", h.n), p)
	if rapid.Bool().Draw(r, "known stream") {
		c.Stream = command(fmt.Sprint("s", rapid.IntRange(0, 3).Draw(r, "stream")), p).Stream
	}
	c.Data = []byte(rapid.String().Draw(r, "data"))
	if rapid.Bool().Draw(r, "expects") {
		v := rapid.Uint64().Draw(r, "expected")
		c.Expected = &v
	}
	h.ids = append(h.ids, c.ID)
	return c
}

func (h *twins) write(r *rapid.T) {
	p := rapid.IntRange(0, 3).Draw(r, "partition")
	b := millrace.Batch{Partition: p}
	var kept []*millrace.Command
	for range rapid.IntRange(0, 3).Draw(r, "accepted") {
		c := h.command(r, p)
		b.Accepted = append(b.Accepted, accepted(c))
		kept = append(kept, c)
	}
	for range rapid.IntRange(0, 4).Draw(r, "decided") {
		c, fresh := (*millrace.Command)(nil), true
		if n := len(h.pending[p]); n > 0 && rapid.Bool().Draw(r, "kept before") {
			i := rapid.IntRange(0, n-1).Draw(r, "which")
			c, fresh = h.pending[p][i], false
			h.pending[p] = slices.Delete(slices.Clone(h.pending[p]), i, i+1)
		} else {
			c = h.command(r, p)
		}
		d := decided(c, fresh, rapid.IntRange(0, 3).Draw(r, "events"))
		switch d.Version = h.versions[c.Stream]; rapid.IntRange(0, 4).Draw(r, "status") {
		case 0:
			d.Status, d.Events = millrace.StatusRefused, nil
			d.Refusal = &millrace.Refusal{Kind: millrace.RefusedVersion, Code: "c", Detail: rapid.String().Draw(r, "detail"), Errors: []millrace.FieldError{{Pointer: "/x"}}}
		case 1:
			d.Status, d.Events = millrace.StatusDead, nil
			d.Failure = &millrace.Failure{Reason: millrace.ReasonDecide, Error: "e", Attempts: 3}
		}
		h.versions[c.Stream] += uint64(len(d.Events))
		b.Decisions = append(b.Decisions, d)
	}
	h.pending[p] = append(h.pending[p], kept...)
	both(h, "commit", func(s *millrace.Store) (bool, error) {
		mine := b // numbers and chains are the store's
		mine.Decisions = slices.Clone(b.Decisions)
		return true, <-send(s, &mine)
	})
}

var keyParts = rapid.SampledFrom([]string{"", "a", "a\x00b", "b", "\xff", "ab"})

func (h *twins) views(r *rapid.T) {
	p := rapid.IntRange(0, 3).Draw(r, "partition")
	b := millrace.ViewBatch{Consumer: "c", Partition: p, Checkpoint: h.stores[0].Heads()[p].Position}
	for range rapid.IntRange(0, 4).Draw(r, "puts") {
		id := fmt.Sprint("d", rapid.IntRange(0, 4).Draw(r, "id"))
		k := fmt.Sprint(p, id)
		put := millrace.Put{Document: millrace.Document{Collection: "c.d", Partition: p, ID: id}, Old: h.keys[k]}
		if put.Delete = rapid.IntRange(0, 3).Draw(r, "delete") == 0; !put.Delete {
			put.Data, put.Keys = []byte(rapid.String().Draw(r, "data")), []string{keyParts.Draw(r, "key"), keyParts.Draw(r, "key")}
		}
		h.keys[k] = put.Keys
		b.Puts = append(b.Puts, put)
	}
	both(h, "views", func(s *millrace.Store) (bool, error) {
		return true, s.CommitViews(h.t.Context(), []millrace.ViewBatch{b})
	})
}

func (h *twins) query(r *rapid.T) {
	q := millrace.Query{
		Collection: rapid.SampledFrom([]string{"c.d", millrace.DeadLetterCollection}).Draw(r, "collection"),
		Index:      rapid.IntRange(-1, 1).Draw(r, "index"), Partition: rapid.IntRange(-1, 3).Draw(r, "partition"),
		Prefix: keyParts.Draw(r, "prefix"), From: keyParts.Draw(r, "from"), To: keyParts.Draw(r, "to"), Reverse: rapid.Bool().Draw(r, "reverse"),
	}
	both(h, fmt.Sprintf("query %+v", q), func(s *millrace.Store) ([]millrace.Document, error) { return collect(s.Documents(h.t.Context(), q)) })
}

func collect[T any](seq func(func(T, error) bool)) (out []T, err error) {
	for v, err := range seq {
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func (h *twins) compare() {
	ctx := h.t.Context()
	both(h, "heads", func(s *millrace.Store) ([]millrace.Head, error) { return s.Heads(), nil })
	both(h, "backlog", func(s *millrace.Store) (int64, error) { return s.Backlog(), nil })
	for _, id := range append(h.ids, "nobody", "not \xff text") {
		both(h, "outcome of "+id, func(s *millrace.Store) (millrace.Outcome, error) { return s.Lookup(ctx, id) })
		both(h, "command "+id, func(s *millrace.Store) (millrace.Command, error) { return s.Command(ctx, id) })
	}
	for stream := range h.versions {
		both(h, "version", func(s *millrace.Store) (uint64, error) { return s.Version(ctx, stream) })
		both(h, "events", func(s *millrace.Store) ([]millrace.Recorded, error) { return collect(s.Events(ctx, stream, 1)) })
	}
	for p := range 4 {
		both(h, "pending", func(s *millrace.Store) ([]millrace.AcceptedCommand, error) { return collect(s.Pending(ctx, p)) })
		both(h, "feed", func(s *millrace.Store) (out []millrace.Recorded, err error) {
			for batch, err := range s.Feed(ctx, millrace.FeedOptions{Partitions: []int{p}}) {
				if err != nil {
					return nil, err
				}
				out = append(out, batch...)
			}
			return out, nil
		})
	}
	both(h, "checkpoints", func(s *millrace.Store) ([]uint64, error) {
		c, err := s.Checkpoints(ctx, "c")
		return c.Positions, err
	})
	for index := -1; index < 2; index++ {
		for _, collection := range []string{"c.d", millrace.DeadLetterCollection} {
			q := millrace.Query{Collection: collection, Index: index, Partition: -1}
			both(h, "documents", func(s *millrace.Store) ([]millrace.Document, error) { return collect(s.Documents(ctx, q)) })
		}
	}
	for _, s := range h.stores {
		if err := s.Verify(ctx, func(problem string) { h.r.Errorf("verify: %s", problem) }); err != nil {
			h.r.Error(err)
		}
	}
}
