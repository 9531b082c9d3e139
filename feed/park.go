package feed

import (
	"context"
	"errors"
	"time"

	"github.com/millrace-io/millrace"
)

// final says that trying again is not this worker's: it ends, or it is fenced. The documents are another owner's then, or those of
// an earlier time, and the events would be counted twice.
func final(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, millrace.ErrFenced)
}

// apart handles events that have failed together, in few commits: where a commit is a transaction, one for each event would
// hold up all other streams of the batch for many times what they take. Those before the one that fails are sound and go
// together, the one that fails is taken alone, and those behind it go together again, up to the next that fails.
func (w *worker) apart(ctx context.Context, events []millrace.Recorded, sound int) error {
	for {
		n, alone := sound, sound+1
		switch {
		case w.r.singly:
			n, alone = 0, 1
		case sound == len(events):
			// It was the commit: a document that cannot be encoded, or the store. Which event is at fault is found by halves.
			n = len(events) / 2
			alone = n
			if n == 0 {
				alone = 1
			}
		}
		if err := w.together(ctx, events[:n]); err != nil {
			return err
		}
		if alone > n {
			if err := w.handleOne(ctx, events[n:alone]); err != nil {
				return err
			}
		}
		if events = events[alone:]; len(events) == 0 {
			return nil
		}
		var err error
		if sound, err = w.try(ctx, events); err == nil || final(ctx, err) {
			return err
		}
	}
}

// together handles events in one commit, or apart where they fail. It calls itself by way of apart, for half of them or for
// those that are sound.
func (w *worker) together(ctx context.Context, events []millrace.Recorded) error {
	if len(events) == 0 {
		return nil
	}
	sound, err := w.try(ctx, events)
	if err == nil || final(ctx, err) {
		return err
	}
	return w.apart(ctx, events, sound)
}

// handleOne tries one event until it succeeds or its stream is parked.
func (w *worker) handleOne(ctx context.Context, one []millrace.Recorded) error {
	wait := w.r.o.Backoff
	for attempt := 1; ; attempt++ {
		_, err := w.try(ctx, one)
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
