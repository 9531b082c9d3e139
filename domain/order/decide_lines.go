package order

import (
	"strconv"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/money"
)

// priceLines computes the line totals and their sum, or refuses and names every line that breaks a rule.
func priceLines(requests []LineRequest, c money.Currency) ([]OrderedLine, int64, money.Amount, *millrace.Refusal) {
	if len(requests) < 1 || len(requests) > MaxLines { // Validate has seen to it, where it was asked
		return nil, 0, money.Amount{}, rule(CodeLineInvalid, "the number of lines is wrong",
			millrace.FieldError{Pointer: "/lines", Detail: "must have 1 to " + strconv.Itoa(MaxLines) + " elements"})
	}
	lines := make([]OrderedLine, len(requests))
	var units int64
	total := money.Amount{Currency: c}
	var refusal *millrace.Refusal
	for i := range requests {
		r, l := &requests[i], &lines[i]
		amount, name, detail := l.fill(r, i+1, c)
		if detail != "" {
			if refusal == nil {
				refusal = rule(CodeLineInvalid, "line "+strconv.Itoa(i+1)+": "+name+" "+detail)
			}
			if refusal.Errors = append(refusal.Errors, millrace.FieldError{Pointer: member(i, name), Detail: detail}); len(refusal.Errors) == maxFaults {
				break
			}
			continue
		}
		units += l.Quantity
		total.Minor += amount.Minor // MaxLines times MaxTotal fits
	}
	switch {
	case refusal != nil:
		return nil, 0, money.Amount{}, refusal
	case total.Minor > MaxTotal:
		return nil, 0, money.Amount{}, rule(CodeTotalTooLarge, "the total is too large",
			millrace.FieldError{Pointer: "/lines", Detail: "must add up to less"})
	}
	return lines, units, total, nil
}

// fill makes a line of what was asked for, or names the member at fault.
func (l *OrderedLine) fill(r *LineRequest, n int, c money.Currency) (amount money.Amount, name, detail string) {
	if r.Quantity == nil || *r.Quantity < 1 {
		return amount, "quantity", "must be at least 1"
	}
	price, err := money.ParsePrice(r.UnitPrice)
	if err != nil {
		return amount, "unit_price", err.Error()
	}
	if price < 0 {
		return amount, "unit_price", "must not be below zero"
	}
	if amount, err = price.Times(*r.Quantity, c); err != nil || amount.Minor > MaxTotal {
		return amount, "unit_price", "is too large for the quantity"
	}
	*l = OrderedLine{
		Line: n, SKU: r.SKU, Description: r.Description, Quantity: *r.Quantity, UnitPrice: price, LineTotal: amount.Decimal(),
	}
	return amount, "", ""
}

// share is what quantities of lines were sold for that come back or are given up.
func (o *Order) share(lines []LineQuantity) money.Amount {
	share := money.Amount{Currency: o.Currency}
	for _, q := range lines {
		share.Minor += o.Lines[q.Line-1].refund(q.Quantity) // at most the total
	}
	return share
}

// refund is what the next pieces that come back or are given up were sold for. It is the difference of two rounded shares, so
// that all refunds of a line add up to its total.
func (l *Line) refund(quantity int64) int64 {
	total := money.Amount{Minor: l.LineTotal.Minor}
	gone := l.Dropped + l.Returned
	after, _ := total.Share(gone+quantity, l.Quantity) // a share of what fits fits
	before, _ := total.Share(gone, l.Quantity)
	return after.Minor - before.Minor
}

// everything is all that is open.
func (o *Order) everything(open func(*Line) int64) []LineQuantity {
	out := make([]LineQuantity, 0, len(o.Lines))
	for i := range o.Lines {
		if q := open(&o.Lines[i]); q > 0 {
			out = append(out, LineQuantity{i + 1, q})
		}
	}
	return out
}

// pick turns requested quantities (none: everything that is open) into quantities of lines, and says whether nothing is
// open after them. A request for more than is open is a conflict with the given code.
func (o *Order) pick(requests []QuantityRequest, open func(*Line) int64, code, excess string) ([]LineQuantity, bool, *millrace.Refusal) {
	if len(requests) == 0 {
		return o.everything(open), true, nil
	}
	var left int64
	for i := range o.Lines {
		left += open(&o.Lines[i])
	}
	out := make([]LineQuantity, 0, len(requests))
	var refusal *millrace.Refusal
	refuse := func(i int, code, name, detail string) {
		if refusal == nil {
			refusal = rule(code, "line "+strconv.Itoa(i+1)+" of the request: "+name+" "+detail)
		}
		refusal.Errors = append(refusal.Errors, millrace.FieldError{Pointer: member(i, name), Detail: detail})
	}
	seen := make(map[int]bool, len(requests))
	for i := range requests {
		if refusal != nil && len(refusal.Errors) == maxFaults {
			break
		}
		r := &requests[i]
		switch {
		case r.Line < 1 || r.Line > len(o.Lines) || seen[r.Line]:
			refuse(i, CodeLineUnknown, "line", "must be the number of a line of the order, once")
			continue
		case r.Quantity == nil || *r.Quantity < 1:
			refuse(i, CodeLineInvalid, "quantity", "must be at least 1")
			continue
		case *r.Quantity > open(&o.Lines[r.Line-1]):
			refuse(i, code, "quantity", "is "+excess)
			continue
		}
		seen[r.Line] = true
		left -= *r.Quantity
		out = append(out, LineQuantity{r.Line, *r.Quantity})
	}
	if refusal != nil {
		if refusal.Code == code { // it depends on the state
			refusal.Kind = millrace.RefusedConflict
		}
		return nil, false, refusal
	}
	return out, left == 0, nil
}
