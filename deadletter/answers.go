package deadletter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-io/millrace"
)

const (
	// answersEvery is how often the outcomes of what was sent again are asked for where that costs nothing, and answersShared
	// where it is a round trip and several decisions of several nodes lie in between.
	answersEvery  = 2 * time.Millisecond
	answersShared = 20 * time.Millisecond
)

// answers awaits the outcomes of the commands by which dead letters were sent again. All that are awaited are asked for together:
// on a shared store a question for each would be a round trip for each, again and again.
type answers struct {
	store *millrace.Store
	every time.Duration
	any   chan struct{} // somebody waits

	mu      sync.Mutex
	awaited map[string]chan millrace.Finding
}

func newAnswers(store *millrace.Store) *answers {
	a := &answers{store: store, every: answersEvery, any: make(chan struct{}, 1), awaited: map[string]chan millrace.Finding{}}
	if store.Shared() {
		a.every = answersShared
	}
	return a
}

// wait waits for the outcome of a command, which may still be to be sent. Nobody else waits for the same one.
func (a *answers) wait(ctx context.Context, id string) (millrace.Outcome, error) {
	told := make(chan millrace.Finding, 1)
	a.mu.Lock()
	a.awaited[id] = told
	a.mu.Unlock()
	select {
	case a.any <- struct{}{}:
	default:
	}
	select {
	case f := <-told:
		return f.Outcome, f.Err
	case <-ctx.Done():
		return millrace.Outcome{}, fmt.Errorf("wait for what was sent again: %w", ctx.Err())
	}
}

// run asks until ctx ends.
func (a *answers) run(ctx context.Context) {
	for {
		select {
		case <-a.any:
		case <-ctx.Done():
			return
		}
		for a.ask(ctx) {
			if pause(ctx, a.every); ctx.Err() != nil {
				return
			}
		}
	}
}

// ask asks for all that are awaited, and says whether some are still.
func (a *answers) ask(ctx context.Context) bool {
	a.mu.Lock()
	qs := make([]millrace.Inquiry, 0, len(a.awaited))
	for id := range a.awaited {
		qs = append(qs, millrace.Inquiry{ID: id, Decided: true})
	}
	a.mu.Unlock()
	if len(qs) == 0 {
		return false
	}
	found := a.store.Lookups(ctx, qs)
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range found {
		if f := &found[i]; f.Err == nil && f.Outcome.Done() || f.Err != nil && !errors.Is(f.Err, millrace.ErrNotFound) {
			a.awaited[qs[i].ID] <- *f
			delete(a.awaited, qs[i].ID)
		}
	}
	return len(a.awaited) > 0
}
