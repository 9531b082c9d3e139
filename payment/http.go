package payment

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-io/millrace/internal/jsonx"
	pay "github.com/millrace-io/millrace/internal/payment"
)

const (
	// DefaultTimeout is for one attempt, from the connection to the last byte of the answer. Gateways ask banks, which take
	// seconds.
	DefaultTimeout = 10 * time.Second
	// connectTimeout is for a connection and for its encryption, each.
	connectTimeout = 5 * time.Second
	// maxAnswer bounds an answer in bytes. One has some hundreds.
	maxAnswer = 64 << 10
	// maxAnswerHeaders bounds its headers in bytes.
	maxAnswerHeaders = 16 << 10
	// maxConnections bounds the connections to a gateway, above what the workers of a process ask at the same time.
	maxConnections = 512
	// maxIdle is how many of them are kept while there is nothing to ask, and idleTimeout how long: a new one costs more than a
	// question.
	maxIdle     = 64
	idleTimeout = time.Minute
	// maxRetryAfter bounds what a gateway may ask for.
	maxRetryAfter = time.Hour
)

// Options are those of [NewHTTP].
type Options struct {
	// Token is sent as a bearer token. Defaults to none; a user and password in the URL are sent as basic authentication.
	Token string
	// Insecure allows a gateway on another machine without encryption. Defaults to refusing it.
	Insecure bool
	// Timeout is for one attempt. Defaults to [DefaultTimeout].
	Timeout time.Duration
	// TLS are settings of the encryption, such as whom to trust. Defaults to those of the system.
	TLS *tls.Config
}

// HTTP is a gateway that is reached over HTTP. It is safe for use by several goroutines.
type HTTP struct {
	base          string // of the addresses of payments
	authorization string
	timeout       time.Duration
	client        *http.Client
	transport     *http.Transport
}

