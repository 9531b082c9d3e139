package localstore

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
)

// childRole makes the test binary play a part instead of running tests: a process that the parent can kill.
const childRole = "MILLRACE_TEST_CHILD"

func TestMain(m *testing.M) {
	switch role := strings.Fields(os.Getenv(childRole)); {
	case len(role) == 0:
		os.Exit(m.Run())
	case role[0] == "commit":
		childFails(childCommits(role[1], role[2], role[3] == "early"))
	case role[0] == "index":
		childFails(childMeetsIndexFaults(role[1], role[2], role[3], role[4]))
	}
}

// say tells the parent something.
func say(format string, args ...any) {
	_, err := fmt.Fprintf(os.Stdout, format+"\n", args...)
	childFails(err)
}

func childFails(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(9)
	}
}

// child starts the test binary in a role.
func child(t *testing.T, role ...string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe) //nolint:gosec // this very binary
	cmd.Env = append(os.Environ(), childRole+"="+strings.Join(role, " "), "GOMAXPROCS=2")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

// ackLine tells the parent of an acknowledgement: whatever it has read was acknowledged before.
func ackLine(o *millrace.Outcome) string {
	return fmt.Sprintf("ack %s %s %d %d %d %d %d %d %s\n", o.CommandID, o.Stream, o.Partition, o.Status, o.Position, o.Version, o.Events, o.Time.UnixNano(), hex.EncodeToString(o.Fingerprint[:]))
}

func parseAck(line string) (o millrace.Outcome, err error) {
	var nanos int64
	var fp string
	_, err = fmt.Sscanf(line, "ack %s %s %d %d %d %d %d %d %s", &o.CommandID, &o.Stream, &o.Partition, &o.Status, &o.Position, &o.Version, &o.Events, &nanos, &fp)
	o.Time = time.Unix(0, nanos).UTC()
	_, derr := hex.Decode(o.Fingerprint[:], []byte(fp))
	// What is refused or dead stands as the committers say it.
	switch o.Status {
	case millrace.StatusRefused:
		o.Refusal = &millrace.Refusal{Kind: millrace.RefusedRule, Code: "no", Detail: "the rule says no"}
	case millrace.StatusDead:
		o.Failure = &millrace.Failure{Reason: millrace.ReasonDecide, Error: "panic", Attempts: 1}
	default:
	}
	return o, errors.Join(err, derr)
}

// printing commits batches and prints what is acknowledged, from within done.
func printing(c *committer, out io.Writer, mu *sync.Mutex) error {
	b := c.next()
	done := make(chan error, 1)
	c.s.Commit(b, func(err error) {
		if err == nil {
			var lines strings.Builder
			for _, o := range outcomes(b) {
				lines.WriteString(ackLine(&o))
			}
			mu.Lock()
			_, err = io.WriteString(out, lines.String())
			mu.Unlock()
		}
		done <- err
	})
	return <-done
}

// childCommits commits in all partitions until it is killed.
func childCommits(dir, round string, early bool) error {
	s, err := openWith(dir, Options{Partitions: 3, CacheSize: 1 << 20, MemTableSize: 64 << 10, filterBytes: 4 << 10, AnchorEvery: time.Millisecond, ackEarly: early}, 64<<10)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for p := range 3 {
		wg.Go(func() {
			c, err := newCommitter(s, &ledger{}, p, round)
			for err == nil {
				err = printing(c, os.Stdout, &mu)
			}
			errs[p] = err
		})
	}
	wg.Go(func() {
		for errs[3] == nil {
			errs[3] = project(context.Background(), s, "live")
		}
	})
	wg.Wait()
	return errors.Join(errs...)
}

