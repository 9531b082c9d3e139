package httpapi_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/jsonx"
)

var asLines = []string{"Content-Type: ", "Content-Type: application/x-ndjson"}

// line is what a test looks at of a LineAnswer.
type line struct {
	Line     int
	Status   string
	Code     string
	Pointer  string
	Replayed bool
}

func lines(t *testing.T, body []byte) []line {
	t.Helper()
	var out []line
	for raw := range bytes.Lines(body) {
		var v map[string]any
		if err := jsonx.Unmarshal(raw, &v); err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		var l line
		n, _ := v["line"].(float64)
		l.Line = int(n)
		l.Status, _ = v["status"].(string)
		l.Replayed, _ = v["replayed"].(bool)
		if r, ok := v["refusal"].(map[string]any); ok {
			l.Code, _ = r["code"].(string)
		}
		if p, ok := v["problem"].(map[string]any); ok {
			l.Code, _ = p["code"].(string)
			if faults, ok := p["errors"].([]any); ok {
				l.Pointer, _ = faults[0].(map[string]any)["pointer"].(string)
			}
		}
		out = append(out, l)
	}
	return out
}

func TestLines(t *testing.T) {
	w := newWorld(t, worldOptions{})
	body := strings.Join([]string{
		`{"id":"1","type":"PlaceOrder","stream":"order-1","data":` + anOrder("") + `}`,
		`{"id":"2","type":"ConfirmOrder","stream":"order-1","data":{}}`,
		``,
		`{"id":"3","type":"ConfirmOrder","stream":"order-none","data":{}}`,
		`{"id":"1","type":"PlaceOrder","stream":"order-1","data":` + anOrder("") + `}`,
		`{"id":"1","type":"PlaceOrder","data": ` + anOrder("") + ` ,"stream":"order-1"}`,
		`{"id":"1","type":"PlaceOrder","stream":"order-1","data":` + anOrder(`,"channel":"pos"`) + `}`,
		`not JSON`,
		`{"type":"PlaceOrder","stream":"order-2","data":{"currency":"GBP","lines":[{"sku":"","quantity":1,"unit_price":"1"}]}}`,
		`{"id":"5","type":"PolishOrder","stream":"order-1","data":{}}`,
		`{"id":"6","type":"PackOrder","stream":"order-1","data":{},"expected_version":1}` + "\r",
		`  {"type":"PackOrder","stream":"order-1","data":{},"expected_version":2,"correlation_id":"story","causation_id":"cause"}`,
	}, "\n")
	want := []line{
		{1, "decided", "", "", false},
		{2, "decided", "", "", false},
		{4, "refused", "order_not_found", "", false},
		{5, "decided", "", "", true},
		{6, "decided", "", "", true},
		{7, "", "idempotency_key_reused", "", false},
		{8, "", "invalid_body", "", false},
		{9, "", "invalid_body", "/data/lines/0/sku", false},
		{10, "dead", "", "", false},
		{11, "refused", "version_conflict", "", false},
		{12, "decided", "", "", false},
	}
	a := w.want(200, "POST", "/v1/commands", body, append(asLines, wait)...)
	if diff := cmp.Diff(want, lines(t, a.body)); diff != "" {
		t.Errorf("%s\n%s", diff, a.body)
	}
	events := w.want(200, "GET", "/v1/orders/1/events", "").items(t)
	if last := events[2]; last["type"] != "OrderPacked" || last["correlation_id"] != "story" {
		t.Errorf("%v", last)
	}

	// Without a wait, everything that was kept is accepted, decided or not.
	a = w.want(200, "POST", "/v1/commands", body, asLines...)
	for _, l := range lines(t, a.body) {
		if l.Code == "" && l.Status != "accepted" {
			t.Errorf("%+v", l)
		}
	}
	for _, h := range []string{"Idempotency-Key: a", `If-Match: "1"`} {
		w.want(400, "POST", "/v1/commands", body, append(asLines, h)...)
	}
	if a := w.want(200, "POST", "/v1/commands", "\n \n", asLines...); len(a.body) != 0 {
		t.Errorf("nothing is answered with %s", a.body)
	}
}

