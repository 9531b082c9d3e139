package command_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/millracetest"
)

// poisonous is the tally domain, which a note makes break its contract in one way.
func poisonous() millrace.Domain[millracetest.TallyState] {
	d := noted(func(note string) ([]any, bool) {
		switch note {
		case "many":
			return slices.Repeat([]any{&millracetest.Added{N: 1}}, command.MaxEvents+1), true
		case "no text":
			panic("bytes that no document holds: \xff \x00")
		case "undeclared":
			return []any{&millracetest.Added{N: 1}, &millracetest.Split{N: 1}}, true
		case "nil":
			return []any{nil}, true
		case "large":
			return []any{&millracetest.Added{N: 1}, &millracetest.Added{N: 1, Note: strings.Repeat("x", command.MaxEventData)}}, true
		case "bad event":
			return []any{&millracetest.Added{N: 1}, &millracetest.Added{N: 1, Note: note}}, true
		case "largest":
			return []any{&millracetest.Added{N: 1, Total: 1, Note: strings.Repeat("x", command.MaxEventData-100)}}, true
		default:
			return nil, false
		}
	})
	decide := d.Decide
	d.Decide = func(s millracetest.TallyState, c any, at time.Time) ([]any, *millrace.Refusal) {
		events, refusal := decide(s, c, at)
		if a, ok := c.(*millracetest.Add); ok && a.Note == "both" {
			refusal = &millrace.Refusal{Kind: millrace.RefusedRule, Code: "x"}
		}
		return events, refusal
	}
	evolve := d.Evolve
	d.Evolve = func(s millracetest.TallyState, e any) millracetest.TallyState {
		if a, ok := e.(*millracetest.Added); ok && a.Note == "bad event" {
			panic("an event that cannot be folded")
		}
		return evolve(s, e)
	}
	return d
}

// A command that the domain fails at becomes a dead letter; what comes behind it in its stream goes on, and so does
// everything else.
func TestPoisonBecomesDeadLetter(t *testing.T) {
	const secret = "a-value-that-no-answer-repeats"
	raw := func(stream millrace.Stream, typ, data string) millrace.Command {
		return millrace.Command{ID: "poison", Stream: stream, Type: typ, Data: []byte(data)}
	}
	cases := []struct {
		name     string
		c        millrace.Command
		reason   string
		attempts int
	}{
		{"panic", raw("tally-a", "Explode", `{}`), millrace.ReasonDecide, 3},
		{"panic with bytes", addNote("poison", "a", 1, "no text"), millrace.ReasonDecide, 3},
		{"too many events", addNote("poison", "a", 1, "many"), millrace.ReasonDecide, 3},
		{"undeclared event", addNote("poison", "a", 1, "undeclared"), millrace.ReasonDecide, 3},
		{"nil event", addNote("poison", "a", 1, "nil"), millrace.ReasonDecide, 3},
		{"too large", addNote("poison", "a", 1, "large"), millrace.ReasonDecide, 3},
		{"events and a refusal", addNote("poison", "a", 1, "both"), millrace.ReasonDecide, 3},
		{"evolve panics", addNote("poison", "a", 1, "bad event"), millrace.ReasonDecide, 3},
		{"unknown type", raw("tally-a", "Nonsense", `{}`), millrace.ReasonUnknownType, 1},
		{"unknown category", raw("nobody-a", "Add", `{"n":1}`), millrace.ReasonUnknownType, 1},
		{"no JSON", raw("tally-a", "Add", `{"n":`), millrace.ReasonUndecodable, 1},
		{"empty", raw("tally-a", "Add", ``), millrace.ReasonUndecodable, 1},
		{"wrong kind", raw("tally-a", "Add", `{"n":"`+secret+`"}`), millrace.ReasonUndecodable, 1},
		{"unknown field", raw("tally-a", "Add", `{"n":1,"m":"`+secret+`"}`), millrace.ReasonUndecodable, 1},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			fs := vfs.NewMem()
			s := open(t, fs)
			p := runWith(t, s, registryOf(t, poisonous()), nil)
			ctx := patient(t)
			cs := []millrace.Command{add("before", "a", 1), tc.c, add("behind", "a", 1), add("other", "b", 1)}
			for i, a := range p.AcceptAll(ctx, cs) {
				if a.Err != nil {
					t.Fatal(a.Err)
				}
				o, err := a.Receipt.Wait(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if i != 1 && o.Status != millrace.StatusDecided {
					t.Errorf("%s suffers from its neighbour: %+v", cs[i].ID, o)
				}
			}
			o := outcome(t, s, "poison")
			if o.Status != millrace.StatusDead || o.Events != 0 || o.Failure == nil {
				t.Fatalf("%+v", o)
			}
			if o.Failure.Reason != tc.reason || o.Failure.Attempts != tc.attempts || o.Failure.Error == "" {
				t.Errorf("%+v", o.Failure)
			}
			if strings.Contains(o.Failure.Error, secret) {
				t.Errorf("the dead letter repeats a value: %s", o.Failure.Error)
			}
			if got := fmt.Sprint(commandsOf(t, s, "a")); got != "[before behind]" {
				t.Errorf("the stream holds %s", got)
			}
			c, err := s.Command(ctx, "poison")
			if err != nil || string(c.Data) != string(tc.c.Data) || c.Type != tc.c.Type {
				t.Errorf("the dead letter's message is not kept: %+v %v", c, err)
			}
			if err := p.stop(); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, fs)
			p = runWith(t, s, registryOf(t, poisonous()), nil)
			if d := cmp.Diff(o, decided(t, p.Processor, tc.c)); d != "" {
				t.Errorf("another outcome after a restart:\n%s", d)
			}
			verify(t, s)
		})
	}
}

