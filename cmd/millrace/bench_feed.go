package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/projection"
)

// benchFeed accepts orders at a fixed rate and measures from Accept to the order being in the read model.
func benchFeed(ctx context.Context, o *benchOptions) ([]result, error) {
	b, err := newBed(ctx, o)
	if err != nil {
		return nil, err
	}
	r := &result{Name: "feed", Unit: "orders/s"}
	var visible, durable latencies
	err = errors.Join(paced(ctx, b, o, r, &visible, &durable), b.stop())
	if err != nil {
		return nil, err
	}
	p50, p99, _ := durable.percentiles()
	r.Control = &control{Name: "the journal alone: accept to durable", Rate: r.Rate, P50: p50, P99: p99}
	if p50 > 0 {
		r.Ratio = r.P50 / p50
	}
	return []result{*r}, nil
}

// paced starts an order every 1/rate seconds, whatever became of the ones before; latency counts from that moment.
func paced(ctx context.Context, b *bed, o *benchOptions, r *result, visible, durable *latencies) error {
	n := int(o.duration.Seconds() * float64(o.rate))
	model := b.n.projections.Model(order.ProjectionOrders)
	errs := make(chan error, 1)
	fail := func(err error) {
		select {
		case errs <- err:
		default:
		}
	}
	before, err := b.size()
	if err != nil {
		return err
	}
	m, err := o.startProfiled()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	t := time.NewTicker(time.Second / time.Duration(o.rate))
	defer t.Stop()
	began := time.Now()
	for i := range n {
		due := began.Add(time.Duration(i) * time.Second / time.Duration(o.rate))
		for time.Now().Before(due) {
			select {
			case <-t.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		wg.Go(func() {
			receipt, err := b.n.processor.Accept(ctx, orderCommand("p"+strconv.Itoa(i)))
			if err != nil {
				fail(err)
				return
			}
			kept := time.Since(due)
			out, err := receipt.Wait(ctx)
			if err == nil {
				err = model.Wait(ctx, b.n.store.Cursor(&out))
			}
			if err != nil {
				fail(err)
				return
			}
			durable.add([]time.Duration{kept})
			visible.add([]time.Duration{time.Since(due)})
		})
	}
	wg.Wait()
	m.stop(r, n, visible)
	after, err := b.size()
	if err != nil {
		return err
	}
	r.BytesPerItem = float64(after-before) / float64(n)
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// The steps of an order's life in the rebuild bench, after it is placed.
var lifeSteps = []struct{ command, body string }{
	{"ConfirmOrder", `{}`}, {"MarkOrderPaid", `{}`}, {"PackOrder", `{}`}, {"ShipOrder", `{"carrier":"post","tracking_number":"T1"}`}, {"DeliverOrder", `{}`},
}

const defaultLives = 40_000

// benchRebuild fills a store with whole lives of orders and builds the read model of orders again.
func benchRebuild(ctx context.Context, o *benchOptions) ([]result, error) {
	lives := o.items
	if lives == 0 {
		lives = defaultLives
	}
	b, err := newBed(ctx, o)
	if err != nil {
		return nil, err
	}
	r := &result{Name: "rebuild", Unit: "events/s"}
	err = errors.Join(rebuild(ctx, b, o, lives, r), b.stop())
	if err != nil {
		return nil, err
	}
	return []result{*r}, nil
}

func rebuild(ctx context.Context, b *bed, o *benchOptions, lives int, r *result) error {
	if err := liveLives(ctx, b, lives); err != nil {
		return err
	}
	if err := b.n.caughtUp(ctx); err != nil {
		return err
	}
	before, err := b.size()
	if err != nil {
		return err
	}
	events := 0
	for _, p := range b.n.store.Head().Positions {
		events += int(p) //nolint:gosec // a bench's
	}
	// The control reads the same journal and does nothing with it.
	var alone result
	am := startMeter()
	seen := 0
	for batch, err := range b.n.store.Feed(ctx, millrace.FeedOptions{}) {
		if err != nil {
			return err
		}
		seen += len(batch)
	}
	am.stop(&alone, events, nil)
	if seen != events {
		return fmt.Errorf("the feed has %d events of %d", seen, events)
	}
	model := b.n.projections.Model(order.ProjectionOrders)
	m, err := o.startProfiled()
	if err != nil {
		return err
	}
	if err := model.Rebuild(ctx, false); err != nil {
		return err
	}
	st, err := rebuilt(ctx, model.Status)
	if err != nil {
		return err
	}
	m.stop(r, events, nil)
	// The comparison with the old documents is a check, not a part of the work.
	took := st.Rebuild.Caught.Sub(st.Rebuild.Started).Seconds()
	r.Seconds, r.Rate = took, float64(events)/took
	if same := st.Rebuild.Identical(); same == nil || !*same {
		return errors.New("the rebuilt read model differs")
	}
	after, err := b.size()
	r.BytesPerItem = float64(after-before) / float64(events)
	r.Control = &control{Name: "reading the journal alone", Rate: alone.Rate}
	r.Ratio = r.Rate / alone.Rate
	return err
}

// rebuilt waits for the end of a rebuild.
func rebuilt(ctx context.Context, status func(context.Context) (projection.Status, error)) (projection.Status, error) {
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		st, err := status(ctx)
		if err != nil || st.Rebuild.Done {
			return st, err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return st, ctx.Err()
		}
	}
}

// liveLives takes orders through their whole lives, in batches.
func liveLives(ctx context.Context, b *bed, lives int) error {
	const batch = 2000
	for from := 0; from < lives; from += batch {
		n := min(batch, lives-from)
		for step := -1; step < len(lifeSteps); step++ {
			cs := make([]millrace.Command, n)
			for k := range cs {
				cs[k] = orderCommand("l" + strconv.Itoa(from+k))
				if step >= 0 {
					cs[k].ID += "-" + strconv.Itoa(step)
					cs[k].Type, cs[k].Data = lifeSteps[step].command, []byte(lifeSteps[step].body)
				}
			}
			if err := allDecided(ctx, b, cs); err != nil {
				return err
			}
		}
	}
	return nil
}

// allDecided has commands decided at once.
func allDecided(ctx context.Context, b *bed, cs []millrace.Command) error {
	for _, a := range b.n.processor.AcceptAll(ctx, cs) {
		if a.Err != nil {
			return a.Err
		}
		out, err := a.Receipt.Wait(ctx)
		if err := decided(&out, err); err != nil {
			return err
		}
	}
	return nil
}