// TestLinesOneByOne: who waits for each answer before the next line gets each answer at once.
func TestLinesOneByOne(t *testing.T) {
	w := newWorld(t, worldOptions{})
	out, in := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", w.server.URL+"/v1/commands", out)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	req.Header.Set("Prefer", "wait=30")
	type result struct {
		resp *http.Response
		err  error
	}
	answered := make(chan result, 1)
	go func() {
		resp, err := w.server.Client().Do(req) //nolint:bodyclose // whoever takes the result closes it
		answered <- result{resp, err}
	}()
	var answers *bufio.Reader
	for i := 1; i <= 20; i++ {
		if _, err := fmt.Fprintf(in, `{"id":"k%d","type":"ReceiveStock","stream":"stock-a","data":{"quantity":1}}`+"\n", i); err != nil {
			t.Fatal(err)
		}
		if answers == nil {
			r := <-answered
			if r.err != nil {
				t.Fatal(r.err)
			}
			defer func() { _ = r.resp.Body.Close() }()
			answers = bufio.NewReader(r.resp.Body)
		}
		got, err := answers.ReadString('\n')
		if err != nil || !strings.HasPrefix(got, fmt.Sprintf(`{"line":%d,"command_id":"k%d","status":"decided","stream":"stock-a","id":"a","version":%d,`, i, i, i)) {
			t.Fatalf("%v: %s", err, got)
		}
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(answers); err != nil || len(rest) != 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
}

// TestManyLines: far more than is held in memory, with lines that are longer than any buffer in between, all answered in
// order.
func TestManyLines(t *testing.T) {
	w := newWorld(t, worldOptions{})
	const n = 5000
	out, in := io.Pipe()
	go func() {
		var err error
		for i := 1; i <= n && err == nil; i++ {
			switch i {
			case 1000: // too long by one byte, and good otherwise
				pad := httpapi.MaxLine + 1 - len(`{"type":"ConfirmOrder","stream":"order-1","data":{}}`+"\n")
				_, err = fmt.Fprint(in, `{"type":"ConfirmOrder","stream":"order-1","data":{}}`+strings.Repeat(" ", pad)+"\n")
			case 2000: // far too long
				_, err = io.Copy(in, io.LimitReader(&endless{}, 20<<20))
				if err == nil {
					_, err = fmt.Fprintln(in)
				}
			case 3000: // long, and good
				_, err = fmt.Fprint(in, `{"type":"ReceiveStock","stream":"stock-a","data":{"quantity":1}}`+strings.Repeat(" ", 900_000)+"\n")
			default:
				_, err = fmt.Fprintf(in, `{"type":"ReceiveStock","stream":"stock-%d","data":{"quantity":1}}`+"\n", i%7)
			}
		}
		_ = in.CloseWithError(err)
	}()
	req, err := http.NewRequestWithContext(t.Context(), "POST", w.server.URL+"/v1/commands", out)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	resp, err := w.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	got := lines(t, body)
	if len(got) != n {
		t.Fatalf("%d answers to %d lines, the last: %s", len(got), n, clip(body[max(0, len(body)-500):]))
	}
	for i, l := range got {
		want := line{Line: i + 1, Status: "accepted"}
		if l.Line == 1000 || l.Line == 2000 {
			want = line{Line: i + 1, Code: "too_large"}
		}
		if l != want {
			t.Fatalf("%+v, want %+v", l, want)
		}
	}
}

// TestLinesBrokenOff: a connection that ends within a line is told so, as far as anybody listens, and the half of a line
// is not taken for a line.
func TestLinesBrokenOff(t *testing.T) {
	w := newWorld(t, worldOptions{})
	out, in := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", w.server.URL+"/v1/commands", out)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	go func() {
		_, _ = io.WriteString(in, `{"id":"whole","type":"ReceiveStock","stream":"stock-a","data":{"quantity":1}}`+"\n"+`{"id":"half","type":"ReceiveStock","stream":"stock-a","data":{"quantity":1}}`)
		_ = in.CloseWithError(io.ErrUnexpectedEOF)
	}()
	if resp, err := w.server.Client().Do(req); err == nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	w.server.CloseClientConnections()
	w.server.Close() // waits for the handler
	if _, err := w.store.Lookup(context.Background(), "half"); err == nil {
		t.Error("the half of a line was kept")
	}
}

// TestLinesDrain: a server that is to stop does not wait for a client that may send for hours.
func TestLinesDrain(t *testing.T) {
	w := newWorld(t, worldOptions{})
	out, in := io.Pipe()
	defer func() { _ = in.Close() }()
	req, err := http.NewRequestWithContext(t.Context(), "POST", w.server.URL+"/v1/commands", out)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	go func() {
		_, _ = io.WriteString(in, `{"type":"ReceiveStock","stream":"stock-a","data":{"quantity":1}}`+"\n")
	}()
	resp, err := w.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	answers := bufio.NewReader(resp.Body)
	if _, err := answers.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	w.api.Drain()
	last, err := answers.ReadString('\n')
	if got := lines(t, []byte(last)); err != nil || len(got) != 1 || got[0].Code != "unavailable" {
		t.Errorf("%v: %s", err, last)
	}
	if _, err := answers.ReadByte(); err == nil {
		t.Error("it goes on")
	}
}
