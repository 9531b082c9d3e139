package order

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/money"
	"github.com/millrace-io/millrace/internal/notice"
)

// ProcessNotifications is the name of the process that tells customers about their orders.
const ProcessNotifications = "notifications"

const (
	// maxNoticeAge is how long before it was accepted an order may have been placed for its customer to be told: what came
	// by a queue that stood still for a night is news still, what an import brings is not.
	maxNoticeAge = 24 * time.Hour
	// maxNoticeParcels and maxNoticeRefunds bound the notices of one order: with the other kinds, by all channels, they stay
	// below [millrace.MaxCalls].
	maxNoticeParcels = 50
	maxNoticeRefunds = 25
)

// NotificationOptions say by which ways customers are told, and from when on.
type NotificationOptions struct {
	Channels []notice.Channel
	// Since is when telling began: what happened before is nobody's news any more.
	Since time.Time
}

// Notifications is the process that tells customers about their orders: a call for each kind and channel, which is due when
// the event comes, by the channels that there are at that time.
func Notifications(o NotificationOptions) millrace.Process[*Told] {
	return millrace.Process[*Told]{
		Name: ProcessNotifications, Category: CategoryOrder,
		Initial: func(s millrace.Stream) *Told { return &Told{ID: s.ID()} },
		Evolve:  func(t *Told, in *millrace.Input) *Told { return t.evolve(&o, in) },
		React:   (*Told).react,
	}
}

// Told is what the process knows of an order, and what is to be told still. It is never changed.
type Told struct {
	ID         string         `json:"id"`
	Silent     bool           `json:"silent,omitzero"` // imported, or placed long ago: nobody is told anything
	CustomerID string         `json:"customer_id,omitempty"`
	Email      string         `json:"email,omitempty"`
	Language   string         `json:"language,omitempty"`
	Currency   money.Currency `json:"currency,omitzero"`
	Total      money.Amount   `json:"total,omitzero"`
	Lines      []notice.Line  `json:"lines,omitempty"`
	Paid       bool           `json:"paid,omitzero"`
	Refunds    int            `json:"refunds,omitzero"` // how often goods came back
	Over       bool           `json:"over,omitzero"`    // nothing more is to come
	Due        []Due          `json:"due,omitempty"`
}

// Due is a notice that is not sent by some channels.
type Due struct {
	Name     string           `json:"name"` // placed, shipped-2
	Channels []notice.Channel `json:"channels"`
	Notice   notice.Notice    `json:"notice"`
}

func (t *Told) evolve(o *NotificationOptions, in *millrace.Input) *Told {
	n := *t
	switch {
	case in.Call != "":
		n.settle(func(due *Due, c notice.Channel) bool { return callName(due.Name, c) == in.Call })
	case in.Event != nil:
		name, about := n.hear(in.Event)
		if about.Kind != "" && !n.Silent && !in.At.Before(o.Since) {
			n.tell(o, name, in.At, about)
		}
	}
	// What nobody sends by any more is given up for good, so that it does not come late when somebody does again.
	n.settle(func(_ *Due, c notice.Channel) bool { return !slices.Contains(o.Channels, c) })
	return &n
}

// hear takes an event in, and gives the notice that is about it; one without a kind where nobody is to be told.
func (t *Told) hear(event any) (name string, about notice.Notice) {
	switch e := event.(type) {
	case *OrderPlaced:
		t.Silent = e.Channel == ChannelImport || e.At.Sub(e.PlacedAt) > maxNoticeAge
		t.CustomerID, t.Email, t.Language, t.Currency = e.CustomerID, e.Email, e.Language, e.Currency
		t.Total, t.Lines = e.Total, noticeLines(e.Lines)
		about = t.whole(notice.Placed)
	case *OrderLinesChanged:
		t.Total, t.Lines = e.Total, noticeLines(e.Lines)
	case *OrderConfirmed:
		about = t.whole(notice.Confirmed)
	case *OrderPaid:
		t.Paid = true
	case *OrderShipped:
		if e.Shipment > maxNoticeParcels {
			return "", about
		}
		about = t.part(notice.Shipped, e.Lines)
		about.Parcel = &notice.Parcel{Number: e.Shipment, Last: e.Whole, Carrier: e.Carrier, TrackingNumber: e.TrackingNumber}
		return numbered(notice.Shipped, e.Shipment), about
	case *OrderDelivered:
		about = t.whole(notice.Delivered)
	case *OrderCompleted:
		t.Over = true
	case *OrderCancelled:
		t.Over = true
		about = t.whole(notice.Cancelled)
		about.Reason, about.Refund = e.Reason, e.Refund
	case *OrderReturned:
		t.Refunds++
		t.Over = t.Over || e.Whole
		// Goods that were never paid for, or cost nothing, come back without a refund.
		if !t.Paid || e.Refund.Minor == 0 || t.Refunds > maxNoticeRefunds {
			return "", about
		}
		about = t.part(notice.Refunded, e.Lines)
		about.Reason, about.Refund = e.Reason, e.Refund
		return numbered(notice.Refunded, t.Refunds), about
	}
	return string(about.Kind), about
}

