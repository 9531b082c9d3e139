package pgstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
)

// leases are the partitions that this node owns.
type leases struct {
	now  func() time.Time
	keep bool

	mu    sync.Mutex
	own   []uint64    // tokens by partition, 0 for not owned
	until []time.Time // by the local clock, before the database's
	ended []int       // what was found to be lost since Renew was told
}

func (l *leases) init(n int, o *Options) {
	l.now, l.keep, l.own, l.until = o.Now, o.OwnAll, make([]uint64, n), make([]time.Time, n)
}

// epoch is the fencing token of a partition, 0 where it is not owned. A lease that this node could not renew in time is
// over for it, before the database gives the partition to another one. Not with OwnAll: nobody is to take over, and
// the epoch in each transaction holds the promise anyway.
func (l *leases) epoch(p int) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.keep && l.own[p] != 0 && !l.now().Before(l.until[p]) {
		return 0
	}
	return l.own[p]
}

func (l *leases) set(p int, epoch uint64, until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.own[p], l.until[p] = epoch, until
}

// lose notes that the ownership under an epoch is over; a newer one stays. The next Renew tells it.
func (l *leases) lose(p int, epoch uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.own[p] == epoch && epoch != 0 {
		l.own[p] = 0
		l.ended = append(l.ended, p)
	}
}

// end is lose for who knows it already.
func (l *leases) end(p int, epoch uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.own[p] == epoch {
		l.own[p] = 0
	}
}

// follows says whether a partition's head is what the database says: not where this node owns it. An owner with a newer
// epoch ends the ownership.
func (l *leases) follows(p int, epoch uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	own := l.own[p]
	if own != 0 && epoch > own {
		l.own[p] = 0
		l.ended = append(l.ended, p)
	}
	return own == 0 || epoch > own
}

// owned are the partitions and their epochs.
func (l *leases) owned() (partitions []int, epochs []int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p, e := range l.own {
		if e != 0 {
			partitions, epochs = append(partitions, p), append(epochs, int64(e)) //nolint:gosec // counts owners
		}
	}
	return partitions, epochs
}

// drop tells what was lost, and takes out what has run out by the local clock.
func (l *leases) drop() (lost []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.ended {
		if l.own[p] == 0 && !slices.Contains(lost, p) {
			lost = append(lost, p)
		}
	}
	if l.ended = nil; l.keep {
		return lost
	}
	now := l.now()
	for p, e := range l.own {
		if e != 0 && !now.Before(l.until[p]) {
			l.own[p] = 0
			lost = append(lost, p)
		}
	}
	return lost
}

// clockMargin is the part of a lease by which the local clock may run slower than the database's.
const clockMargin = 20

func (d *Driver) until(from time.Time) time.Time {
	return from.Add(d.o.LeaseTTL - d.o.LeaseTTL/clockMargin)
}

func (d *Driver) ttl() string { return fmt.Sprintf("%d microseconds", d.o.LeaseTTL.Microseconds()) }

// Acquire takes a partition that is free, whose lease is over, or that this node has already, under a new epoch; ok is
// false where another node owns it. From then on decisions and views of the partition may be committed here, and nothing
// that an owner before has still on its way. Whoever decides must tell the store: [millrace.Store.Own].
func (d *Driver) Acquire(ctx context.Context, partition int) (epoch uint64, ok bool, err error) {
	if partition < 0 || partition >= d.meta.Partitions {
		return 0, false, fmt.Errorf("%w: the store has no such partition", millrace.ErrInvalid)
	}
	if err := d.reads.Enter(); err != nil {
		return 0, false, err
	}
	defer d.reads.Leave()
	got, err := d.acquire(ctx, []int{partition})
	return got[partition], got[partition] != 0, err
}

