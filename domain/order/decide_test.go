package order

import (
	"fmt"
	"strings"
	"testing"

	"github.com/millrace-io/millrace"
)

type step struct{ typ, body string }

const placeBody = `{"customer_id":"c-17","currency":"GBP","fulfilment":"manual","ship_to":{"name":"Goods in","line1":"1 Mill Lane","city":"York"},` +
	`"lines":[{"sku":"85123A","description":"LANTERN","quantity":3,"unit_price":"2.55"},{"sku":"POST","quantity":1,"unit_price":"1"}]}`

var (
	placeOrder   = step{"PlaceOrder", placeBody}
	confirmOrder = step{"ConfirmOrder", `{}`}
	payOrder     = step{"MarkOrderPaid", `{"reference":"p-1"}`}
	packOrder    = step{"PackOrder", `{}`}
	shipPart     = step{"ShipOrder", `{"lines":[{"line":1,"quantity":1}],"carrier":"Post"}`}
	shipAll      = step{"ShipOrder", `{}`}
	deliverOrder = step{"DeliverOrder", `{}`}
	returnPart   = step{"ReturnOrder", `{"lines":[{"line":1,"quantity":1}],"reason":"broken"}`}
	returnAll    = step{"ReturnOrder", `{}`}
	cancelOrder  = step{"CancelOrder", `{"reason":"changed my mind"}`}
	closeOrder   = step{"CloseOrder", `{"reason":"sold out"}`}
	request      = requestPayment("authorise-1", "8.65")
	authorise    = recordPayment("authorise-1", "authorise", "approved", "8.65")
	capture      = recordPayment("capture-1", "capture", "approved", "8.65")
	voidPayment  = recordPayment("void-1", "void", "approved", "8.65")
	refundPart   = recordPayment("refund-1", "refund", "approved", "2.55")
	declined     = recordPayment("authorise-1", "authorise", "declined", "8.65")
)

func recordPayment(name, kind, status, amount string) step {
	return step{"RecordPayment", `{"name":"` + name + `","kind":"` + kind + `","status":"` + status + `","payment":"p-1",` +
		`"amount":{"amount":"` + amount + `","currency":"GBP"}}`}
}

func requestPayment(name, amount string) step {
	return step{"RequestPayment", `{"name":"` + name + `","amount":{"amount":"` + amount + `","currency":"GBP"}}`}
}

// The states of an order: each status, and within a status whatever makes a difference to a command.
var orderStates = []struct {
	name  string
	steps []step
}{
	{"(nothing)", nil},
	{"placed", []step{placeOrder}},
	{"placed, paid", []step{placeOrder, payOrder}},
	{"placed, lines changed", []step{placeOrder, {"ChangeOrder", `{"lines":[{"sku":"M","quantity":1,"unit_price":"2"}]}`}}},
	{"placed, authorisation requested", []step{placeOrder, request}},
	{"placed, authorised", []step{placeOrder, request, authorise}},
	{"placed, declined", []step{placeOrder, declined}},
	{"confirmed", []step{placeOrder, confirmOrder}},
	{"confirmed, paid", []step{placeOrder, confirmOrder, payOrder}},
	{"packed", []step{placeOrder, confirmOrder, packOrder}},
	{"partly_shipped", []step{placeOrder, confirmOrder, packOrder, shipPart}},
	{"shipped", []step{placeOrder, confirmOrder, packOrder, shipAll}},
	{"shipped, the rest given up", []step{placeOrder, confirmOrder, packOrder, shipPart, closeOrder}},
	{"shipped, captured", []step{placeOrder, authorise, confirmOrder, packOrder, shipAll, capture}},
	{"shipped, paid", []step{placeOrder, confirmOrder, packOrder, payOrder, shipAll}},
	{"delivered", []step{placeOrder, confirmOrder, packOrder, shipAll, deliverOrder}},
	{"completed", []step{placeOrder, confirmOrder, packOrder, shipAll, deliverOrder, payOrder}},
	{"cancelled", []step{placeOrder, cancelOrder}},
	{"cancelled, authorised", []step{placeOrder, authorise, cancelOrder}},
	{"cancelled, paid", []step{placeOrder, payOrder, cancelOrder}},
	{"partly_returned, on its way", []step{placeOrder, confirmOrder, packOrder, shipAll, returnPart}},
	{"partly_returned, delivered", []step{placeOrder, confirmOrder, packOrder, shipAll, deliverOrder, returnPart}},
	{"partly_returned, completed", []step{placeOrder, confirmOrder, packOrder, shipAll, deliverOrder, payOrder, returnPart}},
	{"returned", []step{placeOrder, confirmOrder, packOrder, shipAll, returnAll}},
}

