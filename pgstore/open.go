package pgstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/gate"
)

// Driver is the backend. What [millrace.Store] does not have is here: ownership, and what is known of other nodes. It is
// reached by Store.Driver.
type Driver struct {
	o     Options
	meta  millrace.Meta
	cfg   *pgx.ConnConfig
	pool  *pgxpool.Pool
	slots chan struct{} // one taken by each reader's query: writers and leases keep their share of the pool
	sql   statements
	types [rowTypes]uint32
	// named: writes are prepared under names. mayForget: that is our own choice, and a pool may undo it.
	named     atomic.Bool
	mayForget bool
	heads     heads
	tails     []tail
	w         writers
	look      gatherer[lookup]
	// versions are asked for by the loops of several partitions at a time.
	versions gatherer[askVersions]
	leases   leases            // of the deciding
	others   [roleCount]leases // of the other roles
	views    viewTokens

	backlog backlog
	notify  notifier
	stats   counters

	known  atomic.Int64 // the start of the server whose history is known to be ours
	down   atomic.Pointer[outage]
	failed atomic.Pointer[error]

	reads    *gate.Gate
	ctx      context.Context //nolint:containedctx // the driver's own life, for what outlives its callers
	cancel   context.CancelFunc
	closing  chan struct{} // closed when Close begins
	wait     sync.WaitGroup
	once     sync.Once
	closeErr error
}

var _ millrace.Shared = (*Driver)(nil)

// applicationName is what administrators see of our connections.
const applicationName = "millrace"

// connectTimeout bounds each try to connect: a lost packet costs a second, a host that is gone must not cost minutes.
const connectTimeout = 5 * time.Second

// Open opens the store in a database, or creates it. Several nodes may have it open. The tables are brought up to this
// version first, unless [Options.NoMigrate] is set; a database that a newer version has changed is refused with
// [ErrSchema]. Views for reports that cannot be brought up to date are a warning in the log: see [ErrReports].
//
// The DSN is a URL or a keyword string as libpq has it. Of several hosts the primary is used. Writes are prepared under
// names until one shows that a pool such as pgbouncer in transaction mode stands before the server; from then on they are
// sent unnamed, as reads are. default_query_exec_mode in the DSN settles it beforehand: cache_statement for names,
// cache_describe for none.
func Open(ctx context.Context, dsn string, opts *Options) (*millrace.Store, error) {
	o, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	d := &Driver{o: o, reads: gate.New(), closing: make(chan struct{})}
	if err := d.open(ctx, dsn); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := d.begin(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), d.Close())
	}
	return millrace.NewStore(d), nil
}

func (d *Driver) open(ctx context.Context, dsn string) error {
	cfg, err := poolConfig(dsn, &d.o)
	if err != nil {
		return err
	}
	d.cfg = cfg.ConnConfig
	mode := d.cfg.DefaultQueryExecMode
	if d.mayForget = !strings.Contains(dsn, "default_query_exec_mode"); d.mayForget {
		d.cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe // for what is asked seldom
	}
	d.named.Store(d.mayForget || mode == pgx.QueryExecModeCacheStatement)
	if err := migrate(ctx, d.cfg, &d.o); errors.Is(err, ErrReports) {
		d.o.Logger.Warn("reports are missing or of another version; all else works", "error", err) // no reason to refuse orders
	} else if err != nil {
		return err
	}
	if d.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return err
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.slots = make(chan struct{}, d.o.PoolSize-d.o.Writers-1)
	d.sql = newStatements(quoted(d.o.Schema))
	if err := d.inspect(ctx); err != nil {
		d.cancel()
		d.pool.Close()
		return err
	}
	return nil
}

func poolConfig(dsn string, o *Options) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = int32(o.PoolSize) //nolint:gosec // small
	c := cfg.ConnConfig
	c.OnNotice = noticed
	if !o.trusting {
		cfg.BeforeConnect = neverCancel
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTimeout
	}
	if c.ValidateConnect == nil {
		// What a standby shows may be older, and in another order, than what was acknowledged.
		c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsPrimary
	}
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = applicationName
	}
	return cfg, nil
}

// minServer is PostgreSQL 15.
const minServer = 150000

