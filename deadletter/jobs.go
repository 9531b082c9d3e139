package deadletter

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/letter"
)

const (
	// firstRetry and lastRetry bound the pause before a job tries again what the store or the intake did not take.
	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// Jobs is the consumer that runs jobs: each by the worker that has the partition of its stream, so that one node runs it, and
// another one goes on where the log says when that one is gone. Two that run one job for a moment do no harm: the ids of all
// that they send follow from the job.
func (s *Service) Jobs() millrace.Consumer {
	return millrace.Consumer{
		Name: letter.Jobs, Categories: []string{letter.CategoryJob}, Effects: true,
		Work: func() millrace.Work { return &jobs{s: s, running: map[millrace.Stream]*running{}} },
	}
}

// jobs are those of a worker's partitions. It implements millrace.Work.
type jobs struct {
	s      *Service
	ctx    context.Context //nolint:containedctx // the worker's
	cancel context.CancelFunc
	ended  sync.WaitGroup
	moved  []millrace.Stream // by the commit at hand

	mu      sync.Mutex
	running map[millrace.Stream]*running
}

// running is a job that somebody looks after.
type running struct{ again bool }

// Begin implements millrace.Work: jobs that ran when an earlier worker ended go on.
func (w *jobs) Begin(ctx context.Context, partitions []int, _ func(millrace.Stream) bool) (<-chan struct{}, error) {
	w.ctx, w.cancel = context.WithCancel(ctx)
	for _, p := range partitions {
		q := millrace.Query{
			Collection: letter.Jobs + "." + letter.JobsTable.Name, Index: letter.JobsByStatus, Partition: p,
			Prefix: millrace.KeyPrefix(string(letter.JobRunning)),
		}
		for d, err := range w.s.store.Documents(ctx, q) {
			if err != nil {
				return nil, err
			}
			w.look(letter.JobStream(d.ID))
		}
	}
	return nil, nil //nolint:nilnil // there is no Turn
}

// Handle implements millrace.Work.
func (w *jobs) Handle(_ context.Context, v millrace.Views, e *millrace.Recorded) error {
	c, ok := w.s.registry.Category(e.Stream)
	if !ok {
		return errState
	}
	j, err := letter.JobsTable.Get(v, e.Stream.ID())
	if err != nil {
		return err
	}
	if j == nil {
		if j, ok = c.Initial(e.Stream).(*letter.Job); !ok {
			return errState
		}
	}
	if e.Version <= j.Version {
		return nil
	}
	if j, ok = c.Evolve(j, e.Body).(*letter.Job); !ok {
		return errState
	}
	letter.JobsTable.Put(v, e.Stream.ID(), j)
	w.moved = append(w.moved, e.Stream)
	return nil
}

// Turn implements millrace.Work.
func (w *jobs) Turn(context.Context, func(int) millrace.Views) error { return nil }

// Redrive implements millrace.Work.
func (w *jobs) Redrive(context.Context, millrace.Views, millrace.Stream) error { return nil }

// Settle implements millrace.Work.
func (w *jobs) Settle(context.Context, func(int) millrace.Views) error { return nil }

// Committed implements millrace.Work.
func (w *jobs) Committed() {
	for _, stream := range w.moved {
		w.look(stream)
	}
	w.moved = nil
}

// Undone implements millrace.Work.
func (w *jobs) Undone() { w.moved = nil }

// End implements millrace.Work.
func (w *jobs) End() {
	if w.cancel != nil {
		w.cancel()
	}
	w.ended.Wait()
}

// look has somebody look after a job, whatever its status: the log tells that.
func (w *jobs) look(stream millrace.Stream) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.running[stream]; r != nil {
		r.again = true
		return
	}
	r := &running{}
	w.running[stream] = r
	w.ended.Go(func() {
		for {
			w.s.runJob(w.ctx, stream.ID())
			w.mu.Lock()
			if !r.again || w.ctx.Err() != nil {
				delete(w.running, stream)
				w.mu.Unlock()
				return
			}
			r.again = false
			w.mu.Unlock()
		}
	})
}

// runJob does pages of a job until it does not run any more, or ctx ends.
func (s *Service) runJob(ctx context.Context, id string) {
	p := &pace{now: s.o.Now}
	for wait := firstRetry; ctx.Err() == nil; {
		j, err := s.Job(ctx, id)
		if err == nil {
			if j.Status != letter.JobRunning {
				return
			}
			err = newRunner(s, j, p).run(ctx)
		}
		if err == nil {
			wait = firstRetry
			continue
		}
		if ctx.Err() != nil || errors.Is(err, millrace.ErrClosed) {
			return
		}
		s.o.Logger.Warn("a job that redrives dead letters does not go on for now, trying again", "job", id, "error", err)
		pause(ctx, wait)
		wait = min(2*wait, lastRetry)
	}
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// pace spreads what is sent evenly over time.
type pace struct {
	now  func() time.Time
	mu   sync.Mutex
	next time.Time
}

// wait returns when it is one's turn.
func (p *pace) wait(ctx context.Context, rate int) error {
	p.mu.Lock()
	now := p.now()
	if p.next.Before(now) {
		p.next = now
	}
	d := p.next.Sub(now)
	p.next = p.next.Add(time.Second / time.Duration(rate))
	p.mu.Unlock()
	pause(ctx, d)
	return ctx.Err()
}

// spare waits until the rate is not used up by those who wait for their turns.
func (p *pace) spare(ctx context.Context) error {
	for {
		p.mu.Lock()
		begin := p.next.Add(-spareLead)
		now := p.now()
		p.mu.Unlock()
		if !begin.After(now) || ctx.Err() != nil {
			return ctx.Err()
		}
		pause(ctx, begin.Sub(now))
	}
}

// accept sends a command until it is accepted or never will be, and waits for its outcome.
func (s *Service) accept(ctx context.Context, id string, stream millrace.Stream, correlation string, body any) (millrace.Outcome, error) {
	name, data, err := s.registry.EncodeCommand(body)
	if err != nil {
		return millrace.Outcome{}, err
	}
	c := millrace.Command{ID: id, Stream: stream, Type: name, Data: data, Body: body, CorrelationID: correlation, Source: "process " + letter.Jobs}
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		receipt, err := s.intake.Accept(ctx, c)
		if err == nil {
			return receipt.Wait(ctx)
		}
		var full *millrace.OverloadError
		if !errors.As(err, &full) && !errors.Is(err, millrace.ErrFull) && !errors.Is(err, millrace.ErrUnavailable) {
			return millrace.Outcome{}, err
		}
		if pause(ctx, wait); ctx.Err() != nil {
			return millrace.Outcome{}, ctx.Err()
		}
	}
}
