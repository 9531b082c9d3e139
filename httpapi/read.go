package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// follower is what follows the events, as far as reads wait for it: a read model, or a process.
type follower interface {
	// Wait returns when it has seen at least what the cursor names, or ctx's error.
	Wait(ctx context.Context, c millrace.Cursor) error
	// Cursor is what it has seen.
	Cursor() millrace.Cursor
}

// caughtUp waits until a read model has seen what the request wants it to have seen, and says in Millrace-Cursor what
// it has seen: at least that much is in the answer, because the cursor is taken before the documents are read. A nil
// model stands for the log itself. It answers where the request cannot be served, and then returns false.
func (x *exchange) caughtUp(m follower, token string) bool {
	a := x.api
	if token == "" {
		token = x.r.Header.Get("Millrace-Min-Cursor")
	}
	var want millrace.Cursor
	if token != "" {
		var err error
		if want, err = millrace.ParseCursor(token); err == nil {
			err = a.store.CheckCursor(want)
		}
		switch {
		case errors.Is(err, millrace.ErrCursorEpoch):
			x.fail(kindCursorEpoch.with("min_cursor belongs to another store or to the time before a restore"))
			return false
		case err != nil:
			x.fail(kindInvalidCursor.with("min_cursor is not a cursor of this API"))
			return false
		}
	}
	x.asked = want
	seen, wait := a.store.Head, a.store.WaitLog
	if m != nil {
		seen, wait = m.Cursor, m.Wait
	}
	now := seen()
	if !now.Covers(want) {
		if !x.waitFor(wait, want) {
			x.fail(kindNotCaughtUp.with("what the cursor names has not been seen yet"))
			return false
		}
		now = seen()
	}
	h := x.w.Header()
	h["Millrace-Cursor"] = []string{now.String()}
	return true
}

// seen says, when documents have been read, whether what was to be seen is still there, or answers that it is not. On a
// shared store a failover may come between the look at the cursor and the documents, and take views back.
func (x *exchange) seen(m follower) bool {
	if len(x.asked.Positions) == 0 || !x.api.store.Shared() || m.Cursor().Covers(x.asked) {
		return true
	}
	x.w.Header().Del("Millrace-Cursor")
	x.fail(kindNotCaughtUp.with("what the cursor names is not there any more, and will be again"))
	return false
}

func (x *exchange) waitFor(reach func(context.Context, millrace.Cursor) error, want millrace.Cursor) bool {
	limit := MaxCursorWait
	if prefs := parsePrefer(x.r.Header["Prefer"]); prefs.waitSet {
		limit = prefs.wait
	}
	ctx, done := x.await(limit)
	if ctx == nil {
		return false
	}
	defer done()
	return reach(ctx, want) == nil
}

// get answers GET /v1/{name}/{id}.
func (x *exchange) get(res *resource) {
	q, p := x.query("version", "at", "min_cursor")
	if p != nil {
		x.fail(p)
		return
	}
	stream := res.stem + millrace.Stream(x.r.PathValue(res.IDName))
	if stream.Validate() != nil {
		x.fail(kindNotFound.with("there is none of this id"))
		return
	}
	if q.Has("version") || q.Has("at") {
		x.getPast(res, stream, q.Get("version"), q.Get("at"), q.Get("min_cursor"))
		return
	}
	if !x.caughtUp(res.Model, q.Get("min_cursor")) {
		return
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), readTime)
	defer cancel()
	doc, err := res.Model.Get(ctx, res.Table, stream.Partition(x.api.store.Partitions()), stream.ID())
	if !x.seen(res.Model) {
		return
	}
	if err != nil {
		x.failWith(err)
		return
	}
	version, ok := memberUint(doc.Data, "version")
	if ok {
		x.w.Header()["Etag"] = []string{tag(version)}
		if matchesTag(x.r.Header["If-None-Match"], version) {
			x.send(http.StatusNotModified, nil, nil)
			return
		}
	}
	x.sendJSON(http.StatusOK, doc.Data)
}

