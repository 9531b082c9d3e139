package process

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// calls makes the calls of a worker's instances: those that are due, a bounded number at a time, the longest due first. What
// came of an attempt goes to the worker, which writes it down before the next one is made.
type calls struct {
	w     *work
	ctx   context.Context //nolint:containedctx // of the worker
	wait  sync.WaitGroup
	taken []*attempt // answered ones, by the commit at hand; the worker's own

	mu       sync.Mutex
	waiting  attempts
	under    map[string]bool // the ids of the calls that wait or are being made: of one call there is one attempt at a time
	running  int
	answered []*attempt
}

// attempt is one attempt at a call, due now or later, and what came of it.
type attempt struct {
	request millrace.CallRequest
	due     time.Time

	result []byte
	err    error
	ended  time.Time
}

// wait is how long the next attempt has to wait after this one has failed.
func (a *attempt) wait(backoff func(int) time.Duration) time.Duration {
	var says interface{ RetryAfter() time.Duration }
	if errors.As(a.err, &says) && says.RetryAfter() > 0 {
		return says.RetryAfter()
	}
	return backoff(a.request.Attempt)
}

// attempts are a heap by when they are due.
type attempts []*attempt

func (h attempts) Len() int           { return len(h) }
func (h attempts) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h attempts) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *attempts) Push(a any)        { *h = append(*h, a.(*attempt)) } //nolint:forcetypeassert // ours alone
func (h *attempts) Pop() any {
	last := len(*h) - 1
	a := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return a
}

func (c *calls) init(ctx context.Context, w *work) {
	c.ctx, c.w, c.under = ctx, w, map[string]bool{}
}

// make has attempts be made when they are due.
func (c *calls) make(as []*attempt) {
	if len(as) == 0 {
		return
	}
	c.mu.Lock()
	for _, a := range as {
		if !c.under[a.request.ID] {
			c.under[a.request.ID] = true
			heap.Push(&c.waiting, a)
		}
	}
	c.mu.Unlock()
	c.start(c.w.m.o.Now())
}

// drop takes calls back that are not being made right now.
func (c *calls) drop(ids []string) {
	if len(ids) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = slices.DeleteFunc(c.waiting, func(a *attempt) bool {
		gone := slices.Contains(ids, a.request.ID)
		if gone {
			delete(c.under, a.request.ID)
		}
		return gone
	})
	heap.Init(&c.waiting)
}

// start makes attempts that are due while there is room.
func (c *calls) start(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.running < c.w.m.o.Calls && len(c.waiting) > 0 && !c.waiting[0].due.After(now) && c.ctx.Err() == nil {
		a := heap.Pop(&c.waiting).(*attempt) //nolint:forcetypeassert // as above
		c.running++
		c.wait.Go(func() { c.do(a) })
	}
}

func (c *calls) do(a *attempt) {
	began := c.w.m.o.Now()
	a.result, a.err = c.call(a)
	a.ended = c.w.m.o.Now()
	c.w.m.o.Observer.Called(c.w.m.p.Name, a.ended.Sub(began), a.err)
	if a.err != nil && c.ctx.Err() == nil { // when this process stops, thousands are broken off
		c.w.m.o.Logger.Warn("a call of a process failed and is made again", "process", c.w.m.p.Name, "call", a.request.Name,
			"stream", a.request.Stream, "attempt", a.request.Attempt, "error", a.err)
	}
	c.mu.Lock()
	c.running--
	if c.ctx.Err() == nil || a.err == nil { // one that was broken off says nothing
		c.answered = append(c.answered, a)
	}
	c.mu.Unlock()
	c.w.signal()
	c.start(a.ended)
}

// errNoJSON: what would be written into the instance's document could not be read again.
var errNoJSON = errors.New("the answer is no JSON")

// call makes one attempt. A panic is an error like any other.
func (c *calls) call(a *attempt) (result []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	if result, err = c.w.m.o.Call(c.ctx, &a.request); err == nil && len(result) > 0 && jsonx.Check(result) != nil {
		err = errNoJSON
	}
	return result, err
}

// take hands some of the answers to the commit at hand. A call may be made again from then on.
func (c *calls) take(most int) []*attempt {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(most, len(c.answered))
	c.taken = c.answered[:n:n]
	if c.answered = c.answered[n:]; len(c.answered) == 0 {
		c.answered = nil
	}
	for _, a := range c.taken {
		delete(c.under, a.request.ID)
	}
	return c.taken
}

// giveBack takes back what a commit had taken that came to nothing.
func (c *calls) giveBack() {
	if len(c.taken) == 0 {
		return
	}
	c.mu.Lock()
	c.answered = append(c.taken, c.answered...)
	for _, a := range c.taken {
		c.under[a.request.ID] = true
	}
	c.mu.Unlock()
	c.taken = nil
	c.w.signal()
}

func (c *calls) any() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.answered) > 0
}

// answers applies what calls have come to.
func (w *work) answers(views func(int) millrace.Views) error {
	for _, a := range w.calls.take(maxArrived) {
		s := a.request.Stream
		p := s.Partition(w.m.store.Partitions())
		if w.parked(s) {
			continue // it is made again, under its id, when the stream is free
		}
		i, err := w.load(views(p), p, s, false)
		if err != nil {
			return err
		}
		if i == nil || i.doc.Failed != "" {
			continue
		}
		if err := i.answered(a); err != nil {
			i.stop(err)
		}
	}
	return nil
}
