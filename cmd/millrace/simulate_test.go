package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/sim"
	"github.com/millrace-io/millrace/sim/standin"
)

func runSimulate(ctx context.Context, args ...string) (stdout, stderr string, code int) {
	cmd := newSimulateCommand()
	var out, errs bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	return out.String(), errs.String(), client.ExitCode(err)
}

func TestSimulateOrders(t *testing.T) {
	web := httptest.NewServer(standin.New())
	defer web.Close()
	stdout, stderr, code := runSimulate(t.Context(), "orders", "--server", web.URL, "--rate", "1000", "--duration", "300ms", "--seed", "4", "--output", "json")
	var rep sim.Report
	if err := json.Unmarshal([]byte(stdout), &rep); err != nil || code != 0 || !rep.OK || rep.Seed != 4 || rep.Orders == 0 {
		t.Errorf("%d %v %s %s", code, err, stdout, stderr)
	}
	stdout, _, code = runSimulate(t.Context(), "orders", "--server", web.URL, "--rate", "1000", "--duration", "200ms", "--run", "named", "--quiet")
	if code != 0 || !strings.Contains(stdout, "run named, seed 0: ") || !strings.Contains(stdout, "ok        totals: GBP") || strings.Contains(stdout, "DIFF") {
		t.Errorf("%d %s", code, stdout)
	}
}

func TestSimulateOrdersExitCodes(t *testing.T) {
	s := standin.New()
	forgetful := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/v1/commands/") {
			http.Error(w, `{"code":"not_found"}`, http.StatusNotFound)
			return
		}
		s.ServeHTTP(w, r)
	}))
	defer forgetful.Close()
	stdout, _, code := runSimulate(t.Context(), "orders", "--server", forgetful.URL, "--rate", "1000", "--duration", "100ms", "--quiet")
	if code != 3 || !strings.Contains(stdout, "DIFF      commands decided") || !strings.Contains(stdout, "is not known") {
		t.Errorf("%d %s", code, stdout)
	}
	for _, args := range [][]string{{"--rate", "0"}, {"--rate", "fast"}, {"extra"}, {"--duration", "0s"}, {"--output", "xml"}, {"--run", "A B"}, {"--server", "x"}} {
		if _, _, code := runSimulate(t.Context(), append([]string{"orders"}, args...)...); code != 2 {
			t.Errorf("%v: exit code %d", args, code)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, code := runSimulate(ctx, "orders", "--server", forgetful.URL); code != 130 {
		t.Errorf("interrupted: exit code %d", code)
	}
}
