package order

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsoncorpus"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/money"
	"github.com/millrace-io/millrace/internal/payment"
)

// decoder reads a document by the decoder of one type, and fails the test where it reads anything but what the general
// way reads. It says whether the decoder accepted the document.
type decoder func(t TB, data []byte) bool

func decoderOf[T any, P interface {
	*T
	millrace.Decoder
}]() decoder {
	return func(t TB, data []byte) bool {
		t.Helper()
		got, want := P(new(T)), new(T)
		buffer := bytes.Clone(data)
		if !got.DecodeJSON(buffer) {
			return false
		}
		for i := range buffer {
			buffer[i] = '#' // a request's buffer is used again
		}
		if err := jsonx.Unmarshal(data, want); err != nil {
			t.Fatalf("%T accepts\n%s\nand the general way says %v", got, data, err)
		}
		if !reflect.DeepEqual((*T)(got), want) {
			t.Fatalf("%s\nis read as\n%+v\nand in the general way as\n%+v", data, got, want)
		}
		return true
	}
}

// decoders are the types that read their own JSON, each with a body that has all members.
var decoders = map[string]struct {
	decode decoder
	whole  string
}{
	"PlaceOrder": {decoderOf[PlaceOrder](), `{"id":"42","customer_id":"c-17","email":"a@example.org","language":"de-AT","channel":"phone","currency":"GBP","fulfilment":"auto","backorder":"split",` +
		`"placed_at":"2010-12-01T08:26:00.25Z","ship_to":{"name":"Goods in","line1":"1 Mill Lane","city":"York","postal_code":"YO1 7HH","country":"UK"},` +
		`"lines":[{"sku":"85123A","description":"WHITE \"HEART\"","quantity":6,"unit_price":"2.55"},{"sku":"M","quantity":-1,"unit_price":"0"}]}`},
	"ConfirmOrder":  {decoderOf[ConfirmOrder](), `{"version":3}`},
	"PackOrder":     {decoderOf[PackOrder](), `{}`},
	"DeliverOrder":  {decoderOf[DeliverOrder](), `{}`},
	"MarkOrderPaid": {decoderOf[MarkOrderPaid](), `{"reference":"p-1","amount":{"amount":"16.30","currency":"GBP"}}`},
	"ShipOrder":     {decoderOf[ShipOrder](), `{"lines":[{"line":1,"quantity":4},{"line":2,"quantity":1}],"carrier":"Post","tracking_number":"T-1"}`},
	"ReceiveStock":  {decoderOf[ReceiveStock](), `{"quantity":100,"reference":"d-1"}`},
	"ReserveStock":  {decoderOf[ReserveStock](), `{"reservation":"r-1","quantity":6}`},
	"ReleaseStock":  {decoderOf[ReleaseStock](), `{"reservation":"r-1","quantity":2}`},
	"CommitStock":   {decoderOf[CommitStock](), `{"reservation":"r-1","quantity":2}`},
	"OrderPlaced": {decoderOf[OrderPlaced](), `{"at":"2010-12-01T08:26:00Z","customer_id":"c-17","email":"a@example.org","language":"de","channel":"web","currency":"GBP","fulfilment":"auto","backorder":"wait",` +
		`"placed_at":"2010-12-01T08:26:00Z","ship_to":{"city":"Köln"},"lines":[{"line":1,"sku":"M","description":"x","quantity":6,"unit_price":"2.55",` +
		`"line_total":"15.30"}],"units":6,"total":{"amount":"15.30","currency":"GBP"}}`},
	"OrderConfirmed": {decoderOf[OrderConfirmed](), `{"at":"2010-12-01T08:26:00Z"}`},
	"OrderPacked":    {decoderOf[OrderPacked](), `{"at":"2010-12-01T08:26:00Z"}`},
	"OrderDelivered": {decoderOf[OrderDelivered](), `{"at":"2010-12-01T08:26:00Z"}`},
	"OrderCompleted": {decoderOf[OrderCompleted](), `{"at":"2010-12-01T08:26:00Z"}`},
	"OrderPaid":      {decoderOf[OrderPaid](), `{"at":"2010-12-01T08:26:00Z","name":"capture-1","reference":"p-1","amount":{"amount":"15.30","currency":"GBP"}}`},
	"OrderShipped": {decoderOf[OrderShipped](), `{"at":"2010-12-01T08:26:00Z","shipment":1,"lines":[{"line":1,"quantity":4}],"whole":false,` +
		`"carrier":"Post","tracking_number":"T-1"}`},
	"RequestPayment": {decoderOf[RequestPayment](), `{"name":"authorise-1","amount":{"amount":"15.30","currency":"GBP"}}`},
	"RecordPayment": {decoderOf[RecordPayment](), `{"name":"capture-1","kind":"capture","status":"declined","payment":"p-1",` +
		`"amount":{"amount":"15.30","currency":"GBP"},"code":"do_not_honour"}`},
	"OrderPaymentRequested":  {decoderOf[OrderPaymentRequested](), `{"at":"2010-12-01T08:26:00Z","name":"authorise-1","amount":{"amount":"15.30","currency":"GBP"}}`},
	"OrderPaymentAuthorised": {decoderOf[OrderPaymentAuthorised](), `{"at":"2010-12-01T08:26:00Z","name":"authorise-1","payment":"p-1","amount":{"amount":"15.30","currency":"GBP"}}`},
	"StockReserved":          {decoderOf[StockReserved](), wholeReservation},
	"StockReleased":          {decoderOf[StockReleased](), wholeReservation},
	"StockCommitted":         {decoderOf[StockCommitted](), wholeReservation},
	"Order": {decoderOf[Order](), `{"id":"42","status":"partly_returned","version":9,"customer_id":"c-17","email":"a@example.org","language":"de","channel":"web","currency":"GBP","fulfilment":"auto","backorder":"split","lines_version":2,` +
		`"placed_at":"2010-12-01T08:26:00Z","updated_at":"2010-12-01T08:26:00Z","confirmed_at":"2010-12-01T08:26:00Z","paid_at":"2010-12-01T08:26:00Z",` +
		`"packed_at":"2010-12-01T08:26:00Z","shipped_at":"2010-12-01T08:26:00Z","delivered_at":"2010-12-01T08:26:00Z","completed_at":"2010-12-01T08:26:00Z",` +
		`"cancelled_at":"2010-12-01T08:26:00Z","returned_at":"2010-12-01T08:26:00Z","closed_at":"2010-12-01T08:26:00Z","cancel_reason":"late","close_reason":"gone","paid":true,"payment_reference":"p-1",` +
		`"payment":{"status":"captured","payment":"p-1","code":"no","authorised":{"amount":"15.30","currency":"GBP"},"captured":{"amount":"15.30","currency":"GBP"},` +
		`"refunded":{"amount":"2.55","currency":"GBP"},"recorded":["authorise-1","capture-1"],"requested":"authorise-2"},` +
		`"ship_to":{"name":"Goods in"},"lines":[{"line":1,"sku":"M","quantity":6,"unit_price":"2.55","line_total":"15.30","shipped":5,"returned":1,"dropped":1}],"units":6,` +
		`"total":{"amount":"15.30","currency":"GBP"},"refund":{"amount":"2.55","currency":"GBP"},` +
		`"shipments":[{"shipment":1,"shipped_at":"2010-12-01T08:26:00Z","carrier":"Post","tracking_number":"T-1","lines":[{"line":1,"quantity":6}]}]}`},
	"Day":   {decoderOf[Day](), `{"day":"2010-12-01","status":"placed","currency":"GBP","orders":1,"units":6,"amount":"15.30"}`},
	"Level": {decoderOf[Level](), `{"sku":"85123A","on_hand":100,"reserved":6,"available":94,"version":3}`},
}

