package retail

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/millrace-io/millrace/internal/jsonx"
)

const (
	// idPrefix leads every id that an import makes, so that it meets nobody else's.
	idPrefix = "online-retail-"
	// Currency of the shop; the file has no column for it.
	Currency = "GBP"
	// UnmappedType is the command type of what cannot be mapped. No server knows it: it keeps unknown types as dead letters.
	UnmappedType = "ImportUnmappedInvoice"

	// maxKeptRows and maxKeptBytes bound the rows that a dead letter carries: enough to repair any real invoice by hand
	// and well inside a command's body.
	maxKeptRows  = 1000
	maxKeptBytes = 128 << 10
)

// Kind says what an invoice becomes.
type Kind uint8

// The kinds of invoice.
const (
	Sale     Kind = iota + 1 // an order
	Credit                   // a return
	Unmapped                 // a dead letter
)

func (k Kind) String() string {
	switch k {
	case Sale:
		return "order"
	case Credit:
		return "return"
	case Unmapped:
		return "dead letter"
	}
	return "unknown"
}

// Line is one line of an invoice.
type Line struct {
	SKU         string `json:"sku"`
	Description string `json:"description,omitempty"`
	// Quantity has the sign that it has in an order or a return: above zero, where all is well.
	Quantity  int64  `json:"quantity"`
	UnitPrice string `json:"unit_price"`
}

// Invoice is all rows of one invoice number.
type Invoice struct {
	// Number is the invoice number, or "line-17" for a row of the file's line 17 that has none.
	Number     string
	Line       int // the line of the file where the invoice starts
	Rows       int // how many rows it has
	Kind       Kind
	CustomerID string
	Time       time.Time
	Lines      []Line
	// Fulfil: the order carries itself through.
	Fulfil bool
	// Reason says why the invoice is Unmapped; Raw are its rows then, up to a bound.
	Reason string
	Raw    []string
}

// ID is the id of the order or return, and the idempotency key of its command.
func (i *Invoice) ID() string { return idPrefix + i.Number }

// Units adds up the quantities.
func (i *Invoice) Units() int64 {
	var n int64
	for k := range i.Lines {
		n += i.Lines[k].Quantity
	}
	return n
}

// invoice reads the rows of a group.
func (f *File) invoice(g *group) *Invoice {
	first := &f.rows[g.first]
	out := &Invoice{Number: g.number, Line: int(first.line), Kind: Sale, Fulfil: f.fulfil}
	if g.number == "" {
		out.Number = "line-" + strconv.Itoa(out.Line)
		out.Reason = fmt.Sprintf("line %d: there is no invoice number that can be a part of an id", out.Line)
	} else if c := g.number[0]; c == 'C' || c == 'c' {
		out.Kind = Credit
	}
	var fields []string
	for at := g.first; at >= 0; at = f.rows[at].next {
		r := &f.rows[at]
		out.Rows++
		if out.Reason != "" {
			continue // the rows are still counted
		}
		if r.damage != intact {
			out.Reason = fmt.Sprintf("line %d: %s", r.line, damageTexts[r.damage])
			continue
		}
		fields, _ = split(fields[:0], f.text(r))
		if fault := f.addLine(out, fields); fault != "" {
			out.Reason = fmt.Sprintf("line %d: %s", r.line, fault)
		}
	}
	if out.Reason != "" {
		out.Kind, out.CustomerID, out.Time, out.Lines = Unmapped, "", time.Time{}, nil
		out.Raw = f.raw(g)
	}
	return out
}

// addLine reads a row into the invoice, or says what cannot be read. It never repeats a value: the rows go along.
func (f *File) addLine(out *Invoice, fields []string) string {
	field := func(c int) string { return fields[f.columns.at[c]] }
	line := Line{SKU: strings.TrimSpace(field(colSKU)), Description: oneLine(field(colDescription))}
	if line.SKU == "" {
		return "there is no stock code"
	}
	quantity, ok := parseDecimal(field(colQuantity))
	if ok {
		line.Quantity, ok = quantity.whole()
	}
	if !ok {
		return "the quantity is not a whole number"
	}
	price, ok := parseDecimal(field(colPrice))
	if !ok {
		return "the unit price is not a number"
	}
	line.UnitPrice = price.String()
	at, ok := parseTime(field(colDate), f.zone)
	if !ok {
		return "the date cannot be read"
	}
	if out.Kind == Credit {
		line.Quantity = -line.Quantity
	}
	if strings.ContainsRune(line.SKU, 0) || strings.ContainsRune(line.Description, 0) {
		return "there is a NUL character"
	}
	customer := customerID(field(colCustomer))
	if strings.ContainsRune(customer, 0) {
		return "there is a NUL character"
	}
	switch {
	case out.CustomerID == "":
		out.CustomerID = customer
	case customer != "" && customer != out.CustomerID:
		return "the invoice names two customers"
	}
	if len(out.Lines) == 0 {
		out.Time = at
	}
	out.Lines = append(out.Lines, line)
	return ""
}

