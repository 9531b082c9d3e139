package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/internal/retail/retailtest"
)

// realRetail is the real file, seen from this folder: it lies beside the repository, and is not part of it.
const realRetail = "../../../shared/data/online-retail-2010-12-to-2011-05.csv.gz"

// realFile is the file of the real data set, and what must come of it. Where it is not there, the test is skipped and says so.
func realFile(t *testing.T) (name string, want retailtest.Expected) {
	t.Helper()
	name, named := os.Getenv("MILLRACE_RETAIL_FILE"), true
	if name == "" {
		name, named = realRetail, false
	}
	data, err := os.ReadFile(name) //nolint:gosec // whoever runs the test names it
	if err != nil && named {
		t.Fatalf("MILLRACE_RETAIL_FILE: %v", err)
	}
	if err != nil {
		t.Skipf("NOT RUN: the real data set is not at %s; set MILLRACE_RETAIL_FILE to a file of it (https://doi.org/10.24432/C5BW33)", name)
	}
	if testing.Short() {
		t.Skip("NOT RUN: the real data set takes half a minute, and -short is set")
	}
	want, err = retailtest.Expect(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if want.Orders == 0 || want.Returns == 0 {
		t.Fatalf("this is no file of the data set: %+v", want)
	}
	return name, want
}

// TestRealOrders imports six months of a real shop.
func TestRealOrders(t *testing.T) {
	name, want := realFile(t)
	importsExactly(t, name, &want)
}

// TestGeneratedOrders imports a file of the same shape, with everything that is odd in the real one and some damage.
func TestGeneratedOrders(t *testing.T) {
	for _, o := range []retailtest.Options{
		{Seed: 21, Invoices: 3000, Damage: true, Gzip: true},
		{Seed: 22, Invoices: 600, Damage: true, CRLF: true, BOM: true, Latin: true, Sister: true},
	} {
		t.Run(fmt.Sprint(o.Seed), func(t *testing.T) {
			name, want := retailFile(t, o)
			importsExactly(t, name, &want)
		})
	}
}

// imported is the closing object of an import.
type imported struct {
	Invoices      int     `json:"invoices"`
	Orders        int     `json:"orders"`
	Returns       int     `json:"returns"`
	Refused       int     `json:"refused"`
	DeadLetters   int     `json:"dead_letters"`
	Replayed      int     `json:"replayed"`
	Lines         int     `json:"lines"`
	Units         int64   `json:"units"`
	ReturnedUnits int64   `json:"returned_units"`
	Minor         int64   `json:"total_minor"`
	ReturnedMinor int64   `json:"returned_minor"`
	Seconds       float64 `json:"seconds"`
}

func runImportOf(t *testing.T, name string, servers ...*server) (out imported) {
	t.Helper()
	args := []string{"import", "online-retail", name, "--output", "json", "--quiet"}
	for _, s := range servers {
		args = append(args, "--server", s.url)
	}
	stdout, stderr, code := runs(t, args...)
	if err := json.Unmarshal([]byte(stdout), &out); err != nil || code != 0 {
		t.Fatalf("import: exit code %d, %v: %s %s", code, err, stdout, stderr)
	}
	if out.Invoices != out.Orders+out.Returns+out.Refused+out.DeadLetters+out.Replayed {
		t.Errorf("the account does not add up: %s", stdout)
	}
	return out
}

// is wants the account of the first import of a file.
func (i imported) is(t *testing.T, want *retailtest.Expected) {
	t.Helper()
	t.Logf("%d invoices of %d lines in %.1f s: %d orders, %d returns, %d refused, %d dead letters",
		i.Invoices, i.Lines, i.Seconds, i.Orders, i.Returns, i.Refused, i.DeadLetters)
	if i.Seconds <= 0 {
		t.Error("no seconds")
	}
	i.Seconds = 0
	if diff := cmp.Diff(imported{
		Invoices: want.Invoices, Orders: want.Orders, Returns: want.Returns, Refused: want.Refused, DeadLetters: want.DeadLetters,
		Lines: want.Rows, Units: want.Units, ReturnedUnits: want.ReturnedUnits, Minor: want.Minor, ReturnedMinor: want.ReturnedMinor,
	}, i); diff != "" {
		t.Errorf("the import says:\n%s", diff)
	}
}

// isAgain wants the account of an import of which some answers were lost: what was asked for again was there.
func (i imported) isAgain(t *testing.T, want *retailtest.Expected) {
	t.Helper()
	all := want.Orders + want.Returns + want.Refused + want.DeadLetters
	if i.Invoices != want.Invoices || i.Lines != want.Rows || i.Orders+i.Returns+i.Refused+i.DeadLetters+i.Replayed != all ||
		i.Orders > want.Orders || i.Returns > want.Returns || i.Refused > want.Refused || i.DeadLetters > want.DeadLetters {
		t.Errorf("the import says %+v of %+v", i, imported{
			Invoices: want.Invoices, Orders: want.Orders, Returns: want.Returns, Refused: want.Refused, DeadLetters: want.DeadLetters, Lines: want.Rows,
		})
	}
}

// importsExactly imports a file twice and compares everything that can be read back with what must come of it.
func importsExactly(t *testing.T, name string, want *retailtest.Expected) {
	data := t.TempDir()
	s := serving(t, data)
	first := runImportOf(t, name, s)
	first.is(t, want)
	stream := anyOrder(t, s)
	head := s.head(t, stream)
	s.caughtUp(t, head)
	readsBack(t, s, want)

	second := runImportOf(t, name, s)
	if second.Replayed != want.Invoices || second.Lines != want.Rows {
		t.Errorf("the second run: %+v", second)
	}
	if now := s.head(t, stream); now != head {
		t.Errorf("the second run wrote something: the head was %s and is %s", head, now)
	}
	s.stop(t)
	isClean(t, data)

	s = serving(t, data)
	if now := s.head(t, stream); now != head {
		t.Errorf("a restart moved the head: it was %s and is %s", head, now)
	}
	s.rebuiltAlike(t, head)
	readsBack(t, s, want)
	s.stop(t)
	isClean(t, data)
}

// anyOrder is the path of some order.
func anyOrder(t *testing.T, s *server) string {
	t.Helper()
	var page struct {
		Items []struct {
			ID string `json:"id"`
		} `json:"items"`
	}
	s.get(t, "/v1/orders?limit=1").into(t, &page)
	if len(page.Items) != 1 {
		t.Fatal("no orders")
	}
	return "orders/" + page.Items[0].ID
}

// sums are what is added up over orders or returns.
type sums struct {
	Count, Units, Minor int64
}

type document struct {
	ID       string `json:"id"`
	Status   string `json:"status"`
	Customer string `json:"customer_id"`
	Placed   string `json:"placed_at"`
	Lines    []struct {
		Quantity int64  `json:"quantity"`
		Total    string `json:"line_total"`
	} `json:"lines"`
	Total struct {
		Amount   string `json:"amount"`
		Currency string `json:"currency"`
	} `json:"total"`
}

// readsBack adds up what the server shows, in three ways: the totals by day, and every order and every return, line by
// line.
func readsBack(t *testing.T, s *server, want *retailtest.Expected) {
	t.Helper()
	readsBackAs(t, s, want, "placed")
}

// readsBackAs is readsBack where all orders are in some status.
func readsBackAs(t *testing.T, s *server, want *retailtest.Expected, status string) {
	t.Helper()
	var totals struct {
		Items []struct {
			Status, Currency, Amount string
			Orders, Units            int64
		} `json:"items"`
	}
	s.get(t, "/v1/order-totals").into(t, &totals)
	byStatus := map[string]sums{}
	for _, row := range totals.Items {
		sum := byStatus[row.Status+" "+row.Currency]
		byStatus[row.Status+" "+row.Currency] = sums{sum.Count + row.Orders, sum.Units + row.Units, sum.Minor + pence(t, row.Amount)}
	}
	orders := sums{int64(want.Orders), want.Units, want.Minor}
	if diff := cmp.Diff(map[string]sums{status + " GBP": orders}, byStatus); diff != "" {
		t.Errorf("by /v1/order-totals:\n%s", diff)
	}
	accounts := map[string]retailtest.Account{}
	if diff := cmp.Diff(map[string]sums{status + " GBP": orders}, addUp(t, s, "/v1/orders", func(customer string, minor int64) {
		a := accounts[customer]
		a.Orders, a.Minor = a.Orders+1, a.Minor+minor
		accounts[customer] = a
	})); diff != "" {
		t.Errorf("by all orders:\n%s", diff)
	}
	if diff := cmp.Diff(map[string]sums{" GBP": {int64(want.Returns), want.ReturnedUnits, want.ReturnedMinor}}, addUp(t, s, "/v1/returns", func(customer string, minor int64) {
		a := accounts[customer]
		a.Returns, a.ReturnedMinor = a.Returns+1, a.ReturnedMinor+minor
		accounts[customer] = a
	})); diff != "" {
		t.Errorf("by all returns:\n%s", diff)
	}
	if diff := cmp.Diff(want.Customers, accounts); diff != "" {
		t.Errorf("by customer:\n%.2000s", diff)
	}
}

// addUp lists everything page by page: each once, in the order that the list promises.
func addUp(t *testing.T, s *server, path string, book func(customer string, minor int64)) map[string]sums {
	t.Helper()
	out, seen, last := map[string]sums{}, map[string]bool{}, ""
	pages(t, s, path+"?limit=500", func(d document) {
		if seen[d.ID] || !strings.HasPrefix(d.ID, "online-retail-") {
			t.Errorf("%q is listed, again or by mistake", d.ID)
		}
		seen[d.ID] = true
		if last != "" && d.Placed > last {
			t.Errorf("%s is older than the one before it", d.ID)
		}
		last = d.Placed
		minor, units := int64(0), int64(0)
		for _, l := range d.Lines {
			minor += pence(t, l.Total)
			units += l.Quantity
		}
		if minor != pence(t, d.Total.Amount) {
			t.Errorf("%s: its lines add up to %d, its total is %s", d.ID, minor, d.Total.Amount)
		}
		sum := out[d.Status+" "+d.Total.Currency]
		out[d.Status+" "+d.Total.Currency] = sums{sum.Count + 1, sum.Units + units, sum.Minor + minor}
		book(d.Customer, minor)
	})
	return out
}

// pence reads an amount of two decimals.
func pence(t *testing.T, amount string) int64 {
	t.Helper()
	whole, cents, ok := strings.Cut(amount, ".")
	n, err := strconv.ParseInt(whole+cents, 10, 64)
	if err != nil || !ok || len(cents) != 2 {
		t.Fatalf("%q is no amount of pounds and pence", amount)
	}
	return n
}
