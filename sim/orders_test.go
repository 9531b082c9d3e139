package sim

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/sim/standin"
)

func simulate(t *testing.T, h http.Handler, o Options) *Report {
	t.Helper()
	web := httptest.NewServer(h)
	defer web.Close()
	o.Servers = []string{web.URL}
	rep, err := Orders(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func failed(rep *Report) []string {
	var out []string
	for _, c := range rep.Checks {
		if !c.OK {
			out = append(out, c.Name)
		}
	}
	return out
}

func TestAGoodServerReconciles(t *testing.T) {
	s := standin.New()
	rep := simulate(t, s, Options{Rate: 1000, Duration: 500 * time.Millisecond, Seed: 1})
	if !rep.OK {
		t.Errorf("got %+v", rep)
	}
	if rep.Commands != len(s.Accepted()) || rep.Decided+rep.Refused+rep.Dead != rep.Commands {
		t.Errorf("%d commands on the server, by the report %d: %+v", len(s.Accepted()), rep.Commands, rep)
	}
	for name, n := range map[string]int{
		"refused": rep.Refused, "dead": rep.Dead, "malformed": rep.Malformed, "replayed": rep.Replayed, "orders": rep.Orders,
		"batches": int(rep.Latency["batch"].Count), "checks": len(rep.Checks) - 12,
	} {
		if n < 1 {
			t.Errorf("no %s", name)
		}
	}
	if rep.Totals["GBP"] == 0 || rep.Totals["EUR"] == 0 || rep.Latency["order"].P50 <= 0 {
		t.Errorf("got %+v", rep)
	}
}

func TestLostAnswersReconcile(t *testing.T) {
	s := standin.New()
	var n atomic.Int64
	s.Lose = func(r *http.Request) bool { return r.Method == http.MethodPost && n.Add(1)%7 == 0 }
	rep := simulate(t, s, Options{Rate: 400, Duration: 500 * time.Millisecond, Seed: 2})
	// A request whose first answer was lost is answered as a replay when it is sent again; that is no surprise.
	if !rep.OK || rep.Unavailable != 0 {
		t.Errorf("got %+v", rep)
	}
}

// bend changes what the stand-in answers to some requests.
func bend(s http.Handler, match func(*http.Request) bool, change func([]byte) []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !match(r) {
			s.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		s.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(change(rec.Body.Bytes()))
	})
}

// Each server that lies in one way is found out: these are the controls of the test above.
func TestLiesAreFoundOut(t *testing.T) {
	get := func(prefix string) func(*http.Request) bool {
		return func(r *http.Request) bool { return r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, prefix) }
	}
	replace := func(from, to string) func([]byte) []byte {
		return func(b []byte) []byte { return bytes.Replace(b, []byte(from), []byte(to), 1) }
	}
	var n atomic.Int64
	tests := []struct {
		name  string
		match func(*http.Request) bool
		do    func([]byte) []byte
		check string
	}{
		{"an outcome changes", get("/v1/commands/"), replace(`"status":"refused"`, `"status":"decided"`), "commands refused"},
		{"an order's status", get("/v1/orders/"), replace(`"status":"completed"`, `"status":"shipped"`), "orders in their status"},
		{"an order's total", get("/v1/orders/"), replace(`"total":{"amount":"1`, `"total":{"amount":"2`), "order totals read back"},
		{"oversold", get("/v1/stock/"), replace(`"reserved":`, `"reserved":9`), "stock oversold"},
		{"goods vanish", get("/v1/stock/"), replace(`"on_hand":`, `"on_hand":1`), "stock on hand"},
		{"totals", func(r *http.Request) bool { return r.URL.Path == "/v1/order-totals" && n.Add(1) > 1 }, replace(`"orders":`, `"orders":1`), "totals: orders"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			rep := simulate(t, bend(standin.New(), test.match, test.do), Options{Rate: 1000, Duration: 300 * time.Millisecond, Seed: 3})
			if rep.OK || !slices.Contains(failed(rep), test.check) {
				t.Errorf("not found out: %v %v", failed(rep), rep.Surprises)
			}
		})
	}
	t.Run("a repetition with other bytes", func(t *testing.T) {
		var calls atomic.Int64
		rep := simulate(t, bend(standin.New(),
			func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Path == "/v1/orders" },
			func(b []byte) []byte { return append(b, bytes.Repeat([]byte(" "), int(calls.Add(1)%5))...) }),
			Options{Rate: 1000, Duration: 200 * time.Millisecond})
		if rep.OK || rep.SurpriseCount == 0 {
			t.Errorf("not found out: %+v", rep)
		}
	})
}

