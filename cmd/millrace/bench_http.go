package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"

	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// defaultOrders takes some seconds.
const defaultOrders = 60_000

func benchIntake(ctx context.Context, o *benchOptions) ([]result, error) {
	r, err := measureIntake(ctx, o)
	if err != nil {
		return nil, err
	}
	return []result{*r}, nil
}

func measureIntake(ctx context.Context, o *benchOptions) (*result, error) {
	items := o.items
	if items == 0 {
		items = defaultOrders
	}
	main, others, err := intakeControls(ctx, o, items)
	if err != nil {
		return nil, err
	}
	b, err := newBed(ctx, o)
	if err != nil {
		return nil, err
	}
	r := &result{Name: "intake", Unit: "orders/s", Clients: o.clients}
	err = measureAPI(ctx, b, o, r, items, ordersOf)
	if err = errors.Join(err, b.stop()); err != nil {
		return nil, err
	}
	r.Control, r.Others = main, others
	r.Ratio = r.Rate / main.Rate
	return r, nil
}

// intakeControls take the same orders over HTTP, in the same process, in the plainest durable way that the store allows.
func intakeControls(ctx context.Context, o *benchOptions, items int) (main *control, others []control, err error) {
	alone, err := measureHandler(ctx, o, items, "bare net/http handler", ordersOf, nil)
	if err != nil {
		return nil, nil, err
	}
	others = []control{*alone}
	if o.store == "" {
		main, err = withRawLog(ctx, o, items)
		return main, others, err
	}
	inProcess, err := naiveTransactions(ctx, o, items)
	if err != nil {
		return nil, nil, err
	}
	main, err = naiveServer(ctx, o, items)
	return main, append(others, *inProcess), err
}

// measureAPI posts items to a node's API and waits until the read models have caught up.
func measureAPI(ctx context.Context, b *bed, o *benchOptions, r *result, items int, request func(int) (path, key string, body []byte)) error {
	addr, stop, err := listenAndServe(ctx, b.n.api)
	if err != nil {
		return err
	}
	err = o.measure(r, "", items, b.size, func(lat *latencies) error {
		return errors.Join(post(ctx, addr, o.clients, items, lat, request), b.n.caughtUp(ctx))
	})
	return errors.Join(err, stop())
}

// post sends items from several clients over kept-alive connections. Everybody must be answered with success.
func post(ctx context.Context, addr string, clients, items int, lat *latencies, request func(int) (path, key string, body []byte)) error {
	hc := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients, DisableCompression: true}}
	defer hc.CloseIdleConnections()
	return spread(ctx, clients, items, lat, func(_, i int) error {
		path, key, body := request(i)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", key)
		resp, err := hc.Do(req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return err
		}
		if resp.StatusCode >= http.StatusMultipleChoices {
			return fmt.Errorf("%s answers %d", path, resp.StatusCode)
		}
		return nil
	})
}

func listenAndServe(ctx context.Context, h http.Handler) (addr string, stop func() error, err error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	sctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- httpapi.Serve(sctx, ln, h, nil) }()
	return ln.Addr().String(), func() error { cancel(); return <-done }, nil
}

// measureHandler is a control: a bare handler that does one thing with each request, or nothing.
func measureHandler(ctx context.Context, o *benchOptions, items int, name string, request func(int) (path, key string, body []byte), do func(r *http.Request, body []byte) error) (*control, error) {
	addr, stop, err := listenAndServe(ctx, bare(do))
	if err != nil {
		return nil, err
	}
	var lat latencies
	var r result
	m := startMeter()
	err = post(ctx, addr, o.clients, items, &lat, request)
	m.stop(&r, items, &lat)
	return &control{Name: name, Rate: r.Rate, P50: r.P50, P99: r.P99}, errors.Join(err, stop())
}

func withRawLog(ctx context.Context, o *benchOptions, items int) (*control, error) {
	f, err := os.CreateTemp(o.dir, "millrace-bench-raw-")
	if err != nil {
		return nil, err
	}
	log := newRawLog(f)
	c, err := measureHandler(ctx, o, items, "bare handler with raw log and group-commit sync", ordersOf,
		func(_ *http.Request, body []byte) error { return log.append(body) })
	log.close()
	return c, errors.Join(err, f.Close(), os.Remove(f.Name()))
}

