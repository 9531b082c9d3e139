// Package gate lets a store be closed while others read from it: no reader comes in any more, and those inside are waited for.
package gate

import (
	"math"
	"sync"
	"sync/atomic"

	"github.com/millrace-io/millrace"
)

// Gate counts the reads that are under way. New makes one.
type Gate struct {
	n    atomic.Int64 // the reads; far below zero once the gate is shut
	idle chan struct{}
	once sync.Once
}

// New makes an open gate.
func New() *Gate { return &Gate{idle: make(chan struct{})} }

// Enter begins a read; where it returns nil, Leave must be called.
func (g *Gate) Enter() error {
	if g.n.Add(1) < 0 {
		g.Leave()
		return millrace.ErrClosed
	}
	return nil
}

// Leave ends a read.
func (g *Gate) Leave() {
	if g.n.Add(-1) == math.MinInt64 {
		g.once.Do(func() { close(g.idle) })
	}
}

// Shut lets nobody in any more and waits for those who are.
func (g *Gate) Shut() {
	if g.n.Add(math.MinInt64) == math.MinInt64 {
		g.once.Do(func() { close(g.idle) })
	}
	<-g.idle
}
