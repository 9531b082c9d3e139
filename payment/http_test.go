package payment_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/money"
	pay "github.com/millrace-io/millrace/internal/payment"
	"github.com/millrace-io/millrace/payment"
)

func serve(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// listen serves connections bare, and gives the URL.
func listen(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go handle(c)
		}
	}()
	return "http://" + ln.Addr().String()
}

func dial(t *testing.T, url string, o *payment.Options) *payment.HTTP {
	t.Helper()
	g, err := payment.NewHTTP(url, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// price is the amount of all requests here.
func price() money.Amount {
	c, _ := money.ParseCurrency("GBP")
	return money.Amount{Minor: 1530, Currency: c}
}

func authorise() *pay.Request {
	return &pay.Request{Kind: pay.Authorise, OrderID: "1001", Amount: price()}
}

func capture() *pay.Request {
	return &pay.Request{Kind: pay.Capture, OrderID: "1001", Payment: "p-1", Amount: price()}
}

// yes is the answer that approves, and with more members the one of a gateway that says more.
func yes(key, kind string, more ...string) string {
	return `{"key":"` + key + `","kind":"` + kind + `","order_id":"1001","amount":{"amount":"15.30","currency":"GBP"},"status":"approved","payment":"p-1"` +
		strings.Join(append(more, "}"), "")
}

// TestRequest: what is sent, to the byte.
func TestRequest(t *testing.T) {
	type sent struct{ Line, Key, Type, Authorization, Body string }
	var got sent
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = sent{r.Method + " " + r.RequestURI, r.Header.Get("Idempotency-Key"), r.Header.Get("Content-Type"), r.Header.Get("Authorization"), string(body)}
		_, _ = io.WriteString(w, yes(got.Key, strings.TrimPrefix(r.URL.Path[strings.LastIndex(r.URL.Path, "/"):], "/"))) //nolint:gosec // a client of ours
	})
	plain, secure := serve(t, h), httptest.NewTLSServer(h)
	t.Cleanup(secure.Close)
	trust := secure.Client().Transport.(*http.Transport).TLSClientConfig //nolint:forcetypeassert // it is one
	const body = `{"order_id":"1001","amount":{"amount":"15.30","currency":"GBP"}}`
	for _, c := range []struct {
		url  string
		o    *payment.Options
		r    *pay.Request
		key  string
		want sent
	}{
		{plain.URL, nil, capture(), "fulfil/order-1/capture", sent{"POST /v1/payments/p-1/capture", "fulfil/order-1/capture", "application/json", "", body}},
		{secure.URL + "/shop/", &payment.Options{Token: "t0k", TLS: trust}, &pay.Request{Kind: pay.Void, OrderID: "1001", Payment: "p-1", Amount: price()}, "ö %", sent{"POST /shop/v1/payments/p-1/void", "%C3%B6%20%25", "application/json", "Bearer t0k", body}},
		{strings.Replace(plain.URL, "http://", "http://shop:secret@", 1), nil, &pay.Request{Kind: pay.Refund, OrderID: "1001", Payment: "p-1", Amount: price()}, "k", sent{"POST /v1/payments/p-1/refund", "k", "application/json", "Basic c2hvcDpzZWNyZXQ=", body}},
	} {
		r, err := dial(t, c.url, c.o).Do(t.Context(), c.key, c.r)
		if d := cmp.Diff(c.want, got); d != "" || err != nil || r != (pay.Result{Status: pay.Approved, Payment: "p-1"}) {
			t.Errorf("%+v %v %s", r, err, d)
		}
	}
	if r, err := dial(t, plain.URL, nil).Do(t.Context(), "k", authorise()); err == nil || got.Line != "POST /v1/payments" {
		t.Errorf("%s: %+v %v: an answer of the kind %q is none", got.Line, r, err, "payments")
	}
}

