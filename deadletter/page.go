package deadletter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/letter"
)

// maxRead bounds the dead letters that a page looks at, where few of them fit the filter.
const maxRead = 10_000

// due is a dead letter of a page. Bodies are not held: each is read when it is sent.
type due struct {
	ref         letter.Ref
	correlation string
	sent        bool // this job has sent it before
	// status is what the read model says, which may be behind: what it says is over is over.
	status letter.Status
}

// read reads the dead letters of the page behind another one, those of each stream together, and notes where it ends.
func (r *runner) read(ctx context.Context, before *page) (*page, error) {
	p := &page{record: &letter.RecordRedrivePage{Page: before.record.Page + 1, Next: before.record.Next}, recorded: make(chan struct{})}
	n, looked := 0, 0
	most := min(r.s.o.Page, max(1, r.job.Rate*int(pageTime/time.Second)))
	o := byStream(&r.job.Filter)
	for it, err := range r.s.scan(ctx, o, before.record.Next.Place()) {
		if err != nil {
			return nil, err
		}
		if n == most || looked == maxRead {
			return p, r.known(ctx, p)
		}
		looked++
		p.record.Next = letter.PlaceOf(&it.Place)
		l := it.Letter
		// What is one more failure has its letter elsewhere, and what becomes a dead letter meanwhile is another job's.
		if letter.Resent(l.CommandID) || !r.job.Filter.Fits(l) || l.AcceptedAt.After(r.job.StartedAt) {
			continue
		}
		n++
		d := due{ref: letter.RefOf(l), correlation: l.CorrelationID, status: it.Status()}
		if k := len(p.groups) - 1; k >= 0 && p.groups[k][0].ref.Stream == l.Stream && r.s.orderly {
			p.groups[k] = append(p.groups[k], d)
		} else {
			p.groups = append(p.groups, []due{d})
		}
	}
	p.record.Done = true
	return p, r.known(ctx, p)
}

// known finds out which of a page's letters the job has sent before a crash: whatever became of them counts as the page's.
func (r *runner) known(ctx context.Context, p *page) error {
	var qs []millrace.Inquiry
	var of []*due
	for _, group := range p.groups {
		for k := range group {
			of = append(of, &group[k])
			qs = append(qs, millrace.Inquiry{ID: letter.JobRedriveID(r.job.ID, group[k].ref.CommandID)})
		}
	}
	for i, f := range r.s.store.Lookups(ctx, qs) {
		if of[i].sent = f.Err == nil; f.Err != nil && !errors.Is(f.Err, millrace.ErrNotFound) {
			return f.Err
		}
	}
	return nil
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
		case diedElsewhere:
			counts.Skipped++
			held = r.s.orderly
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
	diedElsewhere // somebody else has sent it, and it died again: it is skipped, and open
)

// one redrives a dead letter and waits for what becomes of it. Where the job had done so before a crash, its answer is the same.
func (r *runner) one(ctx context.Context, d due, held bool) (fate, error) {
	stream := letter.Stream(d.ref.CommandID)
	// One that is kept and not decided yet is sent: it cannot be taken back.
	if !d.sent {
		switch {
		case d.status == letter.Redriven || d.status == letter.Discarded:
			return wasSkipped, nil
		case held || d.status == letter.Redriving:
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
	}
	o, err := r.send(ctx, d, stream)
	if err != nil {
		return 0, err
	}
	if o.Status != millrace.StatusDecided { // somebody was quicker
		open, err := r.open(ctx, stream)
		if open {
			return diedElsewhere, err
		}
		return wasSkipped, err
	}
	attempt, err := r.attempt(ctx, stream, o.Version)
	if err != nil {
		return 0, err
	}
	o, err = r.sent.wait(ctx, letter.SentID(stream, attempt))
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

// send has a dead letter be sent again, when it is its turn, and waits until that is decided.
func (r *runner) send(ctx context.Context, d due, stream millrace.Stream) (millrace.Outcome, error) {
	id := letter.JobRedriveID(r.job.ID, d.ref.CommandID)
	if d.sent {
		if o, err := r.s.store.Lookup(ctx, id); err != nil || o.Done() {
			return o, err
		}
	}
	if err := r.pace.wait(ctx, r.job.Rate); err != nil {
		return millrace.Outcome{}, err
	}
	return r.s.accept(ctx, id, stream, d.correlation, &letter.RedriveDeadLetter{Letter: d.ref, By: r.job.By, Why: r.job.Why, Job: r.job.ID})
}

// lastLook bounds the pauses between looks at a letter that somebody else has sent.
const lastLook = 100 * time.Millisecond

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
	if version == 1 {
		return 1, nil // it is what the stream begins with
	}
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
