package localstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/gate"
)

// driver is the embedded backend.
type driver struct {
	o    Options
	root string
	meta millrace.Meta
	lock io.Closer

	files *segmentFiles
	db    *pebble.DB
	known *filter
	j     *journal

	// applyCh carries durable batches from the writer to the indexer, so that the next sync need not wait for Pebble.
	applyCh chan durable
	x       *indexer // the applier's own
	// unflushed is how much journal the applier has indexed since it last made Pebble write its memory table.
	unflushed int64
	tail      tail
	backlog   atomic.Int64

	anchorMu sync.Mutex
	anchor   *anchorFile
	anchored uint64 // the batch that the anchor names

	reads    *gate.Gate
	failed   atomic.Pointer[error]
	diskFull atomic.Bool
	stop     chan struct{}
	wait     sync.WaitGroup
	rebuild  sync.Once // orders to make the index again
	closeErr error
	once     sync.Once
}

// durable is a batch of the journal after its sync.
type durable struct {
	reqs  []*request
	seq   uint64
	end   loc
	chain [32]byte
}

// applyQueue is how many durable batches may wait for the index. One is being applied, one waits, and the writer is
// at the next: more would only hide that Pebble is the slower one.
const applyQueue = 2

// Open opens the store in a folder, or creates it. Only one process may have it open. A journal that has lost or
// changed anything that was acknowledged is refused with [millrace.ErrCorrupt]; a torn end that was never
// acknowledged is cut off; an index that is missing or behind is made from the journal.
func Open(dir string, opts *Options) (*millrace.Store, error) {
	o, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	d := &driver{o: o, root: dir, stop: make(chan struct{}), reads: gate.New()}
	if err := d.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), d.abandon())
	}
	return millrace.NewStore(d), nil
}

func (d *driver) path(name string) string { return d.o.FS.PathJoin(d.root, name) }

func (d *driver) open() (err error) {
	if err := d.o.FS.MkdirAll(d.root, 0o750); err != nil {
		return fmt.Errorf("create folder: %w", err)
	}
	if d.lock, err = d.o.FS.Lock(d.path(lockName)); err != nil {
		return fmt.Errorf("another process has the store open: %w", err)
	}
	a, err := d.loadAnchor()
	if err != nil {
		return err
	}
	dir := d.path(journalDir)
	segments, err := listSegments(d.o.FS, dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(segments) == 0 {
		return fmt.Errorf("%w: the journal is missing: the anchor says that it holds %d batches", millrace.ErrCorrupt, a.seq)
	}
	d.meta = a.meta
	if d.o.Copy != nil && d.meta != *d.o.Copy {
		return fmt.Errorf("%w: the folder holds another store than the one that is copied", millrace.ErrInvalid)
	}
	d.files = &segmentFiles{fs: d.o.FS, dir: dir, open: map[uint64]*segmentFile{}}
	state, err := d.loadIndex()
	if err != nil {
		return err
	}
	r, err := d.recover(segments, a, state)
	if err != nil {
		return err
	}
	return d.begin(r, segments, a)
}

// loadAnchor reads the anchor, after creating the store where there is nothing yet.
func (d *driver) loadAnchor() (*anchor, error) {
	path := d.path(anchorName)
	a, damaged, err := readAnchor(d.o.FS, path)
	if err != nil && errors.Is(err, fs.ErrNotExist) {
		segments, lerr := listSegments(d.o.FS, d.path(journalDir))
		if lerr != nil && !errors.Is(lerr, fs.ErrNotExist) {
			return nil, lerr
		}
		// The index is made after the anchor, so where there is one the store was in use.
		if _, serr := d.o.FS.Stat(d.path(indexDir)); serr == nil {
			return nil, fmt.Errorf("%w: %s is missing, but there is an index: restore the file, or the whole folder from a backup", millrace.ErrCorrupt, anchorName)
		} else if !errors.Is(serr, fs.ErrNotExist) {
			return nil, fmt.Errorf("look for an index: %w", serr)
		}
		facts, herr := holdsFacts(d.o.FS, d.path(journalDir), segments)
		if herr != nil {
			return nil, herr
		}
		if facts {
			return nil, fmt.Errorf("%w: %s is missing, but the journal holds facts: restore the file, or the whole folder from a backup", millrace.ErrCorrupt, anchorName)
		}
		if err := create(&d.o, d.root); err != nil {
			return nil, err
		}
		a, damaged, err = readAnchor(d.o.FS, path)
	}
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, fmt.Errorf("%w: %s: both slots are damaged", millrace.ErrCorrupt, anchorName)
	}
	if damaged > 0 {
		d.o.Logger.Warn("one slot of the anchor is damaged; the other one is used and both are written again")
		d.o.OnRepair(anchorName+": one of the two slots was damaged; the other one is used, and both are written again", true)
	}
	return a, nil
}