// A stream whose own events cannot be folded or read: its commands become dead letters, the other streams go on, and
// code that can read the events goes on with the stream.
func TestUnreadableState(t *testing.T) {
	unknown := millracetest.Tally()
	unknown.Events = []millrace.Message{millrace.MessageOf[millracetest.Split]("Other")}
	upcast := millracetest.Tally()
	upcast.Upcasters = map[string]millrace.Upcaster{"Added": func([]byte) (string, []byte, error) { return "", nil, errPassing }}
	for name, d := range map[string]millrace.Domain[millracetest.TallyState]{
		"fold panics": poisonous(), "event type is not known": unknown, "upcast fails": upcast,
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			s := open(t, fs)
			p := runWith(t, s, registry(t), nil)
			decided(t, p.Processor, addNote("c", "bad", 1, "bad event"))
			if err := p.stop(); err != nil {
				t.Error(err)
			}
			p = runWith(t, s, registryOf(t, d), nil)
			if o := decided(t, p.Processor, add("dead", "bad", 1)); o.Status != millrace.StatusDead || o.Failure.Reason != millrace.ReasonState {
				t.Errorf("%+v", o)
			}
			if o := decided(t, p.Processor, add("nothing", "good", 0)); o.Status != millrace.StatusDecided {
				t.Errorf("%+v", o)
			}
			if err := p.stop(); err != nil {
				t.Error(err)
			}
			p = runWith(t, s, registry(t), nil)
			if o := decided(t, p.Processor, add("again", "bad", 1)); o.Status != millrace.StatusDecided || o.Version != 2 {
				t.Errorf("%+v", o)
			}
			verify(t, s)
		})
	}
}

// Decisions whose events are large share no commit that the store cannot hold.
func TestManyLargeDecisions(t *testing.T) {
	s := openWith(t, vfs.NewMem(), func(o *localstore.Options) { o.SegmentSize, o.Partitions = 16<<20, 1 })
	p := runWith(t, s, registryOf(t, poisonous()), nil)
	cs := make([]millrace.Command, 6)
	for i := range cs {
		cs[i] = addNote(fmt.Sprint("c", i), "a", 1, "largest")
	}
	ctx := patient(t)
	for _, a := range p.AcceptAll(ctx, cs) {
		if a.Err != nil {
			t.Fatal(a.Err)
		}
		if o, err := a.Receipt.Wait(ctx); err != nil || o.Status != millrace.StatusDecided {
			t.Fatalf("%v %v", o.Status, err)
		}
	}
	if n := len(commandsOf(t, s, "a")); n != len(cs) {
		t.Errorf("%d events", n)
	}
}
