// Package localstore is the embedded backend: a journal for facts, Pebble for views.
//
// One append-only journal holds the facts of all partitions. A batch is acknowledged after it was synced, and many
// callers share a sync: while one batch syncs, the next one gathers. Pebble holds the index of the journal and the
// documents. It runs without a log of its own: each of its batches says which batch of the journal it follows, so what a
// crash takes from it is applied again from the journal.
//
// The bytes are described in docs/reference/journal-format.md.
package localstore

import (
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
)

// Options of Open; nil is fine.
type Options struct {
	// FS is the file system. Defaults to the machine's.
	FS vfs.FS
	// Partitions of a new store; an existing store keeps what it was created with. Defaults to 16.
	Partitions int
	// Copy is the identity that a new store takes over: that of the store whose copy it is to be. An existing store must
	// have it already. Defaults to an identity of its own.
	Copy *millrace.Meta
	// SegmentSize of new journal segments in bytes. Defaults to 64 MiB.
	SegmentSize int64
	// CacheSize is Pebble's block cache in bytes. Defaults to 128 MiB.
	CacheSize int64
	// MemTableSize is the size of Pebble's memory tables in bytes, of which there are at most four. Defaults to 128 MiB: documents
	// that change many times, such as orders that are carried through, are then seldom written more than once.
	MemTableSize uint64
	// MinFree is the free space of the disk in bytes below which new facts are refused while reads go on. Defaults to
	// 256 MiB, or nothing where the file system does not tell.
	MinFree uint64
	// AnchorEvery is how far the anchor may be behind the journal. Defaults to 50 ms.
	AnchorEvery time.Duration
	// Logger gets what happens in the background. Defaults to nothing.
	Logger *slog.Logger
	// Fatal is called once when the store can never acknowledge anything again: a write or a sync of the journal
	// failed, or Pebble gave up. The process should end: recovery reads from the disk. Fatal may return.
	// Defaults to a log line and os.Exit(1).
	Fatal func(error)
	// OnRepair is told of what Open found damaged and could mend from what is left. Torn says that a crash explains it: the
	// damage was to something that was just being written. Defaults to nothing; the Logger is told in any case.
	OnRepair func(what string, torn bool)
	// Now is the clock that stamps batches. Defaults to time.Now.
	Now func() time.Time

	// ackEarly acknowledges before anything is written: the fault that crash tests must notice.
	ackEarly bool
	// noBackground leaves out the anchor's and the disk watch's tickers, so that a test decides about each write.
	noBackground bool
	// filterBytes is the size of the filter of known ids: tests open thousands of stores.
	filterBytes int
}

const (
	defaultSegmentSize = 64 << 20
	minSegmentSize     = 64 << 10
	// maxSegmentSize keeps offsets in 32 bits.
	maxSegmentSize = 2 << 30

	// maxBatchBytes bounds what one sync makes durable: a larger batch would make everybody in it wait longer than
	// the sync it saves. A single request may be larger.
	maxBatchBytes = 4 << 20
	// reserve is the room that a segment must have for new facts to be accepted while there is no next one: what may be
	// on its way by then, which the processor bounds.
	reserve = 40 << 20

	// tailEvents and tailBytes bound the newest events that are kept in memory for readers who keep up.
	tailEvents = 32 << 10
	tailBytes  = 32 << 20

	// flushEvery makes Pebble write its memory table after so much journal, which bounds what a restart must apply
	// again: at 200 MB/s about a second.
	flushEvery = 192 << 20
)

func (o *Options) withDefaults() (Options, error) {
	var r Options
	if o != nil {
		r = *o
	}
	if r.FS == nil {
		r.FS = vfs.Default
	}
	if r.Copy != nil {
		r.Partitions = r.Copy.Partitions
	}
	if r.Partitions == 0 {
		r.Partitions = millrace.DefaultPartitions
	}
	if r.Partitions < 1 || r.Partitions > millrace.MaxPartitions {
		return r, errors.New("localstore: partitions must be between 1 and 1024")
	}
	if r.SegmentSize == 0 {
		r.SegmentSize = defaultSegmentSize
	}
	if r.SegmentSize < minSegmentSize || r.SegmentSize > maxSegmentSize {
		return r, errors.New("localstore: segment size must be between 64 KiB and 2 GiB")
	}
	if r.CacheSize == 0 {
		r.CacheSize = 128 << 20
	}
	if r.MemTableSize == 0 {
		r.MemTableSize = 128 << 20
	}
	if r.MinFree == 0 {
		r.MinFree = 256 << 20
	}
	if r.AnchorEvery == 0 {
		r.AnchorEvery = 50 * time.Millisecond
	}
	if r.Logger == nil {
		r.Logger = slog.New(slog.DiscardHandler)
	}
	if r.OnRepair == nil {
		r.OnRepair = func(string, bool) {}
	}
	if r.Now == nil {
		r.Now = time.Now
	}
	if r.Fatal == nil {
		log := r.Logger
		r.Fatal = func(err error) {
			log.Error("store failed; the process ends so that recovery reads from the disk", "error", err)
			os.Exit(1)
		}
	}
	if r.filterBytes == 0 {
		r.filterBytes = filterBytes
	}
	r.ackEarly = r.ackEarly || mutantAckEarly
	return r, nil
}
