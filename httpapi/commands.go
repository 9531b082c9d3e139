package httpapi

import (
	"errors"
	"slices"
	"strings"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/id"
	"github.com/millrace-io/millrace/internal/jsonx"
)

const ndjsonType = "application/x-ndjson"

// envelope is a command with all that the paths and headers of the other routes say about one.
type envelope struct {
	ID              string         `json:"id"`
	Type            string         `json:"type"`
	Stream          string         `json:"stream"`
	Data            jsonx.RawValue `json:"data"` // its bytes are the command's
	ExpectedVersion *uint64        `json:"expected_version"`
	CorrelationID   string         `json:"correlation_id"`
	CausationID     string         `json:"causation_id"`
}

// postCommands answers POST /v1/commands: one command as JSON, or many as NDJSON.
func (x *exchange) postCommands() {
	if _, p := x.query(); p != nil {
		x.fail(p)
		return
	}
	if p := x.commandHeaders(); p != nil {
		x.fail(p)
		return
	}
	if t, ok := mediaType(x.r.Header.Get("Content-Type")); ok && strings.EqualFold(t, ndjsonType) && x.r.Header.Get("Content-Encoding") == "" {
		x.postLines()
		return
	}
	if p := x.checkMediaType(""); p != nil {
		x.fail(p)
		return
	}
	body, p := x.readBody(MaxLine)
	if p != nil {
		x.fail(p)
		return
	}
	c := &x.cmd
	key, expected := c.ID, c.Expected
	if p := x.api.openEnvelope(c, body); p != nil {
		x.fail(p)
		return
	}
	switch {
	case key == "":
	case c.ID == "":
		c.ID = key
	case c.ID != key:
		x.fail(kindInvalidHeader.with("Idempotency-Key and the id in the body are not the same"))
		return
	}
	if expected != nil {
		if c.Expected != nil {
			x.fail(kindInvalidHeader.with("If-Match or If-None-Match and expected_version exclude each other"))
			return
		}
		c.Expected = expected
	}
	if c.ID == "" {
		c.ID = id.New()
	}
	x.submit(nil, opVerb)
}

// openEnvelope turns an envelope into a command, its body decoded. A type that is not known is no fault of the form: the
// sender may be ahead of us, so that the command is kept, as a dead letter.
func (a *API) openEnvelope(c *millrace.Command, data []byte) *problem {
	var e envelope
	if err := jsonx.Unmarshal(data, &e); err != nil {
		return problemOfJSON(err)
	}
	faults := e.validate()
	if slices.Contains(a.system, millrace.Stream(e.Stream).Category()) {
		faults = append(faults, millrace.FieldError{Pointer: "/stream", Detail: "is one of the system's own: it has routes of its own"})
	}
	if slices.Contains(a.internal, e.Type) {
		faults = append(faults, internalType)
	}
	if len(faults) > 0 {
		return problemOf(&millrace.FormError{Errors: faults})
	}
	*c = millrace.Command{
		ID: e.ID, Type: e.Type, Stream: millrace.Stream(e.Stream), Data: e.Data, Expected: e.ExpectedVersion,
		CorrelationID: e.CorrelationID, CausationID: e.CausationID, Source: "http",
	}
	body, err := a.registry.DecodeCommand(c)
	var form *millrace.FormError
	switch {
	case err == nil && !isObject(c.Data):
		return notAnObject("/data")
	case err == nil:
		c.Body = body
		if faults := a.own(body); len(faults) > 0 {
			return problemOf(&millrace.FormError{Errors: under("/data", faults)})
		}
	case errors.Is(err, millrace.ErrUnknownType):
	case errors.As(err, &form):
		return problemOf(&millrace.FormError{Errors: under("/data", form.Errors)})
	default:
		return problemOf(err)
	}
	return nil
}

// internalType is the fault of a command whose type is one of Config.Internal.
var internalType = millrace.FieldError{Pointer: "/type", Detail: "is one of the system's own: only the server sends it"}

// under are faults of a body, within a document that has it at a place.
func under(at string, faults []millrace.FieldError) []millrace.FieldError {
	out := make([]millrace.FieldError, len(faults))
	for i, f := range faults {
		out[i] = millrace.FieldError{Pointer: at + f.Pointer, Detail: f.Detail}
	}
	return out
}

func problemOfJSON(err error) *problem {
	var je *jsonx.Error
	if errors.As(err, &je) {
		return problemOf(&millrace.FormError{Errors: []millrace.FieldError{{Pointer: je.Pointer, Detail: je.Detail}}})
	}
	return kindInvalidBody.with("the body is not valid JSON")
}

func (e *envelope) validate() []millrace.FieldError {
	var faults []millrace.FieldError
	fault := func(pointer, detail string) {
		faults = append(faults, millrace.FieldError{Pointer: pointer, Detail: detail})
	}
	if millrace.ValidateID("type", e.Type, millrace.MaxTypeName) != nil {
		fault("/type", "must be the name of a command, of at most 100 bytes")
	}
	if millrace.Stream(e.Stream).Validate() != nil {
		fault("/stream", "must be a category, a hyphen and an id, such as order-42")
	}
	switch {
	case e.Data == nil:
		fault("/data", "is missing")
	case len(e.Data) > MaxBody:
		fault("/data", "is too large")
	}
	if reserved(e.ID) {
		fault("/id", "must not begin with "+millrace.StepPrefix+": such ids are the processes' own")
	}
	for _, f := range [...]struct{ pointer, value string }{{"/id", e.ID}, {"/correlation_id", e.CorrelationID}, {"/causation_id", e.CausationID}} {
		if f.value != "" && millrace.ValidateID(f.pointer, f.value, millrace.MaxCommandID) != nil {
			fault(f.pointer, "must be at most 255 bytes without control characters")
		}
	}
	return faults
}
