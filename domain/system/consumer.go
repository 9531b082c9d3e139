package system

import (
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/letter"
)

// CategoryConsumer is the category of the streams of consumers.
const CategoryConsumer = letter.CategoryConsumer

// Deciding is the name under which the deciding of commands is paused, as consumers are under theirs.
const Deciding = "command"

// consumerStateVersion changes with the state of consumers or its evolve.
const consumerStateVersion = 2

// ConsumerStream is the stream of a consumer's states.
func ConsumerStream(name string) millrace.Stream { return letter.ConsumerStream(name) }

// Mode is how a consumer is meant to be.
type Mode string

// The modes of a consumer.
const (
	Running  Mode = "running"
	Paused   Mode = "paused"
	Draining Mode = "draining"
)

// Consumer is the state of a consumer. It is never changed.
type Consumer struct {
	Mode Mode `json:"mode"`
	// Since is since when; By and Why say who asked for it, and why. A consumer that nobody ever paused has none.
	Since time.Time `json:"since,omitzero"`
	By    string    `json:"by,omitempty"`
	Why   string    `json:"why,omitempty"`
	// Until is how far a consumer that drains is to go, as the token of a cursor.
	Until string `json:"until,omitempty"`
	// Changes counts all changes so far, and Resumes those that had it run.
	Changes uint64 `json:"changes"`
	Resumes uint64 `json:"resumes"`
}

// PauseConsumer has a consumer stand still.
type PauseConsumer struct {
	By  string `json:"by,omitempty"`
	Why string `json:"why,omitempty"`
}

// ResumeConsumer has it go on.
type ResumeConsumer struct {
	By  string `json:"by,omitempty"`
	Why string `json:"why,omitempty"`
}

// DrainConsumer has it go on to a cursor, and be paused then.
type DrainConsumer struct {
	By    string `json:"by,omitempty"`
	Why   string `json:"why,omitempty"`
	Until string `json:"until"`
}

// CompleteDrain says that a consumer has come to the end of a drain. Change is the number of the change by which that began.
type CompleteDrain struct {
	Change uint64 `json:"change"`
}

// ConsumerPaused is the fact that a consumer is to stand still.
type ConsumerPaused struct {
	At  time.Time `json:"at"`
	By  string    `json:"by,omitempty"`
	Why string    `json:"why,omitempty"`
}

// ConsumerResumed is the fact that a consumer is to run.
type ConsumerResumed struct {
	At  time.Time `json:"at"`
	By  string    `json:"by,omitempty"`
	Why string    `json:"why,omitempty"`
}

// DrainBegun is the fact that a consumer is to go on to a cursor only.
type DrainBegun struct {
	At    time.Time `json:"at"`
	By    string    `json:"by,omitempty"`
	Why   string    `json:"why,omitempty"`
	Until string    `json:"until"`
}

// DrainCompleted is the fact that it has come there, and stands still from then on.
type DrainCompleted struct {
	At time.Time `json:"at"`
}

func consumers() millrace.Domain[*Consumer] {
	return millrace.Domain[*Consumer]{
		Category: CategoryConsumer, StateVersion: consumerStateVersion,
		Initial: func(string) *Consumer { return &Consumer{Mode: Running} }, Decide: decideConsumer, Evolve: evolveConsumer,
		Commands: append(redriveCommands(),
			millrace.MessageOf[PauseConsumer]("PauseConsumer"),
			millrace.MessageOf[ResumeConsumer]("ResumeConsumer"),
			millrace.MessageOf[DrainConsumer]("DrainConsumer"),
			millrace.MessageOf[CompleteDrain]("CompleteDrain"),
		),
		Events: append(redriveEvents(),
			millrace.MessageOf[ConsumerPaused]("ConsumerPaused"),
			millrace.MessageOf[ConsumerResumed]("ConsumerResumed"),
			millrace.MessageOf[DrainBegun]("DrainBegun"),
			millrace.MessageOf[DrainCompleted]("DrainCompleted"),
		),
	}
}

// Validate checks the form.
func (c *PauseConsumer) Validate() []millrace.FieldError { return who(c.By, c.Why) }

// Validate checks the form.
func (c *ResumeConsumer) Validate() []millrace.FieldError { return who(c.By, c.Why) }

// Validate checks the form.
func (c *DrainConsumer) Validate() []millrace.FieldError {
	faults := who(c.By, c.Why)
	if _, err := millrace.ParseCursor(c.Until); err != nil {
		faults = append(faults, millrace.FieldError{Pointer: "/until", Detail: "must be a cursor"})
	}
	return faults
}

// who checks who does something, and why; either may be left out.
func who(by, why string) []millrace.FieldError {
	return append(letter.CheckBy(by, false), letter.CheckWhy(why, false)...)
}
