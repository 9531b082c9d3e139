package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// The controls on PostgreSQL: the same work in the plainest way, in the same database.

// maxConns bounds the connections of a control: with more of them the plain way becomes slower, not faster.
const maxConns = 32

// naiveTables are an order's rows as somebody would lay them out who needs nothing but the orders and their events.
const naiveTables = `
create table {schema}.orders (id text primary key, stream text not null, type text not null, data bytea not null);
create table {schema}.events (stream text, version bigint, type text not null, data bytea not null, primary key (stream, version));
create table {schema}.stock (sku text primary key, available bigint not null);
create table {schema}.reservations (id text primary key, sku text not null, quantity bigint not null)`

// naiveOrders decides orders, each in a transaction of its own that keeps the command and its event.
type naiveOrders struct {
	*schema
	registry *millrace.Registry
	order    string
	event    string
}

func newNaiveOrders(ctx context.Context, o *benchOptions) (*naiveOrders, error) {
	registry, err := millrace.NewRegistry(order.Domains()...)
	if err != nil {
		return nil, err
	}
	s, err := newSchema(ctx, o.store, o.clients, naiveTables)
	if err != nil {
		return nil, err
	}
	return &naiveOrders{
		schema: s, registry: registry,
		order: s.sql("insert into {schema}.orders values ($1, $2, $3, $4)"),
		event: s.sql("insert into {schema}.events values ($1, $2, $3, $4)"),
	}, nil
}

// place takes one order. That there is none of its id yet is what the table's key says.
func (n *naiveOrders) place(ctx context.Context, c *millrace.Command) error {
	events, err := decideNew(n.registry, c)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, n.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, n.order, c.ID, string(c.Stream), c.Type, c.Data); err != nil {
			return err
		}
		for i, e := range events {
			if _, err := tx.Exec(ctx, n.event, string(c.Stream), int64(i+1), e.Type, e.Data); err != nil {
				return err
			}
		}
		return nil
	})
}

