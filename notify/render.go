package notify

import (
	"bytes"
	"embed"
	"fmt"
	html "html/template"
	"strings"
	text "text/template"
	"time"
	"unicode"

	"github.com/millrace-io/millrace/internal/money"
	"github.com/millrace-io/millrace/internal/notice"
)

//go:embed templates
var files embed.FS

// languages are those in which mails are written. The first one is for all others.
var languages = []string{"en", "de"}

// textWidth is where the lines of a mail in plain text break, which people read in columns of 80.
const textWidth = 72

// Language is the language in which a tag of BCP 47 is written to: its own, or English.
func Language(tag string) string {
	first, _, _ := strings.Cut(strings.ToLower(tag), "-")
	for _, l := range languages {
		if l == first {
			return l
		}
	}
	return languages[0]
}

// page is what the layouts see: the notice, and what its own templates make of it.
type page struct {
	N                             *notice.Notice
	Shop, Language                string
	Subject, Title, First, Second string
	ShowTotal                     bool
}

// Writer writes mails. Its methods are safe for use by several goroutines.
type Writer struct {
	text map[string]*text.Template // by language and kind
	html map[string]*html.Template
}

// NewWriter reads the templates.
func NewWriter() (*Writer, error) {
	w := &Writer{text: map[string]*text.Template{}, html: map[string]*html.Template{}}
	for _, l := range languages {
		for _, k := range notice.Kinds() {
			var err error
			key, words := l+"/"+string(k), functions(l)
			names := []string{"templates/heading.tmpl", "templates/" + l + "/words.tmpl", "templates/" + key + ".tmpl"}
			if w.text[key], err = text.New("").Funcs(words).ParseFS(files, append(names, "templates/layout.txt")...); err != nil {
				return nil, err
			}
			if w.html[key], err = html.New("").Funcs(words).ParseFS(files, append(names, "templates/layout.html")...); err != nil {
				return nil, err
			}
		}
	}
	return w, nil
}

// Write writes the mail of a notice: in plain text and in HTML, both with the same content.
func (w *Writer) Write(n *notice.Notice, shop string) (*Message, error) {
	p := &page{
		N: n, Shop: oneLine(shop), Language: Language(n.Language),
		ShowTotal: len(n.Lines) > 0 && n.Parcel == nil && n.Kind != notice.Refunded,
	}
	key := p.Language + "/" + string(n.Kind)
	t := w.text[key]
	if t == nil {
		return nil, fmt.Errorf("no mail is written for a notice of kind %q", n.Kind)
	}
	for name, into := range map[string]*string{"subject": &p.Subject, "title": &p.Title, "first": &p.First, "second": &p.Second} {
		s, err := execute(t, name, p)
		if err != nil {
			return nil, err
		}
		*into = oneLine(s)
	}
	m := &Message{Language: p.Language, Subject: p.Subject}
	var err error
	if m.Text, err = execute(t, "layout.txt", p); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := w.html[key].ExecuteTemplate(&out, "layout.html", p); err != nil {
		return nil, err
	}
	m.HTML = out.String()
	return m, nil
}

func execute(t *text.Template, name string, p *page) (string, error) {
	var out strings.Builder
	err := t.ExecuteTemplate(&out, name, p)
	return out.String(), err
}

// functions are what templates write numbers, times and goods by.
func functions(language string) map[string]any {
	return map[string]any{
		"date":   func(t time.Time) string { return date(t, language) },
		"amount": func(d *money.Decimal) string { return amount(*d, language) },
		"money":  func(a money.Amount) string { return amount(a.Decimal(), language) + "\u00a0" + a.Currency.String() },
		"name":   name,
		"wrap":   wrap,
	}
}

// name is what a line is called: its description, or its SKU where there is none.
func name(l notice.Line) string {
	if l.Description == "" {
		return l.SKU
	}
	return l.Description + " (" + l.SKU + ")"
}

// amount writes an amount with its thousands apart: 1,234.50 in English, 1.234,50 in German.
func amount(d money.Decimal, language string) string {
	point, group := ".", ","
	if language == "de" {
		point, group = ",", "."
	}
	whole, part, has := strings.Cut(d.String(), ".")
	sign := ""
	if strings.HasPrefix(whole, "-") {
		sign, whole = "-", whole[1:]
	}
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + group + whole[i:]
	}
	if has {
		whole += point + part
	}
	return sign + whole
}

// germanMonths are the names of the months, which package time has in English only.
var germanMonths = [...]string{
	"Januar", "Februar", "März", "April", "Mai", "Juni", "Juli", "August", "September", "Oktober", "November", "Dezember",
}

// date writes the day of a time, in UTC: where the customer is, nobody knows.
func date(t time.Time, language string) string {
	t = t.UTC()
	if language == "de" {
		return fmt.Sprintf("%d. %s %d", t.Day(), germanMonths[t.Month()-1], t.Year())
	}
	return t.Format("2 January 2006")
}

// oneLine makes a text fit for a header, and what customers wrote unable to pass for another paragraph.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsControl(r) || r == ' ' }), " ")
}

// wrap breaks a paragraph into lines, between words.
func wrap(s string) string {
	var out strings.Builder
	width := 0
	for i, word := range strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == '\n' }) {
		n := len([]rune(word))
		switch {
		case i == 0:
		case width+1+n > textWidth:
			out.WriteByte('\n')
			width = 0
		default:
			out.WriteByte(' ')
			width++
		}
		out.WriteString(word)
		width += n
	}
	return out.String()
}
