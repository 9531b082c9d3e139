package command_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/millracetest"
)

// mark is the body of the commands and events of a category that a paused processor decides.
type mark struct{}

// marked is the registry of tallies and of streams "mark-…".
func marked(t testing.TB) *millrace.Registry {
	t.Helper()
	r, err := millrace.NewRegistry(millracetest.Tally(), millrace.Domain[int]{
		Category: "mark", Initial: func(string) int { return 0 },
		Decide:   func(int, any, time.Time) ([]any, *millrace.Refusal) { return []any{&mark{}}, nil },
		Evolve:   func(n int, _ any) int { return n + 1 },
		Commands: []millrace.Message{millrace.MessageOf[mark]("Mark")},
		Events:   []millrace.Message{millrace.MessageOf[mark]("Marked")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func markOf(i int) millrace.Command {
	return millrace.Command{ID: fmt.Sprint("mark-", i), Stream: millrace.NewStream("mark", fmt.Sprint(i)), Type: "Mark", Data: []byte(`{}`)}
}

// most bounds what a client sends: what waits while nobody decides is to be decided in the time of a test.
const most = 1500

// senders have clients send without a pause, and return what ends them: the ids that each stream was sent, in order.
func senders(t *testing.T, accept func(client int, c millrace.Command) error) (end func() map[string][]string) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	done := make(chan struct{})
	want := map[string][]string{}
	for c := range 4 {
		wg.Go(func() {
			for i := range most {
				select {
				case <-done:
					return
				default:
				}
				id, stream := fmt.Sprintf("c%d-%05d", c, i), fmt.Sprintf("s%d-%d", c, i%3)
				if err := accept(c, add(id, stream, 1)); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				want[stream] = append(want[stream], id)
				mu.Unlock()
			}
		})
	}
	return func() map[string][]string { close(done); wg.Wait(); return want }
}

// allDecided wants every command decided once, each stream's in the order in which it was sent.
func allDecided(t *testing.T, s *millrace.Store, want map[string][]string) {
	t.Helper()
	ctx := patient(t)
	for s.Backlog() > 0 && ctx.Err() == nil {
		tick(ctx)
	}
	for stream, ids := range want {
		if got := commandsOf(t, s, stream); !slices.Equal(got, ids) {
			t.Errorf("stream %s: %d of %d are decided, or not in order", stream, len(got), len(ids))
		}
	}
}

func tick(ctx context.Context) {
	timer := time.NewTimer(time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// standsStill wants a processor that was paused to decide nothing but marks from now on.
func standsStill(t *testing.T, s *millrace.Store, p *command.Processor, i int) {
	t.Helper()
	// What was on its way when it was paused is decided by the time that a mark in each partition is: behind it, nothing is.
	seen := map[int]bool{}
	for k := 0; len(seen) < s.Partitions(); k++ {
		m := markOf(1000*i + k)
		if at := m.Stream.Partition(s.Partitions()); !seen[at] {
			seen[at] = true
			if o := decided(t, p, m); o.Status != millrace.StatusDecided {
				t.Errorf("a mark: %+v", o)
			}
		}
	}
	head := s.Head()
	c := add(fmt.Sprint("late-", i), "late", 1)
	r, err := p.Accept(patient(t), c)
	if err != nil {
		t.Fatal(err)
	}
	brief, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	if o, err := r.Wait(brief); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("decided while paused: %+v %v", o, err)
	}
	if now := s.Head(); !head.Covers(now) {
		t.Errorf("the log went on from %v to %v", head.Positions, now.Positions)
	}
}

// A processor is paused and resumed while clients send all the time. Paused it decides marks alone; in the end everything is
// decided, once and in order.
func TestPauseAndResume(t *testing.T) {
	s := open(t, vfs.NewMem())
	r := runWith(t, s, marked(t), &command.Options{Always: []string{"mark"}})
	end := senders(t, func(_ int, c millrace.Command) error {
		_, err := r.Accept(patient(t), c)
		return err
	})
	for i := range 3 {
		if o := decided(t, r.Processor, add(fmt.Sprint("before-", i), "before", 1)); o.Status != millrace.StatusDecided {
			t.Errorf("%+v", o)
		}
		r.Pause()
		r.Pause()
		standsStill(t, s, r.Processor, i)
		r.Resume()
	}
	allDecided(t, s, end())
	verify(t, s)
}

// The same on a store that nodes share: each is paused by itself, and what one of them keeps is found by the paused owner.
func TestPauseAndResumeOfNodes(t *testing.T) {
	s := open(t, vfs.NewMem())
	c := newClusterOf(t, s, marked(t), 2, &command.Options{Shared: true, Always: []string{"mark"}})
	for p := range s.Partitions() {
		c.give(p, p%2)
	}
	end := senders(t, func(client int, cmd millrace.Command) error {
		_, err := c.nodes[client%2].Accept(patient(t), cmd)
		return err
	})
	for i := range 2 {
		for _, n := range c.nodes {
			n.Pause()
		}
		standsStill(t, s, c.nodes[i], i)
		c.give(i, 1-c.owner[i]) // a paused node may lose a partition, and another get it
		standsStill(t, s, c.nodes[1-i], 10+i)
		for _, n := range c.nodes {
			n.Resume()
		}
	}
	allDecided(t, s, end())
	verify(t, s)
}

// A processor that is paused from the start is resumed by a word that comes as a command. The control has no category that is
// decided all the same: there the word waits like everything else.
func TestPausedFromTheStart(t *testing.T) {
	for _, always := range [][]string{{"mark"}, nil} {
		s := open(t, vfs.NewMem())
		if err := s.Accept(patient(t), markOf(1).Stream.Partition(4), []millrace.AcceptedCommand{keptMark(1)}); err != nil {
			t.Fatal(err)
		}
		r := runWith(t, s, marked(t), &command.Options{Paused: true, Always: always})
		receipt, err := r.Accept(patient(t), markOf(2))
		if err != nil {
			t.Fatal(err)
		}
		ctx := patient(t)
		if always == nil {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, 150*time.Millisecond)
			defer cancel()
		}
		o, err := receipt.Wait(ctx)
		if got, want := err == nil && o.Status == millrace.StatusDecided, always != nil; got != want {
			t.Errorf("with %q: %+v %v", always, o, err)
		}
		r.Resume()
		for i := range 3 {
			if o := decided(t, r.Processor, markOf(i)); o.Status != millrace.StatusDecided {
				t.Errorf("%d: %+v", i, o)
			}
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	}
}

func keptMark(i int) millrace.AcceptedCommand {
	c := markOf(i)
	c.Time, c.CorrelationID = time.Unix(1, 0).UTC(), c.ID
	return millrace.AcceptedCommand{Command: &c, Fingerprint: c.Fingerprint()}
}
