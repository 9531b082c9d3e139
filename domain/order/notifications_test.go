package order

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/notice"
)

// teller runs the process over the events of a stream as its manager does: the state goes through its bytes each time, and a
// call that was begun is not begun again.
type teller struct {
	t     testing.TB
	m     *millrace.ProcessManager
	state any
	begun []string // the calls, in the order in which they were first wanted
	asked map[string][]byte
	last  millrace.Reaction
}

func newTeller(t testing.TB, name millrace.Stream, o NotificationOptions) *teller {
	t.Helper()
	m, err := Notifications(o).Manager()
	if err != nil {
		t.Fatal(err)
	}
	return &teller{t: t, m: m, state: m.Initial(name), asked: map[string][]byte{}}
}

// take applies an input and gives the names of the calls that are new.
func (p *teller) take(in *millrace.Input) []string {
	p.t.Helper()
	before, err := p.m.EncodeState(p.state)
	if err != nil {
		p.t.Fatal(err)
	}
	old := p.state
	p.state = p.m.Evolve(p.state, in)
	if after, err := p.m.EncodeState(old); err != nil || string(after) != string(before) {
		p.t.Fatalf("the input changed the old state (%v):\n%s\n%s", err, before, after)
	}
	data, err := p.m.EncodeState(p.state)
	if err != nil {
		p.t.Fatal(err)
	}
	if p.state, err = p.m.DecodeState(data); err != nil {
		p.t.Fatal(err)
	}
	if p.last, err = p.m.React(p.state); err != nil {
		p.t.Fatal(err)
	}
	var fresh []string
	for _, c := range p.last.Calls {
		if _, known := p.asked[c.Name]; known {
			continue
		}
		if p.asked[c.Name], err = p.m.EncodeCall(c); err != nil {
			p.t.Fatal(err)
		}
		fresh = append(fresh, c.Name)
	}
	p.begun = append(p.begun, fresh...)
	return fresh
}

// hear applies the events of a stream from a version on.
func (p *teller) hear(s *stream, from int) []string {
	p.t.Helper()
	var fresh []string
	for _, e := range s.events[from:] {
		body, err := s.registry.Body(&e)
		if err != nil {
			p.t.Fatal(err)
		}
		fresh = append(fresh, p.take(&millrace.Input{At: e.Time, Event: body, Version: e.Version})...)
	}
	return fresh
}

const (
	toldLines = `"lines":[{"sku":"85123A","description":"WHITE HEART","quantity":6,"unit_price":"2.55"},{"sku":"POST","quantity":1,"unit_price":"0.50"}]`
	toldBody  = `{"customer_id":"c-17","email":"ann@example.org","language":"de-AT","currency":"EUR",` + toldLines + `}`
)

