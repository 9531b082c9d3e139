package millrace

import (
	"strconv"
	"time"

	"github.com/millrace-io/millrace/internal/jsonx"
)

// An instance is written with every step that its process takes, so it writes its own JSON: reflection would cost more than
// all else that a step does in this process. A test holds it to what the generic encoder writes, byte for byte.

// AppendJSON implements [Appender].
func (i *Instance) AppendJSON(dst []byte) []byte {
	m := members{dst}
	m.text(`{"stream":`, string(i.Stream))
	m.dst = strconv.AppendUint(append(m.dst, `,"version":`...), i.Version, 10)
	m.text(`,"state":`, i.State)
	m.textIf(`,"waits":`, i.Waits)
	m.textIf(`,"key":`, i.Key)
	m.dst = strconv.AppendBool(append(m.dst, `,"done":`...), i.Done)
	m.textIf(`,"failed":`, i.Failed)
	m.time(`,"began_at":`, i.BeganAt)
	m.time(`,"since_at":`, i.SinceAt)
	m.time(`,"updated_at":`, i.UpdatedAt)
	m.text(`,"correlation_id":`, i.CorrelationID)
	for k := range i.Steps {
		m.element(k, `,"steps":[`)
		m.step(&i.Steps[k])
	}
	m.end(len(i.Steps))
	for k := range i.Calls {
		m.element(k, `,"calls":[`)
		m.call(&i.Calls[k])
	}
	m.end(len(i.Calls))
	m.timers(`,"timers":[`, i.Timers)
	m.timers(`,"fired":[`, i.Fired)
	m.raw(`,"data":`, i.Data)
	return append(m.dst, '}')
}

// members appends the members of JSON objects, each behind a literal `,"name":`.
type members struct{ dst []byte }

func (m *members) text(name, s string) { m.dst = jsonx.AppendString(append(m.dst, name...), s) }

func (m *members) textIf(name, s string) {
	if s != "" {
		m.text(name, s)
	}
}

func (m *members) time(name string, t time.Time) {
	m.dst = append(append(m.dst, name...), '"')
	m.dst = append(t.AppendFormat(m.dst, time.RFC3339Nano), '"')
}

func (m *members) timeIf(name string, t time.Time) {
	if !t.IsZero() {
		m.time(name, t)
	}
}

func (m *members) raw(name string, v jsonx.RawValue) {
	if m.dst = append(m.dst, name...); v == nil {
		m.dst = append(m.dst, "null"...)
		return
	}
	m.dst = append(m.dst, v...)
}

func (m *members) rawIf(name string, v jsonx.RawValue) {
	if v != nil {
		m.raw(name, v)
	}
}

// element begins the k-th element of an array.
func (m *members) element(k int, name string) {
	if k == 0 {
		m.dst = append(m.dst, name...)
	} else {
		m.dst = append(m.dst, ',')
	}
}

// end ends an array that had any elements.
func (m *members) end(elements int) {
	if elements > 0 {
		m.dst = append(m.dst, ']')
	}
}

func (m *members) step(s *InstanceStep) {
	m.text(`{"name":`, s.Name)
	m.text(`,"stream":`, string(s.Stream))
	m.text(`,"status":`, s.Status)
	m.textIf(`,"code":`, s.Code)
	m.textIf(`,"type":`, s.Type)
	m.rawIf(`,"data":`, s.Data)
	m.textIf(`,"of":`, s.Of)
	m.textIf(`,"causation_id":`, s.CausationID)
	m.dst = append(m.dst, '}')
}

func (m *members) call(c *InstanceCall) {
	m.text(`{"name":`, c.Name)
	m.raw(`,"request":`, c.Request)
	m.time(`,"began_at":`, c.BeganAt)
	m.timeIf(`,"done_at":`, c.DoneAt)
	m.timeIf(`,"cancelled_at":`, c.CancelledAt)
	m.rawIf(`,"result":`, c.Result)
	m.dst = strconv.AppendInt(append(m.dst, `,"attempts":`...), int64(c.Attempts), 10)
	m.textIf(`,"error":`, c.Error)
	m.timeIf(`,"next_at":`, c.NextAt)
	m.dst = append(m.dst, '}')
}

func (m *members) timers(name string, timers []Timer) {
	for k, t := range timers {
		m.element(k, name)
		m.text(`{"name":`, t.Name)
		m.time(`,"at":`, t.At)
		m.dst = append(m.dst, '}')
	}
	m.end(len(timers))
}
