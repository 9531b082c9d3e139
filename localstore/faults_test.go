package localstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
)

// fault lets the k-th operation of a kind fail, or all from there on.
type fault struct {
	kind   string
	err    error
	k      int64
	sticky bool
	in     func(path string) bool

	n, hits atomic.Int64
	off     atomic.Bool
}

func (f *fault) before(o op) error {
	if o.kind != f.kind || f.off.Load() || !f.in(o.path) {
		return nil
	}
	if n := f.n.Add(1); n == f.k || f.sticky && n > f.k {
		f.hits.Add(1)
		return f.err
	}
	return nil
}

func (f *fault) String() string {
	return fmt.Sprintf("%v at %s %d, sticky %v", f.err, f.kind, f.k, f.sticky)
}

func notIndex(path string) bool { return !isIndex(path+"/") && !isLock(path) }

// faultyRun runs a store into a fault. It returns what was acknowledged, and whether the fault was met.
func faultyRun(t *testing.T, f *fault, mem *vfs.MemFS) (acked []millrace.Outcome, met bool) {
	var fatals atomic.Int64
	l := &ledger{}
	o := small(t, Options{FS: &hookFS{FS: mem, before: f.before}, Partitions: 2, noBackground: true, Fatal: func(error) { fatals.Add(1) }})
	s, err := openWith(victimDir, o, victimSegment)
	if err != nil {
		if f.hits.Load() == 0 {
			t.Fatalf("%s: open: %v", f, err)
		}
		if errors.Is(err, millrace.ErrCorrupt) {
			t.Errorf("%s: a fault of the machine is taken for damage: %v", f, err)
		}
		return nil, true
	}
	d := s.Driver().(*driver) //nolint:forcetypeassert // opened above
	defer func() {
		if err := s.Close(); err != nil && f.hits.Load() == 0 {
			t.Errorf("%s: close: %v", f, err)
		}
		met = f.hits.Load() > 0
	}()
	var cs []*committer
	for p := range 2 {
		c, err := newCommitter(s, l, p, "f")
		if err != nil {
			t.Fatal(err)
		}
		c.data = 50
		cs = append(cs, c)
	}
	var failed error
	for i := range 14 {
		if err := cs[i%2].commit(); err != nil {
			failed = err
			continue // nothing may be acknowledged any more: the ledger would tell
		} else if failed != nil {
			t.Errorf("%s: acknowledged after %v", f, failed)
		}
		if i%5 == 4 && failed == nil {
			if err := d.writeAnchor(false); err != nil {
				d.fail(fmt.Errorf("%w: %w", millrace.ErrFailed, err))
				failed = err
			}
		}
	}
	acked = l.snapshot()
	if failed != nil {
		if f.hits.Load() == 0 {
			t.Fatalf("%s: %v", f, failed)
		}
		if fatals.Load() != 1 {
			t.Errorf("%s: Fatal was called %d times", f, fatals.Load())
		}
		if err := s.Writable(); !errors.Is(err, millrace.ErrFailed) {
			t.Errorf("%s: a store that failed says of writing: %v", f, err)
		}
	}
	// Reads go on, or say that they cannot.
	for _, o := range acked {
		got, err := s.Lookup(context.Background(), o.CommandID)
		readable := f.kind != "read" && f.kind != "open"
		switch {
		case err != nil && (readable || errors.Is(err, millrace.ErrCorrupt) || errors.Is(err, millrace.ErrNotFound)):
			t.Errorf("%s: reading %s: %v", f, o.CommandID, err)
		case err == nil && o.Done() && !sameOutcome(&got, &o):
			t.Errorf("%s: %s reads %+v", f, o.CommandID, got)
		}
	}
	events := 0
	for batch, err := range s.Feed(context.Background(), millrace.FeedOptions{}) {
		if err != nil {
			if errors.Is(err, millrace.ErrCorrupt) {
				t.Errorf("%s: a fault of the machine is taken for damage: %v", f, err)
			}
			events = -1
			break
		}
		events += len(batch)
	}
	want := 0
	for _, o := range acked {
		want += o.Events
	}
	if events >= 0 && events < want {
		t.Errorf("%s: the feed has %d events, but %d are acknowledged", f, events, want)
	}
	return acked, true
}

