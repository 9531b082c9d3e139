package millracetest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/millrace-io/millrace"
)

// model is the contract of a store in maps: slow, in memory, and short enough to be read.
type model struct {
	partitions int
	heads      []millrace.Head
	commands   map[string]*modelCommand
	pending    [][]string // ids by partition, in the order of acceptance
	streams    map[millrace.Stream][]millrace.Recorded
	log        [][]millrace.Recorded // by partition
	docs       map[docID]millrace.Document
	progress   map[string][]uint64

	ids int // for names
}

type modelCommand struct {
	command millrace.Command
	outcome millrace.Outcome
}

type docID struct {
	collection string
	partition  int
	id         string
}

func newModel(partitions int) *model {
	return &model{
		partitions: partitions, heads: make([]millrace.Head, partitions), commands: map[string]*modelCommand{},
		pending: make([][]string, partitions), streams: map[millrace.Stream][]millrace.Recorded{},
		log: make([][]millrace.Recorded, partitions), docs: map[docID]millrace.Document{}, progress: map[string][]uint64{},
	}
}

// epoch is the time of the suite's first command; times go on in odd steps, so that a lost nanosecond shows.
var epoch = time.Date(2026, 2, 28, 23, 59, 59, 999_999_999, time.UTC)

// command makes a command that was not there before.
func (m *model) command(s millrace.Stream, data string) *millrace.Command {
	m.ids++
	return &millrace.Command{
		ID: fmt.Sprintf("cmd-%06d", m.ids), Stream: s, Type: "Add", Data: []byte(data),
		Time: epoch.Add(time.Duration(m.ids) * 1_000_003), CorrelationID: fmt.Sprintf("story-%d", m.ids%7), Source: "test",
	}
}

// accepted is a command as it is kept undecided.
func accepted(c *millrace.Command) millrace.AcceptedCommand {
	return millrace.AcceptedCommand{Command: c, Fingerprint: c.Fingerprint()}
}

// decided is a decision that leads to n events. version is the stream's version before.
func decided(c *millrace.Command, fresh bool, version uint64, n int) millrace.Decision {
	d := millrace.Decision{
		Command: c, Fresh: fresh, Fingerprint: c.Fingerprint(), Status: millrace.StatusDecided,
		Version: version, Time: c.Time.Add(time.Millisecond),
	}
	for i := range n {
		d.Events = append(d.Events, millrace.NewEvent{Type: "Added", Data: fmt.Appendf(nil, `{"of":%q,"n":%d}`, c.ID, i)})
	}
	return d
}

// stream names a stream of a partition.
func (m *model) stream(partition, n int) millrace.Stream {
	for i := 0; ; i++ {
		s := millrace.NewStream("tally", fmt.Sprintf("%d-%d", n, i))
		if s.Partition(m.partitions) == partition {
			return s
		}
	}
}

// version is the stream's version.
func (m *model) version(s millrace.Stream) uint64 { return uint64(len(m.streams[s])) }

// apply notes a batch that was acknowledged, and checks what the Store has set in its decisions.
func (m *model) apply(t reporter, b *millrace.Batch) {
	t.Helper()
	for _, a := range b.Accepted {
		c := *a.Command
		m.commands[c.ID] = &modelCommand{c, millrace.Outcome{
			CommandID: c.ID, Stream: c.Stream, Partition: b.Partition, Fingerprint: a.Fingerprint,
			Status: millrace.StatusAccepted, Time: c.Time,
		}}
		m.pending[b.Partition] = append(m.pending[b.Partition], c.ID)
	}
	for i := range b.Decisions {
		d := &b.Decisions[i]
		head := &m.heads[b.Partition]
		if d.Position != head.Position {
			t.Errorf("decision of %s stands at position %d, want %d", d.Command.ID, d.Position, head.Position)
		}
		if want := millrace.NextChain(head.Chain, millrace.AppendDecision(nil, d)); d.Chain != want {
			t.Errorf("decision of %s has chain %x, want %x", d.Command.ID, d.Chain, want)
		}
		*head = millrace.Head{Position: d.Position + uint64(len(d.Events)), Chain: d.Chain}
		if d.Fresh {
			m.commands[d.Command.ID] = &modelCommand{command: *d.Command}
		} else {
			m.pending[b.Partition] = slices.DeleteFunc(m.pending[b.Partition], func(id string) bool { return id == d.Command.ID })
		}
		m.commands[d.Command.ID].outcome = d.Outcome(b.Partition)
		events := d.Recorded(b.Partition)
		m.streams[d.Command.Stream] = append(m.streams[d.Command.Stream], events...)
		m.log[b.Partition] = append(m.log[b.Partition], events...)
	}
}

