// Package process runs process managers ([millrace.Process]): what is to happen after an event, over time and over several
// streams.
//
// An instance is a document in the partition of its stream, and moves in one commit with the consumer's checkpoint. What it
// hears of are the events of its stream, the outcomes of the commands that it has sent, and its timers. What it says goes out
// as commands, which are on disk before the checkpoint moves. A crash in between has it hear and say the same again, and the
// ids of its commands are made of the process, the stream and the step: what was decided before is answered as before.
//
//	events ──┐                        ┌── commands ── AcceptAll ── outcome known at once ──┐
//	outcomes ├─ Evolve ── React ──────┤                             or awaited ── outcomes │
//	timers ──┘     ▲                  └── timers                                           │
//	               └───────────────────────────────────────────────────────────────────────┘
//
// All that a worker does with its instances is done by the one goroutine that has their partition, so that nothing here is
// locked but what the waiters bring.
package process
