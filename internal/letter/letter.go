// Package letter is the form of what people do with dead letters: the commands and events of their streams, and the state that
// these come to. The rules are package domain/system's; who sends such commands and who follows them needs nothing else.
package letter

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

const (
	// Category is that of the streams of dead letters: one for each that somebody has done something with.
	Category = "deadletter"
	// Process is the name of the process that sends dead letters again.
	Process = "redrive"
	// Projection is the name of the read model of what was done with dead letters.
	Projection = "deadletters"
)

const (
	// MaxBy bounds the name of who does something, in bytes: a person's, a team's or a machine's.
	MaxBy = 100
	// MaxWhy bounds the reason that is given for it, in bytes: some sentences and the number of a ticket.
	MaxWhy = 1000
	// MaxRedrives bounds how often a dead letter is sent again: each time takes two steps of an instance, of which there are
	// [millrace.MaxSteps].
	MaxRedrives = 1000
	// MaxEdit bounds the body of an edit, in bytes: it must fit into a command, with all around it.
	MaxEdit = millrace.MaxCommandData - 8<<10
	// maxFailure bounds what is kept of the failure of a dead letter that was sent again.
	maxFailure = 2 << 10
)

// hashed begins the id of the stream of a dead letter whose own id is too long for one, or would pass for such an id.
const hashed = "sha256."

// Stream is the stream of a dead letter.
func Stream(commandID string) millrace.Stream {
	s := millrace.NewStream(Category, commandID)
	if len(s) > millrace.MaxStreamName || strings.HasPrefix(commandID, hashed) {
		sum := sha256.Sum256([]byte(commandID))
		s = millrace.NewStream(Category, hashed+hex.EncodeToString(sum[:]))
	}
	return s
}

// Resent says whether a command is one that was sent again: where it became a dead letter, that is one more failure of the
// letter that it came of, and no letter of its own.
func Resent(commandID string) bool {
	return strings.HasPrefix(commandID, millrace.StepPrefix+Process+"/")
}

// Ref is a dead letter as far as its stream needs to know it.
type Ref struct {
	CommandID  string          `json:"command_id"`
	Stream     millrace.Stream `json:"stream"`
	Type       string          `json:"type"`
	Reason     string          `json:"reason"`
	AcceptedAt time.Time       `json:"accepted_at"`
}

// RefOf is the reference to a dead letter.
func RefOf(d *millrace.DeadLetter) Ref {
	return Ref{CommandID: d.CommandID, Stream: d.Stream, Type: d.Type, Reason: d.Reason, AcceptedAt: d.AcceptedAt.UTC()}
}

// The commands of the stream of a dead letter. By is who does it, and Why is what that person says.
type (
	// RedriveDeadLetter has it sent again: as it was edited last, or else as it came.
	RedriveDeadLetter struct {
		Letter Ref    `json:"letter"`
		By     string `json:"by"`
		Why    string `json:"why,omitempty"`
		Job    string `json:"job,omitempty"` // of which it is a part
	}
	// EditDeadLetter gives it another type and body. What came is kept.
	EditDeadLetter struct {
		Letter Ref            `json:"letter"`
		By     string         `json:"by"`
		Why    string         `json:"why"`
		Type   string         `json:"type"`
		Data   jsonx.RawValue `json:"data"`
	}
	// DiscardDeadLetter gives it up for good.
	DiscardDeadLetter struct {
		Letter Ref    `json:"letter"`
		By     string `json:"by"`
		Why    string `json:"why"`
	}
	// RecordRedrive says what came of sending it again. The process sends it.
	RecordRedrive struct {
		Attempt int    `json:"attempt"` // from 1
		Status  string `json:"status"`  // of the command: decided, refused or dead
		// Code is that of the refusal, or the reason of the dead letter.
		Code  string `json:"code,omitempty"`
		Error string `json:"error,omitempty"` // of the dead letter
	}
)

// The events of the stream of a dead letter.
type (
	// DeadLetterRedriven has the process send it, under an id of its own for each attempt.
	DeadLetterRedriven struct {
		At      time.Time `json:"at"`
		Letter  Ref       `json:"letter"`
		By      string    `json:"by"`
		Why     string    `json:"why,omitempty"`
		Job     string    `json:"job,omitempty"`
		Attempt int       `json:"attempt"`
	}
	// DeadLetterEdited is an edit. The newest one counts.
	DeadLetterEdited struct {
		At     time.Time      `json:"at"`
		Letter Ref            `json:"letter"`
		By     string         `json:"by"`
		Why    string         `json:"why"`
		Edit   int            `json:"edit"` // from 1
		Type   string         `json:"type"`
		Data   jsonx.RawValue `json:"data"`
	}
	// DeadLetterDiscarded is the end of one that was given up.
	DeadLetterDiscarded struct {
		At     time.Time `json:"at"`
		Letter Ref       `json:"letter"`
		By     string    `json:"by"`
		Why    string    `json:"why"`
	}
	// DeadLetterAnswered is what came of an attempt: the end, or, where it died again, another beginning.
	DeadLetterAnswered struct {
		At      time.Time `json:"at"`
		Attempt int       `json:"attempt"`
		Status  string    `json:"status"`
		Code    string    `json:"code,omitempty"`
		Error   string    `json:"error,omitempty"`
	}
)