// views notes view batches.
func (m *model) views(batches []millrace.ViewBatch) {
	for _, b := range batches {
		for _, p := range b.Puts {
			id := docID{p.Collection, p.Partition, p.ID}
			if p.Delete {
				delete(m.docs, id)
			} else {
				m.docs[id] = p.Document
			}
		}
		if m.progress[b.Consumer] == nil {
			m.progress[b.Consumer] = make([]uint64, m.partitions)
		}
		m.progress[b.Consumer][b.Partition] = b.Checkpoint
	}
}

// query answers a query.
func (m *model) query(q millrace.Query) []millrace.Document {
	key := func(d *millrace.Document) string {
		if q.Index < 0 {
			return d.ID
		}
		return d.Keys[q.Index]
	}
	// The order of ids is by partition first, that of keys by key first.
	place := func(d *millrace.Document) millrace.Place { return d.Place(q.Index) }
	order := func(a, b millrace.Place) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.ID, b.ID))
	}
	var out []millrace.Document
	for _, d := range m.docs {
		if d.Collection != q.Collection {
			continue
		}
		k := key(&d)
		if q.Index >= 0 && k == "" || q.Partition >= 0 && d.Partition != q.Partition ||
			len(k) < len(q.Prefix) || k[:len(q.Prefix)] != q.Prefix || k < q.From || q.To != "" && k >= q.To {
			continue
		}
		if q.After != nil {
			c := order(place(&d), *q.After)
			if c == 0 || c < 0 != q.Reverse {
				continue
			}
		}
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b millrace.Document) int {
		c := order(place(&a), place(&b))
		if q.Reverse {
			return -c
		}
		return c
	})
	return out
}

// same compares what a store answered with what it should: by content, whatever is in memory only left out.
func same(t reporter, what string, got, want any) {
	t.Helper()
	if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty(),
		cmpopts.IgnoreFields(millrace.Recorded{}, "Body"), cmpopts.IgnoreFields(millrace.Command{}, "Body")); diff != "" {
		t.Fatalf("%s: not what it should be (-want +got):\n%s", what, clip(diff))
	}
}

// sameEvents is same for many events, which would take reflection long.
func sameEvents(t reporter, what string, got, want []millrace.Recorded) {
	t.Helper()
	equal := slices.EqualFunc(got, want, func(a, b millrace.Recorded) bool {
		return a.Partition == b.Partition && a.Position == b.Position && a.Stream == b.Stream && a.Version == b.Version &&
			a.Type == b.Type && bytes.Equal(a.Data, b.Data) && a.Time.Equal(b.Time) && a.CommandID == b.CommandID &&
			a.CorrelationID == b.CorrelationID && a.CausationID == b.CausationID
	})
	if equal {
		return
	}
	const most = 50 // events that are shown
	i := 0
	for i < min(len(got), len(want)) && gocmp.Equal(want[i], got[i], cmpopts.EquateEmpty(), cmpopts.IgnoreFields(millrace.Recorded{}, "Body")) {
		i++
	}
	same(t, fmt.Sprintf("%s: %d events, want %d; from event %d on", what, len(got), len(want), i),
		got[i:min(i+most, len(got))], want[i:min(i+most, len(want))])
}

// sameLog is sameEvents for each partition.
func sameLog(t reporter, what string, got, want [][]millrace.Recorded) {
	t.Helper()
	same(t, what+": partitions", len(got), len(want))
	for p := range got {
		sameEvents(t, fmt.Sprintf("%s: partition %d", what, p), got[p], want[p])
	}
}

