package pgtest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// Standby starts a copy of the server that follows it by streaming replication and answers reads, on a port of its own,
// and stops it when the test ends. It returns when the copy follows. After a synchronous one has been made, no
// transaction of the server is answered as committed that a synchronous standby does not hold on its disk.
//
// The copy is made by the steps of PostgreSQL's low-level backup, not by pg_basebackup, which not every installation
// brings. A replication slot keeps the log that the copy needs.
func (s *Server) Standby(t testing.TB, synchronous bool) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	copied, err := create(s.in, filepath.Dir(s.dir))
	if err != nil {
		t.Fatalf("%v: %v", s.in, err)
	}
	t.Cleanup(func() { copied.discard(t) })
	if err := s.follow(ctx, copied, synchronous); err != nil {
		t.Fatalf("start a standby: %v", err)
	}
	return copied
}

// follow makes a server in an empty folder the standby of this one.
func (s *Server) follow(ctx context.Context, standby *Server, synchronous bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running() || s.paused {
		return errNotRunning
	}
	s.standbys++
	name := fmt.Sprintf("standby_%d_of_%d", s.standbys, s.port)
	if err := s.backup(ctx, standby, name); err != nil {
		return err
	}
	if err := standby.as.writeFile(filepath.Join(standby.data(), "standby.signal"), nil); err != nil {
		return err
	}
	err := standby.configure(map[string]string{
		"primary_conninfo":          fmt.Sprintf("host=127.0.0.1 port=%d user=%s application_name=%s sslmode=disable", s.port, Superuser, name),
		"primary_slot_name":         name,
		"synchronous_standby_names": "", // those of the server copied are not its own
	})
	if err != nil {
		return err
	}
	if err := standby.startOnFreePort(ctx); err != nil {
		return err
	}
	where := " from pg_stat_replication where application_name = " + literal(name)
	if err := s.await(ctx, "select state"+where, "streaming"); err != nil {
		return fmt.Errorf("%w; the standby's log:\n%s", err, standby.Log())
	}
	if !synchronous {
		return nil
	}
	s.syncs = append(s.syncs, name)
	settings := map[string]string{"synchronous_standby_names": "FIRST 1 (" + strings.Join(s.syncs, ", ") + ")"}
	if err := s.reconfigure(ctx, settings); err != nil {
		return err
	}
	if err := s.await(ctx, "select sync_state <> 'async'"+where, "t"); err != nil {
		return err
	}
	// Whether transactions wait is up to the checkpointer, which has been sent the settings but may not have read them.
	// It reads them before it looks what it is asked for; when it was between the two just now, that is before the next.
	for range 2 {
		if _, err := ask(ctx, s.Addr(), "checkpoint"); err != nil {
			return err
		}
	}
	return nil
}

// backup copies the running cluster.
func (s *Server) backup(ctx context.Context, to *Server, slot string) error {
	session, err := connect(ctx, s.Addr())
	if err != nil {
		return err
	}
	defer session.close() // the backup is called off with it
	rows, err := session.query("select pg_is_in_recovery()")
	if err != nil {
		return err
	}
	if rows[0][0] == "t" {
		return errors.New("a standby of a standby is not supported: promote it first")
	}
	// A slot that holds the log from now on: the copy begins later.
	if _, err := session.query("select pg_create_physical_replication_slot(" + literal(slot) + ", true)"); err != nil {
		return err
	}
	if _, err := session.query("select pg_backup_start(" + literal(slot) + ", true)"); err != nil {
		return err
	}
	if err := copyCluster(s.data(), to.data(), to.as); err != nil {
		return fmt.Errorf("copy the cluster: %w", err)
	}
	label, err := session.query("select labelfile from pg_backup_stop(false)")
	if err != nil {
		return err
	}
	return to.as.writeFile(filepath.Join(to.data(), "backup_label"), []byte(label[0][0]))
}

// Promote makes a standby a server of its own, and returns when it takes writes. What it followed must be down, or
// there are two.
func (s *Server) Promote() error {
	ctx, cancel := context.WithTimeout(context.Background(), controlTimeout)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	// Without waiting in the statement: its snapshot would hold up, for half a minute, the replay that it waits for.
	if _, err := ask(ctx, s.Addr(), "select pg_promote(false)"); err != nil {
		return err
	}
	if err := s.await(ctx, "select pg_is_in_recovery()", "f"); err != nil {
		return fmt.Errorf("the server was not promoted: %w; its log:\n%s", err, s.Log())
	}
	return nil
}
