package pgstore

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/pgtest"
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
		{"no nul", `{"a":"x\\u0000y"}`, true},
		{"a nul behind a backslash", `{"a":"x\\\u0000y"}`, false},
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
	c.docs.docs[0].isJSON = true // a wrong guess
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
	if err := d.writeViews(patient(t), late, map[int64]bool{}); classify(err) != faultToken {
		t.Errorf("the late one: %v", err)
	}
	doc, err := s.Document(patient(t), "c.d", 1, "x")
	if must(t, err); string(doc.Data) != "3" {
		t.Errorf("the document is %s", doc.Data)
	}
	// Whoever thinks that the old one is the newest is told, and goes on when he has looked again.
	if err := s.CommitViews(patient(t), put("wrong")); !errors.Is(err, millrace.ErrFenced) {
		t.Errorf("a commit that continues what is not there: %v", err)
	}
	must(t, d.Resume(patient(t), "c"))
	must(t, s.CommitViews(patient(t), put("4")))
	doc, err = s.Document(patient(t), "c.d", 1, "x")
	if must(t, err); string(doc.Data) != "4" {
		t.Errorf("the document is %s", doc.Data)
	}
}

// A database that was started again after a crash may lack the newest documents with their checkpoint: they are written
// without waiting for the disk. A consumer that goes on from memory is told so, and one that begins anew takes them up where
// they are, whether an older checkpoint is left or none.
func TestViewsThatTheDatabaseLost(t *testing.T) {
	for _, left := range []string{"an older checkpoint", "none"} {
		t.Run(left, func(t *testing.T) {
			dsn := server(t).DSN("postgres")
			s := open(t, dsn, four(t, nil))
			commit := func(position uint64) error {
				return s.CommitViews(patient(t), []millrace.ViewBatch{{Consumer: "c", Partition: 1, Checkpoint: position}})
			}
			must(t, commit(1))
			exec(t, dsn, "create table s.backup as select * from s.checkpoints")
			must(t, commit(2))
			must(t, commit(3))
			exec(t, dsn, "delete from s.checkpoints")
			want := uint64(0)
			if left != "none" {
				exec(t, dsn, "insert into s.checkpoints select * from s.backup")
				want = 1
			}
			exec(t, dsn, "drop table s.backup")
			if err := commit(4); !errors.Is(err, millrace.ErrFenced) {
				t.Errorf("a commit that continues what was lost: %v", err)
			}
			at, err := s.Resume(patient(t), "c")
			if must(t, err); at.Position(1) != want {
				t.Errorf("the consumer begins at %d, want %d", at.Position(1), want)
			}
			must(t, commit(want+1))
		})
	}
}

// A failover took views back that their owner had written, and that nobody waits for the disk or a standby for. Whoever asks how far
// a consumer has come is told where it is now, by the node that wrote them too: a read that is to see a command must not be
// answered from documents that are older. Until then the owner may know of more than it has written.
func TestViewsTakenBack(t *testing.T) {
	dsn := server(t).DSN("postgres")
	a, _ := node(t, dsn, "a", patientLease)
	b, _ := node(t, dsn, "b", patientLease)
	acquire(t, a, 1)
	must(t, commitOne(a, 1, decided(command("c", 1), true, 9)))
	at := func(when string, s *millrace.Store, want uint64) {
		t.Helper()
		c, err := s.Checkpoints(patient(t), "views")
		if must(t, err); c.Position(1) != want {
			t.Errorf("%s: at %d, not %d", when, c.Position(1), want)
		}
	}
	for _, s := range []*millrace.Store{a, b} {
		at("before", s, 0)
	}
	for _, position := range []uint64{4, 6} {
		must(t, a.CommitViews(patient(t), []millrace.ViewBatch{{Consumer: "views", Partition: 1, Checkpoint: position}}))
	}
	a.Advance("views", 1, 8) // the next two change no document
	at("the owner", a, 8)
	at("another node", b, 6)
	exec(t, dsn, "update fence.checkpoints set position = 4")
	at("the owner of what was taken back", a, 4)
	at("another node, of what was taken back", b, 4)
	if err := b.Wait(canceled(), "views", b.Cursor(&millrace.Outcome{Partition: 1, Position: 6})); !errors.Is(err, context.Canceled) {
		t.Errorf("who waits for what was taken back is told %v", err)
	}
}

// A database that does not answer may have lost views since this node last heard of them, and be another one by now: nobody is
// told that they are there.
func TestWaitAsksTheDatabase(t *testing.T) {
	server := server(t)
	proxy := pgtest.NewProxy(t, server.Addr())
	a, _ := node(t, proxy.DSN("postgres"), "a", patientLease)
	acquire(t, a, 1)
	must(t, commitOne(a, 1, decided(command("c", 1), true, 1)))
	must(t, a.CommitViews(patient(t), []millrace.ViewBatch{{Consumer: "views", Partition: 1, Checkpoint: 1}}))
	seen := a.Cursor(&millrace.Outcome{Partition: 1, Position: 1})
	must(t, a.Wait(patient(t), "views", seen))
	must(t, proxy.Refuse(true))
	proxy.Cut()
	ctx, cancel := context.WithTimeout(patient(t), 100*time.Millisecond)
	defer cancel()
	if err := a.Wait(ctx, "views", seen); err == nil {
		t.Error("views are said to be there while the database is away")
	}
	must(t, proxy.Refuse(false))
	must(t, a.Wait(patient(t), "views", seen))
}

// canceled is a context that has ended: who need not wait does not notice.
func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
