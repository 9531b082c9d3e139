package millracetest_test

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/millracetest"
)

// The vouchers of the example keep the contracts: this is what such a test looks like.
func TestCheckDomainOfTheExample(t *testing.T) {
	stream := millrace.NewStream("voucher", "v-1")
	millracetest.CheckDomain(t, []millrace.Definition{vouchers()}, []millracetest.Example{{
		Name: "issued and redeemed", Commands: []millrace.Command{
			{Stream: stream, Type: "RedeemVoucher", Data: []byte(`{"cents":1}`)},
			{Stream: stream, Type: "IssueVoucher", Data: []byte(`{"cents":1000}`)},
			{Stream: stream, Type: "IssueVoucher", Data: []byte(`{"cents":1000}`)},
			{Stream: stream, Type: "RedeemVoucher", Data: []byte(`{"cents":450}`)},
			{Stream: stream, Type: "RedeemVoucher", Data: []byte(`{"cents":999}`)},
		},
	}})
}

// A domain to break: baskets, into which things are put until they are emptied.
type (
	putThing struct {
		Thing string   `json:"thing"`
		Count int64    `json:"count"`
		Tags  []string `json:"tags,omitempty"`
	}
	emptyBasket struct{}

	thingPut struct {
		Thing  string    `json:"thing"`
		Count  int64     `json:"count"`
		At     time.Time `json:"at"`
		Secret string    `json:"-"`
	}
	basketEmptied struct {
		Things []string `json:"things"`
	}

	basket struct {
		Things []string         `json:"things"`
		Counts map[string]int64 `json:"counts"`
		Last   string           `json:"-"`
	}
)

// hastyPut reads itself, and not what stands there.
type hastyPut struct {
	Thing string `json:"thing"`
	Count int64  `json:"count"`
}

func (p *hastyPut) DecodeJSON([]byte) bool { p.Thing, p.Count = "apple", 1; return true }

func baskets() millrace.Domain[basket] {
	return millrace.Domain[basket]{
		Category: "basket", StateVersion: 1,
		Initial:  func(string) basket { return basket{} },
		Decide:   decideBasket,
		Evolve:   evolveBasket,
		Commands: []millrace.Message{millrace.MessageOf[putThing]("PutThing"), millrace.MessageOf[emptyBasket]("EmptyBasket")},
		Events:   []millrace.Message{millrace.MessageOf[thingPut]("ThingPut"), millrace.MessageOf[basketEmptied]("BasketEmptied")},
	}
}

func decideBasket(b basket, wish any, at time.Time) ([]any, *millrace.Refusal) {
	switch c := wish.(type) {
	case *putThing:
		if c.Count < 1 {
			return nil, &millrace.Refusal{Kind: millrace.RefusedRule, Code: "count_invalid", Detail: "must be at least 1"}
		}
		return []any{&thingPut{Thing: c.Thing, Count: c.Count, At: at}}, nil
	case *emptyBasket:
		if len(b.Things) == 0 {
			return nil, nil
		}
		return []any{&basketEmptied{Things: slices.Clone(b.Things)}}, nil
	}
	panic("a command that is not declared")
}

func evolveBasket(b basket, event any) basket {
	if e, ok := event.(*thingPut); ok {
		counts := maps.Clone(b.Counts)
		if counts == nil {
			counts = map[string]int64{}
		}
		counts[e.Thing] += e.Count
		return basket{Things: append(slices.Clone(b.Things), e.Thing), Counts: counts}
	}
	return basket{}
}

// shopping shows baskets in all that they do. Three things leave room behind the third in the array that append makes.
func shopping() []millracetest.Example {
	stream := millrace.NewStream("basket", "b-1")
	e := millracetest.Example{Name: "shopping"}
	for _, data := range []string{`{"thing":"apple","count":2}`, `{"thing":"pear","count":1}`, `{"thing":"plum","count":3}`, `{"thing":"fig","count":1}`, `{"thing":"kiwi","count":0}`} {
		e.Commands = append(e.Commands, millrace.Command{Stream: stream, Type: "PutThing", Data: []byte(data)})
	}
	for range 2 {
		e.Commands = append(e.Commands, millrace.Command{Stream: stream, Type: "EmptyBasket", Data: []byte(`{}`)})
	}
	return []millracetest.Example{e}
}

