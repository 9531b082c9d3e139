package order

import (
	"fmt"
	"maps"
	"math/big"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/money"
	"github.com/millrace-io/millrace/internal/payment"
)

// checkOrder holds an order to what is always true.
func checkOrder(t TB, s *stream) {
	t.Helper()
	o := s.order()
	if o.Version != uint64(len(s.events)) {
		t.Fatalf("version %d after %d events", o.Version, len(s.events))
	}
	total, units, refund := new(big.Int), int64(0), int64(0)
	shipped, returned, parcelled, dropped := int64(0), int64(0), int64(0), int64(0)
	for i := range o.Lines {
		l := &o.Lines[i]
		amount, err := l.UnitPrice.Times(l.Quantity, o.Currency)
		if err != nil || amount.Decimal() != l.LineTotal || l.Line != i+1 {
			t.Fatalf("line %d: %+v", i+1, l)
		}
		if l.Returned < 0 || l.Dropped < 0 || l.Returned > l.Shipped || l.Shipped+l.Dropped > l.Quantity {
			t.Fatalf("line %d: ordered %d, shipped %d, returned %d", i+1, l.Quantity, l.Shipped, l.Returned)
		}
		total.Add(total, big.NewInt(l.LineTotal.Minor))
		units += l.Quantity
		shipped += l.Shipped
		returned += l.Returned
		dropped += l.Dropped
		if l.Returned+l.Dropped == l.Quantity {
			refund += l.LineTotal.Minor
		}
	}
	for i := range o.Shipments {
		for _, q := range o.Shipments[i].Lines {
			parcelled += q.Quantity
		}
	}
	switch {
	case total.Cmp(big.NewInt(o.Total.Minor)) != 0 || units != o.Units:
		t.Fatalf("total %s and %d units, but the lines have %s and %d", o.Total, o.Units, total, units)
	case parcelled != shipped:
		t.Fatalf("%d shipped, but %d in parcels", shipped, parcelled)
	case o.Refund.Minor < refund || o.Refund.Minor > o.Total.Minor:
		t.Fatalf("refund %s of %s", o.Refund, o.Total)
	case o.Status == StatusReturned && o.Refund != o.Total:
		t.Fatalf("all is back, but the refund is %s of %s", o.Refund, o.Total)
	case o.Exists() && (shipped+dropped == o.Units) != !o.ShippedAt.IsZero():
		t.Fatalf("%d of %d shipped at %s", shipped, o.Units, o.ShippedAt)
	case (returned > 0) != (o.Status == StatusReturned || o.Status == StatusPartlyReturned):
		t.Fatalf("%d are back and the status is %s", returned, o.Status)
	case o.Status == StatusCompleted && (o.DeliveredAt.IsZero() || (!o.Paid && o.Total.Minor > 0)):
		t.Fatal("completed, but not delivered and paid")
	case o.Status == StatusDelivered && (o.Paid || o.Total.Minor == 0):
		t.Fatal("delivered and paid, but not completed")
	}
	checkSnapshot(t, s)
}

// checkSnapshot: a state read back from its snapshot is the same state.
func checkSnapshot(t TB, s *stream) {
	t.Helper()
	data, err := s.category.EncodeState(s.state)
	if err != nil {
		t.Fatal(err)
	}
	back, err := s.category.DecodeState(data)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.category.EncodeState(back)
	if err != nil || string(again) != string(data) {
		t.Fatalf("a snapshot reads back as another (%v):\n%s\n%s", err, data, again)
	}
}

func drawLines(t *rapid.T) string {
	lines := ""
	for i := range rapid.IntRange(1, 4).Draw(t, "lines") {
		if i > 0 {
			lines += ","
		}
		price := money.Price(rapid.OneOf(rapid.Int64Range(0, 5_000_000), rapid.Int64Range(-1, 5_000_000_000)).Draw(t, "price"))
		lines += fmt.Sprintf(`{"sku":%q,"quantity":%d,"unit_price":%q}`,
			rapid.SampledFrom([]string{"85123A", "POST", "BANK CHARGES", "Ä-1"}).Draw(t, "sku"),
			rapid.Int64Range(0, 7).Draw(t, "quantity"), price)
	}
	return lines
}

