package main

import (
	"maps"

	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/letter"
	processes "github.com/millrace-io/millrace/process"
)

// consumers shows all that follows the feed to the API.
type consumers struct{ n *node }

// Names implements httpapi.Consumers.
func (c consumers) Names() map[string]string {
	out := maps.Clone(c.n.projections.Consumers())
	for _, name := range []string{command.SnapshotsName, letter.Jobs, streamAsks} {
		out[name] = name
	}
	for _, p := range c.n.processes() {
		out[p.Name()] = p.Name()
	}
	return out
}

// processes are the process managers that run on this server.
func (n *node) processes() (all []httpapi.Process) {
	for _, p := range n.o.processes() {
		all = append(all, processes.NewReader(n.store, p.name, p.category))
	}
	return all
}

// managed is the name of a process manager, and of the category that it is about.
type managed struct{ name, category string }

// processes are the process managers of these settings.
func (o *nodeOptions) processes() []managed {
	all := []managed{{letter.Process, letter.Category}}
	if len(o.notify) > 0 {
		all = append(all, managed{order.ProcessNotifications, order.CategoryOrder})
	}
	if o.fulfil != nil {
		all = append(all, managed{order.ProcessFulfilment, order.CategoryOrder})
	}
	return all
}
