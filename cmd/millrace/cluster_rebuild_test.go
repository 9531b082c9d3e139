//go:build linux

package main

import (
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/pgtest"
)

// TestClusterRebuild rebuilds read models of three processes under load, switches them back, and kills the coordinator and
// restarts the database while they are being rebuilt.
func TestClusterRebuild(t *testing.T) {
	if os.Getenv("MILLRACE_CLUSTER") == "" {
		t.Skip("three processes whose read models are rebuilt, for a minute: make cluster")
	}
	t.Parallel() // most of it is waiting for leases to end
	db := pgtest.Start(t, pgtest.Options{})
	w := newClusterWorld(t, db.DSN("postgres"), 3)
	w.load(t)
	w.phase(t, "read models are rebuilt by any node", w.rebuildEverywhere)
	w.phase(t, "the coordinator is killed in a rebuild", func(t *testing.T) {
		w.rebuildDuring(t, func(coordinator *clusterNode) {
			coordinator.at.Load().kill()
			w.start(t, coordinator)
		})
		w.spread(t)
	})
	w.phase(t, "the database restarts in a rebuild", func(t *testing.T) {
		w.rebuildDuring(t, func(*clusterNode) {
			if err := db.Restart(pgtest.Immediate); err != nil {
				t.Error(err)
			}
		})
	})
	w.rest(t)
	w.check(t)
	w.stopAll(t)
}

// asBefore runs a rebuild to its end: what it makes is what was there.
func (w *clusterWorld) asBefore(t *testing.T, at *server, name string) {
	t.Helper()
	began := time.Now()
	stdout, stderr, code := runs(t, "projections", "rebuild", name, "--server", at.url)
	t.Logf("rebuilt after %s: %s", round(time.Since(began)), stdout)
	if code != 0 || !strings.Contains(stdout, "as before") || strings.Contains(stdout, "NOT") {
		w.tell(t)
		t.Errorf("rebuild of %s: exit code %d, %q %q", name, code, stdout, stderr)
	}
}

func (w *clusterWorld) rebuildEverywhere(t *testing.T) {
	w.acknowledges(t, 300)
	for i, name := range []string{order.ProjectionOrders, order.ProjectionStock, order.ProjectionReturns} {
		n := w.nodes[i%len(w.nodes)].at.Load()
		w.asBefore(t, n, name)
		other := w.nodes[(i+1)%len(w.nodes)].at.Load()
		began := time.Now()
		if stdout, stderr, code := runs(t, "projections", "switch", name, "--generation", "1", "--server", other.url); code != 0 {
			t.Errorf("switch back of %s: exit code %d, %q %q", name, code, stdout, stderr)
		}
		t.Logf("switched back after %s", round(time.Since(began)))
	}
	w.acknowledges(t, 300)
}

// rebuildDuring does something to the nodes while orders are being rebuilt, asked for at a node that does not coordinate.
func (w *clusterWorld) rebuildDuring(t *testing.T, what func(coordinator *clusterNode)) {
	w.acknowledges(t, 300)
	var coordinator, asked *clusterNode
	for name, own := range w.owners(t) {
		for _, n := range w.nodes {
			switch {
			case n.name != name:
			case slices.Contains(own, 0):
				coordinator = n
			default:
				asked = n
			}
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.asBefore(t, asked.at.Load(), order.ProjectionOrders)
	}()
	w.until(t, "the rebuild has begun", func() bool {
		a, err := asked.at.Load().try(t.Context(), call{method: http.MethodGet, path: "/v1/projections/orders"})
		var s httpapi.ProjectionStatus
		return err == nil && jsonx.Unmarshal(a.body, &s) == nil && s.State != "live"
	})
	what(coordinator)
	<-done
	w.acknowledges(t, 300)
}
