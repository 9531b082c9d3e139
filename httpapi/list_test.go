package httpapi_test

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/httpapi"
)

// shop places orders o00 to o29 on the days of June 2011, for three customers in turn, every fifth of them confirmed.
// It returns what a read must have seen to see them all.
func shop(w *world) string {
	w.t.Helper()
	for i := range 30 {
		body := fmt.Sprintf(`{"id":"o%02d","customer_id":"c-%d","placed_at":"2011-06-%02dT12:00:00Z","currency":"GBP",`+
			`"lines":[{"sku":"a","quantity":%d,"unit_price":"1.50"}]}`, i, i%3, i+1, i+1)
		w.want(201, "POST", "/v1/orders", body, wait)
		if i%5 == 0 {
			w.want(200, "POST", fmt.Sprintf("/v1/orders/o%02d/confirm", i), "", wait)
		}
	}
	return w.store.Head().String()
}

// ids are the ids of a list, all pages of it.
func (w *world) ids(path string) []string {
	w.t.Helper()
	out := []string{}
	for pages := 0; path != ""; pages++ {
		if pages > 100 {
			w.t.Fatal("the list does not end")
		}
		a := w.want(200, "GET", path, "")
		v := a.json(w.t)
		for _, item := range a.items(w.t) {
			out = append(out, as[string](w.t, item["id"]))
		}
		path = ""
		if link := a.Header.Get("Link"); link != "" {
			path = strings.TrimSuffix(strings.TrimPrefix(link, "<"), `>; rel="next"`)
			u, err := url.Parse(path)
			if err != nil || u.Query().Get("cursor") != v["next_cursor"] {
				w.t.Fatalf("Link %q and next_cursor %q differ: %v", link, v["next_cursor"], err)
			}
		} else if v["next_cursor"] != nil {
			w.t.Fatal("next_cursor without Link")
		}
	}
	return out
}

func pick(descending bool, keep func(i int) bool) []string {
	out := []string{}
	for i := range 30 {
		if keep(i) {
			out = append(out, fmt.Sprintf("o%02d", i))
		}
	}
	if descending {
		slices.Reverse(out)
	}
	return out
}

func TestListOrders(t *testing.T) { listOrders(t, newWorld(t, worldOptions{})) }

// TestListOrdersForReal reads the same from the read models that the program has, which follow by themselves.
func TestListOrdersForReal(t *testing.T) { listOrders(t, newWorld(t, worldOptions{real: true})) }

func listOrders(t *testing.T, w *world) {
	t.Helper()
	seen := shop(w)
	for _, c := range []struct {
		query string
		want  []string
	}{
		{"", pick(true, func(int) bool { return true })},
		{"sort=placed_at", pick(false, func(int) bool { return true })},
		{"sort=-placed_at&limit=500", pick(true, func(int) bool { return true })},
		{"customer_id=c-1&limit=3", pick(true, func(i int) bool { return i%3 == 1 })},
		{"customer_id=c-1&limit=3&sort=placed_at", pick(false, func(i int) bool { return i%3 == 1 })},
		{"status=confirmed&limit=1", pick(true, func(i int) bool { return i%5 == 0 })},
		{"status=confirmed&customer_id=c-0", pick(true, func(i int) bool { return i%5 == 0 && i%3 == 0 })},
		{"status=confirmed&customer_id=c-0&limit=1&sort=placed_at", pick(false, func(i int) bool { return i%5 == 0 && i%3 == 0 })},
		{"from=2011-06-10&to=2011-06-12", []string{"o11", "o10", "o09"}},
		{"from=2011-06-10T12:00:00Z&to=2011-06-12T12:00:00Z&sort=placed_at", []string{"o09", "o10"}},
		{"from=2011-06-10T14:00:00%2B02:00&to=2011-06-12T11:59:59.999999999Z", []string{"o10", "o09"}},
		{"customer_id=c-0&from=2011-06-10&to=2011-06-20&limit=1&sort=placed_at", []string{"o09", "o12", "o15", "o18"}},
		{"from=2011-07-01", []string{}},
		{"to=2011-05-31", []string{}},
		{"from=2011-06-20&to=2011-06-10", []string{}},
		{"customer_id=c-99", []string{}},
		{"customer_id=c-", []string{}},
		{"customer_id=c-1&limit=10", pick(true, func(i int) bool { return i%3 == 1 })},
		{"sort=-status&limit=7&customer_id=c-0", append(pick(true, func(i int) bool { return i%3 == 0 && i%5 != 0 }), "o15", "o00")},
	} {
		if diff := cmp.Diff(c.want, w.ids("/v1/orders?min_cursor="+seen+"&"+c.query)); diff != "" {
			t.Errorf("%s: %s", c.query, diff)
		}
	}
	if a := w.want(200, "GET", "/v1/orders?customer_id=c-99", ""); string(a.body) != `{"items":[]}` {
		t.Errorf("nothing is %s", a.body)
	}
}

