// Package sim drives a running server the way shops do, and then settles accounts with it.
//
// [Orders] is an open-loop load: what is sent, and when, is fixed by a seed before the first answer comes, and latency
// counts from the moment at which a request was to be sent. A server that stalls is not spared the requests of that time,
// nor does their waiting go unseen.
//
// What is sent is what a shop's systems send on a working day: web orders one by one, each of which walks a part of its
// way (confirm, pay, pack, ship whole or in parts, deliver, come back, or be cancelled); a store's receipts in
// batches; repetitions of requests; documents that are broken; messages that nobody knows yet; orders that break a rule;
// stock that is received, reserved, committed and released.
//
// The end is a reconciliation: everything that was acknowledged is looked up, every order and every stock level is read
// back, and the sums must be equal. A figure that differs is named.
package sim