func drawQuantities(t *rapid.T) string {
	if rapid.Bool().Draw(t, "everything") {
		return "{}"
	}
	line := rapid.IntRange(1, 4).Draw(t, "line")
	return fmt.Sprintf(`{"lines":[{"line":%d,"quantity":%d}]}`, line, rapid.Int64Range(0, 4).Draw(t, "quantity"))
}

func drawOrderCommand(t *rapid.T) step {
	switch typ := rapid.SampledFrom([]string{
		"PlaceOrder", "ChangeOrder", "ConfirmOrder", "PackOrder", "ShipOrder", "ShipOrder", "ShipOrder", "DeliverOrder",
		"ReturnOrder", "ReturnOrder", "MarkOrderPaid", "CancelOrder", "CloseOrder",
	}).Draw(t, "type"); typ {
	case "PlaceOrder":
		customer := rapid.SampledFrom([]string{"", "c-1", "c-2"}).Draw(t, "customer")
		at := rapid.SampledFrom([]string{"2010-12-01T23:59:59Z", "2010-12-02T00:30:00+01:00", "2011-01-01T00:00:00.5Z"}).Draw(t, "at")
		code := rapid.SampledFrom([]string{"GBP", "JPY", "KWD"}).Draw(t, "currency")
		return step{typ, fmt.Sprintf(`{"customer_id":%q,"currency":%q,"placed_at":%q,"lines":[%s]}`, customer, code, at, drawLines(t))}
	case "ChangeOrder":
		return step{typ, `{"lines":[` + drawLines(t) + `]}`}
	case "ShipOrder", "ReturnOrder":
		return step{typ, drawQuantities(t)}
	case "CancelOrder", "CloseOrder":
		return step{typ, `{"reason":"none"}`}
	default:
		return step{typ, `{}`}
	}
}

// TestOrders runs random commands on a few orders, in any order. Whatever comes of it: the orders are in order, the read
// models are what a fold of the streams gives, and the totals are what a count of the orders gives.
func TestOrders(t *testing.T) {
	r := newRegistry(t)
	rapid.Check(t, func(t *rapid.T) {
		all := map[string]*views{}
		streams := map[string]*stream{}
		for range rapid.IntRange(1, 60).Draw(t, "commands") {
			id := rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "order")
			if streams[id] == nil {
				streams[id] = newStream(t, r, millrace.NewStream(CategoryOrder, id))
			}
			s := streams[id]
			c := drawOrderCommand(t)
			n := len(s.events)
			s.do(c.typ, c.body)
			checkOrder(t, s)
			project(t, all, s.events[n:])
		}
		want := newViews(t)
		days := map[string]*Day{}
		for id, s := range streams {
			doc, ok := Represent(s.state)
			if !ok {
				continue
			}
			want.Save(OrdersTable.Table, id, doc)
			o := s.order()
			key := dayOf(o.PlacedAt) + "/" + string(o.Status) + "/" + o.Currency.String()
			if days[key] == nil {
				days[key] = &Day{Day: dayOf(o.PlacedAt), Status: o.Status, Currency: o.Currency}
			}
			days[key].Orders++
			days[key].Units += o.Units
			days[key].Amount = days[key].Amount.Add(o.Total.Decimal())
		}
		for key, d := range days {
			DaysTable.Put(want, key, d)
		}
		sameViews(t, all[ProjectionOrders], want)
	})
}

func sameViews(t TB, got, want *views) {
	t.Helper()
	if len(got.data) != len(want.data) {
		t.Fatalf("%d documents, want %d", len(got.data), len(want.data))
	}
	for id, data := range want.data {
		if string(got.data[id]) != string(data) || fmt.Sprint(got.keys[id]) != fmt.Sprint(want.keys[id]) {
			t.Fatalf("document %s:\n%s %q\nwant\n%s %q", id, got.data[id], got.keys[id], data, want.keys[id])
		}
	}
}

func checkStock(t TB, s *Stock) {
	t.Helper()
	var reserved int64
	for _, quantity := range s.Reservations.All {
		reserved += quantity
	}
	l := s.Level()
	if l.OnHand < l.Reserved || l.Reserved < 0 || l.Reserved != reserved || l.Available != l.OnHand-l.Reserved {
		t.Fatalf("%+v with %d reserved", l, reserved)
	}
}

