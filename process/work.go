package process

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-io/millrace"
)

// work is the instances of a worker's partitions. It implements millrace.Work.
type work struct {
	m          *Manager
	partitions []int
	parked     func(millrace.Stream) bool
	wake       chan struct{}
	cancel     context.CancelFunc
	ended      sync.WaitGroup

	// Of the commit at hand: the instances, the commands that are to be sent before it, and those that were sent and whose
	// outcomes are not known.
	at    map[millrace.Stream]*instance
	order []*instance
	queue []sending
	sent  []awaited
	// calling are the attempts at calls that are to be made after it.
	calling []*attempt
	dropped []string // the ids of calls that are not wanted any more

	// due is, by partition, when to look for timers next; next is the least of them.
	due  map[int]time.Time
	next atomic.Int64
	// resume is, by partition, up to where instances were found that had waited for outcomes in an earlier life; nil where
	// all were.
	resume   map[int]*millrace.Place
	recalled bool // some were by the commit at hand

	// passed are streams that have no instance, as far as was looked. Nobody else makes one in the worker's partitions.
	passed map[millrace.Stream]bool
	// states are those of documents as the last commits left them, which the feed keeps too: they need not be decoded.
	states map[*millrace.Instance]any
	// stateBytes are the bytes, as they are written, of the states that were kept since the last time that all were let go.
	stateBytes int

	outcomes outcomes
	calls    calls
}

const (
	// maxStates bounds states, and maxStateBytes what they are of as they are written: those of orders of thousands of lines are
	// large. Beyond either all are let go, and decoded again.
	maxStates     = 4096
	maxPassed     = 32 << 10 // streams; beyond it all are looked for again
	maxStateBytes = 16 << 20
)

// sending is a command on its way.
type sending struct {
	stream  millrace.Stream // of the instance
	step    string
	of      string // the dead letter that is sent again; the command is not complete until it is read
	command millrace.Command
	// recalled is the instance of a command that is sent again, and that is not at work otherwise.
	recalled *instance
}

func newWork(m *Manager) *work {
	return &work{m: m, wake: make(chan struct{}, 1), at: map[millrace.Stream]*instance{}, due: map[int]time.Time{}, resume: map[int]*millrace.Place{},
		states: map[*millrace.Instance]any{}, passed: map[millrace.Stream]bool{},
	}
}

// Begin implements millrace.Work.
func (w *work) Begin(ctx context.Context, partitions []int, parked func(millrace.Stream) bool) (<-chan struct{}, error) {
	w.partitions, w.parked = partitions, parked
	for _, p := range partitions {
		w.due[p] = time.Time{}
		w.resume[p] = &millrace.Place{}
	}
	ctx, w.cancel = context.WithCancel(ctx)
	w.outcomes.init(ctx, w.signal)
	w.calls.init(ctx, w)
	w.ended.Go(func() { w.watch(ctx) })
	w.signal()
	return w.wake, nil
}

// End implements millrace.Work.
func (w *work) End() {
	if w.cancel != nil {
		w.cancel()
	}
	w.ended.Wait()
	w.outcomes.wait.Wait()
	w.calls.wait.Wait()
}

func (w *work) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Handle implements millrace.Work.
func (w *work) Handle(_ context.Context, v millrace.Views, e *millrace.Recorded) error {
	if e.Version == 1 {
		// What an instance has seen moves with the checkpoint: before a stream's first event it has none.
		w.passBy(e.Stream)
	}
	i, err := w.load(v, e.Partition, e.Stream, true)
	if err != nil {
		return err
	}
	switch d := i.doc; {
	case e.Version <= d.Version:
		return nil // it comes again
	case d.Failed != "":
		return fmt.Errorf("the instance has stopped: %s", d.Failed)
	case d.Version == 0:
		d.BeganAt, d.CorrelationID = e.Time, e.CorrelationID
	}
	i.doc.Version = e.Version
	return i.apply(&millrace.Input{At: e.Time, Event: e.Body, Version: e.Version}, e.ID())
}