func TestListParameters(t *testing.T) {
	w := newWorld(t, worldOptions{})
	seen := shop(w)
	next := w.want(200, "GET", "/v1/orders?limit=2&customer_id=c-1&min_cursor="+seen, "").text(t, "next_cursor")
	w.want(200, "GET", "/v1/orders?limit=7&customer_id=c-1&cursor="+next, "") // the limit may change
	for query, code := range map[string]string{
		"limit=0": "invalid_parameter", "limit=501": "invalid_parameter", "limit=x": "invalid_parameter", "limit=1&limit=2": "invalid_parameter",
		"sort=total": "invalid_parameter", "sort=--placed_at": "invalid_parameter", "status=lost": "invalid_parameter",
		"customer_id=": "invalid_parameter", "customer_id=%00": "invalid_parameter", "customer_id=%ff": "invalid_parameter",
		"customer_id=" + strings.Repeat("x", 201): "invalid_parameter", "from=yesterday": "invalid_parameter", "to=2011-13-01": "invalid_parameter",
		"custmer_id=c-1": "invalid_parameter", "a=%zz": "invalid_parameter", "x=" + strings.Repeat("y", 5000): "invalid_parameter",
		"cursor=abc": "invalid_cursor", "cursor=" + next: "invalid_cursor", "customer_id=c-2&cursor=" + next: "invalid_cursor",
		"customer_id=c-1&sort=placed_at&cursor=" + next: "invalid_cursor", "customer_id=c-1&from=2011-01-01&cursor=" + next: "invalid_cursor",
		"customer_id=c-1&status=placed&cursor=" + next: "invalid_cursor", "customer_id=c-1&cursor=" + next + "A": "invalid_cursor",
		"min_cursor=" + next: "invalid_cursor", "min_cursor=-": "invalid_cursor",
	} {
		if a := w.want(400, "GET", "/v1/orders?"+query, ""); a.json(t)["code"] != code {
			t.Errorf("%s: %s", clip([]byte(query)), a.body)
		}
	}
	for _, path := range []string{
		"/v1/orders/o01?vresion=1", "/v1/orders/o01?version=0", "/v1/orders/o01?version=x", "/v1/orders/o01?version=1&at=2011-01-01T00:00:00Z",
		"/v1/orders/o01?at=2011-01-01", "/v1/orders/o01/events?version=1", "/v1/commands/x?wait=1", "/v1/order-totals?day=1",
		"/v1/projections?x=1", "/v1/stock?from=2011-01-01",
	} {
		if a := w.want(400, "GET", path, ""); a.json(t)["code"] != "invalid_parameter" {
			t.Errorf("%s: %s", path, a.body)
		}
	}
	if a := w.want(400, "POST", "/v1/orders?wait=5", anOrder("")); a.json(t)["code"] != "invalid_parameter" {
		t.Errorf("%s", a.body)
	}
}

