package millrace

import (
	"slices"

	"github.com/millrace-io/millrace/internal/jsonx"
)

// An instance is written with every step that its process takes, so it writes its own JSON: reflection would cost more than
// all else that a step does in this process. A test holds it to what the generic encoder writes, byte for byte.

// What instances, and each of their steps and calls, mostly fit into.
const (
	instanceSize = 512
	stepSize     = 112
	callSize     = 320
)

// AppendJSON implements [Appender].
func (i *Instance) AppendJSON(dst []byte) []byte {
	w := jsonx.Writer{Dst: slices.Grow(dst, instanceSize+len(i.Data)+stepSize*len(i.Steps)+callSize*len(i.Calls))}
	w.Text(`{"stream":`, string(i.Stream))
	w.Uint(`,"version":`, i.Version)
	w.Text(`,"state":`, i.State)
	w.TextIf(`,"waits":`, i.Waits)
	w.TextIf(`,"key":`, i.Key)
	w.Bool(`,"done":`, i.Done)
	w.TextIf(`,"failed":`, i.Failed)
	w.Time(`,"began_at":`, i.BeganAt)
	w.Time(`,"since_at":`, i.SinceAt)
	w.Time(`,"updated_at":`, i.UpdatedAt)
	w.Text(`,"correlation_id":`, i.CorrelationID)
	for k := range i.Steps {
		w.Element(k, `,"steps":[`)
		i.Steps[k].append(&w)
	}
	w.ArrayEnd(len(i.Steps))
	for k := range i.Calls {
		w.Element(k, `,"calls":[`)
		i.Calls[k].append(&w)
	}
	w.ArrayEnd(len(i.Calls))
	appendTimers(&w, `,"timers":[`, i.Timers)
	appendTimers(&w, `,"fired":[`, i.Fired)
	w.Raw(`,"data":`, i.Data)
	return w.End()
}

func (s *InstanceStep) append(w *jsonx.Writer) {
	w.Text(`{"name":`, s.Name)
	w.Text(`,"stream":`, string(s.Stream))
	w.Text(`,"status":`, s.Status)
	w.TextIf(`,"code":`, s.Code)
	w.TextIf(`,"type":`, s.Type)
	w.RawIf(`,"data":`, s.Data)
	w.TextIf(`,"of":`, s.Of)
	w.TextIf(`,"causation_id":`, s.CausationID)
	w.End()
}

func (c *InstanceCall) append(w *jsonx.Writer) {
	w.Text(`{"name":`, c.Name)
	w.Raw(`,"request":`, c.Request)
	w.Time(`,"began_at":`, c.BeganAt)
	w.TimeIf(`,"done_at":`, c.DoneAt)
	w.TimeIf(`,"cancelled_at":`, c.CancelledAt)
	w.RawIf(`,"result":`, c.Result)
	w.Int(`,"attempts":`, int64(c.Attempts))
	w.TextIf(`,"error":`, c.Error)
	w.TimeIf(`,"next_at":`, c.NextAt)
	w.End()
}

func appendTimers(w *jsonx.Writer, literal string, timers []Timer) {
	for k, t := range timers {
		w.Element(k, literal)
		w.Text(`{"name":`, t.Name)
		w.Time(`,"at":`, t.At)
		w.End()
	}
	w.ArrayEnd(len(timers))
}
