package order

import (
	"slices"
	"strings"
	"testing"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/payment"
)

// largest runs the process for one order in a world that agrees to everything at once, without the rules of the streams: these
// take their time over orders of thousands of lines.
type largest struct {
	t      *testing.T
	m      *millrace.ProcessManager
	state  any
	r      millrace.Reaction
	sent   map[string]bool
	queue  []millrace.Step
	lines  int
	next   uint64
	most   int
	inputs int
	bytes  int
}

func newLargest(t *testing.T) *largest {
	t.Helper()
	m, err := Fulfilment(FulfilmentOptions{}).Manager()
	if err != nil {
		t.Fatal(err)
	}
	return &largest{t: t, m: m, state: m.Initial("order-42"), sent: map[string]bool{}}
}

// event places the order.
func (l *largest) event(body string) {
	s := newStream(l.t, newRegistry(l.t), "order-42")
	s.must("PlaceOrder", body)
	l.lines = len(s.order().Lines)
	l.hear(s.events[0].Body)
}

func (l *largest) everything() []LineQuantity {
	out := make([]LineQuantity, l.lines)
	for i := range out {
		out[i] = LineQuantity{i + 1, 1}
	}
	return out
}

func (l *largest) hear(event any) {
	l.next++
	l.apply(&millrace.Input{At: start, Event: event, Version: l.next})
}

func (l *largest) apply(in *millrace.Input) {
	l.t.Helper()
	l.state = l.m.Evolve(l.state, in)
	var err error
	if l.r, err = l.m.React(l.state); err != nil {
		l.t.Fatal(err)
	}
	l.most = max(l.most, len(l.r.Steps))
	for _, s := range l.r.Steps {
		if !l.sent[s.Name] {
			l.sent[s.Name] = true
			l.queue = append(l.queue, s)
		}
	}
	if l.inputs++; l.inputs%500 == 0 { // as a commit would
		data, err := l.m.EncodeState(l.state)
		if err != nil {
			l.t.Fatal(err)
		}
		l.bytes = max(l.bytes, len(data))
		if l.state, err = l.m.DecodeState(data); err != nil {
			l.t.Fatal(err)
		}
	}
}

// run answers all that is wanted until nothing is.
func (l *largest) run() {
	l.t.Helper()
	for {
		switch {
		case len(l.queue) > 0:
			s := l.queue[0]
			l.queue = slices.Clone(l.queue[1:])
			l.apply(&millrace.Input{At: start, Step: s.Name, Outcome: &millrace.Outcome{Status: millrace.StatusDecided, Time: start}})
			l.follow(s.Command)
		case len(l.r.Calls) > 0:
			r, ok := l.r.Calls[0].Request.(payment.Request)
			if !ok {
				l.t.Fatalf("%T", l.r.Calls[0].Request)
			}
			switch name := l.r.Calls[0].Name; r.Kind {
			case payment.Authorise:
				l.hear(&OrderPaymentRequested{Name: name, Amount: r.Amount})
				l.hear(&OrderPaymentAuthorised{Name: name, Payment: "p", Amount: r.Amount})
			case payment.Capture:
				l.hear(&OrderPaid{Name: name, Reference: "p", Amount: r.Amount})
			case payment.Void:
				l.hear(&OrderPaymentVoided{Name: name, Payment: "p", Amount: r.Amount})
			case payment.Refund:
				l.hear(&OrderRefunded{Name: name, Payment: "p", Amount: r.Amount})
			}
		default:
			return
		}
	}
}

// follow is the event that a command on the order leads to.
func (l *largest) follow(command any) {
	switch c := command.(type) {
	case *ConfirmOrder:
		l.hear(&OrderConfirmed{})
	case *PackOrder:
		l.hear(&OrderPacked{})
	case *ShipOrder:
		l.hear(&OrderShipped{Shipment: 1, Lines: l.everything(), Whole: true})
	case *DeliverOrder:
		l.hear(&OrderDelivered{})
		l.hear(&OrderCompleted{})
	case *CancelOrder:
		l.hear(&OrderCancelled{Reason: c.Reason})
	}
}

// TestMostStepsFitIntoADocument: an instance with as many steps as it may have can be read again.
func TestMostStepsFitIntoADocument(t *testing.T) {
	i := &millrace.Instance{Stream: "order-42", Data: jsonx.RawValue(`{"g":"` + strings.Repeat(`0    S\n`, MaxLines) + `"}`)}
	for range millrace.MaxSteps {
		i.Steps = append(i.Steps, millrace.InstanceStep{Name: "reserve-10000", Stream: "stock-S", Status: "decided"})
	}
	for range millrace.MaxCalls {
		i.Calls = append(i.Calls, millrace.InstanceCall{Name: "refund-100", Request: jsonx.RawValue(`{"kind":"refund","order_id":"42","payment":"p","amount":{"amount":"1.00","currency":"GBP"}}`)})
	}
	data, _, err := millrace.InstancesTable.Encode(i)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := millrace.InstancesTable.Decode(data); err != nil {
		t.Error(err)
	}
}
