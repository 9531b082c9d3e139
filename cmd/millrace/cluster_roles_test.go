//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/internal/smtptest"
)

// backstage is the line by which a node without an API says its address.
const backstage = `(?m)^millrace is ready: (admin) (http://\S+) store postgres node \S+ roles \S+$`

// troupe is nodes with roles on one database.
type troupe struct {
	t     *testing.T
	flags []string
}

func (r *troupe) start(name, roles string) *server {
	r.t.Helper()
	line := backstage
	args := []string{"serve", "--node", name, "--roles", roles, "--admin", "127.0.0.1:0", "--log-level", "warn", "--log-format", "json"}
	if strings.Contains(roles, roleIntake) {
		line = `(?m)^millrace is ready: (http://\S+) admin (http://\S+) store postgres node \S+ roles \S+$`
		args = append(args, "--http", "127.0.0.1:0")
	}
	s, err := launchServer(r.t, binary(r.t), line, append(args, r.flags...)...)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// owned are how many partitions each node has in each role, as a node with an API tells: "c1 command" has 8.
func owned(t *testing.T, s *server) (map[string]int, httpapi.Ownership) {
	t.Helper()
	var o httpapi.Ownership
	s.get(t, "/v1/nodes").into(t, &o)
	out := map[string]int{}
	for _, n := range o.Items {
		for role, of := range map[string][]httpapi.OwnedPartition{roleCommand: n.Partitions, roleFeed: n.Feed, roleNotify: n.Notify} {
			if len(of) > 0 {
				out[n.Name+" "+role] = len(of)
			}
		}
	}
	return out, o
}

// untilOwned waits until the nodes own so many partitions each.
func untilOwned(t *testing.T, s *server, want map[string]int) httpapi.Ownership {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), clusterPatience)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		got, o := owned(t, s)
		if fmt.Sprint(got) == fmt.Sprint(want) { // maps print in order
			return o
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("owned are %v, want %v", got, want)
		}
	}
}

// accepts places orders that nobody need decide.
func accepts(t *testing.T, s *server, name string, n int) (ids []string) {
	t.Helper()
	for i := range n {
		id := fmt.Sprintf("%s-%d", name, i)
		s.do(t, call{method: http.MethodPost, path: "/v1/orders", key: id, body: orderOf(id, "")}, http.StatusAccepted)
		ids = append(ids, id)
	}
	return ids
}

// decidedOnce waits until orders are decided, each once.
func decidedOnce(t *testing.T, s *server, ids []string) {
	t.Helper()
	for _, id := range ids {
		a := s.do(t, call{method: http.MethodPost, path: "/v1/orders", key: id, body: orderOf(id, ""), prefer: "wait=60"}, http.StatusCreated)
		if st := s.command(t, id); !a.replayed() || st.State != "decided" || st.Version != 1 || st.Events != 1 {
			t.Fatalf("%s: %+v", id, st)
		}
	}
}

func seen(t *testing.T, s *server, id string) {
	t.Helper()
	s.do(t, call{method: http.MethodGet, path: "/v1/orders/" + id + "?min_cursor=" + s.head(t, "orders/"+id), prefer: "wait=60"}, http.StatusOK)
}

// saysReady wants a node that is ready all the same to say what nobody does.
func saysReady(t *testing.T, s *server, what string) {
	t.Helper()
	if a := s.ops(t, "/readyz"); a.status != http.StatusOK || !strings.Contains(string(a.body), what) {
		t.Errorf("%s: it does not say %q", a, what)
	}
}

