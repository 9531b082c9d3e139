package money_test

import (
	"errors"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/money"
)

func currency(t testing.TB, code string) money.Currency {
	t.Helper()
	c, ok := money.ParseCurrency(code)
	if !ok {
		t.Fatalf("%s is not known", code)
	}
	return c
}

func TestCurrencies(t *testing.T) {
	for code, exponent := range map[string]int{
		"GBP": 2, "EUR": 2, "JPY": 0, "KWD": 3, "CLF": 4, "UYW": 4, "UYI": 0, "VES": 2, "VED": 2, "SLE": 2, "ZWG": 2,
		"XCG": 2, "MRU": 2, "STN": 2, "AED": 2, "ISK": 0, "XAF": 0, "IQD": 3,
	} {
		if got := currency(t, code).Exponent(); got != exponent {
			t.Errorf("%s has exponent %d, want %d", code, got, exponent)
		}
	}
	for _, code := range []string{"", "G", "gbp", "GBPX", "ZZZ", "AAA", "ANG", "ZWL", "SLL", "HRK", "XAU", "XXX", "BGN", "G\x00P"} {
		if _, ok := money.ParseCurrency(code); ok {
			t.Errorf("%q is taken for a currency", code)
		}
	}
	all := money.Currencies()
	if !slices.IsSortedFunc(all, func(a, b money.Currency) int { return strings.Compare(a.String(), b.String()) }) {
		t.Error("the table is not in alphabetical order")
	}
	for _, c := range all {
		if back, ok := money.ParseCurrency(c.String()); !ok || back != c {
			t.Errorf("%s is not found again", c)
		}
	}
}

func TestPriceText(t *testing.T) {
	for in, want := range map[string]string{
		"2.55": "2.55", "2.550": "2.55", "2": "2", "2.0": "2", "0": "0", "-0": "0", "0.000000": "0", "0.000001": "0.000001",
		"-0.5": "-0.5", "10.10": "10.1", "100": "100", "999999999999.999999": "999999999999.999999",
		"-999999999999.999999": "-999999999999.999999",
	} {
		p, err := money.ParsePrice(in)
		if err != nil || p.String() != want {
			t.Errorf("%q reads as %q (%v), want %q", in, p, err, want)
		}
		data, err := jsonx.Marshal(p)
		if err != nil || string(data) != `"`+want+`"` || string(p.AppendJSON(nil)) != string(data) {
			t.Errorf("%q has the JSON %s (%v)", in, data, err)
		}
	}
	for _, in := range []string{
		"", "-", ".", "1.", ".5", "-.5", "+1", "1e3", "1E3", "01", "00", "00.5", "-01", "1.1234567", "0.0000000", "1,5", " 1", "1 ",
		"--1", "1.-5", "1.2.3", "1000000000000", "-1000000000000", "99999999999999999999999", "NaN", "Inf", "0x10", "1_000", "١",
	} {
		if p, err := money.ParsePrice(in); err == nil {
			t.Errorf("%q is taken for the price %s", in, p)
		}
	}
	for _, in := range []string{`2.55`, `null1`, `{}`, `["1"]`, `true`} {
		var p money.Price
		if err := jsonx.Unmarshal([]byte(in), &p); err == nil {
			t.Errorf("the JSON %s is taken for the price %s", in, p)
		}
	}
}

