package process_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/process"
)

// bell is the state of a process that has a bell rung when a job is started, and again when it is over.
type bell struct {
	Rings []string `json:"rings"`
	Heard []string `json:"heard"`
	Off   bool     `json:"off"`
}

func bells() millrace.Process[bell] {
	return millrace.Process[bell]{
		Name: "bells", Category: "job",
		Initial: func(millrace.Stream) bell { return bell{} },
		Evolve: func(s bell, in *millrace.Input) bell {
			s.Rings, s.Heard = append([]string(nil), s.Rings...), append([]string(nil), s.Heard...)
			switch in.Event.(type) {
			case *JobStarted:
				s.Rings = append(s.Rings, "started")
			case *JobFailed:
				s.Rings = append(s.Rings, "failed")
			case *JobCancelled:
				s.Off = true
			}
			if in.Call != "" {
				s.Heard = append(s.Heard, in.Call+" "+string(in.Result))
			}
			return s
		},
		React: func(s bell) millrace.Reaction {
			r := millrace.Reaction{State: "quiet", Done: len(s.Heard) == len(s.Rings)}
			for _, ring := range s.Rings {
				if !s.Off {
					r.Calls = append(r.Calls, millrace.Call{Name: ring, Request: map[string]string{"ring": ring}})
				}
			}
			return r
		},
	}
}

// ringer makes the calls as the test says.
type ringer struct {
	mu    sync.Mutex
	calls []millrace.CallRequest
	at    []time.Time
	do    func(n int, c *millrace.CallRequest) ([]byte, error) // n counts from 1
}

func (r *ringer) call(_ context.Context, c *millrace.CallRequest) ([]byte, error) {
	r.mu.Lock()
	r.calls, r.at = append(r.calls, *c), append(r.at, time.Now())
	n := len(r.calls)
	r.mu.Unlock()
	return r.do(n, c)
}

type after time.Duration

func (a after) Error() string             { return "busy" }
func (a after) RetryAfter() time.Duration { return time.Duration(a) }

func startBells(t *testing.T, fs vfs.FS, r *ringer, calls int) *world {
	manager, err := bells().Manager()
	if err != nil {
		t.Fatal(err)
	}
	return start(t, worldOptions{fs: fs, manager: manager, options: &process.Options{
		Call: r.call, Calls: calls, Backoff: func(n int) time.Duration { return time.Duration(n) * time.Second },
	}})
}

// A call is made under one id until it is answered: after the waits that the backoff or the answer asks for, and after a restart.
func TestCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		r := &ringer{do: func(n int, _ *millrace.CallRequest) ([]byte, error) {
			switch n {
			case 1:
				return nil, errors.New("out of order")
			case 2:
				return []byte("ding"), nil // no JSON, which is no answer
			case 3:
				return nil, after(time.Minute)
			}
			return []byte(`"ding"`), nil
		}}
		w := startBells(t, fs, r, 0)
		w.job("j", time.Time{})
		<-time.After(30 * time.Second)
		synctest.Wait()
		began := w.instance("j").BeganAt
		if i := w.instance("j"); i.Done || i.Calls[0].Attempts != 3 || i.Calls[0].Error != "busy" || !i.Calls[0].Waits() {
			t.Errorf("%+v", i)
		}
		w.mustStop()
		w = startBells(t, fs, r, 0)
		<-time.After(2 * time.Minute)
		synctest.Wait()
		i := w.instance("j")
		if c := i.Calls[0]; !i.Done || c.Waits() || string(c.Result) != `"ding"` || string(i.Data) != `{"rings":["started"],"heard":["started \"ding\""],"off":false}` {
			t.Errorf("%+v %s", i, i.Data)
		}
		var waits []time.Duration
		for n := range r.at {
			waits = append(waits, r.at[n].Sub(began).Round(time.Second))
			if c := r.calls[n]; c.ID != "process/bells/job-j/started" || c.Attempt != n+1 || string(c.Request) != `{"ring":"started"}` || c.CorrelationID != "start j" {
				t.Errorf("%+v", c)
			}
		}
		if d := cmp.Diff([]time.Duration{0, time.Second, 3 * time.Second, time.Minute + 3*time.Second}, waits); d != "" {
			t.Error(d)
		}
		w.mustStop()
	})
}

// A call that hangs, and many that wait, hold up no other instance; so many are made at a time as may be.
func TestCallsInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		r := &ringer{do: func(_ int, c *millrace.CallRequest) ([]byte, error) {
			if c.Stream == "job-good" {
				return nil, nil
			}
			<-gate
			return nil, nil
		}}
		w := startBells(t, vfs.NewMem(), r, 8)
		for n := range 5 {
			w.job(fmt.Sprint("stuck", n), time.Time{})
		}
		w.job("good", time.Time{})
		w.until("good", done)
		for n := range 30 {
			w.job(fmt.Sprint("more", n), time.Time{})
		}
		synctest.Wait()
		if n := len(r.calls); n > 1+2*8 { // of two workers
			t.Errorf("%d calls were made at a time", n)
		}
		close(gate)
		for n := range 30 {
			w.until(fmt.Sprint("more", n), done)
		}
		if n := len(r.calls); n != 36 {
			t.Errorf("%d calls were made for 36", n)
		}
		w.mustStop()
	})
}

// A call that the process wants no more is not made again; the answer of an attempt that is under way comes all the same.
func TestCallCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		r := &ringer{do: func(_ int, c *millrace.CallRequest) ([]byte, error) {
			if c.Stream == "job-under" {
				<-gate
				return []byte("1"), nil
			}
			return nil, after(time.Minute)
		}}
		w := startBells(t, vfs.NewMem(), r, 0)
		w.job("waits", time.Time{})
		w.job("under", time.Time{})
		synctest.Wait()
		w.send("cancel waits", "job-waits", &CancelJob{})
		w.send("cancel under", "job-under", &CancelJob{})
		<-time.After(3 * time.Minute)
		synctest.Wait()
		if c := w.instance("waits").Calls[0]; c.Waits() || c.CancelledAt.IsZero() || c.Attempts != 1 {
			t.Errorf("%+v", c)
		}
		close(gate)
		i := w.until("under", func(i *millrace.Instance) bool { return !i.Calls[0].DoneAt.IsZero() })
		if string(i.Data) != `{"rings":["started"],"heard":["started 1"],"off":true}` {
			t.Errorf("%s", i.Data)
		}
		if len(r.calls) != 2 {
			t.Errorf("%d calls were made", len(r.calls))
		}
		w.mustStop()
	})
}
