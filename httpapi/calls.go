package httpapi

import (
	"context"
	"errors"
	"net/http"

	"github.com/millrace-io/millrace"
)

// progress is a consumer as a follower.
type progress struct {
	ctx   context.Context //nolint:containedctx // the request's
	store *millrace.Store
	name  string
}

// Wait implements follower.
func (p *progress) Wait(ctx context.Context, c millrace.Cursor) error {
	return p.store.Wait(ctx, p.name, c)
}

// Cursor implements follower. A store that does not say has seen nothing.
func (p *progress) Cursor() millrace.Cursor {
	c, err := p.store.Checkpoints(p.ctx, p.name)
	if err != nil {
		return millrace.Cursor{Epoch: p.store.Meta().Epoch}
	}
	return c
}

// calls answers GET /v1/{name}/{id}/{calls.name}: all of them, for a process has few of a stream.
func (x *exchange) calls(res *resource, c *Calls) {
	q, p := x.query("min_cursor")
	if p != nil {
		x.fail(p)
		return
	}
	stream := res.stem + millrace.Stream(x.r.PathValue(res.IDName))
	if stream.Validate() != nil {
		x.fail(kindNotFound.with("there is none of this id"))
		return
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), MaxWait+readTime)
	defer cancel()
	var f follower
	if c.Runs {
		f = &progress{ctx, x.api.store, c.Process}
	}
	if !x.caughtUp(f, q.Get("min_cursor")) {
		return
	}
	items, err := x.callItems(ctx, stream, c)
	if f != nil && !x.seen(f) {
		return
	}
	var payload []byte
	if err == nil {
		payload, err = x.encode(struct {
			Items []any `json:"items"`
		}{items})
	}
	if err != nil {
		x.failWith(err)
		return
	}
	x.sendJSON(http.StatusOK, payload)
}

// callItems are the calls of a stream. Errors: [millrace.ErrNotFound] where there is no such stream.
func (x *exchange) callItems(ctx context.Context, stream millrace.Stream, c *Calls) ([]any, error) {
	items, store := []any{}, x.api.store
	doc, err := store.Document(ctx, c.Process+"."+millrace.InstancesTable.Name, stream.Partition(store.Partitions()), string(stream))
	if errors.Is(err, millrace.ErrNotFound) {
		version, err := store.Version(ctx, stream)
		if err == nil && version == 0 {
			err = millrace.ErrNotFound
		}
		return items, err
	}
	if err != nil {
		return nil, err
	}
	instance, err := millrace.InstancesTable.Decode(doc.Data)
	if err != nil {
		return nil, err
	}
	for i := range instance.Calls {
		item, err := c.Item(&instance.Calls[i])
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, nil
}
