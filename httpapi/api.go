package httpapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-io/millrace"
)

// API is the HTTP door, a [http.Handler]. Its methods are safe for use by several goroutines.
type API struct {
	store    *millrace.Store
	registry *millrace.Registry
	intake   millrace.Intake
	observe  func(Observation)
	passing  []error  // Config.Unavailable
	system   []string // Config.System
	internal []string // Config.Internal
	own      func(body any) []millrace.FieldError
	log      *slog.Logger
	now      func() time.Time

	mux    *http.ServeMux
	routes []Route
	seal   *sealer
	folds  *folds
	// control is nil where consumers cannot be paused.
	control Control
	// waits has room for those who wait; see MaxWaits.
	waits chan struct{}
	// drain ends all waits when the server is to stop.
	drain    context.Context //nolint:containedctx // it is the API's own lifetime, not a request's
	stopWait context.CancelFunc

	requests  atomic.Uint64
	instance  string
	exchanges sync.Pool

	// The values of headers that are always the same, so that no request allocates them.
	fixed fixedHeaders
}

type fixedHeaders struct {
	nosniff, noStore, csp, noReferrer, json, problem, ndjson, varyPrefer, retrySoon, replayed []string
}

// Route is one route of the API.
type Route struct{ Method, Path string }

// handler answers one method of a path.
type handler func(x *exchange)

// methods are the handlers of a path. There are three at most: a list is quicker than a map.
type methods []struct {
	method string
	handle handler
}

// New makes the API of a configuration.
func New(c Config) (*API, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	a := &API{
		store: c.Store, registry: c.Registry, intake: c.Intake, passing: c.Unavailable, system: c.System, internal: c.Internal, own: c.Own, observe: c.Observe, log: c.Logger, now: c.Now,
		mux: http.NewServeMux(), seal: newSealer(c.Store.Meta().ID), folds: newFolds(c.Store, c.Registry),
		waits: make(chan struct{}, MaxWaits),
		fixed: fixedHeaders{
			nosniff: []string{"nosniff"}, noStore: []string{"no-store"}, noReferrer: []string{"no-referrer"},
			csp:  []string{"default-src 'none'; frame-ancestors 'none'"},
			json: []string{"application/json"}, problem: []string{"application/problem+json"}, ndjson: []string{"application/x-ndjson"},
			varyPrefer: []string{"Prefer"}, retrySoon: []string{"1"}, replayed: []string{"true"},
		},
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if a.own == nil {
		a.own = func(any) []millrace.FieldError { return nil }
	}
	if a.now == nil {
		a.now = time.Now
	}
	a.drain, a.stopWait = context.WithCancel(context.Background())
	var seed [4]byte
	_, _ = rand.Read(seed[:]) // it never fails: see its documentation
	a.instance = hex.EncodeToString(seed[:]) + "-"
	a.exchanges.New = func() any { return &exchange{api: a} }

	if err := a.register(&c); err != nil {
		return nil, err
	}
	return a, nil
}

// Drain ends all waiting at once, and lets no more begin: commands are answered with 202, reads that cannot be answered
// yet with 503. Call it when the server is to stop, so that stopping does not take as long as the longest wait.
func (a *API) Drain() { a.stopWait() }

// Routes are all routes, in the order of their registration.
func (a *API) Routes() []Route { return append([]Route(nil), a.routes...) }

// register builds the table of routes.
func (a *API) register(c *Config) (err error) {
	defer func() { // the mux panics when two patterns conflict
		if p := recover(); p != nil {
			err = fmt.Errorf("httpapi: routes conflict: %v", p)
		}
	}()
	for i := range c.Resources {
		a.registerResource(&c.Resources[i])
	}
	for i := range c.Reports {
		r := c.Reports[i]
		if r.TimeKey == nil {
			r.TimeKey = TimeKey
		}
		a.handle("/v1/"+r.Name, methods{{"GET", func(x *exchange) { x.report(&r) }}})
	}
	a.handle("/v1/commands", methods{{"POST", (*exchange).postCommands}})
	a.handle("/v1/commands/{id}", methods{{"GET", (*exchange).getCommand}})
	if p := c.Projections; p != nil {
		a.registerProjections(p)
	}
	if s := c.Consumers; s != nil {
		a.registerConsumers(s, c.Control)
	}
	if d := c.DeadLetters; d != nil {
		a.registerDeadLetters(d, c.Consumers)
	}
	a.registerProcesses(c.Processes)
	if n := c.Nodes; n != nil {
		a.handle("/v1/nodes", methods{{"GET", func(x *exchange) { x.listNodes(n) }}})
	}
	d, err := newDocs(c.Document)
	if err != nil {
		return err
	}
	a.handle("/{$}", methods{{"GET", (*exchange).index}})
	a.handle("/docs", methods{{"GET", d.page}})
	a.handle("/docs/style.css", methods{{"GET", d.style}})
	a.handle("/openapi.yaml", methods{{"GET", d.yamlDocument}})
	a.handle("/openapi.json", methods{{"GET", d.jsonDocument}})
	a.handle("/problems/{code}", methods{{"GET", (*exchange).problemPage}})
	a.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		exchangeOf(w).fail(kindNoRoute.with("no route has this path"))
	})
	return nil
}

