package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/millracetest"
	"github.com/millrace-io/millrace/transfer"
)

func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func local(t testing.TB, fs vfs.FS, o localstore.Options) *millrace.Store {
	t.Helper()
	o.FS, o.SegmentSize, o.MemTableSize, o.CacheSize = fs, 1<<20, 1<<20, 1<<20
	s, err := localstore.Open("store", &o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

const commands = 400

// lived fills a store with everything that there is: commands that were decided, refused, given up and not yet decided, in
// many streams; documents with indexes and their checkpoints.
func lived(t testing.TB, s *millrace.Store) {
	t.Helper()
	reg, err := millrace.NewRegistry(millracetest.Tally())
	if err != nil {
		t.Fatal(err)
	}
	work(t, s, reg, false, func(ctx context.Context, p *command.Processor) {
		for i := range commands {
			c := millrace.Command{ID: fmt.Sprint("c", i), Stream: millrace.NewStream("tally", fmt.Sprint("s", i%23)), Type: "Add", Data: []byte(`{"n":1}`)}
			switch i % 50 {
			case 7:
				c.Type = "Unheard"
			case 8:
				c.Data = []byte(`{"n":`)
			case 9:
				version := uint64(4711)
				c.Expected = &version
			}
			r, err := p.Accept(ctx, c)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Wait(ctx); err != nil {
				t.Fatal(err)
			}
		}
	})
	project := millracetest.Tallies().Project
	c := millrace.Consumer{Name: "tallies", Categories: []string{"tally"}, Handle: func(_ context.Context, v millrace.Views, e *millrace.Recorded) error {
		return project(v, e)
	}}
	ctx, cancel := context.WithCancel(patient(t))
	ended := make(chan error, 1)
	go func() { ended <- feed.New(s, reg, c, nil).Run(ctx) }()
	if err := s.Wait(ctx, "tallies", s.Head()); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	work(t, s, reg, true, func(ctx context.Context, p *command.Processor) {
		for i := range 30 {
			c := millrace.Command{ID: fmt.Sprint("p", i), Stream: millrace.NewStream("tally", fmt.Sprint("s", i%5)), Type: "Add", Data: []byte(`{"n":2}`)}
			if _, err := p.Accept(ctx, c); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func work(t testing.TB, s *millrace.Store, reg *millrace.Registry, paused bool, f func(ctx context.Context, p *command.Processor)) {
	t.Helper()
	p := command.New(s, reg, &command.Options{Paused: paused})
	ctx, cancel := context.WithCancel(patient(t))
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	f(ctx, p)
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// dump is everything that a store answers.
func dump(t testing.TB, s *millrace.Store) string {
	t.Helper()
	ctx := patient(t)
	var b strings.Builder
	fmt.Fprintln(&b, s.Meta(), s.Heads(), s.Backlog())
	for _, prefix := range []string{"c", "p"} {
		for i := range commands {
			id := fmt.Sprint(prefix, i)
			o, err := s.Lookup(ctx, id)
			if errors.Is(err, millrace.ErrNotFound) {
				continue
			}
			c, cerr := s.Command(ctx, id)
			if err != nil || cerr != nil {
				t.Fatalf("%s: %v %v", id, err, cerr)
			}
			refusal, failure := o.Refusal, o.Failure
			o.Refusal, o.Failure = nil, nil
			fmt.Fprintf(&b, "%+v %+v %+v %s %s\n", o, refusal, failure, millrace.AppendCommand(nil, &c), c.Data)
		}
	}
	for p := range s.Partitions() {
		for a, err := range s.Pending(ctx, p) {
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&b, "pending", p, a.Command.ID)
		}
		for events, err := range s.Feed(ctx, millrace.FeedOptions{Partitions: []int{p}}) {
			if err != nil {
				t.Fatal(err)
			}
			for i := range events {
				e := events[i]
				e.Body = nil
				fmt.Fprintf(&b, "%+v\n", e)
			}
		}
	}
	portable := s.Driver().(millrace.Portable) //nolint:forcetypeassert // both are
	collections, err := portable.Collections(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range collections {
		for _, index := range []int{-1, 0} {
			for d, err := range s.Documents(ctx, millrace.Query{Collection: name, Index: index, Partition: -1}) {
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&b, "%s %d %d %s %q %s\n", name, index, d.Partition, d.ID, d.Keys, d.Data)
			}
		}
	}
	at, err := s.Checkpoints(ctx, "tallies")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(&b, at.Positions)
	if err := s.Verify(ctx, func(problem string) { t.Error(problem) }); err != nil {
		t.Error(err)
	}
	return b.String()
}

// A copy answers everything as its source does.
func TestCopy(t *testing.T) {
	from := local(t, vfs.NewMem(), localstore.Options{Partitions: 4})
	lived(t, from)
	want := dump(t, from)
	meta := from.Meta()
	to := local(t, vfs.NewMem(), localstore.Options{Copy: &meta})
	var told atomic.Int64
	r, err := transfer.Copy(patient(t), from, to, transfer.Options{Progress: func(transfer.Report) { told.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	if r.Decisions != commands || r.Pending != 30 || r.Events != r.TotalEvents || r.Documents == 0 || r.Consumers != 1 || told.Load() == 0 {
		t.Errorf("%+v", r)
	}
	if d := cmp.Diff(strings.Split(want, "\n"), strings.Split(dump(t, to), "\n")); d != "" {
		t.Errorf("the copy is another one:\n%s", d)
	}
	if open, err := transfer.Incomplete(t.Context(), to); open || err != nil {
		t.Errorf("%v %v", open, err)
	}
	// Once more: nothing changes.
	if _, err := transfer.Copy(patient(t), from, to, transfer.Options{}); err != nil {
		t.Error(err)
	}
	if dump(t, to) != want {
		t.Error("copying again changed the copy")
	}
}

// dying is a target that fails at its k-th write.
type dying struct {
	millrace.Driver
	left atomic.Int64
}

var errDied = errors.New("the machine is gone")

func (d *dying) Append(b *millrace.Batch, done func(error)) {
	if d.left.Add(-1) < 0 {
		go done(errDied)
		return
	}
	d.Driver.Append(b, done)
}

func (d *dying) CommitViews(ctx context.Context, batches []millrace.ViewBatch) error {
	if d.left.Add(-1) < 0 {
		return errDied
	}
	return d.Driver.CommitViews(ctx, batches)
}

func (d *dying) DropViews(ctx context.Context, consumer string, collections []string) error {
	if d.left.Add(-1) < 0 {
		return errDied
	}
	return d.Driver.DropViews(ctx, consumer, collections)
}

// A copy that dies at each of its writes says that it is none, and comes to the same when it is begun again.
func TestInterruptedCopy(t *testing.T) {
	from := local(t, vfs.NewMem(), localstore.Options{Partitions: 2})
	lived(t, from)
	want := dump(t, from)
	meta := from.Meta()
	for k := int64(1); ; k += 1 + k/3 {
		fs := vfs.NewMem()
		to := local(t, fs, localstore.Options{Copy: &meta})
		d := &dying{Driver: to.Driver()}
		d.left.Store(k)
		_, err := transfer.Copy(patient(t), from, millrace.NewStore(d), transfer.Options{})
		if err == nil {
			if k < 8 {
				t.Fatalf("only %d writes", k)
			}
			return
		}
		if !errors.Is(err, errDied) {
			t.Fatal(err)
		}
		if open, err := transfer.Incomplete(t.Context(), to); !open || err != nil {
			t.Errorf("died at write %d: the copy does not say that it is incomplete (%v)", k, err)
		}
		if err := to.Close(); err != nil {
			t.Fatal(err)
		}
		to = local(t, fs, localstore.Options{Copy: &meta})
		if _, err := transfer.Copy(patient(t), from, to, transfer.Options{}); err != nil {
			t.Fatalf("died at write %d, begun again: %v", k, err)
		}
		if dump(t, to) != want {
			t.Errorf("died at write %d: the copy is another one", k)
		}
		if err := to.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// What is no copy of the source is left alone.
func TestForeignTarget(t *testing.T) {
	from := local(t, vfs.NewMem(), localstore.Options{Partitions: 2})
	lived(t, from)
	other := local(t, vfs.NewMem(), localstore.Options{Partitions: 2})
	if _, err := transfer.Copy(patient(t), from, other, transfer.Options{}); !errors.Is(err, millrace.ErrInvalid) {
		t.Errorf("a store of its own: %v", err)
	}
	meta := from.Meta()
	ahead := local(t, vfs.NewMem(), localstore.Options{Copy: &meta})
	lived(t, ahead) // the same identity, and a history of its own: times differ
	before := dump(t, ahead)
	if _, err := transfer.Copy(patient(t), from, ahead, transfer.Options{}); !errors.Is(err, millrace.ErrInvalid) {
		t.Errorf("a store that has gone on by itself: %v", err)
	}
	if !strings.Contains(dump(t, ahead), strings.Split(before, "\n")[1]) {
		t.Error("it was changed")
	}
	fs := vfs.NewMem()
	if err := local(t, fs, localstore.Options{}).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := localstore.Open("store", &localstore.Options{FS: fs, Copy: &meta}); !errors.Is(err, millrace.ErrInvalid) {
		t.Errorf("a folder that holds another store: %v", err)
	}
}
