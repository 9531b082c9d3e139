// Package retailtest makes files in the shape of the retail data set, and computes what must come of a file in a way that
// shares nothing with the reader: for tests here and of whoever imports such files into a real server.
package retailtest

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options of [Generate]. The same options make the same file.
type Options struct {
	Seed     uint64
	Invoices int
	// Damage puts rows into the file that nobody can read: 3 % of its invoices become dead letters.
	Damage bool
	// CRLF, BOM, Gzip, Latin: how the file is written. Latin writes its few letters beyond ASCII as Windows-1252.
	CRLF, BOM, Gzip, Latin bool
	// Sister uses the column names and the date form of the sister data set, with the columns in another order.
	Sister bool
}

// Account is the sums of one customer.
type Account struct {
	Orders, Returns      int
	Minor, ReturnedMinor int64 // in pence
}

// Expected is what must come of a file.
type Expected struct {
	Rows, Invoices                        int
	Orders, Returns, Refused, DeadLetters int
	Units, ReturnedUnits                  int64
	Minor, ReturnedMinor                  int64 // in pence
	Customers                             map[string]Account
	// Left are the pieces, by stock code, of orders that are refused, or have a price that no order can have: where goods are
	// received before orders are placed, nobody takes these.
	Left map[string]int64
}

func (e *Expected) ordered(customer string, units, minor int64) {
	e.Orders, e.Units, e.Minor = e.Orders+1, e.Units+units, e.Minor+minor
	a := e.Customers[customer]
	a.Orders, a.Minor = a.Orders+1, a.Minor+minor
	e.Customers[customer] = a
}

func (e *Expected) left(pieces map[string]int64) {
	for sku, n := range pieces {
		e.Left[sku] += n
	}
}

func (e *Expected) returned(customer string, units, minor int64) {
	e.Returns, e.ReturnedUnits, e.ReturnedMinor = e.Returns+1, e.ReturnedUnits+units, e.ReturnedMinor+minor
	a := e.Customers[customer]
	a.Returns, a.ReturnedMinor = a.Returns+1, a.ReturnedMinor+minor
	e.Customers[customer] = a
}

// fate is what a generated invoice is made for.
type fate uint8

const (
	sale fate = iota
	credit
	badQuantity // a quantity of zero or below on a sale
	badPrice    // a negative price, under a number that starts with A
	tooPrecise  // a price of seven decimals, which no order can have
	brokenRow   // damage: see breakRow
	twoCustomers
	noNumber // damage: a row without an invoice number
)

// The columns in the order in which rows are held.
const (
	invoiceNo = iota
	stockCode
	description
	quantity
	invoiceDate
	unitPrice
	customerID
	country
)

type record struct {
	fields [8]string
	raw    string // written as it is, instead of the fields
}

type generator struct {
	Options
	r    *rand.Rand
	e    Expected
	at   time.Time
	held []record // a late row, written after the next invoice
}

// Generate writes a file and says what must come of it.
func Generate(w io.Writer, o Options) (Expected, error) {
	g := &generator{
		Options: o, r: rand.New(rand.NewPCG(o.Seed, 0x6d696c6c)), //nolint:gosec // reproducible on purpose
		e: Expected{Customers: map[string]Account{}, Left: map[string]int64{}}, at: time.Date(2010, 12, 1, 8, 26, 0, 0, time.UTC),
	}
	var z *gzip.Writer
	if o.Gzip {
		z = gzip.NewWriter(w)
		w = z
	}
	out := bufio.NewWriter(w)
	if o.BOM {
		_, _ = out.WriteString("\xEF\xBB\xBF") // Flush reports every error
	}
	header := [8]string{"InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country"}
	if o.Sister {
		header = [8]string{"Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price", "Customer ID", "Country"}
	}
	g.write(out, &record{fields: header})
	for n := range o.Invoices {
		late := g.held
		g.held = nil
		for _, row := range g.invoice(n) {
			g.e.Rows++
			g.write(out, &row)
		}
		for _, row := range late {
			g.e.Rows++
			g.write(out, &row)
		}
	}
	for _, row := range g.held {
		g.e.Rows++
		g.write(out, &row)
	}
	if err := out.Flush(); err != nil {
		return g.e, err
	}
	if z != nil {
		return g.e, z.Close()
	}
	return g.e, nil
}