// TestClusterRoles: nodes with one role each. What nobody does waits, visibly, and nothing else does; it is done when somebody
// comes, once. Two nodes that decide share the partitions, whoever has the others. The nodes that follow, tell or decide are
// killed, one role after the other.
func TestClusterRoles(t *testing.T) {
	if testing.Short() {
		t.Skip("a database and several processes, and -short is set")
	}
	t.Parallel()
	db := pgtest.Start(t, pgtest.Options{})
	box := smtptest.Start(t, smtptest.Options{Plain: true})
	r := &troupe{t: t, flags: []string{
		"--store", db.DSN("postgres"), "--notify", "email",
		"--smtp-url", "smtp://" + box.Host() + ":" + box.Port() + "?tls=none&from=shop@example.org",
	}}
	var mails []string
	mailsOf := func(ids []string) {
		for _, id := range ids {
			mails = append(mails, mailOf(id, "placed"))
		}
	}

	// Nobody decides.
	api := r.start("i", "intake")
	kept := accepts(t, api, "kept", 60)
	mailsOf(kept)
	saysReady(t, api, "command: commands are kept and not decided: 16 partitions have no owner")
	if m := string(api.ops(t, "/metrics").body); !strings.Contains(m, `millrace_partitions_unowned{role="command"} 16`) {
		t.Error("the metrics do not say that nobody decides")
	}
	if o := untilOwned(t, api, map[string]int{}); len(o.Items) != 1 || !slices.Equal(o.Items[0].Roles, []string{roleIntake}) || len(o.Unowned) != 16 || len(o.UnownedFeed) != 16 {
		t.Errorf("%+v", o)
	}
	if st := api.command(t, kept[7]); st.State != "accepted" {
		t.Errorf("%+v", st)
	}
	// Somebody does, and nobody follows.
	c1 := r.start("c1", "command")
	decidedOnce(t, api, kept)
	api.do(t, call{method: http.MethodGet, path: "/v1/orders/" + kept[7]}, http.StatusNotFound)
	if c := api.consumer(t, "orders"); c.Gap < 60 || c.State != "running" {
		t.Errorf("%+v", c)
	}
	saysReady(t, api, "feed: read models stand still: 16 partitions have no owner")
	if a := c1.ops(t, "/readyz"); a.status != http.StatusOK {
		t.Errorf("%s", a)
	}
	// All is there, and two decide.
	f1 := r.start("f1", "feed")
	n1 := r.start("n1", "notify")
	c2 := r.start("c2", "command")
	all := map[string]int{"c1 command": 8, "c2 command": 8, "f1 feed": 16, "n1 notify": 16}
	untilOwned(t, api, all)
	seen(t, api, kept[7])
	sentOnce(t, box, mails...)

	// The one that follows is killed: orders are taken and decided as before, and read when another one comes.
	f1.kill()
	unseen := accepts(t, api, "unseen", 40)
	mailsOf(unseen)
	decidedOnce(t, api, unseen)
	sentOnce(t, box, mails...) // that is another one's matter
	f2 := r.start("f2", "feed")
	seen(t, api, unseen[39])
	// The ones that decide are killed: orders are taken, and decided when another one comes.
	c1.kill()
	c2.kill()
	late := accepts(t, api, "late", 40)
	mailsOf(late)
	c3 := r.start("c3", "command,feed")
	decidedOnce(t, api, late)
	seen(t, api, late[39])
	sentOnce(t, box, mails...)
	untilOwned(t, api, map[string]int{"c3 command": 16, "c3 feed": 8, "f2 feed": 8, "n1 notify": 16})
	for _, s := range []*server{n1, f2, c3, api} {
		s.stop(t)
		if said := s.stderr.String(); strings.Contains(said, `"level":"ERROR"`) {
			t.Errorf("%s", said)
		}
	}
	if n := len(box.Mails()); n != len(mails) {
		t.Errorf("%d mails, want %d", n, len(mails))
	}
}

// TestRolesSetting: what a data folder cannot do is said, and so is what nobody knows.
func TestRolesSetting(t *testing.T) {
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"--roles", "intake"}, "data folder"},
		{[]string{"--roles", "intake,command,feed"}, "data folder"},
		{[]string{"--roles", "everything"}, "intake, command, feed, notify"},
		{[]string{"--roles", "command", "--demo", "--store", "postgres://nowhere.invalid/"}, "intake"},
	} {
		_, stderr, code := runs(t, append([]string{"serve"}, c.args...)...)
		if code != client.ExitUsage || !strings.Contains(stderr, c.says) {
			t.Errorf("%v: %d %s", c.args, code, stderr)
		}
	}
	s := serving(t, t.TempDir(), "--roles", "notify,intake,feed,command")
	var o httpapi.Ownership
	s.get(t, "/v1/nodes").into(t, &o)
	if len(o.Items) != 1 || len(o.Items[0].Roles) != 4 || len(o.Items[0].Feed) != 16 {
		t.Errorf("%+v", o)
	}
	s.stop(t)
}
