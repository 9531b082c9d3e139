package projection_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/millracetest"
	"github.com/millrace-io/millrace/pgstore"
	"github.com/millrace-io/millrace/projection"
)

const (
	nodePartitions = 4
	nodeLease      = time.Second
)

// cluster is nodes in one process that share a database.
type cluster struct {
	t   *testing.T
	dsn string
	f   *fault
	all []*node

	mu   sync.Mutex      // of what follows, and of changes of all
	head millrace.Cursor // of all that was decided
}

// decided notes an outcome.
func (c *cluster) decided(cursor millrace.Cursor) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.head.Positions == nil {
		c.head = millrace.Cursor{Epoch: cursor.Epoch, Positions: make([]uint64, nodePartitions)}
	}
	for p, position := range cursor.Positions {
		c.head.Positions[p] = max(c.head.Positions[p], position)
	}
}

// latest is where the log ends, as those know who sent what is in it.
func (c *cluster) latest() millrace.Cursor {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.head.Clone()
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	return &cluster{t: t, dsn: pgtest.Start(t, pgtest.Options{NoSync: true}).DSN("postgres"), f: &fault{}}
}

// node is a node: its own view of the store, and partitions that the test gives it.
type node struct {
	*projection.Model
	c     *cluster
	store *millrace.Store
	db    *pgstore.Driver
	proc  *command.Processor
	stop  func() // kills it: nothing is handed over
	blind atomic.Pointer[chan struct{}]
	dead  atomic.Bool // nothing comes of what it writes any more
	away  atomic.Bool // it does not renew its leases, and does not know that it lost any

	mu      sync.Mutex
	owned   map[int]uint64
	ends    map[int]func()
	changed chan struct{}
}

// sharedDriver is a faultyDriver on a shared store.
type sharedDriver struct {
	faultyDriver
	millrace.Shared
	n *node
}

// reader marks the ctx of those whom a blind node answers.
type reader struct{}

// Document keeps a node that is blind from learning what goes on, but for its readers.
func (d *sharedDriver) Document(ctx context.Context, collection string, partition int, id string) (millrace.Document, error) {
	if blind := d.n.blind.Load(); blind != nil && collection == "projections.live" && ctx.Value(reader{}) == nil {
		select {
		case <-*blind:
		case <-ctx.Done():
		}
	}
	return d.Shared.Document(ctx, collection, partition, id)
}

func (d *sharedDriver) CommitViews(ctx context.Context, b []millrace.ViewBatch) error {
	if d.n.dead.Load() {
		return errFinal
	}
	return d.faultyDriver.CommitViews(ctx, b)
}

func (d *sharedDriver) Post(ctx context.Context, doc millrace.Document) error {
	if d.n.dead.Load() {
		return errFinal
	}
	return d.Shared.Post(ctx, doc)
}

func (d *sharedDriver) DropViews(ctx context.Context, consumer string, collections []string) error {
	return d.faultyDriver.DropViews(ctx, consumer, collections)
}

