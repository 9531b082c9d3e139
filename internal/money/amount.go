package money

import (
	"bytes"
	"math"
	"math/bits"
	"slices"

	"github.com/millrace-io/millrace/internal/jsonx"
)

// Amount is an amount of money: minor units of a currency, 1530 of GBP for £15.30.
type Amount struct {
	Minor    int64
	Currency Currency
}

// Add adds an amount of the same currency. Errors: [ErrOverflow], [ErrCurrency].
func (a Amount) Add(b Amount) (Amount, error) {
	if a.Currency != b.Currency {
		return Amount{}, ErrCurrency
	}
	sum := a.Minor + b.Minor
	if (sum < a.Minor) != (b.Minor < 0) {
		return Amount{}, ErrOverflow
	}
	return Amount{sum, a.Currency}, nil
}

// Sub takes an amount of the same currency away. Errors: [ErrOverflow], [ErrCurrency].
func (a Amount) Sub(b Amount) (Amount, error) {
	if a.Currency != b.Currency {
		return Amount{}, ErrCurrency
	}
	diff := a.Minor - b.Minor
	if (diff > a.Minor) != (b.Minor < 0) {
		return Amount{}, ErrOverflow
	}
	return Amount{diff, a.Currency}, nil
}

// Share is part/whole of the amount, rounded half to even: what k of n pieces cost that were sold for one sum.
// Shares of growing parts end at the whole amount, so that their differences add up to it. Errors: [ErrOverflow];
// [ErrWeights] for a whole that is not positive.
func (a Amount) Share(part, whole int64) (Amount, error) {
	if whole <= 0 {
		return Amount{}, ErrWeights
	}
	minor, err := mulDiv(a.Minor, part, uint64(whole))
	return Amount{minor, a.Currency}, err
}

// Allocate divides the amount by weights so that nothing is lost: each part is the exact share rounded towards zero,
// and the units that are left go to the largest remainders, the first of equals first. Errors: [ErrWeights];
// [ErrOverflow] where the weights have no sum.
func (a Amount) Allocate(weights []int64) ([]Amount, error) {
	var sum int64
	for _, w := range weights {
		switch {
		case w < 0:
			return nil, ErrWeights
		case w > math.MaxInt64-sum:
			return nil, ErrOverflow
		}
		sum += w
	}
	if sum == 0 {
		return nil, ErrWeights
	}
	out := make([]Amount, len(weights))
	remainders := make([]uint64, len(weights))
	whole := magnitude(a.Minor)
	left := whole
	for i, w := range weights {
		hi, lo := bits.Mul64(whole, uint64(w))  //nolint:gosec // not negative
		q, r := bits.Div64(hi, lo, uint64(sum)) // hi < sum, because w <= sum and whole < 2^64
		out[i] = Amount{signed(a.Minor < 0, q), a.Currency}
		remainders[i] = r
		left -= q
	}
	order := make([]int, len(weights))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		switch {
		case remainders[i] > remainders[j]:
			return -1
		case remainders[i] < remainders[j]:
			return 1
		}
		return 0
	})
	for _, i := range order[:left] { // fewer are left than there are remainders that are not 0
		out[i].Minor += signed(a.Minor < 0, 1)
	}
	return out, nil
}

// Decimal is the amount without its currency.
func (a Amount) Decimal() Decimal {
	return Decimal{a.Minor, uint8(a.Currency.Exponent())} //nolint:gosec // at most 4
}

// String is the amount for people: "15.30 GBP".
func (a Amount) String() string { return a.Decimal().String() + " " + a.Currency.String() }

const (
	amountOpen   = `{"amount":"`
	amountMiddle = `","currency":"`
	amountClose  = `"}`
)

// AppendJSON appends {"amount":"15.30","currency":"GBP"}.
func (a Amount) AppendJSON(dst []byte) []byte {
	dst = append(dst, amountOpen...)
	dst = appendDecimal(dst, a.Minor, a.Currency.Exponent())
	dst = append(dst, amountMiddle...)
	dst = append(dst, a.Currency.String()...)
	return append(dst, amountClose...)
}

// MarshalJSON gives {"amount":"15.30","currency":"GBP"}.
func (a Amount) MarshalJSON() ([]byte, error) { return a.AppendJSON(make([]byte, 0, 48)), nil }

// UnmarshalJSON reads what AppendJSON writes, in any order of the members. The number must have exactly the decimals
// of the currency. Errors: [*ParseError], [*jsonx.Error].
func (a *Amount) UnmarshalJSON(data []byte) error {
	// Nearly always it is our own writing, which needs no decoder.
	if rest, ok := bytes.CutPrefix(data, []byte(amountOpen)); ok {
		if rest, ok = bytes.CutSuffix(rest, []byte(amountClose)); ok {
			if number, code, ok := bytes.Cut(rest, []byte(amountMiddle)); ok {
				return a.set(parseDecimal(number))(parseCurrency(code))
			}
		}
	}
	var v struct {
		Amount   *Decimal  `json:"amount"`
		Currency *Currency `json:"currency"`
	}
	if err := jsonx.Unmarshal(data, &v); err != nil {
		return err
	}
	if v.Amount == nil || v.Currency == nil {
		return errAmount
	}
	return a.set(*v.Amount, nil)(*v.Currency, true)
}

func (a *Amount) set(d Decimal, err error) func(Currency, bool) error {
	return func(c Currency, ok bool) error {
		switch {
		case err != nil:
			return err
		case !ok:
			return errCurrency
		case int(d.Places) != c.Exponent():
			return errPlaces
		}
		*a = Amount{d.Minor, c}
		return nil
	}
}
