package projection_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/millracetest"
	"github.com/millrace-io/millrace/projection"
)

// A rebuilt model is the live one, byte for byte: by its own comparison, by the digest and by everything readers see. The
// control is a document that was changed behind the model's back: all three notice.
func TestRebuildIsIdentical(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, _ := deciding(t, s)
	svc, _ := serve(t, s, millracetest.Tallies())
	m := svc.Model("tallies")
	send(t, p, "c", 500, 23)
	wait(t, m, s.Head())
	digest, err := m.Digest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before := dump(t, m)
	for generation := uint64(2); generation < 5; generation++ {
		st := rebuild(t, m)
		if st.Generation != generation || st.Gap != 0 || st.Position != 500 || st.Rebuild.Events != 500 || st.Rebuild.Generation != generation {
			t.Errorf("%+v %+v", st, st.Rebuild)
		}
		if !identical(st) {
			t.Errorf("the rebuild does not call itself identical: %+v", st.Rebuild)
		}
		if again, err := m.Digest(t.Context()); err != nil || again != digest {
			t.Errorf("another digest: %v", err)
		}
		if d := cmp.Diff(before, dump(t, m)); d != "" {
			t.Errorf("readers see something else:\n%s", d)
		}
	}
	p0 := millrace.Stream("tally-s0").Partition(4)
	doc, err := m.Get(t.Context(), millracetest.TallyTable.Table, p0, "tally-s0")
	if err != nil {
		t.Fatal(err)
	}
	doc.Data = append([]byte(" "), doc.Data...)
	if err := s.CommitViews(t.Context(), []millrace.ViewBatch{{Consumer: "test", Partition: p0, Puts: []millrace.Put{{Document: doc, Old: doc.Keys}}}}); err != nil {
		t.Fatal(err)
	}
	if again, err := m.Digest(t.Context()); err != nil || again == digest {
		t.Errorf("the digest does not see a changed byte: %v", err)
	}
	st := rebuild(t, m)
	live := st.Generation
	if !differs(st) {
		t.Errorf("the comparison does not see a changed byte: %+v", st.Rebuild)
	}
	if again, err := m.Digest(t.Context()); err != nil || again != digest {
		t.Errorf("the rebuild did not repair it: %v", err)
	}
	if left := leftovers(t, s, "tallies", live); left != "" {
		t.Errorf("old generations are still there: %s", left)
	}
}

// leftovers are the generations but one that still have documents. The old one is removed a moment after the switch, so
// this looks only at those that are older.
func leftovers(t *testing.T, s *millrace.Store, name string, live uint64) string {
	t.Helper()
	var left []string
	for g := uint64(1); g+1 < live; g++ {
		for _, err := range s.Documents(t.Context(), millrace.Query{Collection: fmt.Sprintf("%s@%d.tallies", name, g), Index: -1, Partition: -1}) {
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, fmt.Sprint(g))
			break
		}
	}
	return strings.Join(left, " ")
}

