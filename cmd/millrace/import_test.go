package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/retail/retailtest"
	"github.com/millrace-io/millrace/sim/standin"
)

// runImport runs the command as main would and gives what it printed and its exit code.
func runImport(ctx context.Context, stdin string, args ...string) (stdout, stderr string, code int) {
	cmd := newImportCommand()
	var out, errs bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	return out.String(), errs.String(), client.ExitCode(err)
}

func retailFile(t *testing.T, o retailtest.Options) (string, retailtest.Expected) {
	t.Helper()
	var text bytes.Buffer
	want, err := retailtest.Generate(&text, o)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "invoices.dat")
	if err := os.WriteFile(name, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return name, want
}

func TestImportOnlineRetail(t *testing.T) {
	name, want := retailFile(t, retailtest.Options{Seed: 11, Invoices: 300, Damage: true, Gzip: true})
	web := httptest.NewServer(standin.New())
	defer web.Close()
	refusals := filepath.Join(t.TempDir(), "refusals.ndjson")
	stdout, stderr, code := runImport(t.Context(), "", "online-retail", name, "--server", web.URL, "--output", "json", "--refusals", refusals)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var got map[string]float64
	trimmed := strings.Replace(stdout, `"currency":"GBP",`, "", 1)
	if err := json.Unmarshal([]byte(trimmed), &got); err != nil || strings.Count(stdout, "\n") != 1 {
		t.Fatalf("%v: %q", err, stdout)
	}
	if got["seconds"] <= 0 {
		t.Error("no seconds")
	}
	delete(got, "seconds")
	if diff := cmp.Diff(map[string]float64{
		"invoices": float64(want.Invoices), "orders": float64(want.Orders), "returns": float64(want.Returns), "refused": float64(want.Refused),
		"dead_letters": float64(want.DeadLetters), "replayed": 0, "lines": float64(want.Rows), "units": float64(want.Units),
		"returned_units": float64(want.ReturnedUnits), "total_minor": float64(want.Minor), "returned_minor": float64(want.ReturnedMinor),
		"stock_receipts": 0, "stock_replayed": 0, "stock_refused": 0,
	}, got); diff != "" {
		t.Error(diff)
	}
	for _, line := range []string{" 10 %  30 of 300 invoices\n", "100 %  300 of 300 invoices\n", "more; all are in " + refusals} {
		if !strings.Contains(stderr, line) {
			t.Errorf("%q is not in %q", line, stderr)
		}
	}
	written, err := os.ReadFile(refusals) //nolint:gosec // just made
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(written, []byte("\n")); n != want.Refused+want.DeadLetters {
		t.Errorf("%d refusals and dead letters are written", n)
	}
	if !bytes.Contains(written, []byte(`"code":"line_invalid"`)) || !bytes.Contains(written, []byte(`"errors":[{"pointer":"/lines/`)) {
		t.Error("a refusal does not name its line")
	}

	stdout, stderr, code = runImport(t.Context(), "", "online-retail", name, "--server", web.URL, "--quiet")
	words := strings.Join(strings.Fields(stdout), " ")
	if code != 0 || stderr != "" || !strings.HasPrefix(words, "invoices 300 orders 0 returns 0 refused 0 dead letters 0 replayed 300 lines ") {
		t.Errorf("the second run: %d %q %q", code, stdout, stderr)
	}
}

