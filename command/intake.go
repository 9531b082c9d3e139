package command

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-io/millrace"
)

// item is a command on its way.
type item struct {
	p         *Processor
	cmd       millrace.Command
	fp        millrace.Fingerprint
	partition int
	failure   *millrace.Failure // it cannot be mapped: a dead letter from the start
	began     time.Time

	// kept says how the command gets to the disk: see the constants.
	kept atomic.Int32
	// stored is closed when the command is on disk, or will never be (err).
	stored    chan struct{}
	isStored  atomic.Bool
	err       error
	forgotten bool // on disk, and in nobody's hands: whoever waits for the outcome must ask the store
	// ended says that outcome is final, or never will be in this process. done is closed then, where there is one: most
	// callers look when it has happened already, so it is made by the first who comes too early.
	ended atomic.Bool
	// replayed: the store turned out to have had the command when it was written. Written before stored is closed.
	replayed atomic.Bool
	done     atomic.Pointer[chan struct{}]
	finish   atomic.Bool // somebody is at it
	outcome  millrace.Outcome

	loaded   bool // the loop has it; guarded by the partition's lock
	drained  bool // the loop has it from the store
	blocked  bool // it waited behind others of its stream
	admitted bool // it came through the queue and counts there
	seen     sighting
	guessed  bool // it was not looked up; seen is a guess
	attempts int
	waiters  int  // guarded by the flight's shard
	held     bool // by the loop; guarded by the flight's shard
}

// How a command gets to the disk. Whoever moves it away from fresh is the one who writes it.
const (
	fresh     = iota // not yet
	withFate         // in one commit with its decision
	alone            // by itself; its decision follows
	fromStore        // it was there
)

func (p *Processor) newItem(c millrace.Command, fp millrace.Fingerprint, now time.Time) *item {
	return &item{
		p: p, cmd: c, fp: fp, partition: c.Stream.Partition(p.store.Partitions()), began: now,
		stored: make(chan struct{}),
	}
}

// storedIs says that the command is on disk, or why it never will be. Only the first call counts.
func (it *item) storedIs(err error) {
	if it.isStored.CompareAndSwap(false, true) {
		it.err = err
		close(it.stored)
	}
}

// written notes what the store said of the command when it wrote it, or refused to. Before storedIs.
func (it *item) written(known bool, err error) {
	if known {
		it.replayed.Store(true)
	}
	if !it.guessed {
		return
	}
	conflict := errors.Is(err, millrace.ErrConflict) && !errors.Is(err, millrace.ErrBehind)
	if known || conflict || errors.Is(err, millrace.ErrKeyReused) {
		it.p.guesses.wrong()
	}
}

// doneIs says what became of the command; nil where this process will not know. Only the first call counts.
func (it *item) doneIs(o *millrace.Outcome) {
	if !it.finish.CompareAndSwap(false, true) {
		return
	}
	if o != nil {
		it.outcome = *o
	}
	it.ended.Store(true)
	if done := it.done.Load(); done != nil {
		close(*done)
	}
}

// wait returns what is closed when the item has ended; nil where it has.
func (it *item) wait() <-chan struct{} {
	if it.ended.Load() {
		return nil
	}
	done := it.done.Load()
	if done == nil {
		c := make(chan struct{})
		if it.done.CompareAndSwap(nil, &c) {
			done = &c
		} else {
			done = it.done.Load()
		}
	}
	// It may have ended before there was something to close.
	if it.ended.Load() {
		return nil
	}
	return *done
}

// receipt is the proof for a caller whose command is on disk. An item that is in the flight only because somebody waits
// may be gone when that somebody is, so whoever meets it there waits for himself.
func (it *item) receipt(replayed bool) *millrace.Receipt {
	var w millrace.Waiter = it
	if it.forgotten || it.kept.Load() == fromStore && !it.ended.Load() {
		w = &absent{p: it.p, cmd: it.bare(), fp: it.fp}
	}
	return millrace.NewPendingReceipt(it.cmd.ID, it.cmd.Stream, replayed, w)
}

