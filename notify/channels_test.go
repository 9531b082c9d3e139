package notify_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/notice"
	"github.com/millrace-io/millrace/notify"
)

// TestLog: a line has what operators look for, and not the address.
func TestLog(t *testing.T) {
	var out bytes.Buffer
	send := notify.Log(slog.New(slog.NewJSONHandler(&out, nil)))
	for _, k := range []notice.Kind{notice.Shipped, notice.Refunded} {
		if r, err := send(t.Context(), "the/id", aNotice(t, k)); err != nil || r.Status != notice.Sent {
			t.Errorf("%+v %v", r, err)
		}
	}
	for _, want := range []string{`"msg":"notification","kind":"shipped","order":"1001","customer":"c-17","language":"en","total":"1234.50 EUR","id":"the/id","parcel":2`, `"refund":"24.58 EUR"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "@") {
		t.Errorf("the log has an address:\n%s", out.String())
	}
}

// TestEmail: the mail that is written is the one that is sent, to the order's address.
func TestEmail(t *testing.T) {
	w, err := notify.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	want, err := w.Write(aNotice(t, notice.Placed), "S")
	if err != nil {
		t.Fatal(err)
	}
	send := notify.Email(w, "S", func(_ context.Context, id, to string, m *notify.Message) (notice.Result, error) {
		if d := cmp.Diff(want, m); d != "" || id != "the/id" || to != "ann@example.org" {
			t.Errorf("%s to %s: %s", id, to, d)
		}
		return notice.Result{Status: notice.Sent}, nil
	})
	if r, err := send(t.Context(), "the/id", aNotice(t, notice.Placed)); err != nil || r.Status != notice.Sent {
		t.Errorf("%+v %v", r, err)
	}
	if _, err := send(t.Context(), "the/id", &notice.Notice{Kind: "lost"}); err == nil {
		t.Error("a notice of an unknown kind was sent")
	}
}

// TestWebhookStopped: a delivery that is on its way when we are to stop ends well where the endpoint answers soon, and is given
// up where it does not.
func TestWebhookStopped(t *testing.T) {
	inside, gate := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		inside <- struct{}{}
		if r.Header.Get("Idempotency-Key") == "hangs" {
			<-gate
		}
	}))
	defer server.Close()
	defer close(gate)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	send := notify.Webhook(u)
	for id, ok := range map[string]bool{"answers": true, "hangs": false} {
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-inside; cancel() }()
		if r, err := send(ctx, id, aNotice(t, notice.Placed)); (err == nil && r.Status == notice.Sent) != ok {
			t.Errorf("%s: %+v %v", id, r, err)
		}
		cancel()
	}
}

// TestWebhook: what is posted, and what each answer means.
func TestWebhook(t *testing.T) {
	n := aNotice(t, notice.Shipped)
	data, err := jsonx.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	status, after := 0, ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		want := `{"specversion":"1.0","id":"the/id","source":"/millrace/orders","type":"io.millrace.order-notification.v1.shipped","subject":"1001",` +
			`"time":"2026-03-09T22:30:00Z","datacontenttype":"application/json","data":` + string(data) + `}`
		if string(body) != want || !json.Valid(body) || r.Header.Get("Content-Type") != "application/cloudevents+json; charset=utf-8" || r.Header.Get("Idempotency-Key") != "the/id" || r.Method != http.MethodPost {
			t.Errorf("%s %v\n%s\nwant\n%s", r.Method, r.Header, body, want)
		}
		if after != "" {
			w.Header().Set("Retry-After", after)
		}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
	}))
	defer server.Close()
	u, err := url.Parse(server.URL + "/s3cret?token=s3cret")
	if err != nil {
		t.Fatal(err)
	}
	send := notify.Webhook(u)
	for _, c := range []struct {
		status int
		after  string
		want   string
		wait   time.Duration
	}{
		{200, "", notice.Sent, 0}, {202, "", notice.Sent, 0}, {204, "", notice.Sent, 0},
		{400, "", notice.Rejected, 0}, {410, "", notice.Rejected, 0}, {422, "", notice.Rejected, 0},
		{301, "", "", 0}, {401, "", "", 0}, {404, "", "", 0}, {500, "", "", 0}, {429, "7", "", 7 * time.Second}, {503, "86400", "", time.Hour}, {503, "soon", "", 0}, {503, "-1", "", 0},
	} {
		status, after = c.status, c.after
		r, err := send(t.Context(), "the/id", n)
		if r.Status != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%d: %+v %v", c.status, r, err)
		}
		var says interface{ RetryAfter() time.Duration }
		var away *notice.UnreachableError
		if err != nil && (!errors.As(err, &says) || says.RetryAfter() != c.wait || errors.As(err, &away)) {
			t.Errorf("%d, Retry-After %q: %v", c.status, c.after, err)
		}
	}
	server.Close()
	var away *notice.UnreachableError
	if r, err := send(t.Context(), "the/id", n); !errors.As(err, &away) || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("%+v %v", r, err)
	}
}
