package pgstore

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
)

// idPartitions is how many partitions one page in the order of ids reads from: that order is by partition first, so that
// the others are not needed until these are through.
const idPartitions = 16

// pageBytes is what a page should not take much more than: after a larger one the next is smaller.
const pageBytes = 4 << 20

// minPage is the least that a page of large documents holds.
const minPage = 8

// statementsOf are the variants of a query: with an upper bound or without, and forwards or backwards. A bound that is
// sometimes null could not be looked for in an index.
type statementsOf [2][2]string

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (s *statementsOf) get(upper, reverse bool) string { return s[number(upper)][number(reverse)] }

// Of each partition the entries of the index between two places, up to a number; of all of them the first ones; and
// their documents, by the same snapshot. What stands in braces is for an upper bound only.
const byKeySQL = `select x.partition, x.key, x.id, d.data, d.keys
	from (
		select b.partition, k.key, k.id
		from unnest($3::integer[], $4::bytea[], $5::bytea[]{, $7::bytea[], $8::bytea[]}) b(partition, lk, li{, uk, ui})
		cross join lateral (
			select k.key, k.id from S.document_keys k
			where k.partition = b.partition and k.collection = $1 and k.idx = $2
				and (k.key, k.id) >= (b.lk, b.li){ and (k.key, k.id) < (b.uk, b.ui)}
			order by k.key DIR, k.id DIR limit $6
		) k
		order by k.key DIR, b.partition DIR, k.id DIR limit $6
	) x
	left join S.documents d on d.partition = x.partition and d.collection = $1 and d.id = x.id
	order by x.key DIR, x.partition DIR, x.id DIR`

const byIDSQL = `select x.partition, ''::bytea, x.id, d.data, d.keys
	from (
		select b.partition, k.id
		from unnest($2::integer[], $3::bytea[]{, $5::bytea[]}) b(partition, li{, ui})
		cross join lateral (
			select k.id from S.documents k
			where k.partition = b.partition and k.collection = $1 and k.id >= b.li{ and k.id < b.ui}
			order by k.id DIR limit $4
		) k
		order by b.partition DIR, k.id DIR limit $4
	) x
	join S.documents d on d.partition = x.partition and d.collection = $1 and d.id = x.id
	order by x.partition DIR, x.id DIR`

// variants makes the texts of a query.
func variants(text string) (out statementsOf) {
	for _, upper := range []bool{false, true} {
		var b strings.Builder
		for rest := text; rest != ""; {
			always, more, _ := strings.Cut(rest, "{")
			bound, tail, _ := strings.Cut(more, "}")
			b.WriteString(always)
			if upper {
				b.WriteString(bound)
			}
			rest = tail
		}
		out[number(upper)] = [2]string{strings.ReplaceAll(b.String(), "DIR", "asc"), strings.ReplaceAll(b.String(), "DIR", "desc")}
	}
	return out
}

// Document implements millrace.Driver.
func (d *Driver) Document(ctx context.Context, collection string, partition int, id string) (millrace.Document, error) {
	doc := millrace.Document{Collection: collection, Partition: partition, ID: id}
	if err := d.reads.Enter(); err != nil {
		return doc, err
	}
	defer d.reads.Leave()
	found := false
	err := d.query(ctx, d.sql.document, []any{partition, collection, []byte(id)}, func(rows pgx.Rows) error {
		found = true
		var keys []byte
		if err := rows.Scan(&doc.Data, &keys); err != nil {
			return err
		}
		var err error
		doc.Keys, err = decodeKeys(collection, keys)
		return err
	})
	if err != nil {
		return doc, readError(ctx, err)
	}
	if !found {
		return doc, millrace.ErrNotFound
	}
	return doc, nil
}

// Documents implements millrace.Driver. Each page is of one snapshot; a document that moves in between is seen where
// it is when its page is read.
func (d *Driver) Documents(ctx context.Context, q millrace.Query) iter.Seq2[millrace.Document, error] {
	return func(yield func(millrace.Document, error) bool) {
		if err := d.reads.Enter(); err != nil {
			yield(millrace.Document{}, err)
			return
		}
		defer d.reads.Leave()
		todo := d.queried(&q)
		for size := firstPage; len(todo) > 0; {
			n := len(todo)
			if q.Index < 0 {
				n = min(n, idPartitions)
				if q.Reverse && q.After != nil && todo[0] == q.After.Partition {
					n = 1 // the only one with this bound
				}
			}
			page, err := d.page(ctx, &q, todo[:n], size)
			if err != nil {
				yield(millrace.Document{}, readError(ctx, err))
				return
			}
			bytes := 0
			for i := range page {
				if ctx.Err() != nil {
					yield(millrace.Document{}, ctx.Err())
					return
				}
				if !yield(page[i], nil) {
					return
				}
				bytes += len(page[i].Data)
			}
			if len(page) < size {
				todo = todo[n:]
				continue
			}
			place := page[len(page)-1].Place(q.Index)
			q.After = &place
			for q.Index < 0 && len(todo) > 0 && todo[0] != place.Partition {
				todo = todo[1:]
			}
			if size = nextPage(size); bytes > pageBytes {
				size = max(len(page)/4, minPage)
			}
		}
	}
}

