package pgstore

import (
	"context"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// statements are the SQL texts with the schema filled in. Their texts are constant, so that pgx describes each once.
type statements struct {
	meta, heads, waiting, backlog          string
	keep, decide, claim, commitViews       string
	chainAt, chainsAt                      string
	look, keysOf, outcomesOf, commandsOf   string
	command, commands, version             string
	events, pending, pendingOf, feed       string
	document, checkpoints                  string
	tokens, dropViews, post, notify        string
	log, logEvents, collections, consumers string
	acquire, renew, release, nodes         string
	join, leave, free                      string
	roles                                  roleStatements
	members                                string
	byKey, byID                            statementsOf
}

// newStatements fills the schema's quoted name in for "S.".
func newStatements(schema string) statements {
	sql := func(text string) string { return strings.ReplaceAll(text, "S.", schema+".") }
	return statements{
		meta: sql(`select id, epoch, partitions from S.store`),
		heads: sql(`select partition, position, chain, ordinal, epoch, (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint
			from S.partitions`),
		waiting: sql(`select p from unnest($1::integer[]) p where exists (select from S.pending w where w.partition = p)`),
		backlog: sql(`select count(*) from S.pending`),

		keep:        sql(`select added from S.keep($1, $2, $3, '{}', 0)`),
		decide:      sql(`select added, removed from S.decide($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`),
		claim:       sql(`select S.claim($1, $2, $3, false, $4)`),
		commitViews: sql(`select S.commit_views($1, $2, $3, $4, $5, $6)`),
		chainAt:     sql(`select chain from S.outcomes where partition = $1 and ordinal = $2`),
		chainsAt: sql(`select u.partition, o.chain from unnest($1::integer[], $2::bigint[]) u(partition, ordinal)
			join S.outcomes o on o.partition = u.partition and o.ordinal = u.ordinal`),

		look:   sql(`select n, value, ordinal from S.look($1, $2, $3)`),
		keysOf: sql(`select partition, coalesce(ordinal, 0) from S.keys where id = any($1::text[])`),
		outcomesOf: sql(`select command_id, partition, status, position, version, events, time_ns, stream, fingerprint, encoded
			from S.outcomes_of($1, $2, $3)`),
		commandsOf: sql(`select id, partition, time_ns, stream, fingerprint from S.commands_of($1, $2)`),
		command: sql(`select ` + commandColumns + ` from S.commands c where c.partition = $1 and c.id = $2
			union all
			select ` + freshColumns + ` from S.outcomes o where o.partition = $1 and o.ordinal = $3 and o.type is not null`),
		// The first of some commands, in their order: up to a size, but for the first one.
		commands: sql(`select n, id, stream, type, time_ns, expected, correlation_id, causation_id, source, data, fingerprint
			from (
				select c.*, u.n, sum(octet_length(c.data)) over (order by u.n rows between unbounded preceding and 1 preceding) as before
				from unnest($1::integer[], $2::text[], $3::bigint[]) with ordinality u(partition, id, ordinal, n)
				cross join lateral (
					select ` + commandColumns + ` from S.commands c where c.partition = u.partition and c.id = u.id
					union all
					select ` + freshColumns + ` from S.outcomes o where o.partition = u.partition and o.ordinal = u.ordinal and o.type is not null
				) c
			) c where coalesce(before, 0) < $4 order by n`),
		version: sql(`select version from S.events where partition = $1 and stream = $2 order by version desc limit 1`),
		events: sql(`select position, version, type, data, time_ns, command_id, correlation_id from S.events
			where partition = $1 and stream = $2 and version >= $3 order by version limit $4`),
		pending: sql(`select asked, accepted_at, seq, id, stream, type, time_ns, expected, correlation_id, causation_id, source, data, fingerprint
			from S.undecided($1, $2, $3, $4, $5, $6)`),
		// The category takes the place of $C: only what stands in the text can be compared with the condition of an index. What
		// sorts behind the hyphen is the dot. An index by what waits and one by category meet: the planner takes the smaller one.
		pendingOf: sql(`select p.accepted_at, p.seq, ` + commandColumns + `
			from S.commands c join S.pending p on p.partition = c.partition and p.id = c.id
			where c.partition = $1 and c.stream >= '$C-' and c.stream < '$C.' order by p.accepted_at, p.seq, p.id limit $2`),
		// For each partition the events behind a position, up to a number and, from the second on, up to a size.
		feed: sql(`select b.partition, e.position, e.stream, e.version, e.type, e.data, e.time_ns, e.command_id, e.correlation_id
			from unnest($1::integer[], $2::bigint[], $3::bigint[]) b(partition, after, until)
			cross join lateral (
				select *, sum(octet_length(data)) over (order by position rows between unbounded preceding and 1 preceding) as before
				from (select * from S.events e where e.partition = b.partition and e.position > b.after and e.position <= b.until
					order by e.position limit $4) e
			) e where coalesce(e.before, 0) < $5 order by b.partition, e.position`),

		// An outcome without its command is left out, as one that is not there.
		log: sql(`select o.ordinal, o.status, o.position, o.version, o.events, o.time_ns, o.encoded, o.chain,
				o.command_id, o.stream, coalesce(o.type, c.type), coalesce(o.command_time_ns, c.time_ns), coalesce(o.expected, c.expected),
				o.correlation_id, coalesce(o.causation_id, c.causation_id), coalesce(o.source, c.source), coalesce(o.data, c.data), o.fingerprint
			from S.outcomes o left join S.commands c on c.partition = o.partition and c.id = o.command_id
			where o.partition = $1 and o.ordinal > $2 and o.ordinal <= $3 and (o.type is not null or c.type is not null)
			order by o.ordinal limit $4`),
		logEvents:   sql(`select position, type, data from S.events where partition = $1 and position > $2 and position <= $3 order by position`),
		collections: sql(`select distinct collection from S.documents order by 1`),
		consumers:   sql(`select distinct consumer from S.checkpoints order by 1`),

		document:    sql(`select data, keys from S.documents where partition = $1 and collection = $2 and id = $3`),
		byKey:       variants(sql(byKeySQL)),
		byID:        variants(sql(byIDSQL)),
		checkpoints: sql(`select partition, position from S.checkpoints where partition = any($1::integer[]) and consumer = $2`),
		tokens:      sql(`select token from S.checkpoints where partition = $1 and consumer = $2`),
		dropViews:   sql(`select S.drop_views($1, $2, $3)`),
		post:        sql(`select S.put_documents($1, $2)`),

		// Nobody needs to wait for the disk: the heads are there to be looked at.
		notify: `select set_config('synchronous_commit', 'off', true), pg_notify($1, $2)`,

		acquire: sql(`select p, a."position", a.chain, a.ordinal, a.epoch from unnest($1::integer[]) p cross join lateral S.acquire(p, $2, $3::interval) a`),
		renew: sql(`with r as materialized (select r from S.renew($1, $2, $3::interval) r)
			select p.partition, p.position, p.chain, p.ordinal, r.r is not null from S.partitions p left join r on r.r = p.partition`),
		release: sql(`select S.release($1, $2)`),
		join:    sql(`select n from S.join_nodes($1, $2, $3::interval) n`),
		leave:   sql(`delete from S.nodes where name = $1 and role = $2`),
		members: sql(`select name, role from S.nodes where until > clock_timestamp() order by name, role`),
		roles:   newRoleStatements(sql),
		free:    sql(`select partition from S.partitions where owner = '' or owner = $1 or lease_until < clock_timestamp() order by partition`),
		nodes: sql(`select partition, owner, epoch, (extract(epoch from case when lease_until = '-infinity' then interval '0' else lease_until - clock_timestamp() end) * 1000)::bigint
			from S.partitions order by partition`),
	}
}

// What scanCommand reads: of a command that was kept before it was decided, and of one that came with its decision.
const (
	commandColumns = `c.id, c.stream, c.type, c.time_ns, c.expected, c.correlation_id, c.causation_id, c.source, c.data, c.fingerprint`
	freshColumns   = `o.command_id, o.stream, o.type, o.command_time_ns, o.expected, o.correlation_id, o.causation_id, o.source, o.data, o.fingerprint`
)

const (
	// readPatience bounds a read: one that takes longer reads too much at once, or waits for a database that is gone.
	readPatience = 30 * time.Second
	// readTries is how often a read is tried that lost its connection: those that stood idle when the server went away are
	// found to be dead one by one.
	readTries = 5
)

// query runs a read to its end. It holds a connection only as long as the rows take, so that each must be copied.
func (d *Driver) query(ctx context.Context, sql string, args []any, each func(pgx.Rows) error) error {
	return d.read(ctx, func(conn *pgx.Conn) (seen bool, err error) { return queryOnce(ctx, conn, sql, args, each) })
}

func queryOnce(ctx context.Context, conn *pgx.Conn, sql string, args []any, each func(pgx.Rows) error) (seen bool, err error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return false, err
	}
	defer rows.Close()
	for rows.Next() {
		seen = true
		if err := each(rows); err != nil {
			return seen, err
		}
	}
	return seen, rows.Err()
}

