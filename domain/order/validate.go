package order

import (
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/money"
)

// faults collects what is wrong with the form of a command, up to [maxFaults]. No text in it repeats a value.
type faults []millrace.FieldError

func (f *faults) add(pointer, detail string) {
	if len(*f) < maxFaults {
		*f = append(*f, millrace.FieldError{Pointer: pointer, Detail: detail})
	}
}

// addIf adds a fault unless detail is empty.
func (f *faults) addIf(pointer, detail string) {
	if detail != "" {
		f.add(pointer, detail)
	}
}

const (
	missing  = "is missing"
	control  = "must not hold control characters"
	notUTF8  = "must be valid UTF-8"
	minYear  = 1970
	maxYear  = 9999
	badYear  = "must be a time in the years 1970 to 9999"
	noNumber = "must be within ±100000000"
)

func (f *faults) id(pointer, s string) { f.addIf(pointer, idFault(s, MaxID, false)) }

func (f *faults) reservation(id string) { f.addIf("/reservation", idFault(id, MaxReservationID, true)) }

func idFault(s string, limit int, required bool) string {
	if s == "" && !required {
		return ""
	}
	if s == "" {
		return missing
	}
	if len(s) > limit {
		return "must not be longer than " + strconv.Itoa(limit) + " bytes"
	}
	_, detail := countText(s)
	return detail
}

func (f *faults) text(pointer, s string, limit int, required bool) {
	f.addIf(pointer, textFault(s, limit, required))
}

func textFault(s string, limit int, required bool) string {
	if s == "" {
		if required {
			return missing
		}
		return ""
	}
	n, detail := countText(s)
	if detail == "" && n > limit {
		detail = "must not be longer than " + strconv.Itoa(limit) + " characters"
	}
	return detail
}

// countText counts the characters of a text, or says what is wrong with one of them.
func countText(s string) (characters int, detail string) {
	for i := 0; i < len(s); characters++ {
		c := s[i]
		if c < utf8.RuneSelf {
			if c < ' ' || c == 0x7f {
				return 0, control
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			return 0, notUTF8
		case r < 0xa0: // the second block of control characters
			return 0, control
		}
		i += n
	}
	return characters, ""
}

// SKUFault says what is wrong with an SKU, or "". Spaces inside are fine: real codes have them.
func SKUFault(s string) string {
	if detail := idFault(s, MaxSKU, true); detail != "" {
		return detail
	}
	if s[0] == ' ' || s[len(s)-1] == ' ' {
		return "must not begin or end with a space"
	}
	return ""
}

// IDFault says what is wrong with the id of an order or a return, or "".
func IDFault(s string) string { return idFault(s, MaxID, true) }

// emailFault says what is wrong with an e-mail address, or "". It looks for what cannot be one, and for what would leave its
// place in the header of a mail; whether there is a mailbox is the mail server's to say.
func emailFault(s string) string {
	if s == "" {
		return ""
	}
	if len(s) > MaxEmail {
		return "must not be longer than " + strconv.Itoa(MaxEmail) + " bytes"
	}
	if _, detail := countText(s); detail != "" {
		return detail
	}
	at := strings.IndexByte(s, '@')
	if at < 1 || at == len(s)-1 || strings.Count(s, "@") != 1 {
		return "must be an e-mail address"
	}
	for _, r := range s {
		if unicode.IsSpace(r) {
			return "must not hold spaces"
		}
	}
	return ""
}

// languageFault says what is wrong with the form of a language tag, or "": subtags of letters and digits, the first of
// letters. Which language it is, is looked at by who writes in it.
func languageFault(s string) string {
	const wrong = "must be a language tag of BCP 47"
	if s == "" {
		return ""
	}
	if len(s) > MaxLanguage {
		return "must not be longer than " + strconv.Itoa(MaxLanguage) + " bytes"
	}
	for n, tag := range strings.Split(s, "-") {
		if len(tag) < 1 || len(tag) > 8 || n == 0 && len(tag) < 2 {
			return wrong
		}
		for i := range len(tag) {
			c := tag[i] | 0x20 // letters in lower case
			if (c < 'a' || c > 'z') && (n == 0 || tag[i] < '0' || tag[i] > '9') {
				return wrong
			}
		}
	}
	return ""
}

func (f *faults) currency(pointer, code string) {
	if code == "" {
		f.add(pointer, missing)
	} else if _, ok := money.ParseCurrency(code); !ok {
		f.add(pointer, "must be a currency code of ISO 4217")
	}
}

func (f *faults) time(pointer string, t *time.Time) {
	if t == nil {
		return
	}
	if y := t.UTC().Year(); y < minYear || y > maxYear {
		f.add(pointer, badYear)
	}
}

func (f *faults) quantity(pointer string, q *int64) {
	switch {
	case q == nil:
		f.add(pointer, missing)
	case *q > MaxQuantity || *q < -MaxQuantity:
		f.add(pointer, noNumber)
	}
}

func (f *faults) address(a *Address) {
	if a == nil {
		return
	}
	if *a == (Address{}) {
		f.add("/ship_to", "must not be empty")
	}
	f.text("/ship_to/name", a.Name, MaxAddressPart, false)
	f.text("/ship_to/line1", a.Line1, MaxAddressPart, false)
	f.text("/ship_to/city", a.City, MaxAddressPart, false)
	f.text("/ship_to/postal_code", a.PostalCode, MaxAddressPart, false)
	f.text("/ship_to/country", a.Country, MaxAddressPart, false)
}

// member points to a member of a line; i is counted from 0, as JSON pointers do.
func member(i int, name string) string { return "/lines/" + strconv.Itoa(i) + "/" + name }

func (f *faults) lineCount(n int) {
	if n < 1 || n > MaxLines {
		f.add("/lines", "must have 1 to "+strconv.Itoa(MaxLines)+" elements")
	}
}

func (f *faults) lines(lines []LineRequest) {
	f.lineCount(len(lines))
	for i := range lines {
		if len(*f) == maxFaults {
			return
		}
		l := &lines[i]
		if d := SKUFault(l.SKU); d != "" {
			f.add(member(i, "sku"), d)
		}
		if d := textFault(l.Description, MaxDescription, false); d != "" {
			f.add(member(i, "description"), d)
		}
		f.quantityOf(i, l.Quantity)
		if l.UnitPrice == "" {
			f.add(member(i, "unit_price"), missing)
		} else if _, err := money.ParsePrice(l.UnitPrice); err != nil {
			f.add(member(i, "unit_price"), err.Error())
		}
	}
}

// quantities checks lines of a shipment or a return of an order; nil stands for everything.
func (f *faults) quantities(lines []QuantityRequest) {
	if lines == nil {
		return
	}
	f.lineCount(len(lines))
	var seen [MaxLines/64 + 1]uint64
	for i := range lines {
		l := &lines[i]
		switch n := l.Line; {
		case n < 1 || n > MaxLines:
			f.add(member(i, "line"), "must be the number of a line, from 1")
		case seen[n/64]&(1<<(n%64)) != 0:
			f.add(member(i, "line"), "is there twice")
		default:
			seen[n/64] |= 1 << (n % 64)
		}
		f.quantityOf(i, l.Quantity)
	}
}

// quantityOf is quantity for a line; the pointer, which costs an allocation, is only made for a fault.
func (f *faults) quantityOf(i int, q *int64) {
	if q == nil || *q > MaxQuantity || *q < -MaxQuantity {
		f.quantity(member(i, "quantity"), q)
	}
}
