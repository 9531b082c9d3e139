package pgstore

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/millrace-io/millrace"
)

// Options of Open; nil is fine.
type Options struct {
	// Partitions of a new store; an existing store keeps what it was created with. Defaults to 16.
	Partitions int
	// Copy is the identity that a new store takes over: that of the store whose copy it is to be. An existing store must
	// have it already. Defaults to an identity of its own.
	Copy *millrace.Meta
	// Node is the name under which partitions are leased. It must be unique among the nodes that run: one that starts
	// under the name of another takes its partitions. A node that starts again under its own name need not wait for its
	// old leases to end. Defaults to a random name.
	Node string
	// OwnAll acquires every partition at Open, waiting for the leases of others to end, and renews it until Close: for
	// tests, tools and a single node. Defaults to owning nothing until [Driver.Acquire].
	OwnAll bool
	// LeaseTTL is how long a partition stays with a node that does not renew its lease. Defaults to 6 s: three renewals
	// may fail, and another node takes over within 10 s of a kill.
	LeaseTTL time.Duration
	// Schema holds the tables. Defaults to "millrace".
	Schema string
	// Reports are made as views, where those that are there are older. Defaults to none, and leaves alone what is there.
	Reports []millrace.Reports
	// ReportSchema holds the views of Reports. Defaults to Schema + "_reporting".
	ReportSchema string
	// NoMigrate leaves the tables as they are: for tools that look at a store and are not to change it. A schema of an older
	// or a newer version than this program's is then refused with [ErrSchema], and one that holds no store with [ErrNoStore].
	// A role that may read is enough. Defaults to bringing the tables up to this version, and to making a store where there
	// is none.
	NoMigrate bool
	// PoolSize is the most connections, the listener's apart. Defaults to 12.
	PoolSize int
	// Writers is how many transactions may write facts at a time, where one alone does not keep up or is held up. Defaults
	// to 3.
	Writers int
	// Poll is how often the heads are looked at for what other nodes wrote, behind the notifications. Defaults to
	// 200 ms.
	Poll time.Duration
	// NoListen leaves out notifications, which need a session of their own, as pgbouncer's transaction mode has none:
	// readers then find by polling what other nodes wrote. Defaults to false.
	NoListen bool
	// ListenDSN is a direct connection, where the store's own leads through a pool: for notifications, and for migrations,
	// whose lock is a session's too. Defaults to the store's.
	ListenDSN string
	// Citus distributes the tables of a new store. Errors where the extension is missing. Defaults to false.
	Citus bool
	// NoSync accepts a server that answers before its disk does (fsync, full_page_writes or synchronous_commit off):
	// for tests alone. Defaults to refusing it.
	NoSync bool
	// Logger gets what happens in the background. Defaults to nothing.
	Logger *slog.Logger
	// Now is the clock of leases and lags. Defaults to time.Now.
	Now func() time.Time
	// Fatal is called once when the store can never acknowledge anything again: the database has lost what was
	// acknowledged. Fatal may return. Defaults to a log line and os.Exit(1).
	Fatal func(error)
	// Undecided is told of partitions owned here in which commands may wait that other nodes kept. It must not block.
	// Defaults to nothing.
	Undecided func(partition int)
	// AcceptPatience and DecidePatience bound how long a batch is tried while the database is away: one whose commands are
	// not kept yet, and one of decisions on commands that are. Default to 15 s, which an HTTP client waits, and 60 s, which a failover takes.
	AcceptPatience, DecidePatience time.Duration

	// checkFirst checks the fence in a transaction before the one that writes: the fault that tests must notice, together
	// with edit.
	checkFirst bool
	// beforeWrite is called between the two.
	beforeWrite func()
	// edit changes the text of a migration or of a view for reports: how a test leaves a protection out.
	edit func(string) string
	// more are the migrations that a newer program has: how a test has a schema that is older than the program.
	more []migration
	// separateClaims writes claims in a transaction of their own, as Citus needs.
	separateClaims bool
	// groups bounds the partitions of one transaction; 0 for no bound.
	groups int
	// attempt bounds one try to write. Defaults to attemptTimeout.
	attempt time.Duration
	// trusting takes what a server shows for what it promised: the fault that tests of standbys must notice.
	trusting bool
}