func clip(s string) string {
	const most = 4000
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// all reads a sequence to its end.
func all[T any](seq iter.Seq2[T, error]) ([]T, error) {
	var out []T
	for v, err := range seq {
		if err != nil {
			return out, err
		}
		out = append(out, v)
	}
	return out, nil
}

// readFeed reads a feed to its end, by partition.
func readFeed(ctx context.Context, s *millrace.Store, o millrace.FeedOptions) ([][]millrace.Recorded, error) {
	out := make([][]millrace.Recorded, s.Partitions())
	for batch, err := range s.Feed(ctx, o) {
		if err != nil {
			return out, err
		}
		for i := range batch {
			out[batch[i].Partition] = append(out[batch[i].Partition], batch[i])
		}
	}
	return out, nil
}

// check compares everything the store answers with the model.
func (f *fixture) check() {
	f.t.Helper()
	f.checkCommands()
	f.checkEvents()
	f.checkViews()
}

func (f *fixture) checkCommands() {
	f.t.Helper()
	backlog := 0
	for _, id := range slices.Sorted(maps.Keys(f.commands)) {
		want := f.commands[id]
		o, err := f.s.Lookup(f.ctx, id)
		f.must(err)
		same(f.t, "outcome of "+id, o, want.outcome)
		c, err := f.s.Command(f.ctx, id)
		f.must(err)
		same(f.t, "command "+id, c, want.command)
	}
	for p, ids := range f.pending {
		backlog += len(ids)
		var want []millrace.AcceptedCommand
		for _, id := range ids {
			c := f.commands[id].command
			want = append(want, accepted(&c))
		}
		got, err := all(f.s.Pending(f.ctx, p))
		f.must(err)
		same(f.t, fmt.Sprintf("pending commands of partition %d", p), got, want)
		for _, category := range []string{"tally", "tall"} {
			of := slices.DeleteFunc(slices.Clone(want), func(a millrace.AcceptedCommand) bool { return a.Command.Stream.Category() != category })
			got, err := all(f.s.PendingOf(f.ctx, p, category))
			f.must(err)
			same(f.t, fmt.Sprintf("pending commands of partition %d for %s", p, category), got, slices.Clip(of))
		}
	}
	same(f.t, "backlog", f.s.Backlog(), int64(backlog))
}

func (f *fixture) checkEvents() {
	f.t.Helper()
	same(f.t, "heads", f.s.Heads(), f.heads)
	for s, want := range f.streams {
		v, err := f.s.Version(f.ctx, s)
		f.must(err)
		same(f.t, "version of "+string(s), v, uint64(len(want)))
		got, err := all(f.s.Events(f.ctx, s, 1))
		f.must(err)
		sameEvents(f.t, "events of "+string(s), got, want)
	}
	got, err := readFeed(f.ctx, f.s, millrace.FeedOptions{})
	f.must(err)
	sameLog(f.t, "feed", got, f.log)
}

func (f *fixture) checkViews() {
	f.t.Helper()
	indexes := map[string]int{}
	for id, want := range f.docs {
		got, err := f.s.Document(f.ctx, id.collection, id.partition, id.id)
		f.must(err)
		same(f.t, "document "+id.id, got, want)
		indexes[id.collection] = max(indexes[id.collection], len(want.Keys))
	}
	for collection, n := range indexes {
		for i := -1; i < n; i++ {
			f.checkQuery(millrace.Query{Collection: collection, Index: i, Partition: -1})
		}
	}
	for consumer, want := range f.progress {
		got, err := f.s.Checkpoints(f.ctx, consumer)
		f.must(err)
		same(f.t, "checkpoints of "+consumer, got, millrace.Cursor{Epoch: f.s.Meta().Epoch, Positions: want})
	}
}

func (f *fixture) checkQuery(q millrace.Query) {
	f.t.Helper()
	got, err := all(f.s.Documents(f.ctx, q))
	f.must(err)
	what := fmt.Sprintf("query %+v", q)
	if q.After != nil {
		what += fmt.Sprintf(" after %+v", *q.After)
	}
	same(f.t, what, got, f.query(q))
}
