// Package transfer carries a store over to another backend, as it stands: facts with their positions and chains, commands that
// wait for a decision, documents and checkpoints. Cursors stay valid, because the copy has the store's identity.
//
// Neither of the two may be served meanwhile. A copy that was interrupted is marked as one ([Incomplete]), and goes on where
// it stopped when it is begun again.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/millrace-io/millrace"
)

// Options of Copy.
type Options struct {
	// Progress is told now and then, by one goroutine at a time. Defaults to nobody.
	Progress func(Report)
}

// Report counts what the copy holds. What an earlier run has copied counts too, but for documents, which are copied anew.
type Report struct {
	Decisions   uint64 `json:"decisions"`
	Events      uint64 `json:"events"`
	Pending     uint64 `json:"pending"`
	Documents   uint64 `json:"documents"`
	Consumers   int    `json:"consumers"`
	TotalEvents uint64 `json:"total_events"` // of the source
}

// The mark of a copy that is not done: a document of its own.
const (
	markConsumer   = "transfer"
	markCollection = markConsumer + ".state"
	markID         = "incomplete"
)

// Incomplete says whether a store is a copy that was never finished. Such a store must not be served.
func Incomplete(ctx context.Context, s *millrace.Store) (bool, error) {
	_, err := s.Document(ctx, markCollection, 0, markID)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, millrace.ErrNotFound):
		return false, nil
	default:
		return false, err
	}
}

// Copy carries everything over from one store to another, which is new, or which an earlier Copy has left unfinished.
// Errors: ErrInvalid where the target holds something else, ErrCorrupt where the source contradicts itself.
func Copy(ctx context.Context, from, to *millrace.Store, o Options) (Report, error) {
	source, ok := from.Driver().(millrace.Portable)
	if !ok {
		return Report{}, fmt.Errorf("%w: the source cannot be copied from", millrace.ErrInvalid)
	}
	if from.Meta() != to.Meta() {
		return Report{}, fmt.Errorf("%w: the target has another identity than the source", millrace.ErrInvalid)
	}
	c := &copier{from: from, to: to, source: source, o: o}
	for _, h := range from.Heads() {
		c.report.TotalEvents += h.Position
	}
	if err := c.mark(ctx, false); err != nil {
		return c.report, err
	}
	for _, step := range []func(context.Context) error{c.facts, c.pending, c.views, c.compare} {
		if err := step(ctx); err != nil {
			return c.report, err
		}
	}
	return c.report, c.mark(ctx, true)
}

type copier struct {
	from, to *millrace.Store
	source   millrace.Portable
	o        Options
	report   Report
}

func (c *copier) tell() {
	if c.o.Progress != nil {
		c.o.Progress(c.report)
	}
}

// mark says that the copy is under way, or that it is done.
func (c *copier) mark(ctx context.Context, done bool) error {
	put := millrace.Put{
		Document: millrace.Document{Collection: markCollection, ID: markID, Data: []byte(`{"incomplete":true}`)}, Delete: done,
	}
	return c.to.CommitViews(ctx, []millrace.ViewBatch{{Consumer: markConsumer, Puts: []millrace.Put{put}}})
}

const (
	// batchDecisions and batchBytes bound one commit: enough to make it worth its sync.
	batchDecisions = 512
	batchBytes     = 1 << 20
	// batchesAhead is how many commits of a partition may be on their way.
	batchesAhead = 4
	// batchDocuments bounds one commit of documents.
	batchDocuments = 500
)

// lane is a partition's part of the log on its way.
type lane struct {
	partition int
	head      millrace.Head // behind what was read of the source
	resume    millrace.ChainHash
	copied    bool // everything up to here is in the target already
	batch     []millrace.Decision
	chains    []millrace.ChainHash // of the source
	bytes     int
	ahead     chan error
	waiting   int
}

