package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestCLI runs the scripts of testdata/script: what people and their scripts type, and what they see.
//
// Beyond testscript's own commands there are: `exits CODE COMMAND…`; `serves NAME DATA [FLAG…]`, which starts a server,
// waits until it is ready and sets NAME_URL and NAME_ADDR; `stops NAME` (SIGTERM, and it must exit with 0); `flips FILE`, which
// changes a bit in the middle of what a file holds.
func TestCLI(t *testing.T) {
	bin := binary(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", filepath.Dir(bin)+string(os.PathListSeparator)+os.Getenv("PATH"))
			e.Setenv(variable(configFlag), os.DevNull)
			e.Values["servers"] = map[string]*server{}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": func(ts *testscript.TestScript, _ bool, args []string) {
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				code := 0
				var exit *exec.ExitError
				if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
					code = exit.ExitCode()
				} else {
					ts.Check(err)
				}
				if code != want {
					ts.Fatalf("exit code %d, want %d", code, want)
				}
			},
			"serves": func(ts *testscript.TestScript, _ bool, args []string) {
				s, err := tryServing(t, bin, ts.MkAbs(args[1]), args[2:]...)
				ts.Check(err)
				ts.Defer(s.kill)
				started(ts)[args[0]] = s
				ts.Setenv(args[0]+"_URL", s.url)
				ts.Setenv(args[0]+"_ADDR", strings.TrimPrefix(s.url, "http://"))
			},
			"stops": func(ts *testscript.TestScript, _ bool, args []string) { started(ts)[args[0]].stop(t) },
			"flips": func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(flip(ts.MkAbs(args[0]))) },
		},
	})
}

func started(ts *testscript.TestScript) map[string]*server {
	all, ok := ts.Value("servers").(map[string]*server)
	if !ok {
		ts.Fatalf("no servers")
	}
	return all
}

// flip changes one bit in the middle of what a file holds before its zeros begin.
func flip(pattern string) error {
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		return errors.Join(err, os.ErrNotExist)
	}
	data, err := os.ReadFile(names[0])
	if err != nil {
		return err
	}
	end := len(data)
	for end > 0 && data[end-1] == 0 {
		end--
	}
	data[end/2] ^= 0x10
	return os.WriteFile(names[0], data, 0o600) //nolint:gosec // a file of the test's own
}
