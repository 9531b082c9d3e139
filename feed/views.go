package feed

import (
	"context"
	"errors"
	"fmt"

	"github.com/millrace-io/millrace"
)

// views are a handler's documents within one commit in one partition. It implements millrace.Views.
type views struct {
	ctx       context.Context //nolint:containedctx // it lives as long as one batch
	store     *millrace.Store
	consumer  *millrace.Consumer
	partition int
	docs      map[docKey]*doc
	order     []*doc // in the order of first use, so that a commit does not depend on a map's
	// kept are documents as the last commits left them: those that were changed, as a day's totals are by nearly every commit,
	// and an order by each step of its way. Nobody else writes a consumer's documents.
	kept map[docKey]*doc
	// uses are the uses of the kept ones, the oldest first; a document that was used again is there again.
	uses    []use
	size    int    // of the kept ones, in bytes as they are stored
	commits uint64 // so far
}

// use is the use of a kept document by a commit.
type use struct {
	d      *doc
	commit uint64
}

// maxKept bounds kept, in bytes as they are stored: some hundred documents of usual size for each partition.
const maxKept = 1 << 20

type docKey struct {
	table *millrace.Table
	id    string
}

// doc is a document as the handler sees it.
type doc struct {
	docKey
	value any // nil where there is none
	old   []string
	read  bool // the store was asked for it
	dirty bool
	keys  []string // what it was put with
	size  int      // of its bytes then
	// Of a document that is kept: its part of views.size, and the last commit that put it.
	counted int
	used    uint64
	err     error
}

// reset begins a commit. Where one was begun and came to nothing, what it did to the kept documents is forgotten too.
func (v *views) reset() {
	if len(v.order) > 0 {
		clear(v.kept)
		v.uses, v.size = nil, 0
	}
	clear(v.docs)
	v.order = v.order[:0]
}

// settle ends a commit that succeeded. A document that was looked at and not put back is not kept: its handler may have
// changed it all the same.
func (v *views) settle() {
	v.commits++
	for _, d := range v.order {
		if k := v.kept[d.docKey]; k != nil {
			v.drop(k)
		}
		if !d.dirty || d.value == nil {
			continue
		}
		d.read, d.dirty, d.used, d.counted = true, false, v.commits, d.size
		if d.old = d.keys; d.old == nil {
			d.old = []string{}
		}
		v.kept[d.docKey] = d
		v.size += d.counted
		v.uses = append(v.uses, use{d, v.commits})
	}
	for v.size > maxKept || len(v.uses) > 2*len(v.kept)+1024 { // those that were used again are there in vain
		if u := v.uses[0]; v.kept[u.d.docKey] == u.d && u.d.used == u.commit {
			v.drop(u.d)
		}
		v.uses = v.uses[1:]
	}
	clear(v.docs)
	v.order = v.order[:0]
}

// drop keeps a document no longer.
func (v *views) drop(d *doc) {
	delete(v.kept, d.docKey)
	v.size -= d.counted
}

func (v *views) find(t *millrace.Table, id string, read bool) *doc {
	k := docKey{t, id}
	d := v.docs[k]
	if d != nil {
		return d
	}
	if d = v.kept[k]; d == nil || !read {
		d = &doc{docKey: k}
	}
	if read && !d.read {
		d.load(v)
	}
	v.docs[k] = d
	v.order = append(v.order, d)
	return d
}

func (d *doc) load(v *views) {
	d.read = true
	stored, err := v.store.Document(v.ctx, v.consumer.Collection(d.table), v.partition, d.id)
	if errors.Is(err, millrace.ErrNotFound) {
		return
	}
	if err != nil {
		d.err = fmt.Errorf("read document of %s: %w", v.consumer.Name, err)
		return
	}
	// Other code has written it, or a person: another try reads the same bytes, so the stream is parked.
	if d.value, err = d.table.Decode(stored.Data); err != nil {
		d.value, d.err = nil, &handlerError{fmt.Errorf("decode document of %s: %w", v.consumer.Name, err)}
		return
	}
	if d.old = stored.Keys; d.old == nil {
		d.old = []string{}
	}
}

// Load implements millrace.Views.
func (v *views) Load(t *millrace.Table, id string) (any, error) {
	d := v.find(t, id, true)
	return d.value, d.err
}

// Save implements millrace.Views.
func (v *views) Save(t *millrace.Table, id string, value any) {
	d := v.find(t, id, true)
	d.value, d.dirty = value, true
}

// Insert implements millrace.Views.
func (v *views) Insert(t *millrace.Table, id string, value any) {
	d := v.find(t, id, false)
	d.value, d.dirty = value, true
}

// Remove implements millrace.Views.
func (v *views) Remove(t *millrace.Table, id string) {
	d := v.find(t, id, true)
	d.value, d.dirty = nil, true
}

// puts encodes what was written.
func (v *views) puts() ([]millrace.Put, error) {
	var out []millrace.Put
	for _, d := range v.order {
		switch {
		case d.err != nil:
			return nil, d.err
		case !d.dirty || d.value == nil && d.old == nil:
			continue
		}
		p := millrace.Put{Old: d.old, Document: millrace.Document{
			Collection: v.consumer.Collection(d.table), Partition: v.partition, ID: d.id,
		}}
		if p.Delete = d.value == nil; !p.Delete {
			var err error
			if p.Data, p.Keys, err = encode(d); err != nil {
				return nil, &handlerError{err}
			}
			d.keys, d.size = p.Keys, len(p.Data)
		}
		out = append(out, p)
	}
	return out, nil
}

// encode encodes a document. Its keys are made by the handler's side; a panic there is an error like any other.
func encode(d *doc) (data []byte, keys []string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("encode document: panic: %v", p)
		}
	}()
	return d.table.Encode(d.value)
}
