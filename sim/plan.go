package sim

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/millrace-io/millrace/internal/jsonx"
)

// kind is what arrives.
type kind uint8

const (
	webOrder kind = iota
	posBatch
	duplicate
	malformed
	unknownType
	brokenRule
	stockMove
)

// shares are the kinds of arrivals, in per mille.
var shares = [...]struct {
	kind  kind
	share int
}{{webOrder, 620}, {posBatch, 30}, {duplicate, 100}, {malformed, 50}, {unknownType, 40}, {brokenRule, 60}, {stockMove, 100}}

// Sales in one batch of a store.
const (
	minSales = 10
	maxSales = 50
)

// arrival is one thing that is sent, complete before anything was answered.
type arrival struct {
	n    int
	kind kind
	due  time.Duration
	id   string

	orders []*simOrder // one, or the sales of a batch
	steps  []step      // the way of a web order
	body   []byte      // of a malformed message
	move   move
}

// simOrder is an order as the simulator knows it.
type simOrder struct {
	id       string
	currency string
	body     []byte
	first    int64 // the quantity of its first line
	units    int64
	minor    int64
	// What it must look like, as far as it was answered. The arrival that owns it writes them.
	status  string
	placed  bool
	unclear bool // a request for it got no answer
}

// step is one request for a web order, and the status that it leads to.
type step struct {
	verb, body, status string
}

// move is one movement of stock.
type move struct {
	sku      string
	receive  bool
	quantity int64
	then     string // what follows a reservation: commit, release or nothing
}

// plan yields arrivals. It depends on the seed, the run's name and the rate, and on nothing that is answered.
type plan struct {
	r         *rand.Rand
	run, day  string
	rate      float64
	n         int
	due       time.Duration
	customers int
}

func newPlan(seed uint64, run, day string, rate float64) *plan {
	return &plan{r: rand.New(rand.NewPCG(seed, 0x6d696c6c72616365)), run: run, day: day, rate: rate, customers: 200} //nolint:gosec // reproducible on purpose
}

// ownDay is a day of the years 1990 to 2017 that belongs to the run.
func ownDay(run string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(run)) // a hash never fails
	return time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC).AddDate(0, 0, int(h.Sum32()%10_000)).Format(time.DateOnly)
}

func (p *plan) next() arrival {
	p.due += time.Duration(p.r.ExpFloat64() / p.rate * float64(time.Second))
	p.n++
	a := arrival{n: p.n, due: p.due, id: p.run + "-" + strconv.Itoa(p.n)}
	dice := p.r.IntN(1000)
	for _, s := range shares {
		if dice -= s.share; dice < 0 {
			a.kind = s.kind
			break
		}
	}
	switch a.kind {
	case webOrder:
		o := p.order(a.id, "web")
		a.orders, a.steps = []*simOrder{o}, p.walk(o)
	case duplicate:
		a.orders = []*simOrder{p.order(a.id, "phone")}
	case posBatch:
		for s := range minSales + p.r.IntN(maxSales-minSales+1) {
			a.orders = append(a.orders, p.order(a.id+"-"+strconv.Itoa(s+1), "pos"))
		}
	case malformed:
		a.body = p.broken(a.id)
	case brokenRule:
		a.body = p.against(a.id)
	case stockMove:
		a.move = move{
			sku: fmt.Sprintf("%s-sku-%d", p.run, p.r.IntN(skus)), receive: p.r.IntN(3) == 0, quantity: 1 + p.r.Int64N(20),
			then: [...]string{"commit", "commit", "release", ""}[p.r.IntN(4)],
		}
		if a.move.receive {
			a.move.quantity *= 3
		}
	case unknownType:
	}
	return a
}

type orderLine struct {
	SKU         string `json:"sku"`
	Description string `json:"description,omitempty"`
	Quantity    int64  `json:"quantity"`
	UnitPrice   string `json:"unit_price"`
}

type orderBody struct {
	ID         string      `json:"id"`
	CustomerID string      `json:"customer_id,omitempty"`
	Channel    string      `json:"channel"`
	Currency   string      `json:"currency"`
	Fulfilment string      `json:"fulfilment"`
	PlacedAt   string      `json:"placed_at,omitempty"`
	ShipTo     *address    `json:"ship_to,omitempty"`
	Lines      []orderLine `json:"lines"`
}

type address struct {
	City    string `json:"city"`
	Country string `json:"country"`
}

var (
	goods  = [...]string{"LANTERN", "HAND WARMER", "LUNCH BAG", "CAKE CASES", "TEA TOWEL", "ALARM CLOCK", "JUG", "PICTURE FRAME"}
	cities = [...]address{{"London", "GB"}, {"Leeds", "GB"}, {"Paris", "FR"}, {"Berlin", "DE"}, {"Dublin", "IE"}, {"Oslo", "NO"}}
)

