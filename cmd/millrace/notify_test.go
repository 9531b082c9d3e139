package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/smtptest"
	"github.com/millrace-io/millrace/smtp"
)

// mailbox is a mail server of the test, and the flags by which a server sends through it. Its certificate is trusted by all
// processes that the test starts.
func mailbox(t *testing.T, o smtptest.Options) (*smtptest.Server, []string) {
	t.Helper()
	s := smtptest.Start(t, o)
	t.Setenv("SSL_CERT_FILE", s.CertFile())
	login := ""
	if o.User != "" {
		login = o.User + ":" + o.Password + "@"
	}
	return s, []string{"--smtp-url", "smtp://" + login + s.Host() + ":" + s.Port() + "?from=The+Example+Shop+<shop@example.org>"}
}

// mailOf is the Message-ID of the mail of an order.
func mailOf(order, name string) string {
	return "<" + smtp.MessageID("process/notifications/order-"+order+"/"+name+"/email", "example.org") + ">"
}

// sentOnce wants exactly these mails, each once. It waits for as many as there are to be.
func sentOnce(t *testing.T, s *smtptest.Server, want ...string) []smtptest.Mail {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	mails := s.Wait(ctx, len(want))
	got := make([]string, 0, len(mails))
	for i := range mails {
		got = append(got, mails[i].Header.Get("Message-Id"))
	}
	slices.Sort(got)
	slices.Sort(want)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%d mails, want %d:\n%s", len(got), len(want), d)
	}
	return mails
}

// told is a notification as the API shows it.
type told struct {
	Name, Kind, Channel, Status, Detail string
	Parcel, Attempts                    int
	LastError                           string    `json:"last_error"`
	DueAt                               time.Time `json:"due_at"`
	EndedAt                             time.Time `json:"ended_at"`
}

// notifications are those of an order, when the server has seen all that is in its log.
func (s *server) notifications(t testing.TB, order string) []told {
	t.Helper()
	var out struct{ Items []told }
	s.do(t, call{method: http.MethodGet, path: "/v1/orders/" + order + "/notifications?min_cursor=" + s.head(t, "orders/"+order), prefer: "wait=60"}, http.StatusOK).into(t, &out)
	return out.Items
}

// untilTold looks until the notifications of an order are as wanted.
func (s *server) untilTold(t testing.TB, order string, ok func([]told) bool) []told {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		all := s.notifications(t, order)
		if ok(all) {
			return all
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("in vain: %+v\n%s", all, s.stderr.String())
		}
	}
}

func allSent(all []told) bool {
	return len(all) > 0 && !slices.ContainsFunc(all, func(n told) bool { return n.Status != "sent" })
}

// orderOf is the body of an order of a customer with an address.
func orderOf(id, more string) []byte {
	return []byte(`{"id":"` + id + `","customer_id":"c-17","email":"` + id + `@example.org","currency":"EUR","fulfilment":"manual","lines":[` +
		aLine("85123A", 6, "2.55") + `,` + aLine("POST", 1, "4.50") + `]` + more + `}`)
}

func (s *server) place(t testing.TB, id, more string) {
	t.Helper()
	s.do(t, call{method: http.MethodPost, path: "/v1/orders", key: "place-" + id, prefer: "wait=30", body: orderOf(id, more)}, http.StatusCreated)
}

func (s *server) verb(t testing.TB, id, verb, body string) {
	t.Helper()
	s.do(t, call{method: http.MethodPost, path: "/v1/orders/" + id + "/" + verb, key: verb + body + "-" + id, prefer: "wait=30", body: []byte(body)}, http.StatusOK)
}

// endpoint is a webhook of the test.
type endpoint struct {
	*httptest.Server
	mu     sync.Mutex
	bodies map[string][]string // by the event's id
}

