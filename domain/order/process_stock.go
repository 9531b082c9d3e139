package order

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-io/millrace"
)

// What is written here holds to one rule: a step's name says what its command is, in whatever order the process hears of
// things. A process that was killed may have lost its newest documents, and hears again what happened since, events first and
// outcomes later. A name that then stood for something else would be refused, and a reservation that is not made again would
// stay for ever. So reservations are numbered when the events come that they follow from, which come in one order; what is
// given up is released whether or not it is known to be there; and parcels leave the reservations in the order of both.

// The names of steps on stock, before their numbers.
const (
	stepConfirm = "confirm"
	stepPack    = "pack"
	stepReserve = "reserve"
	stepRelease = "release"
	stepCommit  = "commit"
	stepRestock = "restock"
)

// change gives a reservation to be changed, in a list that the state before does not share.
func (it *good) change(k int) *hold {
	it.holds = slices.Clone(it.holds)
	return &it.holds[k]
}

// held is how much of it is reserved and has not been shipped.
func (it *good) held() (sum int64) {
	for i := range it.holds {
		if h := &it.holds[i]; h.op == opHeld || h.op == opCommit || h.op == opRelease {
			sum += h.open
		}
	}
	for _, d := range it.debts {
		sum -= d.quantity
	}
	return sum
}

// outlook is how the stock of an order stands. It is looked at once for each input: an order may have thousands of SKUs.
type outlook struct {
	queued, asked, short, leaving int  // reservations, by what is under way with them
	missing                       int  // SKUs that are not reserved as they are to be
	open                          int  // SKUs of which anything is still to be done
	some                          bool // there is something that can be shipped
}

func (f *Fulfilling) look() (l outlook) {
	for i := range f.Goods {
		it := &f.Goods[i]
		for k := range it.holds {
			switch it.holds[k].op {
			case opQueued:
				l.queued++
			case opReserve:
				l.asked++
			case opShort:
				l.short++
			case opCommit, opRelease:
				l.leaving++
			}
		}
		if len(it.holds)+len(it.debts)+len(it.cuts) > 0 {
			l.open++
		}
		if it.left > 0 {
			held := it.held()
			l.some = l.some || held > 0
			if held < it.left {
				l.missing++
			}
		}
	}
	return l
}

// asking says whether any stock is asked for, or is to be.
func (l *outlook) asking() bool { return l.queued+l.asked > 0 }

// whole says whether all that is to leave is reserved.
func (l *outlook) whole() bool { return l.missing == 0 }

// underWay counts the commands on stock whose outcomes are awaited, restocks apart.
func (l *outlook) underWay() int { return l.asked + l.leaving }

// ready says whether there is stock to go on with: all of it, or, of an order that is sent in parts, some.
func (f *Fulfilling) ready(l *outlook) bool {
	return l.whole() || (f.Backorder == BackorderSplit || f.Parcels > 0) && !l.asking() && l.some
}

// shippable is what is reserved of what is to leave, by lines.
func (f *Fulfilling) shippable() []LineQuantity {
	held := make([]int64, len(f.Goods))
	for i := range f.Goods {
		held[i] = f.Goods[i].held()
	}
	var lines []LineQuantity
	for i := range f.Lines {
		l := &f.Lines[i]
		if quantity := min(l.left, held[l.good]); quantity > 0 {
			lines = append(lines, LineQuantity{i + 1, quantity})
			held[l.good] -= quantity
		}
	}
	return lines
}

// want has more of a good be reserved.
func (f *Fulfilling) want(it *good, quantity int64) {
	it.left += quantity
	it.holds = slices.Clone(it.holds)
	for quantity > 0 {
		if f.Reserved >= maxReserved {
			f.fail(ReasonReservationFailed)
			return
		}
		f.Reserved++
		h := hold{n: f.Reserved, op: opQueued, open: min(quantity, MaxQuantity)}
		it.holds = append(it.holds, h)
		quantity -= h.open
	}
}

