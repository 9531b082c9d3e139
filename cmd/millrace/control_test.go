package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/smtptest"
)

// consumer is how a consumer is.
func (s *server) consumer(t testing.TB, name string) (c consumerState) {
	t.Helper()
	s.get(t, "/v1/consumers/"+name).into(t, &c)
	return c
}

// control does something to a consumer.
func (s *server) control(t testing.TB, name, do, why string) (c consumerState) {
	t.Helper()
	body := []byte(`{"by":"ann","why":"` + why + `"}`)
	s.do(t, call{method: http.MethodPost, path: "/v1/consumers/" + name + "/" + do, body: body, prefer: "wait=30"}, http.StatusOK).into(t, &c)
	return c
}

// untilConsumer looks until a consumer is as wanted.
func (s *server) untilConsumer(t testing.TB, name string, ok func(c consumerState) bool) consumerState {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		c := s.consumer(t, name)
		if ok(c) {
			return c
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("in vain: %+v\n%s", c, s.stderr.String())
		}
	}
}

func (s *server) placeMany(t testing.TB, name string, n int) (cursor string) {
	t.Helper()
	for i := range n {
		id := fmt.Sprintf("%s-%d", name, i)
		s.do(t, call{method: http.MethodPost, path: "/v1/orders", key: id, body: anOrder(id), prefer: "wait=30"}, http.StatusCreated)
	}
	return s.head(t, "orders/"+name+"-0")
}

// caughtUpBut waits until the other read models have seen what a cursor names.
func (s *server) caughtUpBut(t testing.TB, cursor string) {
	t.Helper()
	for _, path := range []string{"/v1/stock?limit=1", "/v1/returns?limit=1"} {
		s.do(t, call{method: http.MethodGet, path: path + "&min_cursor=" + cursor, prefer: "wait=60"}, http.StatusOK)
	}
}

// TestPauseConsumer: a read model stands still at its checkpoint, over restarts, says who paused it and why, and how
// far it is behind; the others go on. Resumed it catches up, and is what it would have been: a rebuild finds no difference.
func TestPauseConsumer(t *testing.T) {
	data := t.TempDir()
	s := serving(t, data)
	before := s.placeMany(t, "a", 5)
	s.caughtUp(t, before)
	paused := s.control(t, "orders", "pause", "the index is rebuilt")
	if paused.State != "paused" || paused.By != "ann" || paused.Why != "the index is rebuilt" || time.Since(paused.Since) > patience {
		t.Errorf("%+v", paused)
	}
	at := s.consumer(t, "orders").Cursor
	cursor := s.placeMany(t, "b", 7)
	s.caughtUpBut(t, cursor)
	stands := func() {
		t.Helper()
		c := s.consumer(t, "orders")
		if c.State != "paused" || c.By != "ann" || c.Cursor != at || c.Gap < 7 {
			t.Errorf("%+v, want it at %s", c, at)
		}
		if m := string(s.ops(t, "/metrics").body); !strings.Contains(m, `millrace_consumer_paused{consumer="orders"} 1`) ||
			!strings.Contains(m, `millrace_consumer_paused{consumer="stock"} 0`) || strings.Contains(m, `millrace_consumer_gap_events{consumer="orders"} 0`) {
			t.Error("the metrics do not tell")
		}
		s.do(t, call{method: http.MethodGet, path: "/v1/orders/b-0"}, http.StatusNotFound)
	}
	stands()
	// Paused again it stays as it is, and so it does with the same request again.
	if again := s.control(t, "orders", "pause", "another one"); again.Why != paused.Why || !again.Since.Equal(paused.Since) {
		t.Errorf("%+v", again)
	}
	s.do(t, call{method: http.MethodPost, path: "/v1/consumers/orders/drain"}, http.StatusConflict)
	s.do(t, call{method: http.MethodPost, path: "/v1/projections/orders/rebuild"}, http.StatusConflict)
	s.stop(t)
	s = serving(t, data)
	s.caughtUpBut(t, cursor)
	stands()
	// A kill takes the newest documents of the embedded store with it: those of a paused consumer are made again when it goes on.
	s.kill()
	s = serving(t, data)
	s.caughtUpBut(t, cursor)
	if c := s.consumer(t, "orders"); c.State != "paused" || c.Why != paused.Why || c.Gap < 7 {
		t.Errorf("%+v", c)
	}
	if c := s.control(t, "orders", "resume", "done"); c.State != "running" {
		t.Errorf("%+v", c)
	}
	s.caughtUp(t, cursor)
	s.get(t, "/v1/orders/b-6")
	s.rebuiltAlike(t, cursor)
	for _, path := range []string{"other/pause", "other/drain", "other/resume"} {
		s.do(t, call{method: http.MethodPost, path: "/v1/consumers/" + path}, http.StatusNotFound)
	}
	s.do(t, call{method: http.MethodGet, path: "/v1/consumers/other"}, http.StatusNotFound)
	s.do(t, call{method: http.MethodPost, path: "/v1/consumers/orders/pause", body: []byte(`{"by":"` + strings.Repeat("x", 201) + `"}`)}, http.StatusBadRequest)
	if c := s.consumer(t, "orders"); c.State != "running" {
		t.Errorf("%+v", c)
	}
	s.stop(t)
	isClean(t, data)
}

