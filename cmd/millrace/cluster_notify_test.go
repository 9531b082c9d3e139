//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/internal/smtptest"
)

// sharedReady is the line by which a node says its addresses.
const sharedReady = `(?m)^millrace is ready: (http://\S+) admin (http://\S+) store postgres node \S+$`

const (
	// mailTakes is how long the mail server looks at a mail, and customerWaits how long a customer waits before the next
	// order: together the customers get no more mails than one node can send.
	mailTakes     = 200 * time.Millisecond
	customerWaits = 500 * time.Millisecond
)

// fleet is nodes that come and go while customers order.
type fleet struct {
	t     *testing.T
	flags []string

	mu    sync.Mutex
	nodes map[string]*server
}

// start starts a node, which takes its share of the partitions from the others.
func (f *fleet) start(name string, n int) {
	f.t.Helper()
	s, err := launchServer(f.t, binary(f.t), sharedReady, append([]string{"serve", "--node", name, "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-level", "warn", "--log-format", "json"}, f.flags...)...)
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	f.nodes[name] = s
	f.mu.Unlock()
	f.settled(s, n)
}

// settled waits until so many nodes own as much as each other.
func (f *fleet) settled(s *server, n int) {
	f.t.Helper()
	f.until("the nodes share", clusterPatience, func() bool {
		var o httpapi.Ownership
		s.get(f.t, "/v1/nodes").into(f.t, &o)
		least := o.Partitions
		for _, one := range o.Items {
			least = min(least, len(one.Partitions))
		}
		return len(o.Items) == n && len(o.Unowned) == 0 && least >= o.Partitions/n
	})
}

// until looks again and again until something holds.
func (f *fleet) until(what string, patience time.Duration, ok func() bool) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			f.t.Fatal("in vain: ", what)
		}
	}
}

// take takes a node out of those that customers know.
func (f *fleet) take(name string) *server {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.nodes[name]
	delete(f.nodes, name)
	return s
}

// any is one of the nodes, whichever.
func (f *fleet) any() *server {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.nodes {
		return s
	}
	return nil
}

// order places and confirms an order at whichever nodes answer.
func (f *fleet) order(ctx context.Context, id string) {
	for _, c := range []call{
		{path: "/v1/orders", key: "place-" + id, body: orderOf(id, "")}, {path: "/v1/orders/" + id + "/confirm", key: "confirm-" + id, body: []byte(`{}`)},
	} {
		c.method, c.prefer = http.MethodPost, "wait=20"
		for ctx.Err() == nil {
			if a, err := f.any().try(ctx, c); err == nil && (a.status == http.StatusOK || a.status == http.StatusCreated) {
				break
			}
		}
	}
}

// TestClusterNotifications: two nodes come and go, and partitions with them, while customers order. Each is told once, and
// either node says so.
func TestClusterNotifications(t *testing.T) {
	if testing.Short() {
		t.Skip("a database and two processes, and -short is set")
	}
	db := pgtest.Start(t, pgtest.Options{})
	// A mail takes a while, so that some are on their way whenever partitions move.
	box, flags := mailbox(t, smtptest.Options{Data: func(*smtptest.Mail) error {
		<-time.After(mailTakes)
		return nil
	}})
	f := &fleet{t: t, flags: append(flags, "--store", db.DSN("postgres"), "--notify", "email"), nodes: map[string]*server{}}
	f.start("a", 1)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var customers sync.WaitGroup
	var mu sync.Mutex
	var ids []string
	for c := range 4 {
		customers.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				id := fmt.Sprintf("o%d-%d", c, n)
				f.order(t.Context(), id)
				mu.Lock()
				ids = append(ids, id)
				mu.Unlock()
				select {
				case <-time.After(customerWaits):
				case <-ctx.Done():
				}
			}
		})
	}
	come := func(more int) {
		t.Helper()
		wait, cancel := context.WithTimeout(t.Context(), clusterPatience)
		defer cancel()
		box.Wait(wait, len(box.Mails())+more)
	}
	come(20)
	f.start("b", 2)
	come(20)
	f.take("a").stop(t)
	f.settled(f.any(), 1)
	come(20)
	f.start("a", 2)
	come(20)
	stop()
	customers.Wait()

	var want []string
	for _, id := range ids {
		want = append(want, mailOf(id, "placed"), mailOf(id, "confirmed"))
	}
	sentOnce(t, box, want...)
	t.Logf("%d mails over %d connections", len(want), box.Connections())
	for _, name := range []string{"a", "b"} {
		s := f.take(name)
		for _, id := range ids[:3] {
			all := s.untilTold(t, id, allSent)
			if len(all) != 2 || all[0].Name != "placed/email" {
				t.Errorf("%s says of %s: %+v", name, id, all)
			}
		}
		s.stop(t)
		if said := s.stderr.String(); strings.Contains(said, `"level":"ERROR"`) {
			t.Errorf("%s says: %s", name, said)
		}
	}
	if n := len(box.Mails()); n != len(want) || len(slices.Compact(ids)) != len(ids) {
		t.Errorf("%d mails, want %d", n, len(want))
	}
}