const wholeReservation = `{"at":"2010-12-01T08:26:00Z","reservation":"r-1","quantity":6,"on_hand":100,"reserved":6,"available":94}`

// TestCommonForms: these forms are read without the general decoder, which is what makes the decoders worth having.
func TestCommonForms(t *testing.T) {
	for name, d := range decoders {
		if !d.decode(t, []byte(d.whole)) {
			t.Errorf("%s gives up on\n%s", name, d.whole)
		}
		var wide bytes.Buffer
		if err := json.Indent(&wide, []byte(d.whole), "\t", "  "); err != nil {
			t.Fatal(err)
		}
		if !d.decode(t, wide.Bytes()) || !d.decode(t, []byte("\r\n "+d.whole+" \t")) {
			t.Errorf("%s gives up on white space", name)
		}
		members := membersOf(t, d.whole)
		for range members { // every member comes first once
			members = append(members[1:], members[0])
			if data := []byte("{" + strings.Join(members, ",") + "}"); !d.decode(t, data) {
				t.Errorf("%s gives up on\n%s", name, data)
			}
		}
		if !d.decode(t, []byte(`{}`)) {
			t.Errorf("%s gives up on an object without members", name)
		}
	}
	for _, body := range []string{benchBody, `{"lines":[]}`, `{"lines":[{}]}`, `{"ship_to":{}}`, `{"currency":"","channel":"fax","lines":[{"sku":"東京"}]}`} {
		if !decoders["PlaceOrder"].decode(t, []byte(body)) {
			t.Errorf("PlaceOrder gives up on\n%s", body)
		}
	}
}