// facts copies the log. The target numbers and links the decisions by itself, and must come to the same.
func (c *copier) facts(ctx context.Context) error {
	lanes := make([]*lane, c.from.Partitions())
	for p, h := range c.to.Heads() {
		lanes[p] = &lane{partition: p, resume: h.Chain, copied: h.Chain != millrace.ChainHash{}, ahead: make(chan error, batchesAhead)}
	}
	for l, err := range c.source.Log(ctx) {
		if err != nil {
			return err
		}
		if err := c.take(ctx, lanes[l.Partition], l.Decision); err != nil {
			return err
		}
	}
	for _, l := range lanes {
		if l.copied {
			return fmt.Errorf("%w: the target's partition %d holds what the source does not", millrace.ErrInvalid, l.partition)
		}
		if err := c.commit(ctx, l); err != nil {
			return err
		}
		for l.waiting > 0 {
			if err := l.wait(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// take puts a decision into its lane, unless the target has it.
func (c *copier) take(ctx context.Context, l *lane, d millrace.Decision) error {
	if d.Position != l.head.Position || millrace.NextChain(l.head.Chain, millrace.AppendDecision(nil, &d)) != d.Chain {
		return fmt.Errorf("%w: a decision of the source does not continue partition %d at position %d", millrace.ErrCorrupt, l.partition, l.head.Position)
	}
	l.head = d.Head()
	c.report.Decisions++
	c.report.Events += uint64(len(d.Events))
	if c.report.Decisions%batchDecisions == 0 {
		c.tell()
	}
	if l.copied {
		l.copied = d.Chain != l.resume
		return nil
	}
	l.batch, l.chains = append(l.batch, d), append(l.chains, d.Chain)
	l.bytes += len(d.Command.Data)
	for i := range d.Events {
		l.bytes += len(d.Events[i].Data)
	}
	if len(l.batch) < batchDecisions && l.bytes < batchBytes {
		return nil
	}
	return c.commit(ctx, l)
}

// commit hands a lane's batch to the target.
func (c *copier) commit(ctx context.Context, l *lane) error {
	if len(l.batch) == 0 {
		return nil
	}
	if l.waiting == batchesAhead {
		if err := l.wait(ctx); err != nil {
			return err
		}
	}
	b := &millrace.Batch{Partition: l.partition, Decisions: l.batch}
	chains := l.chains
	c.to.Commit(b, func(err error) { l.ahead <- err })
	l.waiting++
	for i := range b.Decisions {
		if b.Decisions[i].Chain != chains[i] {
			return fmt.Errorf("%w: the target links partition %d differently", millrace.ErrCorrupt, l.partition)
		}
	}
	l.batch, l.chains, l.bytes = nil, nil, 0
	return nil
}

func (l *lane) wait(ctx context.Context) error {
	select {
	case err := <-l.ahead:
		l.waiting--
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pending copies the commands that wait for a decision, in their order.
func (c *copier) pending(ctx context.Context) error {
	for p := range c.from.Partitions() {
		var page []millrace.AcceptedCommand
		flush := func() error {
			if len(page) == 0 {
				return nil
			}
			err := c.to.Accept(ctx, p, page)
			page = nil
			return err
		}
		for a, err := range c.from.Pending(ctx, p) {
			if err != nil {
				return err
			}
			c.report.Pending++
			// An interrupted run may have copied it.
			if _, err := c.to.Lookup(ctx, a.Command.ID); err == nil {
				continue
			} else if !errors.Is(err, millrace.ErrNotFound) {
				return err
			}
			if page = append(page, a); len(page) == batchDecisions {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		if err := flush(); err != nil {
			return err
		}
	}
	c.tell()
	return nil
}

// views copies the documents, and then the checkpoints that go with them.
func (c *copier) views(ctx context.Context) error {
	consumers, err := c.source.Consumers(ctx)
	if err != nil {
		return err
	}
	collections, err := c.source.Collections(ctx)
	if err != nil {
		return err
	}
	for _, name := range consumers {
		if err := c.to.DropViews(ctx, name, owned(name, collections)); err != nil {
			return err
		}
	}
	for _, name := range collections {
		if err := c.documents(ctx, name); err != nil {
			return err
		}
	}
	for _, name := range consumers {
		if name == markConsumer {
			continue
		}
		if err := c.checkpoints(ctx, name); err != nil {
			return err
		}
		c.report.Consumers++
	}
	c.tell()
	return nil
}

// owned are the collections of a consumer: they begin with its name.
func owned(consumer string, collections []string) []string {
	var out []string
	for _, name := range collections {
		if strings.HasPrefix(name, consumer+".") {
			out = append(out, name)
		}
	}
	return out
}

// documents copies a collection, partition by partition.
func (c *copier) documents(ctx context.Context, collection string) error {
	if collection == markCollection {
		return nil
	}
	for p := range c.from.Partitions() {
		var puts []millrace.Put
		flush := func() error {
			batch := millrace.ViewBatch{Consumer: markConsumer, Partition: p, Puts: puts}
			puts = nil
			return c.to.CommitViews(ctx, []millrace.ViewBatch{batch})
		}
		for doc, err := range c.from.Documents(ctx, millrace.Query{Collection: collection, Index: -1, Partition: p}) {
			if err != nil {
				return err
			}
			c.report.Documents++
			if puts = append(puts, millrace.Put{Document: doc}); len(puts) == batchDocuments {
				if err := flush(); err != nil {
					return err
				}
				c.tell()
			}
		}
		if len(puts) > 0 {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkpoints copies how far a consumer has come. Its documents are there.
func (c *copier) checkpoints(ctx context.Context, consumer string) error {
	at, err := c.from.Checkpoints(ctx, consumer)
	if err != nil {
		return err
	}
	var batches []millrace.ViewBatch
	for p := range c.from.Partitions() {
		batches = append(batches, millrace.ViewBatch{Consumer: consumer, Partition: p, Checkpoint: at.Position(p)})
	}
	return c.to.CommitViews(ctx, batches)
}

// compare says whether both stores are the same now.
func (c *copier) compare(ctx context.Context) error {
	a, b := c.from.Heads(), c.to.Heads()
	for p := range a {
		if a[p] != b[p] {
			return fmt.Errorf("%w: partition %d ends at position %d in the source and at %d in the target, or their chains differ",
				millrace.ErrCorrupt, p, a[p].Position, b[p].Position)
		}
	}
	if x, y := c.from.Backlog(), c.to.Backlog(); x != y {
		return fmt.Errorf("%w: %d commands wait in the source and %d in the target", millrace.ErrCorrupt, x, y)
	}
	return ctx.Err()
}
