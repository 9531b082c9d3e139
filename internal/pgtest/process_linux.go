//go:build linux && (amd64 || arm64)

package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// pollEvery is how often a condition is looked at again that nobody announces.
const pollEvery = 5 * time.Millisecond

// lingering is how long processes of a killed server may take to notice that it is gone before they are killed, too. An
// idle one notices at once; a busy one when it next waits.
const lingering = 5 * time.Second

// account is the user that servers run as: ourselves, unless we are root.
type account struct {
	credential *syscall.Credential
}

// serverUser finds the user that PostgreSQL is run as. It refuses to run as root.
func serverUser() (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("uid of %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("gid of %s: %w", name, err)
		}
		return account{&syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
	}
	return account{}, errors.New("PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody")
}

// apply has a command run as the account.
func (a account) apply(cmd *exec.Cmd) {
	// A group of its own: an interrupt at the terminal is for the test, which then stops the server in its own way.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: a.credential, Setpgid: true}
}

// own gives the account a file or folder.
func (a account) own(path string) error {
	if a.credential == nil {
		return nil
	}
	return os.Lchown(path, int(a.credential.Uid), int(a.credential.Gid))
}

// reaches says whether the account can pass through a folder and all above it.
func (a account) reaches(folder string) bool {
	if a.credential == nil {
		return true
	}
	resolved, err := filepath.EvalSymlinks(folder)
	if err != nil {
		return false
	}
	for dir := resolved; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return false
		}
		passes := info.Mode().Perm()&0o001 != 0
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			passes = passes || stat.Uid == a.credential.Uid && info.Mode().Perm()&0o100 != 0
		}
		if !passes {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
	}
}

// process is a child of ours.
type process struct {
	cmd   *exec.Cmd
	done  chan struct{} // closed when it has ended and was waited for
	stdin io.Closer     // a guard's; when nobody holds it any more, the guard believes that we have ended
}

// spawn starts a command that the kernel stops when this process ends, in whatever way.
func (a account) spawn(cmd *exec.Cmd) (*process, error) {
	a.apply(cmd)
	// At SIGQUIT a server stops at once, and tidies up.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The signal comes when the thread ends that started the command, not when the process does: keep the thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its log
			close(p.done)
		}
	}()
	return p, <-started
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// signal does nothing to a process that has ended: its number may be somebody else's by now.
func (p *process) signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %v: %w", sig, err)
	}
	return nil
}

func (p *process) stop(mode StopMode) error {
	sig, ok := map[StopMode]syscall.Signal{Fast: syscall.SIGINT, Immediate: syscall.SIGQUIT}[mode]
	if !ok {
		return fmt.Errorf("there is no way to stop called %q", mode)
	}
	return p.signal(sig)
}

func (p *process) reload() error { return p.signal(syscall.SIGHUP) }

// guard starts what tidies up after us when we are killed and cannot: it waits for the end of its input, which comes with
// our end, wakes a server that was paused so that it can obey its SIGQUIT, and removes the folder.
func (a account) guard(folder string) (*process, error) {
	const script = `
read -r _
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ]; then
	kill -CONT $(cat "/proc/$pid/task/$pid/children") "$pid"
	n=0
	while kill -0 "$pid" && [ "$n" -lt 200 ]; do n=$((n + 1)); sleep 0.05; done
fi
rm -rf -- "$1"`
	cmd := exec.CommandContext(context.Background(), "/bin/sh", "-c", script, "sh", folder) //nolint:gosec // our own folder
	cmd.Dir, cmd.Env = "/", environment()
	a.apply(cmd)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &process{cmd: cmd, stdin: stdin}, nil
}

// dismiss ends a guard that is no longer needed.
func (p *process) dismiss() {
	_ = p.cmd.Process.Kill() // before its input ends
	_ = p.stdin.Close()
	_ = p.cmd.Wait()
}

// relative is a process that is not our child, so that its number alone does not tell it from a later one.
type relative struct {
	pid   int
	start string // in ticks since boot
}

