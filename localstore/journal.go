package localstore

import (
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
)

// journalCategory labels the journal's writes for vfs implementations that count them.
const journalCategory = vfs.DiskWriteCategory("millrace-journal")

// request is one batch of a partition on its way to the disk.
type request struct {
	batch *millrace.Batch
	chunk []byte // its records, encoded by the caller's goroutine
	at    []recordPlace
	done  func(error)
	err   error // why it is refused; it keeps its place in the queue, so that done is called in order
	base  loc   // where the chunk begins; set by the writer
}

// recordPlace is where a record stands in its chunk.
type recordPlace struct{ off, size int }

// journal is the writing side: requests gather while a batch syncs, then all of them become the next batch.
// One goroutine writes, so that a batch is only written after the one before is durable: whatever stands behind a
// damaged batch proves that the damage is no torn write.
type journal struct {
	o     *Options
	dir   string
	meta  millrace.Meta
	fatal func(error)
	// deliver gets the requests of a durable batch and those that failed or were refused, in the order of append.
	deliver func(reqs []*request, seq uint64, end loc, chain [32]byte)

	mu      sync.Mutex
	work    sync.Cond // there is something to write, or the journal closes
	queue   []*request
	closing bool
	ended   bool  // the writer is gone
	err     error // set once: nothing is acknowledged any more

	// queued are the heads behind what was appended. Only a partition's owner touches its own.
	queued []millrace.Head

	// The writer's own.
	f     vfs.File
	seg   uint64
	off   int64
	size  int64
	left  atomic.Int64 // room in the segment, for Writable
	seq   uint64
	chain [32]byte
	heads []millrace.Head
	buf   []byte
	held  []*request // mutant only

	used sync.Pool // of requests
	prep preparer
}

// preparer makes the next segment ready in the background: filled with zeros and synced, so that writing to it needs
// no new blocks and a sync no metadata (measured: 102 instead of 160 µs a sync), and so that a full disk shows while
// there is still room in the present segment.
type preparer struct {
	mu    sync.Mutex
	ready uint64      // the segment that is ready, 0 for none
	full  atomic.Bool // the last try failed because the disk is full
	want  chan uint64
}

func newJournal(o *Options, dir string, meta millrace.Meta) *journal {
	j := &journal{o: o, dir: dir, meta: meta}
	j.work.L = &j.mu
	j.prep.want = make(chan uint64, 1)
	return j
}

// encode lays out the records of a batch. It runs in the caller's goroutine, so that several callers share the work.
func (r *request) encode() {
	b, size := r.batch, 0
	for i := range b.Accepted {
		size += commandSize(b.Accepted[i].Command)
	}
	for i := range b.Decisions {
		d := &b.Decisions[i]
		size += recordOverhead + 2 + 32 + 1 + len(d.Encoded)
		if d.Fresh {
			size += commandSize(d.Command)
		}
	}
	r.chunk = slices.Grow(r.chunk, size)
	r.at = slices.Grow(r.at, len(b.Accepted)+2*len(b.Decisions))
	place := func(start int) { r.at = append(r.at, recordPlace{start, len(r.chunk) - start}) }
	for i := range b.Accepted {
		start := len(r.chunk)
		r.chunk = appendCommandRecord(r.chunk, b.Partition, b.Accepted[i].Command)
		place(start)
	}
	for i := range b.Decisions {
		d := &b.Decisions[i]
		if d.Fresh {
			start := len(r.chunk)
			r.chunk = appendCommandRecord(r.chunk, b.Partition, d.Command)
			place(start)
		}
		start := len(r.chunk)
		r.chunk = appendDecisionRecord(r.chunk, b.Partition, d)
		place(start)
	}
}

// maxPooledChunk is the largest chunk that is kept for later requests: dozens of orders.
const maxPooledChunk = 64 << 10

// newRequest takes a used one where there is one: a request lives for one sync only.
func (j *journal) newRequest(b *millrace.Batch) *request {
	r, ok := j.used.Get().(*request)
	if !ok {
		r = &request{}
	}
	r.batch = b
	return r
}

