package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// DefaultServer is where `millrace serve` listens.
	DefaultServer = "http://127.0.0.1:8080"
	// DefaultRetryFor is for how long a server may be away: a restart takes a few seconds.
	DefaultRetryFor = 30 * time.Second

	// maxAnswer bounds an answer in bytes: far above a page of the largest orders, and not all of the memory.
	maxAnswer = 64 << 20
	// idlePerServer is the connections that are kept open to each server, above any concurrency of ours: opening one for
	// each request runs out of ports.
	idlePerServer = 512
)

// Options of [New].
type Options struct {
	// RetryFor is for how long one request is tried again, counted from when its first attempt failed. Every server is asked
	// before a request is given up. Zero means no second attempt at a server; below zero, DefaultRetryFor.
	RetryFor time.Duration
	// Transport carries the requests. Defaults to a pool of connections of its own.
	Transport http.RoundTripper
	// OnAttempt is called before each attempt: for who counts them. Defaults to nothing.
	OnAttempt func()
	// UserAgent names the program. Defaults to "millrace".
	UserAgent string
}

// Client sends requests to one or several servers that share a store. It is safe for use by several goroutines.
type Client struct {
	fleet     *fleet
	http      *http.Client
	retryFor  time.Duration
	onAttempt func()
	userAgent string
}

// New makes a client for servers named by their base URLs. A URL that cannot be one is an error with the exit code of usage.
func New(servers []string, o *Options) (*Client, error) {
	if o == nil {
		o = &Options{RetryFor: DefaultRetryFor}
	}
	c := &Client{retryFor: o.RetryFor, onAttempt: o.OnAttempt, userAgent: o.UserAgent}
	if c.retryFor < 0 {
		c.retryFor = DefaultRetryFor
	}
	if c.userAgent == "" {
		c.userAgent = "millrace"
	}
	if len(servers) == 0 {
		servers = []string{DefaultServer}
	}
	if len(servers) > MaxServers {
		return nil, WithCode(ExitUsage, fmt.Errorf("at most %d servers may be named", MaxServers))
	}
	urls := make([]string, 0, len(servers))
	for _, s := range servers {
		u, err := url.Parse(s)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return nil, WithCode(ExitUsage, errors.New("the server must be the URL of one, such as "+DefaultServer))
		}
		urls = append(urls, strings.TrimRight(u.String(), "/"))
	}
	c.fleet = newFleet(urls)
	transport := o.Transport
	if transport == nil {
		transport = &http.Transport{
			Proxy:       http.ProxyFromEnvironment,
			DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			// The API is HTTP/1.1: many connections share a server's cores better than one.
			Protocols:           http1(),
			MaxIdleConns:        0,
			MaxIdleConnsPerHost: idlePerServer,
			IdleConnTimeout:     90 * time.Second,
			TLSHandshakeTimeout: 10 * time.Second,
			DisableCompression:  true,
		}
	}
	c.http = &http.Client{
		Transport: transport,
		// A redirected POST would arrive as a GET or at somebody who was not named.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

func http1() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return p
}

// Close closes the connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Servers are the base URLs.
func (c *Client) Servers() []string { return c.fleet.urls }

// Response is an answer, whatever its status.
type Response struct {
	Status   int
	Header   http.Header
	Body     []byte
	Replayed bool // Idempotency-Replayed: the outcome was known before
	// Doubt: an earlier attempt of this request had no answer, and may have been kept all the same. Then Replayed may speak of
	// that attempt, and not of an earlier request.
	Doubt    bool
	Cursor   string // Millrace-Cursor: what a read must have seen to see the effect
	Problem  *Problem
	Attempts int
}

// Err is the problem as an error, or an error for a status that is neither a success nor a problem.
func (r *Response) Err() error {
	switch {
	case r.Problem != nil:
		return r.Problem
	case r.Status < 200 || r.Status > 299:
		return fmt.Errorf("the server answers %d", r.Status)
	}
	return nil
}

// call is a request that may be sent several times.
type call struct {
	method, path, key string
	contentType       string
	body              []byte
	wait              time.Duration
	once              bool // no second attempt, whatever comes
}

// Post sends a body with an idempotency key. wait is what the server is asked to wait for the outcome, in whole seconds; 0
// is not at all. The error is ctx's or an [*UnavailableError]; every answer, also a problem, is a Response.
func (c *Client) Post(ctx context.Context, path, key string, body []byte, wait time.Duration) (*Response, error) {
	return c.send(ctx, &call{method: http.MethodPost, path: path, key: key, contentType: "application/json", body: body, wait: wait})
}

// Get reads. Errors as for Post.
func (c *Client) Get(ctx context.Context, path string) (*Response, error) {
	return c.send(ctx, &call{method: http.MethodGet, path: path})
}

// PostOnce is Post with a single attempt: for who measures, or means to be refused. An error other than ctx's is an
// [*UnavailableError].
func (c *Client) PostOnce(ctx context.Context, path, key string, body []byte, wait time.Duration) (*Response, error) {
	return c.send(ctx, &call{
		method: http.MethodPost, path: path, key: key, contentType: "application/json", body: body, wait: wait, once: true,
	})
}

// retry is why and when a request is sent again.
type retry struct {
	cause      error
	after      time.Duration // what Retry-After says; 0 where it says nothing
	noReply    bool          // the server is not there, or not for this: the next one may be
	everywhere bool          // the other servers would say the same
	mayBeKept  bool          // what was sent may have been kept
}

