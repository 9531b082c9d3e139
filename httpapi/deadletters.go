package httpapi

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/letter"
)

// DeadLetters are commands that could not be decided, and the jobs that redrive many of them. *deadletter.Service is it.
type DeadLetters interface {
	// Scan yields those of a part of an index with what was done with each, behind a place.
	Scan(ctx context.Context, o letter.Ordering, after *millrace.Place) iter.Seq2[*letter.Item, error]
	// Get reads one, and the outcome that made it one. Errors: [millrace.ErrNotFound].
	Get(ctx context.Context, commandID string) (*letter.Item, *millrace.Outcome, error)
	// Causes groups open ones by what they have in common.
	Causes(ctx context.Context, f *letter.Filter) (*letter.Causes, error)
	// Try says what would come of redriving them now.
	Try(ctx context.Context, f *letter.Filter) (*letter.Trial, error)
	// Job is how a job is. Errors: [millrace.ErrNotFound].
	Job(ctx context.Context, id string) (*letter.Job, error)
}

// The kinds of dead letters: commands that could not be decided, and events that a consumer could not handle, which hold the
// later ones of their stream.
const (
	kindOfCommand = "command"
	kindOfEvent   = "event"
)

// shownLetter is a dead letter in a list.
type shownLetter struct {
	ID       string          `json:"id"`
	Kind     string          `json:"kind"`
	State    letter.Status   `json:"state"`
	Reason   string          `json:"reason"`
	Error    string          `json:"error"`
	Type     string          `json:"type,omitempty"`
	Stream   millrace.Stream `json:"stream"`
	Source   string          `json:"source,omitempty"`
	Consumer string          `json:"consumer,omitempty"`
	Attempts int             `json:"attempts"`
	First    time.Time       `json:"first_at"`
	Last     time.Time       `json:"last_at"`
	Redrives int             `json:"redrives"`
	Edits    int             `json:"edits"`
	Answer   *letter.Answer  `json:"answer,omitempty"` // of the newest redrive
}

func showLetter(it *letter.Item) shownLetter {
	d := it.Letter
	s := shownLetter{
		ID: d.CommandID, Kind: kindOfCommand, State: it.Status(), Reason: d.Reason, Error: d.Error, Type: d.Type, Stream: d.Stream,
		Source: d.Source, Attempts: d.Attempts, First: d.AcceptedAt, Last: d.AcceptedAt,
	}
	if st := it.State; st != nil {
		s.Redrives, s.Edits, s.Answer, s.Last = st.Redrives, st.Edits, st.Answer, st.UpdatedAt
	}
	return s
}

func showParked(consumer string, p *millrace.Parked) shownLetter {
	return shownLetter{
		ID: consumer + "/" + p.Stream, Kind: kindOfEvent, State: letter.Open, Reason: p.Reason, Error: p.Error, Stream: millrace.Stream(p.Stream),
		Consumer: consumer, Attempts: p.Attempts, First: p.Since, Last: p.Since,
	}
}

// letterDetail is all that is known of a dead letter.
type letterDetail struct {
	shownLetter
	CorrelationID string         `json:"correlation_id"`
	CausationID   string         `json:"causation_id,omitempty"`
	Data          jsonx.RawValue `json:"data,omitzero"` // the body as it came, where it is JSON
	Raw           []byte         `json:"raw,omitzero"`  // in base64, where it is not
	// Decodes says whether what a redrive would send fits the contract of its type, and Faults why not.
	Decodes   bool                  `json:"decodes"`
	Faults    []millrace.FieldError `json:"faults,omitempty"`
	Edit      *letter.Edit          `json:"edit,omitempty"`
	Partition int                   `json:"partition"`
	Position  uint64                `json:"position"`
	Version   uint64                `json:"version"` // of what was done with it, as in the ETag; of an event, its own
	Cursor    string                `json:"cursor"`
	// Event is the one that failed, of kind event.
	Event jsonx.RawValue `json:"event,omitzero"`
	// History is what was done with it, the oldest first.
	History []jsonx.RawValue `json:"history"`
}

// maxHistory bounds the history that is shown: what is older is in the log.
const maxHistory = 500

