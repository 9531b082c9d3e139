// Package system holds what is decided about Millrace itself: facts that people make, so that who did what, when and why stands
// in the log like everything else. It is pure, as every domain.
//
// # Consumers (category "consumer", stream consumer-<name>)
//
//   - A consumer runs, is paused, or drains: then it goes on to where the log was when that was asked for, and is paused. So it
//     is with everything that follows the feed, by its name, and with the deciding itself, by the name "command".
//   - Pausing what is paused does nothing: who paused it first, and why, is what counts. Pausing what drains pauses it at once.
//   - Resuming is recorded whatever was before: a server that was started with the consumer paused hears of it too.
//   - What drains and is asked to drain again goes on to the newer head. What is paused does not drain: consumer_paused. Somebody
//     had a reason to pause it, and is to resume it.
//   - A drain is completed by whoever sees that the consumer has come so far, naming the change by which it began: late words of
//     an earlier drain change nothing.
//   - That a parked stream is to be gone on with, or that the event that failed is to be passed over, is recorded with who and why.
//     Whether a stream is parked is not the log's to say, so nothing here refuses.
//
// # Dead letters
//
// A dead letter has a stream of its own as soon as somebody does something with it.
//
//   - It is open until it is redriven or discarded, and only while it is open can it be redriven, edited or discarded.
//   - Redriven, it is sent again: as it was edited last, or else as it came. One decision says which, so that an edit and
//     what came are never both sent.
//   - A decision or a refusal is the answer, and the end. Where it dies again, it is open again, with the new failure.
//   - What came is kept, and so is every edit.
//   - Discarded is the end too. Whoever discards or edits says why.
package system
