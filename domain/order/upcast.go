package order

import "github.com/millrace-io/millrace"

// upcasters turn the events of older versions into those of today. There are none: every event type still has the form
// that it was first written in. Once a form changes, the old name gets an upcaster here and a stream of the old form
// goes to testdata/history, where a test replays it for ever. A member that may be absent needs none.
func upcasters() map[string]millrace.Upcaster { return nil }
