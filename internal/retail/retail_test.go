package retail_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/internal/retail"
	"github.com/millrace-io/millrace/internal/retail/retailtest"
)

const header = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"

func read(t *testing.T, text string, o *retail.Options) []*retail.Invoice {
	t.Helper()
	f, err := retail.Read(strings.NewReader(text), o)
	if err != nil {
		t.Fatal(err)
	}
	var out []*retail.Invoice
	for i := range f.Invoices() {
		out = append(out, i)
	}
	if len(out) != f.Len() {
		t.Errorf("%d invoices come of %d", len(out), f.Len())
	}
	return out
}

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		panic(err)
	}
	return t
}

func TestMapping(t *testing.T) {
	eight := at("2010-12-01T08:26:00Z")
	tests := []struct {
		name, rows string
		want       []*retail.Invoice
	}{
		{
			"sale", "536365,85123A,WHITE HEART,6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom\n",
			[]*retail.Invoice{{
				Number: "536365", Line: 2, Rows: 1, Kind: retail.Sale, CustomerID: "17850", Time: eight,
				Lines: []retail.Line{{"85123A", "WHITE HEART", 6, "2.55"}},
			}},
		},
		{
			"credit note turns the sign", "C536379,D,Discount,-1,12/1/2010 8:26,27.5,14527,EIRE\n",
			[]*retail.Invoice{{
				Number: "C536379", Line: 2, Rows: 1, Kind: retail.Credit, CustomerID: "14527", Time: eight,
				Lines: []retail.Line{{"D", "Discount", 1, "27.5"}},
			}},
		},
		{
			"another letter is a sale, its negative price is passed on",
			"A563186,B,Adjust bad debt,1,2010-12-01 08:26,-11062.06,,United Kingdom\n",
			[]*retail.Invoice{{
				Number: "A563186", Line: 2, Rows: 1, Kind: retail.Sale, Time: eight,
				Lines: []retail.Line{{"B", "Adjust bad debt", 1, "-11062.06"}},
			}},
		},
		{
			"rows of an invoice apart, a minute late, blank lines between",
			"1,A,a,1,2010-12-01 08:26:00,1,7,UK\n\n2,B,b,2,2010-12-01 08:26:00,2,,UK\r\n1,C,,3,2010-12-01 08:27:00,3,7,UK",
			[]*retail.Invoice{
				{
					Number: "1", Line: 2, Rows: 2, Kind: retail.Sale, CustomerID: "7", Time: eight,
					Lines: []retail.Line{{"A", "a", 1, "1"}, {"C", "", 3, "3"}},
				},
				{Number: "2", Line: 4, Rows: 1, Kind: retail.Sale, Time: eight, Lines: []retail.Line{{"B", "b", 2, "2"}}},
			},
		},
		{
			"numbers of spreadsheets", "536365.0,A,,6.0,2010-12-01 08:26:00,255e-2,1.785E4,UK\n536365,B,,1e3,2010-12-01 08:26:00,0.1234567,,UK\n",
			[]*retail.Invoice{{
				Number: "536365", Line: 2, Rows: 2, Kind: retail.Sale, CustomerID: "17850", Time: eight,
				Lines: []retail.Line{{"A", "", 6, "2.55"}, {"B", "", 1000, "0.1234567"}},
			}},
		},
		{
			"quotes and line breaks in descriptions",
			"1,A,\"RED, 3\"\" TALL\",1,2010-12-01 08:26:00,1,,UK\n1,B,3\" TALL,1,2010-12-01 08:26:00,1,,UK\n1,C,\"TWO\nLINES\",1,2010-12-01 08:26:00,1,,UK\n",
			[]*retail.Invoice{{
				Number: "1", Line: 2, Rows: 3, Kind: retail.Sale, Time: eight,
				Lines: []retail.Line{{"A", `RED, 3" TALL`, 1, "1"}, {"B", `3" TALL`, 1, "1"}, {"C", "TWO LINES", 1, "1"}},
			}},
		},
		{
			"Windows-1252 and UTF-8", "1,A,VOUCHER \xA3\x80,1,2010-12-01 08:26:00,1,,UK\n1,B,VOUCHER £,1,2010-12-01 08:26:00,1,,UK\n",
			[]*retail.Invoice{{
				Number: "1", Line: 2, Rows: 2, Kind: retail.Sale, Time: eight,
				Lines: []retail.Line{{"A", "VOUCHER £€", 1, "1"}, {"B", "VOUCHER £", 1, "1"}},
			}},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, read(t, header+test.rows, nil)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDamagedRowsBecomeDeadLetters(t *testing.T) {
	const good = "536366,A,a,1,2010-12-01 08:26:00,1,7,UK\n"
	tests := []struct{ name, row, number, reason string }{
		{"too few fields", "536365,A,a,1,2010-12-01 08:26:00", "536365", "line 3: the row has another number of fields than the header"},
		{"too many fields", "536365,A,a,1,2010-12-01 08:26:00,1,7,UK,,", "536365", "line 3: the row has another number of fields than the header"},
		{"cut in the number", "5363", "line-3", "line 3: there is no invoice number that can be a part of an id"},
		{"no number", ",A,a,1,2010-12-01 08:26:00,1,7,UK", "line-3", "line 3: there is no invoice number that can be a part of an id"},
		{"number that is none", "53 63,A,a,1,2010-12-01 08:26:00,1,7,UK", "line-3", "line 3: there is no invoice number that can be a part of an id"},
		{"quote never closed", `536365,A,"a,1,2010-12-01 08:26:00,1,7,UK`, "536365", "line 3: a quote is opened and never closed"},
		{"quantity no number", "536365,A,a,six,2010-12-01 08:26:00,1,7,UK", "536365", "line 3: the quantity is not a whole number"},
		{"quantity not whole", "536365,A,a,2.5,2010-12-01 08:26:00,1,7,UK", "536365", "line 3: the quantity is not a whole number"},
		{"quantity without end", "536365,A,a,1e999999999,2010-12-01 08:26:00,1,7,UK", "536365", "line 3: the quantity is not a whole number"},
		{"price no number", "536365,A,a,1,2010-12-01 08:26:00,NaN,7,UK", "536365", "line 3: the unit price is not a number"},
		{"date", "536365,A,a,1,13/12/2010 8:26,1,7,UK", "536365", "line 3: the date cannot be read"},
		{"stock code", "536365, ,a,1,2010-12-01 08:26:00,1,7,UK", "536365", "line 3: there is no stock code"},
		{"NUL", "536365,A,a\x00,1,2010-12-01 08:26:00,1,7,UK", "536365", "line 3: there is a NUL character"},
		{"longer than a row can be", "536365,A," + strings.Repeat("a", 70<<10) + ",1,2010-12-01 08:26:00,1,7,UK", "536365", "line 3: the row is longer than 64 KiB"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := read(t, header+good+test.row+"\n"+strings.ReplaceAll(good, "536366", "536367"), nil)
			if len(got) != 3 || got[0].Kind != retail.Sale || got[2].Kind != retail.Sale {
				t.Fatalf("the neighbours suffer: %+v", got)
			}
			bad := got[1]
			if bad.Number != test.number || bad.Kind != retail.Unmapped || bad.Reason != test.reason || len(bad.Raw) != 1 || bad.Rows != 1 {
				t.Errorf("got %s %v %q with %d rows", bad.Number, bad.Kind, bad.Reason, len(bad.Raw))
			}
			req, err := bad.Request()
			if err != nil {
				t.Fatal(err)
			}
			var body struct {
				ID, Stream, Type string
				Data             struct {
					Reason string
					Rows   []string
				}
			}
			if err := json.Unmarshal(req.Body, &body); err != nil {
				t.Fatal(err)
			}
			id := "online-retail-" + test.number
			if req.Path != "/v1/commands" || body.ID != id || body.Stream != "order-"+id || body.Type != "ImportUnmappedInvoice" || body.Data.Reason != test.reason {
				t.Errorf("sent to %s: %s", req.Path, req.Body)
			}
			if want := strings.ReplaceAll(test.row, "\x00", "\uFFFD"); !strings.HasPrefix(want, body.Data.Rows[0]) {
				t.Error("the dead letter does not carry the row")
			}
			if len(req.Body) > 200<<10 {
				t.Errorf("the dead letter takes %d bytes", len(req.Body))
			}
		})
	}
}

func TestOneBadRowTakesItsWholeInvoice(t *testing.T) {
	rows := "1,A,a,1,2010-12-01 08:26:00,1,7,UK\n2,A,a,1,2010-12-01 08:26:00,1,7,UK\n1,B,b,x,2010-12-01 08:26:00,1,7,UK\n"
	got := read(t, header+rows, nil)
	if len(got) != 2 || got[0].Kind != retail.Unmapped || len(got[0].Raw) != 2 || got[0].Lines != nil || got[1].Kind != retail.Sale {
		t.Errorf("got %+v", got)
	}
	two := "1,A,a,1,2010-12-01 08:26:00,1,,UK\n1,A,a,1,2010-12-01 08:26:00,1,7,UK\n1,A,a,1,2010-12-01 08:26:00,1,8,UK\n"
	if got := read(t, header+two, nil); got[0].Reason != "line 4: the invoice names two customers" {
		t.Errorf("got %+v", got[0])
	}
}

func TestRequests(t *testing.T) {
	got := read(t, header+"536365,85123A,\"A \"\"B\"\"\",6,2010-12-01 08:26:00,2.55,17850.0,UK\nC536379,D,,-1,2010-12-01 09:41:00,27.5,,UK\n", nil)
	want := []retail.Request{
		{"/v1/orders", []byte(`{"id":"online-retail-536365","customer_id":"17850","channel":"import","currency":"GBP","fulfilment":"manual",` +
			`"placed_at":"2010-12-01T08:26:00Z","lines":[{"sku":"85123A","description":"A \"B\"","quantity":6,"unit_price":"2.55"}]}`)},
		{"/v1/returns", []byte(`{"id":"online-retail-C536379","currency":"GBP","returned_at":"2010-12-01T09:41:00Z",` +
			`"lines":[{"sku":"D","quantity":1,"unit_price":"27.5"}]}`)},
	}
	for k, i := range got {
		req, err := i.Request()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want[k], req); diff != "" {
			t.Error(diff)
		}
	}
}

func TestReceipts(t *testing.T) {
	rows := "1,A,,6,2010-12-01 08:26:00,1,,UK\n1,POST,,1,2010-12-01 08:26:00,18,,UK\n1,B,,-2,2010-12-01 08:26:00,1,,UK\n1,C,,3,2010-12-01 08:26:00,1,,UK\n"
	lines, err := read(t, header+rows, nil)[0].Receipts()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"id":"online-retail-1-1","stream":"stock-A","type":"ReceiveStock","data":{"quantity":6,"reference":"online-retail-1"}}
{"id":"online-retail-1-4","stream":"stock-C","type":"ReceiveStock","data":{"quantity":3,"reference":"online-retail-1"}}`
	if got := string(bytes.Join(lines, []byte("\n"))); got != want {
		t.Errorf("got\n%s", got)
	}
	for sku, goods := range map[string]bool{
		"85123A": true, "DCGS0003": true, "post": false, "m": false, "gift_0001_20": false, "BANK CHARGES": false, "PADS": false, "15056BL": true,
	} {
		if retail.IsGoods(sku) != goods {
			t.Errorf("IsGoods(%s) is %v", sku, !goods)
		}
	}
}

func TestTimezone(t *testing.T) {
	london, err := time.LoadLocation("Europe/London")
	if err != nil {
		t.Fatal(err)
	}
	const row = "1,A,,1,2011-05-31 15:00:00,1,,UK\n"
	for zone, want := range map[*time.Location]string{time.UTC: "2011-05-31T15:00:00Z", london: "2011-05-31T14:00:00Z"} {
		if got := read(t, header+row, &retail.Options{Location: zone})[0].Time; !got.Equal(at(want)) {
			t.Errorf("in %v it is %v", zone, got)
		}
	}
}

func TestHeaders(t *testing.T) {
	tests := []struct{ name, header, want string }{
		{"empty", "", "the file is empty: not even a header"},
		{"missing", "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,CustomerID,Country\n", "the header has no column UnitPrice or Price (names are separated by commas)"},
		{"semicolons", strings.ReplaceAll(header, ",", ";"), "the header has no column InvoiceNo or Invoice, StockCode, Description, Quantity, InvoiceDate, UnitPrice or Price, CustomerID, Country (names are separated by commas)"},
		{"twice", strings.Replace(header, "Country", "Country,Invoice", 1), "the header names a column twice"},
		{"twice the same", strings.Replace(header, "Country", "Country,Country", 1), "the header names a column twice"},
		{"UTF-16", "\xFF\xFEI\x00n\x00", "the file is UTF-16; save it as UTF-8"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := retail.Read(strings.NewReader(test.header), nil)
			var fe *retail.FileError
			if !errors.As(err, &fe) || fe.ExitCode() != 2 || err.Error() != test.want {
				t.Errorf("got %v", err)
			}
		})
	}
	for _, h := range []string{
		"\xEF\xBB\xBF" + header, strings.ToUpper(header), "Invoice, stock code ,DESCRIPTION,Quantity,Invoice_Date,Price,Customer ID,Country,Remark\r\n",
	} {
		f, err := retail.Read(strings.NewReader(h), nil)
		if err != nil || f.Len() != 0 {
			t.Errorf("%q: %v", h, err)
		}
	}
}

func TestTruncatedGzipIsNotAShorterFile(t *testing.T) {
	var plain, packed bytes.Buffer
	if _, err := retailtest.Generate(&plain, retailtest.Options{Invoices: 50}); err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(plain.Bytes())
	_ = z.Close()
	whole := packed.Bytes()
	for _, n := range []int{3, len(whole) / 2, len(whole) - 1} {
		_, err := retail.Read(bytes.NewReader(whole[:n]), nil)
		var fe *retail.FileError
		if !errors.As(err, &fe) || fe.ExitCode() != 1 {
			t.Errorf("cut to %d of %d bytes: %v", n, len(whole), err)
		}
	}
	broken := bytes.Clone(whole)
	broken[len(broken)-6] ^= 1 // in the checksum
	if _, err := retail.Read(bytes.NewReader(broken), nil); err == nil {
		t.Error("a wrong checksum passes")
	}
}

func TestTextIsBounded(t *testing.T) {
	for size, ok := range map[int64]bool{int64(len(header)): true, int64(len(header)) - 1: false} {
		_, err := retail.Read(strings.NewReader(header), &retail.Options{MaxText: size})
		if (err == nil) != ok {
			t.Errorf("bound %d: %v", size, err)
		}
	}
}

// sum does to mapped invoices what the domain would.
func sum(t *testing.T, f *retail.File) retailtest.Expected {
	t.Helper()
	e := retailtest.Expected{Customers: map[string]retailtest.Account{}, Left: map[string]int64{}, Rows: f.Rows()}
	for i := range f.Invoices() {
		e.Invoices++
		minor, ok, kept := new(big.Int), true, true
		for _, l := range i.Lines {
			price, _ := new(big.Rat).SetString(l.UnitPrice)
			pence := new(big.Rat).Mul(price, big.NewRat(l.Quantity*100, 1))
			minor.Add(minor, nearest(pence))
			ok = ok && l.Quantity > 0 && price.Sign() >= 0
			_, decimals, _ := strings.Cut(l.UnitPrice, ".")
			kept = kept && len(decimals) <= 6
		}
		for _, l := range i.Lines {
			if i.Kind == retail.Sale && (!ok || !kept) && l.Quantity > 0 {
				e.Left[l.SKU] += l.Quantity
			}
		}
		a := e.Customers[i.CustomerID]
		switch {
		case i.Kind == retail.Unmapped || !kept:
			e.DeadLetters++
			continue
		case !ok:
			e.Refused++
			continue
		case i.Kind == retail.Sale:
			e.Orders, e.Units, e.Minor = e.Orders+1, e.Units+i.Units(), e.Minor+minor.Int64()
			a.Orders, a.Minor = a.Orders+1, a.Minor+minor.Int64()
		default:
			e.Returns, e.ReturnedUnits, e.ReturnedMinor = e.Returns+1, e.ReturnedUnits+i.Units(), e.ReturnedMinor+minor.Int64()
			a.Returns, a.ReturnedMinor = a.Returns+1, a.ReturnedMinor+minor.Int64()
		}
		e.Customers[i.CustomerID] = a
	}
	return e
}

// nearest rounds half to even by the formatting of fractions, a third way beside those of retailtest.
func nearest(r *big.Rat) *big.Int {
	n, _ := new(big.Int).SetString(r.FloatString(0), 10) // rounds half away from zero
	if half := new(big.Rat).Sub(r, new(big.Rat).SetInt(n)); half.Abs(half).Cmp(big.NewRat(1, 2)) == 0 && n.Bit(0) == 1 {
		n.Sub(n, big.NewInt(int64(r.Sign())))
	}
	return n
}

func TestGeneratedFiles(t *testing.T) {
	for seed := range uint64(4) {
		for _, o := range []retailtest.Options{
			{}, {Damage: true}, {CRLF: true, Damage: true, Latin: true}, {BOM: true, Gzip: true}, {Sister: true, Damage: true, CRLF: true}, {Sister: true},
		} {
			o.Seed, o.Invoices = seed, 500
			t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
				var file bytes.Buffer
				want, err := retailtest.Generate(&file, o)
				if err != nil {
					t.Fatal(err)
				}
				if want.Refused < 20 || want.Returns < 50 || (want.DeadLetters < 50) == o.Damage {
					t.Errorf("the file is too tame: %+v", want)
				}
				f, err := retail.Read(bytes.NewReader(file.Bytes()), nil)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, sum(t, f)); diff != "" {
					t.Error(diff)
				}
				if o.Damage {
					return
				}
				again, err := retailtest.Expect(bytes.NewReader(file.Bytes()))
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, again); diff != "" {
					t.Error("generator and independent computation differ", diff)
				}
			})
		}
	}
}

// realFile opens the file of the data set, or says that it is not there.
func realFile(t *testing.T) io.Reader {
	t.Helper()
	name := os.Getenv("MILLRACE_RETAIL_FILE")
	if name == "" {
		found, err := filepath.Glob("../../../shared/data/*.csv.gz")
		if err != nil || len(found) == 0 {
			t.Skip("NOT RUN: the Online Retail file is neither beside the project (../shared/data/*.csv.gz) nor named by MILLRACE_RETAIL_FILE")
		}
		name = found[0]
	}
	file, err := os.Open(name) //nolint:gosec // named by who runs the test
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return file
}

func TestRealFile(t *testing.T) {
	text, err := io.ReadAll(realFile(t))
	if err != nil {
		t.Fatal(err)
	}
	f, err := retail.Read(bytes.NewReader(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	got := sum(t, f)
	want, err := retailtest.Expect(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if os.Getenv("MILLRACE_RETAIL_FILE") != "" {
		return // it may be any part of the data set
	}
	got.Customers = nil
	if diff := cmp.Diff(retailtest.Expected{
		Rows: 209_029, Invoices: 10_783, Orders: 8455, Returns: 1677, Refused: 651,
		Units: 2_143_278, ReturnedUnits: 123_666, Minor: 406_472_659, ReturnedMinor: 35_789_895,
		Left: map[string]int64{},
	}, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzReader(f *testing.F) {
	for _, o := range []retailtest.Options{{Damage: true}, {Damage: true, Sister: true, CRLF: true, Latin: true}, {Gzip: true, BOM: true}} {
		o.Invoices = 12
		var file bytes.Buffer
		if _, err := retailtest.Generate(&file, o); err != nil {
			f.Fatal(err)
		}
		f.Add(file.Bytes())
	}
	f.Add([]byte(header + "1,\"A,1\n\"\"\",B\n2,A,a,1,2010-12-01 08:26:00,1,7,UK\n\x00\n\"\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := retail.Read(bytes.NewReader(text), &retail.Options{MaxText: 1 << 20})
		if err != nil {
			return
		}
		rows, ids := 0, map[string]bool{}
		for i := range file.Invoices() {
			rows += i.Rows
			if ids[i.ID()] {
				t.Errorf("two invoices have the id %q", i.ID())
			}
			ids[i.ID()] = true
			if (i.Kind == retail.Unmapped) == (len(i.Lines) > 0) || (i.Kind == retail.Unmapped && (i.Reason == "" || len(i.Raw) == 0)) {
				t.Errorf("neither mapped nor explained: %+v", i)
			}
			req, err := i.Request()
			if err != nil {
				t.Errorf("%s: %v", i.Number, err)
			}
			if !json.Valid(req.Body) {
				t.Errorf("not JSON: %q", req.Body)
			}
		}
		if rows != file.Rows() || len(ids) != file.Len() {
			t.Errorf("%d rows and %d invoices are accounted for, of %d and %d", rows, len(ids), file.Rows(), file.Len())
		}
	})
}
