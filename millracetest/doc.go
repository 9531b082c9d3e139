// Package millracetest proves that implementations keep the contracts of package millrace. It is for backends and
// domains outside of this module too: RunStore holds a backend to the rules of millrace.Driver, BenchStore
// measures it, and Tally is a domain to do so with. CheckDomain holds a domain to what the engine leans on: exact
// encodings, and functions without side effects.
package millracetest
