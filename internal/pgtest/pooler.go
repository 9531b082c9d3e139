package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// envPooler names the program of pgbouncer; nothing else is looked at then.
const envPooler = "MILLRACE_PGBOUNCER"

// debianPooler is where Debian puts it: in a folder that users seldom have in their PATH.
const debianPooler = "/usr/sbin/pgbouncer"

// ErrNoPooler says that no pgbouncer was found.
var ErrNoPooler = errors.New("no pgbouncer found")

// Pooler is a pgbouncer in transaction mode before a server: each transaction of a client may run on another of its few
// connections, and nothing of a session is a client's own.
type Pooler struct {
	program string
	version [2]int // major and minor
	as      account
	dir     string // with pgbouncer.ini, users and log
	port    int
	guard   *process

	mu   sync.Mutex
	proc *process // nil before the first start
}

// StartPooler starts a pgbouncer before a server and stops it when the test ends. settings are parameters of pgbouncer,
// beyond or instead of the usual ones. Without one to start, it skips the test, or fails it where
// MILLRACE_REQUIRE_POSTGRES is set. When the test has failed, the end of its log is logged.
func StartPooler(t testing.TB, s *Server, settings map[string]string) *Pooler {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	p, err := findPooler(ctx)
	missing(t, err)
	if p.as, err = serverUser(); err == nil {
		p.dir, err = p.as.folder("")
	}
	if err == nil {
		t.Cleanup(func() { p.discard(t) })
		p.guard, err = p.as.guard(p.dir)
	}
	if err == nil {
		err = p.as.writeFile(filepath.Join(p.dir, "users"), []byte(`"`+Superuser+`" ""`+"\n"))
	}
	if err == nil {
		err = p.startOnFreePort(ctx, s, settings)
	}
	if err != nil {
		t.Fatalf("start %s: %v", p.program, err)
	}
	return p
}

// findPooler finds the program, which the user that servers run as must be able to run.
func findPooler(ctx context.Context) (*Pooler, error) {
	program := os.Getenv(envPooler)
	for _, name := range []string{"pgbouncer", debianPooler} {
		if program == "" {
			program, _ = exec.LookPath(name) // an error comes with no name
		}
	}
	if program == "" {
		return nil, fmt.Errorf("%w; .ci/postgres installs one, or let %s name it", ErrNoPooler, envPooler)
	}
	out, err := runAs(ctx, "/", program, "--version")
	if err != nil {
		return nil, err
	}
	p := &Pooler{program: program}
	if _, err := fmt.Sscanf(string(out), "PgBouncer %d.%d", &p.version[0], &p.version[1]); err != nil {
		return nil, fmt.Errorf("%s calls itself %q", program, out)
	}
	return p, nil
}

// KeepsStatements says whether this pgbouncer can keep the prepared statements of its clients, as it does from 1.21 on
// where max_prepared_statements is above 0.
func (p *Pooler) KeepsStatements() bool { return slices.Compare(p.version[:], []int{1, 21}) >= 0 }

func (p *Pooler) startOnFreePort(ctx context.Context, s *Server, settings map[string]string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	for range maxPorts {
		if p.port, err = freePort(ctx); err != nil {
			return err
		}
		if err = p.configure(s, settings); err != nil {
			return err
		}
		if err = p.start(ctx); !errors.Is(err, errPortTaken) {
			return err
		}
	}
	return err
}

// configure writes the file of settings. Nothing that a client may ask for when it connects is ignored.
func (p *Pooler) configure(s *Server, settings map[string]string) error {
	all := map[string]string{
		"listen_addr": "127.0.0.1", "listen_port": strconv.Itoa(p.port), "unix_socket_dir": "",
		"auth_type": "trust", "auth_file": filepath.Join(p.dir, "users"),
		"pool_mode": "transaction", "max_client_conn": "1000", "default_pool_size": "8",
		// After a login that failed it does not try the server again for 15 s unless it is told otherwise: longer than most
		// restarts take, and than a request may wait.
		"server_login_retry": "1",
	}
	maps.Copy(all, settings)
	var b strings.Builder
	fmt.Fprintf(&b, "[databases]\n* = host=127.0.0.1 port=%d\n[pgbouncer]\n", s.port)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&b, "%s = %s\n", name, all[name])
	}
	return p.as.writeFile(p.file("pgbouncer.ini"), []byte(b.String()))
}

func (p *Pooler) file(name string) string { return filepath.Join(p.dir, name) }

// Addr is the host and port it listens on, also while it is down.
func (p *Pooler) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)) }

// DSN is the URL of a database behind it, for the server's superuser.
func (p *Pooler) DSN(db string) string { return DSN(p.Addr(), db) }

// Restart kills it, with all connections of its clients and to the server, and starts it again on the same port.
func (p *Pooler) Restart() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return errNotRunning
	}
	if err := p.proc.kill(ctx, false); err != nil {
		return err
	}
	return p.start(ctx)
}

func (p *Pooler) running() bool { return p.proc != nil && !p.proc.ended() }

func (p *Pooler) start(ctx context.Context) error {
	log, err := os.OpenFile(p.file("log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(context.Background(), p.program, p.file("pgbouncer.ini")) //nolint:gosec // the binary found
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.dir, environment(), log, log
	if p.proc, err = p.as.spawn(cmd); err != nil {
		p.proc = nil
		return err
	}
	proc, since := p.proc, ""
	err = poll(ctx, func() bool {
		text, _ := os.ReadFile(p.file("log")) // without it, it is not up
		since = string(text[min(before, int64(len(text))):])
		return proc.ended() || strings.Contains(since, "process up")
	})
	switch {
	case err != nil:
		return fmt.Errorf("it is not ready: %w; its log:\n%s", err, since)
	case !proc.ended():
		return nil
	case strings.Contains(since, "Address already in use"):
		return fmt.Errorf("port %d: %w", p.port, errPortTaken)
	}
	return fmt.Errorf("it ended; its log:\n%s", since)
}

// discard ends it and removes what there is of it.
func (p *Pooler) discard(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		if err := p.proc.kill(ctx, false); err != nil {
			t.Errorf("kill pgbouncer: %v", err)
		}
	}
	if t.Failed() {
		text, err := os.ReadFile(p.file("log"))
		t.Logf("the log of pgbouncer on port %d (%v):\n%s", p.port, err, text[max(0, len(text)-maxLog):])
	}
	if p.guard != nil {
		p.guard.dismiss()
	}
	if err := os.RemoveAll(p.dir); err != nil {
		t.Errorf("remove pgbouncer: %v", err)
	}
}