// decideNew decides a command of a new stream.
func decideNew(registry *millrace.Registry, c *millrace.Command) ([]millrace.NewEvent, error) {
	category, _ := registry.Category(c.Stream)
	body, err := registry.DecodeCommand(c)
	if err != nil {
		return nil, err
	}
	events, refusal := category.Decide(category.Initial(c.Stream), body, c.Time)
	if refusal != nil {
		return nil, errors.New(refusal.Code)
	}
	out := make([]millrace.NewEvent, len(events))
	for i, e := range events {
		if out[i], err = category.EncodeEvent(e); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// naiveTransactions is the control in process: one transaction for each order.
func naiveTransactions(ctx context.Context, o *benchOptions, items int) (*control, error) {
	n, err := newNaiveOrders(ctx, o)
	if err != nil {
		return nil, err
	}
	var lat latencies
	var r result
	m := startMeter()
	err = spread(ctx, o.clients, items, &lat, func(_, i int) error {
		c := orderCommand("n" + strconv.Itoa(i))
		return n.place(ctx, &c)
	})
	m.stop(&r, items, &lat)
	return &control{Name: "one transaction per order", Rate: r.Rate, P50: r.P50, P99: r.P99}, errors.Join(err, n.drop(ctx))
}

// naiveServer is the control over HTTP: a bare handler that has one transaction for each order.
func naiveServer(ctx context.Context, o *benchOptions, items int) (*control, error) {
	n, err := newNaiveOrders(ctx, o)
	if err != nil {
		return nil, err
	}
	c, err := measureHandler(ctx, o, items, "bare handler with one transaction per order", ordersOf, func(r *http.Request, body []byte) error {
		id := r.Header.Get("Idempotency-Key")
		return n.place(r.Context(), &millrace.Command{ID: id, Stream: millrace.NewStream("order", id), Type: "PlaceOrder", Data: body})
	})
	return c, errors.Join(err, n.drop(ctx))
}

// naiveSale is the control of the flash sale: a bare handler with one transaction for each buyer, which takes from the one
// row of the stock while there is something.
func naiveSale(ctx context.Context, o *benchOptions, items int) (*control, error) {
	n, err := newNaiveOrders(ctx, o)
	if err != nil {
		return nil, err
	}
	if _, err := n.pool.Exec(ctx, n.sql("insert into {schema}.stock values ('FLASH', $1)"), items/flashShare); err != nil {
		return nil, errors.Join(err, n.drop(ctx))
	}
	take := n.sql("update {schema}.stock set available = available - $1 where sku = 'FLASH' and available >= $1")
	keep := n.sql("insert into {schema}.reservations values ($1, 'FLASH', $2)")
	c, err := measureHandler(ctx, o, items, "bare handler with one transaction per buyer", salesOf, func(r *http.Request, body []byte) error {
		var want struct {
			Reservation string `json:"reservation"`
			Quantity    int64  `json:"quantity"`
		}
		if err := jsonx.Unmarshal(body, &want); err != nil {
			return err
		}
		return pgx.BeginFunc(r.Context(), n.pool, func(tx pgx.Tx) error {
			done, err := tx.Exec(r.Context(), take, want.Quantity)
			if err != nil || done.RowsAffected() == 0 {
				return err // sold out: no fault
			}
			_, err = tx.Exec(r.Context(), keep, want.Reservation, want.Quantity)
			return err
		})
	})
	return c, errors.Join(err, n.drop(ctx))
}

// copied is the control of decisions in batches: COPY of the same bytes in the same batches, decided beforehand.
func copied(ctx context.Context, o *benchOptions, items int) (*control, error) {
	registry, err := millrace.NewRegistry(order.Domains()...)
	if err != nil {
		return nil, err
	}
	s, err := newSchema(ctx, o.store, decideCallers, `create table {schema}.orders (id text primary key, stream text not null,
		type text not null, data bytea not null, event_type text not null, event bytea not null)`)
	if err != nil {
		return nil, err
	}
	var lat latencies
	var r result
	m := startMeter()
	err = spread(ctx, decideCallers, items/decideBatch, &lat, func(_, i int) error {
		n := 0
		got, err := s.pool.CopyFrom(ctx, pgx.Identifier{s.name, "orders"}, []string{"id", "stream", "type", "data", "event_type", "event"},
			pgx.CopyFromFunc(func() ([]any, error) {
				if n == decideBatch {
					return nil, nil
				}
				c := orderCommand("y" + strconv.Itoa(i*decideBatch+n))
				n++
				events, err := decideNew(registry, &c)
				if err != nil {
					return nil, err
				}
				return []any{c.ID, string(c.Stream), c.Type, c.Data, events[0].Type, events[0].Data}, nil
			}))
		if err == nil && got != decideBatch {
			err = fmt.Errorf("COPY wrote %d rows", got)
		}
		return err
	})
	m.stop(&r, items/decideBatch*decideBatch, &lat)
	return &control{Name: "COPY of the same bytes in the same batches", Rate: r.Rate, P50: r.P50, P99: r.P99}, errors.Join(err, s.drop(ctx))
}

// ordersOf and salesOf are the requests of the benches over HTTP.
func ordersOf(i int) (path, key string, body []byte) {
	id := "b" + strconv.Itoa(i)
	return "/v1/orders", id, orderBody(id)
}

func salesOf(i int) (path, key string, body []byte) {
	id := "f" + strconv.Itoa(i)
	return "/v1/stock/FLASH/reserve", id, []byte(`{"reservation":"` + id + `","quantity":1}`)
}

// bare is a handler that reads the body and does one thing with it.
func bare(do func(r *http.Request, body []byte) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil && do != nil {
			err = do(r, body)
		}
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusAccepted)
		_, _ = w.Write([]byte(`{"status":"accepted"}`)) // the client sees a broken answer
	})
}
