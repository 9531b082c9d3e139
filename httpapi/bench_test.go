package httpapi_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strconv"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/api"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/localstore"
)

// instant accepts everything at once and keeps nothing: what is left is the cost of the door.
type instant struct{}

func (instant) Accept(_ context.Context, c millrace.Command) (*millrace.Receipt, error) {
	return millrace.NewReceipt(millrace.Outcome{
		CommandID: c.ID, Stream: c.Stream, Status: millrace.StatusDecided, Position: 1, Version: 1, Events: 1,
	}, false), nil
}

func (i instant) AcceptAll(ctx context.Context, cs []millrace.Command) []millrace.Accepted {
	out := make([]millrace.Accepted, len(cs))
	for n := range cs {
		out[n].Receipt, _ = i.Accept(ctx, cs[n])
	}
	return out
}

// nowhere is a ResponseWriter that costs nothing.
type nowhere struct {
	header http.Header
	status int
}

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n *nowhere) WriteHeader(status int)      { n.status = status }

const threeLines = `{"customer_id":"17850","channel":"web","currency":"GBP","ship_to":{"name":"A. Customer","line1":"1 High Street",` +
	`"city":"Leeds","postal_code":"LS1 1AA","country":"GB"},"lines":[` +
	`{"sku":"85123A","description":"WHITE HANGING HEART T-LIGHT HOLDER","quantity":6,"unit_price":"2.55"},` +
	`{"sku":"71053","description":"WHITE METAL LANTERN","quantity":6,"unit_price":"3.39"},` +
	`{"sku":"84406B","description":"CREAM CUPID HEARTS COAT HANGER","quantity":8,"unit_price":"2.75"}]}`

// doorOnly is the API with nothing behind it but an intake.
func doorOnly(b testing.TB, intake millrace.Intake) *httpapi.API {
	b.Helper()
	registry, err := millrace.NewRegistry(order.Domains()...)
	if err != nil {
		b.Fatal(err)
	}
	store, err := localstore.Open("data", &localstore.Options{FS: vfs.NewMem(), CacheSize: 1 << 20, MemTableSize: 1 << 20, SegmentSize: 1 << 20})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = store.Close() })
	a, err := httpapi.New(httpapi.Config{
		Store: store, Registry: registry, Intake: intake, Document: api.OpenAPI, Observe: func(httpapi.Observation) {},
		Resources: []httpapi.Resource{{
			Name: "orders", Category: order.CategoryOrder, Create: "PlaceOrder",
			CreateID: placeID,
		}},
	})
	if err != nil {
		b.Fatal(err)
	}
	return a
}

func benchPost(b *testing.B, path, contentType, body string, status int, headers ...string) {
	a := doorOnly(b, instant{})
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	b.RunParallel(func(pb *testing.PB) {
		reader := bytes.NewReader(nil)
		req, err := http.NewRequestWithContext(context.Background(), "POST", path, reader)
		if err != nil {
			b.Error(err)
			return
		}
		req.Header.Set("Content-Type", contentType)
		for i := 0; i+1 < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		w := &nowhere{header: http.Header{}}
		req.Body = io.NopCloser(reader)
		req.ContentLength = int64(len(body))
		text := []byte(body)
		for n := 0; pb.Next(); n++ {
			reader.Reset(text)
			clear(w.header)
			req.Header["Idempotency-Key"][0] = "bench-" + strconv.Itoa(n)
			a.ServeHTTP(w, req)
			if w.status != status {
				b.Errorf("status %d", w.status)
				return
			}
		}
	})
}

// BenchmarkPlaceOrder is the hot path without network and disk: three lines, answered with 202.
func BenchmarkPlaceOrder(b *testing.B) {
	benchPost(b, "/v1/orders", "application/json", threeLines, 202, "Idempotency-Key", "")
}

// BenchmarkPlaceOrderAndWait waits for the outcome, and wants no representation.
func BenchmarkPlaceOrderAndWait(b *testing.B) {
	benchPost(b, "/v1/orders", "application/json", threeLines, 201, "Idempotency-Key", "", "Prefer", "wait=5, return=minimal")
}

// BenchmarkDecodeOrder is the share of the above that is reading and checking the body.
func BenchmarkDecodeOrder(b *testing.B) {
	registry, err := millrace.NewRegistry(order.Domains()...)
	if err != nil {
		b.Fatal(err)
	}
	c := millrace.Command{Type: "PlaceOrder", Stream: "order-1", Data: []byte(threeLines)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := registry.DecodeCommand(&c); err != nil {
			b.Fatal(err)
		}
	}
}
