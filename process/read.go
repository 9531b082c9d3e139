package process

import (
	"context"
	"fmt"
	"iter"

	"github.com/millrace-io/millrace"
)

// Reader reads the instances of a process, whichever node runs it.
type Reader struct {
	store          *millrace.Store
	name, category string
}

// NewReader makes a reader for a process by its name and category.
func NewReader(store *millrace.Store, name, category string) *Reader {
	return &Reader{store, name, category}
}

// Name is the name of the process, and of its consumer.
func (r *Reader) Name() string { return r.name }

// Category is the one whose streams have instances.
func (r *Reader) Category() string { return r.category }

// Instances reads the documents of instances; q.Collection is filled in.
func (r *Reader) Instances(ctx context.Context, q millrace.Query) iter.Seq2[millrace.Document, error] {
	q.Collection = collection(r.name, millrace.InstancesTable.Table)
	return r.store.Documents(ctx, q)
}

// Instance is the document of a stream's instance. Errors: [millrace.ErrNotFound].
func (r *Reader) Instance(ctx context.Context, s millrace.Stream) (millrace.Document, error) {
	if s.Category() != r.category {
		return millrace.Document{}, fmt.Errorf("%w: process %s has instances of category %s", millrace.ErrNotFound, r.name, r.category)
	}
	return r.store.Document(ctx, collection(r.name, millrace.InstancesTable.Table), s.Partition(r.store.Partitions()), string(s))
}
