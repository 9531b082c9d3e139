package millracetest

import (
	"bytes"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

const (
	// repeats is how often the same is asked: a map of two entries comes in the same order by chance in one of 128 runs.
	repeats = 8
	// maxProbed bounds the states of a stream to which events are applied that did not happen there.
	maxProbed = 64
)

// streamCheck is one stream of an example.
type streamCheck struct {
	c        *domainCheck
	name     millrace.Stream
	category *millrace.Category
	states   []any // by version, as the engine has them that decides: each from the one before
	events   []happened
	decided  []settled
	broken   bool // a state is not to be trusted any more
}

// happened is an event with its body as Decide returned it.
type happened struct {
	name string
	data []byte
	body any
}

// settled is a command, the version at which it was decided, and what came of it.
type settled struct {
	cmd     millrace.Command
	version int
	result  string
}

func describe(e *Example, i int) string {
	return fmt.Sprintf("%s, command %d (%s of %s)", e.Name, i+1, e.Commands[i].Type, e.Commands[i].Stream)
}

// guard calls a function of the domain; a panic is a fault.
func (s *streamCheck) guard(what string, call func()) (ok bool) {
	s.c.t.Helper()
	defer func() {
		if p := recover(); p != nil {
			ok = false
			s.c.fault(what+" panics", ": %v", p)
		}
	}()
	call()
	return true
}

func (s *streamCheck) begin() bool {
	s.c.t.Helper()
	return s.guard("Initial", func() {
		a, b := s.category.Initial(s.name), s.category.Initial(s.name)
		if d := difference(a, b); d != "" {
			s.c.fault("Initial is another each time", " (-first +second):\n%s", d)
		}
		s.states = []any{a}
	})
}

// step decides a command, checks all that comes of it, and goes on to the next state.
func (s *streamCheck) step(cmd *millrace.Command) {
	s.c.t.Helper()
	s.c.commands[s.name.Category()+" "+cmd.Type] = true
	cmd.Body = nil
	body, err := s.c.registry.DecodeCommand(cmd)
	if err != nil {
		s.c.fault("the command cannot be decoded", ", so that it never comes to a decision: %v", err)
		return
	}
	s.commandBody(cmd, body)
	control, ok := s.fold(len(s.events))
	if !ok {
		return
	}
	state := s.states[len(s.states)-1]
	events, result, ok := s.decide(cmd, state, body)
	if !ok {
		return
	}
	if d := difference(control, state); d != "" {
		s.broken = true
		s.c.fault("Decide changes the state that it was given", " by "+cmd.Type+" (-before +after):\n%s", d)
		return
	}
	if again, err := s.c.registry.DecodeCommand(cmd); err == nil {
		if d := difference(again, body); d != "" {
			s.c.fault("Decide changes the command that it was given, a "+cmd.Type, " (-before +after):\n%s", d)
		}
	}
	if other, ok := s.once(cmd, control); ok && other != result {
		s.c.fault("Decide says something else over events that were read, for "+cmd.Type, " (-live +read):\n%s", difference(result, other))
	}
	s.decided = append(s.decided, settled{*cmd, len(s.events), result})
	for _, e := range events {
		if !s.apply(e) {
			return
		}
	}
}

// once decides a command from its bytes.
func (s *streamCheck) once(cmd *millrace.Command, state any) (result string, ok bool) {
	s.c.t.Helper()
	body, err := s.c.registry.DecodeCommand(cmd)
	if err != nil {
		s.c.fault("the command "+cmd.Type+" cannot be decoded each time", ": %v", err)
		return "", false
	}
	_, result, ok = s.decideWith(cmd, state, body)
	return result, ok
}

// decide decides a command several times.
func (s *streamCheck) decide(cmd *millrace.Command, state, body any) (events []any, result string, ok bool) {
	s.c.t.Helper()
	if events, result, ok = s.decideWith(cmd, state, body); !ok {
		return nil, "", false
	}
	for range repeats {
		_, other, ok := s.decideWith(cmd, state, body)
		if !ok {
			return nil, "", false
		}
		if other != result {
			s.c.fault("Decide says something else each time, for "+cmd.Type, " (-first +later):\n%s", difference(result, other))
			break
		}
	}
	return events, result, true
}

// decideWith decides a command once. The result is everything that goes into the log, as text.
func (s *streamCheck) decideWith(cmd *millrace.Command, state, body any) (events []any, result string, ok bool) {
	s.c.t.Helper()
	var refusal *millrace.Refusal
	if !s.guard("Decide of "+cmd.Type, func() { events, refusal = s.category.Decide(state, body, cmd.Time) }) {
		return nil, "", false
	}
	var text strings.Builder
	for _, e := range events {
		encoded, ok := s.encode(e)
		if !ok {
			return nil, "", false
		}
		fmt.Fprintf(&text, "%s %s\n", encoded.Type, encoded.Data)
	}
	if refusal == nil {
		return events, text.String(), true
	}
	s.refusal(cmd, refusal, len(events))
	fmt.Fprintf(&text, "refused %+v", *refusal)
	return nil, text.String(), true
}

// refusalCode is the form of codes: the API promises it to programs.
var refusalCode = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

func (s *streamCheck) refusal(cmd *millrace.Command, r *millrace.Refusal, events int) {
	s.c.t.Helper()
	if events > 0 {
		s.c.fault("Decide returns events and a refusal, for "+cmd.Type, ": %d events, %s", events, r.Code)
	}
	if !refusalCode.MatchString(r.Code) {
		s.c.fault("a refusal of "+cmd.Type+" has no code", ": %q is not lower-case letters, digits and underscores", r.Code)
	}
	if r.Kind < millrace.RefusedRule || r.Kind > millrace.RefusedVersion {
		s.c.fault("a refusal of "+cmd.Type+" has no kind", ": %s has %d", r.Code, r.Kind)
	}
	if r.Detail == "" {
		s.c.fault("a refusal of "+cmd.Type+" has no detail", ": %s tells people nothing", r.Code)
	}
	for _, e := range r.Errors {
		if e.Pointer != "" && e.Pointer[0] != '/' {
			s.c.fault("a refusal of "+cmd.Type+" names a place that is no JSON pointer", ": %q", e.Pointer)
		}
	}
}

// encode gives an event its bytes.
func (s *streamCheck) encode(event any) (out millrace.NewEvent, ok bool) {
	s.c.t.Helper()
	what := fmt.Sprintf("the encoding of %T", event)
	ok = s.guard(what, func() {
		var err error
		if out, err = s.category.EncodeEvent(event); err != nil {
			s.c.fault("an event cannot be written", ": %v", err)
			out.Type = ""
		}
	})
	return out, ok && out.Type != ""
}

// read decodes an event afresh, as a rebuild does.
func (s *streamCheck) read(name string, data []byte) (body any, ok bool) {
	s.c.t.Helper()
	ok = s.guard("the decoding of "+name, func() {
		var err error
		if body, err = s.c.registry.Body(&millrace.Recorded{Stream: s.name, Type: name, Data: bytes.Clone(data)}); err != nil {
			s.c.fault("an event that was written cannot be read", ": %v", err)
			body = nil
		}
	})
	return body, ok && body != nil
}

// apply checks an event and evolves the newest state by it. It returns false where there is no next state.
func (s *streamCheck) apply(event any) bool {
	s.c.t.Helper()
	encoded, ok := s.encode(event)
	if !ok {
		s.broken = true
		return false
	}
	s.c.events[s.name.Category()+" "+encoded.Type] = true
	e := happened{name: encoded.Type, data: bytes.Clone(encoded.Data), body: event}
	if !s.eventBody(&e) {
		s.broken = true
		return false
	}
	version := len(s.events)
	state := s.states[version]
	var next, again any
	if !s.guard("Evolve by "+e.name, func() { next = s.category.Evolve(state, event); again = s.category.Evolve(state, event) }) {
		s.broken = true
		return false
	}
	control, ok := s.fold(version)
	if !ok {
		return false
	}
	if d := difference(control, state); d != "" {
		s.broken = true
		s.c.fault("Evolve changes the state that it was given, by "+e.name, " (-before +after):\n%s", d)
		return false
	}
	if after, ok := s.encode(event); ok && !bytes.Equal(after.Data, e.data) {
		s.c.fault("Evolve changes the event that it was given, a "+e.name, " (-before +after):\n%s", difference(string(e.data), string(after.Data)))
	}
	if d := difference(next, again); d != "" {
		s.c.fault("Evolve comes to another state each time, by "+e.name, " (-first +second):\n%s", d)
	}
	s.events = append(s.events, e)
	s.states = append(s.states, next)
	if control, ok = s.fold(version + 1); !ok {
		return false
	}
	if d := difference(next, control); d != "" {
		s.broken = true
		s.c.fault("Evolve comes to another state over events that were read, by "+e.name, " (-live +read):\n%s", d)
		return false
	}
	return true
}

// fold evolves the initial state by the first events, each read afresh: nothing of it is shared with any other state.
func (s *streamCheck) fold(version int) (state any, ok bool) {
	s.c.t.Helper()
	ok = s.guard("Evolve", func() {
		state = s.category.Initial(s.name)
		for i := range s.events[:version] {
			body, ok := s.read(s.events[i].name, s.events[i].data)
			if !ok {
				state = nil
				return
			}
			state = s.category.Evolve(state, body)
		}
	})
	s.broken = s.broken || !ok || state == nil
	return state, !s.broken
}

// end looks at the whole stream again: at states that later events, those that happened and others, may have changed, and
// at snapshots.
func (s *streamCheck) end(e *Example) {
	s.c.t.Helper()
	s.c.where = fmt.Sprintf("%s, stream %s", e.Name, s.name)
	first, last := s.samples()
	slices.Reverse(last)
	if !s.branch(first) || !s.branch(last) {
		return
	}
	for i := range s.decided {
		s.snapshot(&s.decided[i])
	}
}

// samples are the first and the last event of each type, in the order in which the types came.
func (s *streamCheck) samples() (first, last []*happened) {
	at := map[string]int{}
	for i := range s.events {
		e := &s.events[i]
		k, ok := at[e.name]
		if !ok {
			k = len(first)
			at[e.name] = k
			first, last = append(first, e), append(last, e)
		}
		last[k] = e
	}
	return first, last
}

// branch evolves the states of the stream by events that did not follow there, and looks whether any of them has changed. The
// last sample is what a memory that is shared then holds: so it takes two runs whose last samples differ to find a state to
// which the one had really happened.
func (s *streamCheck) branch(samples []*happened) (ok bool) {
	s.c.t.Helper()
	for _, state := range s.states[:min(len(s.states), maxProbed)] {
		for _, sample := range samples {
			if body, ok := s.read(sample.name, sample.data); ok {
				s.probe(state, body)
			}
		}
	}
	for version, state := range s.states {
		control, ok := s.fold(version)
		if !ok {
			return false
		}
		if d := difference(control, state); d != "" {
			s.c.fault("a state of "+s.category.Name+" is changed by what happens after it", ": it shares memory with others that Evolve writes to (-as it was +as it is):\n%s", d)
			return false
		}
	}
	return true
}

// probe evolves a state by an event that did not happen there, as a stream would that branched off. What comes of it is
// nobody's business, and neither is a panic, for such a history may be none; but it must leave the state as it is.
func (s *streamCheck) probe(state, body any) {
	defer func() { _ = recover() }()
	s.category.Evolve(state, body)
}

// snapshot decides a command over a snapshot of the state at which it was decided.
func (s *streamCheck) snapshot(d *settled) {
	s.c.t.Helper()
	var data, again []byte
	var state any
	var err error
	what := "a snapshot of " + s.category.Name
	if !s.guard(what, func() {
		if data, err = s.category.EncodeState(s.states[d.version]); err == nil {
			if state, err = s.category.DecodeState(bytes.Clone(data)); err == nil {
				again, err = s.category.EncodeState(state)
			}
		}
	}) {
		return
	}
	switch {
	case err != nil:
		s.c.fault(what+" cannot be written and read", ": %v", err)
	case !bytes.Equal(data, again):
		s.c.fault(what+" is written in other bytes when it was read", " (-before +after):\n%s", difference(string(data), string(again)))
	default:
		if other, ok := s.once(&d.cmd, state); ok && other != d.result {
			s.c.fault(what+" leads to another decision of "+d.cmd.Type, " (-live +snapshot):\n%s", difference(d.result, other))
		}
	}
}

// commandBody writes a command's body and reads it again.
func (s *streamCheck) commandBody(cmd *millrace.Command, body any) {
	s.c.t.Helper()
	s.general("the command "+cmd.Type, cmd.Data, body)
	var data, again []byte
	var back any
	var err error
	if !s.guard("the encoding of "+cmd.Type, func() {
		if data, err = encodeBody(body); err != nil {
			return
		}
		copied := *cmd
		copied.Data, copied.Body = bytes.Clone(data), nil
		if back, err = s.c.registry.DecodeCommand(&copied); err == nil {
			again, err = encodeBody(back)
		}
	}) {
		return
	}
	if err != nil {
		s.c.fault("the command "+cmd.Type+" cannot be written and read", ": %v", err)
		return
	}
	s.same("the command "+cmd.Type, body, back, data, again)
}

// eventBody reads an event that was written, and writes it again. It returns false where it cannot be read.
func (s *streamCheck) eventBody(e *happened) bool {
	s.c.t.Helper()
	back, ok := s.read(e.name, e.data)
	if !ok {
		return false
	}
	s.general("the event "+e.name, e.data, back)
	again, ok := s.encode(back)
	if !ok {
		return false
	}
	s.same("the event "+e.name, e.body, back, e.data, again.Data)
	return true
}

// same wants a body and its bytes to have come back as they were.
func (s *streamCheck) same(what string, body, back any, data, again []byte) {
	s.c.t.Helper()
	if d := difference(body, back); d != "" {
		s.c.fault(what+" does not come back from its encoding", " (-as it was +as it was read):\n%s", d)
	}
	if !bytes.Equal(data, again) {
		s.c.fault(what+" is written in other bytes when it was read", " (-before +after):\n%s", difference(string(data), string(again)))
	}
}

// general wants a body that reads itself to have read what the general way reads.
func (s *streamCheck) general(what string, data []byte, body any) {
	s.c.t.Helper()
	if _, ok := body.(millrace.Decoder); !ok {
		return
	}
	plain := reflect.New(reflect.TypeOf(body).Elem()).Interface()
	if err := jsonx.Unmarshal(data, plain); err != nil {
		s.c.fault(what+" reads by DecodeJSON what the general way refuses", ": %v", err)
		return
	}
	if d := difference(plain, body); d != "" {
		s.c.fault(what+" reads by DecodeJSON something else than the general way", " (-general +its own):\n%s", d)
	}
}

// encodeBody writes a body as the engine writes bodies.
func encodeBody(v any) ([]byte, error) {
	if a, ok := v.(millrace.Appender); ok {
		return a.AppendJSON(nil), nil
	}
	return jsonx.Marshal(v)
}

// difference compares two values with all that is in them. Times are the same when they are and look the same: the places
// that their zones have in memory are nobody's business.
func difference(a, b any) string {
	return cmp.Diff(a, b, cmp.Exporter(func(reflect.Type) bool { return true }),
		cmp.Comparer(func(a, b time.Time) bool {
			return a.Equal(b) && a.Format(time.RFC3339Nano) == b.Format(time.RFC3339Nano)
		}))
}
