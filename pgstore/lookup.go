package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
)

// gatherer answers those who ask at the same time by one query: every command that is accepted asks for its id first,
// and every loop for the versions of the streams that it does not know.
type gatherer[Q any] struct {
	most int // questions in one query
	ask  func(ctx context.Context, batch []*question[Q]) error
	wait sync.WaitGroup

	mu    sync.Mutex
	queue []*question[Q]
	idle  int
	late  *time.Timer // starts another one where there is something to ask; nil while it is not set
}

// question is what one caller asks, and where the answer goes.
type question[Q any] struct {
	q    Q
	err  error
	done chan struct{}
}

// lookup asks for the outcome of a command, and for the version of its stream where that is named.
type lookup struct {
	millrace.Inquiry
	partition int
	outcome   millrace.Outcome
	version   uint64
}

// askVersions asks for the versions of streams of one partition.
type askVersions struct {
	partition int
	streams   []millrace.Stream
	versions  []uint64
}

const (
	// maxLookups is how many ids one query asks for.
	maxLookups = 512
	// maxAskVersions is how many partitions one query asks for versions in; a loop asks for a page of commands at most.
	maxAskVersions = 16
	// askers is how many queries of a kind are under way at a time at the most. While one is answered the next one gathers: a
	// second one asks only where that one would hold up many, askMany, or anybody for askAfter.
	askers   = 2
	askMany  = 128
	askAfter = 20 * time.Millisecond
)

func (g *gatherer[Q]) init(most int, ask func(ctx context.Context, batch []*question[Q]) error) {
	g.most, g.ask, g.idle = most, ask, askers
}

// errNoCommand is the usual answer, since most commands are new: it is made once.
var errNoCommand = fmt.Errorf("%w: no command of that id", millrace.ErrNotFound)

// Lookup implements millrace.Driver.
func (d *Driver) Lookup(ctx context.Context, id string) (millrace.Outcome, error) {
	if err := d.reads.Enter(); err != nil {
		return millrace.Outcome{}, err
	}
	defer d.reads.Leave()
	l, err := d.look.get(ctx, lookup{Inquiry: millrace.Inquiry{ID: id}})
	if err != nil {
		return millrace.Outcome{}, err
	}
	return l.outcome, nil
}

// Lookups implements millrace.Shared.
func (d *Driver) Lookups(ctx context.Context, inquiries []millrace.Inquiry) []millrace.Finding {
	out := make([]millrace.Finding, len(inquiries))
	if err := d.reads.Enter(); err != nil {
		for i := range out {
			out[i].Err = err
		}
		return out
	}
	defer d.reads.Leave()
	qs := make([]*question[lookup], len(inquiries))
	for i, q := range inquiries {
		qs[i] = &question[lookup]{q: lookup{Inquiry: q, partition: q.Stream.Partition(d.meta.Partitions)}, done: make(chan struct{})}
	}
	d.look.add(qs...)
	for i, q := range qs {
		l, err := q.answer(ctx)
		out[i] = millrace.Finding{Outcome: l.outcome, Version: l.version, Err: err}
	}
	return out
}

// Versions implements millrace.Shared.
func (d *Driver) Versions(ctx context.Context, partition int, streams []millrace.Stream) ([]uint64, error) {
	if err := d.reads.Enter(); err != nil {
		return nil, err
	}
	defer d.reads.Leave()
	a, err := d.versions.get(ctx, askVersions{partition: partition, streams: streams})
	return a.versions, err
}

// get asks one question and waits for its answer.
func (g *gatherer[Q]) get(ctx context.Context, q Q) (Q, error) {
	a := &question[Q]{q: q, done: make(chan struct{})}
	g.add(a)
	return a.answer(ctx)
}

// add asks questions.
func (g *gatherer[Q]) add(qs ...*question[Q]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queue = append(g.queue, qs...)
	g.help(false)
}