// TestEveryEventAndKind: which event is told, under which name, and which is not.
func TestEveryEventAndKind(t *testing.T) {
	type told struct {
		step
		want string // the new calls
	}
	all := func(name string) string { return name + "/log " + name + "/email " + name + "/webhook" }
	ship := func(line, quantity int) step {
		return step{"ShipOrder", fmt.Sprintf(`{"lines":[{"line":%d,"quantity":%d}],"carrier":"Post","tracking_number":"T-1"}`, line, quantity)}
	}
	pay, giveBack := step{"MarkOrderPaid", `{}`}, func(line, quantity int) step {
		return step{"ReturnOrder", fmt.Sprintf(`{"lines":[{"line":%d,"quantity":%d}],"reason":"chipped"}`, line, quantity)}
	}
	cancel := step{"CancelOrder", `{"reason":"sold out"}`}
	place := step{"PlaceOrder", toldBody}
	placeAt := func(channel, at string) step {
		return step{"PlaceOrder", `{"email":"ann@example.org","channel":"` + channel + `","placed_at":"` + at + `","currency":"EUR",` + toldLines + `}`}
	}
	for _, c := range []struct {
		name  string
		o     NotificationOptions
		steps []told
	}{
		{"the whole way", NotificationOptions{Channels: notice.Channels()}, []told{
			{place, all("placed")}, {step{"ChangeOrder", `{"ship_to":{"city":"Leeds"},` + toldLines[:len(toldLines)-1] + `]}`}, ""}, {pay, ""},
			{confirmOrder, all("confirmed")}, {packOrder, ""}, {ship(1, 4), all("shipped-1")}, {shipAll, all("shipped-2")},
			{deliverOrder, all("delivered")}, {giveBack(1, 1), all("refunded-1")}, {giveBack(1, 2), all("refunded-2")}, {returnAll, all("refunded-3")},
		}},
		{"cancelled", NotificationOptions{Channels: notice.Channels()}, []told{{place, all("placed")}, {cancel, all("cancelled")}}},
		{"cancelled when it was paid", NotificationOptions{Channels: notice.Channels()}, []told{{place, all("placed")}, {pay, ""}, {cancel, all("cancelled")}}},
		{"never paid, so nothing is refunded", NotificationOptions{Channels: []notice.Channel{notice.Email}}, []told{
			{place, "placed/email"}, {confirmOrder, "confirmed/email"}, {packOrder, ""}, {shipAll, "shipped-1/email"}, {returnAll, ""},
		}},
		{"no address", NotificationOptions{Channels: notice.Channels()}, []told{
			{step{"PlaceOrder", `{"currency":"EUR",` + toldLines + `}`}, "placed/log placed/webhook"}, {confirmOrder, "confirmed/log confirmed/webhook"},
		}},
		{"no channels", NotificationOptions{}, []told{{place, ""}, {confirmOrder, ""}}},
		{"imported", NotificationOptions{Channels: notice.Channels()}, []told{{placeAt("import", "2010-12-01T08:25:00Z"), ""}, {pay, ""}, {confirmOrder, ""}, {cancel, ""}}},
		{"placed a day before", NotificationOptions{Channels: notice.Channels()}, []told{{placeAt("web", "2010-11-30T08:26:00Z"), all("placed")}}},
		{"placed longer ago", NotificationOptions{Channels: notice.Channels()}, []told{{placeAt("web", "2010-11-30T08:25:59.9Z"), ""}, {confirmOrder, ""}, {cancel, ""}}},
		{"from the second event on", NotificationOptions{Channels: notice.Channels(), Since: start.Add(time.Minute)}, []told{{place, ""}, {confirmOrder, all("confirmed")}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStream(t, newRegistry(t), "order-42")
			p := newTeller(t, s.name, c.o)
			for _, st := range c.steps {
				from := len(s.events)
				s.must(st.typ, st.body)
				if len(s.events) == from {
					t.Fatalf("%s had no effect", st.typ)
				}
				if got := strings.Join(p.hear(s, from), " "); got != st.want {
					t.Errorf("after %s: %q, want %q", st.typ, got, st.want)
				}
			}
		})
	}
}

// TestNoticesHoldAll: the requests as they go out, on file.
func TestNoticesHoldAll(t *testing.T) {
	s := newStream(t, newRegistry(t), "order-42")
	for _, st := range []step{
		{"PlaceOrder", toldBody}, {"MarkOrderPaid", `{}`}, confirmOrder, packOrder,
		{"ShipOrder", `{"lines":[{"line":1,"quantity":4}],"carrier":"Post","tracking_number":"T-1"}`}, shipAll, deliverOrder,
		{"ReturnOrder", `{"lines":[{"line":1,"quantity":1}],"reason":"chipped"}`},
	} {
		s.must(st.typ, st.body)
	}
	cancelled := newStream(t, newRegistry(t), "order-43")
	for _, st := range []step{{"PlaceOrder", toldBody}, {"MarkOrderPaid", `{}`}, {"CancelOrder", `{"reason":"sold out"}`}} {
		cancelled.must(st.typ, st.body)
	}
	var out strings.Builder
	for _, s := range []*stream{s, cancelled} {
		p := newTeller(t, s.name, NotificationOptions{Channels: []notice.Channel{notice.Email}})
		for _, name := range p.hear(s, 0) {
			var n notice.Notice
			if err := jsonx.Unmarshal(p.asked[name], &n); err != nil || n.Channel != notice.Email {
				t.Errorf("%s: %v", p.asked[name], err)
			}
			fmt.Fprintf(&out, "%s %s\n%s\n\n", s.name, name, p.asked[name])
		}
	}
	golden(t, filepath.Join("testdata", "notices.txt"), out.String())
}