func (a *API) registerDeadLetters(d DeadLetters, c Consumers) {
	l := &letters{d: d, c: c}
	const one = "/v1/dead-letters/{id}"
	a.handle("/v1/dead-letters", methods{{"GET", func(x *exchange) { x.listLetters(l) }}})
	a.handle("/v1/dead-letters/causes", methods{{"GET", func(x *exchange) { x.listCauses(d) }}})
	a.handle("/v1/dead-letters/redrive", methods{{"POST", func(x *exchange) { x.redriveMany(d) }}})
	a.handle(one, methods{{"GET", func(x *exchange) { x.getLetter(l) }}})
	for _, v := range []struct {
		name string
		what letterVerb
	}{{"redrive", verbRedrive}, {"edit", verbEdit}, {"discard", verbDiscard}} {
		a.handle(one+"/"+v.name, methods{{"POST", func(x *exchange) { x.actOnLetter(l, v.what) }}})
	}
	const jobs = "/v1/redrive-jobs"
	a.handle(jobs, methods{{"GET", (*exchange).listJobs}})
	a.handle(jobs+"/{id}", methods{{"GET", func(x *exchange) { x.getJob(d) }}})
	for _, v := range []struct {
		name    string
		command func(who) any
	}{
		{"pause", func(w who) any { return &letter.PauseRedriveJob{By: w.By, Why: w.Why} }},
		{"resume", func(w who) any { return &letter.ResumeRedriveJob{By: w.By, Why: w.Why} }},
		{"stop", func(w who) any { return &letter.StopRedriveJob{By: w.By, Why: w.Why} }},
	} {
		a.handle(jobs+"/{id}/"+v.name, methods{{"POST", func(x *exchange) { x.changeJob(v.command) }}})
	}
}

// letters are dead letters of both kinds.
type letters struct {
	d DeadLetters
	c Consumers // nil where there are none to be seen
}