func (c *Client) send(ctx context.Context, q *call) (*Response, error) {
	t := c.fleet.turn(c.retryFor)
	var last error
	var doubt bool
	for {
		s, ok := t.pick(time.Now())
		if !ok {
			delay, ok := t.pause()
			if !ok {
				return nil, t.unavailable(last)
			}
			if err := Pause(ctx, delay); err != nil {
				return nil, err
			}
			continue
		}
		res, again, err := c.attempt(ctx, s, q)
		t.settle(s, again, err)
		switch {
		case err != nil:
			return nil, err
		case again == nil:
			res.Attempts = t.attempts
			res.Doubt = res.Doubt || doubt
			return res, nil
		case q.once:
			return nil, t.unavailable(again.cause)
		}
		last, doubt = again.cause, doubt || again.mayBeKept
	}
}

// do sends one request and says how many connections it was given. More than one means that the transport has sent it
// again by itself, as it does where a connection that was kept open breaks.
func (c *Client) do(req *http.Request) (res *http.Response, connections int, err error) {
	if c.onAttempt != nil {
		c.onAttempt()
	}
	var n atomic.Int64
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { n.Add(1) }}
	res, err = c.http.Do(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
	return res, int(n.Load()), err
}

// attempt sends a request once. It returns an answer, a reason to try again, or an error that no attempt can help.
func (c *Client) attempt(ctx context.Context, s *slot, q *call) (*Response, *retry, error) {
	wait, all := c.fleet.limits(s, q.wait)
	limit, cancel := context.WithTimeout(ctx, all)
	defer cancel()
	req, err := c.request(limit, s.url, q, wait)
	if err != nil {
		return nil, nil, err
	}
	res, connections, err := c.do(req)
	if err != nil {
		return nil, &retry{cause: bare(err), noReply: true, mayBeKept: connections > 0 || !neverSent(err)}, final(ctx, err)
	}
	defer res.Body.Close() //nolint:errcheck // it was read
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, &retry{cause: bare(err), noReply: true, mayBeKept: true}, final(ctx, err)
	}
	if len(body) > maxAnswer {
		return nil, nil, fmt.Errorf("the server's answer is longer than %d MiB", maxAnswer>>20)
	}
	out := &Response{
		Status: res.StatusCode, Header: res.Header, Body: body, Doubt: connections > 1,
		Replayed: res.Header.Get("Idempotency-Replayed") == "true", Cursor: res.Header.Get("Millrace-Cursor"),
	}
	if res.StatusCode >= 400 {
		out.Problem = parseProblem(res.StatusCode, body)
	}
	return out, again(out), nil
}

// neverSent says whether an attempt ended before there was a connection to send anything over.
func neverSent(err error) bool {
	var op *net.OpError
	return errors.Is(err, syscall.ECONNREFUSED) || (errors.As(err, &op) && op.Op == "dial")
}

func (c *Client) request(ctx context.Context, server string, q *call, wait time.Duration) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, q.method, server+q.path, bytes.NewReader(q.body))
	if err != nil {
		return nil, fmt.Errorf("make a request: %w", err)
	}
	if q.method == http.MethodGet {
		req.Body, req.GetBody, req.ContentLength = nil, nil, 0
	}
	req.Header.Set("User-Agent", c.userAgent)
	if q.contentType != "" {
		req.Header.Set("Content-Type", q.contentType)
	}
	if q.key != "" {
		req.Header.Set("Idempotency-Key", quoted(q.key))
	}
	if wait > 0 {
		req.Header.Set("Prefer", "wait="+strconv.Itoa(int(wait/time.Second)))
	}
	return req, nil
}

// quoted writes a key as the string of RFC 8941 that the header's draft asks for.
func quoted(key string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key) + `"`
}

// again says whether an answer asks for another attempt. A 409 does so only with Retry-After: then the first request
// with this key is still on its way, for whichever server is asked. Any other answer with Retry-After is that of a server
// that is there and has no time: this request goes to the next one, others may still be sent to it.
func again(r *Response) *retry {
	after := retryAfter(r.Header)
	switch r.Status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return &retry{cause: r.Err(), after: after, noReply: len(r.Header.Values("Retry-After")) == 0, mayBeKept: mayBeKept(r.Problem)}
	case http.StatusConflict:
		if after > 0 {
			return &retry{cause: r.Err(), after: after, everywhere: true}
		}
	}
	return nil
}

// mayBeKept says whether a command that was answered with a problem that may pass can have been kept. It cannot where the
// server says that it had no room for it.
func mayBeKept(p *Problem) bool {
	return p == nil || (p.Status != http.StatusTooManyRequests && p.Code != codeOverloaded)
}

// retryAfter reads the header in both of its forms. A time that has come counts as the shortest delay.
func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if text == "" {
		return 0
	}
	if seconds, err := strconv.Atoi(text); err == nil && seconds >= 0 {
		return max(time.Duration(min(seconds, 24*3600))*time.Second, firstDelay)
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(time.Until(at), firstDelay)
	}
	return 0
}

// final gives the errors that no further attempt can help: the caller has given up, or the other side is not who it
// should be.
func final(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var certificate *tls.CertificateVerificationError
	if errors.As(err, &certificate) {
		return err
	}
	return nil
}

// bare takes the URL off an error: it is named already.
func bare(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

// Pause waits, or returns ctx's error where that comes first.
func Pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
