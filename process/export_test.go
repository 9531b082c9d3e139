package process

import (
	"fmt"
	"sync/atomic"
)

// FreshIDs has the commands of steps have another id each time, for the test that shows what comes of it.
func FreshIDs(m *Manager) {
	var n atomic.Int64
	m.freshID = func() string { return fmt.Sprint("fresh", n.Add(1)) }
}

const LookEvery = lookEvery
