package command

import (
	"context"
	"errors"
	"fmt"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// snapshot is a stream's folded state at a version. It is a view: deleting all of them changes no answer.
type snapshot struct {
	StateVersion int            `json:"state_version"`
	Version      uint64         `json:"version"`
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

// load returns the stream's state at its newest version, or at until (0: the newest).
func (l *loader) load(ctx context.Context, c *millrace.Category, s millrace.Stream, until uint64) (state any, version uint64, err error) {
	newest, err := l.store.Version(ctx, s)
	if err != nil {
		return nil, 0, err
	}
	if until == 0 || until > newest {
		until = newest
	}
	state = c.Initial(s)
	if until == 0 {
		return state, 0, nil
	}
	if snap, v, ok := l.snapshot(ctx, c, s); ok && v <= until {
		state, version = snap, v
	}
	if version == until {
		return state, version, nil
	}
	for e, err := range l.store.Events(ctx, s, version+1) {
		if err != nil {
			return nil, 0, err
		}
		body, err := l.registry.Body(&e)
		if err != nil {
			// Another try reads the same bytes.
			return nil, 0, fmt.Errorf("%w: %w", millrace.ErrCorrupt, err)
		}
		state, version = c.Evolve(state, body), e.Version
		if version == until {
			return state, version, nil
		}
	}
	return nil, 0, fmt.Errorf("%w: the stream ends at version %d instead of %d", millrace.ErrCorrupt, version, until)
}

// snapshot reads a usable snapshot. Anything that is wrong with one is as good as none.
func (l *loader) snapshot(ctx context.Context, c *millrace.Category, s millrace.Stream) (any, uint64, bool) {
	doc, err := l.store.Document(ctx, snapshotCollection(), s.Partition(l.store.Partitions()), string(s))
	if err != nil {
		return nil, 0, false
	}
	snap, err := snapshotTable.Decode(doc.Data)
	if err != nil || snap.StateVersion != c.StateVersion {
		return nil, 0, false
	}
	state, err := c.DecodeState(snap.State)
	if err != nil {
		return nil, 0, false
	}
	return state, snap.Version, true
}

// SnapshotEvery is how many events a stream gets between two snapshots: few enough that reading the rest takes about
// as long as reading the snapshot, and so many that short streams, which are most, never get one.
const SnapshotEvery = 100

// Snapshots is the consumer that writes snapshots from the feed.
func Snapshots(store *millrace.Store, registry *millrace.Registry) millrace.Consumer {
	l := &loader{store: store, registry: registry}
	return millrace.Consumer{
		Name: SnapshotsName,
		Handle: func(ctx context.Context, v millrace.Views, e *millrace.Recorded) error {
			if e.Version%SnapshotEvery != 0 {
				return nil
			}
			c, ok := registry.Category(e.Stream)
			if !ok {
				return fmt.Errorf("%w: no category for the stream", millrace.ErrNotFound)
			}
			state, version, err := l.load(ctx, c, e.Stream, e.Version)
			if err != nil {
				return err
			}
			if version != e.Version {
				return errors.New("a newer snapshot exists already")
			}
			data, err := c.EncodeState(state)
			if err != nil {
				return err
			}
			snapshotTable.Put(v, string(e.Stream), &snapshot{StateVersion: c.StateVersion, Version: version, State: data})
			return nil
		},
	}
}
