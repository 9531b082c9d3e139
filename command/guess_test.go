package command_test

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/localstore"
)

// guessing is a node that has found nothing so often that it does not ask any more, and another one that had streams before,
// "old0" and so on, each with one event.
type guessing struct {
	*cluster
	t     *testing.T
	store *late
	node  *command.Processor
	sent  int
}

const oldStreams = 8

func newGuessing(t *testing.T) *guessing {
	local := openWith(t, vfs.NewMem(), func(o *localstore.Options) { o.Partitions = 1 })
	g := &guessing{t: t, store: &late{Driver: local.Driver()}}
	g.cluster = newCluster(t, millrace.NewStore(g.store), 2)
	g.give(0, 1)
	for i := range oldStreams {
		decideAt(t, g.nodes[1], add(fmt.Sprint("begin", i), fmt.Sprint("old", i), 1))
	}
	g.give(0, 0)
	g.node = g.nodes[0]
	untilDirect(t, g.node, "first")
	for g.looks(g.fresh(512)...) != 0 {
		if g.sent > 2*command.GuessAfter {
			t.Fatalf("after %d commands that were new it still asks", g.sent)
		}
	}
	if g.sent < command.GuessAfter {
		t.Fatalf("it does not ask any more after %d", g.sent)
	}
	return g
}

// fresh are commands of new streams.
func (g *guessing) fresh(n int) (cs []millrace.Command) {
	for range n {
		g.sent++
		cs = append(cs, add(fmt.Sprint("new", g.sent), fmt.Sprint("new", g.sent), 1))
	}
	return cs
}

// looks sends commands together and says how many of them the store was asked for.
func (g *guessing) looks(cs ...millrace.Command) int {
	g.t.Helper()
	count := func() int {
		g.store.mu.Lock()
		defer g.store.mu.Unlock()
		return g.store.looked
	}
	before := count()
	as := g.node.AcceptAll(patient(g.t), cs)
	n := count() - before
	for _, a := range as {
		if a.Err != nil {
			g.t.Fatal(a.Err)
		}
		if _, err := a.Receipt.Wait(patient(g.t)); err != nil {
			g.t.Fatalf("%s: %v", a.Receipt.CommandID, err)
		}
	}
	return n
}

// Commands of large calls that are always new are not looked up any more. Whatever may not be new still is, and so is all of a
// type that turns out not to be.
func TestGuesses(t *testing.T) {
	g := newGuessing(t)
	version := uint64(0)
	had := g.fresh(2)
	if n := g.looks(had...); n != 0 {
		t.Errorf("%d of two new ones were looked up", n)
	}
	expects := g.fresh(1)[0]
	expects.Expected = &version
	other := g.fresh(1)[0]
	other.Type = "Split"
	step := g.fresh(1)[0]
	step.ID = millrace.StepPrefix + step.ID
	broken := g.fresh(1)[0]
	broken.Data = []byte("no JSON")
	for what, c := range map[string]millrace.Command{
		"it had the command":            had[0],
		"it had the stream":             add("another", "new1", 1),
		"a version is expected":         expects,
		"another type":                  other,
		"a step of a process":           step,
		"what is dead from the start":   broken,
		"it had the command, once more": had[1],
	} {
		if g.looks(c) != 1 {
			t.Errorf("%s: it was not looked up", what)
		}
	}
	if n := g.looks(g.fresh(100)...); n != 0 {
		t.Errorf("that says nothing about new ones, of which %d were looked up", n)
	}
	before := g.store.looked
	decideAt(t, g.node, g.fresh(1)[0])
	if g.store.looked == before {
		t.Error("a command by itself was not looked up")
	}
	decideAt(t, g.node, add("not new", "old0", 1))
	if n := g.looks(g.fresh(100)...); n != 100 {
		t.Errorf("after one whose stream was there, %d of 100 were looked up", n)
	}
	verify(t, g.s)
}

// A decision without events is never made on a guess: no key of the store would show that it was wrong. The control makes it,
// and its outcome names a version that the stream does not have.
func TestNoDecisionWithoutEventsOnAGuess(t *testing.T) {
	for _, trusting := range []bool{false, true} {
		t.Run(fmt.Sprintf("trusting %v", trusting), func(t *testing.T) {
			g := newGuessing(t)
			if trusting {
				command.TrustGuesses(g.node)
			}
			cs := append(g.fresh(100), add("nothing", "old1", 0), add("refused", "old2", -1), add("refused, new", "new", -1))
			if n := g.looks(append(cs, g.fresh(100)...)...); n != 0 {
				t.Fatalf("%d were looked up", n)
			}
			nothing, refused, isNew := outcome(t, g.s, "nothing"), outcome(t, g.s, "refused"), outcome(t, g.s, "refused, new")
			if nothing.Status != millrace.StatusDecided || refused.Status != millrace.StatusRefused || isNew.Status != millrace.StatusRefused || isNew.Version != 0 {
				t.Errorf("%+v\n%+v\n%+v", nothing, refused, isNew)
			}
			right := nothing.Version == 1 && refused.Version == 1
			if right == trusting {
				t.Errorf("versions %d and %d, trusting %v", nothing.Version, refused.Version, trusting)
			}
			if n := g.looks(g.fresh(100)...); !trusting && n != 100 {
				t.Errorf("then %d of 100 were looked up", n)
			}
		})
	}
}
