package main

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// die sends a command of a type that nobody knows.
func (s *server) die(t testing.TB, id, stream string) {
	t.Helper()
	s.do(t, call{
		method: http.MethodPost, path: "/v1/commands", prefer: "wait=30",
		body: []byte(`{"id":"` + id + `","type":"Teleport","stream":"` + stream + `","data":{"to":"moon"}}`),
	}, http.StatusUnprocessableEntity)
}

// says runs a subcommand and wants its output to have some texts in it.
func (s *server) says(t testing.TB, want []string, args ...string) string {
	t.Helper()
	stdout, stderr, code := runs(t, append(args, "--server", s.url)...)
	if code != 0 {
		t.Fatalf("%v: exit code %d: %s %s", args, code, stdout, stderr)
	}
	for _, w := range want {
		if !strings.Contains(stdout, w) {
			t.Errorf("%v lacks %q:\n%s", args, w, stdout)
		}
	}
	return stdout
}

// until runs a subcommand until its output has a text in it.
func (s *server) until(t testing.TB, want string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		stdout, _, _ := runs(t, append(args, "--server", s.url)...)
		if strings.Contains(stdout, want) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%v: in vain for %q: %s", args, want, stdout)
		}
	}
}

// Dead letters are seen, tried, edited, redriven and discarded by the command line, one by one and by a job, over a kill of the
// server; an alarm counts them.
func TestDeadLettersByTheCommandLine(t *testing.T) {
	data := t.TempDir()
	s := serving(t, data)
	s.die(t, "d1", "order-42")
	s.die(t, "d2", "order-43")
	s.die(t, "d3", "order-44")
	s.until(t, "d3", "dead-letters", "list")
	s.says(t, []string{"d1", "open", "unknown_type", "Teleport", "order-43"}, "dead-letters", "list", "--since", "1h", "--type", "Teleport")
	if out := s.says(t, nil, "dead-letters", "list", "--until", "2001-01-01"); strings.Contains(out, "d1") {
		t.Error(out)
	}
	s.says(t, []string{"3  ", "unknown command type"}, "dead-letters", "causes")
	s.says(t, []string{"would die again: unknown_type", "tried"}, "dead-letters", "redrive", "--all", "--dry-run")
	if !strings.Contains(string(s.ops(t, "/metrics").body), `millrace_dead_letters{reason="unknown_type"} 3`) {
		t.Error("the alarm does not count them")
	}

	file := filepath.Join(t.TempDir(), "order.json")
	if err := os.WriteFile(file, []byte(`{"id":"42","currency":"GBP","lines":[{"sku":"85123A","quantity":6,"unit_price":"2.55"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := runs(t, "dead-letters", "edit", "d1", "--type", "CancelOrder", "--data", file, "--why", "no", "--server", s.url); code == 0 || !strings.Contains(stderr, "invalid_edit") {
		t.Errorf("%d %s", code, stderr)
	}
	s.says(t, []string{"d1 is edited"}, "dead-letters", "edit", "d1", "--type", "PlaceOrder", "--data", file, "--why", "renamed", "--by", "ann")
	s.says(t, []string{"d1 is sent again"}, "dead-letters", "redrive", "d1", "--by", "ann")
	s.until(t, "redriven", "dead-letters", "show", "d1")
	s.says(t, []string{`DeadLetterEdited by="ann" why="renamed"`, `DeadLetterAnswered status="decided"`, `{"to":"moon"}`}, "dead-letters", "show", "d1")
	s.get(t, "/v1/orders/42?min_cursor="+s.head(t, "orders/42"))
	s.says(t, []string{"d2 is discarded"}, "dead-letters", "discard", "d2", "--why", "a test")
	if _, stderr, code := runs(t, "dead-letters", "discard", "d3", "--server", s.url); code == 0 || !strings.Contains(stderr, "/why") {
		t.Errorf("%d %s", code, stderr)
	}

	out := s.says(t, []string{"has begun"}, "dead-letters", "redrive", "--all", "--why", "again", "--by", "bob")
	job := strings.Fields(out)[1]
	s.kill()
	s = serving(t, data)
	s.until(t, "is done", "dead-letters", "jobs", "show", job)
	s.says(t, []string{"1 died again"}, "dead-letters", "jobs", "show", job)
	s.says(t, []string{job, "done", "bob"}, "dead-letters", "jobs", "list")
	s.until(t, "d3", "dead-letters", "list")
	if out := s.says(t, nil, "dead-letters", "list"); strings.Contains(out, "d1") || strings.Contains(out, "d2") || strings.Contains(out, "process/") {
		t.Error(out)
	}
	if stdout, stderr, code := runs(t, "dead-letters", "jobs", "resume", job, "--server", s.url); code == 0 || !strings.Contains(stderr, "redrive_job_over") {
		t.Errorf("%d %s %s", code, stdout, stderr)
	}
	s.stop(t)
}
