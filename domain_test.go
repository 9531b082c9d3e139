package millrace_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
)

type (
	state  struct{ Sum int64 }
	put    struct{ N int64 }
	putIn  struct{ N int64 }
	checkd struct{ N int64 }
	ownBin struct{ N int64 }
)

func (c *checkd) Validate() []millrace.FieldError {
	if c.N > 9 {
		return []millrace.FieldError{{Pointer: "/N", Detail: "must be at most 9"}}
	}
	return nil
}

func (o *ownBin) AppendJSON(dst []byte) []byte { return fmt.Appendf(dst, `{ "N": %d }`, o.N) }

func domain(category string) millrace.Domain[state] {
	return millrace.Domain[state]{
		Category: category, StateVersion: 1,
		Initial: func(id string) state { return state{Sum: int64(len(id))} },
		Decide:  func(_ state, c any, _ time.Time) ([]any, *millrace.Refusal) { return []any{&putIn{N: c.(*put).N}}, nil }, //nolint:forcetypeassert // its only command
		Evolve:  func(s state, e any) state { return state{Sum: s.Sum + e.(*putIn).N} },                                    //nolint:forcetypeassert // its only event
		Commands: []millrace.Message{
			millrace.MessageOf[put]("Put" + category), millrace.MessageOf[checkd]("Check" + category),
		},
		Events: []millrace.Message{millrace.MessageOf[putIn]("PutIn"), millrace.MessageOf[ownBin]("Own")},
	}
}

