package system

import (
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/letter"
)

// What is asked for with parked streams is recorded in the consumer's stream, and changes nothing of how the consumer runs.

func redriveCommands() []millrace.Message {
	return []millrace.Message{millrace.MessageOf[letter.RedriveStream]("RedriveStream"), millrace.MessageOf[letter.SkipEvent]("SkipEvent")}
}

func redriveEvents() []millrace.Message {
	return []millrace.Message{
		millrace.MessageOf[letter.ConsumerStreamRedriven]("ConsumerStreamRedriven"),
		millrace.MessageOf[letter.ConsumerEventSkipped]("ConsumerEventSkipped"),
	}
}

// redriven is the fact of such a command; nil of any other.
func redriven(command any, at time.Time) any {
	switch c := command.(type) {
	case *letter.RedriveStream:
		return &letter.ConsumerStreamRedriven{At: at, Stream: c.Stream, By: c.By, Why: c.Why}
	case *letter.SkipEvent:
		return &letter.ConsumerEventSkipped{At: at, Stream: c.Stream, Version: c.Version, By: c.By, Why: c.Why}
	}
	return nil
}

func isRedriven(event any) bool {
	switch event.(type) {
	case *letter.ConsumerStreamRedriven, *letter.ConsumerEventSkipped:
		return true
	}
	return false
}
