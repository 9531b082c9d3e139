package order

import (
	"strconv"
	"strings"
	"time"

	"github.com/millrace-io/millrace/internal/money"
)

// Fulfilling is what the process knows of an order that it carries through. Its zero, but for the id, is an order that it
// leaves alone. It is written with each commit, so that its names are short and lists are texts: see below. It is never changed.
type Fulfilling struct {
	ID        string       `json:"id"`
	Version   uint64       `json:"v,omitzero"` // of the newest event
	Status    Status       `json:"st,omitempty"`
	Customer  string       `json:"cu,omitempty"`
	Backorder Backorder    `json:"bo,omitempty"`
	Total     money.Amount `json:"to,omitzero"`
	// LinesVersion is the version that the lines are of.
	LinesVersion uint64    `json:"lv,omitzero"`
	Lines        openLines `json:"l,omitempty"`
	Goods        goods     `json:"g,omitempty"`
	Restocks     restocks  `json:"rs,omitempty"` // that are to be done
	Reserved     int       `json:"n,omitzero"`   // the number of the newest reservation
	Restocked    int       `json:"rn,omitzero"`  // the number of the newest restock
	Parcels      int       `json:"pa,omitzero"`
	Returns      int       `json:"re,omitzero"`
	Delivered    bool      `json:"de,omitzero"`
	Closed       bool      `json:"cl,omitzero"`
	Fail         string    `json:"f,omitempty"` // why it is to be cancelled
	GaveUp       bool      `json:"gu,omitzero"` // stock was waited for long enough
	HeldAt       time.Time `json:"ha,omitzero"` // when the first stock was reserved that is held now
	ShortAt      time.Time `json:"sa,omitzero"` // since when stock is short
	RetryAt      time.Time `json:"ra,omitzero"` // when it is asked for again
	Retries      int       `json:"rt,omitzero"` // how often it was
	Retried      int       `json:"rr,omitzero"` // reservations that were
	Settled      string    `json:"s,omitempty"` // the newest step on the order itself whose outcome is known
	Refused      string    `json:"sr,omitempty"`
	Stuck        string    `json:"x,omitempty"` // what a person has to look at
	Pay          paying    `json:"p,omitzero"`

	// before are the goods as they were before the last input: what is under way with them was wanted before. It is not kept.
	before goods
}

// paying is how far the payment has come. Amounts are in minor units of the order's currency.
type paying struct {
	Ask    string    `json:"q,omitempty"` // the call whose answer is not a fact yet; there is one at a time
	Amount int64     `json:"m,omitzero"`  // of that call
	Of     string    `json:"k,omitempty"` // the gateway's name for what it is about
	Since  time.Time `json:"w,omitzero"`  // when the order came to wait for its payment

	Number uint64 `json:"n,omitzero"` // of the newest authorisation: the version of the lines that it is for
	// Standing are the authorisations that the gateway holds. It is one, unless documents were lost between two.
	Standing []authorisation `json:"h,omitempty"`
	// Pending are those that were asked for, or were about to be, in another life, and whose answers are not facts yet.
	Pending    []authorisation `json:"b,omitempty"`
	Payment    string          `json:"i,omitempty"` // the gateway's name for what was captured
	Captured   int64           `json:"t,omitzero"`
	Refunded   int64           `json:"g,omitzero"`
	Paid       bool            `json:"p,omitzero"`
	Other      bool            `json:"o,omitzero"` // it was paid by other means
	Declined   bool            `json:"d,omitzero"` // the authorisation was
	Authorises int             `json:"a,omitzero"` // how many there were
	Captures   int             `json:"c,omitzero"` // captures that were declined
	Refunds    int             `json:"r,omitzero"` // calls for refunds so far
	Failures   int             `json:"f,omitzero"` // captures or refunds that were declined, one after the other
	AgainAt    time.Time       `json:"z,omitzero"` // when the next one is made
	Due        int64           `json:"e,omitzero"` // what returns and the like came to in all
	Dues       dues            `json:"l,omitempty"`
	Numbered   int             `json:"u,omitzero"` // the number of the newest of them
}

