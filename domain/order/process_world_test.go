package order

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/money"
	"github.com/millrace-io/millrace/internal/payment"
)

// world is a shop that is no more than its rules: streams that are decided by the domain, a gateway, and the process run for each
// order as its manager runs it. Chance says in which order things come: outcomes late and in any order, answers lost and calls made
// again, timers, events that come again, and documents that are lost with the newest commits.
type world struct {
	t        TB
	r        *rand.Rand
	registry *millrace.Registry
	m        *millrace.ProcessManager
	o        FulfilmentOptions
	now      time.Time
	streams  map[millrace.Stream]*stream
	orders   []*managed
	audit    *Audit

	// The commands that were accepted: each stream decides its own in this order.
	accepted map[string]millrace.Command
	outcomes map[string]millrace.Outcome
	waiting  map[millrace.Stream][]string
	ids      int

	gateway map[string]gatewayAnswer
	faults  worldFaults
}

// worldFaults are protections that are taken away, to show that somebody would notice.
type worldFaults struct {
	command func(s millrace.Step) any         // what is sent in place of a command; nil for nothing
	always  func(kind payment.Kind) (ok bool) // what the gateway says
	fresh   payment.Kind                      // calls that are named anew each time
	unsaid  bool                              // authorisations are asked for, and nobody says so before
}

type gatewayAnswer struct {
	request payment.Request
	result  payment.Result
}

// managed is an order's instance and what is on its way to it.
type managed struct {
	w       *world
	name    millrace.Stream
	doc     *managedDoc
	saved   []*managedDoc // as it was after earlier commits
	arrived []arrivedOutcome
	asked   map[string]string // the ids of steps to their names
}

type arrivedOutcome struct {
	step    string
	outcome millrace.Outcome
}

// managedDoc is the document of an instance.
type managedDoc struct {
	state   []byte
	heard   int               // events
	steps   map[string]string // by name, to the id while the outcome is awaited
	calls   map[string]*managedCall
	timers  []millrace.Timer
	fired   []millrace.Timer
	now     millrace.Reaction
	applied int // inputs
}

type managedCall struct {
	request []byte
	done    bool
	dropped bool
}

func (d *managedDoc) clone() *managedDoc {
	n := *d
	n.state, n.steps, n.calls = bytes.Clone(d.state), maps.Clone(d.steps), map[string]*managedCall{}
	for name, c := range d.calls {
		n.calls[name] = new(*c)
	}
	n.timers, n.fired = slices.Clone(d.timers), slices.Clone(d.fired)
	return &n
}

func newWorld(t TB, seed uint64, o FulfilmentOptions) *world {
	t.Helper()
	m, err := Fulfilment(o).Manager()
	if err != nil {
		t.Fatal(err)
	}
	o.defaults()
	return &world{
		t: t, r: rand.New(rand.NewPCG(seed, 0)), registry: newRegistry(t), m: m, o: o, now: start, audit: new(Audit), //nolint:gosec // to be repeated
		streams: map[millrace.Stream]*stream{}, accepted: map[string]millrace.Command{}, outcomes: map[string]millrace.Outcome{},
		waiting: map[millrace.Stream][]string{}, gateway: map[string]gatewayAnswer{},
	}
}

func (w *world) stream(name millrace.Stream) *stream {
	s := w.streams[name]
	if s == nil {
		s = newStream(w.t, w.registry, name)
		w.streams[name] = s
	}
	return s
}

// send accepts a command. The same id is the same command, or somebody has named two things alike.
func (w *world) send(c millrace.Command) {
	if before, ok := w.accepted[c.ID]; ok {
		if before.Stream != c.Stream || before.Type != c.Type || !bytes.Equal(before.Data, c.Data) {
			w.t.Fatalf("%s was %s %s and is now %s %s", c.ID, before.Type, before.Data, c.Type, c.Data)
		}
		return
	}
	w.accepted[c.ID] = c
	w.waiting[c.Stream] = append(w.waiting[c.Stream], c.ID)
}