// consumers are the names of the consumers that a list is about, in order, with the names of their documents.
func (l *letters) consumers(only string) (names []string, all map[string]string) {
	if l.c == nil {
		return nil, nil
	}
	all = l.c.Names()
	for name := range all {
		if only == "" || name == only {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, all
}

// letterFilters are the parameters that a filter is made of.
var letterFilters = []string{"reason", "type", "source", "stream", "from", "to"}

// letterFilter reads a filter.
func letterFilter(q url.Values) (f letter.Filter, p *problem) {
	for name, into := range map[string]*string{"reason": &f.Reason, "type": &f.Type, "source": &f.Source} {
		if *into = q.Get(name); len(*into) > MaxFilterValue || strings.ContainsRune(*into, 0) {
			return f, kindInvalidParameter.with(name + " is not a value that it can have")
		}
	}
	if f.Stream = millrace.Stream(q.Get("stream")); f.Stream != "" && f.Stream.Validate() != nil {
		return f, kindInvalidParameter.with("stream must be a category, a hyphen and an id, such as order-42")
	}
	for name, into := range map[string]*time.Time{"from": &f.From, "to": &f.To} {
		text := q.Get(name)
		if text == "" {
			continue
		}
		t, isDate, ok := parseMoment(text)
		if !ok {
			return f, kindInvalidParameter.with("from and to must be dates (2006-01-02) or times in the form of RFC 3339")
		}
		if isDate && name == "to" {
			t = t.AddDate(0, 0, 1)
		}
		*into = t.UTC()
	}
	return f, nil
}

// lettersQuery is a request for a list.
type lettersQuery struct {
	letter.Filter
	kind, consumer string
	state          letter.Status
	limit          int
	bound          string
	after          *millrace.Place
	// events says that the page begins among the events, which come behind the commands.
	events bool
}

// sealEvents leads the keys of places among events in a page cursor. No key of a command's index begins so.
const sealEvents = "\x01events\x00"

func (x *exchange) lettersQuery() (*lettersQuery, *problem) {
	values, p := x.query(append([]string{"kind", "consumer", "state", "limit", "cursor"}, letterFilters...)...)
	if p != nil {
		return nil, p
	}
	q := &lettersQuery{kind: values.Get("kind"), consumer: values.Get("consumer"), state: letter.Status(values.Get("state"))}
	if q.limit, p = pageLimit(values.Get("limit")); p != nil {
		return nil, p
	}
	if q.Filter, p = letterFilter(values); p != nil {
		return nil, p
	}
	switch {
	case q.kind != "" && q.kind != kindOfCommand && q.kind != kindOfEvent:
		return nil, kindInvalidParameter.with("kind must be command or event")
	case q.consumer != "" && q.kind == kindOfCommand:
		return nil, kindInvalidParameter.with("commands have no consumer")
	case q.state != "" && !slices.Contains(letter.Statuses(), q.state):
		return nil, kindInvalidParameter.with("state must be open, redriving, redriven or discarded")
	}
	if q.consumer != "" || q.Reason == millrace.ReasonHandler {
		q.kind = kindOfEvent
	}
	token := values.Get("cursor")
	if values != nil { // the same list may be read in pages of other sizes
		values.Del("limit")
		values.Del("cursor")
	}
	q.bound = "letters\x01" + values.Encode()
	if token != "" {
		var ok bool
		if q.after, ok = x.api.seal.openPlace(q.bound, token); !ok {
			return nil, kindInvalidCursor.with("cursor is not one of this list with these filters")
		}
		if key, ok := strings.CutPrefix(q.after.Key, sealEvents); ok {
			q.events, q.after.Key = true, key
		}
	}
	return q, nil
}

// letterPage is a page under construction.
type letterPage struct {
	x    *exchange
	q    *lettersQuery
	n    int
	seen int
	last millrace.Place
	next string
}

// full says whether the page has to end before one more item, and notes where it goes on.
func (p *letterPage) full() bool {
	if p.n < p.q.limit && p.seen < MaxScan && (p.n == 0 || len(p.x.buf) <= MaxPageBytes) {
		p.seen++
		return false
	}
	p.next = p.x.api.seal.sealPlace(p.q.bound, p.last)
	return true
}

func (p *letterPage) add(s shownLetter) (err error) {
	if p.n++; p.n > 1 {
		p.x.buf = append(p.x.buf, ',')
	}
	p.x.buf, err = jsonx.Append(p.x.buf, s)
	return err
}

func (x *exchange) listLetters(l *letters) {
	q, fault := x.lettersQuery()
	if fault != nil {
		x.fail(fault)
		return
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), readTime)
	defer cancel()
	x.buf = append(x.buf[:0], `{"items":[`...)
	p := &letterPage{x: x, q: q}
	err := error(nil)
	if q.kind != kindOfEvent && !q.events {
		err = p.commands(ctx, l)
	}
	if err == nil && p.next == "" && q.kind != kindOfCommand && (q.state == "" || q.state == letter.Open) && q.Type == "" && q.Source == "" {
		err = p.parked(ctx, l)
	}
	if err != nil {
		x.failWith(err)
		return
	}
	x.page(p.next)
}

// commands adds the commands of a list.
func (p *letterPage) commands(ctx context.Context, l *letters) error {
	for it, err := range l.d.Scan(ctx, p.q.Order(), p.q.after) {
		if err != nil {
			return err
		}
		if p.full() {
			return nil
		}
		if p.q.Fits(it.Letter) && (p.q.state == "" || p.q.state == it.Status()) {
			if err := p.add(showLetter(it)); err != nil {
				return err
			}
		}
		p.last = it.Place
	}
	// Where nothing else comes, the events begin behind nothing.
	p.last = millrace.Place{Key: sealEvents}
	return nil
}

// parked adds the streams that are parked for consumers, consumer by consumer.
func (p *letterPage) parked(ctx context.Context, l *letters) error {
	names, all := l.consumers(p.q.consumer)
	for _, name := range names {
		q := parkedOf(all[name])
		if p.q.events && name < p.q.after.Key {
			continue
		}
		if p.q.events && name == p.q.after.Key {
			q.After = &millrace.Place{Partition: p.q.after.Partition, ID: p.q.after.ID}
		}
		for d, err := range p.x.api.store.Documents(ctx, q) {
			if err != nil {
				return err
			}
			if p.full() {
				return nil
			}
			parked, err := millrace.ParkedTable.Decode(d.Data)
			if err != nil {
				return err
			}
			if p.fitsParked(parked) {
				if err := p.add(showParked(name, parked)); err != nil {
					return err
				}
			}
			p.last = millrace.Place{Key: sealEvents + name, Partition: d.Partition, ID: d.ID}
		}
	}
	return nil
}

func (p *letterPage) fitsParked(d *millrace.Parked) bool {
	f := &p.q.Filter
	return (f.Reason == "" || f.Reason == d.Reason) && (f.Stream == "" || string(f.Stream) == d.Stream) &&
		(f.From.IsZero() || !d.Since.Before(f.From)) && (f.To.IsZero() || d.Since.Before(f.To))
}

func (x *exchange) listCauses(d DeadLetters) {
	values, fault := x.query(letterFilters...)
	if fault != nil {
		x.fail(fault)
		return
	}
	f, fault := letterFilter(values)
	if fault != nil {
		x.fail(fault)
		return
	}
	out, err := d.Causes(x.r.Context(), &f)
	x.sendValue(http.StatusOK, out, err)
}

// parkedLetter finds the parked stream that an id names: consumer, slash, stream. Errors: [millrace.ErrNotFound].
func (x *exchange) parkedLetter(l *letters, id string) (name string, p *millrace.Parked, err error) {
	name, stream, ok := strings.Cut(id, "/")
	s := millrace.Stream(stream)
	_, all := l.consumers(name)
	consumer := all[name]
	if !ok || consumer == "" || s.Validate() != nil {
		return "", nil, millrace.ErrNotFound
	}
	doc, err := x.api.store.Document(x.r.Context(), consumer+"."+millrace.ParkedName, s.Partition(x.api.store.Partitions()), stream)
	if err == nil {
		p, err = millrace.ParkedTable.Decode(doc.Data)
	}
	return name, p, err
}

func (x *exchange) getLetter(l *letters) {
	if _, fault := x.query(); fault != nil {
		x.fail(fault)
		return
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), readTime)
	defer cancel()
	id := x.r.PathValue("id")
	it, o, err := l.d.Get(ctx, id)
	if errors.Is(err, millrace.ErrNotFound) {
		x.getParked(ctx, l, id)
		return
	}
	if err != nil {
		x.failWith(err)
		return
	}
	d := it.Letter
	out := &letterDetail{
		shownLetter: showLetter(it), CorrelationID: d.CorrelationID, CausationID: d.CausationID, Data: d.Data, Raw: d.Raw,
		Partition: o.Partition, Position: o.Position, Cursor: x.api.store.Cursor(o).String(), History: []jsonx.RawValue{},
	}
	sends := millrace.Command{Stream: d.Stream, Type: d.Type, Data: d.Data}
	if sends.Data == nil {
		sends.Data = d.Raw
	}
	if st := it.State; st != nil {
		out.Version, out.Edit = st.Version, st.Edit
		if st.Edit != nil {
			sends.Type, sends.Data = st.Edit.Type, st.Edit.Data
		}
		if out.History, err = x.history(ctx, letter.Stream(id), st.Version); err != nil {
			x.failWith(err)
			return
		}
	}
	faults := x.api.misfits(&sends, "/data")
	out.Decodes, out.Faults = faults == nil, faults
	x.w.Header()["Etag"] = []string{tag(out.Version)}
	x.sendValue(http.StatusOK, out, nil)
}

