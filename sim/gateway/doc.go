// Package gateway is a payment gateway that takes no money: for trying out, for tests and for benches.
//
// It keeps books as a real one does: what was authorised, captured, voided and refunded, one effect for each key. And it
// misbehaves as real ones do: it declines, takes the money and loses the answer, fails, answers twice, is slow and is down. Which
// orders meet with what follows from a seed, the order and the kind of the request, and not from the order of calls, so that a
// run with the same orders is the same run. What it does is set by [Faults], also while it runs.
//
// It is reached in process, by [Gateway.Do], or over HTTP, as the [http.Handler] of the interface in
// docs/reference/payment-gateway.md. It keeps everything in memory for as long as it lives: about half a KiB for a payment that
// is captured, its keys included.
package gateway
