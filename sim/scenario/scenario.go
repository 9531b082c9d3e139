package scenario

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/sim/gateway"
)

const (
	// MaxOrders bounds a run: every order is read back at its end, and remembered until then.
	MaxOrders = 100_000
	// MaxRun bounds the name of a run in bytes: it leads all ids.
	MaxRun = 40

	defaultOrders   = 200
	defaultPatience = 2 * time.Minute
	// atOnce is how many customers there are at a time.
	atOnce = 32
	// answerWait is what the server is asked to wait for an outcome.
	answerWait = 30 * time.Second
	// lookFirst and lookMost bound the time between two looks at an order that has not come to its end.
	lookFirst = 10 * time.Millisecond
	lookMost  = 500 * time.Millisecond
)

// Gateway is the simulator that the server's payments go to.
type Gateway interface {
	// SetFaults changes how it misbehaves.
	SetFaults(ctx context.Context, f *gateway.Faults) error
	// Order is what was done for an order; nil where nothing was.
	Order(ctx context.Context, id string) (*gateway.OrderLedger, error)
}

// Options of [Scenario.Run].
type Options struct {
	// Servers are base URLs. Defaults to the address of `millrace serve`.
	Servers []string
	// Gateway is the simulator. Without it money is only looked at in the orders. Some scenarios need it.
	Gateway Gateway
	// Orders is how many are placed. Defaults to 200.
	Orders int
	// Seed fixes what is ordered and what becomes of it. Defaults to 0.
	Seed uint64
	// Run leads all ids. Defaults to a random name.
	Run string
	// Patience is how long an order may take to its end. Defaults to two minutes.
	Patience time.Duration
	// OnProgress is told how many orders have come to their ends.
	OnProgress func(done, total int)
}

// Check is one comparison: what the story says, and what the server has.
type Check struct {
	Name   string `json:"name"`
	Want   int64  `json:"want"`
	Have   int64  `json:"have"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"` // the first thing that differs
}

// Report is what came of a run.
type Report struct {
	Scenario string  `json:"scenario"`
	Run      string  `json:"run"`
	Seed     uint64  `json:"seed"`
	Orders   int     `json:"orders"`
	Seconds  float64 `json:"seconds"`
	// Ends counts the orders by status, and those that were cancelled by reason too: "cancelled: out_of_stock".
	Ends   map[string]int `json:"ends"`
	Checks []Check        `json:"checks"`
	OK     bool           `json:"ok"`
}

// Scenario is a story.
type Scenario struct {
	Name, About string
	// NeedsGateway: it makes the gateway misbehave.
	NeedsGateway bool

	tell func(context.Context, *story) error
}

// All are the scenarios, by name.
func All() []Scenario {
	return []Scenario{
		{Name: "happy", About: "enough stock, good cards: every order is delivered and paid", tell: happy},
		{Name: "out-of-stock", About: "five buyers for each piece: as many orders are carried through as there are pieces", tell: outOfStock},
		{Name: "declines", About: "a third of the cards are declined, and answers come twice", NeedsGateway: true, tell: declines},
		{Name: "gateway-down", About: "payments stand still for a while, and then answers get lost", NeedsGateway: true, tell: gatewayDown},
		{Name: "cancel-race", About: "customers cancel while their orders are on the way", tell: cancelRace},
		{Name: "returns", About: "goods come back, whole or in part, fit for sale or not", tell: returns},
	}
}

// story is a run on its way.
type story struct {
	Options
	client *client.Client
	name   string

	mu     sync.Mutex
	checks []*tally
	ended  int
	orders []*customer
	stock  map[string]int64 // received, by SKU
	ends   map[string]int
}

// Run tells the story and settles accounts. Errors: of usage, with that exit code; ctx's; [*client.UnavailableError]; an answer
// that the API does not give. Accounts that differ are no error but a report that is not OK.
func (s Scenario) Run(ctx context.Context, o Options) (*Report, error) {
	if o.Orders == 0 {
		o.Orders = defaultOrders
	}
	if o.Patience <= 0 {
		o.Patience = defaultPatience
	}
	if o.Run == "" {
		o.Run = fmt.Sprintf("%s-%08x", s.Name, rand.Uint32()) //nolint:gosec // a name, not a secret
	}
	switch {
	case o.Orders < 1 || o.Orders > MaxOrders:
		return nil, client.WithCode(client.ExitUsage, fmt.Errorf("a scenario has 1 to %d orders", MaxOrders))
	case len(o.Run) > MaxRun || strings.Trim(o.Run, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
		return nil, client.WithCode(client.ExitUsage, fmt.Errorf("the run's name must be up to %d lower-case letters, digits and hyphens", MaxRun))
	case s.NeedsGateway && o.Gateway == nil:
		return nil, client.WithCode(client.ExitUsage, fmt.Errorf("the scenario %s needs the simulated payment gateway that the server uses", s.Name))
	}
	c, err := client.New(o.Servers, &client.Options{RetryFor: client.DefaultRetryFor, UserAgent: "millrace-sim"})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	t := &story{Options: o, client: c, name: s.Name, stock: map[string]int64{}, ends: map[string]int{}}
	began := time.Now()
	if o.Gateway != nil { // the only faults are those of the story
		err = o.Gateway.SetFaults(ctx, &gateway.Faults{})
	}
	if err == nil {
		err = s.tell(ctx, t)
	}
	if o.Gateway != nil {
		err = errors.Join(err, o.Gateway.SetFaults(context.WithoutCancel(ctx), &gateway.Faults{}))
	}
	if err == nil {
		err = t.reconcile(ctx)
	}
	if err != nil {
		return nil, err
	}
	rep := &Report{Scenario: s.Name, Run: o.Run, Seed: o.Seed, Orders: o.Orders, Seconds: time.Since(began).Seconds(), Ends: t.ends, OK: true}
	for _, c := range t.checks {
		rep.Checks = append(rep.Checks, c.check())
		rep.OK = rep.OK && c.check().OK
	}
	return rep, nil
}

// tally compares one figure.
type tally struct {
	name       string
	mu         sync.Mutex
	want, have int64
	detail     string
	failed     bool
}

// check is a tally of that name, which is made where there is none.
func (s *story) check(name string) *tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.checks, func(t *tally) bool { return t.name == name }); i >= 0 {
		return s.checks[i]
	}
	t := &tally{name: name}
	s.checks = append(s.checks, t)
	return t
}

func (t *tally) add(want, have int64, format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.want += want
	t.have += have
	if want != have && !t.failed {
		t.failed, t.detail = true, fmt.Sprintf(format, args...)
	}
}

func (t *tally) check() Check {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Check{Name: t.name, Want: t.want, Have: t.have, OK: !t.failed, Detail: t.detail}
}

// each does something for all customers, several at a time.
func (s *story) each(ctx context.Context, do func(context.Context, *customer) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, c := range s.orders {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error { return do(ctx, c) })
	}
	return g.Wait()
}
