package main

import (
	"context"
	"maps"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/id"
	processes "github.com/millrace-io/millrace/process"
)

// consumers shows all that follows the feed to the API.
type consumers struct{ n *node }

// Names implements httpapi.Consumers.
func (c consumers) Names() map[string]string {
	out := maps.Clone(c.n.projections.Consumers())
	out[command.SnapshotsName] = command.SnapshotsName
	for _, p := range c.n.processes() {
		out[p.Name()] = p.Name()
	}
	return out
}

// processes are the process managers that run on this server.
func (n *node) processes() []httpapi.Process {
	if n.notifier == nil {
		return nil
	}
	return []httpapi.Process{processes.NewReader(n.store, order.ProcessNotifications, order.CategoryOrder)}
}

// Redrive implements httpapi.Consumers.
func (c consumers) Redrive(ctx context.Context, consumer string, s millrace.Stream) error {
	return feed.Redrive(ctx, c.n.store, consumer, id.New(), s, time.Now())
}
