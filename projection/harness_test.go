package projection_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/millracetest"
	"github.com/millrace-io/millrace/projection"
)

// patience is how long a test waits for what must come: only a hang reaches it.
const patience = 30 * time.Second

func patient(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func open(t testing.TB, fs vfs.FS) *millrace.Store {
	t.Helper()
	s, err := localstore.Open("data", &localstore.Options{
		FS: fs, Partitions: 4, SegmentSize: 1 << 20, CacheSize: 8 << 20, MemTableSize: 4 << 20,
		Fatal: func(err error) { t.Errorf("store failed: %v", err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func registry(t testing.TB) *millrace.Registry {
	t.Helper()
	r, err := millrace.NewRegistry(millracetest.Tally())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// deciding is a processor that runs until the test ends or the returned function is called.
func deciding(t testing.TB, s *millrace.Store) (*command.Processor, func()) {
	t.Helper()
	p := command.New(s, registry(t), nil)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return p, stop
}

func add(id, stream string, n int) millrace.Command {
	return millrace.Command{ID: id, Stream: millrace.NewStream("tally", stream), Type: "Add", Data: fmt.Appendf(nil, `{"n":%d}`, n)}
}

// send decides n commands over some streams.
func send(t testing.TB, p *command.Processor, prefix string, n, streams int) millrace.Outcome {
	t.Helper()
	cs := make([]millrace.Command, n)
	for i := range cs {
		cs[i] = add(fmt.Sprint(prefix, i), fmt.Sprint("s", i%streams), i%7+1)
	}
	var last millrace.Outcome
	ctx := patient(t)
	for _, a := range p.AcceptAll(ctx, cs) {
		if a.Err != nil {
			t.Fatal(a.Err)
		}
		var err error
		if last, err = a.Receipt.Wait(ctx); err != nil || last.Status != millrace.StatusDecided {
			t.Fatalf("%+v %v", last, err)
		}
	}
	return last
}

// version is the projection of tallies as another version of its code.
func version(v int, before func(e *millrace.Recorded)) millrace.Projection {
	p := millracetest.Tallies()
	p.Version = v
	project := p.Project
	p.Project = func(views millrace.Views, e *millrace.Recorded) error {
		if before != nil {
			before(e)
		}
		return project(views, e)
	}
	return p
}

// double is version 2 of the projection, whose documents hold twice the total.
func double(before func(e *millrace.Recorded)) millrace.Projection {
	p := version(2, before)
	p.Project = func(views millrace.Views, e *millrace.Recorded) error {
		if before != nil {
			before(e)
		}
		added, ok := e.Body.(*millracetest.Added)
		if !ok {
			return errors.New("not a tally's event")
		}
		millracetest.TallyTable.Put(views, string(e.Stream), &millracetest.TallyDocument{Stream: string(e.Stream), Total: 2 * added.Total, Version: e.Version})
		return nil
	}
	return p
}

// serve runs a service until the test ends or the returned function is called.
func serve(t testing.TB, s *millrace.Store, ps ...millrace.Projection) (*projection.Service, func() error) {
	t.Helper()
	return serveAs(t, s, projection.Options{}, ps...)
}

// serveAs is serve with options; the feed is the default runner.
func serveAs(t testing.TB, s *millrace.Store, o projection.Options, ps ...millrace.Projection) (*projection.Service, func() error) {
	t.Helper()
	r := registry(t)
	if o.Run == nil {
		o.Run = func(ctx context.Context, c millrace.Consumer) error {
			return feed.New(s, r, c, &feed.Options{Backoff: time.Millisecond}).Run(ctx)
		}
	}
	svc, err := projection.New(t.Context(), s, ps, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- svc.Run(ctx) }()
	stop := sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return svc, stop
}

// dump is everything that readers of a model see.
func dump(t testing.TB, m *projection.Model) string {
	t.Helper()
	var b strings.Builder
	for _, index := range []int{-1, 0} {
		for d, err := range m.Query(t.Context(), millracetest.TallyTable.Table, millrace.Query{Index: index, Partition: -1}) {
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "%d %d %q %q %s\n", index, d.Partition, d.ID, d.Keys, d.Data)
		}
	}
	return b.String()
}

// status waits until the model's status is as wanted.
func status(t testing.TB, m *projection.Model, want func(projection.Status) bool) projection.Status {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx := patient(t); ; {
		st, err := m.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if want(st) {
			return st
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the model stands at %+v", st)
		}
	}
}

// rebuilt waits until the newest rebuild is done and its generation live.
func rebuilt(t testing.TB, m *projection.Model) projection.Status {
	t.Helper()
	return status(t, m, func(st projection.Status) bool { return st.Rebuild != nil && st.Rebuild.Done })
}

func rebuild(t testing.TB, m *projection.Model) projection.Status {
	t.Helper()
	if err := m.Rebuild(patient(t), false); err != nil {
		t.Fatal(err)
	}
	return rebuilt(t, m)
}

func wait(t testing.TB, m *projection.Model, c millrace.Cursor) {
	t.Helper()
	if err := m.Wait(patient(t), c); err != nil {
		t.Fatal(err)
	}
}

func identical(st projection.Status) bool {
	same := st.Rebuild.Identical()
	return same != nil && *same
}

func differs(st projection.Status) bool {
	same := st.Rebuild.Identical()
	return same != nil && !*same
}

// eventually waits for what must come.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx := patient(t); !ok(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("in vain: %s", what)
		}
	}
}

// always is Options.Paused of a node whose read models stand still.
func always(string) bool { return true }