// Rebuilt again and again while commands come in and readers read: a reader never sees an empty or a partial model, never
// sees a document go back, and whoever waits for his cursor finds his document. In the end the model is that of a
// projection that was never rebuilt.
func TestRebuildUnderLoad(t *testing.T) {
	const streams = 17
	s := open(t, vfs.NewMem())
	p, stopDeciding := deciding(t, s)
	control := millracetest.Tallies()
	control.Name = "control"
	svc, _ := serve(t, s, millracetest.Tallies(), control)
	m := svc.Model("tallies")
	send(t, p, "first", 200, streams)
	wait(t, m, s.Head())
	ctx, stop := context.WithCancel(patient(t))
	var wg sync.WaitGroup
	var reads, waits atomic.Int64
	for w := range 2 { // writers, who read their own writes
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				stream := fmt.Sprint("s", (i+w)%streams)
				r, err := p.Accept(ctx, add(fmt.Sprintf("w%d-%d", w, i), stream, 1))
				if err != nil {
					break
				}
				o, err := r.Wait(ctx)
				if err != nil {
					break
				}
				if err := m.Wait(ctx, s.Cursor(&o)); err != nil {
					if ctx.Err() == nil {
						t.Error(err)
					}
					break
				}
				waits.Add(1)
				d, err := m.Get(ctx, millracetest.TallyTable.Table, o.Partition, string(o.Stream))
				if err != nil {
					t.Error(err)
					break
				}
				if doc, err := millracetest.TallyTable.Decode(d.Data); err != nil || doc.Version < o.Version {
					t.Errorf("waited for version %d, found %s %v", o.Version, d.Data, err)
				}
			}
		})
	}
	newest := make([]uint64, streams)
	wg.Go(func() { // a reader of single documents
		for i := 0; ctx.Err() == nil; i++ {
			stream := fmt.Sprint("tally-s", i%streams)
			d, err := m.Get(ctx, millracetest.TallyTable.Table, millrace.Stream(stream).Partition(4), stream)
			if err != nil {
				t.Errorf("%s: %v", stream, err)
				return
			}
			doc, err := millracetest.TallyTable.Decode(d.Data)
			if err != nil || doc.Version < newest[i%streams] {
				t.Errorf("%s went back from version %d to %s %v", stream, newest[i%streams], d.Data, err)
				return
			}
			newest[i%streams] = doc.Version
			reads.Add(1)
		}
	})
	for _, index := range []int{-1, 0} {
		wg.Go(func() { // readers of lists
			for ctx.Err() == nil {
				n := 0
				for _, err := range m.Query(ctx, millracetest.TallyTable.Table, millrace.Query{Index: index, Partition: -1}) {
					if err != nil {
						if ctx.Err() == nil {
							t.Error(err)
						}
						return
					}
					n++
				}
				if n != streams {
					t.Errorf("a list of %d documents instead of %d", n, streams)
					return
				}
				reads.Add(1)
			}
		})
	}
	for range 12 {
		rebuild(t, m)
	}
	stop()
	wg.Wait()
	stopDeciding() // what nobody waited for is decided or left
	if reads.Load() < 100 || waits.Load() < 20 {
		t.Errorf("%d reads and %d waits show nothing", reads.Load(), waits.Load())
	}
	wait(t, m, s.Head())
	wait(t, svc.Model("control"), s.Head())
	a, err := m.Digest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := svc.Model("control").Digest(t.Context())
	if err != nil || a != b {
		t.Errorf("the rebuilt model differs from one that was never rebuilt: %v\n%s", err, cmp.Diff(dump(t, svc.Model("control")), dump(t, m)))
	}
}

// hold is a gate in a projection: it lets so many events pass and keeps the next ones back.
type hold struct {
	after   int64
	n       atomic.Int64
	once    sync.Once
	reached chan struct{}
	opened  chan struct{}
	open    func()
}

func newHold(t testing.TB, after int64) *hold {
	h := &hold{after: after, reached: make(chan struct{}), opened: make(chan struct{})}
	h.open = sync.OnceFunc(func() { close(h.opened) })
	t.Cleanup(h.open)
	return h
}

func (h *hold) pass(*millrace.Recorded) {
	if h.n.Add(1) > h.after {
		h.once.Do(func() { close(h.reached) })
		<-h.opened
	}
}

