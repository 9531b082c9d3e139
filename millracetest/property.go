package millracetest

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace-io/millrace"
)

// agreesWithModel runs random histories against a store and the model and compares all answers.
func agreesWithModel(t *testing.T, f *fixture) {
	f.close()
	factory := f.factory
	rapid.Check(t, func(r *rapid.T) {
		partitions := rapid.SampledFrom([]int{1, 3, 130}).Draw(r, "partitions")
		h := history{r: r, fixture: &fixture{t: r, ctx: f.ctx, factory: factory, h: factory(t, partitions)}}
		h.open()
		h.model = newModel(partitions)
		defer h.close()
		r.Repeat(map[string]func(*rapid.T){
			"accept": h.accept, "decide": h.decide, "views": h.writeViews, "reopen": h.again,
			"query": h.ask, "feed": h.feed, "": func(*rapid.T) {},
		})
		h.check()
	})
}

type history struct {
	*fixture
	r *rapid.T
}

// few keeps histories where things meet: few partitions, streams, keys.
func few(r *rapid.T, n int, what string) int { return rapid.IntRange(0, n-1).Draw(r, what) }

func (h *history) somewhere(r *rapid.T) int {
	return few(r, min(h.partitions, 3), "partition") * (h.partitions / 3) % h.partitions
}

func (h *history) someStream(r *rapid.T, p int) millrace.Stream {
	return h.stream(p, few(r, 3, "stream"))
}

func (h *history) accept(r *rapid.T) {
	b := &millrace.Batch{Partition: h.somewhere(r)}
	for range few(r, 4, "commands") + 1 {
		b.Accepted = append(b.Accepted, accepted(h.command(h.someStream(r, b.Partition), rapid.StringN(0, 20, 200).Draw(r, "data"))))
	}
	h.commit(b)
}

func (h *history) decide(r *rapid.T) {
	var work []*millrace.Batch
	version := map[millrace.Stream]uint64{}
	taken := map[string]bool{}
	for range few(r, 3, "batches") + 1 {
		b := &millrace.Batch{Partition: h.somewhere(r)}
		for range few(r, 6, "decisions") {
			c := h.command(h.someStream(r, b.Partition), "{}")
			fresh := true
			if waiting := h.pending[b.Partition]; len(waiting) > 0 && rapid.Bool().Draw(r, "accepted before") {
				if id := rapid.SampledFrom(waiting).Draw(r, "which"); !taken[id] {
					kept := h.commands[id].command
					c, fresh, taken[id] = &kept, false, true
				}
			}
			if _, ok := version[c.Stream]; !ok {
				version[c.Stream] = h.version(c.Stream)
			}
			n := few(r, 4, "events")
			d := decided(c, fresh, version[c.Stream], n)
			switch few(r, 5, "status") {
			case 0:
				d.Events, d.Status, d.Refusal = nil, millrace.StatusRefused, &millrace.Refusal{Kind: millrace.RefusedConflict, Code: "c", Detail: rapid.String().Draw(r, "detail")}
			case 1:
				d.Events, d.Status, d.Failure = nil, millrace.StatusDead, &millrace.Failure{Reason: millrace.ReasonDecide, Error: "e", Attempts: n}
			}
			version[c.Stream] += uint64(len(d.Events))
			b.Decisions = append(b.Decisions, d)
		}
		work = append(work, b)
	}
	h.commit(work...)
}

var someKeys = rapid.SampledFrom([]string{"", "a", "a\x00b", "a\x00", "b", "a\x01", "\xff", "ab"})

func (h *history) writeViews(r *rapid.T) {
	p := h.somewhere(r)
	b := millrace.ViewBatch{Consumer: fmt.Sprint("c", few(r, 2, "consumer")), Partition: p}
	b.Checkpoint = uint64(rapid.IntRange(0, int(h.heads[p].Position)).Draw(r, "checkpoint")) //nolint:gosec // small
	seen := map[string]bool{}
	for range few(r, 5, "puts") {
		id := fmt.Sprint("d", few(r, 6, "id"))
		if seen[id] {
			continue
		}
		seen[id] = true
		if rapid.IntRange(0, 4).Draw(r, "remove") == 0 {
			b.Puts = append(b.Puts, h.remove(p, id))
		} else {
			b.Puts = append(b.Puts, h.put("docs", p, id, fmt.Sprint(h.ids), someKeys.Draw(r, "key"), someKeys.Draw(r, "key")))
		}
	}
	h.putViews(b)
}

func (h *history) again(*rapid.T) { h.reopen() }

func (h *history) ask(r *rapid.T) {
	q := millrace.Query{
		Collection: "docs", Index: few(r, 3, "index") - 1, Partition: rapid.SampledFrom([]int{-1, h.somewhere(r)}).Draw(r, "partition"),
		Prefix: someKeys.Draw(r, "prefix"), From: someKeys.Draw(r, "from"), To: someKeys.Draw(r, "to"), Reverse: rapid.Bool().Draw(r, "reverse"),
	}
	if rapid.Bool().Draw(r, "after") {
		q.After = &millrace.Place{Partition: h.somewhere(r), ID: fmt.Sprint("d", few(r, 6, "id"))}
		if q.Index >= 0 {
			q.After.Key = someKeys.Draw(r, "key")
		}
	}
	h.checkQuery(q)
}

func (h *history) feed(r *rapid.T) {
	c := millrace.Cursor{Epoch: h.s.Meta().Epoch}
	for p := range h.partitions {
		most := int(h.heads[p].Position) //nolint:gosec // small
		if most > 0 {
			most = rapid.IntRange(0, most).Draw(r, "position")
		}
		c.Positions = append(c.Positions, uint64(most)) //nolint:gosec // not negative
	}
	got, err := readFeed(h.ctx, h.s, millrace.FeedOptions{After: c})
	h.must(err)
	sameLog(h.t, fmt.Sprintf("feed after %v", c.Positions), got, h.behind(c, nil))
	if s := h.someStream(r, h.somewhere(r)); h.version(s) > 0 {
		from := uint64(rapid.IntRange(1, int(h.version(s))).Draw(r, "from")) //nolint:gosec // small
		events, err := all(h.s.Events(h.ctx, s, from))
		h.must(err)
		sameEvents(h.t, "events", events, h.streams[s][from-1:])
	}
}
