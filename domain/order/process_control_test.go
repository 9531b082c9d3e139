package order

import (
	"fmt"
	"slices"
	"testing"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/payment"
)

// noticed is a failure of a world that is meant to fail.
type noticed string

// noticing ends a life at the first failure.
type noticing struct{}

func (noticing) Helper()                           {}
func (noticing) Fatal(args ...any)                 { panic(noticed(fmt.Sprint(args...))) }
func (noticing) Fatalf(format string, args ...any) { panic(noticed(fmt.Sprintf(format, args...))) }

// TestFulfilmentControls takes protections away, and somebody notices each time: the worlds of TestFulfilment can fail.
func TestFulfilmentControls(t *testing.T) {
	for _, c := range []struct {
		name   string
		faults func(w *world) worldFaults
	}{
		{"nothing is released", func(*world) worldFaults {
			return worldFaults{command: func(s millrace.Step) any {
				if _, ok := s.Command.(*ReleaseStock); ok {
					return nil
				}
				return s.Command
			}}
		}},
		{"nothing is committed", func(*world) worldFaults {
			return worldFaults{command: func(s millrace.Step) any {
				if _, ok := s.Command.(*CommitStock); ok {
					return nil
				}
				return s.Command
			}}
		}},
		{"commits are of one more", func(*world) worldFaults {
			return worldFaults{command: func(s millrace.Step) any {
				if c, ok := s.Command.(*CommitStock); ok {
					return &CommitStock{Reservation: c.Reservation, Quantity: new(*c.Quantity + 1)}
				}
				return s.Command
			}}
		}},
		{"what comes back is taken in twice", func(w *world) worldFaults {
			return worldFaults{command: func(s millrace.Step) any {
				if c, ok := s.Command.(*ReceiveStock); ok {
					w.client(s.Stream, "ReceiveStock", fmt.Sprintf(`{"quantity":%d,"reference":%q}`, *c.Quantity, c.Reference))
				}
				return s.Command
			}}
		}},
		{"captures are named anew each time", func(*world) worldFaults { return worldFaults{fresh: payment.Capture} }},
		{"authorisations are named anew each time", func(*world) worldFaults { return worldFaults{fresh: payment.Authorise} }},
		{"orders are confirmed whatever became of their lines", func(*world) worldFaults {
			return worldFaults{command: func(s millrace.Step) any {
				if _, ok := s.Command.(*ConfirmOrder); ok {
					return &ConfirmOrder{}
				}
				return s.Command
			}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			const worlds = 300
			for seed := range uint64(worlds) {
				if what := failure(seed, c.faults); what != "" {
					t.Logf("seed %d: %.200s", seed, what)
					return
				}
			}
			t.Errorf("nobody noticed in %d worlds", worlds)
		})
	}
	if what := failure(1, func(*world) worldFaults { return worldFaults{} }); what != "" {
		t.Errorf("without a fault: %s", what)
	}
}

// TestRequestControl: where the log does not say that an authorisation is asked for, it stands after a kill for an order that was
// cancelled meanwhile, and no event knows of it. With it, the same way of an order is one of TestWaysOfAnOrder.
func TestRequestControl(t *testing.T) {
	w := newWorld(t, 1, FulfilmentOptions{})
	w.faults = worldFaults{always: func(payment.Kind) bool { return true }, unsaid: true}
	w.client("stock-A", "ReceiveStock", `{"quantity":3}`)
	w.client("stock-C", "ReceiveStock", `{"quantity":1}`)
	i := w.place("42", autoBody)
	w.calmly(func() bool { return len(i.open()) > 0 })
	i.call("authorise-1", 1)
	killedAndCancelled(w, i)
	w.rest()
	if held := w.standingOf("42"); i.doc.now.State != FulfilmentCancelled || held != 800 || len(w.audit.Finish(true).Broken) > 0 {
		t.Errorf("%s, and the gateway holds %d: %+v", i.doc.now.State, held, w.audit.Finish(true).Broken)
	}
}

// failure lives a life with faults and says how it failed.
func failure(seed uint64, faults func(w *world) worldFaults) (what string) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case noticed:
			what = string(p)
		default:
			panic(p)
		}
	}()
	w := newWorld(noticing{}, seed, worldOptions(seed))
	w.faults = faults(w)
	if found := w.live(5, 40, map[string]int{}); len(found) > 0 {
		return fmt.Sprintf("%+v", found[0])
	}
	for _, i := range w.orders {
		if times, _ := w.captured(i.name.ID()); times > 1 {
			return fmt.Sprintf("%s was charged %d times", i.name, times)
		}
		if held := w.standingOf(i.name.ID()); held != 0 && slices.Contains(ends, i.doc.now.State) {
			return fmt.Sprintf("the gateway holds %d for %s", held, i.name)
		}
	}
	return ""
}
