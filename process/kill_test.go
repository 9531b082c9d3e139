package process_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/powercut"
	"github.com/millrace-io/millrace/process"
)

func pullPlug(fs *vfs.MemFS) *vfs.MemFS { return fs.CrashClone(vfs.CrashCloneCfg{}) }

// The plug is pulled before and after each write, of facts and of views. Whatever is left on the disk, the jobs that had been
// started come to their end, and nothing was taken or given back twice. The control sends the commands of steps under fresh ids,
// and takes twice.
func TestPowerCutAtEachWrite(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			if cut, _ := cutAt(t, n, after, nil); !cut {
				t.Logf("after=%v: %d writes", after, n-1)
				break
			}
		}
	}
	for n := 1; ; n++ {
		cut, balanced := cutAt(t, n, true, process.FreshIDs)
		if !cut {
			t.Fatal("without ids that follow from the steps nothing goes wrong")
		}
		if !balanced {
			break
		}
	}
}

// cutAt runs some jobs up to the n-th write, and the rest from what was on the disk then. It says whether there were so many
// writes, and whether all is right in the end; where nothing is changed, it must be.
func cutAt(t *testing.T, n int, after bool, change func(*process.Manager)) (cut, balanced bool) {
	filled := map[string]int{"a": 2, "b": 2, "c": 1}
	jobs := map[string][]string{"j1": {"a", "b", "c"}, "j2": {"a", "c"}, "j3": {"b"}}
	fs := vfs.NewCrashableMem()
	var disk *vfs.MemFS // as the power cut has left it
	w := start(t, worldOptions{fs: fs, change: change, wrap: func(s *millrace.Store) *millrace.Store {
		return millrace.NewStore(&powercut.Driver{Driver: s.Driver(), N: n, After: after, Cut: func() { disk = pullPlug(fs) }})
	}})
	for shelf, k := range filled {
		w.fill(shelf, k)
	}
	for job, of := range jobs {
		w.job(job, time.Time{}, of...)
	}
	for job := range jobs {
		w.until(job, done)
	}
	w.mustStop()
	if disk == nil {
		return false, true
	}
	w = start(t, worldOptions{fs: disk, change: change})
	defer w.mustStop()
	// What had not come so far is sent again, as its sender would.
	for shelf, k := range filled {
		w.fill(shelf, k)
	}
	for job, of := range jobs {
		w.job(job, time.Time{}, of...)
	}
	for job := range jobs {
		if i := w.until(job, func(i *millrace.Instance) bool { return i.Done || i.Failed != "" }); i.Failed != "" {
			if change == nil {
				t.Errorf("cut %d: %+v", n, i)
			}
			return true, false
		}
	}
	faults := w.unbalanced(filled, jobs)
	if change == nil {
		for _, f := range faults {
			t.Error(fmt.Sprintf("cut %d, after=%v: ", n, after) + f)
		}
	}
	return true, len(faults) == 0
}
