package system

import (
	"fmt"
	"time"

	"github.com/millrace-io/millrace"
)

// CodePaused refuses to drain a consumer that is paused.
const CodePaused = "consumer_paused"

func decideConsumer(s *Consumer, command any, at time.Time) ([]any, *millrace.Refusal) {
	at = at.UTC()
	if fact := redriven(command, at); fact != nil {
		return []any{fact}, nil
	}
	switch c := command.(type) {
	case *PauseConsumer:
		if s.Mode == Paused {
			return nil, nil
		}
		return []any{&ConsumerPaused{At: at, By: c.By, Why: c.Why}}, nil
	case *ResumeConsumer:
		return []any{&ConsumerResumed{At: at, By: c.By, Why: c.Why}}, nil
	case *DrainConsumer:
		if s.Mode == Paused {
			return nil, &millrace.Refusal{
				Kind: millrace.RefusedConflict, Code: CodePaused, Detail: "the consumer is paused: resume it, and then drain it",
			}
		}
		return []any{&DrainBegun{At: at, By: c.By, Why: c.Why, Until: c.Until}}, nil
	case *CompleteDrain:
		if s.Mode != Draining || s.Changes != c.Change {
			return nil, nil
		}
		return []any{&DrainCompleted{At: at}}, nil
	}
	panic(fmt.Sprintf("system: command %T is not declared", command))
}

func evolveConsumer(s *Consumer, event any) *Consumer {
	if isRedriven(event) {
		return s
	}
	next := &Consumer{Changes: s.Changes + 1, Resumes: s.Resumes}
	switch e := event.(type) {
	case *ConsumerPaused:
		next.Mode, next.Since, next.By, next.Why = Paused, e.At, e.By, e.Why
	case *ConsumerResumed:
		next.Mode, next.Since, next.By, next.Why = Running, e.At, e.By, e.Why
		next.Resumes++
	case *DrainBegun:
		next.Mode, next.Since, next.By, next.Why, next.Until = Draining, e.At, e.By, e.Why, e.Until
	case *DrainCompleted:
		next.Mode, next.Since, next.By, next.Why = Paused, e.At, s.By, s.Why
	default:
		panic(fmt.Sprintf("system: event %T is not declared", event))
	}
	return next
}