// recover reads the journal's newest part, brings the index up to it and checks that both agree.
func (d *driver) recover(segments []uint64, a *anchor, state applied) (*recovered, error) {
	d.known = newFilter(d.o.filterBytes)
	// What the index lacks is added below; where that is everything, the filter knows everything.
	d.known.ready.Store(state.seq == 0)
	d.x = newIndexer(d.db, d.files, d.known, state, nil)
	d.x.state.storeID = d.meta.ID
	replayed := 0
	visit := func(b *scanned) error {
		if d.x.heads == nil {
			h, err := d.headsAt(b.at.segment())
			if err != nil {
				return err
			}
			d.x.heads = h
		}
		if b.header.seq > state.seq {
			replayed++
			return d.x.replay(b)
		}
		if b.header.seq == state.seq && (b.next != state.chain || b.end != state.end) {
			return fmt.Errorf("%w: %s: batch %d is not the one that the index was made from", millrace.ErrCorrupt, b.at, state.seq)
		}
		return b.entries(func(e *entry) error {
			if e.decision == nil {
				return nil
			}
			if err := follow(d.x.heads, &e.record, e.partition, e.decision); err != nil {
				return err
			}
			d.x.heads[e.partition] = e.decision.Head()
			return nil
		})
	}
	r, err := inspect(d.files, segments, a, state.end, visit)
	if err != nil {
		return nil, err
	}
	if state.seq > r.seq {
		return nil, fmt.Errorf("%w: %s: the journal ends with batch %d, but the index was made from %d batches", millrace.ErrCorrupt, r.end, r.seq, state.seq)
	}
	if d.x.heads == nil {
		if d.x.heads, err = d.headsAt(r.segment); err != nil {
			return nil, err
		}
	}
	r.heads = slices.Clone(d.x.heads)
	if replayed > 0 {
		d.o.Logger.Info("index brought up to the journal", "batches", replayed)
	}
	return r, nil
}

// headsAt reads the heads from a segment's header.
func (d *driver) headsAt(segment uint64) ([]millrace.Head, error) {
	s, h, err := newScanner(d.files, segment)
	if err != nil {
		return nil, err
	}
	s.close()
	return slices.Clone(h.heads), nil
}

