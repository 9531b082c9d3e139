package millrace_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/millrace-io/millrace"
)

func TestStreamNames(t *testing.T) {
	for _, tc := range []struct {
		stream       millrace.Stream
		category, id string
		ok           bool
	}{
		{"order-42", "order", "42", true},
		{"order-a-b", "order", "a-b", true},
		{"o2-x", "o2", "x", true},
		{"order-Größe 7", "order", "Größe 7", true},
		{"order--", "order", "-", true},
		{"", "", "", false},
		{"order", "", "", false},
		{"order-", "order", "", false},
		{"-42", "", "42", false},
		{"Order-42", "Order", "42", false},
		{"2o-42", "2o", "42", false},
		{"or_der-42", "or_der", "42", false},
		{"order-4\x002", "order", "4\x002", false},
		{"order-\n", "order", "\n", false},
		{"order-\u0085", "order", "\u0085", false},
		{"order-\xff", "order", "\xff", false},
		{millrace.Stream("order-" + strings.Repeat("x", millrace.MaxStreamName-6)), "order", strings.Repeat("x", millrace.MaxStreamName-6), true},
		{millrace.Stream("order-" + strings.Repeat("x", millrace.MaxStreamName-5)), "order", strings.Repeat("x", millrace.MaxStreamName-5), false},
	} {
		if tc.stream.Category() != tc.category || tc.stream.ID() != tc.id {
			t.Errorf("%q: category %q, id %q", tc.stream, tc.stream.Category(), tc.stream.ID())
		}
		if err := tc.stream.Validate(); (err == nil) != tc.ok || err != nil && !errors.Is(err, millrace.ErrInvalid) {
			t.Errorf("%q: %v", tc.stream, err)
		}
		if tc.ok && millrace.NewStream(tc.category, tc.id) != tc.stream {
			t.Errorf("%q is not what its parts make", tc.stream)
		}
	}
}

// A stream is found where it was once written: these values never change.
func TestPartitionsAreFixed(t *testing.T) {
	got := map[millrace.Stream]int{}
	for s := range goldenPartitions {
		got[s] = s.Partition(16)
	}
	if d := cmp.Diff(goldenPartitions, got); d != "" {
		t.Error(d)
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, millrace.MaxPartitions).Draw(t, "n")
		if p := millrace.Stream(rapid.String().Draw(t, "stream")).Partition(n); p < 0 || p >= n {
			t.Fatalf("partition %d of %d", p, n)
		}
	})
}

// An identifier's fault never repeats what was given.
func TestValidateIDRepeatsNothing(t *testing.T) {
	for _, id := range []string{"secret\n", "secret\xff", strings.Repeat("secret", 100)} {
		if err := millrace.ValidateID("thing", id, 100); err == nil || strings.Contains(err.Error(), "secret") {
			t.Error(err)
		}
	}
}

// Keys sort as their parts do, one after the other.
func TestKeysSortByParts(t *testing.T) {
	part := rapid.StringOf(rapid.RuneFrom([]rune{'\x00', '\x01', 'a', 'b', ' ', 'ä', 0x10FFFF}))
	clean := rapid.StringOf(rapid.RuneFrom([]rune{'\x01', 'a', 'b', ' ', 'ä'}))
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.SliceOfN(clean, 3, 3).Draw(t, "a"), rapid.SliceOfN(clean, 3, 3).Draw(t, "b")
		want := slices.Compare(a, b)
		if got := strings.Compare(millrace.Key(slices.Clone(a)...), millrace.Key(slices.Clone(b)...)); got != want {
			t.Fatalf("%q and %q compare as %d, their keys as %d", a, b, want, got)
		}
		if !strings.HasPrefix(millrace.Key(slices.Clone(a)...), millrace.KeyPrefix(a[0], a[1])) {
			t.Fatalf("%q does not begin with its first parts", a)
		}
		p := rapid.SliceOfN(part, 1, 4).Draw(t, "any")
		if n := strings.Count(millrace.Key(slices.Clone(p)...), "\x00"); n != len(p)-1 {
			t.Fatalf("%q has %d separators", p, n)
		}
	})
}

