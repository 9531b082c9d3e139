package jsonx

import (
	"bytes"
	"strconv"
)

// inexact returns where the first number stands that RFC 8785 would write as another number, or -1. data is valid
// JSON.
func inexact(data []byte) int {
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case c == '"':
			i, _ = scanString(data, i+1)
		case c == '-' || isDigit(c):
			n := 1
			for i+n < len(data) && inNumber(data[i+n]) {
				n++
			}
			if !exact(data[i : i+n]) {
				return i
			}
			i += n - 1
		}
	}
	return -1
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func inNumber(c byte) bool {
	return isDigit(c) || c == '.' || c == 'e' || c == 'E' || c == '+' || c == '-'
}

// exact says whether the shortest decimal of the double that a number is read as is the number itself.
func exact(number []byte) bool {
	// A double holds any fifteen digits, so that without an exponent nothing can go wrong up to there.
	const surely = 15
	if len(number) <= surely && !bytes.ContainsAny(number, "eE") {
		return true
	}
	f, err := strconv.ParseFloat(string(number), 64)
	if err != nil { // beyond the greatest double
		return false
	}
	return decimalOf(number) == decimalOf(strconv.AppendFloat(nil, f, 'e', -1, 64))
}

// decimal is a number as 0.digits × 10^exponent, digits without zeros at either end; the zero decimal is zero. It can
// be compared.
type decimal struct {
	negative bool
	digits   string
	exponent int
}

// decimalOf reads a JSON number. Where an exponent does not fit an int, any other will do: the double is zero then, and
// the number either is not, whatever its exponent, or has no digits to go with one.
func decimalOf(number []byte) decimal {
	mantissa, power := number, 0
	if i := bytes.IndexAny(number, "eE"); i >= 0 {
		mantissa = number[:i]
		power, _ = strconv.Atoi(string(number[i+1:]))
	}
	mantissa, negative := bytes.CutPrefix(mantissa, []byte("-"))
	whole, fraction, _ := bytes.Cut(mantissa, []byte("."))
	digits := append(bytes.Clone(whole), fraction...)
	power += len(whole)

	significant := bytes.TrimLeft(digits, "0")
	power -= len(digits) - len(significant)
	significant = bytes.TrimRight(significant, "0")
	if len(significant) == 0 {
		return decimal{} // of either sign
	}
	return decimal{negative: negative, digits: string(significant), exponent: power}
}
