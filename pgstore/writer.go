package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/millrace-io/millrace"
)

// The bounds of one transaction. A larger one makes everybody in it wait longer than the round trip it saves; a single
// batch may be larger.
const (
	maxRows  = 2048
	maxBytes = 4 << 20
	// A second writer is for what the first one would leave waiting for long: helpRows at least, or anything for helpAfter. Two
	// that share less only make transactions smaller, and a transaction costs as much as some twenty commands.
	helpRows  = 512
	helpAfter = 20 * time.Millisecond
)

// request is one batch of a partition on its way to the database.
type request struct {
	batch *millrace.Batch
	done  func(error)
	epoch uint64 // under which its decisions were made
	at    time.Time
	tried bool  // an attempt had no answer, and may have been written
	fresh bool  // clients wait for its commands to be kept
	err   error // why it is refused; it keeps its place in the queue, so that done is called in order
}

func (r *request) decides() bool { return len(r.batch.Decisions) > 0 }

// size is about what the request adds to a transaction.
func (r *request) size() (rows, bytes int) {
	b := r.batch
	rows = len(b.Accepted) + len(b.Decisions)
	for i := range b.Accepted {
		bytes += len(b.Accepted[i].Command.Data)
	}
	for i := range b.Decisions {
		d := &b.Decisions[i]
		rows += len(d.Events)
		if d.Fresh {
			bytes += len(d.Command.Data)
		}
		for k := range d.Events {
			bytes += len(d.Events[k].Data)
		}
	}
	return rows, bytes
}

// queue is what waits to be written in one partition.
type queue struct {
	reqs   []*request
	busy   bool // somebody writes the partition
	listed bool // it is in ready
	last   millrace.Head
	// broken is why a batch of decisions failed, until one comes that continues the durable head: those in between were
	// made on top of the one that failed.
	broken error
}

// writers write what is queued. Each takes all partitions that have something and that nobody else writes, into one
// transaction: requests gather while the ones before are on their way. A partition is written by one at a time, so its
// requests become durable in their order, and its row is never waited for by another writer of this node.
type writers struct {
	d *Driver

	mu      sync.Mutex
	queues  []queue
	ready   []int       // in the order in which they got something
	rows    int         // about what is queued there
	idle    int         // writers that may be started
	late    *time.Timer // starts another one where there is something to write; nil while it is not set
	pending int         // requests whose done was not called yet
	closed  bool
	since   time.Time // of closed
	drained chan struct{}
}

// part is what one transaction takes of one partition.
type part struct {
	partition int
	reqs      []*request
	epoch     uint64
	// from is where the decisions begin: the head as it was when the part was taken. While an answer is out, the heads may
	// move by what the part itself wrote.
	from head
	to   head // behind its decisions; as of the last build
}

func (w *writers) init(d *Driver, n int) {
	w.d, w.idle, w.queues, w.drained = d, d.o.Writers, make([]queue, n), make(chan struct{})
}

// Append implements millrace.Driver.
func (d *Driver) Append(b *millrace.Batch, done func(error)) { d.w.append(b, done) }

func (w *writers) append(b *millrace.Batch, done func(error)) {
	if b.Partition < 0 || b.Partition >= len(w.queues) {
		// Never in the caller's own goroutine: it may hold what done needs.
		go done(fmt.Errorf("%w: the store has no such partition", millrace.ErrInvalid))
		return
	}
	r := &request{batch: b, done: done, at: w.d.o.Now()}
	r.fresh = slices.ContainsFunc(b.Decisions, func(d millrace.Decision) bool { return d.Fresh })
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		go done(millrace.ErrClosed)
		return
	}
	q := &w.queues[b.Partition]
	r.err = w.check(q, r)
	if n := len(b.Decisions); n > 0 && r.err == nil {
		q.last = b.Decisions[n-1].Head()
	}
	q.reqs = append(q.reqs, r)
	w.pending++
	rows, _ := r.size()
	w.rows += rows
	w.list(b.Partition)
}

