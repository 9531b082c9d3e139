package httpapi_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
)

// anOrder is a body; %s are more members.
func anOrder(more string) string {
	return `{"currency":"GBP","customer_id":"c-17","lines":[{"sku":"85123A","quantity":6,"unit_price":"2.55"}]` + more + `}`
}

const wait = "Prefer: wait=30"

func TestPlaceAndRead(t *testing.T)        { placeAndRead(t, newWorld(t, worldOptions{})) }
func TestPlaceAndReadForReal(t *testing.T) { placeAndRead(t, newWorld(t, worldOptions{real: true})) }

func placeAndRead(t *testing.T, w *world) {
	t.Helper()
	placed := w.want(201, "POST", "/v1/orders", anOrder(`,"id":"42"`), wait, "Idempotency-Key: k1")
	o := placed.json(t)
	if o["id"] != "42" || o["status"] != "placed" || o["version"] != 1.0 || fmt.Sprint(o["total"]) != "map[amount:15.30 currency:GBP]" {
		t.Errorf("placed: %s", placed.body)
	}
	for name, want := range map[string]string{
		"Location": "/v1/orders/42", "Etag": `"1"`, "Preference-Applied": "wait=30", "Vary": "Prefer", "Idempotency-Replayed": "",
	} {
		if got := placed.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	cursor := placed.Header.Get("Millrace-Cursor")
	read := w.want(200, "GET", "/v1/orders/42?min_cursor="+cursor, "")
	if !bytes.Equal(read.body, placed.body) {
		t.Errorf("the read model has %s, the answer was %s", read.body, placed.body)
	}
	if read.Header.Get("Etag") != `"1"` || read.Header.Get("Millrace-Cursor") == "" {
		t.Errorf("headers of the read: %v", read.Header)
	}
	w.want(304, "GET", "/v1/orders/42", "", `If-None-Match: "1"`)
	w.want(200, "GET", "/v1/orders/42", "", `If-None-Match: "2"`)

	confirmed := w.want(200, "POST", "/v1/orders/42/confirm", "", wait)
	if o := confirmed.json(t); o["status"] != "confirmed" || confirmed.Header.Get("Etag") != `"2"` {
		t.Errorf("confirmed: %s", confirmed.body)
	}
	past := w.want(200, "GET", "/v1/orders/42?version=1", "")
	if !bytes.Equal(past.body, placed.body) {
		t.Errorf("version 1 is %s, was %s", past.body, placed.body)
	}
	at := w.want(200, "GET", "/v1/orders/42?at="+placed.text(t, "placed_at"), "")
	if !bytes.Equal(at.body, placed.body) {
		t.Errorf("at its time it is %s", at.body)
	}
	if a := w.want(404, "GET", "/v1/orders/42?version=3", ""); a.json(t)["code"] != "version_not_found" {
		t.Errorf("%s", a.body)
	}
	if a := w.want(404, "GET", "/v1/orders/42?at=2001-01-01T00:00:00Z", ""); a.json(t)["code"] != "version_not_found" {
		t.Errorf("%s", a.body)
	}
	if a := w.want(404, "GET", "/v1/orders/43", ""); a.json(t)["code"] != "not_found" {
		t.Errorf("%s", a.body)
	}
}

func TestWholeLifeOfAnOrder(t *testing.T) {
	w := newWorld(t, worldOptions{})
	w.want(201, "POST", "/v1/orders", anOrder(`,"id":"o","ship_to":{"city":"Leeds"}`), wait)
	steps := []struct{ method, path, body, status string }{
		{"PATCH", "", `{"ship_to":{"city":"York"}}`, "placed"},
		{"POST", "/confirm", "", "confirmed"},
		{"POST", "/pack", "{}", "packed"},
		{"POST", "/ship", `{"lines":[{"line":1,"quantity":2}],"carrier":"post"}`, "partly_shipped"},
		{"POST", "/ship", "", "shipped"},
		{"POST", "/deliver", "", "delivered"},
		{"POST", "/pay", `{"amount":{"amount":"15.30","currency":"GBP"}}`, "completed"},
		{"POST", "/return", `{"lines":[{"line":1,"quantity":1}]}`, "partly_returned"},
	}
	var last *answer
	for _, s := range steps {
		last = w.want(200, s.method, "/v1/orders/o"+s.path, s.body, wait)
		if got := last.json(t)["status"]; got != s.status {
			t.Fatalf("after %s it is %v, want %s", s.path, got, s.status)
		}
	}
	read := w.want(200, "GET", "/v1/orders/o?min_cursor="+last.Header.Get("Millrace-Cursor"), "")
	if !bytes.Equal(read.body, last.body) {
		t.Errorf("read %s, answered %s", read.body, last.body)
	}
	events := w.want(200, "GET", "/v1/orders/o/events", "").items(t)
	var types []string
	for i, e := range events {
		types = append(types, as[string](t, e["type"]))
		if e["version"] != float64(i+1) || e["command_id"] == "" || e["causation_id"] != e["command_id"] {
			t.Errorf("event %d: %v", i, e)
		}
	}
	want := []string{
		"OrderPlaced", "OrderAddressChanged", "OrderConfirmed", "OrderPacked", "OrderShipped", "OrderShipped",
		"OrderDelivered", "OrderPaid", "OrderCompleted", "OrderReturned",
	}
	if diff := cmp.Diff(want, types); diff != "" {
		t.Error(diff)
	}
	w.want(404, "GET", "/v1/orders/none/events", "")
}

func TestStockAndReturns(t *testing.T) {
	w := newWorld(t, worldOptions{})
	// Codes of real shops have what a path must escape.
	for _, sku := range []string{"85123A", "gift 0001/20", "a%2Fb", "..", "Ä?#"} {
		path := "/v1/stock/" + strings.NewReplacer("%", "%25", "/", "%2F", "?", "%3F", "#", "%23", " ", "%20", "..", "%2E%2E").Replace(sku)
		a := w.do("POST", path+"/receive", `{"quantity":10}`, wait)
		if sku == ".." {
			// A client that is so careful gets what it asks for.
			if a.StatusCode != 200 {
				t.Errorf("%q: %d %s", sku, a.StatusCode, a.body)
			}
		}
		if a.StatusCode != 200 || a.json(t)["sku"] != sku {
			t.Errorf("%q: %d %s", sku, a.StatusCode, a.body)
			continue
		}
		w.want(200, "POST", path+"/reserve", `{"reservation":"r1","quantity":4}`, wait)
		w.want(200, "POST", path+"/release", `{"reservation":"r1"}`, wait)
		w.want(200, "POST", path+"/reserve", `{"reservation":"r2","quantity":3}`, wait)
		w.want(200, "POST", path+"/commit", `{"reservation":"r2"}`, wait)
		last := w.want(200, "POST", path+"/adjust", `{"delta":-2,"reason":"breakage"}`, wait)
		read := w.want(200, "GET", path+"?min_cursor="+last.Header.Get("Millrace-Cursor"), "")
		if s := read.json(t); s["on_hand"] != 5.0 || s["reserved"] != 0.0 || s["available"] != 5.0 || !bytes.Equal(read.body, last.body) {
			t.Errorf("%q: %s", sku, read.body)
		}
		if n := len(w.want(200, "GET", path+"/events", "").items(t)); n != 6 {
			t.Errorf("%q has %d events", sku, n)
		}
	}
	refused := w.want(409, "POST", "/v1/stock/85123A/reserve", `{"reservation":"r","quantity":6}`, wait)
	if refused.json(t)["code"] != "stock_insufficient" {
		t.Errorf("%s", refused.body)
	}

	back := w.want(201, "POST", "/v1/returns", `{"id":"C1","currency":"GBP","lines":[{"sku":"85123A","quantity":1,"unit_price":"2.55"}]}`, wait)
	if back.Header.Get("Location") != "/v1/returns/C1" {
		t.Errorf("%v", back.Header)
	}
	read := w.want(200, "GET", "/v1/returns/C1?min_cursor="+back.Header.Get("Millrace-Cursor"), "")
	if !bytes.Equal(read.body, back.body) {
		t.Errorf("%s, %s", read.body, back.body)
	}
}

// TestLongStream: the answers to a stream of many events are right whichever remembered state they start from.
func TestLongStream(t *testing.T) {
	w := newWorld(t, worldOptions{})
	const n = 300
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range n / 4 {
				a := w.do("POST", "/v1/stock/hot/receive", `{"quantity":1}`, wait)
				if s := a.json(t); a.StatusCode != 200 || s["on_hand"] != s["version"] {
					t.Errorf("%d %s", a.StatusCode, a.body)
				}
			}
		})
	}
	wg.Wait()
	for _, v := range []int{1, 63, 64, 65, 127, 128, 200, 256, n, 5} {
		if s := w.want(200, "GET", fmt.Sprint("/v1/stock/hot?version=", v), "").json(t); s["on_hand"] != float64(v) {
			t.Errorf("at version %d there are %v", v, s["on_hand"])
		}
	}
	w.want(404, "GET", fmt.Sprint("/v1/stock/hot?version=", n+1), "")
}

