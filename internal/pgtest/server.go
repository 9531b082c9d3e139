package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The bounds of what a server may take on a machine that does other things, too. Recovery after a kill is part of a
// start, a checkpoint part of a fast stop.
const (
	startTimeout   = 2 * time.Minute
	stopTimeout    = time.Minute
	controlTimeout = time.Minute // for what a running server does: reload, pause, promote, copy
)

// maxLog is how much of the end of a server's log is shown.
const maxLog = 64 << 10

// minRequired is how many majors [Each] demands where servers are required: the oldest and a newer one.
const minRequired = 2

var errNotRunning = errors.New("the server is not running")

// StopMode is how a server is stopped.
type StopMode string

const (
	// Fast rolls open transactions back, closes all connections and writes a checkpoint.
	Fast StopMode = "fast"
	// Immediate stops at once, so that the next start recovers from the write-ahead log.
	Immediate StopMode = "immediate"
)

// Options say which server to start. The zero value stands for the oldest major found, with the settings of a careful
// installation made small.
type Options struct {
	// Installation is what to start; without one, the first of Major is searched for.
	Installation Installation
	// Major is the major version; 0 stands for the oldest found.
	Major int
	// Settings are parameters of PostgreSQL, beyond or instead of the usual ones.
	Settings map[string]string
	// NoSync has the server not wait for the disk. Nothing is lost when it is killed; for what happens when the machine
	// loses power, it must not be set.
	NoSync bool
	// Dir is the folder below which the cluster's own is made; without one, where temporary files go. A test that fills
	// a disk names a small one.
	Dir string
}

// Server is a cluster in a folder of its own, running or not. Its methods may be called from several goroutines.
type Server struct {
	in    Installation
	as    account
	dir   string // with data/, the socket's folder s/, and log
	port  int
	guard *process

	mu       sync.Mutex
	proc     *process // nil before the first start
	paused   bool
	edits    int      // of the settings
	standbys int      // ever made
	syncs    []string // the synchronous ones
}

