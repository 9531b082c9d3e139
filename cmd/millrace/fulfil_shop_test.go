package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-io/millrace/internal/client"
	pay "github.com/millrace-io/millrace/internal/payment"
	"github.com/millrace-io/millrace/sim/gateway"
)

const (
	// shopSKUs have enough of everything, few enough for orders to meet at them.
	shopSKUs = 5
	// scarceSKU is short, and lateSKU is there only when the shop receives it at the end.
	scarceSKU, lateSKU = "SCARCE", "LATE"
	// scarcePieces are for some of those who want one.
	scarcePieces = 6
	// shopLook is the time between two looks at an order, and before a request is sent again that had no answer.
	shopLook = 20 * time.Millisecond
	// hesitation bounds how long after ordering a customer cancels: about as long as an order takes with a gateway as slow.
	hesitation = 150 * time.Millisecond
)

// shopFaults are how the shop's payment gateway behaves.
var shopFaults = gateway.Faults{Decline: 0.12, Lose: 0.1, Fail: 0.1, Slow: 0.5, SlowMS: 40}

// The moments of a request to the gateway at which something can happen.
type moment int

const (
	unseen   moment = iota // the request is lost
	unheard                // what was asked is done after it
	done                   // it was done, and the answer is lost
	answered               // the answer is on its way
)

func (m moment) String() string { return [...]string{"unseen", "unheard", "done", "answered"}[m] }

// tap is the shop's gateway as servers see it: at one request, which is told beforehand, something happens.
type tap struct {
	gateway http.Handler
	// fresh has each attempt have a key of its own, as if there were none: for the control.
	fresh bool

	mu     sync.Mutex
	n      int
	from   string // who must ask
	kind   pay.Kind
	left   int // requests of the kind until then
	at     moment
	strike func()
}

// arm has strike be called at the n-th request of a kind from now that comes from somebody (see [tap.of]), or from anybody where
// from is empty.
func (p *tap) arm(from string, kind pay.Kind, n int, at moment, strike func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.from, p.kind, p.left, p.at, p.strike = from, kind, n, at, strike
}

// due takes the strike out that is due at a request.
func (p *tap) due(from string, r *http.Request) (at moment, strike func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	kind := pay.Authorise
	if path, ok := strings.CutPrefix(r.URL.Path, "/v1/payments/"); ok {
		_, verb, _ := strings.Cut(path, "/")
		kind = pay.Kind(verb)
	}
	if p.strike == nil || kind != p.kind || p.from != "" && p.from != from {
		return 0, nil
	}
	if p.left--; p.left > 0 {
		return 0, nil
	}
	strike, p.strike = p.strike, nil
	return p.at, strike
}

// of is the gateway as one server sees it, which is told from the others by a name.
func (p *tap) of(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.hear(name, w, r) })
}

func (p *tap) hear(from string, w http.ResponseWriter, r *http.Request) {
	at, strike := p.due(from, r)
	switch {
	case strike == nil:
		p.serve(w, r)
	case at == unseen:
		strike()
		panic(http.ErrAbortHandler) // cuts the connection
	case at == answered:
		defer strike()
		p.serve(w, r)
		_ = http.NewResponseController(w).Flush() // the client may be gone
	default:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r = r.Clone(context.WithoutCancel(r.Context()))
		r.Body = io.NopCloser(bytes.NewReader(body))
		if at == unheard {
			strike()
		} else {
			defer strike()
		}
		p.serve(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	}
}

// serve passes a request on; where there are to be no keys, with another one that is changed back in the answer.
func (p *tap) serve(w http.ResponseWriter, r *http.Request) {
	if !p.fresh {
		p.gateway.ServeHTTP(w, r)
		return
	}
	p.mu.Lock()
	p.n++
	key, another := r.Header.Get("Idempotency-Key"), fmt.Sprintf("attempt-%d", p.n)
	p.mu.Unlock()
	r.Header.Set("Idempotency-Key", another)
	answer := httptest.NewRecorder()
	p.gateway.ServeHTTP(answer, r)
	w.WriteHeader(answer.Code)
	_, _ = w.Write(bytes.ReplaceAll(answer.Body.Bytes(), []byte(another), []byte(key))) //nolint:gosec // the simulator's own answer
}

// doors are the servers that customers know of. There may be none for a while.
type doors struct {
	mu     sync.Mutex
	open   []*server
	turn   int
	opened chan struct{} // closed when there is one
}

func newDoors() *doors { return &doors{opened: make(chan struct{})} }

func (d *doors) add(s *server) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open = append(d.open, s); len(d.open) == 1 {
		close(d.opened)
	}
}