// inspect refuses a server that would break the promises, and reads the store's identity and heads.
func (d *Driver) inspect(ctx context.Context) error {
	var version, encoding string
	settings := make([]string, 3)
	err := d.pool.QueryRow(ctx, `select current_setting('server_version_num'), current_setting('server_encoding'),
		current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit')`).
		Scan(&version, &encoding, &settings[0], &settings[1], &settings[2])
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(version); err != nil || n < minServer {
		return fmt.Errorf("the server is of version %s: PostgreSQL 15 or later is needed", version)
	}
	if encoding != "UTF8" {
		return fmt.Errorf("the database's encoding is %s: UTF8 is needed", encoding)
	}
	for i, name := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		if settings[i] == "off" && !d.o.NoSync {
			return fmt.Errorf("the server has %s off: it would lose what it acknowledged", name)
		}
	}
	err = d.pool.QueryRow(ctx, d.sql.meta).Scan(&d.meta.ID, &d.meta.Epoch, &d.meta.Partitions)
	if err != nil {
		return err
	}
	if err := d.findTypes(ctx); err != nil {
		return err
	}
	if d.o.Copy != nil && d.meta != *d.o.Copy {
		return fmt.Errorf("%w: the schema holds another store than the one that is copied", millrace.ErrInvalid)
	}
	n := d.meta.Partitions
	d.heads.init(n)
	d.tails = newTails(n)
	d.w.init(d, n)
	d.look.init(maxLookups, d.findOutcomes)
	d.versions.init(maxAskVersions, d.findVersions)
	d.leases.init(n, &d.o)
	for r := range d.others {
		d.others[r].init(n, &Options{Now: d.o.Now})
	}
	d.views.tokens = map[viewKey]int64{}
	d.notify.init(n)
	return d.refresh(ctx, false)
}

// begin starts the background work.
func (d *Driver) begin(ctx context.Context) error {
	for p := range d.tails {
		d.tails[p].start = d.heads.get(p).Position
	}
	if err := d.count(ctx); err != nil {
		return err
	}
	d.wait.Go(d.poll)
	if !d.o.NoListen {
		d.wait.Go(d.listen)
		d.wait.Go(d.tell)
	}
	if d.o.OwnAll {
		if err := d.acquireAll(ctx); err != nil {
			return err
		}
		d.wait.Go(d.keepAll)
	}
	return nil
}

// fail is the end: nothing is acknowledged any more, and the process is told.
func (d *Driver) fail(err error) {
	if d.failed.CompareAndSwap(nil, &err) {
		d.o.Fatal(err)
	}
}

func (d *Driver) failure() error {
	if f := d.failed.Load(); f != nil {
		return *f
	}
	return nil
}

// Meta implements millrace.Driver.
func (d *Driver) Meta() millrace.Meta { return d.meta }

// Refresh implements millrace.Shared.
func (d *Driver) Refresh() time.Duration { return d.o.Poll }

// Node is the name under which partitions are leased.
func (d *Driver) Node() string { return d.o.Node }

// Writable implements millrace.Driver. Beside the errors that are named there it may be [millrace.ErrUnavailable].
func (d *Driver) Writable() error {
	select {
	case <-d.closing:
		return millrace.ErrClosed
	default:
	}
	if err := d.failure(); err != nil {
		return err
	}
	if out := d.down.Load(); out != nil && (out.until.IsZero() || d.o.Now().Before(out.until)) {
		return out.err
	}
	return nil
}

// outage says why facts would be refused now.
type outage struct {
	err error
	// until is set where only a write can show that it is over: from then on somebody may try. Otherwise any answer does.
	until time.Time
}

// tryAgain is how long writes are refused that the database would refuse, before one of them is let through to see.
const tryAgain = time.Second

// reached notes how a call of the database went: nil, or an error that passes. A read that succeeds says nothing of
// writes that are refused.
func (d *Driver) reached(err error, wrote bool) {
	old := d.down.Load()
	if err == nil {
		if old != nil && (wrote || old.until.IsZero()) && d.down.CompareAndSwap(old, nil) {
			d.o.Logger.Info("the database is back")
		}
		return
	}
	out := &outage{err: unavailable(err)}
	if classify(err) == faultFull {
		out.err = fmt.Errorf("%w: %w", millrace.ErrFull, err)
	}
	if wrote && answered(err) {
		out.until = d.o.Now().Add(tryAgain)
	}
	if d.down.Swap(out) == nil {
		d.o.Logger.Warn("the database is away or refuses to write", "error", err)
	}
}

// closeGrace is how long Close goes on trying to write what is queued while the database is away.
const closeGrace = 5 * time.Second

// Close implements millrace.Driver. It writes what is queued, ends the leases, and waits for the reads that are under
// way, so it must not be called within one.
func (d *Driver) Close() error {
	d.once.Do(func() {
		close(d.closing)
		d.w.shut()
		d.cancel()
		d.heads.shut()
		d.wait.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
		defer cancel()
		if err := d.releaseAll(ctx); err != nil {
			d.o.Logger.Warn("leases were not ended; they run out by themselves", "error", err)
		}
		d.reads.Shut()
		d.look.wait.Wait()
		d.versions.wait.Wait()
		d.pool.Close()
	})
	return d.closeErr
}