// help starts an asker where there is none, or where that one is not enough; g.mu is held.
func (g *gatherer[Q]) help(late bool) {
	switch {
	case g.idle == 0 || len(g.queue) == 0:
	case late || g.idle == askers || len(g.queue) >= askMany:
		g.idle--
		g.wait.Go(g.run)
	case g.late == nil:
		g.late = time.AfterFunc(askAfter, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.late = nil
			g.help(true)
		})
	}
}

// answer waits for the answer.
func (q *question[Q]) answer(ctx context.Context) (answer Q, err error) {
	select {
	case <-q.done:
		return q.q, q.err
	case <-ctx.Done():
		return answer, ctx.Err()
	}
}

func (g *gatherer[Q]) run() {
	for {
		g.mu.Lock()
		n := min(len(g.queue), g.most)
		if n == 0 {
			g.idle++
			g.mu.Unlock()
			return
		}
		batch := g.queue[:n:n]
		if g.queue = g.queue[n:]; len(g.queue) == 0 {
			g.queue = nil
		}
		g.mu.Unlock()
		err := g.askOnce(batch)
		if errors.Is(err, millrace.ErrInvalid) && len(batch) > 1 {
			for _, q := range batch { // one holds what no text can
				g.tell([]*question[Q]{q}, g.askOnce([]*question[Q]{q}))
			}
			continue
		}
		g.tell(batch, err)
	}
}

// lookupTimeout bounds a query: who accepts commands says so to his clients soon.
const lookupTimeout = 5 * time.Second

// askOnce asks not in the context of any caller: the others should not end with it.
func (g *gatherer[Q]) askOnce(batch []*question[Q]) error {
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	err := g.ask(ctx, batch)
	if err != nil && ctx.Err() != nil {
		return unavailable(ctx.Err()) // the timeout is the query's, not the callers'
	}
	return readError(ctx, err)
}

// tell answers a batch; err is that of the query, where it failed.
func (g *gatherer[Q]) tell(batch []*question[Q], err error) {
	for _, q := range batch {
		if err != nil {
			q.err = err
		}
		close(q.done)
	}
}

// findVersions answers those who ask for versions.
func (d *Driver) findVersions(ctx context.Context, batch []*question[askVersions]) error {
	var l look
	for _, a := range batch {
		a.q.versions = make([]uint64, len(a.q.streams))
		for i, s := range a.q.streams {
			l.stream(a.q.partition, s, &a.q.versions[i])
		}
	}
	return d.lookUp(ctx, &l)
}

// findOutcomes answers those who ask for outcomes: first who has the ids, which for new commands is nobody, then what became
// of them.
func (d *Driver) findOutcomes(ctx context.Context, batch []*question[lookup]) error {
	byID := make(map[string][]*question[lookup], len(batch))
	l := look{ids: make([]string, 0, len(batch))}
	for _, q := range batch {
		if byID[q.q.ID] == nil {
			l.ids = append(l.ids, q.q.ID)
		}
		byID[q.q.ID] = append(byID[q.q.ID], q)
		if q.q.Stream != "" {
			l.stream(q.q.partition, q.q.Stream, &q.q.version)
		}
		q.err = errNoCommand
	}
	if err := d.lookUp(ctx, &l); err != nil || len(l.known) == 0 {
		return err
	}
	known, partitions, ordinals := l.known, l.in, l.ordinals
	answer := func(o millrace.Outcome) {
		for _, q := range byID[o.CommandID] {
			q.q.outcome, q.err = o, nil
		}
	}
	// Commands first: one that is decided in between is then found by both, and the outcome counts.
	kept, in := undecided(&l, byID)
	err := d.queryAny(ctx, len(kept), d.sql.commandsOf, []any{in, kept}, func(rows pgx.Rows) error {
		o := millrace.Outcome{Status: millrace.StatusAccepted}
		var at int64
		var fp []byte
		if err := rows.Scan(&o.CommandID, &o.Partition, &at, &o.Stream, &fp); err != nil {
			return err
		}
		o.Time = nano(at)
		copy(o.Fingerprint[:], fp)
		answer(o)
		return nil
	})
	if err != nil {
		return err
	}
	return d.query(ctx, d.sql.outcomesOf, []any{partitions, known, ordinals}, func(rows pgx.Rows) error {
		o, err := scanOutcome(rows)
		if err == nil {
			answer(o)
		}
		return err
	})
}