func TestRegistryRefusesContradictions(t *testing.T) {
	change := func(f func(d *millrace.Domain[state])) millrace.Domain[state] {
		d := domain("b")
		f(&d)
		return d
	}
	long := strings.Repeat("x", millrace.MaxTypeName+1)
	for what, d := range map[string]millrace.Definition{
		"the same category":        domain("a"),
		"a bad category":           domain("A"),
		"no category":              domain(""),
		"no Decide":                change(func(d *millrace.Domain[state]) { d.Decide = nil }),
		"no Evolve":                change(func(d *millrace.Domain[state]) { d.Evolve = nil }),
		"no Initial":               change(func(d *millrace.Domain[state]) { d.Initial = nil }),
		"another's command":        change(func(d *millrace.Domain[state]) { d.Commands = []millrace.Message{millrace.MessageOf[put]("Puta")} }),
		"a command without a name": change(func(d *millrace.Domain[state]) { d.Commands = []millrace.Message{millrace.MessageOf[put]("")} }),
		"a long command name":      change(func(d *millrace.Domain[state]) { d.Commands = []millrace.Message{millrace.MessageOf[put](long)} }),
		"the same event twice":     change(func(d *millrace.Domain[state]) { d.Events = append(d.Events, d.Events[0]) }),
		"a long event name":        change(func(d *millrace.Domain[state]) { d.Events = []millrace.Message{millrace.MessageOf[put](long)} }),
	} {
		if _, err := millrace.NewRegistry(domain("a"), d); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
	r, err := millrace.NewRegistry(domain("a"), domain("b")) // both have an event "PutIn"
	if err != nil {
		t.Fatal(err)
	}
	if c, ok := r.Knows("Putb"); !ok || c != "b" {
		t.Errorf("%q %v", c, ok)
	}
	if _, ok := r.Knows("Nonsense"); ok {
		t.Error("knows everything")
	}
}

func TestDecodeCommand(t *testing.T) {
	r, err := millrace.NewRegistry(domain("a"), domain("b"))
	if err != nil {
		t.Fatal(err)
	}
	decode := func(stream millrace.Stream, typ, data string) (any, error) {
		return r.DecodeCommand(&millrace.Command{Stream: stream, Type: typ, Data: []byte(data)})
	}
	if body, err := decode("a-1", "Puta", `{"N":3}`); err != nil || !cmp.Equal(body, &put{N: 3}) {
		t.Errorf("%v %v", body, err)
	}
	for _, wrong := range [][2]string{{"a-1", "Putb"}, {"a-1", "Nonsense"}, {"c-1", "Puta"}} {
		if _, err := decode(millrace.Stream(wrong[0]), wrong[1], `{"N":3}`); !errors.Is(err, millrace.ErrUnknownType) {
			t.Errorf("%v: %v", wrong, err)
		}
	}
	for data, pointer := range map[string]string{`{"N":"secret"}`: "/N", `{"N":1,"N":2}`: "/N", `{"n":1}`: "", `{"N":1} x`: "", ``: "", `{"N":1.5}`: "/N"} {
		_, err := decode("a-1", "Puta", data)
		var form *millrace.FormError
		if !errors.As(err, &form) || !errors.Is(err, millrace.ErrInvalid) || len(form.Errors) != 1 || form.Errors[0].Pointer != pointer {
			t.Errorf("%s: %v %+v", data, err, form)
		} else if form.Errors[0].Detail == "" || strings.Contains(form.Errors[0].Detail, "secret") {
			t.Errorf("%s: %q", data, form.Errors[0].Detail)
		}
	}
	var form *millrace.FormError
	if _, err := decode("a-1", "Checka", `{"N":10}`); !errors.As(err, &form) || form.Errors[0].Pointer != "/N" {
		t.Errorf("the body's own rule: %v", err)
	}
	// What the door has decoded is not decoded again, but only where it is of the right type.
	mine := &put{N: 5}
	if body, err := r.DecodeCommand(&millrace.Command{Stream: "a-1", Type: "Puta", Data: []byte(`{"N":3}`), Body: mine}); err != nil || body != mine {
		t.Errorf("%v %v", body, err)
	}
	if body, err := r.DecodeCommand(&millrace.Command{Stream: "a-1", Type: "Puta", Data: []byte(`{"N":3}`), Body: &putIn{}}); err != nil || !cmp.Equal(body, &put{N: 3}) {
		t.Errorf("%v %v", body, err)
	}
}

// An old event is brought to its present form step by step; what cannot be is an error, never skipped.
func TestUpcasting(t *testing.T) {
	d := domain("a")
	d.Upcasters = map[string]millrace.Upcaster{
		"V1":   func(data []byte) (string, []byte, error) { return "V2", append([]byte(`{"N":1`), data...), nil },
		"V2":   func(data []byte) (string, []byte, error) { return "PutIn", append(data, "0}"...), nil },
		"Loop": func(data []byte) (string, []byte, error) { return "Loop", data, nil },
		"Lost": func(data []byte) (string, []byte, error) { return "Nowhere", data, nil },
		"Bad":  func([]byte) (string, []byte, error) { return "", nil, errors.New("no") },
	}
	r, err := millrace.NewRegistry(d, domain("b"))
	if err != nil {
		t.Fatal(err)
	}
	event := func(stream millrace.Stream, typ, data string) *millrace.Recorded {
		return &millrace.Recorded{Stream: stream, Version: 4, Type: typ, Data: []byte(data)}
	}
	e := event("a-1", "V1", "7")
	body, err := r.Body(e)
	if err != nil || !cmp.Equal(body, &putIn{N: 170}) {
		t.Errorf("%v %v", body, err)
	}
	if e.Type != "V1" || string(e.Data) != "7" {
		t.Errorf("the log's event was changed: %+v", e)
	}
	if again, err := r.Body(e); err != nil || again != body {
		t.Errorf("decoded twice: %v", err)
	}
	for _, e := range []*millrace.Recorded{event("a-1", "Loop", "{}"), event("a-1", "Lost", "{}"), event("a-1", "Bad", "{}"),
		event("b-1", "V1", "{}"), event("a-1", "PutIn", "{"), event("a-1", "Unheard", "{}"), event("c-1", "PutIn", "{}")} {
		if body, err := r.Body(e); err == nil || body != nil || !strings.Contains(err.Error(), e.ID()) {
			t.Errorf("%s %s: %v %v", e.Stream, e.Type, body, err)
		}
	}
}

func TestCategory(t *testing.T) {
	r, err := millrace.NewRegistry(domain("a"))
	if err != nil {
		t.Fatal(err)
	}
	c, ok := r.Category("a-four")
	if !ok {
		t.Fatal("no category")
	}
	s := c.Initial("a-four")
	events, refusal := c.Decide(s, &put{N: 3}, noon)
	if refusal != nil || len(events) != 1 {
		t.Fatalf("%v %v", events, refusal)
	}
	s = c.Evolve(s, events[0])
	data, err := c.EncodeState(s)
	if err != nil || string(data) != `{"Sum":7}` {
		t.Errorf("%s %v", data, err)
	}
	if back, err := c.DecodeState(data); err != nil || back != s {
		t.Errorf("%v %v", back, err)
	}
	if _, err := c.DecodeState([]byte(`{"Sum":"x"}`)); err == nil {
		t.Error("a damaged state is read")
	}
	e, err := c.EncodeEvent(events[0])
	if err != nil || e.Type != "PutIn" || string(e.Data) != `{"N":3}` || e.Body != events[0] {
		t.Errorf("%+v %v", e, err)
	}
	if e, err = c.EncodeEvent(&ownBin{N: 4}); err != nil || string(e.Data) != `{ "N": 4 }` {
		t.Errorf("the event's own form: %+v %v", e, err)
	}
	for _, bad := range []any{put{}, putIn{}, &put{}, nil, 3} {
		if _, err := c.EncodeEvent(bad); err == nil {
			t.Errorf("%T passes for an event", bad)
		}
	}
}

type doc struct {
	Name string `json:"name"`
}

func TestTables(t *testing.T) {
	table := millrace.NewTable("docs", []string{"name", "first"}, func(d *doc) []string { return []string{d.Name, d.Name[:1]} })
	data, keys, err := table.Encode(&doc{Name: "xyz"})
	if err != nil || string(data) != `{"name":"xyz"}` || !cmp.Equal(keys, []string{"xyz", "x"}) {
		t.Errorf("%s %q %v", data, keys, err)
	}
	back, err := table.Decode(data)
	if err != nil || back.Name != "xyz" {
		t.Errorf("%+v %v", back, err)
	}
	if _, err := table.Decode([]byte(`{"other":1}`)); err == nil {
		t.Error("another document is read")
	}
	if _, _, err := millrace.NewTable("docs", []string{"name"}, func(*doc) []string { return nil }).Encode(&doc{}); err == nil {
		t.Error("a key is missing and nobody says so")
	}
	if _, keys, err := millrace.NewTable[doc]("docs", nil, nil).Encode(&doc{}); err != nil || len(keys) != 0 {
		t.Errorf("%q %v", keys, err)
	}
	d := millrace.Document{Partition: 2, ID: "i", Keys: []string{"xyz", "x"}}
	if p := d.Place(1); p != (millrace.Place{Key: "x", Partition: 2, ID: "i"}) {
		t.Errorf("%+v", p)
	}
	if p := d.Place(-1); p != (millrace.Place{Partition: 2, ID: "i"}) {
		t.Errorf("%+v", p)
	}
	c := millrace.Consumer{Categories: []string{"a", "b"}}
	if !c.Wants("b") || c.Wants("c") || !(&millrace.Consumer{}).Wants("c") {
		t.Error("categories")
	}
}

type waiter struct{ o millrace.Outcome }

func (w waiter) Await(ctx context.Context) (millrace.Outcome, error) { return w.o, ctx.Err() }

func TestReceiptsAndStatuses(t *testing.T) {
	o := millrace.Outcome{CommandID: "c", Stream: "a-1", Status: millrace.StatusRefused, Refusal: &millrace.Refusal{Code: "x"}}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	settled := millrace.NewReceipt(o, true)
	if got, err := settled.Wait(ended); err != nil || !cmp.Equal(got, o) || !settled.Replayed || settled.CommandID != "c" || settled.Stream != "a-1" {
		t.Errorf("a known outcome needs no waiting: %+v %v", got, err)
	}
	pending := millrace.NewPendingReceipt("c", "a-1", false, waiter{o})
	if got, err := pending.Wait(t.Context()); err != nil || !cmp.Equal(got, o) {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := pending.Wait(ended); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for s, want := range map[millrace.Status]string{0: "unknown", 1: "accepted", 2: "decided", 3: "refused", 4: "dead", 5: "unknown"} {
		o := millrace.Outcome{Status: s}
		if s.String() != want || s < 5 && o.Done() != (s > 1) {
			t.Errorf("%d is %q, done %v", s, s, o.Done())
		}
	}
}

func TestErrors(t *testing.T) {
	for _, err := range []error{millrace.ErrCorrupt, millrace.ErrInvalid, millrace.ErrNotFound, millrace.ErrFailed, millrace.ErrClosed, millrace.ErrFenced} {
		if millrace.IsTransient(fmt.Errorf("wrapped: %w", err)) {
			t.Errorf("%v may pass by itself", err)
		}
	}
	for _, err := range []error{millrace.ErrFull, errors.New("a network's"), context.DeadlineExceeded, &millrace.OverloadError{}} {
		if !millrace.IsTransient(err) {
			t.Errorf("%v can never pass", err)
		}
	}
	if s := (&millrace.OverloadError{What: "queue", RetryAfter: time.Second}).Error(); !strings.Contains(s, "queue") || !strings.Contains(s, "1s") {
		t.Error(s)
	}
}
