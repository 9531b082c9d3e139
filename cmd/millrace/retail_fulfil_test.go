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

// fulfilled is the closing object of an import that has orders carried through.
type fulfilled struct {
	imported
	Fulfilment map[string]int `json:"fulfilment"`
	Unfinished int            `json:"unfinished"`
}

// importFulfilled are the arguments of such an import.
func importFulfilled(name string, servers ...*server) []string {
	args := []string{"import", "online-retail", name, "--fulfil", "--output", "json", "--quiet"}
	for _, s := range servers {
		args = append(args, "--server", s.url)
	}
	return args
}

// readFulfilled reads what such an import says, and wants every order to have come to its end.
func readFulfilled(t *testing.T, p *process, want *retailtest.Expected) (out fulfilled) {
	t.Helper()
	code := p.exit(t)
	if err := json.Unmarshal([]byte(p.stdout.String()), &out); err != nil || code != 0 {
		t.Fatalf("import --fulfil: exit code %d, %v: %s %s", code, err, p.stdout.String(), p.stderr.String())
	}
	if diff := cmp.Diff(map[string]int{"completed": want.Orders}, out.Fulfilment); diff != "" || out.Unfinished > 0 {
		t.Errorf("%d are unfinished:\n%s", out.Unfinished, diff)
	}
	return out
}

// fulfilsExactly imports a file, has each order carried through, and compares stock and money with what the file says by another
// reckoning.
func fulfilsExactly(t *testing.T, name string, want *retailtest.Expected) {
	data := t.TempDir()
	s := serving(t, data)
	began := time.Now()
	p, err := launch(t, binary(t), importFulfilled(name, s)...)
	if err != nil {
		t.Fatal(err)
	}
	out := readFulfilled(t, p, want)
	took := time.Since(began)
	out.is(t, want)
	left := isFulfilled(t, s, want)
	s.stop(t)
	v := verifiesDomain(t, "--data", data)
	addsUp(t, v, want, left)
	t.Logf("%d orders of %d pieces and %d pence are completed after %s, in %d events; %d returns",
		want.Orders, want.Units, want.Minor, round(took), v.Totals.Events, want.Returns)
}

// isFulfilled wants a server to show what a file says by another reckoning: every piece that was ordered was received for it, and has left,
// but for those of refused orders; every order is completed; and what came back is what the credit notes say. It gives what is on hand.
func isFulfilled(t *testing.T, s *server, want *retailtest.Expected) (left map[string]int64) {
	t.Helper()
	s.instances(t, want.Orders)
	s.caughtUp(t, s.head(t, anyOrder(t, s)))
	readsBackAs(t, s, want, "completed")
	left = map[string]int64{}
	pages(t, s, "/v1/stock?limit=500", func(level struct {
		SKU      string `json:"sku"`
		OnHand   int64  `json:"on_hand"`
		Reserved int64  `json:"reserved"`
	}) {
		if level.OnHand != 0 {
			left[level.SKU] = level.OnHand
		}
		if level.Reserved != 0 {
			t.Errorf("%+v", level)
		}
	})
	if diff := cmp.Diff(want.Left, left); diff != "" {
		t.Errorf("what is on hand is not what nobody took:\n%s", diff)
	}
	return left
}

// addsUp wants an audit of the events to come to what a file says: what was received is what left and what is on hand, and what was
// ordered is paid.
func addsUp(t *testing.T, v *domainVerdict, want *retailtest.Expected, left map[string]int64) {
	t.Helper()
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
}
