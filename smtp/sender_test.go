package smtp_test

import (
	"context"
	"errors"
	"fmt"
	netmail "net/mail"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/notice"
	"github.com/millrace-io/millrace/internal/smtptest"
	"github.com/millrace-io/millrace/smtp"
)

// patience bounds every wait: only a hang reaches it.
const patience = 30 * time.Second

func options(t *testing.T, s *smtptest.Server) smtp.Options {
	t.Helper()
	port, err := strconv.Atoi(s.Port())
	if err != nil {
		t.Fatal(err)
	}
	return smtp.Options{
		Host: s.Host(), Port: port, From: netmail.Address{Name: "The Example Shöp", Address: "shop@example.org"}, RootCAs: s.Roots(), Timeout: patience,
	}
}

func sender(t *testing.T, o smtp.Options) *smtp.Sender {
	t.Helper()
	s, err := smtp.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func aMail(to string) *smtp.Mail {
	return &smtp.Mail{
		ID: "process/notifications/order-1001/placed/email", To: to, Subject: "Ihre Bestellung – 1001", Text: "Grüße\n\n" + strings.Repeat("x", 1200) + "\n.\nEnde\n",
		HTML: "<p>Grüße</p>\n", Language: "de",
	}
}

func isSent(t *testing.T, r notice.Result, err error) {
	t.Helper()
	if err != nil || r.Status != notice.Sent {
		t.Errorf("%+v %v", r, err)
	}
}

// TestSend: encrypted and logged in, a mail arrives as it was written; and again, under the same Message-ID, over the same
// connection.
func TestSend(t *testing.T) {
	server := smtptest.Start(t, smtptest.Options{User: "shop", Password: "hunter2"})
	o := options(t, server)
	o.User, o.Password = "shop", "hunter2"
	s := sender(t, o)
	m := aMail("ann@example.org")
	for range 2 {
		r, err := s.Send(t.Context(), m)
		isSent(t, r, err)
	}
	mails := server.Mails()
	if len(mails) != 2 || server.Connections() != 1 {
		t.Fatalf("%d mails over %d connections", len(mails), server.Connections())
	}
	got := mails[0]
	if !got.Encrypted || got.User != "shop" || got.From != "shop@example.org" || got.To != m.To || got.Subject != m.Subject || got.Text != m.Text || got.HTML != m.HTML {
		t.Errorf("%+v", got)
	}
	for name, want := range map[string]string{
		"Message-Id": "<" + smtp.MessageID(m.ID, "example.org") + ">", "Auto-Submitted": "auto-generated", "Content-Language": "de",
	} {
		if got.Header.Get(name) != want || mails[1].Header.Get(name) != want {
			t.Errorf("%s: %q and %q, want %q", name, got.Header.Get(name), mails[1].Header.Get(name), want)
		}
	}
	from, err := got.Header.AddressList("From")
	if err != nil || from[0].Name != o.From.Name {
		t.Errorf("%v %v", from, err)
	}
	if smtp.MessageID("a", "example.org") == smtp.MessageID("b", "example.org") {
		t.Error("two mails have one Message-ID")
	}
}

// TestEncryption: nothing goes to a server that does not encrypt, or of which nobody says that it is the one; unless it is
// on this machine, and we are told so.
func TestEncryption(t *testing.T) {
	plain := smtptest.Start(t, smtptest.Options{Plain: true, User: "shop", Password: "hunter2"})
	o := options(t, plain)
	o.User, o.Password = "shop", "hunter2"
	var away *notice.UnreachableError
	if r, err := sender(t, o).Send(t.Context(), aMail("ann@example.org")); !errors.As(err, &away) {
		t.Errorf("without STARTTLS: %+v %v", r, err)
	}
	strange := options(t, smtptest.Start(t, smtptest.Options{}))
	strange.RootCAs = plain.Roots()
	if r, err := sender(t, strange).Send(t.Context(), aMail("ann@example.org")); !errors.As(err, &away) {
		t.Errorf("with the certificate of somebody else: %+v %v", r, err)
	}
	// The control: the same server takes it where it may.
	o.Encryption = smtp.None
	r, err := sender(t, o).Send(t.Context(), aMail("ann@example.org"))
	isSent(t, r, err)
	if mails := plain.Mails(); len(mails) != 1 || mails[0].Encrypted {
		t.Errorf("%+v", mails)
	}
	for name, bad := range map[string]smtp.Options{
		"another machine": {Host: "mail.example.org", Encryption: smtp.None, From: o.From}, "no host": {From: o.From}, "no sender": {Host: "localhost"},
		"no such port": {Host: "localhost", Port: 70000, From: o.From},
	} {
		if _, err := smtp.New(bad); !errors.Is(err, millrace.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEncryptedFromTheStart: as a server on port 465 wants it; one that does not is no server to us.
func TestEncryptedFromTheStart(t *testing.T) {
	server := smtptest.Start(t, smtptest.Options{TLS: true, User: "shop", Password: "hunter2"})
	o := options(t, server)
	o.Encryption, o.User, o.Password = smtp.TLS, "shop", "hunter2"
	r, err := sender(t, o).Send(t.Context(), aMail("ann@example.org"))
	isSent(t, r, err)
	if mails := server.Mails(); len(mails) != 1 || !mails[0].Encrypted || mails[0].User != "shop" {
		t.Errorf("%+v", mails)
	}
	o = options(t, smtptest.Start(t, smtptest.Options{Plain: true}))
	o.Encryption = smtp.TLS
	var away *notice.UnreachableError
	if r, err := sender(t, o).Send(t.Context(), aMail("ann@example.org")); !errors.As(err, &away) {
		t.Errorf("%+v %v", r, err)
	}
}

// TestIdleConnections: one that nobody used for long is not used again.
func TestIdleConnections(t *testing.T) {
	server := smtptest.Start(t, smtptest.Options{})
	o := options(t, server)
	now := time.Now()
	o.Now = func() time.Time { return now }
	s := sender(t, o)
	for n, c := range []struct {
		idle        time.Duration
		connections int
	}{{0, 1}, {29 * time.Second, 1}, {30 * time.Second, 2}, {time.Second, 2}} {
		now = now.Add(c.idle)
		r, err := s.Send(t.Context(), aMail("ann@example.org"))
		isSent(t, r, err)
		if got := server.Connections(); got != c.connections {
			t.Errorf("%d connections after mail %d, want %d", got, n+1, c.connections)
		}
	}
	s.Close()
	r, err := s.Send(t.Context(), aMail("ann@example.org"))
	isSent(t, r, err)
	if got := server.Connections(); got != 3 {
		t.Errorf("%d connections after a hang-up", got)
	}
}

// TestWrongPassword: a login that fails is trouble of ours. No customer is given up for it.
func TestWrongPassword(t *testing.T) {
	o := options(t, smtptest.Start(t, smtptest.Options{User: "shop", Password: "hunter2"}))
	for _, user := range []string{"", "shop"} {
		o.User, o.Password = user, "wrong"
		if r, err := sender(t, o).Send(t.Context(), aMail("ann@example.org")); err == nil || r.Status != "" || strings.Contains(err.Error(), "wrong") {
			t.Errorf("%q: %+v %v", user, r, err)
		}
	}
}

// TestRefusals: what is refused for now is an error, and what is refused for good a result. Neither repeats the address.
func TestRefusals(t *testing.T) {
	var greylisted atomic.Bool
	server := smtptest.Start(t, smtptest.Options{
		Rcpt: func(to string) error {
			switch {
			case strings.HasPrefix(to, "nobody@"):
				return smtptest.Refuse(550, "there is no "+to+" here")
			case strings.HasPrefix(to, "new@") && !greylisted.Swap(true):
				return smtptest.Refuse(450, to+" is asked to come again")
			case strings.HasPrefix(to, "relay@"):
				return smtptest.Refuse(530, "log in first")
			}
			return nil
		},
		Data: func(m *smtptest.Mail) error {
			switch {
			case strings.HasPrefix(m.To, "spam@"):
				return smtptest.Refuse(554, "this is spam")
			case strings.HasPrefix(m.To, "full@"):
				return smtptest.Refuse(452, "no room")
			}
			return nil
		},
	})
	s := sender(t, options(t, server))
	for _, c := range []struct{ to, status, said string }{
		{"nobody@example.org", notice.Rejected, "550"}, {"spam@example.org", notice.Rejected, "554"}, {"new@example.org", "", "450"},
		{"full@example.org", "", "452"}, {"relay@example.org", "", "530"}, {"no address", notice.Rejected, "form"}, {"a@example.org\r\nRCPT TO:<b@example.org>", notice.Rejected, "form"},
		{"new@example.org", notice.Sent, ""}, {"ann@example.org", notice.Sent, ""},
	} {
		r, err := s.Send(t.Context(), aMail(c.to))
		var away *notice.UnreachableError
		if r.Status != c.status || (err == nil) != (c.status != "") || errors.As(err, &away) {
			t.Errorf("%s: %+v %v", c.to, r, err)
		}
		if text := fmt.Sprint(r.Detail, err); !strings.Contains(text, c.said) || strings.Contains(text, c.to) {
			t.Errorf("%s: it says %s", c.to, text)
		}
	}
	if mails := server.Mails(); len(mails) != 2 || server.Connections() != 1 {
		t.Errorf("%d mails over %d connections", len(mails), server.Connections())
	}
}

// TestServerAway: a server that is down is an error of its own, and when it is back the mail goes, over a new connection.
func TestServerAway(t *testing.T) {
	server := smtptest.Start(t, smtptest.Options{})
	s := sender(t, options(t, server))
	r, err := s.Send(t.Context(), aMail("ann@example.org"))
	isSent(t, r, err)
	server.Stop()
	var away *notice.UnreachableError
	for range 2 {
		if r, err := s.Send(t.Context(), aMail("ann@example.org")); !errors.As(err, &away) {
			t.Errorf("%+v %v", r, err)
		}
	}
	server.Restart()
	r, err = s.Send(t.Context(), aMail("ann@example.org"))
	isSent(t, r, err)
	if n := len(server.Mails()); n != 2 {
		t.Errorf("%d mails", n)
	}
}

// TestHangsUpInTheMiddle: a server that goes while it has the mail is away; whether it took the mail nobody knows.
func TestHangsUpInTheMiddle(t *testing.T) {
	var server *smtptest.Server
	var once sync.Once
	server = smtptest.Start(t, smtptest.Options{Data: func(*smtptest.Mail) error {
		first := false
		once.Do(func() { first = true })
		if first {
			return smtptest.Refuse(421, "closing down")
		}
		return nil
	}})
	s := sender(t, options(t, server))
	var away *notice.UnreachableError
	if r, err := s.Send(t.Context(), aMail("ann@example.org")); !errors.As(err, &away) {
		t.Errorf("%+v %v", r, err)
	}
	r, err := s.Send(t.Context(), aMail("ann@example.org"))
	isSent(t, r, err)
}

// TestStopped: who is to stop does not wait for a server that hangs; the control is one that answers within the grace.
func TestStopped(t *testing.T) {
	inside, gate := make(chan struct{}, 2), make(chan struct{})
	server := smtptest.Start(t, smtptest.Options{Data: func(m *smtptest.Mail) error {
		inside <- struct{}{}
		if m.To == "hangs@example.org" {
			<-gate
		}
		return nil
	}})
	defer close(gate)
	s := sender(t, options(t, server))
	for _, c := range []struct {
		to   string
		sent bool
	}{{"hangs@example.org", false}, {"ann@example.org", true}} {
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-inside; cancel() }()
		r, err := s.Send(ctx, aMail(c.to))
		if sent := err == nil && r.Status == notice.Sent; sent != c.sent {
			t.Errorf("%s: %+v %v", c.to, r, err)
		}
		cancel()
		if _, err := s.Send(ctx, aMail(c.to)); err == nil {
			t.Error("a mail was sent by who has stopped")
		}
	}
}

// TestStoppedAndGoesOn: a mail that ended within the grace leaves nothing behind that would hang up on a later one.
func TestStoppedAndGoesOn(t *testing.T) {
	inside := make(chan struct{}, 2)
	server := smtptest.Start(t, smtptest.Options{Data: func(m *smtptest.Mail) error {
		inside <- struct{}{}
		if m.To == "slow@example.org" {
			<-time.After(1500 * time.Millisecond) // longer than the grace
		}
		return nil
	}})
	s := sender(t, options(t, server))
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-inside; cancel() }()
	r, err := s.Send(ctx, aMail("ann@example.org"))
	isSent(t, r, err)
	r, err = s.Send(t.Context(), aMail("slow@example.org"))
	isSent(t, r, err)
	if n := len(server.Mails()); n != 2 {
		t.Errorf("%d mails", n)
	}
}

// TestManyAtATime: no more connections than there may be, and every mail arrives once.
func TestManyAtATime(t *testing.T) {
	server := smtptest.Start(t, smtptest.Options{})
	o := options(t, server)
	o.Connections = 3
	s := sender(t, o)
	var all sync.WaitGroup
	for n := range 60 {
		all.Go(func() {
			r, err := s.Send(t.Context(), aMail(fmt.Sprintf("c-%d@example.org", n)))
			isSent(t, r, err)
		})
	}
	all.Wait()
	to := map[string]int{}
	for _, m := range server.Mails() {
		to[m.To]++
	}
	if len(to) != 60 || len(server.Mails()) != 60 || server.Connections() > 3 {
		t.Errorf("%d mails to %d customers over %d connections", len(server.Mails()), len(to), server.Connections())
	}
}