// bare is the command without its decoded body, which the loop may be about to make.
func (it *item) bare() millrace.Command {
	c := &it.cmd
	return millrace.Command{
		ID: c.ID, Stream: c.Stream, Type: c.Type, Data: c.Data, Time: c.Time, Expected: c.Expected,
		CorrelationID: c.CorrelationID, CausationID: c.CausationID, Source: c.Source,
	}
}

// Await implements millrace.Waiter.
func (it *item) Await(ctx context.Context) (millrace.Outcome, error) {
	if done := it.wait(); done != nil {
		select {
		case <-done:
		case <-ctx.Done():
			return millrace.Outcome{}, ctx.Err()
		}
	}
	if !it.outcome.Done() {
		return it.outcome, millrace.ErrClosed
	}
	return it.outcome, nil
}

// absent waits for a command that is in the store only. A backlog may be long, so such commands are not in the flight until
// somebody waits for one.
type absent struct {
	p   *Processor
	cmd millrace.Command
	fp  millrace.Fingerprint
}

// Await implements millrace.Waiter. It puts an item into the flight first and looks into the store then: the loop,
// which does it the other way round, meets the item or has decided already.
func (a *absent) Await(ctx context.Context) (millrace.Outcome, error) {
	if err := ctx.Err(); err != nil {
		return millrace.Outcome{}, err // who only wants what is known is not to cost a question
	}
	it := a.p.newItem(a.cmd, a.fp, a.p.o.Now())
	it.kept.Store(fromStore)
	it.storedIs(nil)
	it = a.p.flight.wait(it)
	defer a.p.flight.unwait(it)
	o, err := a.p.store.Lookup(ctx, a.cmd.ID)
	if err != nil {
		return o, err
	}
	if o.Done() {
		it.doneIs(&o)
		return o, nil
	}
	if a.p.closed.Load() {
		return o, millrace.ErrClosed
	}
	return it.Await(ctx)
}

// flightShards spread the locks of the commands in flight: more than there are cores.
const flightShards = 64

// flight finds the commands that are on their way by their ids, so that two submissions of one id meet.
type flight struct {
	seed   maphash.Seed
	shards [flightShards]flightShard
}

type flightShard struct {
	mu    sync.Mutex
	items map[string]*item
}

func (f *flight) shard(id string) *flightShard {
	return &f.shards[maphash.String(f.seed, id)%flightShards]
}

func newFlight() *flight {
	f := &flight{seed: maphash.MakeSeed()}
	for i := range f.shards {
		f.shards[i].items = map[string]*item{}
	}
	return f
}

