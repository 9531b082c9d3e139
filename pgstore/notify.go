package pgstore

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// notifier collects which partitions moved here, for the other nodes, and hears of theirs. A notification is only a
// hint: what is lost on the way, or while nobody listens, is found by polling.
type notifier struct {
	mu    sync.Mutex
	moved []bool
	any   chan struct{}
	heard chan struct{}
}

func (n *notifier) init(partitions int) {
	n.moved, n.any, n.heard = make([]bool, partitions), make(chan struct{}, 1), make(chan struct{}, 1)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (n *notifier) mark(parts []*part) {
	n.mu.Lock()
	for _, p := range parts {
		n.moved[p.partition] = true
	}
	n.mu.Unlock()
	signal(n.any)
}

// maxPayload is what a notification can hold, less some room for the node's name.
const maxPayload = 7900

// payload is the node's name and the partitions that moved since the last one.
func (n *notifier) payload(node string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var b strings.Builder
	b.WriteString(node)
	for p, moved := range n.moved {
		if n.moved[p] = false; moved && b.Len() < maxPayload {
			b.WriteByte(' ')
			b.WriteString(strconv.Itoa(p))
		}
	}
	return b.String()
}

// tell sends at most one notification in an interval.
func (d *Driver) tell() {
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-d.notify.any:
		}
		ctx, cancel := context.WithTimeout(d.ctx, attemptTimeout)
		_, err := d.pool.Exec(ctx, d.sql.notify, d.o.Schema, d.notify.payload(d.o.Node))
		cancel()
		if err != nil && d.ctx.Err() == nil {
			d.o.Logger.Debug("cannot notify other nodes; they find out by polling", "error", err)
		}
		if !pause(d.ctx, nil, notifyEvery) {
			return
		}
	}
}

// listen hears of other nodes' commits, and connects again when it lost its connection.
func (d *Driver) listen() {
	for try := 0; d.ctx.Err() == nil; try++ {
		began := d.o.Now()
		err := d.hear()
		d.stats.listening(false)
		if d.ctx.Err() != nil {
			return
		}
		if d.o.Now().Sub(began) > lastBackoff {
			try = 0
		}
		d.o.Logger.Debug("not listening; polling alone", "error", err)
		if !pause(d.ctx, nil, backoff(try)) {
			return
		}
	}
}

func (d *Driver) hear() error {
	cfg := d.cfg.Copy()
	if d.o.ListenDSN != "" {
		var err error
		if cfg, err = pgx.ParseConfig(d.o.ListenDSN); err != nil {
			return err
		}
	}
	conn, err := pgx.ConnectConfig(d.ctx, cfg)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // nothing is kept in it
	}()
	// LISTEN takes no parameters.
	if _, err := conn.Exec(d.ctx, "listen "+quoted(d.o.Schema)); err != nil {
		return err
	}
	d.stats.listening(true)
	signal(d.notify.heard) // what moved before
	for {
		n, err := conn.WaitForNotification(d.ctx)
		if err != nil {
			return err
		}
		if node, _, _ := strings.Cut(n.Payload, " "); node != d.o.Node {
			d.stats.notified(d.o.Now())
			signal(d.notify.heard)
		}
	}
}
