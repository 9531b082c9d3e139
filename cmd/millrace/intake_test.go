package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
)

const (
	intakeOrders = 10_000
	// intakeSingles of them come one by one, the others as lines of NDJSON in intakeStreams requests.
	intakeSingles = 1000
	intakeStreams = 3
)

func intakeID(i int) string { return fmt.Sprintf("i%05d", i) }

func intakeLine(i int) []byte {
	id := intakeID(i)
	return fmt.Appendf(nil, `{"id":%q,"type":"PlaceOrder","stream":"order-%s","data":%s}`+"\n", id, id, anOrder(id))
}

// sendIntake sends all the orders as lines and gives each answer to each. They come in order within a request.
func sendIntake(t *testing.T, s *server, first int, prefer string, each func(line []byte)) {
	t.Helper()
	answers := make([][]byte, intakeStreams)
	g, ctx := errgroup.WithContext(t.Context())
	for k := range intakeStreams {
		g.Go(func() (err error) {
			var body bytes.Buffer
			for i := first + k; i < intakeOrders; i += intakeStreams {
				body.Write(intakeLine(i))
			}
			answers[k], err = s.tryLines(ctx, call{method: http.MethodPost, path: "/v1/commands", kind: "application/x-ndjson", prefer: prefer, body: body.Bytes()})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, a := range answers {
		for line := range bytes.Lines(a) {
			each(line)
		}
	}
}

// TestIntakeAlone: nothing but the intake runs, and ten thousand orders are safe.
func TestIntakeAlone(t *testing.T) {
	data := t.TempDir()
	s := serving(t, data, "--paused", "command")
	accepted := 0
	sendIntake(t, s, intakeSingles, "", func(line []byte) {
		if bytes.Contains(line, []byte(`"status":"accepted"`)) {
			accepted++
		}
	})
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(16)
	for i := range intakeSingles {
		g.Go(func() error {
			id := intakeID(i)
			a, err := s.try(ctx, call{method: http.MethodPost, path: "/v1/orders", key: id, body: anOrder(id)})
			if err == nil && a.status != http.StatusAccepted {
				err = fmt.Errorf("%s: %s", id, a)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if accepted != intakeOrders-intakeSingles {
		t.Fatalf("%d lines were accepted", accepted)
	}
	pausedReads(t, s)
	s.kill()

	s = serving(t, data)
	decided, again := 0, 0
	sendIntake(t, s, 0, "wait=60", func(line []byte) {
		var st struct {
			status
			Replayed bool `json:"replayed"`
		}
		if err := json.Unmarshal(line, &st); err != nil {
			t.Fatal(err)
		}
		if st.Replayed && st.State == "decided" && st.Version == 1 && st.Events == 1 {
			decided++
		} else {
			again++
			t.Logf("%s", line)
		}
	})
	if decided != intakeOrders {
		t.Fatalf("%d of %d are decided once, %d are not", decided, intakeOrders, again)
	}
	s.caughtUp(t, s.head(t, "orders/"+intakeID(0)))
	orders, units := 0, 0
	var totals struct {
		Items []struct {
			Orders int    `json:"orders"`
			Units  int    `json:"units"`
			Amount string `json:"amount"`
		} `json:"items"`
	}
	s.get(t, "/v1/order-totals").into(t, &totals)
	for _, row := range totals.Items {
		orders += row.Orders
		units += row.Units
	}
	if orders != intakeOrders || units != 6*intakeOrders {
		t.Errorf("%d orders with %d units: %+v", orders, units, totals)
	}
	if n := scrape(t, s)["millrace_log_events"].value; n != intakeOrders {
		t.Errorf("the log holds %v events", n)
	}
	s.stop(t)
	isClean(t, data)
}

// pausedReads: what is kept can be looked up while nobody decides, and nothing pretends to be decided.
func pausedReads(t *testing.T, s *server) {
	t.Helper()
	if st := s.command(t, intakeID(7)); st.State != "accepted" || st.Stream != "order-"+intakeID(7) || st.Type != "PlaceOrder" {
		t.Errorf("got %+v", st)
	}
	if a := s.get(t, "/v1/orders?limit=5"); string(a.body) != `{"items":[]}` {
		t.Errorf("got %s", a)
	}
	s.do(t, call{method: http.MethodGet, path: "/v1/orders/" + intakeID(7)}, http.StatusNotFound)
	if a := s.ops(t, "/readyz"); a.status != http.StatusOK {
		t.Errorf("a node that takes orders is ready: %s", a)
	}
	again := call{method: http.MethodPost, path: "/v1/orders", key: intakeID(7), body: anOrder(intakeID(7)), prefer: "wait=1"}
	if a := s.do(t, again, http.StatusAccepted); !a.replayed() {
		t.Errorf("got %s", a)
	}
	if n := scrape(t, s)["millrace_commands_backlog"].value; n != intakeOrders {
		t.Errorf("the backlog is %v", n)
	}
}

// TestPausedFeed: orders are decided and can be read from the log, while the read models stand still and say so.
func TestPausedFeed(t *testing.T) {
	data := t.TempDir()
	s := serving(t, data, "--paused", "feed")
	placed := s.do(t, call{method: http.MethodPost, path: "/v1/orders", key: "p-1", body: anOrder("p-1"), prefer: "wait=30"}, http.StatusCreated)
	cursor := placed.header.Get("Millrace-Cursor")
	if st := s.command(t, "p-1"); st.State != "decided" || st.Events != 1 {
		t.Errorf("got %+v", st)
	}
	if a := s.get(t, "/v1/orders/p-1?version=1"); !bytes.Equal(a.body, placed.body) {
		t.Errorf("the order at version 1 and the answer to placing it:\n%s\n%s", a, placed)
	}
	s.get(t, "/v1/orders/p-1/events")
	s.do(t, call{method: http.MethodGet, path: "/v1/orders/p-1"}, http.StatusNotFound)
	for _, path := range []string{"/v1/orders/p-1?", "/v1/orders?", "/v1/order-totals?"} {
		a := s.do(t, call{method: http.MethodGet, path: path + "min_cursor=" + cursor, prefer: "wait=1"}, http.StatusServiceUnavailable)
		if !bytes.Contains(a.body, []byte(`"code":"not_caught_up"`)) || a.header.Get("Retry-After") == "" {
			t.Errorf("%s: %s", path, a)
		}
	}
	s.stop(t)

	// Let go, they catch up, with the very same order.
	s = serving(t, data)
	a := s.do(t, call{method: http.MethodGet, path: "/v1/orders/p-1?min_cursor=" + cursor, prefer: "wait=60"}, http.StatusOK)
	if !bytes.Equal(a.body, placed.body) {
		t.Errorf("the order read and the answer to placing it:\n%s\n%s", a, placed)
	}
	s.stop(t)
}

// TestOneKey: a hundred clients send the same command at the same time.
func TestOneKey(t *testing.T) {
	for _, test := range []struct {
		name, prefer string
		body         []byte
		status       int
	}{
		{"decided", "wait=30", anOrder("one"), http.StatusCreated},
		{"accepted", "", anOrder("two"), http.StatusAccepted},
		{"refused", "wait=30", []byte(`{"id":"three","currency":"GBP","lines":[` + aLine("A", 0, "1.00") + `]}`), http.StatusUnprocessableEntity},
	} {
		t.Run(test.name, func(t *testing.T) {
			data := t.TempDir()
			s := serving(t, data)
			c := call{method: http.MethodPost, path: "/v1/orders", key: "the-key", prefer: test.prefer, body: test.body}
			all, fresh := hundred(t.Context(), t, s, c)
			if fresh != 1 || all[0].status != test.status {
				t.Errorf("%d answers say that they are the first: %s", fresh, all[0])
			}
			other := c
			other.body = bytes.Replace(c.body, []byte("GBP"), []byte("EUR"), 1)
			reused(t, s, other)
			s.kill()

			s = serving(t, data)
			again, fresh := hundred(t.Context(), t, s, c)
			if fresh != 0 || !again[0].equal(all[0]) {
				t.Errorf("after a restart %d say that they are the first:\n%s\n%s", fresh, all[0], again[0])
			}
			reused(t, s, other)
			want := map[bool]int{true: 0, false: 1}[test.status == http.StatusUnprocessableEntity]
			c.prefer = "wait=30" // it has its outcome
			s.do(t, c, http.StatusCreated, http.StatusUnprocessableEntity)
			if st := s.command(t, "the-key"); st.Events != want {
				t.Errorf("got %+v", st)
			}
			s.stop(t)
			stdout, _, code := runs(t, "verify", "--data", data, "--output", "json")
			if code != 0 || !strings.Contains(stdout, fmt.Sprintf(`"events":%d,"backlog":0`, want)) {
				t.Errorf("exit code %d: %s", code, stdout)
			}
		})
	}
}

// hundred sends a command a hundred times at once, wants equal answers, and counts those that are no replay.
func hundred(ctx context.Context, t *testing.T, s *server, c call) (all []*answer, fresh int) {
	t.Helper()
	all = make([]*answer, 100)
	g, ctx := errgroup.WithContext(ctx)
	for i := range all {
		g.Go(func() (err error) {
			all[i], err = s.try(ctx, c)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if !a.equal(all[0]) {
			t.Fatalf("two answers to one key:\n%s\n%s", all[0], a)
		}
		if !a.replayed() {
			fresh++
		}
	}
	return all, fresh
}

func reused(t *testing.T, s *server, c call) {
	t.Helper()
	a := s.do(t, c, http.StatusUnprocessableEntity)
	if !bytes.Contains(a.body, []byte(`"code":"idempotency_key_reused"`)) || a.replayed() || bytes.Contains(a.body, []byte("the-key")) {
		t.Errorf("got %s", a)
	}
}
