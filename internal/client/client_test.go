package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/sim/standin"
)

// transport answers requests from a script; it lets tests run in a bubble, where a minute takes no time.
type transport func(r *http.Request, n int) (*http.Response, error)

type scripted struct {
	f     transport
	calls atomic.Int64
}

func (s *scripted) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
	}
	return s.f(r, int(s.calls.Add(1)))
}

func answer(status int, header, body string) (*http.Response, error) {
	h := http.Header{}
	if name, value, ok := strings.Cut(header, ": "); ok {
		h.Set(name, value)
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body))}, nil
}

func scriptedClient(t *testing.T, retryFor time.Duration, servers []string, f transport) (*client.Client, *scripted) {
	t.Helper()
	s := &scripted{f: f}
	c, err := client.New(servers, &client.Options{RetryFor: retryFor, Transport: s})
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}

func TestTriesAgainWithTheSameKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := map[string]bool{}
		c, s := scriptedClient(t, 30*time.Second, nil, func(r *http.Request, n int) (*http.Response, error) {
			keys[r.Header.Get("Idempotency-Key")] = true
			switch n {
			case 1:
				return nil, syscall.ECONNREFUSED
			case 2:
				return answer(503, "Retry-After: 7", `{"code":"overloaded"}`)
			case 3:
				return answer(429, "", "no JSON")
			}
			return answer(201, "Idempotency-Replayed: true", `{"id":"x"}`)
		})
		start := time.Now()
		res, err := c.Post(t.Context(), "/v1/orders", `a"b`, []byte("{}"), 0)
		if err != nil {
			t.Fatal(err)
		}
		if res.Status != 201 || !res.Replayed || res.Attempts != 4 || s.calls.Load() != 4 {
			t.Errorf("got %+v after %d calls", res, s.calls.Load())
		}
		if diff := cmp.Diff(map[string]bool{`"a\"b"`: true}, keys); diff != "" {
			t.Error(diff)
		}
		if took := time.Since(start); took < 7*time.Second || took > 9*time.Second {
			t.Errorf("Retry-After: 7 was obeyed by %v", took)
		}
	})
}

func TestGivesUpAtTheDeadline(t *testing.T) {
	for name, fail := range map[string]transport{
		"nobody there": func(*http.Request, int) (*http.Response, error) { return nil, syscall.ECONNREFUSED },
		"busy":         func(*http.Request, int) (*http.Response, error) { return answer(503, "", `{"code":"overloaded"}`) },
		"hangs": func(r *http.Request, _ int) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := scriptedClient(t, 30*time.Second, nil, fail)
				start := time.Now()
				_, err := c.Get(t.Context(), "/v1/orders")
				var away *client.UnavailableError
				if !errors.As(err, &away) || client.ExitCode(fmt.Errorf("import: %w", err)) != 4 {
					t.Fatalf("got %v", err)
				}
				if took := time.Since(start); took < 29*time.Second || took > 61*time.Second {
					t.Errorf("it gave up after %v", took)
				}
				if n := s.calls.Load(); n > 40 {
					t.Errorf("%d attempts in 30 s", n)
				}
			})
		})
	}
}

func TestAWaitBeyondTheDeadlineIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := scriptedClient(t, 30*time.Second, nil, func(*http.Request, int) (*http.Response, error) { return answer(503, "Retry-After: 3600", "{}") })
		start := time.Now()
		if _, err := c.Get(t.Context(), "/"); client.ExitCode(err) != 4 {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %v", took)
		}
	})
}

func TestSeveralServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := []string{"http://one", "http://two/base/", "http://three"}
		hosts := map[string]int{}
		c, _ := scriptedClient(t, 30*time.Second, servers, func(r *http.Request, _ int) (*http.Response, error) {
			if r.URL.Host == "one" {
				return nil, syscall.ECONNREFUSED
			}
			hosts[r.URL.String()]++
			return answer(200, "", "{}")
		})
		start := time.Now()
		for range 9 {
			if _, err := c.Get(t.Context(), "/x"); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(map[string]int{"http://two/base/x": 5, "http://three/x": 4}, hosts); diff != "" { // the share of the one that is away is shared
			t.Error(diff)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("passing a server that is away took %v", took)
		}
	})
}

func TestAnswersThatAreNoReasonToTryAgain(t *testing.T) {
	for _, status := range []int{200, 307, 400, 404, 409, 412, 413, 422, 500} {
		c, s := scriptedClient(t, 30*time.Second, nil, func(*http.Request, int) (*http.Response, error) {
			return answer(status, "Location: http://elsewhere", `{"code":"c"}`)
		})
		res, err := c.Post(t.Context(), "/", "k", nil, 0)
		if err != nil || res.Status != status || s.calls.Load() != 1 {
			t.Errorf("%d: %v after %d calls", status, err, s.calls.Load())
		}
	}
}

func TestInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c, _ := scriptedClient(t, time.Hour, nil, func(*http.Request, int) (*http.Response, error) { return nil, syscall.ECONNREFUSED })
		time.AfterFunc(5*time.Second, cancel)
		_, err := c.Get(ctx, "/")
		if !errors.Is(err, context.Canceled) || client.ExitCode(err) != 130 {
			t.Errorf("got %v", err)
		}
	})
}