func TestImportFromStandardInput(t *testing.T) {
	web := httptest.NewServer(standin.New())
	defer web.Close()
	text := "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country\n1,A,a,1,2010-12-01 08:26:00,1,,UK\n"
	stdout, stderr, code := runImport(t.Context(), text, "online-retail", "-", "--server", web.URL, "--stock", "receive")
	if code != 0 || !strings.Contains(strings.Join(strings.Fields(stdout), " "), "ordered 1.00 GBP returned 0.00 GBP stock receipts 1 ") {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
}

func TestImportExitCodes(t *testing.T) {
	name, _ := retailFile(t, retailtest.Options{Invoices: 30})
	web := httptest.NewServer(standin.New())
	defer web.Close()
	nobody := httptest.NewServer(http.NotFoundHandler())
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	away := nobody.URL
	nobody.Close()
	cut := filepath.Join(t.TempDir(), "cut.gz")
	if err := os.WriteFile(cut, []byte("\x1f\x8b\x08\x00\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	paused := standin.New()
	paused.Pause()
	slow := httptest.NewServer(paused)
	defer slow.Close()
	for _, test := range []struct {
		name string
		code int
		args []string
	}{
		{"no such file", 2, []string{"nowhere.csv", "--server", web.URL}},
		{"another kind of file", 2, []string{"import_test.go", "--server", web.URL}},
		{"a damaged file", 1, []string{cut, "--server", web.URL}},
		{"no file", 2, nil},
		{"unknown flag", 2, []string{name, "--nonsense"}},
		{"stock", 2, []string{name, "--stock", "perhaps"}},
		{"output", 2, []string{name, "--output", "xml"}},
		{"concurrency", 2, []string{name, "--concurrency", "0"}},
		{"timezone", 2, []string{name, "--timezone", "Europe/Atlantis"}},
		{"server", 2, []string{name, "--server", "localhost"}},
		{"nobody there", 4, []string{name, "--server", away, "--retry-for", "50ms"}},
		{"not decided", 4, []string{name, "--server", slow.URL, "--decide-for", "50ms"}},
		{"another server", 1, []string{name, "--server", other.URL}},
		{"one of two servers", 0, []string{name, "--server", away, "--server", web.URL, "--timezone", "Europe/London"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if stdout, stderr, code := runImport(t.Context(), "", append([]string{"online-retail"}, test.args...)...); code != test.code {
				t.Errorf("exit code %d: %q %q", code, stdout, stderr)
			}
		})
	}
}

// failingServers are three servers over one store: one was never there, one is too busy at times at first, and one dies after some
// requests, of which it has accepted the last few without an answer.
func failingServers(t *testing.T) (s *standin.Server, urls []string) {
	t.Helper()
	s = standin.New()
	nobody := httptest.NewServer(http.NotFoundHandler())
	nobody.Close()
	var asked, served atomic.Int64
	busy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := asked.Add(1); n%4 == 0 && n <= 40 {
			w.Header().Set("Retry-After", "1")
			http.Error(w, `{"status":503,"code":"overloaded"}`, http.StatusServiceUnavailable)
			return
		}
		s.ServeHTTP(w, r)
	}))
	t.Cleanup(busy.Close)
	dying := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n := served.Add(1); {
		case n > 45:
			panic(http.ErrAbortHandler)
		case n > 40:
			s.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		s.ServeHTTP(w, r)
	}))
	dying.Config.ErrorLog = log.New(io.Discard, "", 0)
	dying.Start()
	t.Cleanup(dying.Close)
	return s, []string{nobody.URL, busy.URL, dying.URL}
}

func TestImportThroughSeveralServers(t *testing.T) {
	name, want := retailFile(t, retailtest.Options{Seed: 12, Invoices: 300, Damage: true})
	for form, give := range map[string]func(t *testing.T, urls []string) []string{
		"a flag for each": func(_ *testing.T, urls []string) []string {
			return []string{"--server", urls[0], "--server", urls[1], "--server", urls[2]}
		},
		"commas": func(_ *testing.T, urls []string) []string { return []string{"--server", strings.Join(urls, ",")} },
		"the environment": func(t *testing.T, urls []string) []string {
			t.Helper()
			t.Setenv("MILLRACE_SERVER", strings.Join(urls, ","))
			return nil
		},
		"the file": func(t *testing.T, urls []string) []string {
			t.Helper()
			return []string{"--config", write(t, "server:\n- "+strings.Join(urls, "\n- ")+"\n")}
		},
	} {
		t.Run(form, func(t *testing.T) {
			s, urls := failingServers(t)
			var out, errs bytes.Buffer
			root := newRoot()
			root.SetOut(&out)
			root.SetErr(&errs)
			root.SetArgs(append([]string{"import", "online-retail", name, "--output", "json", "--quiet"}, give(t, urls)...))
			if err := root.ExecuteContext(t.Context()); err != nil {
				t.Fatalf("%v: %s", err, errs.String())
			}
			var got imported
			if err := json.Unmarshal(out.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			got.Seconds = 0
			if diff := cmp.Diff(imported{
				Invoices: want.Invoices, Orders: want.Orders, Returns: want.Returns, Refused: want.Refused, DeadLetters: want.DeadLetters,
				Lines: want.Rows, Units: want.Units, ReturnedUnits: want.ReturnedUnits, Minor: want.Minor, ReturnedMinor: want.ReturnedMinor,
			}, got); diff != "" {
				t.Error(diff)
			}
			if n := len(s.Accepted()); n != want.Invoices {
				t.Errorf("%d commands for %d invoices", n, want.Invoices)
			}
		})
	}
	t.Run("control: the one that dies, alone", func(t *testing.T) {
		_, urls := failingServers(t)
		stdout, stderr, code := runImport(t.Context(), "", "online-retail", name, "--server", urls[2], "--retry-for", "100ms", "--quiet")
		if code != 4 || stdout != "" || !strings.Contains(stderr, "run it again to go on") {
			t.Errorf("%d %q %q", code, stdout, stderr)
		}
	})
}

func TestImportInterrupted(t *testing.T) {
	name, _ := retailFile(t, retailtest.Options{Invoices: 200})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := standin.New()
	web := httptest.NewServer(s)
	defer web.Close()
	s.Before = func(http.ResponseWriter, *http.Request) bool {
		if len(s.Accepted()) >= 50 { // several requests are on their way: none may see exactly 50
			cancel()
		}
		return false
	}
	stdout, stderr, code := runImport(ctx, "", "online-retail", name, "--server", web.URL, "--output", "json")
	if code != 130 || stdout != "" || !strings.Contains(stderr, "run it again to go on") {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
}
