package projection

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-io/millrace"
)

// pointEvery is how often a node tries to write down which code makes a read model: only one of them may.
const pointEvery = time.Second

// ErrShared: several nodes make this read model, and none of them can build it again by itself.
var ErrShared = errors.New("read models of several nodes cannot be rebuilt yet")

// share keeps the live generation of this node's partitions up to date. Documents that other code has made are refused:
// nodes of both kinds would write into them.
func (m *Model) share(ctx context.Context) error {
	if m.version != m.p.Version {
		return fmt.Errorf("%w: projection %s: its documents are of version %d, and this program makes version %d",
			ErrShared, m.p.Name, m.version, m.p.Version)
	}
	named, stop := context.WithCancel(ctx)
	defer stop()
	if m.unnamed {
		go m.nameShared(named)
	}
	return m.consume(ctx, m.consumer(m.live.Load()))
}

// nameShared writes down which code makes the documents. The pointer's partition has one owner, who succeeds.
func (m *Model) nameShared(ctx context.Context) {
	t := time.NewTicker(pointEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		ptr, err := m.s.pointer(ctx, m.p.Name)
		if err == nil && ptr == nil {
			err = m.s.point(ctx, m.p.Name, pointer{Generation: m.live.Load(), Version: m.version})
		}
		if err == nil {
			return
		}
		if !errors.Is(err, millrace.ErrFenced) && ctx.Err() == nil {
			m.s.o.Logger.Warn("cannot write down the version of a read model, trying again", "projection", m.p.Name, "error", err)
		}
	}
}
