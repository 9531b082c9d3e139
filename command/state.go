package command

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// snapshot is a stream's folded state at a version. It is a view: deleting all of them changes no answer.
type snapshot struct {
	StateVersion int            `json:"state_version"`
	Version      uint64         `json:"version"`
	Time         time.Time      `json:"time"` // of the event of that version
	State        jsonx.RawValue `json:"state"`
}

// SnapshotsName is the name of the consumer that writes snapshots.
const SnapshotsName = "snapshots"

var snapshotTable = millrace.NewTable[snapshot]("states", nil, nil)

func snapshotCollection() string { return SnapshotsName + "." + snapshotTable.Name }

// loader reads the states of streams: the snapshot where there is one that fits, and the events behind it.
type loader struct {
	store    *millrace.Store
	registry *millrace.Registry
}

// folded is what a stream's events come to.
type folded struct {
	state   any
	version uint64
	last    time.Time // of the newest event
	weight  int       // about the bytes that the state stands for, see weigh
}

const (
	// smallEvent and manySmall: many small events mostly replace each other in the state, as those of a hot SKU do; a large
	// one, such as an order of thousands of lines, stays in it.
	smallEvent = 1 << 10
	manySmall  = 16 << 10
)

// weigh adds an event's bytes to a state's weight.
func weigh(weight, event int) int {
	if event > smallEvent {
		return weight + event
	}
	return max(weight, min(weight+event, manySmall))
}

// apply folds one event in.
func (f *folded) apply(c *millrace.Category, e *millrace.Recorded, body any) {
	f.state, f.version, f.last = c.Evolve(f.state, body), e.Version, e.Time
	f.weight = weigh(f.weight, len(e.Data))
}

// load returns the stream's state at a version that it has.
func (l *loader) load(ctx context.Context, c *millrace.Category, s millrace.Stream, until uint64) (f folded, err error) {
	f.state = c.Initial(s)
	if until == 0 {
		return f, nil
	}
	if until >= SnapshotEvery {
		if snap, ok := l.snapshot(ctx, c, s); ok && snap.version <= until {
			f = snap
		}
	}
	if f.version == until {
		return f, nil
	}
	for e, err := range l.store.Events(ctx, s, f.version+1) {
		if err != nil {
			return f, err
		}
		body, err := l.registry.Body(&e)
		if err != nil {
			// Another try reads the same bytes.
			return f, fmt.Errorf("%w: %w", millrace.ErrCorrupt, err)
		}
		if f.apply(c, &e, body); f.version == until {
			return f, nil
		}
	}
	return f, fmt.Errorf("%w: the stream ends at version %d instead of %d", millrace.ErrCorrupt, f.version, until)
}

// snapshot reads a usable snapshot. Anything that is wrong with one is as good as none.
func (l *loader) snapshot(ctx context.Context, c *millrace.Category, s millrace.Stream) (f folded, ok bool) {
	doc, err := l.store.Document(ctx, snapshotCollection(), s.Partition(l.store.Partitions()), string(s))
	if err != nil {
		return f, false
	}
	snap, err := snapshotTable.Decode(doc.Data)
	if err != nil || snap.StateVersion != c.StateVersion {
		return f, false
	}
	state, err := c.DecodeState(snap.State)
	if err != nil {
		return f, false
	}
	return folded{state: state, version: snap.Version, last: snap.Time, weight: len(snap.State)}, true
}

// SnapshotEvery is how many events a stream gets between two snapshots: few enough that reading the rest takes about
// as long as reading the snapshot, and so many that short streams, which are most, never get one.
const SnapshotEvery = 100

// Snapshots is the consumer that writes snapshots from the feed.
func Snapshots(store *millrace.Store, registry *millrace.Registry) millrace.Consumer {
	l := &loader{store: store, registry: registry}
	hot := &hotStreams{of: map[millrace.Stream]*folded{}}
	return millrace.Consumer{
		Name: SnapshotsName,
		Handle: func(ctx context.Context, v millrace.Views, e *millrace.Recorded) error {
			f, ok := hot.follow(registry, e)
			if e.Version%SnapshotEvery != 0 && (ok || e.Version != hotFrom) {
				return nil
			}
			c, known := registry.Category(e.Stream)
			if !known {
				return fmt.Errorf("%w: no category for the stream", millrace.ErrNotFound)
			}
			if !ok {
				var err error
				f, err = l.load(ctx, c, e.Stream, e.Version)
				if err != nil && millrace.IsTransient(err) || err == nil && f.version != e.Version {
					return nil // snapshots only save time: the stream's next one will do
				}
				if err != nil {
					return err
				}
				hot.keep(e.Stream, f)
			}
			if e.Version%SnapshotEvery != 0 {
				return nil
			}
			data, err := c.EncodeState(f.state)
			if err != nil {
				return err
			}
			snapshotTable.Put(v, string(e.Stream), &snapshot{StateVersion: c.StateVersion, Version: f.version, Time: f.last, State: data})
			return nil
		},
	}
}

const (
	// hotFrom is the version at which a stream begins to be followed: most end before it, and of those that go on to a snapshot
	// little must be read again.
	hotFrom = 16
	// maxHot bounds the streams whose states are kept for their next snapshots, and maxHotWeight what one of them stands for, in
	// bytes: those that are asked for by everybody are few.
	maxHot       = 1024
	maxHotWeight = 64 << 10
)

// hotStreams are states of streams that have come far, as their events so far have left them: the next snapshot need not read
// them again. It is used by the workers of a feed, each of which has streams of its own.
type hotStreams struct {
	mu sync.Mutex
	of map[millrace.Stream]*folded
}

// follow folds an event in where its stream is kept, and gives the stream's state after it. An event that does not follow the
// last one says that this process has not seen all: another node had the stream, or the feed has begun again.
func (h *hotStreams) follow(registry *millrace.Registry, e *millrace.Recorded) (f folded, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := h.of[e.Stream]
	switch {
	case at == nil:
		return f, false
	case e.Version == at.version+1:
		c, known := registry.Category(e.Stream)
		body, err := registry.Body(e)
		if !known || err != nil {
			break
		}
		if at.apply(c, e, body); at.weight <= maxHotWeight {
			return *at, true
		}
	case e.Version == at.version: // it comes again
		return *at, true
	}
	delete(h.of, e.Stream)
	return f, false
}

// keep keeps a stream's state, unless it is a large one.
func (h *hotStreams) keep(s millrace.Stream, f folded) {
	if f.weight > maxHotWeight {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.of[s] == nil && len(h.of) == maxHot {
		for other := range h.of {
			delete(h.of, other) // whichever
			break
		}
	}
	h.of[s] = &f
}
