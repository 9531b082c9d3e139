package order

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
)

// TestForm: what has the wrong form is refused at the door, each fault by its place, and no answer repeats a value.
func TestForm(t *testing.T) {
	const line = `{"sku":"M","quantity":1,"unit_price":"1"}`
	order := func(members string) string { return `{"currency":"GBP","lines":[` + line + `]` + members + `}` }
	lines := func(l string) string { return `{"currency":"GBP","lines":[` + l + `]}` }
	long := strings.Repeat("s3cret", 200)
	for _, c := range []struct{ name, typ, body, pointers string }{
		{"least", "PlaceOrder", order(""), ""},
		{"nulls are nothing", "PlaceOrder", order(`,"customer_id":null,"ship_to":null,"placed_at":null`), ""},
		{"nothing", "PlaceOrder", `{}`, "/currency /lines"},
		{"no lines", "PlaceOrder", `{"currency":"GBP","lines":[]}`, "/lines"},
		{"unknown currency", "PlaceOrder", `{"currency":"XXX","lines":[` + line + `]}`, "/currency"},
		{"lower-case currency", "PlaceOrder", `{"currency":"gbp","lines":[` + line + `]}`, "/currency"},
		{"unknown channel", "PlaceOrder", order(`,"channel":"s3cret"`), "/channel"},
		{"unknown fulfilment", "PlaceOrder", order(`,"fulfilment":"s3cret"`), "/fulfilment"},
		{"long ids", "PlaceOrder", order(`,"id":"` + long + `","customer_id":"` + long + `"`), "/id /customer_id"},
		{"control character", "PlaceOrder", order(`,"customer_id":"s3cret\u0085"`), "/customer_id"},
		{"an address and a language", "PlaceOrder", order(`,"email":"ann.o'neil+shop@mail.example.org","language":"de-AT"`), ""},
		{"an address of another script", "PlaceOrder", order(`,"email":"köchin@bücher.example.org","language":"zh-Hans-CN"`), ""},
		{"no address and no language", "PlaceOrder", order(`,"email":"","language":""`), ""},
		{"no @", "PlaceOrder", order(`,"email":"s3cret"`), "/email"},
		{"two @", "PlaceOrder", order(`,"email":"s3cret@example.org@example.org"`), "/email"},
		{"nobody", "PlaceOrder", order(`,"email":"@example.org"`), "/email"},
		{"nowhere", "PlaceOrder", order(`,"email":"s3cret@"`), "/email"},
		{"a name beside the address", "PlaceOrder", order(`,"email":"s3cret <a@example.org>"`), "/email"},
		{"a space of another kind", "PlaceOrder", order(`,"email":"s3cret\u2003a@example.org"`), "/email"},
		{"a second header", "PlaceOrder", order(`,"email":"s3cret@example.org\r\nBcc: b@example.org"`), "/email"},
		{"a long address", "PlaceOrder", order(`,"email":"a@` + strings.Repeat("x", 253) + `"`), "/email"},
		{"a word for a language", "PlaceOrder", order(`,"language":"s3cret-s3cret-s3cret-s3cret-s3cret-s3cret"`), "/language"},
		{"a language of digits", "PlaceOrder", order(`,"language":"1"`), "/language"},
		{"a language with a gap", "PlaceOrder", order(`,"language":"en--GB"`), "/language"},
		{"not a time", "PlaceOrder", order(`,"placed_at":"s3cret"`), "/placed_at"},
		{"too early", "PlaceOrder", order(`,"placed_at":"1969-12-31T23:59:59Z"`), "/placed_at"},
		{"too late", "PlaceOrder", order(`,"placed_at":"9999-12-31T23:59:59-01:00"`), "/placed_at"},
		{"no address", "PlaceOrder", order(`,"ship_to":{}`), "/ship_to"},
		{"long address", "PlaceOrder", order(`,"ship_to":{"name":"` + long + `","country":"x"}`), "/ship_to/name"},
		{"unknown member", "PlaceOrder", order(`,"s3cret":1`), ""},
		{"empty line", "PlaceOrder", lines(`{}`), "/lines/0/sku /lines/0/quantity /lines/0/unit_price"},
		{"second line", "PlaceOrder", lines(line + `,{"sku":" s3cret","quantity":1,"unit_price":"1"}`), "/lines/1/sku"},
		{"codes in use", "PlaceOrder", lines(`{"sku":"BANK CHARGES","description":"Charge ","quantity":1,"unit_price":"1"}`), ""},
		{"zero is a matter of rules", "PlaceOrder", lines(`{"sku":"M","quantity":0,"unit_price":"-1"}`), ""},
		{"huge quantity", "PlaceOrder", lines(`{"sku":"M","quantity":100000001,"unit_price":"1"}`), "/lines/0/quantity"},
		{"hugely negative", "PlaceOrder", lines(`{"sku":"M","quantity":-100000001,"unit_price":"1"}`), "/lines/0/quantity"},
		{"a number as price", "PlaceOrder", lines(`{"sku":"M","quantity":1,"unit_price":2.55}`), "/lines/0/unit_price"},
		{"half a piece", "PlaceOrder", lines(`{"sku":"M","quantity":1.5,"unit_price":"1"}`), "/lines/0/quantity"},
		{"exponent", "PlaceOrder", lines(`{"sku":"M","quantity":1,"unit_price":"1e3"}`), "/lines/0/unit_price"},
		{"seven decimals", "PlaceOrder", lines(`{"sku":"M","quantity":1,"unit_price":"1.0000001"}`), "/lines/0/unit_price"},
		{"no change", "ChangeOrder", `{}`, ""},
		{"no reason", "CancelOrder", `{}`, "/reason"},
		{"amount without currency", "MarkOrderPaid", `{"amount":{"amount":"1.00"}}`, "/amount"},
		{"amount with other decimals", "MarkOrderPaid", `{"amount":{"amount":"1.0","currency":"GBP"}}`, "/amount"},
		{"no lines to ship", "ShipOrder", `{"lines":[]}`, "/lines"},
		{"a line twice", "ShipOrder", `{"lines":[{"line":1,"quantity":1},{"line":1,"quantity":1}]}`, "/lines/1/line"},
		{"line zero", "ReturnOrder", `{"lines":[{"line":0,"quantity":1},{"line":5001,"quantity":1},{"line":1}]}`, "/lines/0/line /lines/1/line /lines/2/quantity"},
	} {
		t.Run(c.name, func(t *testing.T) {
			form := formOf(t, c.typ, c.body)
			wantFault := c.pointers != "" || c.name == "unknown member" || c.name == "no change"
			if (form != nil) != wantFault {
				t.Fatalf("got %+v", form)
			}
			if form == nil {
				return
			}
			var pointers []string
			for _, f := range form.Errors {
				pointers = append(pointers, f.Pointer)
				if f.Detail == "" || strings.Contains(f.Detail, "s3cret") {
					t.Errorf("detail %q", f.Detail)
				}
			}
			if got := strings.Join(pointers, " "); got != c.pointers {
				t.Errorf("faults at %q, want %q", got, c.pointers)
			}
		})
	}
}

