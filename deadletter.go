package millrace

import (
	"time"

	"github.com/millrace-io/millrace/internal/jsonx"
)

// DeadLetterCollection holds a document for each command that became a dead letter, by the command's id, in the
// partition of its stream. The documents follow from the outcomes, as the index does, and backends write both together.
const DeadLetterCollection = "dead-letters"

// The indexes of DeadLetterTable.
const (
	DeadLettersByTime   = 0
	DeadLettersByReason = 1 // then time
	DeadLettersByStream = 2 // then time
)

// DeadLetter is a command that could not be mapped or decided, with all that a person needs to find out why.
type DeadLetter struct {
	CommandID     string         `json:"command_id"`
	Stream        Stream         `json:"stream"`
	Type          string         `json:"type"`
	Reason        string         `json:"reason"` // one of the Reason constants
	Error         string         `json:"error"`
	Attempts      int            `json:"attempts"`
	Source        string         `json:"source,omitempty"`
	CorrelationID string         `json:"correlation_id"`
	CausationID   string         `json:"causation_id,omitempty"`
	AcceptedAt    time.Time      `json:"accepted_at"`
	Data          jsonx.RawValue `json:"data,omitempty"` // the body, where it is JSON
	Raw           []byte         `json:"raw,omitempty"`  // the body, in base64, where it is not
}

// DeadLetterTable reads the documents of DeadLetterCollection.
var DeadLetterTable = NewTable(DeadLetterCollection, []string{"time", "reason", "stream"}, func(d *DeadLetter) []string {
	return DeadLetterKeys(d.CommandID, d.Stream, d.Reason, d.AcceptedAt)
})

// DeadLetterKeys are the sort keys of a dead letter. What is kept about it elsewhere has the same, so that both are read side
// by side.
func DeadLetterKeys(commandID string, s Stream, reason string, acceptedAt time.Time) []string {
	at := acceptedAt.UTC().Format(timeKey)
	return []string{Key(at, commandID), Key(reason, at, commandID), Key(string(s), at, commandID)}
}

// DeadLetter is the document of a decision of StatusDead; its Command must be complete.
func (d *Decision) DeadLetter(partition int) (Document, error) {
	l := &DeadLetter{
		CommandID: d.Command.ID, Stream: d.Command.Stream, Type: d.Command.Type,
		Reason: d.Failure.Reason, Error: d.Failure.Error, Attempts: d.Failure.Attempts,
		Source: d.Command.Source, CorrelationID: d.Command.CorrelationID, CausationID: d.Command.CausationID,
		AcceptedAt: d.Command.Time,
	}
	if jsonx.Check(d.Command.Data) == nil {
		l.Data = d.Command.Data
	} else {
		l.Raw = d.Command.Data
	}
	doc := Document{Collection: DeadLetterCollection, Partition: partition, ID: d.Command.ID}
	var err error
	doc.Data, doc.Keys, err = DeadLetterTable.Encode(l)
	return doc, err
}
