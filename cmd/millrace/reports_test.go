package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/pgstore"
)

// reportsPage is what analysts read.
const reportsPage = "../../docs/reference/reporting.md"

// reportDigests are the contents of the views by their version and the format of their SQL. A row never changes once it was
// released: what changes gets another version, or nodes would not agree on what is newer.
var reportDigests = map[string]string{
	"order 1.1": "277f9b126a392080",
}

// asRole is a DSN for another role, whose times are in UTC.
func asRole(dsn, role string) string {
	return strings.Replace(dsn, pgtest.Superuser+"@", role+"@", 1) + "&timezone=UTC"
}

// queryRows are the rows of a query, each as its JSON object.
func queryRows(t testing.TB, dsn, sql string) []map[string]any {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	rows, err := conn.Query(t.Context(), "select to_jsonb(r)::text from ("+strings.TrimSuffix(strings.TrimSpace(sql), ";")+") r")
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	out := make([]map[string]any, len(texts))
	for i, text := range texts {
		out[i] = decodeExact(t, []byte(text))
	}
	return out
}

// decodeExact keeps numbers as they are written.
func decodeExact(t testing.TB, text []byte) (v map[string]any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}

func execSQL(t testing.TB, dsn, sql string) error {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	_, err = conn.Exec(t.Context(), sql)
	return err
}

// shop does with orders, stock and returns what there is to report of.
func shop(t testing.TB, nodes ...*server) {
	t.Helper()
	send := func(i int, path, body string) {
		nodes[i%len(nodes)].do(t, call{method: http.MethodPost, path: path, body: []byte(body), prefer: "wait=30"}, http.StatusOK, http.StatusCreated)
	}
	for i := range 30 {
		id := fmt.Sprint("r-", i)
		currency := []string{"GBP", "JPY", "KWD"}[i%3] // 2, 0 and 3 decimals
		lines := aLine("A", 1+i, "3.335") + `,{"sku":"it's \"B\"","description":"back\\u0000slash, nul it is not; Größe 7","quantity":2,"unit_price":"0"}`
		send(i, "/v1/orders", `{"id":"`+id+`","customer_id":"c-`+fmt.Sprint(i%4)+`","channel":"phone","fulfilment":"manual","currency":"`+currency+`","placed_at":"2026-11-`+fmt.Sprintf("%02d", 1+i%5)+
			`T23:59:59.999999999Z","ship_to":{"name":"N","line1":"L","city":"C","postal_code":"P","country":"GB"},"lines":[`+lines+`]}`)
		step := func(verb, body string) { send(i, "/v1/orders/"+id+"/"+verb, body) }
		way := []func(){
			func() { step("confirm", "") },
			func() { step("pay", `{"reference":"p/`+id+`"}`) },
			func() { step("pack", "") },
			func() { step("ship", `{"lines":[{"line":1,"quantity":1}],"carrier":"K","tracking_number":"T"}`) },
			func() { step("ship", "") },
			func() { step("deliver", "") },
			func() { step("return", `{"lines":[{"line":1,"quantity":1}]}`) },
		}
		for n := range min(i%9, len(way)) {
			if n != 1 || i != 14 { // one is shipped and not paid
				way[n]()
			}
		}
		if i%9 == 2 && i%2 == 0 {
			step("cancel", `{"reason":"why not"}`)
		}
	}
	send(0, "/v1/orders", `{"id":"bare","currency":"USD","fulfilment":"manual","lines":[`+aLine("Z", 1, "0")+`]}`)
	for i, sku := range []string{"A", "it's", "Z"} {
		send(i, "/v1/stock/"+sku+"/receive", `{"quantity":10}`)
		send(i, "/v1/stock/"+sku+"/reserve", `{"reservation":"x","quantity":3}`)
	}
	send(1, "/v1/returns", `{"id":"ret-1","customer_id":"c-1","currency":"GBP","original_order_id":"r-0","reason":"broken","lines":[{"sku":"A","description":"D","quantity":2,"unit_price":"1.10"}]}`)
	send(1, "/v1/returns", `{"id":"ret-2","currency":"JPY","lines":[`+aLine("Z", 1, "7")+`]}`)
	for i := range nodes {
		nodes[i].caughtUp(t, nodes[i].head(t, "orders/bare"))
	}
}

