package deadletter

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/letter"
)

// Options of New; nil is fine.
type Options struct {
	// AtOnce is over how many streams a job sends at a time. Defaults to 64, and to 1,024 on a shared store.
	AtOnce int
	// Page is how many dead letters a page of a job has at most. Defaults to 512.
	Page int
	// Logger gets what jobs cannot do for a while. Defaults to nothing.
	Logger *slog.Logger
	// Now is the clock. Defaults to time.Now.
	Now func() time.Time
}

const (
	// defaultAtOnce: each waits for three decisions, most of the time for a disk. On a shared store these are several nodes', which
	// hear of each other some ten milliseconds later each time, so that a letter takes some 200 ms, and 1,000 a second are
	// 200 at a time and more where a machine is busy.
	defaultAtOnce       = 64
	defaultAtOnceShared = 1024
	// defaultPage: what a page does is done again after a crash, at the cost of its part of a look-up each.
	defaultPage = 512
)

// Service reads dead letters and runs jobs. Its methods are safe for use by several goroutines.
type Service struct {
	o        Options
	store    *millrace.Store
	registry *millrace.Registry
	intake   millrace.Intake
	states   millrace.ReadModel
	orderly  bool // false in the test that shows what comes of sending a stream's letters at once
}

// New makes a service. states is the read model of the projection [letter.Projection].
func New(store *millrace.Store, registry *millrace.Registry, intake millrace.Intake, states millrace.ReadModel, opts *Options) *Service {
	s := &Service{store: store, registry: registry, intake: intake, states: states, orderly: true}
	if opts != nil {
		s.o = *opts
	}
	if s.o.AtOnce == 0 {
		s.o.AtOnce = defaultAtOnce
		if store.Shared() {
			s.o.AtOnce = defaultAtOnceShared
		}
	}
	if s.o.Page == 0 {
		s.o.Page = defaultPage
	}
	if s.o.Logger == nil {
		s.o.Logger = slog.New(slog.DiscardHandler)
	}
	if s.o.Now == nil {
		s.o.Now = time.Now
	}
	return s
}

// Scan yields the dead letters of a part of an index, each with what was done with it, behind a place. The read model of what
// was done may be behind: what must be certain is asked by Get.
func (s *Service) Scan(ctx context.Context, o letter.Ordering, after *millrace.Place) iter.Seq2[*letter.Item, error] {
	return func(yield func(*letter.Item, error) bool) {
		for it, err := range s.scan(ctx, o, after) {
			if err == nil && letter.Resent(it.Letter.CommandID) {
				continue
			}
			if !yield(it, err) {
				return
			}
		}
	}
}

