package localstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
)

// seed is printed, and taken from MILLRACE_SEED where that is set.
func seed(t testing.TB) uint64 {
	n := rand.Uint64() //nolint:gosec // a test's choice
	if s, err := strconv.ParseUint(os.Getenv("MILLRACE_SEED"), 10, 64); err == nil {
		n = s
	}
	t.Logf("MILLRACE_SEED=%d", n)
	return n
}

// brief says whether to sample what is exhaustive otherwise.
func brief() bool { return testing.Short() || raced }

// soaking says whether the long form of the tests was asked for.
func soaking() bool { return os.Getenv("MILLRACE_SOAK") != "" }

// outage is the disk after a power loss, and what had been acknowledged before it.
type outage struct {
	n     int64
	at    op
	kept  int // percent of what was not synced
	fs    *vfs.MemFS
	acked []millrace.Outcome
	rng   *rand.Rand
}

func (c *outage) String() string {
	return fmt.Sprintf("cut %d before %s %s, %d%% kept", c.n, c.at.kind, c.at.path, c.kept)
}

// powerLoss runs a workload and cuts the power before every operation that changes the disk. It hands each cut to
// examine, several at a time, and returns how many there were.
func powerLoss(t *testing.T, rng *rand.Rand, early bool, batches int, examine func(*outage) error) (cuts int64, faults []error) {
	mem := vfs.NewCrashableMem()
	l := &ledger{}
	jobs := make(chan *outage)
	var examiners sync.WaitGroup
	var mu sync.Mutex
	for range 3 {
		examiners.Go(func() {
			for c := range jobs {
				if err := examine(c); err != nil {
					mu.Lock()
					faults = append(faults, fmt.Errorf("%s: %w", c, err))
					mu.Unlock()
				}
			}
		})
	}
	var n atomic.Int64
	fs := &hookFS{FS: mem, before: func(o op) error {
		if !o.changes() {
			return nil
		}
		mu.Lock()
		c := &outage{n: n.Add(1), at: o, kept: rng.IntN(101), rng: rand.New(rand.NewPCG(rng.Uint64(), 1))} //nolint:gosec // a test's choice
		switch c.n % 4 {
		case 0:
			c.kept = 0
		case 1:
			c.kept = 100
		}
		mu.Unlock()
		c.acked = l.snapshot() // first: what is acknowledged while the clone is made need not be in it
		c.fs = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: c.kept, RNG: c.rng})
		jobs <- c
		return nil
	}}
	s, err := openWith("data/store", small(t, Options{FS: fs, ackEarly: early}), 16<<10)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var consumer sync.WaitGroup
	consumer.Go(func() {
		for ctx.Err() == nil {
			if err := project(ctx, s, "live"); err != nil && ctx.Err() == nil {
				t.Errorf("project: %v", err)
				return
			}
		}
	})
	if err := l.run(s, "r", batches); err != nil {
		t.Error(err)
	}
	cancel()
	consumer.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	close(jobs)
	examiners.Wait()
	return n.Load(), faults
}

// recoverFrom opens a disk after a power loss and checks it. While it recovers the power goes again, at a random
// operation; that disk is returned too.
func recoverFrom(t *testing.T, c *outage, mem *vfs.MemFS) (again *vfs.MemFS, err error) {
	at, n := c.rng.IntN(40), 0
	var mu sync.Mutex
	opening := true
	fs := &hookFS{FS: mem, before: func(o op) error {
		mu.Lock()
		defer mu.Unlock()
		if opening && o.changes() {
			if n == at {
				again = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: c.rng.IntN(101), RNG: c.rng})
			}
			n++
		}
		return nil
	}}
	s, err := openWith("data/store", small(t, Options{FS: fs, noBackground: true}), 16<<10)
	if err != nil {
		if len(c.acked) > 0 {
			return nil, fmt.Errorf("%w: open: %w", errLost, err)
		}
		return nil, fmt.Errorf("open: %w", err)
	}
	mu.Lock()
	opening = false
	mu.Unlock()
	err = errors.Join(check(s, c.acked), checkViews(s, "live"))
	if err == nil {
		err = (&ledger{}).run(s, fmt.Sprintf("after-%d-%d", c.n, at), 2) // and it takes writes
	}
	return again, errors.Join(err, s.Close())
}

// TestPowerLossAtEveryWriteBoundaryLosesNothingAcknowledged is I1, I2, I11, I17 and I20 of a power loss.
func TestPowerLossAtEveryWriteBoundaryLosesNothingAcknowledged(t *testing.T) {
	batches := 40
	if brief() {
		batches = 12
	}
	powerLossLosesNothing(t, batches)
}

// TestSoakPowerLoss is the same for longer.
func TestSoakPowerLoss(t *testing.T) {
	if !soaking() {
		t.Skip("MILLRACE_SOAK is not set")
	}
	for range 20 {
		powerLossLosesNothing(t, 60)
	}
}

func powerLossLosesNothing(t *testing.T, batches int) {
	rng := rand.New(rand.NewPCG(seed(t), 0)) //nolint:gosec // a test's choice
	var twice atomic.Int64
	cuts, faults := powerLoss(t, rng, false, batches, func(c *outage) error {
		again, err := recoverFrom(t, c, c.fs)
		if err != nil || again == nil {
			return err
		}
		twice.Add(1)
		if _, err := recoverFrom(t, c, again); err != nil {
			return fmt.Errorf("after a second crash during recovery: %w", err)
		}
		return nil
	})
	t.Logf("%d cuts, %d of them cut again during recovery", cuts, twice.Load())
	for i, err := range faults {
		if i == 5 {
			t.Fatalf("and %d more", len(faults)-i)
		}
		t.Error(err)
	}
	if want := int64(300); !brief() && cuts < want {
		t.Errorf("%d cuts, want at least %d", cuts, want)
	}
}

// TestPowerLossTestNoticesEarlyAcknowledgement is the control: a store that acknowledges before it writes must fail.
func TestPowerLossTestNoticesEarlyAcknowledgement(t *testing.T) {
	rng := rand.New(rand.NewPCG(seed(t), 0)) //nolint:gosec // a test's choice
	var lost atomic.Int64
	cuts, _ := powerLoss(t, rng, true, 4, func(c *outage) error {
		s, err := openWith("data/store", small(t, Options{FS: c.fs, noBackground: true}), 16<<10)
		if err != nil {
			return err
		}
		if errors.Is(check(s, c.acked), errLost) {
			lost.Add(1)
		}
		return s.Close()
	})
	t.Logf("%d of %d cuts lost something", lost.Load(), cuts)
	if lost.Load() == 0 {
		t.Error("a store that acknowledges before it writes has lost nothing: the test would not notice a fault")
	}
}
