package system

import (
	"strconv"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/letter"
)

// resending is the state of the process that sends a dead letter again. It is never changed.
type resending struct {
	Self   millrace.Stream `json:"self"` // the letter's stream
	Letter letter.Ref      `json:"letter"`
	Edit   *letter.Edit    `json:"edit,omitempty"`
	// Attempt is the newest one, and Sent the one of which the outcome is known.
	Attempt  int            `json:"attempt"`
	Sent     int            `json:"sent"`
	Outcome  *letter.Answer `json:"outcome,omitempty"`
	Recorded int            `json:"recorded"` // the newest attempt that the stream has the answer of
	Over     letter.Status  `json:"over,omitempty"`
}

// Redrive is the process that sends dead letters again. The ids of its commands follow from the letter and the attempt: each
// attempt is sent once, whatever crashes.
func Redrive() millrace.Process[resending] {
	return millrace.Process[resending]{
		Name: letter.Process, Category: letter.Category,
		Initial: func(s millrace.Stream) resending { return resending{Self: s} },
		Evolve:  evolveResending, React: reactResending,
	}
}

func evolveResending(s resending, in *millrace.Input) resending {
	switch e := in.Event.(type) {
	case *letter.DeadLetterRedriven:
		s.Letter, s.Attempt = e.Letter, e.Attempt
	case *letter.DeadLetterEdited:
		s.Edit = &letter.Edit{Type: e.Type, Data: e.Data}
	case *letter.DeadLetterDiscarded:
		s.Over = letter.Discarded
	case *letter.DeadLetterAnswered:
		if s.Recorded = e.Attempt; e.Status != millrace.StatusDead.String() {
			s.Over = letter.Redriven
		}
	}
	if o := in.Outcome; o != nil && s.Attempt > s.Sent && in.Step == letter.SendStep(s.Attempt) {
		s.Sent = s.Attempt
		s.Outcome = &letter.Answer{Attempt: s.Attempt, Status: o.Status.String()}
		switch {
		case o.Refusal != nil:
			s.Outcome.Code = o.Refusal.Code
		case o.Failure != nil:
			s.Outcome.Code, s.Outcome.Error = o.Failure.Reason, letter.Brief(o.Failure.Error)
		}
	}
	return s
}

func reactResending(s resending) millrace.Reaction {
	r := millrace.Reaction{State: string(letter.Open), Key: s.Letter.CommandID}
	switch {
	case s.Over != "":
		r.State, r.Done = string(s.Over), true
	case s.Attempt > s.Sent:
		r.State, r.Waits = "sending", "the outcome of attempt "+strconv.Itoa(s.Attempt)
		step := millrace.Step{Name: letter.SendStep(s.Attempt), Stream: s.Letter.Stream, Command: &millrace.Resent{CommandID: s.Letter.CommandID}}
		if s.Edit != nil {
			step.Command = &millrace.RawCommand{Type: s.Edit.Type, Data: s.Edit.Data}
		}
		r.Steps = []millrace.Step{step}
	case s.Attempt > s.Recorded:
		r.State, r.Waits = "recording", "the record of attempt "+strconv.Itoa(s.Attempt)
		r.Steps = []millrace.Step{{Name: "record " + strconv.Itoa(s.Attempt), Stream: s.Self, Command: &letter.RecordRedrive{
			Attempt: s.Outcome.Attempt, Status: s.Outcome.Status, Code: s.Outcome.Code, Error: s.Outcome.Error,
		}}}
	}
	return r
}
