package millracetest

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
)

func newStoreIsEmpty(t *testing.T, f *fixture) {
	meta := f.s.Meta()
	if meta.ID == "" || meta.Epoch == 0 || meta.Partitions != 4 {
		t.Errorf("meta of a new store: %+v", meta)
	}
	f.check()
	_, err := f.s.Lookup(f.ctx, "nobody")
	wantErr(t, "lookup of an unknown command", err, millrace.ErrNotFound)
	_, err = f.s.Command(f.ctx, "nobody")
	wantErr(t, "unknown command", err, millrace.ErrNotFound)
	_, err = f.s.Document(f.ctx, "none", 0, "nothing")
	wantErr(t, "unknown document", err, millrace.ErrNotFound)
	if v, err := f.s.Version(f.ctx, "tally-nothing"); v != 0 || err != nil {
		t.Errorf("version of an unknown stream: %d, %v", v, err)
	}
	events, err := all(f.s.Events(f.ctx, "tally-nothing", 1))
	if len(events) != 0 || err != nil {
		t.Errorf("events of an unknown stream: %v, %v", events, err)
	}
	if err := f.s.Writable(); err != nil {
		t.Errorf("a new store is not writable: %v", err)
	}
	if f.reopen() {
		same(t, "meta after reopening", f.s.Meta(), meta)
	}
}

func positionsHaveNoGaps(t *testing.T, f *fixture) {
	for i := range 30 {
		p := i % f.partitions
		b := &millrace.Batch{Partition: p}
		for k := range 1 + i%4 {
			s := f.stream(p, k)
			b.Decisions = append(b.Decisions, decided(f.command(s, "{}"), true, f.version(s), (i+k)%5))
		}
		f.commit(b)
	}
	f.check()
	got, err := readFeed(f.ctx, f.s, millrace.FeedOptions{})
	f.must(err)
	for p, events := range got {
		seen := map[string]bool{}
		for i := range events {
			e := &events[i]
			if e.Partition != p || e.Position != uint64(i)+1 {
				t.Fatalf("event %d of partition %d is at %d/%d", i, p, e.Partition, e.Position)
			}
			if i > 0 && events[i-1].CommandID != e.CommandID {
				if seen[e.CommandID] {
					t.Fatalf("the events of %s are not adjacent", e.CommandID)
				}
				seen[events[i-1].CommandID] = true
			}
		}
	}
}

func doneInOrder(t *testing.T, f *fixture) {
	const writers, batches = 4, 200
	var wg sync.WaitGroup
	for p := range writers {
		wg.Go(func() {
			order := make(chan int, 2*batches)
			for i := range batches {
				c := &millrace.Command{ID: fmt.Sprintf("%d-%d", p, i), Stream: millrace.Stream(fmt.Sprintf("tally-%d", p)), Type: "Add", Time: epoch}
				b := &millrace.Batch{Partition: p, Decisions: []millrace.Decision{decided(c, true, uint64(i), 1)}}
				f.s.Commit(b, func(err error) {
					if err != nil {
						t.Errorf("append: %v", err)
					}
					order <- i
				})
			}
			for i := range batches {
				select {
				case got := <-order:
					if got != i {
						t.Errorf("partition %d: batch %d was done when %d was due", p, got, i)
						return
					}
				case <-f.ctx.Done():
					t.Error("done was not called")
					return
				}
			}
			if len(order) != 0 {
				t.Errorf("done was called more often than once")
			}
		})
	}
	wg.Wait()
}

func doneNotWithinAppend(t *testing.T, f *fixture) {
	// A caller may hold a lock that done takes.
	var mu sync.Mutex
	for partition, want := range map[int]error{0: nil, 99: millrace.ErrInvalid} {
		done := make(chan error, 1)
		mu.Lock()
		f.s.Driver().Append(&millrace.Batch{Partition: partition, Accepted: []millrace.AcceptedCommand{accepted(f.command("tally-a", "{}"))}}, func(err error) {
			mu.Lock()
			defer mu.Unlock()
			done <- err
		})
		mu.Unlock()
		select {
		case err := <-done:
			wantErr(t, "append", err, want)
		case <-f.ctx.Done():
			t.Fatal("done was not called")
		}
	}
}

