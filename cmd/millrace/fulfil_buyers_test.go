package main

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/internal/jsonx"
)

const (
	// buyerCount people want one piece each of what there are buyerPieces of.
	buyerCount, buyerPieces = 1000, 100
	// buyersAtOnce have their requests on their way at a time.
	buyersAtOnce = 64
	buyerSKU     = "LAST"
)

// TestBuyers: a thousand people want one of a hundred pieces, over HTTP, of a server as it is without any settings. A hundred
// have theirs, nine hundred are told that there is none, and at no version of the stock there is less than nothing.
func TestBuyers(t *testing.T) {
	data := t.TempDir()
	s := serving(t, data)
	buyAll(t, s)
	s.stop(t)
	soldOut(t, verifiesDomain(t, "--data", data))
}

// buyAll lets all people order at servers in turn, and looks at what became of them.
func buyAll(t *testing.T, servers ...*server) {
	t.Helper()
	servers[0].do(t, call{method: http.MethodPost, path: "/v1/stock/" + buyerSKU + "/receive", key: "receive", prefer: "wait=30",
		body: fmt.Appendf(nil, `{"quantity":%d}`, buyerPieces)}, http.StatusOK)
	began := time.Now()
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(buyersAtOnce)
	for n := range buyerCount {
		g.Go(func() error {
			c := call{method: http.MethodPost, path: "/v1/orders", key: fmt.Sprintf("buy-%d", n), prefer: "wait=30",
				body: fmt.Appendf(nil, `{"id":"buyer-%d","currency":"EUR","lines":[%s]}`, n, aLine(buyerSKU, 1, "99.00"))}
			a, err := servers[n%len(servers)].try(ctx, c)
			if err == nil && a.status != http.StatusCreated {
				err = fmt.Errorf("%s: %s", c.key, a)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	placed := time.Since(began)
	for _, s := range servers {
		ended := map[string]int{}
		s.instances(t, buyerCount)
		t.Logf("all orders are placed after %s, and have come to their ends after %s", round(placed), round(time.Since(began)))
		// The orders' documents follow the same events on their own.
		s.caughtUp(t, s.head(t, "stock/"+buyerSKU))
		pages(t, s, "/v1/orders?limit=500", func(raw jsonx.RawValue) {
			var o order.Order
			if err := jsonx.Unmarshal(raw, &o); err != nil {
				t.Fatal(err)
			}
			ended[string(o.Status)+" "+o.CancelReason]++
			if confirmed := !o.ConfirmedAt.IsZero(); confirmed != (o.Status == order.StatusCompleted) {
				t.Errorf("%s is %s, and confirmed is %v", o.ID, o.Status, confirmed)
			}
		})
		if len(ended) != 2 || ended["completed "] != buyerPieces || ended["cancelled out_of_stock"] != buyerCount-buyerPieces {
			t.Errorf("%v", ended)
		}
	}
	levels(t, servers[0])
}

// levels wants the figures of each version of the stock to follow from the ones before it.
func levels(t *testing.T, s *server) {
	t.Helper()
	var hand, held, version, lowest int64 = 0, 0, 0, buyerPieces
	kinds := map[string]int{}
	pages(t, s, "/v1/stock/"+buyerSKU+"/events?limit=500", func(e struct {
		Version int64  `json:"version"`
		Type    string `json:"type"`
		Data    struct {
			Quantity int64 `json:"quantity"`
			OnHand   int64 `json:"on_hand"`
			Reserved int64 `json:"reserved"`
		} `json:"data"`
	}) {
		kinds[e.Type]++
		switch version++; e.Type {
		case "StockReceived":
			hand += e.Data.Quantity
		case "StockReserved":
			held += e.Data.Quantity
		case "StockReleased":
			held -= e.Data.Quantity
		case "StockCommitted":
			hand, held = hand-e.Data.Quantity, held-e.Data.Quantity
		}
		if e.Version != version || e.Data.OnHand != hand || e.Data.Reserved != held || hand < held || held < 0 {
			t.Errorf("version %d is %+v, and %d on hand and %d reserved were to be", version, e, hand, held)
		}
		lowest = min(lowest, hand-held)
	})
	if hand != 0 || held != 0 || lowest != 0 || kinds["StockCommitted"] != buyerPieces {
		t.Errorf("%d on hand, %d reserved, %d at the lowest: %v", hand, held, lowest, kinds)
	}
	t.Logf("%d versions of the stock: %v", version, kinds)
}

// soldOut wants an audit to have found every piece sold once.
func soldOut(t *testing.T, v *domainVerdict) {
	t.Helper()
	if s := v.Totals; v.Unsettled != 0 || s.Orders != buyerCount || s.Committed != buyerPieces || s.OnHand != 0 || s.Reserved != 0 || s.Money["EUR"].Captured.String() != "9900.00" {
		t.Errorf("%+v %+v", s, s.Money["EUR"])
	}
}
