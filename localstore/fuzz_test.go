package localstore

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/millrace-io/millrace"
)

// goldenFile is a file of the golden directory: what is valid is the best seed.
func goldenFile(f *testing.F, name string) []byte {
	f.Helper()
	b, err := os.ReadFile(filepath.Join(golden, name)) //nolint:gosec // a test's file
	if err != nil {
		f.Fatal(err)
	}
	return b
}

const goldenSegment = "journal/0000000000000001.mrj"

// goldenRecords are the records of the golden journal's first segment.
func goldenRecords(f *testing.F) (out []record) {
	f.Helper()
	b := goldenFile(f, goldenSegment)
	for off := blockSize; ; {
		h, _, ok := decodeBatchHeader(b[off:])
		if !ok {
			return out
		}
		for rest := b[off+batchHeaderSize:][:h.length]; len(rest) > 0; {
			r, ok := splitRecord(rest, 0)
			if !ok {
				f.Fatal("golden record")
			}
			out, rest = append(out, r), rest[r.size:]
		}
		off += h.size()
	}
}

// bounded fails where a call takes far more memory than its input is long.
func bounded(t *testing.T, input int, call func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	call()
	runtime.ReadMemStats(&after)
	const factor, slack = 100, 1 << 20
	if got := after.TotalAlloc - before.TotalAlloc; got > uint64(input)*factor+slack { //nolint:gosec // not negative
		t.Errorf("an input of %d bytes took %d bytes of memory", input, got)
	}
}

func FuzzBatchHeader(f *testing.F) {
	f.Add(goldenFile(f, goldenSegment)[blockSize:][:batchHeaderSize])
	f.Add([]byte("MRJB"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, valid := range []bool{false, true} {
			if valid && len(b) >= batchHeaderSize { // beyond the checksum
				binary.LittleEndian.PutUint32(b, batchMagic)
				binary.LittleEndian.PutUint32(b[64:], crc32.Checksum(b[:64], castagnoli))
				binary.LittleEndian.PutUint32(b[68:], 0)
			}
			h, next, ok := decodeBatchHeader(b)
			if !ok {
				if valid && len(b) >= batchHeaderSize {
					t.Error("a header with a right checksum is not read")
				}
				continue
			}
			again := make([]byte, batchHeaderSize)
			if chain := h.put(again); chain != next || !bytes.Equal(again, b[:batchHeaderSize]) {
				t.Errorf("header %x is written as %x", b[:batchHeaderSize], again)
			}
		}
	})
}

func FuzzSegmentHeader(f *testing.F) {
	f.Add(goldenFile(f, goldenSegment)[:blockSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 16 {
			return
		}
		bounded(t, len(b), func() {
			size, err := headerLength(b)
			if err != nil || size == 0 || size > len(b) {
				return
			}
			b = b[:size]
			binary.LittleEndian.PutUint32(b[size-checksumLength:], crc32.Checksum(b[:size-checksumLength], castagnoli))
			if h, ok := decodeSegmentHeader(b); ok {
				if h2, ok := decodeSegmentHeader(h.encode()); !ok || !reflect.DeepEqual(h, h2) {
					t.Errorf("header %+v is read again as %+v", h, h2)
				}
			}
		})
	})
}

func FuzzAnchor(f *testing.F) {
	f.Add(goldenFile(f, anchorName))
	f.Fuzz(func(t *testing.T, b []byte) {
		bounded(t, len(b), func() {
			decodeAnchor(b)
			if len(b) < blockSize {
				return
			}
			b = b[:len(b)/blockSize*blockSize]
			binary.LittleEndian.PutUint32(b[len(b)-checksumLength:], crc32.Checksum(b[:len(b)-checksumLength], castagnoli))
			if a, ok := decodeAnchor(b); ok {
				if a2, ok := decodeAnchor(a.encode()); !ok || !reflect.DeepEqual(a, a2) {
					t.Errorf("anchor %+v is read again as %+v", a, a2)
				}
			}
			mem := vfs.NewMem()
			w, err := mem.Create(anchorName, journalCategory)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(bytes.Clone(b)); err != nil {
				t.Fatal(err)
			}
			if a, damaged, err := readAnchor(mem, anchorName); err != nil || a == nil && damaged == 0 {
				t.Errorf("anchor file: %v, %d damaged, %v", a, damaged, err)
			}
		})
	})
}

func FuzzRecord(f *testing.F) {
	for i, r := range goldenRecords(f) {
		if i < 10 {
			f.Add(appendRecord(nil, r.kind, func(b []byte) []byte { return append(b, r.body...) }))
		}
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		bounded(t, len(b), func() {
			if r, ok := splitRecord(b, 0); ok {
				if again := appendRecord(nil, r.kind, func(b []byte) []byte { return append(b, r.body...) }); !bytes.Equal(again, b[:r.size]) {
					t.Errorf("record %x is written as %x", b[:r.size], again)
				}
			}
			for _, kind := range []byte{recordCommand, recordDecision} { // bodies of every kind, right checksum or not
				r := record{kind: kind, body: b}
				_, _, _ = r.command()
				_, _, _ = r.decision()
			}
			// A batch of them, as a scanner sees it.
			s := scanned{payload: b, header: batchHeader{length: len(b), records: len(b)}}
			_ = s.entries(func(*entry) error { return nil })
			var events []millrace.Recorded
			_ = s.events(&events)
		})
	})
}

