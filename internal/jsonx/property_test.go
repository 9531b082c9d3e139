package jsonx_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/millrace-io/millrace/internal/jsoncorpus"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// document draws a value of the kinds that an `any` is decoded to.
func document(depth int) *rapid.Generator[any] {
	text := rapid.Map(rapid.String(), func(s string) string { return strings.ReplaceAll(s, "\x00", "") })
	scalars := []*rapid.Generator[any]{
		rapid.Just[any](nil), rapid.Bool().AsAny(), text.AsAny(),
		// The numbers whose text is the same in every library.
		rapid.Map(rapid.Int32(), func(n int32) any { return float64(n) / 4 }),
	}
	if depth == 0 {
		return rapid.OneOf(scalars...)
	}
	inner := document(depth - 1)
	return rapid.OneOf(append(scalars,
		rapid.SliceOfN(inner, 0, 4).AsAny(),
		rapid.MapOfN(text, inner, 0, 4).AsAny(),
	)...)
}

// TestRoundTrip: what Marshal writes, Unmarshal reads, and so does encoding/json; the canonical form means the same
// and is stable.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := document(4).Draw(t, "v")
		data, err := jsonx.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := jsonx.Check(data); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		var std any
		if err := json.Unmarshal(data, &std); err != nil || !reflect.DeepEqual(std, v) {
			t.Fatalf("%s: encoding/json reads %#v, %v; want %#v", data, std, err, v)
		}
		canonical, err := jsonx.Canonical(data)
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range [][]byte{data, canonical, indented(t, data)} {
			var got any
			if err := jsonx.Unmarshal(form, &got); err != nil || !reflect.DeepEqual(got, v) {
				t.Fatalf("%s: %#v, %v; want %#v", form, got, err, v)
			}
			again, err := jsonx.Canonical(form)
			if err != nil || !bytes.Equal(again, canonical) {
				t.Fatalf("%s: %s, %v; want %s", form, again, err, canonical)
			}
		}
	})
}

func indented(t *rapid.T, data []byte) []byte {
	var out bytes.Buffer
	if err := json.Indent(&out, data, "", "\t"); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestAppendStringRoundTrip: any Go string becomes a literal that is read as that string, but for what no document of
// ours can hold.
func TestAppendStringRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "s")
		data := jsonx.AppendString(nil, s)
		var got string
		if err := jsonx.Unmarshal(data, &got); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		// A conversion to runes makes U+FFFD of each invalid byte.
		want := strings.ReplaceAll(string([]rune(s)), "\x00", "\ufffd")
		if got != want {
			t.Fatalf("%q: %q", want, got)
		}
		if s == want {
			if marshalled, err := jsonx.Marshal(s); err != nil || !bytes.Equal(marshalled, data) {
				t.Fatalf("Marshal writes %s, AppendString %s", marshalled, data)
			}
		}
	})
}

