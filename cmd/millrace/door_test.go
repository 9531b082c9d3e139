package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/millrace-io/millrace/api"
)

// raw sends bytes as they are and gives everything that comes back until the server closes.
func raw(t *testing.T, s *server, text string) string {
	t.Helper()
	c := dial(t, s, text)
	out, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the server leaves the connection open after %q; it said %q", text, out)
	}
	return string(out) // a reset is a way to close
}

func dial(t *testing.T, s *server, text string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil && !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "pipe") {
		t.Fatal(err)
	}
	return c
}

// TestRawSockets: what no client sends. Package httpapi goes through this in depth; here the real binary stays up.
func TestRawSockets(t *testing.T) {
	data := t.TempDir()
	s := serving(t, data)
	// These two send a byte and no more; the server must not wait for them for ever. They are looked at last.
	idle := []net.Conn{
		dial(t, s, "P"),
		dial(t, s, "POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Ty"),
	}
	const post = "POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	// A second request, which must never be seen as one.
	const smuggled = "POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nIdempotency-Key: smuggled\r\nContent-Length: 2\r\n\r\n{}"
	for name, test := range map[string]struct {
		text   string
		status []string
	}{
		"two lengths":            {post + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}" + smuggled, []string{"400"}},
		"a signed length":        {post + "Content-Length: +2\r\n\r\n{}" + smuggled, []string{"400"}},
		"space before the colon": {post + "Content-Length : 2\r\n\r\n{}" + smuggled, []string{"400"}},
		"a folded header":        {post + " folded\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}" + smuggled, []string{"400", "415"}}, // a fold is a space
		"chunked twice":          {post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled, []string{"400", "501"}},
		"chunked, nearly":        {post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + smuggled, []string{"400", "501"}},
		"bare LF in a chunk":     {post + "Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n" + smuggled, []string{"400"}},
		"length and chunks":      {post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n" + smuggled, []string{"400"}},
		"no host":                {"GET /v1/orders HTTP/1.1\r\n\r\n", []string{"400"}},
		"no HTTP":                {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", []string{"400"}},
		"a flood of headers":     {"GET /v1/orders HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: "+strings.Repeat("a", 1000)+"\r\n", 40) + "\r\n", []string{"431"}},
		"a body without end":     {post + "Content-Length: 99999999999\r\n\r\n" + strings.Repeat(" ", 64<<10), []string{"413"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := raw(t, s, test.text)
			if !slices.ContainsFunc(test.status, func(code string) bool { return strings.HasPrefix(got, "HTTP/1.1 "+code) }) {
				t.Errorf("got %q", got)
			}
			if n := strings.Count(got, "HTTP/1.1 "); n > 1 {
				t.Errorf("%d answers: %q", n, got)
			}
		})
	}
	s.do(t, call{method: http.MethodGet, path: "/v1/commands/smuggled"}, http.StatusNotFound)
	if a := s.do(t, call{method: http.MethodPost, path: "/v1/orders", key: "well", body: anOrder("well"), prefer: "wait=30"}, http.StatusCreated); a.replayed() {
		t.Errorf("got %s", a)
	}
	if !testing.Short() {
		for i, c := range idle {
			if _, err := bufio.NewReader(c).ReadString(0); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("connection %d may be slow for ever", i)
			}
		}
	}
	s.stop(t)
	isClean(t, data)
}

// TestBadBodies: each is refused with a problem that says where, nothing of it is kept, and no value is repeated.
func TestBadBodies(t *testing.T) {
	data := t.TempDir()
	s := serving(t, data)
	for name, body := range map[string]string{
		"cut off":         `{"id":"bad","currency":"GBP","lines":[`,
		"two values":      `{"id":"bad"} {"id":"bad"}`,
		"two names":       `{"id":"bad","id":"bad","currency":"GBP","lines":[` + aLine("A", 1, "1.00") + `]}`,
		"another case":    `{"ID":"bad","currency":"GBP","lines":[` + aLine("A", 1, "1.00") + `]}`,
		"unknown member":  `{"id":"bad","currency":"GBP","secret-9":1,"lines":[` + aLine("A", 1, "1.00") + `]}`,
		"a number":        `{"id":"bad","currency":"GBP","lines":[{"sku":"A","quantity":1,"unit_price":1.00}]}`,
		"half a number":   `{"id":"bad","currency":"GBP","lines":[{"sku":"A","quantity":1.5,"unit_price":"1.00"}]}`,
		"not UTF-8":       "{\"id\":\"bad\xff\"}",
		"a NUL":           `{"id":"bad\u0000"}`,
		"half a letter":   `{"id":"bad\ud800"}`,
		"too deep":        strings.Repeat("[", 10_000),
		"null":            `null`,
		"an empty body":   ``,
		"a comment":       `{"id":"bad",/* */"currency":"GBP","lines":[]}`,
		"a byte order":    "\xEF\xBB\xBF" + string(anOrder("bad")),
		"too many digits": `{"id":"bad","currency":"GBP","lines":[{"sku":"A","quantity":` + strings.Repeat("9", 400) + `,"unit_price":"1.00"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			a := s.do(t, call{method: http.MethodPost, path: "/v1/orders", key: "bad", kind: "application/json", body: []byte(body), prefer: "wait=30"}, http.StatusBadRequest)
			if a.header.Get("Content-Type") != "application/problem+json" || bytes.Contains(a.body, []byte("secret-9")) {
				t.Errorf("got %s", a)
			}
		})
	}
	s.do(t, call{method: http.MethodGet, path: "/v1/commands/bad"}, http.StatusNotFound)
	s.stop(t)
	stdout, _, code := runs(t, "verify", "--data", data, "--output", "json")
	if code != 0 || !strings.Contains(stdout, `"events":0,"backlog":0`) {
		t.Errorf("exit code %d: %s", code, stdout)
	}
}

// TestRoutesAndDocument: what is wired is what api/openapi.yaml describes, no less and no more.
func TestRoutesAndDocument(t *testing.T) {
	store, err := openStore(filepath.Join(t.TempDir(), "store"), 1, quietLog())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	n, err := newNode(t.Context(), store, nodeOptions{log: quietLog()})
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Paths map[string]map[string]yaml.Node `yaml:"paths"`
	}
	if err := yaml.Unmarshal(api.OpenAPI, &document); err != nil {
		t.Fatal(err)
	}
	described := map[string]bool{}
	for path, methods := range document.Paths {
		for method := range methods {
			if slices.Contains([]string{"get", "post", "put", "patch", "delete"}, method) {
				described[strings.ToUpper(method)+" "+path] = true
			}
		}
	}
	if len(described) < 20 {
		t.Fatalf("only %d operations are described: the document was not understood", len(described))
	}
	for _, r := range n.api.Routes() {
		name := r.Method + " " + r.Path
		if !described[name] {
			t.Errorf("%s is served and not described", name)
		}
		delete(described, name)
	}
	for name := range described {
		t.Errorf("%s is described and not served", name)
	}
}