// history are the newest events of a stream.
func (x *exchange) history(ctx context.Context, stream millrace.Stream, version uint64) ([]jsonx.RawValue, error) {
	out := []jsonx.RawValue{}
	for e, err := range x.api.store.Events(ctx, stream, version-min(version, maxHistory)+1) {
		if err != nil {
			return nil, err
		}
		out = append(out, appendEvent(nil, &e))
	}
	return out, nil
}

func (x *exchange) getParked(ctx context.Context, l *letters, id string) {
	name, p, err := x.parkedLetter(l, id)
	if err != nil {
		x.failWith(err)
		return
	}
	s := millrace.Stream(p.Stream)
	out := &letterDetail{
		shownLetter: showParked(name, p), Version: p.Version, Position: p.Position, Partition: s.Partition(x.api.store.Partitions()),
		History: []jsonx.RawValue{},
	}
	out.Cursor = millrace.At(x.api.store.Meta().Epoch, out.Partition, p.Position).String()
	for e, err := range x.api.store.Events(ctx, s, p.Version) {
		if err != nil {
			x.failWith(err)
			return
		}
		out.Event, out.Type, out.First, out.CorrelationID, out.CausationID = appendEvent(nil, &e), e.Type, e.Time, e.CorrelationID, e.CausationID
		_, err := x.api.registry.Body(&e)
		out.Decodes = err == nil
		break
	}
	x.sendValue(http.StatusOK, out, nil)
}

