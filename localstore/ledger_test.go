package localstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/gate"
)

// errLost is what the tests are about: something that was acknowledged is not there any more.
var errLost = errors.New("lost")

// ledger is what was acknowledged, in that order.
type ledger struct {
	mu    sync.Mutex
	acked []millrace.Outcome
}

func (l *ledger) add(os ...millrace.Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked = append(l.acked, os...)
}

// snapshot is what was acknowledged by now.
func (l *ledger) snapshot() []millrace.Outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked[:len(l.acked):len(l.acked)]
}

// clock is the time of test commands.
var clock = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// committer owns a partition and decides commands of a few streams.
type committer struct {
	s         *millrace.Store
	l         *ledger
	partition int
	round     string // makes ids unique
	streams   []millrace.Stream
	version   map[millrace.Stream]uint64
	waiting   []*millrace.Command // accepted, not decided
	n         int
	data      int // bytes of an event
}

func newCommitter(s *millrace.Store, l *ledger, partition int, round string) (*committer, error) {
	c := &committer{s: s, l: l, partition: partition, round: round, version: map[millrace.Stream]uint64{}, data: 100}
	for i := 0; len(c.streams) < 3; i++ {
		stream := millrace.Stream(fmt.Sprintf("tally-%d", i))
		if stream.Partition(s.Partitions()) != partition {
			continue
		}
		c.streams = append(c.streams, stream)
		v, err := s.Version(context.Background(), stream)
		if err != nil {
			return nil, err
		}
		c.version[stream] = v
	}
	return c, nil
}

// next makes the next batch and what is to be acknowledged with it.
func (c *committer) next() *millrace.Batch {
	b := &millrace.Batch{Partition: c.partition}
	for range 1 + c.n%3 {
		c.n++
		stream := c.streams[c.n%len(c.streams)]
		cmd := &millrace.Command{
			ID: fmt.Sprintf("%s-%d-%d", c.round, c.partition, c.n), Stream: stream, Type: "Add",
			Data: fmt.Appendf(nil, `{"n":%d}`, c.n), Time: clock.Add(time.Duration(c.n) * time.Second), CorrelationID: c.round, Source: "test",
		}
		fresh := true
		switch {
		case c.n%5 == 0:
			b.Accepted = append(b.Accepted, millrace.AcceptedCommand{Command: cmd, Fingerprint: cmd.Fingerprint()})
			c.waiting = append(c.waiting, cmd)
			continue
		case c.n%7 == 0 && len(c.waiting) > 1:
			cmd, fresh = c.waiting[0], false
			c.waiting = c.waiting[1:]
		}
		d := millrace.Decision{Command: cmd, Fresh: fresh, Fingerprint: cmd.Fingerprint(), Status: millrace.StatusDecided, Version: c.version[cmd.Stream], Time: cmd.Time}
		switch {
		case c.n%11 == 0:
			d.Status, d.Refusal = millrace.StatusRefused, &millrace.Refusal{Kind: millrace.RefusedRule, Code: "no", Detail: "the rule says no"}
		case c.n%13 == 0:
			d.Status, d.Failure = millrace.StatusDead, &millrace.Failure{Reason: millrace.ReasonDecide, Error: "panic", Attempts: 1}
		default:
			for i := range 1 + c.n%2 {
				d.Events = append(d.Events, millrace.NewEvent{Type: "Added", Data: fmt.Appendf(nil, `{"n":%d,"pad":%q}`, c.n+i, strings.Repeat("p", c.data))})
			}
			c.version[cmd.Stream] += uint64(len(d.Events))
		}
		b.Decisions = append(b.Decisions, d)
	}
	return b
}

// outcomes are what a batch promises once it is acknowledged.
func outcomes(b *millrace.Batch) []millrace.Outcome {
	var out []millrace.Outcome
	for _, a := range b.Accepted {
		c := a.Command
		out = append(out, millrace.Outcome{CommandID: c.ID, Stream: c.Stream, Partition: b.Partition, Fingerprint: a.Fingerprint, Status: millrace.StatusAccepted, Time: c.Time})
	}
	for i := range b.Decisions {
		out = append(out, b.Decisions[i].Outcome(b.Partition))
	}
	return out
}

// commit hands over one batch and waits; what is acknowledged stands in the ledger before anybody else can know.
func (c *committer) commit() error {
	b := c.next()
	done := make(chan error, 1)
	c.s.Commit(b, func(err error) {
		if err == nil {
			c.l.add(outcomes(b)...)
		}
		done <- err
	})
	return <-done
}

