//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/pgstore"
)

const (
	// clusterNodes share one database.
	clusterNodes = 3
	// killAim and stopAim bound a takeover: from the end of the owner, or from the word that it shall stop, until somebody
	// else has decided a command in each of its partitions.
	killAim = 10 * time.Second
	stopAim = 2 * time.Second
	// pausedFor is two lease times: the others have taken over and gone on for long when a paused node wakes up.
	pausedFor = 2 * leaseTTL
	// clusterPatience bounds every wait, and is far above what anything takes.
	clusterPatience = 40 * time.Second
	// lookEvery is how often a test looks for what it waits for.
	lookEvery = 20 * time.Millisecond
)

// clusterTimes is how often each thing happens: once in the short form, which every run of the tests has, and a few times
// in the long one.
func clusterTimes() int {
	if os.Getenv("MILLRACE_CLUSTER") == "" {
		return 1
	}
	return 3
}

// clusterBeside lets the tests of several processes run side by side, for most of their time they wait for leases to end. In
// the shortest form there are none.
func clusterBeside(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("several processes and a database for a minute, and -short is set")
	}
	t.Parallel()
}

// TestCluster runs three nodes on one database under load, and takes away one thing after the other. What was
// acknowledged in all that time is checked at the end.
func TestCluster(t *testing.T) {
	clusterBeside(t)
	db := pgtest.Start(t, pgtest.Options{})
	w := newClusterWorld(t, db.DSN("postgres"), 1)
	w.load(t)
	for range clusterTimes() {
		w.phase(t, "one node is killed", w.killOne)
		w.phase(t, "one node is stopped", w.stopOne)
		w.phase(t, "the database restarts", func(t *testing.T) { w.restartDatabase(t, db) })
		w.phase(t, "a client reads its writes at another node", w.readElsewhere)
		w.phase(t, "nodes answer one request at the same time", w.answerTogether)
	}
	w.rest(t)
	w.check(t)
	w.stopAll(t)
}

// TestClusterFailover: a node is paused, and the database fails over to a synchronous standby.
func TestClusterFailover(t *testing.T) {
	clusterBeside(t)
	db := pgtest.Start(t, pgtest.Options{})
	standby := db.Standby(t, true)
	proxy := pgtest.NewProxy(t, db.Addr())
	w := newClusterWorld(t, proxy.DSN("postgres"), 2)
	w.load(t)
	for range clusterTimes() {
		w.phase(t, "one node is paused", w.pauseOne)
	}
	w.phase(t, "the database fails over", func(t *testing.T) {
		w.acknowledges(t, 300)
		began := time.Now()
		if err := errors.Join(db.Kill(), standby.Promote()); err != nil {
			t.Fatal(err)
		}
		promoted := time.Since(began)
		proxy.SetTarget(standby.Addr())
		w.decidesEverywhere(t)
		t.Logf("the standby is promoted after %s, and all partitions decide after %s", round(promoted), round(time.Since(began)))
		w.acknowledges(t, 300)
	})
	w.rest(t)
	w.check(t)
	w.stopAll(t)
}

// TestSoakCluster is the long form: whatever happens next is drawn.
func TestSoakCluster(t *testing.T) {
	text := os.Getenv("MILLRACE_SOAK")
	if text == "" {
		t.Skip("MILLRACE_SOAK is not set")
	}
	long, err := time.ParseDuration(text)
	if err != nil {
		long = 5 * time.Minute
	}
	db := pgtest.Start(t, pgtest.Options{})
	w := newClusterWorld(t, db.DSN("postgres"), uint64(time.Now().UnixNano()))
	t.Logf("seed %d", w.seed)
	ordeals := []struct {
		name string
		run  func(t *testing.T)
	}{
		{"one node is killed", w.killOne},
		{"one node is stopped", w.stopOne},
		{"one node is paused", w.pauseOne},
		{"the database restarts", func(t *testing.T) { w.restartDatabase(t, db) }},
		{"a client reads its writes at another node", w.readElsewhere},
		{"nodes answer one request at the same time", w.answerTogether},
	}
	w.load(t)
	for end := time.Now().Add(long); time.Now().Before(end) && !t.Failed(); {
		one := ordeals[w.rng.IntN(len(ordeals))]
		w.phase(t, one.name, one.run)
	}
	w.rest(t)
	w.check(t)
	w.stopAll(t)
}

// clusterNode is one of the nodes; its process may be another one from one phase to the next.
type clusterNode struct {
	name string
	at   atomic.Pointer[server]
	told []*server // all processes it ever was
}

