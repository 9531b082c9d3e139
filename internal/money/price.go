package money

import (
	"math"
	"math/bits"
)

const (
	// PricePlaces is how many decimals a price may have: enough for a unit price below a cent, as of screws or kilobytes.
	PricePlaces = 6
	// MaxPrice bounds a price, in millionths, in both directions: just below 10^12 of the currency, which any real price
	// in any currency keeps to, and which leaves room in 64 bits.
	MaxPrice Price = 1_000_000_000_000_000_000 - 1

	micros = 1_000_000
)

// Price is the price of one piece, in millionths of the currency. Its currency is known from where it stands.
type Price int64

// ParsePrice reads a plain decimal number: an optional minus, no plus, no exponent, no needless zeros in front, at most
// [PricePlaces] decimals. Errors: [*ParseError].
func ParsePrice(s string) (Price, error) { return parsePrice(s) }

func parsePrice[T text](s T) (Price, error) {
	negative, m, places, ok, fits := scan(s, PricePlaces)
	switch {
	case !ok || places > PricePlaces:
		return 0, errPrice
	case !fits || m > uint64(MaxPrice)/powersOfTen[PricePlaces-places]:
		return 0, errPriceSize
	}
	return Price(signed(negative, m*powersOfTen[PricePlaces-places])), nil
}

// Times is the amount for a quantity: the exact product, rounded half to even to the minor unit of the currency.
// Errors: [ErrOverflow].
func (p Price) Times(quantity int64, c Currency) (Amount, error) {
	minor, err := mulDiv(int64(p), quantity, micros/powersOfTen[c.Exponent()])
	return Amount{minor, c}, err
}

// mulDiv is a × b ÷ d in 128 bits, rounded half to even. d must not be 0.
func mulDiv(a, b int64, d uint64) (int64, error) {
	hi, lo := bits.Mul64(magnitude(a), magnitude(b))
	if hi >= d {
		return 0, ErrOverflow
	}
	q, r := bits.Div64(hi, lo, d)
	if up := d - r; r > up || (r == up && q&1 == 1) { // r > d/2 without losing a bit
		if q++; q == 0 {
			return 0, ErrOverflow
		}
	}
	if q > math.MaxInt64 {
		return 0, ErrOverflow
	}
	return signed((a < 0) != (b < 0), q), nil
}

func appendPrice(dst []byte, p Price) []byte {
	if p < 0 {
		dst = append(dst, '-')
	}
	m, places := magnitude(int64(p)), PricePlaces
	for places > 0 && m%10 == 0 {
		m /= 10
		places--
	}
	return appendPlaces(dst, m, places)
}

// AppendText appends the price in its one canonical form: without zeros at the end, "2.55", "2", "-0.5".
func (p Price) AppendText(dst []byte) ([]byte, error) { return appendPrice(dst, p), nil }

// MarshalText gives the price in its canonical form.
func (p Price) MarshalText() ([]byte, error) { return appendPrice(nil, p), nil }

// UnmarshalText reads a price as [ParsePrice] does. Errors: [*ParseError].
func (p *Price) UnmarshalText(s []byte) error {
	v, err := parsePrice(s)
	if err == nil {
		*p = v
	}
	return err
}

// String is the price as text.
func (p Price) String() string { return string(appendPrice(nil, p)) }

// AppendJSON appends the price as a JSON string.
func (p Price) AppendJSON(dst []byte) []byte {
	dst = append(dst, '"')
	dst = appendPrice(dst, p)
	return append(dst, '"')
}
