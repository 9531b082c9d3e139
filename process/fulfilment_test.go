package process_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/payment"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/process"
)

// TestFulfilmentRuns: the process of orders under its manager on a real store, with stock for some of them only, and one order of
// very many lines, which takes its rounds of commands within the bounds of a commit.
func TestFulfilmentRuns(t *testing.T) {
	const orders, enough, lines = 60, 40, 1000
	store, err := localstore.Open("data", &localstore.Options{FS: vfs.NewMem(), Partitions: 4, SegmentSize: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	registry, err := millrace.NewRegistry(order.Domains()...)
	if err != nil {
		t.Fatal(err)
	}
	manager, err := order.Fulfilment(order.FulfilmentOptions{}).Manager()
	if err != nil {
		t.Fatal(err)
	}
	commands := command.New(store, registry, nil)
	m := process.New(store, registry, commands, manager, &process.Options{Call: gatewayOf(t, commands)})
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	var run errgroup.Group
	run.Go(func() error { return commands.Run(ctx) })
	run.Go(func() error { return feed.New(store, registry, m.Consumer(), nil).Run(ctx) })

	send := func(id string, stream millrace.Stream, typ, body string) {
		t.Helper()
		r, err := commands.Accept(ctx, millrace.Command{ID: id, Stream: stream, Type: typ, Data: []byte(body)})
		if err != nil {
			t.Fatal(err)
		}
		if out, err := r.Wait(ctx); err != nil || out.Refusal != nil {
			t.Fatalf("%s: %+v (%v)", id, out, err)
		}
	}
	send("stock", "stock-A", "ReceiveStock", fmt.Sprintf(`{"quantity":%d}`, 2*enough))
	var all []string
	for n := range lines {
		all = append(all, fmt.Sprintf(`{"sku":"S%d","quantity":1,"unit_price":"0.01"}`, n))
		send(fmt.Sprintf("stock-%d", n), millrace.Stream(fmt.Sprintf("stock-S%d", n)), "ReceiveStock", `{"quantity":1}`)
	}
	send("large", "order-large", "PlaceOrder", `{"currency":"GBP","lines":[`+strings.Join(all, ",")+`]}`)
	for n := range orders {
		send(fmt.Sprintf("place-%d", n), millrace.Stream(fmt.Sprintf("order-%d", n)), "PlaceOrder",
			`{"customer_id":"c-17","currency":"GBP","lines":[{"sku":"A","quantity":1,"unit_price":"2.55"},{"sku":"A","quantity":1,"unit_price":"1"}]}`)
	}
	ended := map[string]int{}
	var audit order.Audit
	for events, err := range store.Feed(ctx, millrace.FeedOptions{Follow: true}) {
		if err != nil {
			t.Fatalf("%v, after %v", err, ended)
		}
		for i := range events {
			e := events[i]
			if _, err := registry.Body(&e); err != nil {
				t.Fatal(err)
			}
			audit.Add(&e)
			if e.Type == "OrderCompleted" || e.Type == "OrderCancelled" {
				ended[e.Type]++
			}
		}
		if ended["OrderCompleted"]+ended["OrderCancelled"] == orders+1 {
			break
		}
	}
	stop()
	if err := run.Wait(); err != nil {
		t.Error(err)
	}
	if ended["OrderCompleted"] != enough+1 {
		t.Errorf("%v", ended)
	}
	f := audit.Finish(false)
	if len(f.Broken) > 0 {
		t.Errorf("%+v", f.Broken)
	}
	t.Logf("%+v", f.Totals)
	if err := store.Close(); err != nil {
		t.Error(err)
	}
}

// gatewayOf approves everything and records it before it answers, as who makes the calls has to.
func gatewayOf(t *testing.T, commands millrace.Intake) func(context.Context, *millrace.CallRequest) ([]byte, error) {
	return func(ctx context.Context, c *millrace.CallRequest) ([]byte, error) {
		var r payment.Request
		if err := jsonx.Unmarshal(c.Request, &r); err != nil {
			t.Error(err)
		}
		say := func(id, typ string, body any) error {
			data, err := jsonx.Marshal(body)
			if err != nil {
				return err
			}
			receipt, err := commands.Accept(ctx, millrace.Command{ID: id, Stream: c.Stream, Type: typ, Data: data})
			if err != nil {
				return err
			}
			_, err = receipt.Wait(ctx)
			return err
		}
		name := r.Payment
		if r.Kind == payment.Authorise {
			name = "pay-" + r.OrderID
			id := millrace.StepID(c.Process, c.Stream, order.RequestStep(c.Name))
			if err := say(id, "RequestPayment", &order.RequestPayment{Name: c.Name, Amount: r.Amount}); err != nil {
				return nil, err
			}
		}
		answer := &order.RecordPayment{Name: c.Name, Kind: r.Kind, Status: payment.Approved, Payment: name, Amount: r.Amount}
		return []byte(`{}`), say(c.ID, "RecordPayment", answer)
	}
}