// scan is Scan with those among them that are one more failure of a letter.
func (s *Service) scan(ctx context.Context, o letter.Ordering, after *millrace.Place) iter.Seq2[*letter.Item, error] {
	return func(yield func(*letter.Item, error) bool) {
		q := millrace.Query{
			Collection: millrace.DeadLetterCollection, Index: o.Index, Partition: -1, Prefix: o.Prefix, From: o.From, To: o.To, After: after,
		}
		// Both indexes have the same keys, which hold the letter's id.
		done := millrace.Query{Index: o.Index, Partition: -1, Prefix: o.Prefix, From: o.From, To: o.To}
		if after != nil {
			done.From = max(done.From, after.Key)
		}
		next, stop := iter.Pull2(s.states.Query(ctx, letter.StatesTable.Table, done))
		defer stop()
		state, err, more := next()
		for d, derr := range s.store.Documents(ctx, q) {
			if derr != nil {
				yield(nil, derr)
				return
			}
			for more && err == nil && state.Keys[o.Index] < d.Keys[o.Index] {
				state, err, more = next()
			}
			if err != nil {
				yield(nil, err)
				return
			}
			it := &letter.Item{Place: d.Place(o.Index)}
			if it.Letter, err = millrace.DeadLetterTable.Decode(d.Data); err == nil && more && state.Keys[o.Index] == d.Keys[o.Index] {
				it.State, err = letter.StatesTable.Decode(state.Data)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(it, nil) {
				return
			}
		}
	}
}

// open yields the open dead letters of a filter.
func (s *Service) open(ctx context.Context, f *letter.Filter, o letter.Ordering) iter.Seq2[*letter.Item, error] {
	return func(yield func(*letter.Item, error) bool) {
		for it, err := range s.Scan(ctx, o, nil) {
			if err != nil {
				yield(nil, err)
				return
			}
			if it.Status() == letter.Open && f.Fits(it.Letter) && !yield(it, nil) {
				return
			}
		}
	}
}

// Get reads a dead letter and what was done with it, as the log has it, with the outcome that made it one. Errors:
// [millrace.ErrNotFound], also where the command of that id is no dead letter, or one more failure of another one.
func (s *Service) Get(ctx context.Context, commandID string) (*letter.Item, *millrace.Outcome, error) {
	if letter.Resent(commandID) {
		return nil, nil, fmt.Errorf("%w: dead letter", millrace.ErrNotFound)
	}
	o, err := s.store.Lookup(ctx, commandID)
	if err != nil {
		return nil, nil, err
	}
	if o.Status != millrace.StatusDead {
		return nil, nil, fmt.Errorf("%w: dead letter", millrace.ErrNotFound)
	}
	d, err := s.store.Document(ctx, millrace.DeadLetterCollection, o.Partition, commandID)
	if err != nil {
		return nil, nil, err
	}
	it := &letter.Item{}
	if it.Letter, err = millrace.DeadLetterTable.Decode(d.Data); err != nil {
		return nil, nil, err
	}
	st, err := fold[*letter.State](ctx, s, letter.Stream(commandID))
	if err == nil && st.Version > 0 {
		it.State = st
	}
	return it, &o, err
}

// Job is how a job is, as the log has it. Errors: [millrace.ErrNotFound].
func (s *Service) Job(ctx context.Context, id string) (*letter.Job, error) {
	stream := letter.JobStream(id)
	if stream.Validate() != nil {
		return nil, fmt.Errorf("%w: job", millrace.ErrNotFound)
	}
	j, err := fold[*letter.Job](ctx, s, stream)
	if err == nil && j.Version == 0 {
		err = fmt.Errorf("%w: job", millrace.ErrNotFound)
	}
	return j, err
}

var errState = errors.New("the registry has other rules for the streams of dead letters")

// fold is what the events of a short stream come to.
func fold[S any](ctx context.Context, s *Service, stream millrace.Stream) (out S, err error) {
	c, ok := s.registry.Category(stream)
	if !ok {
		return out, errState
	}
	state := c.Initial(stream)
	for e, err := range s.store.Events(ctx, stream, 1) {
		if err != nil {
			return out, err
		}
		body, err := s.registry.Body(&e)
		if err != nil {
			return out, err
		}
		state = c.Evolve(state, body)
	}
	out, ok = state.(S)
	if !ok {
		return out, errState
	}
	return out, nil
}

// Reasons are those that a command can become a dead letter for.
func Reasons() []string {
	return []string{millrace.ReasonUnknownType, millrace.ReasonUndecodable, millrace.ReasonDecide, millrace.ReasonState}
}

// Open counts open dead letters by the reasons that they came with, as far as it looks at most at so many of each.
func (s *Service) Open(ctx context.Context, most int) (map[string]int, error) {
	out := map[string]int{}
	for _, reason := range Reasons() {
		out[reason] = 0
		f := letter.Filter{Reason: reason}
		looked := 0
		for it, err := range s.Scan(ctx, f.Order(), nil) {
			if err != nil {
				return nil, err
			}
			if it.Status() == letter.Open {
				out[reason]++
			}
			if looked++; looked == most {
				break
			}
		}
	}
	return out, nil
}
