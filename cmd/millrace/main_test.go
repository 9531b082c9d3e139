package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// These tests run the program that users run: they build it once, start it as a process of its own on free ports, and
// talk to it over HTTP. What ends it is a signal, as in life.

// patience bounds every wait of these tests. It is far above what anything takes, and only there to end a test that hangs.
const patience = 2 * time.Minute

// builds are the binaries of this run.
type builds struct {
	dir    string
	real   func() (string, error)
	mutant func() (string, error)
}

var binaries builds

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "millrace-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binaries = builds{
		dir:  dir,
		real: sync.OnceValues(func() (string, error) { return build(filepath.Join(dir, "millrace")) }),
		// The control of the kill loop: it acknowledges before it writes.
		mutant: sync.OnceValues(func() (string, error) {
			return build(filepath.Join(dir, "millrace-mutant"), "-tags", "millrace_mutant_ack_early")
		}),
	}
	if err := forgetSettings(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// forgetSettings makes the tests the same for everybody, whatever settings their machine has.
func forgetSettings() error {
	for _, name := range append(settingNames(), configFlag) {
		if err := os.Unsetenv(variable(name)); err != nil {
			return err
		}
	}
	return os.Setenv(variable(configFlag), os.DevNull)
}

func build(out string, flags ...string) (string, error) {
	cmd := exec.Command("go", append(append([]string{"build", "-o", out}, flags...), ".")...) //nolint:gosec // our own words
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, text)
	}
	return out, nil
}

// binary is the path of the binary.
func binary(t testing.TB) string {
	t.Helper()
	path, err := binaries.real()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// watched is the output of a process: tests read it, and wait for a line of it.
type watched struct {
	mu    sync.Mutex
	text  bytes.Buffer
	waits []waiting
	ended bool
}

type waiting struct {
	want *regexp.Regexp
	seen chan []string
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text.Write(p)
	w.look()
	return len(p), nil
}

func (w *watched) look() {
	w.waits = slices.DeleteFunc(w.waits, func(one waiting) bool {
		found := one.want.FindStringSubmatch(w.text.String())
		if found != nil || w.ended {
			one.seen <- found
		}
		return found != nil || w.ended
	})
}

// end gives up all waits: the process is gone.
func (w *watched) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.look()
}

// wait gives the groups of a pattern when the output has it, or nil when the process ended without it.
func (w *watched) wait(pattern string) <-chan []string {
	seen := make(chan []string, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waits = append(w.waits, waiting{regexp.MustCompile(pattern), seen})
	w.look()
	return seen
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// process is a running millrace.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr watched
	done           chan struct{} // closed when it has ended
}

func launch(t testing.TB, bin string, args ...string) (*process, error) {
	t.Helper()
	p := &process{cmd: exec.Command(bin, args...), done: make(chan struct{})} //nolint:gosec // our own binary
	return p, p.start(t)
}

// start starts it, and ends it with the test at the latest.
func (p *process) start(t testing.TB) error {
	t.Helper()
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go func() {
		_ = p.cmd.Wait() // ProcessState tells
		p.stdout.end()
		p.stderr.end()
		close(p.done)
	}()
	t.Cleanup(p.kill)
	return nil
}

// kill ends it as a loss of power would, as far as one process can lose it. It is no fault when it has ended already.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// exit waits for its end and gives the exit code.
func (p *process) exit(t testing.TB) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("it does not end: %s", p.stderr.String())
	}
	return p.cmd.ProcessState.ExitCode()
}

// runs runs a command to its end.
func runs(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	p, err := launch(t, binary(t), args...)
	if err != nil {
		t.Fatal(err)
	}
	code = p.exit(t)
	return p.stdout.String(), p.stderr.String(), code
}

// server is a running `millrace serve`.
type server struct {
	*process
	url, admin string
	http       *http.Client
}

var readyLine = `(?m)^millrace is ready: (http://\S+) admin (http://\S+) data .*$`

