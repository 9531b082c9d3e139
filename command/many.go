package command

import (
	"context"
	"errors"

	"github.com/millrace-io/millrace"
)

// acceptGroup is how many commands of one call are looked up together and go to the loops together, and the most that go to
// one loop at once: enough to share a commit's cost, and few enough that the loops begin while the rest is still being
// looked at. On a shared store looking up is a round trip, and so is what a loop asks for each group.
const (
	acceptGroup       = 64
	acceptGroupShared = 1024
)

// acceptMany is one call of AcceptAll.
type acceptMany struct {
	p     *Processor
	ctx   context.Context //nolint:containedctx // of the one call
	group int
	out   []millrace.Accepted
	at    []accepting
	// entered are in the flight and were not looked up yet; settled is up to where all have their answers.
	entered []int
	settled int
	// groups go to the loops together: a loop that is woken for the first one of many decides it alone.
	groups [][]*item
}

// accepting is one command of the call.
type accepting struct {
	it       *item
	replayed bool
}

// AcceptAll implements millrace.Intake.
func (p *Processor) AcceptAll(ctx context.Context, cs []millrace.Command) []millrace.Accepted {
	a := &acceptMany{
		p: p, ctx: ctx, out: make([]millrace.Accepted, len(cs)), at: make([]accepting, len(cs)), groups: make([][]*item, len(p.parts)),
		group: acceptGroup,
	}
	if p.store.Shared() {
		a.group = acceptGroupShared
	}
	for i := range cs {
		a.enter(i, cs[i])
		if len(a.entered) >= a.group {
			a.lookUp()
		}
	}
	a.lookUp()
	a.settle(len(cs))
	return a.out
}

// enter puts a command into the flight.
func (a *acceptMany) enter(i int, c millrace.Command) {
	for {
		it, met, err := a.p.enter(c)
		switch {
		case err != nil:
			a.refuse(i, err)
		case met == nil:
			a.at[i].it = it
			a.entered = append(a.entered, i)
		case met.fp == it.fp:
			a.at[i] = accepting{met, true}
		default:
			// It may be one of our own that have not gone anywhere yet.
			a.lookUp()
			a.put()
			if err := met.reuse(a.ctx); err != nil {
				a.refuse(i, err)
				return
			}
			continue
		}
		return
	}
}

func (a *acceptMany) refuse(i int, err error) {
	a.p.o.Observer.Rejected(err)
	a.out[i].Err = err
}

// lookUp asks the store for the ids that have entered, and hands on what is new.
func (a *acceptMany) lookUp() {
	if len(a.entered) == 0 {
		return
	}
	qs := make([]millrace.Inquiry, 0, len(a.entered))
	for _, i := range a.entered {
		it := a.at[i].it
		q := a.p.inquiry(it)
		if it.guessed = a.p.guesses != nil && a.p.guesses.guess(it); !it.guessed {
			qs = append(qs, q)
		}
	}
	var found []millrace.Finding
	if len(qs) > 0 {
		found = a.p.store.Lookups(a.ctx, qs)
	}
	for _, i := range a.entered {
		if a.at[i].it.guessed {
			a.admit(i, &millrace.Finding{Err: millrace.ErrNotFound})
			continue
		}
		a.admit(i, &found[0])
		found = found[1:]
	}
	a.entered = a.entered[:0]
}

// admit goes on with a command whose id was looked up.
func (a *acceptMany) admit(i int, found *millrace.Finding) {
	it := a.at[i].it
	got, replayed, err := a.p.settleIn(it, found)
	var full *millrace.OverloadError
	if errors.As(err, &full) && full.What == queueName && a.settled < i {
		// Our own commands fill the queue: they are let through first.
		a.settle(i)
		got, replayed, err = a.p.submit(a.ctx, it.bare())
	}
	if err != nil {
		a.at[i].it = nil
		a.refuse(i, err)
		return
	}
	a.at[i] = accepting{got, replayed}
	if replayed {
		return
	}
	g := append(a.groups[got.partition], got)
	if a.groups[got.partition] = g; len(g) >= a.group {
		a.p.parts[got.partition].put(g...)
		a.groups[got.partition] = g[:0]
	}
}

// put hands to the loops what was gathered for them.
func (a *acceptMany) put() {
	for i, g := range a.groups {
		if len(g) > 0 {
			a.p.parts[i].put(g...)
			a.groups[i] = g[:0]
		}
	}
}

// settle waits for the commands before one.
func (a *acceptMany) settle(before int) {
	a.put()
	for ; a.settled < before; a.settled++ {
		if w := &a.at[a.settled]; w.it != nil {
			a.out[a.settled].Receipt, a.out[a.settled].Err = a.p.stored(a.ctx, w.it, w.replayed)
			w.it = nil
		}
	}
}
