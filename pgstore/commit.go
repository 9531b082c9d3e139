package pgstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
)

// How many parameters the functions of the migrations have.
const (
	keepParams   = 14
	decideParams = 58
	viewParams   = 25
)

// attemptTimeout bounds one try to write: a connection that went dead without a word costs that much.
const attemptTimeout = 10 * time.Second

// commit is one transaction as the columns of its rows; each of the groups below goes into one unnest.
type commit struct {
	// The partitions that are decided: where they must be, and where they come to.
	hPartition                       []int32
	hEpoch, hPosition, hOrdinal      []int64
	nPosition, nOrdinal              []int64
	hChain, nChain                   [][]byte
	gPartition                       []int32 // those with fresh decisions that must come in order
	gHeld                            []string
	partition                        []int32 // of the commands that are kept
	id, stream, typ                  []string
	correlation, causation, source   []string
	fresh, expects                   []bool
	time, expected                   []int64
	data, fingerprint                [][]byte
	oPartition, oEvents              []int32
	oOrdinal, oPosition, oVersion    []int64
	oTime                            []int64
	oCommand, oStream, oCorrelation  []string
	oFresh                           []bool
	oStatus                          []int16
	oFingerprint, oEncoded, oChain   [][]byte
	ePartition                       []int32
	ePosition, eVersion, eTime       []int64
	eStream, eType, eCommand, eStory []string
	eData                            [][]byte
	docs                             docRows

	waiting int // commands that are kept without a decision
	settled int // decisions on commands that were kept before
	seen    map[string]*millrace.Fingerprint
}

func (c *commit) empty() bool { return len(c.id) == 0 && len(c.oCommand) == 0 }

