package httpapi_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsoncorpus"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// empty says whether nothing was kept.
func (w *world) empty() error {
	for p, h := range w.store.Heads() {
		if h.Position != 0 {
			return fmt.Errorf("partition %d has %d events", p, h.Position)
		}
	}
	if n := w.store.Backlog(); n != 0 {
		return fmt.Errorf("%d commands wait", n)
	}
	return nil
}

// TestCorpus sends every document of the public corpus to every kind of door. None of them is an order, so that all are
// refused; and nothing of any is kept.
func TestCorpus(t *testing.T) {
	w := newWorld(t, worldOptions{})
	for _, c := range jsoncorpus.Cases() {
		for _, door := range []struct{ method, path, before, after string }{
			{"POST", "/v1/orders", "", ""},
			{"PATCH", "/v1/orders/1", "", ""},
			{"POST", "/v1/stock/a/receive", "", ""},
			{"POST", "/v1/returns", "", ""},
			{"POST", "/v1/commands", "", ""},
			{"POST", "/v1/commands", `{"type":"PlaceOrder","stream":"order-1","data":`, `}`},
			{"POST", "/v1/orders", `{"currency":"GBP","lines":`, `}`},
		} {
			key := "key-" + strings.Map(func(r rune) rune {
				if r < 0x21 || r > 0x7e {
					return '_'
				}
				return r
			}, c.Name)
			a := w.do(door.method, door.path, door.before+string(c.Data)+door.after, wait, "Content-Type: ", "Content-Type: application/json", "Idempotency-Key: "+key)
			if a.StatusCode != 400 || a.json(t)["code"] != "invalid_body" {
				t.Errorf("%s to %s%s: %d %s", c.Name, door.path, door.before, a.StatusCode, a.body)
			}
			if len(c.Data) > 8 && bytes.Contains(a.body, c.Data) {
				t.Errorf("%s: the answer repeats it: %s", c.Name, a.body)
			}
		}
	}
	if err := w.empty(); err != nil {
		t.Error(err)
	}
	w.want(404, "GET", "/v1/commands/key-n_array_just_minus", "")
}

// TestCorpusAsLines: what is not one good line is answered as one bad one, and the others go on.
func TestCorpusAsLines(t *testing.T) {
	w := newWorld(t, worldOptions{})
	var body strings.Builder
	n := 0
	for _, c := range jsoncorpus.Cases() {
		if bytes.ContainsAny(c.Data, "\n") || len(bytes.TrimSpace(c.Data)) == 0 {
			continue // it is several lines, or none
		}
		body.Write(c.Data)
		body.WriteString("\n")
		n++
	}
	a := w.want(200, "POST", "/v1/commands", body.String(), "Content-Type: ", "Content-Type: application/x-ndjson")
	lines := bytes.Split(bytes.TrimSpace(a.body), []byte("\n"))
	if len(lines) != n {
		t.Fatalf("%d answers to %d lines", len(lines), n)
	}
	for i, line := range lines {
		if !bytes.HasPrefix(line, fmt.Appendf(nil, `{"line":%d,"problem":`, i+1)) {
			t.Errorf("answer %d: %s", i+1, line)
		}
	}
	if err := w.empty(); err != nil {
		t.Error(err)
	}
}