func TestKeyPrefixTakesWholeParts(t *testing.T) {
	if strings.HasPrefix(millrace.Key("ab", "c"), millrace.KeyPrefix("a")) {
		t.Error("a prefix takes half a part")
	}
	parts := []string{"a\x00b", "c"}
	_ = millrace.Key(parts...)
	if parts[0] != "a\x00b" {
		t.Error("Key changes what it was given")
	}
}

func TestCursorTokens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := millrace.Cursor{Epoch: rapid.Uint64().Draw(t, "epoch"), Positions: rapid.SliceOfN(rapid.OneOf(rapid.Just(uint64(0)), rapid.Uint64()), 0, 40).Draw(t, "positions")}
		got, err := millrace.ParseCursor(c.String())
		if err != nil || got.Epoch != c.Epoch || !got.Covers(c) || !c.Covers(got) || got.String() != c.String() {
			t.Fatalf("%+v comes back as %+v %v", c, got, err)
		}
	})
	full := millrace.Cursor{Epoch: ^uint64(0), Positions: make([]uint64, millrace.MaxPartitions)}
	for i := range full.Positions {
		full.Positions[i] = ^uint64(0)
	}
	if got, err := millrace.ParseCursor(full.String()); err != nil || !cmp.Equal(full, got) {
		t.Errorf("the largest cursor: %v", err)
	}
	token := millrace.Cursor{Epoch: 3, Positions: []uint64{0, 5, 0, 300}}.String()
	if token != goldenCursor {
		t.Errorf("the token is %q, must be %q", token, goldenCursor)
	}
	// One mistyped letter is noticed, whichever.
	for i := range token {
		for _, r := range "Aa0-_ =" {
			bad := token[:i] + string(r) + token[i+1:]
			if _, err := millrace.ParseCursor(bad); bad != token && !errors.Is(err, millrace.ErrInvalid) {
				t.Errorf("%q passes for a cursor: %v", bad, err)
			}
		}
	}
	for _, bad := range []string{"", "!", "AQ", token[:len(token)-1], token + "A", strings.Repeat("A", 1<<20)} {
		if _, err := millrace.ParseCursor(bad); !errors.Is(err, millrace.ErrInvalid) {
			t.Errorf("%.20q passes for a cursor: %v", bad, err)
		}
	}
}

func TestCursorCovers(t *testing.T) {
	at := func(p ...uint64) millrace.Cursor { return millrace.Cursor{Positions: p} }
	for _, tc := range []struct {
		a, b millrace.Cursor
		want bool
	}{
		{at(), at(), true}, {at(1), at(), true}, {at(), at(0, 0), true}, {at(), at(0, 1), false},
		{at(3, 4), at(3, 4), true}, {at(3, 4), at(4, 3), false}, {at(3, 4), at(3), true}, {at(3), at(3, 1), false},
		{millrace.At(1, 2, 7), at(0, 0, 7), true}, {millrace.At(1, 2, 7), at(1), false},
	} {
		if tc.a.Covers(tc.b) != tc.want {
			t.Errorf("%v covers %v: %v", tc.a.Positions, tc.b.Positions, !tc.want)
		}
	}
	c := at(1, 2)
	d := c.Clone()
	d.Positions[0] = 9
	if c.Positions[0] != 1 {
		t.Error("a clone shares its positions")
	}
}

func FuzzParseCursor(f *testing.F) {
	f.Add(millrace.At(1, 3, 99).String())
	f.Add(goldenCursor)
	f.Add("AQE")
	f.Fuzz(func(t *testing.T, token string) {
		c, err := millrace.ParseCursor(token)
		if err != nil {
			if !errors.Is(err, millrace.ErrInvalid) {
				t.Errorf("%v is no ErrInvalid", err)
			}
			return
		}
		if len(c.Positions) > millrace.MaxPartitions {
			t.Errorf("%d positions", len(c.Positions))
		}
		again, err := millrace.ParseCursor(c.String())
		if err != nil || !cmp.Equal(c, again) {
			t.Errorf("%+v comes back as %+v %v", c, again, err)
		}
	})
}