// oneLine writes line breaks, tabs and other control characters of a description as spaces: no order can hold them, and
// an order is worth more than where its description breaks. NUL stays: it tells of damage.
func oneLine(s string) string {
	if strings.TrimSpace(s) == "" {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if r != 0 && unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// raw are the rows of a group as text, up to the bounds. NUL, which no JSON of ours may hold, is written as U+FFFD.
func (f *File) raw(g *group) []string {
	var out []string
	size := 0
	for at := g.first; at >= 0 && len(out) < maxKeptRows; at = f.rows[at].next {
		text := strings.ReplaceAll(decode(f.text(&f.rows[at])), "\x00", "\uFFFD")
		if room := maxKeptBytes - size; len(text) > room {
			if cut := strings.ToValidUTF8(text[:room], ""); cut != "" {
				out = append(out, cut)
			}
			break
		}
		out, size = append(out, text), size+len(text)
	}
	return out
}

// Request is what is sent for an invoice. The idempotency key is the invoice's ID.
type Request struct {
	Path string
	Body []byte
}

type orderBody struct {
	ID         string `json:"id"`
	CustomerID string `json:"customer_id,omitempty"`
	Channel    string `json:"channel"`
	Currency   string `json:"currency"`
	Fulfilment string `json:"fulfilment"`
	PlacedAt   string `json:"placed_at"`
	Lines      []Line `json:"lines"`
}

type returnBody struct {
	ID         string `json:"id"`
	CustomerID string `json:"customer_id,omitempty"`
	Currency   string `json:"currency"`
	ReturnedAt string `json:"returned_at"`
	Lines      []Line `json:"lines"`
}

type commandBody struct {
	ID     string `json:"id"`
	Stream string `json:"stream"`
	Type   string `json:"type"`
	Data   any    `json:"data"`
}

type unmappedData struct {
	Reason string   `json:"reason"`
	Rows   []string `json:"rows"`
	// RowsInFile says how many there are where Rows had to be cut.
	RowsInFile int `json:"rows_in_file"`
}

// Request maps the invoice. The body depends on nothing but the file, so that a second run sends the same bytes.
func (i *Invoice) Request() (Request, error) {
	at := i.Time.Format(time.RFC3339)
	switch i.Kind {
	case Sale:
		fulfilment := "manual"
		if i.Fulfil {
			fulfilment = "auto"
		}
		body, err := jsonx.Marshal(&orderBody{
			ID: i.ID(), CustomerID: i.CustomerID, Channel: "import", Currency: Currency, Fulfilment: fulfilment, PlacedAt: at, Lines: i.Lines,
		})
		return Request{Path: "/v1/orders", Body: body}, err
	case Credit:
		body, err := jsonx.Marshal(&returnBody{ID: i.ID(), CustomerID: i.CustomerID, Currency: Currency, ReturnedAt: at, Lines: i.Lines})
		return Request{Path: "/v1/returns", Body: body}, err
	}
	body, err := jsonx.Marshal(&commandBody{
		ID: i.ID(), Stream: "order-" + i.ID(), Type: UnmappedType, Data: unmappedData{Reason: i.Reason, Rows: i.Raw, RowsInFile: i.Rows},
	})
	return Request{Path: "/v1/commands", Body: body}, err
}

// Reject turns a mapped invoice into an unmapped one: for a server that finds the form of its order wrong and so keeps
// nothing of it.
func (f *File) Reject(i *Invoice, reason string) *Invoice {
	out := &Invoice{Number: i.Number, Line: i.Line, Rows: i.Rows, Kind: Unmapped, Reason: reason}
	if at, ok := f.byNumber[i.Number]; ok {
		out.Raw = f.raw(&f.invoices[at])
	}
	return out
}

// Receipts are the commands that receive an invoice's goods into stock, one for each line of goods above zero; where orders
// carry themselves through, of everything above zero: such an order takes each of its lines from stock. Their ids name the
// invoice and the line, so that a second run receives nothing again.
func (i *Invoice) Receipts() ([][]byte, error) {
	var out [][]byte
	for n := range i.Lines {
		l := &i.Lines[n]
		if l.Quantity <= 0 || !i.Fulfil && !IsGoods(l.SKU) {
			continue
		}
		body, err := jsonx.Marshal(&commandBody{
			ID: i.ID() + "-" + strconv.Itoa(n+1), Stream: "stock-" + l.SKU, Type: "ReceiveStock",
			Data: receiveData{Quantity: l.Quantity, Reference: i.ID()},
		})
		if err != nil {
			return nil, err
		}
		out = append(out, body)
	}
	return out, nil
}

type receiveData struct {
	Quantity  int64  `json:"quantity"`
	Reference string `json:"reference"`
}

// IsGoods says whether a stock code is something that lies in a warehouse. The others of the data set are postage (POST,
// DOT, C2), fees (AMAZONFEE, BANK CHARGES), discounts (D), donations (CRUK), samples (S), corrections (M, B, ADJUST,
// ADJUST2, TEST001 and the like), padding (PADS) and gift vouchers (gift_0001_20 and the like).
func IsGoods(sku string) bool {
	code := strings.ToUpper(strings.TrimSpace(sku))
	switch code {
	case "POST", "DOT", "C2", "C3", "AMAZONFEE", "BANK CHARGES", "D", "CRUK", "S", "M", "B", "PADS":
		return false
	}
	for _, prefix := range []string{"GIFT_", "ADJUST", "TEST"} {
		if strings.HasPrefix(code, prefix) {
			return false
		}
	}
	return true
}