func TestWrongShapes(t *testing.T) {
	w := newWorld(t, worldOptions{})
	for _, c := range []struct{ path, body, pointer string }{
		{"/v1/orders", `{"currency":"GBP","lines":[{"sku":"a","quantity":"6","unit_price":"1"}]}`, "/lines/0/quantity"},
		{"/v1/orders", `{"currency":"GBP","lines":[{"sku":"a","quantity":6,"unit_price":1.5}]}`, "/lines/0/unit_price"},
		{"/v1/orders", `{"currency":"GBP","lines":[{"sku":"a","quantity":1.5,"unit_price":"1"}]}`, "/lines/0/quantity"},
		{"/v1/orders", `{"currency":"GBP","lines":[]}`, "/lines"},
		{"/v1/orders", `{"lines":[{"sku":"a","quantity":1,"unit_price":"1"}]}`, "/currency"},
		{"/v1/orders", anOrder(`,"Currency":"EUR"`), ""},
		{"/v1/orders", anOrder(`,"currency":"EUR"`), "/currency"},
		{"/v1/orders", anOrder(`,"id":"a\u0000b"`), ""},
		{"/v1/orders", anOrder(`,"id":"a\nb"`), "/id"},
		{"/v1/orders", anOrder(`,"id":"` + strings.Repeat("x", 300) + `"`), "/id"},
		{"/v1/orders", anOrder(`,"placed_at":"yesterday"`), "/placed_at"},
		{"/v1/orders", "", ""},
		{"/v1/orders", `null`, ""},
		{"/v1/orders", strings.Repeat("[", 100_000), ""},
		{"/v1/orders", `{"currency":"GBP","lines":[` + strings.TrimSuffix(strings.Repeat("{},", 300_000), ",") + `]}`, ""},
		{"/v1/orders/1/confirm", `null`, ""},
		{"/v1/commands", `{"type":"ConfirmOrder","stream":"order-1","data":null}`, "/data"},
		{"/v1/orders/1/cancel", `{}`, "/reason"},
		{"/v1/orders/1/confirm", `{"now":true}`, ""},
		{"/v1/commands", `{"type":"PlaceOrder","stream":"order-1","data":{"currency":"GBP"}}`, "/data/lines"},
		{"/v1/commands", `{"type":"PlaceOrder","stream":"order-1","data":{"currency":"GBP","lines":[{"sku":"a","quantity":"x","unit_price":"1"}]}}`, "/data/lines/0/quantity"},
		{"/v1/commands", `{"type":"PlaceOrder","stream":"order-1"}`, "/data"},
		{"/v1/commands", `{"type":"","stream":"order-1","data":{}}`, "/type"},
		{"/v1/commands", `{"type":"PlaceOrder","stream":"order","data":{}}`, "/stream"},
		{"/v1/commands", `{"type":"PlaceOrder","stream":"Order-1","data":{}}`, "/stream"},
		{"/v1/commands", `{"type":"PlaceOrder","stream":"order-1","data":{},"id":"` + strings.Repeat("x", 256) + `"}`, "/id"},
		{"/v1/commands", `{"type":"PlaceOrder","stream":"order-1","data":{},"expected_version":-1}`, "/expected_version"},
	} {
		a := w.do("POST", c.path, c.body, "Content-Type: ", "Content-Type: application/json", wait)
		if a.StatusCode == 413 && len(c.body) > 900_000 {
			continue
		}
		if a.StatusCode != 400 || a.json(t)["code"] != "invalid_body" || !strings.Contains(string(a.body), `{"pointer":"`+c.pointer+`"`) {
			t.Errorf("%s %s: want 400 at %q: %d %s", c.path, clip([]byte(c.body)), c.pointer, a.StatusCode, clip(a.body))
		}
	}
	if err := w.empty(); err != nil {
		t.Error(err)
	}
	// A refused form does not burn the key.
	w.want(400, "POST", "/v1/orders", `{}`, wait, "Idempotency-Key: k")
	w.want(201, "POST", "/v1/orders", anOrder(""), wait, "Idempotency-Key: k")
}

func TestMediaTypes(t *testing.T) {
	w := newWorld(t, worldOptions{})
	w.want(202, "POST", "/v1/orders", anOrder(""), "Content-Type: ", "Content-Type: Application/JSON; charset=UTF-8")
	for _, h := range []string{"Content-Type: text/plain", "Content-Type: application/xml", "Content-Type: application/json; charset=latin1", "X: y"} {
		if a := w.want(415, "POST", "/v1/orders", anOrder(""), "Content-Type: ", h); a.json(t)["code"] != "unsupported_media_type" {
			t.Errorf("%s", a.body)
		}
	}
	w.want(415, "POST", "/v1/orders", anOrder(""), "Content-Encoding: gzip")
	w.want(415, "POST", "/v1/commands", anOrder(""), "Content-Type: ", "Content-Type: text/plain")
	w.want(415, "PATCH", "/v1/orders/1", `{}`, "Content-Type: ", "Content-Type: application/json-patch+json")
	w.want(415, "POST", "/v1/orders", anOrder(""), "Content-Type: ", "Content-Type: application/merge-patch+json")
	w.want(201, "POST", "/v1/orders", anOrder(`,"id":"1"`), wait)
	w.want(200, "PATCH", "/v1/orders/1", `{"ship_to":{"city":"York"}}`, wait, "Content-Type: ", "Content-Type: application/merge-patch+json")
	// A verb without a body needs no type of one.
	w.want(200, "POST", "/v1/orders/1/confirm", "", wait)
}

func TestIdempotencyKeys(t *testing.T) {
	w := newWorld(t, worldOptions{})
	for _, headers := range [][]string{
		{"Idempotency-Key: " + strings.Repeat("k", 256)}, {`Idempotency-Key: "open`}, {`Idempotency-Key: ""`},
		{"Idempotency-Key: a", "Idempotency-Key: b"}, {"Idempotency-Key: caf\xc3\xa9"},
	} {
		if a := w.want(400, "POST", "/v1/orders", anOrder(""), headers...); a.json(t)["code"] != "invalid_header" {
			t.Errorf("%s", a.body)
		}
	}
	if a := w.want(400, "POST", "/v1/commands", `{"id":"a","type":"ConfirmOrder","stream":"order-1","data":{}}`, "Idempotency-Key: b"); a.json(t)["code"] != "invalid_header" {
		t.Errorf("%s", a.body)
	}
	w.want(202, "POST", "/v1/commands", `{"id":"a","type":"ConfirmOrder","stream":"order-1","data":{}}`, "Idempotency-Key: a")
}

// endless is a body without end that counts what was read of it.
type endless struct{ n int64 }

func (e *endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	e.n += int64(len(b))
	return len(b), nil
}