// decide decides the next command of a stream.
func (w *world) decide(name millrace.Stream) {
	id := w.waiting[name][0]
	if w.waiting[name] = w.waiting[name][1:]; len(w.waiting[name]) == 0 {
		delete(w.waiting, name)
	}
	c, s := w.accepted[id], w.stream(name)
	s.now = w.now
	n := len(s.events)
	_, refusal := s.do(c.Type, string(c.Data))
	out := millrace.Outcome{CommandID: id, Status: millrace.StatusDecided, Time: w.now, Refusal: refusal}
	if refusal != nil {
		out.Status = millrace.StatusRefused
	}
	w.outcomes[id] = out
	for k := range s.events[n:] {
		w.audit.Add(&s.events[n+k])
	}
	if c.Type == "ConfirmOrder" && len(s.events) > n && strings.HasPrefix(id, millrace.StepPrefix) {
		w.confirmed(s)
	}
	for _, i := range w.orders {
		if step, ok := i.asked[id]; ok && i.doc.steps[step] == id {
			i.arrived = append(i.arrived, arrivedOutcome{step, out})
		}
	}
}

// confirmed holds what the process has confirmed to what that means: the money is safe, and so are the goods, or some of them.
func (w *world) confirmed(s *stream) {
	o := s.order()
	p := o.Payment
	if !o.Paid && o.Total.Minor > 0 && (p == nil || p.Status != PaymentAuthorised || p.Authorised.Minor < o.Total.Minor) {
		w.t.Fatalf("%s is confirmed with a total of %s, and its payment is %+v", s.name, o.Total, p)
	}
	want, some := map[string]int64{}, false
	for i := range o.Lines {
		want[o.Lines[i].SKU] += o.Lines[i].Quantity
	}
	for sku, quantity := range want {
		held := int64(0)
		for id, open := range w.stream(millrace.NewStream(CategoryStock, sku)).stock().Reservations.All {
			if of, ok := orderOf(id); ok && of == s.name.ID() {
				held += open
			}
		}
		some = some || held > 0
		if held < quantity && o.Backorder != BackorderSplit {
			w.t.Fatalf("%s is confirmed with %d of %s, of which %d are reserved", s.name, quantity, sku, held)
		}
	}
	if !some {
		w.t.Fatalf("%s is confirmed, and nothing is reserved", s.name)
	}
}

// calmly lets things happen one after the other, without chance, until it is to stop or nothing is left but timers.
func (w *world) calmly(stop func() bool) {
	for !stop() {
		i := w.orders[0]
		switch open := i.open(); {
		case i.doc.heard < len(w.stream(i.name).events):
			i.hear()
		case len(i.arrived) > 0:
			i.take(0)
		case len(w.waiting) > 0:
			w.decide(slices.Sorted(maps.Keys(w.waiting))[0])
		case len(open) > 0:
			i.call(open[0], 4)
		default:
			return
		}
	}
}

// client sends a command that nobody derives, and has it be decided.
func (w *world) client(stream millrace.Stream, typ, body string) {
	w.ids++
	id := fmt.Sprintf("client-%d", w.ids)
	w.send(millrace.Command{ID: id, Stream: stream, Type: typ, Data: []byte(body)})
	for slices.Contains(w.waiting[stream], id) {
		w.decide(stream)
	}
}

// place places an order and begins its instance.
func (w *world) place(id, body string) *managed {
	name := millrace.NewStream(CategoryOrder, id)
	i := &managed{w: w, name: name, asked: map[string]string{}}
	state, err := w.m.EncodeState(w.m.Initial(name))
	if err != nil {
		w.t.Fatal(err)
	}
	i.doc = &managedDoc{state: state, steps: map[string]string{}, calls: map[string]*managedCall{}}
	i.saved = []*managedDoc{i.doc.clone()}
	w.orders = append(w.orders, i)
	w.client(name, "PlaceOrder", body)
	return i
}