// TestAnswers: what each answer means. Only what repeats the request is a yes or a no.
func TestAnswers(t *testing.T) {
	var status int
	var body, after string
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if after != "" {
			w.Header().Set("Retry-After", after)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	g := dial(t, s.URL, nil)
	ok := yes("k", "capture")
	no := strings.Replace(ok, `"approved","payment":"p-1"`, `"declined","code":"card_declined"`, 1)
	const unknown, refused = "unknown", "refused"
	for _, c := range []struct {
		status      int
		body, after string
		want        string // a status, or what kind of error
		code        string
		wait        time.Duration
	}{
		{status: 200, body: ok, want: "approved"},
		{status: 201, body: ok, want: "approved"},
		{status: 200, body: yes("k", "capture", `,"fee":{"amount":"0.10"},"code":null`), want: "approved"},
		{status: 200, body: no, want: "declined", code: "card_declined"},
		{status: 402, body: no, want: "declined", code: "card_declined"},
		{status: 402, body: strings.Replace(no, "card_declined", "DO_NOT_HONOR-05", 1), want: "declined", code: "DO_NOT_HONOR-05"},
		{status: 402, body: strings.Replace(no, "card_declined", "Ms Ann Other has no money", 1), want: "declined", code: "declined"},
		{status: 402, body: strings.Replace(no, `,"code":"card_declined"`, "", 1), want: "declined", code: "declined"},
		// Neither a yes nor a no.
		{status: 402, body: ok, want: unknown},
		{status: 402, body: `{"code":"card_declined"}`, want: unknown},
		{status: 402, want: unknown},
		{status: 202, body: ok, want: unknown},
		{status: 204, want: unknown},
		{status: 200, want: unknown},
		{status: 200, body: "<html>ok</html>", want: unknown},
		{status: 200, body: ok + ok, want: unknown},
		{status: 200, body: ok[:len(ok)-1], want: unknown},
		{status: 200, body: ok[:len(ok)-1] + `,"status":"declined"}`, want: unknown},
		{status: 200, body: strings.Replace(ok, "approved", "pending", 1), want: unknown},
		{status: 200, body: strings.Replace(ok, "approved", "Approved", 1), want: unknown},
		{status: 200, body: strings.Replace(ok, `"p-1"`, `"p-2"`, 1), want: unknown},
		{status: 200, body: strings.Replace(ok, `,"payment":"p-1"`, ``, 1), want: unknown},
		{status: 200, body: strings.Replace(ok, `"p-1"`, `"../p"`, 1), want: unknown},
		{status: 200, body: strings.Replace(ok, `"key":"k"`, `"key":"K"`, 1), want: unknown},
		{status: 200, body: strings.Replace(ok, `"key":"k",`, ``, 1), want: unknown},
		{status: 200, body: strings.Replace(ok, "capture", "void", 1), want: unknown},
		{status: 200, body: strings.Replace(ok, "1001", "1002", 1), want: unknown},
		{status: 200, body: strings.Replace(ok, "15.30", "15.31", 1), want: unknown},
		{status: 200, body: strings.Replace(ok, "15.30", "15.3", 1), want: unknown},
		{status: 200, body: strings.Replace(ok, `"15.30"`, `15.30`, 1), want: unknown},
		{status: 200, body: strings.Replace(ok, "GBP", "EUR", 1), want: unknown},
		{status: 402, body: strings.Replace(no, "1001", "1002", 1), want: unknown},
		{status: 200, body: ok + strings.Repeat(" ", 64<<10), want: unknown},
		// Come back.
		{status: 500, body: ok, want: unknown},
		{status: 502, want: unknown},
		{status: 503, after: "7", want: unknown, wait: 7 * time.Second},
		{status: 503, after: "86400", want: unknown, wait: time.Hour},
		{status: 503, after: "-1", want: unknown},
		{status: 503, after: "Fri, 31 Dec 1999 23:59:59 GMT", want: unknown},
		{status: 408, want: unknown},
		{status: 409, want: unknown},
		{status: 425, want: unknown},
		{status: 429, after: "30", want: unknown, wait: 30 * time.Second},
		// A person has to look. None of it is a decline.
		{status: 400, body: `{"code":"invalid_body","detail":"for people"}`, want: refused, code: "invalid_body", wait: pay.RepairPause},
		{status: 401, want: refused, wait: pay.RepairPause},
		{status: 403, body: "<html>", want: refused, wait: pay.RepairPause},
		{status: 404, body: `{"code":"payment_unknown"}`, want: refused, code: "payment_unknown", wait: pay.RepairPause},
		{status: 422, body: `{"code":"Ms Ann Other"}`, after: "1200", want: refused, wait: 20 * time.Minute},
		{status: 301, want: refused, wait: pay.RepairPause},
		{status: 308, body: ok, want: refused, wait: pay.RepairPause},
	} {
		status, body, after = c.status, c.body, c.after
		r, err := g.Do(t.Context(), "k", capture())
		got, code := string(r.Status), r.Code
		var u *pay.UnknownError
		var f *pay.RefusedError
		var says interface{ RetryAfter() time.Duration }
		switch {
		case errors.As(err, &u):
			got = unknown
		case errors.As(err, &f):
			got, code = refused, f.Code
		}
		var wait time.Duration
		if errors.As(err, &says) {
			wait = says.RetryAfter()
		}
		if got != c.want || code != c.code || wait != c.wait || err != nil && r != (pay.Result{}) {
			t.Errorf("%d %s: %+v %v: %s %q %s, want %s %q %s", c.status, c.body, r, err, got, code, wait, c.want, c.code, c.wait)
		}
		if err != nil && (strings.Contains(err.Error(), "Ann") || strings.Contains(err.Error(), "1001")) {
			t.Errorf("the error repeats what was answered: %v", err)
		}
	}
}

// TestHostile: whatever a gateway does to a connection, the attempt ends in its time, with an error that says that nothing is
// known and repeats neither the address nor the answer.
func TestHostile(t *testing.T) {
	sneaky := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		t.Error("a redirect was followed")
		_, _ = io.WriteString(w, yes("k", "capture"))
	}))
	flush := func(w http.ResponseWriter) { w.(http.Flusher).Flush() } //nolint:forcetypeassert // it is one
	hang := func(r *http.Request) { <-r.Context().Done() }
	for name, h := range map[string]http.HandlerFunc{
		"never answers":    func(_ http.ResponseWriter, r *http.Request) { hang(r) },
		"cuts":             func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"stops in between": func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, `{"key":`); flush(w); hang(r) },
		"cuts in between": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, yes("k", "capture"))
			flush(w)
			panic(http.ErrAbortHandler)
		},
		"drips": func(w http.ResponseWriter, r *http.Request) {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for r.Context().Err() == nil {
				<-tick.C
				_, _ = io.WriteString(w, " ")
				flush(w)
			}
		},
		"has no end": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		},
		"has no end and fails": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		},
		"endless header": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("s3cret", 10_000))
			_, _ = io.WriteString(w, yes("k", "capture"))
		},
		"speaks no HTTP": func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack() //nolint:forcetypeassert // it is one
			if err == nil {
				_, _ = io.WriteString(c, "s3cret s3cret\r\n\r\n")
				_ = c.Close()
			}
		},
		"compresses": func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Accept-Encoding") != "" {
				t.Error("it is asked to compress")
			}
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = io.WriteString(w, "\x1f\x8b\x08s3cret")
		},
		"sends elsewhere": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, sneaky.URL, http.StatusTemporaryRedirect)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // a server notices that the client is gone when it has read all
				h(w, r)
			}))
			g := dial(t, strings.Replace(s.URL, "http://", "http://user:s3cret@", 1)+"/s3cret", &payment.Options{Timeout: 150 * time.Millisecond})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			r, err := g.Do(ctx, "k", capture())
			var unknown *pay.UnknownError
			var refused *pay.RefusedError
			if !errors.As(err, &unknown) && (name != "sends elsewhere" || !errors.As(err, &refused)) || r != (pay.Result{}) || ctx.Err() != nil {
				t.Errorf("%+v %v", r, err)
			}
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error tells a secret: %v", err)
			}
			s.CloseClientConnections()
		})
	}
}

