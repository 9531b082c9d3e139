package httpapi_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/api"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/deadletter"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/domain/system"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/projection"
)

// world is the API over a real store and a real processor. Its read models are in memory and move only when a test
// wants them to, or waits for them.
type world struct {
	t      testing.TB
	store  *millrace.Store
	intake *command.Processor
	api    *httpapi.API
	server *httptest.Server
	models map[string]*memoryModel
	real   *projection.Service
	seen   *observations
	spec   *contract
}

// observations are what Observe was told.
type observations struct {
	mu  sync.Mutex
	all []httpapi.Observation
}

func (o *observations) add(x httpapi.Observation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, x)
}

type worldOptions struct {
	paused bool
	real   bool // the read models of package projection, which follow by themselves
	wrap   func(millrace.Intake) millrace.Intake
	change func(*httpapi.Config)
}

func newWorld(t testing.TB, o worldOptions) *world {
	t.Helper()
	registry, err := millrace.NewRegistry(append(order.Domains(), system.Domains()...)...)
	if err != nil {
		t.Fatal(err)
	}
	store, err := localstore.Open("data", &localstore.Options{
		FS: vfs.NewMem(), Partitions: 4, CacheSize: 1 << 20, MemTableSize: 1 << 20, SegmentSize: 8 << 20,
		Fatal: func(err error) { panic(err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		t: t, store: store, intake: command.New(store, registry, &command.Options{Paused: o.paused}),
		models: map[string]*memoryModel{}, seen: &observations{}, spec: theContract(t),
	}
	for _, p := range order.Projections() {
		w.models[p.Name] = newMemoryModel(store, registry, p)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running errgroup.Group
	running.Go(func() error { return w.intake.Run(ctx) })
	if o.real {
		w.real, err = projection.New(ctx, store, order.Projections(), projection.Options{
			Run: func(ctx context.Context, c millrace.Consumer) error {
				return feed.New(store, registry, c, nil).Run(ctx)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() error { return w.real.Run(ctx) })
	}

	var intake millrace.Intake = w.intake
	if o.wrap != nil {
		intake = o.wrap(intake)
	}
	config := httpapi.Config{
		Store: store, Registry: registry, Intake: intake, Document: api.OpenAPI, Observe: w.seen.add,
		Resources: w.resources(), Projections: memoryProjections(w.models), Consumers: following{store: store}, Control: steering{store, registry},
		DeadLetters: deadletter.New(store, registry, w.intake, newMemoryModel(store, registry, system.Projections()[0]), nil), Nodes: owners{o: httpapi.Ownership{Answering: "local", Partitions: store.Partitions()}},
		Reports: []httpapi.Report{{
			Name: "order-totals", Model: w.model(order.ProjectionOrders), Table: order.DaysTable.Table, Index: order.DaysByDay,
			TimeKey: dayKey, Add: addDay,
		}},
		Logger: slog.New(slog.NewTextHandler(testLog{w}, nil)),
	}
	if o.change != nil {
		o.change(&config)
	}
	if w.api, err = httpapi.New(config); err != nil {
		t.Fatal(err)
	}
	w.server = httptest.NewServer(w.api)
	t.Cleanup(func() {
		w.api.Drain()
		w.server.Close()
		cancel()
		if err := running.Wait(); err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// testLog makes what the API logs as an error visible in the test.
type testLog struct{ w *world }

func (l testLog) Write(b []byte) (int, error) {
	l.w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// following are the consumers of a store that a test runs.
type following struct {
	store *millrace.Store
	names map[string]string
}

func (f following) Names() map[string]string { return f.names }

func (f following) Redrive(ctx context.Context, a *httpapi.RedriveAsk) error {
	return feed.Redrive(ctx, f.store, a.Consumer, "ask "+a.ID, a.Stream, time.Now())
}

func placeID(body any) string {
	if c, ok := body.(*order.PlaceOrder); ok {
		return c.ID
	}
	return ""
}

func returnID(body any) string {
	if c, ok := body.(*order.RecordReturn); ok {
		return c.ID
	}
	return ""
}

func (w *world) model(name string) millrace.ReadModel {
	if w.real != nil {
		return w.real.Model(name)
	}
	return w.models[name]
}

func (w *world) resources() []httpapi.Resource {
	represent := func(_ string, _ uint64, state any) any { doc, _ := order.Represent(state); return doc }
	statuses := make([]string, 0, 10)
	for _, s := range order.Statuses() {
		statuses = append(statuses, string(s))
	}
	return []httpapi.Resource{
		{
			Name: "orders", Category: order.CategoryOrder, Create: "PlaceOrder", Patch: "ChangeOrder", Events: true,
			CreateID: placeID,
			Verbs: []httpapi.Verb{
				{"confirm", "ConfirmOrder"}, {"cancel", "CancelOrder"}, {"pay", "MarkOrderPaid"}, {"pack", "PackOrder"},
				{"ship", "ShipOrder"}, {"deliver", "DeliverOrder"}, {"close", "CloseOrder"}, {"return", "ReturnOrder"},
			},
			Model: w.model(order.ProjectionOrders), Table: order.OrdersTable.Table, Represent: represent,
			Calls: []httpapi.Calls{{Name: "notifications", Process: order.ProcessNotifications, Runs: true, Item: callItem}},
			List: &httpapi.List{
				Filters: []httpapi.Filter{{Param: "customer_id"}, {Param: "status", Values: statuses}},
				Orders: []httpapi.Order{
					{Index: order.OrdersByCustomer, Equal: []string{"customer_id"}, Sort: "placed_at", Times: true},
					{Index: order.OrdersByStatus, Equal: []string{"status"}, Sort: "placed_at", Times: true},
					{Index: order.OrdersByPlacedAt, Sort: "placed_at", Times: true},
					{Index: order.OrdersByCustomer, Sort: "customer_id"},
					{Index: order.OrdersByStatus, Sort: "status"},
				},
				DefaultSort: "-placed_at",
			},
		},
		{
			Name: "stock", Category: order.CategoryStock, IDName: "sku", Events: true,
			Verbs: []httpapi.Verb{
				{"receive", "ReceiveStock"}, {"adjust", "AdjustStock"}, {"reserve", "ReserveStock"},
				{"release", "ReleaseStock"}, {"commit", "CommitStock"},
			},
			Model: w.model(order.ProjectionStock), Table: order.LevelsTable.Table, Represent: represent,
			List: &httpapi.List{Orders: []httpapi.Order{{Index: order.LevelsBySKU, Sort: "sku"}}, DefaultSort: "sku"},
		},
		{
			Name: "returns", Category: order.CategoryReturn, Create: "RecordReturn", Events: true,
			CreateID: returnID,
			Model:    w.model(order.ProjectionReturns), Table: order.ReturnsTable.Table, Represent: represent,
			List: &httpapi.List{
				Filters: []httpapi.Filter{{Param: "customer_id"}},
				Orders: []httpapi.Order{
					{Index: order.ReturnsByCustomer, Equal: []string{"customer_id"}, Sort: "returned_at", Times: true},
					{Index: order.ReturnsByReturnedAt, Sort: "returned_at", Times: true},
				},
				DefaultSort: "-returned_at",
			},
		},
	}
}

// answer is a response that was read and held to the document.
type answer struct {
	*http.Response
	body []byte
}

func (a *answer) json(t testing.TB) map[string]any {
	t.Helper()
	var v map[string]any
	if err := jsonx.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("%d %s: %v", a.StatusCode, a.body, err)
	}
	return v
}

// as is a checked type assertion.
func as[T any](t testing.TB, v any) T {
	t.Helper()
	x, ok := v.(T)
	if !ok {
		t.Fatalf("%v is a %T, want a %T", v, v, x)
	}
	return x
}

// items are the items of a page.
func (a *answer) items(t testing.TB) []map[string]any {
	t.Helper()
	var out []map[string]any
	for _, item := range as[[]any](t, a.json(t)["items"]) {
		out = append(out, as[map[string]any](t, item))
	}
	return out
}

// text is a member that is a string.
func (a *answer) text(t testing.TB, name string) string {
	t.Helper()
	return as[string](t, a.json(t)[name])
}

// do sends a request. Headers are "Name: value". Every answer must be as the document says, and so must every request
// that the server took.
func (w *world) do(method, path, body string, headers ...string) *answer {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	} else {
		req.Body, req.ContentLength = http.NoBody, 0
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
		if value == "" {
			req.Header.Del(name)
		}
	}
	client := *w.server.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.spec.check(req, []byte(body), resp, got); err != nil {
		w.t.Errorf("%s %s is not as the document says: %v\nanswer: %d %v %s", method, path, err, resp.StatusCode, resp.Header, clip(got))
	}
	return &answer{resp, got}
}

// want is do with a status.
func (w *world) want(status int, method, path, body string, headers ...string) *answer {
	w.t.Helper()
	a := w.do(method, path, body, headers...)
	if a.StatusCode != status {
		w.t.Fatalf("%s %s: %d, want %d: %s", method, path, a.StatusCode, status, clip(a.body))
	}
	return a
}

func clip(b []byte) []byte { return b[:min(len(b), 1000)] }

// contract is the OpenAPI document as a judge.
type contract struct {
	doc    *openapi3.T
	router routers.Router
}

var theContract = func() func(testing.TB) *contract {
	load := sync.OnceValues(func() (*contract, error) {
		text := func(body io.Reader, _ http.Header, _ *openapi3.SchemaRef, _ openapi3filter.EncodingFn) (any, error) {
			b, err := io.ReadAll(body)
			return string(b), err
		}
		for _, t := range []string{"application/x-ndjson", "text/html", "text/css"} {
			openapi3filter.RegisterBodyDecoder(t, text)
		}
		openapi3filter.RegisterBodyDecoder("application/merge-patch+json", openapi3filter.RegisteredBodyDecoder("application/json"))
		doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI)
		if err != nil {
			return nil, err
		}
		if err := doc.Validate(context.Background()); err != nil {
			return nil, err
		}
		router, err := legacy.NewRouter(doc)
		return &contract{doc, router}, err
	})
	return func(t testing.TB) *contract {
		t.Helper()
		c, err := load()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}()

// check holds a request and its answer to the document. A request that was refused need not fit; its answer must.
func (c *contract) check(req *http.Request, body []byte, resp *http.Response, got []byte) error {
	ctx := context.Background()
	copied := req.Clone(ctx)
	copied.URL.Scheme, copied.URL.Host = "", ""
	copied.Body = io.NopCloser(bytes.NewReader(body))
	if req.Method == http.MethodHead && resp.StatusCode < 400 {
		return nil // the same as GET, without a body to look at
	}
	if len(body) == 0 {
		copied.Body = http.NoBody
	}
	route, params, err := c.router.FindRoute(copied)
	if err != nil {
		// Outside of the document there is nothing but these two.
		if resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusMethodNotAllowed {
			return fmt.Errorf("no such route: %w", err)
		}
		return c.checkProblem(resp, got)
	}
	in := &openapi3filter.RequestValidationInput{
		Request: copied, PathParams: params, Route: route, Options: &openapi3filter.Options{IncludeResponseStatus: true},
	}
	if resp.StatusCode < 400 {
		if err := openapi3filter.ValidateRequest(ctx, in); err != nil {
			return fmt.Errorf("request: %w", err)
		}
	}
	if resp.StatusCode >= 400 {
		if err := c.checkProblem(resp, got); err != nil {
			return err
		}
	}
	for name := range resp.Header {
		if err := c.documented(route, resp.StatusCode, name); err != nil {
			return err
		}
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/x-ndjson") {
		for line := range bytes.Lines(got) {
			if err := c.fits("LineAnswer", line); err != nil {
				return fmt.Errorf("line %s: %w", line, err)
			}
		}
	}
	if len(got) == 0 && strings.Contains(resp.Header.Get("Preference-Applied"), "return=minimal") {
		in.Options.ExcludeResponseBody = true // OpenAPI has no way to say that a body may be absent
	}
	return openapi3filter.ValidateResponse(ctx, &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: resp.StatusCode, Header: resp.Header, Body: io.NopCloser(bytes.NewReader(got)), Options: in.Options,
	})
}

// documented says whether a header of an answer is in the document. Those of every HTTP server need not be.
func (c *contract) documented(route *routers.Route, status int, name string) error {
	switch name {
	case "Content-Type", "Content-Length", "Date", "Cache-Control", "X-Content-Type-Options", "Content-Security-Policy",
		"Referrer-Policy", "Connection", "Transfer-Encoding":
		return nil
	}
	r := route.Operation.Responses.Status(status)
	if r == nil {
		r = route.Operation.Responses.Default()
	}
	for documented := range r.Value.Headers {
		if http.CanonicalHeaderKey(documented) == name {
			return nil
		}
	}
	return fmt.Errorf("header %s is not documented", name)
}

// checkProblem holds a fault to RFC 9457, wherever it comes from.
func (c *contract) checkProblem(resp *http.Response, got []byte) error {
	if t := resp.Header.Get("Content-Type"); t != "application/problem+json" {
		return fmt.Errorf("a fault has the Content-Type %q", t)
	}
	if resp.Request.Method == "HEAD" {
		return nil
	}
	if err := c.fits("Problem", got); err != nil {
		return err
	}
	if (resp.StatusCode == 503) != (resp.Header.Get("Retry-After") != "") {
		return fmt.Errorf("%d with Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
	return nil
}

func (c *contract) fits(schema string, data []byte) error {
	var v any
	if err := jsonx.Unmarshal(data, &v); err != nil {
		return err
	}
	return c.doc.Components.Schemas[schema].Value.VisitJSON(v, openapi3.EnableJSONSchema2020())
}

// memoryModel is a read model in memory: the projection's documents, applied when somebody waits.
type memoryModel struct {
	store    *millrace.Store
	registry *millrace.Registry
	p        millrace.Projection

	mu     sync.Mutex
	frozen bool // waits do not move it
	cursor millrace.Cursor
	docs   map[*millrace.Table]map[docKey]any
	part   int // of the event at hand
}

type docKey struct {
	partition int
	id        string
}

func newMemoryModel(s *millrace.Store, r *millrace.Registry, p millrace.Projection) *memoryModel {
	m := &memoryModel{store: s, registry: r, p: p, docs: map[*millrace.Table]map[docKey]any{}}
	m.cursor = millrace.Cursor{Epoch: s.Meta().Epoch, Positions: make([]uint64, s.Partitions())}
	for _, t := range p.Tables {
		m.docs[t] = map[docKey]any{}
	}
	return m
}

func (m *memoryModel) freeze(frozen bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.frozen = frozen
}

// catchUp applies everything that is in the log.
func (m *memoryModel) catchUp(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for batch, err := range m.store.Feed(ctx, millrace.FeedOptions{After: m.cursor.Clone()}) {
		if err != nil {
			return err
		}
		for i := range batch {
			e := &batch[i]
			m.part = e.Partition
			if slices.Contains(m.p.Categories, e.Stream.Category()) {
				if _, err := m.registry.Body(e); err != nil {
					return err
				}
				if err := m.p.Project(m, e); err != nil {
					return err
				}
			}
			m.cursor.Positions[e.Partition] = e.Position
		}
	}
	return nil
}

func (m *memoryModel) Load(t *millrace.Table, id string) (any, error) {
	return m.docs[t][docKey{m.part, id}], nil
}
func (m *memoryModel) Save(t *millrace.Table, id string, doc any) {
	m.docs[t][docKey{m.part, id}] = doc
}
func (m *memoryModel) Insert(t *millrace.Table, id string, doc any) { m.Save(t, id, doc) }
func (m *memoryModel) Remove(t *millrace.Table, id string)          { delete(m.docs[t], docKey{m.part, id}) }

func (m *memoryModel) document(t *millrace.Table, k docKey) (millrace.Document, error) {
	data, keys, err := t.Encode(m.docs[t][k])
	return millrace.Document{Collection: t.Name, Partition: k.partition, ID: k.id, Data: data, Keys: keys}, err
}

func (m *memoryModel) Get(_ context.Context, t *millrace.Table, partition int, id string) (millrace.Document, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.docs[t][docKey{partition, id}] == nil {
		return millrace.Document{}, millrace.ErrNotFound
	}
	return m.document(t, docKey{partition, id})
}

func (m *memoryModel) Query(_ context.Context, t *millrace.Table, q millrace.Query) iter.Seq2[millrace.Document, error] {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []millrace.Document
	for k := range m.docs[t] {
		d, err := m.document(t, k)
		if err != nil {
			return func(yield func(millrace.Document, error) bool) { yield(d, err) }
		}
		if key := d.Keys[q.Index]; key != "" && strings.HasPrefix(key, q.Prefix) && key >= q.From && (q.To == "" || key < q.To) {
			out = append(out, d)
		}
	}
	place := func(d *millrace.Document) string {
		p := d.Place(q.Index)
		return fmt.Sprintf("%s\x00%04d\x00%s", p.Key, p.Partition, p.ID)
	}
	slices.SortFunc(out, func(a, b millrace.Document) int { return strings.Compare(place(&a), place(&b)) })
	if q.Reverse {
		slices.Reverse(out)
	}
	if a := q.After; a != nil {
		at := fmt.Sprintf("%s\x00%04d\x00%s", a.Key, a.Partition, a.ID)
		out = slices.DeleteFunc(out, func(d millrace.Document) bool {
			c := strings.Compare(place(&d), at)
			return c == 0 || (c < 0) != q.Reverse
		})
	}
	return func(yield func(millrace.Document, error) bool) {
		for _, d := range out {
			if !yield(d, nil) {
				return
			}
		}
	}
}

func (m *memoryModel) Wait(ctx context.Context, c millrace.Cursor) error {
	m.mu.Lock()
	frozen := m.frozen
	m.mu.Unlock()
	if frozen {
		<-ctx.Done()
		return ctx.Err()
	}
	return m.catchUp(ctx)
}

func (m *memoryModel) Cursor() millrace.Cursor {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cursor.Clone()
}

// memoryProjections shows the models.
type memoryProjections map[string]*memoryModel

func (p memoryProjections) List(ctx context.Context) ([]httpapi.ProjectionStatus, error) {
	out := []httpapi.ProjectionStatus{}
	for _, name := range []string{order.ProjectionOrders, order.ProjectionReturns, order.ProjectionStock} {
		s, err := p.Status(ctx, name)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

func (p memoryProjections) Status(_ context.Context, name string) (httpapi.ProjectionStatus, error) {
	m, ok := p[name]
	if !ok {
		return httpapi.ProjectionStatus{}, millrace.ErrNotFound
	}
	return httpapi.ProjectionStatus{Name: name, Version: m.p.Version, State: "live", Cursor: m.Cursor().String()}, nil
}

func (p memoryProjections) Rebuild(ctx context.Context, name string, _ bool) error {
	_, err := p.Status(ctx, name)
	return err
}

func (p memoryProjections) Switch(ctx context.Context, name string, _ uint64) error {
	return p.Rebuild(ctx, name, false)
}

func (p memoryProjections) Discard(ctx context.Context, name string) error {
	return p.Rebuild(ctx, name, false)
}

func (p memoryProjections) Repair(ctx context.Context, name string, _ millrace.Stream) error {
	return p.Rebuild(ctx, name, false)
}
