package deadletter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/letter"
)

const (
	// maxLooked bounds the dead letters that are looked at for one answer about many.
	maxLooked = 100_000
	// maxTried bounds those that are decided for one: each reads its stream.
	maxTried = 10_000
	// maxTime bounds how long it may take: who asks still waits then.
	maxTime = 10 * time.Second
	// maxCauses bounds the causes that are told apart: more of them are no help.
	maxCauses = 500
)

// Causes groups the open dead letters of a filter by what they have in common.
func (s *Service) Causes(ctx context.Context, f *letter.Filter) (*letter.Causes, error) {
	bound, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	g, n := newCauses(), 0
	for it, err := range s.open(bound, f, f.Order()) {
		if err != nil {
			if bound.Err() != nil && ctx.Err() == nil {
				return g.list(false), nil
			}
			return nil, err
		}
		if n++; n > maxLooked {
			return g.list(false), nil
		}
		g.add(it)
	}
	return g.list(true), nil
}

// causes gathers causes.
type causes struct {
	all    map[causeKey]*letter.Cause
	others int
}

type causeKey struct{ reason, typ, shape string }

func newCauses() *causes { return &causes{all: map[causeKey]*letter.Cause{}} }

func (g *causes) add(it *letter.Item) {
	d := it.Letter
	k := causeKey{d.Reason, d.Type, letter.Shape(d.Error)}
	if st := it.State; st != nil && st.Answer != nil { // it died again, maybe of something else
		k.reason, k.shape = st.Answer.Code, letter.Shape(st.Answer.Error)
		if st.Edit != nil {
			k.typ = st.Edit.Type
		}
	}
	c := g.all[k]
	if c == nil {
		if len(g.all) == maxCauses {
			g.others++
			return
		}
		c = &letter.Cause{Reason: k.reason, Type: k.typ, Error: k.shape, First: d.AcceptedAt, Last: d.AcceptedAt}
		g.all[k] = c
	}
	c.Count++
	if d.AcceptedAt.Before(c.First) {
		c.First = d.AcceptedAt
	}
	if d.AcceptedAt.After(c.Last) {
		c.Last = d.AcceptedAt
	}
}

func (g *causes) list(complete bool) *letter.Causes {
	out := &letter.Causes{Items: make([]letter.Cause, 0, len(g.all)), Others: g.others, Complete: complete}
	for _, c := range g.all {
		out.Items = append(out.Items, *c)
	}
	slices.SortFunc(out.Items, func(a, b letter.Cause) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Type, b.Type), cmp.Compare(a.Error, b.Error))
	})
	return out
}

// Try decides the open dead letters of a filter on the present states of their streams, one after the other of each stream as
// a job would, and keeps nothing of it.
func (s *Service) Try(ctx context.Context, f *letter.Filter) (*letter.Trial, error) {
	bound, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	out := &letter.Trial{Refused: map[string]int{}, Dead: map[string]int{}, Complete: true}
	g := newCauses()
	var at trial
	for it, err := range s.open(bound, f, byStream(f)) {
		if err == nil && out.Matched == maxTried {
			out.Complete = false
			break
		}
		if err == nil {
			out.Matched++
			g.add(it)
			err = s.try(bound, it, &at, out)
		}
		if err != nil {
			if bound.Err() != nil && ctx.Err() == nil {
				out.Complete = false
				break
			}
			return nil, err
		}
	}
	out.Causes = *g.list(out.Complete)
	return out, nil
}

// byStream reads a filter's dead letters stream by stream, those of each in the order of acceptance.
func byStream(f *letter.Filter) letter.Ordering {
	o := letter.Ordering{Index: millrace.DeadLettersByStream}
	if f.Stream != "" {
		o.Prefix = millrace.KeyPrefix(string(f.Stream))
	}
	return o
}

// trial is a stream as it would be after what was tried of it.
type trial struct {
	stream   millrace.Stream
	category *millrace.Category
	state    any
	version  uint64
	fault    error // the state cannot be read
	held     bool  // one of it would die again
}

// try decides one. An error is the store's.
func (s *Service) try(ctx context.Context, it *letter.Item, at *trial, out *letter.Trial) error {
	if at.stream != it.Letter.Stream {
		*at = trial{stream: it.Letter.Stream}
		if err := at.load(ctx, s); err != nil {
			return err
		}
	}
	if at.held {
		out.Held++
		return nil
	}
	c, err := s.wouldSend(ctx, it)
	if err != nil {
		return err
	}
	body, err := s.registry.DecodeCommand(&c)
	switch {
	case errors.Is(err, millrace.ErrUnknownType):
		at.die(out, millrace.ReasonUnknownType)
	case err != nil:
		at.die(out, millrace.ReasonUndecodable)
	case at.fault != nil || at.category == nil:
		at.die(out, millrace.ReasonState)
	case c.Expected != nil && *c.Expected != at.version:
		out.Refused["version_conflict"]++
	default:
		refusal, err := at.decide(body, s.o.Now())
		switch {
		case err != nil:
			at.die(out, millrace.ReasonDecide)
		case refusal != nil:
			out.Refused[refusal.Code]++
		default:
			out.Decided++
		}
	}
	return nil
}

func (t *trial) die(out *letter.Trial, reason string) {
	out.Dead[reason]++
	t.held = true
}

// wouldSend is the command that a redrive would send.
func (s *Service) wouldSend(ctx context.Context, it *letter.Item) (millrace.Command, error) {
	if it.State != nil && it.State.Edit != nil {
		return millrace.Command{Stream: it.Letter.Stream, Type: it.State.Edit.Type, Data: it.State.Edit.Data}, nil
	}
	return s.store.Command(ctx, it.Letter.CommandID)
}

// load folds the stream. What the rules cannot read is a fault of the trial's, not of the store's.
func (t *trial) load(ctx context.Context, s *Service) (err error) {
	defer func() {
		if r := recover(); r != nil {
			t.fault = fmt.Errorf("panic: %v", r)
		}
	}()
	var ok bool
	if t.category, ok = s.registry.Category(t.stream); !ok {
		return nil
	}
	t.state = t.category.Initial(t.stream)
	for e, err := range s.store.Events(ctx, t.stream, 1) {
		if err != nil {
			return err
		}
		body, err := s.registry.Body(&e)
		if err != nil {
			t.fault = err
			return nil //nolint:nilerr // as said
		}
		t.state, t.version = t.category.Evolve(t.state, body), e.Version
	}
	return nil
}

// decide decides a command and goes on from what comes of it.
func (t *trial) decide(body any, now time.Time) (refusal *millrace.Refusal, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	events, refusal := t.category.Decide(t.state, body, now.UTC())
	if refusal != nil {
		return refusal, nil
	}
	state := t.state
	for _, e := range events {
		if _, err := t.category.EncodeEvent(e); err != nil {
			return nil, err
		}
		state = t.category.Evolve(state, e)
	}
	t.state, t.version = state, t.version+uint64(len(events))
	return nil, nil //nolint:nilnil // decided
}
