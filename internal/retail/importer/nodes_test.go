package importer_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/retail"
	"github.com/millrace-io/millrace/internal/retail/importer"
	"github.com/millrace-io/millrace/internal/retail/retailtest"
	"github.com/millrace-io/millrace/sim/standin"
)

// nodes are several servers over one store, in memory, so that they can run in a bubble, where a minute takes no time.
// Each misbehaves as its script says.
type nodes struct {
	store  *standin.Server
	script map[string]func(n int) fault // by host; n counts the node's requests
	// ahead is by how much the nodes' clocks are ahead of the importer's.
	ahead time.Duration

	mu    sync.Mutex
	calls map[string]int
	met   map[fault]int
	came  map[string]time.Time // when a command was accepted
	reads []string             // the queries of reads of orders and returns
	stale map[string]bool      // nodes whose read models have not come as far as any cursor
}

type fault string

const (
	well       fault = ""
	away       fault = "away"                                // connection refused
	reset      fault = "reset before the request was read"   //
	resetLate  fault = "reset after it was accepted"         //
	hang       fault = "hangs before the request was read"   //
	hangLate   fault = "hangs after it was accepted"         //
	cut        fault = "the answer breaks off in the middle" //
	busy       fault = "503 overloaded with Retry-After"     //
	stopping   fault = "503 unavailable, kept all the same"  //
	badGateway fault = "502 without a word"                  //
	keepsOnly  fault = "answers 202 and no more"             //
)

func newNodes(script map[string]func(n int) fault) *nodes {
	return &nodes{
		store: standin.New(), script: script,
		calls: map[string]int{}, met: map[fault]int{}, came: map[string]time.Time{}, stale: map[string]bool{},
	}
}

func (f *nodes) client(t *testing.T, hosts ...string) *client.Client {
	t.Helper()
	var urls []string
	for _, h := range hosts {
		urls = append(urls, "http://"+h)
	}
	c, err := client.New(urls, &client.Options{RetryFor: 30 * time.Second, Transport: f})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// next is what a node does to its next request.
func (f *nodes) next(host string) fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[host]++
	what := well
	if script := f.script[host]; script != nil {
		what = script(f.calls[host])
	}
	f.met[what]++
	return what
}

func problem(status int, code, after string) *http.Response {
	h := http.Header{"Content-Type": {"application/problem+json"}}
	if after != "" {
		h.Set("Retry-After", after)
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(`{"status":503,"code":"` + code + `"}`))}
}

// RoundTrip is a request to a node.
func (f *nodes) RoundTrip(r *http.Request) (*http.Response, error) {
	// What takes no time at all would keep the lanes of a bubble from mixing.
	if err := client.Pause(r.Context(), time.Millisecond); err != nil {
		return nil, err
	}
	switch f.next(r.URL.Host) {
	case away:
		return nil, syscall.ECONNREFUSED
	case reset:
		return nil, syscall.ECONNRESET
	case resetLate:
		_ = f.serve(r)
		return nil, syscall.ECONNRESET
	case hang:
		<-r.Context().Done()
		return nil, r.Context().Err()
	case hangLate:
		_ = f.serve(r)
		<-r.Context().Done()
		return nil, r.Context().Err()
	case cut:
		res := f.serve(r)
		body, _ := io.ReadAll(res.Body)
		res.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body[:len(body)/2]), brokenOff{}))
		return res, nil
	case busy:
		return problem(503, "overloaded", "1"), nil
	case stopping:
		_ = f.serve(r)
		return problem(503, "unavailable", "1"), nil
	case badGateway:
		_ = f.serve(r)
		return problem(502, "", ""), nil
	case keepsOnly:
		r = r.Clone(r.Context())
		r.Header.Del("Prefer")
	}
	return f.serve(r), nil
}

type brokenOff struct{}

