package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/projection"
)

// rebuilds answers as a server does: 202, then one status after the other, the last one for ever.
func rebuilds(t *testing.T, begun httpapi.ProjectionStatus, then ...httpapi.ProjectionStatus) string {
	t.Helper()
	var mu sync.Mutex
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		status, p := http.StatusOK, then[0]
		if r.Method == http.MethodPost {
			status, p = http.StatusAccepted, begun
		} else if len(then) > 1 {
			then = then[1:]
		}
		data, err := jsonx.Marshal(p)
		if err != nil {
			t.Error(err)
		}
		w.WriteHeader(status)
		_, _ = w.Write(data)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// The command ends when its rebuild has ended, however that was, and says how.
func TestRebuildCommand(t *testing.T) {
	began := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	yes, no := true, false
	status := func(generation uint64, state, fault string, started time.Time) httpapi.ProjectionStatus {
		r := &httpapi.RebuildStatus{Generation: 2, Started: started, Error: fault}
		if state == "live" {
			r.Finished = started.Add(time.Minute)
		}
		return httpapi.ProjectionStatus{Name: "orders", State: state, Generation: generation, Rebuild: r}
	}
	running := status(1, "rebuilding", "", began)
	same, other := status(2, "live", "", began), status(2, "live", "", began)
	same.Identical, other.Identical = &yes, &no
	restarted := httpapi.ProjectionStatus{Name: "orders", State: "live", Generation: 1}
	after := httpapi.ProjectionStatus{Name: "orders", State: "live", Generation: 2}
	failed := status(1, "live", "the disk is full or nearly so", began)
	for name, c := range map[string]struct {
		begun  httpapi.ProjectionStatus
		then   []httpapi.ProjectionStatus
		code   int
		stdout string
		stderr string
	}{
		"identical":                   {running, []httpapi.ProjectionStatus{running, running, same}, 0, "orders rebuilt as generation 2: byte for byte as before\n", ""},
		"different":                   {running, []httpapi.ProjectionStatus{running, other}, client.ExitCheck, "orders rebuilt as generation 2: NOT as before\n", "differs"},
		"failed":                      {running, []httpapi.ProjectionStatus{running, failed}, client.ExitFailed, "", "the rebuild of orders failed, and generation 1 stays live: the disk is full or nearly so"},
		"failed at once":              {failed, []httpapi.ProjectionStatus{failed}, client.ExitFailed, "", "generation 1 stays live"},
		"done at once":                {same, []httpapi.ProjectionStatus{same}, 0, "byte for byte", ""},
		"not the one that failed":     {running, []httpapi.ProjectionStatus{status(1, "live", "earlier", began.Add(-time.Hour)), same}, 0, "byte for byte", ""},
		"the server came back":        {running, []httpapi.ProjectionStatus{running, restarted}, client.ExitFailed, "", "the server was started anew"},
		"came back after the switch":  {running, []httpapi.ProjectionStatus{running, after}, 0, "orders rebuilt as generation 2: not compared", ""},
		"a server that names nothing": {restarted, []httpapi.ProjectionStatus{restarted}, client.ExitFailed, "", "does not name a rebuild"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := runs(t, "projections", "rebuild", "orders", "--server", rebuilds(t, c.begun, c.then...), "--retry-for", "0s")
			if code != c.code || !strings.Contains(stdout, c.stdout) || (c.stdout == "") != (stdout == "") || !strings.Contains(stderr, c.stderr) {
				t.Errorf("exit code %d: %q %q", code, stdout, stderr)
			}
		})
	}
	stdout, _, code := runs(t, "projections", "rebuild", "orders", "--server", rebuilds(t, running, failed), "--output", "json")
	if code != client.ExitFailed || !strings.Contains(stdout, `"error":"the disk is full or nearly so"`) {
		t.Errorf("exit code %d: %s", code, stdout)
	}
	stdout, stderr, code := runs(t, "projections", "rebuild", "orders", "--server", away(t)+","+rebuilds(t, running, running, same), "--retry-for", "0s")
	if code != 0 || !strings.Contains(stdout, "byte for byte") {
		t.Errorf("the first of two servers is away: exit code %d: %q %q", code, stdout, stderr)
	}
}