func TestIDs(t *testing.T) {
	w := newWorld(t, worldOptions{})
	// Without an id in the body, the key decides: a repetition finds the same order.
	first := w.want(201, "POST", "/v1/orders", anOrder(""), wait, "Idempotency-Key: mine")
	again := w.want(201, "POST", "/v1/orders", anOrder(""), wait, `Idempotency-Key: "mine"`)
	if first.Header.Get("Location") != again.Header.Get("Location") || !bytes.Equal(first.body, again.body) || again.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%v\n%v", first.Header, again.Header)
	}
	// Without either, each request is another order.
	one := w.want(201, "POST", "/v1/orders", anOrder(""), wait)
	two := w.want(201, "POST", "/v1/orders", anOrder(""), wait)
	if one.Header.Get("Location") == two.Header.Get("Location") {
		t.Error("two requests without a key are one order")
	}
	// An id in the body and one derived from a key are different streams.
	reused := w.want(422, "POST", "/v1/orders", anOrder(`,"id":"other"`), wait, "Idempotency-Key: mine")
	if reused.json(t)["code"] != "idempotency_key_reused" {
		t.Errorf("%s", reused.body)
	}
}

func TestReplay(t *testing.T) {
	w := newWorld(t, worldOptions{})
	body := anOrder(`,"id":"7"`)
	for _, c := range []struct {
		name, method, path, body string
		headers                  []string
		status                   int
	}{
		{"create", "POST", "/v1/orders", body, []string{wait}, 201},
		{"create async", "POST", "/v1/orders", body, nil, 202},
		{"create minimal", "POST", "/v1/orders", body, []string{"Prefer: wait=30, return=minimal"}, 201},
		{"verb", "POST", "/v1/orders/7/confirm", "", []string{wait}, 200},
		{"verb minimal", "POST", "/v1/orders/7/confirm", "", []string{wait, "Prefer: return=minimal"}, 204},
		{"refused", "POST", "/v1/orders/7/deliver", "", []string{wait}, 409},
		{"command", "POST", "/v1/commands", `{"type":"PackOrder","stream":"order-7","data":{}}`, []string{wait}, 200},
		{"dead", "POST", "/v1/commands", `{"type":"PolishOrder","stream":"order-7","data":[1,{"a":null}]}`, []string{wait}, 422},
	} {
		headers := append([]string{"Idempotency-Key: " + c.name}, c.headers...)
		first := w.want(c.status, c.method, c.path, c.body, headers...)
		w.want(200, "POST", "/v1/stock/noise/receive", `{"quantity":1}`, wait) // something else happens
		again := w.want(c.status, c.method, c.path, c.body, headers...)
		if !bytes.Equal(first.body, again.body) {
			t.Errorf("%s: first %s, then %s", c.name, first.body, again.body)
		}
		if first.Header.Get("Idempotency-Replayed") != "" || again.Header.Get("Idempotency-Replayed") != "true" {
			t.Errorf("%s: replayed is %q, then %q", c.name, first.Header.Get("Idempotency-Replayed"), again.Header.Get("Idempotency-Replayed"))
		}
		for _, h := range []string{"Location", "Etag", "Millrace-Cursor"} {
			if first.Header.Get(h) != again.Header.Get(h) {
				t.Errorf("%s: %s is %q, then %q", c.name, h, first.Header.Get(h), again.Header.Get(h))
			}
		}
	}
}

