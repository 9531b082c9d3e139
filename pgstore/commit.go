package pgstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
)

// attemptTimeout bounds one try to write: a connection that went dead without a word costs that much.
const attemptTimeout = 10 * time.Second

// commit is one transaction as the rows of its tables.
type commit struct {
	heads                      array
	owners                     []owner // of the heads
	commands, outcomes, events array
	docs                       docRows

	// guarded are partitions with fresh decisions that must come in order, but for held commands.
	guarded []int
	held    []string

	fresh   int // decisions with their commands, in the rows of outcomes; commands are those without a decision
	settled int // decisions on commands that were kept before
	seen    map[string]*millrace.Fingerprint
}

// owner is under which epoch a partition is written.
type owner struct {
	partition int
	epoch     uint64
}

func (c *commit) empty() bool { return c.commands.n == 0 && c.outcomes.n == 0 }

// newCommit is a transaction with room for all requests.
func newCommit(parts []*part) *commit {
	var commands, outcomes, events struct{ rows, payload int }
	for _, p := range parts {
		for _, r := range p.reqs {
			for i := range r.batch.Accepted {
				commands.rows++
				commands.payload += len(r.batch.Accepted[i].Command.Data)
			}
			for i := range r.batch.Decisions {
				d := &r.batch.Decisions[i]
				outcomes.rows++
				if d.Fresh {
					outcomes.payload += len(d.Command.Data)
				}
				for k := range d.Events {
					events.rows++
					events.payload += len(d.Events[k].Data)
				}
			}
		}
	}
	c := &commit{seen: make(map[string]*millrace.Fingerprint, commands.rows+outcomes.rows)}
	c.commands.room(commands.rows, commands.payload)
	c.outcomes.room(outcomes.rows, outcomes.payload)
	c.events.room(events.rows, events.payload)
	return c
}

// build lays out the rows of all requests that are not refused.
func (w *writers) build(parts []*part) *commit {
	c := newCommit(parts)
	for _, p := range parts {
		at := p.from
		for i, r := range p.reqs {
			if r.err == nil {
				if why := c.refused(r); why != nil {
					r.err = why
					if r.decides() {
						w.giveUp(p, i, why)
					}
				}
			}
			if r.err != nil {
				continue
			}
			for i := range r.batch.Accepted {
				a := &r.batch.Accepted[i]
				c.keep(p.partition, a.Command, &a.Fingerprint)
			}
			inOrder := false
			for i := range r.batch.Decisions {
				at.ordinal++
				fresh := c.decide(p.partition, &r.batch.Decisions[i], at.ordinal)
				inOrder = inOrder || fresh && r.batch.InOrder
				at.Head = r.batch.Decisions[i].Head()
			}
			if inOrder {
				c.guard(p.partition, r.batch.Held)
			}
		}
		if p.to = at; at.ordinal > p.from.ordinal {
			c.move(p)
		}
	}
	return c
}

// refused says whether a request has an id that another one of this transaction has with another content. The claims
// would not notice: they are compared with what is kept.
func (c *commit) refused(r *request) error {
	var clash []string
	check := func(cmd *millrace.Command, fp *millrace.Fingerprint) {
		if have := c.seen[cmd.ID]; have != nil && *have != *fp {
			clash = append(clash, cmd.ID)
		}
	}
	for i := range r.batch.Accepted {
		check(r.batch.Accepted[i].Command, &r.batch.Accepted[i].Fingerprint)
	}
	for i := range r.batch.Decisions {
		check(r.batch.Decisions[i].Command, &r.batch.Decisions[i].Fingerprint)
	}
	switch {
	case clash == nil:
		return nil
	case r.decides():
		return &ConflictError{Partition: r.batch.Partition, IDs: clash}
	default:
		return millrace.ErrKeyReused
	}
}

// move has the partition's row follow the part's decisions.
func (c *commit) move(p *part) {
	c.owners = append(c.owners, owner{p.partition, p.epoch})
	h := &c.heads
	h.begin(8)
	h.int4(p.partition)
	h.count(p.epoch)
	h.count(p.from.Position)
	h.data(p.from.Chain[:])
	h.int8(p.from.ordinal)
	h.count(p.to.Position)
	h.data(p.to.Chain[:])
	h.int8(p.to.ordinal)
	h.end()
}