var orderCommands = []struct {
	name string
	step
}{
	{"place again", placeOrder},
	{"place otherwise", step{"PlaceOrder", `{"currency":"GBP","lines":[{"sku":"M","quantity":1,"unit_price":"9"}]}`}},
	{"change lines", step{"ChangeOrder", `{"lines":[{"sku":"M","quantity":2,"unit_price":"0.005"}]}`}},
	{"change address", step{"ChangeOrder", `{"ship_to":{"city":"Leeds"}}`}},
	{"confirm", confirmOrder},
	{"confirm version 1", step{"ConfirmOrder", `{"version":1}`}},
	{"confirm version 2", step{"ConfirmOrder", `{"version":2}`}},
	{"cancel", cancelOrder},
	{"pay", payOrder},
	{"pay, other reference", step{"MarkOrderPaid", `{"reference":"p-2"}`}},
	{"pay, wrong amount", step{"MarkOrderPaid", `{"amount":{"amount":"1.00","currency":"GBP"}}`}},
	{"request", request},
	{"request otherwise", requestPayment("authorise-2", "8.65")},
	{"request, wrong amount", requestPayment("authorise-2", "8.64")},
	{"authorised", authorise},
	{"declined", declined},
	{"captured", capture},
	{"voided", voidPayment},
	{"refunded", refundPart},
	{"pack", packOrder},
	{"ship", shipAll},
	{"ship one of line 1", shipPart},
	{"close", closeOrder},
	{"deliver", deliverOrder},
	{"return", returnAll},
	{"return to scrap", step{"ReturnOrder", `{"restock":false}`}},
	{"return one of line 1", returnPart},
}

// TestEveryStateAndCommand writes a table: each command in each state, and the same command once more right after it. "-"
// stands for nothing to do. The table is read by people, in testdata/decisions.txt.
func TestEveryStateAndCommand(t *testing.T) {
	r := newRegistry(t)
	var b strings.Builder
	b.WriteString("# What each command does in each state of an order, and what it does when it comes again. - is nothing to do.\n")
	for _, state := range orderStates {
		fmt.Fprintf(&b, "\n%s\n", state.name)
		for _, c := range orderCommands {
			s := newStream(t, r, "order-42")
			for _, st := range state.steps {
				s.must(st.typ, st.body)
			}
			if status, _, _ := strings.Cut(state.name, ","); s.order().Exists() && string(s.order().Status) != status {
				t.Fatalf("the steps to %q lead to %q", state.name, s.order().Status)
			}
			first := answer(s.do(c.typ, c.body))
			again := answer(s.do(c.typ, c.body))
			fmt.Fprintf(&b, "  %-22s %-34s %s\n", c.name, first, again)
			checkOrder(t, s)
		}
	}
	golden(t, "testdata/decisions.txt", b.String())
}

// The states of stock. 10 are on hand, of which r-1 has 4.
var stockStates = []struct {
	name  string
	steps []step
}{
	{"(nothing)", nil},
	{"10 on hand", []step{{"ReceiveStock", `{"quantity":10}`}}},
	{"10 on hand, 4 reserved as r-1", []step{{"ReceiveStock", `{"quantity":10}`}, {"ReserveStock", `{"reservation":"r-1","quantity":4}`}}},
	{"10 on hand, 4 reserved as r-1, 1 committed", []step{
		{"ReceiveStock", `{"quantity":10}`}, {"ReserveStock", `{"reservation":"r-1","quantity":4}`}, {"CommitStock", `{"reservation":"r-1","quantity":1}`},
	}},
	{"r-1 released", []step{
		{"ReceiveStock", `{"quantity":10}`}, {"ReserveStock", `{"reservation":"r-1","quantity":4}`}, {"ReleaseStock", `{"reservation":"r-1"}`},
	}},
	{"r-1 committed", []step{
		{"ReceiveStock", `{"quantity":10}`}, {"ReserveStock", `{"reservation":"r-1","quantity":4}`}, {"CommitStock", `{"reservation":"r-1"}`},
	}},
}

