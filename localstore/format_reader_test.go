package localstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/google/go-cmp/cmp"
)

// A reader of the journal, written from docs/reference/journal-format.md alone: it shares nothing with the package, so
// the page is complete as long as this test passes.

type strangersReader struct {
	*manifest
	commands   map[string]*manifestCommand
	partitions [][]manifestEvent
	seq        uint64
	chain      []byte
	heads      []strangersHead
}

type strangersHead struct {
	position uint64
	chain    []byte
}

var errFormat = errors.New("not as the page says")

// bad fails the reading; the reader runs under a recover.
func bad(format string, args ...any) {
	panic(fmt.Errorf("%w: "+format, append([]any{errFormat}, args...)...))
}

func want(ok bool, format string, args ...any) {
	if !ok {
		bad(format, args...)
	}
}

func crc32c(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// bytesOf walks over a buffer.
type bytesOf struct{ b []byte }

func (r *bytesOf) next(n int) []byte {
	want(n >= 0 && n <= len(r.b), "ends early")
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}
func (r *bytesOf) u8() byte    { return r.next(1)[0] }
func (r *bytesOf) u16() int    { return int(binary.LittleEndian.Uint16(r.next(2))) }
func (r *bytesOf) u32() uint32 { return binary.LittleEndian.Uint32(r.next(4)) }
func (r *bytesOf) u64() uint64 { return binary.LittleEndian.Uint64(r.next(8)) }
func (r *bytesOf) time() string {
	return time.Unix(0, int64(r.u64())).UTC().Format(nanos) //nolint:gosec // two's complement
}

func (r *bytesOf) uvarint() uint64 {
	v := uint64(0)
	for shift := 0; ; shift += 7 {
		b := r.u8()
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
}

func (r *bytesOf) string() string { return string(r.next(int(r.uvarint()))) } //nolint:gosec // next checks

func (r *bytesOf) heads(n int) (out []strangersHead) {
	for range n {
		out = append(out, strangersHead{r.u64(), r.next(32)})
	}
	return out
}

func readJournal(dir string) (m *manifest, err error) {
	defer func() {
		if p := recover(); p != nil {
			var ok bool
			if err, ok = p.(error); !ok || !errors.Is(err, errFormat) {
				panic(p)
			}
		}
	}()
	r := &strangersReader{manifest: &manifest{}, commands: map[string]*manifestCommand{}, chain: make([]byte, 32)}
	for n := 1; ; n++ {
		b, err := os.ReadFile(filepath.Join(dir, "journal", fmt.Sprintf("%016d.mrj", n))) //nolint:gosec // a test's file
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, err
		}
		r.segment(uint64(n), b)
	}
	r.anchor(dir)
	for _, h := range r.heads {
		r.Heads = append(r.Heads, manifestHead{h.position, hex.EncodeToString(h.chain)})
	}
	for _, id := range slices.Sorted(maps.Keys(r.commands)) {
		c := r.commands[id]
		if c.Status == "accepted" {
			r.Backlog++
		}
		r.Commands = append(r.Commands, *c)
	}
	for _, events := range r.partitions {
		r.Events = append(r.Events, events...)
	}
	return r.manifest, nil
}

func (r *strangersReader) segment(n uint64, b []byte) {
	h := bytesOf{b}
	want(string(h.next(8)) == "MRJSEG01", "segment %d: magic", n)
	want(h.u32() == 1, "segment %d: version", n)
	size := int(h.u32())
	epoch, number, first, partitions := h.u64(), h.u64(), h.u64(), int(h.u32())
	want(size == (141+40*partitions+4+4095)/4096*4096, "segment %d: header size %d", n, size)
	want(crc32c(b[:size-4]) == binary.LittleEndian.Uint32(b[size-4:]), "segment %d: checksum", n)
	prev := h.next(32)
	idLength := int(h.u8())
	id := string(h.next(64)[:idLength])
	heads := h.heads(partitions)
	if n == 1 {
		r.ID, r.Epoch, r.Partitions, r.seq, r.heads = id, epoch, partitions, 1, heads
		r.partitions = make([][]manifestEvent, partitions)
		for _, h := range heads {
			want(h.position == 0 && bytes.Equal(h.chain, make([]byte, 32)), "the first head is not zero")
		}
	}
	want(number == n && id == r.ID && epoch == r.Epoch && partitions == r.Partitions, "segment %d: belongs elsewhere", n)
	want(first == r.seq && bytes.Equal(prev, r.chain), "segment %d: does not continue", n)
	for p, h := range heads {
		want(h.position == r.heads[p].position && bytes.Equal(h.chain, r.heads[p].chain), "segment %d: head of partition %d", n, p)
	}
	off := size
	for off+72 <= len(b) && binary.LittleEndian.Uint32(b[off:]) == 0x424a524d {
		off += r.batch(b[off:])
	}
	for _, x := range b[off:] {
		want(x == 0, "segment %d: something behind the last batch", n)
	}
}

func (r *strangersReader) batch(b []byte) int {
	h := bytesOf{b}
	want(string(h.next(4)) == "MRJB", "batch magic")
	length, seq := int(h.u32()), h.u64()
	_ = h.time()
	records, sum := int(h.u32()), h.u32()
	want(seq == r.seq, "batch %d when %d was due", seq, r.seq)
	want(bytes.Equal(h.next(32), r.chain), "batch %d: chain", seq)
	want(h.u32() == crc32c(b[:64]) && h.u32() == 0, "batch %d: header checksum", seq)
	payload := h.next(length)
	want(crc32c(payload) == sum, "batch %d: payload checksum", seq)
	chain := sha256.Sum256(b[:64])
	r.seq, r.chain = seq+1, chain[:]
	p := bytesOf{payload}
	before := ""
	for range records {
		before = r.record(&p, before)
	}
	want(len(p.b) == 0, "batch %d: bytes behind the last record", seq)
	return (72 + length + 7) / 8 * 8
}

// record reads one record. before is the id of the command in the record before, if it was one.
func (r *strangersReader) record(p *bytesOf, before string) string {
	n, sum := int(p.u32()), p.u32()
	typeAndBody := p.next(n + 1)
	want(crc32c(typeAndBody) == sum, "record checksum")
	body := bytesOf{typeAndBody[1:]}
	partition := body.u16()
	if typeAndBody[0] == 1 {
		c := readStrangersCommand(&body)
		want(xxhash.Sum64String(c.Stream)%uint64(r.Partitions) == uint64(partition), "%s: partition", c.ID) //nolint:gosec // small
		c.Partition = partition
		r.commands[c.ID] = c
		return c.ID
	}
	want(typeAndBody[0] == 2, "record type %d", typeAndBody[0])
	r.decision(partition, &body, before)
	return ""
}

func readStrangersCommand(b *bytesOf) *manifestCommand {
	want(b.u8() == 1, "command encoding")
	c := &manifestCommand{ID: b.string(), Stream: b.string(), Type: b.string(), Time: b.time(), Status: "accepted"}
	if b.u8() == 1 {
		v := b.uvarint()
		c.Expected = &v
	}
	c.CorrelationID, c.CausationID, c.Source, c.Data = b.string(), b.string(), b.string(), b.string()
	want(len(b.b) == 0, "%s: bytes behind the command", c.ID)
	var text []byte
	for _, s := range []string{c.Stream, c.Type, c.Data} {
		text = append(binary.AppendUvarint(text, uint64(len(s))), s...)
	}
	sum := sha256.Sum256(text)
	c.Fingerprint, c.DecidedAt = hex.EncodeToString(sum[:]), c.Time
	return c
}

func (r *strangersReader) decision(partition int, b *bytesOf, before string) {
	chain, where := b.next(32), b.u8()
	head := &r.heads[partition]
	sum := sha256.Sum256(slices.Concat(head.chain, b.b))
	want(bytes.Equal(sum[:], chain), "the chain of partition %d", partition)
	want(b.u8() == 1, "decision encoding")
	id := b.string()
	want(where == 1 && before == id || where == 2, "%s: where its command is", id)
	c := r.commands[id]
	want(c != nil && c.Status == "accepted", "%s: a decision without a command", id)
	want(hex.EncodeToString(b.next(32)) == c.Fingerprint, "%s: fingerprint", id)
	want(b.string() == c.Stream, "%s: stream", id)
	want(b.string() == c.CorrelationID, "%s: correlation", id)
	status := b.u8()
	c.Position, c.Version, c.DecidedAt = b.uvarint(), b.uvarint(), b.time()
	want(c.Position == head.position, "%s: position %d", id, c.Position)
	c.Events = int(b.uvarint()) //nolint:gosec // small
	for range c.Events {
		c.Position++
		c.Version++
		r.partitions[partition] = append(r.partitions[partition], manifestEvent{
			Partition: partition, Position: c.Position, Stream: c.Stream, Version: c.Version, Type: b.string(), Data: b.string(),
			Time: c.DecidedAt, CommandID: id, CorrelationID: c.CorrelationID,
		})
	}
	switch status {
	case 2:
		c.Status = "decided"
	case 3:
		c.Status = "refused"
		c.Answer = []string{fmt.Sprint(b.u8()), b.string(), b.string()}
		for range b.uvarint() {
			c.Answer = append(c.Answer, b.string(), b.string())
		}
	case 4:
		c.Status = "dead"
		c.Answer = []string{b.string(), b.string(), fmt.Sprint(b.uvarint())}
	default:
		bad("%s: status %d", id, status)
	}
	want(len(b.b) == 0, "%s: bytes behind the decision", id)
	head.position, head.chain = c.Position, chain
}

func (r *strangersReader) anchor(dir string) {
	file, err := os.ReadFile(filepath.Join(dir, "ANCHOR")) //nolint:gosec // a test's file
	want(err == nil, "anchor: %v", err)
	size := (142 + 40*r.Partitions + 4 + 4095) / 4096 * 4096
	want(len(file) == 2*size, "anchor of %d bytes", len(file))
	for i := range 2 {
		slot := file[i*size:][:size]
		want(crc32c(slot[:size-4]) == binary.LittleEndian.Uint32(slot[size-4:]), "anchor: checksum of slot %d", i)
		a := bytesOf{slot}
		want(string(a.next(8)) == "MRJANC01" && a.u32() == 1 && int(a.u32()) == r.Partitions, "anchor: slot %d", i)
		want(a.u64()%2 == uint64(i), "anchor: counter of slot %d", i)
		want(a.u8() == 1 && a.u64() == r.seq-1, "anchor: the store was closed at another batch")
		_ = a.u64()
		want(bytes.Equal(a.next(32), r.chain) && uint64(a.u32()) == r.Epoch, "anchor: chain")
		idLength := int(a.u8())
		want(string(a.next(64)[:idLength]) == r.ID, "anchor: store")
		for p, h := range a.heads(r.Partitions) {
			want(h.position == r.heads[p].position && bytes.Equal(h.chain, r.heads[p].chain), "anchor: head of partition %d", p)
		}
	}
}

func TestFormatPageIsEnoughToReadTheJournal(t *testing.T) {
	facts := readManifest(t)
	facts.Documents, facts.Checkpoints = nil, nil // views are not in the journal
	got, err := readJournal(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(facts, got); diff != "" {
		t.Errorf("the reader made from the page reads something else (-want +got):\n%s", diff)
	}
}
