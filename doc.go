// Package millrace is the vocabulary and the contracts of an event-driven order-processing platform.
//
// A message becomes a [Command], is kept durably, is decided by a pure function, and the events it leads to
// are the truth. Everything else follows from the feed of those events and can be deleted and built again.
//
// Three rules hold the architecture together:
//
//  1. One door in ([Intake]), one write ([Store.Commit]), one door out ([Store.Feed]).
//  2. Commands are wishes and may be refused; events are facts and never change.
//  3. Whatever follows the feed is a [Consumer] with a name, a checkpoint for each partition and a handler. Its
//     documents and its checkpoint move together.
//
// The package holds no goroutines of its own and does no input or output: backends implement [Driver], and the
// packages command, feed and projection run what is described here.
package millrace
