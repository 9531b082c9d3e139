//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
)

const (
	// clusterClients send commands at the same time; the first of them sends lines of NDJSON.
	clusterClients = 8
	clusterPace    = 30 * time.Millisecond
	// clientPatience is how long a client waits for an answer before it asks another node, and avoids that one for
	// avoidance.
	clientPatience = 3 * time.Second
	avoidance      = time.Second
	clusterLines   = 8 // of one request
	clusterStock   = 400
	// clusterRounds are the rounds of what is tried between nodes.
	clusterRounds = 15
)

// wish is a command on its client's side.
type wish struct {
	call
	stream string
	client string
	n      int // it was the client's n-th
	phase  string
	acked  bool
	first  *answer // nil where the acknowledgement came as a line of many
	later  *answer // of another request for it
	// outcome is what the store says in the end.
	outcome millrace.Outcome
}

// clusterClient sends one command after the other, each to the next node. It gives none up: what had no answer is sent to
// another node, under the same key.
type clusterClient struct {
	w      *clusterWorld
	name   string
	rng    *rand.Rand
	many   bool
	n      int
	next   int // node
	avoid  [clusterNodes]time.Time
	orders []*clientOrder
	done   []*wish
}

// clientOrder is an order, and how many steps of its way were asked for.
type clientOrder struct {
	id   string
	step int
}

func newClusterClient(w *clusterWorld, i uint64) *clusterClient {
	return &clusterClient{
		w: w, name: fmt.Sprintf("c%d", i), rng: seeded(w.seed, i+1), many: i == 0, next: int(i), //nolint:gosec // small
	}
}

// load lets the clients work until rest.
func (w *clusterWorld) load(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	for _, c := range w.clients {
		w.loading.Go(func() { c.work(ctx) })
	}
	t.Cleanup(func() { stop(); w.loading.Wait() })
}

// rest ends the load: no new commands, and an answer to each that is on its way.
func (w *clusterWorld) rest(t *testing.T) {
	t.Helper()
	w.stop()
	w.loading.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.faults {
		t.Error(f)
	}
	if len(w.faults) > 0 {
		w.tell(t)
	}
}

func (w *clusterWorld) fault(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.faults) < 20 {
		w.faults = append(w.faults, w.at+": "+fmt.Sprintf(format, args...))
	}
}

func (w *clusterWorld) sentAgain(why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trouble[why]++
}

// ack books an acknowledgement.
func (w *clusterWorld) ack(one *wish, a *answer, began time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	one.acked, one.first = true, a
	w.acks++
	if took := time.Since(began); took > w.longest[w.at] {
		w.longest[w.at] = took
	}
	close(w.heard)
	w.heard = make(chan struct{})
}

func (c *clusterClient) work(ctx context.Context) {
	// What was sent gets its answer, however long that takes.
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(patience, cancel) })()
	tick := time.NewTicker(clusterPace)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		switch {
		case c.many:
			c.sendLines(sending)
		case len(c.done) > 0 && c.rng.IntN(20) == 0:
			c.repeat(sending, c.done[c.rng.IntN(len(c.done))])
		default:
			one := c.command()
			if a := c.send(sending, one); a == nil {
				c.w.fault("%s of %s has no answer", one.key, c.name)
			} else if one.prefer != "" && a.status == http.StatusOK && strings.HasPrefix(one.stream, "order-") {
				c.readElsewhere(sending, one, a)
			}
		}
	}
}

// wish makes a command.
func (c *clusterClient) wish(stream string, request call) *wish {
	c.n++
	one := &wish{call: request, stream: stream, client: c.name, n: c.n}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	one.phase = c.w.at
	c.w.all = append(c.w.all, one)
	return one
}

// way is an order's.
var way = []string{"confirm", "pay", "pack", "ship", "deliver"}