// TestFailedOperationOfJournalOrAnchorAcknowledgesNothingFalse lets the k-th operation fail, for all k.
func TestFailedOperationOfJournalOrAnchorAcknowledgesNothingFalse(t *testing.T) {
	rng := rand.New(rand.NewPCG(seed(t), 0)) //nolint:gosec // a test's choice
	faults := 0
	for _, kind := range []string{"write", "sync", "create", "rename", "open", "read", "list", "stat", "mkdir", "remove"} {
		errs := []error{syscall.EIO}
		switch kind {
		case "write":
			errs = append(errs, syscall.ENOSPC, errHalf)
		case "create", "sync", "mkdir":
			errs = append(errs, syscall.ENOSPC)
		case "open":
			errs = append(errs, syscall.EMFILE)
		}
		for _, injected := range errs {
			for _, sticky := range []bool{false, true} {
				for k := int64(1); ; k++ {
					f := &fault{kind: kind, err: injected, k: k, sticky: sticky, in: notIndex}
					mem := vfs.NewCrashableMem()
					acked, met := faultyRun(t, f, mem)
					if t.Failed() {
						return
					}
					if !met {
						break
					}
					faults++
					// The disk is well again. Whether the power was gone meanwhile must not matter.
					healthy := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
					s, err := openWith(victimDir, small(t, Options{FS: healthy, Partitions: 2, noBackground: true}), victimSegment)
					if err != nil {
						t.Fatalf("%s: open on a healthy disk: %v", f, err)
					}
					if err := errors.Join(check(s, acked), (&ledger{}).run(s, "again", 3), s.Close()); err != nil {
						t.Fatalf("%s: on a healthy disk: %v", f, err)
					}
				}
			}
		}
	}
	t.Logf("%d faults", faults)
}

// TestFailedSyncIsAlsoSeenByWhoWaitsBehind: everybody who waits gets the error, in order, and exactly once.
func TestFailedSyncIsAlsoSeenByWhoWaitsBehind(t *testing.T) {
	f := &fault{kind: "sync", err: syscall.EIO, sticky: true, in: func(p string) bool { return strings.HasSuffix(p, ".mrj") }}
	f.off.Store(true)
	o := small(t, Options{FS: &hookFS{FS: vfs.NewMem(), before: f.before}, Partitions: 1, noBackground: true, Fatal: func(error) {}})
	s, err := openWith(victimDir, o, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCommitter(s, &ledger{}, 0, "w")
	if err != nil {
		t.Fatal(err)
	}
	const n = 200
	type result struct {
		i   int
		err error
	}
	results := make(chan result, 2*n)
	for i := range n {
		if i == n/2 {
			f.off.Store(false)
		}
		s.Commit(c.next(), func(err error) { results <- result{i, err} })
	}
	failed := false
	for i := range n {
		r := <-results
		if r.i != i {
			t.Fatalf("batch %d was done when %d was due", r.i, i)
		}
		if failed && r.err == nil {
			t.Fatalf("batch %d was acknowledged after one that failed", i)
		}
		failed = failed || r.err != nil
		if r.err != nil && !errors.Is(r.err, millrace.ErrFailed) {
			t.Errorf("batch %d: %v", i, r.err)
		}
	}
	if !failed {
		t.Error("no batch failed")
	}
	_ = s.Close() // the journal failed: closing says so
}

// until waits for a condition that the store's own timers bring about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s does not come about", what)
		}
	}
}