// acquire takes as many of some partitions as it can get, and returns their epochs. The partitions are in order, so that
// two who want the same ones do not wait for each other.
func (d *Driver) acquire(ctx context.Context, partitions []int) (map[int]uint64, error) {
	_, sure := d.heads.known()
	start := d.o.Now()
	got := map[int]uint64{}
	var all []int
	var at []head
	// Not by query, which would try again: each try is an epoch.
	err := d.on(ctx, func(conn *pgx.Conn) error {
		_, err := queryOnce(ctx, conn, d.sql.acquire, []any{int32s(partitions), d.o.Node, d.ttl()}, func(rows pgx.Rows) error {
			var token int64
			p, h, err := d.scanHead(rows, &token)
			got[p] = uint64(token) //nolint:gosec // counts owners
			all, at = append(all, p), append(at, h)
			return err
		})
		return err
	})
	if err != nil {
		return nil, readError(ctx, err)
	}
	for i, p := range all {
		if err := d.compare(p, sure[p], at[i]); err != nil {
			return nil, err
		}
	}
	d.heads.acquired(all, at)
	d.views.forget("", all...)
	for _, p := range all {
		d.w.acquired(p, got[p], d.until(start))
	}
	return got, nil
}

// Renew extends all leases by one call. lost are the partitions that are not this node's any more: another node took
// them, their leases ran out here before the database could be reached, or nobody knows whether their last decisions were
// written. Those may be acquired again. Renew must be called several times in a lease's time. What it sees of all
// partitions is sure when it is answered: nothing before it can be lost alone.
func (d *Driver) Renew(ctx context.Context) (lost []int, err error) {
	if err := d.reads.Enter(); err != nil {
		return nil, err
	}
	defer d.reads.Leave()
	lost = d.leases.drop()
	partitions, epochs := d.leases.owned()
	if len(partitions) == 0 {
		return lost, nil
	}
	start := d.o.Now()
	have := map[int]bool{}
	var all []int
	var seen []head
	err = d.query(ctx, d.sql.renew, []any{int32s(partitions), epochs, d.ttl()}, func(rows pgx.Rows) error {
		var renewed bool
		p, h, err := d.scanHead(rows, &renewed)
		all, seen = append(all, p), append(seen, h)
		have[p] = renewed
		return err
	})
	if err != nil {
		return append(lost, d.leases.drop()...), readError(ctx, err)
	}
	if slices.Contains(slices.Collect(maps.Values(have)), true) { // something was written, and waited for
		d.heads.promised(all, seen)
	}
	until := d.until(start)
	for i, p := range partitions {
		epoch := uint64(epochs[i]) //nolint:gosec // counts owners
		if have[p] {
			d.leases.extend(p, epoch, until)
			continue
		}
		d.leases.end(p, epoch)
		lost = append(lost, p)
	}
	return lost, nil
}

func (l *leases) extend(p int, epoch uint64, until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.own[p] == epoch && until.After(l.until[p]) {
		l.until[p] = until
	}
}

// Release hands a partition over: nothing more is decided here, what is on its way is written, and then the lease ends
// at once. A partition that is not owned is no fault.
func (d *Driver) Release(ctx context.Context, partition int) error {
	if partition < 0 || partition >= d.meta.Partitions {
		return fmt.Errorf("%w: the store has no such partition", millrace.ErrInvalid)
	}
	if err := d.reads.Enter(); err != nil {
		return err
	}
	defer d.reads.Leave()
	epoch := d.leases.epoch(partition)
	if epoch == 0 {
		return nil
	}
	d.leases.end(partition, epoch)
	if err := d.w.settled(ctx, partition); err != nil {
		return err
	}
	err := d.exec(ctx, d.sql.release, []int32{int32(partition)}, []int64{int64(epoch)}) //nolint:gosec // small
	return readError(ctx, err)
}

// Owned are the partitions that this node owns, as far as it knows.
func (d *Driver) Owned() []int {
	var out []int
	for p := range d.meta.Partitions {
		if d.leases.epoch(p) != 0 {
			out = append(out, p)
		}
	}
	return out
}