func (a *API) registerResource(decl *Resource) {
	r := &resource{Resource: *decl, base: "/v1/" + decl.Name, stem: millrace.Stream(decl.Category + "-")}
	if r.IDName == "" {
		r.IDName = "id"
	}
	one := r.base + "/{" + r.IDName + "}"
	var all, each methods
	if r.List != nil {
		l := newList(r)
		all = append(all, methods{{"GET", func(x *exchange) { x.list(l) }}}...)
	}
	if r.Create != "" {
		all = append(all, methods{{"POST", func(x *exchange) { x.command(r, r.Create, opCreate) }}}...)
	}
	if r.Table != nil {
		each = append(each, methods{{"GET", func(x *exchange) { x.get(r) }}}...)
	}
	if r.Patch != "" {
		each = append(each, methods{{"PATCH", func(x *exchange) { x.command(r, r.Patch, opPatch) }}}...)
	}
	a.handle(r.base, all)
	a.handle(one, each)
	for _, v := range r.Verbs {
		a.handle(one+"/"+v.Name, methods{{"POST", func(x *exchange) { x.command(r, v.Command, opVerb) }}})
	}
	for _, c := range r.Calls {
		a.handle(one+"/"+c.Name, methods{{"GET", func(x *exchange) { x.calls(r, &c) }}})
	}
	if r.Events {
		a.handle(one+"/events", methods{{"GET", func(x *exchange) { x.events(r) }}})
	}
}

// handle registers a path with all its methods, so that a method that is missing is answered here, as a problem.
func (a *API) handle(pattern string, ms methods) {
	if len(ms) == 0 {
		return
	}
	var allow []string
	for _, m := range ms {
		a.routes = append(a.routes, Route{m.method, strings.TrimSuffix(pattern, "{$}")})
		allow = append(allow, m.method)
		if m.method == "GET" {
			allow = append(allow, "HEAD")
		}
	}
	allowed := strings.Join(allow, ", ")
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		x := exchangeOf(w)
		x.r = r // the one that knows the path's values
		method := r.Method
		if method == "HEAD" {
			method = "GET" // net/http leaves the body out
		}
		for i := range ms {
			if ms[i].method == method {
				ms[i].handle(x)
				return
			}
		}
		p := kindMethod.with("the address has other methods")
		p.allow = allowed
		x.fail(p)
	})
}

// ServeHTTP answers one request. It is the only wrapper around the handlers.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := a.exchanges.Get().(*exchange) //nolint:forcetypeassert // the pool holds nothing else
	x.begin(w, r)
	defer x.finish()
	switch p := r.URL.EscapedPath(); {
	case len(r.URL.RawQuery) > MaxQuery:
		x.fail(kindInvalidParameter.with("the query is too long"))
	case !isClean(p):
		// The mux would redirect to the path that it thinks is meant. Whoever sends such a path is told that it is wrong.
		x.fail(kindNoRoute.with("the path is not in its simplest form"))
	default:
		a.mux.ServeHTTP(x, r)
	}
}

// isClean says whether a path has no empty, "." and ".." segments.
func isClean(p string) bool {
	return p != "" && p[0] == '/' && (p == "/" || path.Clean(p) == strings.TrimSuffix(p, "/"))
}
