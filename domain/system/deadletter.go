package system

import (
	"fmt"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/letter"
)

// The codes of refusals.
const (
	CodeLetterMismatch  = "dead_letter_mismatch"
	CodeLetterRedriving = "dead_letter_redriving"
	CodeLetterRedriven  = "dead_letter_redriven"
	CodeLetterDiscarded = "dead_letter_discarded"
	CodeLetterAttempts  = "dead_letter_attempts"
)

// letterStateVersion is the version of the form of a dead letter's state: a change of the state or of its Evolve changes it.
const letterStateVersion = 1

func letters() millrace.Domain[*letter.State] {
	return millrace.Domain[*letter.State]{
		Category: letter.Category, StateVersion: letterStateVersion,
		Initial: func(id string) *letter.State { return &letter.State{ID: id, Status: letter.Open} },
		Decide:  decideLetter, Evolve: evolveLetter,
		Commands: []millrace.Message{
			millrace.MessageOf[letter.RedriveDeadLetter]("RedriveDeadLetter"),
			millrace.MessageOf[letter.EditDeadLetter]("EditDeadLetter"),
			millrace.MessageOf[letter.DiscardDeadLetter]("DiscardDeadLetter"),
			millrace.MessageOf[letter.RecordRedrive]("RecordRedrive"),
		},
		Events: []millrace.Message{
			millrace.MessageOf[letter.DeadLetterRedriven]("DeadLetterRedriven"),
			millrace.MessageOf[letter.DeadLetterEdited]("DeadLetterEdited"),
			millrace.MessageOf[letter.DeadLetterDiscarded]("DeadLetterDiscarded"),
			millrace.MessageOf[letter.DeadLetterAnswered]("DeadLetterAnswered"),
		},
	}
}

func decideLetter(s *letter.State, command any, at time.Time) ([]any, *millrace.Refusal) {
	at = at.UTC()
	switch c := command.(type) {
	case *letter.RedriveDeadLetter:
		if refusal := mayAct(s, &c.Letter); refusal != nil {
			return nil, refusal
		}
		if s.Redrives >= letter.MaxRedrives {
			return nil, conflict(CodeLetterAttempts, "it was sent again as often as it can be: discard it")
		}
		return []any{&letter.DeadLetterRedriven{At: at, Letter: c.Letter, By: c.By, Why: c.Why, Job: c.Job, Attempt: s.Redrives + 1}}, nil
	case *letter.EditDeadLetter:
		if refusal := mayAct(s, &c.Letter); refusal != nil {
			return nil, refusal
		}
		data, err := jsonx.Marshal(c.Data) // in the form in which the event is written
		if err != nil {
			panic(err) // what was decoded can be encoded
		}
		return []any{&letter.DeadLetterEdited{At: at, Letter: c.Letter, By: c.By, Why: c.Why, Edit: s.Edits + 1, Type: c.Type, Data: data}}, nil
	case *letter.DiscardDeadLetter:
		if refusal := mayAct(s, &c.Letter); refusal != nil {
			return nil, refusal
		}
		return []any{&letter.DeadLetterDiscarded{At: at, Letter: c.Letter, By: c.By, Why: c.Why}}, nil
	case *letter.RecordRedrive:
		if s.Status != letter.Redriving || c.Attempt != s.Redrives {
			return nil, nil // it was recorded before
		}
		return []any{&letter.DeadLetterAnswered{At: at, Attempt: c.Attempt, Status: c.Status, Code: c.Code, Error: c.Error}}, nil
	}
	panic(fmt.Sprintf("system: command %T is not declared", command))
}

// mayAct refuses what can only be done with a dead letter that is open.
func mayAct(s *letter.State, ref *letter.Ref) *millrace.Refusal {
	if letter.Stream(ref.CommandID).ID() != s.ID {
		return &millrace.Refusal{Kind: millrace.RefusedRule, Code: CodeLetterMismatch, Detail: "the dead letter in the body is not that of the stream"}
	}
	switch s.Status {
	case letter.Redriving:
		return conflict(CodeLetterRedriving, "it was sent again and has no answer yet")
	case letter.Redriven:
		return conflict(CodeLetterRedriven, "it was sent again and has its answer")
	case letter.Discarded:
		return conflict(CodeLetterDiscarded, "it was discarded")
	case letter.Open:
	}
	return nil
}

func conflict(code, detail string) *millrace.Refusal {
	return &millrace.Refusal{Kind: millrace.RefusedConflict, Code: code, Detail: detail}
}

func evolveLetter(s *letter.State, event any) *letter.State {
	n := *s
	n.Version++
	switch e := event.(type) {
	case *letter.DeadLetterRedriven:
		n.Letter, n.UpdatedAt = e.Letter, e.At
		n.Status, n.Redrives = letter.Redriving, e.Attempt
	case *letter.DeadLetterEdited:
		n.Letter, n.UpdatedAt = e.Letter, e.At
		n.Edits, n.Edit = e.Edit, &letter.Edit{Type: e.Type, Data: e.Data}
	case *letter.DeadLetterDiscarded:
		n.Letter, n.UpdatedAt = e.Letter, e.At
		n.Status = letter.Discarded
	case *letter.DeadLetterAnswered:
		n.UpdatedAt = e.At
		n.Answer = &letter.Answer{Attempt: e.Attempt, Status: e.Status, Code: e.Code, Error: e.Error, At: e.At}
		if n.Status = letter.Redriven; e.Status == millrace.StatusDead.String() {
			n.Status = letter.Open
		}
	default:
		panic(fmt.Sprintf("system: event %T is not declared", event))
	}
	return &n
}
