package gateway_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace-io/millrace/internal/jsonx"
	pay "github.com/millrace-io/millrace/internal/payment"
	"github.com/millrace-io/millrace/internal/paymenttest"
	"github.com/millrace-io/millrace/payment"
	"github.com/millrace-io/millrace/sim/gateway"
)

// reach serves a gateway and reaches it over HTTP.
func reach(t *testing.T, g *gateway.Gateway, o *payment.Options) (*payment.HTTP, *httptest.Server) {
	t.Helper()
	s := httptest.NewServer(g)
	t.Cleanup(s.Close)
	h, err := payment.NewHTTP(s.URL, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h, s
}

// call makes a bare request.
func call(t *testing.T, method, url, body, key string) (status int, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Idempotency-Key", key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(data)
}

const body1001 = `{"order_id":"1001","amount":{"amount":"15.30","currency":"GBP"}}`

// TestInterface: the interface to the byte, as a client sees it that is not ours.
func TestInterface(t *testing.T) {
	g := newGateway(t, nil)
	_, s := reach(t, g, nil)
	step := func(path, key, body string, status int, want string) string {
		t.Helper()
		got, answer := call(t, http.MethodPost, s.URL+path, body, key)
		if got != status || answer != want {
			t.Errorf("%s: %d %s, want %d %s", path, got, answer, status, want)
		}
		return answer
	}
	_, answer := call(t, http.MethodPost, s.URL+"/v1/payments", body1001, "a")
	a, err := payment.ReadAnswer([]byte(answer))
	if err != nil {
		t.Fatal(err)
	}
	result := func(key, kind string) string {
		return `{"key":"` + key + `","kind":"` + kind + `","order_id":"1001","amount":{"amount":"15.30","currency":"GBP"},"status":"approved","payment":"` + a.Payment + `"}`
	}
	for range 2 {
		step("/v1/payments", "a", body1001, 201, result("a", "authorise"))
	}
	step("/v1/payments/"+a.Payment+"/refund", "r", body1001, 422, `{"status":422,"code":"not_captured"}`)
	step("/v1/payments/"+a.Payment+"/capture", "c", body1001, 200, result("c", "capture"))
	step("/v1/payments/"+a.Payment+"/void", "v", body1001, 422, `{"status":422,"code":"already_captured"}`)
	step("/v1/payments/"+a.Payment+"/refund", "r", body1001, 200, result("r", "refund"))
	step("/v1/payments/p-0/void", "v", body1001, 404, `{"status":404,"code":"payment_unknown"}`)
	step("/v1/payments", "a", strings.Replace(body1001, "15", "16", 1), 422, `{"status":422,"code":"idempotency_key_reused"}`)
	step("/v1/payments", "", body1001, 400, `{"status":400,"code":"invalid_request"}`)
	step("/v1/payments", "a b", body1001, 400, `{"status":400,"code":"invalid_request"}`)
	step("/v1/payments", "ö", body1001, 400, `{"status":400,"code":"invalid_request"}`)
	step("/v1/payments", "z", strings.Replace(body1001, "15.30", "-1.00", 1), 400, `{"status":400,"code":"invalid_request"}`)
	step("/v1/payments", "z", strings.Repeat(" ", 17<<10), 413, `{"status":413,"code":"body_too_large"}`)
	if got, answer := call(t, http.MethodPost, s.URL+"/v1/payments", body1001[:20], "z"); got != 400 || !strings.Contains(answer, `"invalid_body"`) {
		t.Errorf("%d %s", got, answer)
	}

	_, answer = call(t, http.MethodGet, s.URL+"/v1/ledger/orders/1001", "", "")
	const amount = `{"amount":"15.30","currency":"GBP"}`
	want := `{"order_id":"1001","payments":[{"payment":"` + a.Payment + `","authorised":` + amount + `,"captured":` + amount + `,"voided":{"amount":"0.00","currency":"GBP"},"refunded":` + amount + `}],` +
		`"operations":[{"key":"a","kind":"authorise","payment":"` + a.Payment + `","amount":` + amount + `,"status":"approved","attempts":4},` +
		`{"key":"c","kind":"capture","payment":"` + a.Payment + `","amount":` + amount + `,"status":"approved","attempts":1},` +
		`{"key":"r","kind":"refund","payment":"` + a.Payment + `","amount":` + amount + `,"status":"approved","attempts":2}]}`
	if answer != want {
		t.Errorf("%s\nwant\n%s", answer, want)
	}
	if got, answer := call(t, http.MethodGet, s.URL+"/v1/ledger/orders/none", "", ""); got != 404 || answer != `{"status":404,"code":"order_unknown"}` {
		t.Errorf("%d %s", got, answer)
	}
	_, answer = call(t, http.MethodGet, s.URL+"/v1/ledger", "", "")
	want = `{"orders":1,"payments":1,"currencies":[{"currency":"GBP","authorised":"15.30","open":"0.00","captured":"15.30","released":"0.00","voided":"0.00","refunded":"15.30"}],` +
		`"requests":{"authorise":{"attempts":4,"approved":1,"declined":0,"refused":1},"capture":{"attempts":1,"approved":1,"declined":0,"refused":0},` +
		`"refund":{"attempts":2,"approved":1,"declined":0,"refused":1},"void":{"attempts":2,"approved":0,"declined":0,"refused":2}},` +
		`"repeated":5,"failed":0,"lost":0,"twice":0,"slow":0,"unavailable":0}`
	if answer != want {
		t.Errorf("%s\nwant\n%s", answer, want)
	}
}

// TestFaultsOverHTTP: each fault as a client meets it.
func TestFaultsOverHTTP(t *testing.T) {
	var told []gateway.Faults
	g := newGateway(t, &gateway.Options{OnFaults: func(f gateway.Faults) { told = append(told, f) }})
	h, s := reach(t, g, &payment.Options{Timeout: 200 * time.Millisecond})
	set := func(faults string, status int) {
		t.Helper()
		if got, answer := call(t, http.MethodPost, s.URL+"/v1/faults", faults, ""); got != status {
			t.Fatalf("%s: %d %s", faults, got, answer)
		}
	}
	n := 0
	for _, c := range []struct {
		faults string
		errs   int // attempts without an answer, at the least
		wait   time.Duration
		want   pay.Status
	}{
		{`{}`, 0, 0, pay.Approved},
		{`{"decline":1}`, 0, 0, pay.Declined},
		{`{"fail":1,"fail_times":2}`, 2, 0, pay.Approved},
		{`{"hang":1,"lose_times":1}`, 1, 0, pay.Approved},
		{`{"hang":1,"lose_times":1,"decline":1}`, 1, 0, pay.Declined},
		{`{"twice":1}`, 0, 0, pay.Approved},
		{`{"slow":1,"slow_ms":20}`, 0, 0, pay.Approved},
		{`{"down":true}`, 3, time.Second, ""},
		{`{"down":true,"mute":true}`, 3, 0, ""},
		{`{"down_for_ms":86000000,"down_every_ms":86000000}`, 3, time.Hour, ""},
	} {
		set(c.faults, 200)
		n++
		order := fmt.Sprint("o-", n)
		for try := range 4 {
			r, err := h.Do(t.Context(), "key of "+order, authorise(order))
			var unknown *pay.UnknownError
			switch {
			case err == nil && (try < c.errs || r.Status != c.want), err != nil && !errors.As(err, &unknown):
				t.Errorf("%s: attempt %d: %+v %v", c.faults, try+1, r, err)
			case err != nil && (c.want != "" && try >= c.errs || unknown.RetryAfter() != c.wait):
				t.Errorf("%s: attempt %d: %v, to be asked again in %s", c.faults, try+1, err, unknown.RetryAfter())
			}
		}
		want := paymenttest.Books{}
		if c.want == pay.Approved {
			want = paymenttest.Books{Payments: 1, Authorised: 1530}
		}
		if got := booksOf(g)(order); got != want {
			t.Errorf("%s: %+v", c.faults, got)
		}
	}

	// A cut connection is one that the library tries once more by itself, where it had been used before: the count of the
	// answers that are lost is the gateway's, not the client's.
	set(`{"lose":1,"lose_times":3}`, 200)
	errs := 0
	for {
		r, err := h.Do(t.Context(), "lost", authorise("lost"))
		if err == nil {
			if r.Status != pay.Approved || errs == 0 {
				t.Errorf("%+v after %d errors", r, errs)
			}
			break
		}
		errs++
	}
	if l := g.Ledger(); l.Lost != 3+2 || l.Failed != 2 || l.Twice != 4 || l.Slow != 4 || l.Unavailable < 12 {
		t.Errorf("%+v", l)
	}
	if got := booksOf(g)("lost"); got != (paymenttest.Books{Payments: 1, Authorised: 1530}) {
		t.Errorf("%+v", got)
	}

	for _, bad := range []string{``, `{"declines":1}`, `{"decline":2}`, `[]`, strings.Repeat(" ", 17<<10)} {
		set(bad, 400)
	}
	_, answer := call(t, http.MethodGet, s.URL+"/v1/faults", "", "")
	var f gateway.Faults
	if err := jsonx.Unmarshal([]byte(answer), &f); err != nil || f != g.Faults() || f != told[len(told)-1] || len(told) != n+1 {
		t.Errorf("%s %v, told %d times", answer, err, len(told))
	}
}

// TestAnsweredTwice: both answers are on the connection, and are the same.
func TestAnsweredTwice(t *testing.T) {
	g := newGateway(t, &gateway.Options{Faults: gateway.Faults{Twice: 1}})
	_, s := reach(t, g, nil)
	c := dialRaw(t, s.Listener.Addr().String())
	if _, err := fmt.Fprintf(c, "POST /v1/payments HTTP/1.1\r\nHost: x\r\nIdempotency-Key: a\r\nContent-Length: %d\r\n\r\n%s", len(body1001), body1001); err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	first, second := string(data[:len(data)/2]), string(data[len(data)/2:])
	if first != second || !strings.HasPrefix(first, "HTTP/1.1 201 Created\r\n") || !strings.Contains(first, `"status":"approved"`) {
		t.Errorf("%q", data)
	}
}

// FuzzServeHTTP: whatever is posted is answered, by a document, and what is done is what the answer says.
func FuzzServeHTTP(f *testing.F) {
	f.Add("", "a", []byte(body1001))
	f.Add("/p-1/capture", "b", []byte(body1001))
	f.Add("/p-1/void", "", []byte(`{"order_id":"1","amount":{"amount":"1","currency":"JPY"}}`))
	f.Add("/../capture", "c", []byte(`{"order_id":null}`))
	f.Fuzz(func(t *testing.T, path, key string, body []byte) {
		g := newGateway(t, nil)
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader(body))
		r.URL.Path, r.Header["Idempotency-Key"] = "/v1/payments"+path, []string{key}
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		l := g.Ledger()
		switch {
		case w.Code == http.StatusCreated:
			a, err := payment.ReadAnswer(w.Body.Bytes())
			if err != nil || a.Key != key || l.Payments != 1 {
				t.Errorf("%s %v, %d payments", w.Body, err, l.Payments)
			}
		case w.Code >= 300 && w.Code < 500:
			if l.Payments != 0 {
				t.Errorf("%d, and %d payments", w.Code, l.Payments)
			}
		default:
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

// TestEachKeyOnce: whatever the faults, and however often a client asks under a key, the books have each key's effect once, and
// every answer is the first.
func TestEachKeyOnce(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		seed := rapid.Uint64().Draw(r, "seed")
		g, err := gateway.New(&gateway.Options{Seed: seed, Faults: drawFaults(r)})
		if err != nil {
			r.Fatal(err)
		}
		var client pay.Gateway = g
		if rapid.IntRange(0, 9).Draw(r, "way") == 0 {
			h, s := reachIn(r, g)
			defer s.Close()
			defer h.Close()
			client = h
		}
		c := &shop{r: r, t: t, g: g, client: client, answers: map[string]pay.Result{}, requests: map[string]pay.Request{}}
		for n := range rapid.IntRange(1, 6).Draw(r, "orders") {
			c.live(fmt.Sprint("order-", n))
		}
		c.check()
	})
}

// TestEachKeyOnceControl: a client that takes a new key for every attempt takes the money of a lost answer twice.
func TestEachKeyOnceControl(t *testing.T) {
	g := newGateway(t, &gateway.Options{Faults: gateway.Faults{Lose: 1, LoseTimes: 1}})
	h, _ := reach(t, g, nil)
	for _, key := range []string{"first", "second"} {
		if r, err := h.Do(t.Context(), key, authorise("1")); err == nil {
			t.Errorf("%s: %+v", key, r)
		}
	}
	if got := booksOf(g)("1"); got != (paymenttest.Books{Payments: 2, Authorised: 2 * 1530}) {
		t.Errorf("%+v: the gateway does not do what the test is about", got)
	}
}

func drawFaults(r *rapid.T) gateway.Faults {
	rate := rapid.SampledFrom([]float64{0, 0.1, 0.5, 1})
	return gateway.Faults{
		Decline: rapid.SampledFrom([]float64{0, 0, 0.3, 1}).Draw(r, "decline"),
		Lose:    rate.Draw(r, "lose"), LoseTimes: rapid.IntRange(0, 3).Draw(r, "lose times"),
		Fail: rate.Draw(r, "fail"), FailTimes: rapid.IntRange(0, 3).Draw(r, "fail times"),
		Twice: rate.Draw(r, "twice"), Slow: rate.Draw(r, "slow"),
		Down: rapid.IntRange(0, 4).Draw(r, "down") == 0, Mute: rapid.Bool().Draw(r, "mute"),
	}
}
