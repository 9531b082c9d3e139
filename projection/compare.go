package projection

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"iter"
	"slices"

	"github.com/millrace-io/millrace"
)

const (
	// maxExamples is how many ids are kept of each table.
	maxExamples = 5
	// maxDoubtful bounds what is held in memory of documents that looked different while the generations moved.
	maxDoubtful = 10_000
	// settleTries is how often such documents are looked at again.
	settleTries = 5
	// meetTries and the pause between them bound the wait for two generations to stand at the same position.
	meetTries = 100
)

// Differences are what a generation has other than the one that was live.
type Differences struct {
	Documents uint64 `json:"documents"` // of either, as many as there were
	// Tables are those with differences.
	Tables []TableDifferences `json:"tables,omitempty"`
	// Unsettled documents changed whenever they were looked at: nothing is known of them.
	Unsettled uint64 `json:"unsettled,omitempty"`
	// Uncompared partitions are those in which the two never stood at the same position: where the code that could continue
	// the live one is gone.
	Uncompared int `json:"uncompared,omitempty"`
}

// TableDifferences counts documents of a table.
type TableDifferences struct {
	Table     string   `json:"table"`
	Missing   uint64   `json:"missing"` // only the live one has them
	Extra     uint64   `json:"extra"`   // only the other one has them
	Different uint64   `json:"different"`
	Examples  []string `json:"examples"` // a few of their ids
}

// None says whether there are no differences; nil where that is not known.
func (d *Differences) None() *bool {
	none := len(d.Tables) == 0
	if none && (d.Unsettled > 0 || d.Uncompared > 0) {
		return nil
	}
	return &none
}

// comparison is what a comparison on the side came to.
type comparison struct {
	differences *Differences
	err         error
}

// compareAside compares two generations while the coordinator goes on.
func (m *Model) compareAside(ctx context.Context, live, next uint64) chan comparison {
	out := make(chan comparison, 1)
	m.comparing.Go(func() {
		d, err := m.compare(ctx, live, next)
		if err == nil && len(d.Tables) > 0 {
			m.s.o.Logger.Error("the rebuilt read model differs from the live one", "projection", m.p.Name, "generation", next)
		}
		out <- comparison{d, err}
		m.poke()
	})
	return out
}

// doubt is a document that looked different.
type doubt struct {
	table *millrace.Table
	id    string
}

// comparing is a comparison of two generations.
type comparing struct {
	*Model
	a, b   uint64 // the live one, and the other
	out    Differences
	tables map[*millrace.Table]*TableDifferences
}

// compare compares all documents of two generations, which may both go on meanwhile.
func (m *Model) compare(ctx context.Context, a, b uint64) (*Differences, error) {
	c := &comparing{Model: m, a: a, b: b, tables: map[*millrace.Table]*TableDifferences{}}
	for _, t := range m.p.Tables {
		c.tables[t] = &TableDifferences{Table: t.Name, Examples: []string{}}
	}
	for p := range m.s.store.Partitions() {
		if err := c.partition(ctx, p); err != nil {
			return nil, err
		}
	}
	for _, t := range m.p.Tables {
		if d := c.tables[t]; d.Missing+d.Extra+d.Different > 0 {
			c.out.Tables = append(c.out.Tables, *d)
		}
	}
	return &c.out, nil
}

// found counts a difference.
func (c *comparing) found(t *millrace.Table, id string, a, b bool) {
	d := c.tables[t]
	switch {
	case !b:
		d.Missing++
	case !a:
		d.Extra++
	default:
		d.Different++
	}
	if len(d.Examples) < maxExamples {
		d.Examples = append(d.Examples, id)
	}
}

// stand is where both generations are in a partition: what is written with their documents, and what is behind them, which
// may be more by events that changed none.
type stand struct{ storedA, storedB, a, b uint64 }

func (c *comparing) stand(ctx context.Context, p int) (s stand, err error) {
	for _, one := range []struct {
		generation uint64
		stored, at *uint64
	}{{c.a, &s.storedA, &s.a}, {c.b, &s.storedB, &s.b}} {
		// In this order: whatever was written by what is counted is in what is stored. The other way round a generation that
		// commits in between is where the other one is, and seems not to have written anything to get there.
		at, err := c.s.store.Checkpoints(ctx, c.name(one.generation))
		if err != nil {
			return s, err
		}
		stored, err := c.s.store.Driver().Checkpoints(ctx, c.name(one.generation))
		if err != nil {
			return s, err
		}
		// A commit is seen in the store a moment before this process counts it.
		*one.stored, *one.at = stored.Position(p), max(stored.Position(p), at.Position(p))
	}
	return s, nil
}

// met waits until both have come to where the further one was. False: one of them stands still.
func (c *comparing) met(ctx context.Context, p int, from stand) (stand, bool, error) {
	aim := max(from.a, from.b)
	for range meetTries {
		now, err := c.stand(ctx, p)
		if err != nil || min(now.a, now.b) >= aim {
			return now, err == nil, err
		}
		if !pause(ctx, c.s.lookEvery(true)) {
			return now, false, ctx.Err()
		}
	}
	return from, false, nil
}

