package httpapi

import (
	"testing"

	"github.com/millrace-io/millrace/internal/jsonx"
)

func TestMember(t *testing.T) {
	const doc = `{"a":{"version":7,"b":["]","}\""]},"s":"x\"y\\","list":[1,[2,{"version":9}]], "version" : 5 ,"status":"placed","z":null}`
	for name, want := range map[string]string{
		"version": "5", "status": `"placed"`, "s": `"x\"y\\"`, "z": "null", "list": `[1,[2,{"version":9}]]`, "b": "", "": "",
	} {
		if got, ok := member([]byte(doc), name); string(got) != want || ok != (want != "") {
			t.Errorf("%s: %s, %v, want %s", name, got, ok, want)
		}
	}
	if v, ok := memberUint([]byte(doc), "version"); !ok || v != 5 {
		t.Errorf("version: %d, %v", v, ok)
	}
	if _, ok := memberUint([]byte(doc), "status"); ok {
		t.Error("a string passed for a number")
	}
	for _, c := range []struct {
		doc, want string
		is        bool
	}{
		{`{"c":"a"}`, "a", true}, {`{"c":"\u0061"}`, "a", true}, {`{"c":"ab"}`, "a", false}, {`{"d":"a"}`, "a", false},
		{`{"c":1}`, "1", false}, {`{"c":"Ä\n"}`, "Ä\n", true},
	} {
		if got := memberIs([]byte(c.doc), "c", c.want, jsonx.AppendString(nil, c.want)); got != c.is {
			t.Errorf("%s is %q: %v", c.doc, c.want, got)
		}
	}
}

// FuzzMember holds the scanner to the decoder, for whatever the store could hold.
func FuzzMember(f *testing.F) {
	f.Add([]byte(`{"a":{"version":7},"version":5}`))
	f.Add([]byte(` { "x" : "\"version\":1" , "version":"5"}`))
	f.Add([]byte(`[]`))
	f.Add([]byte(`{"version`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, ok := member(data, "version") // whatever it is, it must end
		var want map[string]jsonx.RawValue
		if jsonx.Unmarshal(data, &want) != nil || want == nil {
			return
		}
		for name := range want {
			if name != "version" && jsonx.Check(jsonx.AppendString(nil, name)) == nil && len(jsonx.AppendString(nil, name)) != len(name)+2 {
				return // a name that is written with escapes
			}
		}
		if v, has := want["version"]; has != ok && !escaped(data) || ok && has && string(v) != string(got) {
			t.Fatalf("%s: %s (%v), want %s (%v)", data, got, ok, v, has)
		}
	})
}

// escaped says whether a document has escapes, which the names of our own members never need.
func escaped(data []byte) bool {
	for _, b := range data {
		if b == '\\' {
			return true
		}
	}
	return false
}
