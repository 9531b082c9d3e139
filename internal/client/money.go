package client

import (
	"strconv"
	"strings"
)

// Minor reads an amount with two decimals, as the API writes it, as minor units. Currencies with other decimals are not
// what this is for.
func Minor(amount string) (int64, bool) {
	whole, cents, ok := strings.Cut(amount, ".")
	digits := strings.TrimPrefix(whole, "-")
	if !ok || len(cents) != 2 || digits == "" || strings.Trim(digits+cents, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(whole+cents, 10, 64)
	return n, err == nil
}
