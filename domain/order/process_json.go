package order

import (
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/money"
)

// stateSize is a state that nearly all orders of a few lines fit into.
const stateSize = 512

// AppendJSON appends the state as JSON. It is written with each commit that an order is in.
func (f *Fulfilling) AppendJSON(dst []byte) []byte {
	o := object{jsonx.Writer{Dst: sized(dst, stateSize)}}
	o.Text(`{"id":`, f.ID)
	o.UintIf(`,"v":`, f.Version)
	o.TextIf(`,"st":`, string(f.Status))
	o.TextIf(`,"cu":`, f.Customer)
	o.TextIf(`,"bo":`, string(f.Backorder))
	if f.Total != (money.Amount{}) {
		o.amount(`,"to":`, f.Total)
	}
	o.UintIf(`,"lv":`, f.LinesVersion)
	o.textIf(`,"l":`, len(f.Lines), f.Lines)
	o.textIf(`,"g":`, len(f.Goods), f.Goods)
	o.textIf(`,"rs":`, len(f.Restocks), f.Restocks)
	o.IntIf(`,"n":`, int64(f.Reserved))
	o.IntIf(`,"rn":`, int64(f.Restocked))
	o.IntIf(`,"pa":`, int64(f.Parcels))
	o.IntIf(`,"re":`, int64(f.Returns))
	o.BoolIf(`,"de":`, f.Delivered)
	o.BoolIf(`,"cl":`, f.Closed)
	o.TextIf(`,"f":`, f.Fail)
	o.BoolIf(`,"gu":`, f.GaveUp)
	o.TimeIf(`,"ha":`, f.HeldAt)
	o.TimeIf(`,"sa":`, f.ShortAt)
	o.TimeIf(`,"ra":`, f.RetryAt)
	o.IntIf(`,"rt":`, int64(f.Retries))
	o.IntIf(`,"rr":`, int64(f.Retried))
	o.TextIf(`,"s":`, f.Settled)
	o.TextIf(`,"sr":`, f.Refused)
	o.TextIf(`,"x":`, f.Stuck)
	o.paying(`,"p":`, &f.Pay)
	return o.End()
}

// paying appends how far the payment has come, unless it has not begun.
func (o *object) paying(literal string, p *paying) {
	o.Name(literal)
	start := len(o.Dst)
	o.TextIf(`,"q":`, p.Ask)
	o.IntIf(`,"m":`, p.Amount)
	o.TextIf(`,"k":`, p.Of)
	o.TimeIf(`,"w":`, p.Since)
	o.UintIf(`,"n":`, p.Number)
	o.authorisations(`,"h":[`, p.Standing)
	o.authorisations(`,"b":[`, p.Pending)
	o.TextIf(`,"i":`, p.Payment)
	o.IntIf(`,"t":`, p.Captured)
	o.IntIf(`,"g":`, p.Refunded)
	o.BoolIf(`,"p":`, p.Paid)
	o.BoolIf(`,"o":`, p.Other)
	o.BoolIf(`,"d":`, p.Declined)
	o.IntIf(`,"a":`, int64(p.Authorises))
	o.IntIf(`,"c":`, int64(p.Captures))
	o.IntIf(`,"r":`, int64(p.Refunds))
	o.IntIf(`,"f":`, int64(p.Failures))
	o.TimeIf(`,"z":`, p.AgainAt)
	o.IntIf(`,"e":`, p.Due)
	o.textIf(`,"l":`, len(p.Dues), p.Dues)
	o.IntIf(`,"u":`, int64(p.Numbered))
	if len(o.Dst) == start {
		o.Dst = o.Dst[:start-len(literal)]
		return
	}
	o.Dst[start] = '{'
	o.Dst = append(o.Dst, '}')
}

func (o *object) authorisations(literal string, as []authorisation) {
	for i := range as {
		o.Element(i, literal)
		o.authorisation(&as[i])
	}
	o.ArrayEnd(len(as))
}

func (o *object) authorisation(a *authorisation) {
	if a.Number == 0 {
		o.Int(`{"a":`, a.Amount)
	} else {
		o.Uint(`{"n":`, a.Number)
		o.Int(`,"a":`, a.Amount)
	}
	o.TextIf(`,"i":`, a.Payment)
	o.Dst = append(o.Dst, '}')
}

// textIf appends a list that is written as a text, unless it has no elements. Such texts are made without an error.
func (o *object) textIf(literal string, elements int, list interface{ MarshalText() ([]byte, error) }) {
	if elements == 0 {
		return
	}
	text, err := list.MarshalText()
	if err != nil {
		panic(err)
	}
	o.Dst = jsonx.AppendString(append(o.Dst, literal...), string(text))
}
