package millracetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/millrace-io/millrace"
)

// fill writes batches of different sizes into all partitions.
func (f *fixture) fill(batches int) {
	f.t.Helper()
	var work []*millrace.Batch
	next := map[millrace.Stream]uint64{}
	for i := range batches {
		p := i % f.partitions
		b := &millrace.Batch{Partition: p}
		for k := range i % 4 {
			s := f.stream(p, k)
			if _, ok := next[s]; !ok {
				next[s] = f.version(s)
			}
			n := (i + k) % 3
			b.Decisions = append(b.Decisions, decided(f.command(s, "{}"), true, next[s], n))
			next[s] += uint64(n)
		}
		if i%5 == 0 {
			b.Accepted = append(b.Accepted, accepted(f.command(f.stream(p, 0), "{}")))
		}
		work = append(work, b)
	}
	f.commit(work...)
}

// behind is what the feed must yield behind a cursor.
func (f *fixture) behind(c millrace.Cursor, partitions []int) [][]millrace.Recorded {
	out := make([][]millrace.Recorded, f.partitions)
	for p, events := range f.log {
		wanted := partitions == nil
		for _, w := range partitions {
			wanted = wanted || w == p
		}
		if wanted {
			out[p] = events[min(c.Position(p), uint64(len(events))):]
		}
	}
	return out
}

func feedFromAnyCursor(t *testing.T, f *fixture) {
	f.fill(200)
	try := func() {
		for i := range 60 {
			c := millrace.Cursor{Epoch: f.s.Meta().Epoch}
			for p, events := range f.log {
				if i%7 == 3 && p == 2 {
					break // names fewer partitions than there are
				}
				c.Positions = append(c.Positions, uint64((i*(p+3)*7)%(len(events)+1)))
			}
			got, err := readFeed(f.ctx, f.s, millrace.FeedOptions{After: c})
			f.must(err)
			sameLog(t, fmt.Sprintf("feed after %v", c.Positions), got, f.behind(c, nil))
		}
		got, err := readFeed(f.ctx, f.s, millrace.FeedOptions{After: f.s.Head()})
		f.must(err)
		sameLog(t, "feed after the head", got, f.behind(f.s.Head(), nil))
	}
	try() // from what is in memory
	if f.reopen() {
		try() // from the disk
		f.fill(40)
		try() // from both
	}
}

func feedOfSomePartitions(t *testing.T, f *fixture) {
	f.fill(120)
	for _, partitions := range [][]int{{0}, {3}, {1, 2}, {2, 1}, {}, nil} {
		for _, after := range []millrace.Cursor{{}, millrace.At(f.s.Meta().Epoch, 1, 5)} {
			o := millrace.FeedOptions{Partitions: partitions, After: after}
			got, err := readFeed(f.ctx, f.s, o)
			f.must(err)
			sameLog(t, fmt.Sprintf("feed of %v", partitions), got, f.behind(after, partitions))
		}
	}
}

func feedEndsAtHead(t *testing.T, f *fixture) {
	f.fill(20)
	want := f.behind(millrace.Cursor{}, nil)
	s := f.stream(0, 0)
	got := make([][]millrace.Recorded, f.partitions)
	first := true
	for batch, err := range f.s.Feed(f.ctx, millrace.FeedOptions{}) {
		f.must(err)
		if len(batch) == 0 {
			t.Error("a feed yielded nothing")
		}
		for i := range batch {
			got[batch[i].Partition] = append(got[batch[i].Partition], batch[i])
		}
		if first { // what is written from here on came after the call
			first = false
			f.commit(&millrace.Batch{Decisions: []millrace.Decision{decided(f.command(s, "{}"), true, f.version(s), 3)}})
		}
	}
	sameLog(t, "feed", got, want)
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	_, err := readFeed(ctx, f.s, millrace.FeedOptions{})
	wantErr(t, "feed that was cancelled", err, context.Canceled)
}

func feedRefusesForeignCursors(t *testing.T, f *fixture) {
	f.fill(10)
	epoch := f.s.Meta().Epoch
	for _, follow := range []bool{false, true} {
		_, err := readFeed(f.ctx, f.s, millrace.FeedOptions{After: millrace.At(epoch+1, 0, 1), Follow: follow})
		wantErr(t, "cursor of another epoch", err, millrace.ErrCursorEpoch)
		_, err = readFeed(f.ctx, f.s, millrace.FeedOptions{After: millrace.At(epoch, f.partitions, 1), Follow: follow})
		wantErr(t, "cursor of more partitions", err, millrace.ErrInvalid)
	}
	wantErr(t, "wait for a cursor of another epoch", f.s.Wait(f.ctx, "c", millrace.At(epoch+1, 0, 1)), millrace.ErrCursorEpoch)
}

// follower reads a feed that follows and checks that it goes on without gaps.
type follower struct {
	after millrace.Cursor
	seen  [][]millrace.Recorded
}

