package pgstore

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
)

// head is what is known of a partition's row.
type head struct {
	millrace.Head
	ordinal int64
}

// heads are the heads as this node knows them: moved at once by its own commits, by polling for those of others.
type heads struct {
	mu sync.Mutex
	at []head
	// sure is what of them no failover can take: the database has answered to this node a commit that is not older. What
	// was only seen may be gone in the database that takes over; see [Driver.refresh].
	sure   []head
	moved  chan struct{} // closed and replaced when a head moves; nil while nobody waits
	closed bool
}

func (h *heads) init(n int) { h.at, h.sure = make([]head, n), make([]head, n) }

func (h *heads) get(p int) head {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at[p]
}

func (h *heads) all() []head {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.at)
}

// known are all heads, and what of them is sure.
func (h *heads) known() (at, sure []head) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.at), slices.Clone(h.sure)
}

// committed takes the heads of own commits that were answered. What is older came by a slower way.
func (h *heads) committed(partitions []int, to []head) {
	h.mu.Lock()
	defer h.mu.Unlock()
	moved := false
	for i, p := range partitions {
		if to[i].ordinal > h.at[p].ordinal {
			h.at[p], moved = to[i], true
		}
		if to[i].ordinal > h.sure[p].ordinal {
			h.sure[p] = to[i]
		}
	}
	if moved {
		h.wake()
	}
}

// acquired begins anew where the database says that partitions stand, now that they are this node's.
func (h *heads) acquired(partitions []int, at []head) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, p := range partitions {
		h.at[p], h.sure[p] = at[i], at[i]
	}
	h.wake()
}

// promised makes sure what a transaction saw that was answered.
func (h *heads) promised(partitions []int, seen []head) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, p := range partitions {
		if seen[i].ordinal > h.sure[p].ordinal {
			h.sure[p] = seen[i]
		}
	}
}

// look takes what was seen of the heads that were there before. One that is behind, or another one, is taken back, unless
// it has moved since it was asked for.
func (h *heads) look(partitions []int, before, now []head) (moved int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, p := range partitions {
		if now[i].ordinal > h.at[p].ordinal || h.at[p] == before[p] && now[i] != before[p] {
			h.at[p] = now[i]
			moved++
		}
	}
	if moved > 0 {
		h.wake()
	}
	return moved
}

// wake tells who waits; h.mu is held.
func (h *heads) wake() {
	if h.moved != nil {
		close(h.moved)
		h.moved = nil
	}
}

// wait returns a channel that is closed when a head moves from now on, and whether the store is closed.
func (h *heads) wait() (moved <-chan struct{}, closed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.moved == nil && !h.closed {
		h.moved = make(chan struct{})
	}
	return h.moved, h.closed
}

// shut ends all waiting for good.
func (h *heads) shut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.wake()
}

// Moved implements millrace.Shared.
func (d *Driver) Moved() (moved <-chan struct{}, closed bool) { return d.heads.wait() }

// Heads implements millrace.Driver: durable heads, those of other nodes' partitions as of the last look at them.
func (d *Driver) Heads() []millrace.Head {
	at := d.heads.all()
	out := make([]millrace.Head, len(at))
	for i := range at {
		out[i] = at[i].Head
	}
	return out
}

// Look reads the heads of all partitions: what any node has told a client before is within them afterwards.
func (d *Driver) Look(ctx context.Context) error {
	if err := d.reads.Enter(); err != nil {
		return err
	}
	defer d.reads.Leave()
	return d.refresh(ctx, false)
}