func TestTimes(t *testing.T) {
	for _, c := range []struct {
		price    string
		quantity int64
		code     string
		want     string
	}{
		{"2.55", 6, "GBP", "15.30 GBP"},
		{"0.005", 1, "GBP", "0.00 GBP"}, // half to even: down
		{"0.015", 1, "GBP", "0.02 GBP"}, // half to even: up
		{"0.025", 1, "GBP", "0.02 GBP"},
		{"0.0250001", 0, "", ""},
		{"0.025001", 1, "GBP", "0.03 GBP"},
		{"-0.015", 1, "GBP", "-0.02 GBP"},
		{"-0.025", 1, "GBP", "-0.02 GBP"},
		{"0.015", -3, "GBP", "-0.04 GBP"},
		{"1.5", 1, "JPY", "2 JPY"},
		{"2.5", 1, "JPY", "2 JPY"},
		{"0.0005", 1, "KWD", "0.000 KWD"},
		{"1.23455", 1, "CLF", "1.2346 CLF"},
		{"0", 1000, "EUR", "0.00 EUR"},
		{"999999999999.999999", 92233, "GBP", "92232999999999999.91 GBP"},
	} {
		p, err := money.ParsePrice(c.price)
		if c.want == "" {
			if err == nil {
				t.Errorf("%s has seven decimals and is accepted", c.price)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.Times(c.quantity, currency(t, c.code))
		if err != nil || got.String() != c.want {
			t.Errorf("%s × %d = %s (%v), want %s", c.price, c.quantity, got, err, c.want)
		}
	}
}

// TestTimesIsExact compares with big.Rat arithmetic over the whole range, overflow included.
func TestTimesIsExact(t *testing.T) {
	all := money.Currencies()
	rapid.Check(t, func(t *rapid.T) {
		p := money.Price(rapid.Int64Range(-int64(money.MaxPrice), int64(money.MaxPrice)).Draw(t, "price"))
		if rapid.Bool().Draw(t, "round") { // halves are rare among random numbers
			p = p / 5000 * 5000
		}
		q := rapid.OneOf(rapid.Int64Range(-1000, 1000), rapid.Int64()).Draw(t, "quantity")
		c := rapid.SampledFrom(all).Draw(t, "currency")
		d := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(money.PricePlaces-c.Exponent())), nil)
		want := halfEven(new(big.Int).Mul(big.NewInt(int64(p)), big.NewInt(q)), d)
		check(t, want)(p.Times(q, c))
	})
}

func TestShareIsExact(t *testing.T) {
	gbp := currency(t, "GBP")
	rapid.Check(t, func(t *rapid.T) {
		minor := rapid.Int64().Draw(t, "minor")
		whole := rapid.Int64Range(1, math.MaxInt64).Draw(t, "whole")
		part := rapid.Int64Range(0, whole).Draw(t, "part")
		want := halfEven(new(big.Int).Mul(big.NewInt(minor), big.NewInt(part)), big.NewInt(whole))
		check(t, want)(money.Amount{Minor: minor, Currency: gbp}.Share(part, whole))
	})
	if _, err := (money.Amount{Minor: 1, Currency: gbp}).Share(1, 0); !errors.Is(err, money.ErrWeights) {
		t.Errorf("a share of nothing: %v", err)
	}
}

func check(t *rapid.T, want *big.Int) func(money.Amount, error) {
	return func(got money.Amount, err error) {
		// The smallest int64 is left out: its magnitude has no positive counterpart.
		fits := want.CmpAbs(big.NewInt(math.MaxInt64)) <= 0
		switch {
		case fits && (err != nil || got.Minor != want.Int64()):
			t.Fatalf("got %d (%v), want %s", got.Minor, err, want)
		case !fits && !errors.Is(err, money.ErrOverflow):
			t.Fatalf("got %d (%v), but %s does not fit", got.Minor, err, want)
		}
	}
}

// halfEven is n/d for d > 0, rounded half to even.
func halfEven(n, d *big.Int) *big.Int {
	q, r := new(big.Int).DivMod(n, d, new(big.Int)) // Euclidean: 0 <= r < d
	switch new(big.Int).Lsh(r, 1).Cmp(d) {
	case 1:
		q.Add(q, big.NewInt(1))
	case 0:
		if q.Bit(0) == 1 {
			q.Add(q, big.NewInt(1))
		}
	}
	return q
}

func TestAddSub(t *testing.T) {
	gbp, eur := currency(t, "GBP"), currency(t, "EUR")
	rapid.Check(t, func(t *rapid.T) {
		edge := rapid.SampledFrom([]int64{0, 1, -1, math.MaxInt64, math.MinInt64})
		a := rapid.OneOf(edge, rapid.Int64()).Draw(t, "a")
		b := rapid.OneOf(edge, rapid.Int64()).Draw(t, "b")
		x, y := money.Amount{Minor: a, Currency: gbp}, money.Amount{Minor: b, Currency: gbp}
		for _, op := range []struct {
			want *big.Int
			do   func(money.Amount) (money.Amount, error)
		}{
			{new(big.Int).Add(big.NewInt(a), big.NewInt(b)), x.Add},
			{new(big.Int).Sub(big.NewInt(a), big.NewInt(b)), x.Sub},
		} {
			got, err := op.do(y)
			if op.want.IsInt64() != (err == nil) || (err == nil && got.Minor != op.want.Int64()) {
				t.Fatalf("%d and %d: got %d (%v), want %s", a, b, got.Minor, err, op.want)
			}
		}
	})
	one := money.Amount{Minor: 1, Currency: gbp}
	if _, err := one.Add(money.Amount{Minor: 1, Currency: eur}); !errors.Is(err, money.ErrCurrency) {
		t.Errorf("pounds and euros add up: %v", err)
	}
	if _, err := one.Sub(money.Amount{Minor: 1, Currency: eur}); !errors.Is(err, money.ErrCurrency) {
		t.Errorf("euros come off pounds: %v", err)
	}
}

