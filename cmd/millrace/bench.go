package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/payment"
)

// benchOptions are shared by all benches.
type benchOptions struct {
	dir      string
	store    string // of a database, instead of dir
	clients  int
	items    int
	duration time.Duration
	rate     int
	runs     int
	output   string
	profile  string
}

// result is what a bench prints.
type result struct {
	Name         string   `json:"name"`
	Rate         float64  `json:"rate"`
	Unit         string   `json:"unit"`
	P50          float64  `json:"p50_ms"`
	P99          float64  `json:"p99_ms"`
	P999         float64  `json:"p999_ms"`
	Seconds      float64  `json:"seconds"`
	CPUSeconds   float64  `json:"cpu_seconds"`
	Items        int      `json:"items"`
	BytesPerItem float64  `json:"bytes_per_item"` // on disk
	Control      *control `json:"control,omitempty"`
	Ratio        float64  `json:"ratio,omitzero"` // to the control, in the same run
	// Others are further controls of the same run.
	Others []control `json:"other_controls,omitempty"`
	// OfIntake is the ratio to the intake bench in the same run.
	OfIntake float64 `json:"ratio_to_intake,omitzero"`
	Oversold *int64  `json:"oversold,omitempty"`
	MaxRSS   int64   `json:"max_rss_bytes,omitzero"`
	Clients  int     `json:"clients,omitzero"`
	CPUs     int     `json:"cpus"`
}

// control is the same work done in the plainest way.
type control struct {
	Name string  `json:"name"`
	Rate float64 `json:"rate"`
	P50  float64 `json:"p50_ms,omitzero"`
	P99  float64 `json:"p99_ms,omitzero"`
}

func newBenchCommand() *cobra.Command {
	var o benchOptions
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure this machine, each figure beside a control of the same run",
		Long: `Measure this machine. Each figure stands beside a control that does the same work in the plainest way, in the same
run and the same process, the clients included: on a shared machine the ratio tells more than the rate.

Data is written below --dir and removed again. With --store it goes to a database, each bench in a schema of its own
that is dropped afterwards; the controls are the plain ways in the same database. Not into one that others use.`,
		Args: cobra.NoArgs,
	}
	for _, b := range []struct {
		name, short string
		run         func(context.Context, *benchOptions) ([]result, error)
	}{
		{"intake", "Orders over HTTP: durable, decided, read models caught up; control: a bare handler with a raw log and group-commit sync", benchIntake},
		{"decide", "Decisions in process, one by one and in batches; control: a naive Pebble loop", benchDecide},
		{"feed", "From acceptance to the read model at a fixed rate; control: the journal alone", benchFeed},
		{"rebuild", "Building a read model again; control: reading the journal alone", benchRebuild},
		{"fulfil", "Orders of three lines from placed to shipped, with stock and payments; control: the same commands sent by hand", benchFulfil},
		{"flash-sale", "One SKU, many buyers over HTTP; controls: intake, and the bare handler with a raw log", benchFlashSale},
	} {
		sub := &cobra.Command{
			Use: b.name, Short: b.short, Args: cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error { return runBench(c, &o, b.run) },
		}
		f := sub.Flags()
		f.StringVar(&o.dir, "dir", os.TempDir(), "where to write")
		f.StringVar(&o.store, "store", "", "PostgreSQL database to write to, as postgres://…; instead of --dir")
		f.IntVar(&o.clients, "clients", 64, "clients at the same time")
		f.IntVar(&o.items, "items", 0, "how many items (default: what takes some seconds)")
		f.IntVar(&o.rate, "rate", 1000, "orders per second (feed)")
		f.DurationVar(&o.duration, "duration", 10*time.Second, "how long (feed)")
		f.IntVar(&o.runs, "runs", 1, "runs, of which the one with the median ratio is printed")
		f.StringVar(&o.profile, "cpuprofile", "", "write a CPU profile of the measured stretch, without the controls")
		outputFlag(sub, &o.output)
		c.AddCommand(sub)
	}
	return c
}

