package order

import "github.com/millrace-io/millrace"

// reportsVersion is the version of the views for reports: any change of them is a change of its number. Names, types and
// meanings of columns stay what they are; new ones come at the end, so that what people built on a view stands.
const reportsVersion = 1

// Reports are the read models as tables, for those who ask in SQL. Names and streets of customers are not in them:
// no report needs them.
func Reports() millrace.Reports {
	return millrace.Reports{Name: "order", Version: reportsVersion, Views: []millrace.ReportView{
		ordersView(), orderLinesView(), paymentsView(), shipmentsView(), orderTotalsView(), returnsView(), returnLinesView(), stockView(),
	}}
}

// column declares a column of a view.
func column(name, path string, typ millrace.ReportType, meaning string) millrace.ReportColumn {
	return millrace.ReportColumn{Name: name, Path: path, Type: typ, Meaning: meaning}
}

// Columns of several views.
func orderIDColumn() millrace.ReportColumn {
	return column("order_id", "/id", millrace.ReportText, "The order's id")
}

func returnIDColumn() millrace.ReportColumn {
	return column("return_id", "/id", millrace.ReportText, "The return's id")
}

func customerColumn() millrace.ReportColumn {
	return column("customer_id", "/customer_id", millrace.ReportText, "The customer's id")
}

func currencyColumn() millrace.ReportColumn {
	return column("currency", "/currency", millrace.ReportText, "The currency of all amounts of the row, ISO 4217")
}

func ordersView() millrace.ReportView {
	return millrace.ReportView{
		Name: "orders", Projection: ProjectionOrders, Table: OrdersTable.Table, Meaning: "A row for each order, as it is now.",
		Columns: []millrace.ReportColumn{
			orderIDColumn(),
			column("status", "/status", millrace.ReportText, "How far it has come: `placed`, `confirmed`, `packed`, `partly_shipped`, `shipped`, `delivered`, `completed`, `cancelled`, `partly_returned`, `returned`"),
			customerColumn(),
			column("channel", "/channel", millrace.ReportText, "How it came in: `web`, `pos`, `phone`, `import`"),
			currencyColumn(),
			column("fulfilment", "/fulfilment", millrace.ReportText, "Who drives it on: `manual`, `auto`"),
			column("placed_at", "/placed_at", millrace.ReportTime, "When the customer ordered"),
			column("updated_at", "/updated_at", millrace.ReportTime, "When its newest event happened"),
			column("confirmed_at", "/confirmed_at", millrace.ReportTime, "When it was confirmed"),
			column("paid_at", "/paid_at", millrace.ReportTime, "When its payment was recorded"),
			column("packed_at", "/packed_at", millrace.ReportTime, "When it was packed"),
			column("shipped_at", "/shipped_at", millrace.ReportTime, "When the last of it left"),
			column("delivered_at", "/delivered_at", millrace.ReportTime, "When it was delivered"),
			column("completed_at", "/completed_at", millrace.ReportTime, "When it was completed: delivered and paid"),
			column("cancelled_at", "/cancelled_at", millrace.ReportTime, "When it was cancelled"),
			column("returned_at", "/returned_at", millrace.ReportTime, "When goods of it last came back"),
			column("cancel_reason", "/cancel_reason", millrace.ReportText, "Why it was cancelled, as somebody wrote it"),
			column("paid", "/paid", millrace.ReportBool, "Whether it is paid"),
			column("ship_to_city", "/ship_to/city", millrace.ReportText, "The city that it goes to"),
			column("ship_to_postal_code", "/ship_to/postal_code", millrace.ReportText, "The postal code that it goes to"),
			column("ship_to_country", "/ship_to/country", millrace.ReportText, "The country that it goes to, as it was given"),
			column("units", "/units", millrace.ReportInteger, "The sum of the quantities of its lines"),
			column("total_amount", "/total/amount", millrace.ReportNumber, "The sum of the totals of its lines"),
			column("refund_amount", "/refund/amount", millrace.ReportNumber, "The sum of what is to be refunded, null for nothing yet"),
			column("version", "/version", millrace.ReportInteger, "How many events it has"),
		},
	}
}

func orderLinesView() millrace.ReportView {
	return millrace.ReportView{
		Name: "order_lines", Projection: ProjectionOrders, Table: OrdersTable.Table, Meaning: "A row for each line of each order.",
		Columns: append(append([]millrace.ReportColumn{orderIDColumn()}, lineColumns()...),
			column("shipped", "/lines/*/shipped", millrace.ReportInteger, "How many of it have left"),
			column("returned", "/lines/*/returned", millrace.ReportInteger, "How many of it have come back")),
	}
}

