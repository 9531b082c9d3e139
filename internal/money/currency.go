package money

// Currency is a currency of ISO 4217. The zero value is no currency. Currencies compare with ==; the number behind one
// is not stable between versions and never leaves the process.
type Currency uint8

// codeLength is the length of every code of ISO 4217.
const codeLength = 3

// ParseCurrency finds a currency by its code, in capitals.
func ParseCurrency(code string) (Currency, bool) { return parseCurrency(code) }

func parseCurrency[T text](code T) (Currency, bool) {
	if len(code) != codeLength {
		return 0, false
	}
	lo, hi := 0, len(table)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		entry := table[mid].code
		order := 0
		for i := range codeLength {
			if order = int(code[i]) - int(entry[i]); order != 0 {
				break
			}
		}
		switch {
		case order == 0:
			return Currency(mid + 1), true // the table is shorter than 255
		case order < 0:
			hi = mid
		default:
			lo = mid + 1
		}
	}
	return 0, false
}

// Currencies lists all currencies in the order of their codes.
func Currencies() []Currency {
	out := make([]Currency, len(table))
	for i := range out {
		out[i] = Currency(i + 1)
	}
	return out
}

// String is the code, or "" for no currency.
func (c Currency) String() string {
	if c == 0 {
		return ""
	}
	return table[c-1].code
}

// Exponent is the number of decimals of the minor unit: 2 for GBP, 0 for JPY, 3 for KWD.
func (c Currency) Exponent() int {
	if c == 0 {
		return 0
	}
	return int(table[c-1].exponent)
}

// AppendText appends the code.
func (c Currency) AppendText(dst []byte) ([]byte, error) { return append(dst, c.String()...), nil }

// MarshalText gives the code.
func (c Currency) MarshalText() ([]byte, error) { return c.AppendText(nil) }

// UnmarshalText reads a code. Errors: [*ParseError].
func (c *Currency) UnmarshalText(code []byte) error {
	v, ok := parseCurrency(code)
	if !ok {
		return errCurrency
	}
	*c = v
	return nil
}
