package order

// Limits. Lengths of ids are in bytes, because they stand in stream names and index keys; lengths of texts are in
// characters.
const (
	// MaxID bounds the ids of orders, returns and customers: a stream name has room for 200 bytes.
	MaxID = 100
	// MaxReservationID bounds the ids of reservations: room for the stream of an order and a number behind it.
	MaxReservationID = 120
	// MaxSKU bounds an SKU. The longest that are in use (GTIN, DPCI, vendor codes with variants) stay below 50.
	MaxSKU = 64
	// MaxDescription bounds the description of a line: a sentence or two.
	MaxDescription = 500
	// MaxReason bounds reasons, payment references, carriers and tracking numbers.
	MaxReason = 500
	// MaxAddressPart bounds each part of an address.
	MaxAddressPart = 200
	// MaxEmail bounds an e-mail address: the longest that SMTP can deliver to (RFC 5321, a path of 256 with its brackets).
	MaxEmail = 254
	// MaxLanguage bounds a language tag: what RFC 5646 has everybody take.
	MaxLanguage = 35
	// MaxLines bounds the lines of an order: the largest fits into a command's megabyte.
	MaxLines = 5000
	// MaxQuantity bounds the quantity of one line and of one movement of stock.
	MaxQuantity = 100_000_000
	// MaxTotal bounds the total of an order, in minor units: sums of orders stay far from the end of 64 bits, and it is
	// enough in every currency.
	MaxTotal = 1_000_000_000_000_000
	// MaxShipments bounds the parcels of one order, all of which stand in its document.
	MaxShipments = 100
	// MaxShipmentLines bounds the lines of all parcels of an order together: with the lines of the order itself the
	// document stays within what the JSON decoder takes.
	MaxShipmentLines = 10_000
	// MaxStock bounds on_hand, far above any warehouse and far from the end of 64 bits.
	MaxStock = 1_000_000_000_000_000
	// MaxReservations bounds the open reservations of one SKU, which are all in memory and in its snapshot: some 50 MB.
	MaxReservations = 500_000

	// maxFaults bounds how many faults one answer names.
	maxFaults = 50
)
