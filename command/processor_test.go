package command_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/millracetest"
)

// TestSmoke runs the whole way once: commands in, decisions, a consumer, documents out.
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
