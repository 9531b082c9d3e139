package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/millrace-io/millrace"
)

// decideAll decides items in order and commits what comes of it.
func (s *partition) decideAll(ctx context.Context, items []*item) {
	if err := s.p.store.Writable(); err != nil {
		s.postpone(items, err)
		return
	}
	s.prefetch(ctx, items)
	b := &millrace.Batch{Partition: s.index, Decisions: make([]millrace.Decision, 0, len(items))}
	done := make([]*item, 0, len(items))
	entries := make([]*entry, 0, len(items))
	size := 0
	for _, it := range items {
		if size >= maxCommitBytes {
			s.send(b, done, entries)
			b = &millrace.Batch{Partition: s.index}
			done, entries, size = nil, nil, 0
		}
		d, e, ok := s.decide(ctx, it)
		if !ok {
			continue
		}
		if e != nil {
			e.pins.Add(1)
		}
		b.Decisions = append(b.Decisions, d)
		done, entries = append(done, it), append(entries, e)
		size += len(it.cmd.Data)
		for i := range d.Events {
			size += len(d.Events[i].Data)
		}
	}
	s.send(b, done, entries)
	s.mu.Lock()
	s.working = nil
	s.mu.Unlock()
}

// send hands what is decided to the store.
func (s *partition) send(b *millrace.Batch, done []*item, entries []*entry) {
	if len(done) == 0 {
		return
	}
	// Whoever wins takes the command to the disk: this commit, or the rescue that came first. A rescue holds the
	// lock from its decision to its place in the store's queue, so its record comes before ours.
	s.mu.Lock()
	for i, it := range done {
		b.Decisions[i].Fresh = it.kept.CompareAndSwap(fresh, withFate)
		b.InOrder = b.InOrder || b.Decisions[i].Fresh && s.p.direct
		delete(s.held, it.cmd.ID)
	}
	if b.InOrder {
		b.Held = slices.Collect(maps.Keys(s.held))
	}
	s.mu.Unlock()
	s.commit(b, done, entries)
}

// postpone puts items back until the store can be written to again. The ones that are not on disk yet are refused.
func (s *partition) postpone(items []*item, err error) {
	for _, it := range items {
		if it.kept.CompareAndSwap(fresh, withFate) {
			s.p.release(1, len(it.cmd.Data))
			_ = s.p.giveUp(it, err)
			continue
		}
		s.block(it, 0)
	}
	s.mu.Lock()
	s.working = nil
	s.mu.Unlock()
}

// block puts an item behind those of its stream that wait for another attempt. Its caller need not wait so long: the
// command is kept now.
func (s *partition) block(it *item, tries int) {
	s.mu.Lock()
	if it.kept.CompareAndSwap(fresh, alone) {
		s.keep(it, true)
	}
	s.mu.Unlock()
	b := s.blocked[it.cmd.Stream]
	if b == nil {
		b = &blocked{}
		s.blocked[it.cmd.Stream] = b
	}
	if len(b.items) == 0 {
		b.tries = tries
		b.next = s.p.o.Now().Add(backoff(tries))
	}
	b.items = append(b.items, it)
	it.blocked = true
	s.waiting++
	s.discount(it)
}

// discount takes an item out of the queue's count: it is on its way to the store by itself, or there.
func (s *partition) discount(it *item) {
	if it.admitted {
		it.admitted = false
		s.p.release(1, len(it.cmd.Data))
	}
}

// spill leaves an item of a blocked stream to the store, from where the loop reads it again when the stream is free.
func (s *partition) spill(b *blocked, it *item) {
	b.spilled = true
	s.mu.Lock()
	s.behind = true
	if s.p.direct {
		s.gather = true // what is kept alone now would make the store refuse what is in the queue
	}
	it.loaded, it.drained, it.blocked = false, false, false
	s.hold(it) // until the loop has read it again
	if it.kept.CompareAndSwap(fresh, alone) {
		s.keep(it, false)
		s.mu.Unlock()
		return
	}
	s.kept.Add(1)
	s.mu.Unlock()
	// It stays among those in flight, where its waiters look for it: these are not more than the queue held.
	s.discount(it)
}

// backoff is how long to wait before an attempt: doubling, between bounds.
func backoff(tries int) time.Duration {
	d := firstRetry << min(tries, 16)
	return min(d, lastRetry)
}

