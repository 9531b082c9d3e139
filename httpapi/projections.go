package httpapi

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// Projections shows and changes read models. The wiring implements it. All that is asked for is done by some node, a little
// after the answer.
type Projections interface {
	// List gives all, in the order of their names.
	List(ctx context.Context) ([]ProjectionStatus, error)
	// Status gives one. Errors: [millrace.ErrNotFound].
	Status(ctx context.Context, name string) (ProjectionStatus, error)
	// Rebuild starts to build one anew; with hold it is not switched to when it is complete. A rebuild that is on its way
	// already is no fault. Errors: [millrace.ErrNotFound], [ErrPaused], [ErrNoAnswer].
	Rebuild(ctx context.Context, name string, hold bool) error
	// Switch makes another generation live: the one that was built and held (0), or any by its number. Errors: those of
	// Rebuild, [ErrNoGeneration], [ErrOtherCode], [ErrRebuilding].
	Switch(ctx context.Context, name string, generation uint64) error
	// Discard removes the generation beside the live one. Errors: [millrace.ErrNotFound], [ErrNoGeneration], [ErrNoAnswer].
	Discard(ctx context.Context, name string) error
	// Repair makes the documents of one stream again. Errors: those of Switch, [ErrNotByStream], [millrace.ErrInvalid] for a
	// stream that the projection does not follow.
	Repair(ctx context.Context, name string, s millrace.Stream) error
}

var (
	// ErrPaused: read models stand still on this server.
	ErrPaused = errors.New("the read models are paused")
	// ErrRebuilding: it would be in the way of a rebuild or a switch.
	ErrRebuilding = errors.New("the read model is being rebuilt")
	// ErrNoGeneration: there is no such generation, or it is not complete.
	ErrNoGeneration = errors.New("no such generation")
	// ErrOtherCode: the generation is of another version of the code than the server runs.
	ErrOtherCode = errors.New("the generation is of another version of the code")
	// ErrNotByStream: documents depend on several streams.
	ErrNotByStream = errors.New("documents depend on several streams")
	// ErrNoAnswer: the node that coordinates read models does not answer.
	ErrNoAnswer = errors.New("the coordinator does not answer")
)

// ProjectionStatus is how a read model is.
type ProjectionStatus struct {
	Name    string `json:"name"`
	Version int    `json:"version"` // of the code that made the live documents
	Code    int    `json:"code"`    // that the server runs
	// State is live, rebuilding, ready (a generation waits to be switched to) or switching. The live documents answer in all
	// of them.
	State  string  `json:"state"`
	Gap    uint64  `json:"gap"`         // events behind
	Lag    float64 `json:"lag_seconds"` // how long the oldest of them has been there
	Parked int     `json:"parked"`      // streams that wait behind a failed event
	Cursor string  `json:"cursor"`      // what it has seen
	// Generation is the live one. Numbers rise and are never given twice.
	Generation uint64 `json:"generation"`
	// Previous was live before and can be switched back to. Nil where there is none.
	Previous *PreviousGeneration `json:"previous,omitempty"`
	// Identical says whether the newest rebuild made the very documents that it replaces. Nil where that is not known.
	Identical *bool `json:"identical,omitempty"`
	// Rebuild is the newest rebuild. Nil where there was none.
	Rebuild *RebuildStatus `json:"rebuild,omitempty"`
	// Repairs are the newest ones, in their order.
	Repairs []RepairStatus `json:"repairs,omitempty"`
	// LastError is what went wrong last. Nil where nothing did.
	LastError *ProjectionError `json:"last_error,omitempty"`
}

// PreviousGeneration is a generation that was live.
type PreviousGeneration struct {
	Generation uint64    `json:"generation"`
	Version    int       `json:"version"`
	Until      time.Time `json:"until"` // then it is removed
}

// RebuildStatus is how far a rebuild is, or how it ended.
type RebuildStatus struct {
	Generation uint64    `json:"generation"` // that it makes
	Version    int       `json:"version"`
	Hold       bool      `json:"hold,omitzero"`
	Ready      bool      `json:"ready,omitzero"` // it waits to be switched to
	Started    time.Time `json:"started"`
	Finished   time.Time `json:"finished,omitzero"` // zero while it is on its way
	Events     uint64    `json:"events"`            // handled so far
	Total      uint64    `json:"events_total"`
	Done       int       `json:"partitions_done"`
	// Nodes tells the progress by owner. Empty on a store of one process, and when it has ended.
	Nodes       []NodeRebuild `json:"nodes,omitempty"`
	Differences *Differences  `json:"differences,omitempty"`
	// Error says why it failed, in words of the wiring: what is live is then what was live before. Texts of errors do not
	// belong here, because they may hold values and paths.
	Error string `json:"error,omitempty"`
}

// NodeRebuild is how far a node is.
type NodeRebuild struct {
	Node       string `json:"node"` // empty where nobody owns them
	Partitions int    `json:"partitions"`
	Done       int    `json:"partitions_done"`
	Events     uint64 `json:"events"`
	Total      uint64 `json:"events_total"`
}

// Differences are those between a generation and the one that was live.
type Differences struct {
	Documents  uint64             `json:"documents"` // compared
	Unsettled  uint64             `json:"unsettled"` // changed too often to be compared
	Uncompared int                `json:"uncompared_partitions"`
	Tables     []TableDifferences `json:"tables"`
}

