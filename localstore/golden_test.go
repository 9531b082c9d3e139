package localstore

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
)

var rewrite = flag.Bool("rewrite", false, "make the golden data directory anew; only for a new version of the format")

// golden is the data directory that every later version must open, and what it must find there.
const (
	golden         = "testdata/golden-v1/data"
	goldenManifest = "testdata/golden-v1/facts.json"
)

// manifest is what a store holds, as text that does not depend on our types.
type manifest struct {
	ID          string            `json:"id"`
	Epoch       uint64            `json:"epoch"`
	Partitions  int               `json:"partitions"`
	Heads       []manifestHead    `json:"heads"`
	Commands    []manifestCommand `json:"commands"` // in the order of ids
	Events      []manifestEvent   `json:"events"`   // by partition and position
	Documents   []manifestDoc     `json:"documents"`
	Checkpoints []uint64          `json:"checkpoints"`
	Backlog     int64             `json:"backlog"`
}

type manifestHead struct {
	Position uint64 `json:"position"`
	Chain    string `json:"chain"`
}

type manifestCommand struct {
	ID            string   `json:"id"`
	Stream        string   `json:"stream"`
	Type          string   `json:"type"`
	Data          string   `json:"data"`
	Time          string   `json:"time"`
	Expected      *uint64  `json:"expected,omitempty"`
	CorrelationID string   `json:"correlation_id"`
	CausationID   string   `json:"causation_id"`
	Source        string   `json:"source"`
	Partition     int      `json:"partition"`
	Fingerprint   string   `json:"fingerprint"`
	Status        string   `json:"status"`
	Position      uint64   `json:"position"`
	Version       uint64   `json:"version"`
	Events        int      `json:"events"`
	DecidedAt     string   `json:"decided_at"`
	Answer        []string `json:"answer,omitempty"` // what a refusal or a failure says, in the order of the encoding
}

type manifestEvent struct {
	Partition     int    `json:"partition"`
	Position      uint64 `json:"position"`
	Stream        string `json:"stream"`
	Version       uint64 `json:"version"`
	Type          string `json:"type"`
	Data          string `json:"data"`
	Time          string `json:"time"`
	CommandID     string `json:"command_id"`
	CorrelationID string `json:"correlation_id"`
}

type manifestDoc struct {
	Collection string   `json:"collection"`
	Partition  int      `json:"partition"`
	ID         string   `json:"id"`
	Data       string   `json:"data"`
	Keys       []string `json:"keys"`
}

const nanos = "2006-01-02T15:04:05.000000000Z07:00"

// answer is what an outcome says beside its numbers.
func answer(o *millrace.Outcome) []string {
	switch {
	case o.Refusal != nil:
		out := []string{fmt.Sprint(uint8(o.Refusal.Kind)), o.Refusal.Code, o.Refusal.Detail}
		for _, e := range o.Refusal.Errors {
			out = append(out, e.Pointer, e.Detail)
		}
		return out
	case o.Failure != nil:
		return []string{o.Failure.Reason, o.Failure.Error, fmt.Sprint(o.Failure.Attempts)}
	default:
		return nil
	}
}

// describe reads a store through its interface.
func describe(t *testing.T, s *millrace.Store, ids []string) *manifest {
	t.Helper()
	ctx := t.Context()
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	meta := s.Meta()
	m := &manifest{ID: meta.ID, Epoch: meta.Epoch, Partitions: meta.Partitions, Backlog: s.Backlog()}
	for _, h := range s.Heads() {
		m.Heads = append(m.Heads, manifestHead{h.Position, hex.EncodeToString(h.Chain[:])})
	}
	for _, id := range ids {
		o, err := s.Lookup(ctx, id)
		fatal(err)
		c, err := s.Command(ctx, id)
		fatal(err)
		m.Commands = append(m.Commands, manifestCommand{
			ID: c.ID, Stream: string(c.Stream), Type: c.Type, Data: string(c.Data), Time: c.Time.Format(nanos), Expected: c.Expected,
			CorrelationID: c.CorrelationID, CausationID: c.CausationID, Source: c.Source, Partition: o.Partition,
			Fingerprint: hex.EncodeToString(o.Fingerprint[:]), Status: o.Status.String(), Position: o.Position, Version: o.Version,
			Events: o.Events, DecidedAt: o.Time.Format(nanos), Answer: answer(&o),
		})
	}
	for p := range meta.Partitions {
		for batch, err := range s.Feed(ctx, millrace.FeedOptions{Partitions: []int{p}}) {
			fatal(err)
			for _, e := range batch {
				m.Events = append(m.Events, manifestEvent{e.Partition, e.Position, string(e.Stream), e.Version, e.Type, string(e.Data), e.Time.Format(nanos), e.CommandID, e.CorrelationID})
			}
		}
	}
	for index := range 2 {
		for d, err := range s.Documents(ctx, millrace.Query{Collection: "docs", Index: index, Partition: -1}) {
			fatal(err)
			m.Documents = append(m.Documents, manifestDoc{d.Collection, d.Partition, d.ID, string(d.Data), d.Keys})
		}
	}
	c, err := s.Checkpoints(ctx, "docs")
	fatal(err)
	m.Checkpoints = c.Positions
	return m
}

