package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/internal/money"
	pay "github.com/millrace-io/millrace/internal/payment"
	"github.com/millrace-io/millrace/sim/gateway"
)

const (
	defaultFulfilled = 30_000
	// fulfilSKUs is the number of SKUs of the bench: orders meet at each, as in a shop's best-selling goods.
	fulfilSKUs = 300
	// fulfilLines is the number of lines of an order, of one to as many pieces.
	fulfilLines = 3
	// fulfilBatch is how many orders a client places at once.
	fulfilBatch = 100
	// placeAgain is the pause before orders are placed again for which there was no room.
	placeAgain = 20 * time.Millisecond
	// onTheWay is how many orders are between placed and shipped at a time: shops place orders without waiting for one another,
	// but not more than can be carried.
	onTheWay = 4000
	// byHand is how many orders of the control are on their way at a time: it waits for each answer.
	byHand = 1024
)

// fulfilTotal is the total of an order of the bench: six pieces at 2.55.
func fulfilTotal() money.Amount {
	gbp, _ := money.ParseCurrency("GBP")
	return money.Amount{Minor: 1530, Currency: gbp}
}

// benchFulfil measures orders that carry themselves through, from placed to shipped, with the simulated payment gateway in
// process. The control sends the same commands by hand, each when the one before it is decided, and keeps no account of
// where an order stands.
func benchFulfil(ctx context.Context, o *benchOptions) ([]result, error) {
	items := o.items
	if items == 0 {
		items = defaultFulfilled
	}
	hand, err := measureByHand(ctx, o, items)
	if err != nil {
		return nil, err
	}
	g, err := gateway.New(nil)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	b, err := newBedOf(ctx, o, nodeOptions{fulfil: &fulfilment{payments: payments{g, inProcessCall}}})
	if err != nil {
		return nil, err
	}
	r := &result{Name: "fulfil", Unit: "orders/s", Clients: o.clients}
	err = errors.Join(measureFulfil(ctx, b, o, r, items), b.stop())
	if err != nil {
		return nil, err
	}
	r.Control, r.Ratio = hand, r.Rate/hand.Rate
	return []result{*r}, nil
}

// fulfilOrder is an order of three lines.
func fulfilOrder(i int, fulfilment string) millrace.Command {
	id := "f" + strconv.Itoa(i)
	data := fmt.Appendf(nil, `{"id":"%s","customer_id":"c-1742","channel":"web","currency":"GBP","fulfilment":"%s",`+
		`"ship_to":{"name":"A. Customer","line1":"1 High Street","city":"London","postal_code":"N1 1AA","country":"GB"},"lines":[`, id, fulfilment)
	for k := range fulfilLines {
		data = fmt.Appendf(data, `{"sku":"%s","description":"WHITE HANGING HEART T-LIGHT HOLDER","quantity":%d,"unit_price":"2.55"},`, fulfilSKU(i, k), k+1)
	}
	data = append(bytes.TrimSuffix(data, []byte(",")), "]}"...)
	return millrace.Command{ID: id, Stream: millrace.NewStream(order.CategoryOrder, id), Type: "PlaceOrder", Data: data, Source: "bench"}
}

func fulfilSKU(i, line int) string { return "sku-" + strconv.Itoa((i*7+line*101)%fulfilSKUs) }