func newEndpoint(t *testing.T) *endpoint {
	t.Helper()
	e := &endpoint{bodies: map[string][]string{}}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var event struct{ ID string }
		user, password, _ := r.BasicAuth()
		if err != nil || json.Unmarshal(body, &event) != nil || user != "hook" || password != private || r.Header.Get("Idempotency-Key") != event.ID {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		e.bodies[event.ID] = append(e.bodies[event.ID], r.Header.Get("Content-Type")+" "+string(body))
	}))
	t.Cleanup(e.Close)
	return e
}

// flag names it with a secret.
func (e *endpoint) flag() []string {
	return []string{"--notify-webhook", strings.Replace(e.URL, "http://", "http://hook:"+private+"@", 1) + "/orders"}
}

// got are the ids of the events that came, each as often as it did.
func (e *endpoint) got() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for _, id := range slices.Sorted(maps.Keys(e.bodies)) {
		out = append(out, slices.Repeat([]string{id}, len(e.bodies[id]))...)
	}
	return out
}

// TestNotifications: an order goes its whole way, and another is cancelled, over a restart: by each channel, each kind once.
func TestNotifications(t *testing.T) {
	data, hook := t.TempDir(), newEndpoint(t)
	box, flags := mailbox(t, smtptest.Options{User: "shop", Password: private, Rcpt: func(to string) error {
		if strings.HasPrefix(to, "nobody@") {
			return smtptest.Refuse(550, "no such mailbox")
		}
		return nil
	}})
	flags = append(append(flags, hook.flag()...), "--notify", "log,email,webhook", "--log-level", "info", "--log-format", "json")
	s := serving(t, data, flags...)
	s.place(t, "whole", `,"language":"de-AT"`)
	s.verb(t, "whole", "confirm", `{}`)
	s.place(t, "off", "")
	s.verb(t, "off", "cancel", `{"reason":"sold out"}`)
	s.place(t, "imported", `,"channel":"import"`)
	s.place(t, "old", `,"placed_at":"2020-01-01T00:00:00Z"`)
	s.verb(t, "old", "confirm", `{}`)
	s.place(t, "nobody", "")
	s.do(t, call{method: http.MethodPost, path: "/v1/orders", prefer: "wait=30", body: anOrder("silent")}, http.StatusCreated)
	said := s.process
	s.stop(t)
	s = serving(t, data, flags...)
	s.verb(t, "whole", "pay", `{}`)
	s.verb(t, "whole", "pack", `{}`)
	s.verb(t, "whole", "ship", `{"lines":[{"line":1,"quantity":4}],"carrier":"Post","tracking_number":"T-1"}`)
	s.verb(t, "whole", "ship", `{}`)
	s.verb(t, "whole", "deliver", `{}`)
	s.verb(t, "whole", "return", `{"lines":[{"line":1,"quantity":1}],"reason":"chipped"}`)

	names := []string{"placed", "confirmed", "shipped-1", "shipped-2", "delivered", "refunded-1"}
	want := []string{mailOf("off", "placed"), mailOf("off", "cancelled")}
	for _, n := range names {
		want = append(want, mailOf("whole", n))
	}
	mails := sentOnce(t, box, want...)
	for i := range mails {
		m := &mails[i]
		if m.Header.Get("Message-Id") == mailOf("whole", "shipped-1") {
			if !m.Encrypted || m.To != "whole@example.org" || m.Subject != "Paket 1 Ihrer Bestellung whole ist unterwegs" || !strings.Contains(m.Text, "4 x 85123A") || !strings.Contains(m.HTML, "T-1") {
				t.Errorf("%+v", m)
			}
		}
	}
	all := s.untilTold(t, "whole", allSent)
	if len(all) != 3*len(names) || all[0].Attempts != 1 || all[0].EndedAt.IsZero() {
		t.Errorf("%+v", all)
	}
	// It is a process like any other, and seen as one.
	var i millrace.Instance
	s.do(t, call{method: http.MethodGet, path: "/v1/processes/notifications/instances/order-whole"}, http.StatusOK).into(t, &i)
	if i.Stream != "order-whole" || len(i.Calls) != len(all) || i.Failed != "" {
		t.Errorf("%+v", i)
	}
	if m := scrape(t, s)["millrace_process_calls_total"]; m == nil || m.value < 1 {
		t.Errorf("%+v", m)
	}
	rejected := s.untilTold(t, "nobody", func(all []told) bool { return len(all) == 3 && all[1].Status != "waiting" })
	if n := rejected[1]; n.Channel != "email" || n.Status != "rejected" || !strings.Contains(n.Detail, "550") || strings.Contains(n.Detail, "nobody@") {
		t.Errorf("%+v", rejected)
	}
	for _, id := range []string{"imported", "old"} {
		if all := s.notifications(t, id); len(all) != 0 {
			t.Errorf("%s: %+v", id, all)
		}
	}
	if all := s.untilTold(t, "silent", allSent); len(all) != 2 || all[0].Channel != "log" || all[1].Channel != "webhook" {
		t.Errorf("without an address: %+v", all)
	}
	s.do(t, call{method: http.MethodGet, path: "/v1/orders/none/notifications"}, http.StatusNotFound)
	s.untilTold(t, "off", allSent)
	s.stop(t)

	var events []string
	for id, names := range map[string][]string{"whole": names, "off": {"placed", "cancelled"}, "nobody": {"placed"}, "silent": {"placed"}} {
		for _, n := range names {
			events = append(events, "process/notifications/order-"+id+"/"+n+"/webhook")
		}
	}
	slices.Sort(events)
	if d := cmp.Diff(events, hook.got()); d != "" {
		t.Error(d)
	}
	body := hook.bodies["process/notifications/order-off/cancelled/webhook"][0]
	for _, part := range []string{"application/cloudevents+json", `"specversion":"1.0"`, `"type":"io.millrace.order-notification.v1.cancelled"`, `"subject":"off"`, `"reason":"sold out"`} {
		if !strings.Contains(body, part) {
			t.Errorf("the event lacks %s: %s", part, body)
		}
	}
	logged := said.stderr.String() + s.stderr.String()
	if n := strings.Count(logged, `"msg":"notification"`); n != len(events) {
		t.Errorf("%d lines in the log, want %d", n, len(events))
	}
	for _, secret := range []string{private, "@example.org"} {
		if strings.Contains(logged, secret) {
			t.Errorf("the log has %q", secret)
		}
	}
	isClean(t, data)
}