// membersOf splits an object into its members as text.
func membersOf(t TB, object string) []string {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(object))
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	var out []string
	for d.More() {
		name, err := d.Token()
		var value json.RawMessage
		if err != nil || d.Decode(&value) != nil {
			t.Fatalf("%s has no members (%v)", object, err)
		}
		out = append(out, `"`+name.(string)+`":`+string(value)) //nolint:forcetypeassert // names are strings
	}
	return out
}

// strange are values that no decoder may read otherwise than the general way does. Most have no place anywhere.
var strange = []string{
	``, `null`, `true`, `false`, `0`, `1`, `-1`, `-0`, `01`, `-01`, `+1`, `1.0`, `1.5`, `1e2`, `1E0`, `9223372036854775807`, `9223372036854775808`,
	`-9223372036854775808`, `-9223372036854775809`, `18446744073709551615`, `18446744073709551616`, `1 2`, `0x1`, `NaN`,
	`""`, `"x"`, `"1"`, `"01"`, `"1.5"`, `"-1"`, `"1e2"`, `"1."`, `"GBP"`, `"XXX"`, `"gbp"`, `"JPY"`, `"web"`, `"WEB"`, `"placed"`, `"a\"b"`, `"a\nb"`, `"\u0061"`,
	`"\u0000"`, `"\ud800"`, `"\udc00\ud800"`, `"\ud83d\ude00"`, `"\x"`, `"x`, `x"`, `'x'`, "\"a\x00b\"", "\"a\nb\"", "\"\xff\"", "\"\xed\xa0\x80\"", "\"\xc0\xaf\"", `"😀"`,
	`"2010-12-01T08:26:00Z"`, `"2010-12-01T08:26:00+01:00"`, `"2010-12-01T08:26:00+00:00"`, `"2010-12-01T08:26:00-00:00"`, `"2010-12-01T8:26:00.5Z"`,
	`"2010-12-01T08:26:00,5Z"`, `"2010-12-01T08:26:00.0000000001Z"`, `"2010-02-29T00:00:00Z"`, `"2010-12-01T08:26:60Z"`, `"0000-01-01T00:00:00Z"`,
	`"999999999999.999999"`, `"9999999999999.9"`, `"99999999999999999999999999999999999999"`, `"999999999999999999999999999999999999999"`,
	`{}`, `{"x":1}`, `{"amount":"1.00","currency":"GBP"}`, `{"currency":"GBP","amount":"1.00"}`, `{"amount":"1.0","currency":"GBP"}`, `{"amount":"1.00"}`,
	`{"currency":"JPY"}`, `{"amount":"1.00","amount":"2.00","currency":"GBP"}`, `{"amount":null,"currency":"GBP"}`, `{"amount":1.00,"currency":"GBP"}`,
	`{"amount":"1.00","currency":"GBP","x":1}`, `{"name":"a","name":"b"}`, `{"name":null}`, `{"Name":"a"}`, `{"name":"a",}`, `{"name"}`,
	`[]`, `[null]`, `[[]]`, `[{}]`, `[{},]`, `[,{}]`, `[{} {}]`, `[{}`, `{}]`, `[{}}`, `[{"x":1}]`, `["x"]`, `[{"line":1,"line":1}]`, `[{"line":null}]`, `[{"line":1.0}]`,
	`[{"line":01}]`, `[{"line":"1"}]`, `[{"quantity":null}]`, `[{"quantity":9223372036854775808}]`, `[{"sku":null}]`, `[{"sku":1}]`, `[{"sku":"a","sku":"a"}]`,
	`[{"unit_price":2.55}]`, `[{"unit_price":"2.5500000"}]`, `[{"unit_price":"1e3"}]`, `[{"unit_price":""}]`, `[{"line_total":"1.0000000"}]`, `[{"line_total":""}]`,
	`[{"lines":[{"lines":[]}]}]`, `[{"lines":null}]`, `[{"shipped":0,"returned":0}]`,
}

