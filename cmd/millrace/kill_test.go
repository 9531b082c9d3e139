package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
)

const (
	killClients = 6
	// killSKU is fought over by all clients; there is less of it than they ask for.
	killSKU   = "HOT"
	killStock = 500
	// looking is how many checks are on their way at the same time.
	looking = 8
)

// TestKillLoop kills the server in the middle of its work, again and again, and asks it after each restart for
// everything that it ever acknowledged.
func TestKillLoop(t *testing.T) {
	kills := 50
	if testing.Short() {
		kills = 8
	}
	killLoop(t, kills)
}

// TestSoakKills is the long form.
func TestSoakKills(t *testing.T) {
	if os.Getenv("MILLRACE_SOAK") == "" {
		t.Skip("MILLRACE_SOAK is not set")
	}
	killLoop(t, 200)
}

func killLoop(t *testing.T, kills int) {
	w := newKillWorld(t, binary(t), 1)
	for round := range kills {
		s := w.start(t)
		if lost := w.check(t, s, false); lost > 0 {
			t.Fatalf("after %d kills %d acknowledged commands are lost", round, lost)
		}
		w.loadAndKill(t, s)
		if round%10 == 9 {
			isClean(t, w.data)
		}
	}
	s := w.start(t)
	w.resolve(t, s)
	if lost := w.check(t, s, true); lost > 0 {
		t.Errorf("%d acknowledged commands are lost", lost)
	}
	w.checkStreams(t, s)
	w.checkStock(t, s)
	s.rebuiltAlike(t, s.head(t, "stock/"+killSKU))
	s.stop(t)
	isClean(t, w.data)
	t.Logf("%d kills, %d commands acknowledged, %d requests without an answer, %d commands in all", kills, w.acks, w.unanswered, len(w.all))
}

// TestKillLoopControl: a server that acknowledges before it writes does not pass the same loop.
func TestKillLoopControl(t *testing.T) {
	bin, err := binaries.mutant()
	if err != nil {
		t.Fatal(err)
	}
	w := newKillWorld(t, bin, 2)
	w.control = true
	lost, kills := 0, 0
	for ; kills < 8 && lost == 0; kills++ {
		w.loadAndKill(t, w.start(t))
		s := w.start(t)
		lost += w.check(t, s, false)
		s.kill()
	}
	if lost == 0 {
		t.Fatalf("%d kills of a server that acknowledges too early went unnoticed: the loop sees nothing", kills)
	}
	t.Logf("%d kills, %d commands acknowledged, %d of them lost", kills, w.acks, lost)
}

// sent is a command on the client's side.
type sent struct {
	call
	stream string
	acked  bool
	first  *answer // the first answer; nil where the acknowledgement came as a line of many
	// final is what GET /v1/commands/{id} said once the outcome was there, and outcome is that, decoded.
	final   []byte
	outcome status
	checked bool
}

// killWorld is what the clients know, over all rounds.
type killWorld struct {
	bin, data string
	// control: the server is known to be bad, and only what it lost is counted.
	control bool
	rng     *rand.Rand
	clients []*killClient

	mu         sync.Mutex
	all        []*sent
	acks       int
	unanswered int
	faults     []string
	heard      chan struct{} // one for each acknowledgement
}

func newKillWorld(t *testing.T, bin string, seed uint64) *killWorld {
	t.Helper()
	random := func(stream uint64) *rand.Rand {
		return rand.New(rand.NewPCG(seed, stream)) //nolint:gosec // reproducible on purpose
	}
	w := &killWorld{bin: bin, data: t.TempDir(), rng: random(0), heard: make(chan struct{}, 1024)}
	for i := range uint64(killClients) {
		w.clients = append(w.clients, &killClient{w: w, name: fmt.Sprintf("k%d", i), many: i == 0, rng: random(i + 1)})
	}
	return w
}

// start starts the server on the folder as the last kill left it.
func (w *killWorld) start(t *testing.T) *server {
	t.Helper()
	s, err := tryServing(t, w.bin, w.data)
	if err != nil {
		t.Fatal(err)
	}
	if a := s.ops(t, "/readyz"); a.status != http.StatusOK {
		t.Fatalf("ready, says the line, but: %s", a)
	}
	return s
}

