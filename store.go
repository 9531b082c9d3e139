package millrace

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Store is the concrete type that all code holds. It carries the rules that do not depend on a backend: who numbers
// what, how the chain is linked, how a cursor is waited for. A backend's Open returns one.
type Store struct {
	d    Driver
	meta Meta
	// refresh is how often the backend is asked for what other nodes did; 0 where there are none.
	refresh time.Duration

	owned []owned

	mu       sync.Mutex
	progress map[string]*progress
}

// owned is a partition as its owner sees it. Only the owner's loop touches it.
type owned struct {
	head  Head // ahead of the driver's by what is on its way to the disk
	epoch atomic.Uint64
}

// progress is how far a consumer has come, and who waits for it.
type progress struct {
	cursor Cursor
	moved  chan struct{} // closed when the cursor moves; nil while nobody waits for that
	// awaited is closed when somebody does; nil while nobody asked for that.
	awaited chan struct{}
	asked   time.Time // when the backend was last asked, on a shared store

	// By partition: whether the consumer runs in this process, and what it has last written there.
	here []bool
	kept []uint64
	// questions to the backend are numbered, so that a late answer does not count behind a newer one.
	questions, answered uint64
}

// NewStore puts the shared rules around a driver. Backends call it.
func NewStore(d Driver) *Store {
	s := &Store{d: d, meta: d.Meta(), progress: map[string]*progress{}}
	if shared, ok := d.(Shared); ok {
		s.refresh = shared.Refresh()
	}
	s.owned = make([]owned, s.meta.Partitions)
	for p, h := range d.Heads() {
		s.owned[p].head = h
	}
	return s
}

// Meta is the store's identity.
func (s *Store) Meta() Meta { return s.meta }

// Shared says whether other processes write to the store as well; see [Shared].
func (s *Store) Shared() bool { return s.refresh > 0 }

// Partitions is how many there are.
func (s *Store) Partitions() int { return s.meta.Partitions }

// Driver gives the backend: for tests, tools and the backend's own features.
func (s *Store) Driver() Driver { return s.d }

// Commit numbers the decisions of a batch, links them into the partition's chain and hands them to the backend; see
// [Driver.Append] for done. Only the partition's owner may call it with decisions, from one goroutine at a time; it
// must have set the version and the time of each decision. It may go on deciding on what it committed before done
// is called: a batch that fails makes all later ones fail.
func (s *Store) Commit(b *Batch, done func(error)) {
	if len(b.Decisions) > 0 {
		s.owned[b.Partition].link(b)
	}
	s.d.Append(b, done)
}

// link numbers the decisions and continues the chain.
func (o *owned) link(b *Batch) {
	b.Prev, b.Epoch = o.head.Chain, o.epoch.Load()
	var buf []byte // one for all encodings, which the driver may keep
	for i := range b.Decisions {
		d := &b.Decisions[i]
		d.Position = o.head.Position
		if size := encodedSize(d); cap(buf)-len(buf) < size {
			buf = make([]byte, 0, size*(len(b.Decisions)-i))
		}
		start := len(buf)
		buf = AppendDecision(buf, d)
		d.Encoded = buf[start:len(buf):len(buf)]
		d.Chain = NextChain(o.head.Chain, d.Encoded)
		o.head = d.Head()
	}
}

// encodedSize is an upper bound of a decision's encoding, but for the details of a refusal or a failure.
func encodedSize(d *Decision) int {
	size := 128 + len(d.Command.ID) + len(d.Command.Stream) + len(d.Command.CorrelationID)
	for i := range d.Events {
		size += 16 + len(d.Events[i].Type) + len(d.Events[i].Data)
	}
	return size
}