// TestReplayOfTheSameMeaning: other white space and another order of the members are the same request.
func TestReplayOfTheSameMeaning(t *testing.T) {
	w := newWorld(t, worldOptions{})
	first := w.want(201, "POST", "/v1/orders", `{"id":"1","currency":"GBP","lines":[{"sku":"a","quantity":1,"unit_price":"1"}]}`, wait, "Idempotency-Key: k")
	again := w.want(201, "POST", "/v1/orders", `{ "lines": [{"unit_price":"1","quantity":1,"sku":"\u0061"}], "currency":"GBP", "id":"1" }`, wait, "Idempotency-Key: k")
	if !bytes.Equal(first.body, again.body) || again.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%d %v %s", again.StatusCode, again.Header, again.body)
	}
	for _, other := range []string{
		`{"id":"1","currency":"GBP","lines":[{"sku":"a","quantity":2,"unit_price":"1"}]}`,
		`{"id":"1","currency":"GBP","lines":[{"sku":"a","quantity":1,"unit_price":"1.0"}]}`,
	} {
		a := w.want(422, "POST", "/v1/orders", other, wait, "Idempotency-Key: k")
		if a.json(t)["code"] != "idempotency_key_reused" || a.json(t)["instance"] == "/v1/commands/k" {
			t.Errorf("%s", a.body)
		}
	}
	// Another type with the same body is another command, too.
	w.want(422, "POST", "/v1/orders/1/confirm", "", "Idempotency-Key: k")
}

