package command_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/localstore"
)

// The store cannot read one stream for a while. Its commands are accepted, wait in order and are decided later, never
// refused; other streams of the same partition do not notice.
func TestTransientReadFailure(t *testing.T) {
	for _, call := range []string{"version", "events"} {
		t.Run(call, func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			first := openWith(t, fs, func(o *localstore.Options) { o.Partitions = 1 })
			p, stop := start(t, first, nil)
			decided(t, p, add("c0", "sick", 1))
			stop()
			var sick atomic.Bool
			var tries atomic.Int64
			sick.Store(true)
			fault := func(s millrace.Stream) error {
				if s == "tally-sick" && sick.Load() {
					tries.Add(1)
					return errPassing
				}
				return nil
			}
			h := &hooks{}
			if call == "version" {
				h.version = fault
			} else {
				h.events = func(s millrace.Stream, _ uint64) error { return fault(s) }
			}
			s := hooked(first, h)
			p, stop = start(t, s, nil)
			ctx := patient(t)
			want := []string{"c0"}
			var receipts []*millrace.Receipt
			for i := range 20 {
				id := fmt.Sprint("sick", i)
				r, err := p.Accept(ctx, add(id, "sick", 1))
				if err != nil {
					t.Fatal(err)
				}
				want, receipts = append(want, id), append(receipts, r)
				if o := decided(t, p, add(fmt.Sprint("well", i), "well", 1)); o.Status != millrace.StatusDecided {
					t.Errorf("%+v", o)
				}
			}
			if n := open(t, pullPlug(fs)).Backlog(); n != 20 {
				t.Errorf("%d of 20 waiting commands survive a power cut", n)
			}
			// More tries than a poisonous command gets.
			for i := 0; tries.Load() < 5; i++ {
				decided(t, p, add(fmt.Sprint("more", i), "well", 1))
			}
			if o := outcome(t, s, "sick0"); o.Status != millrace.StatusAccepted {
				t.Errorf("a passing trouble became an outcome: %+v", o)
			}
			sick.Store(false)
			// The stream waits for its next try; what comes just now must not overtake.
			r, err := p.Accept(ctx, add("sick-last", "sick", 1))
			if err != nil {
				t.Fatal(err)
			}
			want, receipts = append(want, "sick-last"), append(receipts, r)
			for _, r := range receipts {
				if o, err := r.Wait(ctx); err != nil || o.Status != millrace.StatusDecided {
					t.Errorf("%+v %v", o, err)
				}
			}
			if got := commandsOf(t, s, "sick"); !slices.Equal(got, want) {
				t.Errorf("decided %q", got)
			}
			stop()
			verify(t, s)
		})
	}
}

// A commit fails for good: nobody is told that his command is kept, Run says why, and nothing is taken any more. The
// commands that reach the disk all the same show up as decided once when they are sent again.
func TestCommitFails(t *testing.T) {
	fs := vfs.NewMem()
	var broken atomic.Bool
	h := &hooks{append: func(b *millrace.Batch, done func(error)) (bool, func(error)) {
		if !broken.Load() {
			return true, nil
		}
		// The worst case: it is written, but nobody can know.
		return true, func(error) { done(fmt.Errorf("%w: a test", millrace.ErrFailed)) }
	}}
	first := open(t, fs)
	s := hooked(first, h)
	p := runWith(t, s, registry(t), nil)
	decided(t, p.Processor, add("first", "a", 1))
	broken.Store(true)
	var wg sync.WaitGroup
	for c := range 20 {
		wg.Go(func() {
			_, err := p.Accept(patient(t), add(fmt.Sprint("c", c), fmt.Sprint(c), 1))
			if !errors.Is(err, millrace.ErrFailed) && !errors.Is(err, millrace.ErrClosed) {
				t.Errorf("accept says %v", err)
			}
		})
	}
	wg.Wait()
	<-p.ended
	if !errors.Is(p.err, millrace.ErrFailed) {
		t.Errorf("run says %v", p.err)
	}
	if _, err := p.Accept(patient(t), add("late", "a", 1)); !errors.Is(err, millrace.ErrClosed) {
		t.Errorf("after the end accept says %v", err)
	}
	if n := p.InFlight(); n != 0 {
		t.Errorf("%d commands are still held", n)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, fs)
	again, stop := start(t, s, nil)
	defer stop()
	for c := range 20 {
		if o := decided(t, again, add(fmt.Sprint("c", c), fmt.Sprint(c), 1)); o.Status != millrace.StatusDecided || o.Version != 1 {
			t.Errorf("%+v", o)
		}
	}
}

// The processor is stopped under load: whoever was told that a command is kept finds it, everybody gets an answer, and
// nothing is left running.
func TestStopUnderLoad(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	fs := vfs.NewMem()
	for round := range 5 {
		s := openWith(t, fs, nil)
		p := runWith(t, s, registry(t), nil)
		var mu sync.Mutex
		var acked []string
		var wg sync.WaitGroup
		ctx := patient(t)
		for c := range 16 {
			wg.Go(func() {
				for i := 0; ; i++ {
					id := fmt.Sprintf("r%d-%d-%d", round, c, i)
					r, err := p.Accept(ctx, add(id, fmt.Sprint(c%4), 1))
					if errors.Is(err, millrace.ErrClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					acked = append(acked, id)
					if len(acked) == 100*(round+1) {
						p.cancel()
					}
					mu.Unlock()
					if o, err := r.Wait(ctx); err != nil && !errors.Is(err, millrace.ErrClosed) || err == nil && !o.Done() {
						t.Errorf("%+v %v", o, err)
					}
				}
			})
		}
		wg.Wait()
		if err := p.stop(); err != nil {
			t.Error(err)
		}
		for _, id := range acked {
			outcome(t, s, id)
		}
		if n := p.InFlight(); n != 0 {
			t.Errorf("%d commands are still held", n)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	goleak.VerifyNone(t, leaks)
}