var stockCommands = []struct {
	name string
	step
}{
	{"receive 5", step{"ReceiveStock", `{"quantity":5,"reference":"d-1"}`}},
	{"receive 0", step{"ReceiveStock", `{"quantity":0}`}},
	{"receive -1", step{"ReceiveStock", `{"quantity":-1}`}},
	{"adjust by 3", step{"AdjustStock", `{"delta":3,"reason":"count"}`}},
	{"adjust by 0", step{"AdjustStock", `{"delta":0,"reason":"count"}`}},
	{"adjust by -7", step{"AdjustStock", `{"delta":-7,"reason":"count"}`}},
	{"adjust by -11", step{"AdjustStock", `{"delta":-11,"reason":"count"}`}},
	{"reserve 4 as r-1", step{"ReserveStock", `{"reservation":"r-1","quantity":4}`}},
	{"reserve 5 as r-1", step{"ReserveStock", `{"reservation":"r-1","quantity":5}`}},
	{"reserve 0 as r-1", step{"ReserveStock", `{"reservation":"r-1","quantity":0}`}},
	{"reserve 6 as r-2", step{"ReserveStock", `{"reservation":"r-2","quantity":6}`}},
	{"reserve 11 as r-2", step{"ReserveStock", `{"reservation":"r-2","quantity":11}`}},
	{"release r-1", step{"ReleaseStock", `{"reservation":"r-1"}`}},
	{"release 3 of r-1", step{"ReleaseStock", `{"reservation":"r-1","quantity":3}`}},
	{"release 0 of r-1", step{"ReleaseStock", `{"reservation":"r-1","quantity":0}`}},
	{"commit r-1", step{"CommitStock", `{"reservation":"r-1"}`}},
	{"commit 3 of r-1", step{"CommitStock", `{"reservation":"r-1","quantity":3}`}},
	{"commit 5 of r-1", step{"CommitStock", `{"reservation":"r-1","quantity":5}`}},
}

// TestEveryStockStateAndCommand is the same for stock, with the levels after both.
func TestEveryStockStateAndCommand(t *testing.T) {
	r := newRegistry(t)
	var b strings.Builder
	b.WriteString("# What each command does in each state of an SKU, what it does when it comes again, and on hand/reserved/available after both.\n")
	for _, state := range stockStates {
		fmt.Fprintf(&b, "\n%s\n", state.name)
		for _, c := range stockCommands {
			s := newStream(t, r, "stock-85123A")
			for _, st := range state.steps {
				s.must(st.typ, st.body)
			}
			first := answer(s.do(c.typ, c.body))
			again := answer(s.do(c.typ, c.body))
			l := s.stock().Level()
			fmt.Fprintf(&b, "  %-18s %-24s %-24s %d/%d/%d\n", c.name, first, again, l.OnHand, l.Reserved, l.Available)
			checkStock(t, s.stock())
		}
	}
	golden(t, "testdata/stock_decisions.txt", b.String())
}

