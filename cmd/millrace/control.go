package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/domain/system"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/letter"
)

const (
	// controlEvery is how often a node looks for what was asked of consumers. Where the log has not moved that costs nothing.
	controlEvery = 200 * time.Millisecond
	// sendTime is how long a node waits until a command of its own is decided: without an owner of its partition that may be long,
	// and what else is asked is to be seen.
	sendTime = 2 * time.Second
	// byPaused and whyPaused are shown of what stands still because a server was started so.
	byPaused  = "--paused"
	whyPaused = "this server was started with --paused"
)

// controls follows the streams of consumers, and has this node's consumers and its deciding run or stand still as they say.
type controls struct {
	n     *node
	names []string // of the consumers that this node can have, and of the deciding
	began time.Time
	poked chan struct{}

	mu      sync.Mutex
	known   map[string]*stance
	runs    map[string]int // how many of a consumer run: a rebuild has two
	changed chan struct{}  // closed and replaced when known or runs change
}

// stance is what is known of a consumer's stream.
type stance struct {
	state   *system.Consumer
	version uint64
	head    uint64 // of the stream's partition when the stream was last read
	looked  bool
	// here: this server was started with it paused, and pausedAt is how often it had been resumed by then.
	here     bool
	pausedAt uint64
}

// stands says whether it stands still on this node.
func (s *stance) stands() bool {
	return s.state.Mode == system.Paused || s.overridden()
}

// overridden: it stands still because this server was started so, and nobody has resumed it since.
func (s *stance) overridden() bool { return s.here && s.state.Resumes == s.pausedAt }

// newControls reads how everything is meant to be.
func newControls(ctx context.Context, n *node) (*controls, error) {
	c := &controls{
		n: n, names: []string{system.Deciding, command.SnapshotsName}, began: time.Now().UTC(), poked: make(chan struct{}, 1),
		known: map[string]*stance{}, runs: map[string]int{}, changed: make(chan struct{}),
	}
	for _, p := range readModels() {
		c.names = append(c.names, p.Name)
	}
	c.names = append(c.names, letter.Jobs, streamAsks)
	for _, p := range n.o.processes() {
		c.names = append(c.names, p.name)
	}
	for _, name := range c.names {
		c.known[name] = &stance{state: &system.Consumer{Mode: system.Running}}
	}
	if err := c.look(ctx); err != nil {
		return nil, err
	}
	for name, s := range c.known {
		s.here, s.pausedAt = n.o.pauseFeed, s.state.Resumes
		if name == system.Deciding {
			s.here = n.o.pauseCommand
		}
	}
	c.apply()
	return c, nil
}

// run follows the streams until ctx ends.
func (c *controls) run(ctx context.Context) error {
	t := time.NewTicker(controlEvery)
	defer t.Stop()
	away := false
	for {
		err := c.look(ctx)
		if err == nil {
			c.apply()
			err = c.complete(ctx)
		}
		if err != nil && !away && ctx.Err() == nil {
			c.n.log.Warn("cannot see what is asked of consumers, trying again", "error", err)
		}
		away = err != nil
		select {
		case <-t.C:
		case <-c.poked:
		case <-ctx.Done():
			return nil
		}
	}
}

// look reads what is new in the streams of consumers whose partitions have moved.
func (c *controls) look(ctx context.Context) error {
	heads := c.n.store.Heads()
	category, _ := c.n.registry.Category(system.ConsumerStream(system.Deciding))
	for _, name := range c.names {
		stream := system.ConsumerStream(name)
		head := heads[stream.Partition(len(heads))].Position
		c.mu.Lock()
		s := *c.known[name]
		c.mu.Unlock()
		if s.looked && s.head == head {
			continue
		}
		first, before := !s.looked, s.version
		for e, err := range c.n.store.Events(ctx, stream, s.version+1) {
			if err != nil {
				return err
			}
			body, err := c.n.registry.Body(&e)
			if err != nil {
				return err
			}
			s.state, s.version = category.Evolve(s.state, body).(*system.Consumer), e.Version //nolint:forcetypeassert // its only state
		}
		s.head, s.looked = head, true
		c.change(func() { *c.known[name] = s })
		if s.version != before && !first {
			c.n.log.Info("a consumer is meant to be otherwise", "consumer", name, "state", string(s.state.Mode), "by", s.state.By, "why", s.state.Why)
		}
	}
	return nil
}

// change changes something, and wakes up who waits for that.
func (c *controls) change(do func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	do()
	close(c.changed)
	c.changed = make(chan struct{})
}

