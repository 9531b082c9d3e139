// Package standin is a small server for the tests of clients: the API's contract over the real rules, in memory. It has
// no store, no feed and no limits, answers every read at once, and can be told to misbehave.
package standin

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	millrace "github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/money"
)

// Server is an [http.Handler].
type Server struct {
	// Before, where it is set, sees each request first and says whether it has answered it.
	Before func(w http.ResponseWriter, r *http.Request) bool
	// Lose, where it says so, drops the answer of a request that was worked on: a connection that breaks too late.
	Lose func(r *http.Request) bool

	mu       sync.Mutex
	registry *millrace.Registry
	streams  map[millrace.Stream]*stream
	commands map[string]*kept
	pending  []*kept
	paused   bool
	order    []string // the ids of commands in the order of acceptance
	mux      *http.ServeMux
}

type stream struct {
	state   any
	version uint64
}

type kept struct {
	command     millrace.Command
	fingerprint millrace.Fingerprint
	outcome     millrace.Outcome
}

// New makes a server.
func New() *Server {
	registry, err := millrace.NewRegistry(order.Domains()...)
	if err != nil {
		panic(err) // the declarations are constant
	}
	s := &Server{registry: registry, streams: map[millrace.Stream]*stream{}, commands: map[string]*kept{}, mux: http.NewServeMux()}
	s.mux.HandleFunc("POST /v1/orders", s.create("order", "PlaceOrder"))
	s.mux.HandleFunc("POST /v1/returns", s.create("return", "RecordReturn"))
	for verb, command := range map[string]string{
		"confirm": "ConfirmOrder", "cancel": "CancelOrder", "pay": "MarkOrderPaid", "pack": "PackOrder", "ship": "ShipOrder",
		"deliver": "DeliverOrder", "return": "ReturnOrder",
	} {
		s.mux.HandleFunc("POST /v1/orders/{id}/"+verb, s.verb("order", command))
	}
	for verb, command := range map[string]string{
		"receive": "ReceiveStock", "adjust": "AdjustStock", "reserve": "ReserveStock", "release": "ReleaseStock", "commit": "CommitStock",
	} {
		s.mux.HandleFunc("POST /v1/stock/{id}/"+verb, s.verb("stock", command))
	}
	for path, category := range map[string]string{"orders": "order", "stock": "stock", "returns": "return"} {
		s.mux.HandleFunc("GET /v1/"+path+"/{id}", s.get(category))
	}
	s.mux.HandleFunc("POST /v1/commands", s.postCommands)
	s.mux.HandleFunc("GET /v1/commands/{id}", s.getCommand)
	s.mux.HandleFunc("GET /v1/order-totals", s.totals)
	return s
}

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.Before != nil && s.Before(w, r) {
		return
	}
	if s.Lose != nil && s.Lose(r) {
		s.mux.ServeHTTP(discard{http.Header{}}, r)
		panic(http.ErrAbortHandler)
	}
	s.mux.ServeHTTP(w, r)
}

type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

// Pause lets commands be kept and not decided; Resume decides them and all that follow.
func (s *Server) Pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = true
}

// Resume ends a Pause.
func (s *Server) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = false
	for _, k := range s.pending {
		s.decide(k)
	}
	s.pending = nil
}

// Accepted are the ids of all commands in the order of their acceptance.
func (s *Server) Accepted() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.order)
}

// State gives the folded state of a stream, or nil.
func (s *Server) State(name string) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.streams[millrace.Stream(name)]; one != nil {
		return one.state
	}
	return nil
}

// Outcome gives what became of a command.
func (s *Server) Outcome(id string) (millrace.Outcome, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.commands[id]
	if k == nil {
		return millrace.Outcome{}, false
	}
	return k.outcome, true
}

// fault is a problem that is nobody's outcome.
type fault struct {
	status int
	code   string
	errors []millrace.FieldError
}