func readYourWrites(t *testing.T, f *fixture) {
	// Within done everything must be there already.
	for i := range 50 {
		s := f.stream(i%f.partitions, i%3)
		version := f.version(s) + 2
		c := f.command(s, "{}")
		b := &millrace.Batch{Partition: i % f.partitions, Decisions: []millrace.Decision{decided(c, true, version-2, 2)}}
		done := make(chan error, 1)
		f.s.Commit(b, func(error) {
			o, err := f.s.Lookup(f.ctx, c.ID)
			if err == nil && o.Version != version {
				err = fmt.Errorf("the outcome says version %d, want %d", o.Version, version)
			}
			if v, verr := f.s.Version(f.ctx, s); err == nil && (verr != nil || v != version) {
				err = fmt.Errorf("the stream has version %d, want %d (%w)", v, version, verr)
			}
			if h := f.s.Heads()[b.Partition]; err == nil && h.Position != o.Position {
				err = fmt.Errorf("the head is %d, want %d", h.Position, o.Position)
			}
			done <- err
		})
		f.must(<-done)
		f.apply(t, b)
	}
	f.check()
}

func chainLinks(t *testing.T, f *fixture) {
	for i := range 20 {
		s := f.stream(0, 0)
		refused := decided(f.command(s, "{}"), true, f.version(s)+uint64(i%2), 0)
		refused.Status, refused.Refusal = millrace.StatusRefused, &millrace.Refusal{Kind: millrace.RefusedRule, Code: "no"}
		f.commit(&millrace.Batch{Decisions: []millrace.Decision{decided(f.command(s, "{}"), true, f.version(s), i%2), refused}})
	}
	same(t, "heads", f.s.Heads(), f.heads) // the model has computed the chain by itself
}

func discontinuousRefused(t *testing.T, f *fixture) {
	s := f.stream(1, 1)
	f.commit(&millrace.Batch{Partition: 1, Decisions: []millrace.Decision{decided(f.command(s, "{}"), true, 0, 2)}})
	for _, c := range []struct {
		name  string
		spoil func(*millrace.Batch, *millrace.Decision)
	}{
		{"position beyond the head", func(_ *millrace.Batch, d *millrace.Decision) { d.Position++ }},
		{"position before the head", func(_ *millrace.Batch, d *millrace.Decision) { d.Position-- }},
		{"behind another chain", func(b *millrace.Batch, _ *millrace.Decision) { b.Prev[0] ^= 1 }},
	} {
		d := decided(f.command(s, "{}"), true, 2, 1)
		d.Position = f.heads[1].Position
		d.Encoded = millrace.AppendDecision(nil, &d)
		d.Chain = millrace.NextChain(f.heads[1].Chain, d.Encoded)
		b := &millrace.Batch{Partition: 1, Prev: f.heads[1].Chain}
		c.spoil(b, &d)
		b.Decisions = []millrace.Decision{d}
		done := make(chan error, 1)
		f.s.Driver().Append(b, func(err error) { done <- err })
		wantErr(t, c.name, <-done, millrace.ErrInvalid)
	}
	f.s.Reload(1)
	f.commit(&millrace.Batch{Partition: 1, Decisions: []millrace.Decision{decided(f.command(s, "{}"), true, 2, 1)}})
	f.check()
	if f.reopen() {
		f.check()
	}
}

func unknownPartitionRefused(t *testing.T, f *fixture) {
	for _, p := range []int{-1, f.partitions} {
		err := f.s.Accept(f.ctx, p, []millrace.AcceptedCommand{accepted(f.command("tally-a", "{}"))})
		wantErr(t, "accept", err, millrace.ErrInvalid)
		_, err = readFeed(f.ctx, f.s, millrace.FeedOptions{Partitions: []int{p}})
		wantErr(t, "feed", err, millrace.ErrInvalid)
	}
	f.check()
}

