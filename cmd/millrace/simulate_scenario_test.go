package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/millrace-io/millrace/sim/gateway"
	"github.com/millrace-io/millrace/sim/scenario"
)

// Each scenario on a server and a gateway of its own comes out as told.
func TestSimulateScenarios(t *testing.T) {
	ends := map[string][]string{
		"happy": {"completed"}, "out-of-stock": {"cancelled: out_of_stock", "completed"}, "declines": {"cancelled: payment_declined", "completed"},
		"gateway-down": {"completed"}, "cancel-race": {"cancelled: changed_my_mind"}, "returns": {"partly_returned", "returned"},
	}
	all := scenario.All()
	if len(all) != len(ends) {
		t.Errorf("there are %d scenarios, and this test knows %d", len(all), len(ends))
	}
	for _, s := range all {
		t.Run(s.Name, func(t *testing.T) {
			stdout, stderr, code := runSimulate(t.Context(), s.Name, "--orders", "40", "--seed", "6", "--output", "json", "--quiet")
			var rep scenario.Report
			if err := json.Unmarshal([]byte(stdout), &rep); err != nil || code != 0 || !rep.OK || rep.Orders != 40 || rep.Seed != 6 {
				t.Fatalf("exit code %d, %v: %s %s", code, err, stdout, stderr)
			}
			n := 0
			for _, orders := range rep.Ends {
				n += orders
			}
			for _, end := range ends[s.Name] {
				if rep.Ends[end] == 0 {
					t.Errorf("none ended %s: %v", end, rep.Ends)
				}
			}
			checked := func(name string) bool {
				return slices.ContainsFunc(rep.Checks, func(c scenario.Check) bool { return c.Name == name && c.OK })
			}
			for _, name := range []string{"pieces on hand", "pieces reserved", "money taken, in minor units", "money left set aside", "orders that were charged twice"} {
				if !checked(name) {
					t.Errorf("%q is not compared", name)
				}
			}
			if n != rep.Orders {
				t.Errorf("%d orders in %v", n, rep.Ends)
			}
		})
	}
}

// What does not add up is named, and the exit code is 3: where another gateway takes the money, where orders do not come to their
// ends, and where goods are found that nobody knows of.
func TestSimulateScenarioThatFails(t *testing.T) {
	g, err := gateway.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	other := httptest.NewServer(g)
	t.Cleanup(other.Close)
	account, half := serving(t, t.TempDir()), serving(t, t.TempDir(), "--fulfil-until", "shipped")
	finder := httptest.NewServer(finding(t, account))
	t.Cleanup(finder.Close)
	for name, c := range map[string]struct{ args, want []string }{
		"another gateway": {[]string{"happy", "--server", account.url, "--gateway", other.URL, "--run", "a"}, []string{"money taken, in minor units", "DIFFERS: order a-0000"}},
		"no end":          {[]string{"happy", "--server", half.url, "--patience", "1s", "--run", "b"}, []string{"orders that have come to an end", "DIFFERS: order b-0000", "delivering"}},
		"a wrong level":   {[]string{"happy", "--server", finder.URL, "--run", "c"}, []string{"pieces on hand", "DIFFERS: c-sku-"}},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := runSimulate(t.Context(), append(c.args, "--orders", "8", "--quiet")...)
			if code != 3 {
				t.Errorf("exit code %d: %s %s", code, stdout, stderr)
			}
			for _, want := range c.want {
				if !strings.Contains(stdout, want) {
					t.Errorf("it does not say %q: %s", want, stdout)
				}
			}
		})
	}
	account.stop(t)
	half.stop(t)
}

// finding passes requests on to a server; before anybody reads a level, a piece more is found.
func finding(t *testing.T, s *server) http.Handler {
	to, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	pass := httputil.NewSingleHostReverseProxy(to)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/v1/stock/") {
			a, err := s.try(r.Context(), call{
				method: http.MethodPost, path: r.URL.Path + "/adjust", prefer: "wait=30", body: []byte(`{"delta":1,"reason":"found"}`),
			})
			if err != nil || a.status != http.StatusOK {
				t.Errorf("adjust: %v %s", err, a)
				return
			}
			r.URL.RawQuery = "min_cursor=" + a.header.Get("Millrace-Cursor")
			r.Header.Set("Prefer", "wait=30")
		}
		pass.ServeHTTP(w, r)
	})
}

func TestSimulateScenarioUsage(t *testing.T) {
	for _, args := range [][]string{
		{"happy", "--orders", "0"}, {"happy", "--orders", fmt.Sprint(scenario.MaxOrders + 1)}, {"happy", "--orders", "many"}, {"happy", "--patience", "0s"},
		{"happy", "extra"}, {"happy", "--output", "xml"}, {"happy", "--run", "A B"}, {"happy", "--gateway", "http://127.0.0.1:1"},
		{"declines", "--server", "http://127.0.0.1:1"}, {"gateway-down", "--server", "http://127.0.0.1:1", "--gateway", "nowhere"}, {"happy", "--server", "nowhere"},
	} {
		if stdout, _, code := runSimulate(t.Context(), append(args, "--quiet")...); code != 2 || stdout != "" {
			t.Errorf("%v: exit code %d: %s", args, code, stdout)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if stdout, _, code := runSimulate(ctx, "happy", "--quiet"); code != 130 || stdout != "" {
		t.Errorf("interrupted: exit code %d: %s", code, stdout)
	}
}
