package pgtest

import (
	"errors"
	"net"
	"os"
	"testing"
)

// A pgbouncer passes clients on to the server, which share its sessions, goes away with the test, and a restart costs its
// clients their connections.
func TestPooler(t *testing.T) {
	server := Start(t, Options{NoSync: true})
	var p *Pooler
	t.Run("runs", func(t *testing.T) {
		p = StartPooler(t, server, map[string]string{"default_pool_size": "1"})
		if got := sql(t, p.Addr(), "select current_setting('port')"); net.JoinHostPort("127.0.0.1", got) != server.Addr() {
			t.Errorf("it leads to port %s", got)
		}
		s, err := connect(t.Context(), p.Addr())
		must(t, err)
		defer s.close()
		must(t, p.Restart())
		if _, err := s.query("select 1"); err == nil {
			t.Error("a connection has outlived the pooler")
		}
		again, err := connect(t.Context(), p.Addr())
		must(t, err)
		defer again.close()
		_, err = again.query("set work_mem = '5MB'")
		must(t, err)
		if got := sql(t, p.Addr(), "select current_setting('work_mem')"); got != "5MB" {
			t.Errorf("another client has work_mem %s: it has a session of its own", got)
		}
	})
	if p == nil {
		return // skipped
	}
	if !p.proc.ended() {
		t.Error("it still runs")
	}
	if _, err := os.Stat(p.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder is still there: %v", err)
	}
}

// A program that is named must be one.
func TestPoolerThatIsNamed(t *testing.T) {
	t.Setenv(envPooler, "/nowhere/pgbouncer")
	if _, err := findPooler(t.Context()); err == nil || errors.Is(err, ErrNoPooler) {
		t.Errorf("a program that is not there: %v", err)
	}
}
