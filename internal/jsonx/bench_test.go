package jsonx_test

import (
	"fmt"
	"testing"

	"github.com/millrace-io/millrace/internal/jsonx"
)

type benchLine struct {
	SKU      string `json:"sku"`
	Quantity int64  `json:"quantity"`
	Price    string `json:"price"`
}

type benchOrder struct {
	OrderID  string      `json:"orderId"`
	Customer string      `json:"customer"`
	Currency string      `json:"currency"`
	Note     string      `json:"note"`
	Lines    []benchLine `json:"lines"`
}

// benchDocument is an order of five lines, about 500 bytes as clients send them.
func benchDocument() []byte {
	data := []byte(`{"orderId": "order-018f6d2e-7c1a-7b3e-9d55-3f2a8c4b6e01", "customer": "customer-77120", ` +
		`"currency": "EUR", "note": "Leave at the side door, ring twice", "lines": [`)
	for i := range 5 {
		if i > 0 {
			data = append(data, ", "...)
		}
		data = fmt.Appendf(data, `{"sku": "article-%05d-blue", "quantity": %d, "price": "%d.99"}`, i*7919, i+1, i*13)
	}
	return append(data, "]}"...)
}

func BenchmarkUnmarshal(b *testing.B) {
	data := benchDocument()
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		var o benchOrder
		if err := jsonx.Unmarshal(data, &o); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	data := benchDocument()
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if err := jsonx.Check(data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCanonical(b *testing.B) {
	data := benchDocument()
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := jsonx.Canonical(data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMarshal(b *testing.B) {
	var o benchOrder
	if err := jsonx.Unmarshal(benchDocument(), &o); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := jsonx.Marshal(&o); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	var o benchOrder
	if err := jsonx.Unmarshal(benchDocument(), &o); err != nil {
		b.Fatal(err)
	}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = jsonx.Append(buf[:0], &o); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendString(b *testing.B) {
	for name, s := range map[string]string{
		"ascii":   "order-018f6d2e-7c1a-7b3e-9d55-3f2a8c4b6e01",
		"unicode": "Grüße aus Köln, Straße 12, 3. Stock links",
	} {
		b.Run(name, func(b *testing.B) {
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				buf = jsonx.AppendString(buf[:0], s)
			}
		})
	}
}
