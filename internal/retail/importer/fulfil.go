package importer

import (
	"context"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace/internal/client"
)

// lookAgain is the time between two looks at the orders that are on their way still.
const lookAgain = 200 * time.Millisecond

// missing is where an order has come to that the server does not carry through.
const missing = "missing"

// fulfil waits until orders have come to their ends, and counts these. It gives up when none has for as long as Settle says:
// an order that waits for a person may wait for days.
func (r *run) fulfil(ctx context.Context, ids []string, sum *Summary) error {
	ends := make(map[string]int)
	of := len(ids)
	for moved := time.Now(); ; {
		left, err := r.look(ctx, ids, ends)
		if err != nil {
			return err
		}
		if len(left) < len(ids) {
			moved = time.Now()
		}
		ids = ids[:0]
		states := make(map[string]int)
		for id, state := range left {
			ids = append(ids, id)
			states[state]++
		}
		if r.OnFulfilled != nil {
			r.OnFulfilled(of-len(ids), of)
		}
		if len(ids) == 0 || time.Since(moved) > r.Settle {
			for state, n := range states {
				ends[state] += n
			}
			sum.Fulfilment, sum.Unfinished = ends, len(ids)
			return nil
		}
		if err := client.Pause(ctx, lookAgain); err != nil {
			return err
		}
	}
}

// look looks at orders, counts the ends of those that have come to one, and gives where the others are.
func (r *run) look(ctx context.Context, ids []string, ends map[string]int) (left map[string]string, err error) {
	left = make(map[string]string)
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(r.Concurrency)
	for _, id := range ids {
		g.Go(func() error {
			state, done, err := r.instance(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			if done {
				ends[state]++
			} else {
				left[id] = state
			}
			return err
		})
	}
	return left, g.Wait()
}

// instance is where an order has come to.
func (r *run) instance(ctx context.Context, id string) (state string, done bool, err error) {
	res, err := r.client.Get(ctx, "/v1/processes/fulfilment/instances/"+url.PathEscape("order-"+id))
	switch {
	case err != nil:
		return "", false, err
	case res.Status == http.StatusNotFound:
		return missing, false, nil
	case res.Err() != nil:
		return "", false, res.Err()
	}
	m, err := client.Members(res.Body)
	if err != nil {
		return "", false, err
	}
	m.Into("done", &done)
	return m.Text("state"), done, nil
}
