//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/pgtest"
)

const (
	// replicaHeader says which server a balancer asked, by its number.
	replicaHeader = "Replica"
	// shareClients send shareOrders orders each.
	shareClients = 6
	shareOrders  = 25
)

// sharing starts nodes that share a database, and waits until each owns as many partitions as the others.
func sharing(t *testing.T, dsn string, n int) []*server {
	t.Helper()
	bin := binary(t)
	nodes, errs := make([]*server, n), make([]error, n)
	var starting sync.WaitGroup
	for i := range n {
		starting.Go(func() { nodes[i], errs[i] = startNode(t, bin, dsn, fmt.Sprintf("node-%d", i+1)) })
	}
	starting.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), clusterPatience)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		var o httpapi.Ownership
		nodes[0].get(t, "/v1/nodes").into(t, &o)
		least := o.Partitions
		for _, one := range o.Items {
			least = min(least, len(one.Partitions))
		}
		if len(o.Items) == n && len(o.Unowned) == 0 && least >= o.Partitions/n {
			return nodes
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the nodes do not share: %+v", o)
		}
	}
}

// replica is the key of the server's number in a request's context.
type replica struct{}

// balancer is one address for several servers, which it asks in turn.
type balancer struct {
	*server
	asked []atomic.Int64
}

func balance(t *testing.T, servers []*server) *balancer {
	t.Helper()
	b := &balancer{asked: make([]atomic.Int64, len(servers))}
	var targets []*url.URL
	for _, s := range servers {
		u, err := url.Parse(s.url)
		if err != nil {
			t.Fatal(err)
		}
		targets = append(targets, u)
	}
	var next atomic.Int64
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	front := httptest.NewServer(&httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			i := int(next.Add(1)) % len(targets)
			b.asked[i].Add(1)
			r.SetURL(targets[i])
			r.Out = r.Out.WithContext(context.WithValue(r.Out.Context(), replica{}, i))
		},
		ModifyResponse: func(res *http.Response) error {
			res.Header.Set(replicaHeader, fmt.Sprint(res.Request.Context().Value(replica{})))
			return nil
		},
	})
	t.Cleanup(front.Close)
	b.server = &server{url: front.URL, http: &http.Client{Transport: transport, Timeout: patience}}
	return b
}