// stockUp receives more than all orders need.
func stockUp(ctx context.Context, b *bed, items int) error {
	for k := range fulfilSKUs {
		quantity := int64(6 * (items + 1))
		err := now(ctx, b, millrace.Command{
			ID: "receive-" + strconv.Itoa(k), Stream: millrace.NewStream(order.CategoryStock, "sku-"+strconv.Itoa(k)), Body: &order.ReceiveStock{Quantity: &quantity},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// now has a command decided.
func now(ctx context.Context, b *bed, c millrace.Command) (err error) {
	if c.Body != nil {
		if c.Type, c.Data, err = b.n.registry.EncodeCommand(c.Body); err != nil {
			return err
		}
	}
	r, err := b.n.processor.Accept(ctx, c)
	if err != nil {
		return err
	}
	out, err := r.Wait(ctx)
	return decided(&out, err)
}

func measureFulfil(ctx context.Context, b *bed, o *benchOptions, r *result, items int) error {
	if err := stockUp(ctx, b, items); err != nil {
		return err
	}
	if err := b.n.caughtUp(ctx); err != nil {
		return err
	}
	size, batches := b.size, (items+fulfilBatch-1)/fulfilBatch
	placed := make([]time.Time, items)
	room := make(chan struct{}, onTheWay)
	return o.measure(r, "", items, size, func(lat *latencies) error {
		shipped := make(chan error, 1)
		from := b.n.store.Head()
		counting, stop := context.WithCancel(ctx)
		defer stop()
		go func() { shipped <- countShipped(counting, b, from, placed, room, lat) }()
		err := spread(ctx, min(o.clients, batches), batches, &latencies{}, func(_, batch int) error {
			cs := make([]millrace.Command, 0, fulfilBatch)
			for i := batch * fulfilBatch; i < min((batch+1)*fulfilBatch, items); i++ {
				select {
				case room <- struct{}{}:
				case err := <-shipped:
					shipped <- err
					return err
				}
				cs = append(cs, fulfilOrder(i, "auto"))
				placed[i] = time.Now()
			}
			return placeAll(ctx, b, cs)
		})
		if err != nil {
			return err
		}
		return <-shipped
	})
}

// placeAll has commands accepted. Where there is no room for some they are sent again: what else the server has to do comes
// first, and customers wait.
func placeAll(ctx context.Context, b *bed, cs []millrace.Command) error {
	for len(cs) > 0 {
		var again []millrace.Command
		for i, a := range b.n.processor.AcceptAll(ctx, cs) {
			var full *millrace.OverloadError
			switch {
			case errors.As(a.Err, &full):
				again = append(again, cs[i])
			case a.Err != nil:
				return a.Err
			}
		}
		if cs = again; len(cs) > 0 {
			pause(ctx, placeAgain)
		}
	}
	return ctx.Err()
}

// countShipped returns when all orders are shipped, and makes room for others for each that is.
func countShipped(ctx context.Context, b *bed, from millrace.Cursor, placed []time.Time, room <-chan struct{}, lat *latencies) error {
	took := make([]time.Duration, 0, len(placed))
	for batch, err := range b.n.store.Feed(ctx, millrace.FeedOptions{After: from, Follow: true}) {
		if err != nil {
			return err
		}
		for i := range batch {
			switch e := &batch[i]; e.Type {
			case "OrderCancelled":
				return fmt.Errorf("%s is cancelled: %s", e.Stream, e.Data)
			case "OrderShipped":
				n, err := strconv.Atoi(e.Stream.ID()[1:])
				if err != nil {
					return err
				}
				took = append(took, time.Since(placed[n]))
				<-room
			}
		}
		if len(took) == len(placed) {
			lat.add(took)
			return nil
		}
	}
	return ctx.Err()
}

// measureByHand sends the commands of orders one after the other.
func measureByHand(ctx context.Context, o *benchOptions, items int) (*control, error) {
	g, err := gateway.New(nil)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	b, err := newBed(ctx, o)
	if err != nil {
		return nil, err
	}
	var r result
	err = stockUp(ctx, b, items)
	if err == nil {
		var lat latencies
		m := startMeter()
		err = spread(ctx, byHand, items, &lat, func(_, i int) error { return carry(ctx, b, g, i) })
		m.stop(&r, items, &lat)
	}
	if err = errors.Join(err, b.stop()); err != nil {
		return nil, err
	}
	return &control{Name: "the same commands sent by hand", Rate: r.Rate, P50: r.P50, P99: r.P99}, nil
}

// carry carries one order from placed to shipped, with its stock and its payment.
func carry(ctx context.Context, b *bed, g pay.Gateway, i int) error {
	place := fulfilOrder(i, "manual")
	h := &hand{b: b, g: g, order: place.Stream, id: place.Stream.ID(), item: i}
	steps := []func() error{
		func() error { return h.all(ctx, place) },
		func() error {
			return h.stock(ctx, "reserve", func(quantity int64) any { return &order.ReserveStock{Reservation: h.id, Quantity: &quantity} })
		},
		func() error { return h.pay(ctx, pay.Authorise) },
		func() error { return h.step(ctx, &order.ConfirmOrder{}) },
		func() error { return h.step(ctx, &order.PackOrder{}) },
		func() error { return h.step(ctx, &order.ShipOrder{}) },
		func() error {
			return h.stock(ctx, "commit", func(int64) any { return &order.CommitStock{Reservation: h.id} })
		},
		func() error { return h.pay(ctx, pay.Capture) },
	}
	for _, do := range steps {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// hand carries an order by hand.
type hand struct {
	b       *bed
	g       pay.Gateway
	order   millrace.Stream
	id      string
	item    int
	payment string
}

// all has commands decided at once.
func (h *hand) all(ctx context.Context, cs ...millrace.Command) error {
	for i := range cs {
		c := &cs[i]
		if c.Body == nil {
			continue
		}
		var err error
		if c.Type, c.Data, err = h.b.n.registry.EncodeCommand(c.Body); err != nil {
			return err
		}
	}
	return allDecided(ctx, h.b, cs)
}

func (h *hand) step(ctx context.Context, body any) error {
	return h.all(ctx, millrace.Command{ID: fmt.Sprintf("%s-%T", h.id, body), Stream: h.order, Body: body})
}

// stock does something with each of the order's SKUs.
func (h *hand) stock(ctx context.Context, what string, body func(quantity int64) any) error {
	cs := make([]millrace.Command, fulfilLines)
	for k := range cs {
		cs[k] = millrace.Command{
			ID: fmt.Sprintf("%s-%s-%d", h.id, what, k), Stream: millrace.NewStream(order.CategoryStock, fulfilSKU(h.item, k)), Body: body(int64(k + 1)),
		}
	}
	return h.all(ctx, cs...)
}

// pay asks the gateway, and records its answer.
func (h *hand) pay(ctx context.Context, kind pay.Kind) error {
	key := h.id + "-" + string(kind)
	r := pay.Request{Kind: kind, OrderID: h.id, Payment: h.payment, Amount: fulfilTotal()}
	res, err := h.g.Do(ctx, key, &r)
	if err != nil {
		return err
	}
	h.payment = res.Payment
	return h.all(ctx, millrace.Command{ID: key, Stream: h.order, Body: &order.RecordPayment{
		Name: string(kind), Kind: kind, Status: res.Status, Payment: res.Payment, Amount: r.Amount, Code: res.Code,
	}})
}