// TestNotificationsWhenStopped: a thousand orders come while nobody tells. Who then begins again tells each customer once;
// and where there were no notifications ever before, the past is nobody's news.
func TestNotificationsWhenStopped(t *testing.T) {
	const orders, clients = 1000, 20
	data := t.TempDir()
	box, flags := mailbox(t, smtptest.Options{})
	flags = append(flags, "--notify", "email")
	s := serving(t, data)
	s.place(t, "past", "")
	s.stop(t)
	s = serving(t, data, flags...)
	s.place(t, "first", "")
	want := []string{mailOf("first", "placed")}
	sentOnce(t, box, want...)
	s.stop(t)

	s = serving(t, data)
	var placing sync.WaitGroup
	for c := range clients {
		placing.Go(func() {
			for n := range orders / clients {
				id := fmt.Sprintf("o%d-%d", c, n)
				a, err := s.try(t.Context(), call{method: http.MethodPost, path: "/v1/orders", key: id, prefer: "wait=30", body: orderOf(id, "")})
				if err != nil || a.status != http.StatusCreated {
					t.Errorf("%s: %v %v", id, a, err)
				}
			}
		})
	}
	placing.Wait()
	for c := range clients {
		for n := range orders / clients {
			want = append(want, mailOf(fmt.Sprintf("o%d-%d", c, n), "placed"))
		}
	}
	if n := len(box.Mails()); n != 1 {
		t.Errorf("%d mails were sent by a server that sends none", n)
	}
	s.stop(t)
	s = serving(t, data, flags...)
	sentOnce(t, box, slices.Clone(want)...)
	s.untilTold(t, "o0-0", allSent)
	if all := s.notifications(t, "past"); len(all) != 0 {
		t.Errorf("the past is told: %+v", all)
	}
	s.stop(t)
	s = serving(t, data, flags...)
	s.place(t, "last", "")
	sentOnce(t, box, append(want, mailOf("last", "placed"))...)
	s.stop(t)
}

