package millrace

import (
	"context"
	"iter"
)

// Portable is a Driver whose store can be carried over to another backend as it stands.
type Portable interface {
	Driver
	// Log yields every decision with its command, each partition's in the order of its chain; partitions may be mixed. It
	// ends where the store stood at the call.
	Log(ctx context.Context) iter.Seq2[Logged, error]
	// Collections names the collections that have documents, and Consumers who has checkpoints; both in order.
	Collections(ctx context.Context) ([]string, error)
	Consumers(ctx context.Context) ([]string, error)
}

// Logged is a decision as it stands in the log. Its Command is complete, as the client sent it, and Fresh.
type Logged struct {
	Partition int
	Decision  Decision
}
