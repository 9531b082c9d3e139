package httpapi_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/notice"
	"github.com/millrace-io/millrace/process"
)

// callItem shows a call as the binary does, as far as a schema sees it.
func callItem(c *millrace.InstanceCall) (any, error) {
	kind, channel, _ := strings.Cut(c.Name, "/")
	status := "waiting"
	if !c.Waits() {
		status = "sent"
	}
	return map[string]any{"name": c.Name, "kind": kind, "channel": channel, "status": status, "attempts": c.Attempts, "due_at": c.BeganAt}, nil
}

// tells runs the process of notifications over a world, until the test ends.
func tells(w *world, call func(context.Context, *millrace.CallRequest) ([]byte, error)) {
	w.t.Helper()
	registry, err := millrace.NewRegistry(order.Domains()...)
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := order.Notifications(order.NotificationOptions{Channels: []notice.Channel{notice.Log, notice.Email}}).Manager()
	if err != nil {
		w.t.Fatal(err)
	}
	m := process.New(w.store, registry, w.intake, p, &process.Options{Call: call})
	ctx, cancel := context.WithCancel(context.Background())
	var running errgroup.Group
	running.Go(func() error { return feed.New(w.store, registry, m.Consumer(), nil).Run(ctx) })
	w.t.Cleanup(func() {
		cancel()
		if err := running.Wait(); err != nil {
			w.t.Error(err)
		}
	})
}

// TestNotificationsOfAnOrder: what was told and what waits, as soon as the process has seen what the cursor names; nothing of
// an order that there is not.
func TestNotificationsOfAnOrder(t *testing.T) {
	w := newWorld(t, worldOptions{})
	w.want(404, "GET", "/v1/orders/o/notifications", "")
	a := w.want(201, "POST", "/v1/orders", anOrder(`,"id":"o","email":"ann@example.org"`), wait)
	cursor := a.Header.Get("Millrace-Cursor")
	// Nobody tells yet: there is nothing, and who wants to see it waits.
	if a := w.want(200, "GET", "/v1/orders/o/notifications", ""); string(a.body) != `{"items":[]}` {
		t.Errorf("%s", a.body)
	}
	w.want(503, "GET", "/v1/orders/o/notifications?min_cursor="+cursor, "", "Prefer: wait=0")

	tells(w, func(_ context.Context, c *millrace.CallRequest) ([]byte, error) {
		if c.Name == "placed/email" {
			return nil, errors.New("the mail server is away")
		}
		return []byte(`{"status":"sent"}`), nil
	})
	items := func(path string) []any {
		t.Helper()
		return as[[]any](t, w.want(200, "GET", path, "", "Prefer: wait=30").json(t)["items"])
	}
	if got := items("/v1/orders/o/notifications?min_cursor=" + cursor); len(got) != 2 {
		t.Errorf("%v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for { // an attempt is nothing that a cursor names
		got := items("/v1/orders/o/notifications")
		first, second := as[map[string]any](t, got[0]), as[map[string]any](t, got[1])
		if first["status"] == "sent" && second["attempts"] != 0.0 {
			if second["status"] != "waiting" || first["kind"] != "placed" || second["channel"] != "email" {
				t.Errorf("%v", got)
			}
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("%v", got)
		}
	}
	for query, want := range map[string]int{"?limit=1": 400, "?min_cursor=x": 400} {
		w.want(want, "GET", "/v1/orders/o/notifications"+query, "")
	}
	w.want(404, "GET", "/v1/orders/none/notifications", "")
}

// TestNotificationsOfNobody: where the process does not run, there is what it did, and nobody waits for it.
func TestNotificationsOfNobody(t *testing.T) {
	w := newWorld(t, worldOptions{change: func(c *httpapi.Config) { c.Resources[0].Calls[0].Runs = false }})
	a := w.want(201, "POST", "/v1/orders", anOrder(`,"id":"o","email":"ann@example.org"`), wait)
	got := w.want(200, "GET", "/v1/orders/o/notifications?min_cursor="+a.Header.Get("Millrace-Cursor"), "", "Prefer: wait=0")
	if string(got.body) != `{"items":[]}` {
		t.Errorf("%s", got.body)
	}
}

// TestCallsAreChecked: a declaration that cannot work is refused at start.
func TestCallsAreChecked(t *testing.T) {
	w := newWorld(t, worldOptions{})
	for name, bad := range map[string]httpapi.Calls{
		"no name": {Process: "p", Item: callItem}, "a name that is taken": {Name: "events", Process: "p", Item: callItem},
		"no process": {Name: "calls", Item: callItem}, "no item": {Name: "calls", Process: "p"},
	} {
		registry, err := millrace.NewRegistry(order.Domains()...)
		if err != nil {
			t.Fatal(err)
		}
		_, err = httpapi.New(httpapi.Config{
			Store: w.store, Registry: registry, Intake: w.intake, Document: []byte("openapi: 3.1.0"),
			Resources: []httpapi.Resource{{Name: "orders", Category: order.CategoryOrder, Calls: []httpapi.Calls{bad}}},
		})
		if err == nil || !strings.Contains(err.Error(), "calls") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
