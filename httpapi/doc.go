// Package httpapi is the HTTP door of Millrace: it turns requests into commands, and reads into answers.
//
// It is generic. What there is to talk about, which command a route stands for and which read model answers a question,
// the wiring declares as a [Config]; the package knows the contracts of the root package and HTTP, and no domain.
//
// Rules that hold for every route:
//
//   - The bytes of a request's body are the command's Data. They are read once, checked once, and never written anew, so
//     that what was checked is what is fingerprinted and kept.
//   - A fault is application/problem+json (RFC 9457). It names the place of a fault and never repeats a value: an error
//     that quotes its cause carries personal data into every log on its way.
//   - The Idempotency-Key is the command's id. The same request again is answered with the same status and the same
//     bytes, and Idempotency-Replayed: true.
//   - Without Prefer: wait, a command is answered with 202 as soon as it is on disk. With it, the answer is the outcome,
//     where that comes in time.
//   - Every answer to a decided command carries Millrace-Cursor; every read takes min_cursor and answers with at least
//     what the cursor names, or says that it cannot.
//   - There is a limit on everything, and each is a constant of this package.
package httpapi
