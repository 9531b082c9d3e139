package pgstore

import (
	"strings"
	"testing"

	"github.com/millrace-io/millrace"
)

// Documents are jsonb beside their bytes where PostgreSQL can hold them, and only bytes where not: no document stops
// its consumer.
func TestDocumentsAsJSONB(t *testing.T) {
	dsn := server(t).DSN("postgres")
	s := open(t, dsn, four(t, nil))
	deep := strings.Repeat("[", 20000) + strings.Repeat("]", 20000)
	for _, c := range []struct {
		id, data string
		jsonb    bool
	}{
		{"object", `{"b" : 1.50, "a":[true,null,"ü \ud83d\ude9a"]}`, true},
		{"number", `12`, true},
		{"nul", `{"a":"x\u0000y"}`, false},
		{"nul key", `{"\u0000":1}`, false},
		{"no nul", `{"a":"x\\u0000y"}`, false}, // it could, and is not worth a parser
		{"large", `1e400`, false},
		{"larger", `1e400000`, false},
		{"long", strings.Repeat("9", 200), false},
		{"digits in text", `"` + strings.Repeat("9", 200) + `"`, true},
		{"deep", deep, false},
		{"empty", ``, false},
		{"broken", `{`, false},
		{"bytes", "\xff\x00", false},
	} {
		put := millrace.Put{Document: millrace.Document{Collection: "c.d", Partition: 1, ID: c.id, Data: []byte(c.data)}}
		must(t, s.CommitViews(patient(t), []millrace.ViewBatch{{Consumer: "c", Partition: 1, Puts: []millrace.Put{put}}}))
		doc, err := s.Document(patient(t), "c.d", 1, c.id)
		if err != nil || string(doc.Data) != c.data {
			t.Errorf("%s: %.100q %v", c.id, doc.Data, err)
		}
		if has := ask[bool](t, dsn, "select doc is not null from s.documents where id = $1", []byte(c.id)); has != c.jsonb {
			t.Errorf("%s: jsonb %v", c.id, has)
		}
	}
	if got := ask[float64](t, dsn, "select (doc->>'b')::float8 from s.documents where id = 'object'"); got != 1.5 {
		t.Errorf("read by SQL: %g", got)
	}
	verify(t, s)
}

// What Go takes for JSON and PostgreSQL does not must not stop a consumer either.
func TestDocumentThatPostgresRefuses(t *testing.T) {
	s := open(t, server(t).DSN("postgres"), four(t, nil))
	c, err := driverOf(s).viewCommit([]millrace.ViewBatch{{Consumer: "c", Puts: []millrace.Put{
		{Document: millrace.Document{Collection: "c.d", ID: "x", Data: []byte(`"\u0000"`)}},
	}}})
	must(t, err)
	c.docs.isJSON[0] = true // a wrong guess
	must(t, driverOf(s).sendViews(patient(t), c))
	if _, err := s.Document(patient(t), "c.d", 0, "x"); err != nil {
		t.Error(err)
	}
}

// A statement that a lost connection left behind and that runs only after newer ones changes nothing.
func TestLateViewsChangeNothing(t *testing.T) {
	s := open(t, server(t).DSN("postgres"), four(t, nil))
	d := driverOf(s)
	put := func(text string) []millrace.ViewBatch {
		return []millrace.ViewBatch{{Consumer: "c", Partition: 1, Puts: []millrace.Put{
			{Document: millrace.Document{Collection: "c.d", Partition: 1, ID: "x", Data: []byte(text)}},
		}}}
	}
	must(t, s.CommitViews(patient(t), put("1")))
	late, err := d.viewCommit(put("2"))
	must(t, err)
	before, _ := d.views.get(viewKey{"c", 1})
	must(t, s.CommitViews(patient(t), put("3")))
	d.views.set(viewKey{"c", 1}, before) // as the one that was left behind knew it
	if err := d.writeViews(patient(t), late); classify(err) != faultToken {
		t.Errorf("the late one: %v", err)
	}
	doc, err := s.Document(patient(t), "c.d", 1, "x")
	if must(t, err); string(doc.Data) != "3" {
		t.Errorf("the document is %s", doc.Data)
	}
	must(t, s.CommitViews(patient(t), put("4"))) // and the node finds its way again
	doc, err = s.Document(patient(t), "c.d", 1, "x")
	if must(t, err); string(doc.Data) != "4" {
		t.Errorf("the document is %s", doc.Data)
	}
}
