package localstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/millrace-io/millrace"
)

// The index is the Pebble side: the first byte of a key says what it is. Everything under prefixes c to q follows
// from the journal; k, d and x are views.
const (
	keyMeta       = 'm' // -> applied
	keyCommand    = 'c' // command id -> commandEntry
	keySpan       = 's' // stream, NUL, first version -> span of the journal that holds these versions
	keyPending    = 'q' // partition, location -> command id
	keyCheckpoint = 'k' // consumer, NUL, partition -> position
	keyDocument   = 'd' // collection, NUL, partition, id -> keys and bytes
	keySort       = 'x' // collection, NUL, index, sort key, NUL NUL, partition, id -> partition, id
)

// applied is the index's own place in the journal. It is written with every batch of the index, so that after a crash
// it says exactly what the index has.
type applied struct {
	seq     uint64
	end     loc
	chain   [32]byte // after batch seq
	backlog int64
	storeID string
}

func (a *applied) encode() []byte {
	b := binary.LittleEndian.AppendUint64(nil, a.seq)
	b = binary.LittleEndian.AppendUint64(b, uint64(a.end))
	b = append(b, a.chain[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(a.backlog)) //nolint:gosec // two's complement
	return append(b, a.storeID...)
}

func decodeApplied(b []byte) (a applied, ok bool) {
	if len(b) < 8+8+32+8 {
		return a, false
	}
	f := fields{b}
	a.seq, a.end, a.chain, a.backlog = f.u64(), loc(f.u64()), f.hash(), int64(f.u64()) //nolint:gosec // two's complement
	a.storeID = string(f.b)
	return a, true
}

// commandEntry is what the index knows of a command.
type commandEntry struct {
	status      millrace.Status
	partition   int
	fingerprint millrace.Fingerprint
	command     loc
	decision    loc // 0 while undecided
}

const commandEntrySize = 1 + 2 + 32 + 8 + 8

func (e *commandEntry) encode(b []byte) []byte {
	b = append(b, byte(e.status))
	b = binary.LittleEndian.AppendUint16(b, uint16(e.partition)) //nolint:gosec // below MaxPartitions
	b = append(b, e.fingerprint[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.command))
	return binary.LittleEndian.AppendUint64(b, uint64(e.decision))
}

func decodeCommandEntry(b []byte) (e commandEntry, err error) {
	if len(b) != commandEntrySize {
		return e, fmt.Errorf("%w: index: command entry of %d bytes", millrace.ErrCorrupt, len(b))
	}
	e.status, e.partition = millrace.Status(b[0]), int(binary.LittleEndian.Uint16(b[1:]))
	copy(e.fingerprint[:], b[3:])
	e.command, e.decision = loc(binary.LittleEndian.Uint64(b[35:])), loc(binary.LittleEndian.Uint64(b[43:]))
	return e, nil
}

// span is a stretch of the journal that holds the versions of one stream from its key's version to last. Records of
// other streams may stand in between.
type span struct {
	at     loc
	length int
	last   uint64
}

func (s *span) encode(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(s.at))
	b = binary.AppendUvarint(b, uint64(s.length)) //nolint:gosec // not negative
	return binary.AppendUvarint(b, s.last)
}

func decodeSpan(b []byte) (s span, err error) {
	bad := fmt.Errorf("%w: index: span entry", millrace.ErrCorrupt)
	if len(b) < 10 {
		return s, bad
	}
	s.at = loc(binary.LittleEndian.Uint64(b))
	n, w := binary.Uvarint(b[8:])
	if w <= 0 || n > maxSegmentSize {
		return s, bad
	}
	s.length = int(n)
	s.last, w = binary.Uvarint(b[8+w:])
	if w <= 0 {
		return s, bad
	}
	return s, nil
}

func commandKey(b []byte, id string) []byte { return append(append(b, keyCommand), id...) }

// appendStream is the part that all span keys of a stream share, and the stream's name in the filter.
func appendStream(b []byte, s millrace.Stream) []byte { return append(append(b, keySpan), s...) }

