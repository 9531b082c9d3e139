// Package metrics counts what the platform does, for Prometheus. It is the only package that knows the client library.
package metrics

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/millrace-io/millrace"
)

// latencyBuckets reach from a sync of a fast disk to a wait that a person notices.
var latencyBuckets = []float64{.0001, .00025, .0005, .001, .0015, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// Metrics implements the observers of the packages command, feed and process.
type Metrics struct {
	registry *prometheus.Registry

	accepted   *prometheus.CounterVec
	fresh      prometheus.Counter
	replayed   prometheus.Counter
	rejected   *prometheus.CounterVec
	outcomes   *prometheus.CounterVec
	durable    prometheus.Histogram
	decided    prometheus.Histogram
	batch      prometheus.Histogram
	load       prometheus.Histogram
	handled    *prometheus.CounterVec
	failed     *prometheus.CounterVec
	parked     *prometheus.GaugeVec
	visible    *prometheus.HistogramVec
	requests   *prometheus.HistogramVec
	sent       *prometheus.CounterVec
	calls      *prometheus.CounterVec
	call       *prometheus.HistogramVec
	late       *prometheus.HistogramVec
	stopped    *prometheus.CounterVec
	now        func() time.Time
	newest     sync.Map // consumer -> when the newest event behind it was recorded
	byCategory map[key]prometheus.Counter
}

// key is a series of the outcomes; the series are made at start, so that the hot path looks nothing up by strings.
type key struct {
	category string
	status   millrace.Status
}

// Version labels the build.
type Version struct{ Version, Revision, Go string }

// New makes the metrics of a process. categories are those whose outcomes are told apart.
func New(v Version, categories []string, now func() time.Time) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), now: now, byCategory: map[key]prometheus.Counter{}}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	}
	m.accepted = counter("millrace_commands_accepted_total", "Commands that were on disk when their sender was told, by whether they were known before.", "replayed")
	m.fresh, m.replayed = m.accepted.WithLabelValues("false"), m.accepted.WithLabelValues("true")
	m.rejected = counter("millrace_commands_rejected_total", "Commands that were not accepted; nothing of them was kept.", "reason")
	m.outcomes = counter("millrace_commands_total", "Commands that have their outcome: decided, refused or dead.", "category", "status")
	m.durable = histogram("millrace_accept_durable_seconds", "From Accept to the command being on disk.", latencyBuckets)
	m.decided = histogram("millrace_accept_decided_seconds", "From Accept to the command's outcome being on disk.", latencyBuckets)
	m.batch = histogram("millrace_commit_decisions", "Decisions in one commit of a partition.", prometheus.ExponentialBuckets(1, 2, 11))
	m.load = histogram("millrace_state_load_seconds", "Reading a stream's state that was not in memory.", latencyBuckets)
	m.handled = counter("millrace_consumer_events_total", "Events that are behind a consumer.", "consumer")
	m.failed = counter("millrace_consumer_failures_total", "Attempts of a consumer's handler that failed.", "consumer")
	m.parked = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "millrace_consumer_parked_streams", Help: "Streams that a consumer has given up until somebody redrives them."}, []string{"consumer"})
	m.visible = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "millrace_accept_visible_seconds", Help: "From Accept to the effect being in a consumer's documents.", Buckets: latencyBuckets}, []string{"consumer"})
	m.requests = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "millrace_http_request_duration_seconds", Help: "HTTP requests.", Buckets: latencyBuckets}, []string{"route", "method", "status"})
	perProcess := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: latencyBuckets}, []string{"process"})
	}
	m.sent = counter("millrace_process_commands_total", "Commands of a process that were accepted, those that were known before included.", "process")
	m.calls = counter("millrace_process_calls_total", "Attempts at calls of a process, by whether there was an answer.", "process", "result")
	m.call = perProcess("millrace_process_call_seconds", "One attempt at a call, its waits for a place included.")
	m.late = perProcess("millrace_process_timer_late_seconds", "From a timer's time to its firing.")
	m.stopped = counter("millrace_process_stopped_total", "Instances that have stopped because their process broke its contract.", "process")
	for _, c := range append(categories, otherCategory) {
		for s := millrace.StatusDecided; s <= millrace.StatusDead; s++ {
			m.byCategory[key{c, s}] = m.outcomes.WithLabelValues(c, s.String())
		}
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "millrace_build_info", Help: "Always 1; the labels tell the build.",
		ConstLabels: prometheus.Labels{"version": v.Version, "revision": v.Revision, "goversion": v.Go},
	})
	build.Set(1)
	m.registry.MustRegister(m.accepted, m.rejected, m.outcomes, m.durable, m.decided, m.batch, m.load, m.handled, m.failed,
		m.parked, m.visible, m.requests, m.sent, m.calls, m.call, m.late, m.stopped, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// otherCategory labels commands of categories that nobody declared: their names come from outside.
const otherCategory = "other"

// Handler answers scrapes.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// Gatherer gives the figures to tests and tools.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// Accepted implements command.Observer.
func (m *Metrics) Accepted(took time.Duration, replayed bool) {
	if replayed {
		m.replayed.Inc()
		return
	}
	m.fresh.Inc()
	m.durable.Observe(took.Seconds())
}

// Rejected implements command.Observer.
func (m *Metrics) Rejected(err error) {
	reason := "other"
	var overload *millrace.OverloadError
	switch {
	case errors.As(err, &overload):
		reason = "overload"
	case errors.Is(err, millrace.ErrFull):
		reason = "storage_full"
	case errors.Is(err, millrace.ErrKeyReused):
		reason = "key_reused"
	case errors.Is(err, millrace.ErrInvalid):
		reason = "invalid"
	case errors.Is(err, millrace.ErrFailed), errors.Is(err, millrace.ErrClosed):
		reason = "unavailable"
	}
	m.rejected.WithLabelValues(reason).Inc()
}

// Decided implements command.Observer.
func (m *Metrics) Decided(category string, status millrace.Status, took time.Duration) {
	c := m.byCategory[key{category, status}]
	if c == nil {
		c = m.byCategory[key{otherCategory, status}]
	}
	c.Inc()
	m.decided.Observe(took.Seconds())
}

// Committed implements command.Observer.
func (m *Metrics) Committed(decisions int) { m.batch.Observe(float64(decisions)) }

// Loaded implements command.Observer.
func (m *Metrics) Loaded(took time.Duration) { m.load.Observe(took.Seconds()) }

// family is a consumer's name without the generation of its documents, which would make a new series with each rebuild.
func family(consumer string) string {
	name, _, _ := strings.Cut(consumer, "@")
	return name
}

// Handled implements feed.Observer.
func (m *Metrics) Handled(consumer string, events []millrace.Recorded) {
	consumer = family(consumer)
	m.handled.WithLabelValues(consumer).Add(float64(len(events)))
	m.newest.Store(consumer, events[len(events)-1].Time)
	now, visible := m.now(), m.visible.WithLabelValues(consumer)
	for i := range events {
		visible.Observe(now.Sub(events[i].Time).Seconds())
	}
}

// Failed implements feed.Observer.
func (m *Metrics) Failed(consumer string) { m.failed.WithLabelValues(family(consumer)).Inc() }

// Parked implements feed.Observer.
func (m *Metrics) Parked(consumer string, more int) {
	m.parked.WithLabelValues(family(consumer)).Add(float64(more))
}

// Sent implements process.Observer.
func (m *Metrics) Sent(process string, commands int) {
	m.sent.WithLabelValues(process).Add(float64(commands))
}

// Called implements process.Observer.
func (m *Metrics) Called(process string, took time.Duration, err error) {
	result := "answered"
	if err != nil {
		result = "failed"
	}
	m.calls.WithLabelValues(process, result).Inc()
	m.call.WithLabelValues(process).Observe(took.Seconds())
}

// Fired implements process.Observer.
func (m *Metrics) Fired(process string, late time.Duration) {
	m.late.WithLabelValues(process).Observe(late.Seconds())
}

// Stopped implements process.Observer.
func (m *Metrics) Stopped(process string) { m.stopped.WithLabelValues(process).Inc() }

// Request counts one HTTP request.
func (m *Metrics) Request(route, method string, status int, took time.Duration) {
	m.requests.WithLabelValues(route, method, strconv.Itoa(status)).Observe(took.Seconds())
}

// Gauges are figures that are read when somebody scrapes.
type Gauges struct {
	Queued  func() float64
	Backlog func() float64
	// Gap is the number of events behind, by consumer.
	Gap func() map[string]float64
	// Paused says of each consumer, and of the deciding, whether it stands still here.
	Paused func() map[string]bool
	// Unowned is the number of partitions that no node owns, by role, on a store that several share.
	Unowned func() map[string]float64
	// Letters is the number of open dead letters of commands, by reason.
	Letters func() map[string]float64
	// Head is the number of events in the log.
	Head     func() float64
	Writable func() float64
}

// Watch registers figures that are read when somebody scrapes.
func (m *Metrics) Watch(g Gauges) {
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	m.registry.MustRegister(
		gauge("millrace_commands_queued", "Commands in memory on their way to a decision.", g.Queued),
		gauge("millrace_commands_backlog", "Commands on disk that are not decided.", g.Backlog),
		gauge("millrace_log_events", "Events in the log, over all partitions.", g.Head),
		gauge("millrace_store_writable", "1 while new facts are taken, 0 while they are refused.", g.Writable),
		&openLetters{read: g.Letters, desc: prometheus.NewDesc("millrace_dead_letters", "Open dead letters of commands, as far as counted, on whichever node.", []string{"reason"}, nil)},
		&gaps{
			m: m, read: g.Gap,
			gap:    prometheus.NewDesc("millrace_consumer_gap_events", "Events between a consumer's checkpoint and the head.", []string{"consumer"}, nil),
			paused: g.Paused, unowned: g.Unowned,
			nobody: prometheus.NewDesc("millrace_partitions_unowned", "Partitions that no node owns, by role, on a store that several nodes share.", []string{"role"}, nil),
			stands: prometheus.NewDesc("millrace_consumer_paused", "1 while a consumer, or the deciding, stands still on this node, because somebody paused it; else 0.", []string{"consumer"}, nil),
			lag:    prometheus.NewDesc("millrace_consumer_lag_seconds", "Age of the newest event behind a consumer that has events before it; 0 where it has none.", []string{"consumer"}, nil),
		},
	)
}

// gaps is how far every consumer is behind, in events and in seconds.
type gaps struct {
	m        *Metrics
	gap, lag *prometheus.Desc
	stands   *prometheus.Desc
	nobody   *prometheus.Desc
	unowned  func() map[string]float64
	read     func() map[string]float64
	paused   func() map[string]bool
}

// Describe implements prometheus.Collector.
func (g *gaps) Describe(ch chan<- *prometheus.Desc) {
	ch <- g.gap
	ch <- g.lag
	ch <- g.stands
	ch <- g.nobody
}

// Collect implements prometheus.Collector.
func (g *gaps) Collect(ch chan<- prometheus.Metric) {
	for name, stands := range g.paused() {
		value := 0.0
		if stands {
			value = 1
		}
		ch <- prometheus.MustNewConstMetric(g.stands, prometheus.GaugeValue, value, name)
	}
	for role, n := range g.unowned() {
		ch <- prometheus.MustNewConstMetric(g.nobody, prometheus.GaugeValue, n, role)
	}
	for name, gap := range g.read() {
		lag := 0.0
		if t, ok := g.m.newest.Load(name); ok && gap > 0 {
			lag = max(g.m.now().Sub(t.(time.Time)).Seconds(), 0) //nolint:forcetypeassert // only times are stored
		}
		ch <- prometheus.MustNewConstMetric(g.gap, prometheus.GaugeValue, gap, name)
		ch <- prometheus.MustNewConstMetric(g.lag, prometheus.GaugeValue, lag, name)
	}
}

// openLetters is how many dead letters wait for somebody.
type openLetters struct {
	desc *prometheus.Desc
	read func() map[string]float64
}

// Describe implements prometheus.Collector.
func (o *openLetters) Describe(ch chan<- *prometheus.Desc) { ch <- o.desc }

// Collect implements prometheus.Collector.
func (o *openLetters) Collect(ch chan<- prometheus.Metric) {
	for reason, n := range o.read() {
		ch <- prometheus.MustNewConstMetric(o.desc, prometheus.GaugeValue, n, reason)
	}
}
