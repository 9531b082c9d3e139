package feed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace-io/millrace"
)

const (
	// askEvery is how often a consumer looks for what is asked of it, where something can be.
	askEvery = time.Second
	// maxRedriven bounds the events of a redriven stream that one commit takes: those of other streams come in between.
	maxRedriven = 512
)

// Redrive asks for a stream that is parked for a consumer to be gone on with, from the event that failed, in order. Whoever
// runs the consumer does it, a moment later; where an event fails again, the stream is parked from there. Of a process it also
// sets going an instance that has stopped. Errors: [millrace.ErrInvalid], [millrace.ErrNotFound] where there is neither, those of
// [millrace.Store.Post].
func Redrive(ctx context.Context, store *millrace.Store, consumer, id string, s millrace.Stream, now time.Time) error {
	return ask(ctx, store, consumer, id, &millrace.Ask{Redrive: s, At: now.UTC()})
}

// Skip is Redrive from behind the event that failed, which the consumer then never handles: the version says which, and where
// the stream is not parked at that event any more, it is a Redrive. Only a person can know that an event may be left out, and
// the documents of a stream are then not those of its events; it must be on record who has said so.
func Skip(ctx context.Context, store *millrace.Store, consumer, id string, s millrace.Stream, version uint64, now time.Time) error {
	return ask(ctx, store, consumer, id, &millrace.Ask{Redrive: s, Skip: version, At: now.UTC()})
}

func ask(ctx context.Context, store *millrace.Store, consumer, id string, a *millrace.Ask) error {
	s := a.Redrive
	err := s.Validate()
	if err != nil {
		return err
	}
	doc := millrace.Document{
		Collection: consumer + "." + millrace.AsksTable.Name, Partition: s.Partition(store.Partitions()), ID: id,
	}
	_, err = store.Document(ctx, consumer+"."+millrace.ParkedName, doc.Partition, string(s))
	if errors.Is(err, millrace.ErrNotFound) {
		_, err = store.Document(ctx, consumer+"."+millrace.InstancesTable.Name, doc.Partition, string(s))
	}
	if err != nil {
		return err
	}
	if doc.Data, _, err = millrace.AsksTable.Encode(a); err != nil {
		return err
	}
	return store.Post(ctx, doc)
}

// answer does what is asked of the consumer in the worker's partitions.
func (w *worker) answer(ctx context.Context) error {
	if len(w.parked) == 0 && w.work == nil {
		return nil
	}
	type asked struct {
		id  string
		ask *millrace.Ask
	}
	var all []asked
	own := w.own()
	q := millrace.Query{Collection: w.r.c.Collection(millrace.AsksTable.Table), Index: -1, Partition: -1}
	for d, err := range w.r.store.Documents(ctx, q) {
		if err == nil && !slices.Contains(own, d.Partition) {
			continue
		}
		var a *millrace.Ask
		if err == nil {
			a, err = millrace.AsksTable.Decode(d.Data)
		}
		if err != nil && ctx.Err() == nil {
			w.r.o.Logger.Warn("cannot read what is asked of a consumer, trying again", "consumer", w.r.c.Name, "error", err)
		}
		if err != nil {
			return nil
		}
		all = append(all, asked{d.ID, a})
	}
	slices.SortStableFunc(all, func(a, b asked) int { return a.ask.At.Compare(b.ask.At) })
	for _, a := range all {
		err := w.skip(ctx, a.ask)
		if err == nil {
			err = w.redrive(ctx, a.id, a.ask.Redrive)
		}
		if err != nil {
			if ctx.Err() != nil || !millrace.IsTransient(err) {
				return err
			}
			w.r.o.Logger.Warn("cannot go on with a stream now, trying again", "consumer", w.r.c.Name, "stream", a.ask.Redrive, "error", err)
			return nil
		}
	}
	return nil
}

