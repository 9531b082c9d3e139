package process

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/millrace-io/millrace"
)

// many is a backend that reads many commands by few queries: one where each is a round trip. They come in the order of the ids, and
// what is read ahead is bounded.
type many interface {
	Commands(ctx context.Context, ids []string) iter.Seq2[millrace.Command, error]
}

// commands yields the accepted commands of some ids, in their order. Ids that nobody has are left out.
func (m *Manager) commands(ctx context.Context, ids []string) iter.Seq2[millrace.Command, error] {
	if d, ok := m.store.Driver().(many); ok {
		return d.Commands(ctx, ids)
	}
	return func(yield func(millrace.Command, error) bool) {
		for _, id := range ids {
			c, err := m.store.Command(ctx, id)
			if errors.Is(err, millrace.ErrNotFound) {
				continue
			}
			if !yield(c, err) || err != nil {
				return
			}
		}
	}
}

// complete reads what the commands of dead letters are that are sent again, as many as may be in memory at a time; rest are
// the others. One that is no dead letter is left out, and its instance stops.
func (w *work) complete(ctx context.Context, queue []sending) (out, rest []sending, err error) {
	letters, err := w.deadLetters(ctx, queue)
	if err != nil {
		return nil, nil, err
	}
	next, stop := iter.Pull2(w.m.commands(ctx, letters))
	defer stop()
	c, err, more := next()
	out = make([]sending, 0, len(queue))
	size := 0
	for n, s := range queue {
		if size >= maxResent {
			return out, queue[n:], nil
		}
		if s.of == "" {
			out = append(out, s)
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if !more || c.ID != s.of {
			w.stop(&s, errNoLetter)
			continue
		}
		size += len(c.Data)
		s.command.Type, s.command.Data, s.command.Expected = c.Type, c.Data, c.Expected
		out = append(out, s)
		c, err, more = next()
	}
	return out, nil, nil
}

// errNoLetter is why an instance stops that sends a command again which is no dead letter.
var errNoLetter = fmt.Errorf("%w: the command to send again is no dead letter", millrace.ErrInvalid)

// deadLetters are the ids of those commands of a queue that are sent again and are dead letters, in their order.
func (w *work) deadLetters(ctx context.Context, queue []sending) (ids []string, err error) {
	var qs []millrace.Inquiry
	for i := range queue {
		if queue[i].of != "" {
			qs = append(qs, millrace.Inquiry{ID: queue[i].of})
		}
	}
	if len(qs) == 0 {
		return nil, nil
	}
	for i, f := range w.m.store.Lookups(ctx, qs) {
		switch {
		case f.Err == nil && f.Outcome.Status == millrace.StatusDead:
			ids = append(ids, qs[i].ID)
		case f.Err != nil && !errors.Is(f.Err, millrace.ErrNotFound) && !errors.Is(f.Err, millrace.ErrInvalid):
			return nil, f.Err
		}
	}
	return ids, nil
}
