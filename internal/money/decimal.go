package money

import "math"

// text is what is parsed: a string that came in, or bytes still in their document.
type text interface{ ~string | ~[]byte }

var powersOfTen = [...]uint64{1, 10, 100, 1_000, 10_000, 100_000, 1_000_000}

// scan reads -?(0|[1-9][0-9]*)(\.[0-9]+)? and nothing else, as magnitude × 10^-places. ok is false for another form;
// fits is false for more decimals than maxPlaces or a magnitude over 2^63-1.
func scan[T text](s T, maxPlaces int) (negative bool, magnitude uint64, places int, ok, fits bool) {
	i := 0
	if len(s) > 0 && s[0] == '-' {
		negative, i = true, 1
	}
	first := i
	fits = true
	for ; i < len(s) && '0' <= s[i] && s[i] <= '9'; i++ {
		magnitude, fits = appendDigit(magnitude, s[i], fits)
	}
	if i == first || (s[first] == '0' && i > first+1) {
		return false, 0, 0, false, false
	}
	if i < len(s) {
		if s[i] != '.' || i+1 == len(s) {
			return false, 0, 0, false, false
		}
		for i++; i < len(s); i++ {
			if s[i] < '0' || s[i] > '9' {
				return false, 0, 0, false, false
			}
			if places++; places > maxPlaces {
				fits = false
				continue
			}
			magnitude, fits = appendDigit(magnitude, s[i], fits)
		}
	}
	return negative, magnitude, places, true, fits
}

func appendDigit(magnitude uint64, digit byte, fits bool) (uint64, bool) {
	const limit = math.MaxInt64
	d := uint64(digit - '0')
	if !fits || magnitude > (limit-d)/10 {
		return magnitude, false
	}
	return magnitude*10 + d, true
}

func signed(negative bool, magnitude uint64) int64 {
	if negative {
		return -int64(magnitude) //nolint:gosec // callers hold it to 2^63, whose negation is itself
	}
	return int64(magnitude) //nolint:gosec // as above
}

// magnitude is the absolute value, which for the smallest integer fits into a uint64 only.
func magnitude(v int64) uint64 {
	if v < 0 {
		return -uint64(v) //nolint:gosec // two's complement on purpose
	}
	return uint64(v)
}

// appendDecimal writes v × 10^-places with all of its places.
func appendDecimal(dst []byte, v int64, places int) []byte {
	if v < 0 {
		dst = append(dst, '-')
	}
	return appendPlaces(dst, magnitude(v), places)
}

func appendPlaces(dst []byte, m uint64, places int) []byte {
	var buf [24]byte // 20 digits, a point
	i := len(buf)
	for n := 0; m > 0 || n <= places; n++ {
		if n == places && n > 0 {
			i--
			buf[i] = '.'
		}
		i--
		buf[i] = byte('0' + m%10)
		m /= 10
	}
	return append(dst, buf[i:]...)
}

// maxDecimalPlaces bounds the decimals of an amount: no currency has more than 4.
const maxDecimalPlaces = 6

// Decimal is an amount whose currency is known from elsewhere: minor units, and how many decimals they are. Its text
// is "15.30" for {1530, 2}.
type Decimal struct {
	Minor  int64
	Places uint8
}

// ParseDecimal reads a decimal number; the places it is written with are its places. Errors: [*ParseError].
func ParseDecimal(s string) (Decimal, error) { return parseDecimal(s) }

func parseDecimal[T text](s T) (Decimal, error) {
	negative, m, places, ok, fits := scan(s, maxDecimalPlaces)
	if !ok || !fits {
		return Decimal{}, errDecimal
	}
	return Decimal{signed(negative, m), uint8(places)}, nil //nolint:gosec // at most 6
}

// AppendText appends the number.
func (d Decimal) AppendText(dst []byte) ([]byte, error) {
	return appendDecimal(dst, d.Minor, int(d.Places)), nil
}

// MarshalText gives the number.
func (d Decimal) MarshalText() ([]byte, error) { return d.AppendText(nil) }

// UnmarshalText reads a number. Errors: [*ParseError].
func (d *Decimal) UnmarshalText(s []byte) error {
	v, err := parseDecimal(s)
	if err == nil {
		*d = v
	}
	return err
}

// String is the number as text.
func (d Decimal) String() string { return string(appendDecimal(nil, d.Minor, int(d.Places))) }

// AppendJSON appends the number as a JSON string.
func (d Decimal) AppendJSON(dst []byte) []byte {
	dst = append(dst, '"')
	dst = appendDecimal(dst, d.Minor, int(d.Places))
	return append(dst, '"')
}