func spanKey(b []byte, s millrace.Stream, version uint64) []byte {
	b = appendStream(b, s)
	return binary.BigEndian.AppendUint64(append(b, 0), version)
}

func pendingKey(b []byte, partition int, at loc) []byte {
	b = binary.BigEndian.AppendUint16(append(b, keyPending), uint16(partition)) //nolint:gosec // below MaxPartitions
	return binary.BigEndian.AppendUint64(b, uint64(at))
}

// prefixEnd is the first key behind all keys with a prefix.
func prefixEnd(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}

// pebbleLogger passes on what Pebble says. Fatalf must not return: Pebble goes on as if nothing had happened.
type pebbleLogger struct {
	log   *slog.Logger
	fatal func(error)
}

func (l pebbleLogger) Infof(format string, args ...any) {
	l.log.Debug("pebble: " + fmt.Sprintf(format, args...))
}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.log.Error("pebble: " + fmt.Sprintf(format, args...))
}

func (l pebbleLogger) Fatalf(format string, args ...any) {
	err := fmt.Errorf("%w: pebble: %s", millrace.ErrFailed, fmt.Sprintf(format, args...))
	l.fatal(err)
	// The owner's Fatal may return (tests do); this goroutine may not.
	panic(err)
}

func openIndex(dir string, o *Options, fatal func(error), damaged func()) (*pebble.DB, error) {
	cache := pebble.NewCache(o.CacheSize)
	defer cache.Unref()
	po := &pebble.Options{
		FS:    o.FS,
		Cache: cache,
		// The default format opens damaged logs silently.
		FormatMajorVersion:          pebble.FormatNewest,
		DisableWAL:                  true,
		MemTableSize:                o.MemTableSize,
		MemTableStopWritesThreshold: 4,
		// Keys are written once and mostly never again: wide levels and few of them cost less than tidy ones.
		L0CompactionThreshold:      4,
		L0StopWritesThreshold:      24,
		LBaseMaxBytes:              256 << 20,
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
		Logger:                     pebbleLogger{log: o.Logger, fatal: fatal},
	}
	for i := range po.Levels {
		po.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		po.Levels[i].FilterType = pebble.TableFilter
		po.Levels[i].BlockSize = 16 << 10
		po.Levels[i].Compression = func() *block.CompressionProfile { return block.SnappyCompression }
	}
	po.EventListener = &pebble.EventListener{
		BackgroundError: func(err error) { o.Logger.Error("pebble background error", "error", err) },
		// By default Pebble ends the process here. Whoever reads gets the error too and knows more: at open, for instance,
		// the index is made again from the journal.
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			o.Logger.Error("pebble found damage", "file", info.Path, "error", info.Details)
			damaged()
		},
	}
	return openPebble(dir, po)
}

// openPebble opens Pebble and says of its errors which ones mean damage. Everything in it can be made again from the
// journal, so a doubtful case is damage; only a fault of the machine (a system call's error) is not.
func openPebble(dir string, po *pebble.Options) (db *pebble.DB, err error) {
	defer func() {
		// Damaged files make Pebble panic in places.
		if p := recover(); p != nil {
			db, err = nil, fmt.Errorf("%w: index: %v", millrace.ErrCorrupt, p)
		}
	}()
	db, err = pebble.Open(dir, po)
	var errno syscall.Errno
	switch {
	case err == nil:
		return db, nil
	case errors.As(err, &errno) && errno != syscall.ENOENT, errors.Is(err, errorfs.ErrInjected):
		return nil, fmt.Errorf("index: %w", err)
	default:
		return nil, fmt.Errorf("%w: index: %w", millrace.ErrCorrupt, err)
	}
}

// closeIndex closes Pebble, which panics where something still reads from it.
func closeIndex(db *pebble.DB) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("close index: %v", p)
		}
	}()
	return db.Close()
}

// get copies a value out of Pebble; nil where there is none.
func get(r pebble.Reader, key []byte) ([]byte, error) {
	v, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, indexError(err)
	}
	out := bytes.Clone(v)
	if out == nil {
		out = []byte{}
	}
	return out, closer.Close()
}

