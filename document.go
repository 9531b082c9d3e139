package millrace

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"
)

// Document is one JSON document of a collection. Documents are views: they follow from facts and can be deleted and
// built again. A document belongs to a partition, the one whose events it is made from.
type Document struct {
	Collection string
	Partition  int
	ID         string
	Data       []byte
	// Keys are the document's sort keys, one for each index its collection declares, in that order; "" leaves the
	// document out of an index. Made with [Key].
	Keys []string
}

// keySeparator stands between the parts of a key. It sorts before everything that a part may hold.
const keySeparator = "\x00"

// Key joins parts into a sort key that orders by the first part, then by the second, and so on. A NUL inside of a
// part, which no validated input has, is replaced so that it cannot pass for a separator.
func Key(parts ...string) string {
	owned := false
	for i, p := range parts {
		if strings.Contains(p, keySeparator) {
			if !owned { // the slice may be the caller's
				parts, owned = slices.Clone(parts), true
			}
			parts[i] = strings.ReplaceAll(p, keySeparator, "\x01")
		}
	}
	return strings.Join(parts, keySeparator)
}

// KeyPrefix is the prefix shared by all keys that begin with exactly these parts and have more.
func KeyPrefix(parts ...string) string { return Key(parts...) + keySeparator }

// Query reads documents of a collection in the order of an index.
type Query struct {
	Collection string
	// Index is the number of the declared index, or -1 for the order of ids (by partition, then id).
	Index int
	// Partition limits the query to one partition; -1 reads all.
	Partition int
	// Prefix limits the index keys (or ids) to those that begin with it.
	Prefix string
	// From and To limit the index keys further: From <= key < To. Empty means no limit. They are whole keys, prefix
	// included.
	From, To string
	Reverse  bool
	// After continues behind a document that an earlier query returned; see [Document.Place].
	After *Place
}

// Place is where a document stands in an index.
type Place struct {
	Key       string
	Partition int
	ID        string
}

// Place is the document's place in the given index (-1: by id).
func (d *Document) Place(index int) Place {
	p := Place{Partition: d.Partition, ID: d.ID}
	if index >= 0 {
		p.Key = d.Keys[index]
	}
	return p
}

// Put is one write of a document within a ViewBatch.
type Put struct {
	Document
	// Old are the keys of the document that this one replaces; nil where there is none.
	Old []string
	// Delete removes the document instead; only Collection, Partition, ID and Old count.
	Delete bool
}

// ViewBatch is one commit of a consumer in one partition: its documents and its checkpoint, together.
type ViewBatch struct {
	Consumer   string
	Partition  int
	Epoch      uint64
	Checkpoint uint64 // the position of the last event that is behind the consumer
	Puts       []Put
}

// Table is a projection's declaration of a kind of document. Name is unique within the projection.
type Table struct {
	Name    string
	Indexes []string
	decode  func([]byte) (any, error)
	keys    func(any) []string
}

// TableOf is a Table whose documents are *T.
type TableOf[T any] struct{ *Table }

// NewTable declares a table. keys returns the sort keys of a document for each of the indexes, in order.
func NewTable[T any](name string, indexes []string, keys func(*T) []string) TableOf[T] {
	return TableOf[T]{&Table{
		Name: name, Indexes: indexes,
		decode: func(data []byte) (any, error) { return decodeBody[T](data) },
		keys: func(v any) []string {
			if keys == nil {
				return nil
			}
			return keys(v.(*T)) //nolint:forcetypeassert // TableOf lets only *T in
		},
	}}
}

// Get reads a document; nil where there is none. The caller may change what it got and Put it back.
func (t TableOf[T]) Get(v Views, id string) (*T, error) {
	doc, err := v.Load(t.Table, id)
	if doc == nil || err != nil {
		return nil, err
	}
	return doc.(*T), nil //nolint:forcetypeassert // as above
}

// Put writes a document. The handler gives it away: only further Gets of the same table may touch it.
func (t TableOf[T]) Put(v Views, id string, doc *T) { v.Save(t.Table, id, doc) }

// Insert writes a document of which the handler knows that it is new, and saves the look at the old one.
func (t TableOf[T]) Insert(v Views, id string, doc *T) { v.Insert(t.Table, id, doc) }

// Delete removes a document; it is no fault if there is none.
func (t TableOf[T]) Delete(v Views, id string) { v.Remove(t.Table, id) }

// Decode reads the bytes of a document.
func (t TableOf[T]) Decode(data []byte) (*T, error) {
	v, err := t.decode(data)
	if err != nil {
		return nil, err
	}
	return v.(*T), nil //nolint:forcetypeassert // as above
}

// Decode reads the bytes of a document into the table's type.
func (t *Table) Decode(data []byte) (any, error) { return t.decode(data) }

// Encode gives the bytes and the sort keys of a document, and checks that there is a key for each index.
func (t *Table) Encode(doc any) (data []byte, keys []string, err error) {
	keys = t.keys(doc)
	if len(keys) != len(t.Indexes) {
		return nil, nil, fmt.Errorf("table %s: %d keys for %d indexes", t.Name, len(keys), len(t.Indexes))
	}
	data, err = encodeBody(doc)
	return data, keys, err
}

// Views is what a handler sees of its documents: those of its own consumer, in the partition of the event at hand.
// What it writes becomes visible together with the checkpoint.
type Views interface {
	Load(t *Table, id string) (any, error)
	Save(t *Table, id string, doc any)
	Insert(t *Table, id string, doc any)
	Remove(t *Table, id string)
}