// TestPauseDeciding: the deciding is paused and resumed by commands, which are decided all the same. What is accepted meanwhile
// waits, over a kill and a restart, and none of it is lost.
func TestPauseDeciding(t *testing.T) {
	data := t.TempDir()
	s := serving(t, data)
	s.placeMany(t, "a", 3)
	if c := s.control(t, "command", "pause", "maintenance"); c.State != "paused" {
		t.Errorf("%+v", c)
	}
	const waiting = 200
	for i := range waiting {
		id := fmt.Sprint("w-", i)
		s.do(t, call{method: http.MethodPost, path: "/v1/orders", key: id, body: anOrder(id)}, http.StatusAccepted)
	}
	// Other consumers are paused and resumed beside, and their commands are decided.
	if c := s.control(t, "stock", "pause", "beside"); c.State != "paused" {
		t.Errorf("%+v", c)
	}
	s.kill()
	s = serving(t, data)
	c := s.consumer(t, "command")
	if c.State != "paused" || c.Gap != waiting || c.Why != "maintenance" || s.consumer(t, "stock").State != "paused" {
		t.Errorf("%+v", c)
	}
	if st := s.command(t, "w-7"); st.State != "accepted" {
		t.Errorf("%+v", st)
	}
	s.control(t, "stock", "resume", "beside")
	s.control(t, "command", "resume", "done")
	s.untilConsumer(t, "command", func(c consumerState) bool { return c.State == "running" && c.Gap == 0 })
	for i := range waiting {
		if st := s.command(t, fmt.Sprint("w-", i)); st.State != "decided" || st.Version != 1 || st.Events != 1 {
			t.Fatalf("%+v", st)
		}
	}
	s.stop(t)
	isClean(t, data)

	// A server that is started with it paused is resumed too, and by nothing else. That is no fact: the next start is another.
	s = serving(t, data, "--paused", "command,feed")
	for _, name := range []string{"command", "orders", "snapshots"} {
		if c := s.consumer(t, name); c.State != "paused" || c.By != byPaused {
			t.Errorf("%s: %+v", name, c)
		}
		s.do(t, call{method: http.MethodPost, path: "/v1/consumers/" + name + "/drain"}, http.StatusConflict)
	}
	s.do(t, call{method: http.MethodPost, path: "/v1/orders", key: "z", body: anOrder("z")}, http.StatusAccepted)
	s.control(t, "command", "resume", "go on")
	if c := s.consumer(t, "orders"); c.State != "paused" {
		t.Errorf("%+v", c)
	}
	s.control(t, "orders", "resume", "go on")
	s.untilConsumer(t, "command", func(c consumerState) bool { return c.Gap == 0 })
	s.do(t, call{method: http.MethodGet, path: "/v1/orders/z?min_cursor=" + s.head(t, "orders/z"), prefer: "wait=60"}, http.StatusOK)
	s.stop(t)
}

