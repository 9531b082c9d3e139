package sim

import (
	"fmt"
	"maps"
	"sync"
	"time"

	millrace "github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/client"
)

// maxSurprises bounds the surprises that are kept: the first ones say enough.
const maxSurprises = 20

// level is a stock level as the simulator knows it.
type level struct {
	onHand, reserved int64
	unclear          bool
}

// ledger is what the simulator knows by the answers that it got. It is safe for use by several goroutines.
type ledger struct {
	mu sync.Mutex
	// keep: ids and orders are remembered, for the reconciliation. Otherwise they are counted.
	keep     bool
	commands map[string]string // id -> status; "" where there was no answer
	orders   []*simOrder
	bad      []string // ids of malformed requests
	// What is counted where nothing is kept.
	statuses     map[string]int
	placed       int
	units        int64
	minor        map[string]int64
	malformedAll int

	levels map[string]*level
	cursor millrace.Cursor

	done, replays, noAnswer int
	surprises               []string
	surpriseCount           int
	latencies               [3]histogram
}

func newLedger(keep bool) *ledger {
	return &ledger{keep: keep, commands: map[string]string{}, levels: map[string]*level{}, statuses: map[string]int{}, minor: map[string]int64{}}
}

func (l *ledger) answered() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done++
}

// book notes the outcome of an acknowledged command.
func (l *ledger) book(id, status string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.keep {
		l.statuses[status]++
		return
	}
	if before := l.commands[id]; before != "" && before != status {
		l.surpriseLocked("a command was %s and then %s", before, status)
	}
	l.commands[id] = status
}

// lost notes a request without an answer.
func (l *ledger) lost(id string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unclearLocked(id)
	if isGivenUp(err) {
		return
	}
	l.noAnswer++
}

func (l *ledger) unclear(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unclearLocked(id)
}

func (l *ledger) unclearLocked(id string) {
	if _, known := l.commands[id]; l.keep && id != "" && !known {
		l.commands[id] = ""
	}
}

// order notes an order before it is sent.
func (l *ledger) order(o *simOrder) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.keep {
		l.orders = append(l.orders, o)
	}
}

// isPlaced notes that an order was placed.
func (l *ledger) isPlaced(o *simOrder) {
	o.placed, o.status = true, "placed"
	l.mu.Lock()
	defer l.mu.Unlock()
	l.placed++
	l.units += o.units
	l.minor[o.currency] += o.minor
}

func (l *ledger) replayed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replays++
}

func (l *ledger) malformed(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.malformedAll++
	if l.keep {
		l.bad = append(l.bad, id)
	}
}

func (l *ledger) levelOf(sku string) *level {
	if l.levels[sku] == nil {
		l.levels[sku] = &level{}
	}
	return l.levels[sku]
}

func (l *ledger) stock(sku string, onHand, reserved int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.levelOf(sku)
	one.onHand += onHand
	one.reserved += reserved
}

func (l *ledger) stockUnclear(sku string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.levelOf(sku).unclear = true
}

// saw takes a cursor in: reads at the end must have come as far.
func (l *ledger) saw(token string) {
	if token == "" {
		return
	}
	c, err := millrace.ParseCursor(token)
	if err != nil {
		l.surprise("a cursor cannot be read")
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cursor.Epoch = c.Epoch
	for p, pos := range c.Positions {
		for len(l.cursor.Positions) <= p {
			l.cursor.Positions = append(l.cursor.Positions, 0)
		}
		l.cursor.Positions[p] = max(l.cursor.Positions[p], pos)
	}
}

// reach is the cursor of everything that was answered, or "".
func (l *ledger) reach() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.cursor.Positions) == 0 {
		return ""
	}
	return l.cursor.String()
}

func (l *ledger) surprise(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.surpriseLocked(format, args...)
}

func (l *ledger) surpriseLocked(format string, args ...any) {
	l.surpriseCount++
	if len(l.surprises) < maxSurprises {
		l.surprises = append(l.surprises, fmt.Sprintf(format, args...))
	}
}

// The histograms.
const (
	ofOrders = iota
	ofBatches
	ofOthers
)

func (l *ledger) latency(k kind, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch k {
	case webOrder, duplicate:
		l.latencies[ofOrders].add(d)
	case posBatch:
		l.latencies[ofBatches].add(d)
	case malformed, unknownType, brokenRule, stockMove:
		l.latencies[ofOthers].add(d)
	}
}

// fill writes the ledger's figures into a report.
func (l *ledger) fill(rep *Report) {
	l.mu.Lock()
	defer l.mu.Unlock()
	statuses := l.statuses
	if l.keep {
		statuses = map[string]int{}
		for _, status := range l.commands {
			statuses[status]++
		}
	}
	rep.Decided, rep.Refused, rep.Dead = statuses[client.StatusDecided], statuses[client.StatusRefused], statuses[client.StatusDead]
	rep.Commands = rep.Decided + rep.Refused + rep.Dead
	rep.Replayed, rep.Malformed, rep.Unavailable = l.replays, l.malformedAll, l.noAnswer
	rep.Orders, rep.Units, rep.Totals = l.placed, l.units, maps.Clone(l.minor)
	rep.Latency = map[string]Percentiles{}
	for i, name := range [...]string{ofOrders: "order", ofBatches: "batch", ofOthers: "other"} {
		if l.latencies[i].count > 0 {
			rep.Latency[name] = l.latencies[i].percentiles()
		}
	}
	rep.Surprises, rep.SurpriseCount = l.surprises, l.surpriseCount
	rep.OK = l.surpriseCount == 0
	for i := range rep.Checks {
		rep.OK = rep.OK && rep.Checks[i].OK
	}
}
