package order

import (
	"strconv"
	"testing"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

const benchBody = `{"customer_id":"c-17850","channel":"web","currency":"GBP","placed_at":"2010-12-01T08:26:00Z","lines":[` +
	`{"sku":"85123A","description":"WHITE HANGING HEART T-LIGHT HOLDER","quantity":6,"unit_price":"2.55"},` +
	`{"sku":"71053","description":"WHITE METAL LANTERN","quantity":6,"unit_price":"3.39"},` +
	`{"sku":"84406B","description":"CREAM CUPID HEARTS COAT HANGER","quantity":8,"unit_price":"2.75"}]}`

func benchCommand(b *testing.B, r *millrace.Registry) any {
	b.Helper()
	command, err := r.DecodeCommand(&millrace.Command{Stream: "order-42", Type: "PlaceOrder", Data: []byte(benchBody)})
	if err != nil {
		b.Fatal(err)
	}
	return command
}

// BenchmarkPlace is all that the domain does for an order of three lines, and its parts.
func BenchmarkPlace(b *testing.B) {
	r := newRegistry(b)
	c, _ := r.Category("order-42")
	initial := c.Initial("order-42")
	command := benchCommand(b, r)
	events, _ := c.Decide(initial, command, start)
	event, err := c.EncodeEvent(events[0])
	if err != nil {
		b.Fatal(err)
	}
	b.Run("whole", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			command, err := r.DecodeCommand(&millrace.Command{Stream: "order-42", Type: "PlaceOrder", Data: []byte(benchBody)})
			if err != nil {
				b.Fatal(err)
			}
			state := c.Initial("order-42")
			events, _ := c.Decide(state, command, start)
			if _, err := c.EncodeEvent(events[0]); err != nil {
				b.Fatal(err)
			}
			c.Evolve(state, events[0])
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		data := []byte(benchBody)
		for b.Loop() {
			if err := jsonx.Unmarshal(data, new(PlaceOrder)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("validate", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			command.(*PlaceOrder).Validate() //nolint:forcetypeassert // it is one
		}
	})
	b.Run("decide", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.Decide(initial, command, start)
		}
	})
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = c.EncodeEvent(events[0])
		}
	})
	b.Run("evolve", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.Evolve(initial, events[0])
		}
	})
	b.Run("decode event", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := r.Body(&millrace.Recorded{Stream: "order-42", Version: 1, Type: event.Type, Data: event.Data}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkDocument is the read model's part: the document and its keys, and reading it back.
func BenchmarkDocument(b *testing.B) {
	r := newRegistry(b)
	c, _ := r.Category("order-42")
	events, _ := c.Decide(c.Initial("order-42"), benchCommand(b, r), start)
	doc := c.Evolve(c.Initial("order-42"), events[0])
	data, _, err := OrdersTable.Encode(doc)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _, _ = OrdersTable.Encode(doc)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := OrdersTable.Decode(data); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkStock reserves and commits on an SKU that has many open reservations.
func BenchmarkStock(b *testing.B) {
	for _, n := range []int{0, 10_000, 400_000} {
		b.Run(strconv.Itoa(n)+" open", func(b *testing.B) {
			s := evolveStock(initialStock("85123A"), &StockReceived{Levels: levels(MaxStock, 0)})
			for i := range n {
				s = evolveStock(s, &StockReserved{Reservation: "order-" + strconv.Itoa(i*7919%n), Quantity: 1, Levels: levels(s.OnHand, s.Reserved+1)})
			}
			quantity := int64(1)
			reserve := &ReserveStock{Reservation: "order-5000x", Quantity: &quantity}
			commit := &CommitStock{Reservation: reserve.Reservation}
			b.ReportAllocs()
			for b.Loop() {
				for _, command := range []any{reserve, commit} {
					events, refusal := decideStock(s, command, start)
					if refusal != nil {
						b.Fatal(refusal.Code)
					}
					s = evolveStock(s, events[0])
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(2*b.N), "ns/command")
		})
	}
}
