package main

import (
	"context"
	"errors"
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
	status := func(generation, built uint64, state, fault string) httpapi.ProjectionStatus {
		r := &httpapi.RebuildStatus{Generation: built, Started: began, Error: fault, Ready: state == "ready"}
		if state == "live" {
			r.Finished = began.Add(time.Minute)
		}
		return httpapi.ProjectionStatus{Name: "orders", State: state, Generation: generation, Rebuild: r}
	}
	running := status(1, 2, "rebuilding", "")
	same, other, unknown, held := status(2, 2, "live", ""), status(2, 2, "live", ""), status(2, 2, "live", ""), status(1, 2, "ready", "")
	same.Identical, other.Identical, held.Identical = &yes, &no, &no
	other.Rebuild.Differences = &httpapi.Differences{Tables: []httpapi.TableDifferences{{Table: "days", Missing: 3, Extra: 1, Different: 2, Examples: []string{"a", "b"}}}}
	held.Rebuild.Differences = other.Rebuild.Differences
	unknown.Rebuild.Differences = &httpapi.Differences{Unsettled: 7, Uncompared: 2}
	lost := httpapi.ProjectionStatus{Name: "orders", State: "live", Generation: 1}
	failed := status(1, 2, "live", "the disk is full or nearly so")
	counts := "TABLE  MISSING  EXTRA  DIFFERENT  SUCH AS\ndays   3        1      2          a b\n"
	for name, c := range map[string]struct {
		begun  httpapi.ProjectionStatus
		then   []httpapi.ProjectionStatus
		code   int
		stdout string
		stderr string
	}{
		"identical":                   {running, []httpapi.ProjectionStatus{running, running, same}, 0, "orders rebuilt as generation 2: byte for byte as before\n", ""},
		"different":                   {running, []httpapi.ProjectionStatus{running, other}, client.ExitCheck, "orders rebuilt as generation 2: NOT as before\n" + counts, "differs"},
		"held":                        {running, []httpapi.ProjectionStatus{running, held}, client.ExitCheck, "orders is built as generation 2, and not switched to: NOT as before\n" + counts, "differs"},
		"not all could be compared":   {running, []httpapi.ProjectionStatus{unknown}, 0, "as before as far as could be seen\n7 documents changed too often to be compared\n2 partitions were not compared", ""},
		"failed":                      {running, []httpapi.ProjectionStatus{running, failed}, client.ExitFailed, "", "the rebuild of orders failed, and generation 1 stays live: the disk is full or nearly so"},
		"failed at once":              {failed, []httpapi.ProjectionStatus{failed}, client.ExitFailed, "", "generation 1 stays live"},
		"done at once":                {same, []httpapi.ProjectionStatus{same}, 0, "byte for byte", ""},
		"the store has lost it":       {running, []httpapi.ProjectionStatus{running, lost}, client.ExitFailed, "", "not there any more"},
		"replaced":                    {running, []httpapi.ProjectionStatus{running, status(1, 3, "rebuilding", "")}, client.ExitFailed, "", "another one has taken its place"},
		"a server that names nothing": {lost, []httpapi.ProjectionStatus{lost}, client.ExitFailed, "", "does not name a rebuild"},
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

// Switching waits for the switch, repairing for the repair.
func TestSwitchAndRepairCommands(t *testing.T) {
	live := func(generation uint64, state string) httpapi.ProjectionStatus {
		return httpapi.ProjectionStatus{Name: "stock", State: state, Generation: generation}
	}
	behind := live(2, "live")
	behind.LastError = &httpapi.ProjectionError{What: "switch", Error: "it did not come up to the live one"}
	repair := func(finished time.Time, fault string) httpapi.ProjectionStatus {
		s := live(1, "live")
		s.Repairs = []httpapi.RepairStatus{{Stream: "stock-B"}, {Stream: "stock-A", Finished: finished, Error: fault}}
		return s
	}
	at := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		args   []string
		then   []httpapi.ProjectionStatus
		code   int
		stdout string
		stderr string
	}{
		"switched":       {[]string{"switch", "stock", "--generation", "1"}, []httpapi.ProjectionStatus{live(2, "live"), live(2, "switching"), live(1, "live")}, 0, "generation 1 of stock is live\n", ""},
		"behind":         {[]string{"switch", "stock", "--generation", "1"}, []httpapi.ProjectionStatus{live(2, "live"), live(2, "switching"), behind}, 1, "", "generation 2 stays live: it did not come up"},
		"given up":       {[]string{"switch", "stock", "--generation", "1"}, []httpapi.ProjectionStatus{live(2, "live"), live(2, "live")}, 1, "", "the switch was given up"},
		"discarded":      {[]string{"discard", "stock"}, []httpapi.ProjectionStatus{live(2, "live")}, 0, "generation 2 of stock is live, and there is no other any more\n", ""},
		"repaired":       {[]string{"repair", "stock", "stock-A"}, []httpapi.ProjectionStatus{repair(time.Time{}, ""), repair(at, "")}, 0, "the documents of stock-A in stock are made again\n", ""},
		"not repaired":   {[]string{"repair", "stock", "stock-A"}, []httpapi.ProjectionStatus{repair(at, "it could not go on")}, 1, "", "stock-A stays as it was: it could not go on"},
		"repair is lost": {[]string{"repair", "stock", "stock-A"}, []httpapi.ProjectionStatus{live(1, "live")}, 1, "", "does not know of the repair"},
	} {
		t.Run(name, func(t *testing.T) {
			begun := live(2, "switching")
			if c.args[0] == "repair" {
				begun = repair(time.Time{}, "")
			}
			stdout, stderr, code := runs(t, append(append([]string{"projections"}, c.args...), "--server", rebuilds(t, begun, c.then...), "--retry-for", "0s")...)
			if code != c.code || stdout != c.stdout || !strings.Contains(stderr, c.stderr) {
				t.Errorf("exit code %d: %q %q", code, stdout, stderr)
			}
		})
	}
}

// What a client is told of something that failed says why, and nothing of what the cause holds.
func TestFailedRebuildInTheStatus(t *testing.T) {
	for want, reason := range map[string]string{
		"it could not go on":        projection.ReasonFailed,
		"the live documents follow": projection.ReasonIncomplete,
		"the disk is full":          projection.ReasonFull,
		"something that cannot be ": projection.ReasonCorrupt,
		"did not come up":           projection.ReasonBehind,
		"an event of the stream":    millrace.ReasonHandler,
		"discarded":                 projection.ReasonDiscarded,
		"another version":           projection.ReasonReplaced,
	} {
		const cause = "/data/c-17: broken"
		p := projectionStatus(&projection.Status{
			Name: "orders", Generation: 4, LastError: &projection.Fault{What: "rebuild", Reason: reason, Error: cause},
			Rebuild: &projection.Rebuild{Generation: 5, Done: true, Finished: time.Unix(9, 0), Error: cause, Reason: reason},
			Repairs: []projection.Repair{{Stream: "order-1", Reason: reason, Error: cause}},
		})
		for _, text := range []string{p.Rebuild.Error, p.Repairs[0].Error, p.LastError.Error} {
			if !strings.Contains(text, want) || strings.Contains(text, "c-17") {
				t.Errorf("%s: %s", reason, text)
			}
		}
		if p.State != "live" || p.Generation != 4 || p.Rebuild.Finished.IsZero() {
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
	for range 2 { // and another may be asked for, as another generation
		if err := p.Rebuild(t.Context(), "orders", false); err != nil {
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
		if st.State != "live" || st.Generation != 1 || st.Rebuild.Generation < 2 || st.Rebuild.Error == "" {
			t.Errorf("%+v %+v", st, st.Rebuild)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the service ended with %v", err)
	}
}
