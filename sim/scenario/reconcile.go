package scenario

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"

	"github.com/millrace-io/millrace/sim/gateway"
)

func one(ok bool) int64 {
	if ok {
		return 1
	}
	return 0
}

// ignoreSlow passes by what is counted elsewhere.
func ignoreSlow(err error) error {
	if errors.Is(err, errSlow) {
		return nil
	}
	return err
}

// read reads all orders back, once.
func (s *story) read(ctx context.Context) error {
	if len(s.ends) > 0 {
		return nil
	}
	return s.each(ctx, func(ctx context.Context, c *customer) error {
		m, err := s.get(ctx, "/v1/orders/"+c.id)
		if err != nil {
			return err
		}
		if m == nil {
			return fmt.Errorf("order %s is not there", c.id)
		}
		c.order = readOrder(m)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ends[c.order.end()]++
		return nil
	})
}

// expect compares how many orders have come to which end.
func (s *story) expect(ctx context.Context, ends map[string]int64) error {
	if err := s.read(ctx); err != nil {
		return err
	}
	for _, end := range slices.Sorted(maps.Keys(ends)) {
		s.check("orders "+end).add(ends[end], int64(s.ends[end]), "they ended as %v", s.ends)
	}
	return nil
}

// reconcile compares the story with what the server and the gateway have.
func (s *story) reconcile(ctx context.Context) error {
	if err := s.read(ctx); err != nil {
		return err
	}
	for _, c := range s.orders {
		s.order(c)
	}
	if err := s.levels(ctx); err != nil || s.Gateway == nil {
		return err
	}
	return s.each(ctx, func(ctx context.Context, c *customer) error {
		l, err := s.Gateway.Order(ctx, c.id)
		if err != nil {
			return err
		}
		s.payments(c, l)
		return nil
	})
}

// order compares an order with what its customer knows.
func (s *story) order(c *customer) {
	o := &c.order
	want := "completed"
	var back, ordered int64
	for _, l := range c.lines {
		ordered += l.Quantity
	}
	for _, n := range c.back {
		back += n
	}
	switch {
	case c.cancelled:
		want = "cancelled: changed_my_mind"
	case back > 0 && back == ordered:
		want = "returned"
	case back > 0:
		want = "partly_returned"
	}
	if s.name == "declines" || s.name == "out-of-stock" { // which of them, the gateway and the warehouse know
		s.check("orders in a status of the story").add(1, one(o.status == want || o.status == "cancelled"), "order %s is %s", c.id, o.end())
	} else {
		s.check("orders in the status of the story").add(1, one(o.end() == want), "order %s is %s and not %s", c.id, o.end(), want)
	}
	for _, l := range o.lines {
		if o.status == "cancelled" {
			s.check("pieces shipped of cancelled orders").add(0, l.shipped, "order %s has shipped %s", c.id, l.sku)
		}
	}
}

// levels compares the stock with what was received, shipped, and came back.
func (s *story) levels(ctx context.Context) error {
	want := maps.Clone(s.stock)
	for _, c := range s.orders {
		for _, l := range c.order.lines {
			want[l.sku] -= l.shipped
		}
		for sku, n := range c.back {
			want[sku] += n - c.scrapped[sku]
		}
	}
	for _, sku := range slices.Sorted(maps.Keys(want)) {
		m, err := s.get(ctx, "/v1/stock/"+url.PathEscape(sku))
		if err != nil {
			return err
		}
		var onHand, reserved int64
		if m == nil || !m.Into("on_hand", &onHand) || !m.Into("reserved", &reserved) {
			return fmt.Errorf("the stock of %s is not there", sku)
		}
		s.check("pieces on hand").add(want[sku], onHand, "%s: %d on hand, and %d were to be", sku, onHand, want[sku])
		s.check("pieces reserved").add(0, reserved, "%s: %d are reserved still", sku, reserved)
	}
	return nil
}

// payments compares what was taken for an order with what was owed.
func (s *story) payments(c *customer, l *gateway.OrderLedger) {
	o := &c.order
	owed := o.total - o.refund
	if o.status == "cancelled" {
		owed = 0
	}
	var captured, refunded, open int64
	taken := 0
	if l != nil {
		for i := range l.Payments {
			p := &l.Payments[i]
			captured += p.Captured.Minor
			refunded += p.Refunded.Minor
			if p.Captured.Minor > 0 {
				taken++
			} else {
				open += p.Authorised.Minor - p.Voided.Minor
			}
		}
	}
	s.check("money taken, in minor units").add(owed, captured-refunded, "order %s: %d were taken, and %d given back", c.id, captured, refunded)
	s.check("money left set aside").add(0, open, "order %s: %d is set aside still", c.id, open)
	s.check("orders that were charged twice").add(0, one(taken > 1), "order %s: %d payments were taken", c.id, taken)
}
