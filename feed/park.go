package feed

import (
	"context"
	"errors"
	"time"

	"github.com/millrace-io/millrace"
)

// handleOne tries one event until it succeeds or its stream is parked.
func (w *worker) handleOne(ctx context.Context, one []millrace.Recorded) error {
	wait := w.r.o.Backoff
	for attempt := 1; ; attempt++ {
		err := w.try(ctx, one)
		if err == nil || ctx.Err() != nil {
			return err
		}
		w.r.o.Observer.Failed(w.r.c.Name)
		var hard *handlerError
		if !errors.As(err, &hard) {
			// The store's own trouble is nobody's poison.
			if !millrace.IsTransient(err) {
				return err
			}
		} else if attempt >= w.r.o.Attempts {
			return w.park(ctx, &one[0], hard.err, attempt)
		}
		w.r.o.Logger.Warn("an event failed and is tried again", "consumer", w.r.c.Name, "event", one[0].ID(), "attempt", attempt, "error", err)
		held := wait
		if hard != nil {
			held = w.ration(wait)
		}
		if err := pause(ctx, held); err != nil {
			return err
		}
		wait = min(2*wait, maxBackoff)
	}
}

// rationShare is which part of a worker's time may go by between the attempts at events that fail: one in so many. The streams
// that are well keep the rest, however many are not.
const rationShare = 20

// ration is how much of a pause between two attempts the worker takes, while the streams that are well wait. The events of two
// streams have all their pauses, which is what a fault that passes by itself needs; where more fail, their pauses are rationed.
func (w *worker) ration(wait time.Duration) time.Duration {
	if w.r.unrationed {
		return wait
	}
	full := time.Duration(0)
	for k, d := 1, w.r.o.Backoff; k < w.r.o.Attempts; k, d = k+1, min(2*d, maxBackoff) {
		full += d
	}
	now := w.r.o.Now()
	if w.rationed.IsZero() {
		w.left = 2 * full
	} else {
		w.left = min(w.left+now.Sub(w.rationed)/rationShare, 2*full)
	}
	held := min(wait, w.left)
	w.left, w.rationed = w.left-held, now
	return held
}

// pause waits, or returns ctx's error.
func pause(ctx context.Context, wait time.Duration) error {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// handlerError is a fault of the handler, of the event or of a document, as against one of the store.
type handlerError struct{ err error }

func (e *handlerError) Error() string { return e.err.Error() }
func (e *handlerError) Unwrap() error { return e.err }

// park gives a stream up from an event on, together with the checkpoint that passes it.
func (w *worker) park(ctx context.Context, e *millrace.Recorded, cause error, attempts int) error {
	parked := &millrace.Parked{
		Stream: string(e.Stream), Version: e.Version, Position: e.Position, Reason: millrace.ReasonHandler,
		Error: cause.Error(), Attempts: attempts, Since: w.r.o.Now().UTC(),
	}
	for wait := w.r.o.Backoff; ; wait = min(2*wait, maxBackoff) {
		w.begin()
		millrace.ParkedTable.Insert(w.view(ctx, e.Partition), string(e.Stream), parked)
		err := w.commit(ctx, [][]millrace.Recorded{{*e}})
		if err == nil {
			break
		}
		if ctx.Err() != nil || !millrace.IsTransient(err) {
			return err
		}
		w.r.o.Logger.Warn("cannot park a stream, trying again", "consumer", w.r.c.Name, "stream", e.Stream, "error", err)
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
	w.parked[e.Stream] = true
	w.r.o.Logger.Error("a stream is parked", "consumer", w.r.c.Name, "stream", e.Stream, "version", e.Version, "error", cause)
	w.alarm(1)
	return nil
}

// alarm counts parked streams of documents that are read.
func (w *worker) alarm(more int) {
	if !w.r.c.Rebuilding {
		w.r.o.Observer.Parked(w.r.c.Name, more)
	}
}