func (brokenOff) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// serve lets the store answer, as the API does: a node's clock on every answer, and when a command was accepted.
func (f *nodes) serve(r *http.Request) *http.Response {
	now := time.Now().Add(f.ahead)
	if strings.HasPrefix(r.URL.Path, "/v1/orders/") || strings.HasPrefix(r.URL.Path, "/v1/returns/") {
		f.mu.Lock()
		f.reads = append(f.reads, r.URL.RawQuery)
		stale := f.stale[r.URL.Host]
		f.mu.Unlock()
		if stale {
			return problem(503, client.CodeNotCaughtUp, "1")
		}
	}
	rec := httptest.NewRecorder()
	f.store.ServeHTTP(rec, r)
	res := rec.Result()
	res.Header.Set("Date", now.UTC().Format(http.TimeFormat))
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range f.store.Accepted()[len(f.came):] {
		f.came[id] = now
	}
	if id, ok := strings.CutPrefix(r.URL.Path, "/v1/commands/"); ok && res.StatusCode == http.StatusOK {
		var m map[string]any
		_ = json.Unmarshal(rec.Body.Bytes(), &m) // the stand-in writes objects
		m["accepted_at"] = f.came[id].UTC().Format(time.RFC3339Nano)
		m["cursor"] = "cursor of " + id
		text, _ := json.Marshal(m)
		res.Body = io.NopCloser(bytes.NewReader(text))
	}
	return res
}

// troubled are three nodes of which none is well all the time: one dies in the middle, one stumbles again and again, one
// hangs for a while.
func troubled() map[string]func(n int) fault {
	return map[string]func(n int) fault{
		"dies": func(n int) fault {
			switch {
			case n < 60:
				return well
			case n < 64:
				return resetLate
			}
			return away
		},
		"stumbles": func(n int) fault {
			stumble := []fault{resetLate, busy, reset, cut, stopping, badGateway, away, keepsOnly}
			if n%5 == 0 {
				return stumble[n/5%len(stumble)]
			}
			return well
		},
		"hangs": func(n int) fault {
			switch {
			case n >= 40 && n < 44:
				return hangLate
			case n >= 44 && n < 48:
				return hang
			}
			return well
		},
	}
}

func TestSeveralNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file, want := generated(t, retailtest.Options{Seed: 31, Invoices: 600, Damage: true})
		f := newNodes(troubled())
		c := f.client(t, "dies", "stumbles", "hangs")
		first := run(t, c, file, &importer.Options{Concurrency: 8})
		if diff := cmp.Diff(summary(&want), first, notTime); diff != "" {
			t.Error(diff)
		}
		if n := len(f.store.Accepted()); n != want.Invoices {
			t.Errorf("%d commands for %d invoices", n, want.Invoices)
		}
		for _, what := range []fault{away, reset, resetLate, hang, hangLate, cut, busy, stopping, badGateway, keepsOnly} {
			if f.met[what] == 0 {
				t.Errorf("no request met: %s", what)
			}
		}
		inOrder(t, file, f.store)
		if first.Seconds > 120 {
			t.Errorf("it took %v s", first.Seconds)
		}

		// A minute later, with the same trouble: everything is of the earlier run, whatever became of the first attempt.
		if err := client.Pause(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		clear(f.calls)
		f.mu.Unlock()
		second := run(t, f.client(t, "dies", "stumbles", "hangs"), file, &importer.Options{Concurrency: 8})
		if second.Replayed != want.Invoices || len(f.store.Accepted()) != want.Invoices {
			t.Errorf("the second run: %+v, %d commands", second, len(f.store.Accepted()))
		}
	})
}

// TestSeveralNodesControl: each of the same nodes alone does not do. The test above shows something only if this one fails
// to import.
func TestSeveralNodesControl(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file, _ := generated(t, retailtest.Options{Seed: 31, Invoices: 600, Damage: true})
		f := newNodes(troubled())
		part, err := importer.Run(t.Context(), f.client(t, "dies"), file, &importer.Options{Concurrency: 8})
		var gone *client.UnavailableError
		if !errors.As(err, &gone) || client.ExitCode(err) != 4 {
			t.Fatalf("got %v after %+v", err, part)
		}
		if part.Invoices == 0 || part.Invoices == file.Len() {
			t.Errorf("%d invoices", part.Invoices)
		}
		// Two that are away are as one.
		f = newNodes(troubled())
		f.script["also"] = f.script["dies"]
		if _, err := importer.Run(t.Context(), f.client(t, "dies", "also"), file, nil); !errors.As(err, &gone) || gone.After < 29*time.Second {
			t.Errorf("got %v", err)
		}
	})
}

