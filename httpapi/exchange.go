package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-io/millrace"
)

// maxKeptBuffer is the largest buffer that is kept from one request to the next. Most answers are far smaller, and one
// large page must not make a thousand pooled buffers large.
const maxKeptBuffer = 64 << 10

// exchange is one request and its answer, with everything that a handler needs. Exchanges are pooled: nothing that
// outlives the request may keep one, or its buffer. It is the ResponseWriter that the handlers see.
type exchange struct {
	api *API
	w   http.ResponseWriter
	r   *http.Request

	start     time.Time
	requestID string
	status    int
	written   int64
	replayed  bool

	cmd   millrace.Command
	prefs preferences
	asked millrace.Cursor // what the answer must have seen
	buf   []byte          // the answer under construction
}

// exchangeOf gets the exchange back from what the mux passed on.
func exchangeOf(w http.ResponseWriter) *exchange { return w.(*exchange) } //nolint:forcetypeassert // ServeHTTP passes nothing else

func (x *exchange) begin(w http.ResponseWriter, r *http.Request) {
	a := x.api
	*x = exchange{api: a, w: w, r: r, start: a.now(), buf: x.buf[:0]}
	if id := r.Header.Get("X-Request-Id"); validRequestID(id) {
		x.requestID = id
	} else {
		var buf [32]byte
		x.requestID = string(strconv.AppendUint(append(buf[:0], a.instance...), a.requests.Add(1), 36))
	}
	h := w.Header()
	h["X-Request-Id"] = []string{x.requestID}
	h["X-Content-Type-Options"] = a.fixed.nosniff
	h["Cache-Control"] = a.fixed.noStore
	h["Content-Security-Policy"] = a.fixed.csp
	h["Referrer-Policy"] = a.fixed.noReferrer
}

// finish ends the exchange: it turns a panic into an answer, tells who observes, and gives the exchange back.
func (x *exchange) finish() {
	a := x.api
	if p := recover(); p != nil {
		if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(p)
		}
		a.log.Error("panic in an HTTP handler", "request_id", x.requestID, "trace_id", x.trace(), "route", x.r.Pattern, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		if x.status != 0 {
			panic(http.ErrAbortHandler) // half an answer must not pass for a whole one
		}
		x.fail(kindInternal.with("the fault was logged under the traceId"))
	}
	if x.status == 0 {
		x.status = http.StatusOK
	}
	if a.observe != nil || a.log.Enabled(x.r.Context(), slog.LevelDebug) {
		x.tell()
	}
	if cap(x.buf) > maxKeptBuffer {
		x.buf = nil
	}
	x.w, x.r, x.cmd = nil, nil, millrace.Command{}
	a.exchanges.Put(x)
}

func (x *exchange) tell() {
	a := x.api
	took := a.now().Sub(x.start)
	if a.observe != nil {
		a.observe(Observation{Route: x.r.Pattern, Method: knownMethod(x.r.Method), Status: x.status, Duration: took, Bytes: x.written, Replayed: x.replayed})
	}
	if a.log.Enabled(x.r.Context(), slog.LevelDebug) {
		// The path holds ids that clients chose; the pattern says enough.
		a.log.LogAttrs(x.r.Context(), slog.LevelDebug, "http request",
			slog.String("method", knownMethod(x.r.Method)), slog.String("route", x.r.Pattern), slog.Int("status", x.status),
			slog.Duration("took", took), slog.Int64("bytes", x.written), slog.String("request_id", x.requestID), slog.String("trace_id", x.trace()))
	}
}

// knownMethod keeps what a client may put in place of a method out of labels.
func knownMethod(m string) string {
	switch m {
	case "GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS":
		return m
	}
	return "other"
}

// Header, Write, WriteHeader and Unwrap make the exchange a ResponseWriter.

// Header is the answer's.
func (x *exchange) Header() http.Header { return x.w.Header() }

// WriteHeader notes the status.
func (x *exchange) WriteHeader(status int) {
	if x.status == 0 {
		x.status = status
	}
	x.w.WriteHeader(status)
}