// Start starts a fresh cluster and stops it when the test ends. Without a server to start, it skips the test, or fails
// it where MILLRACE_REQUIRE_POSTGRES is set. When the test has failed, the end of the server's log is logged.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	in := o.Installation
	if in.Bin == "" {
		var err error
		in, err = Find(o.Major)
		missing(t, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	s, err := create(in, o.Dir)
	if err != nil {
		t.Fatalf("%v: %v", in, err)
	}
	t.Cleanup(func() { s.discard(t) })
	cluster, err := in.template(ctx, s.as)
	if err == nil {
		err = cluster.write(s.data(), s.as)
	}
	if err == nil {
		err = s.configure(usual(o))
	}
	if err == nil {
		err = s.startOnFreePort(ctx)
	}
	if err != nil {
		t.Fatalf("start %v: %v", in, err)
	}
	return s
}

// Each runs a subtest for every major found, named by it. Where servers are required, it demands two majors: behaviour
// differs between them.
func Each(t *testing.T, f func(t *testing.T, in Installation)) {
	t.Helper()
	all, err := majors()
	if err == nil && len(all) == 0 {
		_, err = Find(0) // says what to do about it
	}
	if err == nil && len(all) < minRequired && os.Getenv(envRequire) != "" {
		err = fmt.Errorf("%w but %v, and two majors are required", ErrNoServer, all)
	}
	missing(t, err)
	for _, in := range all {
		t.Run(strconv.Itoa(in.Major), func(t *testing.T) { f(t, in) })
	}
}

// missing ends a test that has no server, or no pooler: skipped if it may be, failed otherwise.
func missing(t testing.TB, err error) {
	t.Helper()
	switch {
	case err == nil:
	case (errors.Is(err, ErrNoServer) || errors.Is(err, ErrNoPooler)) && os.Getenv(envRequire) == "":
		t.Skip(err)
	default:
		t.Fatal(err)
	}
}

// usual are the settings of a server for tests: all that Millrace demands of one, with little memory, and with room for
// tests of what others do in the same cluster.
func usual(o Options) map[string]string {
	settings := map[string]string{
		"shared_buffers":             "32MB",
		"max_connections":            "100",
		"max_prepared_transactions":  "5",
		"track_commit_timestamp":     "off",
		"timezone":                   "UTC",
		"log_line_prefix":            "%m [%p] %q%a ",
		"dynamic_shared_memory_type": "mmap", // in the cluster's folder, with which it goes, even when the server is killed
	}
	if o.NoSync {
		settings["fsync"], settings["full_page_writes"] = "off", "off"
	}
	maps.Copy(settings, o.Settings)
	return settings
}

// create makes the folder of a cluster, and starts its guard.
func create(in Installation, below string) (*Server, error) {
	as, err := serverUser()
	if err != nil {
		return nil, err
	}
	dir, err := as.folder(below)
	if err != nil {
		return nil, err
	}
	s := &Server{in: in, as: as, dir: dir}
	if s.guard, err = as.guard(dir); err == nil {
		err = as.mkdir(s.sockets())
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

func (s *Server) data() string    { return filepath.Join(s.dir, "data") }
func (s *Server) sockets() string { return filepath.Join(s.dir, "s") }
func (s *Server) logFile() string { return filepath.Join(s.dir, "log") }

// Installation is what the server was started from.
func (s *Server) Installation() Installation { return s.in }

// DataDir is the folder of the cluster's files.
func (s *Server) DataDir() string { return s.data() }

// Addr is the host and port the server listens on, also while it is down.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// DSN is the URL of a database of the server, for its superuser. The database postgres is always there.
func (s *Server) DSN(db string) string { return DSN(s.Addr(), db) }

// DSN is the URL of a database behind an address, which may be a [Proxy]'s, for the superuser.
func DSN(addr, db string) string {
	u := url.URL{Scheme: "postgres", User: url.User(Superuser), Host: addr, Path: "/" + db, RawQuery: "sslmode=disable"}
	return u.String()
}

// Log is the end of what the server has logged since it was made.
func (s *Server) Log() string {
	f, err := os.Open(s.logFile())
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.Size() > maxLog {
		_, _ = f.Seek(-maxLog, io.SeekEnd) // at worst, the log is shown from its beginning
	}
	text, err := io.ReadAll(io.LimitReader(f, maxLog))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Start starts the server again after it was stopped or killed, on the same port.
func (s *Server) Start() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.start(ctx)
}

// Stop stops the server and waits for its end.
func (s *Server) Stop(mode StopMode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stop(mode)
}

// Restart stops the server and starts it again, on the same port.
func (s *Server) Restart(mode StopMode) error {
	if err := s.Stop(mode); err != nil {
		return err
	}
	return s.Start()
}

// Kill ends the server's first process by SIGKILL, and waits until the others have noticed and are gone too: the next
// start then finds what a crash leaves. Processes of a paused server are not woken for it.
func (s *Server) Kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running() {
		return errNotRunning
	}
	paused := s.paused
	s.paused = false
	return s.proc.kill(ctx, paused)
}

// AwaitEnd waits until the server has ended by itself, as one without restart_after_crash does that cannot go on.
func (s *Server) AwaitEnd() error {
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return errNotRunning
	}
	select {
	case <-s.proc.done:
		return nil
	case <-timeout.C:
		return errors.New("the server still runs")
	}
}

// KillBackend ends the process of one connection by SIGKILL; its number is what pg_backend_pid() says. The server then
// closes all connections and recovers as after a crash.
func (s *Server) KillBackend(pid int) error {
	ctx, cancel := context.WithTimeout(context.Background(), controlTimeout)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running() {
		return errNotRunning
	}
	return s.proc.killChild(ctx, pid)
}

// Pause stops all processes of the server where they are. Connections stay open, and nobody answers.
func (s *Server) Pause() error {
	ctx, cancel := context.WithTimeout(context.Background(), controlTimeout)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running() {
		return errNotRunning
	}
	s.paused = true
	return s.proc.pause(ctx)
}

// Resume lets a paused server go on. Of one that is not paused it asks nothing.
func (s *Server) Resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resume()
}

// Configure changes settings and returns when new connections have them. Those that need a restart come with it.
func (s *Server) Configure(settings map[string]string) error {
	ctx, cancel := context.WithTimeout(context.Background(), controlTimeout)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reconfigure(ctx, settings)
}

// ReadOnly has every transaction that begins from now on refuse to write unless it asks for it, or no longer: what a
// node meets that was pointed at a database taken out of service.
func (s *Server) ReadOnly(on bool) error {
	return s.Configure(map[string]string{"default_transaction_read_only": map[bool]string{true: "on", false: "off"}[on]})
}

// CreateDatabase makes an empty database.
func (s *Server) CreateDatabase(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), controlTimeout)
	defer cancel()
	_, err := ask(ctx, s.Addr(), "create database "+identifier(name))
	return err
}

func (s *Server) running() bool { return s.proc != nil && !s.proc.ended() }

func (s *Server) resume() error {
	if !s.paused {
		return nil
	}
	s.paused = false
	return s.proc.resume()
}

func (s *Server) stop(mode StopMode) error {
	if !s.running() {
		return errNotRunning
	}
	if err := s.proc.stop(mode); err != nil {
		return err
	}
	if err := s.resume(); err != nil {
		return err
	}
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	select {
	case <-s.proc.done:
		return nil
	case <-timeout.C:
		return fmt.Errorf("%s stop: the server still runs after %v; its log:\n%s", mode, stopTimeout, s.Log())
	}
}

// errPortTaken says that somebody was faster at a port that was free a moment ago.
var errPortTaken = errors.New("the port is taken")

