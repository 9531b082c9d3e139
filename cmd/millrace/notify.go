package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	netmail "net/mail"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/notice"
	"github.com/millrace-io/millrace/notify"
	processes "github.com/millrace-io/millrace/process"
	"github.com/millrace-io/millrace/smtp"
)

const (
	// notifyCalls is how many notifications a worker has under way. Nearly all wait for a place in their channel, and those of
	// a channel that hangs must not take the places of the others.
	notifyCalls = 4096
	// recordTime bounds the recording of a notification that was sent. It goes on when the node is told to stop.
	recordTime = 10 * time.Second
	// handOver is how long a partition stays with this node for notifications that are on their way when it is to go to
	// another one, which would send them again: a little more than a mail takes that nothing holds up.
	handOver = 1500 * time.Millisecond
	// noChannel says that there are no notifications, where a file or the environment says otherwise.
	noChannel = "none"
)

// notifications are the channels of the settings, each with its way out. log is for the channel of that name.
func (o *serveOptions) notifications(log *slog.Logger) (map[notice.Channel]notify.Send, error) {
	out := map[notice.Channel]notify.Send{}
	names := o.notify
	if len(names) == 0 && o.demo {
		names = []string{string(notice.Log)}
	}
	mails, err := o.mails()
	if err != nil {
		return nil, err
	}
	hook, err := o.webhook()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		switch c := notice.Channel(name); {
		case name == noChannel && len(names) == 1:
		case c == notice.Log:
			out[c] = notify.Log(log)
		case c == notice.Email && mails != nil:
			out[c] = mails
		case c == notice.Email:
			return nil, badSetting("notify", "email needs a mail server: name it by --smtp-url")
		case c == notice.Webhook && hook != nil:
			out[c] = notify.Webhook(hook)
		case c == notice.Webhook:
			return nil, badSetting("notify", "webhook needs an address: name it by --notify-webhook")
		default:
			return nil, badSetting("notify", "must be none, or some of log, email and webhook")
		}
	}
	return out, nil
}

// mails is the way out by the mail server of the settings, or nil. No fault repeats the URL, which holds a password.
func (o *serveOptions) mails() (notify.Send, error) {
	if o.smtpURL == "" {
		return nil, nil //nolint:nilnil // as said
	}
	u, err := url.Parse(o.smtpURL)
	if err != nil || u.Hostname() == "" || (u.Scheme != "smtp" && u.Scheme != "smtps") || strings.Trim(u.Path, "/") != "" {
		return nil, badSetting("smtp-url", "must be smtp://user:password@host:587?from=address, or smtps://…")
	}
	q := u.Query()
	for name := range q {
		if name != "from" && name != "tls" {
			return nil, badSetting("smtp-url", "knows the parameters from and tls only")
		}
	}
	from, err := netmail.ParseAddress(q.Get("from"))
	if err != nil {
		return nil, badSetting("smtp-url", "needs the sender's address as the parameter from")
	}
	so := smtp.Options{Host: u.Hostname(), From: *from, User: u.User.Username()}
	so.Password, _ = u.User.Password()
	switch tls := q.Get("tls"); {
	case u.Scheme == "smtps" && tls == "":
		so.Encryption = smtp.TLS
	case u.Scheme == "smtp" && tls == "none":
		so.Encryption = smtp.None
	case tls != "":
		return nil, badSetting("smtp-url", "tls can only be none, and not for smtps")
	}
	if port := u.Port(); port != "" {
		if so.Port, err = strconv.Atoi(port); err != nil {
			return nil, badSetting("smtp-url", "has a port that is no number")
		}
	}
	s, err := smtp.New(so)
	if err != nil {
		return nil, badSetting("smtp-url", "%w", err)
	}
	w, err := notify.NewWriter()
	if err != nil {
		return nil, err
	}
	shop := from.Name
	if shop == "" {
		_, shop, _ = strings.Cut(from.Address, "@")
	}
	return notify.Email(w, shop, func(ctx context.Context, id, to string, m *notify.Message) (notice.Result, error) {
		return s.Send(ctx, &smtp.Mail{ID: id, To: to, Subject: m.Subject, Text: m.Text, HTML: m.HTML, Language: m.Language})
	}), nil
}

