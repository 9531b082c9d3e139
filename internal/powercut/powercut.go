// Package powercut chooses the moment at which a test pulls the plug.
package powercut

import (
	"context"
	"sync"

	"github.com/millrace-io/millrace"
)

// Driver is a driver that calls Cut right before or right after its n-th write, of facts or of views. Cut takes a copy of the
// disk as a power cut would leave it, and the work goes on; or it takes away what this process would go on with.
type Driver struct {
	millrace.Driver
	N     int // from 1
	After bool
	Cut   func()

	mu     sync.Mutex
	writes int
}

// Next has the next write be the one.
func (d *Driver) Next() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.N = d.writes + 1
}

func (d *Driver) write(do func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock() // one write at a time: the copy is what the disk holds at that moment
	d.writes++
	cut := d.writes == d.N
	if cut && !d.After {
		d.Cut()
	}
	err := do()
	if cut && d.After {
		d.Cut()
	}
	return err
}

// CommitViews implements millrace.Driver.
func (d *Driver) CommitViews(ctx context.Context, batches []millrace.ViewBatch) error {
	return d.write(func() error { return d.Driver.CommitViews(ctx, batches) })
}

// Append implements millrace.Driver. It returns when the batch is written, and done was told.
func (d *Driver) Append(b *millrace.Batch, done func(error)) {
	done(d.write(func() error {
		ended := make(chan error, 1)
		d.Driver.Append(b, func(err error) { ended <- err })
		return <-ended
	}))
}

// Shared is [Driver] for a backend that several processes share. What a cut leaves of the process is the test's matter: the backend lives on.
type Shared struct {
	millrace.Shared
	// At chooses the write. It writes to the same backend.
	At *Driver
}

// CommitViews implements millrace.Driver.
func (s *Shared) CommitViews(ctx context.Context, batches []millrace.ViewBatch) error {
	return s.At.CommitViews(ctx, batches)
}

// Append implements millrace.Driver.
func (s *Shared) Append(b *millrace.Batch, done func(error)) { s.At.Append(b, done) }