// enter puts an item in, or returns the one that has its id already.
func (f *flight) enter(it *item) (other *item) {
	s := f.shard(it.cmd.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if other = s.items[it.cmd.ID]; other == nil {
		s.items[it.cmd.ID] = it
	}
	return other
}

// wait puts an item in, or finds the one that has its id, for somebody who waits. The command is in the store, so an
// item that is still fresh is a further submission that is being looked up: it will find out, and nobody may lean on it.
func (f *flight) wait(it *item) *item {
	s := f.shard(it.cmd.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.items[it.cmd.ID]; other != nil && other.kept.Load() != fresh && other.fp == it.fp {
		it = other
	} else {
		s.items[it.cmd.ID] = it
	}
	it.waiters++
	return it
}

// forget takes an item out whose command is in the store undecided, but for one that the loop has found there already,
// or that somebody waits on. It says whether it is out.
func (f *flight) forget(it *item) bool {
	s := f.shard(it.cmd.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	it.kept.Store(fromStore)
	if s.items[it.cmd.ID] == it {
		if it.held || it.waiters > 0 {
			return false
		}
		delete(s.items, it.cmd.ID)
	}
	return true
}

// unwait takes an item out again that was only there for those who waited.
func (f *flight) unwait(it *item) {
	s := f.shard(it.cmd.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if it.waiters--; it.waiters == 0 && it.kept.Load() == fromStore && !it.held && s.items[it.cmd.ID] == it {
		delete(s.items, it.cmd.ID)
	}
}

// hold finds the item of an undecided command of the store, or puts one in, for the loop: it stays until it is settled.
// As in wait, a fresh item is a further submission; deciding that one would write the command a second time.
func (f *flight) hold(it *item) *item {
	s := f.shard(it.cmd.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.items[it.cmd.ID]; other != nil && other.kept.Load() != fresh && other.fp == it.fp {
		it = other
	} else {
		s.items[it.cmd.ID] = it
	}
	it.held = true
	return it
}

// leave takes an item out.
func (f *flight) leave(it *item) {
	s := f.shard(it.cmd.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.items[it.cmd.ID] == it {
		delete(s.items, it.cmd.ID)
	}
}

// drain takes everything out.
func (f *flight) drain(each func(*item)) {
	for i := range f.shards {
		s := &f.shards[i]
		s.mu.Lock()
		for _, it := range s.items {
			each(it)
		}
		clear(s.items)
		s.mu.Unlock()
	}
}

// Accept implements millrace.Intake.
func (p *Processor) Accept(ctx context.Context, c millrace.Command) (*millrace.Receipt, error) {
	it, replayed, err := p.submit(ctx, c)
	if err != nil {
		p.o.Observer.Rejected(err)
		return nil, err
	}
	if !replayed {
		p.parts[it.partition].put(it)
	}
	return p.stored(ctx, it, replayed)
}

// stored waits until a command is on disk.
func (p *Processor) stored(ctx context.Context, it *item, replayed bool) (*millrace.Receipt, error) {
	select {
	case <-it.stored:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if it.err != nil {
		p.o.Observer.Rejected(it.err)
		return nil, it.err
	}
	replayed = replayed || it.replayed.Load()
	p.o.Observer.Accepted(p.o.Now().Sub(it.began), replayed)
	return it.receipt(replayed), nil
}

// submit checks a command and finds out whether it is known. If not, it is admitted, and its loop must get it.
func (p *Processor) submit(ctx context.Context, c millrace.Command) (it *item, replayed bool, err error) {
	for {
		it, met, err := p.enter(c)
		if err != nil {
			return nil, false, err
		}
		if met == nil {
			return p.settleIn(it, &p.store.Lookups(ctx, []millrace.Inquiry{p.inquiry(it)})[0])
		}
		if met.fp == it.fp {
			return met, true, nil
		}
		if err := met.reuse(ctx); err != nil {
			return nil, false, err
		}
	}
}

// enter checks a command and puts it into the flight. met is the item that has its id there already; the new one is then
// nowhere.
func (p *Processor) enter(c millrace.Command) (it, met *item, err error) {
	if err := check(&c); err != nil {
		return nil, nil, err
	}
	if p.closed.Load() {
		return nil, nil, millrace.ErrClosed
	}
	now := p.o.Now()
	if c.Time.IsZero() {
		c.Time = now
	}
	c.Time = c.Time.UTC().Round(0)
	if c.CorrelationID == "" {
		c.CorrelationID = c.ID
	}
	it = p.newItem(c, c.Fingerprint(), now)
	it.map_(p.registry)
	return it, p.flight.enter(it), nil
}

// reuse waits for what becomes of an item whose id another content wants. That is refused only if this one is kept: this
// one may be the one that is refused.
func (it *item) reuse(ctx context.Context) error {
	select {
	case <-it.stored:
	case <-ctx.Done():
		return ctx.Err()
	}
	if it.err == nil {
		return millrace.ErrKeyReused
	}
	return nil
}

// settleIn goes on with an item that has entered the flight, when the store has answered for its id.
func (p *Processor) settleIn(it *item, found *millrace.Finding) (_ *item, replayed bool, _ error) {
	isNew := errors.Is(found.Err, millrace.ErrNotFound)
	if p.guesses != nil && (found.Err == nil || isNew) {
		if !it.guessed {
			p.guesses.saw(it, isNew && found.Version == 0)
		}
		p.guesses.note(it)
	}
	switch {
	case found.Err == nil:
		return p.known(it, found.Outcome)
	case !isNew:
		return nil, false, p.giveUp(it, found.Err)
	}
	it.seen.version = found.Version
	if err := p.admit(it.cmd.ID, len(it.cmd.Data)); err != nil {
		return nil, false, p.giveUp(it, err)
	}
	return it, false, nil
}

// check says what is wrong with a command's form.
func check(c *millrace.Command) error {
	if err := millrace.ValidateID("command id", c.ID, millrace.MaxCommandID); err != nil {
		return err
	}
	if err := c.Stream.Validate(); err != nil {
		return err
	}
	if err := millrace.ValidateID("command type", c.Type, millrace.MaxTypeName); err != nil {
		return err
	}
	for _, id := range []struct{ what, id string }{
		{"correlation id", c.CorrelationID}, {"causation id", c.CausationID}, {"source", c.Source},
	} {
		if id.id == "" {
			continue
		}
		if err := millrace.ValidateID(id.what, id.id, millrace.MaxCommandID); err != nil {
			return err
		}
	}
	if len(c.Data) > millrace.MaxCommandData {
		return fmt.Errorf("%w: command data is longer than %d bytes", millrace.ErrInvalid, millrace.MaxCommandData)
	}
	return nil
}

// map_ decodes the command's body. What cannot be mapped is kept, as a dead letter.
func (it *item) map_(r *millrace.Registry) {
	body, err := r.DecodeCommand(&it.cmd)
	if err == nil {
		it.cmd.Body = body
		return
	}
	it.failure = &millrace.Failure{Reason: millrace.ReasonUndecodable, Error: err.Error(), Attempts: 1}
	var form *millrace.FormError
	switch {
	case errors.Is(err, millrace.ErrUnknownType):
		it.failure.Reason = millrace.ReasonUnknownType
	case errors.As(err, &form) && len(form.Errors) > 0:
		it.failure.Error = form.Errors[0].Pointer + ": " + form.Errors[0].Detail
	}
}

// known answers a command that the store has.
func (p *Processor) known(it *item, o millrace.Outcome) (*item, bool, error) {
	if o.Fingerprint != it.fp {
		return nil, false, p.giveUp(it, millrace.ErrKeyReused)
	}
	if o.Done() {
		it.kept.Store(fromStore)
		p.flight.leave(it)
		it.doneIs(&o)
	} else {
		it.forgotten = p.flight.forget(it)
	}
	it.storedIs(nil)
	return it, true, nil
}

// giveUp ends an item that did not get anywhere, for its own caller and for those who met it in flight.
func (p *Processor) giveUp(it *item, err error) error {
	p.flight.leave(it)
	it.storedIs(err)
	it.doneIs(nil)
	return err
}

const queueName = "queue"

// processRoom is how many times the bounds hold for the commands of processes. They carry on what was accepted before: new
// commands, of which there can be any number, must not keep those from their ends that are on their way.
const processRoom = 2

// admit says whether one more command may come in, and counts it.
func (p *Processor) admit(id string, size int) error {
	if err := p.store.Writable(); err != nil {
		return err
	}
	room := int64(1)
	if strings.HasPrefix(id, millrace.StepPrefix) {
		room = processRoom
	}
	if p.store.Backlog() >= room*p.o.MaxBacklog {
		return &millrace.OverloadError{What: "backlog", RetryAfter: overloadRetry}
	}
	n, b := p.inMemory.Add(1), p.inBytes.Add(int64(size))
	if n > room*int64(p.o.MaxQueue) || b > room*maxQueueBytes {
		p.release(1, size)
		return &millrace.OverloadError{What: queueName, RetryAfter: overloadRetry}
	}
	return nil
}

// release counts commands out that admit counted in.
func (p *Processor) release(n, size int) {
	p.inMemory.Add(int64(-n))
	p.inBytes.Add(int64(-size))
}
