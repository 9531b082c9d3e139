package projection

import (
	"context"
	"time"
)

// Without takes a protection away, by its name.
func (o *Options) Without(name string) {
	switch name {
	case "aim":
		o.without.aim = true
	case "halt":
		o.without.halt = true
	case "fresh":
		o.without.fresh = true
	case "begin":
		o.without.begin = true
	}
}

// Fresh makes the time shorter for which a node goes by what it knows.
func (o *Options) Fresh(d time.Duration) { o.fresh = d }

// NameOf is the consumer of a generation.
func (m *Model) NameOf(generation uint64) string { return m.name(generation) }

// Compare compares two generations.
func (m *Model) Compare(ctx context.Context, a, b uint64) (*Differences, error) {
	return m.compare(ctx, a, b)
}