// authorisation is money that the gateway has set aside, or was asked to.
type authorisation struct {
	Number  uint64 `json:"n,omitzero"`
	Amount  int64  `json:"a"`
	Payment string `json:"i,omitempty"`
}

// openLine is a line of the order by what is still to leave of it.
type openLine struct {
	good int // of which SKU, as an index of goods
	left int64
}

// good is an SKU of the order: lines of the same SKU are one.
type good struct {
	sku   string
	left  int64  // to be shipped still
	debts []part // what was shipped and has not left the stock, by parcels
	cuts  []cut  // what is to be reserved no longer
	holds []hold // its reservations
}

// part is a quantity of a parcel.
type part struct {
	parcel   int
	quantity int64
}

// cut is a quantity that an event took from what is wanted. Where it falls on a reservation of which there was too little
// stock, a smaller one takes its place, whose number is set aside here.
type cut struct {
	version  uint64 // of the event
	n        int
	quantity int64
}

// hold is a reservation. At any time one thing is done with it, and the others wait.
type hold struct {
	n     int // its number
	op    byte
	open  int64  // reserved, or to be; without part
	part  int64  // that is being committed or released
	mark  uint64 // the parcel of a commit, or the version of a cut; zero for a release of all
	tries int    // how often stock was short
}

// How a reservation stands, and what is under way with it.
const (
	opQueued  = 'q' // to be asked for when there is room
	opReserve = 'r'
	opShort   = 's' // there was too little stock
	opHeld    = 'h'
	opCommit  = 'c'
	opRelease = 'x'

	ops = "qrshcx"
)

// restock is goods that came back and are to be received.
type restock struct {
	n, ret, good int
	quantity     int64
}

// due is money that is to be given back.
type due struct {
	n      int
	amount int64
	tries  int // that were declined
}

type (
	openLines []openLine
	goods     []good
	restocks  []restock
	dues      []due
)

// The lists are texts, each a single value for the JSON decoder, which bounds how many a document may hold: an order may have
// thousands of lines.

// MarshalText gives "good left" for each line.
func (l openLines) MarshalText() ([]byte, error) {
	return appendList(nil, l, func(dst []byte, v openLine) []byte { return appendNumbers(dst, ' ', int64(v.good), v.left) }), nil
}

// UnmarshalText reads what MarshalText wrote.
func (l *openLines) UnmarshalText(text []byte) (err error) {
	*l, err = parseList(string(text), " ", 2, func(v []int64) openLine { return openLine{int(v[0]), v[1]} })
	return err
}

// MarshalText gives "number return good quantity" for each.
func (r restocks) MarshalText() ([]byte, error) {
	return appendList(nil, r, func(dst []byte, v restock) []byte {
		return appendNumbers(dst, ' ', int64(v.n), int64(v.ret), int64(v.good), v.quantity)
	}), nil
}

// UnmarshalText reads what MarshalText wrote.
func (r *restocks) UnmarshalText(text []byte) (err error) {
	*r, err = parseList(string(text), " ", 4, func(v []int64) restock { return restock{int(v[0]), int(v[1]), int(v[2]), v[3]} })
	return err
}

// MarshalText gives "number amount tries" for each.
func (d dues) MarshalText() ([]byte, error) {
	return appendList(nil, d, func(dst []byte, v due) []byte { return appendNumbers(dst, ' ', int64(v.n), v.amount, int64(v.tries)) }), nil
}

// UnmarshalText reads what MarshalText wrote.
func (d *dues) UnmarshalText(text []byte) (err error) {
	*d, err = parseList(string(text), " ", 3, func(v []int64) due { return due{int(v[0]), v[1], int(v[2])} })
	return err
}