func TestEventPages(t *testing.T) {
	w := newWorld(t, worldOptions{})
	for i := range 7 {
		w.want(200, "POST", "/v1/stock/a/receive", fmt.Sprintf(`{"quantity":%d}`, i+1), wait)
	}
	w.want(200, "POST", "/v1/stock/b/receive", `{"quantity":1}`, wait)
	if diff := cmp.Diff([]string{"stock-a/1", "stock-a/2", "stock-a/3", "stock-a/4", "stock-a/5", "stock-a/6", "stock-a/7"}, w.ids("/v1/stock/a/events?limit=3")); diff != "" {
		t.Error(diff)
	}
	next := w.want(200, "GET", "/v1/stock/a/events?limit=3", "").text(t, "next_cursor")
	if a := w.want(400, "GET", "/v1/stock/b/events?cursor="+next, ""); a.json(t)["code"] != "invalid_cursor" {
		t.Errorf("%s", a.body)
	}
}

func TestListStock(t *testing.T) {
	w := newWorld(t, worldOptions{})
	for _, sku := range []string{"c", "a", "b"} {
		w.want(200, "POST", "/v1/stock/"+sku+"/receive", `{"quantity":1}`, wait)
	}
	a := w.want(200, "GET", "/v1/stock?limit=2&min_cursor="+w.store.Head().String(), "")
	if items := a.items(t); len(items) != 2 || items[0]["sku"] != "a" {
		t.Errorf("%s", a.body)
	}
}

func TestOrderTotals(t *testing.T)        { orderTotals(t, newWorld(t, worldOptions{})) }
func TestOrderTotalsForReal(t *testing.T) { orderTotals(t, newWorld(t, worldOptions{real: true})) }

func orderTotals(t *testing.T, w *world) {
	t.Helper()
	shop(w)
	for range 3 { // a second day-status pair with orders in several partitions
		w.want(201, "POST", "/v1/orders", `{"placed_at":"2011-06-30T23:59:59Z","currency":"GBP","lines":[{"sku":"a","quantity":1,"unit_price":"0.01"}]}`, wait)
	}
	seen := w.store.Head().String()
	items := w.want(200, "GET", "/v1/order-totals?from=2011-06-30&min_cursor="+seen, "").items(t)
	want := []map[string]any{{
		"day": "2011-06-30", "status": "placed", "currency": "GBP", "orders": 4.0, "units": 33.0, "amount": "45.03",
	}}
	if diff := cmp.Diff(want, items); diff != "" {
		t.Error(diff)
	}
	all := w.want(200, "GET", "/v1/order-totals", "").items(t)
	if len(all) != 30 || all[0]["status"] != "confirmed" {
		t.Errorf("%d rows, first %v", len(all), all[0])
	}
	if n := len(w.want(200, "GET", "/v1/order-totals?from=2011-06-02&to=2011-06-04", "").items(t)); n != 3 {
		t.Errorf("three days have %d rows", n)
	}
}

