package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/millrace-io/millrace/internal/client"
)

const (
	// MaxRate bounds the arrivals per second: one goroutine starts them all.
	MaxRate = 50_000
	// MaxArrivals bounds a run that is to be reconciled: what was acknowledged is remembered, at about 1 KB for each arrival.
	MaxArrivals = 5_000_000
	// maxInFlight bounds the arrivals that are not answered yet. Beyond it the next one is started late; its latency still
	// counts from when it was due.
	maxInFlight = 4096
	// answerWait is what the server is asked to wait for an outcome, and settle how long a command that was kept may then wait
	// for its decision.
	answerWait = 30 * time.Second
	settle     = 2 * time.Minute
	// closing bounds the reconciliation of a run that ended with its ctx.
	closing = 10 * time.Minute
	// skus is the number of SKUs whose stock is moved: few, so that many reservations meet.
	skus = 8
)

// Options of [Orders].
type Options struct {
	// Servers are base URLs. Defaults to the address of `millrace serve`.
	Servers []string
	// Rate is the arrivals per second, on average; they come at random. Defaults to 10.
	Rate float64
	// Duration is for how long arrivals come. Defaults to until ctx is done.
	Duration time.Duration
	// Seed fixes what is sent and when. Defaults to 0.
	Seed uint64
	// Run leads all ids of the run. Two runs with one name are one run that is repeated. Defaults to a random name.
	Run string
	// Now dates orders by the server's clock. Otherwise they are all placed on a day of the run's own, long ago, so that the
	// server's totals of that day are the run's.
	Now bool
	// NoReconcile leaves the closing reconciliation out. Then nothing is remembered of what was sent, and a run may last for
	// ever.
	NoReconcile bool
	// LookUp bounds how many commands are looked up in the reconciliation; of more than that, an even sample. Defaults to all.
	LookUp int
	// RetryFor is for how long a request is tried again while the server is away. Defaults to client.DefaultRetryFor.
	RetryFor time.Duration
	// OnProgress is told now and then how many arrivals were answered, of how many. Total is 0 where there is no end.
	OnProgress func(done, total int)
}

// Report is what came of a run.
type Report struct {
	Run  string `json:"run"`
	Seed uint64 `json:"seed"`
	// Rate is what was asked for, Achieved the answered arrivals per second until the last answer.
	Rate     float64 `json:"rate"`
	Achieved float64 `json:"achieved_rate"`
	Seconds  float64 `json:"seconds"`
	Arrivals int     `json:"arrivals"`
	// MaxLateMS is by how much the sender itself was late at worst; it is part of the latencies.
	MaxLateMS float64 `json:"max_late_ms"`

	// Commands were acknowledged; each is decided, refused or dead.
	Commands int `json:"commands"`
	Decided  int `json:"decided"`
	Refused  int `json:"refused"`
	Dead     int `json:"dead"`
	// Replayed requests were repetitions, Malformed ones were refused for their form.
	Replayed  int `json:"replayed"`
	Malformed int `json:"malformed"`
	// Unavailable requests got no answer in time; what became of them is found out by the reconciliation.
	Unavailable int `json:"unavailable"`

	Orders  int                    `json:"orders"`
	Units   int64                  `json:"units"`
	Totals  map[string]int64       `json:"total_minor"` // of all orders, by currency
	Latency map[string]Percentiles `json:"latency"`     // by kind of arrival: order, batch, other

	Checks []Check `json:"checks,omitempty"`
	// Surprises are answers that the API does not give, the first few of them.
	Surprises     []string `json:"surprises,omitempty"`
	SurpriseCount int      `json:"surprise_count"`
	OK            bool     `json:"ok"`
}

// Check is one comparison of the reconciliation.
type Check struct {
	Name   string `json:"name"`
	Sent   int64  `json:"sent"`
	Server int64  `json:"server"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"` // the first thing that differs
}

// run is one simulation on its way.
type run struct {
	Options
	client *client.Client
	ledger *ledger
	day    string // of the run's own, "" where orders are dated by the server
	start  time.Time
}