// check says why a batch must not be written.
func (w *writers) check(q *queue, r *request) error {
	if err := w.d.failure(); err != nil {
		return err
	}
	if !r.decides() {
		return nil
	}
	b := r.batch
	r.epoch = w.d.leases.epoch(b.Partition)
	if r.epoch == 0 || b.Epoch != 0 && b.Epoch != r.epoch {
		return millrace.ErrFenced
	}
	head := q.last
	for i := range b.Decisions {
		d := &b.Decisions[i]
		if d.Position != head.Position || i == 0 && b.Prev != head.Chain {
			if i == 0 && q.broken != nil {
				return q.broken
			}
			return fmt.Errorf("%w: the decisions do not continue partition %d", millrace.ErrInvalid, b.Partition)
		}
		if d.Status == millrace.StatusDead {
			if _, err := d.DeadLetter(b.Partition); err != nil {
				return fmt.Errorf("%w: %w", millrace.ErrInvalid, err)
			}
		}
		head.Position += uint64(len(d.Events))
	}
	q.broken = nil
	return nil
}

// list has a partition written that has something and that nobody writes; w.mu is held.
func (w *writers) list(p int) {
	q := &w.queues[p]
	if q.busy || q.listed || len(q.reqs) == 0 {
		return
	}
	q.listed = true
	w.ready = append(w.ready, p)
	w.help(false)
}

// help starts a writer where there is none, or where those there are are not enough; w.mu is held.
func (w *writers) help(late bool) {
	switch {
	case w.idle == 0 || len(w.ready) == 0:
	case late || w.idle == w.d.o.Writers || w.rows >= helpRows:
		w.idle--
		go w.run()
	case w.late == nil:
		w.late = time.AfterFunc(helpAfter, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.late = nil
			w.help(true)
		})
	}
}

func (w *writers) run() {
	for {
		parts := w.take()
		if parts == nil {
			return
		}
		alone := w.try(parts)
		for _, p := range parts {
			if !contains(alone, p) {
				w.finish(p)
			}
		}
		for _, p := range alone {
			// Beside the writers: what holds this one up must not hold them up.
			go func() {
				w.single(p)
				w.finish(p)
			}()
		}
	}
}

func contains(parts []*part, p *part) bool {
	for _, a := range parts {
		if a == p {
			return true
		}
	}
	return false
}

// take gathers what is ready into one transaction; nil where nothing is, and the writer ends.
func (w *writers) take() []*part {
	w.mu.Lock()
	defer w.mu.Unlock()
	var parts []*part
	rows, bytes := 0, 0
	for len(w.ready) > 0 && rows < maxRows && bytes < maxBytes && (w.d.o.groups == 0 || len(parts) < w.d.o.groups) {
		p := &part{partition: w.ready[0]}
		w.ready = w.ready[1:]
		q := &w.queues[p.partition]
		q.listed, q.busy = false, true
		n := 0
		for ; n < len(q.reqs) && (n == 0 || rows < maxRows && bytes < maxBytes); n++ {
			r := q.reqs[n]
			if r.decides() && r.err == nil {
				if p.epoch != 0 && p.epoch != r.epoch {
					break
				}
				p.epoch = r.epoch
			}
			more, size := r.size()
			rows, bytes = rows+more, bytes+size
			w.rows -= more
		}
		p.reqs, p.from = q.reqs[:n:n], w.d.heads.get(p.partition)
		if q.reqs = q.reqs[n:]; len(q.reqs) == 0 {
			q.reqs = nil
		}
		parts = append(parts, p)
	}
	if parts == nil {
		w.idle++
	} else {
		w.help(false) // with what this one leaves
	}
	return parts
}

// finish gives a partition back.
func (w *writers) finish(p *part) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queues[p.partition].busy = false
	w.list(p.partition)
	w.pending -= len(p.reqs)
	if w.closed && w.pending == 0 {
		w.end()
	}
}

// end says that everything is written; w.mu is held.
func (w *writers) end() {
	select {
	case <-w.drained:
	default:
		close(w.drained)
	}
}