// guard has the fresh decisions of a partition refused where another node has kept commands there.
func (c *commit) guard(partition int, held []string) {
	if n := len(c.guarded); n == 0 || c.guarded[n-1] != partition {
		c.guarded = append(c.guarded, partition)
	}
	c.held = append(c.held, held...)
}

// first says whether the transaction has not met a command before.
func (c *commit) first(cmd *millrace.Command, fp *millrace.Fingerprint) bool {
	if c.seen[cmd.ID] != nil {
		return false
	}
	c.seen[cmd.ID] = fp
	return true
}

// keep adds a command without a decision.
func (c *commit) keep(partition int, cmd *millrace.Command, fp *millrace.Fingerprint) {
	if !c.first(cmd, fp) {
		return
	}
	r := &c.commands
	r.begin(11)
	r.int4(partition)
	r.text(cmd.ID)
	r.text(string(cmd.Stream))
	r.text(cmd.Type)
	r.int8(cmd.Time.UnixNano())
	r.expected(cmd)
	r.text(cmd.CorrelationID)
	r.text(cmd.CausationID)
	r.text(cmd.Source)
	r.data(cmd.Data)
	r.data(fp[:])
	r.end()
}

// expected adds the version that a command expects.
func (a *array) expected(cmd *millrace.Command) {
	if cmd.Expected != nil {
		a.count(*cmd.Expected) // the highest bit is taken for a sign, and back again
	} else {
		a.null(oidInt8)
	}
}

// decide adds a decision with its events. It says whether the command comes with it.
func (c *commit) decide(partition int, d *millrace.Decision, ordinal int64) (fresh bool) {
	cmd, at := d.Command, d.Time.UnixNano()
	fresh = d.Fresh && c.first(cmd, &d.Fingerprint)
	o := &c.outcomes
	o.begin(19)
	o.int4(partition)
	o.int8(ordinal)
	o.text(cmd.ID)
	o.int2(int16(d.Status))
	o.count(d.Position)
	o.count(d.Version)
	o.int4(len(d.Events))
	o.int8(at)
	o.text(string(cmd.Stream))
	o.text(cmd.CorrelationID)
	o.data(d.Fingerprint[:])
	if fresh {
		c.fresh++
		o.text(cmd.Type)
		o.int8(cmd.Time.UnixNano())
		o.expected(cmd)
		o.text(cmd.CausationID)
		o.text(cmd.Source)
		o.data(cmd.Data)
	} else {
		c.settled++
		o.null(oidText)
		o.null(oidInt8)
		o.null(oidInt8)
		o.null(oidText)
		o.null(oidText)
		o.null(oidData)
	}
	if d.Status != millrace.StatusDecided {
		o.data(d.Encoded)
	} else {
		o.null(oidData)
	}
	o.data(d.Chain[:])
	o.end()
	for i := range d.Events {
		e := &d.Events[i]
		r := &c.events
		r.begin(9)
		r.int4(partition)
		r.count(d.Position + uint64(i) + 1)
		r.text(string(cmd.Stream))
		r.count(d.Version + uint64(i) + 1)
		r.text(e.Type)
		r.data(e.Data)
		r.int8(at)
		r.text(cmd.ID)
		r.text(cmd.CorrelationID)
		r.end()
	}
	if d.Status == millrace.StatusDead {
		if doc, err := d.DeadLetter(partition); err == nil { // checked before it was queued
			c.docs.put(&doc, nil)
		}
	}
	return fresh
}

// write sends one transaction: one statement, one round trip. Ids are taken for free, since they were looked up before or are
// taken for new; where somebody was quicker it is sent again, with a look at who. An error that passes leaves open whether it
// was written.
func (d *Driver) write(c *commit, parts []*part) error {
	err := d.writeOnce(c, true)
	if claimed(err) {
		d.mark(parts)
		err = d.writeOnce(c, false)
	}
	return err
}