func TestAServerThatForgetsIsFoundOut(t *testing.T) {
	s := standin.New()
	var n atomic.Int64
	rep := simulate(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/confirm") && n.Add(1) == 3 {
			// It says yes, and does not.
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"status":"confirmed"}`))
			return
		}
		s.ServeHTTP(w, r)
	}), Options{Rate: 1000, Duration: 300 * time.Millisecond, Seed: 5})
	if rep.OK || !slices.Contains(failed(rep), "commands decided") {
		t.Errorf("got %v", failed(rep))
	}
}

func TestThePlanDependsOnNothingButTheSeed(t *testing.T) {
	draw := func(seed uint64) []arrival {
		p := newPlan(seed, "run", "2001-02-03", 50)
		var out []arrival
		for range 500 {
			out = append(out, p.next())
		}
		return out
	}
	if !reflect.DeepEqual(draw(1), draw(1)) {
		t.Error("one seed makes two plans")
	}
	if reflect.DeepEqual(draw(1), draw(2)) {
		t.Error("two seeds make one plan")
	}
	if end := draw(1)[499].due.Seconds(); end < 8 || end > 12 {
		t.Errorf("500 arrivals at 50/s take %v s", end)
	}
}

func TestLatencyCountsFromWhenARequestWasDue(t *testing.T) {
	s := standin.New()
	gate := make(chan struct{})
	var once atomic.Bool
	time.AfterFunc(300*time.Millisecond, func() { close(gate) })
	s.Before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			once.Store(true)
			<-gate
		}
		return false
	}
	rep := simulate(t, s, Options{Rate: 200, Duration: 200 * time.Millisecond, Seed: 6})
	if l := rep.Latency["order"]; l.P50 < 100 || l.P50 > l.P99 || l.P99 > l.Max {
		t.Errorf("a stall of 300 ms shows as %+v", l)
	}
}

func TestUnavailableServer(t *testing.T) {
	web := httptest.NewServer(http.NotFoundHandler())
	url := web.URL
	web.Close()
	_, err := Orders(t.Context(), Options{Servers: []string{url}, Rate: 10, Duration: time.Second, RetryFor: 10 * time.Millisecond})
	if client.ExitCode(err) != 4 {
		t.Errorf("got %v", err)
	}
}

func TestEndlessRunEndsWithItsContext(t *testing.T) {
	web := httptest.NewServer(standin.New())
	defer web.Close()
	for _, keep := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		seen := 0
		rep, err := Orders(ctx, Options{Servers: []string{web.URL}, Rate: 2000, Now: true, NoReconcile: !keep, OnProgress: func(done, total int) {
			if seen = done; seen >= 200 {
				cancel()
			}
			if total != 0 {
				t.Errorf("an endless run has %d arrivals in all", total)
			}
		}})
		cancel()
		if err != nil || rep.Orders == 0 || !rep.OK || (len(rep.Checks) > 0) != keep {
			t.Errorf("%v: %+v", err, rep)
		}
	}
}

func TestInterruptedRun(t *testing.T) {
	web := httptest.NewServer(standin.New())
	defer web.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := Orders(ctx, Options{Servers: []string{web.URL}, Rate: 1000, Duration: time.Hour, OnProgress: func(int, int) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestUsage(t *testing.T) {
	for _, o := range []Options{{Rate: -1}, {Rate: 1e9}, {Rate: 10_000, Duration: time.Hour}, {Run: "A b"}, {Servers: []string{"nonsense"}}} {
		if _, err := Orders(t.Context(), o); client.ExitCode(err) != 2 {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // reproducible on purpose
	all := make([]float64, 10_000)
	for i := range all {
		d := time.Duration(r.ExpFloat64() * float64(20*time.Millisecond))
		h.add(d)
		all[i] = ms(d)
	}
	slices.Sort(all)
	got := h.percentiles()
	for q, p := range map[float64]float64{0.5: got.P50, 0.9: got.P90, 0.99: got.P99, 0.999: got.P999} {
		if want := all[int(q*float64(len(all)))]; p < want*0.99 || p > want*1.01 {
			t.Errorf("the %v quantile is %v, by sorting %v", q, p, want)
		}
	}
	if got.Max != all[len(all)-1] {
		t.Errorf("got %v", got.Max)
	}
	for b := range len(h.counts) - 2*precision {
		if bucketOf(upper(b)) != b || bucketOf(upper(b)+1) != b+1 {
			t.Fatalf("bucket %d does not end at %d", b, upper(b))
		}
	}
}