// command makes the client's next command: another order, the next step of one of its own (or some other step, to be
// refused), its own stock, or one piece of what all of them want.
func (c *clusterClient) command() *wish {
	key := fmt.Sprintf("%s-%d", c.name, c.n)
	request := call{method: http.MethodPost, key: key, body: []byte("{}")}
	if c.rng.IntN(2) == 0 {
		request.prefer = "wait=2"
	}
	switch p := c.rng.IntN(100); {
	case p < 25 || len(c.orders) == 0:
		id := "o-" + key
		c.orders = append(c.orders, &clientOrder{id: id})
		request.path, request.body = "/v1/orders", anOrder(id)
		return c.wish("order-"+id, request)
	case p < 80:
		o := c.orders[len(c.orders)-1-c.rng.IntN(min(4, len(c.orders)))]
		verb := way[c.rng.IntN(len(way))]
		if c.rng.IntN(4) > 0 && o.step < len(way) {
			verb = way[o.step]
			o.step++
		}
		request.path = "/v1/orders/" + o.id + "/" + verb
		return c.wish("order-"+o.id, request)
	case p < 90:
		request.path, request.body = "/v1/stock/S-"+c.name+"/receive", fmt.Appendf(nil, `{"quantity":%d}`, 1+c.rng.IntN(9))
		return c.wish("stock-S-"+c.name, request)
	case c.n%40 == 0:
		request.path, request.body = "/v1/stock/"+killSKU+"/receive", fmt.Appendf(nil, `{"quantity":%d}`, clusterStock/20)
		return c.wish("stock-"+killSKU, request)
	default:
		request.path, request.body = "/v1/stock/"+killSKU+"/reserve", []byte(`{"reservation":"`+key+`","quantity":1}`)
		return c.wish("stock-"+killSKU, request)
	}
}

// pick is the next node that the client does not avoid; ok is false where it avoids all.
func (c *clusterClient) pick() (i int, ok bool) {
	for range clusterNodes {
		i = c.next % clusterNodes
		c.next++
		if time.Now().After(c.avoid[i]) {
			return i, true
		}
	}
	return i, false
}

// around asks one node after the other until ask says that it has what it wants.
func (c *clusterClient) around(ctx context.Context, ask func(ctx context.Context, s *server) (why string)) bool {
	tick := time.NewTicker(clusterPace)
	defer tick.Stop()
	for {
		if i, ok := c.pick(); ok {
			short, cancel := context.WithTimeout(ctx, clientPatience)
			why := ask(short, c.w.nodes[i].at.Load())
			cancel()
			if why == "" {
				return true
			}
			c.avoid[i] = time.Now().Add(avoidance)
			c.w.sentAgain(why)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
}

// why says why a request must be sent again, or nothing.
func (c *clusterClient) why(one *call, a *answer, err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case err != nil:
		return "connection"
	case a.status == http.StatusServiceUnavailable:
		if a.header.Get("Retry-After") == "" {
			c.w.fault("%s: without Retry-After: %s", one.path, a)
		}
		var p struct{ Code string }
		_ = json.Unmarshal(a.body, &p) // a problem without a code is one too
		return "503 " + p.Code
	case a.status >= 500:
		c.w.fault("%s: %s", one.path, a)
		return fmt.Sprint(a.status)
	}
	return ""
}

// acknowledged are the statuses of a command that is kept.
var acknowledged = []int{
	http.StatusOK, http.StatusCreated, http.StatusAccepted, http.StatusNoContent, http.StatusNotFound, http.StatusConflict,
	http.StatusPreconditionFailed, http.StatusUnprocessableEntity,
}

// send sends a command until it is acknowledged; nil where it never was.
func (c *clusterClient) send(ctx context.Context, one *wish) (got *answer) {
	began := time.Now()
	c.around(ctx, func(ctx context.Context, s *server) string {
		a, err := s.try(ctx, one.call)
		if why := c.why(&one.call, a, err); why != "" {
			return why
		}
		got = a
		return ""
	})
	if got == nil {
		return nil
	}
	if !slices.Contains(acknowledged, got.status) {
		c.w.fault("%s: %s", one.path, got)
		return nil
	}
	c.w.ack(one, got, began)
	c.done = append(c.done, one)
	return got
}

// repeat sends a command again that was acknowledged, and wants the same answer from whichever node.
func (c *clusterClient) repeat(ctx context.Context, one *wish) {
	if one.first == nil {
		return
	}
	c.around(ctx, func(ctx context.Context, s *server) string {
		a, err := s.try(ctx, one.call)
		if why := c.why(&one.call, a, err); why != "" {
			return why
		}
		if why := one.differs(a); why != "" {
			c.w.fault("%s", why)
		}
		return ""
	})
}

// differs says what is wrong with the answer to a repetition. Who waits for an outcome is told that there is none yet
// where it takes too long, and gets it the next time.
func (one *wish) differs(a *answer) string {
	if !a.replayed() {
		return fmt.Sprintf("a repetition of %s is taken for a new command: %s", one.key, a)
	}
	undecided := one.prefer != "" && (a.status == http.StatusAccepted || one.first.status == http.StatusAccepted)
	if !undecided && !a.equal(one.first) {
		return fmt.Sprintf("a repetition of %s is answered differently:\n%s\n%s", one.key, one.first, a)
	}
	return ""
}

// place is the command for an order, whose client waits for what becomes of it.
func (c *clusterClient) place(id string) *wish {
	return c.wish("order-"+id, call{method: http.MethodPost, path: "/v1/orders", key: id, prefer: "wait=30", body: anOrder(id)})
}

// ask sends a command to one node alone, and again under its key where that gave up in time, until it is answered.
func (c *clusterClient) ask(ctx context.Context, s *server, one *wish) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(clusterPace)
	defer tick.Stop()
	for {
		a, err := s.try(ctx, one.call)
		if err != nil {
			return err
		}
		why := c.why(&one.call, a, nil)
		if why == "" {
			one.later = a
			return nil
		}
		c.w.sentAgain(why)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: the last answer was %s", ctx.Err(), a)
		}
	}
}

