package httpapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/id"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// resource is a Resource with what is worked out once.
type resource struct {
	Resource
	base string          // "/v1/orders"
	stem millrace.Stream // "order-"
}

// path is the path of a member.
func (r *resource) path(id string) string { return r.base + "/" + url.PathEscape(id) }

func commandPath(id string) string { return "/v1/commands/" + url.PathEscape(id) }

// op is what a route does with a command.
type op uint8

const (
	opCreate op = iota
	opPatch
	opVerb
)

// emptyObject is the body of a verb that comes without one.
var emptyObject = []byte("{}")

// reserved says whether a command id is one that only processes give: a client that took it would stand in their way.
func reserved(id string) bool { return strings.HasPrefix(id, millrace.StepPrefix) }

// commandHeaders reads the headers that every command may have.
func (x *exchange) commandHeaders() *problem {
	h := x.r.Header
	x.cmd.Source = "http"
	if keys := h["Idempotency-Key"]; len(keys) > 0 {
		key, ok := parseKey(keys)
		if !ok {
			return kindInvalidHeader.with("Idempotency-Key must be 1 to 255 printable ASCII characters, bare or in quotes")
		}
		if reserved(key) {
			return kindInvalidHeader.with("Idempotency-Key must not begin with " + millrace.StepPrefix + ": such ids are the processes' own")
		}
		x.cmd.ID = key
	}
	if prefer := h["Prefer"]; len(prefer) > 0 {
		x.prefs = parsePrefer(prefer)
	}
	var p *problem
	x.cmd.Expected, p = parseExpected(h["If-Match"], h["If-None-Match"])
	return p
}

// command answers a route that stands for a command.
func (x *exchange) command(res *resource, typ string, what op) {
	c := &x.cmd
	if _, p := x.query(); p != nil {
		x.fail(p)
		return
	}
	if p := x.commandHeaders(); p != nil {
		x.fail(p)
		return
	}
	if p := x.commandData(what); p != nil {
		x.fail(p)
		return
	}
	c.Type, c.Stream = typ, res.stem
	if what != opCreate {
		c.Stream += millrace.Stream(x.r.PathValue(res.IDName))
		if err := c.Stream.Validate(); err != nil {
			x.fail(kindInvalidParameter.with("the id in the path is too long, or holds what an id cannot hold"))
			return
		}
	}
	if !isObject(c.Data) {
		x.fail(notAnObject(""))
		return
	}
	body, err := x.api.registry.DecodeCommand(c)
	if err != nil {
		x.failWith(err)
		return
	}
	if faults := x.api.own(body); len(faults) > 0 {
		x.fail(problemOf(&millrace.FormError{Errors: faults}))
		return
	}
	c.Body = body
	if what == opCreate {
		if p := x.nameStream(res); p != nil {
			x.fail(p)
			return
		}
	}
	if c.ID == "" {
		c.ID = id.New()
	}
	x.submit(res, what)
}

// commandData reads the body into the command.
func (x *exchange) commandData(what op) *problem {
	also := ""
	switch what {
	case opVerb:
		// A verb says it all: the body is optional, and where there is none there is no type of it either.
		if x.r.ContentLength == 0 {
			x.cmd.Data = emptyObject
			return nil
		}
	case opPatch:
		also = "application/merge-patch+json"
	case opCreate:
	}
	if p := x.checkMediaType(also); p != nil {
		return p
	}
	var p *problem
	x.cmd.Data, p = x.readBody(MaxBody)
	if what == opVerb && p == nil && len(x.cmd.Data) == 0 {
		x.cmd.Data = emptyObject
	}
	return p
}

// isObject says whether JSON may be an object: the decoder takes null for one without members, and it is none.
func isObject(data []byte) bool {
	i := skipSpace(data, 0)
	return i < len(data) && data[i] == '{'
}

func notAnObject(pointer string) *problem {
	return problemOf(&millrace.FormError{Errors: []millrace.FieldError{{Pointer: pointer, Detail: "must be an object"}}})
}

// nameStream gives a command that creates something its stream: by the id in the body; or by the Idempotency-Key, so
// that a repetition finds what the first try made; or, without either, by a fresh id.
func (x *exchange) nameStream(res *resource) *problem {
	c := &x.cmd
	name := ""
	if res.CreateID != nil {
		name = res.CreateID(c.Body)
	}
	switch {
	case name != "":
	case c.ID != "":
		name = derivedID(res.Category, c.ID)
	default:
		name = id.New()
	}
	c.Stream = res.stem + millrace.Stream(name)
	if c.Stream.Validate() != nil {
		return &problem{kind: kindInvalidBody, detail: "see errors for each fault", errors: []millrace.FieldError{
			{Pointer: "/id", Detail: "is too long or holds a control character"},
		}}
	}
	return nil
}

// derivedID makes a UUIDv8 of a command's id: the first 122 bits of SHA-256 over category, NUL and id.
func derivedID(category, commandID string) string {
	var buf [millrace.MaxCommandID + 64]byte
	sum := sha256.Sum256(append(append(append(buf[:0], category...), 0), commandID...))
	sum[6] = sum[6]&0x0f | 0x80 // version 8: RFC 9562, section 5.8
	sum[8] = sum[8]&0x3f | 0x80 // the variant
	var out [36]byte
	hex.Encode(out[:8], sum[:4])
	hex.Encode(out[9:13], sum[4:6])
	hex.Encode(out[14:18], sum[6:8])
	hex.Encode(out[19:23], sum[8:10])
	hex.Encode(out[24:], sum[10:16])
	out[8], out[13], out[18], out[23] = '-', '-', '-', '-'
	return string(out[:])
}