// inOrder: the invoices of a customer were accepted one after the other.
func inOrder(t *testing.T, file *retail.File, s *standin.Server) {
	t.Helper()
	place, last := map[string]int{}, map[string]int{}
	for n, id := range s.Accepted() {
		place[id] = n
	}
	for i := range file.Invoices() {
		if i.CustomerID == "" {
			continue
		}
		n := place[i.ID()]
		if before, ok := last[i.CustomerID]; ok && n < before {
			t.Errorf("invoice %s of customer %s was sent too early", i.Number, i.CustomerID)
		}
		last[i.CustomerID] = n
	}
}

func TestSeveralNodesReceiveStock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file, want := generated(t, retailtest.Options{Seed: 32, Invoices: 200})
		f := newNodes(troubled())
		sum := run(t, f.client(t, "dies", "stumbles", "hangs"), file, &importer.Options{ReceiveStock: true, Concurrency: 4})
		receipts := sum.StockReceipts
		sum.StockReceipts = 0
		if diff := cmp.Diff(summary(&want), sum, notTime); diff != "" {
			t.Error(diff)
		}
		if n := len(f.store.Accepted()); receipts == 0 || n != want.Invoices+receipts {
			t.Errorf("%d receipts, %d commands", receipts, n)
		}
	})
}

// TestWhoseReplay: a request is answered as a replay after an attempt in vain. When the command was accepted tells whose it
// is, by the nodes' own clocks, however wrong the importer's is.
func TestWhoseReplay(t *testing.T) {
	rows := header + "1,A,,6,2010-12-01 08:26:00,1,,UK\n"
	for _, ahead := range []time.Duration{0, time.Hour, -time.Hour} {
		for _, test := range []struct {
			name  string
			first fault
			known time.Duration // for how long the server has had the invoice; 0: it has not
			want  importer.Outcome
		}{
			{"new", resetLate, 0, importer.Ordered},
			{"new, and decided later", stopping, 0, importer.Ordered},
			{"there, and all is well", well, time.Second, importer.Replayed},
			{"there, and certainly not sent before", away, time.Second, importer.Replayed},
			{"there for long", resetLate, time.Minute, importer.Replayed},
			{"there for long, and never sent", reset, time.Minute, importer.Replayed},
			{"there for a moment, which may be this run", resetLate, time.Second, importer.Ordered},
		} {
			t.Run(test.name+" "+ahead.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newNodes(nil)
					f.ahead = ahead
					if test.known > 0 {
						run(t, f.client(t, "b"), parsed(t, rows), nil)
						if err := client.Pause(t.Context(), test.known); err != nil {
							t.Fatal(err)
						}
					}
					f.script = map[string]func(int) fault{"a": func(int) fault { return test.first }}
					var got []importer.Outcome
					run(t, f.client(t, "a", "b"), parsed(t, rows), &importer.Options{
						OnDone: func(_ *retail.Invoice, o importer.Outcome, _ *importer.Rejection) error {
							got = append(got, o)
							return nil
						},
					})
					if diff := cmp.Diff([]importer.Outcome{test.want}, got); diff != "" {
						t.Error(diff)
					}
				})
			})
		}
	}
}

// TestReadsAfterWrites: where an outcome has to be read, whichever node is asked must have seen it.
func TestReadsAfterWrites(t *testing.T) {
	rows := header + "1,A,,6,2010-12-01 08:26:00,1.50,,UK\nC2,A,,-1,2010-12-01 08:26:00,1.50,,UK\n"
	total, back := int64(900), int64(150)
	for name, test := range map[string]struct {
		stale []string
		known bool
	}{
		"one lags behind":  {[]string{"a"}, true},
		"all lag for ever": {[]string{"a", "b"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				only := func(int) fault { return keepsOnly }
				f := newNodes(map[string]func(int) fault{"a": only, "b": only})
				for _, host := range test.stale {
					f.stale[host] = true
				}
				sum := run(t, f.client(t, "a", "b"), parsed(t, rows), nil)
				want := &importer.Summary{Invoices: 2, Orders: 1, Returns: 1, Lines: 2, Units: 6, ReturnedUnits: 1, Currency: "GBP"}
				if test.known {
					want.TotalMinor, want.ReturnedMinor = &total, &back
				}
				if diff := cmp.Diff(want, sum, notTime); diff != "" {
					t.Error(diff)
				}
				if len(f.reads) < 2 {
					t.Fatalf("%d reads", len(f.reads))
				}
				for _, q := range f.reads {
					if !strings.HasPrefix(q, "min_cursor=cursor+of+online-retail-") {
						t.Errorf("a read with %q", q)
					}
				}
			})
		})
	}
}
