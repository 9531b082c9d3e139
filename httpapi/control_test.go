package httpapi_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/system"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/letter"
)

// steering is the control of consumers that nobody runs: it knows what their streams say.
type steering struct {
	store    *millrace.Store
	registry *millrace.Registry
}

func (s steering) state(name string) *system.Consumer {
	category, _ := s.registry.Category(system.ConsumerStream(name))
	state := category.Initial(system.ConsumerStream(name))
	for e, err := range s.store.Events(context.Background(), system.ConsumerStream(name), 1) {
		if err != nil {
			panic(err)
		}
		body, err := s.registry.Body(&e)
		if err != nil {
			panic(err)
		}
		state = category.Evolve(state, body)
	}
	return state.(*system.Consumer) //nolint:forcetypeassert // its only state
}

func (s steering) Deciding() string { return system.Deciding }

func (s steering) Standing(name string) httpapi.Standing {
	c := s.state(name)
	return httpapi.Standing{State: string(c.Mode), Since: c.Since, By: c.By, Why: c.Why}
}

func (s steering) Command(_ context.Context, c *millrace.Command, name string, do httpapi.ConsumerAction, by, why string) (err error) {
	var body any = &system.PauseConsumer{By: by, Why: why}
	switch do {
	case httpapi.ActionPause:
	case httpapi.ActionResume:
		body = &system.ResumeConsumer{By: by, Why: why}
	case httpapi.ActionDrain:
		if why == "started paused" {
			return httpapi.ErrConsumerPaused
		}
		body = &system.DrainConsumer{By: by, Why: why, Until: s.store.Head().String()}
	}
	c.Stream = system.ConsumerStream(name)
	c.Type, c.Data, err = s.registry.EncodeCommand(body)
	return err
}

func (s steering) Obeyed(context.Context, string, uint64) {}

// Consumers, and the deciding, are paused, drained and resumed. Each answer is how the consumer is then; asked for twice it is
// the same.
func TestControl(t *testing.T) {
	w := newWorld(t, worldOptions{change: func(c *httpapi.Config) { c.Consumers = following{c.Store, map[string]string{"orders": "orders@1"}} }})
	const orders = "/v1/consumers/orders"
	if c := w.want(200, "GET", orders, "").json(t); c["state"] != "running" || c["since"] != nil || c["by"] != nil {
		t.Errorf("%v", c)
	}
	first := w.want(200, "POST", orders+"/pause", `{"by":"ann","why":"why"}`, "Idempotency-Key: k-1")
	if c := first.json(t); c["state"] != "paused" || c["by"] != "ann" || c["why"] != "why" || c["since"] == nil || first.Header.Get("Millrace-Cursor") == "" {
		t.Errorf("%s", first.body)
	}
	if a := w.want(200, "POST", orders+"/pause", `{"by":"ann","why":"why"}`, "Idempotency-Key: k-1"); a.Header.Get("Idempotency-Replayed") != "true" || string(a.body) != string(first.body) {
		t.Errorf("%s", a.body)
	}
	if a := w.want(200, "POST", orders+"/pause", `{"by":"ben"}`); string(a.body) != string(first.body) {
		t.Errorf("%s", a.body)
	}
	if a := w.want(409, "POST", orders+"/drain", ""); a.json(t)["code"] != system.CodePaused {
		t.Errorf("%s", a.body)
	}
	if c := w.want(200, "POST", orders+"/resume", "").json(t); c["state"] != "running" || c["by"] != nil {
		t.Errorf("%v", c)
	}
	if c := w.want(200, "POST", orders+"/drain", `{}`).json(t); c["state"] != "draining" {
		t.Errorf("%v", c)
	}
	if a := w.want(409, "POST", orders+"/drain", `{"why":"started paused"}`); a.json(t)["code"] != system.CodePaused {
		t.Errorf("%s", a.body)
	}
	// The deciding is one of them, and has no streams that are parked.
	w.want(200, "POST", "/v1/consumers/command/pause", "")
	all := w.want(200, "GET", "/v1/consumers", "").items(t)
	if len(all) != 2 || all[0]["name"] != "command" || all[0]["state"] != "paused" || all[1]["state"] != "draining" {
		t.Errorf("%v", all)
	}
	w.want(404, "GET", "/v1/consumers/command/parked", "")
	w.want(404, "POST", "/v1/consumers/command/redrive", `{"stream":"order-x"}`)

	w.want(422, "POST", orders+"/pause", `{"by":"carl"}`, "Idempotency-Key: k-1")
	w.want(412, "POST", orders+"/pause", "", `If-Match: "99"`)
	for path, status := range map[string]int{
		"/v1/consumers/other/pause": 404, "/v1/consumers/other/resume": 404, "/v1/consumers/other/drain": 404, orders + "/stop": 404, orders + "/pause?x=1": 400,
	} {
		if a := w.do("POST", path, ""); a.StatusCode != status {
			t.Errorf("%s: %d %s", path, a.StatusCode, a.body)
		}
	}
	w.want(404, "GET", "/v1/consumers/other", "")
	for _, body := range []string{`{"by":1}`, `{"who":"ann"}`, `[]`, `{"by":"` + strings.Repeat("x", letter.MaxBy+1) + `"}`, `{"why":"a\u0000b"}`} {
		w.want(400, "POST", orders+"/pause", body)
	}
	w.want(405, "GET", orders+"/pause", "")
}

// Where it is not decided in time, it is kept, and the answer says so.
func TestControlUndecided(t *testing.T) {
	w := newWorld(t, worldOptions{paused: true, change: func(c *httpapi.Config) { c.Consumers = following{c.Store, map[string]string{"orders": "orders@1"}} }})
	a := w.want(202, "POST", "/v1/consumers/orders/pause", `{"by":"ann"}`, "Prefer: wait=1", "Idempotency-Key: k")
	if a.json(t)["status"] != "accepted" {
		t.Errorf("%s", a.body)
	}
	if _, err := w.store.Command(t.Context(), "k"); errors.Is(err, millrace.ErrNotFound) {
		t.Error("it is not kept")
	}
}
