package order_test

import (
	"testing"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/millracetest"
)

// told is one command, by its type and body.
type told struct{ typ, data string }

func history(name string, stream millrace.Stream, commands ...told) millracetest.Example {
	e := millracetest.Example{Name: name}
	for _, c := range commands {
		e.Commands = append(e.Commands, millrace.Command{Stream: stream, Type: c.typ, Data: []byte(c.data)})
	}
	return e
}

// TestContracts: orders, stock and returns keep what the engine leans on, in every command, event and refusal below.
func TestContracts(t *testing.T) {
	place := told{"PlaceOrder", `{"id":"42","customer_id":"c-17","channel":"phone","currency":"GBP","fulfilment":"manual","placed_at":"2010-12-01T08:20:00.25+01:00","email":"ann@example.org","language":"en-GB",` +
		`"ship_to":{"name":"Goods in","line1":"1 Mill Lane","city":"York","postal_code":"YO1 7HH","country":"United Kingdom"},` +
		`"lines":[{"sku":"85123A","description":"HOLDER \"T-LIGHT\" é <&>","quantity":6,"unit_price":"2.55"},{"sku":"POST","quantity":1,"unit_price":"0.333333"}]}`}
	record := func(name, kind, status string) told {
		return told{"RecordPayment", `{"name":"` + name + `","kind":"` + kind + `","status":"` + status + `","payment":"p-1","amount":{"amount":"2.00","currency":"GBP"},"code":"no"}`}
	}
	request := func(name, amount string) told {
		return told{"RequestPayment", `{"name":"` + name + `","amount":{"amount":"` + amount + `","currency":"GBP"}}`}
	}
	short := told{"PlaceOrder", `{"currency":"KWD","lines":[{"sku":"M","quantity":3,"unit_price":"0.0005"}]}`}
	plain := func(typ string) told { return told{typ, `{}`} }
	millracetest.CheckDomain(t, order.Domains(), []millracetest.Example{
		history("completed", "order-42",
			place, place, told{"ChangeOrder", `{"lines":[{"sku":"85123A","quantity":6,"unit_price":"2.55"},{"sku":"gift_0001_20","quantity":3,"unit_price":"1"}],"ship_to":{"city":"Leeds"}}`},
			told{"ChangeOrder", `{"ship_to":{"country":"Ireland"}}`}, plain("ShipOrder"),
			plain("ConfirmOrder"), plain("ConfirmOrder"), plain("PackOrder"),
			told{"ShipOrder", `{"lines":[{"line":1,"quantity":4}],"carrier":"Post","tracking_number":"T-1"}`},
			told{"ShipOrder", `{"lines":[{"line":1,"quantity":4}]}`}, told{"ShipOrder", `{"lines":[{"line":9,"quantity":1}]}`},
			plain("DeliverOrder"), told{"CancelOrder", `{"reason":"too late"}`}, plain("ShipOrder"), plain("DeliverOrder"),
			told{"MarkOrderPaid", `{"reference":"p-1","amount":{"amount":"0.01","currency":"GBP"}}`},
			told{"MarkOrderPaid", `{"reference":"p-1","amount":{"amount":"18.30","currency":"GBP"}}`}, told{"MarkOrderPaid", `{"reference":"p-2"}`},
			told{"ReturnOrder", `{"lines":[{"line":1,"quantity":1}],"reason":"chipped"}`}, plain("ReturnOrder"), plain("ReturnOrder")),
		history("returned", "order-43", short, plain("MarkOrderPaid"), plain("ConfirmOrder"), plain("PackOrder"), plain("ShipOrder"), plain("ReturnOrder"), plain("DeliverOrder")),
		history("cancelled", "order-44", short, told{"MarkOrderPaid", `{"reference":"p-1"}`}, told{"CancelOrder", `{"reason":"changed my mind"}`}, told{"CancelOrder", `{"reason":"again"}`}),
		history("not paid and cancelled", "order-45", short, told{"CancelOrder", `{"reason":"changed my mind"}`}, plain("PackOrder")),
		history("in parts, the rest given up", "order-47",
			told{"PlaceOrder", `{"fulfilment":"auto","backorder":"split","currency":"GBP","lines":[{"sku":"A","quantity":2,"unit_price":"0.50"},{"sku":"B","quantity":1,"unit_price":"1"}]}`},
			told{"ConfirmOrder", `{"version":1}`}, plain("PackOrder"), told{"ShipOrder", `{"lines":[{"line":1,"quantity":1}]}`},
			told{"CloseOrder", `{"reason":"sold out"}`}, told{"CloseOrder", `{"reason":"sold out"}`}, plain("DeliverOrder"),
			told{"ReturnOrder", `{"restock":false}`}, told{"CloseOrder", `{"reason":"sold out"}`}),
		history("paid at the gateway", "order-48",
			told{"PlaceOrder", `{"currency":"GBP","lines":[{"sku":"A","quantity":2,"unit_price":"1"}]}`},
			told{"ChangeOrder", `{"lines":[{"sku":"A","quantity":1,"unit_price":"2"}]}`}, told{"ConfirmOrder", `{"version":1}`},
			request("authorise-1", "2.00"), request("authorise-2", "2.00"), request("authorise-1", "2.00"),
			record("authorise-1", "authorise", "declined"), request("authorise-2", "1.99"), request("authorise-2", "2.00"),
			record("authorise-2", "authorise", "approved"), record("void-1", "void", "approved"),
			record("authorise-3", "authorise", "approved"), plain("ConfirmOrder"), plain("PackOrder"), plain("ShipOrder"), plain("DeliverOrder"),
			record("capture-1", "capture", "declined"), record("capture-2", "capture", "approved"), record("capture-2", "capture", "approved"),
			record("refund-1", "refund", "approved"), told{"RecordPayment", `{"name":"refund-2","kind":"refund","status":"approved","amount":{"amount":"2","currency":"JPY"}}`}),
		history("never placed", "order-46", plain("ConfirmOrder"), place),
		history("stock", "stock-85123A",
			told{"ReserveStock", `{"reservation":"r-0","quantity":1}`}, told{"ReceiveStock", `{"quantity":100,"reference":"d-1"}`},
			told{"ReserveStock", `{"reservation":"r-1","quantity":6}`}, told{"ReserveStock", `{"reservation":"r-2","quantity":4}`},
			told{"ReserveStock", `{"reservation":"r-3","quantity":1}`}, told{"ReserveStock", `{"reservation":"r-3","quantity":2}`},
			told{"ReserveStock", `{"reservation":"r-4","quantity":1000}`}, told{"CommitStock", `{"reservation":"r-1"}`},
			told{"ReleaseStock", `{"reservation":"r-2"}`}, told{"ReleaseStock", `{"reservation":"r-9"}`}, told{"CommitStock", `{"reservation":"r-9"}`},
			told{"ReserveStock", `{"reservation":"order-1/1","quantity":6}`}, told{"CommitStock", `{"reservation":"order-1/1","quantity":2}`},
			told{"ReleaseStock", `{"reservation":"order-1/1","quantity":3}`}, told{"CommitStock", `{"reservation":"order-1/1","quantity":2}`},
			told{"AdjustStock", `{"delta":-2,"reason":"broken"}`}, told{"AdjustStock", `{"delta":-1000,"reason":"a count"}`}, told{"ReceiveStock", `{"quantity":5}`}),
		history("a return", "return-7",
			told{"RecordReturn", `{"id":"7","customer_id":"c-17","currency":"EUR","returned_at":"2010-12-02T09:00:00Z","reason":"chipped","original_order_id":"42","lines":[{"sku":"85123A","quantity":2,"unit_price":"2.55"}]}`},
			told{"RecordReturn", `{"currency":"EUR","lines":[{"sku":"85123A","quantity":1,"unit_price":"2.55"}]}`}),
		history("notifications", "notification-42",
			told{"BeginNotifications", `{"since":"2010-12-01T08:00:00Z"}`}, told{"BeginNotifications", `{"since":"2010-12-02T08:00:00+01:00"}`},
			told{"RecordNotification", `{"name":"placed/email","status":"sent"}`}, told{"RecordNotification", `{"name":"placed/email","status":"rejected"}`},
			told{"RecordNotification", `{"name":"shipped-1/email","status":"rejected","detail":"no such mailbox"}`}),
		history("a short return", "return-8", told{"RecordReturn", `{"currency":"EUR","lines":[{"sku":"85123A","quantity":1,"unit_price":"2.55"}]}`}),
	})
}