// misfits says why a command does not fit the contract of its type; nil where it does.
func (a *API) misfits(c *millrace.Command, at string) []millrace.FieldError {
	_, err := a.registry.DecodeCommand(c)
	var form *millrace.FormError
	switch {
	case err == nil && !isObject(c.Data):
		return []millrace.FieldError{{Pointer: at, Detail: "must be an object"}}
	case err == nil:
		return nil
	case errors.Is(err, millrace.ErrUnknownType):
		return []millrace.FieldError{{Pointer: "/type", Detail: "is not known for the category of the stream"}}
	case errors.As(err, &form):
		return under(at, form.Errors[:min(len(form.Errors), MaxErrors)])
	}
	return []millrace.FieldError{{Pointer: at, Detail: "cannot be read"}}
}

// foreign gives the faults of a command that a client made and that only the server may send: what clients cannot send, they
// cannot make of a dead letter either. What the server sent itself may be mended.
func (a *API) foreign(id string, c *millrace.Command, at string) []millrace.FieldError {
	if reserved(id) {
		return nil
	}
	if slices.Contains(a.internal, c.Type) {
		return []millrace.FieldError{internalType}
	}
	body, err := a.registry.DecodeCommand(c)
	if err != nil {
		return nil // which misfits tells
	}
	return under(at, a.own(body))
}

// listJobs answers with a page of jobs, the newest first.
func (x *exchange) listJobs() {
	values, fault := x.query("limit", "cursor")
	if fault != nil {
		x.fail(fault)
		return
	}
	limit, fault := pageLimit(values.Get("limit"))
	if fault != nil {
		x.fail(fault)
		return
	}
	q := millrace.Query{Collection: letter.Jobs + "." + letter.JobsTable.Name, Index: letter.JobsByTime, Partition: -1, Reverse: true}
	const bound = "redrive-jobs"
	if token := values.Get("cursor"); token != "" {
		var ok bool
		if q.After, ok = x.api.seal.openPlace(bound, token); !ok {
			x.fail(kindInvalidCursor.with("cursor is not one of this list"))
			return
		}
	}
	x.buf = append(x.buf[:0], `{"items":[`...)
	n, next := 0, ""
	var last millrace.Place
	for d, err := range x.api.store.Documents(x.r.Context(), q) {
		var j *letter.Job
		if err == nil {
			j, err = letter.JobsTable.Decode(d.Data)
		}
		if err == nil && n == limit {
			next = x.api.seal.sealPlace(bound, last)
			break
		}
		if err == nil {
			if n++; n > 1 {
				x.buf = append(x.buf, ',')
			}
			x.buf, err = jsonx.Append(x.buf, showJob(j))
		}
		if err != nil {
			x.failWith(err)
			return
		}
		last = d.Place(q.Index)
	}
	x.page(next)
}

// showJob leaves out where a job stands: it means nothing to anybody else.
func showJob(j *letter.Job) *letter.Job {
	shown := *j
	shown.Next, shown.Held = nil, ""
	return &shown
}

func (x *exchange) getJob(d DeadLetters) {
	if _, fault := x.query(); fault != nil {
		x.fail(fault)
		return
	}
	j, err := d.Job(x.r.Context(), x.r.PathValue("id"))
	if err != nil {
		x.failWith(err)
		return
	}
	x.w.Header()["Etag"] = []string{`"` + strconv.FormatUint(j.Version, 10) + `"`}
	x.sendValue(http.StatusOK, showJob(j), nil)
}
