package millrace

import (
	"strconv"
	"time"
)

// Recorded is an event as it stands in the log. It never changes; whoever gets one must not write to it.
type Recorded struct {
	Partition int
	Position  uint64 // in the partition, from 1, without gaps
	Stream    Stream
	Version   uint64 // in the stream, from 1, without gaps
	Type      string
	Data      []byte
	Time      time.Time

	CommandID     string // the command that was decided
	CorrelationID string
	CausationID   string

	// Body is Data decoded and upcast, or nil where nobody has needed it yet: see [Registry.Body].
	Body any
}

// ID identifies the event in the whole store: stream, "/" and version.
func (r *Recorded) ID() string { return string(r.Stream) + "/" + strconv.FormatUint(r.Version, 10) }

// NewEvent is an event that a decision leads to, encoded, on its way into the log.
type NewEvent struct {
	Type string
	Data []byte
	Body any
}