// clusterWorld is three nodes, their clients, and what those know.
type clusterWorld struct {
	t        *testing.T // of the whole test: processes live on when a phase ends
	dsn, bin string
	seed     uint64
	rng      *rand.Rand
	nodes    []*clusterNode
	// store is the observer's, who owns nothing.
	store    *millrace.Store
	registry *millrace.Registry
	clients  []*clusterClient
	// probes names a stock stream in each partition.
	probes []string
	probed int

	stop    context.CancelFunc // ends the load
	loading sync.WaitGroup

	mu      sync.Mutex
	at      string // the phase
	all     []*wish
	acks    int
	heard   chan struct{} // closed and replaced at each acknowledgement
	faults  []string
	trouble map[string]int           // requests that had to be sent again, by phase and reason
	longest map[string]time.Duration // that a client waited for an acknowledgement, by phase
	reads   int                      // at another node, of what had just been written
}

func newClusterWorld(t *testing.T, dsn string, seed uint64) *clusterWorld {
	t.Helper()
	w := &clusterWorld{
		t: t, dsn: dsn, bin: binary(t), seed: seed, rng: seeded(seed, 0), heard: make(chan struct{}),
		trouble: map[string]int{}, longest: map[string]time.Duration{}, at: "quiet",
	}
	for i := range clusterNodes {
		w.nodes = append(w.nodes, &clusterNode{name: fmt.Sprintf("node-%d", i+1)})
	}
	// All at once: each finds an empty database and wants to make the tables.
	var starting sync.WaitGroup
	for _, n := range w.nodes {
		starting.Go(func() { w.start(t, n) })
	}
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}
	var err error
	if w.registry, err = millrace.NewRegistry(order.Domains()...); err != nil {
		t.Fatal(err)
	}
	w.store, err = pgstore.Open(t.Context(), dsn, &pgstore.Options{
		Node: "observer", Fatal: func(err error) { t.Errorf("the observer's store failed: %v", err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.store.Close(); err != nil {
			t.Error(err)
		}
	})
	w.probes = make([]string, w.store.Partitions())
	for i, left := 0, len(w.probes); left > 0; i++ {
		sku := fmt.Sprintf("P%d", i)
		if p := millrace.NewStream("stock", sku).Partition(len(w.probes)); w.probes[p] == "" {
			w.probes[p] = sku
			left--
		}
	}
	for i := range uint64(clusterClients) {
		w.clients = append(w.clients, newClusterClient(w, i))
	}
	w.spread(t)
	return w
}

// start starts a node's process and waits until it is ready.
func (w *clusterWorld) start(t *testing.T, n *clusterNode) {
	t.Helper()
	s, err := startNode(w.t, w.bin, w.dsn, n.name)
	if err != nil {
		t.Error(err)
		return
	}
	n.told = append(n.told, s)
	n.at.Store(s)
}

// startNode starts a process that lives as long as the test, and waits until it is ready.
func startNode(t *testing.T, bin, dsn, name string) (*server, error) {
	t.Helper()
	p, err := launch(t, bin, "serve", "--store", dsn, "--node", name, "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0",
		"--log-level", "warn", "--log-format", "json")
	if err != nil {
		return nil, err
	}
	select {
	case found := <-p.stdout.wait(`(?m)^millrace is ready: (http://\S+) admin (http://\S+) store postgres node (\S+)$`):
		if found == nil {
			return nil, fmt.Errorf("%s ended: %s", name, p.stderr.String())
		}
		transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
		t.Cleanup(transport.CloseIdleConnections)
		return &server{process: p, url: found[1], admin: found[2], http: &http.Client{Transport: transport, Timeout: patience}}, nil
	case <-time.After(patience):
		return nil, fmt.Errorf("%s does not become ready: %s", name, p.stderr.String())
	}
}

// phase is one thing that happens to the nodes while they work.
func (w *clusterWorld) phase(t *testing.T, name string, run func(t *testing.T)) {
	t.Helper()
	if t.Failed() {
		return // what comes of it is checked at the end
	}
	began := time.Now()
	w.mu.Lock()
	w.at = name
	delete(w.longest, name)
	before := w.acks
	w.mu.Unlock()
	t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
		run(t)
		w.mu.Lock()
		defer w.mu.Unlock()
		t.Logf("%s: %d commands acknowledged, sent again %v, the longest that a client waited %s",
			round(time.Since(began)), w.acks-before, w.trouble, round(w.longest[name]))
		clear(w.trouble)
	})
	w.mu.Lock()
	w.at = "quiet"
	w.mu.Unlock()
}

