//go:build linux && (amd64 || arm64)

package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestOrphan is what TestNothingOutlivesTheTest kills.
func TestOrphan(t *testing.T) {
	at := os.Getenv("PGTEST_ORPHAN")
	if at == "" {
		t.Skip("only as a process of its own")
	}
	s := Start(t, Options{NoSync: true})
	if strings.HasSuffix(at, "paused") {
		must(t, s.Pause())
	}
	must(t, os.WriteFile(at+".new", fmt.Appendf(nil, "%s\n%d\n", s.dir, s.proc.pid()), 0o600)) //nolint:gosec // our own variable
	must(t, os.Rename(at+".new", at))                                                          //nolint:gosec // our own variable
	select {}
}

// A server goes with the test process that is killed, and takes its folder along.
func TestNothingOutlivesTheTest(t *testing.T) {
	_, err := Find(0)
	missing(t, err)
	exe, err := os.Executable()
	must(t, err)
	for _, state := range []string{"running", "paused"} {
		t.Run(state, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			at := filepath.Join(t.TempDir(), state)
			cmd := exec.CommandContext(ctx, exe, "-test.run=^TestOrphan$")
			cmd.Env = append(os.Environ(), "PGTEST_ORPHAN="+at)
			must(t, cmd.Start())
			var told []byte
			waited := poll(ctx, func() bool {
				var err error
				told, err = os.ReadFile(at) //nolint:gosec // a file of this test
				return err == nil
			})
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			must(t, waited)
			dir, number, _ := strings.Cut(strings.TrimSpace(string(told)), "\n")
			pid, err := strconv.Atoi(number)
			must(t, err)
			if err := poll(ctx, func() bool { _, _, state, ok := stat(pid); return !ok || state == 'Z' }); err != nil {
				t.Errorf("the server lives: %v", err)
			}
			if err := poll(ctx, func() bool { _, err := os.Stat(dir); return errors.Is(err, fs.ErrNotExist) }); err != nil {
				t.Errorf("%s is still there: %v", dir, err)
			}
		})
	}
}
