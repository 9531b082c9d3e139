package httpapi_test

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/api"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// TestRoutesAreThePathsOfTheDocument compares both ways: no route without documentation, no documentation without a route.
func TestRoutesAreThePathsOfTheDocument(t *testing.T) {
	w := newWorld(t, worldOptions{})
	served := map[string]bool{}
	for _, r := range w.api.Routes() {
		served[r.Method+" "+r.Path] = true
	}
	documented := map[string]bool{}
	for path, item := range w.spec.doc.Paths.Map() {
		for method := range item.Operations() {
			documented[method+" "+path] = true
		}
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(documented)), slices.Sorted(maps.Keys(served))); diff != "" {
		t.Errorf("document (-) and routes (+):\n%s", diff)
	}
}

// TestEveryOperationIsComplete: what the page shows must be there to show.
func TestEveryOperationIsComplete(t *testing.T) {
	doc := theContract(t).doc
	tags := map[string]bool{}
	for _, tag := range doc.Tags {
		tags[tag.Name] = true
	}
	ids := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method, o := range item.Operations() {
			if o.OperationID == "" || ids[o.OperationID] {
				t.Errorf("%s %s: operationId %q is missing or there twice", method, path, o.OperationID)
			}
			ids[o.OperationID] = true
			if o.Summary == "" || len(o.Tags) != 1 || !tags[o.Tags[0]] {
				t.Errorf("%s %s: needs a summary and one of the tags", method, path)
			}
			if o.Responses.Default() == nil {
				t.Errorf("%s %s: has no default answer", method, path)
			}
			for _, p := range append(slices.Clone(o.Parameters), item.Parameters...) {
				if p.Value.Description == "" {
					t.Errorf("%s %s: parameter %s is not described", method, path, p.Value.Name)
				}
			}
		}
	}
}

func TestDocumentation(t *testing.T) {
	w := newWorld(t, worldOptions{})
	if a := w.want(302, "GET", "/", ""); a.Header.Get("Location") != "/docs" {
		t.Errorf("/ leads to %q", a.Header.Get("Location"))
	}
	if a := w.want(200, "GET", "/openapi.yaml", ""); string(a.body) != string(api.OpenAPI) {
		t.Error("/openapi.yaml is not the document")
	}
	var doc map[string]any
	if err := jsonx.Unmarshal(w.want(200, "GET", "/openapi.json", "").body, &doc); err != nil {
		t.Fatal(err)
	}
	if len(as[map[string]any](t, doc["paths"])) != w.spec.doc.Paths.Len() {
		t.Error("/openapi.json has other paths than the document")
	}

	page := w.want(200, "GET", "/docs", "")
	csp := page.Header.Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
		t.Errorf("CSP of the page: %s", csp)
	}
	html := string(page.body)
	for _, no := range []string{"<script", " style=", "<style", "onload", "//unpkg", "ZgotmplZ"} {
		if strings.Contains(html, no) {
			t.Errorf("the page has %q", no)
		}
	}
	for path, item := range w.spec.doc.Paths.Map() {
		for _, o := range item.Operations() {
			if !strings.Contains(html, `id="`+o.OperationID+`"`) || !strings.Contains(html, "<code>"+path+"</code>") {
				t.Errorf("the page does not have %s", path)
			}
		}
	}
	for name := range w.spec.doc.Components.Schemas {
		if !strings.Contains(html, `id="schema-`+name+`"`) {
			t.Errorf("the page does not have the schema %s", name)
		}
	}
	if a := w.want(200, "GET", "/docs/style.css", ""); !strings.HasPrefix(a.Header.Get("Content-Type"), "text/css") {
		t.Error("the style sheet is no CSS")
	}
}

