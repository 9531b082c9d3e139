package process

import (
	"fmt"
	"slices"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// instance is an instance at work: within one commit, whatever comes for it is applied to the same one.
type instance struct {
	w         *work
	partition int
	doc       *millrace.Instance
	state     any
	before    []millrace.Timer // that were pending when it was loaded
	isNew     bool
	unread    error // why its state cannot be read; then it is left as it is
	// places are those of the steps by name, as many as were looked for; an order of many lines has thousands.
	places map[string]int
}

// load finds the instance of a stream among those at work or in the documents; nil where there is none and none is to begin.
// Where it is known that there is none, nobody looks: on a shared store each look is a round trip.
func (w *work) load(v millrace.Views, partition int, s millrace.Stream, begin bool) (*instance, error) {
	if i := w.at[s]; i != nil {
		return i, nil
	}
	var doc *millrace.Instance
	if !w.passed[s] {
		var err error
		if doc, err = millrace.InstancesTable.Get(v, string(s)); err != nil {
			return nil, err
		}
	}
	i := &instance{w: w, partition: partition, doc: doc}
	switch {
	case doc != nil:
		i.before = slices.Clone(doc.Timers)
		if state, ok := w.states[doc]; ok {
			i.state = state
		} else {
			i.read()
		}
	case !begin:
		return nil, nil //nolint:nilnil // as said
	default:
		i.doc, i.state, i.isNew = &millrace.Instance{Stream: s}, w.m.p.Initial(s), true
	}
	w.at[s] = i
	w.order = append(w.order, i)
	return i, nil
}

// read decodes the state. Code that has changed may not know it any more.
func (i *instance) read() {
	defer func() {
		if r := recover(); r != nil {
			i.unread = fmt.Errorf("panic: %v", r)
		}
	}()
	if i.state, i.unread = i.w.m.p.DecodeState(i.doc.Data); i.unread != nil {
		i.unread = fmt.Errorf("its state cannot be read: %w", i.unread)
	}
}

// apply applies one input and what the process wants after it. cause is the input's id. Where that fails the state is as it
// was, so that the input can be applied again.
func (i *instance) apply(in *millrace.Input, cause string) (err error) {
	before := i.state
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
		if err != nil {
			i.state = before
		}
	}()
	if i.unread != nil {
		return i.unread
	}
	p := i.w.m.p
	i.state = p.Evolve(i.state, in)
	want, err := p.React(i.state)
	if err != nil {
		return err
	}
	d := i.doc
	if d.UpdatedAt = i.w.m.o.Now().UTC(); d.State != want.State {
		d.State, d.SinceAt = want.State, d.UpdatedAt
	}
	d.Waits, d.Key, d.Done = want.Waits, want.Key, want.Done
	if i.none(&want) {
		i.state, d.Version = p.Initial(d.Stream), 0
		return nil
	}
	i.setTimers(want.Timers)
	if err := i.setCalls(want.Calls); err != nil {
		return err
	}
	for _, s := range want.Steps {
		if err := i.take(s, cause); err != nil {
			return err
		}
	}
	return nil
}

// none says whether an instance is not to be kept: it is new and has no state.
func (i *instance) none(r *millrace.Reaction) bool {
	return i.isNew && i.doc.State == "" && len(i.doc.Steps)+len(r.Steps)+len(r.Calls)+len(r.Timers) == 0
}

// unkept says whether nothing is written of an instance.
func (i *instance) unkept() bool { return i.none(&millrace.Reaction{}) && i.doc.Failed == "" }

// take notes a step that was not taken before, and has its command sent before the commit.
func (i *instance) take(s millrace.Step, cause string) error {
	if i.step(s.Name) != nil {
		return nil
	}
	if len(i.doc.Steps) >= millrace.MaxSteps {
		return fmt.Errorf("more than %d steps", millrace.MaxSteps)
	}
	taken := millrace.InstanceStep{Name: s.Name, Stream: s.Stream, Status: millrace.StatusAccepted.String(), CausationID: cause}
	var body any
	switch c := s.Command.(type) {
	case *millrace.Resent:
		taken.Of = c.CommandID
	case *millrace.RawCommand:
		if err := jsonx.Check(c.Data); err != nil {
			return fmt.Errorf("step %s: %w", s.Name, err)
		}
		// Written as the document keeps it: what is sent again after a crash has the same bytes.
		data, err := jsonx.Marshal(jsonx.RawValue(c.Data))
		if err != nil {
			return fmt.Errorf("step %s: %w", s.Name, err)
		}
		taken.Type, taken.Data = c.Type, data
	default:
		var err error
		if taken.Type, taken.Data, err = i.w.m.registry.EncodeCommand(s.Command); err != nil {
			return fmt.Errorf("step %s: %w", s.Name, err)
		}
		body = s.Command
	}
	i.doc.Steps = append(i.doc.Steps, taken)
	c := i.command(&taken)
	c.Body = body
	i.w.queue = append(i.w.queue, sending{stream: i.doc.Stream, step: s.Name, of: taken.Of, command: c})
	return nil
}

