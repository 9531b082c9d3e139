package command_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/localstore"
)

// The tests of this file tell one unlucky order of events each, with gates in the driver and in the domain.

// holdBacklog makes the backlog unreadable until it is let go: the processor stays behind, so that new commands are
// kept alone.
func holdBacklog(h *hooks) (release func()) {
	var readable atomic.Bool
	h.pending = func(int, int) error {
		if readable.Load() {
			return nil
		}
		return errPassing
	}
	return func() { readable.Store(true) }
}

// A command is kept alone. The loop finds it in the store before its caller was told that it is there: whoever waits
// for it must still be told the outcome.
func TestWaitWhereTheLoopIsFasterThanTheReceipt(t *testing.T) {
	h := &hooks{}
	release := holdBacklog(h)
	told, deciding, looked := newGate(t), newGate(t), newGate(t)
	h.append = func(b *millrace.Batch, done func(error)) (bool, func(error)) {
		if len(b.Accepted) == 0 {
			return true, nil
		}
		return true, func(err error) { go func() { told.pass(); done(err) }() }
	}
	h.afterLookup = func(string) {
		if told.isOpen() {
			looked.arrive.Do(func() { close(looked.reached) })
		}
	}
	s := hooked(open(t, vfs.NewCrashableMem()), h)
	reg := registryOf(t, noted(func(string) ([]any, bool) { deciding.pass(); return nil, false }))
	p := runWith(t, s, reg, nil)
	ctx := patient(t)

	receipt := make(chan *millrace.Receipt, 1)
	go func() {
		r, err := p.Accept(ctx, addNote("c", "x", 1, "slow"))
		if err != nil {
			t.Error(err)
		}
		receipt <- r
	}()
	told.awaitVisitor(t) // on disk and visible, but its caller does not know yet
	release()
	deciding.awaitVisitor(t) // the loop has it
	told.open()
	r := <-receipt
	if r == nil {
		t.FailNow()
	}
	got := make(chan error, 1)
	go func() {
		o, err := r.Wait(ctx)
		if err == nil && o.Status != millrace.StatusDecided {
			err = fmt.Errorf("status %s", o.Status)
		}
		got <- err
	}()
	looked.awaitVisitor(t)
	deciding.open()
	if err := <-got; err != nil {
		t.Fatalf("the outcome never came: %v", err)
	}
	if n := p.InFlight(); n != 0 {
		t.Errorf("%d commands are still held", n)
	}
}

