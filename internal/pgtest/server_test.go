package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// patience bounds what a test waits for.
const patience = time.Minute

// sql runs statements on a server and returns the first column of the last row.
func sql(t *testing.T, addr, statements string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	rows, err := ask(ctx, addr, statements)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) == 0 {
		return ""
	}
	return rows[len(rows)-1][0]
}

// code is the SQLSTATE of what statements are refused with, or what else went wrong.
func code(t *testing.T, addr, statements string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := ask(ctx, addr, statements)
	if refused, ok := errors.AsType[*serverError](err); ok {
		return refused.code
	}
	return fmt.Sprint(err)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStart(t *testing.T) {
	Each(t, func(t *testing.T, in Installation) {
		s := Start(t, Options{Installation: in, Settings: map[string]string{"work_mem": "5MB", "search_path": `"it's \ x"`}})
		for name, want := range map[string]string{
			"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "data_checksums": "on", "max_connections": "100",
			"max_prepared_transactions": "5", "track_commit_timestamp": "off", "work_mem": "5MB", "search_path": `"it's \ x"`,
			"listen_addresses": "127.0.0.1", "server_encoding": "UTF8", "TimeZone": "UTC",
		} {
			if got := sql(t, s.Addr(), "show "+name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		if got := sql(t, s.Addr(), "show server_version_num"); !strings.HasPrefix(got, strconv.Itoa(in.Major)) {
			t.Errorf("version %s from %v", got, in)
		}
		if err := s.Start(); err == nil {
			t.Error("a running server was started")
		}
		must(t, s.CreateDatabase(`a "name"`))
		if got := sql(t, s.Addr(), `select count(*) from pg_database where datname = 'a "name"'`); got != "1" {
			t.Errorf("%s databases", got)
		}
		if _, err := ask(t.Context(), s.Addr(), "select 1/0"); err == nil || !strings.Contains(err.Error(), "22012") {
			t.Errorf("division by zero: %v", err)
		}
		fast := Start(t, Options{Major: in.Major, NoSync: true})
		if got := sql(t, fast.Addr(), "show fsync"); got != "off" {
			t.Errorf("fsync is %s without sync", got)
		}
	})
}

// What a real client makes of the URL.
func TestDSN(t *testing.T) {
	psql, err := exec.LookPath("psql")
	if err != nil {
		t.Skip("no psql here")
	}
	s := Start(t, Options{NoSync: true})
	out, err := exec.CommandContext(t.Context(), psql, "-X", "-At", "-c", "select current_user, current_database()", s.DSN("template1")).CombinedOutput() //nolint:gosec // psql
	if err != nil || strings.TrimSpace(string(out)) != "millrace|template1" {
		t.Errorf("%s %v", out, err)
	}
}

// After every way to stop, what was committed is there, and the address is the same.
func TestStops(t *testing.T) {
	Each(t, func(t *testing.T, in Installation) {
		s := Start(t, Options{Installation: in})
		addr := s.Addr()
		sql(t, addr, "create table t (n int)")
		stops := []struct {
			name string
			stop func() error
			log  string
		}{
			{"fast", func() error { return s.Restart(Fast) }, "received fast shutdown request"},
			{"immediate", func() error { return s.Restart(Immediate) }, "received immediate shutdown request"},
			{"kill", func() error { return errors.Join(s.Kill(), s.Start()) }, "database system was interrupted"},
			{"kill of a paused one", func() error { return errors.Join(s.Pause(), s.Kill(), s.Start()) }, "database system was not properly shut down"},
			{"stop of a paused one", func() error { return errors.Join(s.Pause(), s.Restart(Fast)) }, "database system is shut down"},
		}
		for i, tc := range stops {
			must(t, func() error { _, err := ask(t.Context(), addr, "insert into t values (1)"); return err }())
			idle, err := connect(t.Context(), addr)
			must(t, err)
			defer idle.close()
			if err := tc.stop(); err != nil {
				t.Fatalf("%s: %v", tc.name, err)
			}
			if _, err := idle.query("select 1"); err == nil {
				t.Errorf("%s: a connection has survived", tc.name)
			}
			if got := sql(t, addr, "select count(*) from t"); got != strconv.Itoa(i+1) {
				t.Errorf("%s: %s rows, want %d", tc.name, got, i+1)
			}
			if !strings.Contains(s.Log(), tc.log) {
				t.Errorf("%s: the log says nothing of %q:\n%s", tc.name, tc.log, s.Log())
			}
		}
		must(t, s.Stop(Fast))
		for name, f := range map[string]func() error{"stop": func() error { return s.Stop(Fast) }, "kill": s.Kill, "pause": s.Pause, "kill a backend": func() error { return s.KillBackend(1) }} {
			if err := f(); !errors.Is(err, errNotRunning) {
				t.Errorf("%s a server that is stopped: %v", name, err)
			}
		}
		if conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr); err == nil {
			_ = conn.Close()
			t.Error("somebody listens after the stop")
		}
		must(t, s.Start())
		if err := s.Stop("gently"); err == nil {
			t.Error("stopped gently")
		}
	})
}

func TestPause(t *testing.T) {
	Each(t, func(t *testing.T, in Installation) {
		s := Start(t, Options{Installation: in, NoSync: true})
		idle, err := connect(t.Context(), s.Addr())
		must(t, err)
		defer idle.close()
		must(t, s.Pause())
		answer := make(chan error, 1)
		go func() {
			_, err := idle.query("select 1")
			answer <- err
		}()
		// Nothing can be waited for that does not happen: a server that goes on answers within a few milliseconds.
		select {
		case err := <-answer:
			t.Errorf("a paused server answers: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		must(t, s.Resume())
		must(t, <-answer)
		must(t, s.Resume())
	})
}

func TestKillBackend(t *testing.T) {
	s := Start(t, Options{NoSync: true})
	victim, err := connect(t.Context(), s.Addr())
	must(t, err)
	defer victim.close()
	rows, err := victim.query("select pg_backend_pid()")
	must(t, err)
	pid, err := strconv.Atoi(rows[0][0])
	must(t, err)
	if err := s.KillBackend(os.Getpid()); err == nil {
		t.Fatal("killed a process that is not the server's")
	}
	must(t, s.KillBackend(pid))
	if _, err := victim.query("select 1"); err == nil {
		t.Error("the connection has survived")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(t, s.await(ctx, "select 1", "1"))
}

func TestConfigure(t *testing.T) {
	Each(t, func(t *testing.T, in Installation) {
		s := Start(t, Options{Installation: in, NoSync: true})
		sql(t, s.Addr(), "create table t ()")
		must(t, s.ReadOnly(true))
		if got := code(t, s.Addr(), "insert into t default values"); got != "25006" {
			t.Errorf("a read-only server answers a write by %s", got)
		}
		must(t, s.ReadOnly(false))
		sql(t, s.Addr(), "insert into t default values")
		must(t, s.Configure(map[string]string{"max_connections": "50"}))
		if got := sql(t, s.Addr(), "show max_connections"); got != "100" {
			t.Errorf("max_connections is %s before the restart", got)
		}
		must(t, s.Restart(Fast))
		if got := sql(t, s.Addr(), "show max_connections"); got != "50" {
			t.Errorf("max_connections is %s after the restart", got)
		}
		if err := s.Configure(map[string]string{"work_mem": "a lot"}); err == nil || !strings.Contains(err.Error(), "work_mem") {
			t.Errorf("a bad setting: %v", err)
		}
	})
}

// A synchronous standby has what was acknowledged when the server is gone; and nothing is acknowledged that it has not.
func TestSynchronousStandby(t *testing.T) {
	Each(t, func(t *testing.T, in Installation) {
		s := Start(t, Options{Installation: in})
		sql(t, s.Addr(), "create table t (n int)")
		standby := s.Standby(t, true)
		sql(t, s.Addr(), "insert into t select generate_series(1, 1000)")
		if got := code(t, standby.Addr(), "insert into t values (1)"); got != "25006" {
			t.Errorf("a standby answers a write by %s", got)
		}
		must(t, standby.Pause())
		commit := make(chan error, 1)
		go func() {
			_, err := ask(t.Context(), s.Addr(), "insert into t values (0)")
			commit <- err
		}()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		must(t, s.await(ctx, "select count(*) from pg_stat_activity where wait_event = 'SyncRep'", "1"))
		select {
		case err := <-commit:
			t.Errorf("committed without the standby: %v", err)
		default:
		}
		must(t, standby.Resume())
		must(t, <-commit)
		must(t, s.Kill())
		must(t, standby.Promote())
		if got := sql(t, standby.Addr(), "select count(*) from t"); got != "1001" {
			t.Errorf("%s rows after the failover, want 1001", got)
		}
		sql(t, standby.Addr(), "insert into t values (1)")
		// Life goes on with a standby of the new primary, and a second one.
		third := standby.Standby(t, true)
		fourth := standby.Standby(t, true)
		sql(t, standby.Addr(), "insert into t values (2)")
		must(t, standby.Stop(Immediate))
		must(t, third.Promote())
		if got := sql(t, third.Addr(), "select count(*) from t"); got != "1003" {
			t.Errorf("%s rows after the second failover, want 1003", got)
		}
		if got := sql(t, fourth.Addr(), "select pg_is_in_recovery()"); got != "t" {
			t.Error("the other standby is none")
		}
	})
}

// What was not replicated is lost with the primary: without this, the test above could not fail.
func TestAsynchronousStandby(t *testing.T) {
	Each(t, func(t *testing.T, in Installation) {
		s := Start(t, Options{Installation: in, NoSync: true})
		sql(t, s.Addr(), "create table t (n int)")
		standby := s.Standby(t, false)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		must(t, standby.await(ctx, "select count(*) from pg_class where relname = 't'", "1"))
		must(t, standby.Stop(Immediate))
		sql(t, s.Addr(), "insert into t values (1)")
		must(t, s.Kill())
		must(t, standby.Start())
		must(t, standby.Promote())
		if got := sql(t, standby.Addr(), "select count(*) from t"); got != "0" {
			t.Errorf("%s rows survived on a standby that slept", got)
		}
	})
}

// A standby is made while the server is written to.
func TestStandbyUnderLoad(t *testing.T) {
	Each(t, func(t *testing.T, in Installation) {
		s := Start(t, Options{Installation: in, NoSync: true})
		sql(t, s.Addr(), "create table t (n int primary key, s text)")
		stop, acked := make(chan struct{}), make(chan int, 1)
		go func() {
			n := 0
			defer func() { acked <- n }()
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := ask(t.Context(), s.Addr(), fmt.Sprintf("insert into t select %d, repeat('x', 1000)", n+1)); err != nil {
					t.Error(err)
					return
				}
				n++
			}
		}()
		standby := s.Standby(t, true)
		close(stop)
		n := <-acked
		must(t, s.Kill())
		must(t, standby.Promote())
		if got := sql(t, standby.Addr(), "select count(*) || ' ' || max(n) || ' ' || sum(length(s)) from t"); got != fmt.Sprintf("%d %d %d", n, n, 1000*n) {
			t.Errorf("the standby has %s of %d", got, n)
		}
	})
}

// The folder is where it was asked for, and gone afterwards.
func TestDir(t *testing.T) {
	as, err := serverUser()
	must(t, err)
	dir, err := as.folder("")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Run("server", func(t *testing.T) {
		s := Start(t, Options{Dir: dir, NoSync: true})
		if !strings.HasPrefix(s.DataDir(), dir+"/") {
			t.Errorf("the data is in %s", s.DataDir())
		}
		must(t, s.Kill())
	})
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