func formOf(t testing.TB, typ, body string) *millrace.FormError {
	t.Helper()
	_, err := newRegistry(t).DecodeCommand(&millrace.Command{Stream: "order-1", Type: typ, Data: []byte(body)})
	if err == nil {
		return nil
	}
	form, ok := errors.AsType[*millrace.FormError](err)
	if !ok {
		t.Fatalf("not a fault of form: %v", err)
	}
	return form
}

func TestLargestOrder(t *testing.T) {
	line := `{"sku":"` + strings.Repeat("x", MaxSKU) + `","quantity":1,"unit_price":"1"},`
	body := func(n int) string {
		return `{"currency":"GBP","lines":[` + strings.TrimSuffix(strings.Repeat(line, n), ",") + `]}`
	}
	if form := formOf(t, "PlaceOrder", body(MaxLines+1)); form == nil || form.Errors[0].Pointer != "/lines" {
		t.Errorf("a line too many: %+v", form)
	}
	if n := len(formOf(t, "PlaceOrder", strings.ReplaceAll(body(MaxLines), `"1"`, `"x"`)).Errors); n != maxFaults {
		t.Errorf("%d faults are named", n)
	}
	s := newStream(t, newRegistry(t), "order-1")
	if len(body(MaxLines)) > millrace.MaxCommandData {
		t.Fatal("the largest order is no command")
	}
	for _, st := range []step{{"PlaceOrder", body(MaxLines)}, confirmOrder, packOrder, shipAll, deliverOrder, returnAll} {
		s.must(st.typ, st.body)
	}
	checkOrder(t, s)
}

// TestKeysSort: the keys of the read models order as the times do, whatever their form.
func TestKeysSort(t *testing.T) {
	at := []string{"1970-01-01T00:00:00Z", "2010-12-01T08:26:00Z", "2010-12-01T08:26:00.000000001Z", "2010-12-01T08:26:00.5Z", "2010-12-01T09:26:01+01:00", "9999-12-31T23:59:59.999999999Z"}
	keys := make([]string, len(at))
	for i, s := range at {
		v, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = TimeKey(v)
	}
	if !slices.IsSorted(keys) {
		t.Errorf("%q", keys)
	}
	o := &Order{ID: "1", Status: StatusPlaced}
	if k := orderKeys(o); k[OrdersByCustomer] != "" || !strings.HasPrefix(k[OrdersByStatus], millrace.KeyPrefix("placed")) {
		t.Errorf("%q", k)
	}
	o.CustomerID = "c-17"
	if k := orderKeys(o); k[OrdersByCustomer] != millrace.Key("c-17", TimeKey(o.PlacedAt), "1") {
		t.Errorf("%q", k)
	}
}

// FuzzPlaceOrder: no body makes the way from the door to the read model panic; what is accepted can be placed, written,
// read again and placed again without an effect.
func FuzzPlaceOrder(f *testing.F) {
	f.Add([]byte(placeBody))
	f.Add([]byte(`{"currency":"KWD","placed_at":"2010-12-01T08:26:00+14:00","lines":[{"sku":"M","quantity":3,"unit_price":"0.0005"}]}`))
	f.Add([]byte(`{"currency":"GBP","fulfilment":"auto","lines":[{"sku":"M","quantity":-3,"unit_price":"-5"}]}`))
	f.Add([]byte(`{"lines":[{}]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r := newRegistry(t)
		name := millrace.Stream("order-42")
		command, err := r.DecodeCommand(&millrace.Command{Stream: name, Type: "PlaceOrder", Data: body})
		if err != nil {
			form, ok := errors.AsType[*millrace.FormError](err)
			if !ok || len(form.Errors) == 0 {
				t.Fatalf("a fault without a place: %v", err)
			}
			return
		}
		c, _ := r.Category(name)
		if _, refusal := c.Decide(c.Initial(name), command, start); refusal != nil {
			if refusal.Code == "" || refusal.Detail == "" {
				t.Fatalf("a refusal without a reason: %+v", refusal)
			}
			return
		}
		s := newStream(t, r, name)
		s.must("PlaceOrder", string(body))
		checkOrder(t, s)
		if got := answer(s.do("PlaceOrder", string(body))); got != "-" {
			t.Fatalf("placed again: %s", got)
		}
		project(t, map[string]*views{}, s.events)
	})
}
