package httpapi_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/api"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/localstore"
)

// pipes is a listener whose connections are in memory, so that their time can be a test's own.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return ours
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// slow is an intake that takes its time to refuse.
type slow struct{ after time.Duration }

func (s slow) Accept(_ context.Context, c millrace.Command) (*millrace.Receipt, error) {
	return millrace.NewPendingReceipt(c.ID, c.Stream, false, later{c, time.After(s.after)}), nil
}

// later is an outcome that comes in a while.
type later struct {
	c  millrace.Command
	in <-chan time.Time
}

func (l later) Await(ctx context.Context) (millrace.Outcome, error) {
	select {
	case <-l.in:
		return millrace.Outcome{
			CommandID: l.c.ID, Stream: l.c.Stream, Status: millrace.StatusRefused,
			Refusal: &millrace.Refusal{Kind: millrace.RefusedConflict, Code: "no", Detail: "no"},
		}, nil
	case <-ctx.Done():
		return millrace.Outcome{}, ctx.Err()
	}
}

func (s slow) AcceptAll(ctx context.Context, cs []millrace.Command) []millrace.Accepted {
	out := make([]millrace.Accepted, len(cs))
	for i := range cs {
		out[i].Receipt, out[i].Err = s.Accept(ctx, cs[i])
	}
	return out
}