// Turn implements millrace.Work.
func (w *work) Turn(ctx context.Context, views func(int) millrace.Views) error {
	more := false
	for _, p := range w.partitions {
		again, err := w.recall(ctx, p)
		if err != nil {
			return err
		}
		more = more || again
	}
	for _, a := range w.outcomes.take(maxArrived) {
		p := a.stream.Partition(w.m.store.Partitions())
		if w.parked(a.stream) {
			continue // the command's outcome is asked for again when the stream is free
		}
		i, err := w.load(views(p), p, a.stream, false)
		if err != nil {
			return err
		}
		if i == nil || i.doc.Failed != "" {
			continue
		}
		if err := i.outcome(a.step, &a.outcome); err != nil {
			i.stop(err)
		}
	}
	if err := w.answers(views); err != nil {
		return err
	}
	now := w.m.o.Now()
	for _, p := range w.partitions {
		if w.due[p].After(now) {
			continue
		}
		if err := w.fire(ctx, views(p), p, now); err != nil {
			return err
		}
	}
	if more || w.outcomes.any() || w.calls.any() {
		w.signal()
	}
	return nil
}

// Redrive implements millrace.Work: an instance that has stopped goes on, and what it waits for is asked for again.
func (w *work) Redrive(_ context.Context, v millrace.Views, s millrace.Stream) error {
	if s.Category() != w.m.p.Category {
		return nil
	}
	i, err := w.load(v, s.Partition(w.m.store.Partitions()), s, false)
	if err != nil || i == nil {
		return err
	}
	i.doc.Failed = ""
	i.resend()
	return nil
}

// Settle implements millrace.Work.
func (w *work) Settle(ctx context.Context, views func(int) millrace.Views) error {
	for round := 0; len(w.queue) > 0; {
		sent, rest, err := w.complete(ctx, w.queue)
		if err != nil {
			return err
		}
		if w.queue = rest; len(rest) == 0 {
			round++
		}
		receipts, err := w.accept(ctx, sent)
		if err != nil {
			return err
		}
		known, err := w.known(ctx, sent, receipts)
		if err != nil {
			return err
		}
		for n, s := range sent {
			i := w.at[s.stream]
			switch r := receipts[n]; {
			case i == nil && r.Err == nil:
				w.sent = append(w.sent, awaited{s.stream, s.step, r.Receipt})
			case r.Err != nil:
				w.stop(&s, r.Err)
			case i.doc.Failed != "":
			case round == maxRounds:
				i.stop(fmt.Errorf("it sent commands in %d rounds and did not come to rest", maxRounds))
			case known[n] == nil:
				w.sent = append(w.sent, awaited{s.stream, s.step, r.Receipt})
			default:
				if err := i.outcome(s.step, known[n]); err != nil {
					i.stop(err)
				}
			}
		}
	}
	for _, i := range w.order {
		if err := i.save(views(i.partition)); err != nil {
			return err
		}
	}
	return nil
}

// stop stops the instance of a command that will never be accepted.
func (w *work) stop(s *sending, err error) {
	i := w.at[s.stream]
	if i == nil {
		i = s.recalled
		w.at[s.stream] = i
		w.order = append(w.order, i)
	}
	if i.doc.Failed == "" {
		i.stop(fmt.Errorf("step %s: %w", s.step, err))
	}
}

