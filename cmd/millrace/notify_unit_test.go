package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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
	mail, hook := "smtp://shop:hunter2@mail.example.org?from=shop@example.org", "https://hook:hunter2@example.org/hunter2"
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
		"no sender":                    {serveOptions{smtpURL: "smtp://shop:hunter2@mail.example.org"}, "smtp-url"},
		"no URL":                       {serveOptions{smtpURL: "smtp://shop:hunter2%@mail.example.org"}, "smtp-url"},
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
