package httpapi

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// folds folds streams up to a version. A stream's state at every foldStride-th version that it passes is remembered, so
// that the answers to a stream of a hundred thousand events (a stock that everybody buys from) cost no more than those
// to a short one. States never change, so that remembering one is safe.
type folds struct {
	store    *millrace.Store
	registry *millrace.Registry

	mu    sync.Mutex
	known map[foldKey]*list.Element // of foldedState
	order *list.List                // newest use first
}

type foldKey struct {
	stream  millrace.Stream
	version uint64
}

type foldedState struct {
	key   foldKey
	state any
}

func newFolds(s *millrace.Store, r *millrace.Registry) *folds {
	return &folds{store: s, registry: r, known: map[foldKey]*list.Element{}, order: list.New()}
}

// at folds to a version. Errors: ErrNotFound, where the stream has not come so far.
func (f *folds) at(ctx context.Context, stream millrace.Stream, version uint64) (any, error) {
	state, from, err := f.start(stream, version)
	if err != nil {
		return nil, err
	}
	if from == version {
		return state, nil
	}
	state, reached, err := f.fold(ctx, stream, state, from, func(e *millrace.Recorded) bool { return e.Version <= version })
	if err == nil && reached != version {
		return nil, fmt.Errorf("%w: version", millrace.ErrNotFound)
	}
	return state, err
}

// asOf folds to a time, and says which version that is: 0 where there was nothing.
func (f *folds) asOf(ctx context.Context, stream millrace.Stream, at time.Time) (any, uint64, error) {
	state, _, err := f.start(stream, 0)
	if err != nil {
		return nil, 0, err
	}
	return f.fold(ctx, stream, state, 0, func(e *millrace.Recorded) bool { return !e.Time.After(at) })
}

// start is the remembered state that is nearest below a version, or the initial one.
func (f *folds) start(stream millrace.Stream, version uint64) (state any, at uint64, err error) {
	c, ok := f.registry.Category(stream)
	if !ok {
		return nil, 0, fmt.Errorf("%w: no category for the stream", millrace.ErrNotFound)
	}
	if version >= foldStride {
		f.mu.Lock()
		defer f.mu.Unlock()
		for at := version - version%foldStride; at > 0 && version-at < 4*foldStride; at -= foldStride {
			if e := f.known[foldKey{stream, at}]; e != nil {
				f.order.MoveToFront(e)
				return e.Value.(foldedState).state, at, nil //nolint:forcetypeassert // the list holds nothing else
			}
		}
	}
	return c.Initial(stream), 0, nil
}

// fold goes on from a state at a version as long as the events are wanted. Of the versions to be remembered that it
// passes, it remembers the last.
func (f *folds) fold(ctx context.Context, stream millrace.Stream, state any, from uint64, wanted func(*millrace.Recorded) bool) (any, uint64, error) {
	c, _ := f.registry.Category(stream)
	version := from
	var mark foldedState
	for e, err := range f.store.Events(ctx, stream, from+1) {
		if err != nil {
			return nil, 0, err
		}
		if !wanted(&e) {
			break
		}
		body, err := f.registry.Body(&e)
		if err != nil {
			return nil, 0, err
		}
		state, version = c.Evolve(state, body), e.Version
		if version%foldStride == 0 {
			mark = foldedState{foldKey{stream, version}, state}
		}
	}
	if mark.key.version > 0 {
		f.remember(mark)
	}
	return state, version, nil
}

func (f *folds) remember(s foldedState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known[s.key] != nil {
		return
	}
	f.known[s.key] = f.order.PushFront(s)
	if f.order.Len() > foldStates {
		last := f.order.Back()
		delete(f.known, last.Value.(foldedState).key) //nolint:forcetypeassert // as above
		f.order.Remove(last)
	}
}

// representation is the JSON of a resource at a version, in the exchange's buffer.
func (x *exchange) representation(res *resource, stream millrace.Stream, version uint64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(x.r.Context(), readTime)
	defer cancel()
	state, err := x.api.folds.at(ctx, stream, version)
	if err != nil {
		return nil, err
	}
	return x.encode(res.Represent(stream.ID(), version, state))
}

// encode writes a value as the store writes documents: by its own encoder, where it has one.
func (x *exchange) encode(v any) ([]byte, error) {
	if a, ok := v.(millrace.Appender); ok {
		x.buf = a.AppendJSON(x.buf[:0])
		return x.buf, nil
	}
	var err error
	x.buf, err = jsonx.Append(x.buf[:0], v)
	return x.buf, err
}
