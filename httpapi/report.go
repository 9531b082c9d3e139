package httpapi

import (
	"context"
	"net/http"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// report answers a sum over documents. The query yields documents in the order of their keys over all partitions, so
// that those of one row are neighbours: one row at a time is in memory.
func (x *exchange) report(r *Report) {
	q, p := x.query("from", "to", "min_cursor")
	if p != nil {
		x.fail(p)
		return
	}
	from, to, p := timeRange(q.Get("from"), q.Get("to"), r.TimeKey)
	if p != nil {
		x.fail(p)
		return
	}
	if !x.caughtUp(r.Model, q.Get("min_cursor")) {
		return
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), readTime)
	defer cancel()
	x.buf = append(x.buf[:0], `{"items":[`...)
	var row any
	key, rows := "", 0
	for doc, err := range r.Model.Query(ctx, r.Table, millrace.Query{Index: r.Index, Partition: -1, From: from, To: to}) {
		if err != nil {
			x.failWith(err)
			return
		}
		if k := doc.Keys[r.Index]; row == nil || k != key {
			if err := x.addRow(row, &rows); err != nil {
				x.failWith(err)
				return
			}
			if rows == MaxReportRows {
				x.fail(kindTooWide.with("the time between from and to has too many rows"))
				return
			}
			row, key = nil, k
		}
		v, err := r.Table.Decode(doc.Data)
		if err != nil {
			x.failWith(err)
			return
		}
		row = r.Add(row, v)
	}
	if err := x.addRow(row, &rows); err != nil {
		x.failWith(err)
		return
	}
	if !x.seen(r.Model) {
		return
	}
	x.buf = append(x.buf, `]}`...)
	x.sendJSON(http.StatusOK, x.buf)
}

// addRow appends a finished row to the buffer.
func (x *exchange) addRow(row any, rows *int) (err error) {
	if row == nil {
		return nil
	}
	if *rows > 0 {
		x.buf = append(x.buf, ',')
	}
	*rows++
	if a, ok := row.(millrace.Appender); ok {
		x.buf = a.AppendJSON(x.buf)
		return nil
	}
	x.buf, err = jsonx.Append(x.buf, row)
	return err
}

func (x *exchange) listNodes(n Nodes) {
	if _, fault := x.query(); fault != nil {
		x.fail(fault)
		return
	}
	o, err := n.Ownership(x.r.Context())
	x.sendValue(http.StatusOK, o, err)
}

// sendValue answers with a value, or with the problem of an error.
func (x *exchange) sendValue(status int, v any, err error) {
	if err == nil {
		x.buf, err = jsonx.Append(x.buf[:0], v)
	}
	if err != nil {
		x.failWith(err)
		return
	}
	x.sendJSON(status, x.buf)
}
