package pgtest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The environment variables that say where servers are, and whether a test may do without.
const (
	envBins    = "MILLRACE_POSTGRES"         // bin folders, separated by colons; nothing else is looked at then
	envCache   = "MILLRACE_POSTGRES_CACHE"   // where .ci/postgres unpacks
	envRequire = "MILLRACE_REQUIRE_POSTGRES" // any value: a test without a server fails instead of being skipped
)

// systemCache is where .ci/postgres unpacks when it is run by root: root's own cache folder is closed to the user that
// the server runs as.
const systemCache = "/var/cache/millrace/postgres"

// MinMajor is the oldest major that is looked for, because it is the oldest that Millrace runs on.
const MinMajor = 15

// versionTimeout bounds the question for a version: the answer needs neither disk nor network.
const versionTimeout = 30 * time.Second

// ErrNoServer says that no PostgreSQL server was found, or none of the major that was asked for.
var ErrNoServer = errors.New("no PostgreSQL server found")

// Installation is a set of server binaries.
type Installation struct {
	Bin     string // the folder of postgres and initdb
	Version string // as `postgres --version` puts it: "15.18 (Debian 15.18-0+deb12u1)"
	Major   int
}

// String is the version, and where it is.
func (in Installation) String() string { return "PostgreSQL " + in.Version + " in " + in.Bin }

func (in Installation) program(name string) string { return filepath.Join(in.Bin, name) }

// Installations finds all server binaries of [MinMajor] and later, the oldest major first, and of one major in the
// order of the package's description. Binaries that cannot be run are left out, unless MILLRACE_POSTGRES names them:
// then that is an error, for somebody wanted them.
func Installations() ([]Installation, error) {
	bins, named := binFolders()
	var found []Installation
	seen := map[string]bool{}
	for _, bin := range bins {
		resolved, err := filepath.EvalSymlinks(bin)
		if err == nil && seen[resolved] {
			continue
		}
		seen[resolved] = true
		in, err := inspect(bin)
		switch {
		case err == nil:
			found = append(found, in)
		case named:
			return nil, fmt.Errorf("%s names %s: %w", envBins, bin, err)
		}
	}
	slices.SortStableFunc(found, func(a, b Installation) int { return cmp.Compare(a.Major, b.Major) })
	return found, nil
}

// Find is the first installation of a major; 0 stands for the oldest there is. The error is an [ErrNoServer] when there
// is none.
func Find(major int) (Installation, error) {
	all, err := Installations()
	if err != nil {
		return Installation{}, err
	}
	for _, in := range all {
		if major == 0 || in.Major == major {
			return in, nil
		}
	}
	if major != 0 {
		return Installation{}, fmt.Errorf("%w of major %d; found: %v; .ci/postgres installs some", ErrNoServer, major, all)
	}
	return Installation{}, fmt.Errorf("%w; .ci/postgres installs some, or let %s name a bin folder", ErrNoServer, envBins)
}

// majors are the first installations of every major.
func majors() ([]Installation, error) {
	all, err := Installations()
	return slices.CompactFunc(all, func(a, b Installation) bool { return a.Major == b.Major }), err
}

// binFolders are the folders that may hold binaries, and whether somebody named them.
func binFolders() (bins []string, named bool) {
	if list := os.Getenv(envBins); list != "" {
		return filepath.SplitList(list), true
	}
	bins, _ = filepath.Glob("/usr/lib/postgresql/*/bin") // the only error is a bad pattern
	if path, err := exec.LookPath("postgres"); err == nil {
		// In PATH there is often a link only; initdb lies beside what it leads to.
		if resolved, err := filepath.EvalSymlinks(path); err == nil {
			bins = append(bins, filepath.Dir(resolved))
		}
	}
	for _, cache := range cacheFolders() {
		more, _ := filepath.Glob(filepath.Join(cache, "*", "bin"))
		bins = append(bins, more...)
	}
	return bins, false
}

func cacheFolders() []string {
	if cache := os.Getenv(envCache); cache != "" {
		return []string{cache}
	}
	caches := []string{systemCache}
	if user, err := os.UserCacheDir(); err == nil {
		caches = append(caches, filepath.Join(user, "millrace", "postgres"))
	}
	return caches
}

// inspect asks binaries for their version, as the user that the server will run as: it may be that only root can reach
// them.
func inspect(bin string) (Installation, error) {
	ctx, cancel := context.WithTimeout(context.Background(), versionTimeout)
	defer cancel()
	in := Installation{Bin: bin}
	for _, program := range []string{"initdb", "postgres"} {
		out, err := runAs(ctx, "/", in.program(program), "--version")
		if err != nil {
			return Installation{}, err
		}
		_, version, ok := strings.Cut(strings.TrimSpace(string(out)), " (PostgreSQL) ")
		if !ok {
			return Installation{}, fmt.Errorf("%s calls itself %q", in.program(program), out)
		}
		in.Version = version
	}
	digits := strings.IndexFunc(in.Version, func(r rune) bool { return r < '0' || r > '9' })
	if digits < 0 {
		digits = len(in.Version)
	}
	major, err := strconv.Atoi(in.Version[:digits])
	if err != nil {
		return Installation{}, fmt.Errorf("version %q in %s: %w", in.Version, bin, err)
	}
	if major < MinMajor {
		return Installation{}, fmt.Errorf("version %s in %s is older than %d", in.Version, bin, MinMajor)
	}
	in.Major = major
	return in, nil
}

// runAs runs a program of PostgreSQL to its end, as the user that servers run as.
func runAs(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	as, err := serverUser()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, program, args...) //nolint:gosec // binaries that the developer's machine names
	cmd.Dir, cmd.Env = dir, environment()
	as.apply(cmd)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.Bytes(), nil
}

// environment is all that PostgreSQL's programs get to see of ours: PGDATA, PGOPTIONS and the like would change what is
// tested, and so would the developer's language and time zone.
func environment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
}