// FuzzUnmarshal holds Unmarshal to encoding/json. What we accept, it accepts and reads as the same value; what it
// accepts and we refuse breaks the rule that our error names, by the judgement of a reader of its own; and no error
// repeats any of the document.
func FuzzUnmarshal(f *testing.F) {
	for _, c := range jsoncorpus.Cases() {
		if len(c.Data) < 1000 {
			f.Add(c.Data)
		}
	}
	f.Add(benchDocument())
	f.Add([]byte(`{"name":"n","lines":[{"sku":"a","quantity":1}],"labels":{"x":"y"},"raw":{"b":1},"next":{"any":[1]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var got, std any
		kind := kindOf(t, jsonx.Unmarshal(data, &got))
		stdErr := json.Unmarshal(data, &std)
		switch {
		case kind == 0 && stdErr != nil:
			t.Fatalf("accepted %q, encoding/json: %v", data, stdErr)
		case kind == 0 && !reflect.DeepEqual(got, std):
			t.Fatalf("%q: read as %#v, by encoding/json as %#v", data, got, std)
		case kind != 0 && stdErr == nil && !breaks(data)[kind]:
			t.Fatalf("%q: refused for %v, encoding/json reads %#v", data, kind, std)
		}

		checked := kindOf(t, jsonx.Check(data))
		// Whether a number fits is not for Check to say; and which of several faults comes first is for neither.
		if (checked == 0) != (kind == 0) && kind != jsonx.Range {
			t.Fatalf("%q: Check says %v, Unmarshal %v", data, checked, kind)
		}
		if canonical, err := jsonx.Canonical(data); err == nil {
			var again any
			if checked != 0 || jsonx.Unmarshal(canonical, &again) != nil || !reflect.DeepEqual(again, got) {
				t.Fatalf("%q: canonical form %q", data, canonical)
			}
		} else if k := kindOf(t, err); k != checked && (checked != 0 || k != jsonx.Range) {
			t.Fatalf("%q: Check says %v, Canonical %v", data, checked, k)
		}

		var typed sample
		if err := jsonx.Unmarshal(data, &typed); err != nil {
			e, _ := errors.AsType[*jsonx.Error](err)
			if !said[e.Detail] || e.Offset < 0 || e.Offset > int64(len(data)) || !wayOf(e.Pointer) {
				t.Fatalf("%q: %#v", data, e)
			}
		}
	})
}

// said are all the texts that errors of a sample can have.
var said = map[string]bool{
	"is not valid JSON": true, "ends before it is complete": true, "has two members of one name": true,
	"is there twice": true, "has a member that is not known here": true, "has the wrong form": true,
	"is a number that does not fit": true, "is nested deeper than 64 levels": true, "holds more than 200000 values": true,
	"holds text that is not valid Unicode": true, "holds the character NUL": true, "must be true or false": true,
	"must be a whole number": true, "must be a whole number, not below zero": true, "must be a number": true,
	"must be a string": true, "must be an array": true, "must be an array of 2": true, "must be an object": true,
	"must be a string in Base64": true, "must be a time in the form of RFC 3339": true, "must be a level": true,
}

// wayOf says whether a pointer has nothing but names of fields of a sample and indexes.
func wayOf(pointer string) bool {
	for token := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		name := strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
		known := name == "sku" || name == "quantity" || strings.Trim(name, "0123456789") == ""
		for _, f := range reflect.VisibleFields(reflect.TypeFor[sample]()) {
			known = known || f.Tag.Get("json") == name || f.Name == name
		}
		if !known {
			return false
		}
	}
	return true
}

// breaks reads a document that encoding/json accepts with the decoder of encoding/json and says which of our rules it
// breaks, as far as that decoder lets one see. Nothing of it is shared with the code under test.
func breaks(data []byte) map[jsonx.Kind]bool {
	out := map[jsonx.Kind]bool{}
	if !utf8.Valid(data) {
		out[jsonx.UTF8] = true
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	type level struct {
		object, value bool // value: a member's name has been read
		names         map[string]bool
	}
	var stack []level
	values := 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			panic(err)
		}
		text, isText := token.(string)
		if isText {
			if strings.Contains(text, "\x00") {
				out[jsonx.NUL] = true
			}
			// The decoder makes this of lone surrogates, so that it cannot be told from the character itself.
			if strings.Contains(text, "\ufffd") {
				out[jsonx.UTF8] = true
			}
		}
		if n := len(stack); n > 0 && stack[n-1].object && !stack[n-1].value {
			if isText {
				if stack[n-1].names[text] {
					out[jsonx.Duplicate] = true
				}
				stack[n-1].names[text] = true
				stack[n-1].value = true
				continue
			}
		}
		if n := len(stack); n > 0 {
			stack[n-1].value = false
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			stack = append(stack, level{object: token == json.Delim('{'), names: map[string]bool{}})
			if len(stack) > jsonx.MaxDepth {
				out[jsonx.Depth] = true
			}
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
			continue
		}
		if values++; values > jsonx.MaxValues {
			out[jsonx.Size] = true
		}
	}
	return out
}