// decide decides one command. ok is false where it must wait: it is among the blocked then.
func (s *partition) decide(ctx context.Context, it *item) (d millrace.Decision, e *entry, ok bool) {
	stream := it.cmd.Stream
	tries := 0
	if b := s.blocked[stream]; b != nil {
		switch {
		case b.full() || b.spilled && !it.drained && !it.blocked:
			s.spill(b, it)
			return d, nil, false
		case len(b.items) > 0:
			s.block(it, 0)
			return d, nil, false
		}
		tries = b.tries + 1
	}
	d = millrace.Decision{Command: &it.cmd, Fingerprint: it.fp, Time: it.cmd.Time}
	if it.failure != nil {
		// The stream's version stands in the outcome; it is not worth a wait if it cannot be read.
		if e, _ = s.entry(ctx, stream); e != nil {
			d.Version = e.version
		}
		s.unblock(stream)
		s.bury(&d, it.failure)
		return d, e, true
	}
	e, r, err := s.rule(ctx, it)
	if err != nil {
		return d, nil, s.unread(ctx, it, &d, tries, err)
	}
	d.Version = e.version
	if r.err != nil {
		it.attempts++
		if it.attempts < s.p.o.Attempts {
			s.p.o.Logger.Warn("decision failed, trying again", "stream", stream, "command", it.cmd.ID, "error", r.err)
			s.block(it, tries)
			return d, nil, false
		}
		s.unblock(stream)
		s.bury(&d, &millrace.Failure{Reason: millrace.ReasonDecide, Error: r.err.Error(), Attempts: it.attempts})
		return d, e, true
	}
	s.unblock(stream)
	if r.refusal != nil {
		d.Status, d.Refusal = millrace.StatusRefused, r.refusal
		return d, e, true
	}
	d.Status, d.Events = millrace.StatusDecided, r.events
	if n := len(r.events); n > 0 {
		// A stream's events are in the order of time, so that "as of then" is a prefix of it; clocks may step back.
		if d.Time.Before(e.last) {
			d.Time = e.last
		}
		e.state, e.version, e.last, e.guessed = r.state, e.version+uint64(n), d.Time, false
		for i := range r.events {
			s.cache.grow(e, len(r.events[i].Data))
		}
	}
	return d, e, true
}

// unread goes on with a command whose stream's state cannot be read. ok is as of decide.
func (s *partition) unread(ctx context.Context, it *item, d *millrace.Decision, tries int, err error) (ok bool) {
	stream := it.cmd.Stream
	if ctx.Err() != nil || millrace.IsTransient(err) || it.attempts+1 < s.p.o.Attempts {
		it.attempts++
		if ctx.Err() == nil { // who stops, or hands the partition over, leaves the command to the next owner
			s.p.o.Logger.Warn("cannot read a stream's state, trying again", "stream", stream, "command", it.cmd.ID, "error", err)
		}
		s.block(it, tries)
		return false
	}
	s.unblock(stream)
	s.bury(d, &millrace.Failure{Reason: millrace.ReasonState, Error: err.Error(), Attempts: it.attempts + 1})
	return true
}

// rule finds a command's stream and runs its decision, on what the stream is for certain.
func (s *partition) rule(ctx context.Context, it *item) (e *entry, r ruling, err error) {
	if e, err = s.entry(ctx, it.cmd.Stream); err != nil {
		return nil, r, err
	}
	r = run(e, it)
	if !e.guessed || len(r.events) > 0 || s.p.guesses.trusting {
		return e, r, nil // a guess that is wrong is refused with the events' versions
	}
	if e, err = s.prove(ctx, e, it); err != nil {
		return nil, r, err
	}
	return e, run(e, it), nil
}

// unblock forgets that a stream waited, once its first command got through.
func (s *partition) unblock(stream millrace.Stream) {
	if len(s.blocked) == 0 {
		return
	}
	b := s.blocked[stream]
	switch {
	case b == nil || len(b.items) > 0:
	case b.spilled:
		b.tries = -1 // the next one from the store begins anew
	default:
		delete(s.blocked, stream)
	}
}

func (s *partition) bury(d *millrace.Decision, f *millrace.Failure) {
	f.Error = readable(f.Error)
	d.Status, d.Failure = millrace.StatusDead, f
	level := slog.LevelError
	if f.Reason == millrace.ReasonUnknownType || f.Reason == millrace.ReasonUndecodable {
		level = slog.LevelWarn // the sender's fault, and any sender can make many
	}
	s.p.o.Logger.Log(context.Background(), level, "command became a dead letter", "command", d.Command.ID, "stream", d.Command.Stream,
		"type", d.Command.Type, "reason", f.Reason, "attempts", f.Attempts)
}

func versionRefusal(version uint64) *millrace.Refusal {
	return &millrace.Refusal{
		Kind: millrace.RefusedVersion, Code: "version_conflict",
		Detail: fmt.Sprintf("the stream is at version %d", version),
	}
}

// readable makes a text one that a document can hold: a panic may say anything.
func readable(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}

// entry finds a stream's state in memory or in the store.
func (s *partition) entry(ctx context.Context, stream millrace.Stream) (*entry, error) {
	if e := s.cache.get(stream); e != nil {
		return e, nil
	}
	c, ok := s.p.registry.Category(stream)
	if !ok {
		v, err := s.version(ctx, stream) // never a guess: its commands are of no known type
		return &entry{stream: stream, folded: folded{version: v.version}}, err
	}
	began := s.p.o.Now()
	f, guessed, err := s.load(ctx, c, stream)
	if err != nil {
		return nil, err
	}
	s.p.o.Observer.Loaded(s.p.o.Now().Sub(began))
	e := &entry{stream: stream, category: c, folded: f, guessed: guessed}
	s.cache.add(e)
	return e, nil
}

