package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/pgstore"
)

// leaseRows are the leases of a shared store, as a test wants them.
type leaseRows struct {
	rows, feed, notify []pgstore.Lease
	members            map[string][]string
	err                error
}

func (l leaseRows) leases(context.Context) ([]ownership, error) {
	all := shares()
	all[0].rows, all[1].rows, all[2].rows = l.rows, l.feed, l.notify
	return all, l.err
}
func (l leaseRows) Members(context.Context) (map[string][]string, error) { return l.members, l.err }
func (l leaseRows) Node() string                                         { return "b" }

func pointer[T any](v T) *T { return &v }

// A lease that is over is nobody's, whoever had it; the node that answers is there even if it owns nothing.
func TestOwnership(t *testing.T) {
	got, err := manyNodes{leaseRows{rows: []pgstore.Lease{
		{Partition: 0, Node: "c", Epoch: 4, Left: 5 * time.Second},
		{Partition: 1, Node: "a", Epoch: 1, Left: time.Second},
		{Partition: 2},
		{Partition: 3, Node: "d", Epoch: 9, Left: -time.Second},
		{Partition: 4, Node: "c", Epoch: 2, Left: 5 * time.Second},
	}}}.Ownership(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := httpapi.Ownership{
		Answering: "b", Partitions: 5, Unowned: []int{2, 3},
		Items: []httpapi.NodeStatus{
			{Name: "a", Partitions: []httpapi.OwnedPartition{{Partition: 1, Epoch: pointer(uint64(1)), LeaseLeft: pointer(int64(1000))}}},
			{Name: "b"},
			{Name: "c", Partitions: []httpapi.OwnedPartition{
				{Partition: 0, Epoch: pointer(uint64(4)), LeaseLeft: pointer(int64(5000))},
				{Partition: 4, Epoch: pointer(uint64(2)), LeaseLeft: pointer(int64(5000))},
			}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err = (manyNodes{leaseRows{err: millrace.ErrUnavailable}}).Ownership(t.Context()); !errors.Is(err, millrace.ErrUnavailable) {
		t.Errorf("a database that is away is %v", err)
	}
	got, err = oneNode(2).Ownership(t.Context())
	both := []httpapi.OwnedPartition{{Partition: 0}, {Partition: 1}}
	want = httpapi.Ownership{Answering: "local", Partitions: 2, Items: []httpapi.NodeStatus{
		{Name: "local", Partitions: both, Roles: []string{"intake", "command", "feed", "notify"}, Feed: both, Notify: both},
	}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

// away is the URL of a server that is not there any more.
func away(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.NotFoundHandler())
	s.Close()
	return s.URL
}

// The table is for people: partitions in short, and who is missing.
func TestNodesCommand(t *testing.T) {
	o, err := manyNodes{leaseRows{rows: []pgstore.Lease{
		{Partition: 0, Node: "a", Epoch: 3, Left: 5900 * time.Millisecond},
		{Partition: 1, Node: "a", Epoch: 1, Left: 5120 * time.Millisecond},
		{Partition: 2, Node: "a", Epoch: 8, Left: 5900 * time.Millisecond},
		{Partition: 3, Node: "c", Epoch: 2, Left: time.Second},
		{Partition: 4, Node: "a", Epoch: 8, Left: 5900 * time.Millisecond},
		{Partition: 5},
	}, feed: []pgstore.Lease{
		{Partition: 0, Node: "b", Epoch: 1, Left: time.Second}, {Partition: 1, Node: "b", Epoch: 1, Left: time.Second}, {Partition: 2},
	}, notify: []pgstore.Lease{{Partition: 0}, {Partition: 1}}, members: map[string][]string{
		"a": {"command"}, "b": {"feed", "intake"},
	}}}.Ownership(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	body, err := jsonx.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/v1/nodes" {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		_, _ = w.Write(body)
	}))
	t.Cleanup(s.Close)
	want := `NODE      OWNS    PARTITIONS  EPOCH  LEASE LEFT  FEED  NOTIFY  ROLES
a         4 of 6  0-2,4       1-8    5.1s        -     -       command
b *       0 of 6  -           -      -           0-1   -       intake,feed
c         1 of 6  3           2      1.0s        -     -       -
(nobody)  1 of 6  5           -      -           2     -       -
`
	stdout, stderr, code := runs(t, "nodes", "--server", s.URL)
	if diff := cmp.Diff(want, stdout); diff != "" || code != 0 {
		t.Errorf("exit code %d, %s\n%s", code, stderr, diff)
	}
	stdout, stderr, code = runs(t, "nodes", "--server", s.URL, "--output", "json")
	if stdout != string(body)+"\n" || code != 0 {
		t.Errorf("exit code %d, %s\n%s", code, stderr, stdout)
	}
	stdout, stderr, code = runs(t, "nodes", "--server", away(t), "--server", s.URL, "--retry-for", "0s")
	if stdout != want || code != 0 {
		t.Errorf("the first of two servers is away: exit code %d, %s\n%s", code, stderr, stdout)
	}
	s.Close()
	if stdout, _, code = runs(t, "nodes", "--server", s.URL, "--retry-for", "0s"); stdout != "" || code != client.ExitUnavailable {
		t.Errorf("exit code %d of a server that is away: %q", code, stdout)
	}
}
