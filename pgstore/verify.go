package pgstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
)

// verifyPage is how many rows the check reads at a time.
const verifyPage = 500

// Verify implements millrace.Driver. It computes all positions, versions and chains again from outcomes and events and
// compares them with the heads; it checks fingerprints; that every command has its claim, and either an outcome or a
// place among the pending; that every outcome has its command, in one place; and that documents and the entries of their indexes belong together. It reads in one
// snapshot and may run beside writers. That snapshot keeps the database from clearing away what is newer.
func (d *Driver) Verify(ctx context.Context, report func(string)) error {
	if err := d.reads.Enter(); err != nil {
		return err
	}
	defer d.reads.Leave()
	tx, err := d.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return readError(ctx, err)
	}
	defer func() {
		_ = tx.Rollback(context.WithoutCancel(ctx)) // nothing was written
	}()
	v := &verifier{d: d, ctx: ctx, tx: tx, report: report}
	if err := v.store(); err != nil {
		return readError(ctx, err)
	}
	for _, check := range []func() error{v.logs, v.commands, v.counts, v.documents} {
		if err := check(); err != nil {
			return readError(ctx, err)
		}
	}
	return nil
}

type verifier struct {
	d      *Driver
	ctx    context.Context //nolint:containedctx // it lives for one call
	tx     pgx.Tx
	report func(string)
}

// fault reports damage; what is left is why the check could not go on.
func (v *verifier) fault(err error) error {
	if errors.Is(err, millrace.ErrCorrupt) {
		v.report(err.Error())
		return nil
	}
	return err
}

func (v *verifier) sql(text string) string {
	return strings.ReplaceAll(text, "S.", quoted(v.d.o.Schema)+".")
}

