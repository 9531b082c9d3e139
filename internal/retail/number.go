package retail

import (
	"strconv"
	"strings"
	"time"
)

const (
	// maxNumber bounds a number's text, and maxExponent the zeros that an exponent may add: a price of 60 digits is no
	// price, and "1e999999999" must not take a gigabyte.
	maxNumber   = 64
	maxExponent = 30
	// maxWhole is the digits of a quantity: all of them are exact in every JSON reader.
	maxWhole = 15
)

// decimal is an exact decimal number: digits, of which the last scale stand behind the point. Its form is the shortest:
// no zeros in front, none at the end behind the point; zero is not negative.
type decimal struct {
	negative bool
	digits   string // "" for zero
	scale    int
}

// parseDecimal reads a number as a spreadsheet may write it: sign, digits with or without a point, exponent. There are no
// separators between thousands, because in half of the world they are decimal points.
func parseDecimal(s string) (decimal, bool) {
	s = strings.TrimSpace(s)
	if len(s) > maxNumber {
		return decimal{}, false
	}
	var d decimal
	switch {
	case strings.HasPrefix(s, "-"):
		d.negative, s = true, s[1:]
	case strings.HasPrefix(s, "+"):
		s = s[1:]
	}
	exponent := 0
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		text := strings.TrimPrefix(s[i+1:], "+")
		e, err := strconv.Atoi(text)
		if err != nil || strings.HasPrefix(text, "+") || e > maxExponent || e < -maxExponent {
			return decimal{}, false
		}
		s, exponent = s[:i], e
	}
	whole, fraction, _ := strings.Cut(s, ".")
	d.digits = whole + fraction
	if d.digits == "" || strings.Trim(d.digits, "0123456789") != "" {
		return decimal{}, false
	}
	d.scale = len(fraction) - exponent
	if d.scale < 0 {
		d.digits, d.scale = d.digits+strings.Repeat("0", -d.scale), 0
	}
	for d.scale > 0 && strings.HasSuffix(d.digits, "0") {
		d.digits, d.scale = d.digits[:len(d.digits)-1], d.scale-1
	}
	if d.digits = strings.TrimLeft(d.digits, "0"); d.digits == "" {
		return decimal{}, true
	}
	return d, true
}

// String writes the number without an exponent.
func (d decimal) String() string {
	digits := d.digits
	if n := d.scale + 1 - len(digits); n > 0 {
		digits = strings.Repeat("0", n) + digits
	}
	point := len(digits) - d.scale
	out := digits[:point]
	if d.scale > 0 {
		out += "." + digits[point:]
	}
	if d.negative {
		out = "-" + out
	}
	return out
}

// whole gives the number where it is a whole one of at most maxWhole digits.
func (d decimal) whole() (int64, bool) {
	if d.scale > 0 || len(d.digits) > maxWhole {
		return 0, false
	}
	if d.digits == "" {
		return 0, true
	}
	n, err := strconv.ParseInt(d.digits, 10, 64)
	if d.negative {
		n = -n
	}
	return n, err == nil
}

// layouts are the forms of a date: as pandas exports it, and as the original spreadsheet shows it (month first).
var layouts = [...]string{
	"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02T15:04:05", "2006-01-02T15:04:05Z07:00",
	"1/2/2006 15:04", "1/2/2006 15:04:05",
}

// parseTime reads a date in a zone; years of other centuries come from damage, not from this shop.
func parseTime(s string, zone *time.Location) (time.Time, bool) {
	s = strings.TrimSpace(s)
	for _, layout := range layouts {
		if t, err := time.ParseInLocation(layout, s, zone); err == nil {
			return t.UTC(), t.Year() >= 1900 && t.Year() < 2200
		}
	}
	return time.Time{}, false
}

// customerID brings "17850.0", what a column with gaps becomes in pandas, back to "17850". Empty is "", and so are the
// words that exports write for it.
func customerID(s string) string {
	s = strings.TrimSpace(s)
	switch strings.ToLower(s) {
	case "", "nan", "null", "na", "n/a":
		return ""
	}
	if d, ok := parseDecimal(s); ok {
		if n, ok := d.whole(); ok && n >= 0 {
			return strconv.FormatInt(n, 10)
		}
	}
	return s
}

// invoiceNumber brings "536365.0" back to "536365". A number that cannot be a part of an id (empty, too long, anything
// but letters and digits) is "": its rows are kept under their line.
func invoiceNumber(s string) string {
	s = strings.TrimSpace(s)
	if head, tail, ok := strings.Cut(s, "."); ok && strings.Trim(tail, "0") == "" && tail != "" && strings.Trim(head, "0123456789") == "" {
		s = head
	}
	if len(s) > maxInvoiceNumber {
		return ""
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return ""
		}
	}
	return s
}
