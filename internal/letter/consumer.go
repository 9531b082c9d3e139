package letter

import (
	"time"

	"github.com/millrace-io/millrace"
)

// CategoryConsumer is that of the streams of consumers, by the names that people know them by.
const CategoryConsumer = "consumer"

// ConsumerStream is the stream of a consumer.
func ConsumerStream(name string) millrace.Stream { return millrace.NewStream(CategoryConsumer, name) }

// The commands about streams that are parked for a consumer.
type (
	// RedriveStream has the consumer go on with a stream.
	RedriveStream struct {
		Stream millrace.Stream `json:"stream"`
		By     string          `json:"by"`
		Why    string          `json:"why,omitempty"`
	}
	// SkipEvent has it go on behind the event that failed, and leave that out.
	SkipEvent struct {
		Stream  millrace.Stream `json:"stream"`
		Version uint64          `json:"version"` // of the event
		By      string          `json:"by"`
		Why     string          `json:"why"`
	}
)

// The events of them.
type (
	// ConsumerStreamRedriven is a redrive that was asked for.
	ConsumerStreamRedriven struct {
		At     time.Time       `json:"at"`
		Stream millrace.Stream `json:"stream"`
		By     string          `json:"by"`
		Why    string          `json:"why,omitempty"`
	}
	// ConsumerEventSkipped is an event that the consumer is to leave out.
	ConsumerEventSkipped struct {
		At      time.Time       `json:"at"`
		Stream  millrace.Stream `json:"stream"`
		Version uint64          `json:"version"`
		By      string          `json:"by"`
		Why     string          `json:"why"`
	}
)

// Validate checks the form.
func (c *RedriveStream) Validate() []millrace.FieldError {
	return append(checkWho(c.By, c.Why, false), checkStream(c.Stream)...)
}

// Validate checks the form.
func (c *SkipEvent) Validate() []millrace.FieldError {
	out := append(checkWho(c.By, c.Why, true), checkStream(c.Stream)...)
	if c.Version == 0 {
		out = append(out, millrace.FieldError{Pointer: "/version", Detail: "must be that of an event"})
	}
	return out
}

func checkStream(s millrace.Stream) []millrace.FieldError {
	if s.Validate() == nil {
		return nil
	}
	return []millrace.FieldError{{Pointer: "/stream", Detail: "must be a category, a hyphen and an id, such as order-42"}}
}
