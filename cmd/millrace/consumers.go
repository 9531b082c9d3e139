package main

import (
	"context"
	"maps"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/internal/id"
)

// consumers shows all that follows the feed to the API.
type consumers struct{ n *node }

// Names implements httpapi.Consumers.
func (c consumers) Names() map[string]string {
	out := maps.Clone(c.n.projections.Consumers())
	out[command.SnapshotsName] = command.SnapshotsName
	return out
}

// Redrive implements httpapi.Consumers.
func (c consumers) Redrive(ctx context.Context, consumer string, s millrace.Stream) error {
	return feed.Redrive(ctx, c.n.store, consumer, id.New(), s, time.Now())
}
