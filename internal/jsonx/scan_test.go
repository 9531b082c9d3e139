package jsonx

import (
	"bytes"
	"strings"
	"testing"
)

func TestScan(t *testing.T) {
	many := func(n int, s string) string { return "[" + strings.Repeat(s+",", n-1) + s + "]" }
	tests := []struct {
		name string
		data string
		kind Kind
		at   int
	}{
		{"empty", ``, 0, 0},
		{"scalar", `1`, 0, 0},
		{"deepest", strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth), 0, 0},
		{"too deep", strings.Repeat("[", MaxDepth+1), Depth, MaxDepth},
		{"too deep, objects", strings.Repeat(`{"a":`, MaxDepth+1), Depth, 5 * MaxDepth},
		{"wide, not deep", many(MaxDepth*2, "[]"), 0, 0},
		{"brackets in a string", `"` + strings.Repeat("[", 1000) + `"`, 0, 0},
		{"brackets after an escaped quote", `"\"` + strings.Repeat("[", 1000) + `"`, 0, 0},
		{"brackets after a string that ends in a backslash", `["\\",` + strings.Repeat("[", MaxDepth), Depth, 6 + MaxDepth - 1},
		{"unclosed string", `["` + strings.Repeat("[", 1000), 0, 0},
		{"string that ends in a backslash", `["\`, 0, 0},

		// The array itself is a value too.
		{"most values", many(MaxValues-1, "1"), 0, 0},
		{"one value more", many(MaxValues, "1"), Size, 2 * (MaxValues - 1)},
		{"most empty objects", many(MaxValues-1, "{}"), 0, 0},
		{"one empty object more", many(MaxValues, "{}"), Size, 3 * (MaxValues - 1)},
		{"empty arrays hold nothing but white space", many(MaxValues-1, "[ \t\r\n]"), 0, 0},
		{"names are no values", many((MaxValues-1)/2, `{"a":1}`), 0, 0},
		{"members are", many((MaxValues-1)/2+1, `{"a":1}`), Size, 8*((MaxValues-1)/2) + 1},
		{"commas in a string", `"` + strings.Repeat(",", 2*MaxValues) + `"`, 0, 0},

		{"NUL", "\x00", NUL, 0},
		{"NUL between", "[1,\x00]", NUL, 3},
		{"NUL in a string", "[\"a\x00\"]", NUL, 3},
		{"NUL in a long string", "\"aaaaaaaaaaaaa\x00\"", NUL, 14},
		{"NUL after an escaped backslash", "\"\\\\\x00\"", NUL, 3},
		{"escaped NUL", `["\u0000"]`, NUL, 2},
		{"escaped NUL far into a string", `["aaaaaaaaaaaaaaaaa\u0000"]`, NUL, 19},
		{"escaped NUL in a name", `{"a\u0000":1}`, NUL, 3},
		{"escaped NUL after an escaped backslash", `"\\\u0000"`, NUL, 3},
		{"escaped backslash before u0000", `"\\u0000"`, 0, 0},
		{"escaped U+0001", `"\u0001"`, 0, 0},
		{"escape cut off", `"\u000`, 0, 0},

		// From here on the document has a syntax error, and everything behind it is the decoder's.
		{"closed too often", "]\x00", 0, 0},
	}
	for _, test := range tests {
		kind, at := scan([]byte(test.data))
		if kind != test.kind || at != test.at {
			t.Errorf("%s: %v at %d, want %v at %d", test.name, kind, at, test.kind, test.at)
		}
	}
}

// TestScanString holds the reading of eight bytes at a time to a byte-wise reading, over every alignment.
func TestScanString(t *testing.T) {
	plainly := func(data []byte, i int) (int, Kind) {
		for ; i < len(data); i++ {
			switch {
			case data[i] == '"':
				return i, 0
			case data[i] == 0, bytes.HasPrefix(data[i:], []byte(`\u0000`)):
				return i, NUL
			case data[i] == '\\':
				i++
			}
		}
		return i, 0
	}
	// Neighbours of the bytes that are looked for, in value and with the high bit set, are where a trick with borrows
	// would go wrong.
	for _, special := range []string{"\"", "\x00", "\\\"", `\u0000`, "\x01\"", "\x01\x00", "!\"", "#\"", "]\\\"", "[\\\"", "\xa2\"", "\xdc\\\"", "\x80\x00", "\xff\""} {
		for before := range 20 {
			for after := range 10 {
				for _, filler := range []string{"a", "\x01", "!", "]", "\xa2", "\x80"} {
					data := []byte(strings.Repeat(filler, before) + special + strings.Repeat(filler, after) + `"`)
					at, kind := scanString(data, 0)
					if wantAt, wantKind := plainly(data, 0); at != wantAt || kind != wantKind {
						t.Fatalf("%q: %v at %d, want %v at %d", data, kind, at, wantKind, wantAt)
					}
				}
			}
		}
	}
}

func TestScanAllocatesNothing(t *testing.T) {
	data := []byte(`{"a":[1,2,{"b":"c\n"}],"d":null}`)
	if n := testing.AllocsPerRun(100, func() { scan(data) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkScan(b *testing.B) {
	line := `{"sku": "article-00042-blue", "quantity": 3, "price": "13.99"}, `
	data := []byte(`{"orderId": "order-018f6d2e-7c1a-7b3e-9d55-3f2a8c4b6e01", "customer": "customer-77120", "currency": "EUR", ` +
		`"note": "Leave at the side door, ring twice", "lines": [` + strings.Repeat(line, 5) + `{}]}`)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if kind, _ := scan(data); kind != 0 {
			b.Fatal(kind)
		}
	}
}
