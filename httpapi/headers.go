package httpapi

import (
	"strconv"
	"strings"
	"time"

	"github.com/millrace-io/millrace"
)

// preferences are what RFC 7240 lets a client wish for, as far as we grant it.
type preferences struct {
	wait    time.Duration // 0: do not wait
	waitSet bool
	// minimal: no representation. full: one was asked for by name.
	minimal, full bool
}

// parsePrefer reads the Prefer headers. RFC 7240 has a server ignore what it does not understand, and take the first
// of what is said twice. A wait beyond MaxWait is cut to it.
func parsePrefer(values []string) preferences {
	var p preferences
	for _, v := range values {
		for v != "" {
			var one string
			one, v = cutOutsideQuotes(v, ',')
			one, _ = cutOutsideQuotes(one, ';') // parameters of a preference: none are known
			name, value, _ := strings.Cut(one, "=")
			name, value = trimSpace(name), unquote(trimSpace(value))
			switch {
			case !p.waitSet && strings.EqualFold(name, "wait"):
				if n, ok := parseSeconds(value); ok {
					p.wait, p.waitSet = n, true
				}
			case !p.minimal && !p.full && strings.EqualFold(name, "return"):
				p.minimal, p.full = value == "minimal", value == "representation"
			}
		}
	}
	return p
}

// applied is the value of Preference-Applied, or "".
func (p *preferences) applied() string {
	var parts [2]string
	n := 0
	if p.waitSet {
		parts[n] = "wait=" + strconv.Itoa(int(p.wait/time.Second))
		n++
	}
	switch {
	case p.minimal:
		parts[n] = "return=minimal"
		n++
	case p.full:
		parts[n] = "return=representation"
		n++
	}
	return strings.Join(parts[:n], ", ")
}

// parseSeconds reads whole seconds, cut to MaxWait.
func parseSeconds(s string) (time.Duration, bool) {
	if s == "" || len(s) > 10 {
		return 0, false
	}
	n := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		if n = n*10 + int(s[i]-'0'); n > int(MaxWait/time.Second) {
			n = int(MaxWait / time.Second)
		}
	}
	return time.Duration(n) * time.Second, true
}

// cutOutsideQuotes cuts s around the first separator that is not within a quoted string.
func cutOutsideQuotes(s string, sep byte) (before, after string) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			quoted = !quoted
		case quoted && s[i] == '\\':
			i++
		case !quoted && s[i] == sep:
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}

func trimSpace(s string) string { return strings.Trim(s, " \t") }

// unquote takes the quotes off; the values that we know need no escapes.
func unquote(s string) string {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}

// parseKey reads an Idempotency-Key: a string of RFC 8941 in quotes, as the draft has it, or the bare text that most
// clients send. Both forms of one text are one key.
func parseKey(values []string) (string, bool) {
	if len(values) != 1 {
		return "", false
	}
	v := values[0]
	if strings.HasPrefix(v, `"`) {
		var ok bool
		if v, ok = parseQuoted(v); !ok {
			return "", false
		}
	}
	if v == "" || len(v) > millrace.MaxCommandID {
		return "", false
	}
	for i := range len(v) {
		if v[i] < 0x20 || v[i] > 0x7e {
			return "", false
		}
	}
	return v, true
}

// parseQuoted reads an sf-string: only the quote and the backslash can be escaped, and nothing follows.
func parseQuoted(v string) (string, bool) {
	body := v[1:]
	if i := strings.IndexAny(body, `"\`); i == len(body)-1 && i >= 0 && body[i] == '"' {
		return body[:i], true
	}
	out := make([]byte, 0, len(body))
	for i := 0; i < len(body); i++ {
		switch c := body[i]; c {
		case '"':
			return string(out), i == len(body)-1
		case '\\':
			if i++; i == len(body) || (body[i] != '"' && body[i] != '\\') {
				return "", false
			}
			out = append(out, body[i])
		default:
			out = append(out, c)
		}
	}
	return "", false
}

// parseVersion reads a version: an entity tag without its quotes, or the parameter version.
func parseVersion(s string) (uint64, bool) {
	if s == "" || (len(s) > 1 && s[0] == '0') || s[0] < '0' || s[0] > '9' { // one spelling for each version
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil
}

// parseTag reads one strong entity tag of ours: a version in quotes.
func parseTag(s string) (uint64, bool) {
	s = trimSpace(s)
	if len(s) < 3 || s[0] != '"' || s[len(s)-1] != '"' {
		return 0, false
	}
	return parseVersion(s[1 : len(s)-1])
}

// parseExpected reads If-Match and If-None-Match of a command: the version that it expects, or nil for any.
func parseExpected(match, noneMatch []string) (*uint64, *problem) {
	switch {
	case len(match)+len(noneMatch) == 0:
		return nil, nil
	case len(match) > 0 && len(noneMatch) > 0:
		return nil, kindInvalidHeader.with("If-Match and If-None-Match exclude each other")
	case len(noneMatch) > 0:
		if len(noneMatch) != 1 || trimSpace(noneMatch[0]) != "*" {
			return nil, kindInvalidHeader.with("If-None-Match of a command must be *")
		}
		return new(uint64), nil
	}
	if len(match) == 1 {
		if v, ok := parseTag(match[0]); ok {
			return &v, nil
		}
	}
	return nil, kindInvalidHeader.with(`If-Match must be one strong entity tag that holds a version, such as "5"`)
}

// matchesTag says whether If-None-Match of a read names the version, by the weak comparison that RFC 9110 wants.
func matchesTag(values []string, version uint64) bool {
	for _, v := range values {
		for v != "" {
			var one string
			one, v = cutOutsideQuotes(v, ',')
			one = trimSpace(one)
			if one == "*" {
				return true
			}
			if got, ok := parseTag(strings.TrimPrefix(one, "W/")); ok && got == version {
				return true
			}
		}
	}
	return false
}

// traceID is the trace id of a traceparent header, or "".
func traceID(v string) string {
	// version "-" trace id "-" parent id "-" flags, all lower-case hexadecimal: W3C Trace Context.
	if len(v) < 55 || v[2] != '-' || v[35] != '-' || v[:2] == "ff" {
		return ""
	}
	id := v[3:35]
	zero := true
	for i := range len(id) {
		c := id[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return ""
		}
		zero = zero && c == '0'
	}
	if zero {
		return ""
	}
	return id
}

// validRequestID says whether an X-Request-Id of a client may be taken over into headers and logs.
func validRequestID(s string) bool {
	if s == "" || len(s) > MaxRequestID {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' && c != '.' && c != ':' {
			return false
		}
	}
	return true
}

// mediaType is the media type of a Content-Type, its parameters left out. The charset, if there is one, must be UTF-8:
// JSON knows no other.
func mediaType(v string) (string, bool) {
	t, params, more := strings.Cut(v, ";")
	if more {
		for params != "" {
			var one string
			one, params = cutOutsideQuotes(params, ';')
			name, value, _ := strings.Cut(trimSpace(one), "=")
			if strings.EqualFold(name, "charset") && !strings.EqualFold(unquote(value), "utf-8") {
				return "", false
			}
		}
	}
	return trimSpace(t), true
}
