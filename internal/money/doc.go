// Package money is exact arithmetic for prices and amounts.
//
// An [Amount] is a whole number of a currency's minor unit; a [Price] is for one piece and may be finer than that.
// Money is rounded in one place only, where a price meets a quantity or an amount is shared ([Price.Times],
// [Amount.Share]): half to even. There is no floating point anywhere, and what does not fit is an error, never
// another number.
//
// In JSON all of it is text, because a reader of JSON may take a number for a float.
package money
