package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Superuser is the one role of a fresh cluster; on the loopback interface nobody asks for its password.
const Superuser = "millrace"

// maxSocketPath is what Linux allows for the path of a Unix socket, and socketName what PostgreSQL calls it at most.
const (
	maxSocketPath = 107
	socketName    = ".s.PGSQL.65535"
)

// firstPort and lastPort bound the ports that servers and proxies listen on. They lie below those that Linux gives to
// outgoing connections: while a server is down, none of these may take its port, and no client that tries to reconnect
// may meet itself there.
const (
	firstPort = 16384
	lastPort  = 32767
	maxPorts  = 100 // ports tried before giving up
)

// files is a cluster as initdb made it: paths below the data folder, those of folders with a slash at the end.
type files map[string][]byte

// templates keeps a cluster per installation: initdb takes most of a second, writing its files a fraction of that.
// They are kept in memory because a folder would outlive the process: nobody tells a package when the tests end.
var templates struct {
	sync.Mutex
	byBin map[string]files
}

// template is a fresh cluster of an installation.
func (in Installation) template(ctx context.Context, as account) (files, error) {
	templates.Lock()
	defer templates.Unlock()
	if t, ok := templates.byBin[in.Bin]; ok {
		return t, nil
	}
	dir, err := as.folder("")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	data := filepath.Join(dir, "data")
	// Checksums, since Millrace wants them on; the C locale, because it is the same everywhere.
	_, err = runAs(ctx, dir, in.program("initdb"), "-D", data, "-U", Superuser, "--auth=trust", "--encoding=UTF8", "--locale=C",
		"--data-checksums", "--no-sync", "--no-instructions")
	if err != nil {
		return nil, err
	}
	t := files{}
	err = filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == data {
			return err
		}
		name := strings.TrimPrefix(path, data+"/")
		if d.IsDir() {
			t[name+"/"] = nil
			return nil
		}
		t[name], err = os.ReadFile(path) //nolint:gosec // a cluster of our own
		return err
	})
	if err != nil {
		return nil, err
	}
	if templates.byBin == nil {
		templates.byBin = map[string]files{}
	}
	templates.byBin[in.Bin] = t
	return t, nil
}

// write puts a cluster into a new folder. The files are not flushed: who cuts the power flushes the file system before.
func (f files) write(data string, as account) error {
	if err := as.mkdir(data); err != nil {
		return err
	}
	names := make([]string, 0, len(f))
	for name := range f {
		names = append(names, name)
	}
	slices.Sort(names) // a folder before what is in it
	for _, name := range names {
		path := filepath.Join(data, name)
		if strings.HasSuffix(name, "/") {
			if err := as.mkdir(path); err != nil {
				return err
			}
			continue
		}
		if err := as.writeFile(path, f[name]); err != nil {
			return err
		}
	}
	return nil
}

func (a account) mkdir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return a.own(path)
}

func (a account) writeFile(path string, data []byte) error {
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	return a.own(path)
}

// folder makes a new folder that the account owns and can reach: below a given one, or else where temporary files go.
// The folders that testing makes are closed to others than their owner.
func (a account) folder(below string) (string, error) {
	parents := []string{os.TempDir(), "/tmp", "/var/tmp"}
	if below != "" {
		parents = []string{below}
	}
	i := slices.IndexFunc(parents, a.reaches)
	if i < 0 {
		return "", fmt.Errorf("the user that PostgreSQL runs as can reach none of %v", parents)
	}
	dir, err := os.MkdirTemp(parents[i], "millrace-pg-")
	if err != nil {
		return "", err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", err
	}
	return dir, a.own(dir)
}

// transient are the folders whose contents mean nothing to a copy: PostgreSQL makes them anew, or streams them.
var transient = []string{
	"pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans", "pg_wal",
}

// copyCluster copies the data folder of a running server, between pg_backup_start and pg_backup_stop.
func copyCluster(from, to string, as account) error {
	if err := as.mkdir(to); err != nil {
		return err
	}
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(strings.TrimPrefix(path, from), "/")
		switch {
		case errors.Is(err, fs.ErrNotExist) || err == nil && name == "":
			return nil // a running server removes files
		case err != nil:
			return err
		}
		top, rest, _ := strings.Cut(name, "/")
		base := filepath.Base(name)
		switch {
		case rest != "" && slices.Contains(transient, top),
			strings.HasPrefix(base, "postmaster."), strings.HasPrefix(base, "pgsql_tmp"), strings.HasPrefix(base, "pg_internal.init"):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			return as.mkdir(filepath.Join(to, name))
		default:
			return as.copyFile(path, filepath.Join(to, name))
		}
	})
}

func (a account) copyFile(from, to string) error {
	in, err := os.Open(from) //nolint:gosec // a cluster of our own
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // a cluster of our own
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return a.own(to)
}

// pidFile are the lines of the file by which a server tells who and how it is: its process first, its shared memory
// seventh, its state eighth.
func pidFile(data string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(data, "postmaster.pid")) //nolint:gosec // a cluster of our own
	return strings.Split(string(text), "\n"), err
}

// listen opens a port of 127.0.0.1 that nothing else is given by chance.
func listen(ctx context.Context) (net.Listener, error) {
	var err error
	for range maxPorts {
		port := firstPort + rand.IntN(lastPort-firstPort+1) //nolint:gosec // not a secret
		var l net.Listener
		if l, err = (&net.ListenConfig{}).Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("no free port from %d to %d: %w", firstPort, lastPort, err)
}

// freePort is a port that nobody listens on just now.
func freePort(ctx context.Context) (int, error) {
	l, err := listen(ctx)
	if err != nil {
		return 0, err
	}
	_, text, err := net.SplitHostPort(l.Addr().String())
	if err := errors.Join(err, l.Close()); err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}