// Orders runs the load and reconciles. Without a Duration, the end of ctx is the end of the run, and the accounts are settled
// all the same; with one, it breaks the run off. Errors: of usage, with that exit code; ctx's; [*client.UnavailableError],
// where a server is away before or after the load (during it, it is counted). A reconciliation that fails is no error but
// a report that is not OK.
func Orders(ctx context.Context, o Options) (*Report, error) {
	if o.Rate == 0 {
		o.Rate = 10
	}
	if o.Run == "" {
		o.Run = fmt.Sprintf("sim-%08x", rand.Uint32()) //nolint:gosec // a name, not a secret
	}
	if o.RetryFor <= 0 {
		o.RetryFor = client.DefaultRetryFor
	}
	switch {
	case o.Rate < 0 || o.Rate > MaxRate:
		return nil, client.WithCode(client.ExitUsage, fmt.Errorf("the rate must be above 0 and at most %d", MaxRate))
	case o.Duration < 0 || o.Rate*o.Duration.Seconds() > MaxArrivals:
		return nil, client.WithCode(client.ExitUsage, fmt.Errorf("rate times duration must be at most %d", MaxArrivals))
	case len(o.Run) > 40 || !isName(o.Run):
		return nil, client.WithCode(client.ExitUsage, fmt.Errorf("the run's name must be up to 40 lower-case letters, digits and hyphens"))
	}
	c, err := client.New(o.Servers, &client.Options{RetryFor: o.RetryFor, UserAgent: "millrace-sim"})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	r := &run{Options: o, client: c, ledger: newLedger(!o.NoReconcile)}
	if !o.Now {
		r.day = ownDay(o.Run)
	}
	var before totals
	if !o.NoReconcile && r.day != "" {
		if before, err = r.totals(ctx, ""); err != nil {
			return nil, err
		}
	}
	rep := r.load(ctx)
	if ctx.Err() != nil && o.Duration > 0 {
		return rep, ctx.Err()
	}
	if !o.NoReconcile {
		settling := ctx
		if ctx.Err() != nil {
			var cancel context.CancelFunc
			settling, cancel = context.WithTimeout(context.WithoutCancel(ctx), closing)
			defer cancel()
		}
		if err := r.reconcile(settling, rep, before); err != nil {
			return rep, err
		}
	}
	r.ledger.fill(rep)
	return rep, nil
}

func isName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != ""
}

// load starts the arrivals when they are due and waits for all of them.
func (r *run) load(ctx context.Context) *Report {
	plan := newPlan(r.Seed, r.Run, r.day, r.Rate)
	inFlight := make(chan struct{}, maxInFlight)
	var all sync.WaitGroup
	r.start = time.Now()
	total := int(r.Rate * r.Duration.Seconds())
	rep := &Report{Run: r.Run, Seed: r.Seed, Rate: r.Rate}
	for {
		a := plan.next()
		if r.Duration > 0 && a.due >= r.Duration {
			break
		}
		// Not a sleep: what comes next is due at a time, not after an answer.
		if client.Pause(ctx, time.Until(r.start.Add(a.due))) != nil {
			break
		}
		select {
		case inFlight <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		rep.Arrivals++
		rep.MaxLateMS = max(rep.MaxLateMS, ms(time.Since(r.start.Add(a.due))))
		if r.OnProgress != nil && rep.Arrivals%100 == 0 {
			if total > 0 {
				total = max(total, rep.Arrivals)
			}
			r.OnProgress(rep.Arrivals, total)
		}
		all.Go(func() {
			defer func() { <-inFlight }()
			r.do(ctx, &a)
		})
	}
	all.Wait()
	rep.Seconds = time.Since(r.start).Seconds()
	if rep.Seconds > 0 {
		rep.Achieved = float64(rep.Arrivals) / rep.Seconds
	}
	if r.OnProgress != nil && r.Duration > 0 {
		r.OnProgress(rep.Arrivals, rep.Arrivals)
	}
	r.ledger.fill(rep)
	return rep
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
