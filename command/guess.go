package command

import (
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/bloom"
)

// guesses say which commands of a large call are taken for new, and their streams for empty, without asking a shared store. The
// questions take a tenth of what such a command costs, and a type of commands that begins streams has the same answer each
// time. A wrong guess harms nothing but the time that it takes:
//
//   - an id that is known, and a version that a stream has already, are refused by the store's unique keys, with all that is in
//     the transaction. Everything goes the way of what another node came before with, and is decided anew;
//   - a decision without events has no version that could be refused, so it is never made on a guess (partition.prove).
//
// Guessed is only where it would have been right many times in a row, and not where it may be wrong for a reason that is
// known: what this node has had lately may be sent again, and so may what processes send.
type guesses struct {
	seed    maphash.Seed
	streaks sync.Map // by command type: *atomic.Int64, how many look-ups in a row have found nothing
	need    atomic.Int64
	recent  recent
	// trusting makes decisions without events on guesses, for the test that shows what comes of it.
	trusting bool
}

const (
	// guessAfter is how many look-ups in a row have to find nothing before a type is guessed at: what a wrong guess costs, some
	// thousand commands that are written again, is then a small part of what was saved.
	guessAfter = 4096
	// maxGuessAfter is the most that it rises to, twice as many after each wrong guess.
	maxGuessAfter = 1 << 20
)

func newGuesses() *guesses {
	g := &guesses{seed: maphash.MakeSeed()}
	g.need.Store(guessAfter)
	g.recent.now.Store(bloom.New(recentBytes))
	g.recent.before.Store(bloom.New(recentBytes))
	return g
}

// guess says whether an item is taken for new, and its stream for empty.
func (g *guesses) guess(it *item) bool {
	return it.guessable() && g.streak(it.cmd.Type).Load() >= g.need.Load() && !g.had(it)
}

// guessable: only a type that the registry knows has a streak, of which there are few. What expects a version, and what is dead
// from the start, has no events that would show that the guess was wrong.
func (it *item) guessable() bool {
	return it.failure == nil && it.cmd.Expected == nil && !strings.HasPrefix(it.cmd.ID, millrace.StepPrefix)
}

func (g *guesses) streak(typ string) *atomic.Int64 {
	if s, ok := g.streaks.Load(typ); ok {
		return s.(*atomic.Int64) //nolint:forcetypeassert // ours alone
	}
	s, _ := g.streaks.LoadOrStore(typ, new(atomic.Int64))
	return s.(*atomic.Int64) //nolint:forcetypeassert // ours alone
}

// saw learns from what was found about an item that was looked up. What this node has had lately says nothing about others.
func (g *guesses) saw(it *item, nothing bool) {
	switch {
	case !it.guessable() || g.had(it):
	case nothing:
		g.streak(it.cmd.Type).Add(1)
	default:
		g.streak(it.cmd.Type).Store(0)
	}
}

// unsure has a type looked up again: guesses did not save the question.
func (g *guesses) unsure(typ string) { g.streak(typ).Store(0) }

// wrong has all looked up again, and for longer than the last time. What else was guessed by then, and fails for the same
// reason, does not count again.
func (g *guesses) wrong() {
	need := g.need.Load()
	trusted := false
	g.streaks.Range(func(_, s any) bool {
		trusted = s.(*atomic.Int64).Swap(0) >= need || trusted //nolint:forcetypeassert // ours alone
		return true
	})
	if trusted && need < maxGuessAfter {
		g.need.CompareAndSwap(need, 2*need)
	}
}

func (g *guesses) had(it *item) bool {
	return g.recent.has(maphash.String(g.seed, it.cmd.ID)) || g.recent.has(g.stream(it))
}

// note remembers an item that came in.
func (g *guesses) note(it *item) {
	g.recent.add(maphash.String(g.seed, it.cmd.ID))
	g.recent.add(g.stream(it))
}

// stream is the hash of an item's stream: another one than that of an id with the same name.
func (g *guesses) stream(it *item) uint64 { return ^maphash.String(g.seed, string(it.cmd.Stream)) }

// recent remembers what this node has had lately: the last maxRecent keys for certain, and up to twice as many. One key in some
// hundred that it never had it takes for one of them.
type recent struct {
	now, before atomic.Pointer[bloom.Filter]
	n           atomic.Int64 // keys in now
}

const (
	// maxRecent is two keys each for half a million commands: those of ten seconds where most come in, and of minutes
	// elsewhere, in which a client has had no answer and sends again.
	maxRecent = 1 << 20
	// recentBytes are two bytes for each of them.
	recentBytes = 2 * maxRecent
)

func (r *recent) add(hash uint64) {
	r.now.Load().Add(hash)
	if r.n.Add(1) == maxRecent {
		r.before.Store(r.now.Load())
		r.now.Store(bloom.New(recentBytes))
		r.n.Store(0)
	}
}

func (r *recent) has(hash uint64) bool {
	return !r.now.Load().Absent(hash) || !r.before.Load().Absent(hash)
}