// The code has changed. The model is rebuilt at the start, from the first generation on; the old documents are shown until
// the new ones are complete; and it is done once.
func TestChangedVersionIsRebuilt(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs)
	p, stopDeciding := deciding(t, s)
	svc, stop := serve(t, s, millracetest.Tallies())
	send(t, p, "c", 100, 5)
	wait(t, svc.Model("tallies"), s.Head())
	old := dump(t, svc.Model("tallies"))
	if err := stop(); err != nil {
		t.Error(err)
	}
	stopDeciding()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, fs)
	h := newHold(t, 60)
	svc, stop = serve(t, s, double(h.pass))
	m := svc.Model("tallies")
	select {
	case <-h.reached:
	case <-patient(t).Done():
		t.Fatal("changed code does not lead to a rebuild")
	}
	if d := cmp.Diff(old, dump(t, m)); d != "" {
		t.Errorf("the old documents are not shown while the new ones are made:\n%s", d)
	}
	st, err := m.Status(t.Context())
	if err != nil || st.Version != 1 || st.Generation != 1 || st.Rebuild == nil || st.Rebuild.Done {
		t.Errorf("%+v %v", st, err)
	}
	if err := m.Rebuild(patient(t), false); !errors.Is(err, projection.ErrBusy) {
		t.Errorf("a second rebuild: %v", err)
	}
	h.open()
	st = rebuilt(t, m)
	if st.Version != 2 || st.Generation != 2 || st.Rebuild.Identical() != nil {
		t.Errorf("%+v", st)
	}
	now := dump(t, m)
	if now == old || strings.Count(now, "\n") != strings.Count(old, "\n") {
		t.Errorf("the documents are not the new code's:\n%s", now)
	}
	p, _ = deciding(t, s) // the new generation is kept up to date
	send(t, p, "d", 50, 5)
	wait(t, m, s.Head())
	if dump(t, m) == now {
		t.Error("the new generation stands still")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	svc, _ = serve(t, s, double(nil))
	m = svc.Model("tallies")
	wait(t, m, s.Head())
	if st, err := m.Status(t.Context()); err != nil || !st.Rebuild.Done || st.Rebuild.Generation != 2 || st.Generation != 2 || st.Version != 2 {
		t.Errorf("rebuilt although nothing has changed: %+v %v", st, err)
	}
}

// A rebuild is interrupted, by a stop or by a power cut. The live model goes on, and so does the rebuild, from where its
// documents stand; where the power cut has taken the word that there is one, another can be asked for.
func TestInterruptedRebuild(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := open(t, fs)
	p, stopDeciding := deciding(t, s)
	svc, stop := serve(t, s, millracetest.Tallies())
	send(t, p, "c", 100, 5)
	wait(t, svc.Model("tallies"), s.Head())
	want := dump(t, svc.Model("tallies"))
	if err := stop(); err != nil {
		t.Error(err)
	}
	stopDeciding()
	var rebuilding atomic.Bool
	h := newHold(t, 40)
	ran := make(chan struct{})
	svc, stop = serve(t, s, version(1, func(e *millrace.Recorded) {
		if rebuilding.Load() {
			h.pass(e)
		}
	}))
	m := svc.Model("tallies")
	rebuilding.Store(true)
	if err := m.Rebuild(patient(t), false); err != nil {
		t.Fatal(err)
	}
	<-h.reached
	cut := fs.CrashClone(vfs.CrashCloneCfg{})
	go func() {
		defer close(ran)
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	h.open()
	<-ran
	for name, s := range map[string]*millrace.Store{"stop": s, "power cut": open(t, cut)} {
		svc, stop := serve(t, s, millracetest.Tallies())
		m := svc.Model("tallies")
		wait(t, m, s.Head())
		if d := cmp.Diff(want, dump(t, m)); d != "" {
			t.Errorf("%s: the live model changed:\n%s", name, d)
		}
		if st, err := m.Status(t.Context()); err != nil {
			t.Error(err)
		} else if st.Rebuild == nil && name == "power cut" {
			if err := m.Rebuild(patient(t), false); err != nil {
				t.Error(err)
			}
		}
		if st := rebuilt(t, m); st.Rebuild.Events != 100 || !identical(st) || st.Generation != 2 {
			t.Errorf("%s: %+v", name, st.Rebuild)
		}
		if d := cmp.Diff(want, dump(t, m)); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
}

// Who waits while the generation that he waits on is replaced is answered by the next one.
func TestWaitAcrossASwitch(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, stopDeciding := deciding(t, s)
	svc, stop := serve(t, s, millracetest.Tallies())
	send(t, p, "c", 50, 5)
	wait(t, svc.Model("tallies"), s.Head())
	if err := stop(); err != nil {
		t.Error(err)
	}
	o := send(t, p, "d", 50, 5) // the old code's documents will never see these
	stopDeciding()
	h := newHold(t, 20)
	svc, _ = serve(t, s, double(h.pass))
	m := svc.Model("tallies")
	<-h.reached
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if err := m.Wait(patient(t), s.Cursor(&o)); err != nil {
				t.Error(err)
			}
			if !m.Cursor().Covers(s.Cursor(&o)) {
				t.Error("the wait ended too early")
			}
		})
	}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Wait(short, s.Cursor(&o)); !errors.Is(err, context.Canceled) {
		t.Errorf("an impatient wait: %v", err)
	}
	h.open()
	wg.Wait()
	later := s.Head()
	later.Epoch++
	if err := m.Wait(t.Context(), later); !errors.Is(err, millrace.ErrCursorEpoch) {
		t.Errorf("a cursor of another epoch: %v", err)
	}
}