// inBubble runs f with a server whose time passes only when everybody waits.
func inBubble(t *testing.T, intake millrace.Intake, f func(t *testing.T, dial func() net.Conn)) {
	t.Helper()
	store, err := localstore.Open("data", &localstore.Options{FS: vfs.NewMem(), CacheSize: 1 << 20, MemTableSize: 1 << 20, SegmentSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	registry, err := millrace.NewRegistry(order.Domains()...)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		a, err := httpapi.New(httpapi.Config{
			Store: store, Registry: registry, Intake: intake, Document: api.OpenAPI,
			Resources: []httpapi.Resource{{Name: "orders", Category: "order", Create: "PlaceOrder"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ln := newPipes()
		done := make(chan error, 1)
		go func() { done <- httpapi.Serve(ctx, ln, a, &httpapi.ServeOptions{OnDrain: a.Drain}) }()
		f(t, ln.dial)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func post(c net.Conn, headers, body string) error {
	_, err := io.WriteString(c, "POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"+headers+"\r\n"+body)
	return err
}

// TestLongWait: a wait that is longer than the timeouts of the connection is not cut short by them.
func TestLongWait(t *testing.T) {
	inBubble(t, slow{50 * time.Second}, func(t *testing.T, dial func() net.Conn) {
		c := dial()
		defer func() { _ = c.Close() }()
		start := time.Now()
		body := anOrder("")
		if err := post(c, "Prefer: wait=60\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n", body); err != nil {
			t.Fatal(err)
		}
		status, _, err := answerOf(c)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); status != 409 || took != 50*time.Second {
			t.Errorf("%d after %s", status, took)
		}
	})
}

// TestWaitIsOver: the answer comes when the wait is over, and is not the outcome.
func TestWaitIsOver(t *testing.T) {
	inBubble(t, slow{time.Hour}, func(t *testing.T, dial func() net.Conn) {
		c := dial()
		defer func() { _ = c.Close() }()
		start := time.Now()
		body := anOrder("")
		if err := post(c, "Prefer: wait=3600\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n", body); err != nil {
			t.Fatal(err)
		}
		status, _, err := answerOf(c)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); status != 202 || took != httpapi.MaxWait {
			t.Errorf("%d after %s", status, took)
		}
	})
}

// answerOf reads the head of an answer. Its body is of no interest, and ends with the connection.
func answerOf(c net.Conn) (status int, h http.Header, err error) {
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, nil, err
	}
	return resp.StatusCode, resp.Header, resp.Body.Close()
}

// drip sends text a byte each second until nobody takes it any more, and says how long that took.
func drip(c net.Conn, text string) time.Duration {
	start := time.Now()
	for i := range len(text) {
		<-time.After(time.Second) // the bubble's time: nobody waits for it
		if _, err := io.WriteString(c, text[i:i+1]); err != nil {
			break
		}
	}
	return time.Since(start)
}

// TestSlowloris: who sends a byte each second is cut off, in the headers and in the body.
func TestSlowloris(t *testing.T) {
	inBubble(t, slow{0}, func(t *testing.T, dial func() net.Conn) {
		c := dial()
		defer func() { _ = c.Close() }()
		go func() { _, _ = io.Copy(io.Discard, c) }()
		if took := drip(c, "GET /v1/orders HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("y", 1000)); took > 2*httpapi.ReadHeaderTimeout {
			t.Errorf("headers were taken for %s", took)
		}
	})
	inBubble(t, slow{0}, func(t *testing.T, dial func() net.Conn) {
		c := dial()
		defer func() { _ = c.Close() }()
		answered := make(chan int, 1)
		go func() {
			status, _, _ := answerOf(c) // 0 where there is none
			answered <- status
			_, _ = io.Copy(io.Discard, c)
		}()
		if err := post(c, "Content-Length: 1000\r\n", ""); err != nil {
			t.Fatal(err)
		}
		if took := drip(c, strings.Repeat(" ", 1000)); took > 2*httpapi.ReadTimeout {
			t.Errorf("a body was taken for %s", took)
		}
		if status := <-answered; status != 408 {
			t.Errorf("it is answered with %d", status)
		}
	})
}

// TestIdleLines: an NDJSON request may last as long as it likes, but not be silent for long.
func TestIdleLines(t *testing.T) {
	inBubble(t, slow{0}, func(t *testing.T, dial func() net.Conn) {
		c := dial()
		defer func() { _ = c.Close() }()
		if _, err := io.WriteString(c, "POST /v1/commands HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		const one = `{"type":"ConfirmOrder","stream":"order-1","data":{}}` + "\n"
		answers := make(chan string, 16)
		go func() {
			defer close(answers)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				return
			}
			defer func() { _ = resp.Body.Close() }()
			in := bufio.NewReader(resp.Body)
			for {
				l, err := in.ReadString('\n')
				if l != "" {
					answers <- l
				}
				if err != nil {
					return
				}
			}
		}()
		for range 6 { // two minutes: longer than every timeout of the connection
			if _, err := io.WriteString(c, "35\r\n"+one+"\r\n"); err != nil {
				t.Fatal(err)
			}
			if l := <-answers; !strings.Contains(l, `"status":"accepted"`) {
				t.Fatal(l)
			}
			<-time.After(20 * time.Second) // the bubble's time
		}
		start := time.Now()
		if l := <-answers; !strings.Contains(l, `"request_timeout"`) {
			t.Error(l)
		}
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("the silence was borne for %s", took)
		}
		if _, ok := <-answers; ok {
			t.Error("it goes on")
		}
	})
}

// TestTooManyWaits: beyond the limit, a wait is refused before the command is kept.
func TestTooManyWaits(t *testing.T) {
	if testing.Short() {
		t.Skip("opens many connections")
	}
	inBubble(t, slow{time.Hour}, func(t *testing.T, dial func() net.Conn) {
		body := anOrder("")
		conns := make([]net.Conn, 0, httpapi.MaxWaits)
		defer func() {
			for _, c := range conns {
				_ = c.Close()
			}
		}()
		for range httpapi.MaxWaits {
			c := dial()
			conns = append(conns, c)
			if err := post(c, "Prefer: wait=60\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n", body); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		c := dial()
		defer func() { _ = c.Close() }()
		if err := post(c, "Prefer: wait=60\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n", body); err != nil {
			t.Fatal(err)
		}
		status, h, err := answerOf(c)
		if err != nil || status != 503 || h.Get("Retry-After") == "" {
			t.Errorf("%d %v, %v", status, h, err)
		}
	})
}