func (f *fault) json() []byte {
	return must(jsonx.Marshal(map[string]any{
		"type": "/problems/" + f.code, "title": f.code, "status": f.status, "code": f.code, "errors": f.errors, "unknown": map[string]any{"x": 1},
	}))
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// accept keeps a command and decides it.
func (s *Server) accept(c *millrace.Command) (o millrace.Outcome, replayed bool, bad *fault) {
	body, err := s.registry.DecodeCommand(c)
	if form, ok := err.(*millrace.FormError); ok { //nolint:errorlint // it is not wrapped
		return o, false, &fault{400, "invalid_body", form.Errors}
	}
	c.Body = body
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.commands[c.ID]; k != nil {
		if k.fingerprint != c.Fingerprint() {
			return o, false, &fault{422, "idempotency_key_reused", nil}
		}
		return k.outcome, true, nil
	}
	k := &kept{command: *c, fingerprint: c.Fingerprint(), outcome: millrace.Outcome{
		CommandID: c.ID, Stream: c.Stream, Status: millrace.StatusAccepted,
	}}
	s.commands[c.ID] = k
	s.order = append(s.order, c.ID)
	if s.paused {
		s.pending = append(s.pending, k)
	} else {
		s.decide(k)
	}
	return k.outcome, false, nil
}

func (s *Server) decide(k *kept) {
	o := &k.outcome
	category, ok := s.registry.Category(k.command.Stream)
	if !ok || k.command.Body == nil {
		o.Status, o.Failure = millrace.StatusDead, &millrace.Failure{Reason: millrace.ReasonUnknownType}
		return
	}
	one := s.streams[k.command.Stream]
	if one == nil {
		one = &stream{state: category.Initial(k.command.Stream)}
	}
	events, refusal := category.Decide(one.state, k.command.Body, time.Now().UTC())
	o.Version = one.version
	if refusal != nil {
		o.Status, o.Refusal = millrace.StatusRefused, refusal
		return
	}
	for _, e := range events {
		one.state = category.Evolve(one.state, e)
		one.version++
	}
	if one.version > 0 {
		s.streams[k.command.Stream] = one
	}
	o.Status, o.Events, o.Version = millrace.StatusDecided, len(events), one.version
}

// key reads the idempotency key, bare or as a string in quotes.
func key(r *http.Request) string {
	k := r.Header.Get("Idempotency-Key")
	if len(k) > 1 && k[0] == '"' {
		k = k[1 : len(k)-1]
	}
	return k
}

func (s *Server) create(category, command string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		m := map[string]jsonx.RawValue{}
		var name string
		if jsonx.Unmarshal(data, &m) == nil {
			_ = jsonx.Unmarshal(m["id"], &name) // a missing one is derived from the key
		}
		if name == "" {
			name = "by-" + key(r)
		}
		s.answer(w, r, &millrace.Command{ID: key(r), Stream: millrace.NewStream(category, name), Type: command, Data: data}, http.StatusCreated)
	}
}

func (s *Server) verb(category, command string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		if len(data) == 0 {
			data = []byte("{}")
		}
		s.answer(w, r, &millrace.Command{ID: key(r), Stream: millrace.NewStream(category, r.PathValue("id")), Type: command, Data: data}, http.StatusOK)
	}
}

// answer accepts a command and answers as the API does.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, c *millrace.Command, success int) {
	o, replayed, bad := s.accept(c)
	if bad != nil {
		send(w, bad.status, "application/problem+json", bad.json())
		return
	}
	if replayed {
		w.Header().Set("Idempotency-Replayed", "true")
	}
	switch {
	case o.Status == millrace.StatusAccepted || r.Header.Get("Prefer") == "":
		send(w, http.StatusAccepted, "application/json", fmt.Appendf(nil, `{"command_id":%q,"status":"accepted","stream":%q,"id":%q}`, o.CommandID, o.Stream, o.Stream.ID()))
	case o.Status == millrace.StatusDead:
		send(w, 422, "application/problem+json", fmt.Appendf(nil, `{"type":"/problems/dead_letter","status":422,"instance":"/v1/commands/%s","code":"dead_letter"}`, o.CommandID))
	case o.Status == millrace.StatusRefused:
		status := map[millrace.RefusalKind]int{millrace.RefusedRule: 422, millrace.RefusedConflict: 409, millrace.RefusedNotFound: 404, millrace.RefusedVersion: 412}[o.Refusal.Kind]
		send(w, status, "application/problem+json", must(jsonx.Marshal(map[string]any{
			"status": status, "instance": "/v1/commands/" + o.CommandID, "code": o.Refusal.Code, "detail": o.Refusal.Detail, "errors": o.Refusal.Errors,
		})))
	case success == 0:
		send(w, http.StatusOK, "application/json", outcome(&o, 0, false))
	default:
		s.mu.Lock()
		doc, _ := order.Represent(s.streams[o.Stream].state)
		body := must(jsonx.Marshal(doc))
		s.mu.Unlock()
		send(w, success, "application/json", body)
	}
}

