package process

import (
	"context"
	"time"

	"github.com/millrace-io/millrace"
)

// watch wakes the worker when a timer is due. It looks at the clock again and again instead of sleeping until then: clocks jump.
func (w *work) watch(ctx context.Context) {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			now := w.m.o.Now()
			if now.UnixNano() >= w.next.Load() {
				w.signal()
			}
			w.calls.start(now)
		}
	}
}

// expect has timers of a partition be looked for no later than a time.
func (w *work) expect(partition int, at time.Time) {
	if at.Before(w.due[partition]) {
		w.due[partition] = at
		w.setNext()
	}
}

func (w *work) setNext() {
	var least time.Time
	for n, p := range w.partitions {
		if n == 0 || w.due[p].Before(least) {
			least = w.due[p]
		}
	}
	switch {
	case least.IsZero():
		w.next.Store(0)
	default:
		w.next.Store(least.UnixNano())
	}
}

// never is when to look again where nothing is pending.
var never = time.Unix(1<<33, 0)

// fire has the timers of a partition fire that are due, the oldest first. Never early: those that are due later than now are
// left alone, whatever the clock did.
func (w *work) fire(ctx context.Context, v millrace.Views, partition int, now time.Time) error {
	q := millrace.Query{Collection: w.m.collection(millrace.TimersTable.Table), Index: 0, Partition: partition}
	next, n := never, 0
	for d, err := range w.m.store.Documents(ctx, q) {
		if err != nil {
			return err
		}
		t, err := millrace.TimersTable.Decode(d.Data)
		if err != nil {
			return err
		}
		if t.NextAt.After(now) {
			next = t.NextAt
			break
		}
		if n++; n > maxTurn {
			next = time.Time{} // the rest comes with the next commit
			w.signal()
			break
		}
		if err := w.fireOne(v, partition, t, now); err != nil {
			return err
		}
	}
	w.due[partition] = next
	w.setNext()
	return nil
}

func (w *work) fireOne(v millrace.Views, partition int, t *millrace.DueTimer, now time.Time) error {
	id := timerID(t.Stream, t.Name)
	if !w.parked(t.Stream) {
		i, err := w.load(v, partition, t.Stream, false)
		if err != nil {
			return err
		}
		if i == nil {
			millrace.TimersTable.Delete(v, id)
			return nil
		}
		if i.doc.Failed == "" {
			w.m.o.Observer.Fired(w.m.p.Name, now.Sub(t.At))
			err := i.fire(t.Name, t.At)
			if err == nil {
				millrace.TimersTable.Delete(v, id)
				return nil
			}
			i.stop(err)
		}
	}
	t.NextAt = now.Add(postponed)
	millrace.TimersTable.Put(v, id, t)
	return nil
}
