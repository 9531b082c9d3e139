package pgstore

import (
	"context"
	"errors"
	"net"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A commit that waits for a synchronous standby is in the log of the server that has taken it. Where the wait ends before
// the standby has said its word, everybody sees the commit, and a failover loses it. Three things keep what was seen from
// being taken for what was promised:
//
//   - nothing of ours ends such a wait (neverCancel);
//   - an answer that says that the wait was ended is none (noticed, on);
//   - what a repetition finds written is acknowledged after a commit behind it was answered (confirm).

var (
	errNoCancel = errors.New("nothing is cancelled")
	errUnsure   = errors.New("the database stopped waiting for its standby")
)

// neverCancel has a connection that is given up send no request to cancel what it is at, as it would of itself when a
// context ends. A statement that nobody waits for any more ends by itself: all of them are short, and what waits for a
// lock gives up.
func neverCancel(_ context.Context, c *pgx.ConnConfig) error {
	var connected atomic.Bool
	dial, after := c.DialFunc, c.AfterConnect
	c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if connected.Load() {
			return nil, errNoCancel
		}
		return dial(ctx, network, addr)
	}
	c.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		connected.Store(true)
		if after == nil {
			return nil
		}
		return after(ctx, conn)
	}
	return nil
}

// unsure is where a connection notes that a commit on it was not waited for.
const unsure = "millrace.unsure"

// noticed hears the warning of a commit whose wait somebody ended: an administrator, by pg_cancel_backend. It is known by
// the function that gives it, for its text is in the server's language and its code that of any warning.
func noticed(conn *pgconn.PgConn, n *pgconn.Notice) {
	if n.Routine == "SyncRepWaitForLSN" {
		conn.CustomData()[unsure] = true
	}
}

// on does something on a connection, and says whether the answer is one.
func (d *Driver) on(ctx context.Context, do func(*pgx.Conn) error) error {
	conn, err := d.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	notes := conn.Conn().PgConn().CustomData()
	delete(notes, unsure)
	err = do(conn.Conn())
	if err == nil && notes[unsure] != nil && !d.o.trusting {
		return errUnsure
	}
	return err
}

// confirm returns when all that can be seen in the database is promised. A commit waits for the standbys to have
// everything before it, so one that writes as little as possible will do.
func (d *Driver) confirm() error {
	if d.o.trusting {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), d.o.attempt)
	defer cancel()
	return d.on(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "select pg_logical_emit_message(true, $1, '')", applicationName)
		return err
	})
}
