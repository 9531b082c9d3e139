package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/metrics"
	pay "github.com/millrace-io/millrace/internal/payment"
	"github.com/millrace-io/millrace/internal/powercut"
	"github.com/millrace-io/millrace/localstore"
	processes "github.com/millrace-io/millrace/process"
	"github.com/millrace-io/millrace/sim/gateway"
)

// line is the way to a gateway, until the power is cut. The gateway declines the order named "poor"; it knows keys, unless each
// attempt is to have a fresh one.
type line struct {
	g     *gateway.Gateway
	fresh bool
	down  atomic.Bool
	n     *atomic.Int64
	// said is told of each request to which the gateway has said yes or no.
	said func(pay.Kind)
}

func (l *line) Do(ctx context.Context, key string, r *pay.Request) (pay.Result, error) {
	switch {
	case l.down.Load():
		return pay.Result{}, &pay.UnknownError{Err: errors.New("the power is cut")}
	case r.OrderID == "poor":
		return pay.Result{Status: pay.Declined, Code: gateway.CodeInsufficientFunds}, nil
	case l.fresh:
		key = fmt.Sprintf("%s/%d", key, l.n.Add(1))
	}
	res, err := l.g.Do(ctx, key, r)
	if err == nil && l.said != nil {
		l.said(r.Kind)
	}
	return res, err
}

// fulfilLife is a store with the deciding and with the process of fulfilment, as serve wires them, and nothing else.
type fulfilLife struct {
	n    *node
	stop func() error
}

func newFulfilLife(t *testing.T, store *millrace.Store, registry *millrace.Registry, p *command.Processor, g pay.Gateway) (*fulfilLife, millrace.Consumer) {
	t.Helper()
	n := &node{store: store, registry: registry, processor: p,
		metrics: metrics.New(metrics.Version{}, nil, time.Now), log: slog.New(slog.DiscardHandler)}
	if v := auditOf(t, n); len(v.Problems) > 0 {
		t.Errorf("as it was left: %s", v.Problems)
	}
	c, err := (&fulfiller{n, &fulfilment{payments: payments{g, gatewayCalls}}}).consumer()
	if err != nil {
		t.Fatal(err)
	}
	return &fulfilLife{n: n}, c
}

func newRegistry(t *testing.T) *millrace.Registry {
	t.Helper()
	registry, err := millrace.NewRegistry(domains()...)
	if err != nil {
		t.Fatal(err)
	}
	return registry
}

// ground is where the store lies: what one life of it leaves there, the next one finds.
type ground interface {
	// live begins a life, in which the power is cut as plug says; without one it is not.
	live(t *testing.T, g pay.Gateway, plug *powercut.Driver) *fulfilLife
	// cut is the power cut.
	cut()
}

// onDisk is ground in memory.
type onDisk struct{ fs, left *vfs.MemFS }

func newDisk() *onDisk { return &onDisk{fs: vfs.NewCrashableMem()} }

func (d *onDisk) cut() { d.left = d.fs.CrashClone(vfs.CrashCloneCfg{}) }

