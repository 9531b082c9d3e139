package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/retail/retailtest"
	"github.com/millrace-io/millrace/payment"
)

// fulfilling is a server in this process that carries orders through, as far as is said.
func fulfilling(t *testing.T, until order.FulfilmentUntil) *server {
	t.Helper()
	store, err := openStore(t.TempDir(), 4, quietLog())
	if err != nil {
		t.Fatal(err)
	}
	f := &fulfilment{FulfilmentOptions: order.FulfilmentOptions{Until: until}, payments: payments{payment.Account(), inProcessCall}}
	n, err := newNode(t.Context(), store, nodeOptions{log: quietLog(), fulfil: f})
	if err != nil {
		t.Fatal(err)
	}
	stop := running(context.Background(), n.run)
	api := httptest.NewServer(n.api)
	t.Cleanup(func() {
		api.Close()
		if err := stop(); err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return &server{url: api.URL, http: &http.Client{Timeout: patience}}
}

// fulfilSummary is what a test looks at of an import's result.
type fulfilSummary struct {
	Orders     int            `json:"orders"`
	Replayed   int            `json:"replayed"`
	Fulfilment map[string]int `json:"fulfilment"`
	Unfinished int            `json:"unfinished"`
}

func importFulfil(t *testing.T, s *server, name string, more ...string) (got fulfilSummary, stderr string, code int) {
	t.Helper()
	args := append([]string{"online-retail", name, "--server", s.url, "--fulfil", "--output", "json"}, more...)
	stdout, stderr, code := runImport(t.Context(), "", args...)
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatalf("exit code %d: %v: %s %s", code, err, stdout, stderr)
	}
	return got, stderr, code
}

// TestImportFulfil: every order that an import brings is carried through, and looked up at its end; again, and nothing is new.
func TestImportFulfil(t *testing.T) {
	name, want := retailFile(t, retailtest.Options{Seed: 3, Invoices: 60})
	s := fulfilling(t, order.UntilDelivered)
	got, stderr, code := importFulfil(t, s, name)
	if diff := cmp.Diff(fulfilSummary{Orders: want.Orders, Fulfilment: map[string]int{"completed": want.Orders}}, got); diff != "" || code != 0 {
		t.Errorf("exit code %d: %s\n%s", code, diff, stderr)
	}
	if !strings.Contains(stderr, "invoices\n") || !strings.Contains(stderr, " orders\n") {
		t.Errorf("no progress of both is shown: %s", stderr)
	}
	again, _, code := importFulfil(t, s, name)
	if code != 0 || again.Orders != 0 || again.Replayed != want.Invoices || again.Fulfilment["completed"] != want.Orders {
		t.Errorf("exit code %d: %+v", code, again)
	}
}

// TestImportFulfilUnfinished: where orders do not come to their ends, the import says so by its exit code, and where they stand.
func TestImportFulfilUnfinished(t *testing.T) {
	name, want := retailFile(t, retailtest.Options{Seed: 3, Invoices: 20})
	s := fulfilling(t, order.UntilPacked)
	got, stderr, code := importFulfil(t, s, name, "--decide-for", "3s", "--quiet")
	if code != client.ExitCheck || got.Unfinished != want.Orders || !strings.Contains(stderr, "have not come to their ends") {
		t.Errorf("exit code %d: %+v: %s", code, got, stderr)
	}
	if got.Fulfilment["shipping"] != want.Orders {
		t.Errorf("they stand at %v", got.Fulfilment)
	}
}

// TestDoorOfTheServer: what only the server sends is refused by the server as it is wired.
func TestDoorOfTheServer(t *testing.T) {
	s := fulfilling(t, order.UntilDelivered)
	for body, at := range map[string]string{
		`{"type":"RecordPayment","stream":"order-1","data":{}}`:                                    "/type",
		`{"type":"RequestPayment","stream":"order-1","data":{}}`:                                   "/type",
		`{"type":"PauseConsumer","stream":"consumer-orders","data":{}}`:                            "/stream",
		`{"type":"ReleaseStock","stream":"stock-A","data":{"reservation":"` + reservation1 + `"}}`: "/data/reservation",
	} {
		a := s.do(t, call{method: http.MethodPost, path: "/v1/commands", body: []byte(body)}, http.StatusBadRequest)
		if !bytes.Contains(a.body, []byte(`"pointer":"`+at+`"`)) {
			t.Errorf("%s: %s", body, a)
		}
	}
}

// reservation1 is what the process would call the first reservation of order 1.
var reservation1 = order.ReservationOf("1", 1)

// TestLaterProgress: what follows begins to be shown when its number is known, and ends what was shown before.
func TestLaterProgress(t *testing.T) {
	var out bytes.Buffer
	before := newProgress(&out, "invoices", 4, false)
	p := laterProgress{out: &out, what: "orders", before: before}
	before.set(4)
	p.set(0, 2)
	p.set(1, 2)
	p.set(2, 2)
	p.end()
	if want := "100 %  4 of 4 invoices\n 50 %  1 of 2 orders\n100 %  2 of 2 orders\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	out.Reset()
	quiet := laterProgress{out: &out, what: "orders", quiet: true, before: newProgress(&out, "invoices", 1, true)}
	quiet.set(1, 1)
	quiet.end()
	(&laterProgress{before: before}).end() // nothing came
	none := laterProgress{out: &out, what: "orders", before: before}
	none.set(0, 0)
	none.end()
	if out.Len() > 0 {
		t.Errorf("%q", out.String())
	}
}

// forge asks for events as a fault in the rules, or a change behind them, would leave them.
type forge struct {
	Received order.StockReceived  `json:"received,omitzero"`
	Reserved order.StockReserved  `json:"reserved,omitzero"`
	Released *order.StockReleased `json:"released,omitempty"`
}

// forged are rules that let anything be an event of stock.
func forged() millrace.Definition {
	return millrace.Domain[int]{
		Category: order.CategoryStock, StateVersion: 1,
		Initial: func(string) int { return 0 }, Evolve: func(n int, _ any) int { return n + 1 },
		Decide: func(_ int, c any, _ time.Time) ([]any, *millrace.Refusal) {
			f := c.(*forge) //nolint:forcetypeassert // there is no other
			events := []any{&f.Received, &f.Reserved}
			if f.Released != nil {
				events = append(events, f.Released)
			}
			return events, nil
		},
		Commands: []millrace.Message{millrace.MessageOf[forge]("Forge")},
		Events: []millrace.Message{
			millrace.MessageOf[order.StockReceived]("StockReceived"), millrace.MessageOf[order.StockReserved]("StockReserved"),
			millrace.MessageOf[order.StockReleased]("StockReleased"),
		},
	}
}

// forgedStore is a data folder whose stock has the events of a forge.
func forgedStore(t *testing.T, f *forge) string {
	t.Helper()
	dir := t.TempDir()
	store, err := openStore(dir, 4, quietLog())
	if err != nil {
		t.Fatal(err)
	}
	registry, err := millrace.NewRegistry(forged())
	if err != nil {
		t.Fatal(err)
	}
	p := command.New(store, registry, nil)
	stop := running(context.Background(), p.Run)
	_, data, err := registry.EncodeCommand(f)
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.Accept(t.Context(), millrace.Command{ID: "f", Stream: "stock-A", Type: "Forge", Data: data})
	if err != nil {
		t.Fatal(err)
	}
	if o, err := r.Wait(t.Context()); err != nil || o.Status != millrace.StatusDecided {
		t.Fatalf("%+v %v", o, err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestVerifyDomain: events whose sums do not add up are found, by name, though every byte and every hash of the store is
// right. Without --domain nothing is wrong, and with sums that add up neither: the controls.
func TestVerifyDomain(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	levels := func(onHand, reserved int64) order.Levels {
		return order.Levels{OnHand: onHand, Reserved: reserved, Available: onHand - reserved}
	}
	sound := forge{
		Received: order.StockReceived{At: at, Quantity: 10, Levels: levels(10, 0)},
		Reserved: order.StockReserved{At: at, Reservation: "r", Quantity: 4, Levels: levels(10, 4)},
	}
	wrongLevels, oversold, unknown := sound, sound, sound
	wrongLevels.Received.OnHand = 11
	oversold.Reserved = order.StockReserved{At: at, Reservation: "r", Quantity: 40, Levels: levels(10, 40)}
	unknown.Released = &order.StockReleased{At: at, Reservation: "other", Quantity: 1, Levels: levels(10, 3)}
	for _, c := range []struct {
		name   string
		forge  *forge
		broken string
	}{
		{"sound", &sound, ""}, {"wrong levels", &wrongLevels, order.BrokenLevels}, {"oversold", &oversold, order.BrokenStock},
		{"released and never reserved", &unknown, order.BrokenReservation},
	} {
		dir := forgedStore(t, c.forge)
		if stdout, stderr, code := runs(t, "verify", "--data", dir); code != 0 {
			t.Errorf("%s: without --domain: exit code %d: %s %s", c.name, code, stdout, stderr)
		}
		stdout, stderr, code := runs(t, "verify", "--data", dir, "--domain", "--output", "json")
		var v verdict
		if err := json.Unmarshal([]byte(stdout), &v); err != nil || v.Domain == nil {
			t.Fatalf("%s: %v: %s %s", c.name, err, stdout, stderr)
		}
		all := strings.Join(v.Problems, "\n")
		switch {
		case c.broken == "" && (code != 0 || !v.OK):
			t.Errorf("%s: exit code %d: %s", c.name, code, stdout)
		case c.broken != "" && (code != client.ExitCheck || v.OK || !strings.Contains(all, "domain: "+c.broken+": stock-A at version ")):
			t.Errorf("%s: exit code %d: %s", c.name, code, stdout)
		}
		if text, _, _ := runs(t, "verify", "--data", dir, "--domain"); c.broken != "" && !strings.Contains(text, c.broken+": stock-A") {
			t.Errorf("%s: %s", c.name, text)
		}
	}
}

// holed is a store of which one event is not read.
type holed struct {
	millrace.Driver
	skip int
}

func (h *holed) Feed(ctx context.Context, o millrace.FeedOptions) iter.Seq2[[]millrace.Recorded, error] {
	return func(yield func([]millrace.Recorded, error) bool) {
		n := 0
		for events, err := range h.Driver.Feed(ctx, o) {
			var out []millrace.Recorded
			for i := range events {
				if n++; n != h.skip {
					out = append(out, events[i])
				}
			}
			if !yield(out, err) {
				return
			}
		}
	}
}

// TestVerifyDomainReadsEachPosition: whichever event is not read, of however little account, verify --domain says so; where all are, it
// says nothing.
func TestVerifyDomainReadsEachPosition(t *testing.T) {
	disk := newDisk()
	l := disk.live(t, beginning{gateway: &line{n: new(atomic.Int64)}})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i := range 4 {
		if err := l.send(ctx, fmt.Sprint("receive-", i), "stock-A", &order.ReceiveStock{Quantity: new(int64(1))}); err != nil {
			t.Fatal(err)
		}
	}
	whole := l.n.store
	for skip := range 5 {
		l.n.store = millrace.NewStore(&holed{whole.Driver(), skip})
		said := strings.Join(auditOf(t, l.n).Problems, "; ")
		if found := strings.Contains(said, "was read "); found != (skip > 0) {
			t.Errorf("without event %d: %q", skip, said)
		}
	}
	if err := l.stop(); err != nil {
		t.Error(err)
	}
}
