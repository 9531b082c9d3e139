package deadletter_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/letter"
	"github.com/millrace-io/millrace/internal/powercut"
)

// freshIDs sends what the process sends under other ids each time.
type freshIDs struct{ millrace.Intake }

func (f freshIDs) AcceptAll(ctx context.Context, cs []millrace.Command) []millrace.Accepted {
	for i := range cs {
		if strings.HasPrefix(cs[i].ID, millrace.StepPrefix) {
			cs[i].ID = rand.Text()
		}
	}
	return f.Intake.AcceptAll(ctx, cs)
}

// The plug is pulled before and after each write while dead letters are sent again, one by hand, two by a job. Whatever is left
// on the disk, each has been decided once in the end. The control sends them under fresh ids, and has one decided twice.
func TestPowerCutDuringRedrive(t *testing.T) {
	dead := vfs.NewCrashableMem()
	w := start(t, options{fs: dead, faulty: every})
	w.kill(add("c1", "a", 1))
	w.kill(add("c2", "b", 2))
	w.kill(add("c3", "b", 3))
	w.mustStop()
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprint("after=", after), func(t *testing.T) {
			t.Parallel()
			for n := 1; ; n++ {
				cut, got := redriveWithCut(t, dead, n, after, nil)
				if !cut {
					t.Logf("%d writes", n-1)
					break
				}
				if !slices.Equal(got, []int{1, 2, 3}) {
					t.Errorf("cut %d: %v", n, got)
				}
			}
		})
	}
	t.Run("control", func(t *testing.T) {
		t.Parallel()
		fresh := func(in millrace.Intake) millrace.Intake { return freshIDs{in} }
		for n := 1; ; n++ {
			cut, got := redriveWithCut(t, dead, n, true, fresh)
			if !cut {
				t.Fatal("without ids that follow from the attempts nothing goes wrong")
			}
			if len(got) > 3 {
				break
			}
		}
	})
}

// redriveWithCut redrives the three dead letters of a disk, which stays as it is, up to the n-th write, and the rest from what was on the disk then. It says whether
// there were so many writes, and what was decided in the end.
func redriveWithCut(t *testing.T, dead *vfs.MemFS, n int, after bool, sending func(millrace.Intake) millrace.Intake) (cut bool, got []int) {
	t.Helper()
	fs := dead.CrashClone(vfs.CrashCloneCfg{})
	var disk *vfs.MemFS // as the power cut has left it
	w := start(t, options{fs: fs, sending: sending, wrap: func(s *millrace.Store) *millrace.Store {
		return millrace.NewStore(&powercut.Driver{Driver: s.Driver(), N: n, After: after, Cut: func() { disk = fs.CrashClone(vfs.CrashCloneCfg{}) }})
	}})
	all := func() []int { return append(w.numbers("a"), w.numbers("b")...) }
	redrive := func() {
		w.redrive("k1", "c1")
		if sending != nil { // a job would wait for the ids that there are not
			w.redrive("k2", "c2")
			w.redrive("k3", "c3")
		} else if o := w.job("j", "j", &letter.StartRedriveJob{Filter: letter.Filter{Stream: "list-b"}, Rate: letter.MaxRate, By: "ann"}); o.Status != millrace.StatusDecided {
			t.Fatalf("%+v", o)
		}
		w.until("all is decided", func() bool { return len(all()) >= 3 })
		if sending == nil {
			if j := w.untilJob("j", letter.JobDone); j.Counts != (letter.Counts{Decided: 2}) {
				t.Errorf("cut %d, after=%v: %+v", n, after, j.Counts)
			}
			w.untilStatus("c1", letter.Redriven)
		}
	}
	redrive()
	w.mustStop()
	if disk == nil {
		return false, nil
	}
	w = start(t, options{fs: disk, sending: sending})
	defer w.mustStop()
	redrive() // what had not come so far is asked for again, as its sender would
	return true, all()
}
