package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	pay "github.com/millrace-io/millrace/internal/payment"
)

// shards is over how many locks keys and orders are spread, each: enough that a few processors seldom meet.
const shards = 64

// Options are those of [New].
type Options struct {
	// Seed fixes which orders meet with what. Defaults to 0, which is a seed like any other.
	Seed uint64
	// Faults are how it misbehaves. Defaults to behaving.
	Faults Faults
	// Now is the clock of the times when it is down. Defaults to time.Now.
	Now func() time.Time
	// OnFaults is told of faults that are set over HTTP. Defaults to nobody.
	OnFaults func(Faults)
}

// Gateway is a payment gateway. It is safe for use by several goroutines.
type Gateway struct {
	seed     uint64
	now      func() time.Time
	onFaults func(Faults)
	faults   atomic.Pointer[misbehaviour]
	keys     [shards]keyShard
	orders   [shards]orderShard
	counts   counts
	mux      http.ServeMux
	ended    chan struct{} // closed by Close
	end      func()
}

// New makes a gateway. Errors: those of [Faults.Check].
func New(o *Options) (*Gateway, error) {
	if o == nil {
		o = &Options{}
	}
	g := &Gateway{seed: o.Seed, now: o.Now, onFaults: o.OnFaults, ended: make(chan struct{})}
	g.end = sync.OnceFunc(func() { close(g.ended) })
	if g.now == nil {
		g.now = time.Now
	}
	for i := range shards {
		g.keys[i].operations = map[string]*operation{}
		g.orders[i].books = map[string]*book{}
	}
	g.routes()
	return g, g.SetFaults(&o.Faults)
}

// SetFaults changes how the gateway misbehaves from now on. What was answered stays answered. Errors: those of [Faults.Check].
func (g *Gateway) SetFaults(f *Faults) error {
	if err := f.Check(); err != nil {
		return err
	}
	g.faults.Store(&misbehaviour{Faults: *f, since: g.now()})
	return nil
}

// Faults are how it misbehaves.
func (g *Gateway) Faults() Faults { return g.faults.Load().Faults }

// Close ends all waiting: answers that hang or are slow are lost. The gateway goes on to work.
func (g *Gateway) Close() { g.end() }

// Why there is no answer.
var (
	errDown   = errors.New("it is down")
	errFailed = errors.New("it failed before anything was done")
	errLost   = errors.New("the answer was lost")
)

// manner is how a request is answered.
type manner uint8

const (
	plainly manner = iota
	twice
	// failing: nothing was done.
	failing
	// cut and hanging: it was done, and nobody is told.
	cut
	hanging
)

// reply is what became of an attempt.
type reply struct {
	result  pay.Result
	refused *pay.RefusedError // instead of a result
	manner  manner
	delay   time.Duration // before the answer
}

// Do makes an attempt. Errors: [*pay.UnknownError] where the gateway misbehaves, [*pay.RefusedError] for what contradicts its
// books.
func (g *Gateway) Do(ctx context.Context, key string, r *pay.Request) (pay.Result, error) {
	if err := ctx.Err(); err != nil {
		return pay.Result{}, &pay.UnknownError{Err: err}
	}
	if err := check(key, r); err != nil {
		return pay.Result{}, err
	}
	f := g.faults.Load()
	if is, left := f.down(g.now()); is {
		g.counts.unavailable.Add(1)
		if f.Mute {
			left = 0 // who is cut off is told nothing
		}
		return pay.Result{}, &pay.UnknownError{Err: errDown, After: left}
	}
	p := g.attempt(&f.Faults, key, r)
	if p.manner == hanging {
		p.delay = maxDelay
	}
	if p.delay > 0 {
		if err := g.wait(ctx, p.delay); err != nil {
			return pay.Result{}, &pay.UnknownError{Err: err}
		}
	}
	switch {
	case p.manner == failing:
		return pay.Result{}, &pay.UnknownError{Err: errFailed}
	case p.manner == cut || p.manner == hanging:
		return pay.Result{}, &pay.UnknownError{Err: errLost}
	case p.refused != nil:
		return pay.Result{}, p.refused
	}
	return p.result, nil
}

// check says what is wrong with a request whatever the books hold.
func check(key string, r *pay.Request) error {
	if key == "" {
		return fmt.Errorf("there is no key: %w", &pay.RefusedError{Code: pay.CodeInvalid})
	}
	return r.Check()
}

// wait waits for a while. It gives ctx's error, or that the gateway was closed.
func (g *Gateway) wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-g.ended:
		return errLost
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attempt does what is asked if it was not done under this key before, and says how to answer.
func (g *Gateway) attempt(f *Faults, key string, r *pay.Request) reply {
	k := &g.keys[g.hash("key", "", key)%shards]
	k.mu.Lock()
	defer k.mu.Unlock()
	tally := &g.counts.kinds[kindOf(r.Kind)]
	tally.attempts.Add(1)
	op := k.operations[key]
	if op == nil {
		op = &operation{key: key}
		k.operations[key] = op
	}
	op.attempts++
	if op.attempts > 1 {
		g.counts.repeated.Add(1)
	}
	// What fails is not looked at, so that a key means nothing until something was done under it.
	if op.failures < f.failTimes() && g.strikes("fail", f.Fail, r.Kind, r.OrderID) {
		op.failures++
		g.counts.failed.Add(1)
		return reply{manner: failing}
	}
	p := reply{}
	if g.strikes("slow", f.Slow, r.Kind, r.OrderID) {
		g.counts.slow.Add(1)
		p.delay = time.Duration(f.SlowMS) * time.Millisecond
	}
	if op.done() {
		if !op.is(r) {
			tally.refused.Add(1)
			p.refused = refused(http.StatusUnprocessableEntity, CodeKeyReused)
			return p
		}
		p.result = op.result()
	} else if p.result, p.refused = g.apply(op, r, g.declined(f, r.Kind, r.OrderID)); p.refused != nil {
		tally.refused.Add(1)
		return p
	}
	p.manner = g.lose(f, op, r)
	return p
}

// lose says what becomes of the answer to what was done.
func (g *Gateway) lose(f *Faults, op *operation, r *pay.Request) manner {
	if op.losses < f.loseTimes() {
		m := plainly
		switch {
		case g.strikes("lose", f.Lose, r.Kind, r.OrderID):
			m = cut
		case g.strikes("hang", f.Hang, r.Kind, r.OrderID):
			m = hanging
		}
		if m != plainly {
			op.losses++
			g.counts.lost.Add(1)
			return m
		}
	}
	if g.strikes("twice", f.Twice, r.Kind, r.OrderID) {
		g.counts.twice.Add(1)
		return twice
	}
	return plainly
}

func refused(status int, code string) *pay.RefusedError {
	return &pay.RefusedError{Status: status, Code: code}
}
