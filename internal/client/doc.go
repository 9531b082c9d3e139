// Package client speaks the HTTP API from the other side: for the command line, the import and the simulator.
//
// Every change carries an idempotency key, and that makes the client simple: whatever goes wrong on the way (no
// connection, an answer that breaks off, 408, 429, 502, 503, 504) the same request is sent again with the same key, after
// a delay that grows and is jittered, or after what Retry-After says, until a deadline. Whether the first attempt did
// arrive need not be known.
//
// Several servers may be named. Requests go round, and past a server that does not answer.
package client