// apply applies an input as a manager does.
func (i *managed) apply(in *millrace.Input) {
	w, d := i.w, i.doc
	old, err := w.m.DecodeState(d.state)
	if err != nil {
		w.t.Fatalf("%v: %s", err, d.state)
	}
	next := w.m.Evolve(old, in)
	evolved := next
	if before, err := w.m.EncodeState(old); err != nil || !bytes.Equal(before, d.state) {
		w.t.Fatalf("the input changed the state before (%v):\n%s\n%s", err, d.state, before)
	}
	if d.state, err = w.m.EncodeState(next); err != nil {
		w.t.Fatal(err)
	}
	type plain Fulfilling                                    // without its own encoder
	same, err := jsonx.Marshal((*plain)(next.(*Fulfilling))) //nolint:forcetypeassert // the process has no other state
	if err != nil || !bytes.Equal(same, d.state) {
		w.t.Fatalf("the state is written as\n%s\nand by the generic encoder as (%v)\n%s", d.state, err, same)
	}
	if next, err = w.m.DecodeState(d.state); err != nil {
		w.t.Fatalf("%v: %s", err, d.state)
	}
	if d.now, err = w.m.React(next); err != nil {
		w.t.Fatal(err)
	}
	// What is left out of the reaction to an input was wanted before.
	short, err := w.m.React(evolved)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range d.now.Steps {
		if d.steps[s.Name] == "" && !slices.ContainsFunc(short.Steps, func(o millrace.Step) bool { return o.Name == s.Name }) {
			if _, known := d.steps[s.Name]; !known {
				w.t.Fatalf("%s is left out and was never wanted", s.Name)
			}
		}
	}
	d.applied++
	i.setTimers(d.now.Timers)
	i.setCalls(d.now.Calls)
	for _, s := range d.now.Steps {
		if _, ok := d.steps[s.Name]; ok {
			continue
		}
		id := millrace.StepID(ProcessFulfilment, i.name, s.Name)
		d.steps[s.Name] = id
		i.asked[id] = s.Name
		command := s.Command
		if w.faults.command != nil {
			if command = w.faults.command(s); command == nil {
				i.arrived = append(i.arrived, arrivedOutcome{s.Name, millrace.Outcome{Status: millrace.StatusDecided, Time: w.now}})
				continue
			}
		}
		typ, data, err := w.registry.EncodeCommand(command)
		if err != nil {
			w.t.Fatal(err)
		}
		if out, ok := w.outcomes[id]; ok {
			i.arrived = append(i.arrived, arrivedOutcome{s.Name, out})
		}
		w.send(millrace.Command{ID: id, Stream: s.Stream, Type: typ, Data: data})
	}
}

func (i *managed) setTimers(want []millrace.Timer) {
	var pending, fired []millrace.Timer
	for _, t := range want {
		if slices.ContainsFunc(i.doc.fired, func(f millrace.Timer) bool { return f.Name == t.Name && f.At.Equal(t.At) }) {
			fired = append(fired, t)
		} else {
			pending = append(pending, t)
		}
	}
	i.doc.timers, i.doc.fired = pending, fired
}

func (i *managed) setCalls(want []millrace.Call) {
	for name, c := range i.doc.calls {
		if !c.done && !slices.ContainsFunc(want, func(w millrace.Call) bool { return w.Name == name }) {
			c.dropped = true
		}
	}
	for _, c := range want {
		if i.doc.calls[c.Name] != nil {
			continue
		}
		data, err := i.w.m.EncodeCall(c)
		if err != nil {
			i.w.t.Fatal(err)
		}
		i.doc.calls[c.Name] = &managedCall{request: data}
	}
	if len(i.doc.calls) > millrace.MaxCalls || len(i.doc.steps) > millrace.MaxSteps {
		i.w.t.Fatalf("%d calls and %d steps", len(i.doc.calls), len(i.doc.steps))
	}
}

// hear applies the next event.
func (i *managed) hear() {
	e := &i.w.stream(i.name).events[i.doc.heard]
	i.doc.heard++
	i.apply(&millrace.Input{At: e.Time, Event: e.Body, Version: e.Version})
}

// again has an event come that was there, which must change nothing.
func (i *managed) again() {
	if i.doc.heard == 0 {
		return
	}
	e := &i.w.stream(i.name).events[i.w.r.IntN(i.doc.heard)]
	before := string(i.doc.state)
	i.apply(&millrace.Input{At: i.w.now, Event: e.Body, Version: e.Version})
	if string(i.doc.state) != before {
		i.w.t.Fatalf("%s came again and changed the state:\n%s\n%s", e.Type, before, i.doc.state)
	}
}

// outcome applies one of the outcomes that have arrived.
func (i *managed) outcome() { i.take(i.w.r.IntN(len(i.arrived))) }