// TestFullDiskRefusesInTimeAndRecoversByItself: the next segment cannot be prepared.
func TestFullDiskRefusesInTimeAndRecoversByItself(t *testing.T) {
	for _, kind := range []string{"create", "write", "sync"} {
		t.Run(kind, func(t *testing.T) {
			// From the third segment on.
			f := &fault{kind: kind, err: syscall.ENOSPC, sticky: true, in: func(p string) bool {
				return strings.HasSuffix(p, ".mrj") && !strings.HasSuffix(p, "1.mrj") && !strings.HasSuffix(p, "2.mrj")
			}}
			s, err := openWith(victimDir, small(t, Options{FS: &hookFS{FS: vfs.NewMem(), before: f.before}, Partitions: 1}), 64<<10)
			if err != nil {
				t.Fatal(err)
			}
			d := s.Driver().(*driver) //nolint:forcetypeassert // opened above
			l := &ledger{}
			c, err := newCommitter(s, l, 0, "full")
			if err != nil {
				t.Fatal(err)
			}
			write := func() {
				for range 100_000 {
					if s.Writable() != nil {
						return
					}
					if err := c.commit(); err != nil {
						t.Fatal(err)
					}
					// In memory a segment is full before the next one can be tried.
					until(t, "a try at the next segment", func() bool {
						p := &d.j.prep
						head, _ := d.tail.last()
						p.mu.Lock()
						defer p.mu.Unlock()
						return p.full.Load() || p.ready > head.end.segment()
					})
				}
			}
			until(t, "a full disk", func() bool { write(); return s.Writable() != nil })
			if err := s.Writable(); !errors.Is(err, millrace.ErrFull) {
				t.Fatalf("a full disk: %v", err)
			}
			for range 20 { // what was on its way has its reserve
				if err := c.commit(); err != nil {
					t.Fatalf("what was on its way when the disk got full: %v", err)
				}
			}
			if err := check(s, l.snapshot()); err != nil {
				t.Errorf("reads while the disk is full: %v", err)
			}
			f.off.Store(true)
			until(t, "taking writes again", func() bool { return s.Writable() == nil })
			for range 300 { // into the next segments
				if err := c.commit(); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(check(s, l.snapshot()), s.Close()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTooLittleFreeSpaceRefusesAndRecovers(t *testing.T) {
	mem := vfs.NewMem()
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 30, TotalBytes: 2 << 30})
	s, err := openWith(victimDir, small(t, Options{FS: mem, MinFree: 1 << 20}), 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := (&ledger{}).run(s, fmt.Sprint(time.Now().UnixNano()), 1); err != nil {
			t.Fatal(err)
		}
		mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1<<20 - 1, TotalBytes: 2 << 30})
		until(t, "a full disk", func() bool { return errors.Is(s.Writable(), millrace.ErrFull) })
		if err := check(s, nil); err != nil {
			t.Errorf("reads on a full disk: %v", err)
		}
		mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 20, TotalBytes: 2 << 30})
		until(t, "taking writes again", func() bool { return s.Writable() == nil })
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	for name, o := range map[string]struct {
		fs  vfs.FS
		dir string
	}{"memory": {vfs.NewMem(), "store"}, "disk": {vfs.Default, t.TempDir()}} {
		first, err := openWith(o.dir, small(t, Options{FS: o.fs}), 64<<10)
		if err != nil {
			t.Fatal(err)
		}
		l := &ledger{}
		if second, err := openWith(o.dir, small(t, Options{FS: o.fs}), 64<<10); err == nil {
			t.Errorf("%s: a second open succeeded: %v", name, second.Meta())
		} else if !strings.Contains(err.Error(), "another process") {
			t.Errorf("%s: a second open: %v", name, err)
		}
		// The first one is not disturbed.
		if err := errors.Join(l.run(first, "r", 5), check(first, l.snapshot()), first.Close()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		again, err := openWith(o.dir, small(t, Options{FS: o.fs}), 64<<10)
		if err != nil {
			t.Fatalf("%s: open after close: %v", name, err)
		}
		if err := errors.Join(check(again, l.snapshot()), again.Close()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestInterruptedCreationBeginsAnew cuts the power at every boundary of a creation, several times each.
func TestInterruptedCreationBeginsAnew(t *testing.T) {
	rng := rand.New(rand.NewPCG(seed(t), 0)) //nolint:gosec // a test's choice
	mem := vfs.NewCrashableMem()
	var mu sync.Mutex
	var disks []*vfs.MemFS
	kept := []int{0, 100, 50, 20, 80}
	s, err := openWith("data/new/store", small(t, Options{noBackground: true, FS: &hookFS{FS: mem, before: func(o op) error {
		mu.Lock()
		defer mu.Unlock()
		if o.changes() {
			for _, percent := range kept {
				disks = append(disks, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}))
			}
		}
		return nil
	}}}), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	id := s.Meta().ID
	last := mem.CrashClone(vfs.CrashCloneCfg{}) // from here on the store is known to somebody
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	disks = append(disks, last)
	for i, disk := range disks {
		s, err := openWith("data/new/store", small(t, Options{FS: disk, noBackground: true}), 64<<10)
		if err != nil {
			t.Errorf("disk %d: %v", i, err)
			continue
		}
		if disk == last && s.Meta().ID != id {
			t.Errorf("a store that was open is another one after a power loss")
		}
		l := &ledger{}
		if err := errors.Join(l.run(s, "r", 3), check(s, l.snapshot()), s.Close()); err != nil {
			t.Errorf("disk %d: %v", i, err)
		}
	}
	t.Logf("%d disks", len(disks))
}

// TestCreatedStoreKeepsItsIdentityThroughAPowerLoss: once Open has returned, the folder itself is durable, too.
func TestCreatedStoreKeepsItsIdentityThroughAPowerLoss(t *testing.T) {
	mem := vfs.NewCrashableMem()
	s, err := openWith("/data/new/store", small(t, Options{FS: mem, noBackground: true}), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	after := mem.CrashClone(vfs.CrashCloneCfg{})
	again, err := openWith("/data/new/store", small(t, Options{FS: after, noBackground: true}), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	if again.Meta() != s.Meta() {
		t.Errorf("the store was %v, after a power loss it is %v", s.Meta(), again.Meta())
	}
	if err := errors.Join(s.Close(), again.Close()); err != nil {
		t.Error(err)
	}
}

// TestMissingAnchorOfAStoreInUseIsRefused: only a store that never was in use may begin anew.
func TestMissingAnchorOfAStoreInUseIsRefused(t *testing.T) {
	mem := vfs.NewMem()
	s, err := openWith(victimDir, small(t, Options{FS: mem, noBackground: true}), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(mem.Remove(victimDir+"/"+anchorName), mem.RemoveAll(victimDir+"/"+journalDir)); err != nil {
		t.Fatal(err)
	}
	if _, err := openWith(victimDir, small(t, Options{FS: mem, noBackground: true}), 64<<10); !errors.Is(err, millrace.ErrCorrupt) {
		t.Errorf("open without anchor and journal: %v", err)
	}
	if _, err := mem.Stat(victimDir + "/" + indexDir); errors.Is(err, fs.ErrNotExist) {
		t.Error("the refusal has removed the index")
	}
}