func (d *doors) remove(s *server) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, one := range d.open {
		if one == s {
			d.open = append(d.open[:i:i], d.open[i+1:]...)
			if len(d.open) == 0 {
				d.opened = make(chan struct{})
			}
			return
		}
	}
}

// next is the next server in turn; it waits for one.
func (d *doors) next(ctx context.Context) (*server, error) {
	for {
		d.mu.Lock()
		opened := d.opened
		if len(d.open) > 0 {
			d.turn++
			s := d.open[d.turn%len(d.open)]
			d.mu.Unlock()
			return s, nil
		}
		d.mu.Unlock()
		select {
		case <-opened:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// shopWorld is customers, what they order, and the gateway where they pay. Servers come and go under it.
type shopWorld struct {
	gateway  *gateway.Gateway
	tap      *tap
	url      string // of the gateway
	doors    *doors
	received map[string]int64
	buyers   []*buyer

	buying sync.WaitGroup

	mu     sync.Mutex
	heard  func() // at each answer of a server
	faults []string
	ended  int // buyers who have what they wanted, or never will
}

// buyer is one order, and what its customer does.
type buyer struct {
	id    string
	rng   *rand.Rand
	lines []item
	// backorder is the order's; cancels and returns say what the customer does, restock whether what comes back can be sold.
	backorder       string
	cancels         bool
	returns, whole  bool
	restock         bool
	cancelled, sent bool    // what the server said yes to
	back            []int64 // by line
}

// item is a line of an order.
type item struct {
	SKU       string `json:"sku"`
	Quantity  int64  `json:"quantity"`
	UnitPrice string `json:"unit_price"`
}

// newShop has so many orders, which follow from the seed.
func newShop(t *testing.T, seed uint64, orders int, faults gateway.Faults) *shopWorld {
	t.Helper()
	g, err := gateway.New(&gateway.Options{Seed: seed, Faults: faults})
	if err != nil {
		t.Fatal(err)
	}
	s := &shopWorld{gateway: g, tap: &tap{gateway: g}, doors: newDoors(), received: map[string]int64{}, heard: func() {}}
	s.url = s.urlOf(t, "")
	for i := range orders {
		r := rand.New(rand.NewPCG(seed, uint64(i))) //nolint:gosec // reproducible on purpose
		b := &buyer{id: fmt.Sprintf("o%d", i), rng: r}
		for range 1 + r.IntN(3) {
			b.lines = append(b.lines, item{fmt.Sprintf("SKU-%d", r.IntN(shopSKUs)), 1 + r.Int64N(4), fmt.Sprintf("%d.%02d", r.IntN(40), 1+r.IntN(99))})
		}
		switch i % 10 {
		case 1, 2:
			b.lines = append(b.lines, item{scarceSKU, 1, "9.99"})
		case 3:
			b.lines = append(b.lines, item{lateSKU, 2, "0.50"})
			b.backorder = []string{"wait", "split"}[r.IntN(2)]
		case 4, 5, 6:
			b.cancels = true
		case 7, 8:
			b.returns, b.whole, b.restock = true, r.IntN(2) == 0, r.IntN(3) > 0
		}
		b.back = make([]int64, len(b.lines))
		s.buyers = append(s.buyers, b)
	}
	return s
}

// urlOf is an address of the gateway for one server, which is told from the others by a name.
func (s *shopWorld) urlOf(t *testing.T, name string) string {
	t.Helper()
	web := httptest.NewServer(s.tap.of(name))
	t.Cleanup(func() { s.gateway.Close(); web.Close() }) // the gateway first: it lets go of whom it keeps waiting
	return web.URL
}

func (s *shopWorld) fault(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, fmt.Sprintf(format, args...))
}

// send sends a command under one key until it has its outcome, at whichever server; nil where ctx ends before.
func (s *shopWorld) send(ctx context.Context, path, key string, body []byte) *answer {
	for ctx.Err() == nil {
		at, err := s.doors.next(ctx)
		if err != nil {
			break
		}
		a, err := at.try(ctx, call{method: http.MethodPost, path: path, key: key, body: body, prefer: "wait=30"})
		switch {
		case err == nil && a.status != http.StatusAccepted && a.status != http.StatusTooManyRequests && a.status < 500:
			s.mu.Lock()
			heard := s.heard
			s.mu.Unlock()
			heard()
			return a
		case client.Pause(ctx, shopLook) != nil:
			return nil
		}
	}
	return nil
}

// receive has goods come in.
func (s *shopWorld) receive(t *testing.T, sku string, quantity int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	key := fmt.Sprintf("receive-%s-%d", sku, s.received[sku])
	s.received[sku] += quantity
	if a := s.send(ctx, "/v1/stock/"+sku+"/receive", key, fmt.Appendf(nil, `{"quantity":%d}`, quantity)); a == nil || a.status != http.StatusOK {
		t.Fatalf("receive: %s", a)
	}
}

// stockUp receives enough of what is not meant to be short.
func (s *shopWorld) stockUp(t *testing.T) {
	t.Helper()
	for i := range shopSKUs {
		s.receive(t, fmt.Sprintf("SKU-%d", i), int64(12*len(s.buyers)))
	}
	s.receive(t, scarceSKU, scarcePieces)
}

// buy lets some more customers come; each goes on by itself, and waits for nobody.
func (s *shopWorld) buy(ctx context.Context, buyers []*buyer) {
	for _, b := range buyers {
		s.buying.Go(func() {
			if err := s.serve(ctx, b); err != nil {
				s.fault("%s: %v", b.id, err)
			}
			s.mu.Lock()
			s.ended++
			s.mu.Unlock()
		})
	}
}

// serve is a customer's dealings with the shop.
func (s *shopWorld) serve(ctx context.Context, b *buyer) error {
	lines, err := json.Marshal(b.lines)
	if err != nil {
		return err
	}
	body := fmt.Appendf(nil, `{"id":%q,"customer_id":%q,"email":"%s@example.org","currency":"EUR","lines":%s`, b.id, "of-"+b.id, b.id, lines)
	if b.backorder != "" {
		body = fmt.Appendf(body, `,"backorder":%q`, b.backorder)
	}
	if a := s.send(ctx, "/v1/orders", "place-"+b.id, append(body, '}')); a == nil || a.status != http.StatusCreated {
		return fmt.Errorf("placing: %v", a)
	}
	if b.cancels {
		if err := client.Pause(ctx, time.Duration(b.rng.Int64N(int64(hesitation)))); err != nil {
			return err
		}
		a := s.send(ctx, "/v1/orders/"+b.id+"/cancel", "cancel-"+b.id, []byte(`{"reason":"changed_my_mind"}`))
		if a == nil || a.status != http.StatusOK && !bytes.Contains(a.body, []byte("order_not_cancellable")) {
			return fmt.Errorf("cancelling: %v", a)
		}
		b.cancelled = a.status == http.StatusOK
		return nil
	}
	if b.backorder != "" {
		return nil // what is late comes when all others have been served
	}
	end, err := s.end(ctx, b)
	if err != nil || !b.returns || end != "completed" {
		return err
	}
	return s.giveBack(ctx, b)
}

// giveBack returns an order that was delivered, whole or a part of it.
func (s *shopWorld) giveBack(ctx context.Context, b *buyer) error {
	var lines []map[string]int64
	for i, l := range b.lines {
		if q := l.Quantity; b.whole || i == 0 {
			if !b.whole {
				q = 1
			}
			b.back[i] = q
			lines = append(lines, map[string]int64{"line": int64(i + 1), "quantity": q})
		}
	}
	body, err := json.Marshal(map[string]any{"lines": lines, "restock": b.restock})
	if err != nil {
		return err
	}
	a := s.send(ctx, "/v1/orders/"+b.id+"/return", "return-"+b.id, body)
	if a == nil || a.status != http.StatusOK {
		return fmt.Errorf("returning: %v", a)
	}
	b.sent = true
	return nil
}

// end waits until an order has come to its end, and says to which. A server that was killed may have to find out again.
func (s *shopWorld) end(ctx context.Context, b *buyer) (string, error) {
	for ctx.Err() == nil {
		at, err := s.doors.next(ctx)
		if err != nil {
			break
		}
		a, err := at.try(ctx, call{method: http.MethodGet, path: "/v1/processes/fulfilment/instances/order-" + b.id})
		var i struct {
			State, Failed string
			Done          bool
		}
		if err == nil && a.status == http.StatusOK {
			switch err := json.Unmarshal(a.body, &i); {
			case err != nil:
				return "", err
			case i.Failed != "":
				return "", fmt.Errorf("it has stopped: %s", i.Failed)
			case i.Done:
				return i.State, nil
			}
		}
		if client.Pause(ctx, shopLook) != nil {
			break
		}
	}
	return "", fmt.Errorf("it has not come to its end: %w", ctx.Err())
}