// node starts a node that makes a projection; change may change its options.
func (c *cluster) node(name string, p millrace.Projection, change func(*projection.Options)) *node {
	t := c.t
	t.Helper()
	var proc atomic.Pointer[command.Processor]
	raw, err := pgstore.Open(patient(t), c.dsn, &pgstore.Options{
		Undecided: func(p int) {
			if proc := proc.Load(); proc != nil {
				proc.Look(p)
			}
		},
		Partitions: nodePartitions, Node: name, NoSync: true, LeaseTTL: nodeLease, Poll: 5 * time.Millisecond,
		Fatal: func(err error) { t.Errorf("%s: fatal: %v", name, err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	db, ok := raw.Driver().(*pgstore.Driver)
	if !ok {
		t.Fatal("another driver")
	}
	n := &node{
		c: c, db: db, owned: map[int]uint64{}, ends: map[int]func(){}, changed: make(chan struct{}),
	}
	n.store = millrace.NewStore(&sharedDriver{faultyDriver{n.db, c.f}, n.db, n})
	r := registry(t)
	n.proc = command.New(n.store, r, &command.Options{Shared: true})
	proc.Store(n.proc)
	o := projection.Options{
		Run: n.follow(r), Owned: n.own, Node: name,
		Owners: func(context.Context) (map[int]string, error) { return c.owners(), nil },
		Repair: func(ctx context.Context, c millrace.Consumer, s millrace.Stream, own []millrace.DocumentName, token uint64) error {
			return feed.Repair(ctx, n.store, r, c, s, own, token)
		},
	}
	o.Fresh(200 * time.Millisecond)
	if change != nil {
		change(&o)
	}
	svc, err := projection.New(patient(t), n.store, []millrace.Projection{p}, o)
	if err != nil {
		t.Fatal(err)
	}
	n.Model = svc.Model(p.Name)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{svc.Run, n.proc.Run, n.renew} {
		running.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				t.Errorf("%s ended with %v", name, err)
			}
		})
	}
	n.stop = sync.OnceFunc(func() {
		cancel()
		for p := range nodePartitions {
			n.drop(p)
		}
		running.Wait()
		if err := raw.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.all = slices.DeleteFunc(slices.Clone(c.all), func(o *node) bool { return o == n })
	})
	c.mu.Lock()
	c.all = append(c.all, n)
	c.mu.Unlock()
	t.Cleanup(n.stop)
	return n
}

// pair is two nodes that own half of the partitions each, with 40 events of 8 streams that both show.
func (c *cluster) pair(change func(*projection.Options)) (a, b *node) {
	c.t.Helper()
	a, b = c.node("a", millracetest.Tallies(), change), c.node("b", millracetest.Tallies(), change)
	a.take(0, 1)
	b.take(2, 3)
	a.adds("c", 40, 8)
	a.caught()
	b.caught()
	return a, b
}

func (c *cluster) owners() map[int]string {
	c.mu.Lock()
	all := c.all
	c.mu.Unlock()
	out := map[int]string{}
	for _, n := range all {
		owned, _ := n.own()
		for p := range owned {
			out[p] = n.db.Node()
		}
	}
	return out
}

func (n *node) own() (map[int]uint64, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.owned), n.changed
}

func (n *node) tell(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
	close(n.changed)
	n.changed = make(chan struct{})
}

// follow runs consumers over the partitions that the node owns, as the binary does.
func (n *node) follow(r *millrace.Registry) func(context.Context, millrace.Consumer) error {
	one := func(ctx context.Context, c millrace.Consumer) error {
		owned, changed := n.own()
		if len(owned) == 0 {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			return nil
		}
		inner, stop := context.WithCancel(ctx)
		defer stop()
		go func() {
			select {
			case <-changed:
				stop()
			case <-inner.Done():
			}
		}()
		return feed.New(n.store, r, c, &feed.Options{Partitions: owned, Lazy: 5 * time.Millisecond, Backoff: time.Millisecond, Attempts: 2}).Run(inner)
	}
	return func(ctx context.Context, c millrace.Consumer) error {
		run := func(ctx context.Context, c millrace.Consumer) error {
			for ctx.Err() == nil {
				if err := one(ctx, c); err != nil && !errors.Is(err, millrace.ErrFenced) && !millrace.IsTransient(err) {
					return err
				}
			}
			return nil
		}
		if n.c.f.on.Load() && n.c.f.node != nil {
			return n.c.f.node(n, ctx, c, run)
		}
		return run(ctx, c)
	}
}

// renew keeps the node's leases.
func (n *node) renew(ctx context.Context) error {
	tick := time.NewTicker(nodeLease / 10)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if n.away.Load() {
			continue
		}
		lost, err := n.db.Renew(ctx)
		if err != nil {
			continue // the next one may do
		}
		for _, p := range lost {
			n.drop(p)
		}
	}
}

// take makes partitions the node's, whoever has them.
func (n *node) take(partitions ...int) {
	t := n.c.t
	t.Helper()
	for _, p := range partitions {
		for _, o := range n.c.all {
			if owned, _ := o.own(); o != n && owned[p] > 0 {
				o.drop(p)
				if err := o.db.Release(patient(t), p); err != nil {
					t.Fatal(err)
				}
			}
		}
		n.seize(p)
	}
}