// getPast answers with the resource as it was at a version or a time, folded from its events.
func (x *exchange) getPast(res *resource, stream millrace.Stream, version, at, minCursor string) {
	if res.Represent == nil {
		x.fail(kindInvalidParameter.with("version and at are not known here"))
		return
	}
	if version != "" && at != "" {
		x.fail(kindInvalidParameter.with("version and at exclude each other"))
		return
	}
	if !x.caughtUp(nil, minCursor) {
		return
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), readTime)
	defer cancel()
	var state any
	var n uint64
	var err error
	if version != "" {
		var ok bool
		if n, ok = parseVersion(version); !ok || n == 0 {
			x.fail(kindInvalidParameter.with("version must be a whole number from 1"))
			return
		}
		if state, err = x.api.folds.at(ctx, stream, n); errors.Is(err, millrace.ErrNotFound) {
			x.fail(kindVersionNotFound.with("it has not come to this version"))
			return
		}
	} else {
		var t time.Time
		if t, err = time.Parse(time.RFC3339Nano, at); err != nil {
			x.fail(kindInvalidParameter.with("at must be a time in the form of RFC 3339"))
			return
		}
		if state, n, err = x.api.folds.asOf(ctx, stream, t); err == nil && n == 0 {
			x.fail(kindVersionNotFound.with("it did not exist at this time"))
			return
		}
	}
	var payload []byte
	if err == nil {
		payload, err = x.encode(res.Represent(stream.ID(), n, state))
	}
	if err != nil {
		x.failWith(err)
		return
	}
	x.w.Header()["Etag"] = []string{tag(n)}
	x.sendJSON(http.StatusOK, payload)
}

// events answers GET /v1/{name}/{id}/events: a page of the stream's events, in the order of their versions.
func (x *exchange) events(res *resource) {
	q, p := x.query("limit", "cursor", "min_cursor")
	if p != nil {
		x.fail(p)
		return
	}
	limit, p := pageLimit(q.Get("limit"))
	if p != nil {
		x.fail(p)
		return
	}
	stream := res.stem + millrace.Stream(x.r.PathValue(res.IDName))
	bound := "events\x00" + string(stream)
	from := uint64(1)
	if token := q.Get("cursor"); token != "" {
		var ok bool
		if from, ok = x.api.seal.openVersion(bound, token); !ok {
			x.fail(kindInvalidCursor.with("cursor is not one of this list"))
			return
		}
	}
	if stream.Validate() != nil {
		x.fail(kindNotFound.with("there is none of this id"))
		return
	}
	if !x.caughtUp(nil, q.Get("min_cursor")) {
		return
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), readTime)
	defer cancel()
	dst := append(x.buf[:0], `{"items":[`...)
	n, more := 0, false
	for e, err := range x.api.store.Events(ctx, stream, from) {
		if err != nil {
			x.failWith(err)
			return
		}
		if n == limit || (n > 0 && len(dst)+len(e.Data) > MaxPageBytes) {
			more = true
			from = e.Version
			break
		}
		if n > 0 {
			dst = append(dst, ',')
		}
		dst = appendEvent(dst, &e)
		n++
	}
	x.buf = dst
	if n == 0 && from == 1 {
		x.fail(kindNotFound.with("there is none of this id"))
		return
	}
	token := ""
	if more {
		token = x.api.seal.sealVersion(bound, from)
	}
	x.page(token)
}

// page ends a page whose items stand in the buffer, and sends it. token continues the list, or is "".
func (x *exchange) page(token string) {
	x.buf = append(x.buf, ']')
	if token != "" {
		x.buf = append(x.buf, `,"next_cursor":"`...) // URL-safe base64 needs no escapes
		x.buf = append(x.buf, token...)
		x.buf = append(x.buf, '"')
		x.linkNext(token)
	}
	x.buf = append(x.buf, '}')
	x.sendJSON(http.StatusOK, x.buf)
}

// linkNext sets Link (RFC 8288) to the next page: the same query with another cursor.
func (x *exchange) linkNext(token string) {
	q := x.r.URL.Query()
	q.Set("cursor", token)
	q.Del("min_cursor") // the next page is from a model that has seen it
	x.w.Header()["Link"] = []string{"<" + x.r.URL.EscapedPath() + "?" + q.Encode() + `>; rel="next"`}
}

