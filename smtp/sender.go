package smtp

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	netmail "net/mail"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/wneessen/go-mail"
	client "github.com/wneessen/go-mail/smtp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/notice"
)

const (
	// dialTimeout bounds the connecting alone: a server that is there answers at once.
	dialTimeout = 10 * time.Second
	// defaultTimeout bounds a greeting with its encryption and login, and each mail. It is long because a server may look
	// into a mail before it takes it; who hangs up before sends the mail twice.
	defaultTimeout = time.Minute
	// grace is how long a mail may go on that is on its way when the sender is to stop: one that the server has taken, and
	// we did not hear of, is sent twice.
	grace = time.Second
	// maxIdle is for how long a connection is used again. Servers hang up on one that says nothing for some minutes.
	maxIdle = 30 * time.Second
	// defaultConnections is how many mails are sent at a time.
	defaultConnections = 4
	// maxDetail bounds what a server says, in bytes, where it is kept.
	maxDetail = 300
)

// Encryption says how connections are encrypted.
type Encryption int

// The ways.
const (
	StartTLS Encryption = iota // by STARTTLS, which the server must offer
	TLS                        // from the start
	None                       // not at all: to a server on this machine only
)

// Options of New. Host and From are required.
type Options struct {
	Host string
	// Port defaults to 587, or 465 where connections are encrypted from the start.
	Port       int
	Encryption Encryption
	// User and Password are for AUTH PLAIN, which is only done over an encrypted connection or to this machine. Defaults to no
	// authentication.
	User, Password string
	// From is the sender: an address, with a name or without.
	From netmail.Address
	// RootCAs are whose certificates are trusted. Defaults to those of the system.
	RootCAs *x509.CertPool
	// Timeout bounds the beginning of a connection, and each mail. Defaults to 1 min.
	Timeout time.Duration
	// Connections is how many mails are sent at a time. Defaults to 4.
	Connections int
	// Now is the clock. Defaults to time.Now.
	Now func() time.Time
}

// Sender sends mails. Its methods are safe for use by several goroutines.
type Sender struct {
	o      Options
	opts   []mail.Option
	tls    *tls.Config
	domain string           // of the Message-IDs
	idle   chan *connection // those that nobody uses
	slots  chan struct{}    // one for each connection there may be
}

// Mail is one mail, in two forms with the same content.
type Mail struct {
	// ID is the same each time that the mail is sent, and nobody else's: the Message-ID is made of it.
	ID                  string
	To                  string // an address
	Subject, Text, HTML string
	Language            string // a tag of BCP 47
}

// New makes a sender. Errors: [millrace.ErrInvalid].
func New(o Options) (*Sender, error) {
	_, domain, ok := strings.Cut(o.From.Address, "@")
	switch {
	case o.Host == "":
		return nil, fmt.Errorf("%w: the mail server has no name", millrace.ErrInvalid)
	case !ok || domain == "":
		return nil, fmt.Errorf("%w: the sender is no e-mail address", millrace.ErrInvalid)
	case o.Encryption == None && !isLoopback(o.Host):
		return nil, fmt.Errorf("%w: mails go unencrypted to a server on this machine only", millrace.ErrInvalid)
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Connections == 0 {
		o.Connections = defaultConnections
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	t := &tls.Config{ServerName: o.Host, MinVersion: tls.VersionTLS12, RootCAs: o.RootCAs}
	opts := []mail.Option{mail.WithTimeout(o.Timeout), mail.WithTLSConfig(t)}
	switch o.Encryption {
	case TLS:
		opts = append(opts, mail.WithSSLPort(false))
	case None:
		opts = append(opts, mail.WithTLSPolicy(mail.NoTLS))
	default:
		opts = append(opts, mail.WithTLSPortPolicy(mail.TLSMandatory))
	}
	if o.Port != 0 {
		opts = append(opts, mail.WithPort(o.Port))
	}
	if o.User != "" {
		auth := mail.SMTPAuthPlain
		if o.Encryption == None {
			auth = mail.SMTPAuthPlainNoEnc // to this machine, as was seen to
		}
		opts = append(opts, mail.WithSMTPAuth(auth), mail.WithUsername(o.User), mail.WithPassword(o.Password))
	}
	if _, err := mail.NewClient(o.Host, opts...); err != nil {
		return nil, fmt.Errorf("%w: %w", millrace.ErrInvalid, err)
	}
	return &Sender{o: o, opts: opts, tls: t, domain: domain, idle: make(chan *connection, o.Connections), slots: make(chan struct{}, o.Connections)}, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// connection is one to the server, ready for a mail.
type connection struct {
	mail   *mail.Client
	client *client.Client
	used   time.Time

	mu   sync.Mutex
	conn net.Conn // nil until there is one
	over bool
}

// set takes the connection that was made; one that nobody wants any more is closed at once.
func (c *connection) set(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn = conn; c.over {
		_ = conn.Close()
	}
}

// hangUp ends the connection without a word: a server need not hear that we go.
func (c *connection) hangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over = true; c.conn != nil {
		_ = c.conn.Close()
	}
}

// Send sends a mail. A server that takes it, or refuses it for good, gives a result. Errors: [*notice.UnreachableError] where
// the server is away or does not let us in; others where it refuses the mail for now.
func (s *Sender) Send(ctx context.Context, m *Mail) (notice.Result, error) {
	if a, err := netmail.ParseAddress(m.To); err != nil || a.Address != m.To {
		return notice.Result{Status: notice.Rejected, Detail: "the address has no form that mail can be sent to"}, nil
	}
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return notice.Result{}, ctx.Err()
	}
	defer func() { <-s.slots }()
	if ctx.Err() != nil {
		return notice.Result{}, ctx.Err()
	}
	c, err := s.connect(ctx)
	if err != nil {
		return notice.Result{}, &notice.UnreachableError{Err: fmt.Errorf("mail server: %w", err)}
	}
	ended := make(chan struct{})
	defer close(ended)
	defer context.AfterFunc(ctx, func() {
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-t.C:
			c.hangUp()
		case <-ended:
		}
	})()
	msg := s.message(m)
	err = c.mail.SendWithSMTPClient(c.client, msg)
	if msg.IsDelivered() { // what was wrong afterwards is the connection's
		s.keep(ctx, c, err == nil)
		return notice.Result{Status: notice.Sent}, nil
	}
	r, usable, err := judge(err, m.To)
	s.keep(ctx, c, usable)
	return r, err
}