// readElsewhere reads at another node what a command led to, which must be there.
func (c *clusterClient) readElsewhere(ctx context.Context, one *wish, wrote *answer) {
	cursor := wrote.header.Get("Millrace-Cursor")
	if cursor == "" {
		c.w.fault("%s was decided, and the answer has no cursor: %s", one.key, wrote)
		return
	}
	read := call{
		method: http.MethodGet, path: "/v1/orders/" + strings.TrimPrefix(one.stream, "order-") + "?min_cursor=" + cursor, prefer: "wait=2",
	}
	c.around(ctx, func(ctx context.Context, s *server) string {
		a, err := s.try(ctx, read)
		if why := c.why(&read, a, err); why != "" {
			return "read: " + why
		}
		// Nobody else writes this order.
		if a.status != http.StatusOK || a.header.Get("Etag") != wrote.header.Get("Etag") {
			c.w.fault("%s was answered %s, and a read elsewhere that has seen it %s", one.key, wrote, a)
		}
		c.w.mu.Lock()
		c.w.reads++
		c.w.mu.Unlock()
		return ""
	})
}

// sendLines sends orders as the lines of one request, and what is not answered once more.
func (c *clusterClient) sendLines(ctx context.Context) {
	began := time.Now()
	waiting := make([]*wish, 0, clusterLines)
	for range clusterLines {
		key := fmt.Sprintf("%s-%d", c.name, c.n)
		id := "o-" + key
		waiting = append(waiting, c.wish("order-"+id, call{method: http.MethodPost, path: "/v1/orders", key: key, body: anOrder(id)}))
	}
	done := c.around(ctx, func(ctx context.Context, s *server) string {
		var body bytes.Buffer
		for _, one := range waiting {
			fmt.Fprintf(&body, `{"id":%q,"type":"PlaceOrder","stream":%q,"data":%s}`+"\n", one.key, one.stream, one.body)
		}
		text, err := s.tryLines(ctx, call{method: http.MethodPost, path: "/v1/commands", kind: "application/x-ndjson", body: body.Bytes()})
		before := waiting
		why := ""
		waiting = nil
		n := 0
		for line := range bytes.Lines(text) {
			var st struct {
				status
				Line    int
				Problem struct {
					Status int
					Code   string
				}
			}
			if !bytes.HasSuffix(line, []byte("\n")) || json.Unmarshal(line, &st) != nil || n >= len(before) {
				break // it was cut off
			}
			one := before[n]
			n++
			switch {
			case st.Problem.Status == http.StatusServiceUnavailable:
				waiting, why = append(waiting, one), "line: 503 "+st.Problem.Code
			case st.Problem.Status != 0 || st.ID != one.key || st.Line != n:
				c.w.fault("a line: %s", line)
				waiting, why = append(waiting, one), "line: wrong"
			default:
				c.w.ack(one, nil, began)
			}
		}
		waiting = append(waiting, before[n:]...)
		if len(waiting) > 0 && why == "" {
			why = "lines: " + c.why(&call{}, &answer{status: http.StatusOK}, err)
		}
		return why
	})
	if !done {
		c.w.fault("%d lines of %s have no answer", len(waiting), c.name)
	}
}

