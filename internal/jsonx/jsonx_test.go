package jsonx_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/internal/jsonx"
)

// sample has a field of each form that messages use.
type sample struct {
	Name     string            `json:"name"`
	Count    int64             `json:"count"`
	Small    int8              `json:"small"`
	Unsigned uint16            `json:"unsigned"`
	Ratio    float64           `json:"ratio"`
	On       bool              `json:"on"`
	At       time.Time         `json:"at"`
	Bytes    []byte            `json:"bytes"`
	Pair     [2]int            `json:"pair"`
	Lines    []line            `json:"lines"`
	Labels   map[string]string `json:"labels"`
	Raw      jsonx.RawValue    `json:"raw"`
	Any      any               `json:"any"`
	Next     *sample           `json:"next"`
	Code     code              `json:"code"`
	Level    level             `json:"level"`
	Nested   nested            `json:"nested"`
	Codes    []code            `json:"codes"`
	embedded
	Odd   int `json:"a/b~c"`
	NoTag int
}

type line struct {
	SKU      string `json:"sku"`
	Quantity int    `json:"quantity"`
}

type embedded struct {
	Promoted int `json:"promoted"`
}

// code decodes itself, with errors that quote what they were given and are not for the sender.
type code struct{ s string }

func (c *code) UnmarshalJSON(data []byte) error {
	var s string
	if err := jsonx.Unmarshal(data, &s); err != nil {
		return errors.New("secret: " + string(data))
	}
	if s != "good" {
		return fmt.Errorf("secret: %q is no code", s)
	}
	c.s = s
	return nil
}

// level decodes itself from text, with errors that say what the sender may read, deep inside.
type level int

func (l *level) UnmarshalText(text []byte) error {
	if string(text) != "high" {
		return fmt.Errorf("level: %w", publicError{secret: string(text)})
	}
	*l = 1
	return nil
}

type publicError struct{ secret string }

func (e publicError) Error() string { return "secret: " + e.secret }
func (publicError) Public() string  { return "must be a level" }

// nested decodes itself by Unmarshal.
type nested struct{ line }

func (n *nested) UnmarshalJSON(data []byte) error {
	if err := jsonx.Unmarshal(data, &n.line); err != nil {
		return fmt.Errorf("nested: %w", err)
	}
	return nil
}

func TestUnmarshal(t *testing.T) {
	data := `{"name":"n","count":-9007199254740993,"small":-128,"unsigned":65535,"ratio":0.5,"on":true,` +
		`"at":"2026-11-20T10:00:00.000000001Z","bytes":"AQI=","pair":[1,2],"lines":[{"sku":"a","quantity":1},{"sku":"b"}],` +
		`"labels":{"x":"y"},"raw":{ "b" : 1 },"any":[1,null],"next":{"name":"m"},"code":"good","level":"high",` +
		`"nested":{"sku":"c"},"promoted":7,"a/b~c":8,"NoTag":9}`
	var got sample
	if err := jsonx.Unmarshal([]byte(data), &got); err != nil {
		t.Fatal(err)
	}
	want := sample{
		Name: "n", Count: -9007199254740993, Small: -128, Unsigned: 65535, Ratio: 0.5, On: true,
		At: time.Date(2026, 11, 20, 10, 0, 0, 1, time.UTC), Bytes: []byte{1, 2}, Pair: [2]int{1, 2},
		Lines: []line{{"a", 1}, {"b", 0}}, Labels: map[string]string{"x": "y"}, Raw: jsonx.RawValue(`{ "b" : 1 }`),
		Any: []any{1.0, nil}, Next: &sample{Name: "m"}, Code: code{"good"}, Level: 1,
		Nested: nested{line{SKU: "c"}}, embedded: embedded{7}, Odd: 8, NoTag: 9,
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(sample{}, code{}, nested{})); diff != "" {
		t.Error(diff)
	}
}

