package system

import "github.com/millrace-io/millrace"

// Domains are the rules of what is decided about Millrace itself.
func Domains() []millrace.Definition {
	return []millrace.Definition{consumers(), letters(), jobs()}
}

// Projections are its read models.
func Projections() []millrace.Projection {
	return []millrace.Projection{lettersProjection()}
}