// seize makes a partition the node's as soon as it is free: its owner may be dead, or away.
func (n *node) seize(p int) {
	t := n.c.t
	t.Helper()
	var epoch uint64
	eventually(t, fmt.Sprintf("partition %d is free", p), func() bool {
		var ok bool
		var err error
		epoch, ok, err = n.db.Acquire(patient(t), p)
		return err == nil && ok
	})
	n.store.Own(p, epoch)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = n.proc.Serve(ctx, p) // fenced, or stopped
	}()
	n.tell(func() { n.owned[p], n.ends[p] = epoch, func() { cancel(); <-ended } })
}

func (n *node) drop(p int) {
	n.mu.Lock()
	end := n.ends[p]
	n.mu.Unlock()
	if end != nil {
		n.tell(func() { delete(n.owned, p); delete(n.ends, p) })
		end()
	}
}

// adds decides commands of some streams at a node.
func (n *node) adds(prefix string, count, streams int) {
	t := n.c.t
	t.Helper()
	cs := make([]millrace.Command, count)
	for i := range cs {
		cs[i] = add(fmt.Sprint(prefix, i), fmt.Sprint("s", i%streams), i%7+1)
	}
	for _, a := range n.proc.AcceptAll(patient(t), cs) {
		if a.Err != nil {
			t.Fatal(a.Err)
		}
		o, err := a.Receipt.Wait(patient(t))
		if err != nil || o.Status != millrace.StatusDecided {
			t.Fatalf("%+v %v", o, err)
		}
		n.c.decided(n.store.Cursor(&o))
	}
}

// caught waits until a node's readers see everything.
func (n *node) caught() {
	n.c.t.Helper()
	wait(n.c.t, n.Model, n.c.latest())
}

// Rebuilt again and again over three nodes while commands come in, owners change, and readers ask one node after the other:
// none sees an empty or a partial model or a document that goes back; and in the end all nodes have the documents of a model
// that was never rebuilt.
func TestRebuildOverNodesUnderLoad(t *testing.T) {
	const streams = 17
	c := newCluster(t)
	a, b, d := c.node("a", millracetest.Tallies(), nil), c.node("b", millracetest.Tallies(), nil), c.node("c", millracetest.Tallies(), nil)
	a.take(0)
	b.take(1, 2)
	d.take(3)
	a.adds("first", 100, streams)
	for _, n := range c.all {
		n.caught()
	}
	l := newLoad(t, c, streams)
	for i, n := range []*node{b, a, d, b} { // whoever is asked
		if i == 2 {
			d.take(0) // with another coordinator
		}
		st := rebuild(t, n.Model)
		t.Logf("caught up after %s, switched after %s: %+v", st.Rebuild.Caught.Sub(st.Rebuild.Started), st.Rebuild.Finished.Sub(st.Rebuild.Started), st.Rebuild.Differences)
		if st.Rebuild.Error != "" || len(st.Rebuild.Differences.Tables) > 0 || st.Rebuild.Differences.Uncompared > 0 {
			t.Errorf("%+v %+v", st.Rebuild, st.Rebuild.Differences)
		}
	}
	l.end()
	for _, n := range c.all {
		n.caught()
		if st := status(t, n.Model, func(st projection.Status) bool { return st.Generation == 5 }); st.Version != 1 {
			t.Errorf("%+v", st)
		}
	}
	assertFresh(t, c)
}