// TestStrangeForms breaks every member of every body in every way. Where a decoder accepts what came of it, the general
// way does, with the same result; and what nothing can be read from is accepted by none.
func TestStrangeForms(t *testing.T) {
	for name, d := range decoders {
		t.Run(name, func(t *testing.T) {
			gone := func(data string) {
				t.Helper()
				if d.decode(t, []byte(data)) {
					t.Errorf("accepted %q", data)
				}
			}
			for i := range d.whole {
				gone(d.whole[:i])
			}
			open := strings.TrimSuffix(d.whole, "}")
			comma := ","
			if open == "{" {
				comma = ""
			}
			for _, tail := range []string{"}", ",", "x", "{}", "\x00", "\xff", " null", d.whole} {
				gone(d.whole + tail)
			}
			gone("\ufeff" + d.whole)
			gone("[" + d.whole + "]")
			gone(open + comma + `"x":1}`)
			gone(open + comma + `"":null}`)
			gone(open + ",}")
			for _, v := range []string{"null", "true", "1", `"x"`, "[]", "[{}]", ""} {
				gone(v)
			}
			members := membersOf(t, d.whole)
			for i, m := range members {
				gone(open + "," + m + "}")
				member, _, _ := strings.Cut(m, ":")
				gone(open + "," + member + ":null}")
				gone("{" + strings.ToUpper(member) + ":1}")
				gone(`{"\u00` + hexOf(member[1]) + member[2:] + m[len(member):] + "}")
				for _, v := range strange {
					changed := append(append([]string{}, members[:i]...), member+":"+v)
					d.decode(t, []byte("{"+strings.Join(append(changed, members[i+1:]...), ",")+"}"))
					d.decode(t, []byte("{"+member+":"+v+"}"))
				}
				gone("{" + member + ":null}")
				gone("{" + member + "}")
				gone("{" + member + `:"\u0000"}`)
				gone("{" + member + ":\"\xff\"}")
			}
		})
	}
}

func hexOf(c byte) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[c>>4], digits[c&15]})
}

// TestOwnFormIsFast: what the bodies are written as is read by their own decoders, as the same. Only control characters,
// which no command lets in, are left to the general way.
func TestOwnFormIsFast(t *testing.T) {
	codes := money.Currencies()
	rapid.Check(t, func(t *rapid.T) {
		d := drawer{t, rapid.SampledFrom(codes).Draw(t, "currency")}
		for name, body := range d.bodies() {
			data := encode(t, body)
			if got, want := decoders[name].decode(t, data), !bytes.Contains(data, []byte(`\u`)); got != want {
				t.Fatalf("%s: accepted is %v for\n%s", name, got, data)
			}
		}
	})
}

