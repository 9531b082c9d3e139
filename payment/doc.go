// Package payment asks payment gateways: one that is reached over HTTP ([NewHTTP]), or none ([Account]).
//
// What is asked and answered over HTTP is an interface of our own, in docs/reference/payment-gateway.md. Between it and a
// provider stands a small program of the shop's, or, for trying out, the simulator (millrace simulate gateway).
//
// Money is never guessed. An answer counts if it repeats what was asked, the key included: two answers on one connection, or an
// answer that a proxy mixed up, are no answers. All that is neither a yes nor a no is an error, by which the same request is
// made again under the same key.
package payment
