package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/sim/standin"
)

var trio = []string{"http://one", "http://two", "http://three"}

func refused() (*http.Response, error) { return nil, syscall.ECONNREFUSED }

func hangs(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// every sends a request now and again, for a time.
func every(t *testing.T, c *client.Client, gap, all time.Duration) {
	t.Helper()
	for start := time.Now(); time.Since(start) < all; {
		if _, err := c.Get(t.Context(), "/x"); err != nil {
			t.Fatal(err)
		}
		if err := client.Pause(t.Context(), gap); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAServerThatIsAwayIsLeftAloneAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var away, back []time.Duration
		c, s := scriptedClient(t, 30*time.Second, trio, func(r *http.Request, _ int) (*http.Response, error) {
			switch at := time.Since(start); {
			case r.URL.Host != "one":
			case at < time.Minute:
				away = append(away, at)
				return refused()
			default:
				back = append(back, at)
			}
			return answer(200, "", "{}")
		})
		every(t, c, 50*time.Millisecond, time.Minute)
		if len(away) < 6 || len(away) > 15 {
			t.Errorf("it was asked %d times in a minute: %v", len(away), away)
		}
		for i := 2; i < len(away); i++ {
			if gap, before := away[i]-away[i-1], away[i-1]-away[i-2]; gap < before-50*time.Millisecond {
				t.Errorf("it was left alone for %v and then for %v", before, gap)
			}
		}
		every(t, c, 50*time.Millisecond, 11*time.Second)
		if len(back) == 0 || back[0] > 71*time.Second {
			t.Fatalf("it was asked again at %v", back)
		}
		n, all := len(back), s.calls.Load()
		every(t, c, 50*time.Millisecond, 3*time.Second)
		if n, all := len(back)-n, int(s.calls.Load()-all); n < all/3-1 || n > all/3+1 {
			t.Errorf("it has %d of %d requests", n, all)
		}
	})
}

func TestAServerThatHangsDoesNotStopTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var hanging, later, done atomic.Int64
		c, _ := scriptedClient(t, 30*time.Second, trio, func(r *http.Request, _ int) (*http.Response, error) {
			if r.URL.Host != "one" {
				// An answer takes a moment: nothing else in a bubble does.
				return must(answer(201, "", "{}"))(client.Pause(r.Context(), 100*time.Millisecond))
			}
			n := hanging.Add(1)
			defer hanging.Add(-1)
			if time.Since(start) > 21*time.Second {
				later.Store(max(later.Load(), n))
			}
			return hangs(r)
		})
		var all sync.WaitGroup
		var slow atomic.Int64
		for lane := range 8 {
			all.Go(func() {
				for n := 0; time.Since(start) < 2*time.Minute; n++ {
					sent := time.Now()
					if _, err := c.Post(t.Context(), "/v1/orders", fmt.Sprint(lane, n), []byte("{}"), 30*time.Second); err != nil {
						t.Error(err)
						return
					}
					done.Add(1)
					if took := time.Since(sent); took > 21*time.Second {
						t.Errorf("a request took %v", took)
					} else if took > time.Second {
						slow.Add(1)
					}
				}
			})
		}
		all.Wait()
		if later.Load() != 1 {
			t.Errorf("%d requests hung at once after the first were given up", later.Load())
		}
		if slow.Load() > 8+8 {
			t.Errorf("%d of %d requests hung", slow.Load(), done.Load())
		}
	})
}

func must(res *http.Response, err error) func(error) (*http.Response, error) {
	return func(failed error) (*http.Response, error) {
		if failed != nil {
			return nil, failed
		}
		return res, err
	}
}

func TestABusyServerSendsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := map[string]int{}
		c, _ := scriptedClient(t, 30*time.Second, trio, func(r *http.Request, _ int) (*http.Response, error) {
			asked[r.URL.Host]++
			if r.URL.Host == "one" {
				return answer(503, "Retry-After: 20", `{"code":"overloaded"}`)
			}
			return answer(200, "", "{}")
		})
		start := time.Now()
		for range 9 {
			if _, err := c.Get(t.Context(), "/x"); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %v", took)
		}
		// It is there, and has its turn.
		if asked["one"] != 3 {
			t.Errorf("asked: %v", asked)
		}
	})
}