// Join says that this node is there for another lease's time, and which nodes are, itself among them, in order.
func (d *Driver) Join(ctx context.Context) ([]string, error) { return d.join(ctx, Deciding.String()) }

// Leave says that this node is going: its share is the others' from now on.
func (d *Driver) Leave(ctx context.Context) error { return d.leave(ctx, Deciding.String()) }

// Free are the partitions that [Driver.Acquire] would get, in order: those that nobody owns, whose owner's lease is over,
// or that are this node's without its knowing, from before it started or after a loss.
func (d *Driver) Free(ctx context.Context) ([]int, error) {
	if err := d.reads.Enter(); err != nil {
		return nil, err
	}
	defer d.reads.Leave()
	var out []int
	err := d.query(ctx, d.sql.free, []any{d.o.Node}, func(rows pgx.Rows) error {
		var p int
		if err := rows.Scan(&p); err != nil {
			return err
		}
		if d.leases.epoch(p) == 0 {
			out = append(out, p)
		}
		return nil
	})
	return out, readError(ctx, err)
}

// Lease says who owns a partition.
type Lease struct {
	Partition int
	Node      string // empty where nobody does
	Epoch     uint64
	Left      time.Duration // by the database's clock; not positive where the lease is over
}

// Nodes tells who owns what, in the order of partitions.
func (d *Driver) Nodes(ctx context.Context) ([]Lease, error) {
	if err := d.reads.Enter(); err != nil {
		return nil, err
	}
	defer d.reads.Leave()
	return d.owners(ctx, d.sql.nodes)
}

// acquireEvery is how often a partition is tried that another node still has.
const acquireEvery = 50 * time.Millisecond

// acquireAll takes every partition, and waits for the leases of others to end.
func (d *Driver) acquireAll(ctx context.Context) error {
	for {
		missing := d.notOwned()
		if d.o.Citus && len(missing) > 0 {
			missing = missing[:1]
		}
		if len(missing) == 0 {
			return nil
		}
		got, err := d.acquire(ctx, missing)
		if err != nil {
			return fmt.Errorf("acquire partitions: %w", err)
		}
		if len(got) == 0 && !pause(ctx, nil, acquireEvery) {
			return fmt.Errorf("acquire partitions %v: another node has them: %w", missing, ctx.Err())
		}
	}
}

func (d *Driver) notOwned() []int {
	var out []int
	for p := range d.meta.Partitions {
		if d.leases.epoch(p) == 0 {
			out = append(out, p)
		}
	}
	return out
}

// keepAll renews all leases, and takes back what was lost and is free.
func (d *Driver) keepAll() {
	t := time.NewTicker(d.o.LeaseTTL / 3)
	defer t.Stop()
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-t.C:
		}
		ctx, cancel := context.WithTimeout(d.ctx, d.o.LeaseTTL)
		lost, err := d.Renew(ctx)
		if d.ctx.Err() == nil && (err != nil || len(lost) > 0) {
			d.o.Logger.Warn("leases", "lost", lost, "error", err)
		}
		for _, p := range d.notOwned() {
			if err == nil {
				_, _, err = d.Acquire(ctx, p)
			}
		}
		cancel()
	}
}

func (d *Driver) releaseAll(ctx context.Context) error {
	var errs []error
	if partitions, epochs := d.leases.owned(); len(partitions) > 0 {
		_, err := d.pool.Exec(ctx, d.sql.release, int32s(partitions), epochs)
		errs = append(errs, err)
	}
	for r := Feed; r < roleCount; r++ {
		partitions, epochs := d.others[r].owned()
		for i := range epochs {
			epochs[i] = int64(epochOf(uint64(epochs[i]))) //nolint:gosec // counts owners
		}
		if len(partitions) > 0 {
			_, err := d.pool.Exec(ctx, d.sql.roles.release, r.String(), int32s(partitions), epochs)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
