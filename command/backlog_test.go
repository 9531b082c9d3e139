package command_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/localstore"
)

// Intake alone: with deciding paused 10,000 commands are accepted, the plug is pulled, and after a restart all of them
// are decided, once and in the order of acceptance of each stream, while new ones come in behind them.
func TestIntakeAloneThenDecided(t *testing.T) {
	const clients, each, streams = 10, 1000, 5
	fs := vfs.NewCrashableMem()
	s := open(t, fs)
	p, stop := start(t, s, &command.Options{Paused: true})
	want := map[string][]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			cs := make([]millrace.Command, each)
			for i := range cs {
				cs[i] = add(fmt.Sprintf("c%d-%d", c, i), fmt.Sprintf("s%d-%d", c, i%streams), 1)
			}
			for i, a := range p.AcceptAll(patient(t), cs) {
				if a.Err != nil {
					t.Errorf("%s: %v", cs[i].ID, a.Err)
					return
				}
				mu.Lock()
				want[cs[i].Stream.ID()] = append(want[cs[i].Stream.ID()], cs[i].ID)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if n := p.InFlight(); n != 0 {
		t.Errorf("%d commands take memory although nobody waits for them", n)
	}
	if o := outcome(t, s, "c0-0"); o.Status != millrace.StatusAccepted {
		t.Errorf("status %s while paused", o.Status)
	}
	after := pullPlug(fs)
	stop()

	s = open(t, after)
	if n := s.Backlog(); n != clients*each {
		t.Fatalf("%d commands survived", n)
	}
	hs, kept := counted(s)
	p, stop = start(t, hs, nil)
	for c := range clients {
		wg.Go(func() {
			ctx := patient(t)
			for i := range 200 {
				id, stream := fmt.Sprintf("new%d-%d", c, i), fmt.Sprintf("s%d-%d", c, i%streams)
				r, err := p.Accept(ctx, add(id, stream, 1))
				if err != nil {
					t.Error(err)
					return
				}
				if o, err := r.Wait(ctx); err != nil || o.Status != millrace.StatusDecided {
					t.Errorf("%s: %v %v", id, o.Status, err)
				}
				mu.Lock()
				want[stream] = append(want[stream], id)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for stream, ids := range want {
		if got := commandsOf(t, s, stream); !slices.Equal(got, ids) {
			t.Errorf("stream %s: decided out of order, or not once:\n%q\n%q", stream, got, ids)
		}
	}
	if n := s.Backlog(); n != 0 {
		t.Errorf("%d commands in the backlog", n)
	}
	catchUp(t, p, kept)
	stop()
	verify(t, s)
}

// Whoever waits for a command of the backlog takes memory as long as he waits, and no longer.
func TestWaitingForTheBacklog(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, stop := start(t, s, &command.Options{Paused: true})
	r, err := p.Accept(patient(t), add("c", "a", 1))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for range 10 {
		wg.Go(func() {
			if _, err := r.Wait(ctx); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	cancel()
	wg.Wait()
	if n := p.InFlight(); n != 0 {
		t.Errorf("%d commands are held although everybody gave up", n)
	}
	wg.Go(func() {
		if _, err := r.Wait(patient(t)); !errors.Is(err, millrace.ErrClosed) {
			t.Errorf("the processor has ended, and the wait says %v", err)
		}
	})
	stop()
	wg.Wait()
	p, stop = start(t, s, nil)
	defer stop()
	if o := decided(t, p, add("c", "a", 1)); o.Status != millrace.StatusDecided || o.Version != 1 {
		t.Errorf("%+v", o)
	}
}

// One decision takes for ever. Commands behind it are still accepted, durably, and decided once and in order later.
func TestSlowDecision(t *testing.T) {
	slow := newGate(t)
	fs := vfs.NewCrashableMem()
	s := openWith(t, fs, func(o *localstore.Options) { o.Partitions = 1 })
	reg := registryOf(t, noted(func(string) ([]any, bool) { slow.pass(); return nil, false }))
	p := runWith(t, s, reg, nil)
	decided(t, p.Processor, add("first", "a", 1))
	ctx := patient(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := p.Accept(ctx, addNote("slow", "a", 1, "slow")); err != nil {
			t.Error(err)
		}
	})
	slow.awaitVisitor(t)
	want := map[string][]string{"a": {"first", "slow"}}
	var receipts []*millrace.Receipt
	for i := range 20 {
		stream := []string{"a", "b"}[i%2]
		id := fmt.Sprint("c", i)
		r, err := p.Accept(ctx, add(id, stream, 1))
		if err != nil {
			t.Fatal(err)
		}
		want[stream], receipts = append(want[stream], id), append(receipts, r)
	}
	wg.Wait()
	lost := open(t, pullPlug(fs))
	if n := lost.Backlog(); n != 21 {
		t.Errorf("%d of 21 accepted commands survive a power cut", n)
	}
	slow.open()
	for _, r := range receipts {
		if o, err := r.Wait(ctx); err != nil || o.Status != millrace.StatusDecided {
			t.Errorf("%v %v", o.Status, err)
		}
	}
	for stream, ids := range want {
		if got := commandsOf(t, s, stream); !slices.Equal(got, ids) {
			t.Errorf("stream %s: %q, want %q", stream, got, ids)
		}
	}
	if n := s.Backlog(); n != 0 {
		t.Errorf("%d commands in the backlog", n)
	}
}

// Many commands at once keep the order of each stream, also where some come twice in one call.
func TestAcceptAllKeepsOrder(t *testing.T) {
	s := open(t, vfs.NewMem())
	p, stop := start(t, s, nil)
	defer stop()
	ctx := patient(t)
	for round := range 3 { // behind at first, then caught up
		var cs []millrace.Command
		want := map[string][]string{}
		for i := range 2000 {
			stream := fmt.Sprintf("r%d-%d", round, i%20)
			c := add(fmt.Sprintf("c%d-%d", round, i), stream, 1)
			cs = append(cs, c)
			want[stream] = append(want[stream], c.ID)
			if i%7 == 0 {
				cs = append(cs, c)
			}
		}
		seen := map[string]bool{}
		for i, a := range p.AcceptAll(ctx, cs) {
			if a.Err != nil {
				t.Fatal(a.Err)
			}
			if a.Receipt.CommandID != cs[i].ID || a.Receipt.Replayed != seen[cs[i].ID] {
				t.Errorf("receipt of %s for %s, replayed %v", a.Receipt.CommandID, cs[i].ID, a.Receipt.Replayed)
			}
			seen[cs[i].ID] = true
			if o, err := a.Receipt.Wait(ctx); err != nil || o.Status != millrace.StatusDecided {
				t.Fatalf("%v %v", o.Status, err)
			}
		}
		for stream, ids := range want {
			if got := commandsOf(t, s, stream); !slices.Equal(got, ids) {
				t.Errorf("stream %s: %q, want %q", stream, got, ids)
			}
		}
	}
}
