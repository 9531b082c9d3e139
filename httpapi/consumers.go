package httpapi

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/id"
)

// Consumers are all that follows the feed, as the API shows it. The wiring implements it.
type Consumers interface {
	// Names gives, for the name of each consumer as people know it, the one that its checkpoints and documents have.
	Names() map[string]string
	// Redrive asks for a stream that is parked for a consumer to be gone on with. Errors: [millrace.ErrNotFound] where it is not
	// parked, [millrace.ErrInvalid], and those of the intake.
	Redrive(ctx context.Context, a *RedriveAsk) error
}

// RedriveAsk asks for a parked stream to be gone on with.
type RedriveAsk struct {
	ID             string // of the request: the same one again is the same
	Name, Consumer string // as people know it, and as its documents do
	Stream         millrace.Stream
	By, Why        string
}

// consumerStatus is how a consumer is.
type consumerStatus struct {
	Name   string `json:"name"`
	Gap    uint64 `json:"gap"`    // events behind; of the deciding, commands
	Parked int    `json:"parked"` // streams that wait behind a failed event, up to maxCounted
	Cursor string `json:"cursor"` // what it has seen
	Standing
}

type consumerList struct {
	Items []consumerStatus `json:"items"`
}

// parkedStream is a stream that a consumer has given up. The text of the error is not shown: it may hold what the event held.
type parkedStream struct {
	Stream   string    `json:"stream"`
	Version  uint64    `json:"version"` // of the event that failed
	Position uint64    `json:"position"`
	Reason   string    `json:"reason"`
	Attempts int       `json:"attempts"`
	Since    time.Time `json:"since"`
}

type parkedPage struct {
	Items []parkedStream `json:"items"`
	Next  string         `json:"next_cursor,omitempty"`
}

// maxCounted bounds what is counted by reading it.
const maxCounted = 1000

// redriveBody is what is asked for. By defaults to anybody.
type redriveBody struct {
	Stream string `json:"stream"`
	By     string `json:"by,omitempty"`
	Why    string `json:"why,omitempty"`
}

// anybody is who did something and did not say who he is.
const anybody = "anybody"

func (a *API) registerConsumers(c Consumers, control Control) {
	if control != nil {
		a.registerControl(c, control)
	}
	find := func(x *exchange, do func(name, consumer string)) {
		name := x.r.PathValue("name")
		consumer, ok := c.Names()[name]
		if !ok {
			x.fail(errNoConsumer())
			return
		}
		do(name, consumer)
	}
	a.handle("/v1/consumers", methods{{"GET", func(x *exchange) { x.listConsumers(c) }}})
	a.handle("/v1/consumers/{name}", methods{{"GET", func(x *exchange) { x.getConsumer(c) }}})
	a.handle("/v1/consumers/{name}/parked", methods{{"GET", func(x *exchange) { find(x, x.listParked) }}})
	a.handle("/v1/consumers/{name}/redrive", methods{{"POST", func(x *exchange) {
		find(x, func(name, consumer string) { x.redrive(c, name, consumer) })
	}}})
}

func (x *exchange) listConsumers(c Consumers) {
	if _, fault := x.query(); fault != nil {
		x.fail(fault)
		return
	}
	out := consumerList{Items: []consumerStatus{}}
	for name, consumer := range c.Names() {
		st, err := x.consumerStatus(name, consumer)
		if err != nil {
			x.failWith(err)
			return
		}
		out.Items = append(out.Items, st)
	}
	if x.api.control != nil {
		out.Items = append(out.Items, x.decidingStatus())
	}
	slices.SortFunc(out.Items, func(a, b consumerStatus) int { return strings.Compare(a.Name, b.Name) })
	x.sendValue(http.StatusOK, out, nil)
}

// consumerStatus is how a consumer is, by its name and the one that it has in the store; none is that of the deciding.
func (x *exchange) consumerStatus(name, consumer string) (consumerStatus, error) {
	if consumer == "" {
		return x.decidingStatus(), nil
	}
	st := consumerStatus{Name: name, Standing: Standing{State: "running"}}
	if x.api.control != nil {
		st.Standing = x.api.control.Standing(name)
	}
	head := x.api.store.Head()
	at, err := x.api.store.Checkpoints(x.r.Context(), consumer)
	if err != nil {
		return st, err
	}
	st.Cursor = at.String()
	for partition, position := range head.Positions {
		st.Gap += position - min(at.Position(partition), position)
	}
	for _, err := range x.api.store.Documents(x.r.Context(), parkedOf(consumer)) {
		if err != nil {
			return st, err
		}
		if st.Parked++; st.Parked == maxCounted {
			break
		}
	}
	return st, nil
}

func parkedOf(consumer string) millrace.Query {
	return millrace.Query{Collection: consumer + "." + millrace.ParkedName, Index: -1, Partition: -1}
}

func (x *exchange) listParked(name, consumer string) {
	values, fault := x.query("limit", "cursor")
	if fault != nil {
		x.fail(fault)
		return
	}
	limit, fault := pageLimit(values.Get("limit"))
	if fault != nil {
		x.fail(fault)
		return
	}
	q, bound := parkedOf(consumer), "parked\x01"+name
	if token := values.Get("cursor"); token != "" {
		var ok bool
		if q.After, ok = x.api.seal.openPlace(bound, token); !ok {
			x.fail(kindInvalidCursor.with("cursor is not one of this list"))
			return
		}
	}
	page := parkedPage{Items: []parkedStream{}}
	var last millrace.Place
	for d, err := range x.api.store.Documents(x.r.Context(), q) {
		var p *millrace.Parked
		if err == nil {
			p, err = millrace.ParkedTable.Decode(d.Data)
		}
		if err != nil {
			x.failWith(err)
			return
		}
		if len(page.Items) == limit {
			page.Next = x.api.seal.sealPlace(bound, last)
			x.linkNext(page.Next)
			break
		}
		page.Items = append(page.Items, parkedStream{
			Stream: p.Stream, Version: p.Version, Position: p.Position, Reason: p.Reason, Attempts: p.Attempts, Since: p.Since,
		})
		last = d.Place(-1)
	}
	x.sendValue(http.StatusOK, page, nil)
}

func (x *exchange) redrive(c Consumers, name, consumer string) {
	if _, fault := x.query(); fault != nil {
		x.fail(fault)
		return
	}
	if fault := x.commandHeaders(); fault != nil {
		x.fail(fault)
		return
	}
	var body redriveBody
	if fault := x.optional(&body); fault != nil {
		x.fail(fault)
		return
	}
	ask := &RedriveAsk{ID: x.cmd.ID, Name: name, Consumer: consumer, Stream: millrace.Stream(body.Stream), By: cmp.Or(body.By, anybody), Why: body.Why}
	if ask.ID == "" {
		ask.ID = id.New()
	}
	err := c.Redrive(x.r.Context(), ask)
	x.sendValue(http.StatusAccepted, body, err)
}