func TestListAndFaults(t *testing.T) {
	s := open(t, vfs.NewMem())
	second := millracetest.Tallies()
	second.Name, second.Version = "second", 7
	p, _ := deciding(t, s)
	svc, _ := serve(t, s, millracetest.Tallies(), second)
	send(t, p, "c", 20, 3)
	for _, name := range []string{"tallies", "second"} {
		wait(t, svc.Model(name), s.Head())
	}
	all, err := svc.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []projection.Status{
		{Name: "tallies", Version: 1, Code: 1, Generation: 1, Cursor: s.Head().String(), Position: 20},
		{Name: "second", Version: 7, Code: 7, Generation: 1, Cursor: s.Head().String(), Position: 20},
	}
	if d := cmp.Diff(want, all); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(map[string]string{"tallies": "tallies@1", "second": "second@1"}, svc.Consumers()); d != "" {
		t.Error(d)
	}
	if svc.Model("third") != nil {
		t.Error("a model that nobody declared")
	}
	if _, err := svc.Model("second").Get(t.Context(), millracetest.TallyTable.Table, 0, "nobody"); !errors.Is(err, millrace.ErrNotFound) {
		t.Error(err)
	}
	run := func(context.Context, millrace.Consumer) error { return nil }
	unnamed := millracetest.Tallies()
	unnamed.Name = ""
	for what, try := range map[string]func() error{
		"no Run": func() error { _, err := projection.New(t.Context(), s, nil, projection.Options{}); return err },
		"twice": func() error {
			_, err := projection.New(t.Context(), s, []millrace.Projection{second, second}, projection.Options{Run: run})
			return err
		},
		"no name": func() error {
			_, err := projection.New(t.Context(), s, []millrace.Projection{unnamed}, projection.Options{Run: run})
			return err
		},
	} {
		if try() == nil {
			t.Errorf("%s is accepted", what)
		}
	}
}

// Paused, the models stay where they are and can be read.
func TestPaused(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, _ := deciding(t, s)
	svc, stop := serve(t, s, millracetest.Tallies())
	send(t, p, "c", 20, 3)
	wait(t, svc.Model("tallies"), s.Head())
	if err := stop(); err != nil {
		t.Error(err)
	}
	want := dump(t, svc.Model("tallies"))
	svc, err := projection.New(t.Context(), s, []millrace.Projection{double(nil)}, projection.Options{Paused: always, Run: func(context.Context, millrace.Consumer) error {
		t.Error("a consumer runs")
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- svc.Run(ctx) }()
	send(t, p, "d", 20, 3)
	if d := cmp.Diff(want, dump(t, svc.Model("tallies"))); d != "" {
		t.Error(d)
	}
	if st, err := svc.Model("tallies").Status(t.Context()); err != nil || st.Gap != 20 || st.Lag <= 0 {
		t.Errorf("%+v %v", st, err)
	}
	// A rebuild would never be done: it is refused, each time, and the status knows of none.
	for range 2 {
		if err := svc.Model("tallies").Rebuild(t.Context(), false); !errors.Is(err, projection.ErrPaused) {
			t.Errorf("a rebuild that cannot begin: %v", err)
		}
	}
	if st, err := svc.Model("tallies").Status(t.Context()); err != nil || st.Rebuild != nil {
		t.Errorf("%+v %v", st, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
