package client

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// MaxServers bounds how many servers a client may be given: above any cluster that shares one database, and far below
	// what a list that was meant for something else would bring.
	MaxServers = 64

	// firstDelay and maxDelay bound the delay between a request's rounds over the servers. The first catches a dropped
	// connection, the last does not keep a server that comes back waiting.
	firstDelay = 50 * time.Millisecond
	maxDelay   = 2 * time.Second
	// firstRest and maxRest bound for how long a server that did not answer is left alone while others do. The first lets a
	// broken connection pass, the last lets a node that was restarted take its share again soon.
	firstRest = 250 * time.Millisecond
	maxRest   = 10 * time.Second

	// attemptSlack is what an attempt may take beyond the time that the server was asked to wait: after it the server
	// hangs. Where there is one server only, nothing is gained by impatience.
	attemptSlack = 30 * time.Second
	// severalWait and severalSlack are that time and that slack where there is another server to ask: a node that hangs is
	// noticed by them, and everything that was sent to it stands still until then. Who asked for a longer wait is answered
	// "accepted" sooner, and looks again.
	severalWait  = 10 * time.Second
	severalSlack = 10 * time.Second
	// probeWait and probeSlack are for the one request that finds out whether a server that did not answer is back: what it
	// costs, it costs again and again for as long as the server hangs.
	probeWait  = time.Second
	probeSlack = 5 * time.Second
)

// fleet is what a client knows of its servers. A server that does not answer is left alone for a time that grows, while
// others are there to ask. When the time is over, a single request, the probe, tries it; an answer, whatever it says,
// makes it a server like the others again.
//
// With one server there is no choice, and nothing is kept.
type fleet struct {
	urls []string
	next atomic.Uint64 // whose turn it is

	mu    sync.Mutex
	state []health
}

type health struct {
	failures int       // attempts without an answer since the last answer; those of one moment count once
	until    time.Time // it is left alone until then
	probing  bool
}

func newFleet(urls []string) *fleet { return &fleet{urls: urls, state: make([]health, len(urls))} }

func (f *fleet) alone() bool { return len(f.urls) == 1 }

// fit says whether a server may be asked while there are others. The caller holds mu.
func (f *fleet) fit(i int, now time.Time) bool {
	h := &f.state[i]
	return h.failures == 0 || (!h.probing && !now.Before(h.until))
}

// slot is one attempt at one server.
type slot struct {
	server int
	url    string
	probe  bool
	start  time.Time
}

// limits are for how long the server is asked to wait, and for how long an attempt may take in all.
func (f *fleet) limits(s *slot, wait time.Duration) (ask, all time.Duration) {
	switch {
	case f.alone():
		return wait, wait + attemptSlack
	case s.probe:
		wait = min(wait, probeWait)
		return wait, wait + probeSlack
	}
	wait = min(wait, severalWait)
	return wait, wait + severalSlack
}

// answered: the server is there.
func (f *fleet) answered(s *slot) {
	if f.alone() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state[s.server] = health{}
}

// failed: the server did not answer. It rests at least for as long as the attempt took, so that one that hangs never costs
// most of the time.
func (f *fleet) failed(s *slot, now time.Time) {
	if f.alone() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	h := &f.state[s.server]
	if !s.probe && h.failures > 0 {
		return // one of many requests that were under way when it went: they are one failure
	}
	rest := max(firstRest<<min(h.failures, 10), now.Sub(s.start))
	*h = health{failures: h.failures + 1, until: now.Add(min(rest, maxRest))}
}

