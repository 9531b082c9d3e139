package httpapi_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

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

// A program that shares no store need not have the route.
func TestNoNodes(t *testing.T) {
	w := newWorld(t, worldOptions{change: func(c *httpapi.Config) { c.Nodes = nil }})
	w.want(404, "GET", "/v1/nodes", "")
}
