package scenario

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// customer is one order and what is to become of it.
type customer struct {
	id    string
	lines []line
	r     *rand.Rand
	// cancelled says that the server has taken the customer's cancellation.
	cancelled bool
	// back are the pieces that came back by SKU, of which scrapped ones are not for sale again.
	back, scrapped map[string]int64
	// order is the order in the end.
	order orderState
}

type line struct {
	SKU       string `json:"sku"`
	Quantity  int64  `json:"quantity"`
	UnitPrice string `json:"unit_price"`
}

type orderRequest struct {
	ID         string `json:"id"`
	CustomerID string `json:"customer_id"`
	Currency   string `json:"currency"`
	Fulfilment string `json:"fulfilment"`
	Lines      []line `json:"lines"`
}

// orderState is what is looked at of an order.
type orderState struct {
	status, reason string
	paid           bool
	currency       string
	total, refund  int64 // in minor units
	lines          []lineState
}

type lineState struct {
	sku               string
	shipped, returned int64
}

// end is the order's status, with the reason where it was cancelled.
func (o *orderState) end() string {
	if o.reason != "" {
		return o.status + ": " + o.reason
	}
	return o.status
}

// readOrder takes from an answer what is looked at.
func readOrder(m client.Object) orderState {
	o := orderState{status: m.Text("status"), reason: m.Text("cancel_reason"), currency: m.Object("total").Text("currency")}
	m.Into("paid", &o.paid)
	o.total, _ = client.Minor(m.Object("total").Text("amount"))
	if r := m.Object("refund"); r != nil {
		o.refund, _ = client.Minor(r.Text("amount"))
	}
	for _, l := range m.List("lines") {
		s := lineState{sku: l.Text("sku")}
		l.Into("shipped", &s.shipped)
		l.Into("returned", &s.returned)
		o.lines = append(o.lines, s)
	}
	return o
}

// instanceState is what is looked at of an order's way.
type instanceState struct {
	state, waits, failed string
	done                 bool
}

// post sends a command and gives its outcome: decided, or refused with a code.
func (s *story) post(ctx context.Context, path, key string, body any) (code string, err error) {
	data, err := jsonx.Marshal(body)
	if err != nil {
		return "", err
	}
	res, err := s.client.Post(ctx, path, key, data, answerWait)
	switch {
	case err != nil:
		return "", err
	case res.Status == http.StatusAccepted:
		st, err := s.client.Settle(ctx, key, s.Patience)
		if err == nil && st.Status == client.StatusDead {
			err = fmt.Errorf("%s: a dead letter: %s", path, st.Code)
		}
		return st.Code, err
	case res.Problem != nil && res.Problem.Kept() && res.Problem.Code != client.CodeDeadLetter:
		return res.Problem.Code, nil
	}
	return "", res.Err()
}

// must is post for what is not to be refused.
func (s *story) must(ctx context.Context, path, key string, body any) error {
	code, err := s.post(ctx, path, key, body)
	if err == nil && code != "" {
		err = fmt.Errorf("%s is refused: %s", path, code)
	}
	return err
}

// get reads something; nil where there is nothing.
func (s *story) get(ctx context.Context, path string) (client.Object, error) {
	res, err := s.client.Get(ctx, path)
	switch {
	case err != nil:
		return nil, err
	case res.Status == http.StatusNotFound:
		return nil, nil
	case res.Err() != nil:
		return nil, res.Err()
	}
	return client.Members(res.Body)
}

// sku is one of the run's own.
func (s *story) sku(n int) string { return s.Run + "-sku-" + strconv.Itoa(n) }

// receive has goods come in.
func (s *story) receive(ctx context.Context, sku string, quantity int64) error {
	body := struct {
		Quantity  int64  `json:"quantity"`
		Reference string `json:"reference"`
	}{quantity, s.Run}
	s.stock[sku] += quantity
	return s.must(ctx, "/v1/stock/"+url.PathEscape(sku)+"/receive", fmt.Sprintf("%s-receive-%d", sku, s.stock[sku]), &body)
}

// customers are as many as there are orders, each with up to three lines of some of the run's SKUs. All of them together
// could be served by what needed is, by SKU.
func (s *story) customers(skus int) (needed map[string]int64) {
	needed = map[string]int64{}
	for i := range s.Orders {
		c := &customer{
			id: fmt.Sprintf("%s-%05d", s.Run, i), r: rand.New(rand.NewPCG(s.Seed, uint64(i))), //nolint:gosec // not a secret
			back: map[string]int64{}, scrapped: map[string]int64{},
		}
		for range 1 + c.r.IntN(3) {
			l := line{SKU: s.sku(c.r.IntN(skus)), Quantity: 1 + c.r.Int64N(5), UnitPrice: fmt.Sprintf("%d.%02d", 1+c.r.IntN(50), c.r.IntN(100))}
			needed[l.SKU] += l.Quantity
			c.lines = append(c.lines, l)
		}
		s.orders = append(s.orders, c)
	}
	return needed
}

// stockUp receives what all customers together need.
func (s *story) stockUp(ctx context.Context, needed map[string]int64) error {
	for sku, n := range needed {
		if err := s.receive(ctx, sku, n); err != nil {
			return err
		}
	}
	return nil
}

// place places a customer's order.
func (s *story) place(ctx context.Context, c *customer) error {
	return s.must(ctx, "/v1/orders", c.id, &orderRequest{ID: c.id, CustomerID: "of-" + c.id, Currency: "EUR", Fulfilment: "auto", Lines: c.lines})
}

// instance is how far an order has come.
func (s *story) instance(ctx context.Context, c *customer) (in instanceState, err error) {
	m, err := s.get(ctx, "/v1/processes/fulfilment/instances/"+url.PathEscape("order-"+c.id))
	if err != nil || m == nil {
		return in, err
	}
	in = instanceState{state: m.Text("state"), waits: m.Text("waits"), failed: m.Text("failed")}
	m.Into("done", &in.done)
	return in, nil
}

// errSlow: an order has not come to its end in time.
var errSlow = errors.New("it has not come to its end in time")

// await waits until an order is where it is wanted, for as long as there is patience.
func (s *story) await(ctx context.Context, c *customer, ok func(*instanceState) bool) (in instanceState, err error) {
	began := time.Now()
	for wait := lookFirst; ; wait = min(2*wait, lookMost) {
		in, err = s.instance(ctx, c)
		switch {
		case err != nil:
			return in, err
		case in.state != "" && ok(&in):
			return in, nil
		case in.failed != "" || time.Since(began) > s.Patience:
			return in, errSlow
		}
		if err := client.Pause(ctx, wait); err != nil {
			return in, err
		}
	}
}

// finish waits for an order's end.
func (s *story) finish(ctx context.Context, c *customer) error {
	in, err := s.await(ctx, c, func(in *instanceState) bool { return in.done })
	ended := int64(1)
	if errors.Is(err, errSlow) {
		ended, err = 0, nil
	}
	if err != nil {
		return err
	}
	s.check("orders that have come to an end").add(1, ended, "order %s is %s and waits for %s %s", c.id, in.state, in.waits, in.failed)
	s.mu.Lock()
	s.ended++
	done := s.ended
	s.mu.Unlock()
	if s.OnProgress != nil {
		s.OnProgress(min(done, s.Orders), s.Orders)
	}
	return nil
}