// Any of the servers that share a store lists its read models; a list in the environment counts as one on the command line.
func TestProjectionsOfSeveralServers(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"items":[{"name":"orders","version":1,"generation":1,"state":"live"}]}`))
	}))
	t.Cleanup(s.Close)
	gone := away(t)
	check := func(how string, args ...string) {
		stdout, stderr, code := runs(t, append([]string{"projections", "list", "--retry-for", "0s"}, args...)...)
		if code != 0 || !strings.Contains(stdout, "orders") {
			t.Errorf("%s: exit code %d: %q %q", how, code, stdout, stderr)
		}
	}
	check("flags", "--server", gone, "--server", s.URL)
	t.Setenv("MILLRACE_SERVER", gone+","+s.URL)
	check("the environment")
	t.Setenv("MILLRACE_SERVER", gone)
	if stdout, _, code := runs(t, "projections", "list", "--retry-for", "0s"); stdout != "" || code != client.ExitUnavailable {
		t.Errorf("one server that is away: exit code %d: %q", code, stdout)
	}
}

// What a client is told of a rebuild that failed says why, and nothing of what the cause holds.
func TestFailedRebuildInTheStatus(t *testing.T) {
	for want, cause := range map[string]error{
		"the log has the cause":     errors.New("order of c-17: broken"),
		"3 streams":                 fmt.Errorf("c-17: %w", &projection.IncompleteError{Streams: 3, First: "order-c-17"}),
		"the disk is full":          fmt.Errorf("/data/c-17: %w", millrace.ErrFull),
		"something that cannot be ": fmt.Errorf("/data/c-17: %w", millrace.ErrCorrupt),
	} {
		p := projectionStatus(&projection.Status{Name: "orders", Generation: 4, Rebuild: &projection.Rebuild{
			Generation: 5, Done: true, Finished: time.Unix(9, 0), Error: cause.Error(), Cause: cause,
		}})
		if p.State != "live" || p.Generation != 4 || p.Rebuild == nil || p.Rebuild.Finished.IsZero() || !strings.Contains(p.Rebuild.Error, want) || strings.Contains(p.Rebuild.Error, "c-17") {
			t.Errorf("%+v %+v", p, p.Rebuild)
		}
	}
}

// A failed rebuild is seen by operators as it happened, over a service that goes on.
func TestFailedRebuildOfTheService(t *testing.T) {
	store, err := localstore.Open("data", &localstore.Options{FS: vfs.NewMem(), Partitions: 2, SegmentSize: 1 << 20, CacheSize: 8 << 20, MemTableSize: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	failed := make(chan struct{}, 1)
	svc, err := projection.New(t.Context(), store, order.Projections(), projection.Options{Run: func(ctx context.Context, c millrace.Consumer) error {
		if c.Rebuilding {
			defer func() { failed <- struct{}{} }()
			return errors.New("broken on purpose")
		}
		<-ctx.Done()
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- svc.Run(ctx) }()
	p := projections{svc}
	for range 2 { // and another may be asked for
		if err := p.Rebuild(t.Context(), "orders"); err != nil {
			t.Fatal(err)
		}
		<-failed
		var st httpapi.ProjectionStatus
		for st.Rebuild == nil || st.Rebuild.Finished.IsZero() {
			if err := client.Pause(t.Context(), time.Millisecond); err != nil {
				t.Fatal(err)
			}
			if st, err = p.Status(t.Context(), "orders"); err != nil {
				t.Fatal(err)
			}
		}
		if st.State != "live" || st.Generation != 1 || st.Rebuild.Generation != 2 || st.Rebuild.Error == "" {
			t.Errorf("%+v %+v", st, st.Rebuild)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the service ended with %v", err)
	}
}
