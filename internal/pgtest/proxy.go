package pgtest

import (
	"bytes"
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// The bounds of a proxy. A connection holds at most a queue of chunks in each direction; then its sender waits, as it
// would for a slow network.
const (
	maxProxied  = 1024 // connections; more are closed at once
	chunkSize   = 16 << 10
	queuedMax   = 64 // chunks
	dialTimeout = 10 * time.Second
)

// Direction is where bytes go.
type Direction int

// The two directions of a connection through a [Proxy].
const (
	ToServer Direction = iota
	ToClient
)

// Flow is what becomes of bytes.
type Flow int

const (
	// Forward passes them on.
	Forward Flow = iota
	// Hold keeps them, and the news of a closed connection, until they may be forwarded: a network that is interrupted.
	Hold
	// Drop loses them, and the news of a closed connection. A connection that has lost any is reset when this ends: what
	// comes after them would make no sense.
	Drop
)

// Proxy forwards TCP connections from a port of 127.0.0.1 to a server, and fails on demand.
type Proxy struct {
	addr   string
	ctx    context.Context //nolint:containedctx // the proxy's own life
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	slots  chan struct{} // one taken per connection

	mu       sync.Mutex
	target   string
	listener net.Listener // nil while connections are refused
	flow     [2]Flow
	delay    time.Duration
	changed  chan struct{} // closed when flow changes
	links    map[*link]bool
	cuts     int // so far
	lose     *loss
}

// loss is an order to lose the answer to a request.
type loss struct {
	request []byte
	lost    chan struct{} // closed when it is done
}

// link is a forwarded connection.
type link struct {
	client, server net.Conn
	closed         chan struct{}
	once           sync.Once

	mu      sync.Mutex
	tail    []byte // the end of what the client sent, for a request that comes in two parts
	losing  *loss  // its request went to the server
	dropped [2]bool
}

// chunk are bytes on their way.
type chunk struct {
	bytes []byte
	due   time.Time
	end   bool // the sender has closed its half
}

// NewProxy starts a proxy to an address, and stops it when the test ends.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l, err := listen(ctx)
	if err != nil {
		cancel()
		t.Fatalf("start a proxy: %v", err)
	}
	p := &Proxy{
		addr: l.Addr().String(), ctx: ctx, cancel: cancel, slots: make(chan struct{}, maxProxied),
		target: target, listener: l, changed: make(chan struct{}), links: map[*link]bool{},
	}
	p.tasks.Go(func() { p.accept(l) })
	t.Cleanup(p.close)
	return p
}

// Addr is the host and port that clients connect to.
func (p *Proxy) Addr() string { return p.addr }

// DSN is the URL of a database behind the proxy.
func (p *Proxy) DSN(db string) string { return DSN(p.addr, db) }

// SetTarget has later connections go to another server, as after a failover. Those that are open stay where they are.
func (p *Proxy) SetTarget(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = addr
}

// Connections tells how many are open.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Refuse has new connections refused, as by a machine on which nothing listens, or no longer.
func (p *Proxy) Refuse(on bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on == (p.listener == nil) || p.ctx.Err() != nil {
		return nil
	}
	if on {
		l := p.listener
		p.listener = nil
		return l.Close()
	}
	l, err := (&net.ListenConfig{}).Listen(p.ctx, "tcp4", p.addr)
	if err != nil {
		return err
	}
	p.listener = l
	p.tasks.Go(func() { p.accept(l) })
	return nil
}

// Cut resets all open connections, those that are being made included, and returns how many were open.
func (p *Proxy) Cut() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cuts++
	for l := range p.links {
		l.reset()
	}
	return len(p.links)
}

