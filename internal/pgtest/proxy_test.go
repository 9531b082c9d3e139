package pgtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// echo starts a server that answers with what it is sent, after a prefix at the beginning, and ends with the test.
func echo(t *testing.T, prefix string) string {
	t.Helper()
	l, err := listen(t.Context())
	must(t, err)
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() {
				defer func() { _ = conn.Close() }()
				if _, err := io.WriteString(conn, prefix); err == nil {
					_, _ = io.Copy(conn, conn)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		tasks.Wait()
	})
	return l.Addr().String()
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(patience)))
	return conn
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	_, err := io.WriteString(conn, text)
	must(t, err)
}

func expect(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("read %q %v, want %q", got[:n], err, want)
	}
}

// silent says that nothing comes for a while: long for a loopback connection, short for a test.
func silent(t *testing.T, conn net.Conn) {
	t.Helper()
	must(t, conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes, %v", n, err)
	}
	must(t, conn.SetReadDeadline(time.Now().Add(patience)))
}

func broken(t *testing.T, conn net.Conn) {
	t.Helper()
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %d bytes, %v, want a reset", n, err)
	}
}

func TestProxyForwards(t *testing.T) {
	p := NewProxy(t, echo(t, "a"))
	conn := dial(t, p.Addr())
	expect(t, conn, "a")
	long := strings.Repeat("0123456789", 100_000)
	var sender sync.WaitGroup
	sender.Go(func() {
		_, _ = io.WriteString(conn, long)
		if half, ok := conn.(*net.TCPConn); ok {
			_ = half.CloseWrite() // the other half stays open
		}
	})
	got, err := io.ReadAll(conn)
	sender.Wait()
	if err != nil || string(got) != long {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(t, poll(ctx, func() bool { return p.Connections() == 0 }))
}

func TestProxyCuts(t *testing.T) {
	p := NewProxy(t, echo(t, "a"))
	one, two := dial(t, p.Addr()), dial(t, p.Addr())
	expect(t, one, "a")
	expect(t, two, "a")
	if n := p.Cut(); n != 2 {
		t.Errorf("cut %d connections", n)
	}
	broken(t, one)
	broken(t, two)
	expect(t, dial(t, p.Addr()), "a")
}

func TestProxyRefuses(t *testing.T) {
	p := NewProxy(t, echo(t, "a"))
	open := dial(t, p.Addr())
	expect(t, open, "a")
	for range 2 {
		must(t, p.Refuse(true))
		must(t, p.Refuse(true))
		if _, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("connect: %v, want a refusal", err)
		}
		send(t, open, "b")
		expect(t, open, "b")
		must(t, p.Refuse(false))
		must(t, p.Refuse(false))
		expect(t, dial(t, p.Addr()), "a")
	}
}

// Behind a proxy whose server is down, connections are reset, and those that come when it is back are served.
func TestProxyTarget(t *testing.T) {
	down, err := freePort(t.Context())
	must(t, err)
	p := NewProxy(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(down)))
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", p.Addr())
	if err == nil { // the reset may be faster than the dialler
		t.Cleanup(func() { _ = conn.Close() })
		must(t, conn.SetDeadline(time.Now().Add(patience)))
		broken(t, conn)
	} else if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("connect: %v, want a reset", err)
	}
	p.SetTarget(echo(t, "a"))
	one := dial(t, p.Addr())
	expect(t, one, "a")
	p.SetTarget(echo(t, "b"))
	expect(t, dial(t, p.Addr()), "b")
	send(t, one, "still")
	expect(t, one, "still")
}

func TestProxyHolds(t *testing.T) {
	for _, d := range []Direction{ToServer, ToClient} {
		p := NewProxy(t, echo(t, "a"))
		conn := dial(t, p.Addr())
		expect(t, conn, "a")
		p.SetFlow(d, Hold)
		send(t, conn, "b")
		silent(t, conn)
		p.SetFlow(d, Forward)
		expect(t, conn, "b")
	}
	// One that is stuck when the test ends does not keep it from ending.
	p := NewProxy(t, echo(t, "a"))
	p.SetFlow(ToClient, Hold)
	silent(t, dial(t, p.Addr()))
}

func TestProxyDrops(t *testing.T) {
	for _, d := range []Direction{ToServer, ToClient} {
		p := NewProxy(t, echo(t, "a"))
		conn, idle := dial(t, p.Addr()), dial(t, p.Addr())
		expect(t, conn, "a")
		expect(t, idle, "a")
		p.SetFlow(d, Drop)
		send(t, conn, "b")
		silent(t, conn)
		p.SetFlow(d, Forward)
		broken(t, conn)
		send(t, idle, "c")
		expect(t, idle, "c")
	}
}

func TestProxyDelays(t *testing.T) {
	p := NewProxy(t, echo(t, "a"))
	conn := dial(t, p.Addr())
	expect(t, conn, "a")
	const delay = 20 * time.Millisecond
	p.SetDelay(delay)
	start := time.Now()
	send(t, conn, "b")
	expect(t, conn, "b")
	if took := time.Since(start); took < 2*delay {
		t.Errorf("there and back in %v, with %v each way", took, delay)
	}
}

// The answer to one request is lost, in one connection, once; also when the request comes in two parts.
func TestProxyLosesAnAnswer(t *testing.T) {
	p := NewProxy(t, echo(t, "a"))
	conn, other := dial(t, p.Addr()), dial(t, p.Addr())
	expect(t, conn, "a")
	expect(t, other, "a")
	lost := p.LoseAnswer("commit")
	send(t, conn, "begin com")
	expect(t, conn, "begin com")
	send(t, other, "mit")
	expect(t, other, "mit")
	send(t, conn, "mit")
	<-lost
	broken(t, conn)
	send(t, other, "commit")
	expect(t, other, "commit")
}

// What it is all for: a transaction is committed, and its client cannot know.
func TestLostCommit(t *testing.T) {
	Each(t, func(t *testing.T, in Installation) {
		s := Start(t, Options{Installation: in, NoSync: true})
		sql(t, s.Addr(), "create table t (n int)")
		p := NewProxy(t, s.Addr())
		session, err := connect(t.Context(), p.Addr())
		must(t, err)
		defer session.close()
		_, err = session.query("begin; insert into t values (1)")
		must(t, err)
		lost := p.LoseAnswer("commit")
		if _, err := session.query("commit"); err == nil {
			t.Error("the answer arrived")
		}
		<-lost
		if got := sql(t, p.Addr(), "select count(*) from t"); got != "1" {
			t.Errorf("%s rows", got)
		}
	})
}

// Nothing that a server may say breaks the session.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("D\x00\x00\x00\x0b\x00\x01\x00\x00\x00\x01aZ\x00\x00\x00\x05I"))
	f.Add([]byte("E\x00\x00\x00\x0eC42601\x00Mno\x00\x00Z\x00\x00\x00\x05I"))
	f.Add([]byte("D\x00\x00\x00\x06\xff\xff"))
	f.Add([]byte("D\x00\x00\x00\x0a\x00\x01\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		rows, err := (&session{in: bufio.NewReader(bytes.NewReader(data))}).answer()
		if err == nil && len(data) < len(rows) {
			t.Errorf("%d rows of %d bytes", len(rows), len(data))
		}
	})
}