// bodies draws one body of each type that has a decoder.
func (d drawer) bodies() map[string]any {
	quantity, amount, at := d.int(), d.amount(), d.time()
	place := &PlaceOrder{
		d.text(), d.text(), d.text(), d.text(), Channel(d.text()), d.text(), FulfilmentKind(d.text()), Backorder(d.text()), nil, d.address(), make([]LineRequest, rapid.IntRange(0, 3).Draw(d.t, "n")),
	}
	for i := range place.Lines {
		place.Lines[i] = LineRequest{d.text(), d.text(), &quantity, d.text()}
	}
	if d.bool() {
		place.PlacedAt = &at
	}
	reserved := &StockReserved{d.time(), d.text(), d.int(), levels(d.int(), d.int())}
	released, committed := StockReleased(*reserved), StockCommitted(*reserved)
	return map[string]any{
		"PlaceOrder": place, "ConfirmOrder": &ConfirmOrder{uint64(rapid.IntRange(0, 9).Draw(d.t, "version"))}, //nolint:gosec // not negative
		"PackOrder": &PackOrder{}, "DeliverOrder": &DeliverOrder{},
		"MarkOrderPaid":  &MarkOrderPaid{d.text(), &amount},
		"ShipOrder":      &ShipOrder{[]QuantityRequest{{1, &quantity}, {2, &quantity}}, d.text(), d.text()},
		"ReceiveStock":   &ReceiveStock{&quantity, d.text()},
		"ReserveStock":   &ReserveStock{d.text(), &quantity},
		"ReleaseStock":   &ReleaseStock{d.text(), &quantity},
		"CommitStock":    &CommitStock{d.text(), nil},
		"OrderPlaced":    d.placed(),
		"OrderConfirmed": &OrderConfirmed{d.time()}, "OrderPacked": &OrderPacked{d.time()},
		"OrderDelivered": &OrderDelivered{d.time()}, "OrderCompleted": &OrderCompleted{d.time()},
		"OrderPaid":              &OrderPaid{d.time(), d.text(), d.text(), d.amount()},
		"OrderShipped":           &OrderShipped{d.time(), int(d.int()), d.quantities(), d.bool(), d.text(), d.text()},
		"RecordPayment":          &RecordPayment{d.text(), payment.Kind(d.text()), payment.Status(d.text()), d.text(), d.amount(), d.text()},
		"RequestPayment":         &RequestPayment{d.text(), d.amount()},
		"OrderPaymentRequested":  &OrderPaymentRequested{d.time(), d.text(), d.amount()},
		"OrderPaymentAuthorised": &OrderPaymentAuthorised{d.time(), d.text(), d.text(), d.amount()},
		"StockReserved":          reserved, "StockReleased": &released, "StockCommitted": &committed,
		"Order": d.order(),
		"Day":   &Day{d.text(), Status(d.text()), d.currency, d.int(), d.int(), money.Sum{}.Add(d.amount().Decimal())},
		"Level": &Level{d.text(), d.int(), d.int(), d.int(), uint64(d.int())}, //nolint:gosec // any number will do
	}
}

// FuzzDecode and its kin hold the decoders to the general way on any bytes at all. They are several so that the larger
// bodies have their share of the time.
func FuzzDecodePlaceOrder(f *testing.F)   { fuzzDecode(f, "PlaceOrder") }
func FuzzDecodeOrderPlaced(f *testing.F)  { fuzzDecode(f, "OrderPlaced") }
func FuzzDecodeOrder(f *testing.F)        { fuzzDecode(f, "Order") }
func FuzzDecodeOrderShipped(f *testing.F) { fuzzDecode(f, "OrderShipped", "ShipOrder") }
func FuzzDecodeOrderPaid(f *testing.F) {
	fuzzDecode(f, "OrderPaid", "MarkOrderPaid", "RequestPayment", "RecordPayment", "OrderPaymentRequested", "OrderPaymentAuthorised")
}
func FuzzDecodeStock(f *testing.F) {
	fuzzDecode(f, "ReceiveStock", "ReserveStock", "ReleaseStock", "CommitStock", "StockReserved", "StockReleased", "StockCommitted", "Level")
}

func FuzzDecodeSmall(f *testing.F) {
	fuzzDecode(f, "ConfirmOrder", "PackOrder", "DeliverOrder", "OrderConfirmed", "OrderPacked", "OrderDelivered", "OrderCompleted", "Day")
}

func fuzzDecode(f *testing.F, names ...string) {
	const examples = 10
	for i := range examples {
		bodies := rapid.Custom(func(t *rapid.T) map[string]any { return drawer{t, money.Currencies()[i]}.bodies() }).Example(i)
		for _, name := range names {
			f.Add(encode(f, bodies[name]))
		}
	}
	for _, name := range names {
		f.Add([]byte(decoders[name].whole))
	}
	f.Add([]byte(benchBody))
	for _, v := range strange {
		f.Add([]byte(v))
		f.Add([]byte(`{"lines":` + v + `}`))
		f.Add([]byte(`{"at":` + v + `,"amount":` + v + `}`))
	}
	files, err := filepath.Glob("testdata/history/*")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, path := range files {
		data, err := os.ReadFile(path) //nolint:gosec // a file of this package's testdata
		if err != nil {
			f.Fatal(err)
		}
		for line := range bytes.Lines(data) {
			var e recorded
			if jsonx.Unmarshal(line, &e) == nil {
				line = e.Data
			}
			f.Add(line)
		}
	}
	for _, c := range jsoncorpus.Cases() {
		if len(c.Data) < 200 {
			f.Add(c.Data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, name := range names {
			decoders[name].decode(t, data)
		}
	})
}
