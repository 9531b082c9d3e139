package main

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/api"
	"github.com/millrace-io/millrace/internal/client"
)

// TestHandOverWaitsForCalls: a partition stays until the calls of it have ended, and none begins meanwhile; but one that hangs
// does not keep it for long.
func TestHandOverWaitsForCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnderway()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := u.begin(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a call began in a partition that nobody serves: %v", err)
		}
		leaves := func() time.Duration {
			began := time.Now()
			u.leave(1)
			return time.Since(began)
		}
		u.serve(1)
		if took := leaves(); took != 0 {
			t.Errorf("it waits %s for nothing", took)
		}
		for _, c := range []struct{ call, want time.Duration }{{time.Second, time.Second}, {time.Hour, handOver}} {
			u.serve(1)
			u.serve(2)
			if err := errors.Join(u.begin(t.Context(), 1), u.begin(t.Context(), 2)); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				<-time.After(c.call)
				u.end(1)
			}()
			if took := leaves(); took != c.want {
				t.Errorf("with a call that takes %s it stays %s, want %s", c.call, took, c.want)
			}
			short, stop := context.WithTimeout(t.Context(), time.Second)
			if err := u.begin(short, 1); err == nil {
				t.Error("a call began in a partition that was left")
			}
			stop()
			<-ended
			u.end(2)
		}
	})
}

// TestNotificationSettings: what is wrong with them is said by name, and without what they hold.
func TestNotificationSettings(t *testing.T) {
	mail, hook := "smtp://shop:"+private+"@mail.example.org?from=shop@example.org", "https://hook:"+private+"@example.org/"+private
	for name, c := range map[string]struct {
		o    serveOptions
		want string // of the fault; empty where there is none
	}{
		"nothing":                      {serveOptions{}, ""},
		"none":                         {serveOptions{notify: []string{"none"}}, ""},
		"none and something":           {serveOptions{notify: []string{"none", "log"}}, "notify"},
		"all":                          {serveOptions{notify: []string{"log", "email", "webhook"}, smtpURL: mail, notifyWebhook: hook}, ""},
		"a server that nobody uses":    {serveOptions{smtpURL: mail}, ""},
		"mail without a server":        {serveOptions{notify: []string{"email"}}, "notify"},
		"a webhook without an address": {serveOptions{notify: []string{"webhook"}}, "notify"},
		"another channel":              {serveOptions{notify: []string{"hunter2"}}, "notify"},
		"encrypted from the start":     {serveOptions{smtpURL: "smtps://mail.example.org:465?from=Shop+<shop@example.org>"}, ""},
		"not encrypted, here":          {serveOptions{smtpURL: "smtp://localhost:25?from=shop@example.org&tls=none"}, ""},
		"not encrypted, elsewhere":     {serveOptions{smtpURL: "smtp://mail.example.org?from=shop@example.org&tls=none"}, "smtp-url"},
		"encrypted and not":            {serveOptions{smtpURL: "smtps://localhost?from=shop@example.org&tls=none"}, "smtp-url"},
		"no sender":                    {serveOptions{smtpURL: "smtp://shop:" + private + "@mail.example.org"}, "smtp-url"},
		"no URL":                       {serveOptions{smtpURL: "smtp://shop:" + private + "%@mail.example.org"}, "smtp-url"},
		"another scheme":               {serveOptions{smtpURL: "http://shop:hunter2@mail.example.org?from=a@example.org"}, "smtp-url"},
		"another parameter":            {serveOptions{smtpURL: mail + "&password=hunter2"}, "smtp-url"},
		"a webhook in the clear":       {serveOptions{notifyWebhook: "http://example.org/hunter2"}, "notify-webhook"},
		"the same, on purpose":         {serveOptions{notifyWebhook: "http://example.org/hunter2", insecure: true}, ""},
		"a webhook on this machine":    {serveOptions{notifyWebhook: "http://127.0.0.1:8081/hunter2"}, ""},
		"a webhook that is none":       {serveOptions{notifyWebhook: "hunter2"}, "notify-webhook"},
		"a webhook that is no URL":     {serveOptions{notifyWebhook: "https://hunter2:hunter2%@"}, "notify-webhook"},
	} {
		channels, err := c.o.notifications(quietLog())
		if (err == nil) != (c.want == "") || err != nil && (!strings.HasPrefix(err.Error(), "--"+c.want+": ") || client.ExitCode(err) != client.ExitUsage || strings.Contains(err.Error(), private)) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "all" && len(channels) != 3 {
			t.Errorf("%d channels", len(channels))
		}
	}
	demo := serveOptions{demo: true}
	if channels, err := demo.notifications(quietLog()); err != nil || len(channels) != 1 || channels["log"] == nil {
		t.Errorf("the demo tells by %v: %v", channels, err)
	}
}

// TestShownCalls: what the API shows of a call in each of its states, by the names that the document has.
func TestShownCalls(t *testing.T) {
	var doc struct {
		Components struct {
			Schemas map[string]struct {
				Required   []string
				Properties map[string]struct{ Enum []string }
			}
		}
	}
	if err := yaml.Unmarshal(api.OpenAPI, &doc); err != nil {
		t.Fatal(err)
	}
	schema := doc.Components.Schemas["Notification"]
	at := time.Date(2026, 3, 9, 22, 30, 0, 0, time.UTC)
	request := `{"kind":"shipped","channel":"email","at":"2026-03-09T22:30:00Z","order_id":"1","currency":"EUR","total":{"amount":"1.00","currency":"EUR"},"parcel":{"number":2,"last":true}}`
	base := millrace.InstanceCall{Name: "shipped-2/email", Request: []byte(request), BeganAt: at}
	waits, failed, sent, rejected, cancelled, late := base, base, base, base, base, base
	failed.Attempts, failed.Error, failed.NextAt = 3, "away", at
	sent.DoneAt, sent.Result = at, []byte(`{"status":"sent"}`)
	rejected.DoneAt, rejected.Result, rejected.Attempts = at, []byte(`{"status":"rejected","detail":"550"}`), 1
	cancelled.CancelledAt = at
	late.CancelledAt, late.DoneAt, late.Result = at, at, []byte(`{"status":"sent"}`)
	seen := map[string]bool{}
	for _, c := range []struct {
		call     millrace.InstanceCall
		status   string
		attempts float64
	}{{waits, "waiting", 0}, {failed, "waiting", 3}, {sent, "sent", 1}, {rejected, "rejected", 2}, {cancelled, "cancelled", 0}, {late, "sent", 1}} {
		shown, err := showCall(&c.call)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(shown)
		var got map[string]any
		if err = errors.Join(err, json.Unmarshal(text, &got)); err != nil {
			t.Fatal(err)
		}
		if got["status"] != c.status || got["attempts"] != c.attempts || got["parcel"] != 2.0 {
			t.Errorf("%s, want %s after %v", text, c.status, c.attempts)
		}
		for name := range got {
			if _, ok := schema.Properties[name]; !ok {
				t.Errorf("the document has no %s", name)
			}
			seen[name] = true
		}
		for _, name := range schema.Required {
			if got[name] == nil {
				t.Errorf("%s lacks %s", text, name)
			}
		}
		if !slices.Contains(schema.Properties["status"].Enum, c.status) {
			t.Errorf("the document has no status %s", c.status)
		}
	}
	if len(seen) != len(schema.Properties) {
		t.Errorf("the document has %d members, and %d were shown", len(schema.Properties), len(seen))
	}
	bad := base
	bad.Request = []byte(`{"kind":`)
	if _, err := showCall(&bad); err == nil {
		t.Error("a request that cannot be read is shown")
	}
}