func TestTooLarge(t *testing.T) {
	w := newWorld(t, worldOptions{})
	big := anOrder(`,"x":"` + strings.Repeat("y", 1<<20) + `"`)
	if a := w.want(413, "POST", "/v1/orders", big); a.json(t)["code"] != "too_large" {
		t.Errorf("%s", a.body)
	}
	// The largest that is allowed is read.
	exact := anOrder("")
	exact += strings.Repeat(" ", 1<<20-len(exact))
	w.want(202, "POST", "/v1/orders", exact)
	w.want(413, "POST", "/v1/orders", exact+" ")

	// Without a Content-Length, reading ends at the limit.
	body := &endless{}
	req, err := http.NewRequestWithContext(t.Context(), "POST", w.server.URL+"/v1/orders", io.NopCloser(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := w.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 413 || !resp.Close {
		t.Errorf("%d, close %v", resp.StatusCode, resp.Close)
	}
}

// TestAnswersDoNotRepeatValues sends a secret wherever one can be sent.
func TestAnswersDoNotRepeatValues(t *testing.T) {
	w := newWorld(t, worldOptions{})
	const secret = "S3CR3T"
	for _, c := range []struct{ method, path, body, header string }{
		{"POST", "/v1/orders", `{"` + secret + `":1}`, "X: y"},
		{"POST", "/v1/orders", anOrder(`,"channel":"` + secret + `"`), "X: y"},
		{"POST", "/v1/orders", anOrder(`,"placed_at":"` + secret + `"`), "X: y"},
		{"POST", "/v1/orders", anOrder(`,"fulfilment":"` + secret + `"`), "X: y"},
		{"POST", "/v1/orders", `{"currency":"` + secret + `","lines":[{"sku":"a","quantity":1,"unit_price":"1"}]}`, "X: y"},
		{"POST", "/v1/orders", `{"currency":"GBP","lines":[{"sku":"a","quantity":1,"unit_price":"` + secret + `"}]}`, "X: y"},
		{"POST", "/v1/orders", secret, "X: y"},
		{"POST", "/v1/orders", anOrder(""), "Idempotency-Key: \"" + secret},
		{"POST", "/v1/orders", anOrder(""), "If-Match: " + secret},
		{"POST", "/v1/orders", anOrder(""), "Content-Encoding: " + secret},
		{"POST", "/v1/orders/" + secret + "/confirm", "", wait},
		{"GET", "/v1/orders/" + secret, "", "X: y"},
		{"GET", "/v1/orders?status=" + secret, "", "X: y"},
		{"GET", "/v1/orders?" + secret + "=1", "", "X: y"},
		{"GET", "/v1/orders?cursor=" + secret, "", "X: y"},
		{"GET", "/v1/orders?min_cursor=" + secret, "", "X: y"},
		{"GET", "/v1/commands/" + secret, "", "X: y"},
		{"GET", "/" + secret, "", "X: y"},
		{"GET", "/problems/" + secret, "", "X: y"},
		{"GET", "/v1/projections/" + secret, "", "X: y"},
		{"POST", "/v1/commands", `{"type":"` + secret + `","stream":"x","data":1}`, "X: y"},
	} {
		a := w.do(c.method, c.path, c.body, c.header)
		if a.StatusCode < 400 || a.StatusCode == 500 {
			t.Errorf("%s %s: %d", c.method, c.path, a.StatusCode)
		}
		if bytes.Contains(a.body, []byte(secret)) || strings.Contains(fmt.Sprint(a.Header), secret) {
			t.Errorf("%s %s %s: %v %s", c.method, c.path, c.body, a.Header, a.body)
		}
	}
}

// FuzzOrderBody: whatever comes as an order, the answer is a good one, and what was kept is what came.
func FuzzOrderBody(f *testing.F) {
	f.Add([]byte(anOrder("")))
	f.Add([]byte(anOrder(`,"id":"\ud83d\ude39","placed_at":"2011-01-01T00:00:00Z"`)))
	f.Add([]byte(`{"currency":"GBP","lines":[{"sku":"a","quantity":-1,"unit_price":"-0.000001"}]}`))
	kept := &keeping{}
	a := doorOnly(f, kept)
	f.Fuzz(func(t *testing.T, body []byte) {
		kept.data = nil
		req := httptest.NewRequest("POST", "/v1/orders", bytes.NewReader(body))
		req.Header.Set("Content-Type", "application/json")
		got := httptest.NewRecorder()
		a.ServeHTTP(got, req)
		if got.Code != 202 && got.Code != 400 && got.Code != 413 {
			t.Fatalf("%q: %d %s", body, got.Code, got.Body)
		}
		if err := jsonx.Check(got.Body.Bytes()); err != nil {
			t.Fatalf("%q: the answer %s: %v", body, got.Body, err)
		}
		if (got.Code == 202) != (kept.data != nil) {
			t.Fatalf("%q: %d, and %q was kept", body, got.Code, kept.data)
		}
		if kept.data != nil && (!bytes.Equal(kept.data, body) || jsonx.Check(kept.data) != nil) {
			t.Fatalf("kept %q for %q", kept.data, body)
		}
	})
}

// keeping notes what it is given.
type keeping struct {
	instant
	data []byte
}

func (k *keeping) Accept(ctx context.Context, c millrace.Command) (*millrace.Receipt, error) {
	k.data = c.Data
	return k.instant.Accept(ctx, c)
}
