package pgstore

import (
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/pgtest"
)

// smallDisk is a server on a disk that a test can fill, with some log files to spare: they are full later than the tables.
// It stays down where it cannot go on.
func smallDisk(t *testing.T, in pgtest.Installation, settings map[string]string) (*pgtest.Disk, *pgtest.Server) {
	t.Helper()
	disk := pgtest.SmallDisk(t, 320<<20)
	all := map[string]string{"restart_after_crash": "off", "min_wal_size": "160MB", "max_wal_size": "192MB"}
	maps.Copy(all, settings)
	server := pgtest.Start(t, pgtest.Options{Installation: in, Dir: disk.Dir(), Settings: all, NoSync: settings != nil})
	must(t, logFiles(t, server, 6))
	exec(t, server.DSN("postgres"), "checkpoint")
	return disk, server
}

// logFiles has the server begin so many new files of its log, or as many as it can.
func logFiles(t *testing.T, server *pgtest.Server, n int) error {
	t.Helper()
	ctx := patient(t)
	conn, err := pgx.Connect(ctx, server.DSN("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	for range n {
		if _, err := conn.Exec(ctx, "select pg_logical_emit_message(true, '', 'x'), pg_switch_wal()", pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
	}
	return nil
}

// onSmallDisk opens a store that gives up soon, and owns what it acquires.
func onSmallDisk(t *testing.T, server *pgtest.Server, change func(*Options)) *millrace.Store {
	t.Helper()
	s := open(t, server.DSN("postgres"), four(t, func(o *Options) {
		shortPatience(o)
		o.OwnAll, o.LeaseTTL = false, time.Hour
		if change != nil {
			change(o)
		}
	}))
	acquire(t, s, 0, 1, 2, 3)
	return s
}

// The disk of the database is full, first for tables and then for its log, which stops the server. Nobody is told yes then;
// reads go on as long as the database answers them; and when there is space again, all that was acknowledged is there,
// once, and what was asked for and not acknowledged can be asked for again.
func TestDiskFull(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, in pgtest.Installation) {
		disk, server := smallDisk(t, in, nil)
		s := onSmallDisk(t, server, nil)
		tables := loadAs(t, s, "tables-")
		tables.more(200)
		must(t, disk.Fill())
		full := 0
		for _, err := range tables.refused() {
			switch {
			case errors.Is(err, millrace.ErrFull):
				full++
			case !errors.Is(err, millrace.ErrUnavailable) && !errors.Is(err, millrace.ErrFenced):
				t.Errorf("a client was told %v", err)
			}
		}
		if err := s.Writable(); full == 0 || !errors.Is(err, millrace.ErrFull) {
			t.Errorf("%d clients were told that the disk is full, and others would be told %v", full, err)
		}
		for id := range tables.acked {
			if _, err := s.Lookup(patient(t), id); err != nil {
				t.Errorf("a read while the disk is full: %v", err)
			}
			break
		}
		must(t, disk.Empty())
		recovered(t, s)
		tables.again()

		log := loadAs(t, s, "log-")
		log.more(200)
		must(t, disk.Fill())
		if err := logFiles(t, server, 1000); err == nil {
			t.Fatal("the server has a thousand log files on a disk that is full")
		}
		must(t, server.AwaitEnd()) // what it says of it finds no space either
		for _, err := range log.refused() {
			if !errors.Is(err, millrace.ErrUnavailable) && !errors.Is(err, millrace.ErrFull) && !errors.Is(err, millrace.ErrFenced) {
				t.Errorf("a client was told %v", err)
			}
		}
		if err := s.Writable(); !errors.Is(err, millrace.ErrUnavailable) && !errors.Is(err, millrace.ErrFull) {
			t.Errorf("the store says that it is %v", err)
		}
		must(t, disk.Empty())
		must(t, server.Start())
		recovered(t, s)
		log.again()

		after := loadAs(t, s, "after-")
		after.more(200)
		after.end()
		for _, l := range []*loaded{tables, log, after} {
			l.check(s)
		}
	})
}

// recovered waits until the store takes facts again, and acquires what it has given up.
func recovered(t *testing.T, s *millrace.Store) {
	t.Helper()
	writable(t, s)
	acquire(t, s, 0, 1, 2, 3)
}

// The control: a server that answers before its log is on the disk has lost, when it stops for lack of space, what it
// acknowledged. The store notices.
func TestDiskFullControl(t *testing.T) {
	in, err := pgtest.Find(0)
	if errors.Is(err, pgtest.ErrNoServer) {
		in = pgtest.Installation{} // Start says what is missing
	}
	disk, server := smallDisk(t, in, map[string]string{
		"synchronous_commit": "off", "wal_writer_delay": "10s", "wal_writer_flush_after": "1GB", "wal_buffers": "64MB",
		"max_wal_size": "10GB", "checkpoint_timeout": "1h", "bgwriter_lru_maxpages": "0", "autovacuum": "off",
	})
	dsn := server.DSN("postgres")
	fatal := make(chan error, 1)
	s := onSmallDisk(t, server, func(o *Options) { o.Fatal = func(err error) { fatal <- err } })
	must(t, commitOne(s, 0, decided(command("before", 0), true, 1)))
	must(t, disk.Fill())
	// The last two files of the log that there are, filled in memory and beyond: what comes then cannot be written any more.
	must(t, logFiles(t, server, -1+ask[int](t, dsn, `select count(*) from pg_ls_waldir()
		where name ~ '^[0-9A-F]{24}$' and name > pg_walfile_name(pg_current_wal_insert_lsn())`)))
	exec(t, dsn, "select pg_logical_emit_message(false, '', repeat('x', 1 << 20)) from generate_series(1, 33)")
	must(t, commitOne(s, 0, decided(command("lost", 0), true, 1)))
	if err := logFiles(t, server, 1); err == nil {
		t.Fatal("the server has a new log file on a disk that is full")
	}
	must(t, server.AwaitEnd())
	must(t, disk.Empty())
	must(t, server.Start())
	select {
	case err := <-fatal:
		if !errors.Is(err, millrace.ErrFailed) {
			t.Errorf("fatal: %v", err)
		}
	case <-patient(t).Done():
		t.Fatal("nobody noticed")
	}
}