// MarshalText gives a line for each SKU: "left debts cuts holds sku", where a hold is "<number><op><open>" and, where they
// are not zero, ".<part>.<mark>.<tries>".
func (g goods) MarshalText() ([]byte, error) {
	dst := make([]byte, 0, 32*len(g))
	for i := range g {
		it := &g[i]
		dst = append(strconv.AppendInt(dst, it.left, 10), ' ')
		dst = appendList(dst, it.debts, func(dst []byte, v part) []byte { return appendNumbers(dst, '.', int64(v.parcel), v.quantity) })
		dst = append(dst, ' ')
		dst = appendList(dst, it.cuts, func(dst []byte, v cut) []byte {
			return appendNumbers(dst, '.', int64(v.version), int64(v.n), v.quantity) //nolint:gosec // far below 2^63
		})
		dst = append(dst, ' ')
		dst = appendList(dst, it.holds, func(dst []byte, h hold) []byte {
			dst = append(strconv.AppendInt(dst, int64(h.n), 10), h.op)
			more := []int64{h.open, h.part, int64(h.mark), int64(h.tries)} //nolint:gosec // far below 2^63
			for len(more) > 1 && more[len(more)-1] == 0 {
				more = more[:len(more)-1]
			}
			return appendNumbers(dst, '.', more...)
		})
		dst = append(append(append(dst, ' '), it.sku...), '\n')
	}
	return dst, nil
}

// UnmarshalText reads what MarshalText wrote.
func (g *goods) UnmarshalText(text []byte) error {
	const fields = 5
	for line := range strings.Lines(string(text)) {
		field := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", fields)
		if len(field) != fields {
			return errFulfilling
		}
		it := good{sku: field[4]}
		var err error
		if it.left, err = strconv.ParseInt(field[0], 10, 64); err != nil {
			return errFulfilling
		}
		if it.debts, err = parseList(field[1], ".", 2, func(v []int64) part { return part{int(v[0]), v[1]} }); err != nil {
			return err
		}
		if it.cuts, err = parseList(field[2], ".", 3, func(v []int64) cut { return cut{uint64(v[0]), int(v[1]), v[2]} }); err != nil { //nolint:gosec // as written
			return err
		}
		if field[3] != "" {
			for one := range strings.SplitSeq(field[3], ",") {
				h, ok := parseHold(one)
				if !ok {
					return errFulfilling
				}
				it.holds = append(it.holds, h)
			}
		}
		*g = append(*g, it)
	}
	return nil
}

func parseHold(s string) (h hold, ok bool) {
	at := strings.IndexAny(s, ops)
	if at < 1 {
		return h, false
	}
	n, err := strconv.Atoi(s[:at])
	v, ok := numbers(s[at+1:], ".")
	if err != nil || !ok || len(v) > 4 {
		return h, false
	}
	v = append(v, 0, 0, 0)
	return hold{n: n, op: s[at], open: v[0], part: v[1], mark: uint64(v[2]), tries: int(v[3])}, true //nolint:gosec // as written
}

// appendList appends elements with commas between them.
func appendList[T any](dst []byte, list []T, each func([]byte, T) []byte) []byte {
	for i := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = each(dst, list[i])
	}
	return dst
}

// parseList reads a list of elements of n numbers.
func parseList[T any](s, between string, n int, of func([]int64) T) (list []T, err error) {
	if s == "" {
		return nil, nil
	}
	for one := range strings.SplitSeq(s, ",") {
		v, ok := numbers(one, between)
		if !ok || len(v) != n {
			return nil, errFulfilling
		}
		list = append(list, of(v))
	}
	return list, nil
}

func appendNumbers(dst []byte, between byte, v ...int64) []byte {
	for i, n := range v {
		if i > 0 {
			dst = append(dst, between)
		}
		dst = strconv.AppendInt(dst, n, 10)
	}
	return dst
}

func numbers(s, between string) (v []int64, ok bool) {
	for one := range strings.SplitSeq(s, between) {
		n, err := strconv.ParseInt(one, 10, 64)
		if err != nil {
			return nil, false
		}
		v = append(v, n)
	}
	return v, true
}

var errFulfilling = &fulfillingError{}

type fulfillingError struct{}

func (*fulfillingError) Error() string  { return "must be a list as the process writes it" }
func (*fulfillingError) Public() string { return errFulfilling.Error() }
