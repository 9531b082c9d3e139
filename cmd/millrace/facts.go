package main

import (
	"context"

	"github.com/millrace-io/millrace"
)

// What a process has done in the world is a fact: a command under the id of the call that did it.

// fact is the body of the command that was accepted under an id. Errors: [millrace.ErrNotFound].
func (n *node) fact(ctx context.Context, id string) (any, error) {
	c, err := n.store.Command(ctx, id)
	if err != nil {
		return nil, err
	}
	return n.registry.DecodeCommand(&c)
}

// keepFact accepts what a call has come to, as a command of a stream.
func (n *node) keepFact(ctx context.Context, c *millrace.CallRequest, s millrace.Stream, body any) error {
	return n.accept(ctx, millrace.Command{
		ID: c.ID, Stream: s, Body: body, CorrelationID: c.CorrelationID, Source: "process " + c.Process,
	})
}

// accept accepts a command by its body.
func (n *node) accept(ctx context.Context, c millrace.Command) error {
	_, err := n.offer(ctx, c)
	return err
}

// offer accepts a command by its body, and gives its receipt.
func (n *node) offer(ctx context.Context, c millrace.Command) (r *millrace.Receipt, err error) {
	if c.Type, c.Data, err = n.registry.EncodeCommand(c.Body); err != nil {
		return nil, err
	}
	return n.processor.Accept(ctx, c)
}

// calling says that a call of a role is under way for a stream, until done is called. On a store that nodes share it waits
// until this node serves the stream's partition.
func (n *node) calling(ctx context.Context, role string, s millrace.Stream) (done func(), err error) {
	if n.cluster == nil {
		return func() {}, nil
	}
	p := s.Partition(n.store.Partitions())
	calls := n.cluster.calls[role]
	if err := calls.begin(ctx, p); err != nil {
		return nil, err
	}
	return func() { calls.end(p) }, nil
}
