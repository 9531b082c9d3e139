package httpapi

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// problemPath leads the type of a problem: a reference that this server resolves to its documentation.
const problemPath = "/problems/"

// kind is one kind of problem: everything about it that does not depend on the request.
type kind struct {
	code   string
	status int
	title  string
	help   string // for the documentation: what the client can do
}

// The kinds of problems. There are no others: whatever goes wrong is mapped to one of these.
var (
	kindInvalidBody      = &kind{"invalid_body", 400, "The body has the wrong form", "Correct what errors points at. Nothing was kept, so the same Idempotency-Key can be used again."}
	kindInvalidHeader    = &kind{"invalid_header", 400, "A header has the wrong form", "The detail names the header."}
	kindInvalidParameter = &kind{"invalid_parameter", 400, "A parameter has the wrong form", "The detail names the parameter. Parameters that a route does not know are refused, so that a typing error is not taken for no filter."}
	kindInvalidCursor    = &kind{"invalid_cursor", 400, "The cursor is not one of ours", "Pass cursors on as they came, and page cursors only with the query that they came from."}
	kindCursorEpoch      = &kind{"cursor_epoch", 400, "The cursor is from another time of this store", "The store was restored from a backup after the cursor was given out. Read again without it."}
	kindTooWide          = &kind{"range_too_wide", 400, "The report would have too many rows", "Ask for a shorter time."}
	kindNoRoute          = &kind{"no_such_route", 404, "There is nothing at this address", "See /docs for what there is."}
	kindNotFound         = &kind{"not_found", 404, "There is no such thing", "A read model may not have seen a change yet: pass the change's Millrace-Cursor as min_cursor."}
	kindVersionNotFound  = &kind{"version_not_found", 404, "It has no such version", "The newest version is the ETag of the resource."}
	kindMethod           = &kind{"method_not_allowed", 405, "This method is not for this address", "The header Allow says which are."}
	kindTimeout          = &kind{"request_timeout", 408, "The request did not arrive in time", "Send it again with the same Idempotency-Key."}
	kindTooLarge         = &kind{"too_large", 413, "The body is too large", "A body may take 1 MiB. Send several commands instead."}
	kindMediaType        = &kind{"unsupported_media_type", 415, "The body has another media type than is read here", "Send application/json, not compressed."}
	kindKeyReused        = &kind{"idempotency_key_reused", 422, "The Idempotency-Key was used for something else", "A key belongs to one command for ever. Use a fresh key for another one."}
	kindInvalidEdit      = &kind{"invalid_edit", 422, "The edit does not fit the contract of its type", "Correct what errors points at. Nothing was kept, and the dead letter is as it was."}
	kindDead             = &kind{"dead_letter", 422, "The command could not be decided", "It is kept as a dead letter, and a person will look at it. Sending it again changes nothing."}
	kindRule             = &kind{"refused_rule", 422, "The content breaks a rule", "code says which, and errors where. The refusal is the outcome of this Idempotency-Key for ever."}
	kindConflict         = &kind{"refused_conflict", 409, "The present state does not allow it", "code says why. The refusal of a command is the outcome of its Idempotency-Key for ever."}
	kindRefusedNotFound  = &kind{"refused_not_found", 404, "There is nothing to act on", "The refusal is the outcome of this Idempotency-Key for ever."}
	kindRefusedVersion   = &kind{"refused_version", 412, "It is not at the expected version", "Read it again, and decide again what to ask for, with a fresh Idempotency-Key."}
	kindInternal         = &kind{"internal", 500, "Something is wrong with the server", "traceId is what its operators need to find out more."}
	kindOverloaded       = &kind{"overloaded", 503, "Too much is waiting already", "Nothing was kept. Send the same request again after Retry-After."}
	kindNotCaughtUp      = &kind{"not_caught_up", 503, "What it is read from has not come as far as the cursor", "Read again after Retry-After."}
	kindStorageFull      = &kind{"storage_full", 503, "There is no space for new facts", "Nothing was kept. Reads go on."}
	kindUnavailable      = &kind{"unavailable", 503, "The server cannot do this now", "The command may or may not have been kept: send the same request again, with the same Idempotency-Key, after Retry-After."}
)

// kinds are all of them, in the order of their statuses, for the documentation.
func kinds() []*kind {
	return []*kind{
		kindInvalidBody, kindInvalidHeader, kindInvalidParameter, kindInvalidCursor, kindCursorEpoch, kindTooWide, kindNoRoute,
		kindNotFound, kindVersionNotFound, kindRefusedNotFound, kindMethod, kindTimeout, kindConflict, kindRefusedVersion,
		kindTooLarge, kindMediaType, kindRule, kindKeyReused, kindInvalidEdit, kindDead, kindInternal, kindOverloaded, kindNotCaughtUp,
		kindStorageFull, kindUnavailable,
	}
}

// problem is one fault of one request.
type problem struct {
	*kind
	detail string
	// refusal is the code of a refusal, which is the domain's.
	refusal string
	errors  []millrace.FieldError
	// command is the id of the command whose outcome the problem is. Such a problem says nothing of the request at hand,
	// because it is the same, byte for byte, for every repetition.
	command    string
	retryAfter time.Duration
	allow      string
}