func commandsInAllStates(t *testing.T, f *fixture) {
	expected := uint64(7)
	s := f.stream(2, 0)
	mk := func(data string) *millrace.Command { return f.command(s, data) }
	first, second, third := mk(`{"n":1}`), mk(`{"n":2}`), mk(`{"n":3}`)
	second.Expected, second.CausationID = &expected, "event/1"
	batch := func(b millrace.Batch) {
		b.Partition = 2
		f.commit(&b)
		f.check()
	}
	// Alone, and several at once.
	batch(millrace.Batch{Accepted: []millrace.AcceptedCommand{accepted(first)}})
	batch(millrace.Batch{Accepted: []millrace.AcceptedCommand{accepted(second), accepted(third)}})
	f.must(f.s.Accept(f.ctx, 2, []millrace.AcceptedCommand{accepted(first)}[:0]))
	if f.reopen() {
		f.check()
	}
	// Out of the order of acceptance, beside one that was not kept before and one that is only kept.
	fourth, fifth := mk(`{"n":4}`), mk(`{"n":5}`)
	batch(millrace.Batch{
		Accepted:  []millrace.AcceptedCommand{accepted(fifth)},
		Decisions: []millrace.Decision{decided(second, false, 0, 1), decided(fourth, true, 1, 2)},
	})
	// Acceptance and decision in one batch, as two records.
	sixth := mk(`{"n":6}`)
	batch(millrace.Batch{
		Accepted:  []millrace.AcceptedCommand{accepted(sixth)},
		Decisions: []millrace.Decision{decided(sixth, false, 3, 1)},
	})
	batch(millrace.Batch{Decisions: []millrace.Decision{decided(first, false, 4, 0), decided(third, false, 4, 3), decided(fifth, false, 7, 1)}})
	if n := f.s.Backlog(); n != 0 {
		t.Errorf("backlog of %d when everything is decided", n)
	}
	if f.reopen() {
		f.check()
	}
}

func outcomesRoundTrip(_ *testing.T, f *fixture) {
	odd := "line\nquote\" \u2028 ünï¢ødé \U0001f69a \\ \x7f"
	huge := strings.Repeat("x", 40_000)
	s := f.stream(3, 9)
	c := f.command(s, `{"z":1,  "a" : [ 1.50, "`+odd+`" ]}`)
	c.Type, c.Source, c.CorrelationID, c.CausationID = "Löschen", odd, odd, odd
	zero := uint64(0)
	c.Expected = &zero
	c.Time = time.Unix(0, -1).UTC()
	d := decided(c, true, 0, 0)
	d.Events = []millrace.NewEvent{{Type: odd, Data: []byte(`  {"keep" : "as it came" } `)}, {Type: "Big", Data: []byte(`"` + huge + `"`)}, {Type: "None", Data: []byte("null")}}
	d.Time = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC).AddDate(1700, 0, 0)
	refused := decided(f.command(s, "{}"), true, 3, 0)
	refused.Status = millrace.StatusRefused
	refused.Refusal = &millrace.Refusal{Kind: millrace.RefusedVersion, Code: "version", Detail: odd, Errors: []millrace.FieldError{{Pointer: "/a~1b/0", Detail: odd}, {Pointer: "", Detail: ""}}}
	bare := decided(f.command(s, "{}"), true, 3, 0)
	bare.Status, bare.Refusal = millrace.StatusRefused, &millrace.Refusal{Kind: millrace.RefusedRule}
	dead := decided(f.command(s, huge), true, 3, 0)
	dead.Status = millrace.StatusDead
	dead.Failure = &millrace.Failure{Reason: millrace.ReasonDecide, Error: odd, Attempts: 12}
	f.commit(&millrace.Batch{Partition: 3, Decisions: []millrace.Decision{d, refused, bare, dead}})
	f.check()
	if f.reopen() {
		f.check()
	}
}

func eventsFromAnyVersion(t *testing.T, f *fixture) {
	// Three streams of one partition, interleaved in each batch, in stretches of different length.
	streams := []millrace.Stream{f.stream(0, 1), f.stream(0, 2), f.stream(0, 3)}
	for i := range 12 {
		b := &millrace.Batch{}
		next := map[millrace.Stream]uint64{}
		for k := range 7 {
			s := streams[(i*k+k)%3]
			n := (i + 2*k) % 4
			b.Decisions = append(b.Decisions, decided(f.command(s, "{}"), true, f.version(s)+next[s], n))
			next[s] += uint64(n)
		}
		f.commit(b)
	}
	for _, s := range streams {
		want := f.streams[s]
		for from := uint64(0); from <= uint64(len(want))+2; from++ {
			got, err := all(f.s.Events(f.ctx, s, from))
			f.must(err)
			sameEvents(t, fmt.Sprintf("events of %s from %d", s, from), got, want[min(max(from, 1)-1, uint64(len(want))):])
		}
		for _, err := range f.s.Events(f.ctx, s, 1) {
			f.must(err)
			break // whoever has seen enough may go
		}
	}
}

