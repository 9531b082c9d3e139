package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/millrace-io/millrace/domain/system"
	"github.com/millrace-io/millrace/httpapi"
)

// Everything is paused, drained and resumed by many at once while orders come in. In the end all that was resumed has caught up.
func TestControlsAtOnce(t *testing.T) {
	store, err := openStore(t.TempDir(), 4, quietLog())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	n, err := newNode(t.Context(), store, nodeOptions{log: quietLog()})
	if err != nil {
		t.Fatal(err)
	}
	stop := running(context.Background(), n.run)
	api := httptest.NewServer(n.api)
	t.Cleanup(api.Close)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s := &server{url: api.URL, http: &http.Client{Timeout: patience}}

	var wg sync.WaitGroup
	for c := range 3 {
		wg.Go(func() {
			for i := range 60 {
				id := fmt.Sprintf("o%d-%d", c, i)
				a, err := s.try(ctx, call{method: http.MethodPost, path: "/v1/orders", key: id, body: anOrder(id)})
				if err != nil || a.status != http.StatusAccepted {
					t.Errorf("%v %v", a, err)
					return
				}
			}
		})
		wg.Go(func() {
			for i := range 15 {
				for k, name := range n.control.names {
					do := []string{"pause", "resume", "drain", "resume"}[(i+k+c)%4]
					a, err := s.try(ctx, call{method: http.MethodPost, path: "/v1/consumers/" + name + "/" + do, prefer: "wait=30"})
					if err != nil || a.status != http.StatusOK && a.status != http.StatusConflict {
						t.Errorf("%s %s: %v %v", do, name, a, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	for _, name := range n.control.names {
		if a, err := s.try(ctx, call{method: http.MethodPost, path: "/v1/consumers/" + name + "/resume", prefer: "wait=30"}); err != nil || a.status != http.StatusOK {
			t.Errorf("%v %v", a, err)
		}
		if st := n.control.Standing(name); st.State != string(system.Running) {
			t.Errorf("%s: %+v", name, st)
		}
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for store.Backlog() > 0 && ctx.Err() == nil {
		<-tick.C
	}
	if err := n.caughtUp(ctx); err != nil {
		t.Error(err)
	}
	a, err := s.try(ctx, call{method: http.MethodGet, path: "/v1/orders?limit=500"})
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ Items []struct{ ID string } }
	if a.into(t, &list); len(list.Items) != 180 {
		t.Errorf("%d orders are seen", len(list.Items))
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// What is drained stands still by itself in the end, and a node that is started paused refuses to drain.
func TestPausedHere(t *testing.T) {
	store, err := openStore(t.TempDir(), 4, quietLog())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	n, err := newNode(t.Context(), store, nodeOptions{log: quietLog(), pauseFeed: true})
	if err != nil {
		t.Fatal(err)
	}
	if st := n.control.Standing("orders"); st.State != string(system.Paused) || st.By != byPaused || st.Since.IsZero() {
		t.Errorf("%+v", st)
	}
	if st := n.control.Standing(system.Deciding); st != (httpapi.Standing{State: string(system.Running)}) {
		t.Errorf("%+v", st)
	}
	if !n.control.stands("orders") || n.control.stands(system.Deciding) || n.control.stands("nobody") || !n.control.paused()["stock"] {
		t.Error("it runs")
	}
}