// prefetch has the versions of the streams that are not in memory at hand, on a shared store: as they were seen when the
// commands came in, or asked for, all at once. One by one each would be a round trip, and most are new.
func (s *partition) prefetch(ctx context.Context, items []*item) {
	clear(s.versions)
	if !s.p.store.Shared() {
		return
	}
	var streams []millrace.Stream
	for _, it := range items {
		stream := it.cmd.Stream
		if _, asked := s.versions[stream]; asked || s.cache.entries[stream] != nil {
			continue
		}
		if s.holds(it) {
			s.versions[stream] = seenVersion{it.seen.version, it.guessed}
			continue
		}
		s.versions[stream] = seenVersion{}
		streams = append(streams, stream)
	}
	s.ask(ctx, streams)
}

// ask has the versions of streams at hand. Where they cannot be had, each is asked for by itself, and fails by itself.
func (s *partition) ask(ctx context.Context, streams []millrace.Stream) {
	if len(streams) == 0 {
		return
	}
	versions, err := s.p.store.Versions(ctx, s.index, streams)
	for i, stream := range streams {
		if err != nil {
			delete(s.versions, stream)
		} else {
			s.versions[stream] = seenVersion{version: versions[i]}
		}
	}
}

// seenVersion is a stream's version as it was seen, or guessed, before its command was decided.
type seenVersion struct {
	version uint64
	guessed bool
}

// version is a stream's newest version as the store has it, or a guess.
func (s *partition) version(ctx context.Context, stream millrace.Stream) (seenVersion, error) {
	if v, ok := s.versions[stream]; ok {
		// Good for once: what is decided on it is in memory, or was and is now in the store.
		delete(s.versions, stream)
		return v, nil
	}
	v, err := s.p.store.Version(ctx, stream)
	return seenVersion{version: v}, err
}

// prove replaces an entry whose version was guessed, for a decision that does not show whether the guess was right. The other
// guesses at hand are asked for as well: where one decision has no events, more may have none.
func (s *partition) prove(ctx context.Context, e *entry, it *item) (*entry, error) {
	s.p.guesses.unsure(it.cmd.Type)
	s.cache.drop(e)
	streams := []millrace.Stream{e.stream}
	for stream, v := range s.versions {
		if v.guessed {
			streams = append(streams, stream)
		}
	}
	s.ask(ctx, streams)
	return s.entry(ctx, e.stream)
}

// load reads a state. A fold that panics is an error like any other.
func (s *partition) load(ctx context.Context, c *millrace.Category, stream millrace.Stream) (f folded, guessed bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: folding the stream panicked: %v", millrace.ErrCorrupt, r)
		}
	}()
	newest, err := s.version(ctx, stream)
	if err != nil {
		return f, false, err
	}
	f, err = s.p.loader.load(ctx, c, stream, newest.version)
	return f, newest.guessed, err
}

// ruling is what the pure part of a decision says: the events, encoded, and the state after them, or a refusal. err is a panic or
// a broken contract.
type ruling struct {
	events  []millrace.NewEvent
	state   any
	refusal *millrace.Refusal
	err     error
}

// run runs the pure part of a decision.
func run(e *entry, it *item) (r ruling) {
	defer func() {
		if p := recover(); p != nil {
			r = ruling{err: fmt.Errorf("panic: %v\n%s", p, firstLines(debug.Stack()))}
		}
	}()
	if x := it.cmd.Expected; x != nil && *x != e.version {
		return ruling{refusal: versionRefusal(e.version)}
	}
	decided, refusal := e.category.Decide(e.state, it.cmd.Body, it.cmd.Time)
	if refusal != nil {
		if len(decided) > 0 {
			return ruling{err: errors.New("the decision has events and a refusal")}
		}
		return ruling{refusal: refusal}
	}
	if len(decided) > maxEvents {
		return ruling{err: fmt.Errorf("the decision has %d events, the most are %d", len(decided), maxEvents)}
	}
	r.state = e.state
	if len(decided) > 0 {
		r.events = make([]millrace.NewEvent, len(decided))
	}
	size := 0
	for i, body := range decided {
		var err error
		if r.events[i], err = e.category.EncodeEvent(body); err != nil {
			return ruling{err: err}
		}
		if size += len(r.events[i].Data); size > maxEventData {
			return ruling{err: fmt.Errorf("the decision's events take more than %d bytes", maxEventData)}
		}
		r.state = e.category.Evolve(r.state, body)
	}
	return r
}

// maxStack bounds what a dead letter keeps of a panic's stack.
const maxStack = 2048

func firstLines(stack []byte) []byte { return stack[:min(len(stack), maxStack)] }
