package notify_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/notice"
	"github.com/millrace-io/millrace/notify"
)

func callOf(t *testing.T, id string, c notice.Channel) *millrace.CallRequest {
	t.Helper()
	n := aNotice(t, notice.Placed)
	n.Channel = c
	data, err := jsonx.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	return &millrace.CallRequest{ID: id, Request: data}
}

func sent(context.Context, string, *notice.Notice) (notice.Result, error) {
	return notice.Result{Status: notice.Sent}, nil
}

// TestLanes: a channel that hangs has so many notices under way, and holds up no other channel.
func TestLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		var inside, most atomic.Int64
		hangs := func(context.Context, string, *notice.Notice) (notice.Result, error) {
			most.Store(max(most.Load(), inside.Add(1)))
			defer inside.Add(-1)
			<-gate
			return notice.Result{Status: notice.Sent}, nil
		}
		d := notify.New(map[notice.Channel]notify.Send{notice.Email: hangs, notice.Log: sent}, nil)
		var all sync.WaitGroup
		for n := range 50 {
			all.Go(func() {
				if r, err := d.Call(t.Context(), callOf(t, fmt.Sprint(n), notice.Email)); err != nil || r.Status != notice.Sent {
					t.Errorf("%+v %v", r, err)
				}
			})
		}
		synctest.Wait()
		if n := most.Load(); n != 4 {
			t.Errorf("%d mails are under way", n)
		}
		if r, err := d.Call(t.Context(), callOf(t, "other", notice.Log)); err != nil || r.Status != notice.Sent {
			t.Errorf("%+v %v", r, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := d.Call(ctx, callOf(t, "stopped", notice.Email)); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		close(gate)
		all.Wait()
	})
}

// TestLaneRests: while the other end is away it is tried now and then by one notice, ever more seldom up to a minute, and all
// others are told at once when to come again. An answer, even a no, ends that. The control is an end that refuses each notice
// for now: it is tried by all.
func TestLaneRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tried int
		var say error
		d := notify.New(map[notice.Channel]notify.Send{notice.Email: func(context.Context, string, *notice.Notice) (notice.Result, error) {
			tried++
			return notice.Result{Status: notice.Sent}, say
		}}, nil)
		try := func() (after time.Duration, err error) {
			_, err = d.Call(t.Context(), callOf(t, "x", notice.Email))
			var says interface{ RetryAfter() time.Duration }
			if errors.As(err, &says) {
				after = says.RetryAfter()
			}
			return after, err
		}
		say = &notice.UnreachableError{Err: errors.New("away")}
		for n, pause := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
			pause *= time.Second
			for range 10 {
				if after, err := try(); err == nil || err.Error() != "away" || after < pause || after > pause+time.Second {
					t.Errorf("attempt %d: again after %s, want %s: %v", n, after, pause, err)
				}
			}
			if tried != n+1 {
				t.Fatalf("tried %d times, want %d", tried, n+1)
			}
			<-time.After(pause)
		}
		// Who has waited long is spread over more and more time, and a lane that works again is at rest no more.
		for attempt, spread := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 60: 5 * time.Minute} {
			var longest time.Duration
			for range 200 {
				c := callOf(t, "x", notice.Email)
				c.Attempt = attempt
				_, err := d.Call(t.Context(), c)
				var says interface{ RetryAfter() time.Duration }
				if !errors.As(err, &says) || says.RetryAfter() > time.Minute+spread {
					t.Fatalf("attempt %d: %v", attempt, err)
				}
				longest = max(longest, says.RetryAfter())
			}
			if longest < time.Minute+spread/2 {
				t.Errorf("attempt %d is spread over %s, want %s", attempt, longest-time.Minute, spread)
			}
		}
		<-time.After(time.Minute)
		say = errors.New("not now")
		tried = 0
		for range 10 {
			if after, err := try(); after != 0 || err == nil || err.Error() != "not now" {
				t.Errorf("again after %s: %v", after, err)
			}
		}
		if tried != 10 {
			t.Errorf("tried %d times", tried)
		}
		say = &notice.UnreachableError{Err: errors.New("away")}
		if after, err := try(); err == nil || after < time.Second || after > 2*time.Second {
			t.Errorf("after an answer it rests %s: %v", after, err)
		}
	})
}

// TestUnknownChannel: what nobody sends any more is settled, and what cannot be read is an error.
func TestUnknownChannel(t *testing.T) {
	d := notify.New(map[notice.Channel]notify.Send{notice.Log: sent}, &notify.Options{AtOnce: 1})
	if r, err := d.Call(t.Context(), callOf(t, "x", notice.Webhook)); err != nil || r.Status != notice.Withdrawn {
		t.Errorf("%+v %v", r, err)
	}
	if r, err := d.Call(t.Context(), &millrace.CallRequest{Request: []byte(`{`)}); err == nil {
		t.Errorf("%+v", r)
	}
}