// killed runs a child on a folder, kills it after some acknowledgements, and returns what it acknowledged.
func killed(t *testing.T, dir, round string, early bool, after int) []millrace.Outcome {
	t.Helper()
	mode := "late"
	if early {
		mode = "early"
	}
	cmd, lines := child(t, "commit", dir, round, mode)
	var acked []millrace.Outcome
	for lines.Scan() {
		if !strings.HasPrefix(lines.Text(), "ack ") || len(strings.Fields(lines.Text())) != 10 {
			continue // the line that the kill cut short
		}
		o, err := parseAck(lines.Text())
		if err != nil {
			continue
		}
		acked = append(acked, o)
		if len(acked) == after {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("the child was to be killed, but ended by itself: %v", err)
	}
	return acked
}

func killLoop(t *testing.T, kills int) {
	rng := rand.New(rand.NewPCG(seed(t), 0)) //nolint:gosec // a test's choice
	dir := t.TempDir()
	var all []millrace.Outcome
	for round := range kills {
		acked := killed(t, dir, "k"+strconv.Itoa(round), false, 1+rng.IntN(150))
		all = append(all, acked...)
		s, err := openWith(dir, small(t, Options{}), 64<<10)
		if err != nil {
			t.Fatalf("kill %d: open: %v", round, err)
		}
		look := acked // those of this round, and now and then all
		if round%10 == 9 || round == kills-1 {
			look = all
		}
		if err := errors.Join(check(s, look), checkViews(s, "live"), s.Close()); err != nil {
			t.Fatalf("kill %d: %v", round, err)
		}
	}
	t.Logf("%d kills, %d acknowledgements", kills, len(all))
}

// TestKilledProcessLosesNothingAcknowledged kills a real process on a real disk.
func TestKilledProcessLosesNothingAcknowledged(t *testing.T) {
	kills := 50
	if brief() {
		kills = 8
	}
	killLoop(t, kills)
}

// TestSoakKills is the same for longer.
func TestSoakKills(t *testing.T) {
	if !soaking() {
		t.Skip("MILLRACE_SOAK is not set")
	}
	killLoop(t, 1000)
}

// TestKillTestNoticesEarlyAcknowledgement is the control.
func TestKillTestNoticesEarlyAcknowledgement(t *testing.T) {
	for round := range 50 {
		dir := t.TempDir()
		acked := killed(t, dir, "k", true, 20+round)
		s, err := openWith(dir, small(t, Options{}), 64<<10)
		if err != nil {
			t.Fatal(err)
		}
		lost := check(s, acked)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if errors.Is(lost, errLost) {
			t.Logf("lost after %d kills: %v", round+1, lost)
			return
		}
	}
	t.Error("a store that acknowledges before it writes has lost nothing in 50 kills: the test would not notice a fault")
}

// childMeetsIndexFaults lets the k-th operation of a kind on Pebble's files fail, each in a store of its own: Pebble ends
// the process where it cannot go on.
func childMeetsIndexFaults(dir, kind, errno, from string) error {
	injected := map[string]error{"EIO": syscall.EIO, "ENOSPC": syscall.ENOSPC}[errno]
	k, err := strconv.ParseInt(from, 10, 64)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	for ; ; k++ {
		say("k %d", k)
		f := &fault{kind: kind, err: injected, k: k, in: isIndex}
		if err := indexFault(fmt.Sprintf("%s/%d", dir, k), f, &mu); err != nil {
			if f.hits.Load() == 0 {
				return fmt.Errorf("%s: %w", f, err)
			}
			say("failed %v", errors.Is(err, millrace.ErrCorrupt))
		}
		if f.hits.Load() == 0 {
			say("end")
			return nil
		}
	}
}

func indexFault(dir string, f *fault, mu *sync.Mutex) error {
	var failure error
	o := Options{
		Partitions: 1, CacheSize: 1 << 20, MemTableSize: 64 << 10, filterBytes: 4 << 10, noBackground: true, Fatal: func(err error) { failure = err },
		FS: &hookFS{FS: vfs.Default, before: f.before},
	}
	s, err := openWith(dir, o, 64<<10)
	if err != nil {
		return err
	}
	c, err := newCommitter(s, &ledger{}, 0, "i")
	for i := 0; i < 20 && err == nil; i++ {
		if err = printing(c, os.Stdout, mu); err == nil && i%5 == 4 {
			err = s.Driver().(*driver).db.Flush() //nolint:forcetypeassert // opened above
		}
	}
	if err == nil {
		err = check(s, nil)
	}
	return errors.Join(err, failure, s.Close())
}

// TestFailedOperationOfTheIndexLosesNothing lets the k-th operation on Pebble's files fail, for all k.
func TestFailedOperationOfTheIndexLosesNothing(t *testing.T) {
	kinds := []string{"write EIO", "write ENOSPC", "sync EIO", "create ENOSPC", "create EIO", "open EIO", "read EIO", "rename EIO", "remove EIO", "link EIO", "list EIO", "mkdir EIO"}
	if brief() {
		kinds = kinds[:3]
	}
	faults, deaths := 0, 0
	for _, kind := range kinds {
		for from, done := int64(1), false; !done; {
			dir := t.TempDir()
			what := strings.Fields(kind)
			cmd, lines := child(t, "index", dir, what[0], what[1], strconv.FormatInt(from, 10))
			k := from
			acked := map[int64][]millrace.Outcome{}
			for lines.Scan() {
				switch line := lines.Text(); {
				case strings.HasPrefix(line, "k "):
					if n, err := strconv.ParseInt(line[2:], 10, 64); err == nil {
						k, acked[n] = n, nil
					}
				case strings.HasPrefix(line, "ack "):
					if o, err := parseAck(line); err == nil {
						acked[k] = append(acked[k], o)
					}
				case line == "failed true":
					t.Errorf("%s %d: a fault of the machine is taken for damage", kind, k)
				case line == "end":
					done = true
				}
			}
			if err := cmd.Wait(); err != nil {
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() == 9 {
					t.Fatalf("%s %d: %v", kind, k, err)
				}
				deaths++
			}
			for n, acks := range acked {
				faults++
				path := fmt.Sprintf("%s/%d", dir, n)
				s, err := openWith(path, small(t, Options{Partitions: 1, noBackground: true}), 64<<10)
				if err != nil {
					t.Fatalf("%s %d: open on a healthy disk: %v", kind, n, err)
				}
				if err := errors.Join(check(s, acks), s.Close()); err != nil {
					t.Fatalf("%s %d: on a healthy disk: %v", kind, n, err)
				}
			}
			from = k + 1
		}
	}
	t.Logf("%d faults, %d of them ended the process", faults, deaths)
}
