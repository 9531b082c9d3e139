package httpapi

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/id"
)

// Control pauses, resumes and drains what follows the feed, and the deciding. The wiring implements it: who is to stand still is a
// fact, made by commands of its own.
type Control interface {
	// Deciding is the name of the deciding, which is paused like a consumer.
	Deciding() string
	// Standing is how a consumer, or the deciding, is meant to be on this node.
	Standing(name string) Standing
	// Command gives c its stream, type and data, so that it does that to a consumer. c has its id, which may have come before: a
	// command that is known is to mean the same again. Errors: [ErrConsumerPaused], the store's.
	Command(ctx context.Context, c *millrace.Command, name string, do ConsumerAction, by, why string) error
	// Obeyed returns when this node does what the stream of the consumer says at a version, or when ctx ends.
	Obeyed(ctx context.Context, name string, version uint64)
}

// ErrConsumerPaused refuses to drain what stands still on the node that is asked, because it was started so.
var ErrConsumerPaused = errors.New("the consumer is paused on this node")

// ConsumerAction is what is done to a consumer.
type ConsumerAction string

// What can be done to a consumer.
const (
	ActionPause  ConsumerAction = "pause"
	ActionResume ConsumerAction = "resume"
	ActionDrain  ConsumerAction = "drain"
)

// Standing is how a consumer is meant to be.
type Standing struct {
	State string `json:"state"` // running, paused or draining
	// Since when, and who asked for it, and why; nothing where nobody ever did.
	Since time.Time `json:"since,omitzero"`
	By    string    `json:"by,omitempty"`
	Why   string    `json:"why,omitempty"`
}

// byWhom is the body of what is asked of a consumer.
type byWhom struct {
	By  string `json:"by,omitempty"`
	Why string `json:"why,omitempty"`
}

func (a *API) registerControl(consumers Consumers, control Control) {
	a.control = control
	for _, do := range []ConsumerAction{ActionPause, ActionResume, ActionDrain} {
		a.handle("/v1/consumers/{name}/"+string(do), methods{{"POST", func(x *exchange) { x.control(consumers, control, do) }}})
	}
}

// known says whether there is a consumer of a name, and which one it is in the store: none of the deciding.
func (a *API) known(consumers Consumers, name string) (consumer string, ok bool) {
	if a.control != nil && name == a.control.Deciding() {
		return "", true
	}
	consumer, ok = consumers.Names()[name]
	return consumer, ok
}

// decidingStatus is how the deciding is. What it is behind by are commands.
func (x *exchange) decidingStatus() consumerStatus {
	name, store := x.api.control.Deciding(), x.api.store
	return consumerStatus{
		Name: name, Standing: x.api.control.Standing(name), Gap: uint64(max(store.Backlog(), 0)), Cursor: store.Head().String(),
	}
}

// control has a consumer paused, resumed or drained, waits until it is decided, and answers how the consumer is then.
func (x *exchange) control(consumers Consumers, control Control, do ConsumerAction) {
	name := x.r.PathValue("name")
	consumer, ok := x.api.known(consumers, name)
	if !ok {
		x.fail(errNoConsumer())
		return
	}
	if p := x.controlCommand(control, name, do); p != nil {
		x.fail(p)
		return
	}
	wait := MaxCursorWait
	if x.prefs.waitSet {
		wait = x.prefs.wait
	}
	ctx, done := x.await(wait)
	if ctx == nil {
		x.fail(kindOverloaded.with("too many requests wait already"))
		return
	}
	defer done()
	receipt, err := x.api.accept(x.r.Context(), &x.cmd)
	if err != nil {
		x.failWith(err)
		return
	}
	o, err := receipt.Wait(ctx)
	switch {
	case err != nil || !o.Done():
		x.receipt(receipt) // it is kept all the same
		return
	case o.Status != millrace.StatusDecided:
		x.answered(receipt.Replayed)["Millrace-Cursor"] = []string{x.api.store.Cursor(&o).String()}
		x.fail(problemOfOutcome(&o))
		return
	}
	control.Obeyed(ctx, name, o.Version)
	st, err := x.consumerStatus(name, consumer)
	x.answered(receipt.Replayed)["Millrace-Cursor"] = []string{x.api.store.Cursor(&o).String()}
	x.sendValue(http.StatusOK, st, err)
}

// controlCommand reads the request into its command.
func (x *exchange) controlCommand(control Control, name string, do ConsumerAction) *problem {
	if _, p := x.query(); p != nil {
		return p
	}
	if p := x.commandHeaders(); p != nil {
		return p
	}
	var body byWhom
	if p := x.optional(&body); p != nil {
		return p
	}
	c := &x.cmd
	if c.ID == "" {
		c.ID = id.New()
	}
	err := control.Command(x.r.Context(), c, name, do, body.By, body.Why)
	if err == nil {
		c.Body, err = x.api.registry.DecodeCommand(c)
	}
	var form *millrace.FormError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &form):
		return problemOf(err)
	case errors.Is(err, ErrConsumerPaused):
		return &problem{kind: kindConflict, refusal: "consumer_paused", detail: "this server was started with the consumer paused: resume it, and then drain it"}
	}
	return x.api.problemOf(err)
}

func errNoConsumer() *problem { return kindNotFound.with("there is no consumer of that name") }

func (x *exchange) getConsumer(consumers Consumers) {
	if _, fault := x.query(); fault != nil {
		x.fail(fault)
		return
	}
	name := x.r.PathValue("name")
	consumer, ok := x.api.known(consumers, name)
	if !ok {
		x.fail(errNoConsumer())
		return
	}
	st, err := x.consumerStatus(name, consumer)
	x.sendValue(http.StatusOK, st, err)
}
