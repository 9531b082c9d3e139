package httpapi

import (
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
)

func TestParsePrefer(t *testing.T) {
	for _, c := range []struct {
		in      []string
		want    preferences
		applied string
	}{
		{nil, preferences{}, ""},
		{[]string{"wait=5"}, preferences{wait: 5 * time.Second, waitSet: true}, "wait=5"},
		{[]string{"respond-async, wait=10"}, preferences{wait: 10 * time.Second, waitSet: true}, "wait=10"},
		{[]string{`Wait="7"; foo="a,b;c" , return=minimal`}, preferences{wait: 7 * time.Second, waitSet: true, minimal: true}, "wait=7, return=minimal"},
		{[]string{"return=representation", "wait=0"}, preferences{waitSet: true, full: true}, "wait=0, return=representation"},
		{[]string{"wait=61"}, preferences{wait: MaxWait, waitSet: true}, "wait=60"},
		{[]string{"wait=9999999999"}, preferences{wait: MaxWait, waitSet: true}, "wait=60"},
		{[]string{"wait=3, wait=4"}, preferences{wait: 3 * time.Second, waitSet: true}, "wait=3"},
		{[]string{"wait=-1", "wait=1.5", "wait=", "wait", "wait=99999999999", "return=all"}, preferences{}, ""},
		{[]string{`unknown="a, wait=5"`}, preferences{}, ""},
	} {
		got := parsePrefer(c.in)
		if got != c.want || got.applied() != c.applied {
			t.Errorf("Prefer %q: %+v (%q), want %+v (%q)", c.in, got, got.applied(), c.want, c.applied)
		}
	}
}