// serving starts a server and waits for its ready line.
func serving(t testing.TB, data string, flags ...string) *server {
	t.Helper()
	s, err := tryServing(t, binary(t), data, flags...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tryServing(t testing.TB, bin, data string, flags ...string) (*server, error) {
	t.Helper()
	args := []string{"serve", "--data", data, "--admin", "127.0.0.1:0", "--log-level", "warn"}
	if !slices.Contains(flags, "--http") {
		args = append(args, "--http", "127.0.0.1:0")
	}
	return launchServer(t, bin, readyLine, append(args, flags...)...)
}

// launchServer starts a server and waits for the line by which it says its addresses.
func launchServer(t testing.TB, bin, line string, args ...string) (*server, error) {
	t.Helper()
	p, err := launch(t, bin, args...)
	if err != nil {
		return nil, err
	}
	select {
	case found := <-p.stdout.wait(line):
		if found == nil {
			<-p.done
			return nil, fmt.Errorf("serve ended with %d: %s", p.cmd.ProcessState.ExitCode(), p.stderr.String())
		}
		transport := &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}
		t.Cleanup(transport.CloseIdleConnections)
		return &server{process: p, url: found[1], admin: found[2], http: &http.Client{Transport: transport, Timeout: patience}}, nil
	case <-time.After(patience):
		return nil, errors.New("serve does not become ready")
	}
}

// stop ends a server as an operator does, and wants it to end well.
func (s *server) stop(t testing.TB) {
	t.Helper()
	s.http.CloseIdleConnections()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := s.exit(t); code != 0 {
		t.Fatalf("SIGTERM ended the server with %d: %s", code, s.stderr.String())
	}
}

// call is one request.
type call struct {
	method, path      string
	key, prefer, kind string // Idempotency-Key, Prefer, Content-Type (JSON where there is a body)
	body              []byte
}

// answer is what came back, read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// same are the headers that an answer and its repetitions have in common.
var same = []string{"Content-Type", "Etag", "Location", "Millrace-Cursor", "Preference-Applied", "Retry-After", "Vary"}

// equal says whether two answers are the same to a client, byte for byte.
func (a *answer) equal(b *answer) bool {
	return a.status == b.status && bytes.Equal(a.body, b.body) && !slices.ContainsFunc(same, func(h string) bool {
		return a.header.Get(h) != b.header.Get(h)
	})
}

func (a *answer) String() string {
	var out strings.Builder
	fmt.Fprintf(&out, "%d", a.status)
	for _, h := range append(same, "Idempotency-Replayed") {
		if v := a.header.Get(h); v != "" {
			fmt.Fprintf(&out, " %s=%s", h, v)
		}
	}
	return out.String() + " " + string(a.body[:min(len(a.body), 600)])
}

func (a *answer) replayed() bool { return a.header.Get("Idempotency-Replayed") == "true" }

// into decodes the body.
func (a *answer) into(t testing.TB, v any) {
	t.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		t.Fatalf("%v: %s", err, a)
	}
}

func (s *server) try(ctx context.Context, c call) (*answer, error) {
	req, err := http.NewRequestWithContext(ctx, c.method, s.url+c.path, bytes.NewReader(c.body))
	if err != nil {
		return nil, err
	}
	if c.kind == "" && len(c.body) > 0 {
		c.kind = "application/json"
	}
	for name, value := range map[string]string{"Content-Type": c.kind, "Idempotency-Key": c.key, "Prefer": c.prefer} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	res, err := s.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close() //nolint:errcheck // it was read
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	return &answer{status: res.StatusCode, header: res.Header, body: body}, nil
}

// do sends a request and wants one of some statuses.
func (s *server) do(t testing.TB, c call, want ...int) *answer {
	t.Helper()
	a, err := s.try(t.Context(), c)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", c.method, c.path, err, s.stderr.String())
	}
	if !slices.Contains(want, a.status) {
		t.Fatalf("%s %s: %s", c.method, c.path, a)
	}
	return a
}

// get reads a path of the API with a 200.
func (s *server) get(t testing.TB, path string) *answer {
	t.Helper()
	return s.do(t, call{method: http.MethodGet, path: path}, http.StatusOK)
}

