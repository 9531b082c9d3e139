package retailtest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
)

// draft is an invoice while its rows are gathered.
type draft struct {
	credit, refused bool
	dead            bool // of two customers
	imprecise       bool // a price that no order can have
	customer        string
	units           *big.Int
	minor           *big.Int
	pieces          map[string]int64 // above zero, by stock code
}

// Expect computes what must come of a file (plain or gzip) whose rows are all well formed, by encoding/csv and fractions
// of big integers. It shares no code with the reader and is slow.
func Expect(r io.Reader) (Expected, error) {
	e := Expected{Customers: map[string]Account{}, Left: map[string]int64{}}
	in := bufio.NewReader(r)
	if magic, _ := in.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(in)
		if err != nil {
			return e, err
		}
		in = bufio.NewReader(z)
	}
	if bom, _ := in.Peek(3); bytes.Equal(bom, []byte("\xEF\xBB\xBF")) {
		_, _ = in.Discard(3) // they were peeked at
	}
	rows := csv.NewReader(in)
	header, err := rows.Read()
	if err != nil {
		return e, err
	}
	column := map[string]int{}
	for i, name := range header {
		switch name {
		case "Invoice":
			name = "InvoiceNo"
		case "Price":
			name = "UnitPrice"
		case "Customer ID":
			name = "CustomerID"
		}
		column[name] = i
	}
	drafts := map[string]*draft{}
	for {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return e, err
		}
		e.Rows++
		number := row[column["InvoiceNo"]]
		d := drafts[number]
		if d == nil {
			d = &draft{credit: strings.HasPrefix(number, "C"), units: new(big.Int), minor: new(big.Int), pieces: map[string]int64{}}
			drafts[number] = d
		}
		customer := strings.TrimSuffix(row[column["CustomerID"]], ".0")
		if d.customer == "" {
			d.customer = customer
		} else if customer != "" && customer != d.customer {
			d.dead = true
		}
		if err := d.add(row[column["StockCode"]], row[column["Quantity"]], row[column["UnitPrice"]]); err != nil {
			return e, fmt.Errorf("row %d: %w", e.Rows, err)
		}
	}
	for _, d := range drafts {
		e.Invoices++
		if !d.credit && !d.dead && (d.imprecise || d.refused) {
			e.left(d.pieces)
		}
		switch {
		case d.dead || d.imprecise:
			e.DeadLetters++
		case d.refused:
			e.Refused++
		case d.credit:
			e.returned(d.customer, d.units.Int64(), d.minor.Int64())
		default:
			e.ordered(d.customer, d.units.Int64(), d.minor.Int64())
		}
	}
	return e, nil
}

func (d *draft) add(sku, quantityText, priceText string) error {
	q, ok := new(big.Rat).SetString(strings.TrimSpace(quantityText))
	if !ok || !q.IsInt() {
		return errors.New("quantity")
	}
	price, ok := new(big.Rat).SetString(strings.TrimSpace(priceText))
	if !ok {
		return errors.New("price")
	}
	if d.credit {
		q.Neg(q)
	}
	if q.Sign() <= 0 || price.Sign() < 0 {
		d.refused = true
	}
	millionths := new(big.Rat).Mul(price, big.NewRat(1_000_000, 1))
	if !millionths.IsInt() {
		d.imprecise = true
	}
	d.units.Add(d.units, q.Num())
	if q.Sign() > 0 {
		d.pieces[strings.TrimSpace(sku)] += q.Num().Int64()
	}
	line := new(big.Rat).Mul(q, price)
	d.minor.Add(d.minor, halfEven(line.Mul(line, big.NewRat(100, 1))))
	return nil
}

// halfEven rounds a fraction to a whole number: the nearest one, of two equally near the even one.
func halfEven(r *big.Rat) *big.Int {
	floor, rest := new(big.Int).DivMod(r.Num(), r.Denom(), new(big.Int))
	switch twice := rest.Lsh(rest, 1); twice.Cmp(r.Denom()) {
	case 1:
		floor.Add(floor, big.NewInt(1))
	case 0:
		if floor.Bit(0) == 1 {
			floor.Add(floor, big.NewInt(1))
		}
	}
	return floor
}