func (i *instance) step(name string) *millrace.InstanceStep {
	steps := i.doc.Steps
	if i.places == nil {
		i.places = make(map[string]int, len(steps))
	}
	for n := len(i.places); n < len(steps); n++ {
		i.places[steps[n].Name] = n
	}
	if n, ok := i.places[name]; ok {
		return &steps[n]
	}
	return nil
}

// command is the command of a step that is pending.
func (i *instance) command(s *millrace.InstanceStep) millrace.Command {
	id := millrace.StepID(i.w.m.p.Name, i.doc.Stream, s.Name)
	if i.w.m.freshID != nil {
		id = i.w.m.freshID()
	}
	return millrace.Command{
		ID: id, Stream: s.Stream, Type: s.Type, Data: s.Data,
		CorrelationID: i.doc.CorrelationID, CausationID: s.CausationID, Source: "process " + i.w.m.p.Name,
	}
}

// outcome applies the outcome of a step, once.
func (i *instance) outcome(step string, o *millrace.Outcome) error {
	s := i.step(step)
	if s == nil || s.Status != millrace.StatusAccepted.String() {
		return nil
	}
	if err := i.apply(&millrace.Input{At: o.Time, Step: step, Outcome: o}, o.CommandID); err != nil {
		return err
	}
	s = i.step(step) // there may be more of them now
	s.Status, s.Type, s.Data, s.CausationID, s.Of = o.Status.String(), "", nil, "", ""
	switch {
	case o.Refusal != nil:
		s.Code = o.Refusal.Code
	case o.Failure != nil:
		s.Code = o.Failure.Reason
	}
	return nil
}

// fire has a timer fire that is pending for that time.
func (i *instance) fire(name string, at time.Time) error {
	n := slices.IndexFunc(i.doc.Timers, func(t millrace.Timer) bool { return t.Name == name && t.At.Equal(at) })
	if n < 0 {
		return nil
	}
	timers, fired := i.doc.Timers, i.doc.Fired
	i.doc.Fired = append(slices.Clone(fired), timers[n])
	i.doc.Timers = slices.Delete(slices.Clone(timers), n, n+1)
	err := i.apply(&millrace.Input{At: at, Timer: name}, timerID(i.doc.Stream, name))
	if err != nil {
		i.doc.Timers, i.doc.Fired = timers, fired
	}
	return err
}

// setTimers has those be pending that the process wants and that have not fired.
func (i *instance) setTimers(want []millrace.Timer) {
	var pending, fired []millrace.Timer
	for _, t := range want {
		t.At = t.At.UTC().Round(0)
		if slices.ContainsFunc(i.doc.Fired, func(f millrace.Timer) bool { return f.Name == t.Name && f.At.Equal(t.At) }) {
			fired = append(fired, t)
		} else {
			pending = append(pending, t)
		}
	}
	i.doc.Timers, i.doc.Fired = pending, fired
}

// setCalls begins the calls that the process wants and that were not begun, and gives up those that it wants no more.
func (i *instance) setCalls(want []millrace.Call) error {
	now := i.doc.UpdatedAt
	for k := range i.doc.Calls {
		c := &i.doc.Calls[k]
		if c.Waits() && !slices.ContainsFunc(want, func(w millrace.Call) bool { return w.Name == c.Name }) {
			c.CancelledAt, c.NextAt = now, time.Time{}
			i.w.dropped = append(i.w.dropped, millrace.StepID(i.w.m.p.Name, i.doc.Stream, c.Name))
		}
	}
	for _, w := range want {
		if i.call(w.Name) != nil {
			continue
		}
		if len(i.doc.Calls) >= millrace.MaxCalls {
			return fmt.Errorf("more than %d calls", millrace.MaxCalls)
		}
		data, err := i.w.m.p.EncodeCall(w)
		if err != nil {
			return fmt.Errorf("call %s: %w", w.Name, err)
		}
		if i.w.m.o.Call == nil {
			return fmt.Errorf("call %s: nobody makes calls", w.Name)
		}
		i.doc.Calls = append(i.doc.Calls, millrace.InstanceCall{Name: w.Name, Request: data, BeganAt: now})
		i.w.calling = append(i.w.calling, i.attempt(&i.doc.Calls[len(i.doc.Calls)-1]))
	}
	return nil
}