// stat reads who a process is, whose child it is, and what it does: 'T' is stopped, 'Z' has ended.
func stat(pid int) (r relative, parent int, state byte, ok bool) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return relative{}, 0, 0, false
	}
	// The second field is a name in parentheses, with whatever in it.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 20 {
		return relative{}, 0, 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	return relative{pid, fields[19]}, parent, fields[0][0], err == nil
}

// alive says whether a process still runs. A zombie does not: in a container without an init nobody collects it.
func (r relative) alive() bool {
	now, _, state, ok := stat(r.pid)
	return ok && now == r && state != 'Z' && state != 'X'
}

func (r relative) signal(sig syscall.Signal) {
	if r.alive() {
		_ = syscall.Kill(r.pid, sig) // it may just have ended, which is as good
	}
}

// children are the processes of a server. The kernel's own list of them may skip some while others end, so all are
// looked at.
func (p *process) children() ([]relative, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []relative
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if r, parent, state, ok := stat(pid); ok && parent == p.pid() && state != 'Z' && state != 'X' {
			out = append(out, r)
		}
	}
	return out, nil
}

// freeze stops a server, which can then start no further process, and tells those it has.
func (p *process) freeze(ctx context.Context) ([]relative, error) {
	self, _, _, ok := stat(p.pid())
	if !ok || p.ended() {
		return nil, errNotRunning
	}
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return nil, err
	}
	if err := halted(ctx, self); err != nil {
		return nil, err
	}
	return p.children()
}

// halted waits until a process that was sent SIGSTOP stands still, or is gone.
func halted(ctx context.Context, r relative) error {
	return poll(ctx, func() bool {
		_, _, state, ok := stat(r.pid)
		return !ok || state == 'T' || !r.alive()
	})
}

// pause stops a server with all its processes.
func (p *process) pause(ctx context.Context) error {
	children, err := p.freeze(ctx)
	if err != nil {
		return err
	}
	for _, c := range children {
		c.signal(syscall.SIGSTOP)
	}
	for _, c := range children {
		if err := halted(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// resume lets a paused server go on.
func (p *process) resume() error {
	children, err := p.children()
	if err != nil {
		return err
	}
	for _, c := range children {
		c.signal(syscall.SIGCONT)
	}
	return p.signal(syscall.SIGCONT)
}

// kill ends a server without a warning, and waits until its processes have noticed. Those that were paused have no
// occasion to: they never run again.
func (p *process) kill(ctx context.Context, paused bool) error {
	children, err := p.freeze(ctx)
	if err != nil && !errors.Is(err, errNotRunning) {
		return err
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	gone := func() bool {
		for _, c := range children {
			if c.alive() {
				return false
			}
		}
		return true
	}
	patience, cancel := context.WithTimeout(ctx, lingering)
	defer cancel()
	if !paused && poll(patience, gone) == nil {
		return nil
	}
	for _, c := range children {
		c.signal(syscall.SIGKILL)
	}
	return poll(ctx, gone)
}

// killChild ends one process of a server without a warning.
func (p *process) killChild(ctx context.Context, pid int) error {
	child, parent, _, ok := stat(pid)
	if !ok || parent != p.pid() {
		return fmt.Errorf("process %d is none of this server's", pid)
	}
	child.signal(syscall.SIGKILL)
	return poll(ctx, func() bool { return !child.alive() })
}

// freeSharedMemory removes what a killed server left in the kernel. Its number is in the file that the server leaves
// only when it was killed.
func freeSharedMemory(data string) error {
	lines, err := pidFile(data)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || len(lines) < 7 {
		return err
	}
	fields := strings.Fields(lines[6])
	if len(fields) != 2 {
		return nil // killed before it had any
	}
	id, err := strconv.ParseUint(fields[1], 10, 31)
	if err != nil {
		return fmt.Errorf("shared memory %q: %w", lines[6], err)
	}
	const remove = 0 // IPC_RMID
	if _, _, errno := syscall.Syscall(syscall.SYS_SHMCTL, uintptr(id), remove, 0); errno != 0 && errno != syscall.EINVAL {
		return fmt.Errorf("remove shared memory %d: %w", id, errno)
	}
	return nil
}
