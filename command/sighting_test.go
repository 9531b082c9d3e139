package command_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/localstore"
)

// late is a shared store of which the answer about one command can be held back.
type late struct {
	millrace.Driver
	hold    string        // the command's id
	asked   chan struct{} // gets a token when the answer is made
	release chan struct{} // lets it go

	mu       sync.Mutex
	versions []millrace.Stream // that were asked for by themselves
	looked   int               // ids that were looked up
}

var _ millrace.Shared = (*late)(nil)

func (l *late) Refresh() time.Duration                        { return time.Hour }
func (l *late) Moved() (<-chan struct{}, bool)                { return nil, false }
func (l *late) Resume(context.Context, string) error          { return nil }
func (l *late) Post(context.Context, millrace.Document) error { return millrace.ErrInvalid }

func (l *late) PendingOf(ctx context.Context, partition int, category string) iter.Seq2[millrace.AcceptedCommand, error] {
	return millrace.NewStore(l.Driver).PendingOf(ctx, partition, category)
}

func (l *late) Lookups(ctx context.Context, qs []millrace.Inquiry) []millrace.Finding {
	l.mu.Lock()
	l.looked += len(qs)
	l.mu.Unlock()
	out := millrace.NewStore(l.Driver).Lookups(ctx, qs)
	for i, q := range qs {
		if q.Stream == "" {
			continue
		}
		v, err := l.Version(ctx, q.Stream)
		if out[i].Version = v; err != nil {
			out[i].Err = err
		}
		if q.ID == l.hold {
			l.asked <- struct{}{}
			<-l.release
		}
	}
	return out
}

func (l *late) Versions(ctx context.Context, _ int, streams []millrace.Stream) (out []uint64, err error) {
	l.mu.Lock()
	l.versions = append(l.versions, streams...)
	l.mu.Unlock()
	for _, s := range streams {
		v, err := l.Version(ctx, s)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// What was seen of a stream when its command came in saves the loop a question, and counts for nothing where the stream may
// have moved on behind the loop's back since: it was decided on and dropped from memory, or another node had the partition.
// The control trusts what was seen, and decides on a state that is not the stream's.
func TestSightings(t *testing.T) {
	const stream = "s"
	for _, c := range []struct {
		name  string
		since func(t *testing.T, c *cluster) // happens after the look and before the decision
		moved bool
	}{
		{"nothing since", func(*testing.T, *cluster) {}, false},
		{"dropped since", func(t *testing.T, c *cluster) {
			decideAt(t, c.nodes[0], add("other", stream, 1))
			for i := range 40 { // more than the cache holds
				decideAt(t, c.nodes[0], add(fmt.Sprint("fill", i), fmt.Sprint("fill", i), 1))
			}
		}, true},
		{"another owner since", func(t *testing.T, c *cluster) {
			c.give(0, 1)
			decideAt(t, c.nodes[1], add("other", stream, 1))
			c.give(0, 0)
		}, true},
	} {
		for _, trusting := range []bool{false, true} {
			name := c.name
			if trusting {
				if name += ": control"; !c.moved {
					continue
				}
			}
			t.Run(name, func(t *testing.T) {
				local := openWith(t, vfs.NewMem(), func(o *localstore.Options) { o.Partitions = 1 })
				l := &late{Driver: local.Driver(), hold: "held", asked: make(chan struct{}), release: make(chan struct{})}
				cl := newClusterWith(t, millrace.NewStore(l), 2, &command.Options{Shared: true, CacheStreams: 16})
				if trusting {
					command.TrustSightings(cl.nodes[0])
				}
				cl.give(0, 0)
				untilDirect(t, cl.nodes[0], "first")
				ctx := patient(t)
				held := make(chan millrace.Outcome, 1)
				go func() {
					var o millrace.Outcome
					r, err := cl.nodes[0].Accept(ctx, add("held", stream, 1))
					if err == nil {
						o, err = r.Wait(ctx)
					}
					if err != nil && !trusting {
						t.Error(err)
					}
					held <- o
				}()
				<-l.asked
				c.since(t, cl)
				if c.moved {
					untilDirect(t, cl.nodes[0], "again")
				}
				close(l.release)
				o := <-held
				want := uint64(1)
				if c.moved {
					want = 2
				}
				switch right := o.Status == millrace.StatusDecided && o.Version == want; {
				case trusting && right:
					t.Error("it makes no difference")
				case !trusting && !right:
					t.Errorf("%+v, want version %d", o, want)
				}
				if !c.moved && slices.Contains(l.versions, millrace.NewStream("tally", stream)) {
					t.Error("the loop asked for what was seen")
				}
			})
		}
	}
}

// untilDirect sends commands until the node decides without keeping them first: then the loop has seen them in its queue.
func untilDirect(t *testing.T, p *command.Processor, name string) {
	t.Helper()
	for i := 0; !command.Direct(p, 0); i++ {
		decideAt(t, p, add(fmt.Sprint(name, i), "direct", 1))
	}
}

func decideAt(t *testing.T, p *command.Processor, c millrace.Command) {
	t.Helper()
	ctx := patient(t)
	r, err := p.Accept(ctx, c)
	if err == nil {
		var o millrace.Outcome
		if o, err = r.Wait(ctx); err == nil && o.Status != millrace.StatusDecided {
			err = errors.New(o.Status.String())
		}
	}
	if err != nil {
		t.Fatalf("%s: %v", c.ID, err)
	}
}
