package process

import (
	"context"
	"fmt"
	"iter"

	"github.com/millrace-io/millrace"
)

// Instances reads the documents of instances; q.Collection is filled in.
func (m *Manager) Instances(ctx context.Context, q millrace.Query) iter.Seq2[millrace.Document, error] {
	q.Collection = m.collection(millrace.InstancesTable.Table)
	return m.store.Documents(ctx, q)
}

// Instance is the document of a stream's instance. Errors: [millrace.ErrNotFound].
func (m *Manager) Instance(ctx context.Context, s millrace.Stream) (millrace.Document, error) {
	if s.Category() != m.p.Category {
		return millrace.Document{}, fmt.Errorf("%w: process %s has instances of category %s", millrace.ErrNotFound, m.p.Name, m.p.Category)
	}
	return m.store.Document(ctx, m.collection(millrace.InstancesTable.Table), s.Partition(m.store.Partitions()), string(s))
}

// Name is the name of the process, and of its consumer.
func (m *Manager) Name() string { return m.p.Name }

// Category is the one whose streams have instances.
func (m *Manager) Category() string { return m.p.Category }