func (w *follower) run(ctx context.Context, s *millrace.Store, until []uint64, each func()) error {
	w.seen = make([][]millrace.Recorded, len(until))
	next := make([]uint64, len(until))
	missing := uint64(0)
	for p := range until {
		next[p] = w.after.Position(p) + 1
		missing += until[p] - w.after.Position(p)
	}
	if missing == 0 {
		return nil
	}
	for batch, err := range s.Feed(ctx, millrace.FeedOptions{After: w.after, Follow: true}) {
		if err != nil {
			return err
		}
		for i := range batch {
			e := &batch[i]
			if e.Position != next[e.Partition] {
				return fmt.Errorf("partition %d: position %d came when %d was due", e.Partition, e.Position, next[e.Partition])
			}
			next[e.Partition]++
			missing--
			w.seen[e.Partition] = append(w.seen[e.Partition], *e)
		}
		if missing == 0 {
			return nil
		}
		if each != nil {
			each()
		}
	}
	return fmt.Errorf("the feed ended with %d events missing: %w", missing, ctx.Err())
}

func followersSeeEverything(t *testing.T, f *fixture) {
	f.fill(40)
	const batches = 150
	work := make([][]*millrace.Batch, f.partitions)
	until := make([]uint64, f.partitions)
	for p := range work {
		until[p] = uint64(len(f.log[p]))
		next := map[int]uint64{0: f.version(f.stream(p, 0)), 1: f.version(f.stream(p, 1)), 2: f.version(f.stream(p, 2))}
		for i := range batches {
			n := i % 4
			work[p] = append(work[p], &millrace.Batch{Partition: p, Decisions: []millrace.Decision{
				decided(f.command(f.stream(p, i%3), "{}"), true, next[i%3], n),
			}})
			next[i%3] += uint64(n)
			until[p] += uint64(n)
		}
	}
	start := make([]chan struct{}, 8) // followers start at different moments
	for i := range start {
		start[i] = make(chan struct{})
	}
	followers := make([]follower, len(start))
	var wg sync.WaitGroup
	for i := range followers {
		w := &followers[i]
		if i%2 == 1 {
			w.after = millrace.Cursor{Epoch: f.s.Meta().Epoch, Positions: []uint64{uint64(i), 0, uint64(2 * i), 3}}
		}
		wg.Go(func() {
			<-start[i]
			if err := w.run(f.ctx, f.s, until, nil); err != nil {
				t.Errorf("follower %d: %v", i, err)
			}
		})
	}
	for p := range work {
		wg.Go(func() {
			for i, b := range work[p] {
				for k := range start {
					if p == 0 && i == k*batches/len(start) {
						close(start[k])
					}
				}
				done := make(chan error, 1)
				f.s.Commit(b, func(err error) { done <- err })
				if err := <-done; err != nil {
					t.Errorf("commit: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for p := range work {
		for _, b := range work[p] {
			f.apply(t, b)
		}
	}
	for i := range followers {
		sameLog(t, fmt.Sprintf("what follower %d saw", i), followers[i].seen, f.behind(followers[i].after, nil))
	}
	f.checkEvents()
}

func slowFollower(t *testing.T, f *fixture) {
	f.fill(30)
	until := make([]uint64, f.partitions)
	for p := range until {
		until[p] = uint64(len(f.log[p]))
	}
	const perBatch = 500
	batches := f.h.Many/perBatch + 2
	s := f.stream(1, 7)
	until[1] += uint64(batches * perBatch) //nolint:gosec // not negative
	holds, goOn := make(chan struct{}), make(chan struct{})
	slow, quick := &follower{}, &follower{}
	var wg sync.WaitGroup
	wg.Go(func() {
		first := true
		err := slow.run(f.ctx, f.s, until, func() {
			if first {
				first = false
				close(holds)
				<-goOn
			}
		})
		if err != nil {
			t.Errorf("slow follower: %v", err)
		}
	})
	wg.Go(func() {
		if err := quick.run(f.ctx, f.s, until, nil); err != nil {
			t.Errorf("quick follower: %v", err)
		}
	})
	<-holds
	for i := range batches {
		b := &millrace.Batch{Partition: 1}
		b.Decisions = append(b.Decisions, decided(f.command(s, "{}"), true, uint64(i*perBatch), perBatch))
		f.commit(b)
	}
	close(goOn)
	wg.Wait()
	if !t.Failed() {
		sameLog(t, "what the slow follower saw", slow.seen, f.log)
		sameLog(t, "what the quick follower saw", quick.seen, f.log)
	}
}

func followEnds(t *testing.T, f *fixture) {
	f.fill(8)
	ctx, cancel := context.WithCancel(f.ctx)
	ended := make(chan error, 2)
	atHead := make(chan struct{}, 2)
	follow := func(ctx context.Context) {
		for _, err := range f.s.Feed(ctx, millrace.FeedOptions{Follow: true}) {
			if err != nil {
				ended <- err
				return
			}
			atHead <- struct{}{}
		}
		ended <- nil
	}
	go follow(ctx)
	<-atHead
	cancel()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("a follower whose context ended: %v", err)
	}
	go follow(f.ctx)
	<-atHead
	f.close()
	select {
	case err := <-ended:
		if err != nil && !errors.Is(err, millrace.ErrClosed) {
			t.Errorf("a follower whose store was closed: %v", err)
		}
	case <-f.ctx.Done():
		t.Error("a follower does not end when the store is closed")
	}
}