func TestWhatAllServersWaitForIsWaitedFor(t *testing.T) {
	for name, f := range map[string]transport{
		"the first request with the key is on its way": func(_ *http.Request, n int) (*http.Response, error) {
			if n == 1 {
				return answer(409, "Retry-After: 5", `{"code":"in_progress"}`)
			}
			return answer(201, "", "{}")
		},
		"all are busy": func(_ *http.Request, n int) (*http.Response, error) {
			if n <= 3 {
				return answer(503, "Retry-After: 5", `{"code":"overloaded"}`)
			}
			return answer(201, "", "{}")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _ := scriptedClient(t, 30*time.Second, trio, f)
				start := time.Now()
				res, err := c.Post(t.Context(), "/", "k", nil, 0)
				if err != nil || res.Doubt {
					t.Fatalf("%+v %v", res, err)
				}
				if took := time.Since(start); took != 5*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func TestNoServerAnswers(t *testing.T) {
	for name, fail := range map[string]transport{
		"nobody there": func(*http.Request, int) (*http.Response, error) { return refused() },
		"all hang":     func(r *http.Request, _ int) (*http.Response, error) { return hangs(r) },
		"one hangs, one is busy for long, one is away": func(r *http.Request, _ int) (*http.Response, error) {
			switch r.URL.Host {
			case "one":
				return hangs(r)
			case "two":
				return answer(503, "Retry-After: 3600", `{"code":"overloaded"}`)
			}
			return refused()
		},
	} {
		for _, retryFor := range []time.Duration{0, 30 * time.Second} {
			t.Run(fmt.Sprint(name, " ", retryFor), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					asked := map[string]int{}
					c, _ := scriptedClient(t, retryFor, trio, func(r *http.Request, n int) (*http.Response, error) {
						asked[r.URL.Host]++
						return fail(r, n)
					})
					for range 3 { // the second time, all are left alone, and asked all the same
						clear(asked)
						start := time.Now()
						_, err := c.Post(t.Context(), "/", "k", nil, 30*time.Second)
						var away *client.UnavailableError
						if !errors.As(err, &away) || client.ExitCode(err) != 4 || away.Last == nil {
							t.Fatalf("got %v", err)
						}
						if took := time.Since(start); took < retryFor-time.Second || took > retryFor+80*time.Second {
							t.Errorf("it gave up after %v", took)
						}
						for host, n := range asked {
							if n > 40 {
								t.Errorf("%s was asked %d times", host, n)
							}
						}
						if len(asked) != 3 {
							t.Errorf("it gave up and had asked only %v", asked)
						}
					}
				})
			})
		}
	}
}

func TestAllServersAreAwayForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		c, _ := scriptedClient(t, 30*time.Second, trio, func(*http.Request, int) (*http.Response, error) {
			if time.Since(start) < 25*time.Second {
				return refused()
			}
			return answer(200, "", "{}")
		})
		var all sync.WaitGroup
		for range 16 {
			all.Go(func() {
				if _, err := c.Get(t.Context(), "/"); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if took := time.Since(start); took > 27*time.Second+time.Second/2 {
			t.Errorf("they came back after 25 s, and were seen after %v", took)
		}
	})
}

// TestInterruptedProbe: who gives up a probe does not take the server away from the others.
func TestInterruptedProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slow atomic.Bool
		c, s := scriptedClient(t, 30*time.Second, []string{"http://one", "http://two"}, func(r *http.Request, n int) (*http.Response, error) {
			switch {
			case r.URL.Host == "one" && n == 1:
				return refused()
			case r.URL.Host == "one" && slow.Load():
				return hangs(r)
			}
			return answer(200, "", "{}")
		})
		every(t, c, time.Second, 3*time.Second/2)
		slow.Store(true)
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() { _, _ = c.Get(ctx, "/") })
		}
		synctest.Wait()
		cancel()
		all.Wait()
		slow.Store(false)
		before := s.calls.Load()
		every(t, c, time.Second, 3*time.Second)
		if s.calls.Load()-before != 3 {
			t.Errorf("%d attempts for 3 requests", s.calls.Load()-before)
		}
	})
}