// undecided are those of the known commands that somebody wants to know of before they are decided.
func undecided(l *look, byID map[string][]*question[lookup]) (ids []string, partitions []int32) {
	for k, id := range l.known {
		if slices.ContainsFunc(byID[id], func(q *question[lookup]) bool { return !q.q.Decided }) {
			ids, partitions = append(ids, id), append(partitions, l.in[k])
		}
	}
	return ids, partitions
}

// queryAny is query, where there is anything to ask for.
func (d *Driver) queryAny(ctx context.Context, n int, sql string, args []any, each func(pgx.Rows) error) error {
	if n == 0 {
		return nil
	}
	return d.query(ctx, sql, args, each)
}

// look is one call of the function look.
type look struct {
	ids        []string
	partitions []int
	streams    []string
	versions   []*uint64 // where those of the streams go

	known    []string // the ids that somebody has
	in       []int32  // the partitions of their commands
	ordinals []int64  // of the decisions that they came with, or 0
}

func (l *look) stream(partition int, s millrace.Stream, version *uint64) {
	l.partitions, l.streams, l.versions = append(l.partitions, partition), append(l.streams, string(s)), append(l.versions, version)
}

// inOrder gives what is known in the order in which it was asked for.
func (l *look) inOrder() (out look) {
	at := make(map[string]int, len(l.known))
	for k, id := range l.known {
		at[id] = k
	}
	for _, id := range l.ids {
		if k, ok := at[id]; ok {
			out.known, out.in, out.ordinals = append(out.known, id), append(out.in, l.in[k]), append(out.ordinals, l.ordinals[k])
		}
	}
	return out
}

func (d *Driver) lookUp(ctx context.Context, l *look) error {
	params := [][]byte{texts(l.ids), numbers(l.partitions), texts(l.streams)}
	return d.read(ctx, d.callRows(ctx, d.sql.look, params, func(row []int64) {
		switch n := row[0]; {
		case n > 0:
			l.known, l.in = append(l.known, l.ids[n-1]), append(l.in, int32(row[1])) //nolint:gosec // a partition
			l.ordinals = append(l.ordinals, row[2])
		default:
			*l.versions[-n-1] = uint64(row[1]) //nolint:gosec // counts events
		}
	}))
}

// nano is a time of the log.
func nano(ns int64) time.Time { return time.Unix(0, ns).UTC() }

// scanOutcome reads a row of outcomesOf.
func scanOutcome(rows pgx.Rows) (millrace.Outcome, error) {
	var o millrace.Outcome
	var status int16
	var position, version, at int64
	var fp, encoded []byte
	if err := rows.Scan(&o.CommandID, &o.Partition, &status, &position, &version, &o.Events, &at, &o.Stream, &fp, &encoded); err != nil {
		return o, err
	}
	o.Status = millrace.Status(status)               //nolint:gosec // one of four
	o.Position = uint64(position) + uint64(o.Events) //nolint:gosec // counts events
	o.Version = uint64(version) + uint64(o.Events)   //nolint:gosec // counts events
	o.Time = nano(at)
	copy(o.Fingerprint[:], fp)
	if o.Status == millrace.StatusDecided {
		return o, nil
	}
	d, err := millrace.DecodeDecision(encoded)
	if err != nil || d.Status != o.Status {
		return o, fmt.Errorf("%w: outcomes: the refusal of a command in partition %d", millrace.ErrCorrupt, o.Partition)
	}
	o.Refusal, o.Failure = d.Refusal, d.Failure
	return o, nil
}