// ParkedName is the name of every consumer's table of parked streams.
const ParkedName = "parked"

// Parked is the document of a stream that a consumer has given up until somebody redrives it. Nothing of it is lost: the
// stream's events from Version on are in the log.
type Parked struct {
	Stream   string    `json:"stream"`
	Version  uint64    `json:"version"`
	Position uint64    `json:"position"`
	Reason   string    `json:"reason"`
	Error    string    `json:"error"`
	Attempts int       `json:"attempts"`
	Since    time.Time `json:"since"`
}

// ParkedTable holds a consumer's parked streams, by the stream's name.
var ParkedTable = NewTable[Parked](ParkedName, nil, nil)

// Ask is the document of what somebody wants of a consumer: it is posted ([Store.Post]) to the partition at hand, and whoever
// runs the consumer there does it and removes the document with what came of it.
type Ask struct {
	Redrive Stream `json:"redrive"` // a stream that is parked, or that something has stopped because of
	// Skip is the version of the event that failed where it is to be left out: a person has said so. 0 leaves out none. Where
	// the stream is not parked at that event any more, nothing is left out.
	Skip uint64    `json:"skip,omitzero"`
	At   time.Time `json:"at"`
}

// AsksTable holds what is asked of a consumer, by random ids.
var AsksTable = NewTable[Ask]("asks", nil, nil)

// Consumer is all that follows the feed: projections, process managers, subscriptions. One loop runs them all.
type Consumer struct {
	// Name identifies the consumer's checkpoints and documents.
	Name string
	// Categories limits the events that Handle sees. Empty means all.
	Categories []string
	// Handle takes one event, its Body decoded. An error is retried; after the last attempt the event and all later
	// ones of the same stream are parked for this consumer, and the other streams go on.
	Handle func(ctx context.Context, v Views, e *Recorded) error
	// Rebuilding says that nobody reads the documents yet, or any more: how long events took to get here is no measure of
	// anything, and a parked stream is no alarm. A consumer with Effects is not run so.
	Rebuilding bool
	// Effects says that Handle does something in the world besides writing its documents. What it did for old events must
	// not be done again.
	Effects bool
	// Begin is called before each run, when it is settled which partitions it has, and before it reads where it stands. Its
	// error ends the run. Defaults to nothing.
	Begin func(ctx context.Context) error
	// Collection names the documents of a table. Defaults to consumer name, ".", table name.
	Collection func(t *Table) string
	// Work, where it is given, makes what takes the place of Handle: one for each worker.
	Work func() Work
}

// Work is what a worker of a consumer does that has more to do than to handle events. Its methods are called by that worker
// alone, so that documents have one writer; all that it writes between two commits becomes visible together.
type Work interface {
	// Begin is called once, with the worker's partitions. wake receives when Turn has something to do. parked says of which
	// streams nothing is to be touched, because somebody has to look at them first.
	Begin(ctx context.Context, partitions []int, parked func(Stream) bool) (wake <-chan struct{}, err error)
	// Handle takes one event, as [Consumer].Handle does.
	Handle(ctx context.Context, v Views, e *Recorded) error
	// Turn does what is due beside events. Its errors are the store's: faults of its own it must keep to itself.
	Turn(ctx context.Context, views func(partition int) Views) error
	// Redrive is called before a parked stream's events are handled again, or where there is none parked: what had stopped
	// because of the stream goes on.
	Redrive(ctx context.Context, v Views, s Stream) error
	// Settle is called before a commit: what must be durable before the checkpoint moves is made so.
	Settle(ctx context.Context, views func(partition int) Views) error
	// Committed says that all since the last call is durable, Undone that it came to nothing and events will come again.
	Committed()
	Undone()
	// End is called once, when the worker ends.
	End()
}

// Wants says whether the consumer sees events of a category.
func (c *Consumer) Wants(category string) bool {
	if len(c.Categories) == 0 {
		return true
	}
	for _, w := range c.Categories {
		if w == category {
			return true
		}
	}
	return false
}

// Projection is the declaration of a read model: a pure function from events to documents.
type Projection struct {
	Name string
	// Version changes whenever Project or the tables do.
	Version    int
	Categories []string
	Tables     []*Table
	// Project applies one event whose Body is decoded. Documents depend on nothing but the events of their partition.
	Project func(v Views, e *Recorded) error
	// OfStream names the documents that Project makes of a stream's events. It says that they follow from those events
	// alone, and that Project touches no others for them: then they can be made again by themselves. Nil where documents
	// depend on several streams, as totals do.
	OfStream func(s Stream) []DocumentName
}

// DocumentName names a document of a projection, in the partition of the stream at hand.
type DocumentName struct {
	Table *Table
	ID    string
}

// ReadModel is how everybody but the feed sees a projection: always one whole generation of its documents.
type ReadModel interface {
	// Get reads one document of a table. Errors: [ErrNotFound].
	Get(ctx context.Context, t *Table, partition int, id string) (Document, error)
	// Query reads documents of a table; q.Collection is filled in.
	Query(ctx context.Context, t *Table, q Query) iter.Seq2[Document, error]
	// Wait returns when the read model has seen at least what the cursor names, or ctx's error.
	Wait(ctx context.Context, c Cursor) error
	// Cursor is what the read model has seen.
	Cursor() Cursor
}