// dropped: the caller gave up, which says nothing of the server.
func (f *fleet) dropped(s *slot) {
	if f.alone() || !s.probe {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state[s.server].probing = false
}

// turn is one request's way over the servers. In a round it asks each server once that may be asked; then it waits.
type turn struct {
	fleet     *fleet
	retryFor  time.Duration
	began     time.Time
	at        int         // where to look next
	asked     []bool      // in this round
	notBefore []time.Time // what Retry-After says to this request
	rounds    int
	attempts  int
	failing   time.Time // since when no server does what is asked; zero: nothing has failed
}

// turn begins a request at the next server whose turn it is and that is not left alone.
func (f *fleet) turn(retryFor time.Duration) *turn {
	n := len(f.urls)
	t := &turn{fleet: f, retryFor: retryFor, began: time.Now(), asked: make([]bool, n), notBefore: make([]time.Time, n)}
	f.mu.Lock()
	defer f.mu.Unlock()
	for range n {
		t.at = int((f.next.Add(1) - 1) % uint64(n)) //nolint:gosec // below MaxServers
		if f.alone() || f.fit(t.at, t.began) {
			break
		}
	}
	return t
}

// pick takes the server to ask now. There is none where the round is over.
func (t *turn) pick(now time.Time) (*slot, bool) {
	f := t.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	best := -1
	for k := range f.urls {
		i := (t.at + k) % len(f.urls)
		if !t.mayAsk(i, now) {
			continue
		}
		if f.alone() || f.fit(i, now) {
			return t.take(i, now), true
		}
		// Where none answers, none is left alone: the one that has rested most is asked. One that is being probed is asked
		// only by who would otherwise give up without having asked anybody.
		if !f.state[i].probing || t.attempts == 0 {
			if best < 0 || f.state[i].until.Before(f.state[best].until) {
				best = i
			}
		}
	}
	if best < 0 || t.hopeful(now) {
		return nil, false
	}
	return t.take(best, now), true
}

// hopeful says whether there is a server that answered when it was asked last, and that this request may ask again in
// time. The caller holds mu.
func (t *turn) hopeful(now time.Time) bool {
	for i := range t.fleet.state {
		if t.fleet.state[i].failures == 0 && t.notBefore[i].Sub(now) <= t.left(now) {
			return true
		}
	}
	return false
}

// left is what is left of the time for attempts.
func (t *turn) left(now time.Time) time.Duration {
	if t.failing.IsZero() {
		return t.retryFor
	}
	return t.retryFor - now.Sub(t.failing)
}

func (t *turn) mayAsk(i int, now time.Time) bool { return !t.asked[i] && !now.Before(t.notBefore[i]) }

func (t *turn) take(i int, now time.Time) *slot {
	h := &t.fleet.state[i]
	s := &slot{server: i, url: t.fleet.urls[i], start: now, probe: h.failures > 0}
	h.probing = s.probe
	t.asked[i] = true
	t.at = i + 1
	t.attempts++
	return s
}

// settle books what an attempt met.
func (t *turn) settle(s *slot, again *retry, err error) {
	now := time.Now()
	switch {
	case err != nil:
		t.fleet.dropped(s)
	case again == nil:
		t.fleet.answered(s)
	case again.noReply:
		t.fleet.failed(s, now)
	default:
		t.fleet.answered(s)
	}
	if again == nil {
		return
	}
	if t.failing.IsZero() {
		t.failing = now
	}
	if again.after > 0 {
		t.notBefore[s.server] = now.Add(again.after)
	}
	if again.everywhere {
		for i := range t.asked {
			t.asked[i], t.notBefore[i] = true, now.Add(again.after)
		}
	}
}

// goesOn: part of what was asked is done, so that the time for attempts starts anew.
func (t *turn) goesOn() { t.failing, t.rounds = time.Now(), 0 }

// pause is how long to wait before the next round, or false where that is beyond the time for attempts.
func (t *turn) pause() (time.Duration, bool) {
	now := time.Now()
	growing, left := t.growing(), t.left(now)
	if left <= 0 {
		return 0, false
	}
	f := t.fleet
	f.mu.Lock()
	hopeful, delay := t.hopeful(now), time.Duration(-1)
	for i := range f.state {
		one := growing
		if hopeful && f.state[i].failures > 0 {
			one = max(one, f.state[i].until.Sub(now))
		}
		// What a server has asked for is not cut to what is left.
		if one = min(one, left); t.notBefore[i].After(now) {
			one = t.notBefore[i].Sub(now)
		}
		if delay < 0 || one < delay {
			delay = one
		}
	}
	f.mu.Unlock()
	if delay > left {
		return 0, false
	}
	t.rounds++
	clear(t.asked)
	return delay, true
}

// growing is a delay at random in the upper half of a bound that doubles, so that clients that failed together do not come
// back together.
func (t *turn) growing() time.Duration {
	bound := min(firstDelay<<min(t.rounds, 10), maxDelay)
	return bound/2 + time.Duration(rand.Int64N(int64(bound/2)+1)) //nolint:gosec // jitter, not a secret
}

// unavailable is the error of who gives up.
func (t *turn) unavailable(last error) error {
	return &UnavailableError{Servers: t.fleet.urls, Attempts: t.attempts, After: time.Since(t.began), Last: last}
}
