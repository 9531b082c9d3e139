package command

import (
	"log/slog"
	"time"

	"github.com/millrace-io/millrace"
)

// Options of New; nil is fine.
type Options struct {
	// MaxBatch is how many commands one commit of a partition decides at most. Defaults to 512.
	MaxBatch int
	// MaxQueue is how many commands may be in memory, on their way to a decision; more are refused with an
	// OverloadError. Defaults to 16,384.
	MaxQueue int
	// MaxBacklog is how many commands may be kept undecided; more are refused with an OverloadError.
	// Defaults to 1,000,000.
	MaxBacklog int64
	// CacheStreams is how many streams' states are kept in memory, over all partitions. Defaults to 65,536.
	CacheStreams int
	// CacheBytes is the most that these states may stand for, in bytes of their events, over all partitions; in memory they
	// take two to four times that. Defaults to 64 MiB.
	CacheBytes int
	// Attempts is how often a decision that panics or a state that cannot be folded is tried before the command becomes
	// a dead letter. Errors that may pass by themselves are retried without end. Defaults to 3.
	Attempts int
	// Paused accepts commands and decides none, but for those of Always, until [Processor.Resume].
	Paused bool
	// Always are the categories whose commands are decided while the processor is paused: the word that it is to go on is a
	// command itself. Defaults to none.
	Always []string
	// Shared: other nodes accept and decide on the same store. Run decides none: [Processor.Serve] decides those of one
	// partition while this node owns it. A command is kept alone first, in the order that all nodes share, but where its
	// owner takes it itself and no other node has kept one in the partition for a while.
	Shared bool
	// Observer is told what happens. Defaults to nobody.
	Observer Observer
	// Logger gets dead letters and retries. Defaults to nothing.
	Logger *slog.Logger
	// Now is the clock. Defaults to time.Now.
	Now func() time.Time
}

// Observer is told what happens to commands. Its methods are called on the hot path by many goroutines: they must be
// quick and must not block.
type Observer interface {
	// Accepted: a command is on disk, this long after Accept was called. A replayed one was there before.
	Accepted(took time.Duration, replayed bool)
	// Rejected: a command was not accepted, because of overload, a full disk or a reused key.
	Rejected(err error)
	// Decided: a command has its outcome, this long after it was accepted.
	Decided(category string, status millrace.Status, took time.Duration)
	// Committed: a partition committed so many decisions at once.
	Committed(decisions int)
	// Loaded: a stream's state was not in memory and was read from the store.
	Loaded(took time.Duration)
}

type nobody struct{}

func (nobody) Accepted(time.Duration, bool)                   {}
func (nobody) Rejected(error)                                 {}
func (nobody) Decided(string, millrace.Status, time.Duration) {}
func (nobody) Committed(int)                                  {}
func (nobody) Loaded(time.Duration)                           {}

const (
	// maxQueueBytes bounds the bodies of the commands in memory: what a store must be able to take once it says that it
	// can take more.
	maxQueueBytes = 8 << 20
	// maxCommitBytes bounds the commands and events of one commit, which must fit into a segment of the journal.
	maxCommitBytes = 4 << 20
	// maxEvents bounds the events of one decision: they share a commit, and a reader must take them together.
	maxEvents = 1000
	// maxEventData bounds the bodies of one decision's events together: an order of the most lines with its totals. They
	// must fit into one commit with the command, and what does not would stop the partition each time it is tried.
	maxEventData = 4 << 20
	// stuckAfter is how long a command may wait for its loop before it is kept without its decision. A loop that keeps up
	// takes well under a millisecond.
	stuckAfter = 20 * time.Millisecond
	// stuckAfterShared is the same on a shared store, where a loop that keeps up may still wait for a round trip or two.
	stuckAfterShared = 250 * time.Millisecond
	// pausedLook is how often a paused loop looks for commands of Options.Always at the most, where others are kept all the
	// time.
	pausedLook = 100 * time.Millisecond
	// firstRetry and lastRetry bound the waits between attempts.
	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
	// overloadRetry is what refused callers are told to wait: a full queue drains in much less.
	overloadRetry = time.Second
)

func (o *Options) withDefaults() Options {
	var r Options
	if o != nil {
		r = *o
	}
	if r.MaxBatch == 0 {
		r.MaxBatch = 512
	}
	if r.MaxQueue == 0 {
		r.MaxQueue = 16 << 10
	}
	if r.MaxBacklog == 0 {
		r.MaxBacklog = 1_000_000
	}
	if r.CacheStreams == 0 {
		r.CacheStreams = 64 << 10
	}
	if r.CacheBytes == 0 {
		r.CacheBytes = 64 << 20
	}
	if r.Attempts == 0 {
		r.Attempts = 3
	}
	if r.Observer == nil {
		r.Observer = nobody{}
	}
	if r.Logger == nil {
		r.Logger = slog.New(slog.DiscardHandler)
	}
	if r.Now == nil {
		r.Now = time.Now //nolint:forbidigo // the default of what is injected
	}
	return r
}