func pageLimit(s string) (int, *problem) {
	if s == "" {
		return DefaultList, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > MaxList {
		return 0, kindInvalidParameter.with("limit must be a whole number from 1 to " + strconv.Itoa(MaxList))
	}
	return n, nil
}

func appendEvent(dst []byte, e *millrace.Recorded) []byte {
	dst = append(dst, `{"id":`...)
	dst = jsonx.AppendString(dst, e.ID())
	dst = append(dst, `,"type":`...)
	dst = jsonx.AppendString(dst, e.Type)
	dst = append(dst, `,"version":`...)
	dst = strconv.AppendUint(dst, e.Version, 10)
	dst = append(dst, `,"partition":`...)
	dst = strconv.AppendInt(dst, int64(e.Partition), 10)
	dst = append(dst, `,"position":`...)
	dst = strconv.AppendUint(dst, e.Position, 10)
	dst = append(dst, `,"time":`...)
	dst = appendTime(dst, e.Time)
	dst = append(dst, `,"data":`...)
	dst = append(dst, e.Data...)
	dst = append(dst, `,"command_id":`...)
	dst = jsonx.AppendString(dst, e.CommandID)
	dst = append(dst, `,"correlation_id":`...)
	dst = jsonx.AppendString(dst, e.CorrelationID)
	dst = append(dst, `,"causation_id":`...)
	dst = jsonx.AppendString(dst, e.CausationID)
	return append(dst, '}')
}

func appendTime(dst []byte, t time.Time) []byte {
	dst = append(dst, '"')
	dst = t.UTC().AppendFormat(dst, time.RFC3339Nano)
	return append(dst, '"')
}

// appendOutcome appends what GET /v1/commands/{id} says of a command. The text of a failure stays inside: it may hold
// what the command held.
func appendOutcome(dst []byte, s *millrace.Store, o *millrace.Outcome) []byte {
	dst = append(dst, `{"command_id":`...)
	dst = jsonx.AppendString(dst, o.CommandID)
	dst = append(dst, `,"status":"`...)
	dst = append(dst, o.Status.String()...)
	dst = append(dst, `","stream":`...)
	dst = jsonx.AppendString(dst, string(o.Stream))
	dst = append(dst, `,"id":`...)
	dst = jsonx.AppendString(dst, o.Stream.ID())
	if o.Done() {
		dst = appendSettled(dst, s, o)
	}
	return append(dst, '}')
}

// appendSettled appends the members that only a final outcome has.
func appendSettled(dst []byte, s *millrace.Store, o *millrace.Outcome) []byte {
	dst = append(dst, `,"version":`...)
	dst = strconv.AppendUint(dst, o.Version, 10)
	dst = append(dst, `,"events":`...)
	dst = strconv.AppendInt(dst, int64(o.Events), 10)
	if r := o.Refusal; r != nil {
		dst = append(dst, `,"refusal":{"code":`...)
		dst = jsonx.AppendString(dst, r.Code)
		dst = append(dst, `,"detail":`...)
		dst = jsonx.AppendString(dst, r.Detail)
		if len(r.Errors) > 0 {
			dst = append(dst, `,"errors":`...)
			dst = appendFieldErrors(dst, r.Errors)
		}
		dst = append(dst, '}')
	}
	if f := o.Failure; f != nil {
		dst = append(dst, `,"failure":{"reason":`...)
		dst = jsonx.AppendString(dst, f.Reason)
		dst = append(dst, `,"attempts":`...)
		dst = strconv.AppendInt(dst, int64(f.Attempts), 10)
		dst = append(dst, '}')
	}
	dst = append(dst, `,"decided_at":`...)
	dst = appendTime(dst, o.Time)
	dst = append(dst, `,"cursor":"`...)
	dst = append(dst, s.Cursor(o).String()...) // URL-safe base64
	return append(dst, '"')
}

// getCommand answers GET /v1/commands/{id}.
func (x *exchange) getCommand() {
	q, p := x.query("min_cursor")
	if p != nil {
		x.fail(p)
		return
	}
	name := x.r.PathValue("id")
	if millrace.ValidateID("command id", name, millrace.MaxCommandID) != nil {
		x.fail(kindNotFound.with("there is none of this id"))
		return
	}
	if !x.caughtUp(nil, q.Get("min_cursor")) {
		return
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), readTime)
	defer cancel()
	o, err := x.api.store.Lookup(ctx, name)
	if err != nil {
		x.failWith(err)
		return
	}
	c, err := x.api.store.Command(ctx, name)
	if err != nil {
		x.failWith(err)
		return
	}
	dst := appendOutcome(x.buf[:0], x.api.store, &o)
	dst = append(dst[:len(dst)-1], `,"type":`...)
	dst = jsonx.AppendString(dst, c.Type)
	dst = append(dst, `,"accepted_at":`...)
	dst = appendTime(dst, c.Time)
	x.buf = append(dst, '}')
	if o.Done() {
		x.w.Header()["Millrace-Cursor"] = []string{x.api.store.Cursor(&o).String()}
	} else {
		x.w.Header()["Retry-After"] = x.api.fixed.retrySoon
	}
	x.sendJSON(http.StatusOK, x.buf)
}
