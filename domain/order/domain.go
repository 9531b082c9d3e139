package order

import "github.com/millrace-io/millrace"

// The categories of streams.
const (
	CategoryOrder  = "order"
	CategoryStock  = "stock"
	CategoryReturn = "return"

	// CategoryNotification holds what customers were told about orders.
	CategoryNotification = "notification"
)

// The versions of the states' forms: a change of a state or of its Evolve is a change of its number.
const (
	orderStateVersion  = 4
	stockStateVersion  = 2
	returnStateVersion = 1

	notifiedStateVersion = 1
)

// Domains are the rules of orders, stock and returns, and the record of notifications.
func Domains() []millrace.Definition {
	return []millrace.Definition{orders(), stock(), returns(), notified()}
}

func orders() millrace.Domain[*Order] {
	return millrace.Domain[*Order]{
		Category: CategoryOrder, StateVersion: orderStateVersion,
		Initial: initialOrder, Decide: decideOrder, Evolve: evolveOrder, Upcasters: upcasters(),
		Commands: []millrace.Message{
			millrace.MessageOf[PlaceOrder]("PlaceOrder"),
			millrace.MessageOf[ChangeOrder]("ChangeOrder"),
			millrace.MessageOf[ConfirmOrder]("ConfirmOrder"),
			millrace.MessageOf[CancelOrder]("CancelOrder"),
			millrace.MessageOf[CloseOrder]("CloseOrder"),
			millrace.MessageOf[MarkOrderPaid]("MarkOrderPaid"),
			millrace.MessageOf[RequestPayment]("RequestPayment"),
			millrace.MessageOf[RecordPayment]("RecordPayment"),
			millrace.MessageOf[PackOrder]("PackOrder"),
			millrace.MessageOf[ShipOrder]("ShipOrder"),
			millrace.MessageOf[DeliverOrder]("DeliverOrder"),
			millrace.MessageOf[ReturnOrder]("ReturnOrder"),
		},
		Events: []millrace.Message{
			millrace.MessageOf[OrderPlaced]("OrderPlaced"),
			millrace.MessageOf[OrderLinesChanged]("OrderLinesChanged"),
			millrace.MessageOf[OrderAddressChanged]("OrderAddressChanged"),
			millrace.MessageOf[OrderConfirmed]("OrderConfirmed"),
			millrace.MessageOf[OrderCancelled]("OrderCancelled"),
			millrace.MessageOf[OrderClosed]("OrderClosed"),
			millrace.MessageOf[OrderPaid]("OrderPaid"),
			millrace.MessageOf[OrderPaymentRequested]("OrderPaymentRequested"),
			millrace.MessageOf[OrderPaymentAuthorised]("OrderPaymentAuthorised"),
			millrace.MessageOf[OrderPaymentDeclined]("OrderPaymentDeclined"),
			millrace.MessageOf[OrderPaymentVoided]("OrderPaymentVoided"),
			millrace.MessageOf[OrderRefunded]("OrderRefunded"),
			millrace.MessageOf[OrderPacked]("OrderPacked"),
			millrace.MessageOf[OrderShipped]("OrderShipped"),
			millrace.MessageOf[OrderDelivered]("OrderDelivered"),
			millrace.MessageOf[OrderCompleted]("OrderCompleted"),
			millrace.MessageOf[OrderReturned]("OrderReturned"),
		},
	}
}

func stock() millrace.Domain[*Stock] {
	return millrace.Domain[*Stock]{
		Category: CategoryStock, StateVersion: stockStateVersion,
		Initial: initialStock, Decide: decideStock, Evolve: evolveStock, Upcasters: upcasters(),
		Commands: []millrace.Message{
			millrace.MessageOf[ReceiveStock]("ReceiveStock"),
			millrace.MessageOf[AdjustStock]("AdjustStock"),
			millrace.MessageOf[ReserveStock]("ReserveStock"),
			millrace.MessageOf[ReleaseStock]("ReleaseStock"),
			millrace.MessageOf[CommitStock]("CommitStock"),
		},
		Events: []millrace.Message{
			millrace.MessageOf[StockReceived]("StockReceived"),
			millrace.MessageOf[StockAdjusted]("StockAdjusted"),
			millrace.MessageOf[StockReserved]("StockReserved"),
			millrace.MessageOf[StockReleased]("StockReleased"),
			millrace.MessageOf[StockCommitted]("StockCommitted"),
		},
	}
}

func returns() millrace.Domain[*Return] {
	return millrace.Domain[*Return]{
		Category: CategoryReturn, StateVersion: returnStateVersion,
		Initial: initialReturn, Decide: decideReturn, Evolve: evolveReturn, Upcasters: upcasters(),
		Commands: []millrace.Message{millrace.MessageOf[RecordReturn]("RecordReturn")},
		Events:   []millrace.Message{millrace.MessageOf[GoodsReturned]("GoodsReturned")},
	}
}

func notified() millrace.Domain[*Notified] {
	return millrace.Domain[*Notified]{
		Category: CategoryNotification, StateVersion: notifiedStateVersion,
		Initial: func(string) *Notified { return &Notified{} }, Decide: decideNotified, Evolve: evolveNotified, Upcasters: upcasters(),
		Commands: []millrace.Message{
			millrace.MessageOf[BeginNotifications]("BeginNotifications"),
			millrace.MessageOf[RecordNotification]("RecordNotification"),
		},
		Events: []millrace.Message{
			millrace.MessageOf[NotificationsBegun]("NotificationsBegun"),
			millrace.MessageOf[NotificationRecorded]("NotificationRecorded"),
		},
	}
}

// Internal are the types of commands that say what the world did or is about to be asked, as only who asks it can know: the
// servers send them, and take them from nobody else.
func Internal() []string {
	return []string{"RequestPayment", "RecordPayment", "BeginNotifications", "RecordNotification"}
}

// Own says what in the body of a command names what only the process makes: the reservations of orders, and the returns whose
// goods it puts back. A client that took such an id would sell an order's goods twice, or have the sums of the audit not add up.
func Own(body any) []millrace.FieldError {
	var f faults
	own := func(pointer, id string) {
		if _, ok := orderOf(id); ok {
			f.add(pointer, "must not be an order, a slash and a number: such ids are those of the fulfilment of orders")
		}
	}
	switch c := body.(type) {
	case *ReserveStock:
		own("/reservation", c.Reservation)
	case *ReleaseStock:
		own("/reservation", c.Reservation)
	case *CommitStock:
		own("/reservation", c.Reservation)
	case *ReceiveStock:
		own("/reference", c.Reference)
	}
	return f
}

// Represent is the form in which the API shows a folded state and in which the read models keep it: an [*Order],
// a [*Level] or a [*Return]. ok is false for a stream without events and for states of other domains.
func Represent(state any) (document any, ok bool) {
	switch s := state.(type) {
	case *Order:
		return s, s.Exists()
	case *Stock:
		return s.Level(), s.Version > 0
	case *Return:
		return s, s.Exists()
	}
	return nil, false
}