// free takes a request back that nobody looks at any more.
func (j *journal) free(r *request) {
	if cap(r.chunk) > maxPooledChunk {
		return
	}
	*r = request{chunk: r.chunk[:0], at: r.at[:0]}
	j.used.Put(r)
}

// commandSize is an upper bound of a command record's size.
func commandSize(c *millrace.Command) int {
	return recordOverhead + 64 + len(c.ID) + len(c.Stream) + len(c.Type) + len(c.CorrelationID) + len(c.CausationID) + len(c.Source) + len(c.Data)
}

// append queues a batch.
func (j *journal) append(b *millrace.Batch, done func(error)) {
	r := j.newRequest(b)
	err := j.check(b)
	if err == nil {
		if r.encode(); len(r.chunk) > j.capacity() {
			err = fmt.Errorf("%w: a batch of %d bytes does not fit into a segment", millrace.ErrInvalid, len(r.chunk))
		}
	}
	r.done, r.err = done, err
	if n := len(b.Decisions); n > 0 && err == nil {
		d := &b.Decisions[n-1]
		j.queued[b.Partition] = d.Head()
	}
	j.mu.Lock()
	if j.ended {
		j.mu.Unlock()
		go done(millrace.ErrClosed) // never in the caller's own goroutine: it may hold what done needs
		return
	}
	if r.err == nil {
		r.err = j.stopped()
	}
	j.queue = append(j.queue, r)
	j.mu.Unlock()
	j.work.Signal()
}

// check says why a batch must not be written. What does not continue its partition would make the journal one that
// recovery refuses; it comes from a caller who went on after a batch of his was refused.
func (j *journal) check(b *millrace.Batch) error {
	if b.Partition < 0 || b.Partition >= j.meta.Partitions {
		return fmt.Errorf("%w: the store has no such partition", millrace.ErrInvalid)
	}
	if len(b.Decisions) == 0 {
		return nil
	}
	head := j.queued[b.Partition]
	for i := range b.Decisions {
		d := &b.Decisions[i]
		if d.Position != head.Position || i == 0 && b.Prev != head.Chain {
			return fmt.Errorf("%w: the decisions do not continue partition %d", millrace.ErrInvalid, b.Partition)
		}
		head.Position += uint64(len(d.Events))
	}
	return nil
}

// capacity is the largest payload that a segment can hold.
func (j *journal) capacity() int {
	return int(j.o.SegmentSize) - headerSize(j.meta.Partitions) - batchHeaderSize - batchAlign
}

// stopped says why nothing is taken any more; j.mu is held.
func (j *journal) stopped() error {
	if j.err != nil {
		return j.err
	}
	if j.closing {
		return millrace.ErrClosed
	}
	return nil
}

// run writes batches until the journal is closed and its queue is empty. After a failed write it only hands on the
// refusals.
func (j *journal) run() {
	for {
		reqs := j.gather()
		if reqs == nil {
			if len(j.held) > 0 {
				j.writeOrFail(j.held)
				j.deliver(j.held, j.seq, j.end(), j.chain)
			}
			return
		}
		if j.o.ackEarly {
			// The control of the crash tests: acknowledged at once, written when the next batch comes.
			for _, r := range reqs {
				done := r.done
				r.done = func(error) {}
				done(r.err)
			}
			if j.held, reqs = reqs, j.held; len(reqs) == 0 {
				continue
			}
		}
		j.writeOrFail(reqs)
		j.deliver(reqs, j.seq, j.end(), j.chain)
	}
}

func (j *journal) end() loc { return makeLoc(j.seg, j.off) }

// gather takes what waits, up to the size of a batch; nil when the journal is closed.
func (j *journal) gather() []*request {
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.queue) == 0 {
		if j.closing {
			j.ended = true
			return nil
		}
		j.work.Wait()
	}
	n, size := 0, 0
	limit := min(maxBatchBytes, j.capacity())
	for n < len(j.queue) && (n == 0 || size+len(j.queue[n].chunk) <= limit) {
		size += len(j.queue[n].chunk)
		n++
	}
	reqs := j.queue[:n:n]
	if n == len(j.queue) {
		j.queue = nil
	} else {
		j.queue = j.queue[n:]
	}
	return reqs
}