// recorder is a test that may fail.
type recorder struct {
	testing.TB
	faults []string
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.faults = append(r.faults, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

// check runs CheckDomain and gives what it says.
func check(t *testing.T, domains []millrace.Definition, examples []millracetest.Example) []string {
	t.Helper()
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() { // Fatalf ends a goroutine
		defer close(done)
		millracetest.CheckDomain(r, domains, examples)
	}()
	<-done
	return r.faults
}

// wrap changes what Decide says.
func wrap(d *millrace.Domain[basket], change func(b basket, wish any, events []any) ([]any, *millrace.Refusal)) {
	d.Decide = func(b basket, wish any, at time.Time) ([]any, *millrace.Refusal) {
		events, refusal := decideBasket(b, wish, at)
		if len(events) == 0 {
			return events, refusal
		}
		return change(b, wish, events)
	}
}

func refuse(r millrace.Refusal) func(d *millrace.Domain[basket]) {
	return func(d *millrace.Domain[basket]) {
		wrap(d, func(_ basket, wish any, events []any) ([]any, *millrace.Refusal) {
			if c, ok := wish.(*putThing); ok && c.Thing == "fig" {
				return nil, &r
			}
			return events, nil
		})
	}
}

// broken are domains that break one contract each, and what is to be said of them.
func broken() map[string]func(d *millrace.Domain[basket]) {
	calls := 0
	return map[string]func(d *millrace.Domain[basket]){
		"the event ThingPut does not come back from its encoding": func(d *millrace.Domain[basket]) {
			wrap(d, func(_ basket, _ any, events []any) ([]any, *millrace.Refusal) {
				if e, ok := events[0].(*thingPut); ok {
					e.Secret = "only the live consumers see it"
				}
				return events, nil
			})
		},
		"an event cannot be written": func(d *millrace.Domain[basket]) {
			wrap(d, func(_ basket, _ any, events []any) ([]any, *millrace.Refusal) {
				return []any{events[0], "not declared"}, nil
			})
		},
		"the event BasketEmptied does not come back from its encoding": func(d *millrace.Domain[basket]) {
			wrap(d, func(_ basket, _ any, events []any) ([]any, *millrace.Refusal) {
				if _, ok := events[0].(*basketEmptied); ok {
					return []any{&basketEmptied{}}, nil // null and [] are two things
				}
				return events, nil
			})
		},
		"the command PutThing reads by DecodeJSON something else": func(d *millrace.Domain[basket]) {
			d.Commands[0] = millrace.MessageOf[hastyPut]("PutThing")
			decide := d.Decide
			d.Decide = func(b basket, wish any, at time.Time) ([]any, *millrace.Refusal) {
				if c, ok := wish.(*hastyPut); ok {
					wish = &putThing{Thing: c.Thing, Count: c.Count}
				}
				return decide(b, wish, at)
			}
		},
		"Decide says something else each time, for PutThing": func(d *millrace.Domain[basket]) {
			wrap(d, func(_ basket, _ any, events []any) ([]any, *millrace.Refusal) {
				if e, ok := events[0].(*thingPut); ok {
					e.At = time.Now().UTC()
				}
				return events, nil
			})
		},
		"Decide says something else each time, for EmptyBasket": func(d *millrace.Domain[basket]) {
			calls := 0
			wrap(d, func(b basket, _ any, events []any) ([]any, *millrace.Refusal) {
				if _, ok := events[0].(*basketEmptied); ok {
					// As the order of a map would be, but never the same by chance.
					things := slices.Sorted(maps.Keys(b.Counts))
					calls++
					k := calls % max(len(things), 1)
					return []any{&basketEmptied{Things: append(things[k:], things[:k]...)}}, nil
				}
				return events, nil
			})
		},
		"Decide changes the state that it was given by EmptyBasket": func(d *millrace.Domain[basket]) {
			wrap(d, func(b basket, wish any, events []any) ([]any, *millrace.Refusal) {
				if _, ok := wish.(*emptyBasket); ok {
					slices.Sort(b.Things)
				}
				return events, nil
			})
		},
		"Decide changes the command that it was given, a PutThing": func(d *millrace.Domain[basket]) {
			wrap(d, func(_ basket, wish any, events []any) ([]any, *millrace.Refusal) {
				if c, ok := wish.(*putThing); ok {
					c.Tags = append(c.Tags, "seen")
				}
				return events, nil
			})
		},
		"Decide of EmptyBasket panics": func(d *millrace.Domain[basket]) {
			wrap(d, func(_ basket, wish any, events []any) ([]any, *millrace.Refusal) {
				if _, ok := wish.(*emptyBasket); ok {
					panic("on purpose")
				}
				return events, nil
			})
		},
		"Decide returns events and a refusal": func(d *millrace.Domain[basket]) {
			wrap(d, func(_ basket, _ any, events []any) ([]any, *millrace.Refusal) {
				return events, &millrace.Refusal{Kind: millrace.RefusedRule, Code: "both", Detail: "yes and no"}
			})
		},
		"a refusal of PutThing has no code":   refuse(millrace.Refusal{Kind: millrace.RefusedRule, Code: "Too many!", Detail: "too many"}),
		"a refusal of PutThing has no kind":   refuse(millrace.Refusal{Code: "full", Detail: "too many"}),
		"a refusal of PutThing has no detail": refuse(millrace.Refusal{Kind: millrace.RefusedRule, Code: "full"}),
		"a refusal of PutThing names a place that is no JSON pointer": refuse(millrace.Refusal{
			Kind: millrace.RefusedRule, Code: "full", Detail: "too many", Errors: []millrace.FieldError{{Pointer: "count"}},
		}),
		"Evolve changes the state that it was given, by ThingPut": func(d *millrace.Domain[basket]) {
			d.Evolve = func(b basket, event any) basket {
				next := evolveBasket(b, event)
				if e, ok := event.(*thingPut); ok && b.Counts != nil {
					b.Counts[e.Thing] += e.Count // the map of the state before
					next.Counts = b.Counts
				}
				return next
			}
		},
		// The classic: append writes behind the end of a state's slice, where the state of another branch ends later.
		"a state of basket is changed by what happens after it": func(d *millrace.Domain[basket]) {
			d.Evolve = func(b basket, event any) basket {
				next := evolveBasket(b, event)
				if e, ok := event.(*thingPut); ok {
					next.Things = append(b.Things, e.Thing) // this is what is wrong with it
				}
				return next
			}
		},
		"Evolve changes the event that it was given, a ThingPut": func(d *millrace.Domain[basket]) {
			d.Evolve = func(b basket, event any) basket {
				next := evolveBasket(b, event)
				if e, ok := event.(*thingPut); ok {
					e.Thing = strings.ToUpper(e.Thing)
				}
				return next
			}
		},
		"Evolve comes to another state each time, by ThingPut": func(d *millrace.Domain[basket]) {
			d.Evolve = func(b basket, event any) basket {
				next := evolveBasket(b, event)
				calls++
				next.Last = fmt.Sprint(calls)
				return next
			}
		},
		"Evolve comes to another state over events that were read, by ThingPut": func(d *millrace.Domain[basket]) {
			wrap(d, func(_ basket, _ any, events []any) ([]any, *millrace.Refusal) {
				if e, ok := events[0].(*thingPut); ok {
					e.Secret = "it is in no file"
				}
				return events, nil
			})
			d.Evolve = func(b basket, event any) basket {
				next := evolveBasket(b, event)
				if e, ok := event.(*thingPut); ok {
					next.Last = e.Secret
				}
				return next
			}
		},
		"Evolve by BasketEmptied panics": func(d *millrace.Domain[basket]) {
			d.Evolve = func(b basket, event any) basket { _ = event.(*thingPut); return evolveBasket(b, event) } //nolint:forcetypeassert // on purpose
		},
		"a snapshot of basket leads to another decision of PutThing": func(d *millrace.Domain[basket]) {
			d.Evolve = func(b basket, event any) basket {
				next := evolveBasket(b, event)
				if e, ok := event.(*thingPut); ok {
					next.Last = e.Thing // no snapshot has it
				}
				return next
			}
			wrap(d, func(b basket, _ any, events []any) ([]any, *millrace.Refusal) {
				if e, ok := events[0].(*thingPut); ok {
					e.Thing += b.Last[:min(1, len(b.Last))]
				}
				return events, nil
			})
		},
		"Initial is another each time": func(d *millrace.Domain[basket]) {
			d.Initial = func(string) basket { calls++; return basket{Last: fmt.Sprint(calls)} }
		},
		"no example has the command PeekBasket": func(d *millrace.Domain[basket]) {
			d.Commands = append(d.Commands, millrace.MessageOf[emptyBasket]("PeekBasket"))
		},
		"no example leads to the event BasketPeeked": func(d *millrace.Domain[basket]) {
			d.Events = append(d.Events, millrace.MessageOf[emptyBasket]("BasketPeeked"))
		},
		"the domains cannot be registered": func(d *millrace.Domain[basket]) { d.Evolve = nil },
	}
}

// Each broken domain is told by what is wrong with it. The control, the same domain unbroken, is told nothing.
func TestCheckDomainNotices(t *testing.T) {
	if faults := check(t, []millrace.Definition{baskets()}, shopping()); len(faults) > 0 {
		t.Fatalf("the control: %s", strings.Join(faults, "\n"))
	}
	for want, change := range broken() {
		t.Run(want, func(t *testing.T) {
			d := baskets()
			change(&d)
			faults := check(t, []millrace.Definition{d}, shopping())
			if !slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, want) }) {
				t.Errorf("it says %q", faults)
			}
			for _, f := range faults {
				if strings.Contains(f, "%!") {
					t.Errorf("badly formatted: %s", f)
				}
			}
		})
	}
}

