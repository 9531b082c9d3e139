package retail

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"
)

const (
	// MaxText bounds the uncompressed text of a file. All of it is held, because the rows of an invoice need not stand
	// together and nothing may be sent before the file is known to be whole: memory is the text, 24 bytes for each row
	// and about 150 for each invoice. The whole data set (541,909 rows) takes 65 MB.
	MaxText = 512 << 20
	// MaxRows bounds the rows for the same reason: a file of nothing but line ends and digits is all index.
	MaxRows = 8 << 20
	// maxInvoiceNumber bounds an invoice number in bytes: it is a part of stream names and ids.
	maxInvoiceNumber = 64
	// chunkSize is the piece in which text is kept: growing one slice to 500 MB would copy it again and again.
	chunkSize = 4 << 20
)

// FileError says that a file cannot be imported at all. Nothing of it was sent.
type FileError struct {
	Reason string
	// Usage: it is not the kind of file that this reads, rather than a damaged one.
	Usage bool
	Err   error // what led to it, or nil
}

func (e *FileError) Error() string {
	if e.Err != nil {
		return e.Reason + ": " + e.Err.Error()
	}
	return e.Reason
}

// Unwrap gives the cause.
func (e *FileError) Unwrap() error { return e.Err }

// ExitCode is 2 for a file of another kind and 1 for a damaged one.
func (e *FileError) ExitCode() int {
	if e.Usage {
		return 2
	}
	return 1
}

// Options of [Read].
type Options struct {
	// Location is the zone of the times in the file, which names none. Defaults to UTC.
	Location *time.Location
	// Fulfil makes orders that carry themselves through, with stock for each of their lines. Defaults to orders that wait for
	// commands, and stock for goods only.
	Fulfil bool
	// MaxText bounds the uncompressed text in bytes. Defaults to MaxText, which is also the most.
	MaxText int64
}

// File is a file that was read completely, its rows grouped by invoice. It does not change any more.
type File struct {
	columns  columns
	zone     *time.Location
	fulfil   bool
	chunks   [][]byte
	rows     []ref
	invoices []group
	byNumber map[string]int32
}

// ref is a row: where its text lies, and the invoice's next row.
type ref struct {
	chunk  uint32
	offset uint32
	length uint32
	line   uint32
	next   int32 // index of the next row of the invoice, -1 at the end
	damage damage
}

// group is an invoice: its first and last row.
type group struct {
	number      string // "" for a row that has none
	first, last int32
}

// The columns by what they mean here. The names are those of both data sets of the family, compared without case and blanks.
const (
	colInvoice = iota
	colSKU
	colDescription
	colQuantity
	colDate
	colPrice
	colCustomer
	colCountry
	columnCount
)

var columnNames = [columnCount][]string{
	colInvoice:     {"InvoiceNo", "Invoice"},
	colSKU:         {"StockCode"},
	colDescription: {"Description"},
	colQuantity:    {"Quantity"},
	colDate:        {"InvoiceDate"},
	colPrice:       {"UnitPrice", "Price"},
	colCustomer:    {"CustomerID"},
	colCountry:     {"Country"},
}

// columns says at which index each column stands, and how many there are.
type columns struct {
	at    [columnCount]int
	count int
}

// Read reads a file, plain or gzip (told by its first bytes), to its end and groups its rows. The error is a [*FileError],
// or r's own where reading fails.
func Read(r io.Reader, o *Options) (*File, error) {
	limit, zone := int64(MaxText), time.UTC
	if o != nil {
		if o.Location != nil {
			zone = o.Location
		}
		if o.MaxText > 0 {
			limit = min(o.MaxText, MaxText)
		}
	}
	plain, err := uncompressed(r)
	if err != nil {
		return nil, err
	}
	bounded := &boundedReader{r: plain, left: limit}
	rows := newRowReader(bounded)
	f := &File{zone: zone, fulfil: o != nil && o.Fulfil, byNumber: map[string]int32{}}
	if err := f.header(rows); err != nil {
		return nil, err
	}
	for {
		one, err := rows.next()
		if errors.Is(err, io.EOF) {
			return f, nil
		}
		if err != nil {
			return nil, readError(err)
		}
		if len(f.rows) == MaxRows {
			return nil, &FileError{Reason: fmt.Sprintf("the file has more than %d rows; split it", MaxRows), Usage: true}
		}
		f.add(&one)
	}
}

// readError names what goes wrong while a file is read. A compressed file that ends early must not pass for a
// shorter one.
func readError(err error) error {
	var fe *FileError
	switch {
	case errors.As(err, &fe):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, gzip.ErrChecksum), errors.Is(err, gzip.ErrHeader):
		return &FileError{Reason: "the compressed file is damaged or ends early", Err: err}
	}
	return &FileError{Reason: "the file cannot be read", Err: err}
}

func uncompressed(r io.Reader) (io.Reader, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	if magic, _ := in.Peek(2); !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return in, nil
	}
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, readError(err)
	}
	return z, nil
}

