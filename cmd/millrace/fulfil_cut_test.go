package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
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
	then  func() // once, when it has set money aside for the order named "gone", before anybody is told
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
	case l.fresh && r.Kind == pay.Authorise:
		key = fmt.Sprintf("%s/%d", key, l.n.Add(1))
	}
	res, err := l.g.Do(ctx, key, r)
	if err == nil && l.said != nil {
		l.said(r.Kind)
	}
	if then := l.then; then != nil && r.OrderID == "gone" {
		l.then = nil
		then()
	}
	return res, err
}

// taken is a protection that is taken away, to show that it is one.
type taken int

const (
	nothing  taken = iota
	keys           // each attempt at an authorisation has a fresh one
	requests       // authorisations are asked for, and the log does not say so
)

// fulfilLife is a store with the deciding and with the process of fulfilment, as serve wires them, and nothing else.
type fulfilLife struct {
	n    *node
	stop func() error
}

func newFulfilLife(t *testing.T, store *millrace.Store, registry *millrace.Registry, p *command.Processor, g pay.Gateway, without taken) (*fulfilLife, millrace.Consumer) {
	t.Helper()
	n := &node{store: store, registry: registry, processor: p,
		metrics: metrics.New(metrics.Version{}, nil, time.Now), log: slog.New(slog.DiscardHandler)}
	if v := auditOf(t, n); len(v.Problems) > 0 && without == nothing {
		t.Errorf("as it was left: %s", v.Problems)
	}
	c, err := (&fulfiller{n, &fulfilment{payments: payments{g, gatewayCalls}}, without == requests}).consumer()
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
	// live begins a life.
	live(t *testing.T, b beginning) *fulfilLife
	// cut is the power cut.
	cut()
}

// beginning is how a life begins.
type beginning struct {
	gateway pay.Gateway
	without taken
	plug    *powercut.Driver        // says when the power is cut; nil for never
	early   func(*fulfilLife) error // comes before the process hears of anything; nil for nothing
}

// decides has the life decide, and do what comes before the process hears of anything.
func (l *fulfilLife) decides(t *testing.T, b beginning, decide func(context.Context) error) (stop func() error) {
	t.Helper()
	stop = running(t.Context(), decide)
	if b.early != nil {
		if err := b.early(l); err != nil {
			t.Fatal(err)
		}
	}
	return stop
}

// onDisk is ground in memory.
type onDisk struct{ fs, left *vfs.MemFS }

func newDisk() *onDisk { return &onDisk{fs: vfs.NewCrashableMem()} }

func (d *onDisk) cut() { d.left = d.fs.CrashClone(vfs.CrashCloneCfg{}) }

func (d *onDisk) live(t *testing.T, b beginning) *fulfilLife {
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
	if b.plug != nil {
		b.plug.Driver = store.Driver()
		store = millrace.NewStore(b.plug)
	}
	registry := newRegistry(t)
	l, c := newFulfilLife(t, store, registry, command.New(store, registry, nil), b.gateway, b.without)
	deciding := l.decides(t, b, l.n.processor.Run)
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
	out, err := l.wish(ctx, id, s, body)
	return decided(&out, err)
}

