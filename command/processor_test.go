package command_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/millracetest"
)

func registry(t testing.TB) *millrace.Registry {
	t.Helper()
	r, err := millrace.NewRegistry(millracetest.Tally())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func open(t testing.TB, fs vfs.FS) *millrace.Store {
	t.Helper()
	s, err := localstore.Open("data", &localstore.Options{FS: fs, SegmentSize: 1 << 20, Fatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// start runs a processor until the returned function is called.
func start(t testing.TB, s *millrace.Store, o *command.Options) (*command.Processor, func()) {
	t.Helper()
	p := command.New(s, registry(t), o)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	return p, func() { cancel(); wg.Wait() }
}

func add(id, stream string, n int) millrace.Command {
	return millrace.Command{ID: id, Stream: millrace.NewStream("tally", stream), Type: "Add", Data: fmt.Appendf(nil, `{"n":%d}`, n)}
}

func TestSmoke(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, stop := start(t, s, nil)
	ctx := t.Context()
	consumer := millrace.Consumer{Name: "tallies", Handle: func(_ context.Context, v millrace.Views, e *millrace.Recorded) error {
		return millracetest.Tallies().Project(v, e)
	}}
	fctx, fstop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := feed.New(s, registry(t), consumer, nil).Run(fctx); err != nil {
			t.Error(err)
		}
	})
	var clients sync.WaitGroup
	for c := range 16 {
		clients.Go(func() {
			for i := range 200 {
				r, err := p.Accept(ctx, add(fmt.Sprintf("c%d-%d", c, i), fmt.Sprint(i%10), 1))
				if err != nil {
					t.Error(err)
					return
				}
				o, err := r.Wait(ctx)
				if err != nil || o.Status != millrace.StatusDecided || o.Events != 1 {
					t.Errorf("%+v %v", o, err)
					return
				}
			}
		})
	}
	clients.Wait()
	if err := s.Wait(ctx, "tallies", s.Head()); err != nil {
		t.Fatal(err)
	}
	n := 0
	for d, err := range s.Documents(ctx, millrace.Query{Collection: "tallies.tallies", Index: 0, Partition: -1}) {
		if err != nil {
			t.Fatal(err)
		}
		doc, err := millracetest.TallyTable.Decode(d.Data)
		if err != nil || doc.Total != 320 || doc.Version != 320 {
			t.Errorf("%s %v", d.Data, err)
		}
		n++
	}
	if n != 10 {
		t.Errorf("%d documents", n)
	}
	if err := s.Verify(ctx, func(p string) { t.Error(p) }); err != nil {
		t.Error(err)
	}
	fstop()
	wg.Wait()
	stop()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