// TestStockNeverBelowZero runs random commands on an SKU. What is on hand is what came in less what left, and the
// reservations are those of a plain map.
func TestStockNeverBelowZero(t *testing.T) {
	r := newRegistry(t)
	rapid.Check(t, func(t *rapid.T) {
		s := newStream(t, r, "stock-BANK CHARGES")
		all := map[string]*views{}
		open := map[string]int64{}
		var onHand int64
		for range rapid.IntRange(1, 80).Draw(t, "commands") {
			id := "r-" + strconv.Itoa(rapid.IntRange(1, 12).Draw(t, "reservation"))
			quantity := rapid.Int64Range(-3, 9).Draw(t, "quantity")
			n := len(s.events)
			var c step
			switch c.typ = rapid.SampledFrom([]string{
				"ReceiveStock", "AdjustStock", "ReserveStock", "ReserveStock", "ReserveStock", "ReleaseStock", "CommitStock",
			}).Draw(t, "type"); c.typ {
			case "ReceiveStock":
				c.body = fmt.Sprintf(`{"quantity":%d}`, quantity)
			case "AdjustStock":
				c.body = fmt.Sprintf(`{"delta":%d,"reason":"count"}`, -quantity)
			case "ReserveStock":
				c.body = fmt.Sprintf(`{"reservation":%q,"quantity":%d}`, id, quantity)
			case "ReleaseStock", "CommitStock":
				if c.body = fmt.Sprintf(`{"reservation":%q}`, id); rapid.Bool().Draw(t, "part") {
					c.body = fmt.Sprintf(`{"reservation":%q,"quantity":%d}`, id, quantity)
				}
			}
			s.do(c.typ, c.body)
			for _, e := range s.events[n:] {
				switch b := bodyOf(t, r, e).(type) {
				case *StockReceived:
					onHand += b.Quantity
				case *StockAdjusted:
					onHand += b.Delta
				case *StockReserved:
					open[b.Reservation] = b.Quantity
				case *StockReleased:
					open[b.Reservation] -= b.Quantity
				case *StockCommitted:
					onHand -= b.Quantity
					open[b.Reservation] -= b.Quantity
				}
				maps.DeleteFunc(open, func(_ string, left int64) bool { return left == 0 })
			}
			checkStock(t, s.stock())
			if s.stock().OnHand != onHand || s.stock().Reservations.Len() != len(open) {
				t.Fatalf("%d on hand, want %d; %d reservations, want %d", s.stock().OnHand, onHand, s.stock().Reservations.Len(), len(open))
			}
			for id, quantity := range s.stock().Reservations.All {
				if open[id] != quantity {
					t.Fatalf("%s has %d, want %d", id, quantity, open[id])
				}
			}
		}
		checkSnapshot(t, s)
		project(t, all, s.events)
		want := newViews(t)
		if doc, ok := Represent(s.state); ok {
			want.Save(LevelsTable.Table, "BANK CHARGES", doc)
		}
		sameViews(t, all[ProjectionStock], want)
	})
}

func bodyOf(t TB, r *millrace.Registry, e millrace.Recorded) any {
	t.Helper()
	body, err := r.Body(&e)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// TestReservations compares the tree with a map, after each step also as it was before it, and with its own text.
func TestReservations(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tree Reservations
		want := map[string]int64{}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			id := strconv.Itoa(rapid.IntRange(0, 60).Draw(t, "id"))
			quantity := rapid.Int64Range(1, 9).Draw(t, "quantity")
			old, oldText := tree, text(t, tree)
			if rapid.Bool().Draw(t, "remove") {
				tree = tree.Without(id)
				delete(want, id)
			} else {
				tree = tree.With(id, quantity)
				want[id] = quantity
			}
			if text(t, old) != oldText {
				t.Fatal("the old map changed")
			}
			balanced(t, tree.root)
		}
		if tree.Len() != len(want) {
			t.Fatalf("%d, want %d", tree.Len(), len(want))
		}
		last := ""
		for id, quantity := range tree.All {
			if id <= last || want[id] != quantity {
				t.Fatalf("%s after %s: %d, want %d", id, last, quantity, want[id])
			}
			last = id
		}
		for id, quantity := range want {
			if got, ok := tree.Get(id); !ok || got != quantity {
				t.Fatalf("%s: %d, want %d", id, got, quantity)
			}
		}
		var back Reservations
		if err := back.UnmarshalText([]byte(text(t, tree))); err != nil || text(t, back) != text(t, tree) {
			t.Fatalf("reads back as another (%v)", err)
		}
		balanced(t, back.root)
	})
	for _, in := range []string{"1", "1 a", "x a\n", "0 a\n", "-1 a\n", "1 \n", "1 b\n1 a\n", "1 a\n1 a\n", "\n", "1\n"} {
		if err := new(Reservations).UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q is taken for reservations", in)
		}
	}
}

