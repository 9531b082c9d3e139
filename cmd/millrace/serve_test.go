package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-io/millrace/sim"
)

func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// TestDemo: the first command of the README shows something, and ends well.
func TestDemo(t *testing.T) {
	data := filepath.Join(t.TempDir(), "store")
	s := serving(t, data, "--demo")

	// The demo's own load arrives: soon there is more in the log than what we put there.
	theirs, deadline := 0, time.Now().Add(patience)
	for ours := 1; theirs <= 0 && time.Now().Before(deadline); ours++ {
		s.do(t, call{method: http.MethodPost, path: "/v1/orders", body: []byte(`{"currency":"GBP","lines":[` + aLine("A", 1, "1.00") + `]}`), prefer: "wait=30"}, http.StatusCreated)
		theirs = int(scrape(t, s)["millrace_log_events"].value) - ours
	}
	if theirs <= 0 {
		t.Error("the demo does nothing")
	}

	if a := s.get(t, "/docs"); !strings.HasPrefix(a.header.Get("Content-Type"), "text/html") || !bytes.Contains(a.body, []byte("/v1/orders")) {
		t.Errorf("got %s", a)
	}
	if a := s.get(t, "/openapi.yaml"); !bytes.HasPrefix(a.body, []byte("openapi: 3.1")) {
		t.Errorf("got %s", a)
	}
	var document map[string]any
	s.get(t, "/openapi.json").into(t, &document)
	// What is for operators is not for clients.
	for _, path := range []string{"/metrics", "/livez", "/readyz", "/version", "/debug/pprof/"} {
		s.do(t, call{method: http.MethodGet, path: path}, http.StatusNotFound)
	}
	for path, want := range map[string]string{"/livez": "ok\n", "/readyz": "ok\n", "/healthz": "ok\n", "/readyz?verbose": "store: ok\nok\n", "/version": `{"version":`} {
		if a := s.ops(t, path); a.status != http.StatusOK || !strings.HasPrefix(string(a.body), want) {
			t.Errorf("%s: %s", path, a)
		}
	}
	hasFamilies(t, s)
	s.stop(t)
	isClean(t, data)
}

// metric is one family of /metrics.
type metric struct {
	kind, help string
	series     int
	value      float64 // of the last series
}

// scrape reads /metrics in the text form of Prometheus.
func scrape(t *testing.T, s *server) map[string]*metric {
	t.Helper()
	all, name := map[string]*metric{}, ""
	for line := range strings.Lines(string(s.ops(t, "/metrics").body)) {
		word := strings.Fields(line)
		switch {
		case len(word) > 3 && word[0] == "#" && word[1] == "HELP":
			name = word[2]
			all[name] = &metric{help: strings.Join(word[3:], " ")}
		case len(word) == 4 && word[0] == "#" && word[1] == "TYPE" && word[2] == name:
			all[name].kind = word[3]
		case strings.HasPrefix(line, name):
			v, err := strconv.ParseFloat(word[len(word)-1], 64)
			if err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			all[name].value, all[name].series = v, all[name].series+1
		default:
			t.Fatalf("%q is no line of a family", line)
		}
	}
	return all
}

// hasFamilies wants what dashboards and alerts are built on.
func hasFamilies(t *testing.T, s *server) {
	t.Helper()
	all := scrape(t, s)
	for name, kind := range map[string]string{
		"millrace_commands_accepted_total": "counter", "millrace_commands_total": "counter",
		"millrace_accept_durable_seconds": "histogram", "millrace_accept_decided_seconds": "histogram", "millrace_accept_visible_seconds": "histogram",
		"millrace_commit_decisions": "histogram", "millrace_http_request_duration_seconds": "histogram",
		"millrace_consumer_events_total": "counter", "millrace_consumer_gap_events": "gauge", "millrace_consumer_lag_seconds": "gauge",
		"millrace_commands_queued": "gauge", "millrace_commands_backlog": "gauge", "millrace_log_events": "gauge",
		"millrace_store_writable": "gauge", "millrace_build_info": "gauge",
		"go_goroutines": "gauge", "process_resident_memory_bytes": "gauge",
	} {
		if f := all[name]; f == nil || f.kind != kind || f.help == "" || f.series == 0 {
			t.Errorf("%s: %+v", name, f)
		}
	}
	// No id is a label: there would be a series for each order.
	for name, f := range all {
		if strings.HasPrefix(name, "millrace_") && f.series > 1000 {
			t.Errorf("%s has %d series", name, f.series)
		}
	}
}