// known are the outcomes, as far as they are known, of commands that were accepted. On a shared store decisions are made some
// milliseconds later, perhaps by another node: a moment's wait for those of all instances saves each of them a document that is
// written in between, and a look-up.
func (w *work) known(ctx context.Context, sent []sending, receipts []millrace.Accepted) ([]*millrace.Outcome, error) {
	out := make([]*millrace.Outcome, len(sent))
	for n := range receipts {
		if receipts[n].Err != nil {
			continue
		}
		if o, err := receipts[n].Receipt.Wait(already); err == nil {
			out[n] = &o // it was decided as it was kept
		}
	}
	if !w.m.store.Shared() {
		return out, nil
	}
	for _, wait := range lingers {
		var qs []millrace.Inquiry
		var of []int
		for n := range sent {
			if out[n] == nil && receipts[n].Err == nil {
				qs, of = append(qs, millrace.Inquiry{ID: sent[n].command.ID, Decided: true}), append(of, n)
			}
		}
		if len(qs) == 0 {
			break
		}
		if err := pause(ctx, wait); err != nil {
			return nil, err
		}
		for k, f := range w.m.store.Lookups(ctx, qs) {
			if f.Err == nil && f.Outcome.Done() {
				out[of[k]] = &f.Outcome
			}
		}
	}
	return out, nil
}

// already is a context for those who want to know what is known.
var already = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// accept sends commands until each is accepted, or never will be: what is full or away gets free again, and until then the
// process waits with it.
func (w *work) accept(ctx context.Context, sent []sending) ([]millrace.Accepted, error) {
	out := make([]millrace.Accepted, len(sent))
	rest := make([]int, len(sent))
	for n := range sent {
		rest[n] = n
	}
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		cs := make([]millrace.Command, len(rest))
		for k, n := range rest {
			cs[k] = sent[n].command
		}
		var again []int
		var why error
		for k, a := range w.m.intake.AcceptAll(ctx, cs) {
			if out[rest[k]] = a; passes(a.Err) {
				again, why = append(again, rest[k]), a.Err
			}
		}
		w.m.o.Observer.Sent(w.m.p.Name, len(rest)-len(again))
		if rest = again; len(rest) == 0 {
			return out, nil
		}
		if ctx.Err() != nil || errors.Is(why, millrace.ErrClosed) || errors.Is(why, millrace.ErrFailed) {
			return nil, why
		}
		w.m.o.Logger.Warn("commands of a process are not accepted, trying again", "process", w.m.p.Name, "commands", len(rest), "error", why)
		if err := pause(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// pause waits, or returns ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// passes says whether an error of Accept is not the command's own.
func passes(err error) bool {
	return err != nil && !errors.Is(err, millrace.ErrInvalid) && !errors.Is(err, millrace.ErrKeyReused)
}

// Committed implements millrace.Work.
func (w *work) Committed() {
	w.outcomes.await(w.sent)
	w.outcomes.taken = nil
	w.calls.drop(w.dropped)
	w.calls.make(w.calling)
	w.calls.taken = nil
	w.keepStates()
	w.forget()
}

// keepStates keeps those of the commit that has just ended.
func (w *work) keepStates() {
	for _, i := range w.order {
		if i.unkept() {
			w.passBy(i.doc.Stream)
			continue
		}
		if delete(w.passed, i.doc.Stream); i.unread != nil {
			continue
		}
		if w.stateBytes += len(i.doc.Data); w.stateBytes > maxStateBytes || len(w.states) >= maxStates {
			clear(w.states)
			w.stateBytes = len(i.doc.Data)
		}
		w.states[i.doc] = i.state
	}
}

// passBy notes that a stream has no instance.
func (w *work) passBy(s millrace.Stream) {
	if len(w.passed) >= maxPassed {
		clear(w.passed)
	}
	w.passed[s] = true
}

// Undone implements millrace.Work.
func (w *work) Undone() {
	clear(w.states)
	clear(w.passed) // noted while applying what now did not happen
	w.stateBytes = 0
	w.outcomes.giveBack()
	w.calls.giveBack()
	for _, p := range w.partitions {
		w.expect(p, time.Time{}) // timers may have fired in vain
		if w.recalled {
			w.resume[p] = &millrace.Place{}
		}
	}
	w.forget()
}

func (w *work) forget() {
	clear(w.at)
	w.order, w.queue, w.sent, w.calling, w.dropped, w.recalled = nil, nil, nil, nil, nil, false
}
