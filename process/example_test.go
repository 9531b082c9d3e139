package process_test

import (
	"context"
	"fmt"
	"log"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/process"
)

// patienceState is what the process of the example knows of an order.
type patienceState struct {
	ID       string    `json:"id"`
	Deadline time.Time `json:"deadline"`
	Late     bool      `json:"late"`
	Over     bool      `json:"over"`
}

// An order that is not confirmed within two days is cancelled.
var patient = millrace.Process[patienceState]{
	Name: "patience", Category: order.CategoryOrder,
	Initial: func(s millrace.Stream) patienceState { return patienceState{ID: s.ID()} },
	Evolve: func(s patienceState, in *millrace.Input) patienceState {
		switch in.Event.(type) {
		case *order.OrderPlaced:
			s.Deadline = in.At.Add(48 * time.Hour)
		case *order.OrderConfirmed, *order.OrderCancelled:
			s.Over = true
		}
		s.Late = s.Late || in.Timer == "deadline"
		return s
	},
	React: func(s patienceState) millrace.Reaction {
		switch {
		case s.Over:
			return millrace.Reaction{State: "over", Done: true}
		case s.Late:
			return millrace.Reaction{State: "late", Steps: []millrace.Step{{
				Name: "cancel", Stream: millrace.NewStream(order.CategoryOrder, s.ID), Command: &order.CancelOrder{Reason: "not confirmed in time"},
			}}}
		}
		return millrace.Reaction{State: "waiting", Waits: "a confirmation", Timers: []millrace.Timer{{Name: "deadline", At: s.Deadline}}}
	},
}

func Example() {
	store, err := localstore.Open("data", &localstore.Options{FS: vfs.NewMem(), Partitions: 2, SegmentSize: 1 << 20})
	if err != nil {
		log.Fatal(err)
	}
	registry, err := millrace.NewRegistry(order.Domains()...)
	if err != nil {
		log.Fatal(err)
	}
	manager, err := patient.Manager()
	if err != nil {
		log.Fatal(err)
	}
	var later atomic.Int64 // a clock to turn
	now := func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	commands := command.New(store, registry, &command.Options{Now: now})
	m := process.New(store, registry, commands, manager, &process.Options{Now: now})
	ctx, stop := context.WithCancel(context.Background())
	var run errgroup.Group
	run.Go(func() error { return commands.Run(ctx) })
	run.Go(func() error { return feed.New(store, registry, m.Consumer(), nil).Run(ctx) })

	receipt, err := commands.Accept(ctx, millrace.Command{
		ID: "first", Stream: "order-1", Type: "PlaceOrder",
		Data: []byte(`{"currency":"GBP","lines":[{"sku":"85123A","quantity":6,"unit_price":"2.55"}]}`),
	})
	if err != nil {
		log.Fatal(err)
	}
	placed, err := receipt.Wait(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("placed, version", placed.Version)
	if err := store.Wait(ctx, "patience", store.Cursor(&placed)); err != nil {
		log.Fatal(err)
	}
	later.Store(int64(49 * time.Hour))
	for events, err := range store.Feed(ctx, millrace.FeedOptions{Follow: true}) { // until it is cancelled
		if err != nil {
			log.Fatal(err)
		}
		if e := events[len(events)-1]; e.Type == "OrderCancelled" {
			fmt.Println(string(e.Stream), "cancelled by", e.CommandID)
			break
		}
	}
	stop()
	if err := run.Wait(); err != nil {
		log.Fatal(err)
	}
	if err := store.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// placed, version 1
	// order-1 cancelled by process/patience/order-1/cancel
}