func TestProblems(t *testing.T) {
	const body = `{"type":"/problems/refused_rule","title":"T","status":422,"detail":"line 2: no","instance":"/v1/commands/k","code":"line_invalid",` +
		`"errors":[{"pointer":"/lines/1/quantity","detail":"must be at least 1","new":1}],"future":{"a":[1]}}`
	c, _ := scriptedClient(t, 0, nil, func(*http.Request, int) (*http.Response, error) { return answer(422, "", body) })
	res, err := c.Post(t.Context(), "/", "k", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := &client.Problem{
		Type: "/problems/refused_rule", Title: "T", Status: 422, Detail: "line 2: no", Instance: "/v1/commands/k", Code: "line_invalid",
		Errors: []client.FieldError{{Pointer: "/lines/1/quantity", Detail: "must be at least 1"}},
	}
	if diff := cmp.Diff(want, res.Problem); diff != "" {
		t.Error(diff)
	}
	if !res.Problem.Kept() || (&client.Problem{Status: 422, Code: client.CodeKeyReused}).Kept() || (&client.Problem{Status: 404}).Kept() {
		t.Error("outcomes of commands are told wrongly from faults of requests")
	}
	if got := res.Err().Error(); got != "the server answers 422 line_invalid: line 2: no; /lines/1/quantity must be at least 1" {
		t.Errorf("got %q", got)
	}
}

func TestServersThatCannotBe(t *testing.T) {
	for _, s := range []string{"", "localhost:8080", "ftp://x", "http://", "http://x?y=1"} {
		if _, err := client.New([]string{s}, nil); client.ExitCode(err) != 2 {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestMinor(t *testing.T) {
	for text, want := range map[string]int64{"15.30": 1530, "0.00": 0, "-0.05": -5, "123456789012.99": 12345678901299} {
		if got, ok := client.Minor(text); !ok || got != want {
			t.Errorf("%s is %d, %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "1", "1.2", "1.234", "1,20", ".50", "1e2.00", "--1.00", "99999999999999999999.00"} {
		if _, ok := client.Minor(text); ok {
			t.Errorf("%q passes", text)
		}
	}
}

func TestSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		c, _ := scriptedClient(t, 30*time.Second, nil, func(*http.Request, int) (*http.Response, error) {
			if time.Since(start) < 10*time.Second {
				return answer(200, "", `{"command_id":"k","status":"accepted","stream":"order-1"}`)
			}
			return answer(200, "", `{"command_id":"k","status":"refused","stream":"order-1","version":3,"events":0,"refusal":{"code":"c","detail":"d"}}`)
		})
		if _, err := c.Settle(t.Context(), "k", 5*time.Second); !errors.Is(err, client.ErrUndecided) || client.ExitCode(err) != 4 {
			t.Errorf("got %v", err)
		}
		got, err := c.Settle(t.Context(), "k", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(client.CommandState{ID: "k", Status: "refused", Stream: "order-1", Version: 3, Code: "c", Detail: "d"}, got); diff != "" {
			t.Error(diff)
		}
	})
}

func receive(n int) [][]byte {
	var lines [][]byte
	for i := range n {
		lines = append(lines, fmt.Appendf(nil, `{"id":"r-%d","stream":"stock-A","type":"ReceiveStock","data":{"quantity":1}}`, i))
	}
	return lines
}

func TestCommands(t *testing.T) {
	s := standin.New()
	web := httptest.NewServer(s)
	defer web.Close()
	c, err := client.New([]string{web.URL}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	lines := append(receive(2), []byte(`{"id":"u","stream":"stock-A","type":"Unknown","data":{}}`), []byte(`{"stream":"nonsense"}`),
		[]byte(`{"id":"x","stream":"stock-A","type":"ReserveStock","data":{"reservation":"r","quantity":9}}`), receive(1)[0])
	got, err := c.Commands(t.Context(), lines, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var short []string
	for _, g := range got {
		switch {
		case g.Problem != nil:
			short = append(short, fmt.Sprint(g.Problem.Status))
		default:
			short = append(short, g.ID+" "+g.Status+" "+g.Code+fmt.Sprint(g.Replayed))
		}
	}
	want := []string{"r-0 decided false", "r-1 decided false", "u dead unknown_typefalse", "400", "x refused stock_insufficientfalse", "r-0 decided true"}
	if diff := cmp.Diff(want, short); diff != "" {
		t.Error(diff)
	}
}

func TestCommandsGoOnWhereAnAnswerBrokeOff(t *testing.T) {
	s := standin.New()
	var broken atomic.Int64
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken.Add(1) > 5 {
			s.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		s.ServeHTTP(rec, r)
		_, _ = w.Write(rec.Body.Bytes()[:rec.Body.Len()/2]) // the last line of it is cut
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer web.Close()
	c, err := client.New([]string{web.URL}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := c.Commands(t.Context(), receive(100), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if got[i].ID != fmt.Sprintf("r-%d", i) || got[i].Status != client.StatusDecided {
			t.Fatalf("line %d: %+v", i, got[i])
		}
	}
	if n := len(s.Accepted()); n != 100 {
		t.Errorf("%d commands were accepted", n)
	}
}

func TestCommandsToAServerThatIsTooBusyForSome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := scriptedClient(t, 30*time.Second, nil, func(_ *http.Request, n int) (*http.Response, error) {
			if n == 1 {
				return answer(200, "", `{"line":1,"command_id":"r-0","status":"decided","stream":"stock-A"}`+"\n"+
					`{"line":2,"retry_after":3,"problem":{"status":503,"code":"overloaded"}}`+"\n")
			}
			return answer(200, "", `{"line":1,"command_id":"r-1","status":"decided","stream":"stock-A"}`+"\n")
		})
		got, err := c.Commands(t.Context(), receive(2), 0)
		if err != nil || s.calls.Load() != 2 {
			t.Fatalf("%v after %d calls", err, s.calls.Load())
		}
		if got[0].ID != "r-0" || got[1].ID != "r-1" || got[1].Problem != nil {
			t.Errorf("got %+v", got)
		}
	})
}
