package feed

import (
	"context"
	"fmt"

	"github.com/millrace-io/millrace"
)

// own are the worker's partitions.
func (w *worker) own() []int {
	var own []int
	for _, p := range w.r.partitions {
		if p%w.r.o.Workers == w.index {
			own = append(own, p)
		}
	}
	return own
}

// turn lets the consumer's work do what is due beside events, and commits what comes of it where the checkpoints stand. It is
// tried until it succeeds: its faults are the store's.
func (w *worker) turn(ctx context.Context) error {
	for wait := w.r.o.Backoff; ; wait = min(2*wait, maxBackoff) {
		w.begin()
		err := w.guard(func() error { return w.work.Turn(ctx, w.viewOf(ctx)) })
		if err == nil {
			err = w.commit(ctx, nil)
		}
		if err = w.undo(err); err == nil || ctx.Err() != nil || !millrace.IsTransient(err) {
			return err
		}
		w.r.o.Observer.Failed(w.r.c.Name)
		w.r.o.Logger.Warn("what is due failed and is tried again", "consumer", w.r.c.Name, "error", err)
		if err := pause(ctx, wait); err != nil {
			return nil //nolint:nilerr // an ended ctx is how a worker stops
		}
	}
}

func (w *worker) viewOf(ctx context.Context) func(partition int) millrace.Views {
	return func(partition int) millrace.Views { return w.view(ctx, partition) }
}

// settle has the consumer's work make durable what must be before the commit. It returns where the checkpoints of the
// partitions stand that it may have written in.
func (w *worker) settle(ctx context.Context) (map[int]uint64, error) {
	if w.work != nil {
		if err := w.guard(func() error { return w.work.Settle(ctx, w.viewOf(ctx)) }); err != nil {
			return nil, err
		}
	}
	last := make(map[int]uint64, len(w.views))
	for p, v := range w.views {
		if v != nil && len(v.order) > 0 {
			last[p] = w.at[p]
		}
	}
	return last, nil
}

// guard calls the consumer's work. A panic is an error of the handler like any other.
func (w *worker) guard(do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &handlerError{fmt.Errorf("panic: %v", p)}
		}
	}()
	return do()
}

// undo tells the consumer's work that what it did came to nothing.
func (w *worker) undo(err error) error {
	if err != nil && w.work != nil {
		w.work.Undone()
	}
	return err
}