func TestMinCursor(t *testing.T) {
	w := newWorld(t, worldOptions{})
	model := w.models[order.ProjectionOrders]
	model.freeze(true)
	cursor := w.want(201, "POST", "/v1/orders", anOrder(`,"id":"1"`), wait).Header.Get("Millrace-Cursor")
	for _, path := range []string{"/v1/orders/1", "/v1/orders"} {
		a := w.want(503, "GET", path+"?min_cursor="+cursor, "", "Prefer: wait=0")
		if a.json(t)["code"] != "not_caught_up" || a.Header.Get("Retry-After") != "1" {
			t.Errorf("%v %s", a.Header, a.body)
		}
		w.want(503, "GET", path, "", "Millrace-Min-Cursor: "+cursor, "Prefer: wait=1")
	}
	w.want(404, "GET", "/v1/orders/1", "")
	// What is read from the log needs no read model.
	w.want(200, "GET", "/v1/orders/1?version=1&min_cursor="+cursor, "")
	w.want(200, "GET", "/v1/orders/1/events?min_cursor="+cursor, "")

	model.freeze(false)
	a := w.want(200, "GET", "/v1/orders/1", "", "Millrace-Min-Cursor: "+cursor)
	seen, err := millrace.ParseCursor(a.Header.Get("Millrace-Cursor"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := millrace.ParseCursor(cursor)
	if err != nil || !seen.Covers(want) {
		t.Errorf("the read has seen %v, asked for %v: %v", seen, want, err)
	}

	other := millrace.At(w.store.Meta().Epoch+1, 0, 1).String()
	if a := w.want(400, "GET", "/v1/orders?min_cursor="+other, ""); a.json(t)["code"] != "cursor_epoch" {
		t.Errorf("%s", a.body)
	}
	many := millrace.At(w.store.Meta().Epoch, 900, 1).String()
	if a := w.want(400, "GET", "/v1/orders/1/events?min_cursor="+many, ""); a.json(t)["code"] != "invalid_cursor" {
		t.Errorf("%s", a.body)
	}
	// A place in this store's future: nobody was given such a cursor, and nobody can wait for it.
	future := millrace.At(w.store.Meta().Epoch, 0, 1<<40).String()
	w.want(503, "GET", "/v1/orders/1/events?min_cursor="+future, "")
}

func TestProjections(t *testing.T) {
	w := newWorld(t, worldOptions{})
	all := w.want(200, "GET", "/v1/projections", "").items(t)
	if len(all) != 3 || all[0]["name"] != "orders" {
		t.Errorf("%v", all)
	}
	w.want(200, "GET", "/v1/projections/stock", "")
	w.want(404, "GET", "/v1/projections/none", "")
	const json = "Content-Type: application/json"
	for path, bodies := range map[string][]string{
		"rebuild": {"", "{}", `{"hold":true}`}, "switch": {"", `{"generation":1}`}, "discard": {"", "{}"}, "repair": {`{"stream":"stock-A"}`},
	} {
		for _, body := range bodies {
			if a := w.want(202, "POST", "/v1/projections/stock/"+path, body, json); a.Header.Get("Location") != "/v1/projections/stock" {
				t.Errorf("%s: %v", path, a.Header)
			}
			w.want(404, "POST", "/v1/projections/none/"+path, body, json)
		}
	}
	for path, body := range map[string]string{
		"rebuild": `{"hold":1}`, "switch": `{"generation":-1}`, "discard": `{"generation":1}`, "repair": `{"stream":"nothing"}`,
	} {
		w.want(400, "POST", "/v1/projections/stock/"+path, body, json)
	}
	w.want(400, "POST", "/v1/projections/stock/repair", "")
	w.want(413, "POST", "/v1/projections/stock/repair", `{"stream":"`+strings.Repeat("a", 5000)+`"}`, json)
	w.want(415, "POST", "/v1/projections/stock/rebuild", `{"hold":true}`, "Content-Encoding: gzip")
}

// failed are read models whose newest rebuild has failed.
type failed struct{ httpapi.Projections }

func (p failed) Status(ctx context.Context, name string) (httpapi.ProjectionStatus, error) {
	s, err := p.Projections.Status(ctx, name)
	at := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	s.Rebuild = &httpapi.RebuildStatus{
		Generation: 2, Version: 3, Started: at, Finished: at.Add(time.Minute), Events: 7, Total: 8, Done: 1, Hold: true, Ready: true,
		Nodes:       []httpapi.NodeRebuild{{Node: "a", Partitions: 2, Done: 1, Events: 7, Total: 8}},
		Differences: &httpapi.Differences{Documents: 9, Tables: []httpapi.TableDifferences{{Table: "levels", Missing: 1, Examples: []string{"A"}}}},
		Error:       "as the test wants it",
	}
	s.Previous = &httpapi.PreviousGeneration{Generation: 1, Version: 1, Until: at}
	s.Repairs = []httpapi.RepairStatus{{Stream: "stock-A", Asked: at, Finished: at, Error: "as the test wants it"}}
	s.LastError = &httpapi.ProjectionError{What: "rebuild", At: at, Stream: "stock-A", Node: "a", Error: "as the test wants it"}
	return s, err
}

// The newest rebuild stands in the status, and in the document.
func TestFailedRebuildStandsInTheStatus(t *testing.T) {
	w := newWorld(t, worldOptions{change: func(c *httpapi.Config) { c.Projections = failed{c.Projections} }})
	a := w.want(200, "GET", "/v1/projections/stock", "")
	want := `"rebuild":{"generation":2,"version":3,"hold":true,"ready":true,"started":"2026-11-20T12:00:00Z","finished":"2026-11-20T12:01:00Z","events":7,"events_total":8,`
	if !strings.Contains(string(a.body), want) {
		t.Errorf("%s", a.body)
	}
}

// unbuildable are read models that cannot be rebuilt here, for a reason.
type unbuildable struct {
	httpapi.Projections
	why error
}

func (p unbuildable) Rebuild(ctx context.Context, name string, _ bool) error {
	if _, err := p.Status(ctx, name); err != nil {
		return err
	}
	return fmt.Errorf("%w: as the test wants it", p.why)
}

// A rebuild that would never be done is refused, and not for now: 503 would make clients come back again and again. Who
// asks for a read model that there is not is told so first.
func TestRebuildThatCannotBe(t *testing.T) {
	for code, why := range map[string]error{
		"read_models_paused": httpapi.ErrPaused, "read_model_rebuilding": httpapi.ErrRebuilding, "no_such_generation": httpapi.ErrNoGeneration,
		"other_code": httpapi.ErrOtherCode, "not_by_stream": httpapi.ErrNotByStream,
	} {
		t.Run(code, func(t *testing.T) {
			w := newWorld(t, worldOptions{change: func(c *httpapi.Config) { c.Projections = unbuildable{c.Projections, why} }})
			a := w.want(409, "POST", "/v1/projections/stock/rebuild", "")
			if p := a.json(t); p["code"] != code || p["type"] != "/problems/refused_conflict" || p["detail"] == "" || a.Header.Get("Retry-After") != "" || a.Header.Get("Location") != "" {
				t.Errorf("%v %s", a.Header, a.body)
			}
			w.want(404, "POST", "/v1/projections/none/rebuild", "")
			w.want(200, "GET", "/v1/projections/stock", "")
		})
	}
}

// A coordinator that does not answer may do so later.
func TestRebuildWithoutAnAnswer(t *testing.T) {
	w := newWorld(t, worldOptions{change: func(c *httpapi.Config) { c.Projections = unbuildable{c.Projections, httpapi.ErrNoAnswer} }})
	if a := w.want(503, "POST", "/v1/projections/stock/rebuild", ""); a.Header.Get("Retry-After") == "" {
		t.Errorf("%v %s", a.Header, a.body)
	}
}

// TestBadConfiguration: what is wrong is said at start, not at the first request.
func TestBadConfiguration(t *testing.T) {
	w := newWorld(t, worldOptions{})
	registry, err := millrace.NewRegistry(order.Domains()...)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*httpapi.Config){
		"no store":              func(c *httpapi.Config) { c.Store = nil },
		"no document":           func(c *httpapi.Config) { c.Document = nil },
		"document is no YAML":   func(c *httpapi.Config) { c.Document = []byte("a: [") },
		"unknown command":       func(c *httpapi.Config) { c.Resources[0].Create = "PlaceOder" },
		"another's command":     func(c *httpapi.Config) { c.Resources[0].Verbs[0].Command = "ReceiveStock" },
		"verb like a route":     func(c *httpapi.Config) { c.Resources[0].Verbs[0].Name = "events" },
		"two of one name":       func(c *httpapi.Config) { c.Resources[1].Name = "orders" },
		"name with a slash":     func(c *httpapi.Config) { c.Resources[0].Name = "a/b" },
		"model without a table": func(c *httpapi.Config) { c.Resources[0].Table = nil },
		"unknown index":         func(c *httpapi.Config) { c.Resources[0].List.Orders[0].Index = 9 },
		"unknown filter":        func(c *httpapi.Config) { c.Resources[0].List.Orders[0].Equal = []string{"city"} },
		"unknown default sort":  func(c *httpapi.Config) { c.Resources[0].List.DefaultSort = "total" },
	} {
		c := httpapi.Config{
			Store: w.store, Registry: registry, Intake: w.intake, Document: []byte("openapi: 3.1.0"), Resources: w.resources(),
		}
		if _, err := httpapi.New(c); err != nil {
			t.Fatalf("the control does not start: %v", err)
		}
		change(&c)
		if _, err := httpapi.New(c); err == nil {
			t.Errorf("%s: it starts", name)
		}
	}
}
