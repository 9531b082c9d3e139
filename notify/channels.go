package notify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/notice"
)

// Log is the channel that tells operators: one line for each notice. The customer's address is not in it.
func Log(log *slog.Logger) Send {
	return func(ctx context.Context, id string, n *notice.Notice) (notice.Result, error) {
		args := []any{
			"kind", n.Kind, "order", n.OrderID, "customer", n.CustomerID, "language", Language(n.Language), "total", n.Total.String(), "id", id,
		}
		if n.Parcel != nil {
			args = append(args, "parcel", n.Parcel.Number)
		}
		if n.Refund.Minor != 0 {
			args = append(args, "refund", n.Refund.String())
		}
		log.InfoContext(ctx, "notification", args...)
		return notice.Result{Status: notice.Sent}, nil
	}
}

// Message is a mail as it is written.
type Message struct {
	Subject, Text, HTML string
	Language            string
}

// Email is the channel that writes mails in the name of a shop, and has them sent.
func Email(w *Writer, shop string, send func(ctx context.Context, id, to string, m *Message) (notice.Result, error)) Send {
	return func(ctx context.Context, id string, n *notice.Notice) (notice.Result, error) {
		m, err := w.Write(n, shop)
		if err != nil {
			return notice.Result{}, err
		}
		return send(ctx, id, n.Email, m)
	}
}

const (
	// webhookTimeout bounds a delivery: whoever takes longer shall answer first and work then.
	webhookTimeout = 15 * time.Second
	// grace is how long a delivery may go on that is on its way when the sender is to stop: one that arrived, and we did not
	// hear of, is sent twice.
	grace = time.Second
	// maxRetryAfter bounds what an endpoint may ask for.
	maxRetryAfter = time.Hour
	// eventSource and eventType name the events of the webhook, as CloudEvents has it.
	eventSource = "/millrace/orders"
	eventType   = "io.millrace.order-notification.v1."
)

// event is a CloudEvent (1.0.2) in the structured form.
type event struct {
	SpecVersion     string         `json:"specversion"`
	ID              string         `json:"id"`
	Source          string         `json:"source"`
	Type            string         `json:"type"`
	Subject         string         `json:"subject"`
	Time            time.Time      `json:"time"`
	DataContentType string         `json:"datacontenttype"`
	Data            *notice.Notice `json:"data"`
}

// finally are the statuses by which an endpoint says that it will never want this notice. By all others it may want it
// later: one that is set up wrongly is set right some day.
var finally = []int{
	http.StatusBadRequest, http.StatusGone, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType,
	http.StatusUnprocessableEntity,
}

// Webhook is the channel that posts notices to a URL, each as a CloudEvent. Redirects are not followed.
func Webhook(to *url.URL) Send {
	client := &http.Client{
		Timeout:       webhookTimeout,
		Transport:     &http.Transport{MaxIdleConnsPerHost: defaultAtOnce, IdleConnTimeout: time.Minute, Proxy: http.ProxyFromEnvironment},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return func(ctx context.Context, id string, n *notice.Notice) (notice.Result, error) {
		body, err := jsonx.Marshal(&event{
			SpecVersion: "1.0", ID: id, Source: eventSource, Type: eventType + string(n.Kind), Subject: n.OrderID, Time: n.At,
			DataContentType: "application/json", Data: n,
		})
		if err != nil {
			return notice.Result{}, err
		}
		ctx, cancel := longer(ctx, grace)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, to.String(), bytes.NewReader(body))
		if err != nil {
			return notice.Result{}, err
		}
		req.Header.Set("Content-Type", "application/cloudevents+json; charset=utf-8")
		req.Header.Set("Idempotency-Key", id)
		res, err := client.Do(req)
		if err != nil {
			var at *url.Error
			if errors.As(err, &at) {
				err = at.Err // the URL may hold a secret
			}
			return notice.Result{}, &notice.UnreachableError{Err: fmt.Errorf("webhook: %w", err)}
		}
		defer res.Body.Close()                                       //nolint:errcheck // it was read
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection is used again
		said := "the endpoint answered " + strconv.Itoa(res.StatusCode)
		switch {
		case res.StatusCode >= 200 && res.StatusCode <= 299:
			return notice.Result{Status: notice.Sent}, nil
		case slices.Contains(finally, res.StatusCode):
			return notice.Result{Status: notice.Rejected, Detail: said}, nil
		}
		return notice.Result{}, &answerError{said: said, after: retryAfter(res.Header.Get("Retry-After"))}
	}
}

// longer is a context that ends a while after another one.
func longer(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			cancel()
		case <-out.Done():
		}
	})
	return out, func() { stop(); cancel() }
}

// answerError is an answer by which the notice is to be sent again.
type answerError struct {
	said  string
	after time.Duration
}

func (e *answerError) Error() string { return e.said }

// RetryAfter is when the endpoint wants it; zero where it does not say.
func (e *answerError) RetryAfter() time.Duration { return e.after }

// retryAfter reads the header in its form in seconds, which is the only one that programs send.
func retryAfter(header string) time.Duration {
	n, err := strconv.Atoi(header)
	if err != nil || n < 0 {
		return 0
	}
	return min(time.Duration(n)*time.Second, maxRetryAfter)
}