// unwant has less of a good be reserved.
func (f *Fulfilling) unwant(it *good, version uint64, quantity int64) {
	it.left -= quantity
	f.Reserved++
	it.cuts = append(slices.Clip(it.cuts), cut{version, f.Reserved, quantity})
}

// ship takes in that a parcel has left.
func (f *Fulfilling) ship(e *OrderShipped) {
	f.Parcels = e.Shipment
	for i, quantity := range f.perGood(e.Lines) {
		if quantity > 0 {
			it := &f.Goods[i]
			it.left -= quantity
			it.debts = append(slices.Clip(it.debts), part{e.Shipment, quantity})
		}
	}
}

// drop takes in that something will never be shipped.
func (f *Fulfilling) drop(version uint64, lines []LineQuantity) {
	for i, quantity := range f.perGood(lines) {
		if quantity > 0 {
			f.unwant(&f.Goods[i], version, quantity)
		}
	}
}

// perGood takes quantities from lines that are open and adds them up by goods.
func (f *Fulfilling) perGood(lines []LineQuantity) []int64 {
	sums := make([]int64, len(f.Goods))
	f.Lines = slices.Clone(f.Lines)
	for _, q := range lines {
		if i := q.Line - 1; i >= 0 && i < len(f.Lines) {
			f.Lines[i].left -= q.Quantity
			sums[f.Lines[i].good] += q.Quantity
		}
	}
	return sums
}

// takeIn has goods be received that came back.
func (f *Fulfilling) takeIn(lines []LineQuantity) {
	back := make([]int64, len(f.Goods))
	for _, q := range lines {
		if i := q.Line - 1; i >= 0 && i < len(f.Lines) {
			back[f.Lines[i].good] += q.Quantity
		}
	}
	f.Restocks = slices.Clone(f.Restocks)
	for i, quantity := range back {
		for quantity > 0 {
			if f.Restocked >= maxRestocked {
				f.stick("goods of return " + strconv.Itoa(f.Returns) + " are to be received by hand")
				return
			}
			f.Restocked++
			one := min(quantity, MaxQuantity)
			f.Restocks = append(f.Restocks, restock{f.Restocked, f.Returns, i, one})
			quantity -= one
		}
	}
}

// planStock says what is to be done on stock now, as far as there is room.
func (f *Fulfilling) planStock(o *FulfilmentOptions, at time.Time) outlook {
	l := f.look()
	room := maxUnderWay - l.underWay()
	for i := range f.Goods {
		if room <= 0 {
			break
		}
		it := &f.Goods[i]
		it.planCommits(&room)
		f.planCuts(it, &room)
		for k := 0; k < len(it.holds) && room > 0 && !f.failing(); k++ {
			if it.holds[k].op == opQueued {
				it.change(k).op = opReserve
				room--
			}
		}
	}
	switch l = f.look(); {
	case l.short > 0:
		if f.ShortAt.IsZero() {
			f.ShortAt = at
		}
		if f.HeldAt = (time.Time{}); f.RetryAt.IsZero() {
			f.RetryAt = at.Add(min(o.BackorderRetry<<min(f.Retries, 20), maxBackorderRetry))
		}
	case !l.asking():
		f.ShortAt, f.RetryAt, f.Retries = time.Time{}, time.Time{}, 0
	}
	return l
}

// planCommits has what was shipped leave its reservations, the oldest first. Those whose outcomes are not known yet are
// awaited.
func (it *good) planCommits(room *int) {
	for len(it.debts) > 0 && *room > 0 {
		k := slices.IndexFunc(it.holds, func(h hold) bool { return h.op != opShort && h.open > 0 })
		if k < 0 || it.holds[k].op != opHeld {
			return
		}
		h, d := it.change(k), it.debts[0]
		h.op, h.part, h.mark = opCommit, min(d.quantity, h.open), uint64(d.parcel) //nolint:gosec // a count
		h.open -= h.part
		if d.quantity -= h.part; d.quantity > 0 {
			it.debts = append([]part{d}, it.debts[1:]...)
		} else {
			it.debts = it.debts[1:]
		}
		*room--
	}
}

