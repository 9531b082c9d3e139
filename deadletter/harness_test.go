package deadletter_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/deadletter"
	"github.com/millrace-io/millrace/domain/system"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/internal/letter"
	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/lease"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/millracetest/nodes"
	"github.com/millrace-io/millrace/pgstore"
	"github.com/millrace-io/millrace/process"
	"github.com/millrace-io/millrace/projection"
)

// patience is how long a test waits for what must come: only a hang reaches it.
const patience = 60 * time.Second

const partitions = 4

// A list takes numbers. The decision panics for those that its code has a fault for.
type (
	AddNumber struct {
		N int `json:"n"`
	}
	NumberAdded struct {
		N int `json:"n"`
	}
	List struct {
		Last int `json:"last"`
	}
)

// lists is the domain, with a fault for some numbers. Negative numbers are refused.
func lists(faulty func(n int) bool) millrace.Definition {
	return millrace.Domain[List]{
		Category: "list", StateVersion: 1,
		Initial: func(string) List { return List{} },
		Decide: func(_ List, c any, _ time.Time) ([]any, *millrace.Refusal) {
			n := c.(*AddNumber).N //nolint:forcetypeassert // there is no other
			switch {
			case faulty(n):
				panic(fmt.Sprint("cannot add ", n))
			case n < 0:
				return nil, &millrace.Refusal{Kind: millrace.RefusedRule, Code: "negative", Detail: "numbers are positive"}
			}
			return []any{&NumberAdded{n}}, nil
		},
		Evolve:   func(_ List, e any) List { return List{e.(*NumberAdded).N} }, //nolint:forcetypeassert // there is no other
		Commands: []millrace.Message{millrace.MessageOf[AddNumber]("AddNumber")},
		Events:   []millrace.Message{millrace.MessageOf[NumberAdded]("NumberAdded")},
	}
}

// short is how many letters a test has, or how many are sent in a second: fewer under -short, which is how the race detector runs.
// What there is to be met on the way is the same, and there is as much time for it.
func short(ordinary, fewer int) int {
	if testing.Short() {
		return fewer
	}
	return ordinary
}

func every(int) bool { return true }
func none(int) bool  { return false }

type options struct {
	faulty  func(int) bool // defaults to none
	system  []millrace.Definition
	fs      vfs.FS // of the embedded store
	dir     string // of the embedded store, on the disk
	dsn     string // of the database, in place of it
	node    string
	wrap    func(*millrace.Store) *millrace.Store
	sending func(millrace.Intake) millrace.Intake // what the process sends by
	change  func(*deadletter.Service)
	service *deadletter.Options
	paused  bool // nobody follows the feed
}

// world is a store with all that runs on it.
type world struct {
	t      testing.TB
	store  *millrace.Store
	reg    *millrace.Registry
	intake *command.Processor
	s      *deadletter.Service
	leases *lease.Manager
	cancel context.CancelFunc
	ended  []chan error
	once   sync.Once
	ready  chan struct{} // closed when there is an intake
}

func start(t testing.TB, o options) *world {
	t.Helper()
	if o.faulty == nil {
		o.faulty = none
	}
	if o.system == nil {
		o.system = system.Domains()
	}
	w := &world{t: t, ready: make(chan struct{})}
	var err error
	if w.reg, err = millrace.NewRegistry(append(o.system, lists(o.faulty))...); err != nil {
		t.Fatal(err)
	}
	w.open(o)
	w.intake = command.New(w.store, w.reg, &command.Options{Shared: o.dsn != "", Attempts: 1})
	close(w.ready)
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	if o.dsn != "" {
		w.lease(ctx, o)
	}
	models, err := projection.New(ctx, w.store, system.Projections(), w.modelOptions(o))
	if err != nil {
		t.Fatal(err)
	}
	w.s = deadletter.New(w.store, w.reg, w.intake, models.Model(letter.Projection), o.service)
	if o.change != nil {
		o.change(w.s)
	}
	w.run(ctx, w.intake.Run)
	w.run(ctx, models.Run)
	if o.paused {
		return w
	}
	manager, err := system.Redrive().Manager()
	if err != nil {
		t.Fatal(err)
	}
	var sending millrace.Intake = w.intake
	if o.sending != nil {
		sending = o.sending(sending)
	}
	redrive := process.New(w.store, w.reg, sending, manager, nil).Consumer()
	w.run(ctx, func(ctx context.Context) error { return w.follow(ctx, redrive) })
	w.run(ctx, func(ctx context.Context) error { return w.follow(ctx, w.s.Jobs()) })
	return w
}

