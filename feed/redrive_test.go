package feed_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/feed"
)

// picky is a consumer of tallies that fails for the events of a stream from a version on, until that is moved.
type picky struct {
	from    atomic.Uint64 // 0: for none
	handled atomic.Int64
}

const pickyStream = "tally-s2"

func (p *picky) consumer() millrace.Consumer {
	c := tallies()
	project := c.Handle
	c.Handle = func(ctx context.Context, v millrace.Views, e *millrace.Recorded) error {
		if from := p.from.Load(); from > 0 && e.Stream == pickyStream && e.Version >= from {
			return errors.New("not now")
		}
		p.handled.Add(1)
		return project(ctx, v, e)
	}
	return c
}

// A parked stream is gone on with when somebody asks for it: in order, from the event that failed, many events or few; where
// it fails again it is parked from there; and in the end everything is as if nothing had ever failed, each event handled once.
// It is the same when the consumer is stopped and started at each step.
func TestRedrive(t *testing.T) {
	for _, restarts := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := open(t, vfs.NewMem())
			var p picky
			var alarms parkedCount
			p.from.Store(3)
			var stop func()
			begin := func() {
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() {
					ended <- feed.New(s, registry(t), p.consumer(), &feed.Options{Attempts: 2, Observer: &alarms}).Run(ctx)
				}()
				stop = func() {
					cancel()
					if err := <-ended; err != nil {
						t.Error(err)
					}
				}
			}
			again := func() {
				if restarts {
					stop()
					begin()
				}
			}
			begin()
			const each = 1500 // more than one commit takes
			cs := adds("c", 4*each, 4)
			send(t, s, registry(t), cs...)
			settled := func() {
				if err := s.Wait(t.Context(), "tallies", s.Head()); err != nil {
					t.Fatal(err)
				}
				<-time.After(5 * time.Second) // what is asked is looked for every second
				synctest.Wait()
			}
			parked := func() *millrace.Parked {
				stream := millrace.Stream(pickyStream)
				d, err := s.Document(t.Context(), "tallies.parked", stream.Partition(s.Partitions()), pickyStream)
				if errors.Is(err, millrace.ErrNotFound) {
					return nil
				}
				if err != nil {
					t.Fatal(err)
				}
				doc, err := millrace.ParkedTable.Decode(d.Data)
				if err != nil {
					t.Fatal(err)
				}
				return doc
			}
			n := 0
			ask := func() {
				n++
				if err := feed.Redrive(t.Context(), s, "tallies", fmt.Sprint("ask", n), pickyStream, time.Now()); err != nil {
					t.Fatal(err)
				}
			}
			settled()
			first := parked()
			if first == nil || first.Version != 3 || alarms.streams.Load() != 1 {
				t.Fatalf("%+v, %d alarms", first, alarms.streams.Load())
			}
			again()
			ask() // nothing was mended
			settled()
			if d := parked(); d == nil || d.Version != 3 || d.Attempts != first.Attempts+1 || !d.Since.After(first.Since) || d.Error != "not now" {
				t.Errorf("%+v", d)
			}
			again()
			p.from.Store(1200) // most of it is
			ask()
			if err := feed.Redrive(t.Context(), s, "tallies", "other", "tally-s1", time.Now()); !errors.Is(err, millrace.ErrNotFound) {
				t.Errorf("a stream that is not parked: %v", err)
			}
			settled()
			if d := parked(); d == nil || d.Version != 1200 || alarms.streams.Load() != 1 {
				t.Errorf("%+v, %d alarms", d, alarms.streams.Load())
			}
			again()
			send(t, s, registry(t), adds("more", 8, 4)...) // what comes meanwhile waits behind it
			p.from.Store(0)
			ask()
			settled()
			if d := parked(); d != nil || alarms.streams.Load() != 0 {
				t.Errorf("%+v, %d alarms", d, alarms.streams.Load())
			}
			again()
			send(t, s, registry(t), adds("last", 8, 4)...) // and what comes after it goes its usual way
			settled()
			stop()
			if got := p.handled.Load(); got < 4*each+16 {
				t.Errorf("%d events were handled", got)
			}
			fresh := open(t, vfs.NewMem())
			send(t, fresh, registry(t), append(append(cs, adds("more", 8, 4)...), adds("last", 8, 4)...)...)
			if err := follow(t, fresh, registry(t), tallies(), nil); err != nil {
				t.Fatal(err)
			}
			collections := []string{"tallies.tallies", "tallies.parked", "tallies.asks"}
			if d := cmp.Diff(dump(t, fresh, collections...), dump(t, s, collections...)); d != "" {
				t.Error(d)
			}
			if err := errors.Join(s.Close(), fresh.Close()); err != nil {
				t.Error(err)
			}
		})
	}
}

// An event that a person says is to be left out is, and no other: what comes behind it is handled in order, also where the
// consumer is asked twice, and where the next one fails too the stream is parked there.
func TestSkip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, vfs.NewMem())
		var seen []uint64
		var failing atomic.Pointer[map[uint64]bool]
		failing.Store(&map[uint64]bool{3: true, 4: true})
		c := tallies()
		c.Handle = func(_ context.Context, _ millrace.Views, e *millrace.Recorded) error {
			if e.Stream != pickyStream {
				return nil
			}
			if (*failing.Load())[e.Version] {
				return errors.New("not now")
			}
			seen = append(seen, e.Version)
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- feed.New(s, registry(t), c, &feed.Options{Attempts: 2}).Run(ctx) }()
		send(t, s, registry(t), adds("c", 24, 4)...) // six events for each stream
		settled := func() {
			t.Helper()
			if err := s.Wait(t.Context(), "tallies", s.Head()); err != nil {
				t.Fatal(err)
			}
			<-time.After(5 * time.Second) // what is asked is looked for every second
			synctest.Wait()
		}
		parkedAt := func() uint64 {
			t.Helper()
			stream := millrace.Stream(pickyStream)
			d, err := s.Document(t.Context(), "tallies.parked", stream.Partition(s.Partitions()), pickyStream)
			if errors.Is(err, millrace.ErrNotFound) {
				return 0
			}
			if err != nil {
				t.Fatal(err)
			}
			doc, err := millrace.ParkedTable.Decode(d.Data)
			if err != nil {
				t.Fatal(err)
			}
			return doc.Version
		}
		n := 0
		skip := func(version uint64) {
			t.Helper()
			n++
			if err := feed.Skip(t.Context(), s, "tallies", fmt.Sprint("ask", n), pickyStream, version, time.Now()); err != nil {
				t.Fatal(err)
			}
			settled()
		}
		settled()
		skip(2) // it is not parked there
		if at := parkedAt(); at != 3 {
			t.Errorf("parked at %d", at)
		}
		skip(3)
		if at := parkedAt(); at != 4 {
			t.Errorf("parked at %d", at)
		}
		skip(3) // once more
		if at := parkedAt(); at != 4 {
			t.Errorf("parked at %d", at)
		}
		failing.Store(&map[uint64]bool{})
		skip(4)
		if at := parkedAt(); at != 0 {
			t.Errorf("parked at %d", at)
		}
		if err := feed.Skip(t.Context(), s, "tallies", "late", pickyStream, 4, time.Now()); !errors.Is(err, millrace.ErrNotFound) {
			t.Errorf("a stream that is not parked: %v", err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		// The batch in which the third one failed was taken again, up to that one.
		if d := cmp.Diff([]uint64{1, 2, 1, 2, 5, 6}, seen); d != "" {
			t.Error(d)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
