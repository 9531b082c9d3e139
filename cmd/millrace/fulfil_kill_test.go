package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	pay "github.com/millrace-io/millrace/internal/payment"
	"github.com/millrace-io/millrace/sim/gateway"
)

// killWait bounds how long a round of kills waits for its moment: where nobody pays any more, none comes.
const killWait = 3 * time.Second

// lateEvery is after how many kills what is late comes, and again after so many more. An order asks for it again after waiting twice as long
// each time: those that wait from the first kill to the last would ask long after the test has lost its patience.
const lateEvery = 10

// killPoints are the sides of each call at which a server is killed.
func killPoints() (all []killPoint) {
	for _, at := range []moment{done, answered, unheard, unseen} {
		for _, kind := range []pay.Kind{pay.Authorise, pay.Capture, pay.Refund, pay.Void} {
			all = append(all, killPoint{kind, at})
		}
	}
	return all
}

type killPoint struct {
	kind pay.Kind
	at   moment
}

func (p killPoint) String() string { return string(p.kind) + " " + p.at.String() }

// TestKillFulfilment kills the server again and again while it carries orders through, at any moment and on each side of each
// call to the gateway. Each order comes to its end, is charged once, and what is reserved for it is what was shipped.
func TestKillFulfilment(t *testing.T) { killFulfilment(t, 31, 84, 12) }

// TestSoakKillFulfilment is the long form.
func TestSoakKillFulfilment(t *testing.T) {
	if os.Getenv("MILLRACE_SOAK") == "" {
		t.Skip("MILLRACE_SOAK is not set")
	}
	killFulfilment(t, 32, 600, 120)
}

func killFulfilment(t *testing.T, seed uint64, orders, kills int) {
	data, s := t.TempDir(), newShop(t, seed, orders, shopFaults)
	flags := []string{"--payments", s.url, "--backorder-retry", "200ms", "--log-format", "json"}
	at := serving(t, data, flags...)
	s.doors.add(at)
	s.stockUp(t)
	s.killWhileBuying(t, &killing{
		seed: seed, kills: kills, points: killPoints(),
		victim: func(int) (*server, string) { return at, "" },
		died: func(int) {
			s.doors.remove(at)
			at.saysNoError(t)
			verifiesDomain(t, "--data", data)
			at = serving(t, data, flags...)
			s.doors.add(at)
		},
	})
	a := s.settle(t, at)
	at.stop(t)
	at.saysNoError(t)
	s.agrees(t, a, verifiesDomain(t, "--data", data))
}

// killing is how servers are killed while customers buy.
type killing struct {
	seed  uint64
	kills int
	// points are met first, each once; then they are drawn, and every third kill is at any moment.
	points []killPoint
	// victim is the server that is killed in a round, and its name at the gateway where there are others.
	victim func(round int) (at *server, name string)
	// died is told that it is dead, and has somebody come for it.
	died func(round int)
}

// killWhileBuying has all customers come, some in each round of kills, and waits until they have been served. A moment that did not come in
// its round is waited for in a later one; where there were rounds enough for all, each must have come.
func (s *shopWorld) killWhileBuying(t *testing.T, k *killing) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+k.kills/10)*patience)
	defer cancel()
	rng, left, met, orders := seeded(k.seed, 0), k.points, map[string]int{}, len(s.buyers)
	for round := range k.kills {
		victim, name := k.victim(round)
		struck := make(chan string, 1)
		kill := func(why string) func() {
			return func() { victim.kill(); struck <- why }
		}
		p, first, nth := k.points[rng.IntN(len(k.points))], len(left) > 0, 1+rng.IntN(3)/2
		if first {
			p, left = left[0], left[1:]
			nth = 1
		}
		if first || round%3 > 0 {
			s.tap.arm(name, p.kind, nth, p.at, kill(p.String()))
		} else {
			s.onAnswer(1+rng.IntN(8), kill("any"))
		}
		s.buy(ctx, s.buyers[orders*round/k.kills:orders*(round+1)/k.kills])
		select {
		case why := <-struck:
			met[why]++
		case <-time.After(killWait):
			s.tap.arm("", "", 0, 0, nil)
			s.onAnswer(0, nil)
			victim.kill()
			met["late"]++
			if first {
				left = append(left, p)
			}
		}
		k.died(round)
		if round%lateEvery == lateEvery-1 {
			s.receive(t, lateSKU, int64(2*lateEvery*(1+orders/k.kills)))
		}
	}
	t.Logf("%d kills: %v", k.kills, met)
	if k.kills > 2*len(k.points) && len(left) > 0 {
		t.Errorf("these moments never came: %v", left)
	}
	s.receive(t, lateSKU, int64(2*orders))
	s.buying.Wait()
}

// onAnswer has strike be called at the n-th answer of a server to a customer from now.
func (s *shopWorld) onAnswer(n int, strike func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = func() {
		s.mu.Lock()
		n--
		due := n == 0
		s.mu.Unlock()
		if due {
			strike()
		}
	}
}

// saysNoError wants a server to have heard of nothing worse than what was done to it.
func (s *server) saysNoError(t *testing.T) {
	t.Helper()
	for line := range strings.Lines(s.stderr.String()) {
		if !strings.Contains(line, `"level":"WARN"`) {
			t.Errorf("the server says: %s", line)
		}
	}
}

// TestKillFulfilmentControl: a gateway that does not know keys sets money aside twice for an order whose server is killed
// between its answer and the record of it; and the shop's accounts notice.
func TestKillFulfilmentControl(t *testing.T) {
	data := t.TempDir()
	killWithoutKeys(t, 33, func(url string) *server { return serving(t, data, "--payments", url) })
}

// killWithoutKeys starts a server, kills it there, and starts it again.
func killWithoutKeys(t *testing.T, seed uint64, start func(gateway string) *server) {
	t.Helper()
	s := newShop(t, seed, 1, gateway.Faults{})
	s.tap.fresh = true
	at := start(s.url)
	s.doors.add(at)
	s.stockUp(t)
	killed := make(chan struct{})
	s.tap.arm("", pay.Authorise, 1, done, func() { at.kill(); close(killed) })
	s.buy(t.Context(), s.buyers)
	<-killed
	s.doors.remove(at)
	at = start(s.url)
	s.doors.add(at)
	s.buying.Wait()
	a := s.settle(t, at)
	at.stop(t)
	// How often it is asked by the second life is chance: a late commit of the first one may have it begin again.
	if len(a.faults) != 1 || !strings.Contains(a.faults[0], "by 1 of ") || strings.Contains(a.faults[0], "and 0 is set aside still") {
		t.Errorf("without keys nothing goes wrong: %q", a.faults)
	}
}