func TestReturns(t *testing.T) {
	const body = `{"customer_id":"c-17","currency":"GBP","returned_at":"2010-12-01T09:41:00+01:00","original_order_id":"536379",` +
		`"lines":[{"sku":"D","description":"Discount ","quantity":1,"unit_price":"27.50"}]}`
	for _, c := range []struct{ name, first, second, want, again string }{
		{"recorded once", body, body, "GoodsReturned", "-"},
		{"other content", body, strings.Replace(body, "27.50", "27.51", 1), "GoodsReturned", "409 return_exists"},
		{"other customer", body, strings.Replace(body, "c-17", "c-18", 1), "GoodsReturned", "409 return_exists"},
		{"another time", body, strings.Replace(body, "09:41", "09:42", 1), "GoodsReturned", "409 return_exists"},
		{"the same time elsewhere", body, strings.Replace(body, "09:41:00+01:00", "08:41:00Z", 1), "GoodsReturned", "-"},
		{"no time agrees with any", body, strings.Replace(body, `"returned_at":"2010-12-01T09:41:00+01:00",`, "", 1), "GoodsReturned", "-"},
		{"the same price", body, strings.Replace(body, "27.50", "27.5", 1), "GoodsReturned", "-"},
		{"no quantity", strings.Replace(body, `"quantity":1`, `"quantity":0`, 1), body, "422 line_invalid", "GoodsReturned"},
		{"below zero", strings.Replace(body, `"27.50"`, `"-27.50"`, 1), body, "422 line_invalid", "GoodsReturned"},
		{"another id", `{"id":"x",` + body[1:], body, "422 id_mismatch", "GoodsReturned"},
		{"its own id", `{"id":"C536379",` + body[1:], body, "GoodsReturned", "-"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStream(t, newRegistry(t), "return-C536379")
			if got := answer(s.do("RecordReturn", c.first)); got != c.want {
				t.Errorf("first: %s, want %s", got, c.want)
			}
			if got := answer(s.do("RecordReturn", c.second)); got != c.again {
				t.Errorf("then: %s, want %s", got, c.again)
			}
		})
	}
}

// TestRefusedLines: an importer tells people which line it was.
func TestRefusedLines(t *testing.T) {
	line := func(quantity, price string) string {
		return `{"sku":"85123A","quantity":` + quantity + `,"unit_price":"` + price + `"}`
	}
	for _, c := range []struct {
		name, lines, code, detail string
		pointers                  []string
	}{
		{"price of zero", line("1", "0"), "", "", nil},
		{"zero", line("1", "1") + "," + line("0", "1"), CodeLineInvalid, "line 2: quantity must be at least 1", []string{"/lines/1/quantity"}},
		{"negative", line("-10", "0"), CodeLineInvalid, "line 1: quantity must be at least 1", []string{"/lines/0/quantity"}},
		{"price below zero", line("1", "-11062.06"), CodeLineInvalid, "line 1: unit_price must not be below zero", []string{"/lines/0/unit_price"}},
		{
			"several", line("1", "-1") + "," + line("1", "1") + "," + line("-1", "1"), CodeLineInvalid,
			"line 1: unit_price must not be below zero", []string{"/lines/0/unit_price", "/lines/2/quantity"},
		},
		{
			"too large", line("100000000", "999999999999"), CodeLineInvalid,
			"line 1: unit_price is too large for the quantity", []string{"/lines/0/unit_price"},
		},
		{
			"sum too large", line("6", "999999999999") + "," + line("6", "999999999999"), CodeTotalTooLarge,
			"the total is too large", []string{"/lines"},
		},
		{
			"sum too large and a line wrong", line("6", "999999999999") + "," + line("6", "999999999999") + "," + line("0", "1"), CodeLineInvalid,
			"line 3: quantity must be at least 1", []string{"/lines/2/quantity"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStream(t, newRegistry(t), "order-1")
			_, refusal := s.do("PlaceOrder", `{"currency":"GBP","lines":[`+c.lines+`]}`)
			if c.code == "" {
				if refusal != nil {
					t.Fatalf("refused: %+v", refusal)
				}
				return
			}
			if refusal == nil {
				t.Fatal("not refused")
			}
			var pointers []string
			for _, e := range refusal.Errors {
				pointers = append(pointers, e.Pointer)
			}
			if refusal.Kind != millrace.RefusedRule || refusal.Code != c.code || refusal.Detail != c.detail ||
				strings.Join(pointers, " ") != strings.Join(c.pointers, " ") {
				t.Errorf("got %+v", refusal)
			}
		})
	}
}