// TableDifferences are those of a table.
type TableDifferences struct {
	Table     string   `json:"table"`
	Missing   uint64   `json:"missing"`
	Extra     uint64   `json:"extra"`
	Different uint64   `json:"different"`
	Examples  []string `json:"examples"` // a few ids
}

// RepairStatus is a stream whose documents are made again.
type RepairStatus struct {
	Stream   string    `json:"stream"`
	Asked    time.Time `json:"asked"`
	Finished time.Time `json:"finished,omitzero"`
	Error    string    `json:"error,omitempty"` // as in RebuildStatus
}

// ProjectionError is what went wrong last.
type ProjectionError struct {
	What   string    `json:"what"` // parked, rebuild, repair or switch
	At     time.Time `json:"at"`
	Stream string    `json:"stream,omitempty"`
	Node   string    `json:"node,omitempty"`
	Error  string    `json:"error"` // as in RebuildStatus
}

// projectionList is the answer of GET /v1/projections.
type projectionList struct {
	Items []ProjectionStatus `json:"items"`
}

func (a *API) registerProjections(p Projections) {
	const one = "/v1/projections/{name}"
	a.handle("/v1/projections", methods{{"GET", func(x *exchange) { x.listProjections(p) }}})
	a.handle(one, methods{{"GET", func(x *exchange) { x.getProjection(p) }}})
	ask := func(verb string, body func() any, do func(ctx context.Context, name string, body any) error) {
		a.handle(one+"/"+verb, methods{{"POST", func(x *exchange) { x.changeProjection(p, body(), do) }}})
	}
	ask("rebuild", func() any { return &rebuildBody{} }, func(ctx context.Context, name string, body any) error {
		return p.Rebuild(ctx, name, body.(*rebuildBody).Hold) //nolint:forcetypeassert // made in the line above
	})
	ask("switch", func() any { return &switchBody{} }, func(ctx context.Context, name string, body any) error {
		return p.Switch(ctx, name, body.(*switchBody).Generation) //nolint:forcetypeassert // made in the line above
	})
	ask("discard", func() any { return &struct{}{} }, func(ctx context.Context, name string, _ any) error {
		return p.Discard(ctx, name)
	})
	ask("repair", func() any { return &repairBody{} }, func(ctx context.Context, name string, body any) error {
		s := millrace.Stream(body.(*repairBody).Stream) //nolint:forcetypeassert // made in the line above
		if err := s.Validate(); err != nil {
			return err
		}
		return p.Repair(ctx, name, s)
	})
}

// The bodies of requests. An empty one has the zero values.
type (
	rebuildBody struct {
		Hold bool `json:"hold"`
	}
	switchBody struct {
		Generation uint64 `json:"generation"`
	}
	repairBody struct {
		Stream string `json:"stream"`
	}
)

func (x *exchange) listProjections(p Projections) {
	if _, fault := x.query(); fault != nil {
		x.fail(fault)
		return
	}
	all, err := p.List(x.r.Context())
	x.sendValue(http.StatusOK, projectionList{all}, err)
}

func (x *exchange) getProjection(p Projections) {
	if _, fault := x.query(); fault != nil {
		x.fail(fault)
		return
	}
	s, err := p.Status(x.r.Context(), x.r.PathValue("name"))
	x.sendValue(http.StatusOK, s, err)
}

// refusals of what is asked of read models are no commands', and not for now only.
var projectionRefusals = []struct {
	err          error
	code, detail string
}{
	{ErrPaused, "read_models_paused", "read models stand still on this server"},
	{ErrRebuilding, "read_model_rebuilding", "the read model is being rebuilt or switched, or a generation of it waits for a decision"},
	{ErrNoGeneration, "no_such_generation", "there is no such generation beside the live one, or it is not complete"},
	{ErrOtherCode, "other_code", "the generation is of another version of the code than this server runs, which cannot go on with it"},
	{ErrNotByStream, "not_by_stream", "documents of this read model depend on several streams: rebuild it instead"},
}

// maxProjectionBody bounds the body of a request: a stream's name is the longest that it holds.
const maxProjectionBody = 4 << 10

// changeProjection does what is asked of a read model, and answers with how it is then.
func (x *exchange) changeProjection(p Projections, body any, do func(ctx context.Context, name string, body any) error) {
	if _, fault := x.query(); fault != nil {
		x.fail(fault)
		return
	}
	if fault := x.optional(body); fault != nil {
		x.fail(fault)
		return
	}
	name := x.r.PathValue("name")
	err := do(x.r.Context(), name, body)
	for _, r := range projectionRefusals {
		if errors.Is(err, r.err) {
			x.fail(&problem{kind: kindConflict, refusal: r.code, detail: r.detail})
			return
		}
	}
	if errors.Is(err, ErrNoAnswer) {
		x.fail(&problem{kind: kindUnavailable, detail: "the node that coordinates read models does not answer; look at the read model before you ask again"})
		return
	}
	var s ProjectionStatus
	if err == nil {
		x.w.Header()["Location"] = []string{"/v1/projections/" + url.PathEscape(name)}
		s, err = p.Status(x.r.Context(), name)
	}
	x.sendValue(http.StatusAccepted, s, err)
}

// optional reads a body that may be left out.
func (x *exchange) optional(into any) *problem {
	data, fault := x.readBody(maxProjectionBody)
	if fault != nil || len(bytes.TrimSpace(data)) == 0 {
		return fault
	}
	if fault := x.checkMediaType(""); fault != nil {
		return fault
	}
	if err := jsonx.Unmarshal(data, into); err != nil {
		return problemOfJSON(err)
	}
	return nil
}