// planCuts has what is not wanted any more be given up, the newest first.
func (f *Fulfilling) planCuts(it *good, room *int) {
	for len(it.cuts) > 0 && len(it.debts) == 0 && *room > 0 {
		c := it.cuts[0]
		k := len(it.holds) - 1
		for k >= 0 && it.holds[k].open == 0 {
			k--
		}
		if k >= 0 {
			if op := it.holds[k].op; op == opReserve || op == opCommit || op == opRelease {
				return
			}
			h := it.change(k)
			taken := min(c.quantity, h.open)
			left := h.open - taken
			if c.quantity -= taken; f.neverHeld(h) {
				it.holds = slices.Delete(it.holds, k, k+1)
				it.next(c)
				continue
			}
			*room--
			if h.op == opHeld {
				h.op, h.part, h.open, h.mark = opRelease, taken, left, c.version
				if left == 0 {
					h.mark = 0
				}
			} else { // it is not known to be there, but may have been asked for before the newest documents were lost
				h.op, h.part, h.open, h.mark = opRelease, h.open, 0, 0
				if left > 0 {
					it.holds = slices.Insert(it.holds, k+1, hold{n: c.n, op: opQueued, open: left})
				}
			}
		} else {
			c.quantity = 0 // there was no room for a reservation
		}
		it.next(c)
	}
}

// next puts back what is left of the first cut, or goes on to the one behind it.
func (it *good) next(c cut) {
	it.cuts = it.cuts[1:]
	if c.quantity > 0 {
		it.cuts = append([]cut{c}, it.cuts...)
	}
}

// neverHeld says of a reservation that the order is cancelled for that there never was any: what is tried once was refused.
func (f *Fulfilling) neverHeld(h *hold) bool {
	return f.Status == StatusCancelled && h.op == opShort && h.tries == 0 && f.Backorder == ""
}

// retry has what was short be asked for again.
func (f *Fulfilling) retry() {
	f.RetryAt = time.Time{}
	f.Retries++
	for i := range f.Goods {
		it := &f.Goods[i]
		for k := range it.holds {
			if it.holds[k].op != opShort {
				continue
			}
			if f.Retried >= maxRetried {
				f.giveUp()
				return
			}
			f.Retried++
			h := it.change(k)
			h.op = opQueued
			h.tries++
		}
	}
}

// settle takes in the outcome of a step.
func (f *Fulfilling) settle(step string, out *millrace.Outcome) {
	refused := ""
	switch {
	case out.Refusal != nil:
		refused = out.Refusal.Code
	case out.Failure != nil:
		refused = "dead letter, " + out.Failure.Reason
	}
	kind, rest, _ := strings.Cut(step, "-")
	number, _, _ := strings.Cut(rest, "-")
	n, err := strconv.Atoi(number)
	switch {
	case err == nil && kind == stepRestock:
		k := slices.IndexFunc(f.Restocks, func(r restock) bool { return r.n == n })
		if k < 0 {
			return
		}
		if refused != "" {
			f.stick(step + " was refused: " + refused)
		}
		if f.Restocks = slices.Delete(slices.Clone(f.Restocks), k, k+1); len(f.Restocks) == 0 {
			f.Restocks = nil
		}
	case err == nil && (kind == stepReserve || kind == stepRelease || kind == stepCommit):
		for i := range f.Goods {
			it := &f.Goods[i]
			k := slices.IndexFunc(it.holds, func(h hold) bool { return h.n == n && h.step() == step })
			if k >= 0 {
				f.settleHold(it, k, step, refused, out.Time)
				return
			}
		}
	default:
		if f.Settled, f.Refused = step, refused; refused == "" {
			f.ahead(kind)
		}
	}
}

// ahead takes in what a step on the order itself has led to before its event comes, so that the next one is taken at once: an
// order is confirmed, packed and shipped in one commit.
func (f *Fulfilling) ahead(step string) {
	switch {
	case step == stepConfirm && f.Status == StatusPlaced:
		f.Status = StatusConfirmed
	case step == stepPack && f.Status == StatusConfirmed:
		f.Status = StatusPacked
	}
}

