// Package command is the write side: it accepts commands, decides them by the pure functions of their domain, and
// commits what follows.
//
// Each partition has one loop, which alone decides the partition's commands and appends its events. A command that
// comes in goes to its partition's queue; the loop decides what has gathered there and hands it to the store as one
// commit, and while the store syncs, the next batch gathers and is decided on top of it. So a partition has neither
// locks nor conflicts, and a hot stream is as fast as a cold one.
//
// When the loop keeps up, a command and its decision are one commit. When it does not (it is paused, it waits for a
// stream's state, there is a backlog), the command is kept alone and decided later. Either way Accept returns when the
// command is on disk, and either way the answers are the same.
package command
