package httpapi_test

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/process"
)

// confirming is a process that confirms what is placed, and calls for a receipt that never comes.
type confirming struct {
	ID       string `json:"id"`
	Customer string `json:"customer"`
	Over     bool   `json:"over"`
}

func confirmer(broken *atomic.Bool) millrace.Process[confirming] {
	return millrace.Process[confirming]{
		Name: "confirmer", Category: order.CategoryOrder,
		Initial: func(s millrace.Stream) confirming { return confirming{ID: s.ID()} },
		Evolve: func(s confirming, in *millrace.Input) confirming {
			if s.ID == "bad" && broken.Load() {
				panic("no")
			}
			switch e := in.Event.(type) {
			case *order.OrderPlaced:
				s.Customer = e.CustomerID
			case *order.OrderConfirmed:
				s.Over = true
			}
			return s
		},
		React: func(s confirming) millrace.Reaction {
			if s.Over {
				return millrace.Reaction{State: "confirmed", Key: s.Customer, Calls: []millrace.Call{{Name: "receipt", Request: s.ID}}}
			}
			return millrace.Reaction{State: "placed", Key: s.Customer, Steps: []millrace.Step{{
				Name: "confirm", Stream: millrace.NewStream(order.CategoryOrder, s.ID), Command: &order.ConfirmOrder{},
			}}}
		},
	}
}

