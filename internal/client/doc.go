// Package client speaks the HTTP API from the other side: for the command line, the import and the simulator.
//
// Every change carries an idempotency key, and that makes the client simple: whatever goes wrong on the way (no
// connection, an answer that breaks off, 408, 429, 502, 503, 504) the same request is sent again with the same key, after
// a delay that grows and is jittered, or after what Retry-After says, until a deadline. Whether the first attempt did
// arrive need not be known.
//
// Several servers may be named, which share a store. Requests go round, and on to the next one at once where one does not
// answer; such a server is left alone for a time that grows, and then tried with one request. A request is given up when no
// server has done what it asks for as long as it may be tried, and never before each was asked.
//
// What was sent twice may be answered as known before. [Response.Doubt] says where that can be this very request's own
// doing.
package client