// readElsewhere: a client writes at one node and reads at the two others with the cursor of its write.
func (w *clusterWorld) readElsewhere(t *testing.T) {
	var took []time.Duration
	early := 0
	c := &clusterClient{w: w, name: fmt.Sprintf("reader%d", w.rng.IntN(1<<30)), rng: w.rng}
	for n := range clusterRounds {
		id := fmt.Sprintf("%s-%d", c.name, n)
		one := c.wish("order-"+id, call{method: http.MethodPost, path: "/v1/orders", key: id, prefer: "wait=30", body: anOrderOf(c.name, id)})
		wrote := w.nodes[n%clusterNodes].at.Load().do(t, one.call, http.StatusCreated)
		w.ack(one, wrote, time.Now())
		for k := 1; k < clusterNodes; k++ {
			s := w.nodes[(n+k)%clusterNodes].at.Load()
			after := "min_cursor=" + wrote.header.Get("Millrace-Cursor")
			began := time.Now()
			read := s.do(t, call{method: http.MethodGet, path: "/v1/orders/" + id + "?" + after, prefer: "wait=30"}, http.StatusOK)
			took = append(took, time.Since(began))
			if !bytes.Equal(read.body, wrote.body) || read.header.Get("Etag") != wrote.header.Get("Etag") {
				t.Errorf("%s was answered with %s and is read elsewhere as %s", id, wrote, read)
			}
			// The log itself says no where it is behind, and does not wait.
			log := s.do(t, call{method: http.MethodGet, path: "/v1/orders/" + id + "/events?" + after, prefer: "wait=30"},
				http.StatusOK, http.StatusServiceUnavailable)
			switch {
			case log.status == http.StatusServiceUnavailable && log.header.Get("Retry-After") != "":
				early++
			case !bytes.Contains(log.body, []byte(`"OrderPlaced"`)):
				t.Errorf("%s has no event that is read elsewhere: %s", id, log)
			}
			// Of its own customer: the clients beside it fill a page of the newest orders while this one is read.
			var list struct{ Items []struct{ ID string } }
			s.do(t, call{method: http.MethodGet, path: "/v1/orders?limit=100&sort=-placed_at&customer_id=" + c.name + "&" + after, prefer: "wait=30"}, http.StatusOK).into(t, &list)
			if !slices.ContainsFunc(list.Items, func(o struct{ ID string }) bool { return o.ID == id }) {
				t.Errorf("%s is missing in a list that is read elsewhere", id)
			}
		}
	}
	slices.Sort(took)
	t.Logf("%d reads elsewhere: median %s, longest %s; %d reads of the log came too early", len(took), round(took[len(took)/2]), round(took[len(took)-1]), early)
}

// answerTogether: all nodes are asked the same at the same time.
func (w *clusterWorld) answerTogether(t *testing.T) {
	asTheFirst, news := 0, 0
	name := fmt.Sprintf("together%d", w.rng.IntN(1<<30))
	c := &clusterClient{w: w, name: name, rng: w.rng}
	for n := range clusterRounds {
		key := fmt.Sprintf("%s-%d", name, n)
		// Without an id in the body: all of them must make the same one of the key.
		body := []byte(`{"customer_id":"c-17","currency":"GBP","fulfilment":"manual","lines":[` + aLine("85123A", 1+n, "2.55") + `]}`)
		one := c.wish("", call{method: http.MethodPost, path: "/v1/orders", key: key, prefer: "wait=30", body: body})
		answers := w.ask(t, func(int) call { return one.call })
		for _, a := range answers {
			if a.status != http.StatusCreated || !a.equal(answers[0]) {
				t.Errorf("nodes answer %s differently:\n%s\n%s", key, answers[0], a)
			}
			if !a.replayed() {
				news++
			}
		}
		var made struct{ ID string }
		answers[0].into(t, &made)
		one.stream = "order-" + made.ID
		w.ack(one, answers[0], time.Now())

		// Under one key each node gets something else: one of them is right.
		key += "-clash"
		clash := func(i int) call {
			id := fmt.Sprintf("%s-%d", key, i)
			return call{method: http.MethodPost, path: "/v1/orders", key: key, prefer: "wait=30", body: anOrder(id)}
		}
		kept := -1
		for i, a := range w.ask(t, clash) {
			switch {
			case a.status == http.StatusCreated && kept < 0:
				kept = i
				one := c.wish(fmt.Sprintf("order-%s-%d", key, i), clash(i))
				w.ack(one, a, time.Now())
			case a.status == http.StatusUnprocessableEntity && bytes.Contains(a.body, []byte("idempotency_key_reused")):
				asTheFirst++
			default:
				t.Errorf("node %d is asked for something else under one key, after %d was kept: %s", i, kept, a)
			}
		}
		if kept < 0 {
			t.Errorf("no node kept %s", key)
		}
	}
	t.Logf("%d answers said that they were the first, to %d commands; %d keys were refused", news, clusterRounds, asTheFirst)
}

// ask asks all nodes at the same time.
func (w *clusterWorld) ask(t *testing.T, what func(node int) call) []*answer {
	t.Helper()
	answers := make([]*answer, clusterNodes)
	errs := make([]error, clusterNodes)
	begin := make(chan struct{})
	var asking sync.WaitGroup
	for i, n := range w.nodes {
		asking.Go(func() {
			<-begin
			answers[i], errs[i] = n.at.Load().try(t.Context(), what(i))
		})
	}
	close(begin)
	asking.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return answers
}