// accept hands a command to the intake. Where its id is known with other bytes that mean the same, the first bytes are
// what counts: a client that sorts its members differently after an upgrade still repeats itself.
func (a *API) accept(ctx context.Context, c *millrace.Command) (*millrace.Receipt, error) {
	r, err := a.intake.Accept(ctx, *c)
	if errors.Is(err, millrace.ErrKeyReused) && a.adoptFirst(ctx, c) {
		return a.intake.Accept(ctx, *c)
	}
	return r, err
}

// adoptFirst says whether the command that was first sent under c's id means the same as c does; then c becomes it.
func (a *API) adoptFirst(ctx context.Context, c *millrace.Command) bool {
	first, err := a.store.Command(ctx, c.ID)
	if err != nil || first.Stream != c.Stream || first.Type != c.Type || bytes.Equal(first.Data, c.Data) {
		return false
	}
	was, err := jsonx.Canonical(first.Data)
	if err != nil {
		return false
	}
	is, err := jsonx.Canonical(c.Data)
	if err != nil || !bytes.Equal(was, is) {
		return false
	}
	c.Data, c.Body = bytes.Clone(first.Data), nil
	return true
}

// submit accepts the command and answers. res is nil for a command that is not a resource's.
func (x *exchange) submit(res *resource, what op) {
	a, c := x.api, &x.cmd
	if x.prefs.wait == 0 {
		receipt, err := a.accept(x.r.Context(), c)
		if err != nil {
			x.failWith(err)
			return
		}
		x.receipt(receipt)
		return
	}
	// The place among the waiting is taken first: once the command is kept there is no way back.
	ctx, done := x.await(x.prefs.wait)
	if ctx == nil {
		x.fail(kindOverloaded.with("too many requests wait already"))
		return
	}
	defer done()
	receipt, err := a.accept(x.r.Context(), c)
	if err != nil {
		x.failWith(err)
		return
	}
	o, err := receipt.Wait(ctx)
	if err != nil || !o.Done() {
		x.receipt(receipt) // not in time, or the processor stops: it is kept all the same
		return
	}
	x.outcome(res, what, &o, receipt.Replayed)
}

// answered sets the headers of every answer to a command.
func (x *exchange) answered(replayed bool) http.Header {
	h := x.w.Header()
	h["Vary"] = x.api.fixed.varyPrefer
	if x.prefs.waitSet || x.prefs.minimal || x.prefs.full {
		h["Preference-Applied"] = []string{x.prefs.applied()}
	}
	if replayed {
		x.replayed = true
		h["Idempotency-Replayed"] = x.api.fixed.replayed
	}
	return h
}

// receipt answers 202: kept, and to be decided. It is the same for every repetition, decided by then or not.
func (x *exchange) receipt(r *millrace.Receipt) {
	h := x.answered(r.Replayed)
	h["Location"] = []string{commandPath(r.CommandID)}
	h["Retry-After"] = x.api.fixed.retrySoon
	dst := append(x.buf[:0], `{"command_id":`...)
	dst = jsonx.AppendString(dst, r.CommandID)
	dst = append(dst, `,"status":"accepted","stream":`...)
	dst = jsonx.AppendString(dst, string(r.Stream))
	dst = append(dst, `,"id":`...)
	dst = jsonx.AppendString(dst, r.Stream.ID())
	x.buf = append(dst, '}')
	x.sendJSON(http.StatusAccepted, x.buf)
}

// outcome answers a command that is decided.
func (x *exchange) outcome(res *resource, what op, o *millrace.Outcome, replayed bool) {
	a := x.api
	if o.Status != millrace.StatusDecided {
		h := x.answered(replayed)
		h["Millrace-Cursor"] = []string{a.store.Cursor(o).String()}
		x.fail(problemOfOutcome(o))
		return
	}
	var payload []byte
	switch {
	case x.prefs.minimal:
	case res != nil && res.Represent != nil && o.Version > 0:
		var err error
		if payload, err = x.representation(res, o.Stream, o.Version); err != nil {
			// It is decided, and no fault of the answer's may tell the client otherwise.
			x.unrepresented(o.Stream, err)
			x.receipt(millrace.NewReceipt(*o, replayed))
			return
		}
	default:
		x.buf = appendOutcome(x.buf[:0], a.store, o)
		payload = x.buf
	}
	h := x.answered(replayed)
	h["Millrace-Cursor"] = []string{a.store.Cursor(o).String()}
	status := http.StatusOK
	switch {
	case res == nil:
		h["Location"] = []string{commandPath(o.CommandID)}
	case what == opCreate:
		status = http.StatusCreated
		h["Location"] = []string{res.path(o.Stream.ID())}
	}
	if res != nil {
		h["Etag"] = []string{tag(o.Version)}
	}
	if x.prefs.minimal {
		if status == http.StatusOK {
			status = http.StatusNoContent
		}
		x.send(status, nil, nil)
		return
	}
	x.sendJSON(status, payload)
}

// unrepresented tells the operator why the answer to a decided command lacks the resource. Of a client that has left there
// is nothing to tell, and what the store has when it is away passes by itself.
func (x *exchange) unrepresented(stream millrace.Stream, err error) {
	if x.r.Context().Err() != nil {
		return
	}
	level := slog.LevelError
	if x.api.problemOf(err).temporary() {
		level = slog.LevelWarn
	}
	x.api.log.Log(x.r.Context(), level, "no representation of a decided command",
		"request_id", x.requestID, "stream", string(stream), "error", err)
}

// tag is the entity tag of a version.
func tag(version uint64) string {
	var buf [24]byte
	return string(append(strconv.AppendUint(append(buf[:0], '"'), version, 10), '"'))
}