// partition compares the documents of a partition. Where neither generation wrote any document between a position that
// both have been at and the end of the reading, what differs is different. Otherwise it is doubtful.
func (c *comparing) partition(ctx context.Context, p int) error {
	before, err := c.stand(ctx, p)
	if err != nil {
		return err
	}
	var sure []TableDifferences // what there is to count if nothing moved: as many as there are
	var doubts []doubt
	beyond := uint64(0)
	read := uint64(0)
	for _, t := range c.p.Tables {
		count := TableDifferences{Table: t.Name}
		err := c.merge(ctx, p, t, func(id string, a, b *millrace.Document) {
			read++
			if same(a, b) {
				return
			}
			switch {
			case b == nil:
				count.Missing++
			case a == nil:
				count.Extra++
			default:
				count.Different++
			}
			if len(count.Examples) < maxExamples {
				count.Examples = append(count.Examples, id)
			}
			if len(doubts) < maxDoubtful {
				doubts = append(doubts, doubt{t, id})
			} else {
				beyond++
			}
		})
		if err != nil {
			return err
		}
		sure = append(sure, count)
	}
	c.out.Documents += read
	if len(doubts) == 0 {
		return nil
	}
	after, met, err := c.met(ctx, p, before)
	if err != nil {
		return err
	}
	if !met {
		c.out.Uncompared++
		return nil
	}
	if after.storedA == before.storedA && after.storedB == before.storedB {
		for i, t := range c.p.Tables {
			d := c.tables[t]
			d.Missing += sure[i].Missing
			d.Extra += sure[i].Extra
			d.Different += sure[i].Different
			d.Examples = append(d.Examples, sure[i].Examples...)
			d.Examples = d.Examples[:min(len(d.Examples), maxExamples)]
		}
		return nil
	}
	c.out.Unsettled += beyond
	return c.settle(ctx, p, doubts)
}

// settle looks at documents again that differed while the generations moved. One that is the same before and after a
// position, in each of them, is at that position what it is; if the two differ then, they do.
func (c *comparing) settle(ctx context.Context, p int, doubts []doubt) error {
	type pair struct{ a, b *millrace.Document }
	read := func(d doubt) (pair, error) {
		a, err := c.document(ctx, c.a, p, d)
		if err != nil {
			return pair{}, err
		}
		b, err := c.document(ctx, c.b, p, d)
		return pair{a, b}, err
	}
	for range settleTries {
		first := make([]pair, len(doubts))
		for i, d := range doubts {
			var err error
			if first[i], err = read(d); err != nil {
				return err
			}
		}
		at, err := c.stand(ctx, p)
		if err != nil {
			return err
		}
		if _, met, err := c.met(ctx, p, at); err != nil || !met {
			if err == nil {
				c.out.Uncompared++
			}
			return err
		}
		var left []doubt
		for i, d := range doubts {
			second, err := read(d)
			if err != nil {
				return err
			}
			switch {
			case !same(first[i].a, second.a) || !same(first[i].b, second.b):
				left = append(left, d)
			case !same(second.a, second.b):
				c.found(d.table, d.id, second.a != nil, second.b != nil)
			}
		}
		if doubts = left; len(doubts) == 0 {
			return nil
		}
	}
	c.out.Unsettled += uint64(len(doubts))
	return nil
}

// document reads a document; nil where there is none.
func (c *comparing) document(ctx context.Context, generation uint64, p int, d doubt) (*millrace.Document, error) {
	doc, err := c.s.store.Document(ctx, c.collection(generation, d.table), p, d.id)
	if errors.Is(err, millrace.ErrNotFound) {
		return nil, nil //nolint:nilnil // none is an answer
	}
	return &doc, err
}

// same says whether two documents are, byte for byte, with their keys; nil is none.
func same(a, b *millrace.Document) bool {
	if a == nil || b == nil {
		return a == b
	}
	return bytes.Equal(a.Data, b.Data) && slices.Equal(a.Keys, b.Keys)
}

// merge reads both generations of a table in the order of ids.
func (c *comparing) merge(ctx context.Context, p int, t *millrace.Table, each func(id string, a, b *millrace.Document)) error {
	of := func(generation uint64) (func() (millrace.Document, error, bool), func()) {
		return iter.Pull2(c.s.store.Documents(ctx, millrace.Query{Collection: c.collection(generation, t), Index: -1, Partition: p}))
	}
	nextA, stopA := of(c.a)
	defer stopA()
	nextB, stopB := of(c.b)
	defer stopB()
	a, err, okA := nextA()
	if err != nil {
		return err
	}
	b, err, okB := nextB()
	for err == nil && (okA || okB) {
		var docA, docB *millrace.Document
		id := ""
		if okA && (!okB || a.ID <= b.ID) {
			one := a
			id, docA = a.ID, &one
		}
		if okB && (!okA || b.ID <= a.ID) {
			one := b
			id, docB = b.ID, &one
		}
		each(id, docA, docB)
		if docA != nil {
			if a, err, okA = nextA(); err != nil {
				return err
			}
		}
		if docB != nil {
			b, err, okB = nextB()
		}
	}
	return err
}

// digest is a hash over all documents of a generation, with their keys, in the order of partition and id.
func (m *Model) digest(ctx context.Context, generation uint64) (string, error) {
	h := sha256.New()
	var buf []byte
	field := func(b string) { buf = append(binary.AppendUvarint(buf, uint64(len(b))), b...) }
	for _, t := range m.p.Tables {
		for d, err := range m.s.store.Documents(ctx, millrace.Query{Collection: m.collection(generation, t), Index: -1, Partition: -1}) {
			if err != nil {
				return "", err
			}
			buf = binary.AppendUvarint(buf[:0], uint64(d.Partition)) //nolint:gosec // not negative
			field(t.Name)
			field(d.ID)
			for _, k := range d.Keys {
				field(k)
			}
			field(string(d.Data))
			_, _ = h.Write(buf) // a hash never fails
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Digest is a hash over all documents that readers see now. Two stores with the same facts have the same digests.
func (m *Model) Digest(ctx context.Context) (string, error) {
	live, err := m.seen(ctx)
	if err != nil {
		return "", err
	}
	return m.digest(ctx, live)
}