// until waits for a condition; c.mu is held while it is looked at. False where ctx ends first.
func (c *controls) until(ctx context.Context, ok func() bool) bool {
	for {
		c.mu.Lock()
		is, changed := ok(), c.changed
		c.mu.Unlock()
		if is {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// stands says whether a consumer stands still on this node.
func (c *controls) stands(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.known[name]
	return s != nil && s.stands()
}

// pausedHere says whether a consumer stands still because this server was started so.
func (c *controls) pausedHere(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.known[name]
	return s != nil && s.overridden()
}

// apply has the deciding be as it is meant to be. Consumers see to that themselves: see follow.
func (c *controls) apply() {
	if c.stands(system.Deciding) {
		c.n.processor.Pause()
	} else {
		c.n.processor.Resume()
	}
}

// poke has the streams be looked at now.
func (c *controls) poke() {
	select {
	case c.poked <- struct{}{}:
	default:
	}
}

// follow runs a consumer while it does not stand still, until ctx ends.
func (c *controls) follow(ctx context.Context, consumer string, run func(ctx context.Context) error) error {
	name, _, _ := strings.Cut(consumer, millrace.GenerationMark)
	runs := func() bool {
		s := c.known[name]
		if s != nil && s.stands() {
			return false
		}
		c.runs[name]++
		return true
	}
	for c.until(ctx, runs) {
		inner, stop := context.WithCancel(ctx)
		go func() {
			if c.until(inner, func() bool { return c.known[name] != nil && c.known[name].stands() }) {
				stop()
			}
		}()
		err := run(inner)
		paused := inner.Err() != nil && ctx.Err() == nil
		stop()
		c.change(func() { c.runs[name]-- })
		if !paused {
			return err
		}
	}
	return nil
}

// complete says of what drains that it has come to the end of that, where it has. Any node does: the command is the same.
func (c *controls) complete(ctx context.Context) error {
	for _, name := range c.names {
		c.mu.Lock()
		s := *c.known[name]
		c.mu.Unlock()
		if s.state.Mode != system.Draining {
			continue
		}
		done, err := c.drained(ctx, name, s.state)
		if err != nil {
			return err
		}
		if !done {
			continue
		}
		id := fmt.Sprintf("%sdrained/%s/%d", millrace.StepPrefix, name, s.state.Changes)
		if err := c.send(ctx, id, name, &system.CompleteDrain{Change: s.state.Changes}); err != nil {
			return err
		}
		c.poke()
	}
	return nil
}

// drained says whether a consumer has come as far as it was to when its drain began; of the deciding, whether everything is
// decided that was accepted before.
func (c *controls) drained(ctx context.Context, name string, s *system.Consumer) (bool, error) {
	if name != system.Deciding {
		until, err := millrace.ParseCursor(s.Until)
		if err != nil {
			return false, err
		}
		if errors.Is(c.n.store.CheckCursor(until), millrace.ErrCursorEpoch) {
			return true, nil // of a log that was put back since
		}
		at, err := c.n.store.Checkpoints(ctx, consumers{c.n}.Names()[name])
		return err == nil && at.Covers(until), err
	}
	for p := range c.n.store.Partitions() {
		for first, err := range c.n.store.Pending(ctx, p) {
			if err != nil {
				return false, err
			}
			if first.Command.Time.Before(s.Since) {
				return false, nil
			}
			break
		}
	}
	return true, nil
}

// send has a command of the node's own be decided.
func (c *controls) send(ctx context.Context, id, name string, body any) error {
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	typ, data, err := c.n.registry.EncodeCommand(body)
	if err != nil {
		return err
	}
	receipt, err := c.n.processor.Accept(ctx, millrace.Command{
		ID: id, Stream: system.ConsumerStream(name), Type: typ, Data: data, Body: body, Source: "control",
	})
	if err == nil {
		_, err = receipt.Wait(ctx)
	}
	return err
}

// Deciding implements httpapi.Control.
func (c *controls) Deciding() string { return system.Deciding }

// Standing implements httpapi.Control.
func (c *controls) Standing(name string) httpapi.Standing {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.known[name]
	switch {
	case s == nil:
		return httpapi.Standing{State: string(system.Running)}
	case s.overridden() && s.state.Mode != system.Paused:
		return httpapi.Standing{State: string(system.Paused), Since: c.began, By: byPaused, Why: whyPaused}
	}
	return httpapi.Standing{State: string(s.state.Mode), Since: s.state.Since, By: s.state.By, Why: s.state.Why}
}

// Command implements httpapi.Control.
func (c *controls) Command(ctx context.Context, cmd *millrace.Command, name string, do httpapi.ConsumerAction, by, why string) error {
	var body any
	switch do {
	case httpapi.ActionPause:
		body = &system.PauseConsumer{By: by, Why: why}
	case httpapi.ActionResume:
		body = &system.ResumeConsumer{By: by, Why: why}
	case httpapi.ActionDrain:
		until, err := c.head(ctx, cmd.ID)
		if err != nil {
			return err
		}
		if c.pausedHere(name) {
			return httpapi.ErrConsumerPaused
		}
		body = &system.DrainConsumer{By: by, Why: why, Until: until}
	default:
		return fmt.Errorf("%w: %s is not done to consumers", millrace.ErrInvalid, do)
	}
	var err error
	cmd.Stream = system.ConsumerStream(name)
	cmd.Type, cmd.Data, err = c.n.registry.EncodeCommand(body)
	return err
}

// head is where the log is, for a command by its id: where it was when the command first came.
func (c *controls) head(ctx context.Context, id string) (string, error) {
	first, err := c.n.store.Command(ctx, id)
	if err == nil {
		body, err := c.n.registry.DecodeCommand(&first)
		if d, ok := body.(*system.DrainConsumer); ok && err == nil {
			return d.Until, nil
		}
	} else if !errors.Is(err, millrace.ErrNotFound) {
		return "", err
	}
	if cl := c.n.cluster; cl != nil {
		// What other nodes have told their clients is to be within it.
		if err := cl.driver.Look(ctx); err != nil {
			return "", err
		}
	}
	return c.n.store.Head().String(), nil
}

// Obeyed implements httpapi.Control.
func (c *controls) Obeyed(ctx context.Context, name string, version uint64) {
	c.poke()
	c.until(ctx, func() bool {
		s := c.known[name]
		return s == nil || s.version >= version && (!s.stands() || c.runs[name] == 0)
	})
}

// paused says of each consumer, and of the deciding, whether it stands still here, for metrics.
func (c *controls) paused() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]bool, len(c.known))
	for name, s := range c.known {
		out[name] = s.stands()
	}
	return out
}
