package pgstore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// docRows are writes of documents as rows.
type docRows struct {
	docs []docRow
	// The rows of document_keys that come and those that go, and the documents that go.
	come, gone, removed array
}

// docRow is a document to be written. Its row is made last: what is no JSON for PostgreSQL may only show when it is tried.
type docRow struct {
	*millrace.Document
	isJSON bool
	isNew  bool // the writer says that there is none
}

// addKey adds a row of document_keys.
func addKey(a *array, d *millrace.Document, idx int, key string) {
	a.begin(5)
	a.int4(d.Partition)
	a.text(d.Collection)
	a.int2(int16(idx)) //nolint:gosec // a table has few indexes
	a.dataOf(key)
	a.dataOf(d.ID)
	a.end()
}

// put adds a document, which must stay as it is until it is written; keys that it has already are left alone. Nil says that
// there is no such document.
func (r *docRows) put(d *millrace.Document, have []string) {
	r.docs = append(r.docs, docRow{d, fitsJSONB(d.Data), have == nil})
	for i, key := range d.Keys {
		if key != "" && (i >= len(have) || have[i] != key) {
			addKey(&r.come, d, i, key)
		}
	}
}

func (r *docRows) remove(d *millrace.Document) {
	a := &r.removed
	a.begin(3)
	a.int4(d.Partition)
	a.text(d.Collection)
	a.dataOf(d.ID)
	a.end()
}

// anyJSON says whether a document is to be written as jsonb too; noJSON has none be.
func (r *docRows) anyJSON() bool {
	return slices.ContainsFunc(r.docs, func(d docRow) bool { return d.isJSON })
}

func (r *docRows) noJSON() {
	for i := range r.docs {
		r.docs[i].isJSON = false
	}
}

// docsParam is the parameter of the documents.
func (d *Driver) docsParam(r *docRows) []byte {
	var a array
	var keys []byte
	payload := 0
	for i := range r.docs {
		payload += len(r.docs[i].Data)
	}
	a.room(len(r.docs), payload)
	for i := range r.docs {
		doc := &r.docs[i]
		keys = appendKeys(keys[:0], doc.Keys)
		a.begin(7)
		a.int4(doc.Partition)
		a.text(doc.Collection)
		a.dataOf(doc.ID)
		a.data(doc.Data)
		a.bool(doc.isJSON)
		a.data(keys)
		a.bool(doc.isNew)
		a.end()
	}
	return d.rowsParam(documentRow, &a)
}

// docKey names a document.
type docKey struct {
	collection string
	partition  int
	id         string
}

// change is what several writes of a document in one batch come to.
type change struct {
	last *millrace.Put
	had  []string          // the keys that it has in the database
	old  []map[string]bool // all keys that it may have had since, by index
}

// puts adds the writes of a batch. Of several of one document the last one counts; rows of one statement must not
// meet each other.
func (r *docRows) puts(puts []millrace.Put) {
	changes := make(map[docKey]*change, len(puts))
	order := make([]*change, 0, len(puts))
	for i := range puts {
		p := &puts[i]
		k := docKey{p.Collection, p.Partition, p.ID}
		c := changes[k]
		if c == nil {
			c = &change{had: p.Old}
			changes[k] = c
			order = append(order, c)
		}
		c.last = p
		c.note(p.Old)
	}
	for _, c := range order {
		p := c.last
		for i, keys := range c.old {
			for key := range keys {
				if p.Delete || i >= len(p.Keys) || p.Keys[i] != key {
					addKey(&r.gone, &p.Document, i, key)
				}
			}
		}
		if p.Delete {
			r.remove(&p.Document)
		} else {
			r.put(&p.Document, c.had)
		}
	}
}

func (c *change) note(keys []string) {
	for i, key := range keys {
		for len(c.old) <= i {
			c.old = append(c.old, nil)
		}
		if key == "" {
			continue
		}
		if c.old[i] == nil {
			c.old[i] = map[string]bool{}
		}
		c.old[i][key] = true
	}
}

// A document's sort keys are kept as their number, and each led by its length.
func appendKeys(b []byte, keys []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(keys)))
	for _, k := range keys {
		b = binary.AppendUvarint(b, uint64(len(k)))
		b = append(b, k...)
	}
	return b
}

func decodeKeys(collection string, b []byte) ([]string, error) {
	bad := fmt.Errorf("%w: documents: the keys of a document of collection %s", millrace.ErrCorrupt, collection)
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)) {
		return nil, bad
	}
	b = b[w:]
	var keys []string
	if n > 0 {
		keys = make([]string, n)
	}
	for i := range keys {
		size, w := binary.Uvarint(b)
		if w <= 0 || size > uint64(len(b)-w) { //nolint:gosec // checked to be positive
			return nil, bad
		}
		keys[i] = string(b[w : w+int(size)]) //nolint:gosec // checked above
		b = b[w+int(size):]                  //nolint:gosec // checked above
	}
	if len(b) != 0 {
		return nil, bad
	}
	return keys, nil
}

// maxJSONNumber bounds the digits of numbers that jsonb gets: it keeps them all, and refuses more than 131,072.
const maxJSONNumber = 100

// fitsJSONB says whether PostgreSQL will take a document as jsonb. It takes no NUL, and its numbers have a range. Where
// this says yes and PostgreSQL no, the batch is written again without jsonb.
func fitsJSONB(data []byte) bool {
	return len(data) > 0 && jsonx.Check(data) == nil && valuesFit(data)
}

// valuesFit looks for NUL in strings, and outside of them for exponents of more than two digits and for long numbers.
func valuesFit(data []byte) bool {
	inString, run, exponent := false, 0, -1
	for i := 0; i < len(data); i++ {
		c := data[i]
		switch {
		case inString && c == '\\':
			if bytes.HasPrefix(data[i:], []byte(`\u0000`)) {
				return false
			}
			i++
		case c == '"':
			inString, run, exponent = !inString, 0, -1
		case inString:
		case c >= '0' && c <= '9':
			if run++; exponent >= 0 {
				exponent++
			}
			if run > maxJSONNumber || exponent > 2 {
				return false
			}
		case (c == 'e' || c == 'E') && run > 0:
			exponent = 0
		case c == '.' || c == '+' || c == '-':
		default:
			run, exponent = 0, -1
		}
	}
	return true
}