// SetFlow says what becomes of bytes in one direction, on all connections, those to come included. That a connection can
// be made at all is no sign that bytes are forwarded.
func (p *Proxy) SetFlow(d Direction, f Flow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flow[d] = f
	for l := range p.links {
		if f != Drop && l.lost(d) {
			l.reset()
		}
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// SetDelay has bytes that arrive from now on wait before they are forwarded, in both directions.
func (p *Proxy) SetDelay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// LoseAnswer waits for a client to send bytes that contain a request, forwards them, and resets that connection when
// the server answers: the request was carried out, and the client does not know. It does so once. The channel is closed
// when it has been done. A request is looked for byte by byte, so that "commit" finds the one that a driver sends as
// such; a client that does not wait for answers before it sends the request loses an earlier one.
func (p *Proxy) LoseAnswer(request string) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose = &loss{request: []byte(request), lost: make(chan struct{})}
	return p.lose.lost
}

func (p *Proxy) close() {
	p.cancel()
	p.mu.Lock()
	if p.listener != nil {
		_ = p.listener.Close()
		p.listener = nil
	}
	for l := range p.links {
		l.reset()
	}
	p.mu.Unlock()
	p.tasks.Wait()
}

func (p *Proxy) accept(l net.Listener) {
	for {
		client, err := l.Accept()
		if err != nil {
			return // closed, to refuse connections or for good
		}
		select {
		case p.slots <- struct{}{}:
			p.tasks.Go(func() {
				defer func() { <-p.slots }()
				p.serve(client)
			})
		default:
			reset(client)
		}
	}
}

// serve forwards one connection until it is closed.
func (p *Proxy) serve(client net.Conn) {
	p.mu.Lock()
	target, cuts := p.target, p.cuts
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(p.ctx, dialTimeout)
	defer cancel()
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", target)
	if err != nil {
		reset(client)
		return
	}
	l := &link{client: client, server: server, closed: make(chan struct{})}
	defer l.close()
	if !p.add(l, cuts) {
		l.reset()
		return
	}
	defer p.remove(l)
	var both sync.WaitGroup
	both.Go(func() { p.pump(l, ToServer) })
	both.Go(func() { p.pump(l, ToClient) })
	both.Wait()
}

// add takes a connection in, unless there was a cut since it began to be made, or connections are refused by now.
func (p *Proxy) add(l *link, cuts int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil || p.cuts != cuts || p.listener == nil {
		return false
	}
	p.links[l] = true
	return true
}

func (p *Proxy) remove(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
}

// pump forwards one direction of a connection. Reading goes on while bytes wait for their time, so that a delay makes
// a connection late but not slow.
func (p *Proxy) pump(l *link, d Direction) {
	queue := make(chan chunk, queuedMax)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(queue)
		p.read(l, d, queue)
	})
	defer reader.Wait()
	for c := range queue {
		if !p.deliver(l, d, c) {
			l.reset()
			return
		}
	}
}

// read queues what one end sends, up to its end.
func (p *Proxy) read(l *link, d Direction, queue chan<- chunk) {
	for {
		buf := make([]byte, chunkSize)
		n, err := l.end(1 - d).Read(buf)
		p.mu.Lock()
		due := time.Now().Add(p.delay)
		p.mu.Unlock()
		c := chunk{bytes: buf[:n], due: due, end: err != nil}
		select {
		case queue <- c:
		case <-l.closed:
			return
		}
		if err != nil {
			return
		}
	}
}

// deliver does with a chunk what is to be done with it, when it is time, and says whether the connection goes on.
func (p *Proxy) deliver(l *link, d Direction, c chunk) bool {
	timer := time.NewTimer(time.Until(c.due))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.closed:
		return false
	}
	flow, ok := p.gate(l, d)
	if !ok {
		return false
	}
	if flow == Drop {
		// The news that a connection is closed is lost like anything else.
		l.drop(d)
		return true
	}
	if d == ToClient && l.loses(len(c.bytes)) || l.lost(d) {
		return false
	}
	if d == ToServer {
		p.notice(l, c.bytes)
	}
	to := l.end(d)
	if _, err := to.Write(c.bytes); err != nil {
		return false
	}
	if half, ok := to.(*net.TCPConn); c.end && ok {
		return half.CloseWrite() == nil
	}
	return true
}

// gate waits while bytes are held, and says what becomes of them then.
func (p *Proxy) gate(l *link, d Direction) (Flow, bool) {
	for {
		p.mu.Lock()
		flow, changed := p.flow[d], p.changed
		p.mu.Unlock()
		if flow != Hold {
			return flow, true
		}
		select {
		case <-changed:
		case <-l.closed:
			return flow, false
		}
	}
}

// notice looks for the request whose answer is to be lost.
func (p *Proxy) notice(l *link, b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lose == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = append(l.tail, b...)
	if bytes.Contains(l.tail, p.lose.request) {
		l.losing, p.lose = p.lose, nil
		l.tail = nil
		return
	}
	keep := min(len(l.tail), max(len(p.lose.request)-1, 0))
	l.tail = append([]byte(nil), l.tail[len(l.tail)-keep:]...)
}

// loses says whether an answer is the one that is to be lost.
func (l *link) loses(n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.losing == nil || n == 0 {
		return false
	}
	// The reset comes first: who waits for the loss finds the connection gone.
	l.reset()
	close(l.losing.lost)
	l.losing = nil
	return true
}

func (l *link) drop(d Direction) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropped[d] = true
}

func (l *link) lost(d Direction) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped[d]
}

// end is where the bytes of a direction go.
func (l *link) end(d Direction) net.Conn {
	if d == ToServer {
		return l.server
	}
	return l.client
}

// reset closes both connections, without a farewell and without what still waits to be sent.
func (l *link) reset() { l.finish(reset) }

// close closes both connections, whose ends have closed theirs: what they were sent last is still delivered.
func (l *link) close() { l.finish(func(c net.Conn) { _ = c.Close() }) }

func (l *link) finish(how func(net.Conn)) {
	l.once.Do(func() {
		close(l.closed)
		how(l.client)
		how(l.server)
	})
}

func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}