func (i *managed) take(k int) {
	a := i.arrived[k]
	i.arrived = slices.Delete(i.arrived, k, k+1)
	if i.doc.steps[a.step] == "" {
		return // known
	}
	i.doc.steps[a.step] = ""
	i.apply(&millrace.Input{At: a.outcome.Time, Step: a.step, Outcome: &a.outcome})
}

// open are the calls that are to be made.
func (i *managed) open() []string {
	var names []string
	for name, c := range i.doc.calls {
		if !c.done && !c.dropped {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// call makes an attempt at a call: luck says how far it comes. The gateway and the record know it by its id.
func (i *managed) call(name string, luck int) {
	w, c := i.w, i.doc.calls[name]
	var r payment.Request
	if err := jsonx.Unmarshal(c.request, &r); err != nil {
		w.t.Fatal(err)
	}
	id := millrace.StepID(ProcessFulfilment, i.name, name)
	if w.faults.fresh == r.Kind {
		w.ids++
		id = fmt.Sprintf("fresh-%d", w.ids)
	}
	if r.Kind == payment.Authorise && !w.faults.unsaid && !i.request(name, &r, luck) || luck == 0 {
		return
	}
	result := w.ask(id, r)
	if luck == 1 {
		return
	}
	_, data, err := w.registry.EncodeCommand(&RecordPayment{
		Name: name, Kind: r.Kind, Status: result.Status, Payment: cmp.Or(result.Payment, r.Payment), Amount: r.Amount, Code: result.Code,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.send(millrace.Command{ID: id, Stream: i.name, Type: "RecordPayment", Data: data})
	for slices.Contains(w.waiting[i.name], id) {
		w.decide(i.name)
	}
	if out := w.outcomes[id]; out.Refusal != nil {
		w.t.Fatalf("a record of %s was refused: %s", name, out.Refusal.Code)
	}
	if luck > 2 {
		c.done = true
		i.apply(&millrace.Input{At: w.now, Call: name, Result: []byte(`{}`)})
	}
}

// request says that an authorisation is about to be asked for, and whether it may be; where there is no luck, nobody is there any more
// when that is decided.
func (i *managed) request(name string, r *payment.Request, luck int) (ok bool) {
	w, id := i.w, millrace.StepID(ProcessFulfilment, i.name, RequestStep(name))
	_, data, err := w.registry.EncodeCommand(&RequestPayment{Name: name, Amount: r.Amount})
	if err != nil {
		w.t.Fatal(err)
	}
	if w.send(millrace.Command{ID: id, Stream: i.name, Type: "RequestPayment", Data: data}); luck == 0 {
		return false
	}
	for slices.Contains(w.waiting[i.name], id) {
		w.decide(i.name)
	}
	refusal := w.outcomes[id].Refusal
	if refusal == nil {
		return true
	}
	result, err := jsonx.Marshal(&payment.Result{Status: payment.Withdrawn, Code: refusal.Code})
	if err != nil {
		w.t.Fatal(err)
	}
	i.doc.calls[name].done = true
	i.apply(&millrace.Input{At: w.now, Call: name, Result: result})
	return false
}

// ask is the gateway: it does one thing under one key.
func (w *world) ask(key string, r payment.Request) payment.Result {
	if a, ok := w.gateway[key]; ok {
		if a.request != r {
			w.t.Fatalf("%s was %+v and is now %+v", key, a.request, r)
		}
		return a.result
	}
	no := map[payment.Kind]int{payment.Authorise: 12, payment.Capture: 15, payment.Void: 4, payment.Refund: 12}[r.Kind]
	ok := w.r.IntN(100) >= no
	if w.faults.always != nil {
		ok = w.faults.always(r.Kind)
	}
	result := payment.Result{Status: payment.Approved, Payment: r.Payment}
	if r.Kind == payment.Authorise {
		result.Payment = "pay-" + key
	}
	if !ok {
		result = payment.Result{Status: payment.Declined, Code: "do_not_honour"}
	}
	w.gateway[key] = gatewayAnswer{r, result}
	return result
}

// fire has the timers fire that are due.
func (i *managed) fire() bool {
	for _, t := range i.doc.timers {
		if !t.At.After(i.w.now) {
			i.doc.fired = append(i.doc.fired, t)
			i.apply(&millrace.Input{At: t.At, Timer: t.Name})
			return true
		}
	}
	return false
}

// restart ends the instance and begins it anew, as it was a few commits ago where documents are lost: what waits is asked for again.
func (i *managed) restart(lose bool) {
	if lose {
		i.doc = i.saved[i.w.r.IntN(len(i.saved))].clone()
		i.saved = []*managedDoc{i.doc.clone()}
	}
	i.arrived = nil
	for name, id := range i.doc.steps {
		if out, ok := i.w.outcomes[id]; ok && id != "" {
			i.arrived = append(i.arrived, arrivedOutcome{name, out})
		}
	}
	slices.SortFunc(i.arrived, func(a, b arrivedOutcome) int { return strings.Compare(a.step, b.step) })
}

// turn has something happen to the machines, if there is anything.
func (w *world) turn(calm bool) {
	for _, k := range w.r.Perm(len(w.orders)) {
		i := w.orders[k]
		if i.saved = append(i.saved, i.doc.clone()); len(i.saved) > 12 {
			i.saved = i.saved[1:]
		}
		switch n := w.r.IntN(12); {
		case n < 4 && i.doc.heard < len(w.stream(i.name).events):
			i.hear()
			return
		case n < 7 && len(i.arrived) > 0:
			i.outcome()
			return
		case n == 7 && i.fire():
			return
		case n < 10 && len(i.open()) > 0:
			luck := 4
			if !calm {
				luck = w.r.IntN(6)
			}
			open := i.open()
			i.call(open[w.r.IntN(len(open))], luck)
			return
		case n == 10:
			i.again()
		}
	}
	if len(w.waiting) > 0 {
		names := slices.Sorted(maps.Keys(w.waiting))
		w.decide(names[w.r.IntN(len(names))])
	}
}

// busy says whether anything is to be done now.
func (w *world) busy() bool {
	return len(w.waiting) > 0 || slices.ContainsFunc(w.orders, func(i *managed) bool {
		return i.doc.heard < len(w.stream(i.name).events) || len(i.arrived) > 0 || len(i.open()) > 0 ||
			slices.ContainsFunc(i.doc.timers, func(t millrace.Timer) bool { return !t.At.After(w.now) })
	})
}

// rest lets everything happen that follows by itself, over as much time as it takes.
func (w *world) rest() {
	const most = 200_000
	for n := 0; ; n++ {
		if n == most {
			w.t.Fatalf("it does not come to rest: %s", w.standing())
		}
		if w.busy() {
			w.turn(true)
			continue
		}
		var next time.Time
		for _, i := range w.orders {
			for _, t := range i.doc.timers {
				if next.IsZero() || t.At.Before(next) {
					next = t.At
				}
			}
		}
		if next.IsZero() {
			return
		}
		w.now = next
	}
}

// standing is where all orders stand, for people.
func (w *world) standing() string {
	var b strings.Builder
	for _, i := range w.orders {
		fmt.Fprintf(&b, "\n%s %s (%s): %s", i.name, i.doc.now.State, i.doc.now.Waits, i.doc.state)
	}
	return b.String()
}

// captured counts what the gateway took of an order.
func (w *world) captured(id string) (times int, sum int64) {
	for _, a := range w.gateway {
		if a.request.OrderID == id && a.request.Kind == payment.Capture && a.result.Status == payment.Approved {
			times++
			sum += a.request.Amount.Minor
		}
	}
	return times, sum
}

// standing is what the gateway holds of an order.
func (w *world) standingOf(id string) (sum int64) {
	for _, a := range w.gateway {
		switch {
		case a.request.OrderID != id:
		case a.request.Kind == payment.Authorise && a.result.Status == payment.Approved:
			sum += a.request.Amount.Minor
			for _, b := range w.gateway {
				if b.request.Payment == a.result.Payment && (b.request.Kind == payment.Void || b.request.Kind == payment.Capture && b.result.Status == payment.Approved) {
					sum -= a.request.Amount.Minor
				}
			}
		}
	}
	return sum
}

func gbp(minor int64) money.Amount {
	c, _ := money.ParseCurrency("GBP")
	return money.Amount{Minor: minor, Currency: c}
}
