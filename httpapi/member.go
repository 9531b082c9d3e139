package httpapi

import (
	"bytes"
	"strconv"

	"github.com/millrace-io/millrace/internal/jsonx"
)

// member finds a member at the top of a JSON object, without decoding the rest: the documents of a list are looked at
// by the thousand, and are sent as they stand. data is valid JSON, because the store keeps no other.
func member(data []byte, name string) (value []byte, ok bool) {
	i := skipSpace(data, 0)
	if i >= len(data) || data[i] != '{' {
		return nil, false
	}
	for i++; ; i++ {
		i = skipSpace(data, i)
		if i >= len(data) || data[i] != '"' {
			return nil, false
		}
		end := skipString(data, i)
		found := string(data[i+1:max(end-1, i+1)]) == name // our names need no escapes
		i = skipSpace(data, end)
		if i >= len(data) || data[i] != ':' {
			return nil, false
		}
		start := skipSpace(data, i+1)
		i = skipValue(data, start)
		if found {
			return bytes.TrimRight(data[start:i], " \t\r\n"), true
		}
		if i >= len(data) || data[i] != ',' {
			return nil, false
		}
	}
}

func skipSpace(data []byte, i int) int {
	for i < len(data) && (data[i] == ' ' || data[i] == '\t' || data[i] == '\n' || data[i] == '\r') {
		i++
	}
	return i
}

// skipString returns what is behind the string that starts at i.
func skipString(data []byte, i int) int {
	for i++; i < len(data); i++ {
		switch data[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(data)
}

// skipValue returns the comma or bracket behind the value that starts at i.
func skipValue(data []byte, i int) int {
	depth := 0
	for i < len(data) {
		switch data[i] {
		case '"':
			i = skipString(data, i)
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			depth--
		case ',':
			if depth == 0 {
				return i
			}
		}
		i++
	}
	return len(data)
}

// memberUint reads a member that is a whole number.
func memberUint(data []byte, name string) (uint64, bool) {
	v, ok := member(data, name)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(string(v), 10, 64)
	return n, err == nil
}

// memberIs says whether a member is a given string. quoted is that string as JSON, in its shortest spelling.
func memberIs(data []byte, name, want string, quoted []byte) bool {
	v, ok := member(data, name)
	if !ok {
		return false
	}
	if bytes.Equal(v, quoted) {
		return true
	}
	if bytes.IndexByte(v, '\\') < 0 {
		return false
	}
	var s string
	return jsonx.Unmarshal(v, &s) == nil && s == want
}
