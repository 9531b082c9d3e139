package main

import (
	"context"
	"fmt"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
	processes "github.com/millrace-io/millrace/process"
)

// domainVerdict is what verify --domain finds in the events.
type domainVerdict struct {
	order.Findings
	// Unsettled are orders that were on their way: of them it is not said yet that everything must be done.
	Unsettled int `json:"unsettled"`
}

// checkDomain recomputes stock and money from events, and reports where they do not add up. It reads every position of the log, each
// partition's in their order, and what can be said of a stream alone must hold at each of them.
func (v *verdict) checkDomain(ctx context.Context, store *millrace.Store) error {
	registry, err := millrace.NewRegistry(domains()...)
	if err != nil {
		return err
	}
	unsettled, err := newUnsettled(ctx, store)
	if err != nil {
		return err
	}
	var audit order.Audit
	read := make([]uint64, store.Partitions()) // the position up to which each partition was read
	heads := store.Heads()                     // of before: others may go on writing
	for events, err := range store.Feed(ctx, millrace.FeedOptions{}) {
		if err != nil {
			return err
		}
		for i := range events {
			e := &events[i]
			if e.Position != read[e.Partition]+1 {
				v.report(fmt.Sprintf("domain: in partition %d position %d was read after %d", e.Partition, e.Position, read[e.Partition]))
			}
			read[e.Partition] = e.Position
			switch e.Stream.Category() {
			case order.CategoryOrder, order.CategoryStock, order.CategoryReturn:
			default:
				continue
			}
			if _, err := registry.Body(e); err != nil {
				v.report(fmt.Sprintf("domain: event %s cannot be read: %v", e.ID(), err))
				continue
			}
			unsettled.see(e)
			audit.Add(e)
		}
	}
	for p := range heads {
		if read[p] < heads[p].Position {
			v.report(fmt.Sprintf("domain: partition %d was read up to position %d of %d", p, read[p], heads[p].Position))
		}
	}
	f := audit.FinishSome(func(id string) bool { return !unsettled.orders[id] })
	v.Domain = &domainVerdict{Findings: f, Unsettled: len(unsettled.orders)}
	for _, b := range f.Broken {
		at := string(b.Stream)
		if b.Version > 0 {
			at = fmt.Sprintf("%s at version %d", at, b.Version)
		}
		v.report(fmt.Sprintf("domain: %s: %s: %s", b.Name, at, b.Detail))
	}
	v.More += f.More
	return nil
}

// unsettled are the orders that the process of fulfilment has not brought to their ends.
type unsettled struct {
	seen   millrace.Cursor // up to where the process has seen the log
	orders map[string]bool
}

func newUnsettled(ctx context.Context, store *millrace.Store) (*unsettled, error) {
	u := &unsettled{orders: map[string]bool{}}
	var err error
	if u.seen, err = store.Checkpoints(ctx, order.ProcessFulfilment); err != nil {
		return nil, err
	}
	r := processes.NewReader(store, order.ProcessFulfilment, order.CategoryOrder)
	for d, err := range r.Instances(ctx, millrace.Query{Index: -1, Partition: -1}) {
		if err != nil {
			return nil, err
		}
		i, err := millrace.InstancesTable.Decode(d.Data)
		if err != nil {
			return nil, err
		}
		if !i.Done {
			u.orders[i.Stream.ID()] = true
		}
	}
	return u, nil
}

// see notes an order of which the process has not seen everything.
func (u *unsettled) see(e *millrace.Recorded) {
	if e.Stream.Category() == order.CategoryOrder && e.Position > u.seen.Position(e.Partition) {
		u.orders[e.Stream.ID()] = true
	}
}