// reportMembers name the member of the API's resource for each column that has another name.
var reportMembers = map[string]string{
	"order_id": "id", "return_id": "id", "total_amount": "total.amount", "refund_amount": "refund.amount",
	"ship_to_city": "ship_to.city", "ship_to_postal_code": "ship_to.postal_code", "ship_to_country": "ship_to.country",
	"payments.reference": "payment_reference", "payments.amount": "total.amount",
}

// reportSources say where the API shows what a view shows, which of it, and in which list.
var reportSources = map[string]struct {
	path, list string
	only       func(item map[string]any) bool
}{
	"orders": {path: "/v1/orders?limit=7"}, "order_lines": {path: "/v1/orders?limit=100", list: "lines"},
	"payments":  {path: "/v1/orders?limit=100", only: func(item map[string]any) bool { return item["paid"] == true }},
	"shipments": {path: "/v1/orders?limit=100", list: "shipments"}, "order_totals": {path: "/v1/order-totals?"},
	"returns": {path: "/v1/returns?limit=100"}, "return_lines": {path: "/v1/returns?limit=100", list: "lines"}, "stock": {path: "/v1/stock?limit=100"},
}

// expectedRows are the rows of a view as the HTTP API has them.
func expectedRows(t *testing.T, s *server, view string, columns []string) []map[string]any {
	t.Helper()
	source, ok := reportSources[view]
	if !ok {
		t.Fatalf("no test compares the view %s with the API", view)
	}
	var out []map[string]any
	pages(t, s, source.path, func(text json.RawMessage) {
		item := decodeExact(t, text)
		if source.only != nil && !source.only(item) {
			return
		}
		elements := []any{map[string]any{}}
		if source.list != "" {
			elements, _ = item[source.list].([]any) // none is a list too
		}
		for _, e := range elements {
			row := map[string]any{}
			for _, c := range columns {
				path := c
				if p, ok := reportMembers[c]; ok {
					path = p
				}
				if p, ok := reportMembers[view+"."+c]; ok {
					path = p
				}
				row[c] = item
				if _, ok := e.(map[string]any)[c]; ok {
					row[c] = e
				}
				for part := range strings.SplitSeq(path, ".") {
					inner, _ := row[c].(map[string]any) // what is missing is null
					row[c] = inner[part]
				}
			}
			out = append(out, row)
		}
	})
	return out
}

// sameValue says whether a column shows a member: times to the microsecond, amounts as numbers with their decimals.
func sameValue(typ string, column, member any) bool {
	text, isText := member.(string)
	switch {
	case column == nil || member == nil:
		return column == member
	case typ == "timestamp with time zone":
		got, err := time.Parse(time.RFC3339Nano, column.(string)) //nolint:forcetypeassert // to_jsonb has it so
		want, werr := time.Parse(time.RFC3339Nano, text)
		return err == nil && werr == nil && got.Sub(want).Abs() <= time.Microsecond/2
	case typ == "numeric" && isText:
		return column == json.Number(text)
	}
	return column == member
}

// compareView holds a view to the API. Every column must have a value in some row: two names that nobody has are equal.
func compareView(t *testing.T, s *server, dsn, view string, types map[string]string) {
	t.Helper()
	columns := make([]string, 0, len(types))
	for c := range types {
		columns = append(columns, c)
	}
	slices.Sort(columns)
	key := func(row map[string]any) string {
		return fmt.Sprint(row["order_id"], row["return_id"], row["sku"], row["day"], row["status"], row["currency"], row["line"], row["shipment"])
	}
	byKey := func(a, b map[string]any) int { return strings.Compare(key(a), key(b)) }
	got := queryRows(t, dsn, "select * from millrace_reporting."+view)
	want := expectedRows(t, s, view, columns)
	slices.SortFunc(got, byKey)
	slices.SortFunc(want, byKey)
	if len(got) != len(want) || len(got) == 0 {
		t.Errorf("%s has %d rows, and the API %d", view, len(got), len(want))
		return
	}
	for _, c := range columns {
		known := false
		for i := range got {
			known = known || got[i][c] != nil
			if !sameValue(types[c], got[i][c], want[i][c]) {
				t.Errorf("%s.%s of %s is %v, and the API says %v", view, c, key(want[i]), got[i][c], want[i][c])
			}
		}
		if !known {
			t.Errorf("%s.%s is null in all rows: the test sees nothing of it", view, c)
		}
	}
}