// mark notes which commands the store has already, for those who sent them. It is no fault where that cannot be found out: what
// is there is not written again.
func (d *Driver) mark(parts []*part) {
	at := map[string]*bool{}
	var l look
	for _, p := range parts {
		for _, r := range p.reqs {
			if r.err != nil || r.tried {
				continue // it may be its own
			}
			for i := range r.batch.Accepted {
				at[r.batch.Accepted[i].Command.ID] = &r.batch.Accepted[i].Known
			}
			for i := range r.batch.Decisions {
				if d := &r.batch.Decisions[i]; d.Fresh {
					at[d.Command.ID] = &d.Known
				}
			}
		}
	}
	l.ids = slices.Collect(maps.Keys(at))
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	if err := d.lookUp(ctx, &l); err != nil {
		d.o.Logger.Warn("cannot find out which commands the store has already", "error", err)
		return
	}
	for _, id := range l.known {
		*at[id] = true
	}
}

func (d *Driver) writeOnce(c *commit, sure bool) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), d.o.attempt)
	defer cancel()
	var added, removed int64
	claim := !d.o.separateClaims
	d.backlog.begin()
	defer func() {
		d.backlog.done()
		if err == nil {
			d.backlog.end(added - removed)
		}
	}()
	if !claim && c.commands.n+c.fresh > 0 {
		if err := d.on(ctx, d.call(ctx, d.sql.claim, d.claimParams(c, sure))); err != nil {
			return err
		}
	}
	if d.o.checkFirst {
		if err := d.check(ctx, c); err != nil {
			return err
		}
	}
	if c.outcomes.n == 0 {
		return d.on(ctx, d.call(ctx, d.sql.keep, d.keepParams(c, claim, sure), &added))
	}
	return d.on(ctx, d.call(ctx, d.sql.decide, d.decideParams(c, claim, sure), &added, &removed))
}

func (d *Driver) claimParams(c *commit, sure bool) [][]byte {
	return [][]byte{d.rowsParam(commandRow, &c.commands), d.rowsParam(outcomeRow, &c.outcomes), whole(c.fresh), boolean(sure)}
}

func (d *Driver) keepParams(c *commit, claim, sure bool) [][]byte {
	return [][]byte{boolean(claim), boolean(sure), d.rowsParam(commandRow, &c.commands)}
}

func (d *Driver) decideParams(c *commit, claim, sure bool) [][]byte {
	return [][]byte{
		boolean(claim), boolean(sure), whole(c.fresh), d.rowsParam(headRow, &c.heads), numbers(c.guarded), texts(c.held), d.rowsParam(commandRow, &c.commands),
		d.rowsParam(outcomeRow, &c.outcomes), d.rowsParam(eventRow, &c.events),
		d.docsParam(&c.docs), d.rowsParam(keyRow, &c.docs.come),
	}
}

var errOutside = errors.New("checked outside of the transaction")

// check is the fence outside of the transaction that writes: never used but by the test that shows why.
func (d *Driver) check(ctx context.Context, c *commit) error {
	var partitions []int
	for _, o := range c.owners {
		partitions = append(partitions, o.partition)
	}
	epochs, err := d.epochs(ctx, Deciding, partitions)
	if err != nil {
		return err
	}
	for _, o := range c.owners {
		if epochs[o.partition] != o.epoch {
			return errOutside
		}
	}
	if d.o.beforeWrite != nil {
		d.o.beforeWrite()
	}
	return nil
}

// applied makes what was written visible.
func (d *Driver) applied(parts []*part, c *commit) {
	d.reached(nil, true)
	moved := make([]int, 0, len(parts))
	to := make([]head, 0, len(parts))
	for _, p := range parts {
		decided := false
		for _, r := range p.reqs {
			if r.err != nil {
				continue
			}
			for i := range r.batch.Decisions {
				decided = true
				d.tails[p.partition].push(r.batch.Decisions[i].Recorded(p.partition))
			}
		}
		if decided {
			moved, to = append(moved, p.partition), append(to, p.to)
		}
	}
	d.heads.committed(moved, to)
	d.stats.wrote(len(parts), c.commands.n+c.fresh, c.outcomes.n, c.events.n)
	d.notify.mark(parts)
}

// decided says whether the last decision of a part is in the log, for good.
func (d *Driver) decided(p *part) (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d.o.attempt)
	defer cancel()
	var chain []byte
	err := d.pool.QueryRow(ctx, d.sql.chainAt, p.partition, p.to.ordinal).Scan(&chain)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a decision: %w", err)
	}
	if !bytes.Equal(chain, p.to.Chain[:]) {
		return false, nil
	}
	return true, d.confirm()
}
