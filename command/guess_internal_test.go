package command

import (
	"errors"
	"fmt"
	"testing"

	"github.com/millrace-io/millrace"
)

// Only what a guess can be to blame for ends guessing, and what fails together counts once.
func TestWhatIsAWrongGuess(t *testing.T) {
	for _, c := range []struct {
		known bool
		err   error
		wrong bool
	}{
		{false, nil, false},
		{true, nil, true},
		{false, millrace.ErrConflict, true},
		{false, millrace.ErrKeyReused, true},
		{false, fmt.Errorf("partition 1: %w", millrace.ErrBehind), false},
		{false, millrace.ErrUnavailable, false},
		{false, millrace.ErrFenced, false},
		{false, errors.New("anything else"), false},
	} {
		p := &Processor{guesses: newGuesses()}
		it := &item{p: p, cmd: millrace.Command{ID: "a", Stream: "s-a", Type: "Add"}, guessed: true}
		p.guesses.streak("Add").Store(guessAfter)
		if !p.guesses.guess(it) {
			t.Fatal("after so many it still asks")
		}
		for range 3 {
			it.written(c.known, c.err)
		}
		want := int64(guessAfter)
		if c.wrong {
			want *= 2
		}
		if p.guesses.guess(it) == c.wrong || p.guesses.need.Load() != want {
			t.Errorf("known %v, %v: guesses %v, and needs %d", c.known, c.err, p.guesses.guess(it), p.guesses.need.Load())
		}
	}
}

// Guessing does not become impossible, however often it was wrong; and what a node had lately is remembered, and some time later
// forgotten.
func TestGuessesOverTime(t *testing.T) {
	g := newGuesses()
	it := &item{cmd: millrace.Command{ID: "a", Stream: "s-a", Type: "Add"}}
	for range 30 {
		g.streak("Add").Store(maxGuessAfter)
		g.wrong()
	}
	g.streak("Add").Store(maxGuessAfter)
	if !g.guess(it) {
		t.Errorf("it needs %d", g.need.Load())
	}
	g.note(it)
	other := func(i int) *item {
		return &item{cmd: millrace.Command{ID: fmt.Sprint("b", i), Stream: millrace.Stream(fmt.Sprint("s-b", i)), Type: "Add"}}
	}
	n := 0
	for ; g.had(it) && n < 2*maxRecent; n++ {
		g.note(other(n))
	}
	if n < maxRecent/2-1 || n > maxRecent+1 {
		t.Errorf("it was forgotten after %d others", n)
	}
	wrong := 0
	for i := range 10_000 {
		if g.had(other(-1 - i)) {
			wrong++
		}
	}
	if wrong > 300 {
		t.Errorf("%d of 10,000 strangers are taken for known", wrong)
	}
}
