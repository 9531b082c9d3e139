// Package pgtest starts real PostgreSQL servers for tests, and breaks them.
//
// A store is only as good as what it does when its database restarts, stalls, fails over or loses an answer, and no
// imitation of a database shows that. So [Start] makes a fresh cluster of the binaries found on the machine, [Server]
// stops, kills, pauses, restarts and promotes it, and [Proxy] loses what goes over the wire. Nothing is shared between
// tests, nothing is left behind: neither processes nor folders nor shared memory, even when the test process is killed.
//
// Binaries come from the first of these that names any; `.ci/postgres` provides the second and the last:
//
//   - the bin folders in the environment variable MILLRACE_POSTGRES, separated by colons, and then no others;
//   - /usr/lib/postgresql/*/bin, where Debian puts them;
//   - the folder of `postgres` in PATH;
//   - */bin in the cache folder: MILLRACE_POSTGRES_CACHE, or else /var/cache/millrace/postgres and
//     millrace/postgres in the user's cache folder.
//
// All but the first are looked at together, so that a test may run against several majors; see [Each]. A test that
// finds no server is skipped, or fails where the environment variable MILLRACE_REQUIRE_POSTGRES is set: in continuous
// integration a test that was not run must not look like one that passed.
//
// [StartPooler] puts a pgbouncer before a server: the one that MILLRACE_PGBOUNCER names, else that of PATH, else Debian's.
//
// PostgreSQL refuses to run as root. When the test process is root, everything of PostgreSQL runs as the user postgres,
// or as nobody where there is none.
//
// The package depends on the standard library alone, and speaks just enough of PostgreSQL's protocol to ask a server
// whether a change has taken effect. Tests bring their own driver, and find the way by [Server.DSN].
package pgtest