// refresh reads all heads. Those of own partitions follow the answers to own commits alone: while the database waits for a
// standby, or breaks down, it may show what it has not promised yet.
//
// A head that is behind one that was sure before it was asked for is gone: the database was put back, or a standby that
// lagged took over. Nothing can be promised on such a log. One that was only seen is another matter: a server whose first
// process was killed lets the commits go that wait for a standby, and for a moment everybody sees them. They were answered
// to nobody, their owner writes them again, and the standby that takes over lacks them rightly.
func (d *Driver) refresh(ctx context.Context, told bool) error {
	before, sure := d.heads.known()
	if d.o.trusting {
		sure = before
	}
	partitions := make([]int, 0, len(before))
	now := make([]head, 0, len(before))
	epochs := make([]uint64, 0, len(before))
	var started int64
	err := d.query(ctx, d.sql.heads, nil, func(rows pgx.Rows) error {
		var epoch int64
		p, h, err := d.scanHead(rows, &epoch, &started)
		partitions, now, epochs = append(partitions, p), append(now, h), append(epochs, uint64(epoch)) //nolint:gosec // counts owners
		return err
	})
	if err != nil {
		return err
	}
	if len(now) != len(before) {
		return fmt.Errorf("%w: partitions: %d rows for %d partitions", millrace.ErrCorrupt, len(now), len(before))
	}
	for i, p := range partitions {
		if err := d.compare(p, sure[p], now[i]); err != nil {
			return err
		}
		if !d.leases.follows(p, epochs[i]) {
			now[i] = before[p]
		}
	}
	if err := d.recognise(ctx, sure, started); err != nil {
		return err
	}
	d.stats.looked(d.o.Now(), d.heads.look(partitions, before, now), told)
	return nil
}

// scanHead reads a row of partition, position, chain and ordinal, and what comes behind.
func (d *Driver) scanHead(rows pgx.Rows, more ...any) (p int, h head, err error) {
	var position int64
	var chain []byte
	if err := rows.Scan(append([]any{&p, &position, &chain, &h.ordinal}, more...)...); err != nil {
		return 0, head{}, err
	}
	if p < 0 || p >= d.meta.Partitions || len(chain) != len(h.Chain) {
		return 0, head{}, fmt.Errorf("%w: partitions: row %d", millrace.ErrCorrupt, p)
	}
	h.Position = uint64(position) //nolint:gosec // never negative
	copy(h.Chain[:], chain)
	return p, h, nil
}

// recognise looks, where the server has been started since, whether the log is the one that it was: a standby that lagged may
// have taken over and gone on, beyond what was sure here, before anybody looked. By the server's start it is seen through a
// pool of connections too.
func (d *Driver) recognise(ctx context.Context, sure []head, started int64) error {
	if d.o.trusting || d.known.Load() == started {
		return nil
	}
	var partitions []int
	var ordinals []int64
	for p, h := range sure {
		if h.ordinal > 0 {
			partitions, ordinals = append(partitions, p), append(ordinals, h.ordinal)
		}
	}
	same := map[int]bool{}
	err := d.query(ctx, d.sql.chainsAt, []any{int32s(partitions), ordinals}, func(rows pgx.Rows) error {
		var p int
		var chain []byte
		err := rows.Scan(&p, &chain)
		same[p] = err == nil && bytes.Equal(chain, sure[p].Chain[:])
		return err
	})
	if err != nil {
		return err
	}
	for _, p := range partitions {
		if !same[p] {
			err = fmt.Errorf("%w: partition %d has another history up to position %d: the database lost what was acknowledged", millrace.ErrFailed, p, sure[p].Position)
			d.fail(err)
			return err
		}
	}
	d.known.Store(started)
	return nil
}

// compare fails the store where a head is behind one that was sure before it was read.
func (d *Driver) compare(partition int, sure, now head) error {
	if now.ordinal > sure.ordinal || now == sure {
		return nil
	}
	err := fmt.Errorf("%w: partition %d is at position %d and was at %d: the database lost what was acknowledged", millrace.ErrFailed, partition, now.Position, sure.Position)
	d.fail(err)
	return err
}

