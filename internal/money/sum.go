package money

import "math/bits"

// Sum is a total of many amounts of one currency, in 128 bits: no number of orders makes it overflow, so that a figure
// in a report cannot be what stops it. Its text is a decimal number as that of [Decimal]. The zero value is a sum
// of nothing, which takes its decimals from the first amount.
type Sum struct {
	hi     int64 // two's complement with lo
	lo     uint64
	places uint8
}

// Add adds a decimal. Both must be of one currency; the sum's decimals become the larger number of both.
func (s Sum) Add(d Decimal) Sum {
	return s.Plus(Sum{hi: d.Minor >> 63, lo: uint64(d.Minor), places: d.Places}) //nolint:gosec // sign extension
}

// Sub takes a decimal away.
func (s Sum) Sub(d Decimal) Sum {
	return s.Plus(Sum{hi: d.Minor >> 63, lo: uint64(d.Minor), places: d.Places}.negated()) //nolint:gosec // as above
}

// Plus adds another sum of the same currency.
func (s Sum) Plus(o Sum) Sum {
	for s.places < o.places {
		s = s.shifted()
	}
	for o.places < s.places {
		o = o.shifted()
	}
	lo, carry := bits.Add64(s.lo, o.lo, 0)
	hi, _ := bits.Add64(uint64(s.hi), uint64(o.hi), carry) //nolint:gosec // two's complement
	return Sum{int64(hi), lo, s.places}                    //nolint:gosec // as above
}

// IsZero says whether the sum is of nothing or comes to nothing.
func (s Sum) IsZero() bool { return s.hi == 0 && s.lo == 0 }

func (s Sum) negated() Sum {
	lo, borrow := bits.Sub64(0, s.lo, 0)
	hi, _ := bits.Sub64(0, uint64(s.hi), borrow) //nolint:gosec // two's complement
	return Sum{int64(hi), lo, s.places}          //nolint:gosec // as above
}

// shifted writes the same value with one more decimal.
func (s Sum) shifted() Sum {
	s = s.withDigit('0')
	s.places++
	return s
}

// withDigit writes a digit behind the number, which must not be negative or the digit must be 0.
func (s Sum) withDigit(c byte) Sum {
	carry, lo := bits.Mul64(s.lo, 10)
	lo, more := bits.Add64(lo, uint64(c-'0'), 0)
	return Sum{s.hi*10 + int64(carry+more), lo, s.places} //nolint:gosec // at most 10
}

// AppendText appends the number.
func (s Sum) AppendText(dst []byte) ([]byte, error) {
	if s.hi < 0 {
		dst = append(dst, '-')
		s = s.negated()
	}
	if s.hi == 0 {
		return appendPlaces(dst, s.lo, int(s.places)), nil
	}
	// The last 18 digits apart from the rest: decimals are among the last 6.
	const chunk, digits = 1_000_000_000_000_000_000, 18
	top, rest := bits.Div64(0, uint64(s.hi), chunk) //nolint:gosec // positive here
	mid, low := bits.Div64(rest, s.lo, chunk)
	head := Sum{hi: int64(top), lo: mid} //nolint:gosec // a ninth at most
	dst, _ = head.AppendText(dst)
	var tail [digits]byte
	for i := digits - 1; i >= 0; i-- {
		tail[i] = byte('0' + low%10)
		low /= 10
	}
	dst = append(dst, tail[:digits-int(s.places)]...)
	if s.places > 0 {
		dst = append(append(dst, '.'), tail[digits-int(s.places):]...)
	}
	return dst, nil
}

// MarshalText gives the number.
func (s Sum) MarshalText() ([]byte, error) { return s.AppendText(nil) }

// String is the number as text.
func (s Sum) String() string {
	b, _ := s.AppendText(nil) // never fails
	return string(b)
}

// maxSumDigits keeps a number below 2^127.
const maxSumDigits = 38

// UnmarshalText reads a number. Errors: [*ParseError].
func (s *Sum) UnmarshalText(b []byte) error {
	if _, _, _, ok, _ := scan(b, maxDecimalPlaces); !ok || len(b) > maxSumDigits {
		return errDecimal
	}
	var v Sum
	point := false
	for _, c := range b {
		switch c {
		case '-':
		case '.':
			point = true
		default:
			v = v.withDigit(c)
			if point {
				v.places++
			}
		}
	}
	if v.places > maxDecimalPlaces {
		return errDecimal
	}
	if b[0] == '-' {
		v = v.negated()
	}
	*s = v
	return nil
}