func paymentsView() millrace.ReportView {
	return millrace.ReportView{
		Name: "payments", Projection: ProjectionOrders, Table: OrdersTable.Table, Where: "/paid", Meaning: "A row for each order that was paid.",
		Columns: []millrace.ReportColumn{
			orderIDColumn(),
			customerColumn(),
			column("reference", "/payment_reference", millrace.ReportText, "What was named as the payment's reference"),
			// An order is paid once and for its total, and its lines cannot be changed from then on: see the rules in doc.go.
			column("amount", "/total/amount", millrace.ReportNumber, "What was paid: the order's total, as the rules want it"),
			currencyColumn(),
			column("paid_at", "/paid_at", millrace.ReportTime, "When the payment was recorded"),
		},
	}
}

func shipmentsView() millrace.ReportView {
	return millrace.ReportView{
		Name: "shipments", Projection: ProjectionOrders, Table: OrdersTable.Table, Meaning: "A row for each parcel of each order.",
		Columns: []millrace.ReportColumn{
			orderIDColumn(),
			column("shipment", "/shipments/*/shipment", millrace.ReportInteger, "The parcel's number within the order, from 1"),
			column("shipped_at", "/shipments/*/shipped_at", millrace.ReportTime, "When it left"),
			column("carrier", "/shipments/*/carrier", millrace.ReportText, "Who carries it"),
			column("tracking_number", "/shipments/*/tracking_number", millrace.ReportText, "The carrier's number of it"),
		},
	}
}

func orderTotalsView() millrace.ReportView {
	sum := func(c millrace.ReportColumn) millrace.ReportColumn {
		c.Sum = true
		return c
	}
	return millrace.ReportView{
		Name: "order_totals", Projection: ProjectionOrders, Table: DaysTable.Table,
		Meaning: "A row for each day, status and currency that has orders. It is kept up to date with each order, and quick to read.",
		Columns: []millrace.ReportColumn{
			column("day", "/day", millrace.ReportDay, "The day of `placed_at`, in UTC"),
			column("status", "/status", millrace.ReportText, "The status that the orders have now"),
			column("currency", "/currency", millrace.ReportText, "The currency of all amounts of the row, ISO 4217"),
			sum(column("orders", "/orders", millrace.ReportInteger, "How many orders")),
			sum(column("units", "/units", millrace.ReportInteger, "The sum of their units")),
			sum(column("amount", "/amount", millrace.ReportNumber, "The sum of their totals")),
		},
	}
}

func returnsView() millrace.ReportView {
	return millrace.ReportView{
		Name: "returns", Projection: ProjectionReturns, Table: ReturnsTable.Table,
		Meaning: "A row for each return: goods that came back without an order to book them on.",
		Columns: []millrace.ReportColumn{
			returnIDColumn(),
			customerColumn(),
			column("original_order_id", "/original_order_id", millrace.ReportText, "The order that it names; there may be none of that id"),
			column("reason", "/reason", millrace.ReportText, "Why they came back, as somebody wrote it"),
			column("returned_at", "/returned_at", millrace.ReportTime, "When they came back"),
			column("updated_at", "/updated_at", millrace.ReportTime, "When the return was recorded"),
			currencyColumn(),
			column("units", "/units", millrace.ReportInteger, "The sum of the quantities of its lines"),
			column("total_amount", "/total/amount", millrace.ReportNumber, "The sum of the totals of its lines"),
		},
	}
}

func returnLinesView() millrace.ReportView {
	return millrace.ReportView{
		Name: "return_lines", Projection: ProjectionReturns, Table: ReturnsTable.Table, Meaning: "A row for each line of each return.",
		Columns: append([]millrace.ReportColumn{returnIDColumn()}, lineColumns()...),
	}
}

// lineColumns are those of an [OrderedLine].
func lineColumns() []millrace.ReportColumn {
	return []millrace.ReportColumn{
		column("line", "/lines/*/line", millrace.ReportInteger, "The line's number, from 1"),
		column("sku", "/lines/*/sku", millrace.ReportText, "What it is of"),
		column("description", "/lines/*/description", millrace.ReportText, "What it is called"),
		column("quantity", "/lines/*/quantity", millrace.ReportInteger, "How many"),
		column("unit_price", "/lines/*/unit_price", millrace.ReportNumber, "The price of one, as it was given"),
		column("line_total", "/lines/*/line_total", millrace.ReportNumber, "Price times quantity, rounded half to even to the currency's minor unit"),
		currencyColumn(),
	}
}

func stockView() millrace.ReportView {
	return millrace.ReportView{
		Name: "stock", Projection: ProjectionStock, Table: LevelsTable.Table, Meaning: "A row for each SKU that anything ever happened to.",
		Columns: []millrace.ReportColumn{
			column("sku", "/sku", millrace.ReportText, "The SKU"),
			column("on_hand", "/on_hand", millrace.ReportInteger, "What is there"),
			column("reserved", "/reserved", millrace.ReportInteger, "What of it is promised"),
			column("available", "/available", millrace.ReportInteger, "The difference"),
			column("version", "/version", millrace.ReportInteger, "How many events the SKU has"),
		},
	}
}