// TestClusterBehindOneAddress: two servers behind a balancer share the work. Nothing is there twice, and either
// answers whatever it is asked, as the other one does.
func TestClusterBehindOneAddress(t *testing.T) {
	clusterBeside(t)
	dsn := pgtest.Start(t, pgtest.Options{}).DSN("postgres")
	replicas := sharing(t, dsn, 2)
	front := balance(t, replicas)
	g, ctx := errgroup.WithContext(t.Context())
	for k := range shareClients {
		g.Go(func() error {
			for n := range shareOrders {
				if err := ordersThroughBoth(ctx, front, replicas, fmt.Sprintf("s%d-%d", k, n)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	sharedWork(t, front, replicas)
	sameOnBoth(t, replicas)
	for _, s := range replicas {
		s.stop(t)
	}
	if stdout, stderr, code := runs(t, "verify", "--store", dsn); code != 0 {
		t.Errorf("verify: exit code %d: %s %s", code, stdout, stderr)
	}
}

// ordersThroughBoth places an order and confirms it. Each request is sent until both replicas have answered it, and after
// each answer the other replica is read.
func ordersThroughBoth(ctx context.Context, front *balancer, replicas []*server, id string) error {
	for version, request := range []call{
		{method: http.MethodPost, path: "/v1/orders", key: id, prefer: "wait=30", body: anOrder(id)},
		{method: http.MethodPost, path: "/v1/orders/" + id + "/confirm", key: id + "-confirm", prefer: "wait=30", body: []byte("{}")},
	} {
		answers := map[string]*answer{}
		var first *answer
		for len(answers) < len(replicas) {
			a, err := front.try(ctx, request)
			if err != nil {
				return err
			}
			switch {
			case first == nil && (a.status >= 300 || a.replayed()):
				return fmt.Errorf("%s is answered %s", request.key, a)
			case first == nil:
				first = a
			case !a.replayed() || !a.equal(first):
				return fmt.Errorf("%s is answered %s, and again %s", request.key, first, a)
			}
			answers[a.header.Get(replicaHeader)] = a
		}
		if tag := fmt.Sprintf(`"%d"`, version+1); first.header.Get("Etag") != tag {
			return fmt.Errorf("%s: the version is not %s: %s", request.key, tag, first)
		}
		wrote, err := strconv.Atoi(first.header.Get(replicaHeader))
		if err != nil {
			return err
		}
		other := replicas[(wrote+1)%len(replicas)]
		read := call{method: http.MethodGet, path: "/v1/orders/" + id + "?min_cursor=" + first.header.Get("Millrace-Cursor"), prefer: "wait=30"}
		a, err := other.try(ctx, read)
		if err != nil {
			return err
		}
		if a.status != http.StatusOK || a.header.Get("Etag") != first.header.Get("Etag") || string(a.body) != string(first.body) {
			return fmt.Errorf("%s was answered %s, and the other replica, which has seen it, shows %s", request.key, first, a)
		}
	}
	return nil
}

// sharedWork wants each replica to have been asked and to have decided, and all that was decided to be what was sent.
func sharedWork(t *testing.T, front *balancer, replicas []*server) {
	t.Helper()
	sum := 0
	for i, s := range replicas {
		decided := 0
		for line := range strings.Lines(string(s.ops(t, "/metrics").body)) {
			if name, value, _ := strings.Cut(strings.TrimSpace(line), " "); strings.HasPrefix(name, "millrace_commands_total{") {
				n, err := strconv.Atoi(value)
				if err != nil || n > 0 && !strings.Contains(name, `status="decided"`) {
					t.Errorf("%v: %s", err, line)
				}
				decided += n
			}
		}
		sum += decided
		t.Logf("replica %d was asked %d times and decided %d commands", i, front.asked[i].Load(), decided)
		if decided == 0 || front.asked[i].Load() == 0 {
			t.Errorf("replica %d has no part in the work", i)
		}
	}
	if want := shareClients * shareOrders * 2; sum != want {
		t.Errorf("%d commands were decided, and %d were sent", sum, want)
	}
}

// sameOnBoth wants lists, totals and histories to be the same, whichever replica is asked, and each order to have its two
// events.
func sameOnBoth(t *testing.T, replicas []*server) {
	t.Helper()
	const one = "orders/s0-0"
	for _, s := range replicas {
		for _, other := range replicas {
			s.caughtUp(t, other.head(t, one))
		}
	}
	paths := []string{
		"/v1/orders?limit=100", "/v1/orders?limit=500&sort=placed_at", "/v1/orders?limit=100&status=confirmed", "/v1/orders?status=placed",
		"/v1/orders?customer_id=c-17", "/v1/order-totals", "/v1/stock", "/v1/returns", "/v1/commands/s1-1", "/v1/commands/s1-1-confirm",
	}
	orders := 0
	pages(t, replicas[0], "/v1/orders?limit=500", func(o struct {
		ID      string
		Version int
	}) {
		orders++
		paths = append(paths, "/v1/orders/"+o.ID+"/events")
		if o.Version != 2 {
			t.Errorf("order %s is at version %d", o.ID, o.Version)
		}
	})
	if orders != shareClients*shareOrders {
		t.Errorf("%d orders are listed", orders)
	}
	for _, path := range paths {
		a, b := replicas[0].get(t, path), replicas[1].get(t, path)
		if string(a.body) != string(b.body) {
			t.Errorf("%s is on one replica %s\nand on the other %s", path, a, b)
		}
		if n := strings.Count(string(a.body), `"OrderConfirmed"`) + strings.Count(string(a.body), `"OrderPlaced"`); strings.HasSuffix(path, "/events") && n != 2 {
			t.Errorf("%s: %s", path, a)
		}
	}
}