func FuzzCommand(f *testing.F) {
	for _, r := range goldenRecords(f) {
		if r.kind == recordCommand {
			f.Add(r.body[2:])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		bounded(t, len(b), func() {
			c, err := millrace.DecodeCommand(b)
			if err != nil {
				return
			}
			again, err := millrace.DecodeCommand(millrace.AppendCommand(nil, &c))
			if err != nil || !reflect.DeepEqual(c, again) {
				t.Errorf("command %+v is read again as %+v: %v", c, again, err)
			}
		})
	})
}

func FuzzDecision(f *testing.F) {
	for _, r := range goldenRecords(f) {
		if r.kind == recordDecision {
			f.Add(r.body[35:])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		bounded(t, len(b), func() {
			d, err := millrace.DecodeDecision(b)
			if err != nil {
				return
			}
			again, err := millrace.DecodeDecision(millrace.AppendDecision(nil, &d))
			d.Encoded, again.Encoded = nil, nil
			if err != nil || !reflect.DeepEqual(d, again) {
				t.Errorf("decision %+v is read again as %+v: %v", d, again, err)
			}
			_ = d.Outcome(0)
			_ = d.Recorded(0)
		})
	})
}

func FuzzCursor(f *testing.F) {
	f.Add(millrace.Cursor{Epoch: 3, Positions: []uint64{1, 0, 1 << 40}}.String())
	f.Add("")
	f.Fuzz(func(t *testing.T, token string) {
		bounded(t, len(token), func() {
			c, err := millrace.ParseCursor(token)
			if err != nil {
				return
			}
			again, err := millrace.ParseCursor(c.String())
			if err != nil || !reflect.DeepEqual(c, again) {
				t.Errorf("cursor %v is read again as %v: %v", c, again, err)
			}
			if len(c.Positions) > millrace.MaxPartitions {
				t.Errorf("cursor of %d partitions", len(c.Positions))
			}
		})
	})
}

// FuzzSegment puts anything at all into a segment behind a valid header and opens the store.
func FuzzSegment(f *testing.F) {
	v := victim(f, false)
	f.Add(v.files[victimDir+"/journal/0000000000000002.mrj"], byte(2))
	f.Add(v.files[victimDir+"/journal/0000000000000001.mrj"], byte(1))
	f.Add([]byte{}, byte(1))
	f.Fuzz(func(t *testing.T, b []byte, n byte) {
		path := victimDir + "/journal/" + segmentName(uint64(n))
		if _, ok := v.files[path]; !ok || len(b) > 4*victimSegment {
			return
		}
		v.examine(t, &tally{}, "fuzzed segment", v.with(map[string][]byte{path: b}))
	})
}

// TestEncodingsRoundTrip: whatever a command and a decision can hold comes back the same.
func TestEncodingsRoundTrip(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		text := func(what string) string { return string(rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(r, what)) }
		when := func() int64 { return rapid.Int64().Draw(r, "time") }
		c := millrace.Command{
			ID: text("id"), Stream: millrace.Stream(text("stream")), Type: text("type"), Data: []byte(text("data")),
			CorrelationID: text("correlation"), CausationID: text("causation"), Source: text("source"), Time: timeOf(when()),
		}
		if rapid.Bool().Draw(r, "expects") {
			v := rapid.Uint64().Draw(r, "expected")
			c.Expected = &v
		}
		got, err := millrace.DecodeCommand(millrace.AppendCommand(nil, &c))
		if diff := cmp.Diff(c, got, cmpopts.EquateEmpty()); err != nil || diff != "" {
			r.Fatalf("command: %v\n%s", err, diff)
		}
		d := millrace.Decision{
			Command: &millrace.Command{ID: c.ID, Stream: c.Stream, CorrelationID: c.CorrelationID}, Fingerprint: c.Fingerprint(),
			Status:   rapid.SampledFrom([]millrace.Status{millrace.StatusDecided, millrace.StatusRefused, millrace.StatusDead}).Draw(r, "status"),
			Position: rapid.Uint64().Draw(r, "position"), Version: rapid.Uint64().Draw(r, "version"), Time: timeOf(when()),
		}
		for range rapid.IntRange(0, 3).Draw(r, "events") {
			d.Events = append(d.Events, millrace.NewEvent{Type: text("type"), Data: []byte(text("data"))})
		}
		switch d.Status {
		case millrace.StatusRefused:
			d.Refusal = &millrace.Refusal{Kind: millrace.RefusalKind(rapid.Byte().Draw(r, "kind")), Code: text("code"), Detail: text("detail")}
			for range rapid.IntRange(0, 3).Draw(r, "errors") {
				d.Refusal.Errors = append(d.Refusal.Errors, millrace.FieldError{Pointer: text("pointer"), Detail: text("detail")})
			}
		case millrace.StatusDead:
			d.Failure = &millrace.Failure{Reason: text("reason"), Error: text("error"), Attempts: rapid.IntRange(0, 1<<30).Draw(r, "attempts")}
		default:
		}
		dec, err := millrace.DecodeDecision(millrace.AppendDecision(nil, &d))
		if diff := cmp.Diff(d, dec, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(millrace.Decision{}, "Encoded")); err != nil || diff != "" {
			r.Fatalf("decision: %v\n%s", err, diff)
		}
	})
}
