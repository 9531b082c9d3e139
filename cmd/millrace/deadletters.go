package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/deadletter"
	"github.com/millrace-io/millrace/domain/system"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/letter"
	processes "github.com/millrace-io/millrace/process"
)

const (
	// streamAsks is the name of the consumer that tells others of parked streams that somebody has redriven.
	streamAsks = "redrive-streams"
	// maxOpenCounted bounds the dead letters that are read to be counted for a scrape: an alarm needs to know that there are
	// many, and not how many.
	maxOpenCounted = 10_000
	// countFor is how long a count of them holds.
	countFor = 15 * time.Second
)

// followLetters runs what sends dead letters again.
func (n *node) followLetters(ctx context.Context) error {
	manager, err := system.Redrive().Manager()
	if err != nil {
		return err
	}
	redrive := processes.New(n.store, n.registry, n.processor, manager, &processes.Options{Observer: n.metrics, Logger: n.log})
	g, gctx := errgroup.WithContext(ctx)
	for _, c := range []millrace.Consumer{redrive.Consumer(), n.letters.Jobs(), n.streamAsks()} {
		g.Go(func() error { return n.follow(gctx, c) })
	}
	return g.Wait()
}

// streamAsks is the consumer that has others go on with parked streams. It follows from facts: what somebody was told is asked
// for is done after a crash too.
func (n *node) streamAsks() millrace.Consumer {
	return millrace.Consumer{
		Name: streamAsks, Categories: []string{letter.CategoryConsumer}, Effects: true,
		Handle: func(ctx context.Context, _ millrace.Views, e *millrace.Recorded) error {
			consumer, ok := consumers{n}.Names()[e.Stream.ID()]
			if !ok {
				n.log.Warn("a stream was redriven for a consumer that does not run here", "consumer", e.Stream.ID(), "event", e.ID())
				return nil
			}
			var stream millrace.Stream
			ask := feed.Redrive
			switch b := e.Body.(type) {
			case *letter.ConsumerStreamRedriven:
				stream = b.Stream
			case *letter.ConsumerEventSkipped:
				stream = b.Stream
				ask = func(ctx context.Context, store *millrace.Store, consumer, id string, s millrace.Stream, now time.Time) error {
					return feed.Skip(ctx, store, consumer, id, s, b.Version, now)
				}
			default:
				return nil
			}
			for {
				// The event may come again: what was asked for is asked for once, and what is done by then is not parked any more.
				_, err := n.store.Document(ctx, consumer+"."+millrace.AsksTable.Name, stream.Partition(n.store.Partitions()), e.ID())
				if errors.Is(err, millrace.ErrNotFound) {
					err = ask(ctx, n.store, consumer, e.ID(), stream, e.Time)
				}
				switch {
				case errors.Is(err, millrace.ErrNotFound) || errors.Is(err, millrace.ErrInvalid):
					return nil
				case err == nil || ctx.Err() != nil || !passing(err):
					return err
				}
				n.log.Warn("a redriven stream is asked for later", "consumer", consumer, "stream", stream, "error", err)
				pause(ctx, followAgain)
			}
		},
	}
}

// Redrive implements httpapi.Consumers: it is a command on the consumer's stream, and done when that is a fact.
func (c consumers) Redrive(ctx context.Context, a *httpapi.RedriveAsk) error {
	if err := a.Stream.Validate(); err != nil {
		return err
	}
	partition := a.Stream.Partition(c.n.store.Partitions())
	_, err := c.n.store.Document(ctx, a.Consumer+"."+millrace.ParkedName, partition, string(a.Stream))
	if errors.Is(err, millrace.ErrNotFound) { // an instance that has stopped by itself
		_, err = c.n.store.Document(ctx, a.Consumer+"."+millrace.InstancesTable.Name, partition, string(a.Stream))
	}
	if err != nil {
		return err
	}
	body := &letter.RedriveStream{Stream: a.Stream, By: a.By, Why: a.Why}
	if faults := body.Validate(); len(faults) > 0 {
		return &millrace.FormError{Errors: faults}
	}
	name, data, err := c.n.registry.EncodeCommand(body)
	if err != nil {
		return err
	}
	_, err = c.n.processor.Accept(ctx, millrace.Command{
		ID: a.ID, Stream: letter.ConsumerStream(a.Name), Type: name, Data: data, Body: body, Source: "http",
	})
	return err
}

// openLetters counts open dead letters by reason, for scrapes.
type openLetters struct {
	s   *deadletter.Service
	log func(err error)

	mu   sync.Mutex
	at   time.Time
	last map[string]float64
}

func newOpenLetters(n *node) *openLetters {
	return &openLetters{s: n.letters, log: func(err error) { n.log.Warn("cannot count dead letters", "error", err) }}
}

// read counts them, or gives what was counted a moment ago.
func (o *openLetters) read() map[string]float64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.last != nil && time.Since(o.at) < countFor {
		return o.last
	}
	ctx, cancel := context.WithTimeout(context.Background(), countFor)
	defer cancel()
	counts, err := o.s.Open(ctx, maxOpenCounted)
	if err != nil {
		o.log(fmt.Errorf("count: %w", err))
		return o.last
	}
	out := make(map[string]float64, len(counts))
	for reason, k := range counts {
		out[reason] = float64(k)
	}
	o.at, o.last = time.Now(), out
	return out
}
