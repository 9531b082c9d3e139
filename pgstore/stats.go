package pgstore

import (
	"sync"
	"time"
)

// Stats are counters since Open, and how fresh what is known of other nodes is.
type Stats struct {
	// What was written here: transactions, the partitions in them, and what they hold.
	Transactions, Partitions, Commands, Decisions, Events int64
	// Looks is how often the heads were read. MovedTold are the heads that had moved when a notification led to the look,
	// MovedPolled those that only the interval found: where they are many, notifications are late or lost.
	Looks, MovedTold, MovedPolled int64
	// Notifications of other nodes that were heard.
	Notifications int64
	Listening     bool
	// SinceLook and SinceNotification are the ages of the last ones; zero where there was none. SinceLook is the bound of
	// how old what is known of other nodes' heads may be.
	SinceLook, SinceNotification time.Duration
	// Connections that are open, and those in use.
	Connections, Busy int
}

type counters struct {
	mu           sync.Mutex
	s            Stats
	look, notify time.Time
}

func (c *counters) wrote(partitions, commands, decisions, events int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.s.Transactions++
	c.s.Partitions += int64(partitions)
	c.s.Commands += int64(commands)
	c.s.Decisions += int64(decisions)
	c.s.Events += int64(events)
}

func (c *counters) looked(now time.Time, moved int, told bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.look = now
	c.s.Looks++
	if told {
		c.s.MovedTold += int64(moved)
	} else {
		c.s.MovedPolled += int64(moved)
	}
}

func (c *counters) notified(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notify = now
	c.s.Notifications++
}

func (c *counters) listening(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.s.Listening = on
}

// Stats are the driver's counters.
func (d *Driver) Stats() Stats {
	pool := d.pool.Stat()
	now := d.o.Now()
	c := &d.stats
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.s
	if !c.look.IsZero() {
		s.SinceLook = now.Sub(c.look)
	}
	if !c.notify.IsZero() {
		s.SinceNotification = now.Sub(c.notify)
	}
	s.Connections, s.Busy = int(pool.TotalConns()), int(pool.AcquiredConns())
	return s
}
