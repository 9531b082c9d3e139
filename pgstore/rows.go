package pgstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// The writes go to the functions of the migrations as arrays of rows in PostgreSQL's binary form, put together here: one
// parameter for each table, whose columns the database need not put side by side again. pgx encodes such values by
// reflection, and arrays of single columns cost the database more than the rows that come of them.

// The object ids of PostgreSQL's own types; they are the same everywhere.
const (
	oidBool = 16
	oidData = 17
	oidInt8 = 20
	oidInt2 = 21
	oidInt4 = 23
	oidText = 25
)

// rowType is a composite type of the migrations.
type rowType int

const (
	headRow rowType = iota
	commandRow
	outcomeRow
	eventRow
	documentRow
	keyRow
	goneRow
	checkpointRow
	rowTypes
)

// rowTypeNames are their names in the schema.
var rowTypeNames = [rowTypes]string{"head_row", "command_row", "outcome_row", "event_row", "document_row", "key_row", "gone_row", "checkpoint_row"}

// array is a parameter in the making: rows of one type.
type array struct {
	n   int
	buf []byte // behind room for the header
	row int    // where the row at hand begins
}

// arrayHeader: dimensions, whether there are nulls, the type of the elements, their number, the index of the first.
const arrayHeader = 5 * 4

// rowRoom is about what a row takes beside its payload.
const rowRoom = 512

// room makes room for so many rows, so that they are not copied again and again as the array grows.
func (a *array) room(rows, payload int) {
	if rows > 0 {
		a.buf = make([]byte, 0, arrayHeader+rows*rowRoom+payload)
	}
}

// begin starts a row of so many columns, which must all be added before the next one.
func (a *array) begin(columns uint32) {
	if a.n == 0 {
		a.buf = append(a.buf[:0], make([]byte, arrayHeader)...)
	}
	a.n++
	a.row = len(a.buf)
	a.buf = append(a.buf, 0, 0, 0, 0)
	a.buf = binary.BigEndian.AppendUint32(a.buf, columns)
}

// end finishes the row.
func (a *array) end() {
	binary.BigEndian.PutUint32(a.buf[a.row:], uint32(len(a.buf)-a.row-4)) //nolint:gosec // a row is at most a few MiB
}

func (a *array) field(oid, size uint32) {
	a.buf = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(a.buf, oid), size)
}

func (a *array) int2(v int16) {
	a.field(oidInt2, 2)
	a.buf = binary.BigEndian.AppendUint16(a.buf, uint16(v)) //nolint:gosec // the bits
}

func (a *array) int4(v int) {
	a.field(oidInt4, 4)
	a.buf = binary.BigEndian.AppendUint32(a.buf, uint32(v)) //nolint:gosec // partitions and counts of a batch
}

func (a *array) int8(v int64) {
	a.field(oidInt8, 8)
	a.buf = binary.BigEndian.AppendUint64(a.buf, uint64(v)) //nolint:gosec // the bits
}

// count takes what counts events, which int64 holds.
func (a *array) count(v uint64) { a.int8(int64(v)) } //nolint:gosec // counts events

func (a *array) bool(v bool) {
	a.field(oidBool, 1)
	if v {
		a.buf = append(a.buf, 1)
	} else {
		a.buf = append(a.buf, 0)
	}
}

func (a *array) text(s string) {
	a.field(oidText, uint32(len(s))) //nolint:gosec // bounded
	a.buf = append(a.buf, s...)
}

func (a *array) data(b []byte) {
	a.field(oidData, uint32(len(b))) //nolint:gosec // bounded
	a.buf = append(a.buf, b...)
}

// dataOf is data of what is kept as text in this process.
func (a *array) dataOf(s string) {
	a.field(oidData, uint32(len(s))) //nolint:gosec // bounded
	a.buf = append(a.buf, s...)
}

// null is no value of a type.
func (a *array) null(oid uint32) { a.field(oid, ^uint32(0)) }

// param is the finished parameter.
func (a *array) param(elements uint32) []byte {
	if a.n == 0 {
		return binary.BigEndian.AppendUint32(make([]byte, 8, 12), elements)
	}
	h := binary.BigEndian.AppendUint32(a.buf[:0], 1)
	h = binary.BigEndian.AppendUint32(h, 0)
	h = binary.BigEndian.AppendUint32(h, elements)
	h = binary.BigEndian.AppendUint32(h, uint32(a.n)) //nolint:gosec // bounded
	binary.BigEndian.AppendUint32(h, 1)
	return a.buf
}

// texts is an array of plain texts, and numbers one of integers.
func texts(values []string) []byte {
	a := array{n: len(values), buf: make([]byte, arrayHeader)}
	for _, s := range values {
		a.buf = binary.BigEndian.AppendUint32(a.buf, uint32(len(s))) //nolint:gosec // bounded
		a.buf = append(a.buf, s...)
	}
	return a.param(oidText)
}

func numbers(values []int) []byte {
	a := array{n: len(values), buf: make([]byte, arrayHeader)}
	for _, n := range values {
		a.buf = binary.BigEndian.AppendUint32(a.buf, 4)
		a.buf = binary.BigEndian.AppendUint32(a.buf, uint32(n)) //nolint:gosec // partitions
	}
	return a.param(oidInt4)
}