func TestAllocate(t *testing.T) {
	gbp := currency(t, "GBP")
	parts, err := money.Amount{Minor: 100, Currency: gbp}.Allocate([]int64{1, 1, 1})
	if err != nil || parts[0].Minor != 34 || parts[1].Minor != 33 || parts[2].Minor != 33 {
		t.Errorf("a pound in three: %v (%v)", parts, err)
	}
	for _, weights := range [][]int64{nil, {}, {0, 0}, {1, -1}} {
		if _, err := (money.Amount{Minor: 1}).Allocate(weights); !errors.Is(err, money.ErrWeights) {
			t.Errorf("weights %v: %v", weights, err)
		}
	}
	if _, err := (money.Amount{Minor: 1}).Allocate([]int64{math.MaxInt64, 1}); !errors.Is(err, money.ErrOverflow) {
		t.Errorf("weights without a sum: %v", err)
	}
	rapid.Check(t, func(t *rapid.T) {
		a := money.Amount{Minor: rapid.Int64().Draw(t, "minor"), Currency: gbp}
		weights := rapid.SliceOfN(rapid.Int64Range(0, math.MaxInt64/32), 1, 32).Draw(t, "weights")
		sum := new(big.Int)
		for _, w := range weights {
			sum.Add(sum, big.NewInt(w))
		}
		if sum.Sign() == 0 {
			return
		}
		parts, err := a.Allocate(weights)
		if err != nil {
			t.Fatal(err)
		}
		total := new(big.Int)
		for i, p := range parts {
			total.Add(total, big.NewInt(p.Minor))
			// Each part is less than one unit away from its exact share.
			exact := new(big.Int).Mul(big.NewInt(a.Minor), big.NewInt(weights[i]))
			off := exact.Sub(exact, new(big.Int).Mul(big.NewInt(p.Minor), sum))
			if off.CmpAbs(sum) >= 0 {
				t.Fatalf("part %d is %d", i, p.Minor)
			}
		}
		if !total.IsInt64() || total.Int64() != a.Minor {
			t.Fatalf("the parts add up to %s instead of %d", total, a.Minor)
		}
	})
}

func TestAmountJSON(t *testing.T) {
	for _, c := range []struct {
		minor      int64
		code, want string
	}{
		{1530, "GBP", `{"amount":"15.30","currency":"GBP"}`},
		{-5, "GBP", `{"amount":"-0.05","currency":"GBP"}`},
		{0, "KWD", `{"amount":"0.000","currency":"KWD"}`},
		{1530, "JPY", `{"amount":"1530","currency":"JPY"}`},
		{math.MaxInt64, "CLF", `{"amount":"922337203685477.5807","currency":"CLF"}`},
	} {
		a := money.Amount{Minor: c.minor, Currency: currency(t, c.code)}
		data, err := jsonx.Marshal(a)
		if err != nil || string(data) != c.want || string(a.AppendJSON(nil)) != c.want {
			t.Errorf("got %s (%v), want %s", data, err, c.want)
		}
		var back money.Amount
		if err := jsonx.Unmarshal(data, &back); err != nil || back != a {
			t.Errorf("%s reads back as %v (%v)", data, back, err)
		}
	}
	var a money.Amount
	if err := jsonx.Unmarshal([]byte(" { \"currency\" : \"GBP\",\n\"amount\":\"1.00\" } "), &a); err != nil || a.String() != "1.00 GBP" {
		t.Errorf("another order of members: %v (%v)", a, err)
	}
	for _, in := range []string{
		`{"amount":"1.0","currency":"GBP"}`, `{"amount":"1","currency":"GBP"}`, `{"amount":"1.00","currency":"XXX"}`,
		`{"amount":"1.00","currency":"gbp"}`, `{"amount":1.00,"currency":"GBP"}`, `{"amount":"1.00"}`, `{"currency":"GBP"}`, `{}`,
		`{"amount":"1.00","currency":"GBP","x":1}`, `{"amount":"1.00","currency":"GBP","amount":"1.00"}`, `{"amount":"","currency":"GBP"}`,
		`{"amount":"92233720368547758.08","currency":"GBP"}`, `"1.00 GBP"`, `[]`, `{"amount":"1.00","currency":"GBP\"}`,
		`{"amount":"1.00","currency":"G","currency":"GBP"}`,
	} {
		if err := jsonx.Unmarshal([]byte(in), &a); err == nil {
			t.Errorf("%s is taken for an amount", in)
		}
	}
}