// TestReports starts two nodes at once on an empty database, and compares what an analyst reads with what the API says. The
// statements of the page are those that are run.
func TestReports(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, in pgtest.Installation) {
		dsn := pgtest.Start(t, pgtest.Options{Installation: in}).DSN("postgres")
		nodes := make([]*server, 2)
		var starting sync.WaitGroup
		bin := binary(t)
		for i := range nodes {
			starting.Go(func() {
				var err error
				nodes[i], err = launchServer(t, bin, `(?m)^millrace is ready: (http://\S+) admin (http://\S+) store postgres .*$`, "serve", "--store", dsn,
					"--node", fmt.Sprint("n", i), "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-level", "warn", "--log-format", "json")
				if err != nil {
					t.Error(err)
				}
			})
		}
		if starting.Wait(); t.Failed() {
			t.FailNow()
		}
		for _, n := range nodes {
			if strings.Contains(n.stderr.String(), "reports") {
				t.Errorf("a node says %s", n.stderr.String())
			}
		}
		shop(t, nodes...)

		page, err := os.ReadFile(reportsPage)
		if err != nil {
			t.Fatal(err)
		}
		analyst := asRole(dsn, "analyst")
		var queries []string
		for _, block := range regexp.MustCompile("(?ms)^```sql\n(.*?)^```$").FindAllStringSubmatch(string(page), -1) {
			if strings.HasPrefix(block[1], "select") {
				queries = append(queries, block[1])
			} else if err := execSQL(t, dsn, block[1]); err != nil {
				t.Fatalf("%s: %v", block[1], err)
			}
		}
		if len(queries) < 6 {
			t.Errorf("the page has %d queries only", len(queries))
		}
		for _, q := range queries {
			// "The last week" of the page is not when these orders were placed.
			if rows := queryRows(t, analyst, strings.Replace(q, "current_date - 7", "date '2026-11-01'", 1)); len(rows) == 0 {
				t.Errorf("this query of the page finds nothing:\n%s", q)
			}
		}

		declared := viewsOf(t, dsn)
		if diff := cmp.Diff(declared, documentedViews(t, string(page))); diff != "" {
			t.Errorf("the views and the page about them differ:\n%s", diff)
		}
		for view, columns := range declared {
			types := map[string]string{}
			for _, c := range columns[1:] {
				types[c.name] = c.typ
			}
			compareView(t, nodes[1], analyst, view, types)
		}
		var pg *pgconn.PgError
		if err := execSQL(t, analyst, "select * from millrace.documents"); !errors.As(err, &pg) || pg.Code != "42501" { // insufficient_privilege
			t.Errorf("the analyst's read of a table: %v", err)
		}
		for _, n := range nodes {
			n.stop(t)
		}
	})
}

// documented is a column, or at the head of a view the view itself.
type documented struct{ name, typ, meaning string }

func (d documented) Equal(o documented) bool { return d == o }

// mark is what ends the comment of a view.
var mark = regexp.MustCompile(` \(millrace reports (.*) ([0-9a-f]{16})\)$`)

// viewsOf are the views that the database has.
func viewsOf(t *testing.T, dsn string) map[string][]documented {
	t.Helper()
	out := map[string][]documented{}
	for _, r := range queryRows(t, dsn, `select c.relname, a.attname, format_type(a.atttypid, null) as typ, coalesce(col_description(c.oid, a.attnum), '') as meaning, obj_description(c.oid, 'pg_class') as view
		from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
		where c.relnamespace = 'millrace_reporting'::regnamespace order by c.relname, a.attnum`) {
		text := func(name string) string { return fmt.Sprint(r[name]) }
		view := text("relname")
		if len(out[view]) == 0 {
			m := mark.FindStringSubmatch(text("view"))
			if m == nil || reportDigests[m[1]] != m[2] {
				t.Errorf("the content of the views is %q: it is not that of their version in reportDigests, so give them another one", m)
			}
			out[view] = append(out[view], documented{name: view, meaning: mark.ReplaceAllString(text("view"), "")})
		}
		out[view] = append(out[view], documented{text("attname"), text("typ"), text("meaning")})
	}
	return out
}

