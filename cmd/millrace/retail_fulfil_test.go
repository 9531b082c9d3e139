package main

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/internal/retail/retailtest"
)

// TestRealOrdersFulfilled has six months of a real shop's orders carried through.
func TestRealOrdersFulfilled(t *testing.T) {
	name, want := realFile(t)
	fulfilsExactly(t, name, &want)
}

// TestGeneratedOrdersFulfilled does so with a file of the same shape, with everything that is odd in the real one and some damage.
func TestGeneratedOrdersFulfilled(t *testing.T) {
	name, want := retailFile(t, retailtest.Options{Seed: 23, Invoices: 500, Damage: true})
	fulfilsExactly(t, name, &want)
}

// fulfilsExactly imports a file, has each order carried through, and compares stock and money with what the file says by another
// reckoning: every piece that was ordered was received for it, and has left, but for those of refused orders; every order is completed and paid; and what came back
// is what the credit notes say.
func fulfilsExactly(t *testing.T, name string, want *retailtest.Expected) {
	data := t.TempDir()
	s := serving(t, data)
	began := time.Now()
	stdout, stderr, code := runs(t, "import", "online-retail", name, "--fulfil", "--output", "json", "--quiet", "--server", s.url)
	var out struct {
		imported
		Fulfilment map[string]int `json:"fulfilment"`
		Unfinished int            `json:"unfinished"`
	}
	if err := json.Unmarshal([]byte(stdout), &out); err != nil || code != 0 {
		t.Fatalf("import --fulfil: exit code %d, %v: %s %s", code, err, stdout, stderr)
	}
	took := time.Since(began)
	out.is(t, want)
	if diff := cmp.Diff(map[string]int{"completed": want.Orders}, out.Fulfilment); diff != "" || out.Unfinished > 0 {
		t.Errorf("%d are unfinished:\n%s", out.Unfinished, diff)
	}
	s.instances(t, want.Orders)
	s.caughtUp(t, s.head(t, anyOrder(t, s)))
	readsBackAs(t, s, want, "completed")
	skus, left := 0, map[string]int64{}
	pages(t, s, "/v1/stock?limit=500", func(level struct {
		SKU      string `json:"sku"`
		OnHand   int64  `json:"on_hand"`
		Reserved int64  `json:"reserved"`
	}) {
		if skus++; level.OnHand != 0 {
			left[level.SKU] = level.OnHand
		}
		if level.Reserved != 0 {
			t.Errorf("%+v", level)
		}
	})
	if diff := cmp.Diff(want.Left, left); diff != "" {
		t.Errorf("what is on hand is not what nobody took:\n%s", diff)
	}
	s.stop(t)
	v := verifiesDomain(t, "--data", data)
	m := v.Totals.Money["GBP"]
	if m == nil || len(v.Totals.Money) != 1 || v.Unsettled != 0 {
		t.Fatalf("%+v, unsettled %d", v.Totals, v.Unsettled)
	}
	rest := int64(0)
	for _, n := range left {
		rest += n
	}
	type account struct{ Orders, Received, Adjusted, Committed, OnHand, Reserved, Ordered, Captured int64 }
	if diff := cmp.Diff(account{Orders: int64(want.Orders), Received: want.Units + rest, Committed: want.Units, OnHand: rest, Ordered: want.Minor, Captured: want.Minor}, account{
		v.Totals.Orders, v.Totals.Received, v.Totals.Adjusted, v.Totals.Committed, v.Totals.OnHand, v.Totals.Reserved,
		pence(t, m.Ordered.String()), pence(t, m.Captured.String()),
	}); diff != "" || !m.Refunded.IsZero() || !m.Otherwise.IsZero() {
		t.Errorf("%+v; verify --domain says:\n%s", m, diff)
	}
	t.Logf("%d orders of %d pieces and %s GBP are completed after %s, in %d events; %d pieces of %d SKUs are left; %d returns",
		want.Orders, want.Units, m.Captured, round(took), v.Totals.Events, rest, skus, want.Returns)
}