// connect gives a connection: one that was used before and still answers, or a new one.
func (s *Sender) connect(ctx context.Context) (*connection, error) {
	for {
		select {
		case c := <-s.idle:
			if s.o.Now().Sub(c.used) < maxIdle && c.client.UpdateDeadline(dialTimeout) == nil && c.client.Noop() == nil {
				return c, nil
			}
			c.hangUp()
			continue
		default:
		}
		break
	}
	return s.dial(ctx)
}

func (s *Sender) dial(ctx context.Context) (*connection, error) {
	c := &connection{}
	defer context.AfterFunc(ctx, func() { c.hangUp() })()
	dialer := &net.Dialer{Timeout: dialTimeout}
	// A client for each connection: the library leaves one open that it could not begin to use.
	opts := append(slices.Clip(s.opts), mail.WithDialContextFunc(func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		if s.o.Encryption == TLS {
			conn, err = (&tls.Dialer{NetDialer: dialer, Config: s.tls}).DialContext(ctx, network, addr)
		} else {
			conn, err = dialer.DialContext(ctx, network, addr)
		}
		if err == nil {
			c.set(conn)
		}
		return conn, err
	}))
	var err error
	if c.mail, err = mail.NewClient(s.o.Host, opts...); err != nil {
		return nil, err
	}
	if c.client, err = c.mail.DialToSMTPClientWithContext(ctx); err != nil {
		c.hangUp()
		return nil, err
	}
	return c, nil
}

// keep keeps a connection for the next mail, unless something is wrong with it, or it may be hung up because ctx has ended.
func (s *Sender) keep(ctx context.Context, c *connection, usable bool) {
	c.used = s.o.Now()
	if usable && ctx.Err() == nil {
		select {
		case s.idle <- c:
			return
		default: // cannot be: there is room for each
		}
	}
	c.hangUp()
}

// Close hangs up connections that nobody uses. The sender can be used still.
func (s *Sender) Close() {
	for {
		select {
		case c := <-s.idle:
			c.hangUp()
		default:
			return
		}
	}
}

// judge says what a refusal means, and whether the connection can take another mail.
func judge(err error, to string) (r notice.Result, usable bool, kept error) {
	var refused *mail.SendError
	if !errors.As(err, &refused) || refused.ErrorCode() == 0 || refused.ErrorCode() == codeClosing {
		return r, false, &notice.UnreachableError{Err: fmt.Errorf("mail server: %s", said(err, to))}
	}
	aboutMail := refused.Reason == mail.ErrSMTPRcptTo || refused.Reason == mail.ErrSMTPData || refused.Reason == mail.ErrSMTPDataClose
	if code := refused.ErrorCode(); aboutMail && code >= 500 && !slices.Contains(aboutUs, code) {
		return notice.Result{Status: notice.Rejected, Detail: said(err, to)}, true, nil
	}
	// For now, or because of how we are set up: a sender that the server does not know, a login that it wants.
	return r, true, fmt.Errorf("mail server: %s", said(err, to))
}

// codeClosing is what a server says before it hangs up.
const codeClosing = 421

// aboutUs are answers that refuse the sender and not the mail: the command or its order is wrong, or a login is missing.
var aboutUs = []int{500, 502, 503, 530, 534, 535, 538}

// said is what the server said, without what the library adds and without the address, which is nobody's business who reads
// logs.
func said(err error, to string) string {
	text, _, _ := strings.Cut(err.Error(), ", affected ")
	if to != "" {
		text = strings.ReplaceAll(text, to, "(address)")
	}
	text = strings.ToValidUTF8(strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsControl(r) || r == ' ' }), " "), "")
	if len(text) > maxDetail {
		text = strings.ToValidUTF8(text[:maxDetail], "") + "…"
	}
	return text
}

func (s *Sender) message(m *Mail) *mail.Msg {
	msg := mail.NewMsg(mail.WithNoDefaultUserAgent())
	msg.SetAddrHeaderFromMailAddress(mail.HeaderFrom, &s.o.From)
	msg.SetAddrHeaderFromMailAddress(mail.HeaderTo, &netmail.Address{Address: m.To})
	msg.Subject(m.Subject)
	msg.SetDateWithValue(s.o.Now())
	msg.SetMessageIDWithValue(MessageID(m.ID, s.domain))
	msg.SetGenHeader(mail.HeaderContentLang, m.Language)
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: nobody's absence is to be told to us
	msg.SetBodyString(mail.TypeTextPlain, m.Text)
	msg.AddAlternativeString(mail.TypeTextHTML, m.HTML)
	return msg
}

// MessageID is the Message-ID of a mail, without its brackets: the same for the same id.
func MessageID(id, domain string) string {
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:16]) + "@" + domain
}