// settleHold takes in what came of what was under way with a reservation.
func (f *Fulfilling) settleHold(it *good, k int, step, refused string, at time.Time) {
	h := it.change(k)
	op := h.op
	h.op, h.part, h.mark = opHeld, 0, 0
	switch {
	case op == opReserve && refused == "":
		if f.HeldAt.IsZero() {
			f.HeldAt = at
		}
	case op == opReserve && refused == CodeStockInsufficient:
		h.op = opShort
		if (f.Backorder == "" || f.Backorder == BackorderReject) && f.Parcels == 0 {
			f.fail(ReasonOutOfStock)
		}
	case op == opReserve:
		h.open = 0
		if f.fail(ReasonReservationFailed); f.Parcels > 0 {
			f.stick(step + " was refused: " + refused)
		}
	case refused == "":
	case op == opRelease && refused == CodeReservationUnknown:
		h.open = 0 // it never was there, or somebody else gave it up, which is as well
	default:
		h.open = 0
		f.stick(step + " was refused: " + refused)
	}
	if h.open == 0 {
		if it.holds = slices.Delete(it.holds, k, k+1); len(it.holds) == 0 {
			it.holds = nil
		}
	}
}

// step names what is under way with a reservation.
func (h *hold) step() string {
	number := "-" + strconv.Itoa(h.n)
	switch {
	case h.op == opReserve && h.tries > 0:
		return stepReserve + number + "-" + strconv.Itoa(h.tries+1)
	case h.op == opReserve:
		return stepReserve + number
	case h.op == opCommit:
		return stepCommit + number + "-" + strconv.FormatUint(h.mark, 10)
	case h.op == opRelease && h.mark > 0:
		return stepRelease + number + "-" + strconv.FormatUint(h.mark, 10)
	case h.op == opRelease:
		return stepRelease + number
	}
	return ""
}

// command is what is under way with a reservation; nil where nothing is.
func (h *hold) command(orderID string) any {
	id := ReservationOf(orderID, h.n)
	switch {
	case h.op == opReserve:
		return &ReserveStock{Reservation: id, Quantity: new(h.open)}
	case h.op == opCommit:
		return &CommitStock{Reservation: id, Quantity: new(h.part)}
	case h.op == opRelease && h.mark > 0:
		return &ReleaseStock{Reservation: id, Quantity: new(h.part)}
	case h.op == opRelease:
		return &ReleaseStock{Reservation: id}
	}
	return nil
}

// ReservationOf is the id of an order's reservation by its number, as the process gives them.
func ReservationOf(orderID string, n int) string {
	return string(millrace.NewStream(CategoryOrder, orderID)) + "/" + strconv.Itoa(n)
}

// same says whether reservations are those that they were: see change.
func (it *good) same(before *good) bool {
	return len(it.holds) == len(before.holds) && (len(it.holds) == 0 || &it.holds[0] == &before.holds[0])
}

// stockSteps are the commands on stock whose outcomes are not known, but for those of SKUs with which nothing began since the
// last input: an order may have thousands.
func (f *Fulfilling) stockSteps() []millrace.Step {
	var steps []millrace.Step
	for i := range f.Goods {
		it := &f.Goods[i]
		if i < len(f.before) && it.same(&f.before[i]) {
			continue
		}
		for k := range it.holds {
			if c := it.holds[k].command(f.ID); c != nil {
				steps = append(steps, millrace.Step{Name: it.holds[k].step(), Stream: millrace.NewStream(CategoryStock, it.sku), Command: c})
			}
		}
	}
	for _, r := range f.Restocks[:min(len(f.Restocks), maxUnderWay)] {
		steps = append(steps, millrace.Step{
			Name: stepRestock + "-" + strconv.Itoa(r.n), Stream: millrace.NewStream(CategoryStock, f.Goods[r.good].sku),
			Command: &ReceiveStock{Quantity: new(r.quantity), Reference: ReservationOf(f.ID, r.ret)},
		})
	}
	return steps
}
