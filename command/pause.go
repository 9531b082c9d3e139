package command

import (
	"context"
	"errors"
	"iter"
	"slices"

	"github.com/millrace-io/millrace"
)

// errTurned ends a loop that is to go on otherwise: the processor was paused or resumed.
var errTurned = errors.New("command: paused or resumed")

// Pause ends the deciding, but for the commands of Options.Always, until Resume. What is on its way to the disk gets there, and
// all else is left to the store. Commands are accepted as before: the backlog grows.
func (p *Processor) Pause() { p.turn(true) }

// Resume goes on with the deciding, with the backlog first.
func (p *Processor) Resume() { p.turn(false) }

func (p *Processor) turn(paused bool) {
	if p.paused.Swap(paused) == paused {
		return
	}
	for _, s := range p.parts {
		s.signal()
	}
}

// always says whether a stream's commands are decided while the processor is paused.
func (p *Processor) always(s millrace.Stream) bool {
	return len(p.o.Always) > 0 && slices.Contains(p.o.Always, s.Category())
}

// loop decides until ctx ends, on a store of this process alone.
func (s *partition) loop(ctx context.Context) error {
	for {
		s.begin()
		err := s.run(ctx)
		if !errors.Is(err, errTurned) {
			return err
		}
		s.retire()
	}
}

// begin takes note of whether the processor is paused.
func (s *partition) begin() {
	s.paused = s.p.paused.Load()
	s.asked.Store(true)
}

// turned says whether the processor was paused or resumed since the loop has begun.
func (s *partition) turned() bool { return s.p.paused.Load() != s.paused }

// mayLook says whether the loop may look into the store. A paused one does when it is told that there is something for it, and
// not too often: of all that is kept meanwhile, it is told the same.
func (s *partition) mayLook() bool {
	return !s.paused || s.asked.Load() && s.p.o.Now().Sub(s.looked) >= pausedLook
}

// looks notes that the loop looks into the store: what is kept from here on is another matter.
func (s *partition) looks() {
	if s.paused {
		s.looked = s.p.o.Now()
		s.asked.Store(false)
	}
}

// backlog is what of the undecided commands in the store the loop is to decide.
func (s *partition) backlog(ctx context.Context) iter.Seq2[millrace.AcceptedCommand, error] {
	if !s.paused {
		return s.p.store.Pending(ctx, s.index)
	}
	return func(yield func(millrace.AcceptedCommand, error) bool) {
		for _, category := range s.p.o.Always {
			for c, err := range s.p.store.PendingOf(ctx, s.index, category) {
				if !yield(c, err) {
					return
				}
			}
		}
	}
}