// webhook is the endpoint of the settings, or nil. No fault repeats it: such addresses are secrets.
func (o *serveOptions) webhook() (*url.URL, error) {
	if o.notifyWebhook == "" {
		return nil, nil //nolint:nilnil // as said
	}
	u, err := url.Parse(o.notifyWebhook)
	switch {
	case err != nil || u.Hostname() == "" || (u.Scheme != "http" && u.Scheme != "https"):
		return nil, badSetting("notify-webhook", "must be the URL of an endpoint, as https://…")
	case u.Scheme == "http" && !o.insecure && loopback(net.JoinHostPort(u.Hostname(), "80")) != nil:
		return nil, badSetting("notify-webhook", "must begin with https:// where it is on another machine, or say --insecure")
	}
	return u, nil
}

// notifier runs the process of notifications.
type notifier struct {
	n          *node
	dispatcher *notify.Dispatcher
	channels   []notice.Channel
	// began is when this node began to be. What it accepts is accepted later.
	began time.Time
}

func newNotifier(n *node, channels map[notice.Channel]notify.Send) *notifier {
	t := &notifier{n: n, dispatcher: notify.New(channels, nil), began: time.Now().UTC()}
	for _, c := range notice.Channels() {
		if channels[c] != nil {
			t.channels = append(t.channels, c)
		}
	}
	return t
}

// run tells customers until ctx ends.
func (t *notifier) run(ctx context.Context) error {
	since, err := t.since(ctx)
	if err != nil || ctx.Err() != nil {
		return err
	}
	p, err := order.Notifications(order.NotificationOptions{Channels: t.channels, Since: since}).Manager()
	if err != nil {
		return err
	}
	m := processes.New(t.n.store, t.n.registry, t.n.processor, p, &processes.Options{Call: t.call, Calls: notifyCalls, Observer: t.n.metrics, Logger: t.n.log})
	return t.n.followAs(ctx, m.Consumer(), roleNotify)
}

// since is when customers began to be told in this store. It is a fact, which the first node to ask makes: were it in a
// document, and that lost, all customers of the store were told again of all that ever was.
func (t *notifier) since(ctx context.Context) (time.Time, error) {
	for {
		body, err := t.n.fact(ctx, order.NotificationsBegunID)
		if b, ok := body.(*order.BeginNotifications); ok {
			return b.Since, nil
		}
		if err == nil {
			return time.Time{}, fmt.Errorf("%w: command %s is not what it should be", millrace.ErrCorrupt, order.NotificationsBegunID)
		}
		if errors.Is(err, millrace.ErrNotFound) {
			err = t.n.accept(ctx, millrace.Command{
				ID: order.NotificationsBegunID, Stream: order.NotificationsBegunStream, Body: &order.BeginNotifications{Since: t.began},
				Source: "process " + order.ProcessNotifications,
			})
		}
		if err == nil || errors.Is(err, millrace.ErrKeyReused) { // another node was first
			continue
		}
		if ctx.Err() != nil || errors.Is(err, millrace.ErrClosed) {
			return time.Time{}, nil
		}
		if !passing(err) {
			return time.Time{}, err
		}
		t.n.log.Warn("notifications do not begin yet", "error", err)
		pause(ctx, followAgain)
	}
}

// passing says whether an error of the store or of the intake passes by itself.
func passing(err error) bool {
	var full *millrace.OverloadError
	return millrace.IsTransient(err) || errors.Is(err, millrace.ErrFull) || errors.Is(err, millrace.ErrUnavailable) || errors.As(err, &full)
}

// pause waits a little, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// call sends a notification, unless the log has that it was sent. Documents can be lost with the newest of them, and the
// process then makes its calls again; facts are not lost.
func (t *notifier) call(ctx context.Context, c *millrace.CallRequest) ([]byte, error) {
	done, err := t.n.calling(ctx, roleNotify, c.Stream)
	if err != nil {
		return nil, err
	}
	defer done()
	r, err := t.recorded(ctx, c.ID)
	if errors.Is(err, millrace.ErrNotFound) {
		if r, err = t.dispatcher.Call(ctx, c); err == nil {
			t.record(ctx, c, &r)
		}
	}
	if err != nil {
		return nil, err
	}
	return jsonx.Marshal(r)
}

// recorded is what became of a notification. Errors: [millrace.ErrNotFound].
func (t *notifier) recorded(ctx context.Context, id string) (r notice.Result, err error) {
	body, err := t.n.fact(ctx, id)
	if err != nil {
		return r, err
	}
	b, ok := body.(*order.RecordNotification)
	if !ok {
		return r, fmt.Errorf("%w: command %s is not what it should be", millrace.ErrCorrupt, id)
	}
	return notice.Result{Status: b.Status, Detail: b.Detail}, nil
}