// until looks again and again until ok says so.
func (w *clusterWorld) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), clusterPatience)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.tell(t)
			t.Fatalf("in vain: %s; the owners are %v", what, w.owners(t))
		}
	}
}

// tell shows what the nodes say.
func (w *clusterWorld) tell(t *testing.T) {
	t.Helper()
	for _, n := range w.nodes {
		for i, s := range n.told {
			said := s.stderr.String()
			t.Logf("%s, process %d: %s", n.name, i+1, said[max(0, len(said)-4000):])
		}
	}
}

// acknowledges waits until the clients were acknowledged so many more commands.
func (w *clusterWorld) acknowledges(t *testing.T, more int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	w.mu.Lock()
	want := w.acks + more
	w.mu.Unlock()
	for {
		w.mu.Lock()
		got, heard := w.acks, w.heard
		w.mu.Unlock()
		if got >= want {
			return
		}
		select {
		case <-heard:
		case <-ctx.Done():
			w.tell(t)
			t.Fatal("the nodes acknowledge nothing more")
		}
	}
}

// owners are the partitions of each node. A database that is away has nobody.
func (w *clusterWorld) owners(t *testing.T) map[string][]int {
	t.Helper()
	all, err := w.store.Driver().(*pgstore.Driver).Nodes(t.Context()) //nolint:forcetypeassert // the world opened it
	if err != nil {
		return nil
	}
	out := map[string][]int{}
	for _, l := range all {
		if l.Left > 0 {
			out[l.Node] = append(out[l.Node], l.Partition)
		}
	}
	return out
}

// spread waits until all nodes have their shares.
func (w *clusterWorld) spread(t *testing.T) {
	t.Helper()
	w.until(t, "every node has its share", func() bool {
		own, n := w.owners(t), 0
		for _, node := range w.nodes {
			share := len(own[node.name])
			if share < w.store.Partitions()/clusterNodes {
				return false
			}
			n += share
		}
		return n == w.store.Partitions()
	})
}

// takenOver waits until other nodes own these partitions and have decided a command in each, and says how long after
// began the first and the last was.
func (w *clusterWorld) takenOver(t *testing.T, lost string, partitions []int, began time.Time) (first, last time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var mu sync.Mutex
	var deciding sync.WaitGroup
	moved := map[int]bool{}
	w.until(t, "other nodes take over from "+lost, func() bool {
		for node, own := range w.owners(t) {
			for _, p := range own {
				if node == lost || moved[p] || !slices.Contains(partitions, p) {
					continue
				}
				moved[p] = true
				deciding.Go(func() {
					w.probe(ctx, p, lost)
					took := time.Since(began)
					mu.Lock()
					defer mu.Unlock()
					if last = max(last, took); first == 0 || took < first {
						first = took
					}
				})
			}
		}
		return len(moved) == len(partitions)
	})
	deciding.Wait()
	return first, last
}

// probe has a command decided in a partition. It does not ask the node that is lost: how long a client waits for that is the
// client's own choice.
func (w *clusterWorld) probe(ctx context.Context, partition int, lost string) {
	w.mu.Lock()
	w.probed++
	c := newClusterClient(w, uint64(clusterClients+w.probed)) //nolint:gosec // small
	w.mu.Unlock()
	for i, n := range w.nodes {
		if n.name == lost {
			c.avoid[i] = time.Now().Add(clusterPatience)
		}
	}
	sku := w.probes[partition]
	for n := 0; ctx.Err() == nil; n++ {
		one := c.wish("stock-"+sku, call{
			method: http.MethodPost, path: "/v1/stock/" + sku + "/receive", key: fmt.Sprintf("%s-%d", c.name, n),
			prefer: "wait=30", body: []byte(`{"quantity":1}`),
		})
		if a := c.send(ctx, one); a != nil && a.status == http.StatusOK {
			return
		}
	}
}

// decidesEverywhere has a command decided in each partition.
func (w *clusterWorld) decidesEverywhere(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var deciding sync.WaitGroup
	for p := range w.probes {
		deciding.Go(func() { w.probe(ctx, p, "") })
	}
	deciding.Wait()
	if ctx.Err() != nil {
		w.tell(t)
		t.Fatal("a partition decides nothing more")
	}
}

// any draws a node.
func (w *clusterWorld) any() *clusterNode { return w.nodes[w.rng.IntN(len(w.nodes))] }

