package millrace

import (
	"context"
	"iter"
	"time"
)

// Meta is what a store is created with and keeps for ever, but for the epoch.
type Meta struct {
	ID         string // of the store, random
	Epoch      uint64 // rises with each restore from a backup, so that newer cursors are told apart
	Partitions int
}

// FeedOptions say what a feed reads.
type FeedOptions struct {
	After Cursor
	// Partitions limits the feed; nil means all.
	Partitions []int
	// Follow waits for new events at the end instead of ending there.
	Follow bool
}

// Shared is a Driver whose store other processes write to as well.
type Shared interface {
	Driver
	// Refresh is how often those who wait look for what other processes wrote.
	Refresh() time.Duration
	// Lookups is Lookup of many ids, and Version of their streams where that is asked too: one round trip for all.
	Lookups(ctx context.Context, qs []Inquiry) []Finding
	// Versions are the newest versions of streams of one partition, 0 where one has no events: one round trip for many.
	Versions(ctx context.Context, partition int, streams []Stream) ([]uint64, error)
	// PendingOf yields those of Pending whose streams are of one category.
	PendingOf(ctx context.Context, partition int, category string) iter.Seq2[AcceptedCommand, error]
	// Moved returns a channel that is closed when this process learns that a head has moved from now on, and whether the
	// store is closed, after which none does.
	Moved() (moved <-chan struct{}, closed bool)
	// Resume is called before a consumer begins and reads its checkpoints. From then on its commits must continue what the
	// backend has at the time of the call: one that is late, of an earlier run, must not come in between.
	Resume(ctx context.Context, consumer string) error
	// Post writes a document that no consumer writes, into any partition, whoever owns it. It is durable when Post
	// returns. Its id must be new, and it must have no keys.
	Post(ctx context.Context, doc Document) error
}

// Inquiry is what a store is asked when a command comes in.
type Inquiry struct {
	ID string // of the command
	// Stream is the command's, where its newest version is wanted too; empty for none.
	Stream Stream
	// Decided: only a decision is wanted. One that is kept and not decided may be answered for as one that nobody knows.
	Decided bool
}

// Finding answers an [Inquiry]. Err is as of [Driver].Lookup: for a new command, ErrNotFound. Version is 0 where none was asked
// for, and where Err is another one.
type Finding struct {
	Outcome Outcome
	Version uint64
	Err     error
}

// Driver is what a backend implements. All code but the backends and [Store] uses Store. The rules that the
// methods must keep are held by millracetest.RunStore.
type Driver interface {
	Meta() Meta

	// Append makes a batch durable. It returns at once; whoever calls it bounds what is on its way. done is called
	// exactly once. Batches of one partition become durable in the order of the calls, and done is called in that
	// order. done(nil) means: durable, and visible to every read below. Errors for done: ErrFenced, ErrFailed (nothing
	// more will be acknowledged), ErrClosed, ErrInvalid (larger than the backend can hold); of a [Shared] backend also
	// ErrConflict and ErrUnavailable. After a batch with decisions failed, those that do not continue the durable head fail
	// with the same error. done must not block.
	Append(b *Batch, done func(error))
	// Writable is nil, or why new facts would be refused now: ErrFull, ErrFailed, ErrClosed.
	Writable() error

	// Lookup finds a command by id in the whole store. The outcome is StatusAccepted where it is not decided.
	Lookup(ctx context.Context, id string) (Outcome, error)
	// Command reads an accepted command. Errors: ErrNotFound, ErrCorrupt.
	Command(ctx context.Context, id string) (Command, error)
	// Pending yields the undecided commands of a partition in the order of acceptance.
	Pending(ctx context.Context, partition int) iter.Seq2[AcceptedCommand, error]
	// Backlog counts the undecided commands of the store.
	Backlog() int64

	// Version is the stream's newest version, 0 where it has no events.
	Version(ctx context.Context, s Stream) (uint64, error)
	// Events yields the stream's events from a version on.
	Events(ctx context.Context, s Stream, from uint64) iter.Seq2[Recorded, error]
	// Feed yields batches of events that keep the order of each partition. A batch is the reader's for the time of
	// its iteration; its slice must not be kept. Without Follow it ends at the heads of the time of the call.
	Feed(ctx context.Context, o FeedOptions) iter.Seq2[[]Recorded, error]
	// Heads are the durable heads of all partitions.
	Heads() []Head

	// Document reads one document. Errors: ErrNotFound.
	Document(ctx context.Context, collection string, partition int, id string) (Document, error)
	// Documents runs a query.
	Documents(ctx context.Context, q Query) iter.Seq2[Document, error]
	// CommitViews writes each batch atomically. Errors: ErrFenced, ErrFailed, ErrClosed.
	CommitViews(ctx context.Context, batches []ViewBatch) error
	// Checkpoints are the positions that a consumer has reached, zero where it has none.
	Checkpoints(ctx context.Context, consumer string) (Cursor, error)
	// DropViews removes a consumer's checkpoints and all documents of the collections.
	DropViews(ctx context.Context, consumer string, collections []string) error

	// Verify checks everything there is to check and calls report for each fault. It is an error only if it could
	// not do so.
	Verify(ctx context.Context, report func(problem string)) error
	Close() error
}