func TestPlacing(t *testing.T) {
	for _, c := range []struct{ name, stream, body, want string }{
		{"auto", "order-1", `{"fulfilment":"auto","backorder":"split","currency":"GBP","lines":[{"sku":"M","quantity":1,"unit_price":"1"}]}`, "OrderPlaced"},
		{"another id", "order-1", `{"id":"2","currency":"GBP","lines":[{"sku":"M","quantity":1,"unit_price":"1"}]}`, "422 id_mismatch"},
		{"its id", "order-1", `{"id":"1","currency":"GBP","lines":[{"sku":"M","quantity":1,"unit_price":"1"}]}`, "OrderPlaced"},
		{"an id with hyphens", "order-online-retail-536365", `{"id":"online-retail-536365","currency":"GBP","lines":[{"sku":"M","quantity":1,"unit_price":"1"}]}`, "OrderPlaced"},
		{"a long id", "order-" + strings.Repeat("x", MaxID+1), `{"currency":"GBP","lines":[{"sku":"M","quantity":1,"unit_price":"1"}]}`, "422 id_invalid"},
	} {
		s := newStream(t, newRegistry(t), millrace.Stream(c.stream))
		if got := answer(s.do("PlaceOrder", c.body)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestShipAndReturnRequests(t *testing.T) {
	for _, c := range []struct{ name, typ, body, want string }{
		{"no such line", "ShipOrder", `{"lines":[{"line":3,"quantity":1}]}`, "422 line_unknown"},
		{"nothing of a line", "ShipOrder", `{"lines":[{"line":1,"quantity":0}]}`, "422 line_invalid"},
		{"too much", "ShipOrder", `{"lines":[{"line":1,"quantity":4}]}`, "409 quantity_not_shippable"},
		{"everything by name", "ShipOrder", `{"lines":[{"line":2,"quantity":1},{"line":1,"quantity":3}]}`, "OrderShipped"},
	} {
		s := newStream(t, newRegistry(t), "order-1")
		for _, st := range []step{placeOrder, confirmOrder, packOrder} {
			s.must(st.typ, st.body)
		}
		if got := answer(s.do(c.typ, c.body)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	s := newStream(t, newRegistry(t), "order-1")
	for _, st := range []step{placeOrder, confirmOrder, packOrder, shipAll} {
		s.must(st.typ, st.body)
	}
	if got := answer(s.do("ReturnOrder", `{"lines":[{"line":2,"quantity":2}]}`)); got != "409 quantity_not_returnable" {
		t.Errorf("returning more than was shipped: %s", got)
	}
}

// TestRefundsAddUp: a line of 3 for 1.00 that comes back piece by piece is refunded with 1.00.
func TestRefundsAddUp(t *testing.T) {
	s := newStream(t, newRegistry(t), "order-1")
	s.must("PlaceOrder", `{"currency":"GBP","lines":[{"sku":"M","quantity":3,"unit_price":"0.333333"}]}`)
	for _, st := range []step{confirmOrder, packOrder, shipAll} {
		s.must(st.typ, st.body)
	}
	for _, want := range []string{"0.33 GBP", "0.67 GBP", "1.00 GBP"} {
		s.must("ReturnOrder", `{"lines":[{"line":1,"quantity":1}]}`)
		if got := s.order().Refund.String(); got != want {
			t.Errorf("refunded %s so far, want %s", got, want)
		}
	}
	if s.order().Status != StatusReturned {
		t.Errorf("status %s", s.order().Status)
	}
}

func TestFreeOrderCompletesOnDelivery(t *testing.T) {
	s := newStream(t, newRegistry(t), "order-1")
	s.must("PlaceOrder", `{"currency":"GBP","lines":[{"sku":"gift_0001_20","quantity":1,"unit_price":"0"}]}`)
	for _, st := range []step{confirmOrder, packOrder, shipAll, deliverOrder} {
		s.must(st.typ, st.body)
	}
	if s.order().Status != StatusCompleted {
		t.Errorf("status %s", s.order().Status)
	}
}

func TestShipmentsAreBounded(t *testing.T) {
	s := newStream(t, newRegistry(t), "order-1")
	s.must("PlaceOrder", `{"currency":"GBP","lines":[{"sku":"M","quantity":1000,"unit_price":"1"}]}`)
	s.must("ConfirmOrder", `{}`)
	s.must("PackOrder", `{}`)
	for range MaxShipments {
		s.must("ShipOrder", `{"lines":[{"line":1,"quantity":1}]}`)
	}
	if got := answer(s.do("ShipOrder", `{}`)); got != "409 too_many_shipments" {
		t.Error(got)
	}
}
