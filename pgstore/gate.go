package pgstore

import (
	"math"
	"sync"
	"sync/atomic"

	"github.com/millrace-io/millrace"
)

// gate counts the reads that are under way, so that Close can wait for them.
type gate struct {
	n    atomic.Int64 // the reads; far below zero once the gate is shut
	idle chan struct{}
	once sync.Once
}

// enter begins a read; where it returns nil, leave must be called.
func (g *gate) enter() error {
	if g.n.Add(1) < 0 {
		g.leave()
		return millrace.ErrClosed
	}
	return nil
}

func (g *gate) leave() {
	if g.n.Add(-1) == math.MinInt64 {
		g.once.Do(func() { close(g.idle) })
	}
}

// shut lets nobody in any more and waits for those who are.
func (g *gate) shut() {
	if g.n.Add(math.MinInt64) == math.MinInt64 {
		g.once.Do(func() { close(g.idle) })
	}
	<-g.idle
}