// some is never nil: a nil slice of bytes is a null.
func some(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// build lays out the rows of all requests that are not refused.
func (w *writers) build(parts []*part) *commit {
	c := &commit{seen: map[string]*millrace.Fingerprint{}, gHeld: []string{}} // a null would let everything pass
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
				c.keep(p.partition, a.Command, &a.Fingerprint, false)
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
	c.hPartition = append(c.hPartition, int32(p.partition))   //nolint:gosec // below MaxPartitions
	c.hEpoch = append(c.hEpoch, int64(p.epoch))               //nolint:gosec // counts owners
	c.hPosition = append(c.hPosition, int64(p.from.Position)) //nolint:gosec // counts events
	c.hOrdinal = append(c.hOrdinal, p.from.ordinal)
	c.hChain = append(c.hChain, p.from.Chain[:])
	c.nPosition = append(c.nPosition, int64(p.to.Position)) //nolint:gosec // counts events
	c.nOrdinal = append(c.nOrdinal, p.to.ordinal)
	c.nChain = append(c.nChain, p.to.Chain[:])
}

// guard has the fresh decisions of a partition refused where another node has kept commands there.
func (c *commit) guard(partition int, held []string) {
	if n := len(c.gPartition); n == 0 || c.gPartition[n-1] != int32(partition) { //nolint:gosec // below MaxPartitions
		c.gPartition = append(c.gPartition, int32(partition)) //nolint:gosec // below MaxPartitions
	}
	c.gHeld = append(c.gHeld, held...)
}

// keep adds a command; false where the transaction has it already.
func (c *commit) keep(partition int, cmd *millrace.Command, fp *millrace.Fingerprint, fresh bool) bool {
	if c.seen[cmd.ID] != nil {
		return false
	}
	c.seen[cmd.ID] = fp
	if !fresh {
		c.waiting++
	}
	c.partition = append(c.partition, int32(partition)) //nolint:gosec // below MaxPartitions
	c.id = append(c.id, cmd.ID)
	c.fresh = append(c.fresh, fresh)
	c.stream = append(c.stream, string(cmd.Stream))
	c.typ = append(c.typ, cmd.Type)
	c.time = append(c.time, cmd.Time.UnixNano())
	expected := int64(0)
	if cmd.Expected != nil {
		expected = int64(*cmd.Expected) //nolint:gosec // the highest bit is taken for a sign, and back again
	}
	c.expects = append(c.expects, cmd.Expected != nil)
	c.expected = append(c.expected, expected)
	c.correlation = append(c.correlation, cmd.CorrelationID)
	c.causation = append(c.causation, cmd.CausationID)
	c.source = append(c.source, cmd.Source)
	c.data = append(c.data, some(cmd.Data))
	c.fingerprint = append(c.fingerprint, fp[:])
	return true
}

// decide adds a decision with its events. It says whether the command comes with it.
func (c *commit) decide(partition int, d *millrace.Decision, ordinal int64) (fresh bool) {
	cmd, p := d.Command, int32(partition) //nolint:gosec // below MaxPartitions
	fresh = d.Fresh && c.keep(partition, cmd, &d.Fingerprint, true)
	if !fresh {
		c.settled++
	}
	c.oPartition = append(c.oPartition, p)
	c.oOrdinal = append(c.oOrdinal, ordinal)
	c.oCommand = append(c.oCommand, cmd.ID)
	c.oFresh = append(c.oFresh, fresh)
	c.oStatus = append(c.oStatus, int16(d.Status))
	c.oPosition = append(c.oPosition, int64(d.Position)) //nolint:gosec // counts events
	c.oVersion = append(c.oVersion, int64(d.Version))    //nolint:gosec // counts events
	c.oEvents = append(c.oEvents, int32(len(d.Events)))  //nolint:gosec // bounded by the processor
	at := d.Time.UnixNano()
	c.oTime = append(c.oTime, at)
	c.oStream = append(c.oStream, string(cmd.Stream))
	c.oCorrelation = append(c.oCorrelation, cmd.CorrelationID)
	c.oFingerprint = append(c.oFingerprint, d.Fingerprint[:])
	var encoded []byte
	if d.Status != millrace.StatusDecided {
		encoded = d.Encoded
	}
	c.oEncoded = append(c.oEncoded, encoded)
	c.oChain = append(c.oChain, d.Chain[:])
	for i := range d.Events {
		e := &d.Events[i]
		c.ePartition = append(c.ePartition, p)
		c.ePosition = append(c.ePosition, int64(d.Position)+int64(i)+1) //nolint:gosec // counts events
		c.eStream = append(c.eStream, string(cmd.Stream))
		c.eVersion = append(c.eVersion, int64(d.Version)+int64(i)+1) //nolint:gosec // counts events
		c.eType = append(c.eType, e.Type)
		c.eData = append(c.eData, some(e.Data))
		c.eTime = append(c.eTime, at)
		c.eCommand = append(c.eCommand, cmd.ID)
		c.eStory = append(c.eStory, cmd.CorrelationID)
	}
	if d.Status == millrace.StatusDead {
		if doc, err := d.DeadLetter(partition); err == nil { // checked before it was queued
			c.docs.put(&doc, nil)
		}
	}
	return fresh
}

func (c *commit) keepArgs(claim bool) []any {
	return []any{
		claim, c.partition, c.id, c.fresh, c.stream, c.typ, c.time, c.expects, c.expected, c.correlation, c.causation, c.source, c.data, c.fingerprint,
	}
}

func (c *commit) decideArgs(claim bool) []any {
	args := make([]any, 0, decideParams)
	args = append(args, claim, c.hPartition, c.hEpoch, c.hPosition, c.hChain, c.hOrdinal, c.nPosition, c.nChain, c.nOrdinal, c.gPartition, c.gHeld)
	args = append(args, c.keepArgs(claim)[1:]...)
	args = append(args, c.oPartition, c.oOrdinal, c.oCommand, c.oFresh, c.oStatus, c.oPosition, c.oVersion, c.oEvents, c.oTime,
		c.oStream, c.oCorrelation, c.oFingerprint, c.oEncoded, c.oChain)
	args = append(args, c.ePartition, c.ePosition, c.eStream, c.eVersion, c.eType, c.eData, c.eTime, c.eCommand, c.eStory)
	return append(args, c.docs.args()...)
}

// write sends one transaction: one statement, one round trip. An error that passes leaves open whether it was written.
func (d *Driver) write(c *commit) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), d.o.attempt)
	defer cancel()
	var added, removed int64
	d.backlog.begin()
	defer func() {
		d.backlog.done()
		if err == nil {
			d.backlog.end(added - removed)
		}
	}()
	claim := !d.o.separateClaims
	if !claim && len(c.id) > 0 {
		if _, err := d.pool.Exec(ctx, d.sql.claim, c.partition, c.id, c.fingerprint); err != nil {
			return err
		}
	}
	if d.o.checkFirst {
		if err := d.check(ctx, c); err != nil {
			return err
		}
	}
	return d.on(ctx, func(conn *pgx.Conn) error {
		if len(c.oCommand) == 0 {
			return conn.QueryRow(ctx, d.sql.keep, c.keepArgs(claim)...).Scan(&added)
		}
		return conn.QueryRow(ctx, d.sql.decide, c.decideArgs(claim)...).Scan(&added, &removed)
	})
}

var errOutside = errors.New("checked outside of the transaction")

// check is the fence outside of the transaction that writes: never used but by the test that shows why.
func (d *Driver) check(ctx context.Context, c *commit) error {
	epochs := map[int32]int64{}
	rows, err := d.pool.Query(ctx, d.sql.epochOf, c.hPartition)
	if err != nil {
		return err
	}
	var p int32
	var epoch int64
	if _, err := pgx.ForEachRow(rows, []any{&p, &epoch}, func() error { epochs[p] = epoch; return nil }); err != nil {
		return err
	}
	for i, p := range c.hPartition {
		if epochs[p] != c.hEpoch[i] {
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
	d.stats.wrote(len(parts), len(c.id), len(c.oCommand), len(c.ePosition))
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