func TestSubmittedAHundredTimesAtOnce(t *testing.T) {
	w := newWorld(t, worldOptions{})
	answers := make([]*answer, 100)
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() { answers[i] = w.do("POST", "/v1/orders", anOrder(""), wait, "Idempotency-Key: same") })
	}
	wg.Wait()
	fresh := 0
	for _, a := range answers {
		if a.StatusCode != 201 || !bytes.Equal(a.body, answers[0].body) {
			t.Errorf("%d %s, another one got %s", a.StatusCode, a.body, answers[0].body)
		}
		if a.Header.Get("Idempotency-Replayed") == "" {
			fresh++
		}
	}
	if fresh != 1 {
		t.Errorf("%d of 100 answers are the first", fresh)
	}
	events := w.want(200, "GET", answers[0].Header.Get("Location")+"/events", "").items(t)
	if len(events) != 1 {
		t.Errorf("%d events", len(events))
	}
}

func TestExpectedVersion(t *testing.T) {
	w := newWorld(t, worldOptions{})
	w.want(201, "POST", "/v1/orders", anOrder(`,"id":"1"`), wait, "If-None-Match: *")
	late := w.want(412, "POST", "/v1/orders", anOrder(`,"id":"1"`), wait, "If-None-Match: *")
	if late.json(t)["type"] != "/problems/refused_version" {
		t.Errorf("%s", late.body)
	}
	w.want(412, "POST", "/v1/orders/1/confirm", "", wait, `If-Match: "2"`)
	w.want(200, "POST", "/v1/orders/1/confirm", "", wait, `If-Match: "1"`)
	w.want(200, "POST", "/v1/commands", `{"type":"PackOrder","stream":"order-1","data":{},"expected_version":2}`, wait)
	for _, h := range []string{"If-Match: 2", `If-Match: W/"2"`, "If-Match: *", `If-None-Match: "2"`} {
		if a := w.want(400, "POST", "/v1/orders/1/pack", "", wait, h); a.json(t)["code"] != "invalid_header" {
			t.Errorf("%s: %s", h, a.body)
		}
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t, worldOptions{})
	for _, c := range []struct {
		status               int
		path, body, typ, cod string
		pointer              string
	}{
		{422, "/v1/orders", `{"currency":"GBP","lines":[{"sku":"a","quantity":0,"unit_price":"1"}]}`, "refused_rule", "line_invalid", "/lines/0/quantity"},
		{404, "/v1/orders/none/confirm", "", "refused_not_found", "order_not_found", ""},
		{404, "/v1/stock/none/release", `{"reservation":"r"}`, "refused_not_found", "reservation_unknown", ""},
		{409, "/v1/stock/none/reserve", `{"reservation":"r","quantity":1}`, "refused_conflict", "stock_insufficient", ""},
	} {
		a := w.want(c.status, "POST", c.path, c.body, wait, "Idempotency-Key: "+c.cod)
		p := a.json(t)
		if p["type"] != "/problems/"+c.typ || p["code"] != c.cod || p["instance"] != "/v1/commands/"+c.cod || a.Header.Get("Millrace-Cursor") == "" {
			t.Errorf("%s: %s", c.path, a.body)
		}
		if c.pointer != "" && !strings.Contains(string(a.body), `"pointer":"`+c.pointer+`"`) {
			t.Errorf("%s: no fault at %s: %s", c.path, c.pointer, a.body)
		}
		// The refusal is the command's outcome, and stays.
		s := w.want(200, "GET", "/v1/commands/"+c.cod, "").json(t)
		if s["status"] != "refused" || as[map[string]any](t, s["refusal"])["code"] != c.cod || s["events"] != 0.0 {
			t.Errorf("%s: %v", c.path, s)
		}
	}
}

