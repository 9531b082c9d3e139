package pgstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
)

// viewTokens remember which commit this node knows to have written a checkpoint last. See the column token.
type viewTokens struct {
	mu     sync.Mutex
	tokens map[viewKey]int64
}

type viewKey struct {
	consumer  string
	partition int
}

func (v *viewTokens) get(k viewKey) (int64, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	t, ok := v.tokens[k]
	return t, ok
}

func (v *viewTokens) set(k viewKey, token int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.tokens[k] = token
}

// forget drops what is known of a consumer, and of partitions: others may write there.
func (v *viewTokens) forget(consumer string, partitions ...int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	maps.DeleteFunc(v.tokens, func(k viewKey, _ int64) bool {
		return k.consumer == consumer || slices.Contains(partitions, k.partition)
	})
}

// viewTries is how often a commit of views is tried: its caller tries again by himself, and knows when not to.
const viewTries = 4

// CommitViews implements millrace.Driver. All batches become visible together, but with Citus, where each is written
// by itself.
func (d *Driver) CommitViews(ctx context.Context, batches []millrace.ViewBatch) error {
	if err := d.reads.Enter(); err != nil {
		return err
	}
	defer d.reads.Leave()
	if err := d.failure(); err != nil {
		return err
	}
	if d.o.groups == 0 && oneRole(batches) && distinct(batches) {
		return d.commitViews(ctx, batches)
	}
	for i := range batches {
		if err := d.commitViews(ctx, batches[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

// oneRole says whether all batches are written under leases of the same role: the database looks for them in one place.
func oneRole(batches []millrace.ViewBatch) bool {
	for i := range batches {
		if roleOf(batches[i].Epoch) != roleOf(batches[0].Epoch) {
			return false
		}
	}
	return true
}

// distinct says whether no two batches move the same checkpoint or write the same document: rows of one statement must
// not meet each other. Documents belong to one consumer, so that looking at checkpoints would do, if all kept to that.
func distinct(batches []millrace.ViewBatch) bool {
	seen := make(map[viewKey]bool, len(batches))
	docs := map[docKey]int{}
	for i := range batches {
		k := viewKey{batches[i].Consumer, batches[i].Partition}
		if seen[k] {
			return false
		}
		seen[k] = true
		if len(batches) == 1 {
			break
		}
		for n := range batches[i].Puts {
			p := &batches[i].Puts[n]
			dk := docKey{p.Collection, p.Partition, p.ID}
			if at, ok := docs[dk]; ok && at != i {
				return false
			}
			docs[dk] = i
		}
	}
	return true
}

// commitViews writes batches in one transaction.
func (d *Driver) commitViews(ctx context.Context, batches []millrace.ViewBatch) error {
	c, err := d.viewCommit(batches)
	if err != nil || len(batches) == 0 {
		return err
	}
	return d.sendViews(ctx, c)
}

// sendViews writes one transaction, again where that may help.
func (d *Driver) sendViews(ctx context.Context, c *viewCommit) error {
	own := map[int64]bool{}
	for attempt := 0; ; attempt++ {
		err := d.writeViews(ctx, c, own)
		kind := classify(err)
		switch {
		case kind == faultNone:
			d.reached(nil, true)
			return nil
		case kind == faultFenced:
			return d.viewsFenced(ctx, c, err)
		case kind == faultToken:
			done, rerr := d.written(ctx, c, own)
			if rerr == nil && done {
				d.reached(nil, true)
				return nil
			}
			if rerr == nil {
				return fmt.Errorf("%w: %w", millrace.ErrFenced, err)
			}
		case kind == faultInvalid && c.docs.anyJSON():
			c.docs.noJSON() // jsonb is for reports: a document that it cannot hold must not stop the consumer
			continue
		case kind == faultConflict && !c.unsure:
			c.unsure = true
			continue
		case kind == faultInvalid, kind == faultConflict:
			return fmt.Errorf("%w: %w", millrace.ErrInvalid, err)
		case ctx.Err() != nil:
			return ctx.Err()
		case kind != faultLocked:
			d.reached(err, true)
		}
		if attempt+1 >= viewTries || !pause(ctx, d.closing, backoff(attempt)) {
			if kind == faultFull {
				return fmt.Errorf("%w: %w", millrace.ErrFull, err)
			}
			return unavailable(err)
		}
	}
}

// viewCommit is one transaction of views.
type viewCommit struct {
	moves []viewMove
	docs  docRows
	// unsure: documents or keys that were to be new are not. What is there is written over.
	unsure bool
}

// viewMove is a checkpoint that moves.
type viewMove struct {
	viewKey
	epoch    uint64
	position uint64
}

func (d *Driver) viewCommit(batches []millrace.ViewBatch) (*viewCommit, error) {
	c := &viewCommit{}
	for i := range batches {
		b := &batches[i]
		if b.Partition < 0 || b.Partition >= d.meta.Partitions {
			return nil, fmt.Errorf("%w: the store has no such partition", millrace.ErrInvalid)
		}
		epoch := d.leasesOf(roleOf(b.Epoch)).epoch(b.Partition)
		if epoch == 0 || b.Epoch != 0 && b.Epoch != epoch {
			return nil, millrace.ErrFenced
		}
		c.moves = append(c.moves, viewMove{viewKey{b.Consumer, b.Partition}, epoch, b.Checkpoint})
		c.docs.puts(b.Puts)
	}
	return c, nil
}

// written says whether the checkpoints in the database are those of an earlier try of ours, whose answer was lost. Where they
// are not, somebody else has gone on from them, or the database has lost the newest: whoever writes must begin anew.
func (d *Driver) written(ctx context.Context, c *viewCommit, own map[int64]bool) (bool, error) {
	all := true
	for _, m := range c.moves {
		t, err := d.tokenOf(ctx, m.viewKey)
		if err != nil {
			return false, err
		}
		if all = all && own[t]; own[t] {
			d.views.set(m.viewKey, t)
		}
	}
	if !all {
		for _, m := range c.moves {
			d.views.forget(m.consumer)
		}
	}
	return all, nil
}

// writeViews is one try. Its token is its own: were it still on its way when the next try has been written, it would find
// that one's and change nothing.
func (d *Driver) writeViews(ctx context.Context, c *viewCommit, own map[int64]bool) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	tokens := make([]int64, len(c.moves))
	var rows array
	for i, m := range c.moves {
		before, ok := d.views.get(m.viewKey)
		if !ok {
			var err error
			if before, err = d.tokenOf(ctx, m.viewKey); err != nil {
				return err
			}
			d.views.set(m.viewKey, before)
		}
		tokens[i] = 1 + rand.Int64N(1<<62) //nolint:gosec // not a secret
		own[tokens[i]] = true
		rows.begin(7)
		rows.int4(m.partition)
		rows.count(epochOf(m.epoch))
		rows.text(m.consumer)
		rows.count(m.position)
		rows.int8(tokens[i])
		rows.int8(before)
		rows.text(fenceNames[roleOf(m.epoch)])
		rows.end()
	}
	err := d.slot(ctx, d.call(ctx, d.sql.commitViews, [][]byte{
		d.rowsParam(checkpointRow, &rows), d.docsParam(&c.docs), d.rowsParam(keyRow, &c.docs.come),
		d.rowsParam(goneRow, &c.docs.removed), d.rowsParam(keyRow, &c.docs.gone), boolean(!c.unsure),
	}))
	for i, m := range c.moves {
		if err == nil {
			d.views.set(m.viewKey, tokens[i])
		}
	}
	return err
}

// viewsFenced notes which partitions are lost.
func (d *Driver) viewsFenced(ctx context.Context, c *viewCommit, err error) error {
	partitions := make([]int, len(c.moves))
	for i, m := range c.moves {
		partitions[i] = m.partition
	}
	role := roleOf(c.moves[0].epoch)
	now, rerr := d.epochs(ctx, role, partitions)
	for _, m := range c.moves {
		if epoch, ok := now[m.partition]; ok && epoch != m.epoch {
			d.leasesOf(role).lose(m.partition, m.epoch)
		}
	}
	return errors.Join(fmt.Errorf("%w: %w", millrace.ErrFenced, err), rerr)
}

// epochs are the tokens under which partitions are owned now, for a role.
func (d *Driver) epochs(ctx context.Context, role Role, partitions []int) (map[int]uint64, error) {
	now := make(map[int]uint64, len(partitions))
	err := d.query(ctx, d.sql.roles.epochs[role], []any{int32s(partitions)}, func(rows pgx.Rows) error {
		var p int
		var epoch int64
		if err := rows.Scan(&p, &epoch); err != nil {
			return err
		}
		now[p] = tokenFor(role, uint64(epoch)) //nolint:gosec // counts owners
		return nil
	})
	return now, err
}

// Checkpoints implements millrace.Driver.
func (d *Driver) Checkpoints(ctx context.Context, consumer string) (millrace.Cursor, error) {
	c := millrace.Cursor{Epoch: d.meta.Epoch, Positions: make([]uint64, d.meta.Partitions)}
	if err := d.reads.Enter(); err != nil {
		return millrace.Cursor{}, err
	}
	defer d.reads.Leave()
	all := make([]int32, d.meta.Partitions)
	for p := range all {
		all[p] = int32(p)
	}
	err := d.query(ctx, d.sql.checkpoints, []any{all, consumer}, func(rows pgx.Rows) error {
		var p int
		var position int64
		if err := rows.Scan(&p, &position); err != nil {
			return err
		}
		c.Positions[p] = uint64(position) //nolint:gosec // counts events
		return nil
	})
	return c, readError(ctx, err)
}

// DropViews implements millrace.Driver, one partition after the other.
func (d *Driver) DropViews(ctx context.Context, consumer string, collections []string) error {
	if err := d.reads.Enter(); err != nil {
		return err
	}
	defer d.reads.Leave()
	if collections == nil {
		collections = []string{}
	}
	for p := range d.meta.Partitions {
		err := d.query(ctx, d.sql.dropViews, []any{p, consumer, collections}, func(pgx.Rows) error { return nil })
		if err != nil {
			return readError(ctx, err)
		}
	}
	d.views.forget(consumer)
	return nil
}

// Resume implements millrace.Shared: commits from now on continue what the database has now. A commit of an earlier run that
// is still on its way finds another token, or makes the next one of this run find another.
func (d *Driver) Resume(ctx context.Context, consumer string) error {
	if err := d.reads.Enter(); err != nil {
		return err
	}
	defer d.reads.Leave()
	for p := range d.meta.Partitions {
		k := viewKey{consumer, p}
		t, err := d.tokenOf(ctx, k)
		if err != nil {
			return readError(ctx, err)
		}
		d.views.set(k, t)
	}
	return nil
}

// Post implements millrace.Shared. Nothing fences it: nobody else writes the row. Unlike views it waits for the disk.
func (d *Driver) Post(ctx context.Context, doc millrace.Document) error {
	if err := d.reads.Enter(); err != nil {
		return err
	}
	defer d.reads.Leave()
	if err := d.failure(); err != nil {
		return err
	}
	if doc.Partition < 0 || doc.Partition >= d.meta.Partitions {
		return fmt.Errorf("%w: the store has no such partition", millrace.ErrInvalid)
	}
	var rows docRows
	rows.put(&doc, nil)
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	err := d.slot(ctx, d.call(ctx, d.sql.post, [][]byte{d.docsParam(&rows), d.rowsParam(keyRow, &rows.come)}))
	if classify(err) == faultFull {
		return fmt.Errorf("%w: %w", millrace.ErrFull, err)
	}
	return readError(ctx, err)
}

// tokenOf is the token of a consumer's last commit in a partition, as the database has it; 0 for none.
func (d *Driver) tokenOf(ctx context.Context, k viewKey) (t int64, err error) {
	err = d.query(ctx, d.sql.tokens, []any{k.partition, k.consumer}, func(rows pgx.Rows) error { return rows.Scan(&t) })
	return t, err
}
