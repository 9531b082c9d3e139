//go:build !millrace_mutant_ack_early

package localstore

// mutantAckEarly is the control of the crash tests: see mutant_on.go.
const mutantAckEarly = false
