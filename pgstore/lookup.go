package pgstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
)

// lookups answers those who ask for outcomes at the same time by one query: every command that is accepted asks first.
type lookups struct {
	d    *Driver
	wait sync.WaitGroup

	mu    sync.Mutex
	queue []*lookup
	idle  int
}

type lookup struct {
	id      string
	outcome millrace.Outcome
	err     error
	done    chan struct{}
}

const (
	// maxLookups is how many ids one query asks for.
	maxLookups = 512
	// askers is how many queries are under way at a time: while one is answered the next one gathers, and one that is slow
	// does not hold all up.
	askers = 2
)

func (l *lookups) init(d *Driver) { l.d, l.idle = d, askers }

// errNoCommand is the usual answer, since most commands are new: it is made once.
var errNoCommand = fmt.Errorf("%w: no command of that id", millrace.ErrNotFound)

// Lookup implements millrace.Driver.
func (d *Driver) Lookup(ctx context.Context, id string) (millrace.Outcome, error) {
	if err := d.reads.Enter(); err != nil {
		return millrace.Outcome{}, err
	}
	defer d.reads.Leave()
	q := &lookup{id: id, done: make(chan struct{})}
	d.look.add(q)
	select {
	case <-q.done:
		return q.outcome, q.err
	case <-ctx.Done():
		return millrace.Outcome{}, ctx.Err()
	}
}

func (l *lookups) add(q *lookup) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(l.queue, q)
	if l.idle > 0 {
		l.idle--
		l.wait.Go(l.run)
	}
}

func (l *lookups) run() {
	for {
		l.mu.Lock()
		n := min(len(l.queue), maxLookups)
		if n == 0 {
			l.idle++
			l.mu.Unlock()
			return
		}
		batch := l.queue[:n:n]
		if l.queue = l.queue[n:]; len(l.queue) == 0 {
			l.queue = nil
		}
		l.mu.Unlock()
		// Not in the context of any caller: the others should not end with it.
		ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
		err := l.ask(ctx, batch)
		cancel()
		if errors.Is(err, millrace.ErrInvalid) && len(batch) > 1 {
			l.askEach(batch) // one id that no text can hold
			continue
		}
		for _, q := range batch {
			if err != nil {
				q.err = err
			}
			close(q.done)
		}
	}
}

// lookupTimeout bounds a query: who accepts commands says so to his clients soon.
const lookupTimeout = 5 * time.Second

func (l *lookups) askEach(batch []*lookup) {
	for _, q := range batch {
		ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
		if err := l.ask(ctx, []*lookup{q}); err != nil {
			q.err = err
		}
		cancel()
		close(q.done)
	}
}

// ask answers a batch: first who has the ids, which for new commands is nobody, then what became of them.
func (l *lookups) ask(ctx context.Context, batch []*lookup) error {
	d := l.d
	byID := make(map[string][]*lookup, len(batch))
	ids := make([]string, 0, len(batch))
	for _, q := range batch {
		if byID[q.id] == nil {
			ids = append(ids, q.id)
		}
		byID[q.id] = append(byID[q.id], q)
		q.err = errNoCommand
	}
	var partitions []int32
	var known []string
	err := d.query(ctx, d.sql.keysOf, []any{ids}, func(rows pgx.Rows) error {
		var id string
		var p int32
		if err := rows.Scan(&id, &p); err != nil {
			return err
		}
		known, partitions = append(known, id), append(partitions, p)
		return nil
	})
	if err != nil || len(known) == 0 {
		return l.failed(ctx, err)
	}
	answer := func(o millrace.Outcome) {
		for _, q := range byID[o.CommandID] {
			q.outcome, q.err = o, nil
		}
	}
	// Commands first: one that is decided in between is then found by both, and the outcome counts.
	err = d.query(ctx, d.sql.commandsOf, []any{partitions, known}, func(rows pgx.Rows) error {
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
		return l.failed(ctx, err)
	}
	err = d.query(ctx, d.sql.outcomesOf, []any{partitions, known}, func(rows pgx.Rows) error {
		o, err := scanOutcome(rows)
		if err == nil {
			answer(o)
		}
		return err
	})
	return l.failed(ctx, err)
}

// failed is what callers are told. The timeout is the query's, not theirs.
func (l *lookups) failed(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return unavailable(ctx.Err())
	}
	return readError(ctx, err)
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