// Accept keeps commands without deciding them and waits until they are durable.
func (s *Store) Accept(ctx context.Context, partition int, cs []AcceptedCommand) error {
	done := make(chan error, 1)
	s.d.Append(&Batch{Partition: partition, Accepted: cs}, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Own says that this node owns a partition from now on, under a fencing token: the head is taken from the backend, which
// knows it since it gave the partition out, and commits carry the token.
func (s *Store) Own(partition int, epoch uint64) {
	s.owned[partition].head = s.d.Heads()[partition]
	s.owned[partition].epoch.Store(epoch)
}

// Epoch is the fencing token under which this node has last owned a partition; 0 on a store of one process.
func (s *Store) Epoch(partition int) uint64 { return s.owned[partition].epoch.Load() }

// Reload takes the partition's head from the backend again: after taking the partition over, or after [ErrConflict].
func (s *Store) Reload(partition int) { s.owned[partition].head = s.d.Heads()[partition] }

// Writable, Lookup, Command, Pending, Backlog, Version, Events, Feed, Heads, Document, Documents, DropViews, Verify and Close
// are the driver's: see [Driver].

// Writable is nil, or why new facts would be refused now.
func (s *Store) Writable() error { return s.d.Writable() }

// Lookup finds a command's outcome by its id.
func (s *Store) Lookup(ctx context.Context, id string) (Outcome, error) { return s.d.Lookup(ctx, id) }

// Lookups finds the outcomes of several commands, and on a shared store the versions of their streams where they are asked
// for; on others asking for one costs nothing.
func (s *Store) Lookups(ctx context.Context, qs []Inquiry) []Finding {
	if shared, ok := s.d.(Shared); ok {
		return shared.Lookups(ctx, qs)
	}
	out := make([]Finding, len(qs))
	for i, q := range qs {
		out[i].Outcome, out[i].Err = s.d.Lookup(ctx, q.ID)
	}
	return out
}

// Command reads an accepted command.
func (s *Store) Command(ctx context.Context, id string) (Command, error) { return s.d.Command(ctx, id) }

// Pending yields the undecided commands of a partition in the order of acceptance.
func (s *Store) Pending(ctx context.Context, partition int) iter.Seq2[AcceptedCommand, error] {
	return s.d.Pending(ctx, partition)
}

// PendingOf yields the undecided commands of a partition that are for the streams of one category, in the order of acceptance.
func (s *Store) PendingOf(ctx context.Context, partition int, category string) iter.Seq2[AcceptedCommand, error] {
	if shared, ok := s.d.(Shared); ok {
		return shared.PendingOf(ctx, partition, category)
	}
	return func(yield func(AcceptedCommand, error) bool) {
		for c, err := range s.d.Pending(ctx, partition) {
			if err == nil && c.Command.Stream.Category() != category {
				continue
			}
			if !yield(c, err) || err != nil {
				return
			}
		}
	}
}

// Backlog counts the undecided commands of the store.
func (s *Store) Backlog() int64 { return s.d.Backlog() }

// Version is the stream's newest version, 0 where it has no events.
func (s *Store) Version(ctx context.Context, stream Stream) (uint64, error) {
	return s.d.Version(ctx, stream)
}

// Versions are the newest versions of streams of one partition, on a shared store; nil on others, where asking one by one
// costs nothing.
func (s *Store) Versions(ctx context.Context, partition int, streams []Stream) ([]uint64, error) {
	shared, ok := s.d.(Shared)
	if !ok {
		return nil, nil
	}
	return shared.Versions(ctx, partition, streams)
}

// Events yields the stream's events from a version on.
func (s *Store) Events(ctx context.Context, stream Stream, from uint64) iter.Seq2[Recorded, error] {
	return s.d.Events(ctx, stream, from)
}

// Feed is the one door out.
func (s *Store) Feed(ctx context.Context, o FeedOptions) iter.Seq2[[]Recorded, error] {
	if err := s.CheckCursor(o.After); err != nil {
		return func(yield func([]Recorded, error) bool) { yield(nil, err) }
	}
	return s.d.Feed(ctx, o)
}

// Heads are the durable heads of all partitions.
func (s *Store) Heads() []Head { return s.d.Heads() }

// Head is the durable head as a cursor.
func (s *Store) Head() Cursor {
	c := Cursor{Epoch: s.meta.Epoch, Positions: make([]uint64, s.meta.Partitions)}
	for p, h := range s.d.Heads() {
		c.Positions[p] = h.Position
	}
	return c
}

// CheckCursor says whether a cursor can be from this store: [ErrCursorEpoch] or [ErrInvalid] where not. The zero
// cursor is from everywhere.
func (s *Store) CheckCursor(c Cursor) error {
	if len(c.Positions) == 0 {
		return nil
	}
	if c.Epoch != s.meta.Epoch {
		return ErrCursorEpoch
	}
	if len(c.Positions) > s.meta.Partitions {
		return fmt.Errorf("%w: cursor names more partitions than the store has", ErrInvalid)
	}
	return nil
}

// Cursor is the cursor of an outcome: what a read must have seen to see its effect.
func (s *Store) Cursor(o *Outcome) Cursor { return At(s.meta.Epoch, o.Partition, o.Position) }

// Document reads one document.
func (s *Store) Document(ctx context.Context, collection string, partition int, id string) (Document, error) {
	return s.d.Document(ctx, collection, partition, id)
}

// Documents runs a query.
func (s *Store) Documents(ctx context.Context, q Query) iter.Seq2[Document, error] {
	return s.d.Documents(ctx, q)
}

// CommitViews writes batches of views and wakes up who waits for their consumer.
func (s *Store) CommitViews(ctx context.Context, batches []ViewBatch) error {
	if err := s.d.CommitViews(ctx, batches); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range batches {
		b := &batches[i]
		s.advance(b.Consumer, b.Partition, b.Checkpoint)
		if p := s.progress[b.Consumer]; p != nil {
			p.here[b.Partition], p.kept[b.Partition] = true, b.Checkpoint
		}
	}
	return nil
}

// postbox is the consumer of documents that are posted on a store of one process. Its checkpoints stay 0.
const postbox = "post"

// Post writes a document for whoever owns its partition, from any node: a message to him. Its id must be new, it must
// have no keys, and its collection must be no consumer's; who has read it deletes it with what came of it.
func (s *Store) Post(ctx context.Context, doc Document) error {
	if shared, ok := s.d.(Shared); ok {
		return shared.Post(ctx, doc)
	}
	return s.d.CommitViews(ctx, []ViewBatch{{Consumer: postbox, Partition: doc.Partition, Puts: []Put{{Document: doc}}}})
}

// Advance moves a consumer's checkpoint in memory only: for events that change none of its documents. Who waits for
// it is woken up; after a restart the consumer sees those events again.
func (s *Store) Advance(consumer string, partition int, position uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance(consumer, partition, position)
	if p := s.progress[consumer]; p != nil {
		p.here[partition] = true
	}
}

// advance moves a checkpoint forward; s.mu is held.
func (s *Store) advance(consumer string, partition int, position uint64) {
	p := s.progress[consumer]
	if p == nil || position <= p.cursor.Position(partition) {
		return
	}
	p.cursor.Positions[partition] = position
	if p.moved != nil {
		close(p.moved)
		p.moved = nil
	}
}

// Checkpoints are the positions that a consumer has reached.
func (s *Store) Checkpoints(ctx context.Context, consumer string) (Cursor, error) {
	p, err := s.following(ctx, consumer)
	if err == nil && s.refresh > 0 {
		err = s.ask(ctx, consumer)
	}
	if err != nil {
		return Cursor{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return p.cursor.Clone(), nil
}

// Resume is [Store.Checkpoints] for a consumer that begins: on a shared store, whatever this process remembers of an
// earlier run counts for nothing. Another node may have run the consumer since, and a backend that writes views without
// waiting for its disk may have lost the newest of them, with their checkpoint.
func (s *Store) Resume(ctx context.Context, consumer string) (Cursor, error) {
	shared, ok := s.d.(Shared)
	if !ok {
		return s.Checkpoints(ctx, consumer)
	}
	p, err := s.following(ctx, consumer)
	if err != nil {
		return Cursor{}, err
	}
	if err := shared.Resume(ctx, consumer); err != nil {
		return Cursor{}, err
	}
	c, err := s.d.Checkpoints(ctx, consumer)
	if err != nil {
		return Cursor{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(p.cursor.Positions)
	copy(p.cursor.Positions, c.Positions)
	clear(p.here)
	clear(p.kept)
	return p.cursor.Clone(), nil
}

// following loads a consumer's checkpoints once; from then on CommitViews keeps them. The lock is held over the load:
// a commit in between would be missed by both.
func (s *Store) following(ctx context.Context, consumer string) (*progress, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.progress[consumer]; p != nil {
		return p, nil
	}
	c, err := s.d.Checkpoints(ctx, consumer)
	if err != nil {
		return nil, err
	}
	full := make([]uint64, s.meta.Partitions)
	copy(full, c.Positions)
	p := &progress{cursor: Cursor{Epoch: s.meta.Epoch, Positions: full}, here: make([]bool, len(full)), kept: make([]uint64, len(full))}
	s.progress[consumer] = p
	return p, nil
}

// Wait returns when a consumer has come at least as far as the cursor, or ctx's error. On a shared store that is asked of the
// backend: what this process remembers may be gone since. Errors: as CheckCursor, and the backend's where it does not answer.
func (s *Store) Wait(ctx context.Context, consumer string, c Cursor) error {
	if err := s.CheckCursor(c); err != nil {
		return err
	}
	for asked := s.refresh == 0; ; {
		// Each time anew: DropViews begins the consumer's progress again.
		p, err := s.following(ctx, consumer)
		if err != nil {
			return err
		}
		s.mu.Lock()
		if p.cursor.Covers(c) {
			s.mu.Unlock()
			if asked {
				return nil
			}
			if err := s.ask(ctx, consumer); err != nil {
				return err
			}
			asked = true
			continue
		}
		if p.moved == nil {
			p.moved = make(chan struct{})
			if p.awaited != nil {
				close(p.awaited)
				p.awaited = nil
			}
		}
		moved := p.moved
		s.mu.Unlock()
		if err := s.await(ctx, consumer, moved); err != nil {
			return err
		}
	}
}

// waitedFor is a channel that is closed.
var waitedFor = func() <-chan struct{} { c := make(chan struct{}); close(c); return c }()

// Awaited is closed when somebody in this process waits for a consumer to move on: now, or from now on.
func (s *Store) Awaited(consumer string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.progress[consumer]
	switch {
	case p == nil:
		return nil // it has not begun
	case p.moved != nil:
		return waitedFor
	case p.awaited == nil:
		p.awaited = make(chan struct{})
	}
	return p.awaited
}

// WaitLog returns when the log has come at least as far as the cursor, as far as this process knows, or ctx's error. On a
// shared store another node may have given the cursor out, of a commit that this one has not heard of yet; what reads the
// store after that sees it. On a store of one process whatever was given out is in the log, and nobody need wait for
// what is not: ErrNotFound. Other errors: as CheckCursor; ErrClosed.
func (s *Store) WaitLog(ctx context.Context, c Cursor) error {
	if err := s.CheckCursor(c); err != nil {
		return err
	}
	shared, ok := s.d.(Shared)
	if !ok {
		if !s.Head().Covers(c) {
			return fmt.Errorf("%w: the log has not come as far as the cursor", ErrNotFound)
		}
		return nil
	}
	for {
		moved, closed := shared.Moved() // first: what moves after it is not missed
		switch {
		case s.Head().Covers(c):
			return nil
		case closed:
			return ErrClosed
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// await returns when a consumer may have moved. On a shared store the node that runs it may be another one: then the backend
// is asked, by one of those who wait.
func (s *Store) await(ctx context.Context, consumer string, moved <-chan struct{}) error {
	var again <-chan time.Time
	if s.refresh > 0 {
		t := time.NewTimer(s.refresh)
		defer t.Stop()
		again = t.C
	}
	select {
	case <-moved:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case now := <-again:
		s.mu.Lock()
		p := s.progress[consumer]
		mine := p != nil && now.Sub(p.asked) >= s.refresh
		if mine {
			p.asked = now
		}
		s.mu.Unlock()
		if !mine {
			return nil
		}
		return s.ask(ctx, consumer)
	}
}

// ask takes over the checkpoints that other nodes have moved, or that a backend has lost together with their documents: it may
// write views without waiting for its disk or a standby. Where the consumer runs in this process it may be ahead of the
// backend, but never the backend behind what this process has written there.
func (s *Store) ask(ctx context.Context, consumer string) error {
	s.mu.Lock()
	p := s.progress[consumer]
	if p == nil {
		s.mu.Unlock()
		return nil
	}
	p.questions++
	question, kept := p.questions, slices.Clone(p.kept)
	s.mu.Unlock()
	c, err := s.d.Checkpoints(ctx, consumer)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for partition, position := range c.Positions {
		switch {
		case position > p.cursor.Positions[partition]:
			s.advance(consumer, partition, position)
		case s.progress[consumer] != p || question < p.answered:
			// what was known since is newer
		case !p.here[partition], position < kept[partition] && p.kept[partition] == kept[partition]:
			p.cursor.Positions[partition] = position
		}
	}
	p.answered = max(p.answered, question)
	return nil
}

// DropViews removes a consumer's checkpoints and all documents of the collections.
func (s *Store) DropViews(ctx context.Context, consumer string, collections []string) error {
	err := s.d.DropViews(ctx, consumer, collections)
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.progress[consumer]; p != nil && p.moved != nil {
		close(p.moved)
	}
	delete(s.progress, consumer)
	return err
}

// Verify checks everything there is to check and calls report for each fault.
func (s *Store) Verify(ctx context.Context, report func(problem string)) error {
	return s.d.Verify(ctx, report)
}

// Close waits for what is on its way to the disk and closes the store.
func (s *Store) Close() error { return s.d.Close() }

// Fold folds a stream's events up to a version (0: to the end) into its state.
func (s *Store) Fold(ctx context.Context, r *Registry, stream Stream, until func(*Recorded) bool) (state any, version uint64, err error) {
	c, ok := r.Category(stream)
	if !ok {
		return nil, 0, fmt.Errorf("%w: no category for the stream", ErrNotFound)
	}
	state = c.Initial(stream)
	for e, err := range s.Events(ctx, stream, 1) {
		if err != nil {
			return nil, 0, err
		}
		if until != nil && !until(&e) {
			break
		}
		body, err := r.Body(&e)
		if err != nil {
			return nil, 0, err
		}
		state, version = c.Evolve(state, body), e.Version
	}
	return state, version, nil
}

// IsTransient says whether an error may pass by itself: everything but the errors that a retry cannot change.
func IsTransient(err error) bool {
	for _, final := range []error{ErrCorrupt, ErrInvalid, ErrNotFound, ErrFailed, ErrClosed, ErrFenced} {
		if errors.Is(err, final) {
			return false
		}
	}
	return true
}
