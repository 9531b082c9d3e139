package jsonfast

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/millrace-io/millrace/internal/jsonx"
)

// Scanner is a cursor over one document. Once it has given up, everything that is read is zero, every loop over members
// and elements ends, and Done says false; nobody needs to look earlier.
//
// No string that it returns points into the document, which may be a request's buffer. They share memory of their own,
// so that a body with many strings has one allocation for them.
type Scanner struct {
	data   []byte
	at     int
	gaveUp bool
	values int
	text   strings.Builder
}

// New begins a document.
func New(data []byte) Scanner {
	// What stands behind the document in its array may be somebody else's, who is writing it: hash stays out of it.
	return Scanner{data: data[:len(data):len(data)], values: 1}
}

// Reserve makes room for the bytes of all strings together. Without it each string makes its own, which is what a body
// with one string wants.
func (s *Scanner) Reserve(n int) { s.text.Grow(n) }

// Done says whether the document was read to its end, and nothing stands behind it.
func (s *Scanner) Done() bool {
	s.peek()
	return !s.gaveUp && s.at == len(s.data) && s.values <= jsonx.MaxValues
}

// GiveUp leaves the document to somebody who knows more forms.
func (s *Scanner) GiveUp() {
	s.gaveUp = true
	s.at = len(s.data)
}

// peek passes over white space and returns the next byte. At the end it is NUL, which begins nothing.
func (s *Scanner) peek() byte {
	for s.at < len(s.data) {
		switch c := s.data[s.at]; c {
		case ' ', '\t', '\n', '\r':
			s.at++
		default:
			return c
		}
	}
	return 0
}

// skip passes over the next byte that is not white space, if it is c.
func (s *Scanner) skip(c byte) bool {
	if s.at < len(s.data) && s.data[s.at] == c || s.peek() == c {
		s.at++
		return true
	}
	return false
}

// more begins the next part of an object or array, or ends it. opened is whose state it is.
func (s *Scanner) more(opened *bool, open, end byte) bool {
	switch {
	case *opened && s.skip(','):
	case *opened && s.skip(end):
		return false
	case !*opened && s.skip(open):
		*opened = true
		if s.skip(end) {
			return false
		}
	default:
		s.GiveUp()
		return false
	}
	s.values++
	return true
}

// Object is the state of reading an object. The zero Object is one that is still to be opened.
type Object struct {
	// Name is the name of the member at hand, valid until the next.
	Name   []byte
	opened bool
	seen   uint64
}

// Next goes to the next member, whose value must be read then, and is false behind the last.
//
// Names that were there are remembered as one bit each, by their hash. That a name comes twice is therefore always
// noticed; two names that share a bit would only cost the speed, and a test of each type sees that none do.
func (s *Scanner) Next(o *Object) bool {
	if s.gaveUp || !s.more(&o.opened, '{', '}') {
		return false
	}
	name, escaped := s.span()
	bit := uint64(1) << hash(name)
	if escaped || o.seen&bit != 0 || !s.skip(':') {
		s.GiveUp()
		return false
	}
	o.Name = name
	o.seen |= bit
	return true
}

// hash is a number below 64, from the length of a name and its first eight bytes.
func hash(name []byte) uint64 {
	// The multiplier was searched for: with it, no two names of one of our types meet, nor of that of the tests.
	const multiplier, word = 0x0a0aeffca29b929b, 8
	var w uint64
	if n := len(name); n >= word {
		w = binary.LittleEndian.Uint64(name)
	} else if cap(name) >= word { // what stands behind the name is cut off again
		w = binary.LittleEndian.Uint64(name[:word]) & (1<<(8*n) - 1)
	} else {
		for i, c := range name {
			w |= uint64(c) << (8 * i)
		}
	}
	return (w + uint64(len(name))) * multiplier >> 58
}

// Array is the state of reading an array. The zero Array is one that is still to be opened.
type Array struct{ opened bool }

// Element goes to the next element, which must be read then, and is false behind the last.
func (s *Scanner) Element(a *Array) bool { return !s.gaveUp && s.more(&a.opened, '[', ']') }

// maxGuess bounds what is allocated for elements that were not read yet: braces in a text cost one byte each.
const maxGuess = 64

// Guess is how many objects the array ahead probably has.
func (s *Scanner) Guess() int {
	ahead := s.data[s.at:]
	if end := bytes.IndexByte(ahead, ']'); end >= 0 {
		ahead = ahead[:end]
	}
	return min(bytes.Count(ahead, []byte{'{'}), maxGuess)
}

