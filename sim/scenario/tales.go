package scenario

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/sim/gateway"
)

const (
	// skus is the number of SKUs of a run: few, so that orders meet at them.
	skus = 8
	// buyers is how many want each piece where there are too few.
	buyers = 5
	// hesitate bounds how long after ordering a customer cancels: about as long as an order takes.
	hesitate = 40 * time.Millisecond
)

// plain places all orders, with stock for all of them, and waits for their ends.
func (s *story) plain(ctx context.Context) error {
	if err := s.stockUp(ctx, s.customers(skus)); err != nil {
		return err
	}
	return s.each(ctx, func(ctx context.Context, c *customer) error {
		if err := s.place(ctx, c); err != nil {
			return err
		}
		return s.finish(ctx, c)
	})
}

func happy(ctx context.Context, s *story) error { return s.plain(ctx) }

// outOfStock: everybody wants one piece of one SKU.
func outOfStock(ctx context.Context, s *story) error {
	s.customers(1)
	for _, c := range s.orders {
		c.lines = []line{{SKU: s.sku(0), Quantity: 1, UnitPrice: "10.00"}}
	}
	pieces := int64(max(1, s.Orders/buyers))
	if err := s.receive(ctx, s.sku(0), pieces); err != nil {
		return err
	}
	err := s.each(ctx, func(ctx context.Context, c *customer) error {
		if err := s.place(ctx, c); err != nil {
			return err
		}
		return s.finish(ctx, c)
	})
	if err != nil {
		return err
	}
	return s.expect(ctx, map[string]int64{"completed": pieces, "cancelled: out_of_stock": int64(s.Orders) - pieces})
}

func declines(ctx context.Context, s *story) error {
	if err := s.Gateway.SetFaults(ctx, &gateway.Faults{Decline: 1. / 3, Twice: 0.1}); err != nil {
		return err
	}
	if err := s.plain(ctx); err != nil {
		return err
	}
	declined := int64(0)
	for _, c := range s.orders {
		l, err := s.Gateway.Order(ctx, c.id)
		if err != nil {
			return err
		}
		if l != nil && len(l.Payments) == 0 {
			declined++
		}
	}
	return s.expect(ctx, map[string]int64{"completed": int64(s.Orders) - declined, "cancelled: payment_declined": declined})
}

func gatewayDown(ctx context.Context, s *story) error {
	if err := s.Gateway.SetFaults(ctx, &gateway.Faults{Down: true}); err != nil {
		return err
	}
	if err := s.stockUp(ctx, s.customers(skus)); err != nil {
		return err
	}
	err := s.each(ctx, func(ctx context.Context, c *customer) error {
		if err := s.place(ctx, c); err != nil {
			return err
		}
		in, err := s.await(ctx, c, func(in *instanceState) bool { return in.state == "authorising" })
		s.check("orders that wait for their payment").add(1, one(err == nil), "order %s is %s", c.id, in.state)
		return ignoreSlow(err)
	})
	if err != nil {
		return err
	}
	if err := s.Gateway.SetFaults(ctx, &gateway.Faults{Lose: 0.2, Fail: 0.2}); err != nil {
		return err
	}
	if err := s.each(ctx, s.finish); err != nil {
		return err
	}
	return s.expect(ctx, map[string]int64{"completed": int64(s.Orders)})
}

func cancelRace(ctx context.Context, s *story) error {
	if err := s.stockUp(ctx, s.customers(skus)); err != nil {
		return err
	}
	return s.each(ctx, func(ctx context.Context, c *customer) error {
		if err := s.place(ctx, c); err != nil {
			return err
		}
		if err := client.Pause(ctx, time.Duration(c.r.Int64N(int64(hesitate)))); err != nil {
			return err
		}
		body := struct {
			Reason string `json:"reason"`
		}{"changed_my_mind"}
		code, err := s.post(ctx, "/v1/orders/"+c.id+"/cancel", c.id+"-cancel", &body)
		if err != nil {
			return err
		}
		if c.cancelled = code == ""; !c.cancelled && code != "order_not_cancellable" {
			return fmt.Errorf("a cancellation is refused: %s", code)
		}
		return s.finish(ctx, c)
	})
}

type quantity struct {
	Line     int   `json:"line"`
	Quantity int64 `json:"quantity"`
}

type returnRequest struct {
	Lines   []quantity `json:"lines,omitempty"`
	Reason  string     `json:"reason"`
	Restock bool       `json:"restock"`
}

func returns(ctx context.Context, s *story) error {
	if err := s.plain(ctx); err != nil {
		return err
	}
	return s.each(ctx, func(ctx context.Context, c *customer) error {
		body := &returnRequest{Reason: "not as expected", Restock: c.r.IntN(4) > 0}
		whole := c.r.IntN(3) == 0
		for i, l := range c.lines {
			q := l.Quantity
			if !whole {
				if q = c.r.Int64N(l.Quantity + 1); q == 0 {
					continue
				}
				body.Lines = append(body.Lines, quantity{i + 1, q})
			}
			if c.back[l.SKU] += q; !body.Restock {
				c.scrapped[l.SKU] += q
			}
		}
		if !whole && body.Lines == nil {
			return nil // nothing comes back
		}
		if err := s.must(ctx, "/v1/orders/"+c.id+"/return", c.id+"-return", body); err != nil {
			return err
		}
		in, err := s.await(ctx, c, func(in *instanceState) bool {
			return in.done && (in.state == "returned" || in.state == "partly_returned")
		})
		s.check("returns that are settled").add(1, one(err == nil), "order %s is %s and waits for %s", c.id, in.state, in.waits)
		return ignoreSlow(err)
	})
}
