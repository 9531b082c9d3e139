package httpapi_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace/httpapi"
)

// serving runs Serve and returns the address, and what ends it and gives its error.
func serving(t *testing.T, h http.Handler, o *httpapi.ServeOptions) (addr string, stop func() error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- httpapi.Serve(ctx, ln, h, o) }()
	t.Cleanup(cancel)
	return ln.Addr().String(), func() error {
		cancel()
		return <-done
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// TestServeLetsRequestsFinish: a request that is under way when the server is told to stop is answered.
func TestServeLetsRequestsFinish(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	drained := false
	addr, stop := serving(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		_, _ = io.WriteString(w, "done")
	}), &httpapi.ServeOptions{OnDrain: func() { drained = true; close(release) }})
	type result struct {
		status int
		body   string
	}
	got := make(chan result, 1)
	go func() {
		status, body := get(t, "http://"+addr)
		got <- result{status, body}
	}()
	<-entered
	if err := stop(); err != nil || !drained {
		t.Errorf("%v, drained %v", err, drained)
	}
	if r := <-got; r != (result{200, "done"}) {
		t.Errorf("%+v", r)
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		_ = c.Close()
		t.Error("it still takes connections")
	}
}

// TestServeDoesNotWaitForEver: what does not finish in time is cut off, and that is said.
func TestServeDoesNotWaitForEver(t *testing.T) {
	entered := make(chan struct{})
	gone := make(chan struct{})
	addr, stop := serving(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
		close(gone)
	}), &httpapi.ServeOptions{Drain: time.Millisecond})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-entered
	if err := stop(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	<-gone
}

func TestServeListenerFails(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if err := httpapi.Serve(t.Context(), ln, http.NotFoundHandler(), nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v", err)
	}
}

// TestServeConnectionLimit: one connection too many waits until another one is closed.
func TestServeConnectionLimit(t *testing.T) {
	addr, stop := serving(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok")
	}), &httpapi.ServeOptions{Connections: 1})
	first, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(c net.Conn) (string, error) {
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return "", err
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return "", err
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	if got, err := ask(first); err != nil || got != "ok" {
		t.Fatal(got, err)
	}
	second, err := net.Dial("tcp", addr) // the kernel takes it
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Close() }()
	if err := second.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if got, err := ask(second); err == nil {
		t.Errorf("a second connection is served: %s", got)
	}
	_ = first.Close()
	if err := second.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(second), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
	_ = resp.Body.Close()
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestRawRequests sends what no client library would.
func TestRawRequests(t *testing.T) {
	w := newWorld(t, worldOptions{})
	addr, stop := serving(t, w.api, &httpapi.ServeOptions{OnDrain: w.api.Drain})
	const head = "POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	for name, c := range map[string]struct {
		raw    string
		status int
	}{
		"two lengths":                {head + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400},
		"length and chunks of zero":  {head + "Content-Length: 2\r\nTransfer-Encoding: gzip\r\n\r\n{}", 501},
		"space before colon":         {head + "Content-Length : 2\r\n\r\n{}", 400},
		"bad chunk":                  {head + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400},
		"cut off":                    {head + "Content-Length: 1000\r\n\r\n{}", 400},
		"chunk cut off":              {head + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}", 400},
		"headers too large":          {head + "X: " + strings.Repeat("y", 64<<10) + "\r\n\r\n", 431},
		"no host":                    {"GET /v1/orders HTTP/1.1\r\n\r\n", 400},
		"path without a slash":       {"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404},
		"absolute address":           {"GET http://other/v1/orders HTTP/1.1\r\nHost: x\r\n\r\n", 200},
		"connect":                    {"CONNECT /v1/orders HTTP/1.1\r\nHost: x\r\n\r\n", 405},
		"a NUL in the path":          {"GET /v1/orders/%00 HTTP/1.1\r\nHost: x\r\n\r\n", 404},
		"bad UTF-8 in the path":      {"GET /v1/orders/%ff HTTP/1.1\r\nHost: x\r\n\r\n", 404},
		"verb with a NUL in the id":  {"POST /v1/orders/%00/confirm HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 400},
		"a long id":                  {"GET /v1/orders/" + strings.Repeat("x", 5000) + " HTTP/1.1\r\nHost: x\r\n\r\n", 404},
		"announces more than enough": {head + "Content-Length: 9999999999\r\n\r\n", 413},
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, c.raw); err != nil {
			t.Fatal(err)
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else {
			body, _ := io.ReadAll(resp.Body) // the connection may end within it
			_ = resp.Body.Close()
			if resp.StatusCode != c.status {
				t.Errorf("%s: %d, want %d: %s", name, resp.StatusCode, c.status, body)
			}
		}
		_ = conn.Close()
	}
	if err := w.empty(); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestAdmin(t *testing.T) {
	sick := errors.New("the disk is gone")
	var now error
	a := httpapi.NewAdmin(&httpapi.AdminOptions{
		Ready: []httpapi.Check{
			{Name: "store", Run: func(context.Context) error { return now }},
			{Name: "feed", Run: func(ctx context.Context) error {
				if _, ok := ctx.Deadline(); !ok {
					return errors.New("no deadline")
				}
				return nil
			}},
		},
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "millrace_up 1\n") }),
	})
	addr, stop := serving(t, a, &httpapi.ServeOptions{WriteTimeout: time.Minute})
	base := "http://" + addr
	for _, c := range []struct {
		path   string
		before func()
		status int
		body   string
	}{
		{"/livez", nil, 200, "ok\n"},
		{"/readyz", nil, 200, "ok\n"},
		{"/healthz", nil, 200, "ok\n"},
		{"/readyz?verbose", nil, 200, "store: ok\nfeed: ok\nok\n"},
		{"/metrics", nil, 200, "millrace_up 1\n"},
		{"/readyz", func() { now = sick }, 503, "store: the disk is gone\n"},
		{"/readyz?verbose", nil, 503, "store: the disk is gone\nfeed: ok\n"},
		{"/livez", nil, 200, "ok\n"},
		{"/readyz", func() { now = nil; a.Drain() }, 503, "draining\n"},
		{"/livez", nil, 200, "ok\n"},
		{"/v1/orders", nil, 404, "404 page not found\n"},
	} {
		if c.before != nil {
			c.before()
		}
		if status, body := get(t, base+c.path); status != c.status || body != c.body {
			t.Errorf("%s: %d %q, want %d %q", c.path, status, body, c.status, c.body)
		}
	}
	if status, body := get(t, base+"/version"); status != 200 || !strings.Contains(body, `"go":"go1`) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := get(t, base+"/debug/pprof/goroutine?debug=1"); status != 200 || !strings.Contains(body, "goroutine profile") {
		t.Errorf("%d", status)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
