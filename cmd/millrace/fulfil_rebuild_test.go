package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/smtptest"
	"github.com/millrace-io/millrace/sim/gateway"
)

// TestRebuildUnderFulfilment rebuilds the read models again and again while orders are carried through and customers are told. The
// gateway hears each request once, each customer has each mail once, a read meanwhile is never empty and never older than the one
// before it, and what was built is what was there.
func TestRebuildUnderFulfilment(t *testing.T) {
	data, s := t.TempDir(), newRebuiltShop(t, 150)
	at := serving(t, data, s.flags...)
	s.rebuildWhileBuying(t, shopLook, at)
	s.toldAndPaidOnce(t, at)
	at.stop(t)
	s.agrees(t, s.account, verifiesDomain(t, "--data", data))
}

// rebuiltShop is a shop whose read models are rebuilt, and its mails.
type rebuiltShop struct {
	*shopWorld
	box     *smtptest.Server
	flags   []string // of its servers
	account *account // in the end
}

func newRebuiltShop(t *testing.T, orders int) *rebuiltShop {
	t.Helper()
	box, flags := mailbox(t, smtptest.Options{})
	s := newShop(t, 51, orders, gateway.Faults{Decline: 0.1, Slow: 0.5, SlowMS: 40})
	return &rebuiltShop{s, box, append(flags, "--notify", "email", "--payments", s.url, "--backorder-retry", "200ms"), nil}
}

// rebuildWhileBuying lets all customers come, one after the other with a pause between, and has read models be rebuilt until the
// last is served.
func (s *rebuiltShop) rebuildWhileBuying(t *testing.T, between time.Duration, servers ...*server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, at := range servers {
		s.doors.add(at)
	}
	s.stockUp(t)
	s.receive(t, lateSKU, int64(2*len(s.buyers)))
	s.buy(ctx, s.buyers[:1])
	s.served(ctx, 1)
	var coming, reading sync.WaitGroup
	coming.Go(func() {
		for i := range s.buyers[1:] {
			s.buy(ctx, s.buyers[i+1:i+2])
			if client.Pause(ctx, between) != nil {
				return
			}
		}
	})
	over, stop := context.WithCancel(ctx)
	defer stop()
	var reads atomic.Int64
	for _, at := range servers {
		reading.Go(func() { reads.Add(readAlways(over, t, at, s.buyers[0].id)) })
	}
	rebuilds := 0
	for ; s.finished() < len(s.buyers) && ctx.Err() == nil; rebuilds++ {
		name := []string{order.ProjectionOrders, order.ProjectionStock, order.ProjectionReturns}[rebuilds%3]
		at := servers[rebuilds%len(servers)]
		if stdout, stderr, code := runs(t, "projections", "rebuild", name, "--server", at.url); code != 0 || strings.Contains(stdout, "NOT") {
			t.Errorf("rebuild of %s: exit code %d: %s %s", name, code, stdout, stderr)
		}
	}
	coming.Wait()
	s.buying.Wait()
	stop()
	reading.Wait()
	t.Logf("%d rebuilds and %d reads meanwhile", rebuilds, reads.Load())
}

// toldAndPaidOnce wants a server that nobody else asks any more to have everything settled, told and paid once.
func (s *rebuiltShop) toldAndPaidOnce(t *testing.T, at *server) {
	t.Helper()
	s.account = s.settle(t, at)
	at.rebuiltAlike(t, at.head(t, "orders/"+s.buyers[0].id))
	var want []string
	for _, b := range s.buyers {
		want = append(want, mailsOf(t, at, b.id)...)
		l, _ := s.gateway.Order(b.id)
		for _, op := range l.Operations {
			if op.Attempts != 1 {
				t.Errorf("%s: %s was asked for %d times", b.id, op.Key, op.Attempts)
			}
		}
	}
	sentOnce(t, s.box, want...)
}

// mailsOf are the mails that the customer of an order is to have.
func mailsOf(t *testing.T, s *server, id string) (all []string) {
	t.Helper()
	var o order.Order
	if err := jsonx.Unmarshal(s.get(t, "/v1/orders/"+id).body, &o); err != nil {
		t.Fatal(err)
	}
	add := func(name string, at time.Time) {
		if !at.IsZero() {
			all = append(all, mailOf(id, name))
		}
	}
	add("placed", o.PlacedAt)
	add("confirmed", o.ConfirmedAt)
	for i := range o.Shipments {
		add(fmt.Sprintf("shipped-%d", i+1), o.Shipments[i].ShippedAt)
	}
	add("delivered", o.DeliveredAt)
	add("cancelled", o.CancelledAt)
	add("refunded-1", o.ReturnedAt)
	return all
}

// readAlways reads an order, its stock and lists until ctx ends, and says how often.
func readAlways(ctx context.Context, t *testing.T, s *server, id string) (n int64) {
	seen := map[string]uint64{}
	for ; ; n++ {
		for _, path := range []string{"/v1/orders/" + id, "/v1/stock/SKU-0", "/v1/orders?limit=1", "/v1/stock?limit=1", "/v1/order-totals"} {
			a, err := s.try(ctx, call{method: http.MethodGet, path: path})
			if ctx.Err() != nil {
				return n
			}
			var doc struct {
				Version uint64            `json:"version"`
				Items   []json.RawMessage `json:"items"`
			}
			if err == nil {
				err = json.Unmarshal(a.body, &doc)
			}
			if err != nil || a.status != http.StatusOK || doc.Version < seen[path] || doc.Version == 0 && len(doc.Items) == 0 {
				t.Errorf("%s after version %d: %v %s", path, seen[path], err, a)
				return n
			}
			seen[path] = doc.Version
		}
	}
}
