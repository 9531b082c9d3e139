package deadletter

import (
	"context"
	"errors"
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
	// maxAhead bounds the pages that are under way and not recorded. A letter waits for its decisions much longer than for its
	// turn where these are round trips, and a stream's letters wait for each other: one page alone would leave most of the rate
	// unused while it waits for its last ones. They are done again after a crash, and in memory: some 8,000 letters of less than
	// a KiB.
	maxAhead = 16
	// spareLead is how early a page is read before the rate would not be used up without it: about as long as reading takes.
	spareLead = 50 * time.Millisecond
)

// errMoved says that somebody else has recorded a page, and that the log says where the job stands.
var errMoved = errors.New("the job was moved on by another node")

// runner does the pages of a job. It begins one while those before wait for their last letters, as long as the rate is not used
// up, and records them in their order: what the log says is done has no holes.
type runner struct {
	s     *Service
	job   *letter.Job
	pace  *pace
	slots chan struct{} // of the streams that are under way
	ahead chan struct{} // of the pages that are
	sent  *answers
}

func newRunner(s *Service, j *letter.Job, p *pace) *runner {
	return &runner{
		s: s, job: j, pace: p, slots: make(chan struct{}, s.o.AtOnce), ahead: make(chan struct{}, maxAhead), sent: newAnswers(s.store),
	}
}

// page is one that is under way.
type page struct {
	record   *letter.RecordRedrivePage
	groups   [][]due
	tail     *tail
	recorded chan struct{} // closed when it is

	under sync.WaitGroup // its streams
	mu    sync.Mutex     // guards record.Counts
}

// tail is the last stream that a page or one before it has met: the next page may go on with it.
type tail struct {
	stream millrace.Stream
	done   chan struct{} // closed when what the page has of it is done
	held   bool          // of a stream whose letters are held from there on; set before done is closed
}

// run does pages until the job does not run any more, or somebody else has moved it on (nil).
func (r *runner) run(ctx context.Context) error {
	looking, stop := context.WithCancel(ctx)
	var looks sync.WaitGroup
	looks.Go(func() { r.sent.run(looking) })
	defer looks.Wait()
	defer stop()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.pages(gctx, g) })
	if err := g.Wait(); !errors.Is(err, errMoved) {
		return err
	}
	return nil
}

// pages begins one page after the other.
func (r *runner) pages(ctx context.Context, g *errgroup.Group) error {
	j := r.job
	before := &page{
		record: &letter.RecordRedrivePage{Page: j.Page, Next: j.Next}, recorded: make(chan struct{}),
		tail: &tail{stream: j.Held, done: make(chan struct{}), held: j.Held != ""},
	}
	close(before.recorded)
	close(before.tail.done)
	for {
		select {
		case r.ahead <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		p, err := r.read(ctx, before)
		if err != nil {
			return err
		}
		if err := r.begin(ctx, g, p, before); err != nil || p.record.Done {
			return err
		}
		if err := r.pace.spare(ctx); err != nil {
			return err
		}
		if j, err := r.s.Job(ctx, j.ID); err != nil || j.Status != letter.JobRunning {
			return err
		}
		before = p
	}
}

// begin begins a page: the letters of one stream are sent one after the other, those of several at once.
func (r *runner) begin(ctx context.Context, g *errgroup.Group, p, before *page) error {
	if p.tail = before.tail; len(p.groups) > 0 {
		p.tail = &tail{stream: p.groups[len(p.groups)-1][0].ref.Stream, done: make(chan struct{})}
	}
	for n, of := range p.groups {
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		p.under.Add(1)
		g.Go(func() error {
			defer p.under.Done()
			defer func() { <-r.slots }()
			held := false
			if n == 0 && of[0].ref.Stream == before.tail.stream {
				select {
				case <-before.tail.done:
					held = before.tail.held
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			counts, held, err := r.stream(ctx, of, held)
			if err != nil {
				return err
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			p.record.Counts = p.record.Counts.Plus(counts)
			if n == len(p.groups)-1 {
				p.tail.held = held
				close(p.tail.done)
			}
			return nil
		})
	}
	g.Go(func() error { return r.record(ctx, p, before) })
	return nil
}

// record records what came of a page when it is done, and those before it are recorded.
func (r *runner) record(ctx context.Context, p, before *page) error {
	p.under.Wait()
	for _, done := range []chan struct{}{p.tail.done, before.recorded} {
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if p.tail.held {
		p.record.Held = p.tail.stream
	}
	id := r.job.ID
	o, err := r.s.accept(ctx, letter.JobPageID(id, p.record.Page), letter.JobStream(id), "", p.record)
	// Somebody else may have done the page too, and counted it; or a later one.
	if errors.Is(err, millrace.ErrKeyReused) || err == nil && o.Events == 0 {
		return errMoved
	}
	if err != nil {
		return err
	}
	close(p.recorded)
	<-r.ahead
	return nil
}
