package command_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/localstore"
)

// overloaded checks that an error is an OverloadError and that nothing was kept.
func overloaded(t *testing.T, s *millrace.Store, id, what string, err error) {
	t.Helper()
	var o *millrace.OverloadError
	if !errors.As(err, &o) || o.What != what || o.RetryAfter <= 0 {
		t.Errorf("%s: %v instead of an overload of the %s", id, err, what)
	}
	if _, err := s.Lookup(t.Context(), id); !errors.Is(err, millrace.ErrNotFound) {
		t.Errorf("%s was refused and kept: %v", id, err)
	}
}

func TestFullQueue(t *testing.T) {
	slow := newGate(t)
	s, kept := counted(open(t, vfs.NewMem()))
	reg := registryOf(t, noted(func(string) ([]any, bool) { slow.pass(); return nil, false }))
	p := runWith(t, s, reg, &command.Options{MaxQueue: 8})
	decided(t, p.Processor, add("first", "a", 1))
	catchUp(t, p.Processor, kept)
	ctx := patient(t)
	var receipts []*millrace.Receipt
	for i := range 8 {
		r, err := p.Accept(ctx, addNote(fmt.Sprint("c", i), "a", 1, "slow"))
		if err != nil {
			t.Fatal(err)
		}
		receipts = append(receipts, r)
	}
	for i := range 3 {
		_, err := p.Accept(ctx, add(fmt.Sprint("more", i), "b", 1))
		overloaded(t, s, fmt.Sprint("more", i), "queue", err)
	}
	// What a process sends on the way of something that was accepted has room of its own, with a bound too.
	for i := range 9 {
		id := fmt.Sprint(millrace.StepPrefix, "x/b/", i)
		r, err := p.Accept(ctx, addNote(id, "a", 1, "slow"))
		if i < 8 && err != nil {
			t.Fatal(err)
		}
		if i == 8 {
			overloaded(t, s, id, "queue", err)
			continue
		}
		receipts = append(receipts, r)
	}
	// What is known costs nothing.
	if r, err := p.Accept(ctx, add("first", "a", 1)); err != nil || !r.Replayed {
		t.Errorf("a replay during an overload: %v", err)
	}
	slow.open()
	for _, r := range receipts {
		if o, err := r.Wait(ctx); err != nil || o.Status != millrace.StatusDecided {
			t.Errorf("%v %v", o.Status, err)
		}
	}
	for i := range 3 {
		if o := decided(t, p.Processor, add(fmt.Sprint("more", i), "b", 1)); o.Status != millrace.StatusDecided {
			t.Errorf("%+v", o)
		}
	}
}

// Bytes are bounded too: a few large commands fill the queue as well as many small ones.
func TestQueueFullOfBytes(t *testing.T) {
	slow := newGate(t)
	s, kept := counted(openWith(t, vfs.NewMem(), func(o *localstore.Options) { o.SegmentSize = 16 << 20 }))
	reg := registryOf(t, noted(func(string) ([]any, bool) { slow.pass(); return nil, false }))
	p := runWith(t, s, reg, nil)
	decided(t, p.Processor, add("first", "a", 1))
	catchUp(t, p.Processor, kept)
	ctx := patient(t)
	note := strings.Repeat("x", 1<<20-100)
	for i := range 9 {
		id := fmt.Sprint("c", i)
		_, err := p.Accept(ctx, addNote(id, "a", 1, note))
		if i < 8 && err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		if i == 8 {
			overloaded(t, s, id, "queue", err)
		}
	}
	slow.open()
	if o := decided(t, p.Processor, addNote("c7", "a", 1, note)); o.Status != millrace.StatusDecided || o.Version != 9 {
		t.Errorf("%+v", o)
	}
	if o := decided(t, p.Processor, addNote("c8", "a", 1, note)); o.Status != millrace.StatusDecided || o.Version != 10 {
		t.Errorf("%+v", o)
	}
}

func TestFullBacklog(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, stop := start(t, s, &command.Options{Paused: true, MaxBacklog: 5})
	for i := range 8 {
		id := fmt.Sprint("c", i)
		_, err := p.Accept(patient(t), add(id, "a", 1))
		if i < 5 && err != nil {
			t.Errorf("%s: %v", id, err)
		}
		if i >= 5 {
			overloaded(t, s, id, "backlog", err)
		}
	}
	stop()
	p, stop = start(t, s, &command.Options{MaxBacklog: 5})
	defer stop()
	for i := range 5 {
		decided(t, p, add(fmt.Sprint("c", i), "a", 1))
	}
	decided(t, p, add("c7", "a", 1))
}

// A call with more commands than the queue holds lets its own through first.
func TestAcceptAllLargerThanTheQueue(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, stop := start(t, s, &command.Options{MaxQueue: 8})
	defer stop()
	for round := range 20 {
		cs := make([]millrace.Command, 200)
		for i := range cs {
			cs[i] = add(fmt.Sprintf("c%d-%d", round, i), fmt.Sprint(i%10), 1)
		}
		for i, a := range p.AcceptAll(patient(t), cs) {
			if a.Err != nil {
				t.Fatalf("round %d: %s: %v", round, cs[i].ID, a.Err)
			}
		}
	}
}

// disk is a file system whose free space a test decides about.
type disk struct {
	vfs.FS
	free atomic.Uint64
}

func (d *disk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: d.free.Load(), TotalBytes: 1 << 30}, nil
}

// awaitWritable waits until the store notices what the disk has.
func awaitWritable(t *testing.T, s *millrace.Store, want error) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx := patient(t); !errors.Is(s.Writable(), want); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the store says %v, want %v", s.Writable(), want)
		}
	}
}

func TestFullDisk(t *testing.T) {
	fs := &disk{FS: vfs.NewMem()}
	fs.free.Store(1 << 30)
	s := openWith(t, fs, func(o *localstore.Options) { o.MinFree = 1 << 20 })
	p, stop := start(t, s, &command.Options{Paused: true})
	for i := range 3 {
		if _, err := p.Accept(patient(t), add(fmt.Sprint("kept", i), "a", 1)); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	fs.free.Store(1000)
	awaitWritable(t, s, millrace.ErrFull)
	p, stop = start(t, s, nil)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { // a command of the backlog waits for space
		if o := decided(t, p, add("kept2", "a", 1)); o.Status != millrace.StatusDecided || o.Version != 3 {
			t.Errorf("%+v", o)
		}
	})
	for i := range 20 {
		id := fmt.Sprint("new", i)
		if _, err := p.Accept(patient(t), add(id, "b", 1)); !errors.Is(err, millrace.ErrFull) {
			t.Errorf("%s: %v", id, err)
		}
		if _, err := s.Lookup(t.Context(), id); !errors.Is(err, millrace.ErrNotFound) {
			t.Errorf("%s is kept: %v", id, err)
		}
	}
	if o := outcome(t, s, "kept0"); o.Status != millrace.StatusAccepted {
		t.Errorf("reads do not go on: %+v", o)
	}
	fs.free.Store(1 << 30)
	awaitWritable(t, s, nil)
	if o := decided(t, p, add("new0", "b", 1)); o.Status != millrace.StatusDecided {
		t.Errorf("%+v", o)
	}
	wg.Wait()
	if got := fmt.Sprint(commandsOf(t, s, "a")); got != "[kept0 kept1 kept2]" {
		t.Errorf("decided %s", got)
	}
}
