package system_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/system"
	"github.com/millrace-io/millrace/millracetest"
)

// somewhere is the token of a cursor.
var somewhere = millrace.Cursor{Epoch: 1, Positions: []uint64{3, 0, 7}}.String()

// consumed is an example of a consumer that is paused, drained and resumed.
func consumed() millracetest.Example {
	e := millracetest.Example{Name: "a consumer"}
	for _, c := range [][2]string{
		{"PauseConsumer", `{"by":"ann","why":"the index is rebuilt"}`}, {"PauseConsumer", `{}`}, {"DrainConsumer", `{"until":"` + somewhere + `"}`},
		{"ResumeConsumer", `{"by":"ben"}`}, {"ResumeConsumer", `{}`}, {"DrainConsumer", `{"by":"ann","why":"an upgrade","until":"` + somewhere + `"}`},
		{"CompleteDrain", `{"change":3}`}, {"CompleteDrain", `{"change":4}`}, {"CompleteDrain", `{"change":4}`},
		{"ResumeConsumer", `{}`}, {"DrainConsumer", `{"until":"` + somewhere + `"}`}, {"DrainConsumer", `{"until":"` + somewhere + `"}`}, {"PauseConsumer", `{}`},
	} {
		e.Commands = append(e.Commands, millrace.Command{Stream: system.ConsumerStream("orders"), Type: c[0], Data: []byte(c[1])})
	}
	return e
}

// life is a consumer and what it is asked for.
type life struct {
	t        testing.TB
	category *millrace.Category
	state    any
	at       time.Time
}

func newLife(t testing.TB) *life {
	t.Helper()
	r, err := millrace.NewRegistry(system.Domains()...)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := r.Category(system.ConsumerStream("x"))
	return &life{t: t, category: c, state: c.Initial("consumer-x"), at: time.Unix(1e9, 0).UTC()}
}

func (l *life) consumer() *system.Consumer {
	return l.state.(*system.Consumer) //nolint:forcetypeassert // the category has no other state
}

// do decides a command and applies what comes of it: how many events, and the code of a refusal.
func (l *life) do(command any) (events int, code string) {
	l.at = l.at.Add(time.Second)
	all, refusal := l.category.Decide(l.state, command, l.at)
	if refusal != nil {
		return 0, refusal.Code
	}
	for _, e := range all {
		l.state = l.category.Evolve(l.state, e)
	}
	return len(all), ""
}

// Every mode meets every command.
func TestEveryModeAndCommand(t *testing.T) {
	pause, resume := &system.PauseConsumer{By: "pete", Why: "p"}, &system.ResumeConsumer{By: "ruth", Why: "r"}
	drain := &system.DrainConsumer{By: "dora", Why: "d", Until: somewhere}
	// In each mode there is one change, which a drain is completed by.
	modes := map[system.Mode]any{system.Running: resume, system.Paused: pause, system.Draining: drain}
	for _, tc := range []struct {
		in      system.Mode
		command any
		events  int
		code    string
		mode    system.Mode
		by      string
	}{
		{system.Running, pause, 1, "", system.Paused, "pete"},
		{system.Running, resume, 1, "", system.Running, "ruth"},
		{system.Running, drain, 1, "", system.Draining, "dora"},
		{system.Running, &system.CompleteDrain{Change: 1}, 0, "", system.Running, "ruth"},
		{system.Paused, &system.PauseConsumer{By: "paul"}, 0, "", system.Paused, "pete"},
		{system.Paused, resume, 1, "", system.Running, "ruth"},
		{system.Paused, drain, 0, system.CodePaused, system.Paused, "pete"},
		{system.Paused, &system.CompleteDrain{Change: 1}, 0, "", system.Paused, "pete"},
		{system.Draining, pause, 1, "", system.Paused, "pete"},
		{system.Draining, resume, 1, "", system.Running, "ruth"},
		{system.Draining, &system.DrainConsumer{By: "dan", Until: somewhere}, 1, "", system.Draining, "dan"},
		{system.Draining, &system.CompleteDrain{Change: 1}, 1, "", system.Paused, "dora"},
		{system.Draining, &system.CompleteDrain{Change: 2}, 0, "", system.Draining, "dora"},
	} {
		l := newLife(t)
		l.do(modes[tc.in])
		before := *l.consumer()
		events, code := l.do(tc.command)
		s := l.consumer()
		if events != tc.events || code != tc.code || s.Mode != tc.mode || s.By != tc.by {
			t.Errorf("%s, %+v: %d events, %q, %+v", tc.in, tc.command, events, code, s)
		}
		if events == 0 && !cmp.Equal(&before, s) || events == 1 && (s.Changes != 2 || !s.Since.Equal(l.at)) || (s.Until != "") != (s.Mode == system.Draining) {
			t.Errorf("%s, %+v: %+v", tc.in, tc.command, s)
		}
	}
}

// Whatever is asked for, in whichever order and how often: the last word counts, and a drain is completed once.
func TestAnyOrder(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		l := newLife(t)
		want, resumes := system.Running, uint64(0)
		for range rapid.IntRange(0, 30).Draw(r, "commands") {
			s := l.consumer()
			switch rapid.IntRange(0, 3).Draw(r, "command") {
			case 0:
				l.do(&system.PauseConsumer{})
				want = system.Paused
			case 1:
				l.do(&system.ResumeConsumer{})
				want, resumes = system.Running, resumes+1
			case 2:
				l.do(&system.DrainConsumer{Until: somewhere})
				if want == system.Running {
					want = system.Draining
				}
			case 3:
				change := rapid.Uint64Range(0, s.Changes).Draw(r, "change")
				l.do(&system.CompleteDrain{Change: change})
				if want == system.Draining && change == s.Changes {
					want = system.Paused
				}
			}
			if s := l.consumer(); s.Mode != want || s.Resumes != resumes {
				r.Fatalf("%+v, want %s", s, want)
			}
		}
	})
}

func TestConsumerForm(t *testing.T) {
	for _, c := range []struct {
		body     millrace.Validator
		pointers string
	}{
		{&system.PauseConsumer{}, ""},
		{&system.PauseConsumer{By: strings.Repeat("é", 50), Why: strings.Repeat("x", 1000)}, ""},
		{&system.PauseConsumer{By: strings.Repeat("é", 51), Why: "a\nb"}, "/by /why"},
		{&system.ResumeConsumer{By: "\xff", Why: strings.Repeat("x", 1001)}, "/by /why"},
		{&system.DrainConsumer{Until: somewhere}, ""},
		{&system.DrainConsumer{Until: "x", By: "\x00"}, "/by /until"},
		{&system.DrainConsumer{}, "/until"},
	} {
		var got []string
		for _, f := range c.body.Validate() {
			got = append(got, f.Pointer)
		}
		if s := strings.Join(got, " "); s != c.pointers {
			t.Errorf("%+v: %q, want %q", c.body, s, c.pointers)
		}
	}
}
