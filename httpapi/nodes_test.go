package httpapi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/httpapi"
)

// owners is what a test says of who owns what.
type owners struct {
	o   httpapi.Ownership
	err error
}

func (n owners) Ownership(context.Context) (httpapi.Ownership, error) { return n.o, n.err }

// The bytes are what scripts read: members, their order, and what is absent.
func TestNodes(t *testing.T) {
	epoch, left := uint64(7), int64(5120)
	tests := []struct {
		name string
		o    httpapi.Ownership
		want string
	}{
		{
			name: "one process",
			o: httpapi.Ownership{Answering: "local", Partitions: 2, Items: []httpapi.NodeStatus{
				{Name: "local", Partitions: []httpapi.OwnedPartition{{Partition: 0}, {Partition: 1}}},
			}},
			want: `{"answering":"local","partitions":2,"items":[{"name":"local","partitions":[{"partition":0},{"partition":1}]}],"unowned":[]}`,
		},
		{
			name: "several, one of which owns nothing, and a partition that is nobody's",
			o: httpapi.Ownership{Answering: "b", Partitions: 2, Unowned: []int{1}, Items: []httpapi.NodeStatus{
				{Name: "a", Partitions: []httpapi.OwnedPartition{{Partition: 0, Epoch: &epoch, LeaseLeft: &left}}}, {Name: "b"},
			}},
			want: `{"answering":"b","partitions":2,"items":[{"name":"a","partitions":[{"partition":0,"epoch":7,"lease_left_ms":5120}]},{"name":"b","partitions":[]}],"unowned":[1]}`,
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, worldOptions{change: func(c *httpapi.Config) { c.Nodes = owners{o: tc.o} }})
			if a := w.want(200, "GET", "/v1/nodes", ""); string(a.body) != tc.want {
				t.Errorf("got  %s\nwant %s", a.body, tc.want)
			}
			w.want(400, "GET", "/v1/nodes?x=1", "")
			w.want(405, "POST", "/v1/nodes", "")
		})
	}
}

// away fails every command as a database does that restarts.
type away struct{ err error }

func (a away) Accept(context.Context, millrace.Command) (*millrace.Receipt, error) { return nil, a.err }

func (a away) AcceptAll(_ context.Context, cs []millrace.Command) []millrace.Accepted {
	out := make([]millrace.Accepted, len(cs))
	for i := range out {
		out[i].Err = a.err
	}
	return out
}

// What passes by itself is worth another try, which a client is told; all else is a fault of the server. Neither tells what
// the error's text holds.
func TestUnavailable(t *testing.T) {
	passes := errors.New("the database at 10.0.0.7 restarts")
	for status, err := range map[int]error{503: fmt.Errorf("accept: %w", passes), 500: errors.New("c-17 is broken")} {
		w := newWorld(t, worldOptions{
			wrap:   func(millrace.Intake) millrace.Intake { return away{err} },
			change: func(c *httpapi.Config) { c.Nodes, c.Unavailable = owners{err: err}, []error{passes} },
		})
		body := `{"id":"1","customer_id":"c-17","currency":"GBP","lines":[{"sku":"a","quantity":1,"unit_price":"1"}]}`
		a := []*answer{
			w.want(status, "GET", "/v1/nodes", ""),
			w.want(status, "POST", "/v1/orders", body),
			w.want(200, "POST", "/v1/commands", `{"stream":"order-1","type":"PlaceOrder","data":`+body+`}`+"\n", asLines...),
		}
		for _, one := range a {
			if text := string(one.body); strings.Contains(text, "10.0.0.7") || strings.Contains(text, "c-17") || !strings.Contains(text, fmt.Sprintf(`"status":%d`, status)) {
				t.Errorf("%s", text)
			}
		}
	}
}

// behind is a store's driver as another node has it: it hears of what was decided when a test wants it to.
type behind struct {
	millrace.Driver
	asked chan struct{} // gets a token from each that is about to wait

	mu    sync.Mutex
	known []millrace.Head
	moved chan struct{}
}

func newBehind(d millrace.Driver) *behind {
	return &behind{Driver: d, asked: make(chan struct{}, 1), known: d.Heads(), moved: make(chan struct{})}
}

func (b *behind) Heads() []millrace.Head {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.known)
}

func (b *behind) Moved() (moved <-chan struct{}, closed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.asked <- struct{}{}:
	default:
	}
	return b.moved, false
}

func (b *behind) hear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known = b.Driver.Heads()
	close(b.moved)
	b.moved = make(chan struct{})
}

func (b *behind) Refresh() time.Duration                        { return time.Hour }
func (b *behind) Resume(context.Context, string) error          { return nil }
func (b *behind) Post(context.Context, millrace.Document) error { return millrace.ErrInvalid }