// whole is a plain integer.
func whole(v int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(v)) } //nolint:gosec // bounded

func boolean(v bool) []byte {
	if v {
		return []byte{1}
	}
	return []byte{0}
}

// rowsParam is the parameter of rows of a type of this store.
func (d *Driver) rowsParam(t rowType, a *array) []byte { return a.param(d.types[t]) }

// findTypes reads what numbers the types of the migrations have in this database.
func (d *Driver) findTypes(ctx context.Context) error {
	found := map[string]uint32{}
	rows, err := d.pool.Query(ctx, `select t.typname::text, t.oid from pg_type t join pg_namespace n on n.oid = t.typnamespace
		where n.nspname = $1 and t.typname = any($2::text[])`, d.o.Schema, rowTypeNames[:])
	if err != nil {
		return err
	}
	var name string
	var oid uint32
	if _, err := pgx.ForEachRow(rows, []any{&name, &oid}, func() error { found[name] = oid; return nil }); err != nil {
		return err
	}
	for t, name := range rowTypeNames {
		if d.types[t] = found[name]; d.types[t] == 0 {
			return fmt.Errorf("%w: the type %s is missing", ErrSchema, name)
		}
	}
	return nil
}

// call runs a function of the migrations with finished parameters, on a connection: one statement, one round trip. counts
// are the integers that it returns; null is 0.
func (d *Driver) call(ctx context.Context, sql string, params [][]byte, counts ...*int64) func(*pgx.Conn) error {
	return func(conn *pgx.Conn) error {
		r, err := d.result(ctx, conn, sql, params)
		if err != nil {
			return err
		}
		return readCounts(r, counts)
	}
}

// callRows is call for a function that returns rows of integers.
func (d *Driver) callRows(ctx context.Context, sql string, params [][]byte, each func(row []int64)) func(*pgx.Conn) (bool, error) {
	return func(conn *pgx.Conn) (seen bool, err error) {
		r, err := d.result(ctx, conn, sql, params)
		if err != nil {
			return false, err
		}
		row := make([]int64, len(r.FieldDescriptions))
		for _, values := range r.Rows {
			for i, v := range values {
				if row[i], err = integer(v); err != nil {
					return true, err
				}
			}
			each(row)
		}
		return true, nil
	}
}

// result runs a function under its name, or without one behind a pool.
func (d *Driver) result(ctx context.Context, conn *pgx.Conn, sql string, params [][]byte) (*pgconn.Result, error) {
	if d.named.Load() {
		s, err := conn.Prepare(ctx, sql, sql) // once for each connection
		if err == nil {
			r := conn.PgConn().ExecPrepared(ctx, s.Name, params, binaryForm, binaryForm).Read()
			if err = r.Err; err == nil {
				return r, nil
			}
		}
		if !d.forgot(err) {
			return nil, err
		}
	}
	r := conn.PgConn().ExecParams(ctx, sql, params, nil, binaryForm, binaryForm).Read()
	return r, r.Err
}

// binaryForm is the form of all parameters and results.
var binaryForm = []int16{pgx.BinaryFormatCode}

// plainly is a call without a name. In a transaction of several statements there is no other: one that fails because a pool
// forgot it ends the transaction.
func plainly(ctx context.Context, conn *pgx.Conn, sql string, params [][]byte, counts ...*int64) error {
	return readCounts(conn.PgConn().ExecParams(ctx, sql, params, nil, binaryForm, binaryForm).Read(), counts)
}

func readCounts(r *pgconn.Result, counts []*int64) error {
	if r.Err != nil {
		return r.Err
	}
	if len(counts) == 0 {
		return nil
	}
	if len(r.Rows) != 1 || len(r.Rows[0]) != len(counts) {
		return fmt.Errorf("a function returned %d rows", len(r.Rows))
	}
	for i, v := range r.Rows[0] {
		n, err := integer(v)
		if err != nil {
			return err
		}
		*counts[i] = n
	}
	return nil
}

// integer is an integer in binary form; null is 0.
func integer(v []byte) (int64, error) {
	switch len(v) {
	case 0:
		return 0, nil
	case 4:
		return int64(int32(binary.BigEndian.Uint32(v))), nil //nolint:gosec // the bits
	case 8:
		return int64(binary.BigEndian.Uint64(v)), nil //nolint:gosec // the bits
	}
	return 0, fmt.Errorf("a function returned %d bytes for a number", len(v))
}

// forgot says whether a call failed because the server does not know it by its name, or has another session's under it: a
// pool such as pgbouncer's transaction mode puts each transaction on any of its sessions. It did nothing then. From now on
// calls are sent unnamed, which costs the server some parsing.
//
// Only calls of functions have names. The plan of a query under a name is kept, and may be one for the few rows that a young
// store had when it was made.
func (d *Driver) forgot(err error) bool {
	var pg *pgconn.PgError
	if !d.mayForget || !errors.As(err, &pg) || pg.Code != "26000" && pg.Code != "42P05" { // invalid_sql_statement_name, duplicate_prepared_statement
		return false
	}
	if d.named.CompareAndSwap(true, false) {
		d.o.Logger.Info("a pool stands before the database: statements are sent without names")
	}
	return true
}