// Processes and their instances are seen as the document says: all, those of a state, those with a business key, one.
func TestProcesses(t *testing.T) {
	var broken atomic.Bool
	broken.Store(true)
	w := newWorld(t, worldOptions{change: func(c *httpapi.Config) {
		manager, err := confirmer(&broken).Manager()
		if err != nil {
			t.Fatal(err)
		}
		m := process.New(c.Store, c.Registry, c.Intake, manager, &process.Options{
			Call: func(ctx context.Context, _ *millrace.CallRequest) ([]byte, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			},
		})
		c.Processes = []httpapi.Process{process.NewReader(c.Store, "confirmer", order.CategoryOrder)}
		c.Consumers = following{c.Store, map[string]string{"confirmer": "confirmer"}}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- feed.New(c.Store, c.Registry, m.Consumer(), nil).Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}})
	want := []string{}
	for i := range 7 {
		id := fmt.Sprint("o", i)
		want = append(want, "order-"+id)
		w.want(201, "POST", "/v1/orders", fmt.Sprintf(`{"id":%q,"customer_id":"c-%d","currency":"GBP","lines":[{"sku":"85123A","quantity":6,"unit_price":"2.55"}]}`, id, i%2), wait, "Idempotency-Key: "+id)
	}
	ctx := t.Context()
	for w.store.Head().Position(0)+w.store.Head().Position(1)+w.store.Head().Position(2)+w.store.Head().Position(3) < 14 {
		if err := w.store.Wait(ctx, "confirmer", w.store.Head()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.store.Wait(ctx, "confirmer", w.store.Head()); err != nil {
		t.Fatal(err)
	}
	streams := func(query string) (got []string) {
		path := "/v1/processes/confirmer/instances?" + query
		for path != "" {
			a := w.want(200, "GET", path, "")
			for _, item := range a.items(t) {
				got = append(got, as[string](t, item["stream"]))
			}
			next, _ := a.json(t)["next_cursor"].(string)
			if path = ""; next != "" {
				path = "/v1/processes/confirmer/instances?" + query + "&cursor=" + url.QueryEscape(next)
			}
		}
		slices.Sort(got)
		return got
	}
	for query, want := range map[string][]string{
		"limit=2": want, "state=confirmed&limit=3": want, "state=placed": nil, "key=c-1&limit=1": {"order-o1", "order-o3", "order-o5"}, "key=c-": nil,
	} {
		if got := streams(query); !slices.Equal(got, want) {
			t.Errorf("%s: %v", query, got)
		}
	}
	one := w.want(200, "GET", "/v1/processes/confirmer/instances/order-o3", "").json(t)
	step := as[map[string]any](t, as[[]any](t, one["steps"])[0])
	call := as[map[string]any](t, as[[]any](t, one["calls"])[0])
	if one["state"] != "confirmed" || step["status"] != "decided" || step["name"] != "confirm" || call["request"] != "o3" || call["done_at"] != nil {
		t.Errorf("%v", one)
	}
	all := w.want(200, "GET", "/v1/processes", "").items(t)
	if len(all) != 1 || all[0]["name"] != "confirmer" || all[0]["category"] != "order" {
		t.Errorf("%v", all)
	}
	testRedrive(t, w, &broken)
	// The ids of a process's commands are its own: nobody can take one before it does.
	const taken = "process/confirmer/order-o9/confirm"
	if a := w.want(400, "POST", "/v1/orders/o3/confirm", "", "Idempotency-Key: "+taken); a.json(t)["code"] != "invalid_header" {
		t.Errorf("%s", a.body)
	}
	w.want(400, "POST", "/v1/commands", `{"id":"`+taken+`","type":"ConfirmOrder","stream":"order-o3","data":{}}`)
	for path, status := range map[string]int{
		"/v1/processes/other/instances": 404, "/v1/processes/confirmer/instances/order-none": 404, "/v1/processes/confirmer/instances/stock-x": 404,
		"/v1/processes/confirmer/instances/nothing": 400, "/v1/processes/confirmer/instances?state=a&key=b": 400,
		"/v1/consumers/other/parked": 404, "/v1/consumers?x=1": 400, "/v1/consumers/confirmer/parked?cursor=x": 400, "/v1/consumers/confirmer/parked?limit=0": 400,
		"/v1/processes/confirmer/instances?limit=0": 400, "/v1/processes/confirmer/instances?cursor=x": 400, "/v1/processes?x=1": 400,
		"/v1/processes/confirmer/instances/" + strings.Repeat("x", 300): 400,
	} {
		if a := w.do("GET", path, ""); a.StatusCode != status {
			t.Errorf("%s: %d %s", path, a.StatusCode, a.body)
		}
	}
}

// testRedrive has an event that cannot be handled park its stream, and go on with it when it can.
func testRedrive(t *testing.T, w *world, broken *atomic.Bool) {
	t.Helper()
	const redrive = "/v1/consumers/confirmer/redrive"
	w.want(201, "POST", "/v1/orders", `{"id":"bad","currency":"GBP","lines":[{"sku":"85123A","quantity":6,"unit_price":"2.55"}]}`, wait, "Idempotency-Key: bad")
	if err := w.store.Wait(t.Context(), "confirmer", w.store.Head()); err != nil {
		t.Fatal(err)
	}
	one := w.want(200, "GET", "/v1/consumers", "").items(t)[1] // behind the deciding
	if one["name"] != "confirmer" || one["gap"] != 0.0 || one["parked"] != 1.0 {
		t.Errorf("%v", one)
	}
	parked := w.want(200, "GET", "/v1/consumers/confirmer/parked?limit=1", "")
	if p := parked.items(t)[0]; p["stream"] != "order-bad" || p["version"] != 1.0 || p["reason"] != "handler_failed" || p["attempts"] != 5.0 || strings.Contains(string(parked.body), "panic") {
		t.Errorf("%s", parked.body)
	}
	w.want(404, "POST", redrive, `{"stream":"order-none"}`)
	w.want(400, "POST", redrive, `{"stream":"nothing"}`)
	w.want(400, "POST", redrive, ``)
	w.want(404, "POST", "/v1/consumers/other/redrive", `{"stream":"order-bad"}`)
	broken.Store(false)
	w.want(202, "POST", redrive, `{"stream":"order-bad"}`)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for len(w.want(200, "GET", "/v1/consumers/confirmer/parked", "").items(t)) > 0 {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("it is still parked")
		}
	}
	w.want(200, "GET", "/v1/processes/confirmer/instances/order-bad", "")
}