// shut takes nothing more and waits until all that is queued was written or given up.
func (w *writers) shut() {
	w.mu.Lock()
	if w.drained == nil { // never opened
		w.mu.Unlock()
		return
	}
	w.closed, w.since = true, w.d.o.Now()
	if w.pending == 0 {
		w.end()
	}
	w.mu.Unlock()
	<-w.drained
}

// spoil fails the decisions that are queued in a partition under an epoch, and lets the next ones continue its durable
// head.
func (w *writers) spoil(partition int, epoch uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := &w.queues[partition]
	for _, r := range q.reqs {
		if r.decides() && r.err == nil && r.epoch == epoch {
			r.err = err
		}
	}
	if now := w.d.leases.epoch(partition); now == 0 || now == epoch {
		q.last, q.broken = w.d.heads.get(partition).Head, err
	}
}

// acquired begins a partition anew under another epoch: what was decided under an older one is too late.
func (w *writers) acquired(partition int, epoch uint64, until time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := &w.queues[partition]
	for _, r := range q.reqs {
		if r.decides() && r.err == nil && r.epoch != epoch {
			r.err = millrace.ErrFenced
		}
	}
	q.last, q.broken = w.d.heads.get(partition).Head, nil
	w.d.leases.set(partition, epoch, until)
}