// writeOrFail makes a batch durable, or sets the error of its requests. After a fault nothing is acknowledged any more:
// what the file holds now is unknown, and a second sync may claim success for what the first one lost.
func (j *journal) writeOrFail(reqs []*request) {
	j.mu.Lock()
	err := j.err
	j.mu.Unlock()
	if err == nil {
		if err = j.write(reqs); err == nil {
			return
		}
		err = fmt.Errorf("%w: %w", millrace.ErrFailed, err)
		j.mu.Lock()
		j.err = err
		j.mu.Unlock()
		j.fatal(err)
	}
	for _, r := range reqs {
		if r.err == nil {
			r.err = err
		}
	}
}

// write lays the requests out as one batch, writes and syncs it.
func (j *journal) write(reqs []*request) error {
	h := batchHeader{seq: j.seq + 1, time: j.o.Now(), prev: j.chain}
	for _, r := range reqs {
		if r.err == nil {
			h.length += len(r.chunk)
			h.records += len(r.at)
		}
	}
	if h.records == 0 {
		return nil
	}
	if j.off+int64(h.size()) > j.size {
		if err := j.roll(); err != nil {
			return err
		}
	}
	b := append(j.buf[:0], make([]byte, batchHeaderSize)...)
	for _, r := range reqs {
		if r.err != nil {
			continue
		}
		r.base = makeLoc(j.seg, j.off+int64(len(b)))
		b = append(b, r.chunk...)
	}
	h.crc = crc32.Checksum(b[batchHeaderSize:], castagnoli)
	b = append(b, make([]byte, h.size()-len(b))...)
	next := h.put(b)
	// Zeros up to the end of the page, which are there already: so the kernel never has to read a page in to change a part
	// of it. The file was filled past its cache.
	end := min(roundUp(int(j.off)+len(b), pageSize), int(j.size))
	padded := append(b, make([]byte, end-int(j.off)-len(b))...)
	j.buf = padded
	n, err := j.f.WriteAt(padded, j.off)
	if err != nil {
		return fmt.Errorf("write %s: %w", j.end(), err)
	}
	if n != len(padded) {
		return fmt.Errorf("write %s: %d of %d bytes written", j.end(), n, len(padded))
	}
	if err := j.f.SyncData(); err != nil {
		return fmt.Errorf("sync %s: %w", j.end(), err)
	}
	j.off += int64(len(b))
	j.left.Store(j.size - j.off)
	j.seq, j.chain = h.seq, next
	for _, r := range reqs {
		if n := len(r.batch.Decisions); n > 0 && r.err == nil {
			d := &r.batch.Decisions[n-1]
			j.heads[r.batch.Partition] = d.Head()
		}
	}
	if cap(j.buf) > 2*maxBatchBytes {
		j.buf = nil
	}
	return nil
}

// roll goes on in the next segment. Its header is synced before its first batch, so that a valid batch behind a bad
// header is damage, not a torn write.
func (j *journal) roll() error {
	next := j.seg + 1
	if err := j.prep.take(next, j); err != nil {
		return err
	}
	old := j.f
	if err := j.openSegment(next); err != nil {
		return err
	}
	if err := old.Close(); err != nil {
		return fmt.Errorf("close %s: %w", segmentName(next-1), err)
	}
	return nil
}

