package order

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// recorded is one line of testdata/history: an event as it once was written.
type recorded struct {
	Stream  string         `json:"stream"`
	Version uint64         `json:"version"`
	Type    string         `json:"type"`
	Time    time.Time      `json:"time"`
	Data    jsonx.RawValue `json:"data"`
}

// histories are the streams that were recorded, each with the commands that led to it. The commands only matter
// once: a stream that is on file is never written again, whatever the code does now.
var histories = []struct {
	name, stream string
	steps        []step
}{
	{"v1-completed", "order-42", []step{
		{"PlaceOrder", `{"id":"42","customer_id":"c-17","channel":"phone","currency":"GBP","fulfilment":"manual","placed_at":"2010-12-01T08:20:00.25+01:00",` +
			`"ship_to":{"name":"Goods in","line1":"1 Mill Lane","city":"York","postal_code":"YO1 7HH","country":"United Kingdom"},` +
			`"lines":[{"sku":"85123A","description":"WHITE HANGING HEART \"T-LIGHT\" HOLDER ","quantity":6,"unit_price":"2.55"},` +
			`{"sku":"BANK CHARGES","quantity":1,"unit_price":"0"}]}`},
		{"ChangeOrder", `{"lines":[{"sku":"85123A","quantity":6,"unit_price":"2.55"},{"sku":"gift_0001_20","quantity":3,"unit_price":"0.333333"}],"ship_to":{"city":"Leeds"}}`},
		confirmOrder,
		packOrder,
		{"ShipOrder", `{"lines":[{"line":1,"quantity":4}],"carrier":"Post","tracking_number":"T-1"}`},
		{"ShipOrder", `{"tracking_number":"T-2"}`},
		deliverOrder,
		{"MarkOrderPaid", `{"reference":"p-1","amount":{"amount":"16.30","currency":"GBP"}}`},
	}},
	{"v1-returned", "order-43", []step{
		{"PlaceOrder", `{"currency":"KWD","lines":[{"sku":"M","quantity":3,"unit_price":"0.0005"},{"sku":"POST","quantity":1,"unit_price":"12"}]}`},
		payOrder, confirmOrder, packOrder, shipAll, returnPart, deliverOrder, returnAll,
	}},
	{"v1-cancelled", "order-44", []step{
		{"PlaceOrder", `{"currency":"JPY","lines":[{"sku":"M","quantity":3,"unit_price":"250"}]}`}, payOrder, cancelOrder,
	}},
	{"v1-stock", "stock-85123A", []step{
		{"ReceiveStock", `{"quantity":100,"reference":"d-1"}`},
		{"ReserveStock", `{"reservation":"r-1","quantity":6}`},
		{"ReserveStock", `{"reservation":"r-2","quantity":4}`},
		{"ReserveStock", `{"reservation":"r-3","quantity":1}`},
		{"CommitStock", `{"reservation":"r-1"}`},
		{"ReleaseStock", `{"reservation":"r-2"}`},
		{"AdjustStock", `{"delta":-2,"reason":"broken"}`},
	}},
	{"v2-closed", "order-45", []step{
		{"PlaceOrder", `{"fulfilment":"auto","backorder":"split","currency":"GBP","lines":[{"sku":"85123A","quantity":3,"unit_price":"0.333333"},{"sku":"M","quantity":2,"unit_price":"1"}]}`},
		recordPayment("authorise-1", "authorise", "declined", "3.00"), recordPayment("authorise-2", "authorise", "approved", "3.00"),
		recordPayment("void-2", "void", "approved", "3.00"), recordPayment("authorise-3", "authorise", "approved", "3.00"),
		{"ConfirmOrder", `{"version":1}`}, packOrder, shipPart, recordPayment("capture-1", "capture", "approved", "3.00"), closeOrder,
		recordPayment("refund-1", "refund", "approved", "2.67"), deliverOrder, {"ReturnOrder", `{"restock":false}`},
	}},
	{"v2-stock", "stock-85123B", []step{
		{"ReceiveStock", `{"quantity":100}`}, {"ReserveStock", `{"reservation":"order-1/1","quantity":6}`},
		{"CommitStock", `{"reservation":"order-1/1","quantity":2}`}, {"ReleaseStock", `{"reservation":"order-1/1","quantity":3}`},
	}},
	{"v1-return", "return-C536379", []step{
		{"RecordReturn", `{"id":"C536379","customer_id":"c-17","currency":"GBP","returned_at":"2010-12-01T09:41:00Z","reason":"credit note",` +
			`"original_order_id":"536379","lines":[{"sku":"D","description":"Discount","quantity":1,"unit_price":"27.50"}]}`},
	}},
}

// TestHistory folds recorded streams with today's code and compares the state with the one on file, and with the read
// model's document. With -rewrite the state is written anew, and a stream only where there is none.
func TestHistory(t *testing.T) {
	for _, h := range histories {
		t.Run(h.name, func(t *testing.T) {
			path := filepath.Join("testdata", "history", h.name+".jsonl")
			if _, err := os.Stat(path); *rewrite && errors.Is(err, os.ErrNotExist) {
				record(t, path, h.stream, h.steps)
			}
			data, err := os.ReadFile(path) //nolint:gosec // a file of this package's testdata
			if err != nil {
				t.Fatal(err)
			}
			s := replay(t, data)
			state, err := s.category.EncodeState(s.state)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(path, ".jsonl")+".state.json", string(state)+"\n")

			doc, ok := Represent(s.state)
			if !ok {
				t.Fatal("the stream leads to nothing")
			}
			all := map[string]*views{}
			project(t, all, s.events)
			want := string(encode(t, doc))
			for _, table := range []string{"orders", "levels", "returns"} {
				for _, v := range all {
					if got, ok := v.data[table+"/"+s.name.ID()]; ok && string(got) != want {
						t.Errorf("the read model has\n%s\nand the fold\n%s", got, want)
					}
				}
			}
		})
	}
	files, err := filepath.Glob("testdata/history/*.jsonl")
	if err != nil || len(files) != len(histories) {
		t.Errorf("%d streams are on file and %d are replayed (%v)", len(files), len(histories), err)
	}
}

func record(t *testing.T, path, name string, steps []step) {
	t.Helper()
	s := newStream(t, newRegistry(t), millrace.Stream(name))
	for _, st := range steps {
		s.must(st.typ, st.body)
	}
	var out []byte
	for _, e := range s.events {
		var err error
		if out, err = jsonx.Append(out, recorded{string(e.Stream), e.Version, e.Type, e.Time, e.Data}); err != nil {
			t.Fatal(err)
		}
		out = append(out, '\n')
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, out, 0o600); err != nil {
		t.Fatal(err)
	}
}

func replay(t *testing.T, data []byte) *stream {
	t.Helper()
	r := newRegistry(t)
	var s *stream
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		var e recorded
		if err := jsonx.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		if s == nil {
			s = newStream(t, r, millrace.Stream(e.Stream))
		}
		s.record(millrace.Recorded{
			Position: e.Version, Stream: s.name, Version: e.Version, Type: e.Type, Data: e.Data, Time: e.Time,
		})
	}
	if err := lines.Err(); err != nil || s == nil {
		t.Fatalf("no events (%v)", err)
	}
	return s
}