// skip moves a parked stream behind the event that failed, by a commit of its own: what comes behind that event may fail too,
// and is where the stream is parked then.
func (w *worker) skip(ctx context.Context, a *millrace.Ask) error {
	if a.Skip == 0 {
		return nil
	}
	w.begin()
	v := w.view(ctx, a.Redrive.Partition(w.r.store.Partitions()))
	parked, err := millrace.ParkedTable.Get(v, string(a.Redrive))
	if err != nil || parked == nil || parked.Version != a.Skip {
		return err
	}
	parked.Version++
	millrace.ParkedTable.Put(v, string(a.Redrive), parked)
	if err := w.undo(w.commit(ctx, nil)); err != nil {
		return err
	}
	w.r.o.Logger.Warn("an event is left out by a person's word", "consumer", w.r.c.Name, "stream", a.Redrive, "version", a.Skip)
	return nil
}

// redrive goes on with a stream, by one commit; where there is more, it is called again after what else has come. The ask is
// gone with the commit that ends it, well or not: after a crash it begins again where the last commit has left it.
func (w *worker) redrive(ctx context.Context, id string, s millrace.Stream) error {
	done, fault, err := w.redriveSome(ctx, id, s, maxRedriven)
	if fault != nil && err == nil {
		// One of them fails. Those before it are handled, one by one, and it is where the stream is parked then.
		for done, fault = false, nil; !done && fault == nil && err == nil; {
			done, fault, err = w.redriveSome(ctx, id, s, 1)
		}
	}
	switch {
	case err != nil:
		return err
	case fault != nil:
		return w.parkAgain(ctx, id, s, fault)
	case !done:
		select {
		case w.goOn <- struct{}{}:
		default:
		}
		return nil
	}
	if w.parked[s] {
		delete(w.parked, s)
		w.alarm(-1)
	}
	w.r.o.Logger.Info("a stream is gone on with", "consumer", w.r.c.Name, "stream", s)
	return nil
}

// redriveSome handles the next events of a parked stream in one commit. done says that the stream has come up to the others.
func (w *worker) redriveSome(ctx context.Context, id string, s millrace.Stream, most int) (done bool, fault *handlerError, err error) {
	partition := s.Partition(w.r.store.Partitions())
	w.begin()
	v := w.view(ctx, partition)
	err = w.redriving(ctx, v, s, most, &done)
	if err == nil {
		if done {
			millrace.AsksTable.Delete(v, id)
		}
		err = w.commit(ctx, nil)
	}
	err = w.undo(err)
	if errors.As(err, &fault) {
		return false, fault, nil
	}
	return done, nil, err
}

func (w *worker) redriving(ctx context.Context, v *views, s millrace.Stream, most int, done *bool) error {
	*done = true
	parked, err := millrace.ParkedTable.Get(v, string(s))
	if err != nil {
		return err
	}
	if w.work != nil {
		if err := w.guard(func() error { return w.work.Redrive(ctx, v, s) }); err != nil {
			return err
		}
	}
	if parked == nil {
		return nil
	}
	n := 0
	for e, err := range w.r.store.Events(ctx, s, parked.Version) {
		if err != nil {
			return err
		}
		if e.Position > w.at[v.partition] {
			break // it comes by the feed
		}
		if n++; n > most {
			parked.Version, parked.Position, *done = e.Version, e.Position, false
			millrace.ParkedTable.Put(v, string(s), parked)
			return nil
		}
		if err := w.call(ctx, v, &e); err != nil {
			return err
		}
	}
	millrace.ParkedTable.Delete(v, string(s))
	return nil
}

// parkAgain notes that a redriven stream has failed again, where the last commit has left it.
func (w *worker) parkAgain(ctx context.Context, id string, s millrace.Stream, fault *handlerError) error {
	w.begin()
	v := w.view(ctx, s.Partition(w.r.store.Partitions()))
	parked, err := millrace.ParkedTable.Get(v, string(s))
	if err != nil {
		return err
	}
	if parked != nil {
		parked.Attempts++
		parked.Error, parked.Since = fault.Error(), w.r.o.Now().UTC()
		millrace.ParkedTable.Put(v, string(s), parked)
	}
	millrace.AsksTable.Delete(v, id)
	err = w.undo(w.commit(ctx, nil))
	w.r.o.Logger.Error("a stream that was redriven has failed again", "consumer", w.r.c.Name, "stream", s, "error", fmt.Errorf("%w", fault))
	return err
}
