package millracetest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/millrace-io/millrace"
)

// put is a write of a document as a consumer makes it: it knows the keys of the document that it replaces.
func (f *fixture) put(collection string, partition int, id, data string, keys ...string) millrace.Put {
	p := millrace.Put{Document: millrace.Document{Collection: collection, Partition: partition, ID: id, Data: []byte(data), Keys: keys}}
	if old, ok := f.docs[docID{collection, partition, id}]; ok {
		p.Old = old.Keys
	}
	return p
}

func (f *fixture) remove(partition int, id string) millrace.Put {
	p := f.put("docs", partition, id, "")
	p.Delete = true
	return p
}

func (f *fixture) putViews(batches ...millrace.ViewBatch) {
	f.t.Helper()
	f.must(f.s.CommitViews(f.ctx, batches))
	f.views(batches)
}

// puts writes documents without moving the checkpoint.
func (f *fixture) puts(puts ...millrace.Put) {
	f.t.Helper()
	for _, p := range puts {
		f.putViews(millrace.ViewBatch{Consumer: "consumer", Partition: p.Partition, Puts: []millrace.Put{p}})
	}
}

func documentsPutReplaceDelete(t *testing.T, f *fixture) {
	f.puts(f.put("docs", 1, "a", `{"v":1}`, "x", "same"))
	f.checkViews()
	f.puts(f.put("docs", 1, "a", `{"v":2}`, "y", "same")) // one key moves, one stays
	f.checkViews()
	f.puts(f.put("docs", 2, "a", `{"v":3}`, "y", "")) // the same id elsewhere; out of one index
	f.puts(f.put("docs", 2, "a", `{"v":4}`, "", "in"))
	f.puts(f.put("other", 1, "a", `{"v":5}`, "y", "same"))
	f.checkViews()
	f.puts(f.remove(1, "a"), f.remove(1, "never"))
	f.checkViews()
	_, err := f.s.Document(f.ctx, "docs", 1, "a")
	wantErr(t, "a document that was removed", err, millrace.ErrNotFound)
	// Several writes of one document in one batch: the last one counts.
	v1 := f.put("docs", 0, "b", "1", "k1", "s")
	v2, v3 := v1, v1
	v2.Old, v2.Keys, v2.Data = v1.Keys, []string{"k2", "s"}, []byte("2")
	v3.Old, v3.Delete = v2.Keys, true
	v4 := f.put("docs", 0, "b", "4", "k2", "s")
	f.putViews(millrace.ViewBatch{Consumer: "consumer", Partition: 0, Puts: []millrace.Put{v1, v2, v3, v4}})
	f.checkViews()
	if f.reopen() {
		f.checkViews()
	}
}

func documentOrder(_ *testing.T, f *fixture) {
	for i := range 60 {
		a, b := fmt.Sprint(i%5), fmt.Sprintf("%03d", (i*37)%60)
		f.puts(f.put("docs", i%4, fmt.Sprintf("id-%02d", i/2), fmt.Sprint(i), millrace.Key(a, b), a, b))
	}
	f.puts(f.put("docss", 0, "neighbour", "1", "0"), f.put("doc", 0, "neighbour", "1", "0"))
	limits := []string{"", "0", millrace.KeyPrefix("1"), "2", millrace.Key("2", "010"), "3\x00\xff", "4", "id-1", "id-10", "id-20", "zzz", "\xff\xff"}
	for index := -1; index < 3; index++ {
		for _, partition := range []int{-1, 0, 3} {
			for _, prefix := range limits {
				for i, from := range limits {
					q := millrace.Query{Collection: "docs", Index: index, Partition: partition, Prefix: prefix, From: from, To: limits[(i*5+3)%len(limits)]}
					f.checkQuery(q)
					q.Reverse, q.To = true, ""
					f.checkQuery(q)
				}
			}
		}
	}
}

func documentOddKeys(_ *testing.T, f *fixture) {
	parts := []string{"", "a", "a\x01", "ab", "b", " ", "ü", "\x01", "\xff", "\xff\xff", "\U0001f69a", "\u00ff", "0", "00"}
	n := 0
	for _, x := range parts {
		for _, y := range parts {
			for _, keys := range [][]string{{millrace.Key(x, y), x}, {millrace.Key(x), y}, {millrace.Key(x, y, ""), "k"}, {millrace.Key(x, "", y), ""}} {
				f.puts(f.put("docs", n%4, fmt.Sprintf("%s/%d/%s", x, n%11, y), "{}", keys...))
				n++
			}
		}
	}
	f.checkViews()
	for index := -1; index < 2; index++ {
		for _, limit := range []string{"", "a", "a\x00", "a\x00\x00", "a\x01", "\x00", "\x00\x00", "\xff", "\xff\x00", "b"} {
			for partition := -1; partition < 2; partition++ {
				q := millrace.Query{Collection: "docs", Index: index, Partition: partition}
				for _, reverse := range []bool{false, true} {
					q.Reverse = reverse
					q.Prefix, q.From, q.To = limit, "", ""
					f.checkQuery(q)
					q.Prefix, q.From = "", limit
					f.checkQuery(q)
					q.From, q.To = "", limit
					f.checkQuery(q)
				}
			}
		}
	}
}