func hotStream(t *testing.T, f *fixture) {
	hot, cold := f.stream(1, 0), f.stream(1, 1)
	const batches, each = 60, 40
	var work []*millrace.Batch
	for i := range batches {
		b := &millrace.Batch{Partition: 1}
		for k := range each {
			b.Decisions = append(b.Decisions, decided(f.command(hot, "{}"), true, uint64(i*each+k), 1))
		}
		b.Decisions = append(b.Decisions, decided(f.command(cold, "{}"), true, uint64(i), 1))
		work = append(work, b)
	}
	f.commit(work...)
	f.check()
	for from := uint64(1); from < batches*each; from += 97 {
		got, err := all(f.s.Events(f.ctx, hot, from))
		f.must(err)
		sameEvents(t, "events of the hot stream", got, f.streams[hot][from-1:])
	}
}

func reopenKeeps(_ *testing.T, f *fixture) {
	for round := range 3 {
		for p := range f.partitions {
			s := f.stream(p, round%2)
			f.commit(&millrace.Batch{
				Partition: p, Accepted: []millrace.AcceptedCommand{accepted(f.command(s, "{}"))},
				Decisions: []millrace.Decision{decided(f.command(s, "{}"), true, f.version(s), 2)},
			})
			f.putViews(millrace.ViewBatch{Consumer: "c", Partition: p, Checkpoint: f.heads[p].Position, Puts: []millrace.Put{f.put("docs", p, fmt.Sprint(round), "{}", "k", "")}})
		}
		f.check()
		if !f.reopen() {
			return
		}
		f.check()
	}
}

func closedRefuses(t *testing.T, f *fixture) {
	s := f.stream(0, 0)
	f.commit(&millrace.Batch{Decisions: []millrace.Decision{decided(f.command(s, "{}"), true, 0, 1)}})
	store := f.s
	f.close()
	wantErr(t, "writable", store.Writable(), millrace.ErrClosed)
	done := make(chan error, 1)
	store.Driver().Append(&millrace.Batch{Accepted: []millrace.AcceptedCommand{accepted(f.command(s, "{}"))}}, func(err error) { done <- err })
	wantErr(t, "append", <-done, millrace.ErrClosed)
	wantErr(t, "commit views", store.CommitViews(f.ctx, []millrace.ViewBatch{{Consumer: "c", Checkpoint: 1}}), millrace.ErrClosed)
	_, err := store.Lookup(f.ctx, "cmd-000001")
	wantErr(t, "lookup", err, millrace.ErrClosed)
	_, err = store.Document(f.ctx, "c", 0, "d")
	wantErr(t, "document", err, millrace.ErrClosed)
	_, err = all(store.Events(f.ctx, s, 1))
	wantErr(t, "events", err, millrace.ErrClosed)
	_, err = readFeed(f.ctx, store, millrace.FeedOptions{})
	wantErr(t, "feed", err, millrace.ErrClosed)
	_, err = all(store.Documents(f.ctx, millrace.Query{Collection: "c", Index: -1, Partition: -1}))
	wantErr(t, "documents", err, millrace.ErrClosed)
	if err := store.Close(); err != nil {
		t.Errorf("a second close: %v", err)
	}
}

func closeWaitsForReads(t *testing.T, f *fixture) {
	for i := range 200 {
		s := f.stream(i%4, 0)
		f.commit(&millrace.Batch{Partition: i % 4, Decisions: []millrace.Decision{decided(f.command(s, "{}"), true, f.version(s), 3)}})
	}
	store := f.s
	f.s = nil
	var wg sync.WaitGroup
	started := make(chan struct{}, 8)
	for range 8 {
		wg.Go(func() {
			for first := true; ; first = false {
				got, err := all(store.Events(f.ctx, f.stream(1, 0), 1))
				if first {
					started <- struct{}{}
				}
				if err != nil {
					wantErr(t, "read while closing", err, millrace.ErrClosed)
					return
				}
				if len(got) != len(f.streams[f.stream(1, 0)]) {
					t.Errorf("a read while closing has %d events", len(got))
				}
			}
		})
	}
	for range 8 {
		<-started
	}
	if err := store.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	wg.Wait()
}
