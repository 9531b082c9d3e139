package jsonx

import (
	"encoding/binary"
	"math/bits"
)

// MaxDepth is how deep arrays and objects may be nested. No message of ours comes near it; it bounds the stack of
// everything that walks a document recursively, ours or a client's.
const MaxDepth = 64

// MaxValues is how many values a document may hold: every array, object, string, number and literal counts, names of
// members do not. The size of the text alone does not bound memory, because a value can take forty times its text once
// it is decoded into an `any`: at this limit a list of `{"a":1}` has 800 kB as text and 35 MB in memory (measured with
// Go 1.26). It leaves room for a batch of thousands of lines.
const MaxValues = 200_000

// What scan does with a byte outside strings.
const (
	plain  = iota // white space, colons, and whatever literals and numbers are made of
	quote         // starts a string
	open          // starts an array or object
	closer        // ends one
	comma         // one more value follows
	nul           // has no place in a document at all
)

var outside = [256]uint8{
	'"': quote, '{': open, '[': open, '}': closer, ']': closer, ',': comma, 0: nul,
}

// scan holds a document to the limits that the decoder does not know: depth, number of values, no NUL. It returns the
// zero Kind, or what is wrong and where. It is one pass over the bytes, without memory of its own, before anything is
// decoded.
//
// It does not judge the syntax. Up to the first syntax error it reads a document as the decoder will, which is all
// that is needed: the decoder goes no further than that error. A document that ends early or closes what it never
// opened is therefore left to the decoder.
func scan(data []byte) (Kind, int) {
	// The root is a value, each comma announces one more, and so does a bracket that is not closed at once. Counting
	// these, and not the values themselves, needs no knowledge of where a number or a literal ends.
	depth, values := 0, 1
	for i := 0; i < len(data); i++ {
		switch outside[data[i]] {
		case plain:
		case quote:
			var kind Kind
			if i, kind = scanString(data, i+1); kind != 0 {
				return kind, i
			}
		case comma:
			if values++; values > MaxValues {
				return Size, i
			}
		case open:
			if depth++; depth > MaxDepth {
				return Depth, i
			}
			if !closes(data, i+1) {
				if values++; values > MaxValues {
					return Size, i
				}
			}
		case closer:
			if depth--; depth < 0 {
				return 0, 0
			}
		case nul:
			return NUL, i
		}
	}
	return 0, 0
}

// closes says whether the next byte that is not white space ends an array or object. White space is looked at twice
// because of it, and never more often: a bracket ends the look.
func closes(data []byte, i int) bool {
	for ; i < len(data); i++ {
		switch data[i] {
		case ' ', '\t', '\n', '\r':
		default:
			return outside[data[i]] == closer
		}
	}
	return false
}

// scanString returns the index of the quote that ends the string whose content starts at i, or the end of data; or
// NUL and where it is.
func scanString(data []byte, i int) (int, Kind) {
	for i < len(data) {
		// Eight bytes at a time: strings are most of most documents.
		if len(data)-i >= 8 {
			stop := stops(binary.LittleEndian.Uint64(data[i:]))
			if stop == 0 {
				i += 8
				continue
			}
			i += bits.TrailingZeros64(stop) / 8
		}
		switch data[i] {
		case '"':
			return i, 0
		case 0:
			return i, NUL
		case '\\':
			if len(data)-i >= 6 && string(data[i:i+6]) == `\u0000` {
				return i, NUL
			}
			i += 2
		default:
			i++
		}
	}
	return i, 0
}

// stops marks the bytes of w that end a run of ordinary string content: a quote, a backslash or a NUL. The mark is the
// byte's high bit. Only the lowest mark is exact, a borrow may set false ones above it; the lowest is all that is used.
func stops(w uint64) uint64 {
	const (
		ones  = 0x0101010101010101
		highs = 0x8080808080808080
	)
	q, b := w^(ones*'"'), w^(ones*'\\')
	return ((q-ones)&^q | (b-ones)&^b | (w-ones)&^w) & highs
}