// The same command comes again and is still being looked up when the loop finds the first one in the backlog. It must
// be decided once.
func TestSecondSubmissionMeetsTheBacklog(t *testing.T) {
	h := &hooks{}
	release := holdBacklog(h)
	var second atomic.Bool
	lookup := newGate(t)
	h.beforeLookup = func(string) {
		if second.CompareAndSwap(true, false) {
			lookup.pass()
		}
	}
	fs := vfs.NewCrashableMem()
	s := hooked(open(t, fs), h)
	p := runWith(t, s, registry(t), nil)
	ctx := patient(t)
	c := add("c", "x", 1)
	first, err := p.Accept(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	second.Store(true)
	again := make(chan error, 1)
	go func() {
		r, err := p.Accept(ctx, c)
		if err == nil && !r.Replayed {
			err = errors.New("the second submission is not called a replay")
		}
		if err == nil {
			_, err = r.Wait(ctx)
		}
		again <- err
	}()
	lookup.awaitVisitor(t)
	release()
	decided(t, p.Processor, add("behind", "x", 1)) // same stream, so "c" is decided by then
	lookup.open()
	if err := <-again; err != nil {
		t.Error(err)
	}
	if _, err := first.Wait(ctx); err != nil {
		t.Error(err)
	}
	if ids := commandsOf(t, s, "x"); len(ids) != 2 {
		t.Errorf("decided more than once: %q", ids)
	}
	if s.Backlog() != 0 {
		t.Errorf("%d commands in the backlog", s.Backlog())
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	s = open(t, pullPlug(fs))
	p2, stop := start(t, s, nil)
	decided(t, p2, add("later", "x", 1))
	if ids := commandsOf(t, s, "x"); len(ids) != 3 {
		t.Errorf("decided again after a restart: %q", ids)
	}
	stop()
	verify(t, s)
}

// Somebody waits for a command of the backlog; the same command is submitted again and leans on that wait; the first
// one gives up. The second one must still be told.
func TestWaiterWhoseNeighbourGivesUp(t *testing.T) {
	h := &hooks{}
	release := holdBacklog(h)
	looked := make(chan struct{}, 16)
	h.afterLookup = func(string) { looked <- struct{}{} }
	s := hooked(open(t, vfs.NewCrashableMem()), h)
	p := runWith(t, s, registry(t), nil)
	ctx := patient(t)
	c := add("c", "x", 1)
	first, err := p.Accept(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	<-looked
	short, giveUp := context.WithCancel(ctx)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if _, err := first.Wait(short); !errors.Is(err, context.Canceled) {
			t.Errorf("the wait ended with %v", err)
		}
	}()
	<-looked // it waits now
	second, err := p.Accept(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	giveUp()
	<-gone
	release()
	if o, err := second.Wait(ctx); err != nil || o.Status != millrace.StatusDecided {
		t.Errorf("%v %v", o.Status, err)
	}
	if n := p.InFlight(); n != 0 {
		t.Errorf("%d commands are still held", n)
	}
}

// The backlog stops being readable in the middle. What was read before is decided all the same, in order.
func TestBacklogUnreadableInTheMiddle(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := open(t, fs)
	p, stop := start(t, s, &command.Options{Paused: true})
	for i := range 10 {
		if _, err := p.Accept(patient(t), add(fmt.Sprint("c", i), "x", 1)); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	h := &hooks{}
	var failed atomic.Bool
	h.pending = func(_, n int) error {
		if n == 3 && failed.CompareAndSwap(false, true) {
			return errPassing
		}
		return nil
	}
	hs := hooked(s, h)
	p2 := runWith(t, hs, registry(t), nil)
	decided(t, p2.Processor, add("last", "x", 1))
	want := []string{"c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9", "last"}
	if got := commandsOf(t, s, "x"); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("decided %q", got)
	}
}

// A stream's retry comes due while as much is on its way to the disk as may be. Its commands must not be forgotten.
func TestRetryWhileTheDiskIsBusy(t *testing.T) {
	disk := newGate(t)
	var unreadable, busy atomic.Bool
	unreadable.Store(true)
	var mu sync.Mutex
	var held []func()
	letGo := func() {
		mu.Lock()
		defer mu.Unlock()
		disk.open()
		for _, f := range held {
			f()
		}
		held = nil
	}
	var kept atomic.Int64
	h := &hooks{
		version: func(s millrace.Stream) error {
			if s == "tally-slow" && unreadable.Load() {
				return errPassing
			}
			return nil
		},
		append: func(b *millrace.Batch, done func(error)) (bool, func(error)) {
			kept.Add(int64(len(b.Accepted)))
			if len(b.Decisions) == 0 || !busy.Load() {
				return true, nil
			}
			return true, func(err error) {
				mu.Lock()
				defer mu.Unlock()
				if !disk.isOpen() {
					held = append(held, func() { done(err) })
					return
				}
				done(err)
			}
		},
	}
	s := hooked(openWith(t, vfs.NewCrashableMem(), func(o *localstore.Options) { o.Partitions = 1 }), h)
	clock := make(chan struct{}, 1)
	now := func() time.Time {
		select {
		case clock <- struct{}{}:
		default:
		}
		return time.Now()
	}
	p := runWith(t, s, registry(t), &command.Options{Now: now, MaxQueue: 1 << 20})
	ctx := patient(t)
	t.Cleanup(letGo)
	catchUp(t, p.Processor, &kept)
	r, err := p.Accept(ctx, add("slow", "slow", 1)) // durable by itself: its stream cannot be read
	if err != nil {
		t.Fatal(err)
	}
	busy.Store(true)
	var clients sync.WaitGroup
	for c := range 2 {
		clients.Go(func() {
			cs := make([]millrace.Command, command.MaxInFlight)
			for i := range cs {
				cs[i] = add(fmt.Sprintf("c%d-%d", c, i), "other", 1)
			}
			for _, a := range p.AcceptAll(ctx, cs) {
				if a.Err != nil {
					t.Error(a.Err)
					return
				}
			}
		})
	}
	// The clock is looked at by the rescue every 20 ms, and by the loop whenever it looks for work: fifty looks
	// after everything has come in are more time than the retry takes.
	for after := 0; after < 50; {
		select {
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		case <-clock:
			if p.Queued() >= 2*command.MaxInFlight {
				unreadable.Store(false)
				after++
			}
		}
	}
	letGo()
	if o, err := r.Wait(ctx); err != nil || o.Status != millrace.StatusDecided {
		t.Errorf("%v %v", o.Status, err)
	}
	clients.Wait()
}

// A store that refuses at once calls back at once. Nobody may hang, and nobody may be told that it is kept.
func TestStoreRefusesAtOnce(t *testing.T) {
	h := &hooks{}
	holdBacklog(h) // behind: commands are kept alone
	h.append = func(_ *millrace.Batch, done func(error)) (bool, func(error)) {
		done(fmt.Errorf("%w: a test", millrace.ErrFailed))
		return false, nil
	}
	s := hooked(open(t, vfs.NewCrashableMem()), h)
	p := runWith(t, s, registry(t), nil)
	if _, err := p.Accept(patient(t), add("c", "x", 1)); !errors.Is(err, millrace.ErrFailed) {
		t.Errorf("accept says %v", err)
	}
	<-p.ended
	if !errors.Is(p.err, millrace.ErrFailed) {
		t.Errorf("run says %v", p.err)
	}
	if n := p.InFlight(); n != 0 {
		t.Errorf("%d commands are still held", n)
	}
}

// A wrong submission that is still being looked up must not make a right one look wrong.
func TestRightSubmissionBehindAWrongOne(t *testing.T) {
	h := &hooks{}
	lookup := newGate(t)
	var gated atomic.Bool
	h.beforeLookup = func(string) {
		if gated.CompareAndSwap(true, false) {
			lookup.pass()
		}
	}
	s := hooked(open(t, vfs.NewCrashableMem()), h)
	p := runWith(t, s, registry(t), nil)
	right := add("c", "x", 1)
	want := decided(t, p.Processor, right)
	ctx := patient(t)
	gated.Store(true)
	wrong := make(chan error, 1)
	go func() {
		_, err := p.Accept(ctx, add("c", "x", 2))
		wrong <- err
	}()
	lookup.awaitVisitor(t)
	impatient, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := p.Accept(impatient, right); !errors.Is(err, context.Canceled) {
		t.Errorf("the right submission, while nobody can know: %v", err)
	}
	lookup.open()
	if err := <-wrong; !errors.Is(err, millrace.ErrKeyReused) {
		t.Errorf("the wrong submission: %v", err)
	}
	if got := decided(t, p.Processor, right); got.Version != want.Version {
		t.Errorf("version %d, was %d", got.Version, want.Version)
	}
}