// loadAndKill lets all clients work and kills the server after some acknowledgements, in the middle of others.
func (w *killWorld) loadAndKill(t *testing.T, s *server) {
	t.Helper()
	if len(w.all) == 0 {
		receive := &sent{stream: "stock-" + killSKU, call: call{
			method: http.MethodPost, path: "/v1/stock/" + killSKU + "/receive", key: "receive", body: fmt.Appendf(nil, `{"quantity":%d}`, killStock),
		}}
		w.all = append(w.all, receive)
		w.ack(receive, s.do(t, receive.call, http.StatusAccepted))
		<-w.heard
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var wg sync.WaitGroup
	for _, c := range w.clients {
		wg.Go(func() { c.work(ctx, s) })
	}
	for range 5 + w.rng.IntN(120) {
		select {
		case <-w.heard:
		case <-ctx.Done():
			t.Fatalf("the server stands still: %s", s.stderr.String())
		}
	}
	s.kill()
	cancel()
	if said := s.stderr.String(); said != "" && !w.control { // warnings, errors, panics, data races
		t.Errorf("in good health the server says: %s", said)
	}
	// The clients must not wait for somebody to hear them.
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	for over := false; !over; {
		select {
		case <-w.heard:
		case <-ended:
			over = true
		}
	}
	for len(w.heard) > 0 {
		<-w.heard
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.faults {
		if !w.control {
			t.Error(f)
		}
	}
	w.faults = nil
}

func (w *killWorld) fault(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.faults) < 20 {
		w.faults = append(w.faults, fmt.Sprintf(format, args...))
	}
}

// ack books an acknowledgement. a is nil where it came as a line of many.
func (w *killWorld) ack(c *sent, a *answer) {
	w.mu.Lock()
	c.acked, c.first = true, a
	w.acks++
	w.mu.Unlock()
	w.heard <- struct{}{}
}

// killClient sends one request after the other. It never gives a command up: what had no answer is sent again.
type killClient struct {
	w       *killWorld
	name    string
	many    bool // sends lines of NDJSON
	rng     *rand.Rand
	n       int
	orders  []string
	done    []*sent
	pending []*sent
}

func (c *killClient) work(ctx context.Context, s *server) {
	for ctx.Err() == nil {
		if c.many {
			if !c.sendMany(ctx, s) {
				return
			}
			continue
		}
		if len(c.pending) == 0 {
			if len(c.done) > 0 && c.rng.IntN(10) == 0 {
				c.repeat(ctx, s)
				continue
			}
			c.pending = []*sent{c.next()}
		}
		one := c.pending[0]
		a, err := s.try(ctx, one.call)
		if err != nil {
			c.w.mu.Lock()
			c.w.unanswered++
			c.w.mu.Unlock()
			return // it is dead: the next round goes on with this one
		}
		c.pending = nil
		if a.status >= 500 || a.status == http.StatusBadRequest {
			c.w.fault("%s: %s", one.path, a)
			return
		}
		c.done = append(c.done, one)
		c.w.ack(one, a)
	}
}

// next makes a new command.
func (c *killClient) next() *sent {
	c.n++
	one := &sent{call: call{method: http.MethodPost, key: fmt.Sprintf("%s-%d", c.name, c.n)}}
	if c.rng.IntN(2) == 0 {
		one.prefer = "wait=30"
	}
	switch p := c.rng.IntN(100); {
	case p < 35 || len(c.orders) == 0:
		id := "o-" + one.key
		c.orders = append(c.orders, id)
		one.path, one.stream, one.body = "/v1/orders", "order-"+id, anOrder(id)
	case p < 70:
		id := c.orders[len(c.orders)-1-c.rng.IntN(min(3, len(c.orders)))]
		verb := []string{"confirm", "pay", "pack", "ship", "deliver", "return", "cancel"}[c.rng.IntN(7)]
		one.path, one.stream, one.body = "/v1/orders/"+id+"/"+verb, "order-"+id, []byte("{}")
		if verb == "cancel" {
			one.body = []byte(`{"reason":"changed their mind"}`)
		}
	default:
		one.path, one.stream = "/v1/stock/"+killSKU+"/reserve", "stock-"+killSKU
		one.body = []byte(`{"reservation":"` + one.key + `","quantity":1}`)
	}
	c.w.mu.Lock()
	c.w.all = append(c.w.all, one)
	c.w.mu.Unlock()
	return one
}

// repeat sends a command again that was acknowledged.
func (c *killClient) repeat(ctx context.Context, s *server) {
	one := c.done[c.rng.IntN(len(c.done))]
	a, err := s.try(ctx, one.call)
	if err == nil && (!a.replayed() || !a.equal(one.first)) {
		c.w.fault("a repetition of %s is answered differently:\n%s\n%s", one.key, one.first, a)
	}
}

// sendMany sends a batch of a shop's tills: orders and reservations as lines. It says whether the server answered all.
func (c *killClient) sendMany(ctx context.Context, s *server) bool {
	for len(c.pending) < 20 {
		one := c.next()
		one.prefer = ""
		one.body = one.envelope()
		one.path = "/v1/commands"
		c.pending = append(c.pending, one)
	}
	var body bytes.Buffer
	for _, one := range c.pending {
		body.Write(append(one.body, '\n'))
	}
	a, err := s.tryLines(ctx, call{method: http.MethodPost, path: "/v1/commands", kind: "application/x-ndjson", body: body.Bytes()})
	if err != nil {
		c.w.mu.Lock()
		c.w.unanswered++
		c.w.mu.Unlock()
	}
	lines := bytes.SplitAfter(a, []byte("\n"))
	for _, line := range lines[:len(lines)-1] { // what is behind the last newline was cut off
		var st status
		if err := json.Unmarshal(line, &st); err != nil || len(c.pending) == 0 || st.ID != c.pending[0].key {
			c.w.fault("an answer to a line: %v %s", err, line)
			return false
		}
		c.w.ack(c.pending[0], nil)
		c.pending = c.pending[1:]
	}
	return err == nil
}

// envelope is the command as POST /v1/commands takes it.
func (c *sent) envelope() []byte {
	verbs := map[string]string{
		"orders": "PlaceOrder", "reserve": "ReserveStock", "confirm": "ConfirmOrder", "pay": "MarkOrderPaid", "pack": "PackOrder",
		"ship": "ShipOrder", "deliver": "DeliverOrder", "return": "ReturnOrder", "cancel": "CancelOrder",
	}
	verb := verbs[c.path[strings.LastIndexByte(c.path, '/')+1:]]
	return fmt.Appendf(nil, `{"id":%q,"type":%q,"stream":%q,"data":%s}`, c.key, verb, c.stream, c.body)
}

// tryLines is try for an answer that may break off: what came counts.
func (s *server) tryLines(ctx context.Context, c call) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, c.method, s.url+c.path, bytes.NewReader(c.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", c.kind)
	if c.prefer != "" {
		req.Header.Set("Prefer", c.prefer)
	}
	res, err := s.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close() //nolint:errcheck // it was read
	var out bytes.Buffer
	_, err = out.ReadFrom(res.Body)
	return out.Bytes(), err
}

// check asks for what was acknowledged since the last check, and for some of what is older, or for all of it. It says
// how many are lost.
func (w *killWorld) check(t *testing.T, s *server, all bool) int {
	t.Helper()
	var ask []*sent
	for _, c := range w.all {
		if c.acked && (all || !c.checked || w.rng.IntN(len(w.all)) < 50) {
			ask = append(ask, c)
		}
	}
	lost := 0
	var mu sync.Mutex
	g := new(errgroup.Group)
	g.SetLimit(looking)
	for _, c := range ask {
		g.Go(func() error {
			there, err := c.check(t.Context(), s)
			if w.control && there {
				err = nil
			}
			if !there && err == nil {
				mu.Lock()
				lost++
				mu.Unlock()
				w.mu.Lock()
				c.acked = false // it is counted
				w.mu.Unlock()
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, s.stderr.String())
	}
	return lost
}

// check asks for one command: it is there, it is answered as before, and its outcome is what it was.
func (c *sent) check(ctx context.Context, s *server) (there bool, err error) {
	look := call{method: http.MethodGet, path: "/v1/commands/" + c.key}
	a, err := s.try(ctx, look)
	if err != nil || a.status == http.StatusNotFound {
		return false, err
	}
	again, err := s.try(ctx, c.call)
	if err != nil {
		return true, err
	}
	if !again.replayed() || (c.first != nil && !again.equal(c.first)) {
		return true, fmt.Errorf("%s is answered differently after a restart:\n%s\n%s", c.key, c.first, again)
	}
	if c.final == nil {
		waits := c.call
		waits.prefer = "wait=60"
		if _, err := s.try(ctx, waits); err != nil {
			return true, err
		}
		if a, err = s.try(ctx, look); err != nil {
			return true, err
		}
		if err := json.Unmarshal(a.body, &c.outcome); err != nil {
			return true, err
		}
		if !slices.Contains([]string{"decided", "refused"}, c.outcome.State) || c.outcome.Stream != c.stream {
			return true, fmt.Errorf("%s has no outcome: %s", c.key, a)
		}
		c.final = a.body
	}
	if !bytes.Equal(a.body, c.final) {
		return true, fmt.Errorf("%s had an outcome and has another one:\n%s\n%s", c.key, c.final, a)
	}
	c.checked = true
	return true, nil
}

// resolve sends what never had an answer once more.
func (w *killWorld) resolve(t *testing.T, s *server) {
	t.Helper()
	for _, c := range w.all {
		if !c.acked {
			c.first, c.acked = s.do(t, c.call, 200, 201, 202, 404, 409, 422), true
		}
	}
}

// anEvent is what the check needs of an event.
type anEvent struct {
	Version uint64 `json:"version"`
	Command string `json:"command_id"`
}

// checkStreams: versions are gapless, and every command has exactly the events of its outcome, side by side.
func (w *killWorld) checkStreams(t *testing.T, s *server) {
	t.Helper()
	want := map[string]map[string]int{} // stream -> command -> events
	for _, c := range w.all {
		if want[c.stream] == nil {
			want[c.stream] = map[string]int{}
		}
		if c.outcome.Events > 0 {
			want[c.stream][c.key] = c.outcome.Events
		}
	}
	for stream, commands := range want {
		if len(commands) == 0 {
			continue
		}
		category, id, _ := strings.Cut(stream, "-")
		path := map[string]string{"order": "/v1/orders/", "stock": "/v1/stock/"}[category] + id + "/events?limit=500"
		got := map[string]int{}
		var n uint64
		last := ""
		pages(t, s, path, func(e anEvent) {
			if n++; e.Version != n {
				t.Errorf("%s: version %d stands in place %d", stream, e.Version, n)
			}
			if got[e.Command] > 0 && e.Command != last {
				t.Errorf("%s: the events of %s are torn apart, or it was decided twice", stream, e.Command)
			}
			got[e.Command]++
			last = e.Command
		})
		if len(got) != len(commands) {
			t.Errorf("%s has events of %d commands, decided were %d", stream, len(got), len(commands))
		}
		for key, events := range commands {
			if got[key] != events {
				t.Errorf("%s: %d events of %s, its outcome says %d", stream, got[key], key, events)
			}
		}
	}
}

// checkStock: the level is what the decided reservations make it.
func (w *killWorld) checkStock(t *testing.T, s *server) {
	t.Helper()
	reserved, refused := 0, 0
	for _, c := range w.all {
		if c.stream != "stock-"+killSKU || c.key == "receive" {
			continue
		}
		if c.outcome.State == "decided" {
			reserved++
		} else {
			refused++
		}
	}
	var level struct {
		OnHand    int `json:"on_hand"`
		Reserved  int `json:"reserved"`
		Available int `json:"available"`
	}
	cursor := s.head(t, "stock/"+killSKU)
	s.do(t, call{method: http.MethodGet, path: "/v1/stock/" + killSKU + "?min_cursor=" + cursor, prefer: "wait=60"}, http.StatusOK).into(t, &level)
	if level.OnHand != killStock || level.Reserved != reserved || level.Available != killStock-reserved || reserved > killStock {
		t.Errorf("%d reservations were decided, of %d; the stock is %+v", reserved, killStock, level)
	}
	if refused > 0 && reserved != killStock {
		t.Errorf("%d were refused while only %d of %d were gone", refused, reserved, killStock)
	}
	t.Logf("%d reservations decided, %d refused", reserved, refused)
}