func (d *onDisk) live(t *testing.T, g pay.Gateway, plug *powercut.Driver) *fulfilLife {
	t.Helper()
	if d.left != nil {
		d.fs = d.left
	}
	store, err := localstore.Open("data", &localstore.Options{
		FS: d.fs, Partitions: 2, SegmentSize: 1 << 20, CacheSize: 8 << 20, MemTableSize: 4 << 20, Fatal: func(error) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	if plug != nil {
		plug.Driver = store.Driver()
		store = millrace.NewStore(plug)
	}
	registry := newRegistry(t)
	l, c := newFulfilLife(t, store, registry, command.New(store, registry, nil), g)
	deciding := running(t.Context(), l.n.processor.Run)
	following := running(t.Context(), feed.New(store, registry, c, nil).Run)
	l.stop = func() error { return errors.Join(following(), deciding(), store.Close()) }
	return l
}

// auditOf is what verify --domain says.
func auditOf(t *testing.T, n *node) (v verdict) {
	t.Helper()
	if err := v.checkDomain(t.Context(), n.store); err != nil {
		t.Fatal(err)
	}
	return v
}

// send has a command decided.
func (l *fulfilLife) send(ctx context.Context, id string, s millrace.Stream, body any) error {
	typ, data, err := l.n.registry.EncodeCommand(body)
	if err != nil {
		return err
	}
	r, err := l.n.processor.Accept(ctx, millrace.Command{ID: id, Stream: s, Type: typ, Data: data})
	if err != nil {
		return err
	}
	out, err := r.Wait(ctx)
	return decided(&out, err)
}

// until waits for an order's instance to have come to one of some ends.
func (l *fulfilLife) until(ctx context.Context, id string, ends ...string) error {
	instances := processes.NewReader(l.n.store, order.ProcessFulfilment, order.CategoryOrder)
	state := ""
	for {
		d, err := instances.Instance(ctx, millrace.NewStream(order.CategoryOrder, id))
		if err == nil {
			i, err := millrace.InstancesTable.Decode(d.Data)
			switch {
			case err != nil:
				return err
			case i.Failed != "":
				return fmt.Errorf("order %s has stopped: %s", id, i.Failed)
			case i.Done && slices.Contains(ends, i.State):
				return nil
			}
			state = i.State
		} else if !errors.Is(err, millrace.ErrNotFound) {
			return err
		}
		if err := client.Pause(ctx, time.Millisecond); err != nil {
			return fmt.Errorf("order %s is %s and not %s: %w", id, state, ends, err)
		}
	}
}

// live has three orders carried through, and sends what a client sends that does not know what of it was done before: two that are
// served, one of which comes back in part; one for which there is no stock; and one whose card is declined.
func (l *fulfilLife) live(ctx context.Context) error {
	one := func(sku string, quantity int64) order.LineRequest {
		return order.LineRequest{SKU: sku, Quantity: new(quantity), UnitPrice: "2.50"}
	}
	errs := []error{
		l.send(ctx, "receive-A", "stock-A", &order.ReceiveStock{Quantity: new(int64(5))}),
		l.send(ctx, "receive-B", "stock-B", &order.ReceiveStock{Quantity: new(int64(5))}),
		l.send(ctx, "place-whole", "order-whole", &order.PlaceOrder{Currency: "EUR", Lines: []order.LineRequest{one("A", 1), one("B", 2), one("A", 1)}}),
		l.send(ctx, "place-back", "order-back", &order.PlaceOrder{Currency: "EUR", Lines: []order.LineRequest{one("A", 3)}}),
		l.send(ctx, "place-poor", "order-poor", &order.PlaceOrder{Currency: "EUR", Lines: []order.LineRequest{one("B", 3)}}),
		l.send(ctx, "place-late", "order-late", &order.PlaceOrder{Currency: "EUR", Lines: []order.LineRequest{one("C", 1), one("B", 1)}}),
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	errs = append(errs, l.until(ctx, "whole", order.FulfilmentCompleted), l.until(ctx, "late", order.FulfilmentCancelled),
		l.until(ctx, "poor", order.FulfilmentCancelled), l.until(ctx, "back", order.FulfilmentCompleted, order.FulfilmentPartlyReturned))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := l.send(ctx, "return-back", "order-back", &order.ReturnOrder{Lines: []order.QuantityRequest{{Line: 1, Quantity: new(int64(2))}}}); err != nil {
		return err
	}
	return l.until(ctx, "back", order.FulfilmentPartlyReturned)
}

// faults are what does not add up in the end, of events, of levels and of the gateway's ledger.
func (l *fulfilLife) faults(t *testing.T, g *gateway.Gateway) (out []string) {
	t.Helper()
	v := auditOf(t, l.n)
	if out = v.Problems; v.Domain.Unsettled > 0 {
		out = append(out, fmt.Sprintf("%d orders are unsettled", v.Domain.Unsettled))
	}
	if s := v.Domain.Totals; s.Received != 12 || s.Committed != 7 || s.Reserved != 0 {
		out = append(out, fmt.Sprintf("of 10 pieces received 7 were to leave and 2 to come back: %+v", s))
	}
	for id, want := range map[string]string{"whole": "10.00 EUR taken, 0.00 EUR back", "back": "7.50 EUR taken, 5.00 EUR back", "late": "", "poor": ""} {
		got := ""
		o, _ := g.Order(id)
		for _, p := range o.Payments {
			got += p.Captured.String() + " taken, " + p.Refunded.String() + " back"
		}
		if got != want {
			out = append(out, fmt.Sprintf("order %s: %q, and it was to be %q: %+v", id, got, want, o.Operations))
		}
	}
	return out
}

// TestFulfilmentPowerCutAtEachWrite: the plug is pulled before and after each write, of facts and of views, while orders are carried
// through. Whatever is left on the disk, they come to their ends, the gateway is asked for nothing twice, and no stock is
// reserved twice or left over. The control asks the gateway under fresh keys, and takes twice.
func TestFulfilmentPowerCutAtEachWrite(t *testing.T) {
	for _, after := range []bool{false, true} {
		n := 1
		for ; ; n++ {
			cut, faults := fulfilCutAt(t, newDisk(), cutting{n: n, after: after})
			if !cut {
				break
			}
			for _, f := range faults {
				t.Errorf("write %d, after=%v: %s", n, after, f)
			}
		}
		t.Logf("after=%v: %d writes", after, n-1)
	}
	for n := 1; ; n++ {
		cut, faults := fulfilCutAt(t, newDisk(), cutting{n: n, fresh: true})
		if !cut {
			t.Fatal("without keys that stay nothing goes wrong")
		}
		if len(faults) > 0 {
			t.Logf("with fresh keys, at write %d: %.120s", n, faults[0])
			break
		}
	}
}

// cutting is when the power is cut.
type cutting struct {
	// n is the write, from 1; where said is set, it is the next one when the gateway has said yes to such a request.
	n     int
	said  pay.Kind
	after bool // after the write, and not before it
	fresh bool // the gateway is asked under another key each time
}

func (c cutting) String() string {
	which := fmt.Sprintf("write %d", c.n)
	if c.said != "" {
		which = fmt.Sprintf("the next write when the gateway has said yes to %s", c.said)
	}
	return fmt.Sprintf("%s, after=%v, fresh=%v", which, c.after, c.fresh)
}

// fulfilCutAt carries orders through until the power is cut, and then from what was on the ground. It says whether it was cut.
func fulfilCutAt(t *testing.T, w ground, c cutting) (cut bool, faults []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	g, err := gateway.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	var attempts atomic.Int64
	first := &line{g: g, fresh: c.fresh, n: &attempts}
	living, die := context.WithCancel(ctx)
	defer die()
	plug := &powercut.Driver{N: c.n, After: c.after, Cut: func() {
		w.cut()
		first.down.Store(true)
		die()
	}}
	if c.said != "" {
		var once sync.Once
		first.said = func(k pay.Kind) {
			if k == c.said {
				once.Do(plug.Next)
			}
		}
	}
	l := w.live(t, first, plug)
	err = l.live(living)
	if stopped := l.stop(); stopped != nil || err != nil && !first.down.Load() {
		t.Fatalf("%s: %v %v", c, err, stopped)
	}
	if !first.down.Load() {
		return false, nil
	}
	l = w.live(t, &line{g: g, fresh: c.fresh, n: &attempts}, nil)
	defer func() {
		if err := l.stop(); err != nil {
			t.Error(err)
		}
	}()
	if err := l.live(ctx); err != nil {
		return true, []string{err.Error()}
	}
	return true, l.faults(t, g)
}