func (w *world) open(o options) {
	w.t.Helper()
	var err error
	if o.dsn == "" {
		if o.fs == nil && o.dir == "" {
			o.fs = vfs.NewMem()
		}
		w.store, err = localstore.Open(cmp.Or(o.dir, "data"), &localstore.Options{
			FS: o.fs, Partitions: partitions, SegmentSize: o.segment(), CacheSize: 8 << 20, MemTableSize: 4 << 20, Fatal: func(error) {},
		})
	} else {
		w.store, err = pgstore.Open(context.Background(), o.dsn, &pgstore.Options{
			Node: o.node, Partitions: partitions, LeaseTTL: time.Second, NoSync: true,
			Undecided: func(partition int) { <-w.ready; w.intake.Look(partition) },
		})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	if o.wrap != nil {
		w.store = o.wrap(w.store)
	}
}

// segment is the size of a segment of the embedded store's journal: each is filled with zeros before it is used, and copied by a
// power cut.
func (o options) segment() int64 {
	if o.dir == "" {
		return 256 << 10
	}
	return 4 << 20
}

// lease has a node decide the partitions that it leases.
func (w *world) lease(ctx context.Context, o options) {
	w.leases = lease.New(w.store.Driver().(*pgstore.Driver), lease.Options{ //nolint:forcetypeassert // it has just been opened
		Node: o.node, Partitions: partitions, Every: 100 * time.Millisecond,
		Serve: func(ctx context.Context, partition int, epoch uint64) error {
			w.store.Own(partition, epoch)
			return w.intake.Serve(ctx, partition)
		},
	})
	w.run(ctx, w.leases.Run)
}

func (w *world) modelOptions(o options) projection.Options {
	p := projection.Options{Run: w.follow}
	if w.leases != nil {
		p.Node, p.Owned = o.node, w.leases.Owned
		p.Owners = func(context.Context) (map[int]string, error) { return map[int]string{}, nil }
	}
	return p
}

// follow runs a consumer over the partitions that the node owns, whichever they are.
func (w *world) follow(ctx context.Context, c millrace.Consumer) error {
	if w.leases == nil {
		return feed.New(w.store, w.reg, c, nil).Run(ctx)
	}
	return nodes.Follow(ctx, w.leases, func(ctx context.Context, owned map[int]uint64) error {
		return feed.New(w.store, w.reg, c, &feed.Options{Partitions: owned, Workers: 1}).Run(ctx)
	})
}

func (w *world) run(ctx context.Context, f func(context.Context) error) {
	ended := make(chan error, 1)
	w.ended = append(w.ended, ended)
	go func() { ended <- f(ctx) }()
}

// stop ends all; what failed on the way is the result.
func (w *world) stop() (err error) {
	w.once.Do(func() {
		w.cancel()
		var errs []error
		for _, e := range w.ended {
			errs = append(errs, <-e)
		}
		err = errors.Join(append(errs, w.store.Close())...)
	})
	return err
}

func (w *world) mustStop() {
	w.t.Helper()
	if err := w.stop(); err != nil {
		w.t.Error(err)
	}
}

// ctx is a context for one call of the test: it outlasts the slowest.
func (w *world) ctx() context.Context { return w.t.Context() }

// send has a command decided.
func (w *world) send(c millrace.Command) millrace.Outcome {
	w.t.Helper()
	r, err := w.intake.Accept(w.ctx(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	o, err := r.Wait(w.ctx())
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

func add(id, list string, n int) millrace.Command {
	return millrace.Command{ID: id, Stream: millrace.NewStream("list", list), Type: "AddNumber", Data: fmt.Appendf(nil, `{"n":%d}`, n), CorrelationID: "story of " + id, Source: "test"}
}

// kill sends a command that becomes a dead letter.
func (w *world) kill(c millrace.Command) {
	w.t.Helper()
	if o := w.send(c); o.Status != millrace.StatusDead {
		w.t.Fatalf("%+v is no dead letter", o)
	}
}

// act does something with a dead letter, as the API does.
func (w *world) act(id string, body any) millrace.Outcome {
	w.t.Helper()
	name, data, err := w.reg.EncodeCommand(body)
	if err != nil {
		w.t.Fatal(err)
	}
	of := w.refOf(body).CommandID
	return w.send(millrace.Command{ID: id, Stream: letter.Stream(of), Type: name, Data: data, CorrelationID: w.item(of).Letter.CorrelationID})
}

func (w *world) refOf(body any) letter.Ref {
	w.t.Helper()
	switch c := body.(type) {
	case *letter.RedriveDeadLetter:
		return c.Letter
	case *letter.EditDeadLetter:
		return c.Letter
	case *letter.DiscardDeadLetter:
		return c.Letter
	}
	w.t.Fatalf("%T", body)
	return letter.Ref{}
}

func (w *world) item(id string) *letter.Item {
	w.t.Helper()
	it, _, err := w.s.Get(w.ctx(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return it
}

func (w *world) ref(id string) letter.Ref { w.t.Helper(); return letter.RefOf(w.item(id).Letter) }

func (w *world) redrive(key, id string) millrace.Outcome {
	w.t.Helper()
	return w.act(key, &letter.RedriveDeadLetter{Letter: w.ref(id), By: "ann"})
}

// until looks again and again until something holds.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	w.untilWithin(patience, what, ok)
}

func (w *world) untilWithin(patience time.Duration, what string, ok func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatal("in vain: ", what)
		}
	}
}

func (w *world) untilStatus(id string, want letter.Status) *letter.Item {
	w.t.Helper()
	w.until(id+" is "+string(want), func() bool { return w.item(id).Status() == want })
	return w.item(id)
}

// numbers are those of a list, in order.
func (w *world) numbers(list string) (out []int) {
	w.t.Helper()
	for e, err := range w.store.Events(w.ctx(), millrace.NewStream("list", list), 1) {
		if err != nil {
			w.t.Fatal(err)
		}
		body, err := w.reg.Body(&e)
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, body.(*NumberAdded).N) //nolint:forcetypeassert // there is no other
	}
	return out
}

// seen waits until the read model of what was done has seen all.
func (w *world) seen() {
	w.t.Helper()
	if err := w.store.Wait(w.ctx(), letter.Projection+"@1", w.store.Head()); err != nil {
		w.t.Fatal(err)
	}
}

// listed are the ids of a list of dead letters with a status; "" for all.
func (w *world) listed(f letter.Filter, status letter.Status) string {
	w.t.Helper()
	w.seen()
	var ids []string
	for it, err := range w.s.Scan(w.ctx(), f.Order(), nil) {
		if err != nil {
			w.t.Fatal(err)
		}
		if f.Fits(it.Letter) && (status == "" || it.Status() == status) {
			ids = append(ids, it.Letter.CommandID)
		}
	}
	return strings.Join(ids, " ")
}

// onStores runs a test on the embedded store and on a database. again is the same store, opened again.
func onStores(t *testing.T, test func(t *testing.T, open func(o options) *world)) {
	t.Run("embedded", func(t *testing.T) {
		fs := vfs.NewMem()
		test(t, func(o options) *world { o.fs = fs; return start(t, o) })
	})
	t.Run("postgres", func(t *testing.T) {
		dsn := pgtest.Start(t, pgtest.Options{NoSync: true}).DSN("postgres")
		n := 0
		test(t, func(o options) *world {
			n++
			o.dsn, o.node = dsn, fmt.Sprint("n", n)
			return start(t, o)
		})
	})
}
