package deadletter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/letter"
)

const (
	// pageTime is about how long a page takes at the job's rate: so late it is noticed that the job is to stand still, and so
	// old is the progress that is shown.
	pageTime = 2 * time.Second
	// maxRead bounds the dead letters that a page looks at, where few of them fit the filter.
	maxRead = 10_000
)

// runner does the pages of a job.
type runner struct {
	s    *Service
	job  *letter.Job
	pace pace
}

// due is a dead letter of a page. Bodies are not held: each is read when it is sent.
type due struct {
	ref         letter.Ref
	correlation string
}

// page redrives the next dead letters and records what came of it. It reads stream by stream: those of one are sent one after
// the other, in the order of acceptance; those of several at once.
func (r *runner) page(ctx context.Context) error {
	j := r.job
	record := &letter.RecordRedrivePage{Page: j.Page + 1, Next: j.Next}
	groups, err := r.read(ctx, record)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(r.s.o.AtOnce)
	for n, of := range groups {
		g.Go(func() error {
			counts, held, err := r.stream(gctx, of, n == 0 && of[0].ref.Stream == j.Held)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			record.Counts = record.Counts.Plus(counts)
			if held && n == len(groups)-1 {
				record.Held = of[0].ref.Stream
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if len(groups) == 0 {
		record.Held = j.Held
	}
	_, err = r.s.accept(ctx, letter.JobPageID(j.ID, record.Page), letter.JobStream(j.ID), "", record)
	if errors.Is(err, millrace.ErrKeyReused) {
		return nil // somebody else has done the page too, and counted it
	}
	return err
}

// read reads the dead letters of the next page, those of each stream together, and notes where it ends.
func (r *runner) read(ctx context.Context, record *letter.RecordRedrivePage) ([][]due, error) {
	var groups [][]due
	o := byStream(&r.job.Filter)
	q := millrace.Query{
		Collection: millrace.DeadLetterCollection, Index: o.Index, Partition: -1, Prefix: o.Prefix, After: r.job.Next.Place(),
	}
	n, looked := 0, 0
	most := min(r.s.o.Page, max(1, r.job.Rate*int(pageTime/time.Second)))
	for d, err := range r.s.store.Documents(ctx, q) {
		if err != nil {
			return nil, err
		}
		if n == most || looked == maxRead {
			return groups, nil
		}
		looked++
		place := d.Place(o.Index)
		record.Next = letter.PlaceOf(&place)
		if letter.Resent(d.ID) {
			continue
		}
		l, err := millrace.DeadLetterTable.Decode(d.Data)
		if err != nil {
			return nil, fmt.Errorf("dead letter %s: %w", d.ID, err)
		}
		// What becomes a dead letter meanwhile is another job's.
		if !r.job.Filter.Fits(l) || l.AcceptedAt.After(r.job.StartedAt) {
			continue
		}
		n++
		if k := len(groups) - 1; k >= 0 && groups[k][0].ref.Stream == l.Stream && r.s.orderly {
			groups[k] = append(groups[k], due{letter.RefOf(l), l.CorrelationID})
		} else {
			groups = append(groups, []due{{letter.RefOf(l), l.CorrelationID}})
		}
	}
	record.Done = true
	return groups, nil
}

// stream redrives dead letters of one stream, one after the other. Where one dies again, those behind it are held: they are
// open still, and nothing of the stream comes before what came before it.
func (r *runner) stream(ctx context.Context, of []due, held bool) (letter.Counts, bool, error) {
	var counts letter.Counts
	for _, d := range of {
		status, err := r.one(ctx, d, held)
		if err != nil {
			return counts, held, err
		}
		switch status {
		case sentDecided:
			counts.Decided++
		case sentRefused:
			counts.Refused++
		case sentDead:
			counts.Dead++
			held = r.s.orderly
		case wasHeld:
			counts.Held++
		case wasSkipped:
			counts.Skipped++
		}
	}
	return counts, held, nil
}

// fate is what became of a dead letter that a job has met.
type fate int

const (
	sentDecided fate = iota
	sentRefused
	sentDead
	wasHeld
	wasSkipped
)

// one redrives a dead letter and waits for what becomes of it. Where the job had done so before a crash, its answer is the same.
func (r *runner) one(ctx context.Context, d due, held bool) (fate, error) {
	id, stream := letter.JobRedriveID(r.job.ID, d.ref.CommandID), letter.Stream(d.ref.CommandID)
	o, err := r.s.store.Lookup(ctx, id)
	switch {
	case err == nil && o.Done():
	case err == nil || errors.Is(err, millrace.ErrNotFound):
		// One that is kept and not decided yet is sent: it cannot be taken back.
		if err != nil {
			open, err := r.open(ctx, stream)
			switch {
			case err != nil:
				return 0, err
			case !open:
				return wasSkipped, nil
			case held:
				return wasHeld, nil
			}
		}
		if err := r.pace.wait(ctx, r.job.Rate); err != nil {
			return 0, err
		}
		o, err = r.s.accept(ctx, id, stream, d.correlation, &letter.RedriveDeadLetter{Letter: d.ref, By: r.job.By, Why: r.job.Why, Job: r.job.ID})
		if err != nil {
			return 0, err
		}
	default:
		return 0, err
	}
	if o.Status != millrace.StatusDecided {
		return wasSkipped, nil // somebody was quicker
	}
	attempt, err := r.attempt(ctx, stream, o.Version)
	if err != nil {
		return 0, err
	}
	o, err = r.s.ended(ctx, letter.SentID(stream, attempt))
	switch {
	case err != nil:
		return 0, err
	case o.Status == millrace.StatusRefused:
		return sentRefused, nil
	case o.Status == millrace.StatusDead:
		return sentDead, nil
	}
	return sentDecided, nil
}

// open says whether a dead letter is open. One that somebody has sent again is awaited: what comes behind it must not come
// before.
func (r *runner) open(ctx context.Context, stream millrace.Stream) (bool, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, lastLook) {
		st, err := fold[*letter.State](ctx, r.s, stream)
		if err != nil || st.Status != letter.Redriving {
			return err == nil && st.Status == letter.Open, err
		}
		if pause(ctx, wait); ctx.Err() != nil {
			return false, ctx.Err()
		}
	}
}

// attempt is the number of the attempt that an event of a dead letter's stream has begun.
func (r *runner) attempt(ctx context.Context, stream millrace.Stream, version uint64) (int, error) {
	for e, err := range r.s.store.Events(ctx, stream, version) {
		if err != nil {
			return 0, err
		}
		body, err := r.s.registry.Body(&e)
		if err != nil {
			return 0, err
		}
		if re, ok := body.(*letter.DeadLetterRedriven); ok {
			return re.Attempt, nil
		}
		break
	}
	return 0, fmt.Errorf("%w: event %d of %s is not what it should be", millrace.ErrCorrupt, version, stream)
}
