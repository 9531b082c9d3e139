package httpapi

import (
	"context"
	"iter"
	"net/http"
	"slices"
	"strings"

	"github.com/millrace-io/millrace"
)

// Process is a process manager as the API shows it. *process.Reader is one.
type Process interface {
	Name() string
	Category() string
	// Instance is the document of a stream's instance. Errors: [millrace.ErrNotFound].
	Instance(ctx context.Context, s millrace.Stream) (millrace.Document, error)
	// Instances reads the documents of instances; the query's collection is filled in.
	Instances(ctx context.Context, q millrace.Query) iter.Seq2[millrace.Document, error]
}

// processStatus is a process; how it is, its consumer of the same name tells.
type processStatus struct {
	Name     string `json:"name"`
	Category string `json:"category"` // whose streams have instances
}

type processList struct {
	Items []processStatus `json:"items"`
}

func (a *API) registerProcesses(all []Process) {
	const instances = "/v1/processes/{name}/instances"
	find := func(x *exchange) Process {
		name := x.r.PathValue("name")
		i := slices.IndexFunc(all, func(p Process) bool { return p.Name() == name })
		if i < 0 {
			x.fail(kindNotFound.with("there is no process of that name"))
			return nil
		}
		return all[i]
	}
	a.handle("/v1/processes", methods{{"GET", func(x *exchange) { x.listProcesses(all) }}})
	a.handle(instances, methods{{"GET", func(x *exchange) {
		if p := find(x); p != nil {
			x.listInstances(p)
		}
	}}})
	a.handle(instances+"/{stream}", methods{{"GET", func(x *exchange) {
		if p := find(x); p != nil {
			x.getInstance(p)
		}
	}}})
}

func (x *exchange) listProcesses(all []Process) {
	if _, fault := x.query(); fault != nil {
		x.fail(fault)
		return
	}
	out := processList{Items: make([]processStatus, 0, len(all))}
	for _, p := range all {
		out.Items = append(out.Items, processStatus{Name: p.Name(), Category: p.Category()})
	}
	slices.SortFunc(out.Items, func(a, b processStatus) int { return strings.Compare(a.Name, b.Name) })
	x.sendValue(http.StatusOK, out, nil)
}

// listInstances answers with a page of a process's instances: of a state, the longest unchanged first; with a business key; or
// all by their streams.
func (x *exchange) listInstances(p Process) {
	values, fault := x.query("state", "key", "limit", "cursor")
	if fault != nil {
		x.fail(fault)
		return
	}
	limit, fault := pageLimit(values.Get("limit"))
	if fault != nil {
		x.fail(fault)
		return
	}
	state, key := values.Get("state"), values.Get("key")
	if state != "" && key != "" {
		x.fail(kindInvalidParameter.with("state and key cannot be combined"))
		return
	}
	q := millrace.Query{Index: -1, Partition: -1}
	switch {
	case state != "":
		q.Index, q.Prefix = millrace.InstancesByState, millrace.KeyPrefix(state)
	case key != "":
		q.Index, q.Prefix = millrace.InstancesByKey, millrace.KeyPrefix(key)
	}
	bound := strings.Join([]string{"instances", p.Name(), state, key}, "\x01")
	if token := values.Get("cursor"); token != "" {
		var ok bool
		if q.After, ok = x.api.seal.openPlace(bound, token); !ok {
			x.fail(kindInvalidCursor.with("cursor is not one of this list with these filters"))
			return
		}
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), readTime)
	defer cancel()
	x.buf = append(x.buf[:0], `{"items":[`...)
	n, token := 0, ""
	var last millrace.Place
	for d, err := range p.Instances(ctx, q) {
		if err != nil {
			x.failWith(err)
			return
		}
		if n == limit || n > 0 && len(x.buf)+len(d.Data) > MaxPageBytes {
			token = x.api.seal.sealPlace(bound, last)
			break
		}
		if n++; n > 1 {
			x.buf = append(x.buf, ',')
		}
		x.buf = append(x.buf, d.Data...)
		last = d.Place(q.Index)
	}
	x.page(token)
}

func (x *exchange) getInstance(p Process) {
	if _, fault := x.query(); fault != nil {
		x.fail(fault)
		return
	}
	s := millrace.Stream(x.r.PathValue("stream"))
	if err := s.Validate(); err != nil {
		x.failWith(err)
		return
	}
	d, err := p.Instance(x.r.Context(), s)
	if err != nil {
		x.failWith(err)
		return
	}
	x.sendJSON(http.StatusOK, d.Data)
}