// Status is how far a dead letter has come.
type Status string

// The statuses.
const (
	Open      Status = "open"      // somebody has to look at it
	Redriving Status = "redriving" // it was sent again, and has no answer yet
	Redriven  Status = "redriven"  // it was sent again, and was decided or refused
	Discarded Status = "discarded"
)

// Statuses lists all statuses.
func Statuses() []Status { return []Status{Open, Redriving, Redriven, Discarded} }

// State is what a dead letter's stream comes to, and the document of the read model. It is never changed.
type State struct {
	ID       string `json:"id"` // of the stream
	Letter   Ref    `json:"letter"`
	Version  uint64 `json:"version"`
	Status   Status `json:"status"`
	Redrives int    `json:"redrives"`
	Edits    int    `json:"edits"`
	// Edit is the newest edit.
	Edit *Edit `json:"edit,omitempty"`
	// Answer is what came of the newest attempt.
	Answer    *Answer   `json:"answer,omitempty"`
	UpdatedAt time.Time `json:"updated_at"`
}

// Edit is a dead letter with another type and body.
type Edit struct {
	Type string         `json:"type"`
	Data jsonx.RawValue `json:"data"`
}

// Answer is what came of an attempt to send a dead letter again.
type Answer struct {
	Attempt int       `json:"attempt"`
	Status  string    `json:"status"`
	Code    string    `json:"code,omitempty"`
	Error   string    `json:"error,omitempty"`
	At      time.Time `json:"at"`
}

// StatesTable holds what was done with dead letters, by the ids of their streams, in the partitions of these. Its indexes are
// those of [millrace.DeadLetterTable], with the same keys.
var StatesTable = millrace.NewTable("states", []string{"time", "reason", "stream"}, func(s *State) []string {
	return millrace.DeadLetterKeys(s.Letter.CommandID, s.Letter.Stream, s.Letter.Reason, s.Letter.AcceptedAt)
})

// Brief cuts the text of a failure to what is kept of it.
func Brief(text string) string {
	if len(text) <= maxFailure {
		return text
	}
	text = text[:maxFailure]
	for len(text) > 0 && !utf8.ValidString(text) {
		text = text[:len(text)-1]
	}
	return text
}

// checkWho checks who does something, and why: who must be said, and why where it is required.
func checkWho(by, why string, required bool) []millrace.FieldError {
	return append(CheckBy(by, true), CheckWhy(why, required)...)
}

// CheckBy checks who does something.
func CheckBy(by string, required bool) []millrace.FieldError {
	if by == "" && required {
		return []millrace.FieldError{{Pointer: "/by", Detail: "is missing: it stays in the log"}}
	}
	return line("/by", by, MaxBy)
}

// CheckWhy checks the reason that is given for it.
func CheckWhy(why string, required bool) []millrace.FieldError {
	if why == "" && required {
		return []millrace.FieldError{{Pointer: "/why", Detail: "is missing: it stays in the log"}}
	}
	return line("/why", why, MaxWhy)
}

// line checks a text of one line: lists show one thing in each.
func line(pointer, text string, limit int) []millrace.FieldError {
	if len(text) <= limit && utf8.ValidString(text) && !strings.ContainsFunc(text, unicode.IsControl) {
		return nil
	}
	detail := "must be text of at most " + strconv.Itoa(limit) + " bytes without control characters"
	return []millrace.FieldError{{Pointer: pointer, Detail: detail}}
}

// Validate checks the form.
func (c *RedriveDeadLetter) Validate() []millrace.FieldError { return checkWho(c.By, c.Why, false) }

// Validate checks the form.
func (c *DiscardDeadLetter) Validate() []millrace.FieldError { return checkWho(c.By, c.Why, true) }

// Validate checks the form. Whether the body fits its type is for who takes the edit: it was so at that time.
func (c *EditDeadLetter) Validate() []millrace.FieldError {
	out := checkWho(c.By, c.Why, true)
	if millrace.ValidateID("type", c.Type, millrace.MaxTypeName) != nil {
		out = append(out, millrace.FieldError{Pointer: "/type", Detail: "must be the name of a command, of at most 100 bytes"})
	}
	switch {
	case len(c.Data) == 0:
		out = append(out, millrace.FieldError{Pointer: "/data", Detail: "is missing"})
	case len(c.Data) > MaxEdit:
		out = append(out, millrace.FieldError{Pointer: "/data", Detail: "is too large"})
	}
	return out
}
