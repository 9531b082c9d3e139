package process

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/millrace-io/millrace"
)

// Options of New; nil is fine.
type Options struct {
	// Call makes one attempt at a call. An error has it made again later; what is final, a no included, is a result. It is
	// called by many goroutines. Required of a process that makes calls.
	Call func(ctx context.Context, c *millrace.CallRequest) (result []byte, err error)
	// Calls is how many calls are made at a time by one worker. Defaults to 64.
	Calls int
	// Backoff is how long a call waits after a failed attempt, from 1; an error may say so itself by a method
	// RetryAfter() time.Duration. Defaults to 1 s, doubling up to 5 min, each less up to a fifth.
	Backoff func(attempt int) time.Duration
	// Observer is told what happens. Defaults to nobody.
	Observer Observer
	// Logger gets instances that stop and commands that are not accepted for a while. Defaults to nothing.
	Logger *slog.Logger
	// Now is the clock. Defaults to time.Now.
	Now func() time.Time
}

// Observer is told what processes do. It must be quick and is called by several goroutines.
type Observer interface {
	// Sent: so many commands were accepted.
	Sent(process string, commands int)
	// Fired: a timer fired, so long after it was due.
	Fired(process string, late time.Duration)
	// Called: an attempt at a call has ended; err is why it failed.
	Called(process string, took time.Duration, err error)
	// Stopped: an instance has stopped, because its process broke its contract.
	Stopped(process string)
}

type nobody struct{}

func (nobody) Sent(string, int)                    {}
func (nobody) Fired(string, time.Duration)         {}
func (nobody) Called(string, time.Duration, error) {}
func (nobody) Stopped(string)                      {}

const (
	// lookEvery is how often the clock is compared with the timer that is due next: a clock that jumps is noticed so late.
	lookEvery = 100 * time.Millisecond
	// maxArrived bounds the outcomes that one commit takes, and the answers: as many as it takes events when it is behind, so that
	// neither waits for the other.
	maxArrived = 4096
	// maxTurn bounds the timers that fire in one commit in each partition, and the instances that are asked for again: after a long
	// pause, what fell due meanwhile is paced by commits, and events come in between.
	maxTurn = 512
	// maxRounds bounds how often instances react to outcomes that are known at once within one commit. What takes more sends
	// commands in a circle.
	maxRounds = 64
	// maxResent bounds the bodies of dead letters that are read to be sent again together, in bytes: each may have 1 MiB, and
	// an intake takes 8 MiB of them.
	maxResent = 4 << 20
	// maxWaiters is how many outcomes are awaited at a time; those behind have mostly come when it is their turn.
	maxWaiters = 256
	// postponed is how long a timer waits again whose instance must not be touched.
	postponed = 30 * time.Second
	// firstRetry and lastRetry bound the pause before commands are sent again that were not accepted.
	firstRetry = 50 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// lingers are the pauses before looks at what became of the commands that a commit has sent, on a shared store: the partitions'
// loops of this node decide within the first one, those of others, which hear of them within 20 ms, within both.
var lingers = [...]time.Duration{15 * time.Millisecond, 30 * time.Millisecond}

// Manager runs the instances of one process.
type Manager struct {
	o        Options
	p        *millrace.ProcessManager
	store    *millrace.Store
	registry *millrace.Registry
	intake   millrace.Intake
	freshID  func() string // for the test that shows why ids follow from steps
}

// New makes a manager. Its commands go to intake.
func New(store *millrace.Store, registry *millrace.Registry, intake millrace.Intake, p *millrace.ProcessManager, opts *Options) *Manager {
	m := &Manager{p: p, store: store, registry: registry, intake: intake}
	if opts != nil {
		m.o = *opts
	}
	if m.o.Calls == 0 {
		m.o.Calls = 64
	}
	if m.o.Backoff == nil {
		m.o.Backoff = backoff
	}
	if m.o.Observer == nil {
		m.o.Observer = nobody{}
	}
	if m.o.Logger == nil {
		m.o.Logger = slog.New(slog.DiscardHandler)
	}
	if m.o.Now == nil {
		m.o.Now = time.Now
	}
	return m
}

// backoff is the default of Options.Backoff. Those who failed together do not come back together.
func backoff(attempt int) time.Duration {
	d := min(time.Second<<min(attempt-1, 20), 5*time.Minute)
	return d - time.Duration(rand.Int64N(int64(d/5))) //nolint:gosec // not a secret
}

// Consumer is the manager as a consumer of the feed, to be run like all others.
func (m *Manager) Consumer() millrace.Consumer {
	return millrace.Consumer{
		Name: m.p.Name, Categories: []string{m.p.Category}, Effects: true,
		Work: func() millrace.Work { return newWork(m) },
	}
}

// collection names the documents of a table of the process.
func (m *Manager) collection(t *millrace.Table) string { return collection(m.p.Name, t) }

func collection(process string, t *millrace.Table) string { return process + "." + t.Name }
