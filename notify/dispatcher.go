package notify

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/notice"
)

const (
	// firstPause and lastPause bound how long a lane rests when its other end is away. It doubles with each attempt that finds
	// it so.
	firstPause = time.Second
	lastPause  = time.Minute
	// maxSpread bounds over how long those who wait for a lane that rests are spread. It doubles with each of their attempts:
	// each is a write to the store, and after a night there may be very many of them.
	maxSpread = 5 * time.Minute
	// defaultAtOnce is how many notices a lane sends at a time: as many connections as mail servers let one sender have.
	defaultAtOnce = 4
)

// Send sends one notice by a channel. The id is the same each time that the notice is sent: who receives it knows by it what
// came twice. A result is final; an error has it sent again later. An error that is a [notice.UnreachableError] has the whole
// channel rest for a while.
type Send func(ctx context.Context, id string, n *notice.Notice) (notice.Result, error)

// Dispatcher sends notices by their channels. Its methods are safe for use by several goroutines.
type Dispatcher struct {
	lanes map[notice.Channel]*lane
}

// Options of New; nil is fine.
type Options struct {
	// AtOnce is how many notices each channel sends at a time. Defaults to 4.
	AtOnce int
	// Now is the clock. Defaults to time.Now.
	Now func() time.Time
}

// New makes a dispatcher.
func New(channels map[notice.Channel]Send, opts *Options) *Dispatcher {
	o := Options{AtOnce: defaultAtOnce, Now: time.Now}
	if opts != nil {
		if opts.AtOnce > 0 {
			o.AtOnce = opts.AtOnce
		}
		if opts.Now != nil {
			o.Now = opts.Now
		}
	}
	d := &Dispatcher{lanes: map[notice.Channel]*lane{}}
	for c, send := range channels {
		d.lanes[c] = &lane{send: send, now: o.Now, slots: make(chan struct{}, o.AtOnce)}
	}
	return d
}

// Call makes a call of the process of notifications. A notice of a channel that there is not any more is settled by that.
func (d *Dispatcher) Call(ctx context.Context, c *millrace.CallRequest) (notice.Result, error) {
	var n notice.Notice
	if err := jsonx.Unmarshal(c.Request, &n); err != nil {
		return notice.Result{}, fmt.Errorf("the request cannot be read: %w", err)
	}
	l := d.lanes[n.Channel]
	if l == nil {
		return notice.Result{Status: notice.Withdrawn, Detail: "nothing is sent by this channel any more"}, nil
	}
	return l.call(ctx, c, &n)
}

// lane is a channel at work.
type lane struct {
	send  Send
	now   func() time.Time
	slots chan struct{}

	mu     sync.Mutex
	failed int       // attempts in a row that found the other end away
	until  time.Time // when it may be tried again
	err    error     // what was said then
}

// pausedError is the error of a notice that was not sent because its lane rests.
type pausedError struct {
	err   error
	after time.Duration
}

func (e *pausedError) Error() string { return e.err.Error() }
func (e *pausedError) Unwrap() error { return e.err }

// RetryAfter says when the notice is to be sent. Those who waited together do not come back together.
func (e *pausedError) RetryAfter() time.Duration { return e.after }

func (l *lane) call(ctx context.Context, c *millrace.CallRequest, n *notice.Notice) (notice.Result, error) {
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return notice.Result{}, ctx.Err()
	}
	defer func() { <-l.slots }()
	if ctx.Err() != nil {
		return notice.Result{}, ctx.Err()
	}
	if err := l.rests(c.Attempt); err != nil {
		return notice.Result{}, err
	}
	r, err := l.send(ctx, c.ID, n)
	if err != nil && ctx.Err() != nil {
		return r, err // broken off: that says nothing about the other end
	}
	var away *notice.UnreachableError
	l.mu.Lock()
	defer l.mu.Unlock()
	if !errors.As(err, &away) {
		l.failed = 0
		return r, err
	}
	pause := min(firstPause<<min(l.failed, 10), lastPause)
	if now := l.now(); !now.Before(l.until) { // else others have found out at the same time
		l.failed++
		l.until, l.err = now.Add(pause), err
	}
	return r, l.paused(c.Attempt)
}

// rests says why the lane sends nothing now; nil where it does.
func (l *lane) rests(attempt int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.now().Before(l.until) {
		return nil
	}
	return l.paused(attempt)
}

// paused is the error of a notice whose lane rests, by its attempt, from 1; mu is held.
func (l *lane) paused(attempt int) error {
	spread := min(firstPause<<min(max(attempt-1, 0), 20), maxSpread)
	return &pausedError{err: l.err, after: l.until.Sub(l.now()) + time.Duration(rand.Int64N(int64(spread)))} //nolint:gosec // not a secret
}
