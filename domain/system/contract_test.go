package system_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/system"
	"github.com/millrace-io/millrace/internal/letter"
	"github.com/millrace-io/millrace/millracetest"
)

// told is one command, by its type and body.
type told struct{ typ, data string }

func history(name string, stream millrace.Stream, commands ...told) millracetest.Example {
	e := millracetest.Example{Name: name}
	for _, c := range commands {
		e.Commands = append(e.Commands, millrace.Command{Stream: stream, Type: c.typ, Data: []byte(c.data)})
	}
	return e
}

const ref = `"letter":{"command_id":"c-1","stream":"order-1","type":"PlaceOrder","reason":"decision_failed","accepted_at":"2026-01-02T03:04:05.000000006Z"}`

var (
	redrive  = told{"RedriveDeadLetter", `{` + ref + `,"by":"ann","why":"mended","job":"j-1"}`}
	edit     = told{"EditDeadLetter", `{` + ref + `,"by":"ann","why":"a typing error","type":"PlaceOrder","data":{"a":[1,2]}}`}
	discard  = told{"DiscardDeadLetter", `{` + ref + `,"by":"ann","why":"a test"}`}
	dead     = told{"RecordRedrive", `{"attempt":1,"status":"dead","code":"decision_failed","error":"panic"}`}
	refused  = told{"RecordRedrive", `{"attempt":2,"status":"refused","code":"order_exists"}`}
	page     = told{"RecordRedrivePage", `{"page":1,"next":{"key":"AGE=","partition":1,"id":"c-1"},"held":"order-1","counts":{"decided":1,"refused":2,"dead":3,"held":4,"skipped":5},"done":false}`}
	lastPage = told{"RecordRedrivePage", `{"page":2,"counts":{"decided":1,"refused":0,"dead":0,"held":0,"skipped":0},"done":true}`}
	begin    = told{"StartRedriveJob", `{"filter":{"reason":"decision_failed","from":"2026-01-02T00:00:00Z"},"rate":10,"by":"ann","why":"mended"}`}
	hold     = told{"PauseRedriveJob", `{"by":"bob"}`}
	resume   = told{"ResumeRedriveJob", `{"by":"bob","why":"it is quiet"}`}
	end      = told{"StopRedriveJob", `{"by":"bob"}`}
)

// TestContracts: the rules keep what the engine leans on, in every command, event and refusal below.
func TestContracts(t *testing.T) {
	millracetest.CheckDomain(t, system.Domains(), []millracetest.Example{
		history("redriven", "deadletter-c-1", edit, redrive, redrive, edit, discard, refused, dead, dead, edit, redrive, refused, redrive, edit, discard),
		history("discarded", "deadletter-c-1", discard, discard, redrive, edit),
		history("another one's", "deadletter-c-2", redrive, edit, discard),
		history("a job", letter.JobStream("j-1"), hold, page, begin, begin, lastPage, hold, page, page, hold, resume, resume, lastPage, lastPage, end, resume),
		history("a stopped one", letter.JobStream("j-2"), begin, end, end, page, resume),
		history("a consumer", letter.ConsumerStream("orders"),
			told{"RedriveStream", `{"stream":"order-1","by":"ann"}`}, told{"SkipEvent", `{"stream":"order-1","version":3,"by":"ann","why":"it was a test"}`}),
		consumed(),
		history("one that ends as it is stopped", letter.JobStream("j-3"), begin, page, end, lastPage),
	})
}

// Each command in each status says what the rules of the package say.
func TestRules(t *testing.T) {
	for name, c := range map[string]struct {
		before []told
		want   map[string]string // the event or the refusal of each command; "" for nothing
	}{
		"open":       {nil, map[string]string{"redrive": "DeadLetterRedriven", "edit": "DeadLetterEdited", "discard": "DeadLetterDiscarded", "dead": ""}},
		"edited":     {[]told{edit}, map[string]string{"redrive": "DeadLetterRedriven", "edit": "DeadLetterEdited", "discard": "DeadLetterDiscarded", "dead": ""}},
		"redriving":  {[]told{redrive}, map[string]string{"redrive": system.CodeLetterRedriving, "edit": system.CodeLetterRedriving, "discard": system.CodeLetterRedriving, "dead": "DeadLetterAnswered", "refused": ""}},
		"died again": {[]told{redrive, dead}, map[string]string{"redrive": "DeadLetterRedriven", "edit": "DeadLetterEdited", "discard": "DeadLetterDiscarded", "dead": ""}},
		"redriven":   {[]told{redrive, dead, redrive, refused}, map[string]string{"redrive": system.CodeLetterRedriven, "edit": system.CodeLetterRedriven, "discard": system.CodeLetterRedriven, "refused": ""}},
		"discarded":  {[]told{discard}, map[string]string{"redrive": system.CodeLetterDiscarded, "edit": system.CodeLetterDiscarded, "discard": system.CodeLetterDiscarded, "dead": ""}},
	} {
		for what, want := range c.want {
			cmd := map[string]told{"redrive": redrive, "edit": edit, "discard": discard, "dead": dead, "refused": refused}[what]
			if got := after(t, "deadletter-c-1", c.before, cmd); got != want {
				t.Errorf("%s of one that is %s: %s, want %s", what, name, got, want)
			}
		}
	}
}