func text(t TB, r Reservations) string {
	t.Helper()
	b, err := r.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func balanced(t TB, n *reservation) {
	t.Helper()
	if n == nil {
		return
	}
	d := n.left.depth() - n.right.depth()
	if d < -1 || d > 1 || n.height != max(n.left.depth(), n.right.depth())+1 || n.len() != n.left.len()+n.right.len()+1 {
		t.Fatalf("node %s is out of balance: %d", n.id, d)
	}
	balanced(t, n.left)
	balanced(t, n.right)
}

// TestSameBytes: what the bodies write by hand is what the generic encoder writes, and reads back as the same.
func TestSameBytes(t *testing.T) {
	codes := money.Currencies()
	rapid.Check(t, func(t *rapid.T) {
		d := drawer{t, rapid.SampledFrom(codes).Draw(t, "currency")}
		same(t, d.placed())
		same(t, d.order())
		same(t, &StockReserved{d.time(), d.text(), d.int(), levels(d.int(), d.int())})
		same(t, &StockReleased{d.time(), d.text(), d.int(), levels(d.int(), d.int())})
		same(t, &StockCommitted{d.time(), d.text(), d.int(), levels(d.int(), d.int())})
		same(t, &Level{d.text(), d.int(), d.int(), d.int(), uint64(d.int())}) //nolint:gosec // any number will do
		same(t, &Day{d.text(), Status(d.text()), d.currency, d.int(), d.int(), money.Sum{}.Add(d.amount().Decimal())})
		sameOfLife(t, d)
	})
}

func sameOfLife(t *rapid.T, d drawer) {
	t.Helper()
	same(t, &OrderConfirmed{d.time()})
	same(t, &OrderPacked{d.time()})
	same(t, &OrderDelivered{d.time()})
	same(t, &OrderCompleted{d.time()})
	same(t, &OrderShipped{d.time(), int(d.int()), d.quantities(), d.bool(), d.text(), d.text()})
	same(t, &OrderPaid{d.time(), d.text(), d.text(), d.amount()})
	same(t, &OrderPaymentRequested{d.time(), d.text(), d.amount()})
	same(t, &OrderPaymentAuthorised{d.time(), d.text(), d.text(), d.amount()})
	same(t, &RequestPayment{d.text(), d.amount()})
	same(t, &RecordPayment{d.text(), payment.Kind(d.text()), payment.Status(d.text()), d.text(), d.amount(), d.text()})
	for _, quantity := range []*int64{nil, new(d.int())} {
		same(t, &ReserveStock{d.text(), quantity})
		same(t, &CommitStock{d.text(), quantity})
	}
}

func same[T any, P interface {
	*T
	millrace.Appender
}](t TB, v P) {
	t.Helper()
	generic, err := jsonx.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	prefix := []byte("before")
	if got := v.AppendJSON(prefix); string(got) != "before"+string(generic) || string(v.AppendJSON(nil)) != string(generic) {
		t.Fatalf("by hand\n%s\nby the encoder\n%s", got[len(prefix):], generic)
	}
	back := P(new(T))
	if err := jsonx.Unmarshal(generic, back); err != nil {
		t.Fatal(err)
	}
	if again := back.AppendJSON(nil); string(again) != string(generic) {
		t.Fatalf("reads back as\n%s\ninstead of\n%s", again, generic)
	}
}
