package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"

	"github.com/cockroachdb/pebble/v2"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/domain/order"
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
	naive, err := naivePebble(ctx, o, items)
	if err != nil {
		return nil, err
	}
	single := result{Name: "decide", Unit: "commands/s", Clients: o.clients}
	err = withProcessor(ctx, o, func(p *command.Processor, size func() int64) error {
		before := size()
		var lat latencies
		m, err := o.startProfiled()
		if err != nil {
			return err
		}
		err = spread(o.clients, items, &lat, func(_, i int) error {
			r, err := p.Accept(ctx, orderCommand("d"+strconv.Itoa(i)))
			if err != nil {
				return err
			}
			out, err := r.Wait(ctx)
			return decided(&out, err)
		})
		m.stop(&single, items, &lat)
		single.BytesPerItem = float64(size()-before) / float64(items)
		return err
	})
	if err != nil {
		return nil, err
	}
	single.Control, single.Ratio = naive, single.Rate/naive.Rate

	batch := result{Name: "decide-batch", Unit: "commands/s", Clients: decideCallers}
	err = withProcessor(ctx, o, func(p *command.Processor, size func() int64) error {
		before := size()
		var lat latencies
		m, err := o.startProfiled("-batch")
		if err != nil {
			return err
		}
		err = spread(decideCallers, items/decideBatch, &lat, func(_, i int) error {
			cs := make([]millrace.Command, decideBatch)
			for k := range cs {
				cs[k] = orderCommand("e" + strconv.Itoa(i*decideBatch+k))
			}
			for _, a := range p.AcceptAll(ctx, cs) {
				if a.Err != nil {
					return a.Err
				}
				out, err := a.Receipt.Wait(ctx)
				if err := decided(&out, err); err != nil {
					return err
				}
			}
			return nil
		})
		m.stop(&batch, items/decideBatch*decideBatch, &lat)
		batch.BytesPerItem = float64(size()-before) / float64(batch.Items)
		return err
	})
	if err != nil {
		return nil, err
	}
	batch.Control, batch.Ratio = naive, batch.Rate/naive.Rate
	return []result{single, batch}, nil
}

func decided(o *millrace.Outcome, err error) error {
	if err == nil && o.Status != millrace.StatusDecided {
		err = fmt.Errorf("a command was %s", o.Status)
	}
	return err
}

// withProcessor runs f on a processor alone: nothing follows the feed.
func withProcessor(ctx context.Context, o *benchOptions, f func(p *command.Processor, size func() int64) error) error {
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
	run, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- p.Run(run) }()
	err = f(p, func() int64 { return used(store) })
	cancel()
	return errors.Join(err, <-done, store.Close(), os.RemoveAll(dir))
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
	err = spread(o.clients, items, &lat, func(_, i int) error {
		return naiveDecision(db, registry, orderCommand("n"+strconv.Itoa(i)))
	})
	m.stop(&r, items, &lat)
	err = errors.Join(err, ctx.Err(), db.Close(), os.RemoveAll(dir))
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
	category, _ := registry.Category(c.Stream)
	body, err := registry.DecodeCommand(&c)
	if err != nil {
		return err
	}
	events, refusal := category.Decide(category.Initial(c.Stream), body, c.Time)
	if refusal != nil {
		return errors.New(refusal.Code)
	}
	b := db.NewBatch()
	for _, e := range events {
		ne, err := category.EncodeEvent(e)
		if err != nil {
			return err
		}
		if err := b.Set([]byte("e"+string(c.Stream)+"/1"), ne.Data, nil); err != nil {
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