func runBench(c *cobra.Command, o *benchOptions, run func(context.Context, *benchOptions) ([]result, error)) error {
	if err := checkOutput(o.output); err != nil {
		return err
	}
	if o.clients < 1 || o.runs < 1 || o.items < 0 || o.rate < 1 || o.duration <= 0 {
		return client.WithCode(client.ExitUsage, errors.New("--clients, --runs, --items, --rate and --duration must be positive"))
	}
	if o.store != "" && !isDSN(o.store) {
		return badSetting("store", "must begin with postgres:// or postgresql://")
	}
	var runs [][]result
	for range o.runs {
		r, err := run(c.Context(), o)
		if err != nil && c.Context().Err() != nil {
			return interrupted(err)
		}
		if err != nil {
			return err
		}
		runs = append(runs, r)
	}
	out := make([]result, len(runs[0]))
	for i := range out {
		slices.SortFunc(runs, func(a, b []result) int { return int(math.Copysign(1, a[i].Ratio-b[i].Ratio)) })
		out[i] = runs[len(runs)/2][i]
	}
	if o.output == "json" {
		if len(out) == 1 {
			return printJSON(c, out[0])
		}
		return printJSON(c, out)
	}
	for i := range out {
		printResult(c, &out[i])
	}
	return nil
}

// interrupted is the error of a bench that was told to stop, with what went wrong besides: a schema that stays behind.
func interrupted(err error) error {
	rest := slices.DeleteFunc(joined(err), func(err error) bool { return errors.Is(err, context.Canceled) })
	return client.WithCode(client.ExitInterrupted, errors.Join(append([]error{errors.New("interrupted")}, rest...)...))
}

// joined are the errors that errors.Join has put together, one by one.
func joined(err error) (all []error) {
	list, ok := err.(interface{ Unwrap() []error }) // err itself, and not what it wraps
	if !ok || err.Error() != errors.Join(list.Unwrap()...).Error() {
		return []error{err}
	}
	for _, one := range list.Unwrap() {
		all = append(all, joined(one)...)
	}
	return all
}

func printResult(c *cobra.Command, r *result) {
	w := c.OutOrStdout()
	_, _ = fmt.Fprintf(w, "%s: %.0f %s, %d in %.1f s, %.1f CPU s, p50 %.3f ms, p99 %.3f ms, p99.9 %.3f ms, %.0f bytes each\n",
		r.Name, r.Rate, r.Unit, r.Items, r.Seconds, r.CPUSeconds, r.P50, r.P99, r.P999, r.BytesPerItem)
	if r.Control != nil {
		_, _ = fmt.Fprintf(w, "  control %s: %.0f; ratio %.2f\n", r.Control.Name, r.Control.Rate, r.Ratio)
	}
	for _, o := range r.Others {
		_, _ = fmt.Fprintf(w, "  beside it %s: %.0f\n", o.Name, o.Rate)
	}
	if r.OfIntake > 0 {
		_, _ = fmt.Fprintf(w, "  of intake: %.2f\n", r.OfIntake)
	}
	if r.Oversold != nil {
		_, _ = fmt.Fprintf(w, "  oversold: %d\n", *r.Oversold)
	}
}

// meter measures a stretch of work.
type meter struct {
	began   time.Time
	cpu     time.Duration
	profile *os.File
}

func startMeter() meter {
	runtime.GC() // what came before is not part of it
	return meter{began: time.Now(), cpu: cpuTime()}
}

// startProfiled is startMeter with the profile that was asked for. A bench of several parts names them.
func (o *benchOptions) startProfiled(part ...string) (meter, error) {
	if o.profile == "" {
		return startMeter(), nil
	}
	f, err := os.Create(o.profile + strings.Join(part, ""))
	if err != nil {
		return meter{}, err
	}
	m := startMeter()
	m.profile = f
	return m, pprof.StartCPUProfile(f)
}

// stop fills in what was measured.
func (m meter) stop(r *result, items int, lat *latencies) {
	if m.profile != nil {
		pprof.StopCPUProfile()
		_ = m.profile.Close() // a profile that is cut off says so itself
	}
	r.Seconds = time.Since(m.began).Seconds()
	r.CPUSeconds = (cpuTime() - m.cpu).Seconds()
	r.Items, r.CPUs = items, runtime.GOMAXPROCS(0)
	r.Rate = float64(items) / r.Seconds
	r.MaxRSS = maxRSS()
	if lat != nil {
		r.P50, r.P99, r.P999 = lat.percentiles()
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func maxRSS() int64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Maxrss * 1024
}

// latencies gathers durations of several goroutines.
type latencies struct {
	mu  sync.Mutex
	all []time.Duration
}

func (l *latencies) add(part []time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, part...)
}