func TestSum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s, half money.Sum
		want := new(big.Int)
		for i, v := range rapid.SliceOfN(rapid.Int64(), 1, 50).Draw(t, "amounts") {
			d := money.Decimal{Minor: v, Places: 2}
			if rapid.Bool().Draw(t, "sub") {
				s, want = s.Sub(d), want.Sub(want, big.NewInt(v))
			} else {
				s, want = s.Add(d), want.Add(want, big.NewInt(v))
			}
			if i%2 == 0 {
				half = half.Add(d)
			}
		}
		if got := strings.Replace(s.String(), ".", "", 1); trimmed(got) != want.String() {
			t.Fatalf("got %s, want %s hundredths", s, want)
		}
		var back money.Sum
		if err := back.UnmarshalText([]byte(s.String())); err != nil || back != s {
			t.Fatalf("%s reads back as %s (%v)", s, back, err)
		}
		if s.IsZero() != (want.Sign() == 0) {
			t.Fatalf("%s is zero: %v", s, s.IsZero())
		}
		if both := s.Plus(half).Plus(s); both != half.Plus(s).Plus(s) {
			t.Fatal("the order of adding matters")
		}
	})
	var s money.Sum
	for _, in := range []string{"", "-", "1.", "1e5", "1.1234567", strings.Repeat("9", 39), "x"} {
		if err := s.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q is taken for a sum", in)
		}
	}
	if err := s.UnmarshalText([]byte(strings.Repeat("9", 38))); err != nil || s.String() != strings.Repeat("9", 38) {
		t.Errorf("the largest sum is %s (%v)", s, err)
	}
	a := money.Sum{}.Add(money.Decimal{Minor: 5}).Add(money.Decimal{Minor: 25, Places: 2})
	if a.String() != "5.25" {
		t.Errorf("5 + 0.25 = %s", a)
	}
}

// trimmed takes the zeros off the front that the decimals put there.
func trimmed(s string) string {
	sign := ""
	if strings.HasPrefix(s, "-") {
		sign, s = "-", s[1:]
	}
	if s = strings.TrimLeft(s, "0"); s == "" {
		return "0"
	}
	return sign + s
}

// FuzzParsePrice holds the parser to big.Rat: what it accepts has that value, its canonical form reads back as the same
// price, and what it refuses for its size is too large.
func FuzzParsePrice(f *testing.F) {
	for _, s := range []string{"2.55", "-0.000001", "0", "999999999999.999999", "1e5", "01", "1.", "", "-", "18446744073709551616"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := money.ParsePrice(s)
		var fromJSON money.Price
		if jsonErr := fromJSON.UnmarshalText([]byte(s)); (jsonErr == nil) != (err == nil) || fromJSON != p {
			t.Fatal("bytes and string are read differently")
		}
		if err != nil {
			if strings.Contains(err.Error(), s) && len(s) > 8 {
				t.Fatal("the error repeats the value")
			}
			return
		}
		exact, ok := new(big.Rat).SetString(s)
		if !ok || exact.Cmp(big.NewRat(int64(p), 1_000_000)) != 0 {
			t.Fatalf("%q is read as %s", s, p)
		}
		if back, err := money.ParsePrice(p.String()); err != nil || back != p {
			t.Fatalf("%s reads back as %s (%v)", p, back, err)
		}
	})
}

// FuzzAmountJSON: what an amount is read from reads back as the same amount, and nothing panics.
func FuzzAmountJSON(f *testing.F) {
	f.Add([]byte(`{"amount":"15.30","currency":"GBP"}`))
	f.Add([]byte(`{"currency":"JPY","amount":"-1"}`))
	f.Add([]byte(`{"amount":"`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var a, back money.Amount
		if jsonx.Unmarshal(data, &a) != nil {
			return
		}
		if err := jsonx.Unmarshal(a.AppendJSON(nil), &back); err != nil || a != back {
			t.Fatalf("%v reads back as %v (%v)", a, back, err)
		}
	})
}

func BenchmarkPrice(b *testing.B) {
	gbp := currency(b, "GBP")
	buf := make([]byte, 0, 64)
	b.ReportAllocs()
	for b.Loop() {
		p, _ := money.ParsePrice("2.55")
		a, _ := p.Times(6, gbp)
		buf = a.AppendJSON(p.AppendJSON(buf[:0]))
	}
}
