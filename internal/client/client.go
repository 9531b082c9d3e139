package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// DefaultServer is where `millrace serve` listens.
	DefaultServer = "http://127.0.0.1:8080"
	// DefaultRetryFor is for how long a server may be away: a restart takes a few seconds.
	DefaultRetryFor = 30 * time.Second

	// maxAnswer bounds an answer in bytes: far above a page of the largest orders, and not all of the memory.
	maxAnswer = 64 << 20
	// attemptSlack is what an attempt may take beyond the time that the server was asked to wait: after it the server
	// hangs, and the next one is asked.
	attemptSlack = 30 * time.Second
	// firstDelay and maxDelay bound the delay between attempts. The first catches a dropped connection, the last does not
	// keep a server that comes back waiting.
	firstDelay = 50 * time.Millisecond
	maxDelay   = 2 * time.Second
	// idlePerServer is the connections that are kept open to each server, above any concurrency of ours: opening one for
	// each request runs out of ports.
	idlePerServer = 512
)

// Options of [New].
type Options struct {
	// RetryFor is for how long one request is tried again. Zero means no second attempt at a server; below zero, DefaultRetryFor.
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
	servers   []string
	http      *http.Client
	retryFor  time.Duration
	onAttempt func()
	userAgent string
	next      atomic.Uint64
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
	for _, s := range servers {
		u, err := url.Parse(s)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return nil, WithCode(ExitUsage, errors.New("the server must be the URL of one, such as "+DefaultServer))
		}
		c.servers = append(c.servers, strings.TrimRight(u.String(), "/"))
	}
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
func (c *Client) Servers() []string { return c.servers }

// Response is an answer, whatever its status.
type Response struct {
	Status   int
	Header   http.Header
	Body     []byte
	Replayed bool   // Idempotency-Replayed: the outcome was known before
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
	cause   error
	after   time.Duration // what Retry-After says; 0 where it says nothing
	noReply bool          // the server did not answer: the next one may
}

func (c *Client) send(ctx context.Context, q *call) (*Response, error) {
	start := time.Now()
	first := c.next.Add(1) - 1
	for attempt := 1; ; attempt++ {
		server := c.servers[(first+uint64(attempt)-1)%uint64(len(c.servers))]
		res, again, err := c.attempt(ctx, server, q)
		if err != nil {
			return nil, err
		}
		if again == nil {
			res.Attempts = attempt
			return res, nil
		}
		delay, left := c.delay(attempt, again), c.retryFor-time.Since(start)
		// Only a growing delay may be cut to what is left: the server has not asked for that one.
		if again.after == 0 {
			delay = min(delay, left)
		}
		if q.once || left <= 0 || delay > left {
			return nil, &UnavailableError{Servers: c.servers, Attempts: attempt, After: time.Since(start), Last: again.cause}
		}
		if err := Pause(ctx, delay); err != nil {
			return nil, err
		}
	}
}

// delay is how long to wait before the next attempt: not at all where the other servers were not asked yet, otherwise at
// random in the upper half of a bound that doubles, so that clients that failed together do not come back together.
func (c *Client) delay(attempt int, again *retry) time.Duration {
	if again.noReply && attempt%len(c.servers) != 0 {
		return 0
	}
	if again.after > 0 {
		return again.after
	}
	bound := firstDelay << min((attempt-1)/len(c.servers), 10)
	bound = min(bound, maxDelay)
	return bound/2 + time.Duration(rand.Int64N(int64(bound/2)+1)) //nolint:gosec // jitter, not a secret
}

// attempt sends a request once. It returns an answer, a reason to try again, or an error that no attempt can help.
func (c *Client) attempt(ctx context.Context, server string, q *call) (*Response, *retry, error) {
	if c.onAttempt != nil {
		c.onAttempt()
	}
	limit, cancel := context.WithTimeout(ctx, q.wait+attemptSlack)
	defer cancel()
	req, err := c.request(limit, server, q)
	if err != nil {
		return nil, nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, &retry{cause: bare(err), noReply: true}, final(ctx, err)
	}
	defer res.Body.Close() //nolint:errcheck // it was read
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, &retry{cause: bare(err), noReply: true}, final(ctx, err)
	}
	if len(body) > maxAnswer {
		return nil, nil, fmt.Errorf("the server's answer is longer than %d MiB", maxAnswer>>20)
	}
	out := &Response{
		Status: res.StatusCode, Header: res.Header, Body: body,
		Replayed: res.Header.Get("Idempotency-Replayed") == "true", Cursor: res.Header.Get("Millrace-Cursor"),
	}
	if res.StatusCode >= 400 {
		out.Problem = parseProblem(res.StatusCode, body)
	}
	return out, again(out), nil
}

func (c *Client) request(ctx context.Context, server string, q *call) (*http.Request, error) {
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
	if q.wait > 0 {
		req.Header.Set("Prefer", "wait="+strconv.Itoa(int(q.wait/time.Second)))
	}
	return req, nil
}

// quoted writes a key as the string of RFC 8941 that the header's draft asks for.
func quoted(key string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key) + `"`
}

// again says whether an answer asks for another attempt. A 409 does so only with Retry-After: then the first request
// with this key is still on its way.
func again(r *Response) *retry {
	after := retryAfter(r.Header)
	switch r.Status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
	case http.StatusConflict:
		if after == 0 {
			return nil
		}
	default:
		return nil
	}
	return &retry{cause: r.Err(), after: after, noReply: len(r.Header.Values("Retry-After")) == 0}
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