func (k *kind) with(detail string) *problem { return &problem{kind: k, detail: detail} }

// errorTable maps the errors of the contracts to problems. The first row that fits counts. There is no other such table.
var errorTable = []struct {
	is   error
	kind *kind
	text string
}{
	{millrace.ErrKeyReused, kindKeyReused, "the command of this id has another stream, type or content"},
	{millrace.ErrCursorEpoch, kindCursorEpoch, "the cursor belongs to another store or to the time before a restore"},
	{millrace.ErrNotFound, kindNotFound, "there is none of this id"},
	{millrace.ErrFull, kindStorageFull, "the disk is full or nearly so"},
	{millrace.ErrFailed, kindUnavailable, "the store has failed and must be opened again"},
	{millrace.ErrClosed, kindUnavailable, "the server is shutting down"},
	{millrace.ErrFenced, kindUnavailable, "the partition is moving to another node"},
	{context.DeadlineExceeded, kindUnavailable, "it took too long"},
	{context.Canceled, kindUnavailable, "the request was given up"},
}

// problemOf maps an error to its problem. Texts of errors do not pass: they may hold values, paths and addresses.
func problemOf(err error) *problem {
	var form *millrace.FormError
	if errors.As(err, &form) {
		return &problem{kind: kindInvalidBody, detail: "see errors for each fault", errors: form.Errors}
	}
	var over *millrace.OverloadError
	if errors.As(err, &over) {
		return &problem{kind: kindOverloaded, detail: "the intake is full", retryAfter: over.RetryAfter}
	}
	for i := range errorTable {
		if errors.Is(err, errorTable[i].is) {
			return errorTable[i].kind.with(errorTable[i].text)
		}
	}
	if errors.Is(err, millrace.ErrInvalid) {
		return kindInvalidBody.with("an identifier or the content has the wrong form")
	}
	return kindInternal.with("the fault was logged under the traceId")
}

// problemOf is the problem of an error, where those that pass by themselves on this server are none of its own faults.
func (a *API) problemOf(err error) *problem {
	p := problemOf(err)
	if p.kind == kindInternal && slices.ContainsFunc(a.passing, func(is error) bool { return errors.Is(err, is) }) {
		return kindUnavailable.with("what the store keeps its data in does not answer")
	}
	return p
}

// problemOfOutcome is what a command that was not decided in the client's favour is answered with.
func problemOfOutcome(o *millrace.Outcome) *problem {
	if o.Status == millrace.StatusDead {
		p := kindDead.with("the command is kept as a dead letter")
		p.command = o.CommandID
		return p
	}
	r := o.Refusal
	p := &problem{kind: kindRule, detail: r.Detail, refusal: r.Code, errors: r.Errors, command: o.CommandID}
	switch r.Kind {
	case millrace.RefusedConflict:
		p.kind = kindConflict
	case millrace.RefusedNotFound:
		p.kind = kindRefusedNotFound
	case millrace.RefusedVersion:
		p.kind = kindRefusedVersion
	case millrace.RefusedRule:
	}
	return p
}

// temporary says whether the same request may go better later.
func (p *problem) temporary() bool { return p.status == 503 || p.status == 408 }

// retrySeconds is the value of Retry-After: whole seconds, rounded up, at least one.
func (p *problem) retrySeconds() int {
	return max(retrySoon, int((p.retryAfter+time.Second-1)/time.Second))
}

// appendJSON appends the problem as application/problem+json. instance and trace belong to the request; a problem that is
// a command's outcome has the command as its instance.
func (p *problem) appendJSON(dst []byte, requestID, trace string) []byte {
	dst = append(dst, `{"type":"`+problemPath...)
	dst = append(dst, p.code...)
	dst = append(dst, `","title":`...)
	dst = jsonx.AppendString(dst, p.title)
	dst = append(dst, `,"status":`...)
	dst = strconv.AppendInt(dst, int64(p.status), 10)
	if p.detail != "" {
		dst = append(dst, `,"detail":`...)
		dst = jsonx.AppendString(dst, p.detail)
	}
	dst = append(dst, `,"instance":`...)
	if p.command != "" {
		dst = jsonx.AppendString(dst, commandPath(p.command))
	} else {
		dst = jsonx.AppendString(dst, "urn:millrace:request:"+requestID)
	}
	dst = append(dst, `,"code":`...)
	if p.refusal != "" {
		dst = jsonx.AppendString(dst, p.refusal)
	} else {
		dst = jsonx.AppendString(dst, p.code)
	}
	if len(p.errors) > 0 {
		dst = append(dst, `,"errors":`...)
		dst = appendFieldErrors(dst, p.errors)
	}
	if p.command == "" {
		dst = append(dst, `,"traceId":`...)
		dst = jsonx.AppendString(dst, trace)
	}
	return append(dst, '}')
}

func appendFieldErrors(dst []byte, faults []millrace.FieldError) []byte {
	dst = append(dst, '[')
	for i, e := range faults[:min(len(faults), MaxErrors)] {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"pointer":`...)
		dst = jsonx.AppendString(dst, e.Pointer)
		dst = append(dst, `,"detail":`...)
		dst = jsonx.AppendString(dst, e.Detail)
		dst = append(dst, '}')
	}
	return append(dst, ']')
}
