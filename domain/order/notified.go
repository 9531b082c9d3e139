package order

import (
	"fmt"
	"slices"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/notice"
)

// What a customer was told is a fact, as everything is that was done in the world: documents follow from facts and can be
// lost with the newest of them, and then nobody must be told again.

// NotificationStream is the stream of what was told about an order.
func NotificationStream(orderID string) millrace.Stream {
	return millrace.NewStream(CategoryNotification, orderID)
}

// The command that says since when customers are told, which there is one of in a store: whoever comes second finds the
// first one by its id.
const (
	NotificationsBegunID     = millrace.StepPrefix + "notifications/begun"
	NotificationsBegunStream = millrace.Stream(CategoryNotification + "-since")
)

// BeginNotifications says that customers are told what happens from a time on.
type BeginNotifications struct {
	Since time.Time `json:"since"`
}

// RecordNotification says what became of a notification, for good. The command's id is that of the call.
type RecordNotification struct {
	Name   string `json:"name"` // placed/email
	Status string `json:"status"`
	Detail string `json:"detail,omitempty"`
}

// Validate checks the form.
func (c *RecordNotification) Validate() []millrace.FieldError {
	var f faults
	f.addIf("/name", idFault(c.Name, millrace.MaxStepName, true))
	if !slices.Contains([]string{notice.Sent, notice.Rejected, notice.Withdrawn}, c.Status) {
		f.add("/status", "must be sent, rejected or cancelled")
	}
	f.text("/detail", c.Detail, MaxReason, false)
	return f
}

// NotificationsBegun begins the telling.
type NotificationsBegun struct {
	At    time.Time `json:"at"`
	Since time.Time `json:"since"`
}

// NotificationRecorded is the end of a notification.
type NotificationRecorded struct {
	At     time.Time `json:"at"`
	Name   string    `json:"name"`
	Status string    `json:"status"`
	Detail string    `json:"detail,omitempty"`
}

// Notified is the state of what was told about an order. It is never changed.
type Notified struct {
	Since time.Time `json:"since,omitzero"`
	Names []string  `json:"names,omitempty"` // of those that have an end
}

func decideNotified(n *Notified, command any, at time.Time) ([]any, *millrace.Refusal) {
	switch c := command.(type) {
	case *BeginNotifications:
		if !n.Since.IsZero() {
			return nil, nil
		}
		return []any{&NotificationsBegun{At: at.UTC(), Since: c.Since.UTC()}}, nil
	case *RecordNotification:
		if slices.Contains(n.Names, c.Name) {
			return nil, nil
		}
		return []any{&NotificationRecorded{At: at.UTC(), Name: c.Name, Status: c.Status, Detail: c.Detail}}, nil
	}
	panic(fmt.Sprintf("order: command %T is not declared", command))
}

func evolveNotified(n *Notified, event any) *Notified {
	switch e := event.(type) {
	case *NotificationsBegun:
		return &Notified{Since: e.Since, Names: n.Names}
	case *NotificationRecorded:
		return &Notified{Since: n.Since, Names: append(slices.Clip(n.Names), e.Name)}
	}
	panic(fmt.Sprintf("order: event %T is not declared", event))
}