// writeGolden makes the directory. It holds one of everything that the format can say.
func writeGolden(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(filepath.Dir(golden)); err != nil {
		t.Fatal(err)
	}
	now := clock
	s, err := openWith(golden, Options{Partitions: 2, noBackground: true, Now: func() time.Time { now = now.Add(time.Millisecond); return now }}, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	commit := func(b *millrace.Batch) {
		t.Helper()
		done := make(chan error, 1)
		s.Commit(b, func(err error) { done <- err })
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	l := &ledger{}
	for p := range 2 {
		c, err := newCommitter(s, l, p, "golden")
		if err != nil {
			t.Fatal(err)
		}
		for range 25 {
			if err := c.commit(); err != nil {
				t.Fatal(err)
			}
		}
		// Large enough for the next segment.
		b := c.next()
		for i := range b.Decisions {
			for k := range b.Decisions[i].Events {
				b.Decisions[i].Events[k].Data = fmt.Appendf(nil, `"%s"`, strings.Repeat("long ", 5000))
			}
		}
		commit(b)
		l.add(outcomes(b)...)
	}
	expected := uint64(0)
	odd := &millrace.Command{
		ID: "Ünïcode \U0001f69a", Stream: "tally-ö-1", Type: "Add", Data: []byte(` { "n" : 1e2 } `), Expected: &expected, Time: clock.Add(-1),
		CorrelationID: "story", CausationID: "tally-x/7", Source: "import",
	}
	refusal := &millrace.Refusal{Kind: millrace.RefusedConflict, Code: "limit", Detail: "full", Errors: []millrace.FieldError{{Pointer: "/n", Detail: "too much"}, {Pointer: "", Detail: "–"}}}
	b := &millrace.Batch{Partition: odd.Stream.Partition(2), Decisions: []millrace.Decision{{
		Command: odd, Fresh: true, Fingerprint: odd.Fingerprint(), Status: millrace.StatusRefused, Time: clock, Refusal: refusal,
	}}}
	commit(b)
	l.add(outcomes(b)...)
	ids := []string{}
	for _, o := range l.snapshot() {
		ids = append(ids, o.CommandID)
	}
	slices.Sort(ids)
	for i, stream := range []string{"a", "b", "c"} {
		err := s.CommitViews(ctx, []millrace.ViewBatch{{Consumer: "docs", Partition: i % 2, Checkpoint: uint64(i) + 1, Puts: []millrace.Put{{Document: millrace.Document{
			Collection: "docs", Partition: i % 2, ID: stream, Data: []byte(`{"of":"` + stream + `"}`), Keys: []string{millrace.Key("k", stream), fmt.Sprint(9 - i)},
		}}}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	m, err := json.MarshalIndent(describe(t, s, slices.Compact(ids)), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), os.WriteFile(goldenManifest, append(m, '\n'), 0o644)); err != nil { //nolint:gosec // a file of the repository
		t.Fatal(err)
	}
}

func readManifest(t *testing.T) *manifest {
	t.Helper()
	raw, err := os.ReadFile(goldenManifest)
	if err != nil {
		t.Fatal(err)
	}
	m := &manifest{}
	if err := json.Unmarshal(raw, m); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestGoldenDirectoryOpens holds this version to what version 1 of the format wrote (I21).
func TestGoldenDirectoryOpens(t *testing.T) {
	if *rewrite {
		writeGolden(t)
	}
	want := readManifest(t)
	for _, index := range []bool{true, false} {
		dir := filepath.Join(t.TempDir(), "copy")
		if err := os.CopyFS(dir, os.DirFS(golden)); err != nil {
			t.Fatal(err)
		}
		if !index { // then it is made from the journal; the documents are gone with it
			if err := os.RemoveAll(filepath.Join(dir, indexDir)); err != nil {
				t.Fatal(err)
			}
			want.Documents, want.Checkpoints = nil, make([]uint64, want.Partitions)
		}
		s, err := Open(dir, &Options{CacheSize: 1 << 20, MemTableSize: 1 << 20, SegmentSize: 64 << 10})
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, c := range want.Commands {
			ids = append(ids, c.ID)
		}
		if diff := cmp.Diff(want, describe(t, s, ids)); diff != "" {
			t.Errorf("index there: %v: the golden store is read differently (-want +got):\n%s", index, diff)
		}
		err = s.Verify(context.Background(), func(p string) { t.Errorf("verify: %s", p) })
		l := &ledger{}
		if err := errors.Join(err, l.run(s, "new", 5), check(s, l.snapshot()), s.Close()); err != nil {
			t.Error(err)
		}
	}
}
