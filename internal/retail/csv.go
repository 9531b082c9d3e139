package retail

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"unicode/utf8"
)

const (
	// maxRow bounds one line of the file in bytes: the longest real one takes 130.
	maxRow = 64 << 10
	// maxJoined bounds how many lines one row may take. A description with a line break in it takes two or three;
	// behind a quote that is never closed there is no end.
	maxJoined = 8
)

// damage says what is wrong with the form of a row, before its fields are looked at.
type damage uint8

const (
	intact damage = iota
	damageFields
	damageQuote
	damageLong
)

var damageTexts = [...]string{
	damageFields: "the row has another number of fields than the header",
	damageQuote:  "a quote is opened and never closed",
	damageLong:   "the row is longer than 64 KiB",
}

// row is one record of the file: usually a line, several where a quoted field holds line breaks.
type row struct {
	line   int // of the file, counted from 1, where the row starts
	text   []byte
	damage damage
}

// rowReader cuts a file into rows. It differs from encoding/csv in what it does about damage: a quote that is never
// closed costs the row it stands in and not all the rows behind it.
type rowReader struct {
	in      *bufio.Reader
	line    int // the number of the last line taken from in
	ahead   []physical
	columns int // of the header; 0 while it is not known
	scratch []string
}

// physical is one line of the file without its end.
type physical struct {
	line int
	text []byte
	long bool
}

func newRowReader(r io.Reader) *rowReader {
	return &rowReader{in: bufio.NewReaderSize(r, 256<<10)}
}

// next returns the next row that is not blank. Its text is the caller's. At the end the error is io.EOF.
func (r *rowReader) next() (row, error) {
	for {
		p, err := r.take()
		if err != nil {
			return row{}, err
		}
		if len(bytes.TrimSpace(p.text)) == 0 {
			continue
		}
		out := row{line: p.line, text: p.text}
		if p.long {
			out.damage = damageLong
			return out, nil
		}
		fields, open := split(r.scratch[:0], p.text)
		r.scratch = fields
		switch {
		case open:
			err = r.join(&out)
		case r.columns > 0 && len(fields) != r.columns:
			out.damage = damageFields
		}
		return out, err
	}
}

// join looks for the lines that end a row in which a quote is open. A line that begins a row of its own ends the
// search: it is not the rest of a description, and must not be swallowed by one. Where it is one after all, both become
// damaged rows, and nothing is lost.
func (r *rowReader) join(out *row) error {
	joined := append([]byte(nil), out.text...)
	for k := range maxJoined {
		if k == len(r.ahead) {
			p, err := r.read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			r.ahead = append(r.ahead, p)
		}
		p := r.ahead[k]
		if p.long || r.begins(p.text) {
			break
		}
		joined = append(append(joined, '\n'), p.text...)
		fields, open := split(r.scratch[:0], joined)
		r.scratch = fields
		if open {
			continue
		}
		if r.columns > 0 && len(fields) != r.columns {
			break
		}
		out.text = joined
		r.ahead = append(r.ahead[:0], r.ahead[k+1:]...)
		return nil
	}
	out.damage = damageQuote
	return nil
}

// begins says whether a line is a row by itself or the start of another one in which a quote is open.
func (r *rowReader) begins(text []byte) bool {
	fields, open := split(r.scratch[:0], text)
	r.scratch = fields
	return open || len(fields) == r.columns
}

func (r *rowReader) take() (physical, error) {
	if len(r.ahead) > 0 {
		p := r.ahead[0]
		r.ahead = append(r.ahead[:0], r.ahead[1:]...)
		return p, nil
	}
	return r.read()
}

// read takes one line from the file. What exceeds maxRow is passed over, so that a file without line ends takes no memory.
func (r *rowReader) read() (physical, error) {
	p := physical{}
	for {
		part, err := r.in.ReadSlice('\n')
		if room := maxRow - len(p.text); len(part) > room {
			p.text, p.long = append(p.text, part[:max(room, 0)]...), true
		} else {
			p.text = append(p.text, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil && (!errors.Is(err, io.EOF) || len(p.text) == 0) {
			return physical{}, err
		}
		break
	}
	r.line++
	p.line = r.line
	for n := len(p.text); n > 0 && (p.text[n-1] == '\n' || p.text[n-1] == '\r'); n-- {
		p.text = p.text[:n-1]
	}
	return p, nil
}

// split cuts a row into its fields and decodes each. A field that starts with a quote ends at a quote before a comma or
// the end of the row; two quotes in it are one; a quote anywhere else is a character like any other. open says that
// the last field's quote was not closed.
func split(fields []string, text []byte) (out []string, open bool) {
	for {
		if len(text) == 0 || text[0] != '"' {
			i := bytes.IndexByte(text, ',')
			if i < 0 {
				return append(fields, decode(text)), false
			}
			fields, text = append(fields, decode(text[:i])), text[i+1:]
			continue
		}
		var value []byte
		i, closed := 1, false
		for ; i < len(text); i++ {
			if text[i] == '"' {
				if i+1 == len(text) || text[i+1] == ',' {
					closed = true
					break
				}
				if text[i+1] == '"' {
					i++
				}
			}
			value = append(value, text[i])
		}
		fields = append(fields, decode(value))
		if !closed {
			return fields, true
		}
		if i+1 == len(text) {
			return fields, false
		}
		text = text[i+2:]
	}
}

// windows1252 are the characters of the bytes 0x80 to 0x9F; all others stand for the character of their own number.
// Source: https://encoding.spec.whatwg.org/index-windows-1252.txt, which maps the five unused bytes to themselves.
var windows1252 = [32]rune{
	0x20AC, 0x0081, 0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021, 0x02C6, 0x2030, 0x0160, 0x2039, 0x0152, 0x008D, 0x017D, 0x008F,
	0x0090, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014, 0x02DC, 0x2122, 0x0161, 0x203A, 0x0153, 0x009D, 0x017E, 0x0178,
}

// decode reads bytes as UTF-8 or, where they are not, as Windows-1252: what spreadsheets write in this part of the world.
func decode(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	out := make([]rune, len(b))
	for i, c := range b {
		if out[i] = rune(c); c >= 0x80 && c < 0xA0 {
			out[i] = windows1252[c-0x80]
		}
	}
	return string(out)
}
