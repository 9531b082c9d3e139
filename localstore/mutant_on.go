//go:build millrace_mutant_ack_early

package localstore

// mutantAckEarly makes a build that acknowledges before it writes. Crash tests use it to prove that they would notice.
const mutantAckEarly = true