// assertFresh wants all nodes to show what a model shows that was made from the events in one go.
func assertFresh(t *testing.T, c *cluster) {
	t.Helper()
	want := map[string]uint64{}
	seen := millrace.Cursor{Positions: make([]uint64, nodePartitions)}
	end := c.latest()
	n := c.all[0]
	for events, err := range n.store.Feed(patient(t), millrace.FeedOptions{Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		for i := range events {
			e := &events[i]
			want[string(e.Stream)] = e.Version
			if e.Position > end.Position(e.Partition) {
				t.Fatalf("nobody knows of %s", e.ID())
			}
			seen.Positions[e.Partition] = e.Position
		}
		if seen.Covers(end) {
			break
		}
	}
	first := ""
	for _, n := range c.all {
		n.caught()
		got := map[string]uint64{}
		for doc, err := range n.Query(patient(t), millracetest.TallyTable.Table, millrace.Query{Index: -1, Partition: -1}) {
			if err != nil {
				t.Fatal(err)
			}
			v, err := millracetest.TallyTable.Decode(doc.Data)
			if err != nil {
				t.Fatal(err)
			}
			got[v.Stream] = v.Version
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s shows %v, want %v", n.db.Node(), got, want)
		}
		digest, err := n.Digest(patient(t))
		if err != nil {
			t.Fatal(err)
		}
		if first == "" {
			first = digest
		}
		if digest != first {
			t.Errorf("%s shows other documents", n.db.Node())
		}
	}
}

// load is writers and readers at all nodes.
type load struct {
	t       *testing.T
	wg      sync.WaitGroup
	stop    context.CancelFunc
	reads   atomic.Int64
	back    atomic.Int64 // documents that went back, lists that were not whole
	example atomic.Pointer[string]
}

func (l *load) fault(format string, args ...any) {
	l.back.Add(1)
	text := fmt.Sprintf(format, args...)
	l.example.CompareAndSwap(nil, &text)
}

func newLoad(t *testing.T, c *cluster, streams int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{t: t, stop: cancel}
	nodes := slices.Clone(c.all)
	l.wg.Go(func() { // a writer, who reads his writes at the next node
		whole := patient(t) // what was sent is answered: nothing is decided any more when the load has ended
		for i := 0; ctx.Err() == nil; i++ {
			n, o := nodes[i%len(nodes)], nodes[(i+1)%len(nodes)]
			r, err := n.proc.Accept(whole, add(fmt.Sprint("l", i), fmt.Sprint("s", i%streams), 1))
			if err != nil {
				continue
			}
			out, err := r.Wait(whole)
			if err != nil || out.Status != millrace.StatusDecided {
				continue
			}
			c.decided(o.store.Cursor(&out))
			if err := o.Wait(whole, o.store.Cursor(&out)); err != nil {
				continue
			}
			doc, err := o.Get(whole, millracetest.TallyTable.Table, out.Partition, string(out.Stream))
			if err != nil {
				l.fault("what was waited for: %v", err)
				continue
			}
			if v, err := millracetest.TallyTable.Decode(doc.Data); err != nil || v.Version < out.Version {
				l.fault("waited for version %d, found %s %v", out.Version, doc.Data, err)
			}
		}
	})
	for first := range 2 { // readers of documents, at one node after the other
		l.wg.Go(func() {
			newest := make([]uint64, streams)
			for i := first; ctx.Err() == nil; i++ {
				k := i / len(nodes) % streams
				stream := millrace.NewStream("tally", fmt.Sprint("s", k))
				doc, err := nodes[i%len(nodes)].Get(ctx, millracetest.TallyTable.Table, stream.Partition(nodePartitions), string(stream))
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					l.fault("%s: %v", stream, err)
					continue
				}
				v, err := millracetest.TallyTable.Decode(doc.Data)
				if err != nil || v.Version < newest[k] {
					l.fault("%s went back from version %d to %s %v", stream, newest[k], doc.Data, err)
					continue
				}
				newest[k] = v.Version
				l.reads.Add(1)
			}
		})
	}
	l.wg.Go(func() { // a reader of lists
		for i := 0; ctx.Err() == nil; i++ {
			n := 0
			for _, err := range nodes[i%len(nodes)].Query(ctx, millracetest.TallyTable.Table, millrace.Query{Index: i%2 - 1, Partition: -1}) {
				if err != nil {
					break
				}
				n++
			}
			if n != streams && ctx.Err() == nil {
				l.fault("a list of %d documents", n)
			}
		}
	})
	t.Cleanup(func() { cancel(); l.wg.Wait() })
	return l
}

// end ends the load, and wants readers to have seen nothing wrong.
func (l *load) end() {
	l.t.Helper()
	l.stop()
	l.wg.Wait()
	if n := l.back.Load(); n > 0 {
		l.t.Errorf("readers saw %d times what must not be, such as: %s", n, *l.example.Load())
	}
	if n := l.reads.Load(); n < 100 {
		l.t.Errorf("%d reads show nothing", n)
	}
}