// ops reads a path of the admin listener.
func (s *server) ops(t testing.TB, path string) *answer {
	t.Helper()
	admin := &server{process: s.process, url: s.admin, http: s.http}
	return admin.do(t, call{method: http.MethodGet, path: path}, http.StatusOK, http.StatusServiceUnavailable)
}

// pages reads all pages of a list and hands on its items.
func pages[T any](t testing.TB, s *server, path string, each func(T)) {
	t.Helper()
	for cursor := ""; ; {
		var page struct {
			Items []T    `json:"items"`
			Next  string `json:"next_cursor"`
		}
		p := path
		if cursor != "" {
			p += "&cursor=" + cursor
		}
		s.get(t, p).into(t, &page)
		for _, item := range page.Items {
			each(item)
		}
		if cursor = page.Next; cursor == "" {
			return
		}
	}
}

// status is what GET /v1/commands/{id} says.
type status struct {
	ID      string `json:"command_id"`
	State   string `json:"status"`
	Stream  string `json:"stream"`
	Version uint64 `json:"version"`
	Events  int    `json:"events"`
	Cursor  string `json:"cursor"`
	Type    string `json:"type"`
	Refusal *struct {
		Code   string `json:"code"`
		Detail string `json:"detail"`
	} `json:"refusal"`
}

func (s *server) command(t testing.TB, id string) (out status) {
	t.Helper()
	s.get(t, "/v1/commands/"+id).into(t, &out)
	return out
}

// head is the cursor of the whole log.
func (s *server) head(t testing.TB, stream string) string {
	t.Helper()
	return s.get(t, "/v1/"+stream+"/events?limit=1").header.Get("Millrace-Cursor")
}

// caughtUp waits until all read models have seen what a cursor names.
func (s *server) caughtUp(t testing.TB, cursor string) {
	t.Helper()
	for _, path := range []string{"/v1/orders?limit=1", "/v1/order-totals?from=1990-01-01&to=1990-01-01", "/v1/stock?limit=1", "/v1/returns?limit=1"} {
		s.do(t, call{method: http.MethodGet, path: path + "&min_cursor=" + cursor, prefer: "wait=60"}, http.StatusOK)
	}
}

// rebuiltAlike rebuilds every read model, by the command for it, and wants the same documents byte for byte. Nothing may
// be written meanwhile.
func (s *server) rebuiltAlike(t testing.TB, cursor string) {
	t.Helper()
	s.caughtUp(t, cursor)
	for _, name := range []string{"orders", "stock", "returns"} {
		stdout, stderr, code := runs(t, "projections", "rebuild", name, "--server", s.url, "--output", "json")
		var p struct {
			Identical *bool `json:"identical"`
		}
		if err := json.Unmarshal([]byte(stdout), &p); err != nil || code != 0 || p.Identical == nil || !*p.Identical {
			t.Errorf("rebuild of %s: exit code %d %v %s %s", name, code, err, stdout, stderr)
		}
	}
}

// isClean wants `millrace verify` to find nothing wrong.
func isClean(t testing.TB, data string) {
	t.Helper()
	if stdout, stderr, code := runs(t, "verify", "--data", data); code != 0 {
		t.Errorf("verify: exit code %d: %s %s", code, stdout, stderr)
	}
}

func aLine(sku string, quantity int, price string) string {
	return fmt.Sprintf(`{"sku":%q,"quantity":%d,"unit_price":%q}`, sku, quantity, price)
}

// anOrder is the body of an order of one line.
func anOrder(id string) []byte { return anOrderOf("c-17", id) }

func anOrderOf(customer, id string) []byte {
	return []byte(`{"id":"` + id + `","customer_id":"` + customer + `","channel":"web","currency":"GBP","fulfilment":"manual","lines":[` + aLine("85123A", 6, "2.55") + `]}`)
}

func seeded(seed, stream uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, stream)) //nolint:gosec // reproducible on purpose
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