func TestDeadLetters(t *testing.T) {
	w := newWorld(t, worldOptions{})
	// The type is not known, or not for this category: it may be the sender that is ahead.
	for id, body := range map[string]string{
		"d1": `{"id":"d1","type":"PolishOrder","stream":"order-1","data":{"any":"thing"}}`,
		"d2": `{"id":"d2","type":"ConfirmOrder","stream":"stock-1","data":{}}`,
		"d3": `{"id":"d3","type":"Open","stream":"account-1","data":null}`,
	} {
		a := w.want(422, "POST", "/v1/commands", body, wait)
		if p := a.json(t); p["code"] != "dead_letter" || p["instance"] != "/v1/commands/"+id {
			t.Errorf("%s", a.body)
		}
		s := w.want(200, "GET", "/v1/commands/"+id, "").json(t)
		if s["status"] != "dead" || as[map[string]any](t, s["failure"])["reason"] != millrace.ReasonUnknownType {
			t.Errorf("%v", s)
		}
	}
}

// TestNotDecidedInTime: with deciding paused, everything is accepted, and the answers are those of a command that is
// decided later.
func TestNotDecidedInTime(t *testing.T) {
	w := newWorld(t, worldOptions{paused: true})
	body := anOrder(`,"id":"1"`)
	first := w.want(202, "POST", "/v1/orders", body, "Idempotency-Key: a/b", "Prefer: respond-async")
	if want := `{"command_id":"a/b","status":"accepted","stream":"order-1","id":"1"}`; string(first.body) != want {
		t.Errorf("%s, want %s", first.body, want)
	}
	if first.Header.Get("Location") != "/v1/commands/a%2Fb" || first.Header.Get("Retry-After") != "1" {
		t.Errorf("%v", first.Header)
	}
	waited := w.want(202, "POST", "/v1/orders", body, "Idempotency-Key: a/b", "Prefer: wait=1")
	if !bytes.Equal(waited.body, first.body) || waited.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%v %s", waited.Header, waited.body)
	}
	s := w.want(200, "GET", first.Header.Get("Location"), "")
	if got := s.json(t); got["status"] != "accepted" || got["type"] != "PlaceOrder" || s.Header.Get("Retry-After") == "" {
		t.Errorf("%s", s.body)
	}
	w.want(404, "GET", "/v1/commands/unknown", "")
	w.want(404, "GET", "/v1/commands/"+strings.Repeat("k", 300), "")
}

