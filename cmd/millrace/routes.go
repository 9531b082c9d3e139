package main

import (
	"time"

	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/httpapi"
)

// represent is what a folded state looks like to a client.
func represent(_ string, _ uint64, state any) any {
	doc, ok := order.Represent(state)
	if !ok {
		return nil
	}
	return doc
}

// resources are the order domain's part of the API.
func (n *node) resources() []httpapi.Resource {
	filter := httpapi.Filter{Param: "customer_id"}
	return []httpapi.Resource{
		{
			Name: "orders", Category: order.CategoryOrder, Events: true,
			Create: "PlaceOrder", Patch: "ChangeOrder",
			CreateID: func(body any) string {
				if c, ok := body.(*order.PlaceOrder); ok {
					return c.ID
				}
				return ""
			},
			Verbs: []httpapi.Verb{
				{Name: "confirm", Command: "ConfirmOrder"}, {Name: "cancel", Command: "CancelOrder"}, {Name: "pay", Command: "MarkOrderPaid"},
				{Name: "pack", Command: "PackOrder"}, {Name: "ship", Command: "ShipOrder"}, {Name: "deliver", Command: "DeliverOrder"},
				{Name: "close", Command: "CloseOrder"}, {Name: "return", Command: "ReturnOrder"},
			},
			Model: n.projections.Model(order.ProjectionOrders), Table: order.OrdersTable.Table, Represent: represent,
			Calls: []httpapi.Calls{{
				Name: "notifications", Process: order.ProcessNotifications, Runs: n.notifier != nil, Item: showCall,
			}},
			List: &httpapi.List{
				Filters: []httpapi.Filter{filter, {Param: "status", Values: statuses()}},
				Orders: []httpapi.Order{
					{Index: order.OrdersByCustomer, Equal: []string{"customer_id"}, Sort: "placed_at", Times: true},
					{Index: order.OrdersByStatus, Equal: []string{"status"}, Sort: "placed_at", Times: true},
					{Index: order.OrdersByPlacedAt, Sort: "placed_at", Times: true},
					{Index: order.OrdersByCustomer, Sort: "customer_id"},
					{Index: order.OrdersByStatus, Sort: "status"},
				},
				DefaultSort: "-placed_at", TimeKey: timeKey,
			},
		},
		{
			Name: "stock", Category: order.CategoryStock, IDName: "sku", Events: true,
			Verbs: []httpapi.Verb{
				{Name: "receive", Command: "ReceiveStock"}, {Name: "adjust", Command: "AdjustStock"}, {Name: "reserve", Command: "ReserveStock"},
				{Name: "release", Command: "ReleaseStock"}, {Name: "commit", Command: "CommitStock"},
			},
			Model: n.projections.Model(order.ProjectionStock), Table: order.LevelsTable.Table, Represent: represent,
			List: &httpapi.List{Orders: []httpapi.Order{{Index: order.LevelsBySKU, Sort: "sku"}}, DefaultSort: "sku"},
		},
		{
			Name: "returns", Category: order.CategoryReturn, Events: true,
			Create: "RecordReturn",
			CreateID: func(body any) string {
				if c, ok := body.(*order.RecordReturn); ok {
					return c.ID
				}
				return ""
			},
			Model: n.projections.Model(order.ProjectionReturns), Table: order.ReturnsTable.Table, Represent: represent,
			List: &httpapi.List{
				Filters: []httpapi.Filter{filter},
				Orders: []httpapi.Order{
					{Index: order.ReturnsByCustomer, Equal: []string{"customer_id"}, Sort: "returned_at", Times: true},
					{Index: order.ReturnsByReturnedAt, Sort: "returned_at", Times: true},
				},
				DefaultSort: "-returned_at", TimeKey: timeKey,
			},
		},
	}
}

func statuses() []string {
	var names []string
	for _, s := range order.Statuses() {
		names = append(names, string(s))
	}
	return names
}

func timeKey(t time.Time) string { return order.TimeKey(t) }

// reports are sums over documents of all partitions.
func (n *node) reports() []httpapi.Report {
	return []httpapi.Report{{
		Name: "order-totals", Model: n.projections.Model(order.ProjectionOrders), Table: order.DaysTable.Table, Index: order.DaysByDay,
		Add: addDay, TimeKey: func(t time.Time) string { return t.UTC().Format(time.DateOnly) },
	}}
}

// addDay adds a partition's figures of a day, status and currency to the row of all partitions.
func addDay(row, doc any) any {
	d, ok := doc.(*order.Day)
	if !ok {
		return row
	}
	sum, ok := row.(*order.Day)
	if !ok {
		first := *d
		return &first
	}
	sum.Orders += d.Orders
	sum.Units += d.Units
	sum.Amount = sum.Amount.Plus(d.Amount)
	return sum
}
