//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/letter"
	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/pgstore"
)

const (
	// drainMemory bounds what lives in the heap of a node that drains dead letters, in bytes: what caches, queues and pages hold by
	// their own bounds, and not by the number of dead letters.
	drainMemory = 160 << 20
	// drainJitter is how late what is sent by the clock may be on a busy machine, and so be nearer to what is sent behind it.
	drainJitter = 500 * time.Millisecond
	// drainPatience bounds a drain, and is far above what it takes.
	drainPatience = 20 * time.Minute
)

// drained is how many dead letters are drained, over how many streams, and at which rate in a second.
type drained struct{ letters, streams, rate int }

// TestClusterDrain: two nodes send dead letters again at a rate. The node that runs the job is killed in the middle of it; then the
// job is paused half-way, its node killed once more, and it goes on. The log says that each letter was decided once, that each
// stream got its own in their order, and that never more were sent than the rate allows. In the short form there are 400 letters, in
// the long one 100,000.
func TestClusterDrain(t *testing.T) {
	clusterBeside(t)
	d := drained{400, 40, 400}
	if os.Getenv("MILLRACE_CLUSTER") != "" {
		d = drained{100_000, 10_000, 1000}
	}
	dsn := pgtest.Start(t, pgtest.Options{}).DSN("postgres")
	d.fill(t, dsn)
	f := &fleet{t: t, flags: []string{"--store", dsn}, nodes: map[string]*server{}}
	f.start("a", 1)
	f.start("b", 2)
	var st status
	f.any().do(t, call{
		method: http.MethodPost, path: "/v1/dead-letters/redrive", prefer: "wait=30", body: fmt.Appendf(nil, `{"rate":%d,"by":"ann"}`, d.rate),
	}, http.StatusOK).into(t, &st)
	job := millrace.Stream(st.Stream)
	f.received()
	f.killRunner(job)
	var j *letter.Job
	if d.letters > 1000 { // the short form is one page
		f.untilJob(job, func(j *letter.Job) bool { return j.Counts.Total() >= d.letters/2 })
		f.tellJob(job, "pause")
		j = f.untilJob(job, func(j *letter.Job) bool { return j.Status == letter.JobPaused })
		t.Logf("paused at %d", j.Counts.Total())
		if n := j.Counts.Total(); n >= d.letters {
			t.Errorf("it was paused when it was through: %+v", j)
		}
		f.killRunner(job)
		f.tellJob(job, "resume")
		began, before := time.Now(), j.Counts.Total()
		j = f.untilJob(job, func(j *letter.Job) bool { return j.Counts.Total() >= d.letters*9/10 })
		took := time.Since(began)
		t.Logf("%.0f letters/s at a rate of %d", float64(j.Counts.Total()-before)/took.Seconds(), d.rate)
	}
	j = f.untilJob(job, func(j *letter.Job) bool { return j.Status == letter.JobDone })
	if want := (letter.Counts{Decided: d.letters}); j.Counts != want {
		t.Errorf("%+v, want %+v", j.Counts, want)
	}
	for _, s := range f.nodes {
		s.bounded(t)
		s.stop(t)
		s.saysNoError(t)
	}
	for _, fault := range d.faults(d.read(t, dsn)) {
		t.Error(fault)
	}
	if stdout, stderr, code := runs(t, "verify", "--store", dsn); code != 0 {
		t.Errorf("verify: exit code %d: %s %s", code, stdout, stderr)
	}
}