// TestNoticesAreSettled: an answer takes its notice from the state and nothing else does; a channel that was taken away takes
// its notices with it, for good.
func TestNoticesAreSettled(t *testing.T) {
	s := newStream(t, newRegistry(t), "order-42")
	s.must("PlaceOrder", toldBody)
	s.must("CancelOrder", `{"reason":"sold out"}`)
	both := NotificationOptions{Channels: []notice.Channel{notice.Log, notice.Email}}
	p := newTeller(t, s.name, both)
	p.hear(s, 0)
	if p.last.State != "telling" || p.last.Waits != "4 notifications" || p.last.Done || p.last.Key != "c-17" {
		t.Errorf("%+v", p.last)
	}
	wants := func(names ...string) {
		t.Helper()
		got := make([]string, 0, len(p.last.Calls))
		for _, c := range p.last.Calls {
			got = append(got, c.Name)
		}
		if d := cmp.Diff(names, got); d != "" {
			t.Error(d)
		}
	}
	p.take(&millrace.Input{Call: "placed/log", Result: []byte(`{"status":"sent"}`)})
	wants("placed/email", "cancelled/log", "cancelled/email")
	p.take(&millrace.Input{Call: "nothing/email"})
	p.take(&millrace.Input{Timer: "never"})
	wants("placed/email", "cancelled/log", "cancelled/email")

	again := newTeller(t, s.name, NotificationOptions{Channels: []notice.Channel{notice.Log}})
	again.state = p.state
	again.take(&millrace.Input{Call: "nothing/email"})
	p.state = again.state
	p.take(&millrace.Input{Call: "nothing/email"})
	wants("cancelled/log")
	p.take(&millrace.Input{Call: "cancelled/log"})
	if p.last.State != "told" || !p.last.Done || p.last.Waits != "" {
		t.Errorf("%+v", p.last)
	}
}

// TestNoticesAreBounded: the largest order, and one in the most parcels and returns, stay within what a process may want.
func TestNoticesAreBounded(t *testing.T) {
	long := strings.Repeat("é", MaxDescription)
	line := `{"sku":"x","description":"` + long + `","quantity":100,"unit_price":"1"}`
	s := newStream(t, newRegistry(t), millrace.NewStream(CategoryOrder, strings.Repeat("o", MaxID)))
	lines := slices.Repeat([]string{line}, 60)
	s.must("PlaceOrder", `{"email":"a@example.org","currency":"EUR","lines":[`+strings.Join(lines, ",")+`]}`)
	for _, st := range []step{{"MarkOrderPaid", `{}`}, confirmOrder, packOrder} {
		s.must(st.typ, st.body)
	}
	for range MaxShipments - 1 {
		s.must("ShipOrder", `{"lines":[{"line":60,"quantity":1}]}`)
	}
	s.must(shipAll.typ, shipAll.body)
	for range 99 {
		s.must("ReturnOrder", `{"lines":[{"line":60,"quantity":1}]}`)
	}
	p := newTeller(t, s.name, NotificationOptions{Channels: notice.Channels()})
	p.hear(s, 0)
	if n := 3 * (2 + maxNoticeParcels + maxNoticeRefunds); len(p.begun) != n || n+3*2 > millrace.MaxCalls {
		t.Errorf("%d calls, want %d, and at most %d may be", len(p.begun), n, millrace.MaxCalls)
	}
	for _, name := range p.begun {
		if len(name) > millrace.MaxStepName || len(millrace.StepID(ProcessNotifications, s.name, name)) > millrace.MaxCommandID {
			t.Errorf("%s is too long", name)
		}
	}
	var n notice.Notice
	if err := jsonx.Unmarshal(p.asked["placed/email"], &n); err != nil || len(n.Lines) != notice.MaxLines || n.More != 10 {
		t.Errorf("%d lines and %d more (%v)", len(n.Lines), n.More, err)
	}
	if d := n.Lines[0].Description; d != strings.Repeat("é", notice.MaxDescription-1)+"…" {
		t.Errorf("%q", d)
	}
	if state, err := p.m.EncodeState(p.state); err != nil || len(state) > 2<<20 {
		t.Errorf("the state has %d bytes (%v)", len(state), err)
	}
}