// read runs a read on a connection, and again on another one where it lost its own and has seen nothing yet.
func (d *Driver) read(ctx context.Context, do func(*pgx.Conn) (seen bool, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for try := 0; ; try++ {
		seen := false
		err := d.on(ctx, func(conn *pgx.Conn) (err error) {
			seen, err = do(conn)
			return err
		})
		if err == nil || seen || !lost(err) || ctx.Err() != nil || try+1 >= readTries {
			return err
		}
		if !pause(ctx, nil, backoff(try)) {
			return err
		}
	}
}

// slot runs a write of a caller's own on a connection, once. It waits for a slot as reads do: those who write facts keep
// their connections.
func (d *Driver) slot(ctx context.Context, do func(*pgx.Conn) error) error {
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return d.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return do(conn.Conn()) })
}

// exec is slot for a statement.
func (d *Driver) exec(ctx context.Context, sql string, args ...any) error {
	return d.slot(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql, args...)
		return err
	})
}

const (
	firstBackoff = 20 * time.Millisecond
	lastBackoff  = time.Second
)

// backoff is how long to wait before the next try: between nothing and a bound that doubles, so that those who failed
// together do not come back together.
func backoff(try int) time.Duration {
	most := min(firstBackoff<<min(try, 10), lastBackoff)
	return time.Duration(rand.Int64N(int64(most) + 1)) //nolint:gosec // not a secret
}

// pause waits; false where ctx ends first. It ends early when hurry is closed.
func pause(ctx context.Context, hurry <-chan struct{}, wait time.Duration) bool {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-hurry:
		return true
	case <-ctx.Done():
		return false
	}
}