// settled returns when everything that was queued in a partition before was written or given up.
func (w *writers) settled(ctx context.Context, partition int) error {
	done := make(chan struct{})
	w.append(&millrace.Batch{Partition: partition}, func(error) { close(done) })
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// giveUp fails a part's decisions from a request on, and what is queued behind them.
func (w *writers) giveUp(p *part, from int, err error) {
	for _, r := range p.reqs[from:] {
		if r.decides() && r.err == nil {
			r.err = err
		}
	}
	w.spoil(p.partition, p.epoch, err)
}

// settle tells those who wait.
func settle(parts []*part) {
	for _, p := range parts {
		for _, r := range p.reqs {
			r.done(r.err)
		}
	}
}

// try writes parts in one transaction, again and again while that may help, and tells those who wait. It returns the
// parts that must be written alone; of those nobody was told yet.
func (w *writers) try(parts []*part) (alone []*part) {
	for attempt := 0; ; attempt++ {
		c := w.build(parts)
		if c.empty() {
			settle(parts)
			return nil
		}
		err := w.d.write(c, parts)
		if err == nil && tried(parts) {
			err = w.d.confirm()
		}
		kind := classify(err)
		switch {
		case kind == faultNone:
			w.d.applied(parts, c)
			settle(parts)
			return nil
		case kind == faultPasses, kind == faultFull:
			w.d.reached(err, true)
			unanswered(parts)
			w.expire(parts, err)
		case kind == faultConflict && w.refuse(parts, conflicting(err)):
			continue // without those whose ids are taken
		case len(parts) > 1:
			return parts
		case kind == faultLocked:
			w.expire(parts, err)
		case kind == faultFenced:
			if w.resolve(parts[0], err) {
				w.d.backlog.end(int64(c.commands.n - c.settled))
				w.d.applied(parts, c)
				settle(parts)
				return nil
			}
			continue
		case live(parts[0]) > 1:
			return parts // one of the requests is at fault, and the others should not fail with it
		default:
			w.reject(parts[0], kind, err)
			continue
		}
		if !w.rest(attempt) {
			w.expire(parts, err)
		}
	}
}

// unanswered notes that what is in parts may have been written.
func unanswered(parts []*part) {
	for _, p := range parts {
		for _, r := range p.reqs {
			r.tried = true
		}
	}
}

// tried says whether something in parts may have been written before.
func tried(parts []*part) bool {
	return slices.ContainsFunc(parts, func(p *part) bool {
		return slices.ContainsFunc(p.reqs, func(r *request) bool { return r.tried && r.err == nil })
	})
}

// rest waits before the next attempt; not where the store closes.
func (w *writers) rest(attempt int) bool {
	select {
	case <-w.d.closing:
		return pause(w.d.ctx, nil, backoff(attempt))
	default:
		return pause(w.d.ctx, w.d.closing, backoff(attempt))
	}
}

// live counts the requests that are not refused.
func live(p *part) int {
	n := 0
	for _, r := range p.reqs {
		if r.err == nil {
			n++
		}
	}
	return n
}

// single writes a part by itself, and its requests one by one where they cannot be written together.
func (w *writers) single(p *part) {
	if w.try([]*part{p}) == nil {
		return
	}
	var failed error
	from := p.from
	for _, r := range p.reqs {
		if failed != nil && r.decides() && r.err == nil {
			r.err = failed
		}
		one := &part{partition: p.partition, reqs: []*request{r}, epoch: p.epoch, from: from}
		w.try([]*part{one})
		switch {
		case !r.decides():
		case r.err != nil:
			failed = r.err
		default:
			from = one.to
		}
	}
}

// refuse fails the acceptances whose ids have another content. It says whether that was all.
func (w *writers) refuse(parts []*part, ids []string) bool {
	if len(ids) == 0 {
		return false
	}
	taken := make(map[string]bool, len(ids))
	for _, id := range ids {
		taken[id] = true
	}
	var found []*request
	for _, p := range parts {
		for _, r := range p.reqs {
			if r.err != nil {
				continue
			}
			for i := range r.batch.Accepted {
				if taken[r.batch.Accepted[i].Command.ID] {
					if r.decides() {
						return false
					}
					found = append(found, r)
				}
			}
			for i := range r.batch.Decisions {
				if taken[r.batch.Decisions[i].Command.ID] {
					return false
				}
			}
		}
	}
	for _, r := range found {
		r.err = millrace.ErrKeyReused
	}
	return len(found) > 0
}

// reject fails the one request of a part that the database will never take.
func (w *writers) reject(p *part, kind fault, err error) {
	for i, r := range p.reqs {
		if r.err != nil {
			continue
		}
		why := fmt.Errorf("%w: %w", millrace.ErrInvalid, err)
		if kind == faultConflict {
			why = &ConflictError{Partition: p.partition, IDs: conflicting(err), Behind: behind(err)}
		}
		if !r.decides() {
			r.err = why
			return
		}
		w.giveUp(p, i, why)
		return
	}
}

// resolve finds out why a part was fenced. It may have been written by an attempt whose answer was lost, which is
// true also when another owner has gone on since: the outcome of the last decision tells. Otherwise its decisions fail,
// or are to be tried again.
func (w *writers) resolve(p *part, err error) (committed bool) {
	for attempt := 0; ; attempt++ {
		committed, rerr := w.d.decided(p)
		if rerr == nil && committed {
			return true
		}
		if rerr == nil && attempt > 0 {
			return false // it may be another database by now, where the part has its place
		}
		if rerr == nil {
			w.d.leases.lose(p.partition, p.epoch)
			w.giveUp(p, 0, fmt.Errorf("%w: %w", millrace.ErrFenced, err))
			return false
		}
		w.d.reached(rerr, false)
		w.expire([]*part{p}, rerr)
		if live(p) == 0 || !w.rest(attempt) {
			return false
		}
	}
}

// expire gives up what was tried for too long. Whether it was written is not known: of acceptances nobody needs to, they
// may be repeated. Decisions cost the partition: only a new owner knows where its log ends.
func (w *writers) expire(parts []*part, err error) {
	now := w.d.o.Now()
	w.mu.Lock()
	closed, since := w.closed, w.since
	w.mu.Unlock()
	late := func(r *request) bool {
		patience := w.d.o.AcceptPatience
		if r.decides() && !r.fresh {
			patience = w.d.o.DecidePatience // its commands are kept, and nobody waits for that
		}
		return now.Sub(r.at) > patience || closed && now.Sub(since) > closeGrace
	}
	why := unavailable(err)
	if classify(err) == faultFull {
		why = errors.Join(millrace.ErrFull, why)
	}
	for _, p := range parts {
		for i, r := range p.reqs {
			switch {
			case r.err != nil || !late(r):
			case !r.decides():
				r.err = why
			default:
				w.d.leases.lose(p.partition, r.epoch)
				w.giveUp(p, i, why)
			}
		}
	}
}
