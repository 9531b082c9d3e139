package millracetest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/millrace-io/millrace"
)

// BenchStore measures a backend. Each figure is for one item: an append of one decision, an event, a document.
func BenchStore(b *testing.B, factory Factory) {
	b.Helper()
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("Append/callers=%d", callers), func(b *testing.B) { benchAppend(b, factory, callers) })
	}
	b.Run("AppendBatch/decisions=256", func(b *testing.B) { benchAppendBatch(b, factory, 256) })
	b.Run("Lookup", func(b *testing.B) { benchLookup(b, factory) })
	b.Run("Events", func(b *testing.B) { benchEvents(b, factory) })
	b.Run("Feed", func(b *testing.B) { benchFeed(b, factory) })
	b.Run("DocumentPut", func(b *testing.B) { benchDocumentPut(b, factory) })
	b.Run("DocumentGet", func(b *testing.B) { benchDocumentGet(b, factory) })
	b.Run("DocumentQuery/page=50", func(b *testing.B) { benchDocumentQuery(b, factory) })
}

// benchPartitions is what stores have by default.
const benchPartitions = millrace.DefaultPartitions

// benchData is about an order of three lines.
var benchData = []byte(`{"lines":"` + strings.Repeat("sku 6 2.55 ", 25) + `"}`)

func benchOpen(b *testing.B, factory Factory) *millrace.Store {
	b.Helper()
	s, err := factory(b, benchPartitions).Open()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	return s
}

// benchDecision is the n-th decision of a stream of its own for each partition.
func benchDecision(partition int, n uint64) millrace.Decision {
	c := &millrace.Command{
		ID: fmt.Sprintf("%d-%d", partition, n), Stream: millrace.Stream(fmt.Sprintf("tally-%d-%d", partition, n/100)), Type: "Add",
		Data: benchData, Time: epoch, CorrelationID: "bench", Source: "bench",
	}
	return millrace.Decision{
		Command: c, Fresh: true, Fingerprint: c.Fingerprint(), Status: millrace.StatusDecided, Version: n % 100, Time: epoch,
		Events: []millrace.NewEvent{{Type: "Added", Data: benchData}},
	}
}

// benchOwner numbers what is committed to a partition.
type benchOwner struct {
	mu sync.Mutex
	n  uint64
}

func benchAppend(b *testing.B, factory Factory, callers int) {
	s := benchOpen(b, factory)
	owners := make([]benchOwner, benchPartitions)
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for i := range callers {
		wg.Go(func() {
			p := i % benchPartitions
			done := make(chan error, 1)
			for left.Add(-1) >= 0 {
				o := &owners[p]
				o.mu.Lock()
				d := benchDecision(p, o.n)
				o.n++
				s.Commit(&millrace.Batch{Partition: p, Decisions: []millrace.Decision{d}}, func(err error) { done <- err })
				o.mu.Unlock()
				if err := <-done; err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// benchFill commits n decisions in batches, several on their way at a time.
func benchFill(b *testing.B, s *millrace.Store, n, batch int) {
	b.Helper()
	const inFlight = 8
	slots := make(chan struct{}, inFlight)
	next := make([]uint64, benchPartitions)
	var failed atomic.Pointer[error]
	for p := 0; n > 0; p = (p + 1) % benchPartitions {
		work := &millrace.Batch{Partition: p}
		for range min(batch, n) {
			work.Decisions = append(work.Decisions, benchDecision(p, next[p]))
			next[p]++
		}
		n -= len(work.Decisions)
		slots <- struct{}{}
		s.Commit(work, func(err error) {
			if err != nil {
				failed.Store(&err)
			}
			<-slots
		})
	}
	for range inFlight {
		slots <- struct{}{}
	}
	if err := failed.Load(); err != nil {
		b.Fatal(*err)
	}
}

func benchAppendBatch(b *testing.B, factory Factory, batch int) {
	s := benchOpen(b, factory)
	b.ReportAllocs()
	b.ResetTimer()
	benchFill(b, s, b.N, batch)
}

// benchFacts is how many decisions the reading benchmarks read from.
const benchFacts = 100_000

func benchLookup(b *testing.B, factory Factory) {
	s := benchOpen(b, factory)
	benchFill(b, s, benchFacts, 256)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if _, err := s.Lookup(b.Context(), fmt.Sprintf("%d-%d", i%benchPartitions, i*7919%(benchFacts/benchPartitions/2))); err != nil {
			b.Fatal(err)
		}
	}
}

func benchEvents(b *testing.B, factory Factory) {
	s := benchOpen(b, factory)
	benchFill(b, s, benchFacts, 256)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; {
		stream := millrace.Stream(fmt.Sprintf("tally-%d-%d", n%benchPartitions, n*7919%20))
		for _, err := range s.Events(b.Context(), stream, 1) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
	}
}

func benchFeed(b *testing.B, factory Factory) {
	s := benchOpen(b, factory)
	benchFill(b, s, benchFacts, 256)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; {
		for batch, err := range s.Feed(b.Context(), millrace.FeedOptions{}) {
			if err != nil {
				b.Fatal(err)
			}
			if n += len(batch); n >= b.N {
				break
			}
		}
	}
}

// benchPut is a document that moves in one index and stays in the other.
func benchPut(n, round int) millrace.Put {
	p := millrace.Put{Document: millrace.Document{
		Collection: "docs", Partition: n % benchPartitions, ID: fmt.Sprintf("doc-%d", n), Data: benchData,
		Keys: []string{fmt.Sprintf("status-%d", round%3), fmt.Sprintf("customer-%06d", n%1000)},
	}}
	if round > 0 {
		p.Old = []string{fmt.Sprintf("status-%d", (round-1)%3), p.Keys[1]}
	}
	return p
}

const benchDocs = 10_000

// benchPuts writes n documents, 256 in a commit.
func benchPuts(b *testing.B, s *millrace.Store, n int) {
	b.Helper()
	for i := 0; i < n; {
		batches := make([]millrace.ViewBatch, benchPartitions)
		for p := range batches {
			batches[p] = millrace.ViewBatch{Consumer: "bench", Partition: p}
		}
		for range min(256, n-i) {
			p := benchPut(i%benchDocs, i/benchDocs)
			batches[p.Partition].Puts = append(batches[p.Partition].Puts, p)
			i++
		}
		if err := s.CommitViews(context.Background(), batches); err != nil {
			b.Fatal(err)
		}
	}
}

func benchDocumentPut(b *testing.B, factory Factory) {
	s := benchOpen(b, factory)
	b.ReportAllocs()
	b.ResetTimer()
	benchPuts(b, s, b.N)
}

func benchDocumentGet(b *testing.B, factory Factory) {
	s := benchOpen(b, factory)
	benchPuts(b, s, benchDocs)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		n := i * 7919 % benchDocs
		if _, err := s.Document(b.Context(), "docs", n%benchPartitions, fmt.Sprintf("doc-%d", n)); err != nil {
			b.Fatal(err)
		}
	}
}

func benchDocumentQuery(b *testing.B, factory Factory) {
	s := benchOpen(b, factory)
	benchPuts(b, s, benchDocs)
	b.ReportAllocs()
	b.ResetTimer()
	q := millrace.Query{Collection: "docs", Index: 1, Partition: -1}
	for n := 0; n < b.N; {
		page := 0
		for d, err := range s.Documents(b.Context(), q) {
			if err != nil {
				b.Fatal(err)
			}
			place := d.Place(q.Index)
			q.After = &place
			n++
			if page++; page == 50 {
				break
			}
		}
		if page < 50 {
			q.After = nil
		}
	}
}
