package jsonfast_test

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace/internal/jsoncorpus"
	"github.com/millrace-io/millrace/internal/jsonfast"
	"github.com/millrace-io/millrace/internal/jsonx"
)

type colour string

// sample has a member of every kind that the scanner reads.
type sample struct {
	Text   string    `json:"text"`
	Colour colour    `json:"colour"`
	Signed int64     `json:"signed"`
	Count  uint64    `json:"count"`
	Number int       `json:"number"`
	On     bool      `json:"flag"`
	At     time.Time `json:"at"`
	List   []sample  `json:"list"`
}

func (v *sample) read(s *jsonfast.Scanner) {
	for o := (jsonfast.Object{}); s.Next(&o); {
		switch string(o.Name) {
		case "text":
			v.Text = s.Text()
		case "colour":
			v.Colour = jsonfast.Word[colour](s, "red", "green")
		case "signed":
			v.Signed = s.Int64()
		case "count":
			v.Count = s.Uint64()
		case "number":
			v.Number = s.Int()
		case "flag":
			v.On = s.Bool()
		case "at":
			v.At = s.Time()
		case "list":
			v.List = make([]sample, 0, s.Guess())
			for a := (jsonfast.Array{}); s.Element(&a); {
				v.List = append(v.List, sample{})
				v.List[len(v.List)-1].flat(s)
			}
		default:
			s.GiveUp()
		}
	}
}

// flat reads an element, which has no list of its own: a reader without recursion needs no limit of depth.
func (v *sample) flat(s *jsonfast.Scanner) {
	for o := (jsonfast.Object{}); s.Next(&o); {
		if string(o.Name) != "text" {
			s.GiveUp()
		}
		v.Text = s.Text()
	}
}