// Examples that show nothing are no proof, and are told so.
func TestCheckDomainNoticesBadExamples(t *testing.T) {
	command := func(stream millrace.Stream, typ, data string) []millracetest.Example {
		return append(shopping(), millracetest.Example{Name: "bad", Commands: []millrace.Command{{Stream: stream, Type: typ, Data: []byte(data)}}})
	}
	for name, c := range map[string]struct {
		examples []millracetest.Example
		want     string
	}{
		"another stream":          {command("order-1", "PutThing", `{}`), "bad, command 1 (PutThing of order-1): the stream belongs to none of the domains"},
		"no stream":               {command("basket-", "PutThing", `{}`), "the stream belongs to none of the domains"},
		"another command":         {command("basket-2", "Nonsense", `{}`), "the command cannot be decoded"},
		"another form":            {command("basket-2", "PutThing", `{"things":1}`), "the command cannot be decoded"},
		"a command that is lossy": {command("basket-2", "PutThing", `{"thing":"a","count":1,"tags":[]}`), "the command PutThing does not come back from its encoding"},
		"no examples":             {nil, "no example has the command PutThing"},
	} {
		faults := check(t, []millrace.Definition{baskets()}, c.examples)
		if !slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, c.want) }) {
			t.Errorf("%s: it says %q", name, faults)
		}
	}
}

// The same fault is told once, however often it happens: a page of the same hides the others.
func TestCheckDomainSaysItOnce(t *testing.T) {
	d := baskets()
	wrap(&d, func(_ basket, _ any, events []any) ([]any, *millrace.Refusal) {
		if e, ok := events[0].(*thingPut); ok {
			e.Secret = "in no file"
		}
		return events, nil
	})
	faults := check(t, []millrace.Definition{d}, append(shopping(), shopping()...))
	if len(faults) != 1 || !strings.HasPrefix(faults[0], "shopping, command 1 (PutThing of basket-b-1): ") {
		t.Errorf("%q", faults)
	}
}