// TestUnreachable: who is not there, or is not who it should be, did not answer.
func TestUnreachable(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	stranger := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a stranger was asked") }))
	t.Cleanup(stranger.Close)
	for url, want := range map[string]string{
		gone.URL + "/s3cret": "refused",
		stranger.URL:         "certificate",
		strings.Replace(serve(t, http.NotFoundHandler()).URL, "http:", "https:", 1): "HTTP",
	} {
		var unknown *pay.UnknownError
		if r, err := dial(t, url, nil).Do(t.Context(), "k", authorise()); !errors.As(err, &unknown) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%+v %v", r, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dial(t, gone.URL, nil).Do(ctx, "k", authorise()); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestGoneConnection: an attempt that took too long takes its connection with it, so that the next one reaches the gateway.
func TestGoneConnection(t *testing.T) {
	var mu sync.Mutex
	var from []string // of each request
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		from = append(from, r.RemoteAddr)
		second := len(from) == 2
		mu.Unlock()
		if second {
			<-r.Context().Done()
			return
		}
		_, _ = io.WriteString(w, yes("k", "capture"))
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	trust := s.Client().Transport.(*http.Transport).TLSClientConfig //nolint:forcetypeassert // it is one
	const timeout = 200 * time.Millisecond
	g := dial(t, s.URL, &payment.Options{TLS: trust, Timeout: timeout})
	for n, ok := range []bool{true, false, true} {
		if r, err := g.Do(t.Context(), "k", capture()); (err == nil) != ok {
			t.Errorf("attempt %d: %+v %v", n+1, r, err)
		}
	}
	mu.Lock()
	if len(from) != 3 || from[0] != from[1] || from[1] == from[2] {
		t.Errorf("connections %v", from)
	}
	from = nil
	mu.Unlock()

	// The control: over HTTP/2, which the server offers, all go by one connection.
	client := &http.Client{Timeout: timeout, Transport: &http.Transport{TLSClientConfig: trust.Clone(), ForceAttemptHTTP2: true}}
	for range 3 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		if res, err := client.Do(req); err == nil {
			_ = res.Body.Close()
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(from) != 3 || from[1] != from[2] {
		t.Errorf("connections %v: the server does not do what the test is about", from)
	}
}

// TestTwoAnswers: an answer that comes a second time, in the place of the next one on its connection, is not taken for it.
func TestTwoAnswers(t *testing.T) {
	url := listen(t, repeatFirst)

	g := dial(t, url, nil)
	if r, err := g.Do(t.Context(), "first", capture()); err != nil || r.Status != pay.Approved {
		t.Fatalf("%+v %v", r, err)
	}
	// Another capture of the same amount for the same order: only the key tells them apart.
	var unknown *pay.UnknownError
	if r, err := g.Do(t.Context(), "second", capture()); !errors.As(err, &unknown) || !strings.Contains(err.Error(), "another key") {
		t.Errorf("%+v %v", r, err)
	}

	// The control: who does not look at the key is told a yes that was another's.
	var last payment.Answer
	for _, key := range []string{"first", "second"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(payment.KeyHeader, key)
		client := &http.Client{Transport: control}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(res.Body)
		if err := errors.Join(err, res.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if last, err = payment.ReadAnswer(data); err != nil {
			t.Fatal(err)
		}
	}
	if last.Status != pay.Approved || last.Key != "first" {
		t.Errorf("%+v: the server does not do what the test is about", last)
	}
}

// control is the transport of the control; it keeps connections as every client does.
var control = &http.Transport{}

// TestKeptConnectionGone: gateways close connections that they were not asked on for a while. An attempt that meets with that
// comes to its answer all the same, because its key says that it may be sent again.
func TestKeptConnectionGone(t *testing.T) {
	for _, keyed := range []bool{true, false} {
		url := listen(t, answerOnce)
		if keyed {
			g := dial(t, url, nil)
			for range 3 {
				if r, err := g.Do(t.Context(), "k", capture()); err != nil || r.Status != pay.Approved {
					t.Errorf("%+v %v", r, err)
				}
			}
			continue
		}
		// The control: without a key it is an error, and the shop would have to wait for its next attempt.
		client, failed := &http.Client{Transport: &http.Transport{}}, false
		for range 3 {
			res, err := client.Post(url, "application/json", strings.NewReader("{}"))
			if err != nil {
				failed = true
				continue
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
		if !failed {
			t.Error("the server does not do what the test is about")
		}
	}
}

// answerOnce answers the first request on a connection, and closes it when the next one comes.
func answerOnce(c net.Conn) {
	defer c.Close() //nolint:errcheck // the test is over
	in := bufio.NewReader(c)
	r, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, r.Body)
	body := yes("k", "capture")
	_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	if r, err = http.ReadRequest(in); err == nil {
		_, _ = io.Copy(io.Discard, r.Body) // unread, it would reset the connection
	}
}

// repeatFirst answers all requests on a connection as it answered the first.
func repeatFirst(c net.Conn) {
	defer c.Close() //nolint:errcheck // the test is over
	in, key := bufio.NewReader(c), ""
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		if key == "" {
			key = r.Header.Get(payment.KeyHeader)
		}
		body := yes(key, "capture")
		if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
			return
		}
	}
}

func TestNewHTTP(t *testing.T) {
	for _, c := range []struct {
		url string
		o   *payment.Options
		ok  bool
	}{
		{"https://pay.example.org", nil, true},
		{"https://pay.example.org/shop/", nil, true},
		{"https://s3cret:s3cret@pay.example.org", nil, true},
		{"http://127.0.0.1:8090", nil, true},
		{"http://localhost:8090", nil, true},
		{"http://[::1]:8090", nil, true},
		{"http://pay.example.org", &payment.Options{Insecure: true}, true},
		{"http://pay.example.org/s3cret", nil, false},
		{"http://127.0.0.1.example.org/s3cret", nil, false},
		{"ftp://s3cret.example.org", nil, false},
		{"https://", nil, false},
		{"", nil, false},
		{"https://pay.example.org?token=s3cret", nil, false},
		{"https://pay.example.org#s3cret", nil, false},
		{"https://s3cret@pay.example.org", &payment.Options{Token: "s3cret"}, false},
		{"https://pay.example.org", &payment.Options{Token: "s3cret\r\nX: y"}, false}, //nolint:gosec // it is none
		{"https://s3cret:%zz@pay.example.org", nil, false},
	} {
		g, err := payment.NewHTTP(c.url, c.o)
		if (err == nil) != c.ok || err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", c.url, err)
		}
		if told := fmt.Sprintf("%v %+v", g, g); strings.Contains(told, "s3cret") || strings.Contains(told, "example") {
			t.Errorf("%s tells of itself %s", c.url, told)
		}
	}
}

func TestKeyTooLong(t *testing.T) {
	g := dial(t, serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was asked") })).URL, nil)
	for _, key := range []string{"", strings.Repeat("ö", 400)} {
		var refused *pay.RefusedError
		if _, err := g.Do(t.Context(), key, authorise()); !errors.As(err, &refused) {
			t.Errorf("%d bytes: %v", len(key), err)
		}
	}
}

// FuzzReadAnswer: whatever arrives is an error or an answer that reads the same when it is written again.
func FuzzReadAnswer(f *testing.F) {
	f.Add([]byte(yes("k", "capture")))
	f.Add([]byte(yes("k", "authorise", `,"code":null,"more":[{}]`)))
	f.Add([]byte(`{"key":"k","kind":"void","order_id":"1","amount":{"amount":"1","currency":"JPY"},"status":"declined","code":"x"}`))
	f.Add([]byte(`{"key":null}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := payment.ReadAnswer(data)
		if err != nil {
			if a != (payment.Answer{}) {
				t.Errorf("%+v beside an error", a)
			}
			return
		}
		if a.Status != pay.Approved && a.Status != pay.Declined || a.Status == pay.Approved && !pay.ValidName(a.Payment) {
			t.Errorf("%+v", a)
		}
		again, err := payment.ReadAnswer(marshal(t, &a))
		if err != nil || again != a {
			t.Errorf("%+v comes back as %+v %v", a, again, err)
		}
	})
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	data, err := jsonx.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
