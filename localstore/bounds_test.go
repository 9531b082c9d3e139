package localstore

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
)

func timeOf(nanos int64) time.Time { return time.Unix(0, nanos).UTC() }

// push pushes one journal batch of n events of size bytes.
func push(tl *tail, seq *uint64, position *uint64, n, size int) {
	d := millrace.Decision{Command: &millrace.Command{ID: "c", Stream: "tally-1"}, Status: millrace.StatusDecided, Position: *position, Version: *position}
	for range n {
		d.Events = append(d.Events, millrace.NewEvent{Type: "Added", Data: make([]byte, size)})
	}
	*seq++
	*position += uint64(n)                                                                                                                //nolint:gosec // not negative
	b := &durable{seq: *seq, end: makeLoc(1, int64(*seq)), reqs: []*request{{batch: &millrace.Batch{Decisions: []millrace.Decision{d}}}}} //nolint:gosec // small
	tl.push(b, n, []millrace.Head{{Position: *position}})
}

// TestTailIsBounded: however much is pushed, and in whatever pieces, the newest events in memory keep to their bounds,
// and a reader is told where they begin.
func TestTailIsBounded(t *testing.T) {
	for _, c := range []struct{ batches, events, size int }{
		{200_000, 1, 10}, {40_000, 0, 0}, {100, 5_000, 10}, {300, 4, 100_000}, {3, 40_000, 1}, {5, 1, tailBytes + 1},
	} {
		tl := &tail{}
		tl.init(0, make([]millrace.Head, 1), durable{})
		var seq, position uint64
		for range c.batches {
			push(tl, &seq, &position, c.events, c.size)
			events, bytes := 0, 0
			if seq%997 == 0 || seq == uint64(c.batches) {
				for i := range tl.batches {
					events += len(tl.batches[i].events)
					for k := range tl.batches[i].events {
						bytes += len(tl.batches[i].events[k].Data)
					}
				}
				if events > tailEvents || bytes > tailBytes || len(tl.batches) > tailEvents || cap(tl.batches) > 4*tailEvents {
					t.Fatalf("%+v: the tail holds %d batches (room for %d), %d events, %d bytes", c, len(tl.batches), cap(tl.batches), events, bytes)
				}
				if events != tl.events || bytes != tl.bytes || tl.start[0]+uint64(events) != position {
					t.Fatalf("%+v: the tail counts %d events and %d bytes from %d on, it has %d and %d", c, tl.events, tl.bytes, tl.start[0], events, bytes)
				}
			}
		}
		start, ok := tl.begin(millrace.At(1, 0, tl.start[0]))
		if !ok {
			t.Errorf("%+v: a reader at the tail's beginning is turned away", c)
		}
		got, last, ok := tl.read(start, nil, 10)
		if !ok || len(got) > 0 && got[0].Position != tl.start[0]+1 {
			t.Errorf("%+v: reading from the tail's beginning: %d events, batch %d, %v", c, len(got), last, ok)
		}
		if tl.start[0] > 0 {
			if _, ok := tl.begin(millrace.At(1, 0, tl.start[0]-1)); ok {
				t.Errorf("%+v: a reader from before the tail is taken in", c)
			}
		}
	}
}

// TestOpenSegmentFilesAreBounded reads from many segments, also at the same time.
func TestOpenSegmentFilesAreBounded(t *testing.T) {
	mem := vfs.NewMem()
	const n = 3 * maxOpenSegments
	for i := uint64(1); i <= n; i++ {
		f, err := mem.Create(segmentName(i), journalCategory)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	files := &segmentFiles{fs: mem, dir: "", open: map[uint64]*segmentFile{}}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := uint64(1); i <= n; i++ {
				f, err := files.acquire(i)
				if err != nil {
					t.Error(err)
					return
				}
				files.mu.Lock()
				if len(files.open) > maxOpenSegments+4 {
					t.Errorf("%d files are open", len(files.open))
				}
				files.mu.Unlock()
				files.release(f)
			}
		})
	}
	wg.Wait()
	files.close()
	if len(files.open) != 0 {
		t.Errorf("%d files are open after close", len(files.open))
	}
}

// TestBatchThatNoSegmentCanHoldIsRefused, and what is built on it is refused too, so that the journal stays one that
// recovery takes.
func TestBatchThatNoSegmentCanHoldIsRefused(t *testing.T) {
	mem := vfs.NewMem()
	s, err := openWith(victimDir, small(t, Options{FS: mem, Partitions: 1, noBackground: true}), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	l := &ledger{}
	c, err := newCommitter(s, l, 0, "r")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.commit(); err != nil {
		t.Fatal(err)
	}
	large := &millrace.Command{ID: "large", Stream: c.streams[0], Type: "Add", Data: []byte(strings.Repeat("x", 70_000)), Time: clock}
	done := make(chan error, 2)
	s.Commit(&millrace.Batch{Decisions: []millrace.Decision{{
		Command: large, Fresh: true, Fingerprint: large.Fingerprint(), Status: millrace.StatusDecided, Time: clock, Version: c.version[c.streams[0]],
		Events: []millrace.NewEvent{{Type: "Added", Data: []byte("1")}},
	}}}, func(err error) { done <- err })
	s.Commit(c.next(), func(err error) { done <- err }) // was decided before the first one came back
	for range 2 {
		if err := <-done; !errors.Is(err, millrace.ErrInvalid) {
			t.Errorf("got %v, want ErrInvalid", err)
		}
	}
	s.Reload(0)
	if c, err = newCommitter(s, l, 0, "again"); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := c.commit(); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(check(s, l.snapshot()), s.Close()); err != nil {
		t.Fatal(err)
	}
	s, err = openWith(victimDir, small(t, Options{FS: mem, Partitions: 1, noBackground: true}), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(check(s, l.snapshot()), s.Close()); err != nil {
		t.Error(err)
	}
}

// TestReopenAgainAndAgain closes right at the beginning of a segment, too: what recovery writes must be what it takes.
func TestReopenAgainAndAgain(t *testing.T) {
	mem := vfs.NewMem()
	l := &ledger{}
	for round := range 60 {
		s, err := openWith(victimDir, small(t, Options{FS: mem, Partitions: 2, noBackground: round%2 == 0}), victimSegment)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := errors.Join(l.run(s, fmt.Sprint("r", round), round%4), check(s, l.snapshot()), s.Close()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
}
