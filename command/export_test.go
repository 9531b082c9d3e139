package command

// InFlight counts the commands that the processor holds by their ids: a test for leaks.
func (p *Processor) InFlight() int {
	n := 0
	for i := range p.flight.shards {
		s := &p.flight.shards[i]
		s.mu.Lock()
		n += len(s.items)
		s.mu.Unlock()
	}
	return n
}

// Cached counts the states in memory.
func (p *Processor) Cached() int {
	n := 0
	for _, s := range p.parts {
		n += len(s.cache.entries)
	}
	return n
}

// TrustSightings has a processor take what was seen of a stream for what it is, whatever happened since.
func TrustSightings(p *Processor) { p.trusting = true }

// TrustGuesses has a processor take guesses for what is, where nothing would show that they are wrong.
func TrustGuesses(p *Processor) { p.guesses.trusting = true }

// Direct says whether new commands of a partition come through memory.
func Direct(p *Processor, partition int) bool {
	s := p.parts[partition]
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.behind
}

const (
	GuessAfter   = guessAfter
	MaxInFlight  = maxInFlight
	MaxEvents    = maxEvents
	MaxEventData = maxEventData
)

// SnapshotCollection is where the snapshots are.
func SnapshotCollection() string { return snapshotCollection() }