func (b *behind) PendingOf(ctx context.Context, partition int, category string) iter.Seq2[millrace.AcceptedCommand, error] {
	return millrace.NewStore(b.Driver).PendingOf(ctx, partition, category)
}

func (b *behind) Lookups(ctx context.Context, qs []millrace.Inquiry) []millrace.Finding {
	return millrace.NewStore(b.Driver).Lookups(ctx, qs)
}

func (b *behind) Versions(ctx context.Context, _ int, streams []millrace.Stream) (versions []uint64, err error) {
	for _, s := range streams {
		v, err := b.Version(ctx, s)
		if err != nil {
			return nil, err
		}
		versions = append(versions, v)
	}
	return versions, nil
}

var _ millrace.Shared = (*behind)(nil)

// A cursor that another node has given out is waited for by what is read from the log, as by every read.
func TestMinCursorOfAnotherNode(t *testing.T) {
	var other *behind
	w := newWorld(t, worldOptions{change: func(c *httpapi.Config) {
		other = newBehind(c.Store.Driver())
		c.Store = millrace.NewStore(other)
	}})
	for i, path := range []string{"/v1/orders/%s/events?", "/v1/orders/%s?version=1&", "/v1/commands/%s?"} {
		id := fmt.Sprint("o", i)
		cursor := w.want(201, "POST", "/v1/orders", anOrder(`,"id":"`+id+`"`), wait, "Idempotency-Key: "+id).Header.Get("Millrace-Cursor")
		path = fmt.Sprintf(path, id)
		if a := w.want(503, "GET", path+"min_cursor="+cursor, "", "Prefer: wait=0"); a.json(t)["code"] != "not_caught_up" {
			t.Errorf("%s: %s", path, a.body)
		}
		w.want(200, "GET", strings.TrimRight(path, "?&"), "") // who asks for nothing does not wait
		for len(other.asked) > 0 {
			<-other.asked
		}
		answers := make(chan *answer)
		go func() { answers <- w.do("GET", path, "", "Millrace-Min-Cursor: "+cursor, "Prefer: wait=30") }()
		<-other.asked
		other.hear()
		if a := <-answers; a.StatusCode != 200 {
			t.Errorf("%s, once it was heard of: %d %s", path, a.StatusCode, a.body)
		}
	}
}

// reads is a driver whose streams a test lets fail.
type reads struct {
	millrace.Driver
	fail func(ctx context.Context) error
}

func (r *reads) Events(ctx context.Context, _ millrace.Stream, _ uint64) iter.Seq2[millrace.Recorded, error] {
	return func(yield func(millrace.Recorded, error) bool) { yield(millrace.Recorded{}, r.fail(ctx)) }
}

// An order is decided, and its answer cannot be made: it is 202 then. Whether that is worth an operator's while depends on
// why.
func TestNoRepresentation(t *testing.T) {
	passes := errors.New("the database at 10.0.0.7 restarts")
	reading := make(chan struct{})
	for _, c := range []struct {
		name  string
		fail  func(ctx context.Context) error
		leave bool
		want  string
	}{
		{name: "the store has a fault", fail: func(context.Context) error { return millrace.ErrCorrupt }, want: "level=ERROR"},
		{name: "the database is away", fail: func(context.Context) error { return passes }, want: "level=WARN"},
		{name: "the client has left", leave: true, fail: func(ctx context.Context) error {
			close(reading)
			<-ctx.Done()
			return ctx.Err()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log bytes.Buffer
			w := newWorld(t, worldOptions{change: func(o *httpapi.Config) {
				o.Store = millrace.NewStore(&reads{o.Store.Driver(), c.fail})
				o.Unavailable = []error{passes}
				o.Logger = slog.New(slog.NewTextHandler(&log, nil))
			}})
			if !c.leave {
				w.want(202, "POST", "/v1/orders", anOrder(`,"id":"1"`), wait)
			} else {
				ctx, leave := context.WithCancel(t.Context())
				r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.server.URL+"/v1/orders", strings.NewReader(anOrder(`,"id":"1"`)))
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Content-Type", "application/json")
				r.Header.Set("Prefer", "wait=30")
				go func() { <-reading; leave() }()
				if res, err := http.DefaultClient.Do(r); err == nil {
					_ = res.Body.Close()
					t.Errorf("an answer to a client that has left: %s", res.Status)
				}
			}
			w.server.Close() // waits for what is under way
			if got := log.String(); (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
				t.Errorf("the log says %q", got)
			}
		})
	}
}

// A program that shares no store need not have the route.
func TestNoNodes(t *testing.T) {
	w := newWorld(t, worldOptions{change: func(c *httpapi.Config) { c.Nodes = nil }})
	w.want(404, "GET", "/v1/nodes", "")
}
