package order

import (
	"testing"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// BenchmarkDecode reads bodies of an order of three lines, by their own decoders and in the general way.
func BenchmarkDecode(b *testing.B) {
	r := newRegistry(b)
	c, _ := r.Category("order-42")
	events, _ := c.Decide(c.Initial("order-42"), benchCommand(b, r), start)
	placed, err := c.EncodeEvent(events[0])
	if err != nil {
		b.Fatal(err)
	}
	document, _, err := OrdersTable.Encode(c.Evolve(c.Initial("order-42"), events[0]))
	if err != nil {
		b.Fatal(err)
	}
	at := []byte(`{"at":"2010-12-01T08:26:00.123456789Z"}`)
	reserve := []byte(`{"reservation":"order-536365","quantity":6}`)
	level := (&Level{"85123A", 100, 6, 94, 7}).AppendJSON(nil)
	reserved := (&StockReserved{start, "order-536365", 6, levels(100, 6)}).AppendJSON(nil)
	benchDecode[PlaceOrder](b, "PlaceOrder", []byte(benchBody))
	benchDecode[OrderPlaced](b, "OrderPlaced", placed.Data)
	benchDecode[Order](b, "Order", document)
	benchDecode[OrderConfirmed](b, "OrderConfirmed", at)
	benchDecode[ReserveStock](b, "ReserveStock", reserve)
	benchDecode[StockReserved](b, "StockReserved", reserved)
	benchDecode[Level](b, "Level", level)
}

func benchDecode[T any, P interface {
	*T
	millrace.Decoder
}](b *testing.B, name string, data []byte) {
	b.Helper()
	b.Run(name+"/own", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !P(new(T)).DecodeJSON(data) {
				b.Fatal("gave up")
			}
		}
	})
	b.Run(name+"/general", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := jsonx.Unmarshal(data, new(T)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