// TestDrain: a consumer, and the deciding, go on to what there was when they were told so, and stand still then.
func TestDrain(t *testing.T) {
	data := t.TempDir()
	s := serving(t, data, "--paused", "feed")
	cursor := s.placeMany(t, "a", 20)
	s.control(t, "orders", "resume", "first it has to run")
	key := "drain-1"
	drain := call{method: http.MethodPost, path: "/v1/consumers/orders/drain", key: key, body: []byte(`{"by":"ben","why":"an upgrade"}`), prefer: "wait=30"}
	s.do(t, drain, http.StatusOK)
	drained := s.untilConsumer(t, "orders", func(c consumerState) bool { return c.State == "paused" })
	if drained.By != "ben" || drained.Why != "an upgrade" {
		t.Errorf("%+v", drained)
	}
	covers(t, drained.Cursor, cursor)
	// The log has gone on: the same request again is the same all the same.
	s.placeMany(t, "b", 3)
	if a := s.do(t, drain, http.StatusOK); !a.replayed() {
		t.Errorf("%s", a)
	}
	if c := s.consumer(t, "orders"); c.State != "paused" || c.Cursor != drained.Cursor || c.Gap == 0 {
		t.Errorf("%+v", c)
	}
	s.control(t, "command", "drain", "an upgrade")
	s.untilConsumer(t, "command", func(c consumerState) bool { return c.State == "paused" && c.Gap == 0 })
	s.do(t, call{method: http.MethodPost, path: "/v1/orders", key: "late", body: anOrder("late")}, http.StatusAccepted)
	s.control(t, "command", "resume", "")
	s.control(t, "orders", "resume", "")
	s.untilConsumer(t, "orders", func(c consumerState) bool { return c.Gap == 0 })
	s.get(t, "/v1/orders/b-2")
	s.stop(t)
}

// covers wants a cursor to have come at least as far as another one.
func covers(t *testing.T, cursor, other string) {
	t.Helper()
	a, err := millrace.ParseCursor(cursor)
	if err != nil {
		t.Fatal(err)
	}
	b, err := millrace.ParseCursor(other)
	if err != nil || !a.Covers(b) {
		t.Errorf("at %v, and not at %v: %v", a.Positions, b.Positions, err)
	}
}

// TestPauseNotifications: customers are told once each, however often the telling is paused and resumed while mails are on
// their way. The control is [TestNotificationsAreFacts]: without what is on record, mails go twice.
func TestPauseNotifications(t *testing.T) {
	box, flags := mailbox(t, smtptest.Options{Data: func(*smtptest.Mail) error { <-time.After(20 * time.Millisecond); return nil }})
	s := serving(t, t.TempDir(), append([]string{"--notify", "email"}, flags...)...)
	var want []string
	for round := range 4 {
		s.control(t, "notifications", "pause", "a while")
		for i := range 5 {
			id := fmt.Sprintf("n%d-%d", round, i)
			s.place(t, id, "")
			want = append(want, mailOf(id, "placed"))
		}
		if c := s.consumer(t, "notifications"); c.State != "paused" || c.Gap < 5 {
			t.Errorf("%+v", c)
		}
		s.control(t, "notifications", "resume", "")
		box.Wait(t.Context(), 5*round+2) // and then in the midst of it
	}
	sentOnce(t, box, want...)
	s.stop(t)
	if all := box.Mails(); len(all) != len(want) {
		t.Errorf("%d mails", len(all))
	}
}

// TestConsumersCommand: the same by the command line.
func TestConsumersCommand(t *testing.T) {
	s := serving(t, t.TempDir())
	run := func(code int, args ...string) (stdout, stderr string) {
		t.Helper()
		stdout, stderr, got := runs(t, append(append([]string{"consumers"}, args...), "--server", s.url)...)
		if got != code {
			t.Errorf("%v: %d\n%s%s", args, got, stdout, stderr)
		}
		return stdout, stderr
	}
	if out, _ := run(0, "pause", "stock", "--why", "a test", "--by", "ann"); out != "stock: paused, gap 0\n" && !strings.HasPrefix(out, "stock: paused") {
		t.Errorf("%q", out)
	}
	if out, _ := run(0, "list"); !strings.Contains(out, "ann") || !strings.Contains(out, "a test") || !strings.Contains(out, "command") {
		t.Errorf("%s", out)
	}
	run(1, "drain", "stock", "--why", "no")
	run(2, "pause", "stock")
	run(1, "pause", "nothing", "--why", "x")
	out, _ := run(0, "resume", "stock", "--why", "done", "--output", "json")
	var c consumerState
	if err := jsonx.Unmarshal([]byte(out), &c); err != nil || c.State != "running" || c.By == "" {
		t.Errorf("%v %s", err, out)
	}
	run(0, "drain", "command", "--why", "done")
	s.untilConsumer(t, "command", func(c consumerState) bool { return c.State == "paused" })
	run(0, "resume", "command", "--why", "done")
	s.stop(t)
}