// documentPages reads page by page while documents come, move and go: each document that was there all the time and kept
// its place is seen exactly once, in order.
func documentPages(t *testing.T, f *fixture) {
	stable := map[string]bool{}
	for i := range 100 {
		id := fmt.Sprintf("d-%03d", i)
		f.puts(f.put("docs", i%4, id, "{}", fmt.Sprintf("%02d", i/3)))
		stable[id] = i%5 != 0
	}
	for _, index := range []int{-1, 0} {
		for _, reverse := range []bool{false, true} {
			q := millrace.Query{Collection: "docs", Index: index, Partition: -1, Reverse: reverse}
			seen := map[string]int{}
			for page := 0; ; page++ {
				f.checkQuery(q)
				n := 0
				for d, err := range f.s.Documents(f.ctx, q) {
					f.must(err)
					seen[d.ID]++
					place := d.Place(index)
					q.After = &place
					if n++; n == 7 {
						break
					}
				}
				if n < 7 {
					break
				}
				// The document that the page ended with goes away; others come before and behind it, or move.
				for i := page % 5 * 5; i < 100; i += 25 {
					id := fmt.Sprintf("d-%03d", i)
					f.puts(f.put("docs", i%4, id, "{}", fmt.Sprintf("%02d", (i*7+page)%34)))
				}
				extra := fmt.Sprintf("x-%d-%d-%v", page, index, reverse)
				f.puts(f.put("docs", page%4, extra, "{}", q.After.Key+"!"))
				if page%2 == 1 {
					f.puts(f.remove(page%4, extra))
				}
			}
			for id, keeps := range stable {
				if keeps && seen[id] != 1 {
					t.Errorf("index %d, reverse %v: %s was seen %d times", index, reverse, id, seen[id])
				}
			}
		}
	}
}

// checkpointsMoveWithDocuments reads while batches are written: whoever sees a checkpoint sees its documents.
func checkpointsMoveWithDocuments(t *testing.T, f *fixture) {
	const n = 200
	s := f.stream(1, 0)
	for range n {
		f.commit(&millrace.Batch{Partition: 1, Decisions: []millrace.Decision{decided(f.command(s, "{}"), true, f.version(s), 1)}})
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for last := uint64(0); last < n; {
				c, err := f.s.Driver().Checkpoints(f.ctx, "consumer")
				if err != nil {
					t.Error(err)
					return
				}
				if c.Position(1) < last {
					t.Errorf("the checkpoint went back from %d to %d", last, c.Position(1))
					return
				}
				if last = c.Position(1); last == 0 {
					continue
				}
				for _, id := range []string{"first", "second"} {
					d, err := f.s.Document(f.ctx, "docs", 1, id)
					var at uint64
					_, _ = fmt.Sscan(string(d.Data), &at)
					if err != nil || at < last {
						t.Errorf("at checkpoint %d the document is of %q (%v)", last, d.Data, err)
						return
					}
				}
			}
		})
	}
	for i := uint64(1); i <= n; i++ {
		f.putViews(millrace.ViewBatch{Consumer: "consumer", Partition: 1, Checkpoint: i, Puts: []millrace.Put{
			f.put("docs", 1, "first", fmt.Sprint(i), fmt.Sprintf("%d", i%3)), f.put("docs", 1, "second", fmt.Sprint(i), fmt.Sprintf("%d", i%2)),
		}})
	}
	wg.Wait()
	// Several consumers and partitions in one commit.
	f.putViews(
		millrace.ViewBatch{Consumer: "consumer", Partition: 1, Checkpoint: n},
		millrace.ViewBatch{Consumer: "consume", Partition: 1, Checkpoint: 3, Puts: []millrace.Put{f.put("more", 1, "m", "1")}},
		millrace.ViewBatch{Consumer: "consumers", Partition: 0, Checkpoint: 0, Puts: []millrace.Put{f.put("more", 0, "m", "2")}},
	)
	f.checkViews()
	if f.reopen() {
		f.checkViews()
	}
}