// documentedViews are the views that the page has.
func documentedViews(t *testing.T, page string) map[string][]documented {
	t.Helper()
	out := map[string][]documented{}
	_, part, _ := strings.Cut(page, "\n## The views\n")
	part, _, _ = strings.Cut(part, "\n## ")
	for _, section := range strings.Split(part, "\n### ")[1:] {
		name, rest, _ := strings.Cut(section, "\n\n")
		meaning, _, _ := strings.Cut(rest, "\n\n")
		out[name] = append(out[name], documented{name: name, meaning: strings.ReplaceAll(meaning, "\n", " ")})
		for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (\\w+) \\| (.*) \\|$").FindAllStringSubmatch(section, -1) {
			out[name] = append(out[name], documented{m[1], strings.Replace(m[2], "timestamptz", "timestamp with time zone", 1), m[3]})
		}
	}
	return out
}

// TestReportsAcrossARebuild: while a read model is built again and switched, its views show all orders, and afterwards those that
// come. One process has the store to itself, as only then it can rebuild.
func TestReportsAcrossARebuild(t *testing.T) {
	dsn := pgtest.Start(t, pgtest.Options{NoSync: true}).DSN("postgres")
	store, err := pgstore.Open(t.Context(), dsn, &pgstore.Options{Partitions: 4, Node: "a", OwnAll: true, NoSync: true, Reports: sqlReports()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	n, err := newNode(t.Context(), store, nodeOptions{log: quietLog()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the node ended with %v", err)
		}
	})
	front := httptest.NewServer(n.api)
	t.Cleanup(front.Close)
	s := &server{process: &process{}, url: front.URL, http: front.Client()}
	shop(t, s)

	const orders = 31
	views := []string{"orders", "order_lines", "payments", "shipments", "order_totals"}
	before := map[string][]map[string]any{}
	for _, v := range views {
		before[v] = queryRows(t, dsn, "select * from millrace_reporting."+v+" r order by r::text")
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	p := projections{n.projections}
	for generation := uint64(2); generation <= 4; generation++ {
		if err := p.Rebuild(t.Context(), order.ProjectionOrders, false); err != nil {
			t.Fatal(err)
		}
		for st, err := p.Status(t.Context(), order.ProjectionOrders); st.Generation != generation; st, err = p.Status(t.Context(), order.ProjectionOrders) {
			if err != nil || st.Rebuild == nil || st.Rebuild.Error != "" {
				t.Fatalf("%+v %+v %v", st, st.Rebuild, err)
			}
			var seen, counted int
			err := conn.QueryRow(t.Context(), "select (select count(*) from millrace_reporting.orders), (select sum(orders) from millrace_reporting.order_totals)").Scan(&seen, &counted)
			if err != nil || seen != orders || counted != orders {
				t.Fatalf("during the rebuild the views show %d orders and count %d: %v", seen, counted, err)
			}
			if err := client.Pause(t.Context(), time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
		for _, v := range views {
			if diff := cmp.Diff(before[v], queryRows(t, dsn, "select * from millrace_reporting."+v+" r order by r::text")); diff != "" {
				t.Errorf("generation %d of %s:\n%s", generation, v, diff)
			}
		}
	}
	a := s.do(t, call{method: http.MethodPost, path: "/v1/orders", body: anOrder("late"), prefer: "wait=30"}, http.StatusCreated)
	s.caughtUp(t, a.header.Get("Millrace-Cursor"))
	if rows := queryRows(t, dsn, "select order_id from millrace_reporting.orders where order_id = 'late'"); len(rows) != 1 {
		t.Errorf("an order that came after the switch: %v", rows)
	}
}
