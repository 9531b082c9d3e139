package httpapi

import (
	"errors"
	"net/http"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/id"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/letter"
)

// letterVerb is what is done with a dead letter.
type letterVerb int

const (
	verbRedrive letterVerb = iota
	verbEdit
	verbDiscard
)

// who is who does something, and why.
type who struct {
	By  string `json:"by"`
	Why string `json:"why"`
}

// editBody is the body of an edit. Type defaults to that of the dead letter.
type editBody struct {
	By   string         `json:"by"`
	Why  string         `json:"why"`
	Type string         `json:"type"`
	Data jsonx.RawValue `json:"data"`
}

// manyBody is the body of a redrive of many.
type manyBody struct {
	Filter struct {
		Reason string    `json:"reason"`
		Type   string    `json:"type"`
		Source string    `json:"source"`
		Stream string    `json:"stream"`
		From   time.Time `json:"from,omitzero"`
		To     time.Time `json:"to,omitzero"`
	} `json:"filter"`
	Rate   int    `json:"rate"`
	By     string `json:"by"`
	Why    string `json:"why"`
	DryRun bool   `json:"dry_run"`
}

// read reads a body that must be there.
func (x *exchange) read(limit int64, into any) *problem {
	if p := x.checkMediaType(""); p != nil {
		return p
	}
	data, p := x.readBody(limit)
	if p != nil {
		return p
	}
	if !isObject(data) {
		return notAnObject("")
	}
	if err := jsonx.Unmarshal(data, into); err != nil {
		return problemOfJSON(err)
	}
	return nil
}

// instruction reads the headers of a command, and a body that must be there.
func (x *exchange) instruction(limit int64, into any) *problem {
	if _, p := x.query(); p != nil {
		return p
	}
	if p := x.commandHeaders(); p != nil {
		return p
	}
	return x.read(limit, into)
}

// order accepts a command of the system's own and answers as to every command.
func (x *exchange) order(s millrace.Stream, body any, correlation string) {
	c := &x.cmd
	name, data, err := x.api.registry.EncodeCommand(body)
	if err == nil {
		c.Stream, c.Type, c.Data, c.CorrelationID = s, name, data, correlation
		// What the body says is held to its form as if it had come by itself.
		c.Body, err = x.api.registry.DecodeCommand(c)
	}
	if err != nil {
		x.failWith(err)
		return
	}
	if c.ID == "" {
		c.ID = id.New()
	}
	x.submit(nil, opVerb)
}

// actOnLetter redrives, edits or discards a dead letter.
func (x *exchange) actOnLetter(l *letters, what letterVerb) {
	var body editBody
	var p *problem
	if what == verbEdit {
		p = x.instruction(MaxLine, &body)
	} else {
		var w who
		p = x.instruction(maxProjectionBody, &w)
		body.By, body.Why = w.By, w.Why
	}
	if p != nil {
		x.fail(p)
		return
	}
	name := x.r.PathValue("id")
	it, _, err := l.d.Get(x.r.Context(), name)
	if errors.Is(err, millrace.ErrNotFound) {
		x.actOnParked(l, what, name, &body)
		return
	}
	if err != nil {
		x.failWith(err)
		return
	}
	ref := letter.RefOf(it.Letter)
	var command any
	switch what {
	case verbRedrive:
		command = &letter.RedriveDeadLetter{Letter: ref, By: body.By, Why: body.Why}
	case verbDiscard:
		command = &letter.DiscardDeadLetter{Letter: ref, By: body.By, Why: body.Why}
	case verbEdit:
		if body.Type == "" {
			body.Type = it.Letter.Type
		}
		edit := &letter.EditDeadLetter{Letter: ref, By: body.By, Why: body.Why, Type: body.Type, Data: body.Data}
		if faults := edit.Validate(); len(faults) > 0 {
			x.fail(problemOf(&millrace.FormError{Errors: faults}))
			return
		}
		// It is held to what its type is held to at the door, so that an edit does not die of what came.
		c := &millrace.Command{Stream: ref.Stream, Type: edit.Type, Data: edit.Data}
		if faults := append(x.api.misfits(c, "/data"), x.api.foreign(it.Letter.CommandID, c, "/data")...); len(faults) > 0 {
			x.fail(&problem{kind: kindInvalidEdit, detail: "see errors for each fault", errors: faults})
			return
		}
		command = edit
	}
	x.order(letter.Stream(name), command, it.Letter.CorrelationID)
}

// actOnParked has a consumer go on with a parked stream, or leave out the event that failed.
func (x *exchange) actOnParked(l *letters, what letterVerb, key string, body *editBody) {
	name, p, err := x.parkedLetter(l, key)
	switch {
	case err != nil:
		x.failWith(err)
	case what == verbEdit:
		x.fail(kindInvalidParameter.with("an event is a fact and cannot be edited: correct the consumer, or discard"))
	case what == verbDiscard:
		x.order(letter.ConsumerStream(name), &letter.SkipEvent{Stream: millrace.Stream(p.Stream), Version: p.Version, By: body.By, Why: body.Why}, "")
	default:
		x.order(letter.ConsumerStream(name), &letter.RedriveStream{Stream: millrace.Stream(p.Stream), By: body.By, Why: body.Why}, "")
	}
}

// redriveMany starts a job, or says what would come of it.
func (x *exchange) redriveMany(d DeadLetters) {
	var b manyBody
	if p := x.instruction(maxProjectionBody, &b); p != nil {
		x.fail(p)
		return
	}
	f := letter.Filter{
		Reason: b.Filter.Reason, Type: b.Filter.Type, Source: b.Filter.Source, Stream: millrace.Stream(b.Filter.Stream),
		From: b.Filter.From.UTC(), To: b.Filter.To.UTC(),
	}
	if f.Stream != "" && f.Stream.Validate() != nil {
		x.fail(problemOf(&millrace.FormError{Errors: []millrace.FieldError{
			{Pointer: "/filter/stream", Detail: "must be a category, a hyphen and an id, such as order-42"},
		}}))
		return
	}
	if b.DryRun {
		out, err := d.Try(x.r.Context(), &f)
		x.sendValue(http.StatusOK, out, err)
		return
	}
	if b.Rate == 0 {
		b.Rate = letter.DefaultRate
	}
	// The same request again finds the job that it has started.
	job := id.New()
	if x.cmd.ID != "" {
		job = derivedID(letter.CategoryJob, x.cmd.ID)
	}
	x.order(letter.JobStream(job), &letter.StartRedriveJob{Filter: f, Rate: b.Rate, By: b.By, Why: b.Why}, "")
}

// changeJob pauses, resumes or stops a job.
func (x *exchange) changeJob(command func(who) any) {
	var w who
	if p := x.instruction(maxProjectionBody, &w); p != nil {
		x.fail(p)
		return
	}
	s := letter.JobStream(x.r.PathValue("id"))
	if s.Validate() != nil {
		x.fail(kindNotFound.with("there is none of this id"))
		return
	}
	x.order(s, command(w), "")
}
