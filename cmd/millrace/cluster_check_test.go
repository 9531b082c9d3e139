//go:build linux

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/internal/jsonx"
)

const (
	// clusterLooks is how many outcomes are looked up at the same time: the store answers those together.
	clusterLooks = 64
	// clusterSamples are asked for one by one at each node.
	clusterSamples = 150
)

// check compares everything that was acknowledged with the database and with what each node shows.
func (w *clusterWorld) check(t *testing.T) {
	t.Helper()
	w.spread(t)
	w.decided(t)
	w.checkOrder(t)
	folds := w.checkLog(t)
	w.checkReads(t, folds)
	w.checkAnswers(t)
	// What nobody was told of may be on its way still; and a node counts what is undecided now and then only.
	w.until(t, "nothing is undecided", func() bool { return w.store.Backlog() == 0 })
	err := w.store.Verify(t.Context(), func(problem string) { t.Errorf("verify: %s", problem) })
	if err != nil {
		t.Fatal(err)
	}
}

// decided looks up every command until each has its outcome.
func (w *clusterWorld) decided(t *testing.T) {
	t.Helper()
	began := time.Now()
	var mu sync.Mutex
	lost, waiting := 0, w.all
	states := map[millrace.Status]int{}
	w.until(t, "every command has its outcome", func() bool {
		var left []*wish
		g, ctx := errgroup.WithContext(t.Context())
		g.SetLimit(clusterLooks)
		for _, one := range waiting {
			g.Go(func() error {
				o, err := w.store.Lookup(ctx, one.key)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case errors.Is(err, millrace.ErrNotFound):
					lost++
					t.Errorf("%s (%s, acknowledged %v) is not there", one.key, one.phase, one.acked)
				case err != nil:
					return err
				case !o.Done():
					left = append(left, one)
				default:
					one.outcome = o
					states[o.Status]++
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		waiting = left
		return len(waiting) == 0
	})
	t.Logf("%d commands: %d decided, %d refused, %d lost; %d reads elsewhere beside them; the last outcomes came after %s",
		len(w.all), states[millrace.StatusDecided], states[millrace.StatusRefused], lost, w.reads, round(time.Since(began)))
	if states[millrace.StatusDead] > 0 {
		t.Errorf("%d commands are dead letters", states[millrace.StatusDead])
	}
	for _, one := range w.all {
		if why := one.told(w.store); why != "" {
			t.Errorf("%s (%s): %s", one.key, one.phase, why)
		}
	}
}

// told says where the client was told something else than what is kept.
func (one *wish) told(store *millrace.Store) string {
	o := &one.outcome
	switch {
	case !o.Done():
		return "" // counted as lost
	case string(o.Stream) != one.stream:
		return fmt.Sprintf("it is kept for %s, and was sent for %s", o.Stream, one.stream)
	case !one.acked:
		return "it was never acknowledged"
	case one.first == nil || one.first.status == http.StatusAccepted:
		return ""
	}
	a := one.first
	if decided := a.status < 300; decided != (o.Status == millrace.StatusDecided) {
		return fmt.Sprintf("its outcome is %s, and the client was told %s", o.Status, a)
	}
	if cursor := store.Cursor(o).String(); a.header.Get("Millrace-Cursor") != cursor {
		return fmt.Sprintf("its outcome's cursor is %s, and the client was told %s", cursor, a)
	}
	if tag := `"` + strconv.FormatUint(o.Version, 10) + `"`; a.status < 300 && a.header.Get("Etag") != tag {
		return fmt.Sprintf("its outcome's version is %s, and the client was told %s", tag, a)
	}
	return ""
}

// checkOrder: the commands of one client for one stream were decided in the order in which they were sent, refusals
// included.
func (w *clusterWorld) checkOrder(t *testing.T) {
	t.Helper()
	lines := map[string][]*wish{}
	for _, one := range w.all {
		lines[one.client+" "+one.stream] = append(lines[one.client+" "+one.stream], one)
	}
	pairs, wrong := 0, 0
	for _, sent := range lines {
		slices.SortFunc(sent, func(a, b *wish) int { return cmp.Compare(a.n, b.n) })
		for i, one := range sent[1:] {
			before := &sent[i].outcome
			pairs++
			if o := &one.outcome; o.Version < before.Version+uint64(o.Events) || o.Position < before.Position+uint64(o.Events) { //nolint:gosec // counts events
				if wrong++; wrong <= 10 {
					t.Errorf("%s: %s (%s) came to version %d at %d, and %s (%s), sent behind it, to version %d with %d events at %d",
						one.stream, sent[i].key, sent[i].phase, before.Version, before.Position, one.key, one.phase, o.Version, o.Events, o.Position)
				}
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d commands were decided before one that the same client had sent for the same stream before", wrong, pairs)
	}
	t.Logf("%d commands followed another one of their client's for their stream", pairs)
}

// checkLog reads all events: positions and versions are gapless, each belongs to a command that somebody sent, and each
// command has exactly the events of its outcome, side by side. It returns the folded streams.
func (w *clusterWorld) checkLog(t *testing.T) map[millrace.Stream]any {
	t.Helper()
	want := map[string]*wish{}
	for _, one := range w.all {
		want[one.key] = one
	}
	heads := w.store.Heads()
	positions := make([]uint64, len(heads))
	newest := make([]string, len(heads)) // the command of the partition's last event
	versions := map[millrace.Stream]uint64{}
	folds := map[millrace.Stream]any{}
	events := map[string]int{}
	n := 0
	for batch, err := range w.store.Feed(t.Context(), millrace.FeedOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		for i := range batch {
			e := &batch[i]
			n++
			if positions[e.Partition]++; e.Position != positions[e.Partition] {
				t.Fatalf("partition %d: position %d stands in place %d", e.Partition, e.Position, positions[e.Partition])
			}
			if versions[e.Stream]++; e.Version != versions[e.Stream] {
				t.Fatalf("%s: version %d stands in place %d", e.Stream, e.Version, versions[e.Stream])
			}
			one := want[e.CommandID]
			switch {
			case one == nil:
				t.Errorf("%s: an event of %s, which nobody sent", e.ID(), e.CommandID)
			case events[e.CommandID] > 0 && newest[e.Partition] != e.CommandID:
				t.Errorf("%s: the events of %s (%s) are torn apart, or it was decided twice", e.ID(), e.CommandID, one.phase)
			}
			events[e.CommandID]++
			newest[e.Partition] = e.CommandID
			c, _ := w.registry.Category(e.Stream)
			if folds[e.Stream] == nil {
				folds[e.Stream] = c.Initial(e.Stream)
			}
			body, err := w.registry.Body(e)
			if err != nil {
				t.Fatal(err)
			}
			folds[e.Stream] = c.Evolve(folds[e.Stream], body)
		}
	}
	for p, head := range heads {
		if head.Position != positions[p] {
			t.Errorf("partition %d: %d events, and its head is at %d", p, positions[p], head.Position)
		}
	}
	for _, one := range w.all {
		if one.outcome.Events != events[one.key] {
			t.Errorf("%s (%s): %d events, its outcome says %d", one.key, one.phase, events[one.key], one.outcome.Events)
		}
	}
	t.Logf("%d events in %d streams", n, len(versions))
	return folds
}

// checkReads: what each node shows is what the events make.
func (w *clusterWorld) checkReads(t *testing.T, folds map[millrace.Stream]any) {
	t.Helper()
	want := map[string]map[string]string{"orders": {}, "stock": {}} // resource -> id -> document
	days := map[string]*order.Day{}
	for stream, state := range folds {
		doc, ok := order.Represent(state)
		if !ok {
			t.Fatalf("%s has events and no state", stream)
		}
		want[map[string]string{"order": "orders", "stock": "stock"}[stream.Category()]][stream.ID()] = marshal(t, doc)
		if o, ok := doc.(*order.Order); ok {
			countDay(days, o)
		}
	}
	var rows []string
	for _, key := range slices.Sorted(maps.Keys(days)) {
		rows = append(rows, marshal(t, days[key]))
	}
	cursor := w.store.Head().String()
	for _, n := range w.nodes {
		s := n.at.Load()
		s.caughtUp(t, cursor)
		for resource, docs := range want {
			found := 0
			pages(t, s, "/v1/"+resource+"?limit=500&min_cursor="+cursor, func(doc json.RawMessage) {
				var key struct{ ID, SKU string }
				_ = json.Unmarshal(doc, &key) // a document without a key is one too many
				if found++; docs[key.ID+key.SKU] != string(doc) {
					t.Errorf("%s: %s/%s is\n%s\nand its events make\n%s", n.name, resource, key.ID+key.SKU, doc, docs[key.ID+key.SKU])
				}
			})
			if found != len(docs) {
				t.Errorf("%s has %d %s, and there are %d", n.name, found, resource, len(docs))
			}
		}
		var totals struct{ Items []json.RawMessage }
		s.do(t, call{method: http.MethodGet, path: "/v1/order-totals?min_cursor=" + cursor}, http.StatusOK).into(t, &totals)
		var got []string
		for _, row := range totals.Items {
			got = append(got, string(row))
		}
		if !slices.Equal(got, rows) {
			t.Errorf("%s: the totals are\n%s\nand the events make\n%s", n.name, strings.Join(got, "\n"), strings.Join(rows, "\n"))
		}
	}
	w.checkMembers(t, want["orders"], cursor)
	t.Logf("%d orders, %d SKUs, %d rows of totals on each of %d nodes", len(want["orders"]), len(want["stock"]), len(rows), len(w.nodes))
}

// checkMembers reads some orders one by one at each node.
func (w *clusterWorld) checkMembers(t *testing.T, docs map[string]string, cursor string) {
	t.Helper()
	ids := slices.Sorted(maps.Keys(docs))
	w.rng.Shuffle(len(ids), func(i, k int) { ids[i], ids[k] = ids[k], ids[i] })
	for _, id := range ids[:min(len(ids), clusterSamples)] {
		for _, n := range w.nodes {
			s := n.at.Load()
			a := s.do(t, call{method: http.MethodGet, path: "/v1/orders/" + id + "?min_cursor=" + cursor, prefer: "wait=30"}, http.StatusOK)
			if string(a.body) != docs[id] {
				t.Errorf("%s: order %s is\n%s\nand its events make\n%s", n.name, id, a.body, docs[id])
			}
		}
	}
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	text, err := jsonx.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSpace(text))
}

// countDay adds an order to the row of its day, status and currency.
func countDay(days map[string]*order.Day, o *order.Order) {
	day := o.PlacedAt.UTC().Format(time.DateOnly)
	key := millrace.Key(day, string(o.Status), o.Currency.String())
	if days[key] == nil {
		days[key] = &order.Day{Day: day, Status: o.Status, Currency: o.Currency}
	}
	d := days[key]
	d.Orders++
	d.Units += o.Units
	d.Amount = d.Amount.Add(o.Total.Decimal())
}

// checkAnswers asks all nodes for some commands, and sends them those again: each answers as the others and as the first.
func (w *clusterWorld) checkAnswers(t *testing.T) {
	t.Helper()
	some := slices.Clone(w.all)
	w.rng.Shuffle(len(some), func(i, k int) { some[i], some[k] = some[k], some[i] })
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(looking)
	for _, one := range some[:min(len(some), clusterSamples)] {
		g.Go(func() error { return w.answeredAlike(ctx, one) })
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func (w *clusterWorld) answeredAlike(ctx context.Context, one *wish) error {
	var outcome *answer
	for _, n := range w.nodes {
		s := n.at.Load()
		a, err := s.try(ctx, call{method: http.MethodGet, path: "/v1/commands/" + one.key})
		if err != nil {
			return err
		}
		if a.status != http.StatusOK || outcome != nil && !a.equal(outcome) {
			return fmt.Errorf("%s says of %s %s, another node %s", n.name, one.key, a, outcome)
		}
		outcome = a
		again, err := s.try(ctx, one.call)
		if err != nil {
			return err
		}
		if one.first == nil {
			continue // it came as a line
		}
		if why := one.differs(again); why != "" {
			return fmt.Errorf("%s: %s", n.name, why)
		}
	}
	return nil
}