// boundedReader refuses what lies behind its bound instead of calling it the end.
type boundedReader struct {
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, &FileError{Reason: fmt.Sprintf("the file holds more text than the bound (%d MiB); split it", MaxText>>20), Usage: true}
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left+1)])
	b.left -= int64(n)
	if b.left < 0 {
		return n, nil // the next call says why
	}
	return n, err
}

// header reads the first row and finds the columns.
func (f *File) header(rows *rowReader) error {
	first, err := rows.next()
	if errors.Is(err, io.EOF) {
		return &FileError{Reason: "the file is empty: not even a header", Usage: true}
	}
	if err != nil {
		return readError(err)
	}
	if bytes.HasPrefix(first.text, []byte{0xFF, 0xFE}) || bytes.HasPrefix(first.text, []byte{0xFE, 0xFF}) {
		return &FileError{Reason: "the file is UTF-16; save it as UTF-8", Usage: true}
	}
	fields, _ := split(nil, bytes.TrimPrefix(first.text, []byte("\xEF\xBB\xBF")))
	at := map[string]int{}
	for i, name := range fields {
		at[plainName(name)] = i + 1
	}
	var missing []string
	used := 0
	for c, names := range columnNames {
		f.columns.at[c] = -1
		for _, name := range names {
			if i := at[plainName(name)]; i > 0 {
				f.columns.at[c] = i - 1
				used++
			}
		}
		if f.columns.at[c] < 0 {
			missing = append(missing, strings.Join(names, " or "))
		}
	}
	if len(missing) > 0 {
		return &FileError{Reason: "the header has no column " + strings.Join(missing, ", ") + " (names are separated by commas)", Usage: true}
	}
	known := 0
	for _, name := range fields {
		if isColumn(name) {
			known++
		}
	}
	if used != columnCount || known != columnCount {
		return &FileError{Reason: "the header names a column twice", Usage: true}
	}
	f.columns.count, rows.columns = len(fields), len(fields)
	return nil
}

func isColumn(name string) bool {
	for _, names := range columnNames {
		for _, n := range names {
			if plainName(n) == plainName(name) {
				return true
			}
		}
	}
	return false
}

func plainName(name string) string {
	return strings.ToLower(strings.Map(func(r rune) rune {
		if r == ' ' || r == '_' {
			return -1
		}
		return r
	}, strings.TrimSpace(name)))
}

// add keeps a row and links it to its invoice.
func (f *File) add(one *row) {
	number := f.numberOf(one)
	at := int32(len(f.rows)) //nolint:gosec // at most MaxRows
	f.rows = append(f.rows, f.keep(one))
	if number != "" {
		if i, ok := f.byNumber[number]; ok {
			g := &f.invoices[i]
			f.rows[g.last].next = at
			g.last = at
			return
		}
		f.byNumber[number] = int32(len(f.invoices)) //nolint:gosec // at most MaxRows
	}
	f.invoices = append(f.invoices, group{number: number, first: at, last: at})
}

// numberOf finds a row's invoice number. Where the row is damaged, the field at the column's place is trusted only if it
// looks like the number of an invoice: it may be any other field, or half of one.
func (f *File) numberOf(one *row) string {
	column := f.columns.at[colInvoice]
	if one.damage == intact {
		fields, _ := split(nil, one.text)
		return invoiceNumber(fields[column])
	}
	fields := strings.SplitN(decode(one.text), ",", column+2)
	if column >= len(fields) {
		return ""
	}
	number := invoiceNumber(strings.Trim(strings.TrimSpace(fields[column]), `"`))
	if digits := strings.TrimLeft(number, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"); len(digits) < 6 || len(number)-len(digits) > 1 ||
		strings.Trim(digits, "0123456789") != "" {
		return ""
	}
	return number
}

// keep copies a row's text into the chunks.
func (f *File) keep(one *row) ref {
	n := len(f.chunks)
	if n == 0 || len(f.chunks[n-1])+len(one.text) > chunkSize {
		// The first chunk grows with what is in it: most files of tests and trials are small.
		f.chunks = append(f.chunks, nil)
		if n > 0 {
			f.chunks[n] = make([]byte, 0, chunkSize)
		}
		n++
	}
	chunk := &f.chunks[n-1]
	r := ref{
		chunk: uint32(n - 1), offset: uint32(len(*chunk)), length: uint32(len(one.text)), //nolint:gosec // bounded by MaxText
		line: uint32(one.line), next: -1, damage: one.damage, //nolint:gosec // bounded by MaxText
	}
	*chunk = append(*chunk, one.text...)
	return r
}

func (f *File) text(r *ref) []byte {
	return f.chunks[r.chunk][r.offset : r.offset+r.length : r.offset+r.length]
}

// Rows counts the rows of the file behind its header, unreadable ones included, blank lines not.
func (f *File) Rows() int { return len(f.rows) }

// Len counts the invoices. A row without an invoice number counts as one.
func (f *File) Len() int { return len(f.invoices) }

// Invoices yields the invoices in the order of their first rows. It may be called again and by several goroutines.
func (f *File) Invoices() iter.Seq[*Invoice] {
	return func(yield func(*Invoice) bool) {
		for i := range f.invoices {
			if !yield(f.invoice(&f.invoices[i])) {
				return
			}
		}
	}
}
