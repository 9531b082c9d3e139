package localstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
)

// anchor is the journal's head, kept apart from the journal. A journal that is shorter than its anchor has lost
// something. It has two slots that are written in turn, so that a torn write leaves the other one.
type anchor struct {
	meta    millrace.Meta
	counter uint64
	clean   bool // the store was closed: the journal ends exactly here
	seq     uint64
	end     loc // where the batch seq ends
	chain   [32]byte
	heads   []millrace.Head
}

const anchorName = "ANCHOR"

func anchorSlotSize(partitions int) int {
	return roundUp(anchorFixed+headSize*partitions+checksumLength, blockSize)
}

func (a *anchor) encode() []byte {
	size := anchorSlotSize(a.meta.Partitions)
	b := make([]byte, 0, size)
	b = append(b, anchorMagic...)
	b = binary.LittleEndian.AppendUint32(b, formatVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(a.meta.Partitions)) //nolint:gosec // bounded
	b = binary.LittleEndian.AppendUint64(b, a.counter)
	if a.clean {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	b = binary.LittleEndian.AppendUint64(b, a.seq)
	b = binary.LittleEndian.AppendUint64(b, uint64(a.end))
	b = append(b, a.chain[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(a.meta.Epoch)) //nolint:gosec // one for each restore
	b = appendID(b, a.meta.ID)
	b = appendHeads(b, a.heads)
	return seal(b, size)
}

func decodeAnchor(b []byte) (*anchor, bool) {
	if len(b) < blockSize || string(b[:8]) != anchorMagic {
		return nil, false
	}
	partitions := int(binary.LittleEndian.Uint32(b[12:]))
	if partitions < 1 || partitions > millrace.MaxPartitions {
		return nil, false
	}
	size := anchorSlotSize(partitions)
	if len(b) < size || !unseal(b[:size]) || binary.LittleEndian.Uint32(b[8:]) != formatVersion {
		return nil, false
	}
	f := fields{b[16:]}
	a := &anchor{counter: f.u64()}
	a.meta.Partitions = partitions
	a.clean = f.take(1)[0] == 1
	a.seq, a.end = f.u64(), loc(f.u64())
	a.chain = f.hash()
	a.meta.Epoch, a.meta.ID = uint64(f.u32()), f.id()
	a.heads = f.heads(partitions)
	return a, true
}

// readAnchor returns the newer valid slot, and how many of the two slots are damaged (present, but not readable).
func readAnchor(fs vfs.FS, path string) (a *anchor, damaged int, err error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if st.Size() > 2*int64(anchorSlotSize(millrace.MaxPartitions)) {
		return nil, 2, nil
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, fmt.Errorf("read %s: %w", anchorName, err)
	}
	half := len(b) / 2
	for _, slot := range [][]byte{b[:half], b[half:]} {
		got, ok := decodeAnchor(slot)
		if !ok {
			damaged++
			continue
		}
		if a == nil || got.counter > a.counter {
			a = got
		}
	}
	return a, damaged, nil
}

// anchorFile writes slots in turn.
type anchorFile struct {
	f       vfs.File
	counter uint64
	err     error // of a write that failed: the slot may be torn, so the other one must stay as it is
}

// write makes an anchor durable. A slot is chosen by the counter, so the newest one is never overwritten.
func (w *anchorFile) write(a anchor) error {
	if w.err == nil {
		w.err = w.put(a)
	}
	return w.err
}

func (w *anchorFile) put(a anchor) error {
	w.counter++
	a.counter = w.counter
	b := a.encode()
	if _, err := w.f.WriteAt(b, int64(len(b))*int64(w.counter%2)); err != nil {
		return fmt.Errorf("write %s: %w", anchorName, err)
	}
	if err := w.f.SyncData(); err != nil {
		return fmt.Errorf("sync %s: %w", anchorName, err)
	}
	return nil
}
