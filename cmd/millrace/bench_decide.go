package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/internal/client"
)

const (
	defaultDecisions = 200_000
	// decideBatch is how many commands one caller hands over at once.
	decideBatch = 1000
	// decideCallers keep one batch on its way while others are made.
	decideCallers = 4
)

func benchDecide(ctx context.Context, o *benchOptions) ([]result, error) {
	items := o.items
	if items == 0 {
		items = defaultDecisions
	}
	if items < decideBatch {
		return nil, client.WithCode(client.ExitUsage, fmt.Errorf("--items must be %d at least: that is one batch", decideBatch))
	}
	var out []result
	naive := naivePebble
	if o.store != "" {
		naive = naiveTransactions
	}
	one, err := naive(ctx, o, items)
	if err != nil {
		return nil, err
	}
	many := one
	if o.store != "" {
		if many, err = copied(ctx, o, items); err != nil {
			return nil, err
		}
		r, err := benchAccept(ctx, o, items, one)
		if err != nil {
			return nil, err
		}
		out = append(out, *r)
	}
	single := result{Name: "decide", Unit: "commands/s", Clients: o.clients}
	err = withProcessor(ctx, o, func(p *command.Processor, size sizer) error {
		return o.measure(&single, "", items, size, func(lat *latencies) error {
			return spread(ctx, o.clients, items, lat, func(_, i int) error {
				r, err := p.Accept(ctx, orderCommand("d"+strconv.Itoa(i)))
				if err != nil {
					return err
				}
				out, err := r.Wait(ctx)
				return decided(&out, err)
			})
		})
	})
	if err != nil {
		return nil, err
	}
	single.Control, single.Ratio = one, single.Rate/one.Rate
	batch := result{Name: "decide-batch", Unit: "commands/s", Clients: decideCallers}
	err = withProcessor(ctx, o, func(p *command.Processor, size sizer) error {
		return o.measure(&batch, "-batch", items/decideBatch*decideBatch, size, func(lat *latencies) error {
			return spread(ctx, decideCallers, items/decideBatch, lat, func(_, i int) error { return decideMany(ctx, p, i, o.store != "") })
		})
	})
	if err != nil {
		return nil, err
	}
	batch.Control, batch.Ratio = many, batch.Rate/many.Rate
	return append(out, single, batch), nil
}

// decideMany hands the i-th batch over and waits for all its outcomes, one after the other or all together: of outcomes in
// a database, those who ask together are answered together. What is known by then need not be asked for.
func decideMany(ctx context.Context, p *command.Processor, i int, together bool) error {
	cs := make([]millrace.Command, decideBatch)
	for k := range cs {
		cs[k] = orderCommand("e" + strconv.Itoa(i*decideBatch+k))
	}
	known, cancel := context.WithCancel(ctx)
	cancel()
	var g errgroup.Group
	for _, a := range p.AcceptAll(ctx, cs) {
		if a.Err != nil {
			return errors.Join(a.Err, g.Wait())
		}
		wait := func() error {
			out, err := a.Receipt.Wait(ctx)
			return decided(&out, err)
		}
		if together {
			if out, err := a.Receipt.Wait(known); err != nil {
				g.Go(wait)
			} else if err := decided(&out, nil); err != nil {
				return errors.Join(err, g.Wait())
			}
		} else if err := wait(); err != nil {
			return err
		}
	}
	return g.Wait()
}

func decided(o *millrace.Outcome, err error) error {
	if err == nil && o.Status != millrace.StatusDecided {
		err = fmt.Errorf("a command was %s", o.Status)
	}
	return err
}

// withProcessor runs f on a processor alone: nothing follows the feed.
func withProcessor(ctx context.Context, o *benchOptions, f func(p *command.Processor, size sizer) error) error {
	if o.store != "" {
		return withSharedProcessor(ctx, o, false, f)
	}
	dir, err := os.MkdirTemp(o.dir, "millrace-bench-")
	if err != nil {
		return err
	}
	store, err := openStore(dir, 0, slog.New(slog.DiscardHandler))
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	registry, err := millrace.NewRegistry(order.Domains()...)
	if err != nil {
		return errors.Join(err, store.Close(), os.RemoveAll(dir))
	}
	p := command.New(store, registry, nil)
	stop := running(ctx, p.Run)
	err = f(p, usedBy(store))
	return errors.Join(err, stop(), store.Close(), os.RemoveAll(dir))
}

// naivePebble is the control: every client reads the order's key, decides, and commits the same bytes with a synced
// batch of its own. Pebble itself groups the syncs.
func naivePebble(ctx context.Context, o *benchOptions, items int) (*control, error) {
	dir, err := os.MkdirTemp(o.dir, "millrace-bench-naive-")
	if err != nil {
		return nil, err
	}
	db, err := pebble.Open(dir, &pebble.Options{
		FormatMajorVersion: pebble.FormatNewest, MemTableSize: 64 << 20, Logger: quiet{},
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	registry, err := millrace.NewRegistry(order.Domains()...)
	if err != nil {
		return nil, errors.Join(err, db.Close(), os.RemoveAll(dir))
	}
	var lat latencies
	var r result
	m := startMeter()
	err = spread(ctx, o.clients, items, &lat, func(_, i int) error {
		return naiveDecision(db, registry, orderCommand("n"+strconv.Itoa(i)))
	})
	m.stop(&r, items, &lat)
	err = errors.Join(err, db.Close(), os.RemoveAll(dir))
	return &control{Name: "naive Pebble loop", Rate: r.Rate, P50: r.P50, P99: r.P99}, err
}

func naiveDecision(db *pebble.DB, registry *millrace.Registry, c millrace.Command) error {
	_, closer, err := db.Get([]byte(c.Stream))
	if err == nil {
		return errors.Join(errors.New("the order exists"), closer.Close())
	}
	if !errors.Is(err, pebble.ErrNotFound) {
		return err
	}
	events, err := decideNew(registry, &c)
	if err != nil {
		return err
	}
	b := db.NewBatch()
	for _, e := range events {
		if err := b.Set([]byte("e"+string(c.Stream)+"/1"), e.Data, nil); err != nil {
			return err
		}
	}
	if err := b.Set([]byte("c"+c.ID), c.Data, nil); err != nil {
		return err
	}
	if err := b.Set([]byte(c.Stream), []byte{1}, nil); err != nil {
		return err
	}
	return b.Commit(pebble.Sync)
}

// quiet is a pebble.Logger that says nothing, but ends where it must.
type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}
