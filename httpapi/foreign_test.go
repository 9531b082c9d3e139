package httpapi_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/httpapi"
)

// guarded is how the wiring has it.
func guarded(c *httpapi.Config) { c.Internal, c.Own = order.Internal(), order.Own }

// foreign are commands that clients may not send, in their right form, and the place of the fault in an envelope.
var foreign = []struct{ envelope, pointer string }{
	{`"type":"RecordPayment","stream":"order-1","data":{"name":"capture/1","operation":"capture","status":"ok","amount":{"amount":"15.30","currency":"GBP"}}`, "/type"},
	{`"type":"BeginNotifications","stream":"notification-since","data":{"since":"2026-01-02T03:04:05Z"}`, "/type"},
	{`"type":"RecordNotification","stream":"notification-1","data":{"name":"placed/email","status":"sent"}`, "/type"},
	{`"type":"ReserveStock","stream":"stock-A","data":{"reservation":"order-1/1","quantity":1}`, "/data/reservation"},
	{`"type":"ReleaseStock","stream":"stock-A","data":{"reservation":"order-1/1"}`, "/data/reservation"},
	{`"type":"CommitStock","stream":"stock-A","data":{"reservation":"order-a/b/17"}`, "/data/reservation"},
	{`"type":"ReceiveStock","stream":"stock-A","data":{"quantity":1,"reference":"order-1/1"}`, "/data/reference"},
}

// TestServersOwnCommands: what only the server sends is refused, one by one and in lines, and nothing is kept of it.
func TestServersOwnCommands(t *testing.T) {
	w := newWorld(t, worldOptions{change: guarded})
	head := w.store.Head().String()
	var body strings.Builder
	var want []line
	for i, c := range foreign {
		a := w.want(400, "POST", "/v1/commands", "{"+c.envelope+"}")
		if a.text(t, "code") != "invalid_body" || !strings.Contains(string(a.body), `"pointer":"`+c.pointer+`"`) {
			t.Errorf("%s: %s", c.envelope, a.body)
		}
		fmt.Fprintf(&body, `{"id":"f-%d",%s}`+"\n", i, c.envelope)
		want = append(want, line{Line: i + 1, Code: "invalid_body", Pointer: c.pointer})
	}
	a := w.want(200, "POST", "/v1/commands", body.String(), append(asLines, "Prefer: wait=5")...)
	if diff := cmp.Diff(want, lines(t, a.body)); diff != "" {
		t.Error(diff)
	}
	if now := w.store.Head().String(); now != head {
		t.Errorf("the log went on from %s to %s", head, now)
	}
	for i := range foreign {
		w.want(404, "GET", fmt.Sprintf("/v1/commands/f-%d", i), "")
	}
}

// The routes of stock refuse the process's reservations too, and nothing that only looks like them.
func TestReservationsOfOrders(t *testing.T) {
	w := newWorld(t, worldOptions{change: guarded})
	const wait = "Prefer: wait=5"
	w.want(200, "POST", "/v1/stock/A/receive", `{"quantity":100,"reference":"delivery 4/1"}`, wait)
	for verb, body := range map[string]string{
		"reserve": `{"reservation":"order-1/1","quantity":1}`, "release": `{"reservation":"order-1/1"}`, "commit": `{"reservation":"order-1/1"}`,
		"receive": `{"quantity":1,"reference":"order-1/1"}`,
	} {
		if a := w.want(400, "POST", "/v1/stock/A/"+verb, body, wait); a.text(t, "code") != "invalid_body" || !strings.Contains(string(a.body), `"pointer":"/re`) {
			t.Errorf("%s: %s", verb, a.body)
		}
	}
	for _, id := range []string{"order-1", "order-1/", "order-/1", "order-1/a", "1/1", "basket-1/1"} {
		w.want(200, "POST", "/v1/stock/A/reserve", `{"reservation":"`+id+`","quantity":1}`, wait)
	}
}

// Without the guard, a client gives up what an order holds.
func TestReservationsOfOrdersControl(t *testing.T) {
	w := newWorld(t, worldOptions{})
	const wait = "Prefer: wait=5"
	w.want(200, "POST", "/v1/stock/A/receive", `{"quantity":1}`, wait)
	w.want(200, "POST", "/v1/stock/A/reserve", `{"reservation":"order-1/1","quantity":1}`, wait)
	w.want(200, "POST", "/v1/stock/A/release", `{"reservation":"order-1/1"}`, wait)
	if o := w.want(200, "POST", "/v1/commands", `{"type":"RecordNotification","stream":"notification-1","data":{"name":"placed/email","status":"sent"}}`, wait); o.text(t, "status") != "decided" {
		t.Errorf("%s", o.body)
	}
}