// each reads rows of the snapshot.
func (v *verifier) each(text string, args []any, row func(pgx.Rows) error) error {
	rows, err := v.tx.Query(v.ctx, v.sql(text), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// store checks what is not of one partition.
func (v *verifier) store() error {
	var meta millrace.Meta
	var rows, outside int64
	err := v.each(`select id, epoch, partitions, (select count(*) from S.partitions),
		(select count(*) from S.partitions p where p.partition < 0 or p.partition >= s.partitions) from S.store s`, nil,
		func(r pgx.Rows) error { return r.Scan(&meta.ID, &meta.Epoch, &meta.Partitions, &rows, &outside) })
	if err != nil {
		return err
	}
	if meta != v.d.meta {
		v.report("store: it is not the one that was opened")
	}
	if rows != int64(meta.Partitions) || outside > 0 {
		v.report(fmt.Sprintf("partitions: %d rows for %d partitions", rows, meta.Partitions))
	}
	return nil
}

// counts reports what must not be, by partition.
func (v *verifier) counts() error {
	for _, c := range wrongRows {
		err := v.each(c.count+" group by 1 order by 1", nil, func(r pgx.Rows) error {
			var p int
			var n int64
			if err := r.Scan(&p, &n); err != nil {
				return err
			}
			v.report(fmt.Sprintf("partition %d: %d %s", p, n, c.what))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// wrongRows count what must not be.
var wrongRows = []struct{ what, count string }{
	{"streams have a gap in their versions", `select partition, count(*) from (
		select partition from S.events group by partition, stream having min(version) <> 1 or max(version) <> count(*)) x`},
	{"commands without their claim of the id", `select c.partition, count(*) from (
			select partition, id, fingerprint, null::bigint as ordinal from S.commands
			union all select partition, command_id, fingerprint, ordinal from S.outcomes where type is not null
		) c left join S.keys k on k.id = c.id
		where k.id is null or k.partition <> c.partition or k.fingerprint <> c.fingerprint or k.ordinal <> c.ordinal
			or c.ordinal is not null and k.ordinal is null`},
	{"outcomes without their command, or of another content", `select o.partition, count(*) from S.outcomes o
		left join S.commands c on c.partition = o.partition and c.id = o.command_id
		where o.type is null and (c.id is null or c.fingerprint <> o.fingerprint or c.stream <> o.stream or c.correlation_id <> o.correlation_id)`},
	{"outcomes with a part of a command", `select o.partition, count(*) from S.outcomes o
		where not ` + wholeCommand + ` and (o.expected is not null or num_nonnulls(o.type, o.command_time_ns, o.causation_id, o.source, o.data) > 0)`},
	{"commands that are kept twice", `select c.partition, count(*) from S.commands c
		join S.outcomes o on o.partition = c.partition and o.command_id = c.id where o.type is not null`},
	{"undecided commands that are not pending", `select c.partition, count(*) from S.commands c
		where not exists (select from S.outcomes o where o.partition = c.partition and o.command_id = c.id)
		and not exists (select from S.pending w where w.partition = c.partition and w.id = c.id)`},
	{"pending commands that are decided", `select w.partition, count(*) from S.pending w
		where exists (select from S.outcomes o where o.partition = w.partition and o.command_id = w.id)`},
	{"pending commands that were never kept", `select w.partition, count(*) from S.pending w
		where not exists (select from S.commands c where c.partition = w.partition and c.id = w.id)`},
	{"checkpoints ahead of the log", `select c.partition, count(*) from S.checkpoints c
		left join S.partitions p on p.partition = c.partition where p.partition is null or c.position > p.position`},
	{"documents whose jsonb is not what their bytes say", `select partition, count(*) from S.documents
		where doc is not null and doc <> convert_from(data, 'UTF8')::jsonb`},
}

// logs walks through the decisions of all partitions.
func (v *verifier) logs() error {
	type row struct {
		partition        int
		want             head
		events, outcomes int64
	}
	var all []row
	err := v.each(`select p.partition, p.position, p.chain, p.ordinal, coalesce(e.n, 0), coalesce(o.n, 0) from S.partitions p
		left join (select partition, count(*) n from S.events group by 1) e on e.partition = p.partition
		left join (select partition, count(*) n from S.outcomes group by 1) o on o.partition = p.partition
		order by p.partition`, nil, func(r pgx.Rows) error {
		var x row
		var position int64
		var chain []byte
		err := r.Scan(&x.partition, &position, &chain, &x.want.ordinal, &x.events, &x.outcomes)
		x.want.Position = uint64(position) //nolint:gosec // counts events
		copy(x.want.Chain[:], chain)
		all = append(all, x)
		return err
	})
	if err != nil {
		return err
	}
	for _, x := range all {
		if x.events != int64(x.want.Position) || x.outcomes != x.want.ordinal { //nolint:gosec // counts events
			v.report(fmt.Sprintf("partition %d: %d events and %d outcomes, but the head says %d and %d", x.partition, x.events, x.outcomes, x.want.Position, x.want.ordinal))
		}
		if err := v.fault(v.log(x.partition, x.want)); err != nil {
			return err
		}
	}
	return nil
}

// log walks through the decisions of one partition.
func (v *verifier) log(p int, want head) error {
	var at head
	for at.ordinal < want.ordinal {
		page, err := v.decisions(p, &at)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return fmt.Errorf("%w: outcomes: partition %d: outcome %d is missing", millrace.ErrCorrupt, p, at.ordinal+1)
		}
	}
	if at != want {
		v.report(fmt.Sprintf("partition %d: the log's chain does not end as the head says", p))
	}
	return nil
}

// decisions checks the next page of a partition's log, and moves the head behind it.
func (v *verifier) decisions(p int, at *head) ([]verified, error) {
	var page []verified
	err := v.each(`select ordinal, command_id, status, position, version, events, time_ns, stream, correlation_id, fingerprint, encoded, chain
		from S.outcomes where partition = $1 and ordinal > $2 order by ordinal limit $3`, []any{p, at.ordinal, verifyPage}, func(r pgx.Rows) error {
		x, err := scanVerified(r)
		if err == nil {
			page = append(page, x)
		}
		return err
	})
	if err != nil || len(page) == 0 {
		return nil, err
	}
	end := at.Position
	for i := range page {
		end += uint64(page[i].events) //nolint:gosec // counts events
	}
	var events []millrace.Recorded
	err = v.each(`select position, stream, version, type, data, time_ns, command_id, correlation_id from S.events
		where partition = $1 and position > $2 and position <= $3 order by position`, []any{p, int64(at.Position), int64(end)}, func(r pgx.Rows) error { //nolint:gosec // counts events
		var e millrace.Recorded
		err := scanEvent(r, &e, &e.Position, &e.Stream, &e.Version)
		events = append(events, e)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i := range page {
		n := min(page[i].events, len(events))
		if err := page[i].check(p, at, events[:n]); err != nil {
			return nil, err
		}
		events = events[n:]
	}
	return page, nil
}

// verified is an outcome's row.
type verified struct {
	d       millrace.Decision
	ordinal int64
	events  int
	encoded []byte
	chain   millrace.ChainHash
}

func scanVerified(r pgx.Rows) (verified, error) {
	x := verified{d: millrace.Decision{Command: &millrace.Command{}}}
	var status int16
	var at int64
	var fp, chain []byte
	err := r.Scan(&x.ordinal, &x.d.Command.ID, &status, &x.d.Position, &x.d.Version, &x.events, &at, &x.d.Command.Stream, &x.d.Command.CorrelationID, &fp, &x.encoded, &chain)
	x.d.Status, x.d.Time = millrace.Status(status), nano(at) //nolint:gosec // one of four
	copy(x.d.Fingerprint[:], fp)
	copy(x.chain[:], chain)
	return x, err
}

// check computes a decision's link of the chain again and moves the head behind it.
func (x *verified) check(p int, at *head, events []millrace.Recorded) error {
	corrupt := func(why string) error {
		return fmt.Errorf("%w: outcomes: partition %d, ordinal %d: %s", millrace.ErrCorrupt, p, at.ordinal+1, why)
	}
	switch {
	case x.ordinal != at.ordinal+1:
		return corrupt("it is missing")
	case x.d.Position != at.Position:
		return corrupt("its position does not continue the one before")
	case len(events) != x.events:
		return corrupt("events are missing")
	}
	for i := range events {
		e := &events[i]
		if e.Position != x.d.Position+uint64(i)+1 || e.Version != x.d.Version+uint64(i)+1 || e.Stream != x.d.Command.Stream ||
			e.CommandID != x.d.Command.ID || e.CorrelationID != x.d.Command.CorrelationID || !e.Time.Equal(x.d.Time) {
			return corrupt(fmt.Sprintf("its event at position %d is not what it says", e.Position))
		}
		x.d.Events = append(x.d.Events, millrace.NewEvent{Type: e.Type, Data: e.Data})
	}
	if x.d.Status != millrace.StatusDecided {
		d, err := millrace.DecodeDecision(x.encoded)
		if err != nil || d.Status != x.d.Status {
			return corrupt("its refusal cannot be read")
		}
		x.d.Refusal, x.d.Failure = d.Refusal, d.Failure
	}
	encoded := millrace.AppendDecision(nil, &x.d)
	next := millrace.NextChain(at.Chain, encoded)
	if next != x.chain {
		return corrupt("the chain is not the hash of what is kept")
	}
	*at = head{Head: millrace.Head{Position: at.Position + uint64(len(events)), Chain: next}, ordinal: x.ordinal}
	return nil
}

// wholeCommand: an outcome holds its command.
const wholeCommand = `num_nulls(o.type, o.command_time_ns, o.causation_id, o.source, o.data) = 0`

// commands checks the fingerprints.
func (v *verifier) commands() error {
	var id string
	err := v.fingerprints("commands", `select c.partition, c.id, `+commandColumns+` from S.commands c where (c.partition, c.id) > ($1, $2)
		order by c.partition, c.id limit $3`, &id)
	if err != nil {
		return err
	}
	var ordinal int64
	return v.fingerprints("outcomes", `select o.partition, o.ordinal, `+freshColumns+` from S.outcomes o
		where (o.partition, o.ordinal) > ($1, $2) and `+wholeCommand+` order by o.partition, o.ordinal limit $3`, &ordinal)
}

// fingerprints checks those of the commands of a table, page by page; at is where the last column of its key goes.
func (v *verifier) fingerprints(table, text string, at any) error {
	for p, n := -1, verifyPage; n == verifyPage; {
		n = 0
		err := v.each(text, []any{p, at, verifyPage}, func(r pgx.Rows) error {
			a, err := scanCommand(r, &p, at)
			if err != nil {
				return err
			}
			n++
			if a.Command.Fingerprint() != a.Fingerprint {
				v.report(fmt.Sprintf("%s: partition %d: the fingerprint of a command is not that of its content", table, p))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// documents checks that the entries of the indexes are those that the documents have.
func (v *verifier) documents() error {
	p, collection, id := -1, "", []byte{}
	want, found, n := int64(0), int64(0), verifyPage
	for n == verifyPage {
		n = 0
		var rows docRows
		err := v.each(`select partition, collection, id, keys from S.documents where (partition, collection, id) > ($1, $2, $3)
			order by partition, collection, id limit $4`, []any{p, collection, id, verifyPage}, func(r pgx.Rows) error {
			var keys []byte
			if err := r.Scan(&p, &collection, &id, &keys); err != nil {
				return err
			}
			n++
			d := millrace.Document{Collection: collection, Partition: p, ID: string(id)}
			var err error
			if d.Keys, err = decodeKeys(collection, keys); err != nil {
				return v.fault(err)
			}
			rows.put(&d, nil)
			return nil
		})
		if err != nil {
			return err
		}
		have, err := v.entries(&rows.come)
		if err != nil {
			return err
		}
		want, found = want+int64(rows.come.n), found+have
	}
	var entries int64
	if err := v.each(`select count(*) from S.document_keys`, nil, func(r pgx.Rows) error { return r.Scan(&entries) }); err != nil {
		return err
	}
	if want != found {
		v.report(fmt.Sprintf("document_keys: documents lack %d of their %d entries", want-found, want))
	}
	if entries != found {
		v.report(fmt.Sprintf("document_keys: %d entries that no document has", entries-found))
	}
	return nil
}

// entries counts those of the given entries that there are.
func (v *verifier) entries(k *array) (n int64, err error) {
	if k.n == 0 {
		return 0, nil
	}
	count := v.sql(`select count(*)::integer from unnest($1::S.key_row[]) u
		join S.document_keys k using (partition, collection, idx, key, id)`)
	err = plainly(v.ctx, v.tx.Conn(), count, [][]byte{v.d.rowsParam(keyRow, k)}, &n)
	return n, err
}