func (g *generator) fate(n int) fate {
	p := g.r.IntN(1000)
	// Each oddity stands in every file of some size, whatever the seed.
	odd := []fate{credit, badQuantity, badPrice, tooPrecise}
	if g.Damage {
		odd = append(odd, brokenRow, brokenRow, brokenRow, brokenRow, brokenRow, brokenRow, twoCustomers, noNumber)
	}
	if n%40 < len(odd) {
		return odd[n%40]
	}
	switch {
	case p < 150:
		return credit
	case p < 200:
		return badQuantity
	}
	return sale
}

// invoice makes the rows of one invoice and books what must come of it.
func (g *generator) invoice(n int) []record {
	g.at = g.at.Add(time.Duration(g.r.IntN(20)) * time.Minute)
	f := g.fate(n)
	number := strconv.Itoa(536365 + n)
	switch f {
	case credit:
		number = "C" + number
	case badPrice:
		number = "A" + number
	}
	customer := ""
	if g.r.IntN(100) >= 16 || f == twoCustomers {
		customer = strconv.Itoa(12346 + g.r.IntN(500))
	}
	count := 1 + g.r.IntN(12)
	if g.r.IntN(50) == 0 {
		count += g.r.IntN(200)
	}
	if f == noNumber {
		count, number = 1, ""
	}
	if f == twoCustomers {
		count = 2 + count
	}
	fault := g.r.IntN(count)
	rows := make([]record, count)
	pieces := map[string]int64{}
	var units, minor int64
	for k := range rows {
		q, micros := g.amounts()
		if k == fault {
			switch f {
			case badQuantity:
				q = -q * int64(g.r.IntN(2))
			case badPrice:
				micros = -11062_060000
			}
		}
		units += q
		minor += pence(q, micros)
		rows[k] = g.row(number, customer, f, q, micros, k)
		if q > 0 {
			pieces[rows[k].fields[stockCode]] += q
		}
	}
	switch f {
	case tooPrecise:
		rows[fault].fields[unitPrice] = "2.5500001"
	case twoCustomers:
		rows[count-1].fields[customerID] = "99999.0"
	case brokenRow:
		g.breakRow(&rows[fault], n)
	}
	g.book(f, customer, units, minor, pieces)
	// Some invoices stand in two places, and their last row is a minute late.
	if count > 1 && g.r.IntN(25) == 0 {
		late := rows[count-1]
		rows, g.held = rows[:count-1], append(g.held, late)
	}
	return rows
}

func (g *generator) book(f fate, customer string, units, minor int64, pieces map[string]int64) {
	g.e.Invoices++
	switch f {
	case sale:
		g.e.ordered(customer, units, minor)
	case credit:
		g.e.returned(customer, units, minor)
	case badQuantity, badPrice:
		g.e.Refused++
		g.e.left(pieces)
	case tooPrecise:
		g.e.DeadLetters++
		g.e.left(pieces)
	case brokenRow, twoCustomers, noNumber:
		g.e.DeadLetters++
	}
}

// amounts draws a quantity above zero and a price in millionths.
func (g *generator) amounts() (q, micros int64) {
	q = 1 + g.r.Int64N(48)
	if g.r.IntN(100) == 0 {
		q = 1000 * (1 + g.r.Int64N(80))
	}
	micros = 10_000 * g.r.Int64N(2000)
	switch g.r.IntN(25) {
	case 0:
		micros = 0
	case 1: // half a penny, so that rounding has something to do
		micros += 5000
	case 2:
		micros += g.r.Int64N(10_000)
	}
	return q, micros
}

// pence is quantity × price in pence, rounded half to even, in whole numbers.
func pence(q, micros int64) int64 {
	const perPenny = 10_000
	product := q * micros
	whole, rest := product/perPenny, product%perPenny
	if 2*rest > perPenny || (2*rest == perPenny && whole%2 == 1) {
		whole++
	}
	return whole
}

func (g *generator) row(number, customer string, f fate, q, micros int64, k int) record {
	at := g.at
	if k > 0 && g.r.IntN(20) == 0 {
		at = at.Add(time.Minute)
	}
	if f == credit {
		q = -q
	}
	var out record
	out.fields = [8]string{
		invoiceNo: number, stockCode: g.sku(), description: g.description(), quantity: g.number(q, 0), unitPrice: g.number(micros, 6),
		invoiceDate: at.Format("2006-01-02 15:04:05"), customerID: customer, country: g.pick("United Kingdom", "France", "EIRE", "Germany"),
	}
	if g.Sister {
		out.fields[invoiceDate] = at.Format("1/2/2006 15:04")
	}
	if customer != "" && !g.Sister {
		out.fields[customerID] += ".0"
	}
	return out
}