// TestProblemTypesResolve: every type of the document leads to its place on the page, and there are no others.
func TestProblemTypesResolve(t *testing.T) {
	w := newWorld(t, worldOptions{})
	html := string(w.want(200, "GET", "/docs", "").body)
	types := w.spec.doc.Components.Schemas["Problem"].Value.Properties["type"].Value.Enum
	if n := strings.Count(html, `<tr id="problem-`); n != len(types) {
		t.Errorf("%d types in the document, %d on the page", len(types), n)
	}
	for _, typ := range types {
		a := w.want(302, "GET", as[string](t, typ), "")
		_, anchor, _ := strings.Cut(a.Header.Get("Location"), "#")
		if !strings.Contains(html, `id="`+anchor+`"`) {
			t.Errorf("%s leads to %q, which is not on the page", typ, a.Header.Get("Location"))
		}
	}
	w.want(404, "GET", "/problems/no-such-problem", "")
}

func TestUnknownRoutesAndMethods(t *testing.T) {
	w := newWorld(t, worldOptions{})
	for _, path := range []string{
		"/v1", "/v2/orders", "/v1/orders/", "/v1//orders", "/v1/orders/../orders", "/v1/./orders", "/v1/orders/a/b/c",
		"/debug/pprof/", "/metrics", "/v1/orders/a/explode", "/docs/", "/docs/docs.html", "/static/style.css",
	} {
		if a := w.want(404, "GET", path, ""); a.json(t)["code"] != "no_such_route" {
			t.Errorf("%s: %s", path, a.body)
		}
	}
	for _, c := range []struct{ method, path, allow string }{
		{"DELETE", "/v1/orders", "GET, HEAD, POST"}, {"PUT", "/v1/orders/a", "GET, HEAD, PATCH"},
		{"GET", "/v1/orders/a/confirm", "POST"}, {"GET", "/v1/commands", "POST"}, {"OPTIONS", "/v1/stock/a", "GET, HEAD"},
		{"POST", "/docs", "GET, HEAD"}, {"TRACE", "/v1/orders", "GET, HEAD, POST"},
	} {
		if a := w.want(405, c.method, c.path, ""); a.Header.Get("Allow") != c.allow {
			t.Errorf("%s %s allows %q, want %q", c.method, c.path, a.Header.Get("Allow"), c.allow)
		}
	}
	if a := w.want(200, "HEAD", "/v1/orders", ""); len(a.body) != 0 {
		t.Error("HEAD has a body")
	}
}

func TestHeadersOfEveryAnswer(t *testing.T) {
	w := newWorld(t, worldOptions{})
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	a := w.want(404, "GET", "/v1/orders/none", "", "X-Request-Id: my-request.1", "Traceparent: 00-"+trace+"-00f067aa0ba902b7-01")
	for name, want := range map[string]string{
		"X-Request-Id": "my-request.1", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
		"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Referrer-Policy": "no-referrer",
	} {
		if got := a.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if a.json(t)["traceId"] != trace || a.json(t)["instance"] != "urn:millrace:request:my-request.1" {
		t.Errorf("problem: %s", a.body)
	}
	first, second := w.do("GET", "/v1/orders", "", "X-Request-Id: <script>").Header.Get("X-Request-Id"), w.do("GET", "/v1/orders", "").Header.Get("X-Request-Id")
	if first == second || strings.Contains(first, "<") {
		t.Errorf("made request ids: %q, %q", first, second)
	}
}

func TestObserveTellsRoutesNotPaths(t *testing.T) {
	w := newWorld(t, worldOptions{})
	w.want(404, "GET", "/v1/orders/secret-id", "")
	w.want(404, "GET", "/nothing/here", "")
	w.want(405, http.MethodTrace, "/v1/stock/secret", "")
	w.seen.mu.Lock()
	defer w.seen.mu.Unlock()
	var got []string
	for _, o := range w.seen.all {
		got = append(got, o.Method+" "+o.Route)
	}
	if diff := cmp.Diff([]string{"GET /v1/orders/{id}", "GET /", "other /v1/stock/{sku}"}, got); diff != "" {
		t.Error(diff)
	}
}