// poll looks for what other nodes did: every interval, and when it is told that there is something.
func (d *Driver) poll() {
	t := time.NewTicker(d.o.Poll)
	defer t.Stop()
	for {
		told := false
		select {
		case <-d.ctx.Done():
			return
		case <-t.C:
		case <-d.notify.heard:
			told = true
		case <-d.backlog.due(d.o.Now()):
		}
		ctx, cancel := context.WithTimeout(d.ctx, readPatience)
		err := d.inquire(ctx, told)
		cancel()
		if d.ctx.Err() != nil {
			return
		}
		d.reached(err, false)
	}
}

func (d *Driver) inquire(ctx context.Context, told bool) error {
	if err := d.refresh(ctx, told); err != nil {
		return err
	}
	if err := d.count(ctx); err != nil {
		return err
	}
	return d.hint(ctx)
}

// hint tells the owner's loop of partitions in which commands wait.
func (d *Driver) hint(ctx context.Context) error {
	if d.o.Undecided == nil {
		return nil
	}
	owned := d.Owned()
	if len(owned) == 0 {
		return nil
	}
	var waiting []int
	err := d.query(ctx, d.sql.waiting, []any{int32s(owned)}, func(rows pgx.Rows) error {
		var p int
		if err := rows.Scan(&p); err != nil {
			return err
		}
		waiting = append(waiting, p)
		return nil
	})
	for _, p := range waiting {
		d.o.Undecided(p)
	}
	return err
}

func int32s(from []int) []int32 {
	out := make([]int32, len(from))
	for i, n := range from {
		out[i] = int32(n) //nolint:gosec // below MaxPartitions
	}
	return out
}

// backlog is the number of undecided commands: counted now and then, and moved by what this node does in between.
type backlog struct {
	mu    sync.Mutex
	n     int64
	moves int64 // what this node has added and removed, in all
	edits int64 // how often it did
	busy  int   // writes under way
	next  time.Time
	tries int
	stale bool // a count is due as soon as it may be
}

// due is when the backlog must be counted again, of itself; nil where the interval will do.
func (b *backlog) due(now time.Time) <-chan time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.stale {
		return nil
	}
	return time.After(max(b.next.Sub(now), firstBackoff))
}

func (b *backlog) begin() {
	b.mu.Lock()
	b.busy++
	b.mu.Unlock()
}

func (b *backlog) done() {
	b.mu.Lock()
	b.busy--
	b.edits++
	b.mu.Unlock()
}

// end moves the number by what a write did.
func (b *backlog) end(delta int64) {
	b.mu.Lock()
	b.edits++
	b.n += delta
	b.moves += delta
	b.mu.Unlock()
}

const (
	// countShare is the part of the time that counting may take: a long backlog is counted seldom.
	countShare = 20
	// countTries is how often a count is thrown away because this node wrote meanwhile, before it is used as it is: off by
	// what was on its way, until the next one.
	countTries = 25
)

// count counts the undecided commands.
func (d *Driver) count(ctx context.Context) error {
	b := &d.backlog
	b.mu.Lock()
	started := d.o.Now()
	if started.Before(b.next) {
		b.stale = true
		b.mu.Unlock()
		return nil
	}
	edits, moves, busy := b.edits, b.moves, b.busy
	b.mu.Unlock()
	var n int64
	err := d.query(ctx, d.sql.backlog, nil, func(rows pgx.Rows) error { return rows.Scan(&n) })
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next = d.o.Now().Add(countShare * d.o.Now().Sub(started))
	switch {
	case busy == 0 && b.busy == 0 && b.edits == edits:
		b.n, b.tries, b.stale = n, 0, false
	case b.tries >= countTries:
		b.n, b.tries, b.stale = n+b.moves-moves, 0, true
	default:
		b.tries++
		b.stale = true
	}
	return nil
}

// Backlog implements millrace.Driver: exact of what this node does, of others as of the last count.
func (d *Driver) Backlog() int64 {
	d.backlog.mu.Lock()
	defer d.backlog.mu.Unlock()
	return max(d.backlog.n, 0)
}