func (g *generator) pick(s ...string) string { return s[g.r.IntN(len(s))] }

func (g *generator) sku() string {
	if g.r.IntN(40) == 0 {
		return g.pick("POST", "M", "DOT", "AMAZONFEE", "BANK CHARGES", "D", "C2", "gift_0001_20")
	}
	return strconv.Itoa(20000+g.r.IntN(3000)) + g.pick("", "", "A", "b")
}

func (g *generator) description() string {
	base := g.pick("WHITE METAL LANTERN", "HAND WARMER", "", "LUNCH BAG", "JUMBO BAG", "CAKE CASES")
	if base == "" {
		return ""
	}
	return base + g.pick("", "", " SET OF 6", ", RED", ` 3" TALL`, ` "VINTAGE"`, " £40.00", "\nSECOND LINE", " ")
}

// number writes a number in one of the ways that spreadsheets have for it.
func (g *generator) number(n int64, scale int) string {
	sign := ""
	if n < 0 {
		sign, n = "-", -n
	}
	digits := fmt.Sprintf("%0*d", scale+1, n)
	text := digits
	if scale > 0 {
		text = strings.TrimRight(digits[:len(digits)-scale]+"."+digits[len(digits)-scale:], "0")
		text = strings.TrimSuffix(text, ".")
	}
	switch g.r.IntN(30) {
	case 0:
		if !strings.Contains(text, ".") {
			text += ".0"
		}
	case 1:
		text = digits + "e-" + strconv.Itoa(scale)
	case 2:
		text = " " + text
	}
	if n > 0 && n%1000 == 0 && scale == 0 {
		text = strconv.FormatInt(n/1000, 10) + "E+3"
	}
	return sign2(text, sign)
}

func sign2(text, sign string) string {
	trimmed := strings.TrimLeft(text, " ")
	return text[:len(text)-len(trimmed)] + sign + trimmed
}

// breakRow damages one row so that it cannot be read, in one of several ways.
func (g *generator) breakRow(row *record, n int) {
	f := &row.fields
	f[description] = "HAND WARMER"
	switch (n + n/40) % 8 {
	case 0:
		f[quantity] = "six"
	case 1:
		f[unitPrice] = "£2.55"
	case 2:
		f[invoiceDate] = "2010-13-45 99:99:99"
	case 3:
		f[stockCode] = " "
	case 4: // cut off
		row.raw = strings.Join(f[:5], ",")
	case 5: // a comma too many
		row.raw = strings.Join(f[:], ",") + ","
	case 6: // a quote that is never closed
		f[description] = `"HAND WARMER`
		row.raw = strings.Join(f[:], ",")
	default:
		f[quantity] = "2.5"
	}
}

// sisterOrder is the order of columns where Sister is set; the invoice stays in front, where a damaged row can be told by it.
var sisterOrder = [8]int{invoiceNo, country, customerID, unitPrice, description, quantity, stockCode, invoiceDate}

func (g *generator) write(out *bufio.Writer, row *record) {
	line := row.raw
	if line == "" {
		fields := row.fields
		if g.Sister {
			for i, c := range sisterOrder {
				fields[i] = row.fields[c]
			}
		}
		quoted := make([]string, 8)
		for i, f := range fields {
			quoted[i] = f
			if strings.ContainsAny(f, ",\"\n") {
				quoted[i] = `"` + strings.ReplaceAll(f, `"`, `""`) + `"`
			}
		}
		line = strings.Join(quoted, ",")
	}
	if g.Latin {
		line = strings.ReplaceAll(line, "£", "\xA3")
	}
	end := "\n"
	if g.CRLF {
		end = "\r\n"
		line = strings.ReplaceAll(line, "\n", "\r\n")
	}
	_, _ = out.WriteString(line + end) // Flush reports every error
}

// CustomerIDs are the customers of the file, sorted; "" stands for those without one.
func (e *Expected) CustomerIDs() []string {
	ids := make([]string, 0, len(e.Customers))
	for id := range e.Customers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
