package httpapi_test

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/deadletter"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/domain/system"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/letter"
	"github.com/millrace-io/millrace/process"
	"github.com/millrace-io/millrace/projection"
)

// newLetterWorld is a world in which dead letters are seen and redriven.
func newLetterWorld(t *testing.T) *world {
	t.Helper()
	var running errgroup.Group
	ctx, cancel := context.WithCancel(context.Background())
	w := newWorld(t, worldOptions{change: func(c *httpapi.Config) {
		follow := func(ctx context.Context, consumer millrace.Consumer) error {
			return feed.New(c.Store, c.Registry, consumer, nil).Run(ctx)
		}
		models, err := projection.New(ctx, c.Store, system.Projections(), projection.Options{Run: follow})
		if err != nil {
			t.Fatal(err)
		}
		manager, err := system.Redrive().Manager()
		if err != nil {
			t.Fatal(err)
		}
		s := deadletter.New(c.Store, c.Registry, c.Intake, models.Model(letter.Projection), nil)
		c.DeadLetters, c.System = s, system.Categories()
		c.Internal, c.Own = order.Internal(), order.Own
		redrive := process.New(c.Store, c.Registry, c.Intake, manager, nil).Consumer()
		picky := millrace.Consumer{Name: "picky", Categories: []string{"order"}, Handle: func(context.Context, millrace.Views, *millrace.Recorded) error {
			return fmt.Errorf("cannot handle %q", "o")
		}}
		c.Consumers = following{c.Store, map[string]string{"picky": "picky"}}
		running.Go(func() error { return models.Run(ctx) })
		for _, consumer := range []millrace.Consumer{redrive, s.Jobs(), picky} {
			running.Go(func() error { return follow(ctx, consumer) })
		}
	}})
	t.Cleanup(func() {
		cancel()
		if err := running.Wait(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// dead sends a command of a type that nobody knows.
func (w *world) dead(id, stream string) {
	w.t.Helper()
	w.want(422, "POST", "/v1/commands", `{"id":"`+id+`","type":"Teleport","stream":"`+stream+`","data":{"to":"moon"},"correlation_id":"story"}`, wait)
}

// letterIDs are those of a list, read in pages.
func (w *world) letterIDs(query string) (ids []string) {
	w.t.Helper()
	path := "/v1/dead-letters?" + query
	for path != "" {
		a := w.want(200, "GET", path, "")
		for _, item := range a.items(w.t) {
			ids = append(ids, as[string](w.t, item["id"]))
		}
		next, _ := a.json(w.t)["next_cursor"].(string)
		if path = ""; next != "" {
			path = "/v1/dead-letters?" + query + "&cursor=" + url.QueryEscape(next)
		}
	}
	return ids
}

func (w *world) untilLetter(id string, ok func(map[string]any) bool) map[string]any {
	w.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	for {
		l := w.want(200, "GET", "/v1/dead-letters/"+url.PathEscape(id), "").json(w.t)
		if ok(l) {
			return l
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatalf("in vain: %v", l)
		}
	}
}

const place42 = `{"id":"42","currency":"GBP","lines":[{"sku":"85123A","quantity":6,"unit_price":"2.55"}]}`

// A dead letter is listed, shown with all that is known of it, edited into what fits its type, redriven once and has its answer;
// another one is discarded. All that was done is in its history.
func TestDeadLettersOverHTTP(t *testing.T) {
	w := newLetterWorld(t)
	w.dead("d1", "order-42")
	w.dead("d2", "order-43")
	w.dead("d3", "nothing-1")
	if got := w.letterIDs("limit=2&kind=command"); !slices.Equal(got, []string{"d1", "d2", "d3"}) {
		t.Errorf("%v", got)
	}
	if got := w.letterIDs("stream=order-43&reason=unknown_type&type=Teleport&source=http&state=open&from=2000-01-01&to=2100-01-01"); !slices.Equal(got, []string{"d2"}) {
		t.Errorf("%v", got)
	}
	for _, none := range []string{"state=redriven", "reason=undecodable", "type=Other", "source=kafka", "stream=order-1", "to=2000-01-01", "from=2100-01-01"} {
		if got := w.letterIDs("kind=command&" + none); len(got) > 0 {
			t.Errorf("%s: %v", none, got)
		}
	}
	one := w.want(200, "GET", "/v1/dead-letters/d1", "")
	l := one.json(t)
	if l["state"] != "open" || l["decodes"] != false || l["correlation_id"] != "story" || as[map[string]any](t, l["data"])["to"] != "moon" || one.Header.Get("Etag") != `"0"` {
		t.Errorf("%s", one.body)
	}
	causes := w.want(200, "GET", "/v1/dead-letters/causes", "").items(t)
	if len(causes) != 1 || causes[0]["count"] != 3.0 || causes[0]["type"] != "Teleport" {
		t.Errorf("%v", causes)
	}

	const edit = "/v1/dead-letters/d1/edit"
	for body, want := range map[string]int{
		`{"by":"ann","why":"w","data":{}}`:                                   422, // the type is not known
		`{"by":"ann","why":"w","type":"PlaceOrder","data":{"id":"42"}}`:      422,
		`{"by":"ann","why":"w","type":"ReceiveStock","data":{"quantity":1}}`: 422, // of another category
		`{"by":"ann","type":"PlaceOrder","data":` + place42 + `}`:            400,
		`{"why":"w","type":"PlaceOrder","data":` + place42 + `}`:             400,
		`{"by":"ann","why":"w","type":"PlaceOrder"}`:                         400,
		`{"by":"ann","why":"w","type":"PlaceOrder","data":[]}`:               422,
		`{"by":"ann","why":"w","type":"PlaceOrder","data":{},"more":1}`:      400,
		`null`: 400, ``: 415,
	} {
		if a := w.do("POST", edit, body); a.StatusCode != want {
			t.Errorf("%s: %d %s", body, a.StatusCode, a.body)
		}
	}
	if a := w.do("POST", edit, `{"by":"ann","why":"w","type":"PlaceOrder","data":{"id":"42","currency":"GBP","lines":[]}}`); !strings.Contains(string(a.body), `"/data/lines"`) {
		t.Errorf("%s", a.body)
	}
	// What a client cannot send it cannot make of a dead letter either.
	if a := w.want(422, "POST", edit, `{"by":"ann","why":"w","type":"RecordPayment","data":{}}`); a.text(t, "code") != "invalid_edit" || !strings.Contains(string(a.body), `"/type"`) {
		t.Errorf("%s", a.body)
	}
	w.want(200, "POST", edit, `{"by":"ann","why":"renamed","type":"PlaceOrder","data":`+place42+`}`, wait, "Idempotency-Key: e1", `If-Match: "0"`)
	w.want(412, "POST", edit, `{"by":"bob","why":"renamed","type":"PlaceOrder","data":`+place42+`}`, wait, `If-Match: "0"`)
	if l := w.untilLetter("d1", func(map[string]any) bool { return true }); l["decodes"] != true || l["edits"] != 1.0 || l["type"] != "Teleport" {
		t.Errorf("%v", l)
	}

	first := w.want(200, "POST", "/v1/dead-letters/d1/redrive", `{"by":"ann","why":"mended"}`, wait, "Idempotency-Key: r1")
	again := w.want(200, "POST", "/v1/dead-letters/d1/redrive", `{"by":"ann","why":"mended"}`, wait, "Idempotency-Key: r1")
	if string(first.body) != string(again.body) || again.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%s and %s", first.body, again.body)
	}
	l = w.untilLetter("d1", func(l map[string]any) bool { return l["state"] == "redriven" })
	if answer := as[map[string]any](t, l["answer"]); answer["status"] != "decided" || len(as[[]any](t, l["history"])) != 3 {
		t.Errorf("%v", l)
	}
	w.want(200, "GET", "/v1/orders/42", "", "Millrace-Min-Cursor: "+w.store.Head().String())
	if a := w.want(409, "POST", "/v1/dead-letters/d1/redrive", `{"by":"ann"}`, wait); a.text(t, "code") != system.CodeLetterRedriven {
		t.Errorf("%s", a.body)
	}
	w.want(400, "POST", "/v1/dead-letters/d2/discard", `{"by":"ann"}`)
	w.want(200, "POST", "/v1/dead-letters/d2/discard", `{"by":"ann","why":"a test"}`, wait)
	if err := w.store.Wait(t.Context(), letter.Projection+"@1", w.store.Head()); err != nil {
		t.Fatal(err)
	}
	if got := w.letterIDs("kind=command&state=open"); !slices.Equal(got, []string{"d3"}) {
		t.Errorf("%v", got)
	}
}

// Streams that are parked for consumers are dead letters too: seen, and gone on with.
func TestParkedStreamsAreDeadLetters(t *testing.T) {
	w := newLetterWorld(t)
	w.dead("d1", "nothing-1")
	var want []string
	for i := range 5 {
		id := fmt.Sprint("p", i)
		w.want(201, "POST", "/v1/orders", `{"id":"`+id+`","currency":"GBP","lines":[{"sku":"85123A","quantity":6,"unit_price":"2.55"}]}`, wait, "Idempotency-Key: "+id)
		want = append(want, "picky/order-"+id)
	}
	if err := w.store.Wait(t.Context(), "picky", w.store.Head()); err != nil {
		t.Fatal(err)
	}
	got := w.letterIDs("limit=2")
	if got[0] != "d1" {
		t.Errorf("%v", got)
	}
	slices.Sort(got[1:])
	if !slices.Equal(got[1:], want) {
		t.Errorf("%v", got)
	}
	for query, n := range map[string]int{"kind=event&limit=1": 5, "consumer=picky": 5, "reason=handler_failed": 5, "stream=order-p3": 1, "consumer=other": 0, "state=redriven": 0, "kind=event&to=2000-01-01": 0} {
		if got := w.letterIDs(query); len(got) != n {
			t.Errorf("%s: %v", query, got)
		}
	}
	l := w.want(200, "GET", "/v1/dead-letters/picky%2Forder-p3", "").json(t)
	if l["kind"] != "event" || l["type"] != "OrderPlaced" || l["attempts"] != 5.0 || as[map[string]any](t, l["event"])["id"] != "order-p3/1" || l["consumer"] != "picky" {
		t.Errorf("%v", l)
	}
	w.want(400, "POST", "/v1/dead-letters/picky%2Forder-p3/edit", `{"by":"ann","why":"w","data":{}}`)
	w.want(400, "POST", "/v1/dead-letters/picky%2Forder-p3/discard", `{"by":"ann"}`)
	w.want(200, "POST", "/v1/dead-letters/picky%2Forder-p3/discard", `{"by":"ann","why":"it was a test"}`, wait)
	w.want(200, "POST", "/v1/dead-letters/picky%2Forder-p2/redrive", `{"by":"ann"}`, wait)
	w.want(404, "POST", "/v1/dead-letters/picky%2Forder-none/redrive", `{"by":"ann"}`)
	events := 0
	for e, err := range w.store.Events(t.Context(), letter.ConsumerStream("picky"), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if events++; !strings.Contains(string(e.Data), `"by":"ann"`) {
			t.Errorf("%s", e.Data)
		}
	}
	if events != 2 {
		t.Errorf("%d events of the consumer", events)
	}
}

// Many are redriven by a job, which is started once whatever is repeated; a dry run keeps nothing.
func TestRedriveMany(t *testing.T) {
	w := newLetterWorld(t)
	for i := range 5 {
		w.dead(fmt.Sprint("d", i), fmt.Sprint("order-", i))
	}
	if err := w.store.Wait(t.Context(), letter.Projection+"@1", w.store.Head()); err != nil {
		t.Fatal(err)
	}
	const many = "/v1/dead-letters/redrive"
	head := w.store.Head().String()
	trial := w.want(200, "POST", many, `{"filter":{"type":"Teleport"},"dry_run":true}`).json(t)
	if trial["matched"] != 5.0 || trial["complete"] != true || as[map[string]any](t, trial["dead"])["unknown_type"] != 5.0 || w.store.Head().String() != head {
		t.Errorf("%v", trial)
	}
	for body, want := range map[string]int{
		`{}`: 400, `{"by":"ann","rate":-1}`: 400, `{"by":"ann","rate":10001}`: 400, `{"by":"ann","filter":{"stream":"x"}}`: 400,
		`{"by":"ann","filter":{"from":"2026-01-02T00:00:00Z","to":"2026-01-01T00:00:00Z"}}`: 400, `{"by":"ann","filter":{"other":1}}`: 400, `[]`: 400,
	} {
		if a := w.do("POST", many, body); a.StatusCode != want {
			t.Errorf("%s: %d %s", body, a.StatusCode, a.body)
		}
	}
	a := w.want(200, "POST", many, `{"by":"ann","why":"all of it"}`, wait, "Idempotency-Key: j1")
	job := a.text(t, "id")
	if b := w.want(200, "POST", many, `{"by":"ann","why":"all of it"}`, wait, "Idempotency-Key: j1"); b.text(t, "id") != job {
		t.Errorf("%s and %s", a.body, b.body)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var j map[string]any
	for j = w.want(200, "GET", "/v1/redrive-jobs/"+job, "").json(t); j["status"] != "done"; j = w.want(200, "GET", "/v1/redrive-jobs/"+job, "").json(t) {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal(j)
		}
	}
	if c := as[map[string]any](t, j["counts"]); c["dead"] != 5.0 || j["by"] != "ann" || j["rate"] != 100.0 {
		t.Errorf("%v", j)
	}
	if a := w.want(409, "POST", "/v1/redrive-jobs/"+job+"/pause", `{"by":"ann"}`, wait); a.text(t, "code") != system.CodeJobOver {
		t.Errorf("%s", a.body)
	}
	w.want(404, "POST", "/v1/redrive-jobs/none/resume", `{"by":"ann"}`, wait)
	w.want(400, "POST", "/v1/redrive-jobs/none/stop", `{}`)
	w.want(404, "GET", "/v1/redrive-jobs/none", "")
	if err := w.store.Wait(t.Context(), letter.Jobs, w.store.Head()); err != nil {
		t.Fatal(err)
	}
	if all := w.want(200, "GET", "/v1/redrive-jobs?limit=1", "").items(t); len(all) != 1 || all[0]["id"] != job {
		t.Errorf("%v", all)
	}
	// What is done with dead letters goes by these routes only.
	for _, stream := range []string{"deadletter-d0", "redrivejob-x", "consumer-picky"} {
		w.want(400, "POST", "/v1/commands", `{"type":"RedriveDeadLetter","stream":"`+stream+`","data":{}}`)
	}
	for _, path := range []string{
		"/v1/dead-letters?kind=x", "/v1/dead-letters?state=x", "/v1/dead-letters?kind=command&consumer=picky", "/v1/dead-letters?limit=0", "/v1/dead-letters?cursor=x",
		"/v1/dead-letters?from=x", "/v1/dead-letters?stream=x", "/v1/dead-letters?x=1", "/v1/dead-letters/causes?x=1", "/v1/dead-letters/causes?to=x",
		"/v1/dead-letters/d0?x=1", "/v1/redrive-jobs?cursor=x", "/v1/redrive-jobs?limit=x", "/v1/redrive-jobs/" + job + "?x=1",
	} {
		w.want(400, "GET", path, "")
	}
	w.want(404, "GET", "/v1/dead-letters/none", "")
	w.want(404, "GET", "/v1/dead-letters/"+url.PathEscape(letter.SentID("deadletter-d0", 1)), "")
}
