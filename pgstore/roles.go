package pgstore

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
)

// Role is a part of the work on a partition that has an owner of its own. What one role's owner does fences no other.
type Role uint8

// The roles. Deciding is the role of the methods of [Driver]: its owner appends to the log, and may write views too.
const (
	Deciding Role = iota
	Feed          // read models, snapshots, processes
	Notify        // what is told to customers
	roleCount
)

// roleNames are the names of the roles in the table nodes, fenceNames those in the table leases: the deciding has its own row.
var (
	roleNames  = [roleCount]string{"command", "feed", "notify"}
	fenceNames = [roleCount]string{"", "feed", "notify"}
)

// String is the role's name.
func (r Role) String() string { return roleNames[r] }

// A fencing token is an epoch with the role that it counts for in its highest byte, so that who writes views need not say
// under which of its leases: the deciding has 0 there. An epoch rises with each owner, and will not reach so far.
const roleShift = 56

func tokenFor(r Role, epoch uint64) uint64 { return epoch | uint64(r)<<roleShift }
func epochOf(token uint64) uint64          { return token &^ (uint64(0xff) << roleShift) }

// roleOf is the role of a token; of one that was never given out it is the deciding, which does not know it either.
func roleOf(token uint64) Role {
	if r := Role(token >> roleShift); r < roleCount {
		return r
	}
	return Deciding
}

// roleStatements are the SQL texts of the leases of roles beside the deciding, the same for each, and of the epochs, by role.
type roleStatements struct {
	acquire, renew, release, free, nodes string
	epochs                               [roleCount]string
}

func newRoleStatements(sql func(text string) string) roleStatements {
	const left = `(extract(epoch from case when l.lease_until is null or l.lease_until = '-infinity' then interval '0' else l.lease_until - clock_timestamp() end) * 1000)::bigint`
	s := roleStatements{
		acquire: sql(`select S.acquire_role($1, $2, $3, $4::interval)`),
		renew:   sql(`select r from S.renew_role($1, $2, $3, $4::interval) r`),
		release: sql(`select S.release_role($1, $2, $3)`),
		free: sql(`select p.partition from S.partitions p left join S.leases l on l.partition = p.partition and l.role = $1
			where l.owner is null or l.owner = '' or l.owner = $2 or l.lease_until < clock_timestamp() order by p.partition`),
		nodes: sql(`select p.partition, coalesce(l.owner, ''), coalesce(l.epoch, 0), ` + left + `
			from S.partitions p left join S.leases l on l.partition = p.partition and l.role = $1 order by p.partition`),
	}
	for r, name := range fenceNames {
		s.epochs[r] = sql(`select partition, epoch from S.leases where partition = any($1::integer[]) and role = '` + name + `'`)
	}
	s.epochs[Deciding] = sql(`select partition, epoch from S.partitions where partition = any($1::integer[])`)
	return s
}

// leasesOf are this node's leases of a role.
func (d *Driver) leasesOf(r Role) *leases {
	if r == Deciding {
		return &d.leases
	}
	return &d.others[r]
}

// Leases are a node's leases in one role: what package lease looks after.
type Leases struct {
	d    *Driver
	role Role
	l    *leases
}

// Leases gives the leases of a role beside the deciding, whose are the driver's own.
func (d *Driver) Leases(r Role) *Leases { return &Leases{d, r, d.leasesOf(r)} }

// enter begins a call.
func (l *Leases) enter() (leave func(), err error) {
	if err := l.d.reads.Enter(); err != nil {
		return nil, err
	}
	return l.d.reads.Leave, nil
}

// Acquire takes a partition for the role, as [Driver.Acquire] does for the deciding. The token fences views: see
// [millrace.ViewBatch].
func (l *Leases) Acquire(ctx context.Context, partition int) (token uint64, ok bool, err error) {
	if partition < 0 || partition >= l.d.meta.Partitions {
		return 0, false, fmt.Errorf("%w: the store has no such partition", millrace.ErrInvalid)
	}
	leave, err := l.enter()
	if err != nil {
		return 0, false, err
	}
	defer leave()
	start := l.d.o.Now()
	var epoch *int64
	// Not by query, which would try again: each try is an epoch.
	err = l.d.on(ctx, func(conn *pgx.Conn) error {
		_, err := queryOnce(ctx, conn, l.d.sql.roles.acquire, []any{partition, l.name(), l.d.o.Node, l.d.ttl()},
			func(rows pgx.Rows) error { return rows.Scan(&epoch) })
		return err
	})
	if err != nil || epoch == nil {
		return 0, false, readError(ctx, err)
	}
	token = tokenFor(l.role, uint64(*epoch)) //nolint:gosec // counts owners
	l.d.views.forget("", partition)
	l.l.set(partition, token, l.d.until(start))
	return token, true, nil
}

func (l *Leases) name() string { return roleNames[l.role] }

