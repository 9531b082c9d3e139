package process

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/millrace-io/millrace"
)

// outcomes are those of commands that were not decided yet when they were sent: waiters await them and hand them to the worker.
type outcomes struct {
	ctx    context.Context //nolint:containedctx // of the worker
	signal func()
	wait   sync.WaitGroup
	taken  []arrived // by the commit at hand; the worker's own

	mu      sync.Mutex
	queue   []awaited
	waiters int
	arrived []arrived
}

// awaited is a command whose outcome is awaited for a step of an instance.
type awaited struct {
	stream  millrace.Stream
	step    string
	receipt *millrace.Receipt
}

type arrived struct {
	stream  millrace.Stream
	step    string
	outcome millrace.Outcome
}

func (o *outcomes) init(ctx context.Context, signal func()) { o.ctx, o.signal = ctx, signal }

// await has outcomes be awaited.
func (o *outcomes) await(as []awaited) {
	if len(as) == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.queue = append(o.queue, as...)
	for o.waiters < min(maxWaiters, len(o.queue)) {
		o.waiters++
		o.wait.Go(o.run)
	}
}

// run awaits one outcome after the other.
func (o *outcomes) run() {
	for {
		o.mu.Lock()
		if len(o.queue) == 0 || o.ctx.Err() != nil {
			o.waiters--
			o.mu.Unlock()
			return
		}
		a := o.queue[0]
		if o.queue = o.queue[1:]; len(o.queue) == 0 {
			o.queue = nil
		}
		o.mu.Unlock()
		out, err := a.receipt.Wait(o.ctx)
		switch {
		case err == nil:
			o.mu.Lock()
			o.arrived = append(o.arrived, arrived{a.stream, a.step, out})
			o.mu.Unlock()
			o.signal()
		case o.ctx.Err() != nil || errors.Is(err, millrace.ErrClosed):
			// The next life asks again.
		default: // the store is away
			o.mu.Lock()
			o.queue = append(o.queue, a)
			o.mu.Unlock()
			t := time.NewTimer(lastRetry)
			select {
			case <-t.C:
			case <-o.ctx.Done():
				t.Stop()
			}
		}
	}
}

// take hands some of what has arrived to the commit at hand.
func (o *outcomes) take(most int) []arrived {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := min(most, len(o.arrived))
	o.taken = o.arrived[:n:n]
	if o.arrived = o.arrived[n:]; len(o.arrived) == 0 {
		o.arrived = nil
	}
	return o.taken
}

// giveBack takes back what a commit had taken that came to nothing.
func (o *outcomes) giveBack() {
	if len(o.taken) == 0 {
		return
	}
	o.mu.Lock()
	o.arrived = append(o.taken, o.arrived...)
	o.mu.Unlock()
	o.taken = nil
	o.signal()
}

func (o *outcomes) any() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.arrived) > 0
}

// resend has all that an instance waits for be asked for again.
func (i *instance) resend() {
	for k := range i.doc.Calls {
		if c := &i.doc.Calls[k]; c.Waits() {
			i.w.calling = append(i.w.calling, i.attempt(c))
		}
	}
	for k := range i.doc.Steps {
		if s := &i.doc.Steps[k]; s.Status == millrace.StatusAccepted.String() {
			i.w.queue = append(i.w.queue, sending{stream: i.doc.Stream, step: s.Name, of: s.Of, command: i.command(s), recalled: i})
		}
	}
}

// recall finds some of the instances of a partition that waited for outcomes when an earlier worker ended, and sends their
// commands again: those that are known answer as they did. It says whether there are more.
func (w *work) recall(ctx context.Context, partition int) (more bool, err error) {
	after := w.resume[partition]
	if after == nil {
		return false, nil
	}
	q := millrace.Query{
		Collection: w.m.collection(millrace.InstancesTable.Table), Index: millrace.InstancesPending, Partition: partition,
	}
	if after.ID != "" {
		q.After = after
	}
	n := 0
	for d, err := range w.m.store.Documents(ctx, q) {
		if err != nil {
			return false, err
		}
		doc, err := millrace.InstancesTable.Decode(d.Data)
		if err != nil {
			return false, err
		}
		if n++; n > maxTurn {
			return true, nil
		}
		place := d.Place(millrace.InstancesPending)
		w.resume[partition], w.recalled = &place, true
		i := &instance{w: w, partition: partition, doc: doc, before: slices.Clone(doc.Timers)}
		i.read()
		i.resend()
	}
	w.resume[partition] = nil
	return false, nil
}
