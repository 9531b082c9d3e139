package system

import (
	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/letter"
)

// Categories are those of the system's own streams: nobody sends them commands but by the routes that are made for them.
func Categories() []string {
	return []string{letter.Category, letter.CategoryJob, letter.CategoryConsumer}
}

// Domains are the rules of what is decided about Millrace itself.
func Domains() []millrace.Definition {
	return []millrace.Definition{consumers(), letters(), jobs()}
}

// Projections are its read models.
func Projections() []millrace.Projection {
	return []millrace.Projection{lettersProjection()}
}