func (l *latencies) percentiles() (p50, p99, p999 float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.all) == 0 {
		return 0, 0, 0
	}
	slices.Sort(l.all)
	at := func(q float64) float64 {
		return l.all[min(int(q*float64(len(l.all))), len(l.all)-1)].Seconds() * 1000
	}
	return at(.5), at(.99), at(.999)
}

// spread runs n items over clients; each call gets its client and item. The first error, or the end of ctx, ends it for all
// and is what it returns: of a database that is away, or a bench that is interrupted, each client would say the same.
func spread(ctx context.Context, clients, n int, lat *latencies, do func(client, item int) error) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			part := make([]time.Duration, 0, n/clients+1)
			for i := c; i < n && ctx.Err() == nil; i += clients {
				began := time.Now()
				if err := do(c, i); err != nil {
					end(err)
					return
				}
				part = append(part, time.Since(began))
			}
			lat.add(part)
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// sizer says how many bytes facts and views take on the disk.
type sizer func() (int64, error)

// measure runs work on items, and fills in the figures. part tells the profiles of a bench's parts apart.
func (o *benchOptions) measure(r *result, part string, items int, size sizer, work func(*latencies) error) error {
	before, err := size()
	if err != nil {
		return err
	}
	var lat latencies
	m, err := o.startProfiled(part)
	if err != nil {
		return err
	}
	err = work(&lat)
	m.stop(r, items, &lat)
	after, sizeErr := size()
	r.BytesPerItem = float64(after-before) / float64(items)
	return errors.Join(err, sizeErr)
}

// bed is a node on a fresh store.
type bed struct {
	n    *node
	size sizer
	stop func() error
}

func newBed(ctx context.Context, o *benchOptions) (*bed, error) {
	return newBedOf(ctx, o, nodeOptions{})
}

// newBedOf is newBed with settings of the node. All that serve runs by itself runs here too.
func newBedOf(ctx context.Context, o *benchOptions, no nodeOptions) (*bed, error) {
	no.log = warnings()
	if no.fulfil == nil {
		no.fulfil = &fulfilment{payments: payments{payment.Account(), inProcessCall}}
	}
	if o.store != "" {
		return newSharedBed(ctx, o, no)
	}
	dir, err := os.MkdirTemp(o.dir, "millrace-bench-")
	if err != nil {
		return nil, err
	}
	store, err := openStore(dir, 0, no.log)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	n, err := newNode(ctx, store, no)
	if err != nil {
		return nil, errors.Join(err, store.Close(), os.RemoveAll(dir))
	}
	stop := running(ctx, n.run)
	return &bed{n: n, size: usedBy(store), stop: func() error { return errors.Join(stop(), store.Close(), os.RemoveAll(dir)) }}, nil
}

// warnings is the log of a bench: what is no warning would be printed into the figures.
func warnings() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func usedBy(s *millrace.Store) sizer {
	return func() (int64, error) {
		d, ok := s.Driver().(interface{ Used() (journal, index int64) })
		if !ok {
			return 0, nil
		}
		journal, index := d.Used()
		return journal + index, nil
	}
}

// orderBody is an order of three lines, as a shop's front end sends it.
func orderBody(id string) []byte {
	return []byte(`{"id":"` + id + `","customer_id":"c-1742","channel":"web","currency":"GBP","fulfilment":"manual","ship_to":{"name":"A. Customer","line1":"1 High Street","city":"London","postal_code":"N1 1AA","country":"GB"},` +
		`"lines":[{"sku":"85123A","description":"WHITE HANGING HEART T-LIGHT HOLDER","quantity":6,"unit_price":"2.55"},` +
		`{"sku":"71053","description":"WHITE METAL LANTERN","quantity":6,"unit_price":"3.39"},` +
		`{"sku":"84406B","description":"CREAM CUPID HEARTS COAT HANGER","quantity":8,"unit_price":"2.75"}]}`)
}

func orderCommand(id string) millrace.Command {
	return millrace.Command{ID: id, Stream: millrace.NewStream("order", id), Type: "PlaceOrder", Data: orderBody(id), Source: "bench"}
}