func (i *instance) call(name string) *millrace.InstanceCall {
	for k := range i.doc.Calls {
		if i.doc.Calls[k].Name == name {
			return &i.doc.Calls[k]
		}
	}
	return nil
}

// attempt is the next attempt at a call.
func (i *instance) attempt(c *millrace.InstanceCall) *attempt {
	return &attempt{due: c.NextAt, request: millrace.CallRequest{
		ID: millrace.StepID(i.w.m.p.Name, i.doc.Stream, c.Name), Process: i.w.m.p.Name, Name: c.Name, Stream: i.doc.Stream,
		CorrelationID: i.doc.CorrelationID, Attempt: c.Attempts + 1, Request: c.Request,
	}}
}

// answered applies what an attempt at a call came to, once.
func (i *instance) answered(a *attempt) error {
	c := i.call(a.request.Name)
	if c == nil || !c.DoneAt.IsZero() {
		return nil
	}
	if a.err == nil {
		if err := i.apply(&millrace.Input{At: a.ended, Call: c.Name, Result: a.result}, a.request.ID); err != nil {
			return err
		}
		c = i.call(a.request.Name) // there may be more of them now
		c.DoneAt, c.CancelledAt, c.Result, c.Error, c.NextAt = a.ended.UTC(), time.Time{}, a.result, "", time.Time{}
		return nil
	}
	c.Attempts, c.Error = a.request.Attempt, a.err.Error()
	if !c.Waits() {
		return nil
	}
	c.NextAt = a.ended.Add(a.wait(i.w.m.o.Backoff)).UTC()
	i.doc.UpdatedAt = i.w.m.o.Now().UTC()
	i.w.calling = append(i.w.calling, i.attempt(c))
	return nil
}

// stop keeps an instance from going on: its process has broken its contract. What it has sent stays sent.
func (i *instance) stop(err error) {
	i.doc.Failed = err.Error()
	i.w.m.o.Logger.Error("an instance has stopped", "process", i.w.m.p.Name, "stream", i.doc.Stream, "error", err)
	i.w.m.o.Observer.Stopped(i.w.m.p.Name)
}

// save writes the documents of the instance and of its timers.
func (i *instance) save(v millrace.Views) error {
	if i.unkept() {
		return nil
	}
	switch data, err := i.encode(); {
	case err == nil:
		i.doc.Data = data
	case i.isNew:
		return err
	case i.doc.Failed == "":
		i.stop(err)
	}
	for _, t := range i.before {
		if !slices.ContainsFunc(i.doc.Timers, func(o millrace.Timer) bool { return o.Name == t.Name }) {
			millrace.TimersTable.Delete(v, timerID(i.doc.Stream, t.Name))
		}
	}
	for _, t := range i.doc.Timers {
		due := &millrace.DueTimer{Stream: i.doc.Stream, Name: t.Name, At: t.At, NextAt: t.At}
		n := slices.IndexFunc(i.before, func(o millrace.Timer) bool { return o.Name == t.Name })
		switch {
		case n < 0:
			millrace.TimersTable.Insert(v, timerID(i.doc.Stream, t.Name), due)
		case !i.before[n].At.Equal(t.At):
			millrace.TimersTable.Put(v, timerID(i.doc.Stream, t.Name), due)
		default:
			continue
		}
		i.w.expect(i.partition, t.At)
	}
	if i.isNew {
		millrace.InstancesTable.Insert(v, string(i.doc.Stream), i.doc)
	} else {
		millrace.InstancesTable.Put(v, string(i.doc.Stream), i.doc)
	}
	return nil
}

// encode is the state as it is to be kept.
func (i *instance) encode() (data []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	if i.unread != nil {
		return nil, i.unread
	}
	return i.w.m.p.EncodeState(i.state)
}

func timerID(s millrace.Stream, name string) string { return string(s) + "/" + name }