func TestUnmarshalErrors(t *testing.T) {
	const secret = "4111111111111111"
	tests := []struct {
		name string
		data string
		want jsonx.Error
	}{
		// Syntax.
		{"nothing", ``, jsonx.Error{Kind: jsonx.Syntax, Detail: "ends before it is complete"}},
		{"white space", ` `, jsonx.Error{Kind: jsonx.Syntax, Offset: 1, Detail: "ends before it is complete"}},
		{"cut off", `{"name":"4111111111111111`, jsonx.Error{Kind: jsonx.Syntax, Pointer: "/name", Offset: 25, Detail: "ends before it is complete"}},
		{"no JSON", `{"count":4111111111111111x}`, jsonx.Error{Kind: jsonx.Syntax, Offset: 25, Detail: "is not valid JSON"}},
		{"bad literal", `{"on":trua}`, jsonx.Error{Kind: jsonx.Syntax, Pointer: "/on", Offset: 9, Detail: "is not valid JSON"}},
		{"trailing data", `{} 4111111111111111`, jsonx.Error{Kind: jsonx.Syntax, Offset: 3, Detail: "is not valid JSON"}},
		{"a second document", `{} {}`, jsonx.Error{Kind: jsonx.Syntax, Offset: 3, Detail: "is not valid JSON"}},
		{"trailing comma", `{"on":true,}`, jsonx.Error{Kind: jsonx.Syntax, Offset: 10, Detail: "is not valid JSON"}},
		{"a name that is no string", `{4111111111111111:1}`, jsonx.Error{Kind: jsonx.Syntax, Offset: 1, Detail: "is not valid JSON"}},
		{"syntax inside of a raw value", `{"raw":{"4111111111111111":[tru]}}`, jsonx.Error{Kind: jsonx.Syntax, Pointer: "/raw", Offset: 31, Detail: "is not valid JSON"}},
		{"syntax inside of a type that decodes itself", `{"code":{"4111111111111111":tru}}`, jsonx.Error{Kind: jsonx.Syntax, Pointer: "/code", Offset: 31, Detail: "is not valid JSON"}},
		{"syntax inside of a list of them", `{"codes":["good",{"4111111111111111":tru}]}`, jsonx.Error{Kind: jsonx.Syntax, Pointer: "/codes/1", Offset: 40, Detail: "is not valid JSON"}},

		// Duplicates.
		{"a member twice", `{"name":"a","name":"b"}`, jsonx.Error{Kind: jsonx.Duplicate, Pointer: "/name", Offset: 12, Detail: "is there twice"}},
		{"twice, once escaped", `{"name":"a","n\u0061me":"b"}`, jsonx.Error{Kind: jsonx.Duplicate, Pointer: "/name", Offset: 12, Detail: "is there twice"}},
		{"twice in a map", `{"labels":{"4111111111111111":"a","4111111111111111":"b"}}`, jsonx.Error{Kind: jsonx.Duplicate, Pointer: "/labels", Offset: 34, Detail: "has two members of one name"}},
		{"twice in a raw value", `{"raw":[{"4111111111111111":1,"4111111111111111":2}]}`, jsonx.Error{Kind: jsonx.Duplicate, Pointer: "/raw", Offset: 30, Detail: "has two members of one name"}},
		{"twice in an any", `{"any":{"a":{"x":1,"x":2}}}`, jsonx.Error{Kind: jsonx.Duplicate, Pointer: "/any", Offset: 19, Detail: "has two members of one name"}},

		// Unknown members.
		{"unknown", `{"4111111111111111":1}`, jsonx.Error{Kind: jsonx.Unknown, Offset: 1, Detail: "has a member that is not known here"}},
		{"of another case", `{"NAME":"n"}`, jsonx.Error{Kind: jsonx.Unknown, Offset: 1, Detail: "has a member that is not known here"}},
		{"unknown in a slice", `{"lines":[{},{"4111111111111111":1}]}`, jsonx.Error{Kind: jsonx.Unknown, Pointer: "/lines/1", Offset: 14, Detail: "has a member that is not known here"}},
		{"unknown behind a pointer", `{"next":{"next":{"lines":[{"sk":1}]}}}`, jsonx.Error{Kind: jsonx.Unknown, Pointer: "/next/next/lines/0", Offset: 27, Detail: "has a member that is not known here"}},
		{"an ignored Go field", `{"embedded":1}`, jsonx.Error{Kind: jsonx.Unknown, Offset: 1, Detail: "has a member that is not known here"}},

		// Types.
		{"string", `{"name":4111111111111111}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/name", Offset: 8, Detail: "must be a string"}},
		{"int", `{"count":"4111111111111111"}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/count", Offset: 9, Detail: "must be a whole number"}},
		{"fraction", `{"count":4111111111111111.5}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/count", Offset: 9, Detail: "must be a whole number"}},
		{"exponent", `{"count":1e2}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/count", Offset: 9, Detail: "must be a whole number"}},
		{"uint", `{"unsigned":-4111}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/unsigned", Offset: 12, Detail: "must be a whole number, not below zero"}},
		{"float", `{"ratio":[]}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/ratio", Offset: 9, Detail: "must be a number"}},
		{"bool", `{"on":"4111111111111111"}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/on", Offset: 6, Detail: "must be true or false"}},
		{"time", `{"at":"4111111111111111"}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/at", Offset: 6, Detail: "must be a time in the form of RFC 3339"}},
		{"bytes", `{"bytes":"4111-1111"}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/bytes", Offset: 9, Detail: "must be a string in Base64"}},
		{"array", `{"pair":[1,2,4111111111111111]}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/pair", Offset: 29, Detail: "must be an array of 2"}},
		{"slice", `{"lines":{"4111111111111111":1}}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/lines", Offset: 9, Detail: "must be an array"}},
		{"struct", `{"lines":["4111111111111111"]}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/lines/0", Offset: 10, Detail: "must be an object"}},
		{"map", `{"labels":["4111111111111111"]}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/labels", Offset: 10, Detail: "must be an object"}},
		{"in a map", `{"labels":{"4111111111111111":1}}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/labels", Offset: 30, Detail: "must be a string"}},
		{"promoted", `{"promoted":"x"}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/promoted", Offset: 12, Detail: "must be a whole number"}},
		{"a name to be escaped", `{"a/b~c":"x"}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/a~1b~0c", Offset: 9, Detail: "must be a whole number"}},
		{"without a tag", `{"NoTag":"x"}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/NoTag", Offset: 9, Detail: "must be a whole number"}},
		{"the root", `["4111111111111111"]`, jsonx.Error{Kind: jsonx.Type, Detail: "must be an object"}},

		// Types that decode themselves.
		{"own error", `{"code":"4111111111111111"}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/code", Offset: 8, Detail: "has the wrong form"}},
		{"own error of form", `{"code":{"4111111111111111":1}}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/code", Offset: 8, Detail: "has the wrong form"}},
		{"public error", `{"next":{"level":"4111111111111111"}}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/next/level", Offset: 17, Detail: "must be a level"}},
		{"text wants a string", `{"level":4111111111111111}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/level", Offset: 9, Detail: "has the wrong form"}},
		{"decoded by Unmarshal", `{"nested":{"quantity":"4111111111111111"}}`, jsonx.Error{Kind: jsonx.Type, Pointer: "/nested/quantity", Offset: 22, Detail: "must be a whole number"}},
		{"decoded by Unmarshal, unknown", `{"nested":{"4111111111111111":1}}`, jsonx.Error{Kind: jsonx.Unknown, Pointer: "/nested", Offset: 11, Detail: "has a member that is not known here"}},

		// Numbers that do not fit.
		{"int8", `{"small":128}`, jsonx.Error{Kind: jsonx.Range, Pointer: "/small", Offset: 9, Detail: "is a number that does not fit"}},
		{"int64", `{"count":9223372036854775808}`, jsonx.Error{Kind: jsonx.Range, Pointer: "/count", Offset: 9, Detail: "is a number that does not fit"}},
		{"many digits", `{"count":` + strings.Repeat("4", 1000) + `}`, jsonx.Error{Kind: jsonx.Range, Pointer: "/count", Offset: 9, Detail: "is a number that does not fit"}},
		{"float64", `{"ratio":1e400}`, jsonx.Error{Kind: jsonx.Range, Pointer: "/ratio", Offset: 9, Detail: "is a number that does not fit"}},
		{"any", `{"any":[1e400]}`, jsonx.Error{Kind: jsonx.Range, Pointer: "/any", Offset: 8, Detail: "is a number that does not fit"}},

		// Limits and text.
		{"deep", strings.Repeat(`{"next":`, jsonx.MaxDepth+1), jsonx.Error{Kind: jsonx.Depth, Offset: 8 * jsonx.MaxDepth, Detail: "is nested deeper than 64 levels"}},
		{"many", `{"any":[` + strings.Repeat("{},", jsonx.MaxValues), jsonx.Error{Kind: jsonx.Size, Offset: 8 + 3*(jsonx.MaxValues-3) + 2, Detail: "holds more than 200000 values"}},
		{"NUL", `{"name":"4111111111111111\u0000"}`, jsonx.Error{Kind: jsonx.NUL, Offset: 25, Detail: "holds the character NUL"}},
		{"UTF-8", "{\"name\":\"4111111111111111\xff\"}", jsonx.Error{Kind: jsonx.UTF8, Pointer: "/name", Offset: 25, Detail: "holds text that is not valid Unicode"}},
		{"UTF-8 in a name", "{\"4111111111111111\xff\":1}", jsonx.Error{Kind: jsonx.UTF8, Offset: 18, Detail: "holds text that is not valid Unicode"}},
		{"UTF-8 in a raw value", "{\"raw\":[\"\xff\"]}", jsonx.Error{Kind: jsonx.UTF8, Pointer: "/raw", Offset: 9, Detail: "holds text that is not valid Unicode"}},
		{"lone surrogate", `{"name":"\udc00"}`, jsonx.Error{Kind: jsonx.UTF8, Pointer: "/name", Offset: 9, Detail: "holds text that is not valid Unicode"}},
		{"half a pair", `{"name":"\ud800\n"}`, jsonx.Error{Kind: jsonx.UTF8, Pointer: "/name", Offset: 9, Detail: "holds text that is not valid Unicode"}},
		{"no escape", `{"name":"\u12g4"}`, jsonx.Error{Kind: jsonx.Syntax, Pointer: "/name", Offset: 9, Detail: "is not valid JSON"}},
	}
	for _, test := range tests {
		var v sample
		err := jsonx.Unmarshal([]byte(test.data), &v)
		got, ok := err.(*jsonx.Error) //nolint:errorlint // it is promised as it is
		if !ok {
			t.Errorf("%s: %T: %v", test.name, err, err)
			continue
		}
		if *got != test.want {
			t.Errorf("%s:\n got %#v\nwant %#v", test.name, *got, test.want)
		}
		if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: says %q", test.name, err)
		}
	}
}

func TestUnmarshalTarget(t *testing.T) {
	for _, v := range []any{nil, sample{}, (*sample)(nil)} {
		err := jsonx.Unmarshal([]byte(`{}`), v)
		if kindOf(t, err) != jsonx.Type || !strings.Contains(err.Error(), "target") {
			t.Errorf("%T: %v", v, err)
		}
	}
}

func TestCheck(t *testing.T) {
	tests := []struct {
		data string
		want jsonx.Error
	}{
		{``, jsonx.Error{Kind: jsonx.Syntax, Detail: "ends before it is complete"}},
		{" \n", jsonx.Error{Kind: jsonx.Syntax, Offset: 2, Detail: "ends before it is complete"}},
		{`{"a":`, jsonx.Error{Kind: jsonx.Syntax, Offset: 5, Detail: "ends before it is complete"}},
		{`{"a":tru}`, jsonx.Error{Kind: jsonx.Syntax, Offset: 8, Detail: "is not valid JSON"}},
		{`[1,{"a":[tru]}]`, jsonx.Error{Kind: jsonx.Syntax, Pointer: "/1", Offset: 12, Detail: "is not valid JSON"}},
		{`[1] 2`, jsonx.Error{Kind: jsonx.Syntax, Offset: 4, Detail: "is not valid JSON"}},
		{`[1]x`, jsonx.Error{Kind: jsonx.Syntax, Offset: 3, Detail: "is not valid JSON"}},
		{`{"a":{"b":1,"b":2}}`, jsonx.Error{Kind: jsonx.Duplicate, Offset: 12, Detail: "has two members of one name"}},
		{"[\"\xff\"]", jsonx.Error{Kind: jsonx.UTF8, Pointer: "/0", Offset: 2, Detail: "holds text that is not valid Unicode"}},
		{`["\ud800"]`, jsonx.Error{Kind: jsonx.UTF8, Pointer: "/0", Offset: 2, Detail: "holds text that is not valid Unicode"}},
		{`["\u0000"]`, jsonx.Error{Kind: jsonx.NUL, Offset: 2, Detail: "holds the character NUL"}},
		{strings.Repeat("[", 65), jsonx.Error{Kind: jsonx.Depth, Offset: 64, Detail: "is nested deeper than 64 levels"}},
	}
	for _, test := range tests {
		err := jsonx.Check([]byte(test.data))
		if e, ok := errors.AsType[*jsonx.Error](err); !ok || *e != test.want {
			t.Errorf("%q:\n got %#v\nwant %#v", test.data, err, test.want)
		}
	}
	for _, data := range []string{`1`, ` {"a" : [1, 2.5e-3, "\u00e9\ud83d\ude39", null, true, false, {}]} `, `1e999`} {
		if err := jsonx.Check([]byte(data)); err != nil {
			t.Errorf("%q: %v", data, err)
		}
	}
}

func TestError(t *testing.T) {
	e := &jsonx.Error{Kind: jsonx.Type, Pointer: "/lines/0", Offset: 12, Detail: "must be an object"}
	if got, want := e.Error(), "json: /lines/0 must be an object (byte 12)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	e.Pointer = ""
	if got, want := e.Error(), "json: must be an object (byte 12)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	seen := map[string]bool{}
	for k := jsonx.Syntax; k <= jsonx.NUL; k++ {
		if s := k.String(); strings.Contains(s, " ") || seen[s] {
			t.Errorf("kind %d is called %q", k, s)
		}
		seen[k.String()] = true
	}
	if got := jsonx.Kind(99).String(); got != "kind 99" {
		t.Error(got)
	}
}

func TestMarshal(t *testing.T) {
	tests := []struct {
		name string
		v    any
		want string
	}{
		{"sorted", map[string]int{"b": 1, "a": 2, "ä": 3, "": 4}, `{"":4,"a":2,"b":1,"ä":3}`},
		{"not escaped for HTML", "<a href=\"x\">&</a>\u2028", "\"<a href=\\\"x\\\">&</a>\u2028\""},
		{"nil", nil, `null`},
		{"nil slice and map", struct {
			S []int
			M map[string]int
		}{}, `{"S":[],"M":{}}`},
		{"large integer", int64(math.MinInt64), `-9223372036854775808`},
		{"raw", jsonx.RawValue(`{ "b" : 1, "a":2 }`), `{"b":1,"a":2}`},
		{"bytes", []byte{1, 2}, `"AQI="`},
	}
	for _, test := range tests {
		for range 10 { // a map's order is random
			got, err := jsonx.Marshal(test.v)
			if err != nil || string(got) != test.want {
				t.Errorf("%s: %s, %v, want %s", test.name, got, err, test.want)
			}
			got, err = jsonx.Append([]byte("before "), test.v)
			if err != nil || string(got) != "before "+test.want {
				t.Errorf("%s: Append: %s, %v", test.name, got, err)
			}
		}
	}
}

// TestMarshalRefusesWhatCannotBeRead: what was written and cannot be read again is found out when it is too late.
func TestMarshalRefusesWhatCannotBeRead(t *testing.T) {
	deep := any(1)
	for range jsonx.MaxDepth + 1 {
		deep = []any{deep}
	}
	for name, v := range map[string]any{
		"NUL":          "a\x00b",
		"invalid text": "a\xff",
		"deep":         deep,
		"many values":  make([]int, jsonx.MaxValues),
		"bad raw":      jsonx.RawValue(`{"a":1,"a":2}`),
		"raw NUL":      jsonx.RawValue(`"\u0000"`),
		"no JSON form": make(chan int),
		"not a number": math.NaN(),
	} {
		if got, err := jsonx.Marshal(v); err == nil || got != nil {
			t.Errorf("%s: Marshal wrote %.60s", name, got)
		}
		dst := append(make([]byte, 0, 100), "before"...)
		if got, err := jsonx.Append(dst, v); err == nil || string(got) != "before" {
			t.Errorf("%s: Append wrote %.60s", name, got)
		}
	}
	// The control: text that only looks like an escaped NUL.
	if got, err := jsonx.Marshal(`\u0000`); err != nil || string(got) != `"\\u0000"` {
		t.Errorf("%s, %v", got, err)
	}
}

func TestAppendUsesTheRoomItHas(t *testing.T) {
	dst := append(make([]byte, 0, 64), "before "...)
	got, err := jsonx.Append(dst, map[string]int{"a": 1})
	if err != nil || string(got) != `before {"a":1}` || &got[0] != &dst[0] {
		t.Errorf("%s, %v; moved: %v", got, err, &got[0] != &dst[0])
	}
	// A result that is still in use is not written to by the next call.
	again, err := jsonx.Append(nil, map[string]int{"b": 2})
	if err != nil || string(got) != `before {"a":1}` || string(again) != `{"b":2}` {
		t.Errorf("%s, %s, %v", got, again, err)
	}
}

func TestCanonical(t *testing.T) {
	tests := []struct{ data, want string }{
		// The example of RFC 8785, section 3.2.2, but for its first number: that one has more digits than a double
		// holds, which is what Canonical refuses. The next test has it.
		{
			`{
  "numbers": [333333333.3333333, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
  "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
  "literals": [null, true, false]
}`,
			`{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],` +
				`"string":"€$\u000f\nA'B\"\\\\\"/"}`,
		},
		// The sorting example of section 3.2.3: by UTF-16 code units.
		{
			`{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One",` +
				`"\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis"}`,
			"{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u0080\":\"Control\",\"ö\":\"Latin Small Letter O With Diaeresis\"," +
				"\"€\":\"Euro Sign\",\"😀\":\"Emoji: Grinning Face\",\"\ufb33\":\"Hebrew Letter Dalet With Dagesh\"}",
		},
		{` [ 1 , 2 ] `, `[1,2]`},
		{`[-0, 0.0, 0e5, -0e-999999999999999999999]`, `[0,0,0,0]`},
		{`[100, 1e2, 1.00E+2, 1000e-1]`, `[100,100,100,100]`},
		{`[9007199254740991, -9007199254740992, 9007199254740994]`, `[9007199254740991,-9007199254740992,9007199254740994]`},
		{`[0.1, 0.30000000000000004, 1.7976931348623157e308, 5e-324]`, `[0.1,0.30000000000000004,1.7976931348623157e+308,5e-324]`},
		{`[100000000000000000000, 1000000000000000000000]`, `[100000000000000000000,1e+21]`},
		{`"12345678901234567890123 in a string"`, `"12345678901234567890123 in a string"`},
	}
	for _, test := range tests {
		data := []byte(test.data)
		got, err := jsonx.Canonical(data)
		if err != nil || string(got) != test.want {
			t.Errorf("%s:\n got %s, %v\nwant %s", test.data, got, err, test.want)
		}
		if string(data) != test.data {
			t.Errorf("%s: the input was changed to %s", test.data, data)
		}
		again, err := jsonx.Canonical(got)
		if err != nil || string(again) != test.want {
			t.Errorf("%s: not stable: %s, %v", test.want, again, err)
		}
		if len(again) > 0 && &again[0] == &got[0] {
			t.Errorf("%s: the result shares memory with the input", test.want)
		}
	}
}

func TestCanonicalErrors(t *testing.T) {
	tests := []struct {
		data string
		kind jsonx.Kind
		at   int64
	}{
		// Each of these would come out as a neighbour of it.
		{`[1, 9007199254740993]`, jsonx.Range, 4},
		{`[-9007199254740993]`, jsonx.Range, 1},
		{`{"a":1152921504606846976}`, jsonx.Range, 5}, // a power of two, but its shortest decimal is another integer
		{`[9223372036854775807]`, jsonx.Range, 1},
		{`[9007199254740993.0]`, jsonx.Range, 1},
		{`[0.10000000000000000001]`, jsonx.Range, 1},
		{`[333333333.33333329]`, jsonx.Range, 1},
		{`[1e400]`, jsonx.Range, 1},
		{`["1e400", -1e400]`, jsonx.Range, 10},
		{`[1e-400]`, jsonx.Range, 1},
		{`[1e-99999999999999999999]`, jsonx.Range, 1},

		{`[1`, jsonx.Syntax, 2},
		{`[1]]`, jsonx.Syntax, 3},
		{`{"a":1,"a":1}`, jsonx.Duplicate, 7},
		{`["\ud800"]`, jsonx.UTF8, 2},
		{`["\u0000"]`, jsonx.NUL, 2},
		{strings.Repeat("[", 65), jsonx.Depth, 64},
	}
	for _, test := range tests {
		got, err := jsonx.Canonical([]byte(test.data))
		if kind := kindOf(t, err); kind != test.kind || got != nil {
			t.Errorf("%s: %v, %s; want %v", test.data, err, got, test.kind)
		} else if e, _ := errors.AsType[*jsonx.Error](err); e.Offset != test.at {
			t.Errorf("%s: at %d, want %d", test.data, e.Offset, test.at)
		}
	}
}

func TestAppendString(t *testing.T) {
	tests := []struct{ s, want string }{
		{"", `""`},
		{"plain", `"plain"`},
		{`a"b\c/d`, `"a\"b\\c/d"`},
		{"\b\f\n\r\t\x01\x1f\x7f", "\"\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\""},
		{"<&>\u2028", "\"<&>\u2028\""},
		{"Grüße 😀", `"Grüße 😀"`},
		{"\ufffd", "\"\ufffd\""}, // valid, though it is what stands for the invalid
		{"a\xffb\xe2\x82c\xed\xa0\x80", "\"a\ufffdb\ufffd\ufffdc\ufffd\ufffd\ufffd\""},
		{"a\x00b", "\"a\ufffdb\""},
	}
	for _, test := range tests {
		if got := string(jsonx.AppendString([]byte("x"), test.s)); got != "x"+test.want {
			t.Errorf("%q: %s, want x%s", test.s, got, test.want)
		}
	}
}
