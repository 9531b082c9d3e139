package command_test

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/localstore"
)

// A stream that is stuck for long gets many more commands than the queue holds. All of them are accepted, other streams of
// the same partition and of others are decided meanwhile, and in the end everything is decided in the order in
// which it was accepted: also over a restart, and with commands that come in while the stream gets free.
func TestBlockedStreamLeavesTheQueueToOthers(t *testing.T) {
	const queue = 100
	for _, partitions := range []int{1, 4} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("partitions=%d,restart=%v", partitions, restart), func(t *testing.T) {
				var sick atomic.Bool
				sick.Store(true)
				inner := openWith(t, vfs.NewMem(), func(o *localstore.Options) { o.Partitions = partitions })
				s := hooked(inner, &hooks{version: func(s millrace.Stream) error {
					if s == "tally-sick" && sick.Load() {
						return errPassing
					}
					return nil
				}})
				o := &command.Options{MaxQueue: queue}
				p, stop := start(t, s, o)
				ctx := patient(t)
				var want []string
				accept := func(id string) {
					if _, err := p.Accept(ctx, add(id, "sick", 1)); err != nil {
						t.Fatalf("%s: %v", id, err)
					}
					want = append(want, id)
				}
				for i := range 5 * queue {
					accept(fmt.Sprint("sick", i))
					if i%7 == 0 {
						if o := decided(t, p, add(fmt.Sprint("well", i), fmt.Sprint("well", i%3), 1)); o.Status != millrace.StatusDecided {
							t.Errorf("%+v", o)
						}
					}
				}
				// In one call too: they come through the queue together.
				var many []millrace.Command
				for i := range queue {
					many = append(many, add(fmt.Sprint("many", i), "sick", 1), add(fmt.Sprint("other", i), "well", 1))
					want = append(want, fmt.Sprint("many", i))
				}
				for _, a := range p.AcceptAll(ctx, many) {
					if a.Err != nil {
						t.Fatal(a.Err)
					}
				}
				if n := p.Queued(); n > queue {
					t.Errorf("%d commands in a queue of %d", n, queue)
				}
				if restart {
					stop()
					p, stop = start(t, s, o)
				}
				defer stop()
				sick.Store(false)
				for i := range queue {
					accept(fmt.Sprint("late", i))
				}
				r, err := p.Accept(ctx, add("last", "sick", 1))
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, "last")
				if o, err := r.Wait(ctx); err != nil || o.Status != millrace.StatusDecided {
					t.Fatalf("%+v %v", o, err)
				}
				if got := commandsOf(t, s, "sick"); !slices.Equal(got, want) {
					t.Errorf("decided %d commands %q\nwant %d %q", len(got), got, len(want), want)
				}
				if n := s.Backlog(); n != 0 {
					t.Errorf("%d commands are left", n)
				}
				if n := p.InFlight(); n != 0 {
					t.Errorf("%d items are left in memory", n)
				}
				verify(t, s)
			})
		}
	}
}

// Several streams get stuck and free again while many clients send to all of them: each client's commands are decided
// in the order in which it sent them.
func TestStreamsGetStuckUnderLoad(t *testing.T) {
	const clients, streams, each = 8, 3, 300
	var sick [streams]atomic.Bool
	inner := openWith(t, vfs.NewMem(), func(o *localstore.Options) { o.Partitions = 2 })
	names := map[millrace.Stream]int{"tally-s0": 0, "tally-s1": 1, "tally-s2": 2}
	s := hooked(inner, &hooks{version: func(s millrace.Stream) error {
		if i, ok := names[s]; ok && sick[i].Load() {
			return errPassing
		}
		return nil
	}})
	// A cache of no use, so that the store is asked for the state again and again.
	p, stop := start(t, s, &command.Options{MaxQueue: 4096, CacheStreams: 1, CacheBytes: 1})
	defer stop()
	ctx := patient(t)
	var wg sync.WaitGroup
	var sent atomic.Int64
	for c := range clients {
		wg.Go(func() {
			for i := range each {
				stream := fmt.Sprint("s", (c+i)%streams)
				if _, err := p.Accept(ctx, add(fmt.Sprintf("c%d-%03d", c, i), stream, 1)); err != nil {
					t.Error(err)
					return
				}
				// Each stream is stuck for a third of the time.
				n := sent.Add(1)
				for k := range sick {
					sick[k].Store(n/100%streams == int64(k))
				}
			}
		})
	}
	wg.Wait()
	for k := range sick {
		sick[k].Store(false)
	}
	for k := range streams {
		decided(t, p, add(fmt.Sprint("end", k), fmt.Sprint("s", k), 1))
	}
	total := 0
	for k := range streams {
		last := map[string]string{}
		for _, id := range commandsOf(t, s, fmt.Sprint("s", k)) {
			total++
			if client := id[:2]; id[0] == 'c' {
				if id <= last[client] {
					t.Errorf("s%d: %s was decided after %s", k, id, last[client])
				}
				last[client] = id
			}
		}
	}
	if total != clients*each+streams {
		t.Errorf("%d commands were decided, want %d", total, clients*each+streams)
	}
	verify(t, s)
}