// begin makes the recovered journal writable and starts the background work.
func (d *driver) begin(r *recovered, segments []uint64, a *anchor) error {
	dir := d.path(journalDir)
	for _, n := range segments {
		if n > r.segment { // prepared, never used
			if err := d.o.FS.Remove(d.o.FS.PathJoin(dir, segmentName(n))); err != nil {
				return fmt.Errorf("remove an unused segment: %w", err)
			}
		}
	}
	d.files.close() // sizes may change below
	f, size, err := cut(&d.o, dir, r)
	if err != nil {
		return err
	}
	if err := syncDir(d.o.FS, dir); err != nil {
		return errors.Join(err, f.Close())
	}
	j := newJournal(&d.o, dir, d.meta)
	j.f, j.seg, j.off, j.size, j.seq, j.chain, j.heads = f, r.segment, r.end.offset(), size, r.seq, r.chain, slices.Clone(r.heads)
	j.queued = slices.Clone(r.heads)
	j.left.Store(j.size - j.off)
	j.fatal, j.deliver = d.fail, d.deliver
	af, err := d.o.FS.OpenReadWrite(d.path(anchorName), journalCategory)
	if err != nil {
		return errors.Join(fmt.Errorf("open %s: %w", anchorName, err), f.Close())
	}
	d.anchor = &anchorFile{f: af, counter: a.counter}
	// From here on the anchor does not say "closed" any more; both slots, so that none of them still does.
	for range 2 {
		if err := d.anchor.write(anchor{meta: d.meta, seq: r.seq, end: r.end, chain: r.chain, heads: r.heads}); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	d.j = j
	d.anchored = r.seq
	d.backlog.Store(d.x.state.backlog)
	d.tail.init(r.end, r.heads, durable{seq: r.seq, end: r.end, chain: r.chain})
	d.applyCh = make(chan durable, applyQueue)
	if !d.o.noBackground {
		j.prep.order(j.seg + 1)
	}
	d.wait.Go(func() { defer close(d.applyCh); j.run() })
	d.wait.Go(d.applyAll)
	if !d.o.noBackground {
		d.wait.Go(func() { j.prepare(d.stop) })
		d.wait.Go(d.keepAnchor)
		d.wait.Go(d.watchDisk)
		if !d.known.ready.Load() {
			d.wait.Go(d.fillFilter)
		}
	}
	return nil
}

// fillFilter makes the filter know an older store. Where it cannot, Pebble goes on answering, and says what is wrong.
func (d *driver) fillFilter() {
	if err := d.known.fill(d.db, d.stop); err != nil {
		d.o.Logger.Warn("the filter of known ids cannot be filled", "error", err)
	}
}

// fail is the end: nothing is acknowledged any more, and the owner is told.
func (d *driver) fail(err error) {
	if d.failed.CompareAndSwap(nil, &err) {
		d.o.Fatal(err)
	}
}

// failure is what the store failed of, or nil.
func (d *driver) failure() error {
	if f := d.failed.Load(); f != nil {
		return *f
	}
	return nil
}

func (d *driver) deliver(reqs []*request, seq uint64, end loc, chain [32]byte) {
	d.applyCh <- durable{reqs, seq, end, chain}
}

// applyAll indexes durable batches and tells those who wait. A batch is acknowledged after it is indexed, so that
// whoever was told can read it.
func (d *driver) applyAll() {
	for b := range d.applyCh {
		// After a failure nothing is acknowledged, not even what reached the disk before it: the index may lack the
		// batch before this one.
		err := d.failure()
		if err == nil {
			if err = d.applied(b); err != nil {
				err = fmt.Errorf("%w: %w", millrace.ErrFailed, err)
				d.fail(err)
			}
		}
		for _, r := range b.reqs {
			if r.err == nil {
				r.err = err
			}
			r.done(r.err)
			d.j.free(r)
		}
	}
}

// kept are the requests that are in the journal.
func (b *durable) kept() []*request {
	refused := func(r *request) bool { return r.err != nil }
	if !slices.ContainsFunc(b.reqs, refused) {
		return b.reqs
	}
	return slices.DeleteFunc(slices.Clone(b.reqs), refused)
}

// applied indexes one durable batch and makes it visible.
func (d *driver) applied(b durable) error {
	b.reqs = b.kept()
	x := d.x
	if len(b.reqs) == 0 || b.seq == x.state.seq { // nothing was written: all were refused, or empty
		return nil
	}
	x.begin()
	events := 0
	for _, r := range b.reqs {
		if err := x.request(r); err != nil {
			return err
		}
		for i := range r.batch.Decisions {
			events += len(r.batch.Decisions[i].Events)
		}
	}
	if err := x.flushSpans(); err != nil {
		return err
	}
	if err := x.commit(b.seq, b.end, b.chain); err != nil {
		return err
	}
	d.backlog.Store(x.state.backlog)
	d.tail.push(&b, events, x.heads)
	return d.flushNow(&b)
}

// flushNow makes Pebble write its memory table now and then, so that a restart has a bounded part of the journal to
// apply again: small records fill the table much more slowly than the journal grows behind large ones.
func (d *driver) flushNow(b *durable) error {
	for _, r := range b.reqs {
		d.unflushed += int64(len(r.chunk))
	}
	if d.unflushed < flushEvery {
		return nil
	}
	d.unflushed = 0
	if _, err := d.db.AsyncFlush(); err != nil {
		return indexError(err)
	}
	return nil
}

// request indexes what one caller committed.
func (x *indexer) request(r *request) error {
	p := r.batch.Partition
	n := 0
	place := func() (loc, int) {
		at := r.at[n]
		n++
		return r.base + loc(at.off), at.size //nolint:gosec // offsets are not negative
	}
	for i := range r.batch.Accepted {
		a := &r.batch.Accepted[i]
		at, _ := place()
		if err := x.accept(p, a.Command, a.Fingerprint, at); err != nil {
			return err
		}
	}
	for i := range r.batch.Decisions {
		d := &r.batch.Decisions[i]
		var command loc
		if d.Fresh {
			command, _ = place()
		}
		at, size := place()
		if err := x.decide(p, d, command, at, size); err != nil {
			return err
		}
	}
	return nil
}

// keepAnchor lets the anchor follow the journal.
func (d *driver) keepAnchor() {
	t := time.NewTicker(d.o.AnchorEvery)
	defer t.Stop()
	for {
		select {
		case <-d.stop:
			return
		case <-t.C:
		}
		if err := d.writeAnchor(false); err != nil {
			d.fail(fmt.Errorf("%w: %w", millrace.ErrFailed, err))
			return
		}
	}
}

// writeAnchor makes the anchor name what is durable by now.
func (d *driver) writeAnchor(clean bool) error {
	last, heads := d.tail.last()
	d.anchorMu.Lock()
	defer d.anchorMu.Unlock()
	if last.seq == d.anchored && !clean {
		return nil
	}
	a := anchor{meta: d.meta, clean: clean, seq: last.seq, end: last.end, chain: last.chain, heads: heads}
	if err := d.anchor.write(a); err != nil {
		return err
	}
	d.anchored = last.seq
	return nil
}

// diskEvery is how often free space is looked at: at 500 MB/s a disk loses 250 MiB in that time.
const diskEvery = 500 * time.Millisecond

// watchDisk refuses new facts before the disk is full, so that Pebble and the journal can finish what they began.
func (d *driver) watchDisk() {
	t := time.NewTicker(diskEvery)
	defer t.Stop()
	for {
		d.checkDisk()
		select {
		case <-d.stop:
			return
		case <-t.C:
		}
	}
}

func (d *driver) checkDisk() {
	usage, err := d.o.FS.GetDiskUsage(d.root)
	if err != nil {
		return // the file system does not tell
	}
	full := usage.AvailBytes < d.o.MinFree
	if d.diskFull.Swap(full) != full {
		d.o.Logger.Warn("disk space", "free", usage.AvailBytes, "refusing", full)
	}
}

// Writable implements millrace.Driver.
func (d *driver) Writable() error {
	if err := d.failure(); err != nil {
		return err
	}
	if err := d.j.state(); err != nil {
		return err
	}
	if d.diskFull.Load() {
		return millrace.ErrFull
	}
	// What is on its way must fit into the present segment where there is no next one.
	if d.j.prep.full.Load() && d.j.left.Load() < min(reserve, d.o.SegmentSize/2) {
		return millrace.ErrFull
	}
	return nil
}

// Append implements millrace.Driver.
func (d *driver) Append(b *millrace.Batch, done func(error)) { d.j.append(b, done) }

// Meta implements millrace.Driver.
func (d *driver) Meta() millrace.Meta { return d.meta }

// Used is what facts take in the journal, the unused rest of its last segment left out, and what the index takes, both
// in bytes on the disk.
func (d *driver) Used() (journal, index int64) {
	head, _ := d.tail.last()
	journal = int64(head.end.segment()-1)*d.o.SegmentSize + head.end.offset() //nolint:gosec // sizes of files
	return journal, int64(d.db.Metrics().DiskSpaceUsage())                    //nolint:gosec // sizes of files
}

// Backlog implements millrace.Driver.
func (d *driver) Backlog() int64 { return d.backlog.Load() }

// Heads implements millrace.Driver.
func (d *driver) Heads() []millrace.Head {
	_, heads := d.tail.last()
	return heads
}

// Close implements millrace.Driver. It writes what is queued, brings the index to the disk and says in the anchor
// that the journal ends here; then it waits for the reads that are under way, so it must not be called within one.
func (d *driver) Close() error {
	d.once.Do(func() { d.closeErr = d.close() })
	return d.closeErr
}

func (d *driver) close() error {
	close(d.stop)
	d.j.shut()
	d.wait.Wait()
	d.tail.wake()
	var errs []error
	if d.failure() == nil {
		errs = append(errs, d.db.Flush())
		for range 2 { // both slots, so that damage to one of them leaves the other
			errs = append(errs, d.writeAnchor(true))
		}
	}
	d.reads.Shut()
	errs = append(errs, d.j.f.Close())
	return errors.Join(append(errs, d.abandon())...)
}

// abandon lets go of everything that is open.
func (d *driver) abandon() error {
	var errs []error
	if d.anchor != nil {
		errs = append(errs, d.anchor.f.Close())
		d.anchor = nil
	}
	if d.db != nil {
		errs = append(errs, closeIndex(d.db))
		d.db = nil
	}
	if d.files != nil {
		d.files.close()
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
		d.lock = nil
	}
	return errors.Join(errs...)
}

// ctxDone says whether a read should stop.
func ctxDone(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	default:
		return nil
	}
}