func TestParseKey(t *testing.T) {
	for _, c := range []struct {
		in   []string
		want string
		ok   bool
	}{
		{[]string{"abc"}, "abc", true},
		{[]string{`"abc"`}, "abc", true},
		{[]string{`"a\"b\\c"`}, `a"b\c`, true},
		{[]string{`a"b`}, `a"b`, true},
		{[]string{strings.Repeat("k", 255)}, strings.Repeat("k", 255), true},
		{[]string{strings.Repeat("k", 256)}, "", false},
		{[]string{`"` + strings.Repeat("k", 256) + `"`}, "", false},
		{[]string{""}, "", false},
		{[]string{`""`}, "", false},
		{[]string{`"`}, "", false},
		{[]string{`"abc`}, "", false},
		{[]string{`"abc";a=1`}, "", false},
		{[]string{`"a"b"`}, "", false},
		{[]string{`"a\b"`}, "", false},
		{[]string{`"a\`}, "", false},
		{[]string{"schlüssel"}, "", false},
		{[]string{"a\tb"}, "", false},
		{[]string{"a", "b"}, "", false},
	} {
		if got, ok := parseKey(c.in); ok != c.ok || (ok && got != c.want) {
			t.Errorf("Idempotency-Key %q: %q, %v, want %q, %v", c.in, got, ok, c.want, c.ok)
		}
	}
}

func TestParseExpected(t *testing.T) {
	version := func(v uint64) *uint64 { return &v }
	for _, c := range []struct {
		match, none []string
		want        *uint64
		ok          bool
	}{
		{nil, nil, nil, true},
		{[]string{`"5"`}, nil, version(5), true},
		{[]string{` "0" `}, nil, version(0), true},
		{nil, []string{"*"}, version(0), true},
		{[]string{`W/"5"`}, nil, nil, false},
		{[]string{`5`}, nil, nil, false},
		{[]string{`"05"`}, nil, nil, false},
		{[]string{`"-5"`}, nil, nil, false},
		{[]string{`"+5"`}, nil, nil, false},
		{[]string{`"5", "6"`}, nil, nil, false},
		{[]string{`"5"`, `"6"`}, nil, nil, false},
		{[]string{`*`}, nil, nil, false},
		{[]string{`"18446744073709551616"`}, nil, nil, false},
		{nil, []string{`"5"`}, nil, false},
		{[]string{`"5"`}, []string{"*"}, nil, false},
	} {
		got, p := parseExpected(c.match, c.none)
		if (p == nil) != c.ok || !cmp.Equal(got, c.want) {
			t.Errorf("If-Match %q, If-None-Match %q: %v, %v", c.match, c.none, got, p)
		}
	}
}

func TestMatchesTag(t *testing.T) {
	for _, c := range []struct {
		in   string
		want bool
	}{
		{`"5"`, true}, {`W/"5"`, true}, {`"4", "5"`, true}, {`*`, true}, {`"4"`, false}, {`5`, false}, {``, false}, {`"4,5"`, false},
	} {
		if got := matchesTag([]string{c.in}, 5); got != c.want {
			t.Errorf("If-None-Match %q: %v, want %v", c.in, got, c.want)
		}
	}
}

func TestTraceID(t *testing.T) {
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	for in, want := range map[string]string{
		"00-" + id + "-00f067aa0ba902b7-01":      id,
		"01-" + id + "-00f067aa0ba902b7-01-more": id,
		"":                                       "",
		"ff-" + id + "-00f067aa0ba902b7-01":      "",
		"00-" + strings.Repeat("0", 32) + "-00f067aa0ba902b7-01":           "",
		"00-" + strings.ToUpper(id) + "-00f067aa0ba902b7-01":               "",
		"00-" + id[:31] + "-00f067aa0ba902b7-01":                           "",
		"00-" + strings.Repeat("<", 32) + "-00f067aa0ba902b7-01 and so on": "",
	} {
		if got := traceID(in); got != want {
			t.Errorf("traceparent %q: %q, want %q", in, got, want)
		}
	}
}

func TestMediaType(t *testing.T) {
	for in, want := range map[string]string{
		"application/json":                     "application/json",
		"application/json; charset=utf-8":      "application/json",
		`application/json;charset="UTF-8"`:     "application/json",
		"application/json; charset=iso-8859-1": "",
		"text/plain":                           "text/plain",
	} {
		if got, _ := mediaType(in); got != want {
			t.Errorf("Content-Type %q: %q, want %q", in, got, want)
		}
	}
}

func FuzzPrefer(f *testing.F) {
	for _, s := range []string{"wait=5", "respond-async, wait=10; x=1", `wait="5", return=minimal`, `a="\"`, ",,;;=="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p := parsePrefer([]string{s})
		if p.wait < 0 || p.wait > MaxWait || (p.minimal && p.full) || (p.wait > 0 && !p.waitSet) {
			t.Fatalf("%+v", p)
		}
		// What is said to be applied is itself a preference, with the same meaning.
		if again := parsePrefer([]string{p.applied()}); again != p {
			t.Fatalf("applied %q is %+v, not %+v", p.applied(), again, p)
		}
	})
}

func FuzzIdempotencyKey(f *testing.F) {
	for _, s := range []string{"abc", `"abc"`, `"a\"b\\"`, `"`, `"a\`, "é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		key, ok := parseKey([]string{s})
		if !ok {
			return
		}
		if millrace.ValidateID("key", key, millrace.MaxCommandID) != nil {
			t.Fatalf("%q is no command id", key)
		}
		quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key) + `"`
		if again, ok := parseKey([]string{quoted}); !ok || again != key {
			t.Fatalf("%s is %q, not %q", quoted, again, key)
		}
	})
}

func FuzzIfMatch(f *testing.F) {
	for _, s := range []string{`"5"`, `W/"5"`, "*", `"`, `"18446744073709551615"`, `"007"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, p := parseExpected([]string{s}, nil)
		if (v == nil) == (p == nil) {
			t.Fatalf("version %v and problem %v", v, p)
		}
		if v != nil && strings.Trim(s, " \t") != tag(*v) {
			t.Fatalf("%q was read as %s: a version has one spelling", s, tag(*v))
		}
		_ = matchesTag([]string{s}, 5)
	})
}

func FuzzTraceAndRequestID(f *testing.F) {
	f.Add("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	f.Fuzz(func(t *testing.T, s string) {
		if id := traceID(s); id != "" && len(id) != 32 {
			t.Fatal(id)
		}
		if validRequestID(s) {
			h := http.Header{}
			h.Set("X-Request-Id", s)
			if strings.ContainsAny(s, "\r\n\"<> ") || !utf8.ValidString(s) {
				t.Fatalf("%q would be taken over", s)
			}
		}
		_, _ = mediaType(s)
	})
}