// run commits n batches in each of the partitions, concurrently, and stops where the store fails.
func (l *ledger) run(s *millrace.Store, round string, n int) error {
	var wg sync.WaitGroup
	errs := make([]error, s.Partitions())
	for p := range errs {
		wg.Go(func() {
			c, err := newCommitter(s, l, p, round)
			for i := 0; i < n && err == nil; i++ {
				err = c.commit()
			}
			errs[p] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// check says what is wrong with a store that has recovered: everything acknowledged is there with its outcome, nothing was
// decided twice, positions and versions have no gaps, verify has nothing to say.
func check(s *millrace.Store, acked []millrace.Outcome) error {
	ctx := context.Background()
	final := map[string]millrace.Outcome{}
	for _, o := range acked {
		if have, ok := final[o.CommandID]; ok && have.Done() && o.Done() {
			return fmt.Errorf("%s was acknowledged as decided twice", o.CommandID)
		}
		final[o.CommandID] = o
	}
	for id, want := range final {
		got, err := s.Lookup(ctx, id)
		switch {
		case err != nil:
			return fmt.Errorf("%w: %s: %w", errLost, id, err)
		case !want.Done() && got.Done(): // decided in a batch that was durable, but not acknowledged any more
			if got.Fingerprint != want.Fingerprint || got.Stream != want.Stream {
				return fmt.Errorf("%s became another command", id)
			}
		case !sameOutcome(&got, &want):
			return fmt.Errorf("%w: %s: outcome %+v, but %+v was acknowledged", errLost, id, got, want)
		}
		if c, err := s.Command(ctx, id); err != nil || c.Fingerprint() != want.Fingerprint {
			return fmt.Errorf("%w: command %s: %w", errLost, id, err)
		}
	}
	if err := checkLog(ctx, s); err != nil {
		return err
	}
	problems := []string{}
	if err := s.Verify(ctx, func(p string) { problems = append(problems, p) }); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	if len(problems) > 0 {
		return fmt.Errorf("verify reports: %s", strings.Join(problems, "; "))
	}
	return nil
}

func sameOutcome(a, b *millrace.Outcome) bool {
	return a.Stream == b.Stream && a.Partition == b.Partition && a.Fingerprint == b.Fingerprint && a.Status == b.Status &&
		a.Position == b.Position && a.Version == b.Version && a.Events == b.Events && a.Time.Equal(b.Time) &&
		(a.Refusal == nil) == (b.Refusal == nil) && (a.Refusal == nil || a.Refusal.Code == b.Refusal.Code) &&
		(a.Failure == nil) == (b.Failure == nil) && (a.Failure == nil || *a.Failure == *b.Failure)
}

// checkLog reads the feed and each stream.
func checkLog(ctx context.Context, s *millrace.Store) error {
	positions := make([]uint64, s.Partitions())
	versions := map[millrace.Stream]uint64{}
	last := make([]string, s.Partitions())
	decided := map[string]bool{}
	for batch, err := range s.Feed(ctx, millrace.FeedOptions{}) {
		if err != nil {
			return fmt.Errorf("feed: %w", err)
		}
		for i := range batch {
			e := &batch[i]
			if e.Position != positions[e.Partition]+1 || e.Version != versions[e.Stream]+1 {
				return fmt.Errorf("%s at %d/%d comes after version %d and position %d", e.ID(), e.Partition, e.Position, versions[e.Stream], positions[e.Partition])
			}
			positions[e.Partition], versions[e.Stream] = e.Position, e.Version
			if last[e.Partition] != e.CommandID {
				if decided[e.CommandID] {
					return fmt.Errorf("%s was decided twice", e.CommandID)
				}
				last[e.Partition], decided[e.CommandID] = e.CommandID, true
			}
		}
	}
	for p, h := range s.Heads() {
		if h.Position != positions[p] {
			return fmt.Errorf("the feed of partition %d ends at %d, its head is %d", p, positions[p], h.Position)
		}
	}
	for stream, n := range versions {
		v, err := s.Version(ctx, stream)
		got := uint64(0)
		for _, eerr := range s.Events(ctx, stream, 1) {
			err = errors.Join(err, eerr)
			got++
		}
		if err != nil || v != n || got != n {
			return fmt.Errorf("%s has %d events in the feed, version %d and %d events by name: %w", stream, n, v, got, err)
		}
	}
	return nil
}

// project is a simple consumer: a document for each stream that depends on every byte and the order of its events. It
// goes on from the checkpoint; it ends at the head.
func project(ctx context.Context, s *millrace.Store, consumer string) error {
	at, err := s.Checkpoints(ctx, consumer)
	if err != nil {
		return err
	}
	for batch, err := range s.Feed(ctx, millrace.FeedOptions{After: at}) {
		if err != nil {
			return err
		}
		for i := range batch {
			e := &batch[i]
			doc, err := s.Document(ctx, consumer, e.Partition, string(e.Stream))
			if err != nil && !errors.Is(err, millrace.ErrNotFound) {
				return err
			}
			sum := sha256.Sum256(slices.Concat(doc.Data, []byte(e.ID()), e.Data))
			put := millrace.Put{Document: millrace.Document{
				Collection: consumer, Partition: e.Partition, ID: string(e.Stream), Data: sum[:], Keys: []string{fmt.Sprintf("%03d", e.Version%7)},
			}, Old: doc.Keys}
			err = s.CommitViews(ctx, []millrace.ViewBatch{{Consumer: consumer, Partition: e.Partition, Checkpoint: e.Position, Puts: []millrace.Put{put}}})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// checkViews lets the consumer catch up and compares its documents with those of one that begins anew.
func checkViews(s *millrace.Store, consumer string) error {
	ctx := context.Background()
	rebuilt := consumer + "-rebuilt"
	if err := s.DropViews(ctx, rebuilt, []string{rebuilt}); err != nil {
		return err
	}
	for _, c := range []string{consumer, rebuilt} {
		if err := project(ctx, s, c); err != nil {
			return fmt.Errorf("project: %w", err)
		}
	}
	dump := func(c string) (string, error) {
		var b bytes.Buffer
		for _, index := range []int{-1, 0} {
			for d, err := range s.Documents(ctx, millrace.Query{Collection: c, Index: index, Partition: -1}) {
				if err != nil {
					return "", err
				}
				fmt.Fprintf(&b, "%d %s %v %x\n", d.Partition, d.ID, d.Keys, d.Data)
			}
		}
		return b.String(), nil
	}
	live, err := dump(consumer)
	again, rerr := dump(rebuilt)
	if err := errors.Join(err, rerr); err != nil {
		return err
	}
	if live != again {
		return fmt.Errorf("documents differ from a rebuild:\n%s\n%s", live, again)
	}
	return nil
}

// dump is every fact of a store as text.
func dump(s *millrace.Store, ids []string) (string, error) {
	ctx := context.Background()
	var b strings.Builder
	for _, id := range ids {
		o, err := s.Lookup(ctx, id)
		if errors.Is(err, millrace.ErrNotFound) {
			continue
		}
		c, cerr := s.Command(ctx, id)
		if err := errors.Join(err, cerr); err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%s %s %d %x %s %d %d %d %s %v %v %s %q %s\n", o.CommandID, o.Stream, o.Partition, o.Fingerprint, o.Status, o.Position,
			o.Version, o.Events, o.Time, o.Refusal, o.Failure, c.ID, c.Data, c.Time)
	}
	versions := map[millrace.Stream]uint64{}
	feed := make([]strings.Builder, s.Partitions())
	for batch, err := range s.Feed(ctx, millrace.FeedOptions{}) {
		if err != nil {
			return "", err
		}
		for _, e := range batch {
			versions[e.Stream] = e.Version
			fmt.Fprintf(&feed[e.Partition], "%s %d %s %q %s %s\n", e.ID(), e.Position, e.Type, e.Data, e.Time, e.CommandID)
		}
	}
	for p := range feed {
		b.WriteString(feed[p].String())
		for c, err := range s.Pending(ctx, p) {
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&b, "pending %d %s\n", p, c.Command.ID)
		}
	}
	for _, stream := range slices.Sorted(maps.Keys(versions)) {
		for e, err := range s.Events(ctx, stream, 1) {
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&b, "%s %q\n", e.ID(), e.Data)
		}
		v, err := s.Version(ctx, stream)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%s %d\n", stream, v)
	}
	fmt.Fprintf(&b, "%x %d\n", s.Heads(), s.Backlog())
	return b.String(), nil
}

// openWith opens a store with segments as small as a test wants.
func openWith(dir string, opts Options, segment int64) (*millrace.Store, error) {
	o, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if segment > 0 {
		o.SegmentSize = segment
	}
	d := &driver{o: o, root: dir, stop: make(chan struct{}), reads: gate.New()}
	if err := d.open(); err != nil {
		return nil, errors.Join(err, d.abandon())
	}
	return millrace.NewStore(d), nil
}

// small are options for stores of a test.
func small(t testing.TB, o Options) Options {
	o.CacheSize, o.MemTableSize, o.filterBytes = 1<<20, 64<<10, 4<<10
	if o.Partitions == 0 {
		o.Partitions = 3
	}
	if o.Fatal == nil {
		o.Fatal = func(err error) { t.Errorf("fatal: %v", err) }
	}
	return o
}
