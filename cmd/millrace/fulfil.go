package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/internal/jsonx"
	pay "github.com/millrace-io/millrace/internal/payment"
	"github.com/millrace-io/millrace/payment"
	processes "github.com/millrace-io/millrace/process"
)

const (
	// The ways of paying that are no gateway's address.
	payOnAccount  = "account"
	payByHand     = "manual"
	gatewayCalls  = 256  // requests at a time to a gateway over HTTP: it shares them among its own machines
	inProcessCall = 4096 // those that wait for nothing but the record of their answer
)

// payments is how orders are paid.
type payments struct {
	gateway pay.Gateway // nil where somebody says that an order is paid
	calls   int         // at a time
}

// fulfilment are the settings of the process, with the way of paying.
type fulfilment struct {
	order.FulfilmentOptions
	payments
}

// fulfilment reads the settings. No fault repeats the gateway's address, which may hold a password.
func (o *serveOptions) fulfilment() (*fulfilment, error) {
	f := &fulfilment{FulfilmentOptions: o.fulfil}
	switch f.Until {
	case "", order.UntilConfirmed, order.UntilPacked, order.UntilShipped, order.UntilDelivered:
	default:
		return nil, badSetting("fulfil-until", "must be confirmed, packed, shipped or delivered")
	}
	for name, d := range map[string]time.Duration{
		"payment-timeout": f.PaymentTimeout, "reservation-expiry": f.ReservationExpiry, "backorder-for": f.BackorderFor,
		"backorder-retry": f.BackorderRetry,
	} {
		if d < 0 {
			return nil, badSetting(name, "must not be below zero")
		}
	}
	switch o.payments {
	case "", payOnAccount:
		f.payments = payments{payment.Account(), inProcessCall}
	case payByHand:
		f.Payment = order.PaymentManual
	default:
		g, err := o.gateway()
		if err != nil {
			return nil, err
		}
		f.payments = payments{g, gatewayCalls}
	}
	return f, nil
}

// gateway is the gateway at the address of the settings.
func (o *serveOptions) gateway() (pay.Gateway, error) {
	u, err := url.Parse(o.payments)
	switch {
	case err != nil || u.Hostname() == "" || (u.Scheme != "http" && u.Scheme != "https"):
		return nil, badSetting("payments", "must be account, manual, or the URL of a payment gateway")
	case u.Scheme == "http" && !o.insecure && loopback(net.JoinHostPort(u.Hostname(), "80")) != nil:
		return nil, badSetting("payments", "must begin with https:// where the gateway is on another machine, or say --insecure")
	}
	g, err := payment.NewHTTP(o.payments, &payment.Options{Insecure: o.insecure})
	if err != nil {
		return nil, badSetting("payments", "%w", err)
	}
	return g, nil
}

// fulfiller runs the process that carries orders through.
type fulfiller struct {
	n *node
	f *fulfilment
	// unsaid is for the test that shows what comes of it where it is no fact that an authorisation is asked for.
	unsaid bool
}

// run carries orders through until ctx ends.
func (t *fulfiller) run(ctx context.Context) error {
	c, err := t.consumer()
	if err != nil {
		return err
	}
	return t.n.follow(ctx, c)
}

// consumer is the process as what follows the feed.
func (t *fulfiller) consumer() (millrace.Consumer, error) {
	p, err := order.Fulfilment(t.f.FulfilmentOptions).Manager()
	if err != nil {
		return millrace.Consumer{}, err
	}
	return processes.New(t.n.store, t.n.registry, t.n.processor, p, &processes.Options{
		Call: t.call, Calls: t.f.calls, Observer: t.n.metrics, Logger: t.n.log,
	}).Consumer(), nil
}

// call makes a request to the gateway, unless the log has what came of it. What came of it is recorded before the process hears
// of it: documents can be lost with the newest of them, and the process then makes its calls again; facts are not lost. Where
// nothing can be recorded the request is made again, under the same key, and has the same answer. That an authorisation is asked for is
// recorded before it is.
func (t *fulfiller) call(ctx context.Context, c *millrace.CallRequest) ([]byte, error) {
	done, err := t.n.calling(ctx, roleFeed, c.Stream)
	if err != nil {
		return nil, err
	}
	defer done()
	body, err := t.n.fact(ctx, c.ID)
	switch {
	case err == nil:
		r, ok := body.(*order.RecordPayment)
		if !ok {
			return nil, fmt.Errorf("%w: command %s is not what it should be", millrace.ErrCorrupt, c.ID)
		}
		return answerOf(r)
	case !errors.Is(err, millrace.ErrNotFound):
		return nil, err
	}
	var r pay.Request
	if err := jsonx.Unmarshal(c.Request, &r); err != nil {
		return nil, fmt.Errorf("the request of a call: %w", err)
	}
	if t.f.gateway == nil {
		return nil, errors.New("payments are recorded by hand, and there is no gateway to ask")
	}
	if r.Kind == pay.Authorise && !t.unsaid {
		withdrawn, err := t.request(ctx, c, &r)
		if err != nil {
			return nil, err
		}
		if withdrawn != "" {
			return jsonx.Marshal(&pay.Result{Status: pay.Withdrawn, Code: withdrawn})
		}
	}
	return t.pay(ctx, c, &r)
}

func answerOf(r *order.RecordPayment) ([]byte, error) {
	return jsonx.Marshal(&pay.Result{Status: r.Status, Payment: r.Payment, Code: r.Code})
}

// request has it be a fact that an authorisation is asked for, before it is: whoever hears of it has the answer, and undoes it where it is
// not wanted any more. It says why it is not to be asked for, or nothing.
func (t *fulfiller) request(ctx context.Context, c *millrace.CallRequest, r *pay.Request) (withdrawn string, err error) {
	receipt, err := t.n.offer(ctx, millrace.Command{
		ID: millrace.StepID(c.Process, c.Stream, order.RequestStep(c.Name)), Stream: c.Stream, CorrelationID: c.CorrelationID,
		Source: "process " + c.Process, Body: &order.RequestPayment{Name: c.Name, Amount: r.Amount},
	})
	if err != nil {
		return "", err
	}
	switch out, err := receipt.Wait(ctx); {
	case err != nil:
		return "", err
	case out.Refusal != nil:
		return out.Refusal.Code, nil
	case out.Status != millrace.StatusDecided:
		return pay.CodeDead, nil
	}
	return "", nil
}

// pay asks the gateway, and records its answer.
func (t *fulfiller) pay(ctx context.Context, c *millrace.CallRequest, r *pay.Request) ([]byte, error) {
	res, err := t.f.gateway.Do(ctx, c.ID, r)
	if err != nil {
		return nil, err
	}
	body := &order.RecordPayment{Name: c.Name, Kind: r.Kind, Status: res.Status, Payment: res.Payment, Amount: r.Amount, Code: res.Code}
	if body.Payment == "" {
		body.Payment = r.Payment
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	if err := t.n.keepFact(ctx, c, c.Stream, body); err != nil {
		return nil, err
	}
	return answerOf(body)
}
