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

// killPoints are the sides of each call at which the server is killed, in turn; behind them comes a kill at any moment.
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
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+kills/10)*patience)
	defer cancel()
	at := serving(t, data, flags...)
	s.doors.add(at)
	s.stockUp(t)
	rng, points, met := seeded(seed, 0), killPoints(), map[string]int{}
	for round := range kills {
		struck, victim := make(chan string, 1), at
		kill := func(why string) func() {
			return func() { victim.kill(); struck <- why }
		}
		p := points[rng.IntN(len(points))]
		switch {
		case round < len(points):
			p = points[round]
			fallthrough
		case round%3 > 0:
			s.tap.arm(p.kind, 1+rng.IntN(3)/2, p.at, kill(string(p.kind)+" "+p.at.String()))
		default:
			s.onAnswer(1+rng.IntN(8), kill("any"))
		}
		s.buy(ctx, s.buyers[orders*round/kills:orders*(round+1)/kills])
		select {
		case why := <-struck:
			met[why]++
		case <-time.After(killWait):
			s.tap.arm("", 0, 0, nil)
			s.onAnswer(0, nil)
			at.kill()
			met["late"]++
		}
		s.doors.remove(at)
		at.saysNoError(t)
		verifiesDomain(t, "--data", data)
		at = serving(t, data, flags...)
		s.doors.add(at)
	}
	t.Logf("%d kills: %v", kills, met)
	s.receive(t, lateSKU, int64(2*orders))
	s.buying.Wait()
	a := s.settle(t, at)
	at.stop(t)
	at.saysNoError(t)
	s.agrees(t, a, verifiesDomain(t, "--data", data))
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
	data, s := t.TempDir(), newShop(t, 33, 1, gateway.Faults{})
	s.tap.fresh = true
	at := serving(t, data, "--payments", s.url)
	s.doors.add(at)
	s.stockUp(t)
	killed := make(chan struct{})
	s.tap.arm(pay.Authorise, 1, done, func() { at.kill(); close(killed) })
	s.buy(t.Context(), s.buyers)
	<-killed
	s.doors.remove(at)
	at = serving(t, data, "--payments", s.url)
	s.doors.add(at)
	s.buying.Wait()
	a := s.settle(t, at)
	at.stop(t)
	if len(a.faults) != 1 || !strings.Contains(a.faults[0], "by 1 of 2 payments") {
		t.Errorf("without keys nothing goes wrong: %q", a.faults)
	}
}
