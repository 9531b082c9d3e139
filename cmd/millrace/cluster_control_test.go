//go:build linux

package main

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/millrace-io/millrace/internal/pgtest"
)

// obeyWithin is what a node may take to obey what another one was asked: about a second, and what a busy machine adds.
const obeyWithin = 3 * time.Second

// TestClusterControl: what one of two nodes is asked, both obey: a read model stands still in all partitions, and then the
// deciding, over a kill too, after which the node that is left has everything. Resumed by the other node nothing is lost.
func TestClusterControl(t *testing.T) {
	if testing.Short() {
		t.Skip("a database and two processes, and -short is set")
	}
	t.Parallel()
	db := pgtest.Start(t, pgtest.Options{})
	f := &fleet{t: t, flags: []string{"--store", db.DSN("postgres")}, nodes: map[string]*server{}}
	f.start("a", 1)
	f.start("b", 2)
	a, b := f.nodes["a"], f.nodes["b"]
	many := func(name string, status int) (ids []string) {
		t.Helper()
		for i := range 40 { // some for each partition
			id := fmt.Sprintf("%s-%d", name, i)
			c := call{method: http.MethodPost, path: "/v1/orders", key: id, body: anOrder(id)}
			if status == http.StatusCreated {
				c.prefer = "wait=30"
			}
			[]*server{a, b}[i%2].do(t, c, status)
			ids = append(ids, id)
		}
		return ids
	}
	obeys := func(s *server, name, state string) {
		t.Helper()
		began := time.Now()
		s.untilConsumer(t, name, func(c consumerState) bool { return c.State == state })
		if took := time.Since(began); took > obeyWithin {
			t.Errorf("%s is %s after %v", name, state, took)
		}
	}

	many("before", http.StatusCreated)
	a.control(t, "orders", "pause", "a look at the documents")
	obeys(b, "orders", "paused")
	b.untilConsumer(t, "stock", func(c consumerState) bool { return c.Gap == 0 })
	at := b.consumer(t, "orders")
	many("unseen", http.StatusCreated)
	b.untilConsumer(t, "stock", func(c consumerState) bool { return c.Gap == 0 })
	for _, s := range []*server{a, b} {
		s.untilConsumer(t, "orders", func(c consumerState) bool { return c.Gap >= 40 }) // when it has heard of the last one
		if c := s.consumer(t, "orders"); c.State != "paused" || c.Why != "a look at the documents" || c.Cursor != at.Cursor || c.Gap < 40 {
			t.Errorf("%+v, want it at %s", c, at.Cursor)
		}
		s.do(t, call{method: http.MethodGet, path: "/v1/orders/unseen-7"}, http.StatusNotFound)
	}

	b.control(t, "command", "pause", "maintenance")
	obeys(a, "command", "paused")
	waiting := many("waits", http.StatusAccepted)
	f.take("a").kill()
	f.settled(b, 1)
	for _, id := range waiting {
		if st := b.command(t, id); st.State != "accepted" {
			t.Fatalf("decided while paused: %+v", st)
		}
	}
	f.start("c", 2)
	c := f.nodes["c"]
	if one := c.consumer(t, "command"); one.State != "paused" || one.By != "ann" {
		t.Errorf("a node that came later: %+v", one)
	}
	c.control(t, "command", "resume", "done")
	obeys(b, "command", "running")
	for _, id := range waiting {
		a := c.do(t, call{method: http.MethodPost, path: "/v1/orders", key: id, body: anOrder(id), prefer: "wait=60"}, http.StatusCreated)
		if !a.replayed() {
			t.Errorf("%s", a)
		}
	}
	b.control(t, "orders", "resume", "done")
	obeys(c, "orders", "running")
	for _, s := range []*server{b, c} {
		for _, id := range []string{"before-1", "unseen-7", "waits-39"} {
			s.do(t, call{method: http.MethodGet, path: "/v1/orders/" + id + "?min_cursor=" + s.head(t, "orders/"+id), prefer: "wait=60"}, http.StatusOK)
		}
	}
	c.control(t, "orders", "drain", "an upgrade")
	b.untilConsumer(t, "orders", func(c consumerState) bool { return c.State == "paused" })
	for _, name := range []string{"b", "c"} {
		f.take(name).stop(t)
	}
}