// NewHTTP makes the gateway at a URL, below which the paths of the interface are. Errors do not repeat the URL, which may hold a
// secret.
func NewHTTP(to string, o *Options) (*HTTP, error) {
	if o == nil {
		o = &Options{}
	}
	u, err := url.Parse(to)
	switch {
	case err != nil || u.Hostname() == "" || (u.Scheme != "http" && u.Scheme != "https"):
		return nil, errors.New("must be the URL of a payment gateway, as https://…")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return nil, errors.New("must be a URL without a query and a fragment: paths are appended to it")
	case u.Scheme == "http" && !o.Insecure && !isLoopback(u.Hostname()):
		return nil, errors.New("must begin with https:// where it is on another machine")
	case u.User != nil && o.Token != "":
		return nil, errors.New("has a user, and there is a token: a gateway takes one of both")
	case strings.ContainsFunc(o.Token, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return nil, errors.New("needs a token of printable characters without spaces")
	}
	g := &HTTP{timeout: o.Timeout}
	if g.timeout <= 0 {
		g.timeout = DefaultTimeout
	}
	switch {
	case o.Token != "":
		g.authorization = "Bearer " + o.Token
	case u.User != nil:
		password, _ := u.User.Password()
		r := http.Request{Header: http.Header{}}
		r.SetBasicAuth(u.User.Username(), password)
		g.authorization = r.Header.Get("Authorization")
	}
	bare := *u
	bare.User = nil
	g.base = strings.TrimRight(bare.String(), "/") + PathPayments
	g.transport = &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: connectTimeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:     o.TLS.Clone(),
		TLSHandshakeTimeout: connectTimeout,
		// HTTP/1.1, because an attempt that takes too long takes its connection with it. One of HTTP/2 whose other end is gone
		// is kept, and all attempts go there and take too long, until the system notices.
		ForceAttemptHTTP2: false,
		MaxConnsPerHost:   maxConnections, MaxIdleConns: maxIdle, MaxIdleConnsPerHost: maxIdle, IdleConnTimeout: idleTimeout,
		MaxResponseHeaderBytes: maxAnswerHeaders,
		DisableCompression:     true, // a small answer that unpacks to a large one
	}
	// A redirect is not followed: whoever can make one would be sent the request and the token.
	g.client = &http.Client{
		Transport:     g.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return g, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Close gives up connections that are not in use.
func (g *HTTP) Close() { g.transport.CloseIdleConnections() }

// String tells nothing of the gateway, whose address and token are secret, so that no log does.
func (g *HTTP) String() string { return "a payment gateway over HTTP" }

// Do implements the gateway's contract. Where a connection that was kept turns out to be gone, the library sends the request
// again by itself, which a key allows. Errors: [*pay.UnknownError], [*pay.RefusedError], both with a method RetryAfter.
func (g *HTTP) Do(ctx context.Context, key string, r *pay.Request) (pay.Result, error) {
	if err := r.Check(); err != nil {
		return pay.Result{}, err
	}
	key = HeaderKey(key)
	if key == "" || len(key) > MaxKey {
		return pay.Result{}, fmt.Errorf("the key is none, or too long: %w", &pay.RefusedError{Code: pay.CodeInvalid})
	}
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	req, err := g.request(ctx, key, r)
	if err != nil {
		return pay.Result{}, err
	}
	res, err := g.client.Do(req)
	if err != nil {
		return pay.Result{}, &pay.UnknownError{Err: unreached(err)}
	}
	defer res.Body.Close() //nolint:errcheck // it was read, or is given up
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		err = unreached(err)
	case len(data) > maxAnswer:
		err = fmt.Errorf("an answer is longer than %d bytes", maxAnswer)
	}
	return understand(res, data, err, key, r)
}

// request makes the HTTP request of a request.
func (g *HTTP) request(ctx context.Context, key string, r *pay.Request) (*http.Request, error) {
	body, err := jsonx.Marshal(&Body{OrderID: r.OrderID, Amount: r.Amount})
	if err != nil {
		return nil, err
	}
	to := g.base
	if r.Kind != pay.Authorise {
		to += "/" + r.Payment + "/" + string(r.Kind) // both need no escaping
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("the request cannot be made") // what the library says repeats the address
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "millrace")
	req.Header.Set(KeyHeader, key)
	if g.authorization != "" {
		req.Header.Set("Authorization", g.authorization)
	}
	return req, nil
}

// understand says what an answer means. broken is why its body is not whole, or nil.
func understand(res *http.Response, data []byte, broken error, key string, r *pay.Request) (pay.Result, error) {
	after := retryAfter(res.Header.Get("Retry-After"))
	unknown := func(err error) (pay.Result, error) {
		return pay.Result{}, &pay.UnknownError{Err: fmt.Errorf("HTTP %d: %w", res.StatusCode, err), After: after}
	}
	switch s := res.StatusCode; {
	case s == http.StatusOK || s == http.StatusCreated || s == http.StatusPaymentRequired:
		if broken != nil {
			return unknown(broken)
		}
		a, err := ReadAnswer(data)
		if err != nil {
			return unknown(fmt.Errorf("the answer cannot be read: %w", err))
		}
		if s == http.StatusPaymentRequired && a.Status != pay.Declined {
			return unknown(errors.New("the answer contradicts its status"))
		}
		result, err := a.to(key, r)
		if err != nil {
			return unknown(err)
		}
		return result, nil
	case s == http.StatusRequestTimeout || s == http.StatusConflict || s == http.StatusTooEarly || s == http.StatusTooManyRequests:
		return unknown(errors.New("it is to be asked again"))
	case s >= 300 && s <= 499:
		return pay.Result{}, &pay.RefusedError{Status: s, Code: problemCode(data), After: after}
	}
	return unknown(errors.New("it cannot answer"))
}

// unreached says why there is no answer, without what the address and the answer hold: the first may be secret, the second
// somebody's.
func unreached(err error) error {
	var at *url.Error
	if errors.As(err, &at) {
		err = at.Err
	}
	var (
		timeout   net.Error
		network   *net.OpError
		name      *net.DNSError
		untrusted *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
	)
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return errTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the connection ended before the answer did")
	case errors.As(err, &untrusted), errors.As(err, &authority):
		return errors.New("its certificate is not trusted")
	case errors.As(err, &name):
		return errors.New("its name is not known")
	case errors.As(err, &network):
		return network
	}
	return errors.New("what came is no HTTP")
}

// errTimeout says that an attempt took too long.
var errTimeout = errors.New("it took too long")

// retryAfter reads the header in its form in seconds. A date would need both clocks to agree.
func retryAfter(header string) time.Duration {
	n, err := strconv.ParseUint(header, 10, 32)
	if err != nil {
		return 0
	}
	return min(time.Duration(n)*time.Second, maxRetryAfter)
}
