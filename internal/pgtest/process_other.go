//go:build !(linux && (amd64 || arm64))

package pgtest

import (
	"context"
	"errors"
	"os/exec"
	"time"
)

// pollEvery is how often a condition is looked at again that nobody announces.
const pollEvery = 5 * time.Millisecond

// errElsewhere is why no server is found on other systems: that a server dies with its test, can be paused and leaves
// nothing behind needs means of Linux.
var errElsewhere = errors.New("servers for tests are started on Linux only")

type account struct{}

func serverUser() (account, error)                { return account{}, errElsewhere }
func (account) apply(*exec.Cmd)                   {}
func (account) own(string) error                  { return errElsewhere }
func (account) reaches(string) bool               { return false }
func (account) spawn(*exec.Cmd) (*process, error) { return nil, errElsewhere }
func (account) guard(string) (*process, error)    { return nil, errElsewhere }

type process struct {
	done chan struct{}
}

func (*process) pid() int                             { return 0 }
func (*process) ended() bool                          { return true }
func (*process) stop(StopMode) error                  { return errElsewhere }
func (*process) reload() error                        { return errElsewhere }
func (*process) dismiss()                             {}
func (*process) pause(context.Context) error          { return errElsewhere }
func (*process) resume() error                        { return errElsewhere }
func (*process) kill(context.Context, bool) error     { return errElsewhere }
func (*process) killChild(context.Context, int) error { return errElsewhere }

func freeSharedMemory(string) error { return errElsewhere }
