package feed_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/millracetest"
)

// A stream that was parked is made again as if it had never failed, and goes on in order. What others have stays, and where
// the handler fails again, nothing is written.
func TestRepair(t *testing.T) {
	s := open(t, vfs.NewMem())
	reg := registry(t)
	send(t, s, reg, adds("c", 40, 4)...)
	bad := true
	c := tallies()
	handle := c.Handle
	c.Handle = func(ctx context.Context, v millrace.Views, e *millrace.Recorded) error {
		if bad && e.Stream == "tally-s1" && e.Version == 4 {
			return errPassing
		}
		return handle(ctx, v, e)
	}
	o := &feed.Options{Attempts: 1, Backoff: time.Millisecond}
	c = watch(t).consumer(c)
	if err := follow(t, s, reg, c, o); err != nil {
		t.Fatal(err)
	}
	own := millracetest.Tallies().OfStream("tally-s1")
	before := dump(t, s, tallyDocuments, "tallies.parked")
	if err := feed.Repair(t.Context(), s, reg, c, "tally-s1", own, 0); !errors.Is(err, errPassing) || dump(t, s, tallyDocuments, "tallies.parked") != before {
		t.Errorf("a repair that fails: %v", err)
	}
	bad = false
	if err := feed.Repair(t.Context(), s, reg, c, "tally-s1", own, 0); err != nil {
		t.Fatal(err)
	}
	send(t, s, reg, adds("d", 40, 4)...)
	if err := follow(t, s, reg, c, o); err != nil {
		t.Fatal(err)
	}
	got := dump(t, s, tallyDocuments, "tallies.parked")
	fresh := open(t, vfs.NewMem())
	send(t, fresh, reg, adds("c", 40, 4)...)
	send(t, fresh, reg, adds("d", 40, 4)...)
	if err := follow(t, fresh, reg, tallies(), nil); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(dump(t, fresh, tallyDocuments), got); d != "" {
		t.Error(d)
	}
	c.Handle = func(ctx context.Context, v millrace.Views, e *millrace.Recorded) error {
		millracetest.TallyTable.Put(v, "tally-s2", &millracetest.TallyDocument{})
		return handle(ctx, v, e)
	}
	if err := feed.Repair(t.Context(), s, reg, c, "tally-s1", own, 0); !errors.Is(err, millrace.ErrInvalid) || dump(t, s, tallyDocuments) != got {
		t.Errorf("another stream's document: %v", err)
	}
}

// What a consumer did in the world for old events is not done again.
func TestEffectsAreNotRepeated(t *testing.T) {
	s := open(t, vfs.NewMem())
	reg := registry(t)
	send(t, s, reg, adds("c", 4, 2)...)
	n := 0
	c := millrace.Consumer{Name: "letters", Effects: true, Handle: func(context.Context, millrace.Views, *millrace.Recorded) error {
		n++
		return nil
	}}
	if err := follow(t, s, reg, c, &feed.Options{Workers: 1}); err != nil || n != 4 {
		t.Fatalf("%d effects, %v", n, err)
	}
	again := renamed(c, "letters@2")
	again.Rebuilding = true
	if err := feed.New(s, reg, again, nil).Run(t.Context()); !errors.Is(err, millrace.ErrInvalid) || n != 4 {
		t.Errorf("%d effects, %v", n, err)
	}
	if err := feed.Repair(t.Context(), s, reg, c, "tally-s1", nil, 0); !errors.Is(err, millrace.ErrInvalid) || n != 4 {
		t.Errorf("%d effects, %v", n, err)
	}
}