func indexError(err error) error {
	if pebble.IsCorruptionError(err) {
		return fmt.Errorf("%w: index: %w", millrace.ErrCorrupt, err)
	}
	return fmt.Errorf("index: %w", err)
}

// indexer turns batches of the journal into batches of the index. Recovery and the running store use it alike.
type indexer struct {
	db    *pebble.DB
	files *segmentFiles
	known *filter
	state applied
	heads []millrace.Head

	batch *pebble.Batch
	// commands are the locations of commands that this round's batch has put into the index but not committed yet.
	commands map[string]loc
	spans    map[millrace.Stream]openSpan
	key, val []byte
}

// openSpan is a span that may still grow within the batch at hand.
type openSpan struct {
	first uint64
	span
}

func newIndexer(db *pebble.DB, files *segmentFiles, known *filter, state applied, heads []millrace.Head) *indexer {
	return &indexer{db: db, files: files, known: known, state: state, heads: heads, commands: map[string]loc{}, spans: map[millrace.Stream]openSpan{}}
}

func (x *indexer) begin() { x.batch = x.db.NewBatchWithSize(16 << 10) }

func (x *indexer) set(key, value []byte) error { return x.batch.Set(key, value, nil) }

// accept indexes a command that is kept undecided.
func (x *indexer) accept(partition int, c *millrace.Command, fp millrace.Fingerprint, at loc) error {
	e := commandEntry{status: millrace.StatusAccepted, partition: partition, fingerprint: fp, command: at}
	x.key, x.val = commandKey(x.key[:0], c.ID), e.encode(x.val[:0])
	x.known.add(x.key)
	if err := x.set(x.key, x.val); err != nil {
		return err
	}
	x.commands[c.ID] = at
	x.state.backlog++
	x.key = pendingKey(x.key[:0], partition, at)
	return x.set(x.key, append(x.val[:0], c.ID...))
}

// decide indexes a decision. command is where its command stands, 0 where that was indexed by accept.
func (x *indexer) decide(partition int, d *millrace.Decision, command loc, at loc, size int) error {
	id := d.Command.ID
	if command == 0 {
		var err error
		if command, err = x.settle(partition, id); err != nil {
			return err
		}
	}
	e := commandEntry{status: d.Status, partition: partition, fingerprint: d.Fingerprint, command: command, decision: at}
	x.key, x.val = commandKey(x.key[:0], id), e.encode(x.val[:0])
	if d.Fresh {
		x.known.add(x.key)
	}
	if err := x.set(x.key, x.val); err != nil {
		return err
	}
	if d.Status == millrace.StatusDead {
		if err := x.bury(partition, d, command); err != nil {
			return err
		}
	}
	n := uint64(len(d.Events))
	x.heads[partition] = d.Head()
	if n == 0 {
		return nil
	}
	// One entry for a stream's stretch in this batch, however many decisions it has: a hot stream has hundreds.
	sp, ok := x.spans[d.Command.Stream]
	if !ok {
		sp = openSpan{first: d.Version + 1, span: span{at: at}}
	}
	sp.last = d.Version + n
	sp.length = int(at-sp.at) + size //nolint:gosec // both lie in one batch
	x.spans[d.Command.Stream] = sp
	return nil
}

// bury writes the document of a dead letter. Read back from the journal, a decision does not bring its command along.
func (x *indexer) bury(partition int, d *millrace.Decision, command loc) error {
	if d.Command.Type == "" {
		r, err := x.files.readRecord(command)
		if err != nil {
			return err
		}
		_, c, err := r.command()
		if err != nil {
			return err
		}
		d.Command = &c
	}
	doc, err := d.DeadLetter(partition)
	if err != nil {
		return err
	}
	x.key, x.val, err = put(x.batch, &millrace.Put{Document: doc}, x.key, x.val)
	return err
}