// fill makes dead letters, as a program does that does not know the command yet: stock that is received in so many places, each
// time one piece more.
func (d drained) fill(t *testing.T, dsn string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	store, c, err := openShared(ctx, dsn, pgstore.Options{Node: "old"})
	if err != nil {
		t.Fatal(err)
	}
	registry, err := millrace.NewRegistry(millrace.Domain[int]{
		Category: "stock", StateVersion: 1,
		Initial:  func(string) int { return 0 },
		Decide:   func(int, any, time.Time) ([]any, *millrace.Refusal) { return nil, nil },
		Evolve:   func(s int, _ any) int { return s },
		Commands: []millrace.Message{millrace.MessageOf[struct{}]("CountStock")},
	})
	if err != nil {
		t.Fatal(err)
	}
	p := newProcessor(store, registry, command.Options{}, c)
	ended := make(chan error, 1)
	go func() { ended <- c.decide(ctx) }()
	const most = 1024 // as many as go together
	for at := 0; at < d.letters; at += most {
		var cs []millrace.Command
		for i := at; i < min(at+most, d.letters); i++ {
			cs = append(cs, millrace.Command{
				ID: fmt.Sprintf("c%06d", i), Stream: d.stream(i % d.streams), Type: "ReceiveStock",
				Data: fmt.Appendf(nil, `{"quantity":%d}`, i/d.streams+1), Source: "test",
			})
		}
		for _, a := range p.AcceptAll(ctx, cs) {
			if a.Err != nil {
				t.Fatal(a.Err)
			}
			if o, err := a.Receipt.Wait(ctx); err != nil || o.Status != millrace.StatusDead {
				t.Fatal(o, err)
			}
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}

func (d drained) stream(k int) millrace.Stream {
	return millrace.NewStream("stock", fmt.Sprint("D", k))
}

// drainLog is what the log says of a drain.
type drainLog struct {
	received map[millrace.Stream][]int64 // what came in, in the order of the stream
	by       map[string]int              // how much came in by each command
	sent     []time.Time                 // when letters were sent again
	answered map[millrace.Stream]string  // the statuses of each letter's answers
}

func (d drained) read(t *testing.T, dsn string) *drainLog {
	t.Helper()
	store, err := pgstore.Open(t.Context(), dsn, &pgstore.Options{Node: "observer"})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close() //nolint:errcheck // it was only read
	registry, err := millrace.NewRegistry(domains()...)
	if err != nil {
		t.Fatal(err)
	}
	l := &drainLog{received: map[millrace.Stream][]int64{}, by: map[string]int{}, answered: map[millrace.Stream]string{}}
	for events, err := range store.Feed(t.Context(), millrace.FeedOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		for i := range events {
			body, err := registry.Body(&events[i])
			if err != nil {
				t.Fatal(err)
			}
			switch b := body.(type) {
			case *order.StockReceived:
				l.received[events[i].Stream] = append(l.received[events[i].Stream], b.Quantity)
				l.by[events[i].CommandID]++
			case *letter.DeadLetterRedriven:
				l.sent = append(l.sent, b.At)
			case *letter.DeadLetterAnswered:
				l.answered[events[i].Stream] += b.Status + " "
			}
		}
	}
	return l
}

// faults says what is wrong with a drain.
func (d drained) faults(l *drainLog) (out []string) {
	fault := func(format string, args ...any) {
		if len(out) < 20 {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	for k := range d.streams {
		var want []int64
		for i := k; i < d.letters; i += d.streams {
			want = append(want, int64(i/d.streams+1))
		}
		if got := l.received[d.stream(k)]; !slices.Equal(got, want) {
			fault("%s has %v, want %v", d.stream(k), got, want)
		}
	}
	for i := range d.letters {
		s := letter.Stream(fmt.Sprintf("c%06d", i))
		if n := l.by[letter.SentID(s, 1)]; n != 1 {
			fault("%s was received %d times", s, n)
		}
		if got := l.answered[s]; got != "decided " {
			fault("%s has the answers %q", s, got)
		}
	}
	if len(l.sent) != d.letters {
		fault("%d were sent, of %d", len(l.sent), d.letters)
	}
	// Between any two of them goes by the time that the rate takes for those in between.
	slices.SortFunc(l.sent, time.Time.Compare)
	var least time.Duration
	for k, at := range l.sent {
		ahead := time.Duration(k)*time.Second/time.Duration(d.rate) - at.Sub(l.sent[0])
		if least = min(least, ahead); ahead-least > drainJitter {
			fault("up to %s, %d letters are %s ahead of the rate", at, k, ahead-least)
			break
		}
	}
	return out
}

// TestDrainFaults: what checks a drain notices what is lost, doubled, out of order and too fast.
func TestDrainFaults(t *testing.T) {
	d := drained{40, 4, 10}
	made := func() *drainLog {
		l := &drainLog{received: map[millrace.Stream][]int64{}, by: map[string]int{}, answered: map[millrace.Stream]string{}}
		for i := range d.letters {
			s := letter.Stream(fmt.Sprintf("c%06d", i))
			l.received[d.stream(i%d.streams)] = append(l.received[d.stream(i%d.streams)], int64(i/d.streams+1))
			l.by[letter.SentID(s, 1)], l.answered[s] = 1, "decided "
			l.sent = append(l.sent, time.Unix(0, 0).Add(time.Duration(i)*100*time.Millisecond))
		}
		return l
	}
	if got := d.faults(made()); got != nil {
		t.Errorf("%q", got)
	}
	one, at := letter.Stream("c000007"), d.stream(3)
	for name, spoil := range map[string]func(l *drainLog){
		"lost":         func(l *drainLog) { l.received[at] = l.received[at][:9] },
		"doubled":      func(l *drainLog) { l.by[letter.SentID(one, 1)]++ },
		"sent twice":   func(l *drainLog) { l.sent = append(l.sent, l.sent[39].Add(time.Second)) },
		"out of order": func(l *drainLog) { l.received[at][1], l.received[at][2] = l.received[at][2], l.received[at][1] },
		"no answer":    func(l *drainLog) { delete(l.answered, one) },
		"died":         func(l *drainLog) { l.answered[one] = "dead decided " },
		"too fast": func(l *drainLog) {
			for k := 20; k < 30; k++ {
				l.sent[k] = l.sent[20]
			}
		},
	} {
		l := made()
		if spoil(l); d.faults(l) == nil {
			t.Errorf("nobody notices what is %s", name)
		}
	}
}

// received waits until something of a drain has come in.
func (f *fleet) received() {
	f.t.Helper()
	f.until("something is sent again", clusterPatience, func() bool {
		var list struct{ Items []struct{} }
		f.any().get(f.t, "/v1/stock?limit=1").into(f.t, &list)
		return len(list.Items) > 0
	})
}

// untilJob waits until something holds of a job.
func (f *fleet) untilJob(job millrace.Stream, ok func(j *letter.Job) bool) (j *letter.Job) {
	f.t.Helper()
	f.until("the job moves on", drainPatience, func() bool {
		j = &letter.Job{}
		f.any().get(f.t, "/v1/redrive-jobs/"+job.ID()).into(f.t, j)
		return ok(j)
	})
	return j
}

// tellJob pauses a job or has it go on.
func (f *fleet) tellJob(job millrace.Stream, verb string) {
	f.t.Helper()
	f.any().do(f.t, call{
		method: http.MethodPost, path: "/v1/redrive-jobs/" + job.ID() + "/" + verb, prefer: "wait=30", body: []byte(`{"by":"ann"}`),
	}, http.StatusOK)
}

// killRunner kills the node that runs a job, which is who follows the partition of its stream, and starts it again.
func (f *fleet) killRunner(job millrace.Stream) {
	f.t.Helper()
	var o httpapi.Ownership
	f.any().get(f.t, "/v1/nodes").into(f.t, &o)
	for _, one := range o.Items {
		if slices.ContainsFunc(one.Feed, func(p httpapi.OwnedPartition) bool { return p.Partition == job.Partition(o.Partitions) }) {
			f.nodes[one.Name].bounded(f.t)
			f.nodes[one.Name].kill()
			f.start(one.Name, 2)
			return
		}
	}
	f.t.Fatalf("nobody runs the job: %+v", o)
}

// bounded wants no more to live in a node's heap than may: what the collector found alive the last time, by which it sets when it
// collects again.
func (s *server) bounded(t *testing.T) {
	t.Helper()
	metrics := map[string]float64{}
	for line := range strings.Lines(string(s.ops(t, "/metrics").body)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			metrics[name] = v
		}
	}
	next, percent := metrics["go_memstats_next_gc_bytes"], metrics["go_gc_gogc_percent"]
	if next == 0 || percent == 0 {
		t.Fatal("a node does not say what its heap holds")
	}
	live := int64(next / (1 + percent/100))
	if t.Logf("%d MiB live in the heap of a node", live>>20); live > drainMemory {
		t.Errorf("%d MiB live in the heap of a node", live>>20)
	}
}