// queried are the partitions that a query reads, in its order, without those that it has passed.
func (d *Driver) queried(q *millrace.Query) []int {
	var out []int
	for i := range d.meta.Partitions {
		p := i
		if q.Reverse {
			p = d.meta.Partitions - 1 - i
		}
		if q.Partition >= 0 && p != q.Partition {
			continue
		}
		if a := q.After; q.Index < 0 && a != nil && p != a.Partition && p < a.Partition != q.Reverse {
			continue
		}
		out = append(out, p)
	}
	return out
}

// edge is a place in an index: at it, or right before it.
type edge struct{ key, id string }

func (e edge) less(o edge) bool { return e.key < o.key || e.key == o.key && e.id < o.id }

// bounds are the edges between which a partition's entries are: from the lower one on, up to the upper one, where there is
// one. In the order of ids the id stands in the place of the key.
func bounds(q *millrace.Query, partition int) (lower, upper edge, bounded bool) {
	lower.key = max(q.Prefix, q.From)
	limit := func(e edge) {
		if !bounded || e.less(upper) {
			upper, bounded = e, true
		}
	}
	if end, ok := prefixEnd(q.Prefix); ok {
		limit(edge{key: end})
	}
	if q.To != "" {
		limit(edge{key: q.To})
	}
	if q.After == nil {
		return lower, upper, bounded
	}
	after, ok := edgeBehind(q, partition)
	switch {
	case !ok:
	case q.Reverse:
		limit(after)
	case lower.less(after):
		lower = after
	}
	return lower, upper, bounded
}

// edgeBehind is where a partition goes on behind q.After: forwards the first place that may be read, backwards the first
// one that may not.
func edgeBehind(q *millrace.Query, partition int) (edge, bool) {
	a := q.After
	if q.Index < 0 {
		switch {
		case partition != a.Partition:
			return edge{}, false // queried has left out what is behind us
		case q.Reverse:
			return edge{key: a.ID}, true
		default:
			return edge{key: a.ID + "\x00"}, true
		}
	}
	switch {
	case partition < a.Partition: // its entries with this key come before the place
		return edge{key: a.Key + "\x00"}, true
	case partition > a.Partition:
		return edge{key: a.Key}, true
	case q.Reverse:
		return edge{a.Key, a.ID}, true
	default:
		return edge{a.Key, a.ID + "\x00"}, true
	}
}

// prefixEnd is the first key behind all that begin with a prefix; false where there is none.
func prefixEnd(prefix string) (string, bool) {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xff {
			return prefix[:i] + string([]byte{prefix[i] + 1}), true
		}
	}
	return "", false
}

// page reads documents of some partitions.
func (d *Driver) page(ctx context.Context, q *millrace.Query, partitions []int, size int) ([]millrace.Document, error) {
	n := len(partitions)
	lk, li := make([][]byte, n), make([][]byte, n)
	uk, ui := make([][]byte, n), make([][]byte, n)
	bounded := false
	for i, p := range partitions {
		lower, upper, has := bounds(q, p)
		lk[i], li[i], uk[i], ui[i] = []byte(lower.key), []byte(lower.id), []byte(upper.key), []byte(upper.id)
		bounded = has // the same for all: see the callers
	}
	var sql string
	var args []any
	if q.Index < 0 {
		sql, args = d.sql.byID.get(bounded, q.Reverse), []any{q.Collection, int32s(partitions), lk, size}
		if bounded {
			args = append(args, uk)
		}
	} else {
		sql, args = d.sql.byKey.get(bounded, q.Reverse), []any{q.Collection, q.Index, int32s(partitions), lk, li, size}
		if bounded {
			args = append(args, uk, ui)
		}
	}
	var page []millrace.Document
	err := d.query(ctx, sql, args, func(rows pgx.Rows) error {
		doc := millrace.Document{Collection: q.Collection}
		var key, id, keys []byte
		if err := rows.Scan(&doc.Partition, &key, &id, &doc.Data, &keys); err != nil {
			return err
		}
		if keys == nil {
			return fmt.Errorf("%w: document_keys: an entry of collection %s without its document", millrace.ErrCorrupt, q.Collection)
		}
		doc.ID = string(id)
		var err error
		if doc.Keys, err = decodeKeys(q.Collection, keys); err != nil {
			return err
		}
		if q.Index >= 0 && (q.Index >= len(doc.Keys) || doc.Keys[q.Index] != string(key)) {
			return fmt.Errorf("%w: document_keys: an entry of collection %s is not its document's", millrace.ErrCorrupt, q.Collection)
		}
		page = append(page, doc)
		return nil
	})
	return page, err
}