func send(w http.ResponseWriter, status int, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client is gone
}

// outcome writes an outcome, as the answer to a line where that is not 0.
func outcome(o *millrace.Outcome, line int, replayed bool) []byte {
	m := map[string]any{"command_id": o.CommandID, "status": o.Status.String(), "stream": string(o.Stream)}
	if line > 0 {
		m["line"] = line
	}
	if replayed {
		m["replayed"] = true
	}
	if o.Done() {
		m["version"], m["events"] = o.Version, o.Events
	}
	if o.Refusal != nil {
		m["refusal"] = map[string]any{"code": o.Refusal.Code, "detail": o.Refusal.Detail, "errors": o.Refusal.Errors}
	}
	if o.Failure != nil {
		m["failure"] = map[string]any{"reason": o.Failure.Reason}
	}
	return must(jsonx.Marshal(m))
}

type envelope struct {
	ID     string         `json:"id,omitempty"`
	Stream string         `json:"stream"`
	Type   string         `json:"type"`
	Data   jsonx.RawValue `json:"data"`
}

func open(data []byte) (*millrace.Command, *fault) {
	var e envelope
	if err := jsonx.Unmarshal(data, &e); err != nil {
		return nil, &fault{400, "invalid_body", nil}
	}
	c := &millrace.Command{ID: e.ID, Stream: millrace.Stream(e.Stream), Type: e.Type, Data: bytes.Clone(e.Data)}
	if c.Stream.Validate() != nil || c.Type == "" || c.Data == nil {
		return nil, &fault{400, "invalid_body", nil}
	}
	return c, nil
}

func (s *Server) postCommands(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Content-Type") == "application/x-ndjson" {
		s.postLines(w, r)
		return
	}
	data, _ := io.ReadAll(r.Body)
	c, bad := open(data)
	if bad != nil {
		send(w, bad.status, "application/problem+json", bad.json())
		return
	}
	s.answer(w, r, c, 0)
}

func (s *Server) postLines(w http.ResponseWriter, r *http.Request) {
	data, _ := io.ReadAll(r.Body)
	in := bufio.NewScanner(bytes.NewReader(data))
	in.Buffer(nil, 2<<20)
	for n := 1; in.Scan(); n++ {
		c, bad := open(in.Bytes())
		var o millrace.Outcome
		var replayed bool
		if bad == nil {
			o, replayed, bad = s.accept(c)
		}
		line := outcome(&o, n, replayed)
		if bad != nil {
			line = fmt.Appendf(nil, `{"line":%d,"problem":%s}`, n, bad.json())
		}
		_, _ = w.Write(append(line, '\n')) // the client is gone
	}
}

func (s *Server) getCommand(w http.ResponseWriter, r *http.Request) {
	o, ok := s.Outcome(r.PathValue("id"))
	if !ok {
		send(w, 404, "application/problem+json", (&fault{404, "not_found", nil}).json())
		return
	}
	send(w, 200, "application/json", outcome(&o, 0, false))
}

func (s *Server) get(category string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		one := s.streams[millrace.NewStream(category, r.PathValue("id"))]
		if one == nil {
			send(w, 404, "application/problem+json", (&fault{404, "not_found", nil}).json())
			return
		}
		doc, _ := order.Represent(one.state)
		send(w, 200, "application/json", must(jsonx.Marshal(doc)))
	}
}

func (s *Server) totals(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	type bucket struct {
		Day      string         `json:"day"`
		Status   order.Status   `json:"status"`
		Currency money.Currency `json:"currency"`
		Orders   int64          `json:"orders"`
		Units    int64          `json:"units"`
		Amount   money.Sum      `json:"amount"`
	}
	rows := map[string]*bucket{}
	for name, one := range s.streams {
		o, ok := one.state.(*order.Order)
		if !ok || !strings.HasPrefix(string(name), "order-") {
			continue
		}
		day := o.PlacedAt.UTC().Format(time.DateOnly)
		id := day + string(o.Status) + o.Currency.String()
		if rows[id] == nil {
			rows[id] = &bucket{Day: day, Status: o.Status, Currency: o.Currency}
		}
		b := rows[id]
		b.Orders++
		b.Units += o.Units
		b.Amount = b.Amount.Add(o.Total.Decimal())
	}
	items := make([]*bucket, 0, len(rows))
	for _, b := range rows {
		items = append(items, b)
	}
	send(w, 200, "application/json", must(jsonx.Marshal(map[string]any{"items": items})))
}