// after is what becomes of a command after others.
func after(t *testing.T, stream millrace.Stream, before []told, cmd told) string {
	t.Helper()
	reg, err := millrace.NewRegistry(system.Domains()...)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := reg.Category(stream)
	state, got := c.Initial(stream), ""
	for _, told := range append(before, cmd) {
		body, err := reg.DecodeCommand(&millrace.Command{Stream: stream, Type: told.typ, Data: []byte(told.data)})
		if err != nil {
			t.Fatal(err)
		}
		events, refusal := c.Decide(state, body, exampleTime)
		if got = ""; refusal != nil {
			got = refusal.Code
		}
		for _, e := range events {
			encoded, err := c.EncodeEvent(e)
			if err != nil {
				t.Fatal(err)
			}
			got, state = encoded.Type, c.Evolve(state, e)
		}
	}
	return got
}

// What is missing or too long is refused by its place.
func TestForm(t *testing.T) {
	reg, err := millrace.NewRegistry(system.Domains()...)
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 1001)
	for data, want := range map[told]string{
		{"RedriveDeadLetter", `{` + ref + `}`}:                                                                            "/by",
		{"RedriveDeadLetter", `{` + ref + `,"by":"a\nb"}`}:                                                                "/by",
		{"RedriveDeadLetter", `{` + ref + `,"by":"ann","why":"` + long + `"}`}:                                            "/why",
		{"DiscardDeadLetter", `{` + ref + `,"by":"ann"}`}:                                                                 "/why",
		{"EditDeadLetter", `{` + ref + `,"by":"ann","type":"T","data":{}}`}:                                               "/why",
		{"EditDeadLetter", `{` + ref + `,"by":"ann","why":"w","type":"","data":{}}`}:                                      "/type",
		{"EditDeadLetter", `{` + ref + `,"by":"ann","why":"w","type":"T"}`}:                                               "/data",
		{"StartRedriveJob", `{"filter":{},"rate":0,"by":"ann"}`}:                                                          "/rate",
		{"StartRedriveJob", `{"filter":{},"rate":10001,"by":"ann"}`}:                                                      "/rate",
		{"StartRedriveJob", `{"filter":{"from":"2026-01-02T00:00:00Z","to":"2026-01-01T00:00:00Z"},"rate":1,"by":"ann"}`}: "/filter/to",
		{"PauseRedriveJob", `{"by":""}`}:                                                                                  "/by",
	} {
		stream := millrace.Stream("deadletter-c-1")
		if strings.HasSuffix(data.typ, "Job") {
			stream = letter.JobStream("j")
		}
		_, err := reg.DecodeCommand(&millrace.Command{Stream: stream, Type: data.typ, Data: []byte(data.data)})
		if got := fmt.Sprint(pointers(err)); got != fmt.Sprint([]string{want}) {
			t.Errorf("%.100s: %v, want %s", data, got, want)
		}
	}
}

// The stream of a dead letter is one for each id, whatever the id.
func TestStreams(t *testing.T) {
	long := strings.Repeat("k", millrace.MaxCommandID)
	short := strings.Repeat("k", millrace.MaxStreamName-len("deadletter-"))
	hashed := letter.Stream(long).ID()
	seen := map[millrace.Stream]string{}
	for _, id := range []string{"a", "process/x/order-1/y", long, short, short + "k", hashed, "sha256."} {
		s := letter.Stream(id)
		if err := s.Validate(); err != nil || s.Category() != letter.Category {
			t.Errorf("%.20s: %s %v", id, s, err)
		}
		if other, ok := seen[s]; ok {
			t.Errorf("%.20s and %.20s have one stream", id, other)
		}
		seen[s] = id
		if id := letter.SentID(s, letter.MaxRedrives); millrace.ValidateID("id", id, millrace.MaxCommandID) != nil {
			t.Errorf("%s cannot be a command's", id)
		}
	}
}

var exampleTime = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

// pointers are the places that an error names.
func pointers(err error) (out []string) {
	var form *millrace.FormError
	if errors.As(err, &form) {
		for _, f := range form.Errors {
			out = append(out, f.Pointer)
		}
	}
	return out
}
