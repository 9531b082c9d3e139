package gateway

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-io/millrace/internal/jsonx"
	pay "github.com/millrace-io/millrace/internal/payment"
	"github.com/millrace-io/millrace/payment"
)

const (
	// maxBody bounds what is posted in bytes.
	maxBody = 16 << 10
	// retrySoon is the Retry-After where nobody knows better.
	retrySoon = time.Second
)

// routes sets up the interface of payment gateways, and what only this one has: its ledger and its faults.
func (g *Gateway) routes() {
	g.mux.HandleFunc("POST "+payment.PathPayments, g.pay(pay.Authorise))
	for _, kind := range []pay.Kind{pay.Capture, pay.Void, pay.Refund} {
		g.mux.HandleFunc("POST "+payment.PathPayments+"/{payment}/"+string(kind), g.pay(kind))
	}
	g.mux.HandleFunc("GET /v1/ledger", func(w http.ResponseWriter, _ *http.Request) { send(w, http.StatusOK, g.Ledger()) })
	g.mux.HandleFunc("GET /v1/ledger/orders/{order}", func(w http.ResponseWriter, r *http.Request) {
		if l, ok := g.Order(r.PathValue("order")); ok {
			send(w, http.StatusOK, &l)
			return
		}
		refuse(w, http.StatusNotFound, "order_unknown")
	})
	g.mux.HandleFunc("GET /v1/faults", func(w http.ResponseWriter, _ *http.Request) { send(w, http.StatusOK, g.Faults()) })
	g.mux.HandleFunc("POST /v1/faults", g.postFaults)
}

// ServeHTTP answers a request.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.mux.ServeHTTP(w, r) }

func (g *Gateway) postFaults(w http.ResponseWriter, r *http.Request) {
	var f Faults
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil {
		err = jsonx.Unmarshal(data, &f)
	}
	if err == nil {
		err = g.SetFaults(&f)
	}
	if err != nil {
		problem(w, http.StatusBadRequest, "invalid_body", err.Error()) // these errors repeat nothing
		return
	}
	if g.onFaults != nil {
		g.onFaults(f)
	}
	send(w, http.StatusOK, &f)
}

// pay handles requests of one kind.
func (g *Gateway) pay(kind pay.Kind) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		f := g.faults.Load()
		if is, left := f.down(g.now()); is {
			g.counts.unavailable.Add(1)
			if f.Mute {
				panic(http.ErrAbortHandler) // cuts the connection
			}
			w.Header().Set("Retry-After", seconds(left))
			refuse(w, http.StatusServiceUnavailable, "unavailable")
			return
		}
		var body payment.Body
		data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		var long *http.MaxBytesError
		switch {
		case errors.As(err, &long):
			refuse(w, http.StatusRequestEntityTooLarge, "body_too_large")
			return
		case err != nil:
			return // the client is gone
		}
		if err := jsonx.Unmarshal(data, &body); err != nil {
			problem(w, http.StatusBadRequest, "invalid_body", err.Error()) // it repeats nothing
			return
		}
		req := &pay.Request{Kind: kind, OrderID: body.OrderID, Payment: r.PathValue("payment"), Amount: body.Amount}
		key := r.Header.Get(payment.KeyHeader)
		// A key in another form is not one that was sent as the interface has it: it would not be repeated in the answer.
		if err := check(key, req); err != nil || len(key) > payment.MaxKey || !printable(key) {
			refuse(w, http.StatusBadRequest, pay.CodeInvalid)
			return
		}
		p := g.attempt(&f.Faults, key, req)
		g.answer(w, r, key, req, &p)
	}
}

func printable(key string) bool {
	return !strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// answer answers, in the manner that is meant.
func (g *Gateway) answer(w http.ResponseWriter, r *http.Request, key string, req *pay.Request, p *reply) {
	if p.manner == hanging {
		_ = g.wait(r.Context(), maxDelay) // whatever ends it, there is no answer
	}
	if p.manner == cut || p.manner == hanging || p.delay > 0 && g.wait(r.Context(), p.delay) != nil {
		panic(http.ErrAbortHandler)
	}
	switch {
	case p.manner == failing:
		refuse(w, http.StatusInternalServerError, "internal")
		return
	case p.refused != nil:
		refuse(w, p.refused.Status, p.refused.Code)
		return
	}
	a := &payment.Answer{
		Key: key, Kind: req.Kind, OrderID: req.OrderID, Amount: req.Amount,
		Status: p.result.Status, Payment: p.result.Payment, Code: p.result.Code,
	}
	status := http.StatusOK
	switch {
	case a.Status == pay.Declined:
		status = http.StatusPaymentRequired
	case a.Kind == pay.Authorise:
		status = http.StatusCreated
	}
	if p.manner == twice && sendTwice(w, status, a) {
		return
	}
	send(w, status, a)
}

// sendTwice writes one response two times on the connection, and closes it. It says whether it could.
func sendTwice(w http.ResponseWriter, status int, a *payment.Answer) bool {
	h, ok := w.(http.Hijacker)
	if !ok {
		return false // HTTP/2 has no such thing
	}
	body := encode(a)
	c, _, err := h.Hijack()
	if err != nil {
		return false
	}
	defer c.Close() //nolint:errcheck // nobody is left to tell
	var out bytes.Buffer
	b := bufio.NewWriter(&out)
	for range 2 {
		res := &http.Response{
			StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, ContentLength: int64(len(body)),
			Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(body)),
		}
		_ = res.Write(b) // into memory
	}
	_ = b.Flush()
	_, _ = c.Write(out.Bytes()) // the client is gone
	return true
}

func send(w http.ResponseWriter, status int, v any) {
	body := encode(v)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) //nolint:gosec // it is JSON, and says so; what the client does with it, it does with its own words
}

func refuse(w http.ResponseWriter, status int, code string) { problem(w, status, code, "") }

func problem(w http.ResponseWriter, status int, code, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_, _ = w.Write(encode(struct { // the client is gone
		Status int    `json:"status"`
		Code   string `json:"code"`
		Detail string `json:"detail,omitempty"`
	}{status, code, detail}))
}

// encode writes JSON. The types are ours, and their texts were read from JSON, or from a header.
func encode(v any) []byte {
	b, err := jsonx.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// seconds is a time for Retry-After, in whole seconds.
func seconds(d time.Duration) string {
	if d <= 0 {
		d = retrySoon
	}
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}