// TestNotificationsWithoutMailServer: a mail server that is down delays mail and nothing else; when it is back, all that
// waited is sent once.
func TestNotificationsWithoutMailServer(t *testing.T) {
	const orders = 30
	data, hook := t.TempDir(), newEndpoint(t)
	box, flags := mailbox(t, smtptest.Options{})
	box.Stop()
	s := serving(t, data, append(append(flags, hook.flag()...), "--notify", "email,webhook")...)
	var want []string
	for n := range orders {
		id := fmt.Sprint("o", n)
		s.place(t, id, "")
		want = append(want, mailOf(id, "placed"))
	}
	for n := range orders {
		all := s.untilTold(t, fmt.Sprint("o", n), func(all []told) bool {
			return len(all) == 2 && all[1].Status == "sent" && all[0].Attempts > 0
		})
		if all[0].Status != "waiting" || !strings.Contains(all[0].LastError, "mail server") || all[1].Channel != "webhook" {
			t.Errorf("%+v", all)
		}
	}
	box.Restart()
	sentOnce(t, box, want...)
	for n := range orders {
		s.untilTold(t, fmt.Sprint("o", n), allSent)
	}
	s.stop(t)
	if got := hook.got(); len(got) != orders || len(slices.Compact(got)) != orders {
		t.Errorf("%d events", len(got))
	}
}

// TestNotificationsAreFacts: documents can be lost, all of them here, and what was told is not told again. That the process
// has made its calls anew shows the control: each became due a second time, later.
func TestNotificationsAreFacts(t *testing.T) {
	const orders = 20
	data := t.TempDir()
	box, flags := mailbox(t, smtptest.Options{})
	flags = append(flags, "--notify", "email")
	s := serving(t, data, flags...)
	var want []string
	for n := range orders {
		id := fmt.Sprint("o", n)
		s.place(t, id, "")
		want = append(want, mailOf(id, "placed"))
	}
	sentOnce(t, box, slices.Clone(want)...)
	before := map[string]time.Time{}
	for n := range orders {
		id := fmt.Sprint("o", n)
		before[id] = s.untilTold(t, id, allSent)[0].DueAt
	}
	s.kill()
	if err := os.RemoveAll(filepath.Join(data, "index")); err != nil {
		t.Fatal(err)
	}
	s = serving(t, data, flags...)
	for id, due := range before {
		if all := s.untilTold(t, id, allSent); len(all) != 1 || !all[0].DueAt.After(due) {
			t.Errorf("%s was due at %s, and after the loss of the documents: %+v", id, due, all)
		}
	}
	s.place(t, "last", "")
	sentOnce(t, box, append(want, mailOf("last", "placed"))...)
	s.stop(t)
	isClean(t, data)
}

// TestNotificationChannelTakenAway: what waits for a channel that is taken out of the settings is given up, and does not come
// when it is back.
func TestNotificationChannelTakenAway(t *testing.T) {
	data := t.TempDir()
	box, flags := mailbox(t, smtptest.Options{})
	box.Stop()
	s := serving(t, data, append(slices.Clone(flags), "--notify", "email")...)
	s.place(t, "o", "")
	s.untilTold(t, "o", func(all []told) bool { return len(all) == 1 && all[0].Attempts > 0 })
	s.stop(t)
	s = serving(t, data, "--notify", "log")
	all := s.untilTold(t, "o", func(all []told) bool { return len(all) == 1 && all[0].Status != "waiting" })
	if all[0].Status != "cancelled" || all[0].Detail == "" {
		t.Errorf("%+v", all)
	}
	s.stop(t)
	box.Restart()
	s = serving(t, data, append(slices.Clone(flags), "--notify", "email")...)
	s.verb(t, "o", "confirm", `{}`)
	sentOnce(t, box, mailOf("o", "confirmed"))
	s.stop(t)
}