// wish has a command decided, and maybe refused.
func (l *fulfilLife) wish(ctx context.Context, id string, s millrace.Stream, body any) (out millrace.Outcome, err error) {
	typ, data, err := l.n.registry.EncodeCommand(body)
	if err != nil {
		return out, err
	}
	r, err := l.n.processor.Accept(ctx, millrace.Command{ID: id, Stream: s, Type: typ, Data: data})
	if err != nil {
		return out, err
	}
	return r.Wait(ctx)
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

// live has orders carried through, and sends what a client sends that does not know what of it was done before: three that are
// served, one of which comes back in part; one for which there is no stock; and one whose card is declined. The third one may have been
// cancelled before.
func (l *fulfilLife) live(ctx context.Context) error {
	one := func(sku string, quantity int64) order.LineRequest {
		return order.LineRequest{SKU: sku, Quantity: new(quantity), UnitPrice: "2.50"}
	}
	errs := []error{
		l.send(ctx, "receive-A", "stock-A", &order.ReceiveStock{Quantity: new(int64(5))}),
		l.send(ctx, "receive-B", "stock-B", &order.ReceiveStock{Quantity: new(int64(5))}),
		l.send(ctx, "receive-D", "stock-D", &order.ReceiveStock{Quantity: new(int64(1))}),
		l.send(ctx, "place-gone", "order-gone", &order.PlaceOrder{Currency: "EUR", Lines: []order.LineRequest{one("D", 1)}}),
		l.send(ctx, "place-whole", "order-whole", &order.PlaceOrder{Currency: "EUR", Lines: []order.LineRequest{one("A", 1), one("B", 2), one("A", 1)}}),
		l.send(ctx, "place-back", "order-back", &order.PlaceOrder{Currency: "EUR", Lines: []order.LineRequest{one("A", 3)}}),
		l.send(ctx, "place-poor", "order-poor", &order.PlaceOrder{Currency: "EUR", Lines: []order.LineRequest{one("B", 3)}}),
		l.send(ctx, "place-late", "order-late", &order.PlaceOrder{Currency: "EUR", Lines: []order.LineRequest{one("C", 1), one("B", 1)}}),
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	errs = append(errs, l.until(ctx, "gone", order.FulfilmentCompleted, order.FulfilmentCancelled), l.until(ctx, "whole", order.FulfilmentCompleted), l.until(ctx, "late", order.FulfilmentCancelled),
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
	gone, _ := g.Order("gone")
	served := int64(0)
	for _, p := range gone.Payments {
		if p.Captured == p.Authorised {
			served++
		} else if p.Voided != p.Authorised {
			out = append(out, fmt.Sprintf("order gone: %s stands: %+v", p.Authorised, gone.Operations))
		}
	}
	if s := v.Domain.Totals; s.Received != 13 || s.Committed != 7+served || s.Reserved != 0 {
		out = append(out, fmt.Sprintf("of 11 pieces received %d were to leave and 2 to come back: %+v", 7+served, s))
	}
	for id, want := range map[string]string{
		"whole": "10.00 EUR taken, 0.00 EUR voided, 0.00 EUR back", "back": "7.50 EUR taken, 0.00 EUR voided, 5.00 EUR back", "late": "", "poor": "",
	} {
		got := ""
		o, _ := g.Order(id)
		for _, p := range o.Payments {
			got += p.Captured.String() + " taken, " + p.Voided.String() + " voided, " + p.Refunded.String() + " back"
		}
		if got != want {
			out = append(out, fmt.Sprintf("order %s: %q, and it was to be %q: %+v", id, got, want, o.Operations))
		}
	}
	return out
}

// TestFulfilmentPowerCutAtEachWrite: the plug is pulled before and after each write, of facts and of views, and when the gateway has
// said yes, while orders are carried through; and one of them is cancelled before the next life hears of it. Whatever is left on the disk,
// they come to their ends, the gateway is asked for nothing twice and holds nothing, and no stock is reserved twice or left over. The
// controls ask the gateway under fresh keys, or without having said so first, and leave an authorisation that stands.
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
	if _, faults := fulfilCutAt(t, newDisk(), cutting{gone: true}); len(faults) > 0 {
		t.Errorf("when it was authorised: %s", faults)
	}
	for _, without := range []taken{keys, requests} {
		_, faults := fulfilCutAt(t, newDisk(), cutting{gone: true, without: without})
		if !slices.ContainsFunc(faults, func(f string) bool { return strings.HasPrefix(f, "order gone: 2.50 EUR stands") }) {
			t.Errorf("without protection %d: %q", without, faults)
		}
	}
}

// cutting is when the power is cut.
type cutting struct {
	// n is the write, from 1; where said is set, it is the next one when the gateway has said yes to such a request.
	n     int
	said  pay.Kind
	after bool // after the write, and not before it
	// gone: at no write, but when the gateway has set money aside for the order of that name.
	gone    bool
	without taken
}

func (c cutting) String() string {
	which := fmt.Sprintf("write %d", c.n)
	switch {
	case c.said != "":
		which = fmt.Sprintf("the next write when the gateway has said yes to %s", c.said)
	case c.gone:
		which = "when it was authorised"
	}
	return fmt.Sprintf("%s, after=%v, without protection %d", which, c.after, c.without)
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
	first := &line{g: g, fresh: c.without == keys, n: &attempts}
	living, die := context.WithCancel(ctx)
	defer die()
	pull := func() {
		w.cut()
		first.down.Store(true)
		die()
	}
	plug := &powercut.Driver{N: c.n, After: c.after, Cut: pull}
	if c.gone {
		first.then = pull
	}
	if c.said != "" {
		var once sync.Once
		first.said = func(k pay.Kind) {
			if k == c.said {
				once.Do(plug.Next)
			}
		}
	}
	l := w.live(t, beginning{gateway: first, without: c.without, plug: plug})
	err = l.live(living)
	if stopped := l.stop(); stopped != nil || err != nil && !first.down.Load() {
		t.Fatalf("%s: %v %v", c, err, stopped)
	}
	if !first.down.Load() {
		return false, nil
	}
	l = w.live(t, beginning{gateway: &line{g: g, fresh: c.without == keys, n: &attempts}, without: c.without, early: func(l *fulfilLife) error {
		// Refused where it was not placed, or is shipped.
		_, err := l.wish(ctx, "cancel-gone", "order-gone", &order.CancelOrder{Reason: "changed_my_mind"})
		return err
	}})
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
