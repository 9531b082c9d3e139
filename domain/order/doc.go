// Package order holds the rules of a shop: orders, stock and goods that come back. It is pure: a decision sees the
// state, the command and the time at which the command was accepted, and nothing else.
//
// # Orders (category "order", stream order-<id>)
//
//   - An order is placed with a currency and 1 to [MaxLines] lines. A line has an SKU, a quantity and a unit price; its
//     total is unit price × quantity, rounded half to even to the currency's minor unit. The order's total is the sum
//     of the line totals. A price of zero is fine; a quantity below 1 or a price below zero refuses the whole order
//     with the code line_invalid and names the lines.
//   - placed_at is when the customer ordered; where nobody says, it is when the command was accepted.
//   - fulfilment says who drives the order on. auto, the default: the process below. manual: people and systems by the
//     commands. The rules are the same for both: what a person does to an auto order, the process goes along with.
//   - backorder says what becomes of an auto order when stock is short: reject, the default, wait or split; see below.
//   - Placing an order again with the content that it has now does nothing; with another content it is refused. What
//     the command leaves out it does not ask for: a placing without placed_at agrees with any.
//   - Until it is confirmed, lines and address can be changed; the lines not once it is paid, because the payment was
//     for the total.
//   - Who confirms may name the version of the order that they have seen: lines that were changed since are then not confirmed.
//   - The way of an order is placed → confirmed → packed → shipped → delivered → completed. Each step is a command of
//     its own, and none can be left out, but for the last: an order is completed by itself as soon as it is delivered
//     and paid, in whichever order these come. An order with a total of zero needs no payment.
//   - It can be shipped in parts: partly_shipped until nothing is left, and never more than was ordered.
//   - What is not shipped of an order that is partly shipped can be given up, with a reason: it is closed, and shipped. The
//     refund is the given-up part of the line totals.
//   - It can be paid in every status but cancelled and returned, once, and for exactly its total. Paying does not change
//     the status, unless it completes the order.
//   - It can be cancelled, with a reason, until its first goods are shipped. What was paid is to be refunded.
//   - Once everything is shipped, goods can come back, in parts too: partly_returned until everything is back, and
//     never more than was shipped. The refund is the returned part of the line totals; however many parts a line comes
//     back in or is given up in, its refunds add up to its total. An order of which something came back is never completed.
//     If the rest is still on its way, it can be marked as delivered. Who takes goods back may say that they cannot be sold
//     again (restock false): then they are scrapped.
//   - That a payment gateway is asked for an authorisation is recorded before it is: for the order's total, one at a time. It is
//     refused where the order is cancelled, returned or paid, and then nobody is asked.
//   - What a payment gateway answered is recorded, whatever the status of the order: authorised, declined, captured, voided,
//     refunded; by the name of the call, once. A capture is a payment of the order and completes one that is delivered.
//     These records are not wishes; nobody but who made the call makes them.
//   - An order may name an e-mail address and a language; see the notifications below. Neither changes.
//   - A command that finds the order where it would lead does nothing: confirming a confirmed order, cancelling a
//     cancelled one. In any other status that does not fit it is refused. Shipping or returning named quantities twice
//     means twice: the command's id tells a repetition from a second parcel.
//
// # Stock (category "stock", stream stock-<sku>)
//
//   - on_hand is what is there, reserved is what is promised, available is the difference. Always
//     on_hand ≥ reserved ≥ 0: what would break this is refused with the code stock_insufficient.
//   - Receiving adds to on_hand; adjusting corrects it by a signed number, with a reason, and by zero does nothing.
//   - Reserving promises a quantity under the id of a reservation. The same reservation with the same quantity again does
//     nothing; with another quantity it is refused.
//   - Releasing gives a reservation up. Committing says that its goods have left: on_hand and reserved both go down. Both
//     take all that is left of it, or a part that is named, and the rest stays reserved.
//   - A reservation that was released or committed is forgotten, because an SKU that sells well has millions of them.
//     Closing it again is therefore refused with the code reservation_unknown, and reserving under its id is a new
//     reservation. Repeated messages do no harm: they carry the id of the command, whose outcome is kept.
//   - Ids such as order-1001/1 are those of the fulfilment of orders: clients may not use them, nor name such a one as the
//     reference of goods that they receive. The rules take them from whoever sends them; the doors refuse them (Own).
//
// # Goods returned (category "return", stream return-<id>)
//
//   - A return is a credit note for goods that came back without an order of ours that they could be booked on; it may
//     name an order all the same. Its lines follow the rules of order lines, with the quantity that came back.
//   - It is recorded once. Recording it again with the same content does nothing, with another content it is refused.
//
// # Fulfilment (process "fulfilment" on orders)
//
//   - The process carries auto orders through: it reserves stock, has the total authorised, confirms, packs, ships, commits the
//     stock and captures the total with the first parcel, and delivers. It can be told to stop driving at any of these; what
//     people do then, it reacts to all the same. Orders that are manual it leaves alone.
//   - Lines of the same SKU are reserved together, and wholly or not at all, under the ids order-<id>/<number>.
//   - Where stock is short, an order with backorder reject is cancelled: out_of_stock. One with wait keeps what it got and
//     tries again, after a minute at first and 6 hours at last, until all is there. One with split goes on with what it got,
//     and ships the rest when it comes. After 7 days, wait is cancelled, and of split the rest is given up. Of an order of which
//     somebody has shipped a part, the rest is waited for, whatever it asked for.
//   - Another refusal of a reservation cancels the order: reservation_failed. So does a life of more reservations than there may
//     be. Stock is held for an hour before the order is confirmed, and then it is cancelled: reservation_expired; while stock
//     is waited for, the hour does not run.
//   - A payment that is declined cancels the order: payment_declined; one that does not come for 15 minutes: payment_timeout.
//     Where orders are paid by hand, nothing is asked of a gateway, and the order waits for being marked as paid.
//   - Until it is confirmed, lines can be changed: what is reserved follows by the difference. Where the total falls, the
//     authorisation stays, and less is captured. Where it rises, the authorisation is voided and another one made, so that
//     the gateway never holds more than one order's worth. An order is not confirmed but for the lines and the total that stock
//     and money were made sure of for.
//   - An order that is cancelled, by whomever, is undone: what is or may be reserved is released, and what is authorised is voided;
//     of a call whose answer is not known yet, the answer is awaited first. So it is with what an order was marked as paid
//     for by other means: the process captures nothing then, and gives back only what it had captured itself. Of an authorisation that
//     was asked for by a server that was killed, the order's events tell: it is asked for again under its key, and undone.
//   - A capture that is declined when the goods are on their way is tried again on 7 days, and so is a refund. After that it
//     waits for a person, and says so.
//   - Goods that come back are received into the stock, unless they are scrapped, with the reference order-<id>/<number of the
//     return>; and money is given back for them, at most what was captured.
//   - What cannot go on says so: its state is stuck, with what a person has to look at. Nothing is tried for ever.
//
// # Audit
//
//   - From events alone: stock levels are those that follow; on_hand is what was received and adjusted less what was committed;
//     reserved is the sum of open reservations. Totals are those of the lines. Nothing is shipped that was not ordered, nothing
//     comes back that was not shipped, nothing is captured twice or beyond its authorisation, nothing is given back that was
//     not taken.
//   - Of auto orders: no authorisation has an answer before it is said that it is asked for; no more leaves the stock than was shipped, and no more comes back into it than was returned; and once an
//     order has ended and the process is at rest, just that, nothing is reserved for it, no authorisation stands or is without
//     an answer, and what was captured less what was given back is its total less its refunds.
//
// # Notifications (process "notifications" on orders; category "notification", stream notification-<order id>)
//
//   - A customer is told when an order is placed, confirmed, delivered and cancelled, of each parcel that is shipped, and of
//     each refund: when goods come back that were paid for. What is refunded by a cancellation is said with the cancellation.
//   - By each channel once, whatever comes twice. The channels are those that there are when it happens: one that is added
//     later does not tell the past, and one that is taken away gives up what it had not told.
//   - An order without an e-mail address gets no e-mail. Languages in which nothing is written get English.
//   - Imported orders, which have the channel import or were placed more than 24 hours before they were accepted, get no
//     notifications at all, whatever becomes of them; and what happened before telling began in a store gets none either.
//     Neither an import nor anything that is made again from the events mails customers about the past.
//   - Who is to be told is told, however late: a mail server that was away for a week gets the mails of the week.
//   - What became of a notification is recorded, as an event: documents can be lost and made again, and nobody is told a
//     second time for it.
//   - An order is told of in its first 50 parcels and its first 25 refunds; a notice lists 50 lines at most, and counts the
//     others.
package order