// openSegment writes the header of a segment that exists and is empty, and makes it the present one.
func (j *journal) openSegment(n uint64) error {
	path := j.o.FS.PathJoin(j.dir, segmentName(n))
	f, err := j.o.FS.OpenReadWrite(path, journalCategory)
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	h := segmentHeader{meta: j.meta, segment: n, firstSeq: j.seq + 1, prev: j.chain, heads: j.heads}
	b := h.encode()
	if _, err := f.WriteAt(b, 0); err != nil {
		return errors.Join(fmt.Errorf("write segment header: %w", err), f.Close())
	}
	if err := f.SyncData(); err != nil {
		return errors.Join(fmt.Errorf("sync segment header: %w", err), f.Close())
	}
	j.f, j.seg, j.off, j.size = f, n, int64(len(b)), j.o.SegmentSize
	j.left.Store(j.size - j.off)
	j.prep.order(n + 1)
	return nil
}

// order asks for a segment to be prepared.
func (p *preparer) order(n uint64) {
	select {
	case p.want <- n:
	default: // one is on order already
	}
}

// take waits for a try at the segment that is under way, and makes the segment itself where there was none.
func (p *preparer) take(n uint64, j *journal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ready == n {
		return nil
	}
	return p.make(n, j)
}

// make creates a segment full of zeros; p.mu is held.
func (p *preparer) make(n uint64, j *journal) error {
	err := createSegment(j.o, j.dir, n)
	p.full.Store(errors.Is(err, syscall.ENOSPC))
	if err == nil {
		p.ready = n
	}
	return err
}

// pageSize is the kernel's page, or a part of it.
const pageSize = 4096

// fillChunk is how much of a new segment is written at once.
const fillChunk = 1 << 20

// createSegment makes an empty segment durable: zeros to its full size, and its name in the directory. A file of that
// name is a leftover of an interrupted try.
func createSegment(o *Options, dir string, n uint64) (err error) {
	path := o.FS.PathJoin(dir, segmentName(n))
	f, err := o.FS.Create(path, journalCategory)
	if err != nil {
		return fmt.Errorf("create segment: %w", err)
	}
	defer func() {
		if err != nil {
			// Nothing points to it yet; the next try begins anew.
			_ = o.FS.Remove(path)
		}
	}()
	if err := fill(o, f, path); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync segment: %w", err), f.Close())
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("close segment: %w", err)
	}
	return syncDir(o.FS, dir)
}

// fill writes zeros to a new segment.
func fill(o *Options, f vfs.File, path string) error {
	if o.FS == vfs.Default {
		if done, err := fillDirect(path, o.SegmentSize); done || err != nil {
			return err
		}
	}
	buf := make([]byte, min(o.SegmentSize, fillChunk))
	for left := o.SegmentSize; left > 0; {
		clear(buf) // a vfs.File may write to what it is given
		n, err := f.Write(buf[:min(left, fillChunk)])
		if err != nil {
			return fmt.Errorf("fill segment: %w", err)
		}
		left -= int64(n)
	}
	return nil
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	if err := d.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync directory: %w", err), d.Close())
	}
	return d.Close()
}

// retryPrepare is how long a failed preparation waits for its next try: a full disk seldom empties faster.
const retryPrepare = time.Second

// prepare runs in the background and makes the segments that are ordered. A failure is no failure of the store: it
// is tried again, and the writer tries itself when it gets there.
func (j *journal) prepare(stop <-chan struct{}) {
	for {
		var n uint64
		select {
		case <-stop:
			return
		case n = <-j.prep.want:
		}
		for {
			j.prep.mu.Lock()
			var err error
			if j.prep.ready < n {
				err = j.prep.make(n, j)
			}
			j.prep.mu.Unlock()
			if err == nil {
				break
			}
			j.o.Logger.Warn("cannot prepare the next journal segment", "segment", n, "error", err)
			t := time.NewTimer(retryPrepare)
			select {
			case <-stop:
				t.Stop()
				return
			case <-t.C:
			}
		}
	}
}

// close writes what is queued and ends the writer. The caller has seen run return.
func (j *journal) shut() {
	j.mu.Lock()
	j.closing = true
	j.mu.Unlock()
	j.work.Broadcast()
}

// state says why nothing can be written, or nil.
func (j *journal) state() error {
	j.mu.Lock()
	err := j.stopped()
	j.mu.Unlock()
	return err
}
