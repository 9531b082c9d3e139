package system

import "github.com/millrace-io/millrace"

// Domains are the rules of what is decided about Millrace itself.
func Domains() []millrace.Definition {
	return []millrace.Definition{consumers()}
}
