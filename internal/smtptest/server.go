// Package smtptest runs a mail server for tests: a real one, on a socket, with a certificate of its own, that keeps what it
// takes and answers as a test says.
package smtptest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// Options of Start.
type Options struct {
	// Plain has the server offer no encryption.
	Plain bool
	// TLS has it encrypt from the start.
	TLS bool
	// User and Password are wanted where they are given.
	User, Password string
	// Rcpt answers to a recipient: nil takes it. Defaults to taking all.
	Rcpt func(to string) error
	// Data answers to a mail when it is there: nil takes it. Defaults to taking all.
	Data func(m *Mail) error
}

// Refuse is an answer with a code, such as 450 or 550.
func Refuse(code int, text string) error {
	return &smtp.SMTPError{Code: code, EnhancedCode: smtp.NoEnhancedCode, Message: text}
}

// Mail is a mail that was taken.
type Mail struct {
	From, To   string // of the envelope
	Header     mail.Header
	Subject    string
	Text, HTML string
	Encrypted  bool
	User       string
}

// Server is a mail server.
type Server struct {
	t    testing.TB
	o    Options
	addr string
	cert tls.Certificate
	pem  []byte

	server *smtp.Server
	ln     net.Listener
	ended  chan struct{}

	mu    sync.Mutex
	mails []Mail
	more  chan struct{}       // closed and replaced at each mail
	seen  map[*smtp.Conn]bool // connections
}

// Start starts a server on a free port of this machine, and stops it with the test.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s := &Server{t: t, o: o, addr: "127.0.0.1:0", more: make(chan struct{}), seen: map[*smtp.Conn]bool{}}
	s.certify()
	s.Restart()
	t.Cleanup(s.Stop)
	return s
}

// Restart starts it again at its address, after Stop.
func (s *Server) Restart() {
	s.t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(s.t.Context(), "tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	s.server = smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.seen[c] = true // greeted once more when it is encrypted
		return &session{s: s, conn: c}, nil
	}))
	s.server.Domain, s.server.AllowInsecureAuth, s.server.EnableSMTPUTF8 = "mail.example.org", true, true
	config := &tls.Config{Certificates: []tls.Certificate{s.cert}, MinVersion: tls.VersionTLS12}
	switch {
	case s.o.TLS:
		ln = tls.NewListener(ln, config)
	case !s.o.Plain:
		s.server.TLSConfig = config
	}
	s.ln, s.ended = ln, make(chan struct{})
	go func(server *smtp.Server, ended chan struct{}) {
		defer close(ended)
		_ = server.Serve(ln) // it says that it was closed
	}(s.server, s.ended)
}

// Stop ends it as a crash does: connections are closed where they stand.
func (s *Server) Stop() {
	_ = s.ln.Close()     // the server may not have it yet
	_ = s.server.Close() // a second time is no fault
	<-s.ended
}

// Host and Port are where it listens.
func (s *Server) Host() string { host, _, _ := net.SplitHostPort(s.addr); return host }

// Port is where it listens.
func (s *Server) Port() string { _, port, _ := net.SplitHostPort(s.addr); return port }

// Roots are those who vouch for its certificate: itself.
func (s *Server) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.pem)
	return pool
}

// CertFile writes its certificate into a file.
func (s *Server) CertFile() string {
	s.t.Helper()
	name := filepath.Join(s.t.TempDir(), "ca.pem")
	if err := os.WriteFile(name, s.pem, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return name
}

// Connections is how many there were.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

// Mails are those that it has taken so far, in that order.
func (s *Server) Mails() []Mail {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mails)
}

// Wait waits until it has taken so many mails, and gives them.
func (s *Server) Wait(ctx context.Context, n int) []Mail {
	s.t.Helper()
	for {
		s.mu.Lock()
		mails, more := slices.Clone(s.mails), s.more
		s.mu.Unlock()
		if len(mails) >= n {
			return mails
		}
		select {
		case <-more:
		case <-ctx.Done():
			s.t.Fatalf("%d mails came, and %d were waited for", len(mails), n)
		}
	}
}

func (s *Server) certify() {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		s.t.Fatal(err)
	}
	s.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	s.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// session is one connection.
type session struct {
	s        *Server
	conn     *smtp.Conn
	user     string
	from, to string
}

// AuthMechanisms implements smtp.AuthSession.
func (x *session) AuthMechanisms() []string {
	if x.s.o.User == "" {
		return nil
	}
	return []string{sasl.Plain}
}

// Auth implements smtp.AuthSession.
func (x *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != x.s.o.User || password != x.s.o.Password {
			return smtp.ErrAuthFailed
		}
		x.user = user
		return nil
	}), nil
}

// Mail implements smtp.Session.
func (x *session) Mail(from string, _ *smtp.MailOptions) error {
	if x.s.o.User != x.user {
		return Refuse(530, "log in first")
	}
	x.from = from
	return nil
}

// Rcpt implements smtp.Session.
func (x *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	if x.s.o.Rcpt != nil {
		if err := x.s.o.Rcpt(to); err != nil {
			return err
		}
	}
	x.to = to
	return nil
}

// Data implements smtp.Session.
func (x *session) Data(r io.Reader) error {
	m, err := read(r)
	if err != nil {
		return Refuse(554, "this is no mail: "+err.Error())
	}
	m.From, m.To, m.User = x.from, x.to, x.user
	_, m.Encrypted = x.conn.TLSConnectionState()
	if x.s.o.Data != nil {
		if err := x.s.o.Data(m); err != nil {
			return err
		}
	}
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	x.s.mails = append(x.s.mails, *m)
	close(x.s.more)
	x.s.more = make(chan struct{})
	return nil
}

// Reset implements smtp.Session.
func (x *session) Reset() { x.from, x.to = "", "" }

// Logout implements smtp.Session.
func (x *session) Logout() error { return nil }

// read reads a mail of two forms.
func read(r io.Reader) (*Mail, error) {
	msg, err := mail.ReadMessage(r)
	if err != nil {
		return nil, err
	}
	m := &Mail{Header: msg.Header}
	if m.Subject, err = new(mime.WordDecoder).DecodeHeader(msg.Header.Get("Subject")); err != nil {
		return nil, err
	}
	kind, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil || !strings.HasPrefix(kind, "multipart/") {
		return m, err
	}
	parts := multipart.NewReader(msg.Body, params["boundary"])
	for {
		p, err := parts.NextRawPart()
		switch {
		case err == io.EOF: //nolint:errorlint // it is never wrapped
			return m, nil
		case err != nil:
			return nil, err
		}
		var body io.Reader = p
		if p.Header.Get("Content-Transfer-Encoding") == "quoted-printable" {
			body = quotedprintable.NewReader(p)
		}
		data, err := io.ReadAll(body)
		if err != nil {
			return nil, err
		}
		text := string(bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n")))
		if strings.HasPrefix(p.Header.Get("Content-Type"), "text/html") {
			m.HTML = text
		} else {
			m.Text = text
		}
	}
}