// TestDemoLeavesNothing: without a folder of its own it takes a temporary one, and cleans up.
func TestDemoLeavesNothing(t *testing.T) {
	tmp := t.TempDir()
	p := &process{cmd: exec.Command(binary(t), "serve", "--demo", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"), done: make(chan struct{})} //nolint:gosec // our own binary
	p.cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	if err := p.start(t); err != nil {
		t.Fatal(err)
	}
	if found := <-p.stdout.wait(readyLine); found == nil {
		t.Fatal(p.stderr.String())
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) != 1 {
		t.Errorf("in the temporary folder are %v, %v", left, err)
	}
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := p.exit(t); code != 0 {
		t.Errorf("Ctrl-C ended the server with %d: %s", code, p.stderr.String())
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
		t.Errorf("left behind are %v, %v", left, err)
	}
}

// TestStopUnderLoad: SIGTERM in the middle of work lets everybody have an answer, and loses nothing.
func TestStopUnderLoad(t *testing.T) {
	data := t.TempDir()
	s := serving(t, data)
	acked := make(chan string, 100_000)
	ended := make(chan struct{}, 8)
	for k := range 8 {
		go func() {
			defer func() { ended <- struct{}{} }()
			for n := 0; ; n++ {
				id := fmt.Sprintf("s%d-%d", k, n)
				a, err := s.try(t.Context(), call{method: http.MethodPost, path: "/v1/orders", key: id, body: anOrder(id), prefer: "wait=30"})
				if err != nil {
					return // nobody listens any more
				}
				if slices.Contains([]int{http.StatusCreated, http.StatusAccepted}, a.status) {
					acked <- id
				}
			}
		}()
	}
	var ids []string
	for len(ids) < 200 {
		ids = append(ids, <-acked)
	}
	began := time.Now()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := s.exit(t); code != 0 {
		t.Fatalf("exit code %d: %s", code, s.stderr.String())
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("it took %s to stop", took)
	}
	for range 8 {
		<-ended
	}
	for len(acked) > 0 {
		ids = append(ids, <-acked)
	}
	isClean(t, data)
	s = serving(t, data)
	for _, id := range ids {
		s.command(t, id)
	}
	s.stop(t)
}

// TestSimulateAgainstTheBinary: the simulator's accounts and the server's are the same.
func TestSimulateAgainstTheBinary(t *testing.T) {
	data := t.TempDir()
	s := serving(t, data)
	stdout, stderr, code := runs(t, "simulate", "orders", "--server", s.url, "--rate", "200", "--duration", "3s", "--seed", "7", "--output", "json")
	reconciles(t, stdout, stderr, code)
	if !strings.Contains(stderr, "% ") {
		t.Errorf("no progress is shown: %q", stderr)
	}
	s.stop(t)
	isClean(t, data)
}

// TestSimulateOverARestart: the server is killed in the middle and comes back at its address; the accounts still agree.
func TestSimulateOverARestart(t *testing.T) {
	data := t.TempDir()
	s := serving(t, data)
	p, err := launch(t, binary(t), "simulate", "orders", "--server", s.url, "--rate", "200", "--duration", "3s", "--seed", "8", "--output", "json")
	if err != nil {
		t.Fatal(err)
	}
	if found := <-p.stderr.wait(` 30 %  `); found == nil {
		t.Fatal(p.stderr.String())
	}
	s.kill()
	s = serving(t, data, "--http", strings.TrimPrefix(s.url, "http://"))
	code := p.exit(t)
	reconciles(t, p.stdout.String(), p.stderr.String(), code)
	s.stop(t)
	isClean(t, data)
}

func reconciles(t *testing.T, stdout, stderr string, code int) {
	t.Helper()
	var rep sim.Report
	if err := json.Unmarshal([]byte(stdout), &rep); err != nil || code != 0 || !rep.OK {
		t.Fatalf("exit code %d, %v: %s %s", code, err, stdout, stderr)
	}
	if rep.Arrivals < 450 || rep.Orders == 0 || rep.Refused == 0 || rep.Dead == 0 || rep.Malformed == 0 || rep.Replayed == 0 || len(rep.Checks) < 12 {
		t.Errorf("there was little to reconcile: %s", stdout)
	}
}

// TestBenches: each prints the members that its readers look for. The figures of so few items mean nothing.
func TestBenches(t *testing.T) {
	for name, args := range map[string][]string{
		"intake": {"--items", "200"}, "decide": {"--items", "2000"}, "feed": {"--rate", "200", "--duration", "500ms"},
		"rebuild": {"--items", "100"}, "flash-sale": {"--items", "200"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			stdout, stderr, code := runs(t, append([]string{"bench", name, "--clients", "8", "--dir", dir, "--output", "json"}, args...)...)
			if code != 0 {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			var all []map[string]any
			if err := json.Unmarshal([]byte(stdout), &all); err != nil {
				all = make([]map[string]any, 1)
				if err := json.Unmarshal([]byte(stdout), &all[0]); err != nil {
					t.Fatalf("%v: %s", err, stdout)
				}
			}
			if all[0]["name"] != name {
				t.Errorf("the first is %v", all[0]["name"])
			}
			for _, r := range all {
				hasFigures(t, r)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("left behind are %v, %v", left, err)
			}
		})
	}
}

func hasFigures(t *testing.T, r map[string]any) {
	t.Helper()
	for _, member := range []string{"rate", "p50_ms", "p99_ms", "p999_ms", "seconds", "cpu_seconds", "bytes_per_item", "ratio"} {
		if n, ok := r[member].(float64); !ok || n < 0 {
			t.Errorf("%v: %s is %v", r["name"], member, r[member])
		}
	}
	if unit, ok := r["unit"].(string); !ok || !strings.HasSuffix(unit, "/s") {
		t.Errorf("%v: unit is %v", r["name"], r["unit"])
	}
	control, ok := r["control"].(map[string]any)
	if rate, isRate := control["rate"].(float64); !ok || !isRate || rate <= 0 || control["name"] == "" || r["rate"] == 0.0 || r["ratio"] == 0.0 {
		t.Errorf("%v: rate %v, ratio %v, control %v", r["name"], r["rate"], r["ratio"], r["control"])
	}
}