// accepts says whether the scanner reads data, and fails where it reads anything but what jsonx reads.
func accepts(t testing.TB, data string) bool {
	t.Helper()
	var got, want sample
	buffer := []byte(data)
	s := jsonfast.New(buffer)
	got.read(&s)
	if !s.Done() {
		return false
	}
	for i := range buffer {
		buffer[i] = '#' // nothing that was read may look back
	}
	if err := jsonx.Unmarshal([]byte(data), &want); err != nil {
		t.Fatalf("%q is accepted, and jsonx says %v", data, err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%q is read as\n%#v\nand by jsonx as\n%#v", data, got, want)
	}
	return true
}

func TestAccepted(t *testing.T) {
	for _, data := range []string{
		`{}`,
		" \t\r\n{ \"text\" : \"a\" , \"flag\" : true , \"list\" : [ { } , { \"text\" : \"b\" } ] } \n",
		`{"text":""}`, `{"text":"exactly8"}`, `{"text":"more than eight and then some"}`,
		`{"text":"Köln, 東京 😀 and on in plain text"}`, "{\"text\":\"\x7f\u2028\ufffd\"}",
		`{"text":"a \"quote\", \\ \/ \b\f\n\r\t"}`, `{"text":"\\"}`, `{"text":"\\\\","colour":"\"red"}`,
		`{"colour":"red"}`, `{"colour":"blue"}`, `{"colour":""}`,
		`{"signed":0}`, `{"signed":-1}`, `{"signed":9223372036854775807}`, `{"signed":-9223372036854775808}`,
		`{"count":18446744073709551615}`, `{"count":18446744073709551609}`, `{"number":-7}`,
		`{"flag":false}`, `{"list":[]}`, `{"list":[{}]}`,
		`{"at":"2010-12-01T08:26:00Z"}`, `{"at":"2010-12-01T08:26:00.5Z"}`, `{"at":"9999-12-31T23:59:59.999999999Z"}`,
		`{"at":"0001-01-01T00:00:00Z"}`, `{"at":"2012-02-29T00:00:00Z"}`,
		`{"list":[` + strings.Repeat(`{"text":"}]["},`, 200) + `{}]}`,
	} {
		if !accepts(t, data) {
			t.Errorf("gave up on %q", data)
		}
	}
}

func TestGivenUp(t *testing.T) {
	for _, data := range []string{
		// Syntax.
		``, ` `, `{`, `}`, `[]`, `null`, `"text"`, `{}}`, `{} {}`, `{},`, `{}x`, "{}\x00", "{\x00}", "\ufeff{}", `{"text"}`, `{"text":}`,
		`{"text":"a",}`, `{,"text":"a"}`, `{"text":"a" "flag":true}`, `{"text":"a"`, `{"text":"a`, `{"text`, `{"text":"\`, `{"text":"\"`,
		`{text:"a"}`, `{"list":[,]}`, `{"list":[{},]}`, `{"list":[{} {}]}`, `{"list":[`, `{"list":[{}`, `{"list":[}]`, `{"list":{}}`,
		"{\"text\":\"a\nb\"}", "{\"text\":\"a\x00b\"}", "{\"text\":\"eight ch\x1f\"}", "{\u00a0}", "{\v}",
		// Members.
		`{"text":"a","text":"b"}`, `{"flag":true,"text":"a","flag":true}`, `{"text":"a","t\u0065xt":"b"}`, `{"te\u0078t":"a"}`,
		`{"Text":"a"}`, `{"":1}`, `{"texts":"a"}`, "{\"text\xff\":\"a\"}", `{"list":[{"text":"a","text":"b"}]}`, `{"list":[{"flag":true}]}`,
		// Text.
		`{"text":"\u0000"}`, `{"text":"\u0061"}`, `{"text":"\ud800"}`, `{"text":"\x"}`, "{\"text\":\"\\\x00\"}", "{\"text\":\"\\ü\"}",
		"{\"text\":\"\xff\"}", "{\"text\":\"\xed\xa0\x80\"}", "{\"text\":\"\xc0\xaf\"}", "{\"text\":\"long before it \xe2\x82\"}", "{\"text\":\"\\\xff\"}",
		`{"text":1}`, `{"text":null}`, `{"text":true}`, `{"text":["a"]}`, `{"colour":null}`, `{"colour":"\u0061"}`,
		// Numbers.
		`{"signed":01}`, `{"signed":00}`, `{"signed":-01}`, `{"signed":+1}`, `{"signed":-0}`, `{"signed":- 1}`, `{"signed":-}`, `{"signed":1.0}`,
		`{"signed":1e2}`, `{"signed":1.}`, `{"signed":.1}`, `{"signed":0x1}`, `{"signed":1_0}`, `{"signed":"1"}`, `{"signed":null}`, `{"signed":--1}`,
		`{"signed":9223372036854775808}`, `{"signed":-9223372036854775809}`, `{"signed":99999999999999999999}`, `{"signed":1 1}`, `{"signed":`,
		`{"count":-1}`, `{"count":18446744073709551616}`, `{"count":99999999999999999999}`, `{"count":184467440737095516150}`, `{"number":9223372036854775808}`,
		`{"number":1E1}`, `{"flag":1}`, `{"flag":tru}`, `{"flag":truee}`, `{"flag":True}`, `{"flag":"true"}`, `{"flag":null}`, `{"flag":`,
		// Times.
		`{"at":""}`, `{"at":null}`, `{"at":0}`, `{"at":"2010-12-01"}`, `{"at":"2010-12-01T08:26:00"}`, `{"at":"2010-12-01T8:26:00Z"}`, `{"at":"2010-12-01T8:26:00.5Z"}`,
		`{"at":"2010-12-01T08:26:00,5Z"}`, `{"at":"2010-12-01T08:26:60Z"}`, `{"at":"2010-02-30T08:26:00Z"}`, `{"at":"2010-13-01T08:26:00Z"}`,
		`{"at":"2010-12-01t08:26:00Z"}`, `{"at":"2010-12-01T08:26:00z"}`, `{"at":"2010-12-01T24:00:00Z"}`, `{"at":"2010-12-01T08:26:00.Z"}`,
		`{"at":"2010-12-01T08:26:00+01:00"}`, `{"at":"2010-12-01T08:26:00+01:00Z"}`, `{"at":"10000-01-01T00:00:00Z"}`, `{"at":" 2010-12-01T08:26:00Z"}`,
		`{"at":"2010-12-01T08:26:00\u005a"}`,
	} {
		if accepts(t, data) {
			t.Errorf("accepted %q", data)
		}
	}
}

// TestPrefixes: a document that was cut off is never one.
func TestPrefixes(t *testing.T) {
	whole := `{"text":"a\\ü","colour":"red","signed":-12,"count":3,"flag":true,"at":"2010-12-01T08:26:00.5Z","list":[{"text":"x"},{}]}`
	for i := range whole {
		if accepts(t, whole[:i]) {
			t.Errorf("accepted %q", whole[:i])
		}
	}
	if !accepts(t, whole) {
		t.Error("gave up on the whole")
	}
}

// TestValues: the limit of values is that of jsonx, to the value.
func TestValues(t *testing.T) {
	list := func(n int) string { return `{"list":[` + strings.Repeat(`{},`, n-1) + `{}]}` }
	const most = jsonx.MaxValues - 2 // the root and the list are two
	if !accepts(t, list(most)) {
		t.Error("gave up on as many values as there may be")
	}
	if accepts(t, list(most+1)) {
		t.Error("accepted more values than there may be")
	}
}

// TestCorpus puts every document of the public corpus into the place of every member.
func TestCorpus(t *testing.T) {
	for _, c := range jsoncorpus.Cases() {
		accepts(t, string(c.Data))
		for _, name := range []string{"text", "colour", "signed", "count", "number", "flag", "at", "list"} {
			inner := bytes.TrimSuffix(bytes.TrimPrefix(c.Data, []byte("[")), []byte("]"))
			accepts(t, `{"`+name+`":`+string(c.Data)+`}`)
			accepts(t, `{"`+name+`":`+string(inner)+`}`)
			accepts(t, `{"list":[{"`+name+`":`+string(inner)+`}]}`)
		}
	}
}

// TestBehindTheEnd: bytes behind a document that share its array belong to somebody else.
func TestBehindTheEnd(t *testing.T) {
	array := []byte(`{"flag":true},"number":1}`)
	var got sample
	s := jsonfast.New(array[:len(`{"flag":true}`)])
	got.read(&s)
	if !s.Done() || !got.On || got.Number != 0 {
		t.Errorf("read %+v", got)
	}
}

func FuzzScanner(f *testing.F) {
	f.Add(`{"text":"a\\ü","colour":"red","signed":-12,"count":3,"number":4,"flag":true,"at":"2010-12-01T08:26:00.5Z","list":[{"text":"x"},{}]}`)
	f.Add(`{"text":"\ud800","signed":-0,"at":"2010-12-01T08:26:00,5Z"}`)
	f.Add(`{"count":18446744073709551616}`)
	for _, c := range jsoncorpus.Cases() {
		if len(c.Data) < 200 {
			f.Add(`{"text":` + string(c.Data) + `}`)
		}
	}
	f.Fuzz(func(t *testing.T, data string) { accepts(t, data) })
}
