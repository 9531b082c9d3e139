package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/letter"
	"github.com/millrace-io/millrace/localstore"
)

// What is asked for with a parked stream is a fact first, with who and why, and comes to the consumer from there, once for each
// time that it is asked for. A stream that is not parked is refused before.
func TestStreamAsksFollowFacts(t *testing.T) {
	store, err := localstore.Open("data", &localstore.Options{FS: vfs.NewMem(), Partitions: 4, Fatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNode(t.Context(), store, nodeOptions{pauseFeed: true, log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 2)
	go func() { ended <- n.run(running) }()
	const stream = millrace.Stream("order-1")
	c := consumers{n}
	ask := &httpapi.RedriveAsk{ID: "a1", Name: "snapshots", Consumer: "snapshots", Stream: stream, By: "ann", Why: "mended"}
	if err := c.Redrive(ctx, ask); !errors.Is(err, millrace.ErrNotFound) {
		t.Errorf("a stream that is not parked: %v", err)
	}
	data, _, err := millrace.ParkedTable.Encode(&millrace.Parked{Stream: string(stream), Version: 1, Since: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	partition := stream.Partition(store.Partitions())
	doc := millrace.Document{Collection: "snapshots.parked", Partition: partition, ID: string(stream), Data: data}
	if err := store.CommitViews(ctx, []millrace.ViewBatch{{Consumer: "snapshots", Partition: partition, Puts: []millrace.Put{{Document: doc}}}}); err != nil {
		t.Fatal(err)
	}
	var form *millrace.FormError
	if err := c.Redrive(ctx, &httpapi.RedriveAsk{ID: "a0", Name: "snapshots", Consumer: "snapshots", Stream: stream}); !errors.As(err, &form) {
		t.Errorf("of nobody: %v", err)
	}
	for range 2 { // the same request twice
		if err := c.Redrive(ctx, ask); err != nil {
			t.Fatal(err)
		}
	}
	go func() { ended <- feed.New(store, n.registry, n.streamAsks(), nil).Run(running) }() // the node's own stands still
	self := letter.ConsumerStream("snapshots")
	known, err := n.processor.Accept(ctx, mustCommand(ctx, t, store, "a1")) // waits for what became of it
	if err != nil {
		t.Fatal(err)
	}
	o, err := known.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Wait(ctx, streamAsks, store.Cursor(&o)); err != nil {
		t.Fatal(err)
	}
	asked, err := store.Document(ctx, "snapshots.asks", partition, string(self)+"/1")
	if err != nil {
		t.Fatal(err)
	}
	if a, err := millrace.AsksTable.Decode(asked.Data); err != nil || a.Redrive != stream || a.Skip != 0 {
		t.Errorf("%+v %v", a, err)
	}
	if v, err := store.Version(ctx, self); err != nil || v != 1 {
		t.Errorf("%d events %v", v, err)
	}
	stop()
	if err := errors.Join(<-ended, <-ended, store.Close()); err != nil {
		t.Error(err)
	}
}

func mustCommand(ctx context.Context, t *testing.T, store *millrace.Store, id string) millrace.Command {
	t.Helper()
	c, err := store.Command(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