// record makes a fact of what became of a notification. What was sent is sent: it goes on when ctx ends, and where the store
// takes nothing for long, the document alone has it.
func (t *notifier) record(ctx context.Context, c *millrace.CallRequest, r *notice.Result) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	body := &order.RecordNotification{Name: c.Name, Status: r.Status, Detail: r.Detail}
	for {
		err := t.n.keepFact(ctx, c, order.NotificationStream(c.Stream.ID()), body)
		if err == nil || errors.Is(err, millrace.ErrKeyReused) {
			return
		}
		if ctx.Err() != nil || !passing(err) {
			t.n.log.Error("a notification was sent and could not be recorded", "id", c.ID, "error", err)
			return
		}
		pause(ctx, followAgain)
	}
}

// shownCall is a notification as the API shows it.
type shownCall struct {
	Name      string         `json:"name"`
	Kind      notice.Kind    `json:"kind"`
	Channel   notice.Channel `json:"channel"`
	Parcel    int            `json:"parcel,omitzero"`
	Status    string         `json:"status"`
	Detail    string         `json:"detail,omitempty"`
	Attempts  int            `json:"attempts"`
	LastError string         `json:"last_error,omitempty"`
	DueAt     time.Time      `json:"due_at"`
	NextAt    time.Time      `json:"next_attempt_at,omitzero"`
	EndedAt   time.Time      `json:"ended_at,omitzero"`
}

// showCall turns a call of the process into what the API shows.
func showCall(c *millrace.InstanceCall) (any, error) {
	var n notice.Notice
	if err := jsonx.Unmarshal(c.Request, &n); err != nil {
		return nil, err
	}
	s := shownCall{
		Name: c.Name, Kind: n.Kind, Channel: n.Channel, Status: "waiting", Attempts: c.Attempts, LastError: c.Error,
		DueAt: c.BeganAt, NextAt: c.NextAt,
	}
	if n.Parcel != nil {
		s.Parcel = n.Parcel.Number
	}
	switch {
	case !c.DoneAt.IsZero():
		var r notice.Result
		if err := jsonx.Unmarshal(c.Result, &r); err != nil {
			return nil, err
		}
		s.Status, s.Detail, s.EndedAt = r.Status, r.Detail, c.DoneAt
		s.Attempts++ // the one that had an answer
	case !c.CancelledAt.IsZero():
		s.Status, s.EndedAt = notice.Withdrawn, c.CancelledAt
	}
	return &s, nil
}

// underway are the calls that this node makes for partitions of a store that nodes share. A partition goes to another node
// when those of it have ended: that one finds in the log what they came to.
type underway struct {
	mu     sync.Mutex
	served map[int]bool
	calls  map[int]int
	moved  chan struct{} // closed and replaced when anything changes
}

func newUnderway() *underway {
	return &underway{served: map[int]bool{}, calls: map[int]int{}, moved: make(chan struct{})}
}

// change changes something, and wakes up who waits for that.
func (u *underway) change(do func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	do()
	close(u.moved)
	u.moved = make(chan struct{})
}

// until waits for a condition; mu is held while it is looked at. It gives ctx's error.
func (u *underway) until(ctx context.Context, ok func() bool) error {
	for {
		u.mu.Lock()
		is, moved := ok(), u.moved
		u.mu.Unlock()
		if is {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// begin begins a call when this node serves the partition.
func (u *underway) begin(ctx context.Context, partition int) error {
	return u.until(ctx, func() bool {
		if u.served[partition] {
			u.calls[partition]++
		}
		return u.served[partition]
	})
}

func (u *underway) end(partition int) { u.change(func() { u.calls[partition]-- }) }

// serve says that this node serves a partition.
func (u *underway) serve(partition int) { u.change(func() { u.served[partition] = true }) }

// leave says that it does so no more, and waits for the calls that are under way, though not for long.
func (u *underway) leave(partition int) {
	u.change(func() { u.served[partition] = false })
	ctx, cancel := context.WithTimeout(context.Background(), handOver)
	defer cancel()
	_ = u.until(ctx, func() bool { return u.calls[partition] == 0 }) // those that take longer may be made twice
}