// order draws an order and computes what it comes to.
func (p *plan) order(id, channel string) *simOrder {
	o := &simOrder{id: id, currency: "GBP"}
	if p.r.IntN(5) == 0 {
		o.currency = "EUR"
	}
	b := orderBody{ID: id, Channel: channel, Currency: o.currency, Fulfilment: "manual"}
	if channel != "pos" {
		b.CustomerID = "c-" + strconv.Itoa(1+p.r.IntN(p.customers))
		to := cities[p.r.IntN(len(cities))]
		b.ShipTo = &to
	}
	if p.day != "" {
		b.PlacedAt = p.day + "T" + time.Unix(p.r.Int64N(86400), 0).UTC().Format("15:04:05") + "Z"
	}
	for range 1 + p.r.IntN(5) {
		g := p.r.IntN(len(goods))
		quantity, price := 1+p.r.Int64N(12), 100_000+10_000*p.r.Int64N(5000) // millionths
		if p.r.IntN(10) == 0 {
			price += p.r.Int64N(10_000) // fractions of a penny
		}
		b.Lines = append(b.Lines, orderLine{
			SKU: "sku-" + strconv.Itoa(g), Description: goods[g], Quantity: quantity, UnitPrice: fmt.Sprintf("%d.%06d", price/1_000_000, price%1_000_000),
		})
		o.units += quantity
		o.minor += rounded(quantity * price)
	}
	o.first = b.Lines[0].Quantity
	o.body = encode(&b)
	return o
}

// rounded turns millionths of a unit into hundredths, half to even.
func rounded(millionths int64) int64 {
	const per = 10_000
	whole, rest := millionths/per, millionths%per
	if 2*rest > per || (2*rest == per && whole%2 == 1) {
		whole++
	}
	return whole
}

// encode writes JSON. The types are ours and hold nothing that has no JSON.
func encode(v any) []byte {
	b, err := jsonx.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// walk draws how far an order comes.
func (p *plan) walk(o *simOrder) []step {
	way := []step{{"confirm", "", "confirmed"}, {"pay", `{"reference":"p-` + o.id + `"}`, "confirmed"}, {"pack", "", "packed"}}
	if o.first > 1 && p.r.IntN(3) == 0 {
		part := fmt.Sprintf(`{"lines":[{"line":1,"quantity":%d}],"carrier":"van"}`, 1+p.r.Int64N(o.first-1))
		way = append(way, step{"ship", part, "partly_shipped"})
	}
	way = append(way, step{"ship", `{"carrier":"post","tracking_number":"t-` + o.id + `"}`, "shipped"}, step{"deliver", "", "completed"})
	switch p.r.IntN(12) {
	case 0:
		way = append(way, step{"return", `{"reason":"changed mind"}`, "returned"})
	case 1:
		if o.units > 1 {
			way = append(way, step{"return", `{"lines":[{"line":1,"quantity":1}],"reason":"broken"}`, "partly_returned"})
		}
	}
	n := p.r.IntN(len(way) + 1)
	way = way[:n]
	if n <= 3 && p.r.IntN(6) == 0 {
		way = append(way, step{"cancel", `{"reason":"customer"}`, "cancelled"})
	}
	return way
}

// broken draws a document that no strict reader takes.
func (p *plan) broken(id string) []byte {
	whole := string(p.order(id, "web").body)
	switch p.r.IntN(7) {
	case 0:
		return []byte(whole[:len(whole)/2])
	case 1:
		return []byte(whole[:len(whole)-1] + `,"currency":"USD"}`)
	case 2:
		return []byte(whole[:len(whole)-1] + `,"discount":1}`)
	case 3:
		return []byte(whole[:len(whole)-1] + `,"customer":"\u0000"}`)
	case 4:
		return []byte(whole + "{}")
	case 5:
		return append([]byte(whole[:len(whole)-1]), ",\"x\":\"\xff\"}"...)
	}
	return []byte(`{"id":"` + id + `","currency":"GBP","lines":"none"}`)
}

// against draws an order that the rules refuse.
func (p *plan) against(id string) []byte {
	b := orderBody{ID: id, Channel: "web", Currency: "GBP", Lines: []orderLine{
		{SKU: "sku-1", Quantity: 1, UnitPrice: "1.00"}, {SKU: "sku-2", Quantity: -p.r.Int64N(3), UnitPrice: "2.50"},
	}}
	if p.r.IntN(2) == 0 {
		b.Lines[1] = orderLine{SKU: "sku-2", Quantity: 1, UnitPrice: "-0.01"}
	}
	return encode(&b)
}
