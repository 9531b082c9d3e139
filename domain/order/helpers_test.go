package order

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

var rewrite = flag.Bool("rewrite", false, "write what the code does now into testdata")

// start is when the tests' first command is accepted. Each further one comes a minute later.
var start = time.Date(2010, 12, 1, 8, 26, 0, 0, time.UTC)

// TB is what tests and properties have in common.
type TB interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func newRegistry(t TB) *millrace.Registry {
	t.Helper()
	r, err := millrace.NewRegistry(Domains()...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// stream runs commands on one stream the way the platform does: from the bytes of a body to the bytes of the events, and
// from these to the next state.
type stream struct {
	t        TB
	registry *millrace.Registry
	category *millrace.Category
	name     millrace.Stream
	state    any
	events   []millrace.Recorded
	now      time.Time
}

func newStream(t TB, r *millrace.Registry, name millrace.Stream) *stream {
	t.Helper()
	c, ok := r.Category(name)
	if !ok {
		t.Fatalf("no category for %s", name)
	}
	return &stream{t: t, registry: r, category: c, name: name, state: c.Initial(name), now: start}
}

// try decides a command without applying its events.
func (s *stream) try(typ, body string) ([]millrace.NewEvent, *millrace.Refusal) {
	s.t.Helper()
	command, err := s.registry.DecodeCommand(&millrace.Command{Stream: s.name, Type: typ, Data: []byte(body)})
	if err != nil {
		s.t.Fatalf("%s %s: %v", typ, body, err)
	}
	before, err := s.category.EncodeState(s.state)
	if err != nil {
		s.t.Fatal(err)
	}
	events, refusal := s.category.Decide(s.state, command, s.now)
	if refusal != nil && len(events) > 0 {
		s.t.Fatalf("%s: refused and decided", typ)
	}
	out := make([]millrace.NewEvent, len(events))
	for i, e := range events {
		if out[i], err = s.category.EncodeEvent(e); err != nil {
			s.t.Fatal(err)
		}
	}
	if after, err := s.category.EncodeState(s.state); err != nil || string(after) != string(before) {
		s.t.Fatalf("%s: the decision changed the state (%v)", typ, err)
	}
	return out, refusal
}

// do decides a command and applies its events, decoded from their bytes.
func (s *stream) do(typ, body string) ([]millrace.NewEvent, *millrace.Refusal) {
	s.t.Helper()
	events, refusal := s.try(typ, body)
	for _, e := range events {
		s.record(millrace.Recorded{
			Position: uint64(len(s.events) + 1), Stream: s.name, Version: uint64(len(s.events) + 1),
			Type: e.Type, Data: e.Data, Time: s.now,
		})
	}
	s.now = s.now.Add(time.Minute)
	return events, refusal
}

func (s *stream) record(e millrace.Recorded) {
	s.t.Helper()
	body, err := s.registry.Body(&e)
	if err != nil {
		s.t.Fatal(err)
	}
	before, err := s.category.EncodeState(s.state)
	if err != nil {
		s.t.Fatal(err)
	}
	old := s.state
	s.state = s.category.Evolve(s.state, body)
	if after, err := s.category.EncodeState(old); err != nil || string(after) != string(before) {
		s.t.Fatalf("%s changed the old state (%v)", e.Type, err)
	}
	s.events = append(s.events, e)
}

// must is do for a command that is not refused.
func (s *stream) must(typ, body string) {
	s.t.Helper()
	if _, refusal := s.do(typ, body); refusal != nil {
		s.t.Fatalf("%s: refused with %s: %s", typ, refusal.Code, refusal.Detail)
	}
}

func (s *stream) order() *Order {
	s.t.Helper()
	o, ok := s.state.(*Order)
	if !ok {
		s.t.Fatalf("%s is no order", s.name)
	}
	return o
}

func (s *stream) stock() *Stock {
	s.t.Helper()
	v, ok := s.state.(*Stock)
	if !ok {
		s.t.Fatalf("%s is no stock", s.name)
	}
	return v
}

// encode is how the platform writes a document.
func encode(t TB, v any) []byte {
	t.Helper()
	if a, ok := v.(millrace.Appender); ok {
		return a.AppendJSON(nil)
	}
	data, err := jsonx.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// views are the documents of one projection in one partition, kept as bytes, so that nothing is shared by accident.
type views struct {
	t    TB
	data map[string][]byte // table/id
	keys map[string][]string
}

func newViews(t TB) *views {
	return &views{t: t, data: map[string][]byte{}, keys: map[string][]string{}}
}

func (v *views) Load(table *millrace.Table, id string) (any, error) {
	data, ok := v.data[table.Name+"/"+id]
	if !ok {
		return nil, nil
	}
	return table.Decode(data)
}

func (v *views) Save(table *millrace.Table, id string, doc any) {
	v.t.Helper()
	data, keys, err := table.Encode(doc)
	if err != nil {
		v.t.Fatal(err)
	}
	v.data[table.Name+"/"+id], v.keys[table.Name+"/"+id] = data, keys
}

func (v *views) Insert(table *millrace.Table, id string, doc any) {
	v.t.Helper()
	if _, ok := v.data[table.Name+"/"+id]; ok {
		v.t.Fatalf("table %s has a document with the id %s already", table.Name, id)
	}
	v.Save(table, id, doc)
}

func (v *views) Remove(table *millrace.Table, id string) {
	delete(v.data, table.Name+"/"+id)
	delete(v.keys, table.Name+"/"+id)
}

// project applies the projections of the events' categories.
func project(t TB, all map[string]*views, events []millrace.Recorded) {
	t.Helper()
	for _, p := range Projections() {
		if all[p.Name] == nil {
			all[p.Name] = newViews(t)
		}
		for i := range events {
			if slices.Contains(p.Categories, events[i].Stream.Category()) {
				if err := p.Project(all[p.Name], &events[i]); err != nil {
					t.Fatalf("projection %s: %v", p.Name, err)
				}
			}
		}
	}
}

// golden compares with a file, or writes it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *rewrite {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path) //nolint:gosec // a file of this package's testdata
	if err != nil {
		t.Fatalf("%v (run with -rewrite to write it)", err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s (-want +got); if this is meant, run with -rewrite and read the difference:\n%s", path, diff)
	}
}

// answer is a decision in a word.
func answer(events []millrace.NewEvent, refusal *millrace.Refusal) string {
	switch {
	case refusal != nil:
		kind := map[millrace.RefusalKind]string{
			millrace.RefusedRule: "422", millrace.RefusedConflict: "409", millrace.RefusedNotFound: "404",
		}[refusal.Kind]
		return kind + " " + refusal.Code
	case len(events) == 0:
		return "-"
	}
	names := make([]string, len(events))
	for i, e := range events {
		names[i] = e.Type
	}
	return strings.Join(names, " + ")
}