// Write notes the size.
func (x *exchange) Write(b []byte) (int, error) {
	if x.status == 0 {
		x.status = http.StatusOK
	}
	n, err := x.w.Write(b)
	x.written += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (x *exchange) Unwrap() http.ResponseWriter { return x.w }

// trace is the id that this request has in traces and logs.
func (x *exchange) trace() string {
	if id := traceID(x.r.Header.Get("Traceparent")); id != "" {
		return id
	}
	return x.requestID
}

// sniffed is the size up to which net/http finds out the Content-Length by itself.
const sniffed = 2048

// send answers with a payload, which is not kept.
func (x *exchange) send(status int, contentType []string, payload []byte) {
	h := x.w.Header()
	if contentType != nil {
		h["Content-Type"] = contentType
	}
	if len(payload) > sniffed {
		h["Content-Length"] = []string{strconv.Itoa(len(payload))}
	}
	x.WriteHeader(status)
	if len(payload) > 0 {
		_, _ = x.Write(payload) // the client is gone: there is nobody to tell
	}
}

func (x *exchange) sendJSON(status int, payload []byte) {
	x.send(status, x.api.fixed.json, payload)
}

// fail answers with a problem.
func (x *exchange) fail(p *problem) {
	h := x.w.Header()
	if p.temporary() {
		h["Retry-After"] = []string{strconv.Itoa(p.retrySeconds())}
	}
	if p.allow != "" {
		h["Allow"] = []string{p.allow}
	}
	if p.kind == kindTooLarge || p.kind == kindTimeout {
		h["Connection"] = []string{"close"} // what is left of the body is not worth reading
	}
	x.buf = p.appendJSON(x.buf[:0], x.requestID, x.trace())
	x.send(p.status, x.api.fixed.problem, x.buf)
}

// failWith answers with the problem of an error, and logs what is the server's fault.
func (x *exchange) failWith(err error) {
	p := x.api.problemOf(err)
	if p.status == http.StatusInternalServerError {
		x.api.log.Error("request failed", "request_id", x.requestID, "trace_id", x.trace(), "route", x.r.Pattern, "error", err)
	}
	x.fail(p)
}

// firstBuffer is what is allocated for a body before any of it has come: a client that announces much and sends nothing
// gets no more than this.
const firstBuffer = 64 << 10

// readBody reads the request's body, at most limit bytes of it. The bytes are the command's from now on: they are not
// pooled.
func (x *exchange) readBody(limit int64) ([]byte, *problem) {
	n := x.r.ContentLength
	body := x.r.Body
	if n > limit {
		return nil, kindTooLarge.with("the body is too large")
	}
	if n < 0 {
		body = http.MaxBytesReader(x.w, body, limit)
	} else if n <= firstBuffer {
		buf := make([]byte, n)
		if _, err := io.ReadFull(body, buf); err != nil {
			return nil, bodyProblem(err)
		}
		return buf, nil
	}
	buf := make([]byte, 0, firstBuffer)
	for {
		m, err := body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+m]
		if errors.Is(err, io.EOF) {
			return buf, nil
		}
		if err != nil {
			return nil, bodyProblem(err)
		}
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
	}
}

func bodyProblem(err error) *problem {
	var tooLarge *http.MaxBytesError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &tooLarge):
		return kindTooLarge.with("the body is too large")
	case errors.As(err, &timeout) && timeout.Timeout():
		return kindTimeout.with("the body did not arrive in time")
	default:
		return kindInvalidBody.with("the body ends before it is complete")
	}
}

// checkMediaType holds a body to JSON.
func (x *exchange) checkMediaType(also string) *problem {
	if x.r.Header.Get("Content-Encoding") != "" {
		return kindMediaType.with("the body must not be compressed")
	}
	v := x.r.Header.Get("Content-Type")
	if v == "application/json" {
		return nil
	}
	if t, ok := mediaType(v); ok && (strings.EqualFold(t, "application/json") || (also != "" && strings.EqualFold(t, also))) {
		return nil
	}
	return kindMediaType.with("Content-Type must be application/json")
}

// query reads the query string: each parameter at most once, and none that is not known.
func (x *exchange) query(known ...string) (url.Values, *problem) {
	if x.r.URL.RawQuery == "" {
		return nil, nil
	}
	q, err := url.ParseQuery(x.r.URL.RawQuery)
	if err != nil {
		return nil, kindInvalidParameter.with("the query is malformed")
	}
next:
	for name, values := range q {
		if len(values) > 1 {
			return nil, kindInvalidParameter.with("a parameter is given twice")
		}
		for _, k := range known {
			if k == name {
				continue next
			}
		}
		return nil, kindInvalidParameter.with("a parameter is not known here; see /docs")
	}
	return q, nil
}

// await limits a wait: by the client, by a time, and by the server's end. It takes a place among those who wait; nil
// where there is none. done gives it back.
func (x *exchange) await(d time.Duration) (ctx context.Context, done func()) {
	a := x.api
	select {
	case a.waits <- struct{}{}:
	default:
		return nil, nil
	}
	x.extendDeadlines(d)
	ctx, cancel := context.WithTimeout(x.r.Context(), d)
	stop := context.AfterFunc(a.drain, cancel)
	return ctx, func() {
		stop()
		cancel()
		<-a.waits
	}
}

// extendDeadlines gives a request that may wait longer than the server's own timeouts the time for it. The read deadline
// counts too: when it passes, net/http takes the client for gone and cancels the request.
func (x *exchange) extendDeadlines(d time.Duration) {
	if d < ReadTimeout/2 {
		return // within the timeouts anyway, but for a body that took half of them to arrive
	}
	rc := http.NewResponseController(x.w)
	now := time.Now() // deadlines are of the machine's clock
	_ = rc.SetReadDeadline(now.Add(d + ReadTimeout))
	_ = rc.SetWriteDeadline(now.Add(d + WriteTimeout)) // not every ResponseWriter of a test knows deadlines
}