func (w *clusterWorld) killOne(t *testing.T) {
	w.acknowledges(t, 300)
	n := w.any()
	own := w.owners(t)[n.name]
	n.at.Load().kill()
	first, last := w.takenOver(t, n.name, own, time.Now())
	t.Logf("%s had %d partitions; others decided there from %s to %s after the kill", n.name, len(own), round(first), round(last))
	if last > killAim {
		t.Errorf("a takeover took %s, and may take %s", last, killAim)
	}
	w.start(t, n)
	w.spread(t)
	w.acknowledges(t, 200)
}

func (w *clusterWorld) stopOne(t *testing.T) {
	w.acknowledges(t, 300)
	n := w.any()
	s, own := n.at.Load(), w.owners(t)[n.name]
	// A connection on which nothing was asked yet, as balancers keep them: net/http waits seconds for it.
	idle, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close() //nolint:errcheck // it is closed by then
	began := time.Now()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	first, last := w.takenOver(t, n.name, own, began)
	_ = idle.Close() // nothing was written
	code := s.exit(t)
	t.Logf("%s had %d partitions; others decided there from %s to %s after SIGTERM, and it was gone after %s",
		n.name, len(own), round(first), round(last), round(time.Since(began)))
	if code != 0 {
		t.Errorf("SIGTERM ended %s with %d: %s", n.name, code, s.stderr.String())
	}
	if last > stopAim {
		t.Errorf("a takeover took %s, and may take %s", last, stopAim)
	}
	w.start(t, n)
	w.spread(t)
	w.acknowledges(t, 200)
}

func (w *clusterWorld) restartDatabase(t *testing.T, db *pgtest.Server) {
	w.acknowledges(t, 300)
	began := time.Now()
	if err := db.Restart(pgtest.Immediate); err != nil {
		t.Fatal(err)
	}
	up := time.Since(began)
	w.decidesEverywhere(t)
	t.Logf("the database is back after %s, and all partitions decide after %s", round(up), round(time.Since(began)))
	w.acknowledges(t, 300)
}

// pauseOne stops a node where it is, for two lease times. Somebody has sent it a request and waits all that time.
func (w *clusterWorld) pauseOne(t *testing.T) {
	w.acknowledges(t, 300)
	n := w.any()
	s, own := n.at.Load(), w.owners(t)[n.name]
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	awake := func() {
		if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}
	defer awake()
	held := make(chan error, 1)
	c := &clusterClient{w: w, name: fmt.Sprintf("held%d", w.rng.IntN(1<<30))}
	patient := c.place(c.name)
	go func() { held <- c.ask(t.Context(), s, patient) }()
	first, last := w.takenOver(t, n.name, own, began)
	t.Logf("%s had %d partitions; others decided there from %s to %s after SIGSTOP", n.name, len(own), round(first), round(last))
	if last > killAim {
		t.Errorf("a takeover took %s, and may take %s", last, killAim)
	}
	// The same request elsewhere: it is decided by the time that the paused node gets to it. That one may say that it took
	// too long, for its clocks went on; asked again it has the same answer.
	elsewhere := c.send(t.Context(), patient)
	w.until(t, "two lease times are over", func() bool { return time.Since(began) > pausedFor })
	awake()
	if err := <-held; err != nil {
		t.Errorf("what the paused node was asked: %v", err)
	} else if a := patient.later; elsewhere == nil || !a.equal(elsewhere) {
		t.Errorf("the paused node answers %s, and the others had answered %s", a, elsewhere)
	}
	w.spread(t)
	w.acknowledges(t, 200)
	select {
	case <-s.done:
		t.Errorf("%s ended after it was woken: %s", n.name, s.stderr.String())
	default:
	}
}

// stopAll ends all nodes in good order, and wants to have heard of nothing worse than what was done to them.
func (w *clusterWorld) stopAll(t *testing.T) {
	t.Helper()
	for _, n := range w.nodes {
		n.at.Load().stop(t)
	}
	warned := map[string]int{}
	for _, n := range w.nodes {
		for _, s := range n.told {
			for line := range strings.Lines(s.stderr.String()) {
				var entry struct{ Level, Msg, Error string }
				err := json.Unmarshal([]byte(line), &entry)
				// That somebody stopped, a node or a client, is nobody's trouble.
				if err != nil || entry.Level != "WARN" || strings.HasSuffix(entry.Error, context.Canceled.Error()) {
					t.Errorf("%s says: %s", n.name, line)
					continue
				}
				warned[entry.Msg]++
			}
		}
	}
	t.Logf("warnings: %v", warned)
}