const (
	defaultTTL    = 6 * time.Second
	minTTL        = 300 * time.Millisecond
	defaultPool   = 12
	minPool       = 4 // a writer, a lookup, a read, the poller
	defaultWriter = 3
	defaultPoll   = 200 * time.Millisecond
	minPoll       = 5 * time.Millisecond
	// maxName bounds a node's and a schema's name: PostgreSQL cuts identifiers at 63 bytes.
	maxName = 63

	// notifyEvery is how often a node tells the others that heads moved: a notification in each write transaction
	// halves the writes.
	notifyEvery = 20 * time.Millisecond
)

// schemaName is what needs no quotes: goose uses none.
var schemaName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

func (o *Options) withDefaults() (Options, error) {
	var r Options
	if o != nil {
		r = *o
	}
	if r.Copy != nil {
		r.Partitions = r.Copy.Partitions
	}
	set(&r.Partitions, millrace.DefaultPartitions)
	if r.Partitions < 1 || r.Partitions > millrace.MaxPartitions {
		return r, fmt.Errorf("pgstore: partitions must be between 1 and %d", millrace.MaxPartitions)
	}
	if r.Node == "" {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		r.Node = hex.EncodeToString(b[:])
	}
	set(&r.Schema, "millrace")
	if err := millrace.ValidateID("node's name", r.Node, maxName); err != nil {
		return r, fmt.Errorf("pgstore: %w", err)
	}
	if strings.Contains(r.Node, " ") {
		return r, errors.New("pgstore: a node's name holds no space")
	}
	if !schemaName.MatchString(r.Schema) {
		return r, errors.New("pgstore: a schema's name is lower-case letters, digits and underscores, and starts with a letter")
	}
	if err := r.checkReports(); err != nil {
		return r, err
	}
	set(&r.LeaseTTL, defaultTTL)
	if r.LeaseTTL < minTTL {
		return r, fmt.Errorf("pgstore: a lease must last %s at least", minTTL)
	}
	set(&r.PoolSize, defaultPool)
	set(&r.Writers, defaultWriter)
	if r.PoolSize < minPool || r.Writers < 1 || r.Writers > r.PoolSize-minPool+1 {
		return r, fmt.Errorf("pgstore: a pool of %d is too small for %d writers", r.PoolSize, r.Writers)
	}
	set(&r.Poll, defaultPoll)
	if r.Poll < minPoll {
		return r, errors.New("pgstore: the poll interval is too short")
	}
	set(&r.AcceptPatience, 15*time.Second)
	set(&r.DecidePatience, 60*time.Second)
	set(&r.attempt, attemptTimeout)
	if r.Logger == nil {
		r.Logger = slog.New(slog.DiscardHandler)
	}
	if r.Now == nil {
		r.Now = time.Now
	}
	if r.Fatal == nil {
		log := r.Logger
		r.Fatal = func(err error) {
			log.Error("store failed; the process ends", "error", err)
			os.Exit(1)
		}
	}
	if r.Citus {
		r.separateClaims, r.groups = true, 1
	}
	return r, nil
}

// checkReports says no to views that could not be made.
func (o *Options) checkReports() error {
	set(&o.ReportSchema, o.Schema+"_reporting")
	if len(o.Reports) == 0 {
		return nil
	}
	if !schemaName.MatchString(o.ReportSchema) || o.ReportSchema == o.Schema {
		return errors.New("pgstore: the schema of reports is another than the store's, and named by the same rule; the default is 10 characters longer")
	}
	_, err := reportSets(o)
	return err
}

// set fills in a default.
func set[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}