func numbered(k notice.Kind, n int) string { return string(k) + "-" + strconv.Itoa(n) }

// callName names the call of a notice by a channel: shipped-2/email.
func callName(due string, c notice.Channel) string { return due + "/" + string(c) }

// tell has a notice be sent by every channel that it can be sent by.
func (t *Told) tell(o *NotificationOptions, name string, at time.Time, about notice.Notice) {
	about.At = at.UTC()
	d := Due{Name: name, Notice: about}
	for _, c := range o.Channels {
		if c != notice.Email || t.Email != "" {
			d.Channels = append(d.Channels, c)
		}
	}
	t.Due = append(slices.Clip(t.Due), d)
}

// settle takes what is settled from what is due. The state before stays as it was.
func (t *Told) settle(settled func(*Due, notice.Channel) bool) {
	var left []Due
	for i := range t.Due {
		d := t.Due[i]
		var channels []notice.Channel
		for _, c := range d.Channels {
			if !settled(&d, c) {
				channels = append(channels, c)
			}
		}
		if d.Channels = channels; len(channels) > 0 {
			left = append(left, d)
		}
	}
	t.Due = left
}

func (t *Told) about(k notice.Kind) notice.Notice {
	return notice.Notice{
		Kind: k, OrderID: t.ID, CustomerID: t.CustomerID, Email: t.Email, Language: t.Language, Currency: t.Currency, Total: t.Total,
	}
}

// whole is a notice about all of the order.
func (t *Told) whole(k notice.Kind) notice.Notice {
	n := t.about(k)
	n.Lines = t.Lines[:min(len(t.Lines), notice.MaxLines)]
	n.More = len(t.Lines) - len(n.Lines)
	return n
}

// part is a notice about quantities of some lines.
func (t *Told) part(k notice.Kind, lines []LineQuantity) notice.Notice {
	n := t.about(k)
	for _, l := range lines[:min(len(lines), notice.MaxLines)] {
		one := notice.Line{Line: l.Line, Quantity: l.Quantity}
		if i := l.Line - 1; i >= 0 && i < len(t.Lines) {
			one.SKU, one.Description = t.Lines[i].SKU, t.Lines[i].Description
		}
		n.Lines = append(n.Lines, one)
	}
	n.More = len(lines) - len(n.Lines)
	return n
}

func noticeLines(lines []OrderedLine) []notice.Line {
	out := make([]notice.Line, len(lines))
	for i := range lines {
		l := &lines[i]
		out[i] = notice.Line{
			Line: l.Line, SKU: l.SKU, Description: notice.Short(l.Description), Quantity: l.Quantity,
			UnitPrice: new(l.UnitPrice), Total: new(l.LineTotal),
		}
	}
	return out
}

func (t *Told) react() millrace.Reaction {
	r := millrace.Reaction{State: "told", Key: t.CustomerID, Done: t.Over && len(t.Due) == 0}
	for i := range t.Due {
		for _, c := range t.Due[i].Channels {
			n := t.Due[i].Notice
			n.Channel = c
			r.Calls = append(r.Calls, millrace.Call{Name: callName(t.Due[i].Name, c), Request: n})
		}
	}
	switch {
	case len(r.Calls) > 0:
		r.State, r.Waits = "telling", fmt.Sprintf("%d notifications", len(r.Calls))
	case t.Silent:
		r.State = "silent"
	}
	return r
}