// rawLog is the plainest durable log: one file, and one goroutine that writes and syncs what has gathered.
type rawLog struct {
	f    *os.File
	mu   sync.Mutex
	cond sync.Cond
	buf  []byte
	wait []chan error
	shut bool
	done chan struct{}
}

func newRawLog(f *os.File) *rawLog {
	l := &rawLog{f: f, done: make(chan struct{})}
	l.cond.L = &l.mu
	go l.run()
	return l
}

func (l *rawLog) append(b []byte) error {
	ch := make(chan error, 1)
	l.mu.Lock()
	l.buf = append(l.buf, b...)
	l.wait = append(l.wait, ch)
	l.mu.Unlock()
	l.cond.Signal()
	return <-ch
}

func (l *rawLog) run() {
	defer close(l.done)
	for {
		l.mu.Lock()
		for len(l.wait) == 0 && !l.shut {
			l.cond.Wait()
		}
		buf, wait := l.buf, l.wait
		l.buf, l.wait = nil, nil
		l.mu.Unlock()
		if len(wait) == 0 {
			return
		}
		_, err := l.f.Write(buf)
		if err == nil {
			err = syscall.Fdatasync(int(l.f.Fd()))
		}
		for _, ch := range wait {
			ch <- err
		}
	}
}

func (l *rawLog) close() {
	l.mu.Lock()
	l.shut = true
	l.mu.Unlock()
	l.cond.Signal()
	<-l.done
}

// flashShare: one of so many buyers gets something.
const flashShare = 10

// benchFlashSale lets many buyers reserve one SKU of which there is too little.
func benchFlashSale(ctx context.Context, o *benchOptions) ([]result, error) {
	intake, err := measureIntake(ctx, o)
	if err != nil {
		return nil, err
	}
	items := o.items
	if items == 0 {
		items = defaultOrders
	}
	b, err := newBed(ctx, o)
	if err != nil {
		return nil, err
	}
	stock := int64(items / flashShare)
	r := &result{Name: "flash-sale", Unit: "reservations/s", Clients: o.clients}
	err = sellOut(ctx, b, o, r, items, stock)
	if err = errors.Join(err, b.stop()); err != nil {
		return nil, err
	}
	r.Control, r.Others = intake.Control, []control{{Name: "intake", Rate: intake.Rate}}
	if o.store != "" {
		if r.Control, err = naiveSale(ctx, o, items); err != nil {
			return nil, err
		}
		r.Others = append(r.Others, *intake.Control)
	}
	r.Ratio = r.Rate / r.Control.Rate
	r.OfIntake = r.Rate / intake.Rate
	return []result{*r}, nil
}

func sellOut(ctx context.Context, b *bed, o *benchOptions, r *result, items int, stock int64) error {
	receive := orderCommand("flash-receive")
	receive.Stream, receive.Type, receive.Data = "stock-FLASH", "ReceiveStock", fmt.Appendf(nil, `{"quantity":%d}`, stock)
	receipt, err := b.n.processor.Accept(ctx, receive)
	if err != nil {
		return err
	}
	if _, err := receipt.Wait(ctx); err != nil {
		return err
	}
	if err := measureAPI(ctx, b, o, r, items, salesOf); err != nil {
		return err
	}
	state, _, err := b.n.store.Fold(ctx, b.n.registry, "stock-FLASH", nil)
	if err != nil {
		return err
	}
	data, err := jsonx.Marshal(represent("FLASH", 0, state))
	if err != nil {
		return err
	}
	var level struct {
		SKU       string `json:"sku"`
		OnHand    int64  `json:"on_hand"`
		Reserved  int64  `json:"reserved"`
		Available int64  `json:"available"`
		Version   uint64 `json:"version"`
	}
	if err := jsonx.Unmarshal(data, &level); err != nil {
		return err
	}
	oversold := level.Reserved - stock
	r.Oversold = &oversold
	if oversold != 0 || level.Available != 0 {
		return fmt.Errorf("flash-sale: %d reserved of %d", level.Reserved, stock)
	}
	return nil
}