// span passes over a string and returns what stands between its quotes, as it stands there. What follows a backslash
// was not looked at.
func (s *Scanner) span() (raw []byte, escaped bool) {
	if !s.skip('"') {
		s.GiveUp()
		return nil, false
	}
	start, ascii := s.at, true
	for i := start; i < len(s.data); {
		// Eight bytes at a time: strings are most of most documents.
		if len(s.data)-i >= 8 {
			stop := stops(binary.LittleEndian.Uint64(s.data[i:]))
			if stop == 0 {
				i += 8
				continue
			}
			i += bits.TrailingZeros64(stop) / 8
		}
		switch c := s.data[i]; {
		case c == '"':
			raw = s.data[start:i]
			if !ascii && !utf8.Valid(raw) {
				s.GiveUp()
				return nil, false
			}
			s.at = i + 1
			return raw, escaped
		case c == '\\':
			escaped = true
			i += 2
		case c < ' ':
			s.GiveUp()
			return nil, false
		default:
			ascii = ascii && c < utf8.RuneSelf
			i++
		}
	}
	s.GiveUp()
	return nil, false
}

// stops marks the bytes of w that end a run of ordinary ASCII: a quote, a backslash, a control character or a byte from
// 0x80 up. The mark is the byte's high bit. Only the lowest mark is exact, a borrow may set false ones above it; the
// lowest is all that is used.
func stops(w uint64) uint64 {
	const (
		ones  = 0x0101010101010101
		highs = 0x8080808080808080
	)
	q, b := w^(ones*'"'), w^(ones*'\\')
	return ((q-ones)&^q | (b-ones)&^b | (w-ones*' ')&^w | w) & highs
}

// unescaped is what stands behind a backslash, by what it means. Zero is for what is no escape, and for \u0000.
var unescaped = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// keep makes a string of what span returned.
func (s *Scanner) keep(raw []byte, escaped bool) string {
	start := s.text.Len()
	for escaped { // Cut says whether there is one more
		var before []byte
		before, raw, escaped = bytes.Cut(raw, []byte{'\\'})
		s.text.Write(before)
		if !escaped {
			return s.text.String()[start:]
		}
		c := unescaped[raw[0]] // span passed over a byte behind each backslash
		if c == 0 {
			s.GiveUp()
			return ""
		}
		s.text.WriteByte(c)
		raw = raw[1:]
	}
	s.text.Write(raw)
	return s.text.String()[start:]
}

// Text reads a string.
func (s *Scanner) Text() string { return s.keep(s.span()) }

// Word reads a string that is probably one of a few. These take no memory.
func Word[T ~string](s *Scanner, known ...T) T {
	raw, escaped := s.span()
	if !escaped {
		for _, k := range known {
			if string(raw) == string(k) {
				return k
			}
		}
	}
	return T(s.keep(raw, escaped))
}

// Raw reads a string without escapes and returns it as a part of the document, to be parsed and not to be kept.
func (s *Scanner) Raw() []byte {
	raw, escaped := s.span()
	if escaped {
		s.GiveUp()
		return nil
	}
	return raw
}

// Time reads a time in UTC, written with a Z.
func (s *Scanner) Time() (t time.Time) {
	raw := s.Raw()
	// Package time is laxer than RFC 3339: it takes an hour of one digit and a comma before the fraction.
	const hourEnd, secondEnd = len("2006-01-02T15"), len("2006-01-02T15:04:05")
	if len(raw) <= secondEnd || raw[hourEnd] != ':' || raw[secondEnd] == ',' || raw[len(raw)-1] != 'Z' ||
		t.UnmarshalText(raw) != nil {
		s.GiveUp()
		return time.Time{}
	}
	return t
}

// Uint64 reads a whole number that is not negative.
func (s *Scanner) Uint64() uint64 {
	c := s.peek()
	if c < '0' || c > '9' {
		s.GiveUp()
		return 0
	}
	v := uint64(c - '0')
	for s.at++; s.at < len(s.data); s.at++ {
		d := uint64(s.data[s.at] - '0')
		if d > 9 {
			return v // a fraction or an exponent is nothing that can follow a value
		}
		next := v*10 + d
		if v == 0 || v > math.MaxUint64/10 || next < d { // a needless zero in front, or too large
			s.GiveUp()
			return 0
		}
		v = next
	}
	return v
}

// Int64 reads a whole number.
func (s *Scanner) Int64() int64 {
	negative := s.skip('-')
	if negative && (s.at >= len(s.data) || s.data[s.at] < '1') { // white space, or -0
		s.GiveUp()
		return 0
	}
	v := s.Uint64()
	switch {
	case negative && v <= 1<<63:
		return -int64(v) //nolint:gosec // the smallest is its own negation
	case !negative && v <= math.MaxInt64:
		return int64(v)
	}
	s.GiveUp()
	return 0
}

// Int reads a whole number that fits an int.
func (s *Scanner) Int() int {
	v := s.Int64()
	if int64(int(v)) != v {
		s.GiveUp()
	}
	return int(v)
}

// Bool reads true or false.
func (s *Scanner) Bool() bool {
	s.peek()
	rest := s.data[s.at:]
	switch {
	case bytes.HasPrefix(rest, []byte("true")):
		s.at += len("true")
		return true
	case bytes.HasPrefix(rest, []byte("false")):
		s.at += len("false")
		return false
	}
	s.GiveUp()
	return false
}
