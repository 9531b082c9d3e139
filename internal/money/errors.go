package money

import "errors"

// ErrOverflow: the result does not fit.
var ErrOverflow = errors.New("amount does not fit")

// ErrCurrency: two amounts of different currencies.
var ErrCurrency = errors.New("amounts have different currencies")

// ErrWeights: an amount cannot be divided by these weights.
var ErrWeights = errors.New("weights must not be negative and must not all be zero")

// ParseError says why a text is no price, amount or currency. It never repeats the text.
type ParseError struct{ detail string }

func (e *ParseError) Error() string { return e.detail }

// Public is what may be told to whoever sent the text, to be read after the name of the value.
func (e *ParseError) Public() string { return e.detail }

var (
	errCurrency  = &ParseError{"must be a currency code of ISO 4217"}
	errPrice     = &ParseError{"must be a decimal number in a string, such as \"2.55\", with at most 6 decimals"}
	errPriceSize = &ParseError{"is too large a price"}
	errDecimal   = &ParseError{"must be a decimal number in a string, such as \"15.30\""}
	errPlaces    = &ParseError{"must have as many decimals as the currency"}
	errAmount    = &ParseError{"must be an object with the members amount and currency"}
)
