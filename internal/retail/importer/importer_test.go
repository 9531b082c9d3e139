package importer_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/retail"
	"github.com/millrace-io/millrace/internal/retail/importer"
	"github.com/millrace-io/millrace/internal/retail/retailtest"
	"github.com/millrace-io/millrace/sim/standin"
)

const header = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"

func generated(t *testing.T, o retailtest.Options) (*retail.File, retailtest.Expected) {
	t.Helper()
	var text bytes.Buffer
	want, err := retailtest.Generate(&text, o)
	if err != nil {
		t.Fatal(err)
	}
	return parsed(t, text.String()), want
}

func parsed(t *testing.T, text string) *retail.File {
	t.Helper()
	f, err := retail.Read(strings.NewReader(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func serve(t *testing.T, h http.Handler) *client.Client {
	t.Helper()
	web := httptest.NewServer(h)
	t.Cleanup(web.Close)
	c, err := client.New([]string{web.URL}, &client.Options{RetryFor: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func run(t *testing.T, c *client.Client, f *retail.File, o *importer.Options) *importer.Summary {
	t.Helper()
	sum, err := importer.Run(t.Context(), c, f, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := sum.Check(f.Len()); err != nil {
		t.Error(err)
	}
	return sum
}

var notTime = cmpopts.IgnoreFields(importer.Summary{}, "Seconds")

func summary(want *retailtest.Expected) *importer.Summary {
	return &importer.Summary{
		Invoices: want.Invoices, Orders: want.Orders, Returns: want.Returns, Refused: want.Refused, DeadLetters: want.DeadLetters,
		Lines: want.Rows, Units: want.Units, ReturnedUnits: want.ReturnedUnits, Currency: "GBP", TotalMinor: &want.Minor, ReturnedMinor: &want.ReturnedMinor,
	}
}

func TestEveryInvoiceEndsAsOneThing(t *testing.T) {
	f, want := generated(t, retailtest.Options{Seed: 7, Invoices: 800, Damage: true})
	s := standin.New()
	c := serve(t, s)
	rejected := map[importer.Outcome]int{}
	first := run(t, c, f, &importer.Options{Concurrency: 8, OnDone: func(_ *retail.Invoice, _ importer.Outcome, r *importer.Rejection) error {
		if r != nil {
			rejected[r.Outcome]++
			if r.Code == "" || r.Detail == "" {
				t.Errorf("no reason: %+v", r)
			}
		}
		return nil
	}})
	if diff := cmp.Diff(summary(&want), first, notTime); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[importer.Outcome]int{importer.Refused: want.Refused, importer.DeadLetter: want.DeadLetters}, rejected); diff != "" {
		t.Error(diff)
	}
	if n := len(s.Accepted()); n != want.Invoices {
		t.Errorf("%d commands for %d invoices", n, want.Invoices)
	}
	second := run(t, c, f, nil)
	zero := int64(0)
	if diff := cmp.Diff(&importer.Summary{
		Invoices: want.Invoices, Replayed: want.Invoices, Lines: want.Rows, Currency: "GBP", TotalMinor: &zero, ReturnedMinor: &zero,
	}, second, notTime); diff != "" {
		t.Error(diff)
	}
	if n := len(s.Accepted()); n != want.Invoices {
		t.Errorf("the second run brought it to %d commands", n)
	}
}

func TestSumsByCustomer(t *testing.T) {
	f, want := generated(t, retailtest.Options{Seed: 3, Invoices: 400})
	s := standin.New()
	run(t, serve(t, s), f, nil)
	got := map[string]retailtest.Account{}
	for _, id := range s.Accepted() {
		if o, ok := s.State("order-" + id).(*order.Order); ok {
			a := got[o.CustomerID]
			a.Orders, a.Minor = a.Orders+1, a.Minor+o.Total.Minor
			got[o.CustomerID] = a
		}
		if r, ok := s.State("return-" + id).(*order.Return); ok {
			a := got[r.CustomerID]
			a.Returns, a.ReturnedMinor = a.Returns+1, a.ReturnedMinor+r.Total.Minor
			got[r.CustomerID] = a
		}
	}
	if diff := cmp.Diff(want.Customers, got); diff != "" {
		t.Error(diff)
	}
}

func TestOrderIsKeptPerCustomer(t *testing.T) {
	f, _ := generated(t, retailtest.Options{Seed: 5, Invoices: 600})
	s := standin.New()
	run(t, serve(t, s), f, &importer.Options{Concurrency: 32})
	place := map[string]int{}
	for n, id := range s.Accepted() {
		place[id] = n
	}
	last := map[string]int{}
	for i := range f.Invoices() {
		if i.CustomerID == "" {
			continue
		}
		n := place[i.ID()]
		if before, ok := last[i.CustomerID]; ok && n < before {
			t.Errorf("invoice %s of customer %s was sent too early", i.Number, i.CustomerID)
		}
		last[i.CustomerID] = n
	}
}

// An answer that is lost is one of this run: the invoice counts as what it became.
func TestLostAnswersCountAsWhatTheyAre(t *testing.T) {
	f, want := generated(t, retailtest.Options{Seed: 9, Invoices: 200, Damage: true})
	s := standin.New()
	var n atomic.Int64
	s.Lose = func(r *http.Request) bool { return r.Method == http.MethodPost && n.Add(1)%5 == 0 }
	sum := run(t, serve(t, s), f, &importer.Options{ReceiveStock: true})
	receipts := sum.StockReceipts
	sum.StockReceipts = 0
	if diff := cmp.Diff(summary(&want), sum, notTime); diff != "" {
		t.Error(diff)
	}
	if receipts == 0 || len(s.Accepted()) != want.Invoices+receipts {
		t.Errorf("%d receipts, %d commands", receipts, len(s.Accepted()))
	}
}

func TestReceiveStock(t *testing.T) {
	rows := header + "1,A,,6,2010-12-01 08:26:00,1,,UK\n1,POST,,1,2010-12-01 08:26:00,18,,UK\n1,A,,2,2010-12-01 08:26:00,1,,UK\n" +
		"2,A,,-2,2010-12-01 08:26:00,1,,UK\n2,22423,,3,2010-12-01 08:26:00,1,,UK\nC3,A,,-1,2010-12-01 08:26:00,1,,UK\n"
	s := standin.New()
	c := serve(t, s)
	for range 2 {
		sum := run(t, c, parsed(t, rows), &importer.Options{ReceiveStock: true})
		if sum.StockReceipts+sum.StockReplayed != 3 || sum.StockRefused != 0 {
			t.Errorf("got %+v", sum)
		}
		for sku, want := range map[string]int64{"A": 8, "22423": 3} {
			stock, ok := s.State("stock-" + sku).(*order.Stock)
			if !ok || stock.OnHand != want {
				t.Errorf("%s: %+v", sku, stock)
			}
		}
		if s.State("stock-POST") != nil {
			t.Error("postage lies in the warehouse")
		}
	}
}

func TestAPausedServerIsWaitedFor(t *testing.T) {
	f, want := generated(t, retailtest.Options{Seed: 2, Invoices: 100, Damage: true})
	s := standin.New()
	s.Pause()
	c := serve(t, s)
	var posts atomic.Int64
	var once sync.Once
	s.Before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && posts.Add(1) == 20 {
			once.Do(s.Resume)
		}
		return false
	}
	sum := run(t, c, f, &importer.Options{Concurrency: 64})
	if diff := cmp.Diff(summary(&want), sum, notTime); diff != "" {
		t.Error(diff)
	}
}

func TestAPausedServerIsNotWaitedForForEver(t *testing.T) {
	f, _ := generated(t, retailtest.Options{Invoices: 3})
	s := standin.New()
	s.Pause()
	_, err := importer.Run(t.Context(), serve(t, s), f, &importer.Options{Settle: 50 * time.Millisecond})
	if !errors.Is(err, client.ErrUndecided) || client.ExitCode(err) != 4 {
		t.Errorf("got %v", err)
	}
}

func TestChangedInvoiceIsRefused(t *testing.T) {
	const row = "1,A,,6,2010-12-01 08:26:00,1,,UK\n"
	s := standin.New()
	c := serve(t, s)
	run(t, c, parsed(t, header+row), nil)
	sum := run(t, c, parsed(t, header+strings.Replace(row, ",6,", ",7,", 1)), nil)
	if sum.Refused != 1 {
		t.Errorf("got %+v", sum)
	}
}

func TestOtherServersAreToldFrom(t *testing.T) {
	f, _ := generated(t, retailtest.Options{Invoices: 3})
	for status, h := range map[int]http.HandlerFunc{
		404: http.NotFound,
		500: func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 500) },
		200: func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
	} {
		if _, err := importer.Run(t.Context(), serve(t, h), f, nil); client.ExitCode(err) != 1 {
			t.Errorf("%d: %v", status, err)
		}
	}
}

func TestInterruptedRunGoesOn(t *testing.T) {
	f, want := generated(t, retailtest.Options{Seed: 4, Invoices: 300, Damage: true})
	s := standin.New()
	c := serve(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	part, err := importer.Run(ctx, c, f, &importer.Options{OnDone: func(*retail.Invoice, importer.Outcome, *importer.Rejection) error {
		if n++; n == 100 {
			cancel()
		}
		return nil
	}})
	if !errors.Is(err, context.Canceled) || client.ExitCode(err) != 130 || part.Invoices < 100 || part.Invoices == want.Invoices {
		t.Fatalf("%v after %d invoices", err, part.Invoices)
	}
	rest := run(t, c, f, nil)
	if rest.Replayed < part.Invoices || len(s.Accepted()) != want.Invoices {
		t.Errorf("%d of %d replayed, %d commands", rest.Replayed, part.Invoices, len(s.Accepted()))
	}
}

func TestAFailingListenerStopsTheRun(t *testing.T) {
	f, _ := generated(t, retailtest.Options{Invoices: 100})
	full := errors.New("disk full")
	_, err := importer.Run(t.Context(), serve(t, standin.New()), f, &importer.Options{
		OnDone: func(*retail.Invoice, importer.Outcome, *importer.Rejection) error { return full },
	})
	if !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}