// startOnFreePort starts a server for the first time, when nobody knows its port yet.
func (s *Server) startOnFreePort(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for range maxPorts {
		if s.port, err = freePort(ctx); err != nil {
			return err
		}
		if err = s.configure(s.address()); err != nil {
			return err
		}
		if err = s.start(ctx); !errors.Is(err, errPortTaken) {
			return err
		}
	}
	return err
}

// address are the settings that differ between servers.
func (s *Server) address() map[string]string {
	sockets := s.sockets()
	if len(sockets)+1+len(socketName) > maxSocketPath {
		sockets = "" // the folder for temporary files is too deep; there is TCP
	}
	return map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    strconv.Itoa(s.port),
		"unix_socket_directories": sockets,
	}
}

func (s *Server) start(ctx context.Context) error {
	if s.running() {
		return errors.New("the server is running")
	}
	log, err := os.OpenFile(s.logFile(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(context.Background(), s.in.program("postgres"), "-D", s.data()) //nolint:gosec // the binaries found
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, environment(), log, log
	if s.proc, err = s.as.spawn(cmd); err != nil {
		s.proc = nil
		return err
	}
	proc := s.proc
	err = poll(ctx, func() bool { return proc.ended() || s.ready(ctx) })
	switch {
	case err != nil:
		return fmt.Errorf("the server is not ready: %w; its log:\n%s", err, s.Log())
	case proc.ended():
		text, _ := os.ReadFile(s.logFile())
		if since := string(text[min(before, int64(len(text))):]); strings.Contains(since, "Address already in use") {
			return fmt.Errorf("port %d: %w", s.port, errPortTaken)
		}
		return fmt.Errorf("the server ended; its log:\n%s", s.Log())
	}
	return nil
}

// ready says whether the server takes connections, by its own word and by a try. The word may be that of an earlier
// process, which was killed.
func (s *Server) ready(ctx context.Context) bool {
	lines, err := pidFile(s.data())
	if err != nil || len(lines) < 8 || lines[0] != strconv.Itoa(s.proc.pid()) || strings.TrimSpace(lines[7]) != "ready" {
		return false
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.Addr())
	return err == nil && conn.Close() == nil
}

// configure writes settings behind those there are; the last one counts.
func (s *Server) configure(settings map[string]string) error {
	f, err := os.OpenFile(filepath.Join(s.data(), "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "%s = %s\n", name, literal(strings.ReplaceAll(settings[name], `\`, `\\`)))
	}
	_, err = f.WriteString(b.String())
	return errors.Join(err, f.Close())
}

// reconfigure changes settings of a running server. When it is done, all processes of the server have been told.
func (s *Server) reconfigure(ctx context.Context, settings map[string]string) error {
	if !s.running() {
		return s.configure(settings)
	}
	// A parameter that PostgreSQL does not know but keeps tells whether it has read the file.
	s.edits++
	stamp := map[string]string{"pgtest.edits": strconv.Itoa(s.edits)}
	maps.Copy(stamp, settings)
	if err := s.configure(stamp); err != nil {
		return err
	}
	if err := s.proc.reload(); err != nil {
		return err
	}
	err := s.await(ctx, "select current_setting('pgtest.edits', true)", strconv.Itoa(s.edits))
	if err != nil {
		return err
	}
	refused, err := ask(ctx, s.Addr(), `select name from pg_file_settings f where error is not null
		and not exists (select from pg_settings p where p.name = f.name and p.pending_restart)`)
	if err != nil || len(refused) == 0 {
		return err
	}
	return fmt.Errorf("the server refuses the settings %v; its log:\n%s", refused, s.Log())
}

// await asks a running server, each time in a new connection, until it gives the wanted answer.
func (s *Server) await(ctx context.Context, sql, want string) error {
	var last string
	err := poll(ctx, func() bool {
		rows, err := ask(ctx, s.Addr(), sql)
		last = fmt.Sprint(rows, err)
		return err == nil && len(rows) == 1 && rows[0][0] == want
	})
	if err != nil {
		return fmt.Errorf("%w: %s answers %s, not %s", err, sql, last, want)
	}
	return nil
}

// discard ends what there is of a server, and removes it.
func (s *Server) discard(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running() {
		if err := s.stop(Immediate); err != nil {
			t.Errorf("%v", err)
			ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
			defer cancel()
			if err := s.proc.kill(ctx, true); err != nil {
				t.Errorf("kill the server: %v", err)
			}
		}
	}
	if t.Failed() {
		t.Logf("the log of %v on port %d:\n%s", s.in, s.port, s.Log())
	}
	s.guard.dismiss()
	if err := errors.Join(freeSharedMemory(s.data()), os.RemoveAll(s.dir)); err != nil {
		t.Errorf("remove the server: %v", err)
	}
}
