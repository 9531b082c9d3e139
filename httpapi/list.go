package httpapi

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// listing is a List with what is worked out once.
type listing struct {
	*List
	res     *resource
	params  []string
	timeKey func(time.Time) string
}

func newList(res *resource) *listing {
	l := &listing{List: res.List, res: res, timeKey: res.List.TimeKey, params: []string{"sort", "limit", "cursor", "from", "to", "min_cursor"}}
	if l.timeKey == nil {
		l.timeKey = TimeKey
	}
	for _, f := range l.Filters {
		l.params = append(l.params, f.Param)
	}
	return l
}

// listQuery is a list request that was understood.
type listQuery struct {
	q     millrace.Query
	limit int
	rest  []residue
	// bound names the query, for its cursors.
	bound string
}

// residue is a filter that the index does not answer.
type residue struct {
	field, want string
	quoted      []byte
}

func (r *residue) fits(doc []byte) bool { return memberIs(doc, r.field, r.want, r.quoted) }

// list answers GET /v1/{name}.
func (x *exchange) list(l *listing) {
	lq, minCursor, p := x.listQuery(l)
	if p != nil {
		x.fail(p)
		return
	}
	if !x.caughtUp(l.res.Model, minCursor) {
		return
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), readTime)
	defer cancel()
	dst := append(x.buf[:0], `{"items":[`...)
	n, scanned := 0, 0
	var last *millrace.Place // the last document that was looked at
	more := false
	for doc, err := range l.res.Model.Query(ctx, l.res.Table, lq.q) {
		if err != nil {
			x.failWith(err)
			return
		}
		if n == lq.limit || scanned == MaxScan || (n > 0 && len(dst)+len(doc.Data) > MaxPageBytes) {
			more = true
			break
		}
		scanned++
		place := doc.Place(lq.q.Index)
		last = &place
		if slices.ContainsFunc(lq.rest, func(r residue) bool { return !r.fits(doc.Data) }) {
			continue
		}
		if n > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, doc.Data...)
		n++
	}
	x.buf = dst
	if !x.seen(l.res.Model) {
		return
	}
	token := ""
	if more {
		token = x.api.seal.sealPlace(lq.bound, *last)
	}
	x.page(token)
}

// listQuery understands the request.
func (x *exchange) listQuery(l *listing) (*listQuery, string, *problem) {
	values, p := x.query(l.params...)
	if p != nil {
		return nil, "", p
	}
	lq := &listQuery{}
	if lq.limit, p = pageLimit(values.Get("limit")); p != nil {
		return nil, "", p
	}
	given := map[string]string{}
	for _, f := range l.Filters {
		if !values.Has(f.Param) {
			continue
		}
		v := values.Get(f.Param)
		if millrace.ValidateID(f.Param, v, MaxFilterValue) != nil || (f.Values != nil && !slices.Contains(f.Values, v)) {
			return nil, "", kindInvalidParameter.with(f.Param + " is not a value that it can have")
		}
		given[f.Param] = v
	}
	sort := values.Get("sort")
	if sort == "" {
		sort = l.DefaultSort
	}
	field, descending := strings.CutPrefix(sort, "-")
	order := l.choose(field, given)
	if order == nil {
		return nil, "", kindInvalidParameter.with("sort is not one of the orders of this list")
	}
	from, to, p := timeRange(values.Get("from"), values.Get("to"), l.timeKey)
	if p != nil {
		return nil, "", p
	}
	if (from != "" || to != "") && !order.Times {
		return nil, "", kindInvalidParameter.with("from and to cannot be combined with this sort")
	}
	lq.q = millrace.Query{Index: order.Index, Partition: -1, Reverse: descending}
	lq.narrow(l, order, given, from, to)
	lq.bound = strings.Join([]string{l.res.Name, strconv.Itoa(order.Index), sort, lq.q.Prefix, lq.q.From, lq.q.To, lq.residues()}, "\x01")
	if token := values.Get("cursor"); token != "" {
		var ok bool
		if lq.q.After, ok = x.api.seal.openPlace(lq.bound, token); !ok {
			return nil, "", kindInvalidCursor.with("cursor is not one of this list with these filters")
		}
	}
	return lq, values.Get("min_cursor"), nil
}

// choose takes the first order of a sort whose filters are all given.
func (l *listing) choose(sort string, given map[string]string) *Order {
	for i := range l.Orders {
		o := &l.Orders[i]
		missing := func(param string) bool { _, ok := given[param]; return !ok }
		if o.Sort == sort && !slices.ContainsFunc(o.Equal, missing) {
			return o
		}
	}
	return nil
}

// narrow sets the bounds of the query and the filters that are left over.
func (lq *listQuery) narrow(l *listing, o *Order, given map[string]string, from, to string) {
	parts := make([]string, 0, len(o.Equal)+1)
	for _, e := range o.Equal {
		parts = append(parts, given[e])
	}
	if len(parts) > 0 {
		lq.q.Prefix = millrace.KeyPrefix(parts...)
	}
	if from != "" {
		lq.q.From = lq.q.Prefix + millrace.Key(from)
	}
	if to != "" {
		lq.q.To = lq.q.Prefix + millrace.Key(to)
	}
	for _, f := range l.Filters {
		v, ok := given[f.Param]
		if !ok || slices.Contains(o.Equal, f.Param) {
			continue
		}
		field := f.Field
		if field == "" {
			field = f.Param
		}
		lq.rest = append(lq.rest, residue{field: field, want: v, quoted: jsonx.AppendString(nil, v)})
	}
}

func (lq *listQuery) residues() string {
	var b strings.Builder
	for _, r := range lq.rest {
		b.WriteString(r.field + "\x02" + r.want + "\x02")
	}
	return b.String()
}

// timeRange reads from and to as key parts: from <= key < to. A date is a whole day of UTC, also as to: the range from
// one date to another has both days in it.
func timeRange(from, to string, key func(time.Time) string) (string, string, *problem) {
	var keys [2]string
	for i, s := range [2]string{from, to} {
		if s == "" {
			continue
		}
		t, isDate, ok := parseMoment(s)
		if !ok {
			return "", "", kindInvalidParameter.with("from and to must be dates (2006-01-02) or times in the form of RFC 3339")
		}
		if isDate && i == 1 {
			t = t.AddDate(0, 0, 1)
		}
		keys[i] = key(t)
	}
	return keys[0], keys[1], nil
}

func parseMoment(s string) (t time.Time, isDate, ok bool) {
	if len(s) == len(time.DateOnly) {
		t, err := time.Parse(time.DateOnly, s)
		return t, true, err == nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	// Years that RFC 3339 cannot write would sort wrongly as keys.
	return t, false, err == nil && t.UTC().Year() >= 0 && t.UTC().Year() <= 9999
}
