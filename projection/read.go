package projection

import (
	"context"
	"errors"
	"iter"

	"github.com/millrace-io/millrace"
)

// seen is the generation that readers see now. On a shared store another node may switch: what this one knows holds for
// freshFor, and no longer than until it hears of a switch that is on its way.
func (m *Model) seen(ctx context.Context) (uint64, error) {
	k := m.known.Load()
	if m.s.shared && (k.Switch != nil || m.s.o.Now().Sub(k.at) > m.s.fresh) && !m.s.o.without.fresh {
		if err := m.look(ctx); err != nil {
			return 0, err
		}
	}
	return m.live(), nil
}

// Get implements millrace.ReadModel.
func (m *Model) Get(ctx context.Context, t *millrace.Table, partition int, id string) (millrace.Document, error) {
	for {
		live, err := m.seen(ctx)
		if err != nil {
			return millrace.Document{}, err
		}
		doc, err := m.s.store.Document(ctx, m.collection(live, t), partition, id)
		// A generation that was dropped between the two lines is empty.
		if errors.Is(err, millrace.ErrNotFound) {
			switch now, err := m.seen(ctx); {
			case err != nil:
				return doc, err
			case now != live:
				continue
			}
		}
		return doc, err
	}
}

// Query implements millrace.ReadModel.
func (m *Model) Query(ctx context.Context, t *millrace.Table, q millrace.Query) iter.Seq2[millrace.Document, error] {
	return func(yield func(millrace.Document, error) bool) {
		for {
			live, err := m.seen(ctx)
			if err != nil {
				yield(millrace.Document{}, err)
				return
			}
			q.Collection = m.collection(live, t)
			began, empty := m.s.o.Now(), true
			for d, err := range m.s.store.Documents(ctx, q) {
				empty = false
				if !yield(d, err) {
					return
				}
			}
			// Where a list is read page by page, its generation can go in between, and what follows look like the end.
			if m.s.shared && m.s.o.Now().Sub(began) > m.s.fresh {
				if err := m.look(ctx); err != nil {
					yield(millrace.Document{}, err)
					return
				}
			}
			st, _ := m.current()
			if m.s.shared && !empty && !st.has(live) {
				yield(millrace.Document{}, ErrReplaced)
				return
			}
			if !empty || st.Generation == live {
				return
			}
		}
	}
}

// Wait implements millrace.ReadModel.
func (m *Model) Wait(ctx context.Context, c millrace.Cursor) error {
	if err := m.s.store.CheckCursor(c); err != nil {
		return err
	}
	for {
		_, changed := m.current()
		live, at, err := m.reads(ctx)
		if err != nil || at.Covers(c) {
			return err
		}
		// Whoever waits for a generation that is replaced waits on for the new one.
		wctx, cancel := context.WithCancel(ctx)
		go func() {
			select {
			case <-changed:
				cancel()
			case <-wctx.Done():
			}
		}()
		err = m.s.store.Wait(wctx, m.name(live), c)
		again := wctx.Err() != nil && ctx.Err() == nil
		cancel()
		if err != nil && !again {
			return err
		}
	}
}

// reads is which generation readers see, and where it stood while they did: one that was live before is followed too, and
// may be ahead of it.
func (m *Model) reads(ctx context.Context) (live uint64, at millrace.Cursor, err error) {
	for {
		if live, err = m.seen(ctx); err != nil {
			return 0, at, err
		}
		if at, err = m.s.store.Checkpoints(ctx, m.name(live)); err != nil {
			return 0, millrace.Cursor{}, err
		}
		if now, err := m.seen(ctx); err != nil || now == live {
			return live, at, err
		}
	}
}

// Cursor implements millrace.ReadModel.
func (m *Model) Cursor() millrace.Cursor {
	_, at, err := m.reads(context.Background())
	if err != nil {
		return millrace.Cursor{}
	}
	return at
}