func dropViews(t *testing.T, f *fixture) {
	s := f.stream(0, 0)
	f.commit(&millrace.Batch{Decisions: []millrace.Decision{decided(f.command(s, "{}"), true, 0, 3)}})
	for _, name := range []string{"a", "a.b", "aa"} {
		f.putViews(millrace.ViewBatch{Consumer: name, Checkpoint: 2, Puts: []millrace.Put{f.put(name+".docs", 0, "d", "{}", "k"), f.put(name+".more", 0, "d", "{}", "k")}})
	}
	f.must(f.s.DropViews(f.ctx, "a", []string{"a.docs", "a.more"}))
	delete(f.progress, "a")
	delete(f.docs, docID{"a.docs", 0, "d"})
	delete(f.docs, docID{"a.more", 0, "d"})
	f.checkViews()
	for _, collection := range []string{"a.docs", "a.more"} {
		for index := -1; index < 1; index++ {
			f.checkQuery(millrace.Query{Collection: collection, Index: index, Partition: -1})
		}
	}
	c, err := f.s.Checkpoints(f.ctx, "a")
	f.must(err)
	same(t, "checkpoints after the drop", c.Position(0), uint64(0))
	// And it begins anew.
	f.putViews(millrace.ViewBatch{Consumer: "a", Checkpoint: 1, Puts: []millrace.Put{f.put("a.docs", 0, "d", "new", "k")}})
	f.checkViews()
}

// postedIsRead: a message is there for whoever owns its partition, who deletes it together with what came of it.
func postedIsRead(t *testing.T, f *fixture) {
	doc := millrace.Document{Collection: "post", Partition: 2, ID: "m-1", Data: []byte(`{"what":"now"}`)}
	f.must(f.s.Post(f.ctx, doc))
	got, err := f.s.Document(f.ctx, "post", 2, "m-1")
	f.must(err)
	same(t, "what was posted", string(got.Data), string(doc.Data))
	f.putViews(millrace.ViewBatch{Consumer: "reader", Partition: 2, Puts: []millrace.Put{
		{Delete: true, Document: millrace.Document{Collection: "post", Partition: 2, ID: "m-1"}}, f.put("docs", 2, "answer", "1"),
	}})
	_, err = f.s.Document(f.ctx, "post", 2, "m-1")
	wantErr(t, "a message that was read", err, millrace.ErrNotFound)
	f.checkViews()
}

func waitWakesUp(t *testing.T, f *fixture) {
	s := f.stream(1, 0)
	f.commit(&millrace.Batch{Partition: 1, Decisions: []millrace.Decision{decided(f.command(s, "{}"), true, 0, 10)}})
	at := func(p int, n uint64) millrace.Cursor { return millrace.At(f.s.Meta().Epoch, p, n) }
	f.must(f.s.Wait(f.ctx, "consumer", millrace.Cursor{}))
	expired, cancel := context.WithCancel(f.ctx)
	cancel()
	wantErr(t, "wait for what does not come", f.s.Wait(expired, "consumer", at(1, 1)), context.Canceled)
	const waiters = 10
	woken := make([]chan error, waiters+1)
	for n := 1; n <= waiters; n++ {
		woken[n] = make(chan error, 1)
		go func() { woken[n] <- f.s.Wait(f.ctx, "consumer", at(1, uint64(n))) }() //nolint:gosec // small
	}
	for n := uint64(1); n <= waiters; n++ {
		f.putViews(millrace.ViewBatch{Consumer: "other", Partition: 1, Checkpoint: 10})
		f.putViews(millrace.ViewBatch{Consumer: "consumer", Partition: 1, Checkpoint: n})
		f.must(<-woken[n])
		if n < waiters && len(woken[n+1]) > 0 {
			t.Errorf("a wait for %d ended at %d", n+1, n)
		}
	}
	// A waiter outlives that its consumer begins anew.
	again := make(chan error, 1)
	go func() { again <- f.s.Wait(f.ctx, "late", at(1, 5)) }()
	f.putViews(millrace.ViewBatch{Consumer: "late", Partition: 1, Checkpoint: 2})
	f.must(f.s.DropViews(f.ctx, "late", nil))
	delete(f.progress, "late")
	f.putViews(millrace.ViewBatch{Consumer: "late", Partition: 1, Checkpoint: 7})
	f.must(<-again)
	c, err := f.s.Checkpoints(f.ctx, "consumer")
	f.must(err)
	if !slices.Equal(c.Positions, []uint64{0, 10, 0, 0}) {
		t.Errorf("checkpoints %v", c.Positions)
	}
}
