package order

import "github.com/millrace-io/millrace"

// auditStock is an SKU as its events make it.
type auditStock struct {
	version  uint64
	onHand   int64
	reserved int64
	open     map[string]int64 // the open reservations
}

func (a *Audit) addStock(e *millrace.Recorded) {
	sku := e.Stream.ID()
	s := a.stocks[sku]
	if s == nil {
		if a.stocks == nil {
			a.stocks = map[string]*auditStock{}
		}
		s = &auditStock{open: map[string]int64{}}
		a.stocks[sku] = s
	}
	a.follows(e, &s.version)
	switch b := e.Body.(type) {
	case *StockReceived:
		s.onHand += b.Quantity
		a.totals.Received += b.Quantity
		if id, ok := orderOf(b.Reference); ok {
			a.goods(id, sku).restocked += b.Quantity
		}
	case *StockAdjusted:
		s.onHand += b.Delta
		a.totals.Adjusted += b.Delta
	case *StockReserved:
		if s.open[b.Reservation] != 0 {
			a.found(BrokenReservation, e.Stream, e.Version, "a reservation that is open is made again")
		}
		a.hold(s, sku, b.Reservation, b.Quantity)
	case *StockReleased:
		a.close(e, s, sku, b.Reservation, b.Quantity)
	case *StockCommitted:
		a.close(e, s, sku, b.Reservation, b.Quantity)
		s.onHand -= b.Quantity
		a.totals.Committed += b.Quantity
		if id, ok := orderOf(b.Reservation); ok {
			a.goods(id, sku).committed += b.Quantity
		}
	default:
		a.found(BrokenEvent, e.Stream, e.Version, "%T", e.Body)
		return
	}
	if s.reserved < 0 || s.onHand < s.reserved {
		a.found(BrokenStock, e.Stream, e.Version, "%d on hand and %d reserved", s.onHand, s.reserved)
	}
	if l, ok := levelsOf(e.Body); ok && l != levels(s.onHand, s.reserved) {
		a.found(BrokenLevels, e.Stream, e.Version, "it says %d/%d/%d, and it is %d/%d/%d",
			l.OnHand, l.Reserved, l.Available, s.onHand, s.reserved, s.onHand-s.reserved)
	}
}

// hold opens a reservation, or a part of it with a negative quantity closes.
func (a *Audit) hold(s *auditStock, sku, reservation string, quantity int64) {
	s.reserved += quantity
	if s.open[reservation] += quantity; s.open[reservation] == 0 {
		delete(s.open, reservation)
	}
	if id, ok := orderOf(reservation); ok {
		a.goods(id, sku).open += quantity
	}
}

func (a *Audit) close(e *millrace.Recorded, s *auditStock, sku, reservation string, quantity int64) {
	if open := s.open[reservation]; quantity < 1 || quantity > open {
		a.found(BrokenReservation, e.Stream, e.Version, "%d of a reservation of %d is given up or leaves", quantity, open)
	}
	a.hold(s, sku, reservation, -quantity)
}