// settle takes an accepted command off the pending ones and says where it stands.
func (x *indexer) settle(partition int, id string) (loc, error) {
	at, ok := x.commands[id]
	if !ok {
		v, err := get(x.db, commandKey(nil, id))
		if err != nil {
			return 0, err
		}
		if v == nil {
			return 0, fmt.Errorf("%w: a decision has no command", millrace.ErrCorrupt)
		}
		e, err := decodeCommandEntry(v)
		if err != nil {
			return 0, err
		}
		at = e.command
	}
	x.state.backlog--
	x.key = pendingKey(x.key[:0], partition, at)
	return at, x.batch.Delete(x.key, nil)
}

// flushSpans writes the spans gathered since the last call: at the end of each batch of the journal.
func (x *indexer) flushSpans() error {
	for stream, sp := range x.spans {
		x.key, x.val = spanKey(x.key[:0], stream, sp.first), sp.encode(x.val[:0])
		if err := x.set(x.key, x.val); err != nil {
			return err
		}
		if sp.first == 1 {
			x.known.add(appendStream(x.key[:0], stream))
		}
	}
	clear(x.spans)
	return nil
}

// commit makes the round visible.
func (x *indexer) commit(seq uint64, end loc, chain [32]byte) error {
	x.state.seq, x.state.end, x.state.chain = seq, end, chain
	if err := x.set([]byte{keyMeta}, x.state.encode()); err != nil {
		return err
	}
	err := x.batch.Commit(pebble.NoSync)
	x.batch = nil
	clear(x.commands)
	if err != nil {
		return indexError(err)
	}
	return nil
}

// follow checks that a decision continues its partition's log: position and chain.
func follow(heads []millrace.Head, r *record, partition int, d *millrace.Decision) error {
	if partition >= len(heads) {
		return r.corrupt("the record's partition does not exist")
	}
	h := heads[partition]
	if d.Position != h.Position || d.Chain != millrace.NextChain(h.Chain, d.Encoded) {
		return r.corrupt(fmt.Sprintf("the decision does not continue partition %d", partition))
	}
	return nil
}

// entry is a record of the journal, decoded. Either Accept or Decision is set; a fresh decision brings its command.
type entry struct {
	partition int
	command   *millrace.Command // of an acceptance, or of a fresh decision
	commandAt loc
	decision  *millrace.Decision
	record    record
}

// entries decodes the records of a batch. A command that the next record decides comes with that decision.
func (b *scanned) entries(yield func(*entry) error) error {
	var waiting *entry
	flush := func() error {
		if waiting == nil {
			return nil
		}
		w := waiting
		waiting = nil
		return yield(w)
	}
	err := b.records(func(r record) error {
		switch r.kind {
		case recordCommand:
			if err := flush(); err != nil {
				return err
			}
			p, c, err := r.command()
			if err != nil {
				return err
			}
			waiting = &entry{partition: p, command: &c, commandAt: r.at, record: r}
			return nil
		case recordDecision:
			p, d, err := r.decision()
			if err != nil {
				return err
			}
			e := &entry{partition: p, decision: &d, record: r}
			if d.Fresh {
				if waiting == nil || waiting.command.ID != d.Command.ID {
					return r.corrupt("the decision's command is not in the record before")
				}
				e.command, e.commandAt = waiting.command, waiting.commandAt
				waiting = nil
			} else if err := flush(); err != nil {
				return err
			}
			return yield(e)
		default:
			return r.corrupt("unknown record type")
		}
	})
	if err != nil {
		return err
	}
	return flush()
}

// replay indexes a batch as it stands in the journal.
func (x *indexer) replay(b *scanned) error {
	x.begin()
	err := b.entries(func(e *entry) error {
		if e.decision == nil {
			return x.accept(e.partition, e.command, e.command.Fingerprint(), e.commandAt)
		}
		if err := follow(x.heads, &e.record, e.partition, e.decision); err != nil {
			return err
		}
		return x.decide(e.partition, e.decision, e.commandAt, e.record.at, e.record.size)
	})
	if err != nil {
		return err
	}
	if err := x.flushSpans(); err != nil {
		return err
	}
	return x.commit(b.header.seq, b.end, b.next)
}
