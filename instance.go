package millrace

import (
	"time"

	"github.com/millrace-io/millrace/internal/jsonx"
)

// Instance is the document of a process's instance: what the process has made of its stream so far, and what is under way.
type Instance struct {
	Stream Stream `json:"stream"`
	// Version is that of the newest event that it has seen.
	Version uint64 `json:"version"`
	State   string `json:"state"`
	Waits   string `json:"waits,omitempty"`
	Key     string `json:"key,omitempty"`
	Done    bool   `json:"done"`
	// Failed says why it has stopped: its process broke its contract. It goes on when it is redriven.
	Failed    string    `json:"failed,omitempty"`
	BeganAt   time.Time `json:"began_at"`
	SinceAt   time.Time `json:"since_at"` // when it came into its state
	UpdatedAt time.Time `json:"updated_at"`
	// CorrelationID is that of the event which began it, and goes on with every command.
	CorrelationID string         `json:"correlation_id"`
	Steps         []InstanceStep `json:"steps,omitempty"`
	Calls         []InstanceCall `json:"calls,omitempty"`
	Timers        []Timer        `json:"timers,omitempty"`
	// Fired are timers that the process still wants and that have fired.
	Fired []Timer        `json:"fired,omitempty"`
	Data  jsonx.RawValue `json:"data"` // the process's own state
}

// InstanceStep is a command that an instance has sent.
type InstanceStep struct {
	Name   string `json:"name"`
	Stream Stream `json:"stream"`
	// Status is that of the command: accepted until its outcome is known.
	Status string `json:"status"`
	Code   string `json:"code,omitempty"` // of a refusal, or the reason of a dead letter
	// Type and Data are the command's, kept as long as its outcome is not known, to the byte: it is sent again.
	Type string         `json:"type,omitempty"`
	Data jsonx.RawValue `json:"data,omitzero"`
	// Of is the id of the dead letter that the command sends again, in place of type and data: see [Resent].
	Of string `json:"of,omitempty"`
	// CausationID is what the command was sent for.
	CausationID string `json:"causation_id,omitempty"`
}

// InstanceCall is a call of an instance.
type InstanceCall struct {
	Name    string         `json:"name"`
	Request jsonx.RawValue `json:"request"`
	BeganAt time.Time      `json:"began_at"`
	// DoneAt is when it was answered; zero until then. CancelledAt is when the process gave it up before that.
	DoneAt      time.Time      `json:"done_at,omitzero"`
	CancelledAt time.Time      `json:"cancelled_at,omitzero"`
	Result      jsonx.RawValue `json:"result,omitzero"`
	// Attempts counts those that failed, Error is the last one's, and NextAt is when the next one is due.
	Attempts int       `json:"attempts"`
	Error    string    `json:"error,omitempty"`
	NextAt   time.Time `json:"next_at,omitzero"`
}

// Waits says whether the call is to be made still.
func (c *InstanceCall) Waits() bool { return c.DoneAt.IsZero() && c.CancelledAt.IsZero() }

// Pending counts the steps whose outcomes are not known yet, and the calls that are not answered.
func (i *Instance) Pending() int {
	n := 0
	for k := range i.Calls {
		if i.Calls[k].Waits() {
			n++
		}
	}
	for _, s := range i.Steps {
		if s.Status == StatusAccepted.String() {
			n++
		}
	}
	return n
}

// The indexes of InstancesTable.
const (
	InstancesByState = iota // state and time of the last change
	InstancesByKey          // business key
	InstancesPending        // stream; of those that wait for an outcome or an answer
)

// InstancesTable holds a process's instances, by stream.
var InstancesTable = NewTable("instances", []string{"state", "key", "pending"}, func(i *Instance) []string {
	keys := []string{Key(i.State, i.UpdatedAt.UTC().Format(timeKey)), "", ""}
	if i.Key != "" {
		keys[InstancesByKey] = Key(i.Key, string(i.Stream))
	}
	if i.Failed == "" && i.Pending() > 0 {
		keys[InstancesPending] = string(i.Stream)
	}
	return keys
})

// DueTimer is the document of a timer that is pending, by stream and name.
type DueTimer struct {
	Stream Stream    `json:"stream"`
	Name   string    `json:"name"`
	At     time.Time `json:"at"`
	// NextAt is when it is looked at: At, or later where its instance must not be touched.
	NextAt time.Time `json:"next_at"`
}

// TimersTable holds a process's pending timers, with an index by the time at which they are due.
var TimersTable = NewTable("timers", []string{"due"}, func(t *DueTimer) []string { return []string{t.NextAt.UTC().Format(timeKey)} })

// timeKey is a time of which texts sort as times do, to the nanosecond.
const timeKey = "2006-01-02T15:04:05.000000000Z"