// Renew is as [Driver.Renew].
func (l *Leases) Renew(ctx context.Context) (lost []int, err error) {
	leave, err := l.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	lost = l.l.drop()
	partitions, tokens := l.l.owned()
	if len(partitions) == 0 {
		return lost, nil
	}
	epochs := make([]int64, len(tokens))
	for i, t := range tokens {
		epochs[i] = int64(epochOf(uint64(t))) //nolint:gosec // counts owners
	}
	start := l.d.o.Now()
	have := map[int]bool{}
	err = l.d.query(ctx, l.d.sql.roles.renew, []any{l.name(), int32s(partitions), epochs, l.d.ttl()}, func(rows pgx.Rows) error {
		var p int
		err := rows.Scan(&p)
		have[p] = true
		return err
	})
	if err != nil {
		return append(lost, l.l.drop()...), readError(ctx, err)
	}
	until := l.d.until(start)
	for i, p := range partitions {
		token := uint64(tokens[i]) //nolint:gosec // as it was given out
		if have[p] {
			l.l.extend(p, token, until)
			continue
		}
		l.l.end(p, token)
		lost = append(lost, p)
	}
	return lost, nil
}

// Owned are the partitions that this node owns in the role, as far as it knows.
func (l *Leases) Owned() []int {
	var out []int
	for p := range l.d.meta.Partitions {
		if l.l.epoch(p) != 0 {
			out = append(out, p)
		}
	}
	return out
}

// Release ends the lease of a partition. One that is not owned is no fault.
func (l *Leases) Release(ctx context.Context, partition int) error {
	leave, err := l.enter()
	if err != nil {
		return err
	}
	defer leave()
	token := l.l.epoch(partition)
	if token == 0 {
		return nil
	}
	l.l.end(partition, token)
	//nolint:gosec // small, and counts owners
	return readError(ctx, l.d.exec(ctx, l.d.sql.roles.release, l.name(), []int32{int32(partition)}, []int64{int64(epochOf(token))}))
}

// Join is as [Driver.Join], for those who are there in the role.
func (l *Leases) Join(ctx context.Context) ([]string, error) { return l.d.join(ctx, l.name()) }

// Leave says that this node is going, as far as the role is concerned.
func (l *Leases) Leave(ctx context.Context) error { return l.d.leave(ctx, l.name()) }

// Free are the partitions that Acquire would get: as [Driver.Free].
func (l *Leases) Free(ctx context.Context) ([]int, error) {
	leave, err := l.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	var out []int
	err = l.d.query(ctx, l.d.sql.roles.free, []any{l.name(), l.d.o.Node}, func(rows pgx.Rows) error {
		var p int
		if err := rows.Scan(&p); err != nil {
			return err
		}
		if l.l.epoch(p) == 0 {
			out = append(out, p)
		}
		return nil
	})
	return out, readError(ctx, err)
}

// Nodes tells who owns what in the role, in the order of partitions.
func (l *Leases) Nodes(ctx context.Context) ([]Lease, error) {
	leave, err := l.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	return l.d.owners(ctx, l.d.sql.roles.nodes, l.name())
}

// Attend says that this node is there in a role that owns nothing, for another lease's time.
func (d *Driver) Attend(ctx context.Context, role string) error {
	_, err := d.join(ctx, role)
	return err
}

// Depart says that it is not, in that role.
func (d *Driver) Depart(ctx context.Context, role string) error { return d.leave(ctx, role) }

// Members are the nodes that are there, each with the names of its roles in order.
func (d *Driver) Members(ctx context.Context) (map[string][]string, error) {
	if err := d.reads.Enter(); err != nil {
		return nil, err
	}
	defer d.reads.Leave()
	out := map[string][]string{}
	err := d.query(ctx, d.sql.members, nil, func(rows pgx.Rows) error {
		var name, role string
		err := rows.Scan(&name, &role)
		out[name] = append(out[name], role)
		return err
	})
	return out, readError(ctx, err)
}

func (d *Driver) join(ctx context.Context, role string) ([]string, error) {
	if err := d.reads.Enter(); err != nil {
		return nil, err
	}
	defer d.reads.Leave()
	var out []string
	err := d.query(ctx, d.sql.join, []any{d.o.Node, role, d.ttl()}, func(rows pgx.Rows) error {
		var name string
		err := rows.Scan(&name)
		out = append(out, name)
		return err
	})
	return out, readError(ctx, err)
}

func (d *Driver) leave(ctx context.Context, role string) error {
	if err := d.reads.Enter(); err != nil {
		return err
	}
	defer d.reads.Leave()
	return readError(ctx, d.exec(ctx, d.sql.leave, d.o.Node, role))
}

// owners reads leases.
func (d *Driver) owners(ctx context.Context, sql string, args ...any) ([]Lease, error) {
	var out []Lease
	err := d.query(ctx, sql, args, func(rows pgx.Rows) error {
		var l Lease
		var epoch, left int64
		if err := rows.Scan(&l.Partition, &l.Node, &epoch, &left); err != nil {
			return err
		}
		l.Epoch, l.Left = uint64(epoch), time.Duration(left)*time.Millisecond //nolint:gosec // counts owners
		out = append(out, l)
		return nil
	})
	return out, readError(ctx, err)
}