func TestDoubt(t *testing.T) {
	for name, test := range map[string]struct {
		first func() (*http.Response, error)
		doubt bool
	}{
		"refused":     {refused, false},
		"reset":       {func() (*http.Response, error) { return nil, syscall.ECONNRESET }, true},
		"broken off":  {func() (*http.Response, error) { return nil, io.ErrUnexpectedEOF }, true},
		"overloaded":  {func() (*http.Response, error) { return answer(503, "Retry-After: 1", `{"code":"overloaded"}`) }, false},
		"unavailable": {func() (*http.Response, error) { return answer(503, "Retry-After: 1", `{"code":"unavailable"}`) }, true},
		"bad gateway": {func() (*http.Response, error) { return answer(502, "", "<html>") }, true},
		"too many":    {func() (*http.Response, error) { return answer(429, "", "{}") }, false},
		"answered":    {func() (*http.Response, error) { return answer(201, "", "{}") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _ := scriptedClient(t, 30*time.Second, trio, func(_ *http.Request, n int) (*http.Response, error) {
					if n == 1 {
						return test.first()
					}
					return answer(201, "Idempotency-Replayed: true", "{}")
				})
				res, err := c.Post(t.Context(), "/v1/orders", "k", []byte("{}"), time.Second)
				if err != nil || res.Doubt != test.doubt {
					t.Errorf("%+v %v", res, err)
				}
			})
		})
	}
}

// TestDoubtOfTheTransportsOwnRepetition: net/http sends a request with an idempotency key again by itself where a
// connection that was kept open breaks. The one attempt that is seen may then be the second.
func TestDoubtOfTheTransportsOwnRepetition(t *testing.T) {
	s := standin.New()
	var n atomic.Int64
	s.Lose = func(*http.Request) bool { return n.Add(1) == 2 }
	web := httptest.NewServer(s)
	defer web.Close()
	c, err := client.New([]string{web.URL}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for k := range 2 {
		res, err := c.Post(t.Context(), "/v1/stock/A/receive", fmt.Sprint("k-", k), []byte(`{"quantity":1}`), time.Second)
		if err != nil || res.Err() != nil {
			t.Fatalf("%v %v", res, err)
		}
		if res.Replayed != (k == 1) || res.Doubt != (k == 1) {
			t.Errorf("request %d after %d attempts: replayed %v, doubt %v", k, res.Attempts, res.Replayed, res.Doubt)
		}
	}
}

func TestCommandsGoOnAtAnotherServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := scriptedClient(t, 30*time.Second, trio, func(r *http.Request, n int) (*http.Response, error) {
			switch n {
			case 1: // it has kept three, and its answer breaks off in the second
				return answer(200, "", `{"line":1,"command_id":"r-0","status":"decided"}`+"\n"+`{"line":2,"comm`)
			case 2:
				return refused()
			}
			if r.URL.Host != "three" {
				t.Errorf("%s is asked", r.URL.Host)
			}
			return answer(200, "", `{"line":1,"command_id":"r-1","status":"decided","replayed":true}`+"\n"+
				`{"line":2,"command_id":"r-2","status":"decided","replayed":true}`+"\n")
		})
		start := time.Now()
		got, err := c.Commands(t.Context(), receive(3), 30*time.Second)
		if err != nil || s.calls.Load() != 3 || time.Since(start) != 0 {
			t.Fatalf("%v after %d calls and %v", err, s.calls.Load(), time.Since(start))
		}
		var doubt []bool
		for i := range got {
			doubt = append(doubt, got[i].Doubt)
		}
		if diff := cmp.Diff([]bool{false, true, true}, doubt); diff != "" {
			t.Error(diff)
		}
	})
}

func TestTooManyServers(t *testing.T) {
	servers := make([]string, client.MaxServers+1)
	for i := range servers {
		servers[i] = fmt.Sprintf("http://node-%d", i)
	}
	if _, err := client.New(servers, nil); client.ExitCode(err) != 2 {
		t.Errorf("got %v", err)
	}
	if _, err := client.New(servers[1:], nil); err != nil {
		t.Error(err)
	}
}