// TestDrain: waits end at once when the server is to stop; the command stays accepted.
func TestDrain(t *testing.T) {
	w := newWorld(t, worldOptions{paused: true})
	done := make(chan *answer)
	go func() { done <- w.do("POST", "/v1/orders", anOrder(""), "Prefer: wait=60", "Idempotency-Key: k") }()
	for w.store.Backlog() == 0 { // the command is on disk, so that its request waits or is about to
		if err := t.Context().Err(); err != nil {
			t.Fatal(err)
		}
	}
	w.api.Drain()
	if a := <-done; a.StatusCode != 202 {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	w.want(202, "POST", "/v1/orders", anOrder(""), "Prefer: wait=60")
}

// failing is an intake that answers with an error, or does what a test wants.
type failing struct{ err error }

func (f failing) Accept(context.Context, millrace.Command) (*millrace.Receipt, error) {
	return nil, f.err
}

func (f failing) AcceptAll(_ context.Context, cs []millrace.Command) []millrace.Accepted {
	return slices.Repeat([]millrace.Accepted{{Err: f.err}}, len(cs))
}

func TestIntakeErrors(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		code   string
		retry  string
	}{
		{&millrace.OverloadError{What: "queue", RetryAfter: 2500 * time.Millisecond}, 503, "overloaded", "3"},
		{fmt.Errorf("disk: %w", millrace.ErrFull), 503, "storage_full", "1"},
		{fmt.Errorf("%w: EIO on /secret/path", millrace.ErrFailed), 503, "unavailable", "1"},
		{millrace.ErrClosed, 503, "unavailable", "1"},
		{millrace.ErrFenced, 503, "unavailable", "1"},
		{millrace.ErrKeyReused, 422, "idempotency_key_reused", ""},
		{fmt.Errorf("%w: secret", millrace.ErrInvalid), 400, "invalid_body", ""},
		{fmt.Errorf("%w: /secret/path", millrace.ErrCorrupt), 500, "internal", ""},
		{fmt.Errorf("secret"), 500, "internal", ""},
		{context.DeadlineExceeded, 503, "unavailable", "1"},
	} {
		w := newWorld(t, worldOptions{wrap: func(millrace.Intake) millrace.Intake { return failing{c.err} }})
		for _, headers := range [][]string{nil, {wait}} {
			a := w.want(c.status, "POST", "/v1/orders", anOrder(""), headers...)
			if a.json(t)["code"] != c.code || a.Header.Get("Retry-After") != c.retry || strings.Contains(string(a.body), "secret") {
				t.Errorf("%v: %v %s", c.err, a.Header, a.body)
			}
		}
		a := w.want(200, "POST", "/v1/commands", `{"type":"ConfirmOrder","stream":"order-1","data":{}}`+"\n", "Content-Type: ", "Content-Type: application/x-ndjson")
		if p, _ := a.json(t)["problem"].(map[string]any); p == nil || p["code"] != c.code || strings.Contains(string(a.body), "secret") {
			t.Errorf("%v: %s", c.err, a.body)
		}
	}
}

// panicking is an intake with a bug.
type panicking struct{ failing }

func (panicking) Accept(context.Context, millrace.Command) (*millrace.Receipt, error) {
	panic("customer c-17 has a secret")
}

func TestPanic(t *testing.T) {
	w := newWorld(t, worldOptions{wrap: func(millrace.Intake) millrace.Intake { return panicking{} }})
	a := w.want(500, "POST", "/v1/orders", anOrder(""))
	if p := a.json(t); p["code"] != "internal" || p["traceId"] != a.Header.Get("X-Request-Id") || strings.Contains(string(a.body), "secret") {
		t.Errorf("%s", a.body)
	}
	w.want(200, "GET", "/v1/orders", "") // the server goes on
	w.seen.mu.Lock()
	defer w.seen.mu.Unlock()
	if w.seen.all[0].Status != http.StatusInternalServerError {
		t.Errorf("%+v", w.seen.all[0])
	}
}
