package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/domain/order"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/pgstore"
	"github.com/millrace-io/millrace/sim"
	"github.com/millrace-io/millrace/transfer"
)

type serveOptions struct {
	data       string
	store      string
	direct     string
	node       string
	http       string
	admin      string
	partitions int
	paused     []string
	roles      []string
	insecure   bool
	demo       bool
	maxBacklog int64
	hold       bool
	notify     []string
	smtpURL    string
	// notifyWebhook and smtpURL hold secrets.
	notifyWebhook string
	// payments may hold a secret too.
	payments  string
	fulfil    order.FulfilmentOptions
	logLevel  string
	logFormat string
}

func newServeCommand() *cobra.Command {
	var o serveOptions
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long: `Run the server on one machine. Facts go to a journal in the data folder and are on disk before a client is told.

It prints one line with its addresses when it is ready. SIGTERM or Ctrl-C stops it: it takes no new requests, finishes
those under way, and closes the store.

` + settingsHelp,
		Args:    cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error { return o.check() },
		RunE:    func(c *cobra.Command, _ []string) error { return serve(c.Context(), o) },
	}
	f := c.Flags()
	f.StringVar(&o.data, "data", "", "data folder (default: ./millrace-data, or a temporary one with --demo)")
	f.StringVar(&o.store, "store", "", "PostgreSQL database that several nodes share, as postgres://…; instead of --data")
	f.StringVar(&o.direct, "direct", "", "the same database as --store without the pool before it, as postgres://…, or none where there is no such way")
	f.StringVar(&o.node, "node", "", "this node's name among those that share the store (default: a random name)")
	f.StringVar(&o.http, "http", "127.0.0.1:8080", "address of the API")
	f.StringVar(&o.admin, "admin", "127.0.0.1:9090", "address of probes, metrics and profiles")
	f.IntVar(&o.partitions, "partitions", 0, "partitions of a new store (default 16); an existing one keeps its own")
	f.StringSliceVar(&o.paused, "paused", nil, "parts that stand still: command (deciding), feed (read models)")
	f.StringSliceVar(&o.roles, "roles", nil, "what this process does, on a store that several share: intake (the API), command (deciding), feed (read models, processes), notify (default: all)")
	f.BoolVar(&o.insecure, "insecure", false, "allow addresses that other machines can reach, though there is no authentication yet")
	f.BoolVar(&o.demo, "demo", false, "run a gentle load against itself")
	f.Int64Var(&o.maxBacklog, "max-backlog", 0, "undecided commands beyond which new ones are refused (default 1,000,000)")
	f.BoolVar(&o.hold, "hold-read-models", false, "build and compare read models whose code has changed, and wait for `millrace projections switch`")
	f.StringSliceVar(&o.notify, "notify", nil, "how customers are told about their orders: log, email, webhook, or none (default: none; log with --demo)")
	f.StringVar(&o.smtpURL, "smtp-url", "", "mail server, as smtp://user:password@host:587?from=shop@example.org, or smtps://…")
	f.StringVar(&o.notifyWebhook, "notify-webhook", "", "`URL` that notifications are posted to")
	f.StringVar(&o.payments, "payments", payOnAccount, "how orders are paid: account (on account, nobody is asked), manual (whoever is paid says so), or the URL of a payment gateway")
	f.StringVar((*string)(&o.fulfil.Until), "fulfil-until", string(order.UntilDelivered), "how far orders are carried by themselves: confirmed, packed, shipped or delivered")
	f.DurationVar(&o.fulfil.PaymentTimeout, "payment-timeout", 0, "how long an order waits for its payment before it is cancelled (default 15m)")
	f.DurationVar(&o.fulfil.ReservationExpiry, "reservation-expiry", 0, "how long an order that is not confirmed holds stock (default 1h)")
	f.DurationVar(&o.fulfil.BackorderFor, "backorder-for", 0, "how long an order waits for stock that is short, where it may (default 168h)")
	f.DurationVar(&o.fulfil.BackorderRetry, "backorder-retry", 0, "how long after stock was short it is asked for again, doubling up to 6h (default 1m)")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "auto", "text, json, or auto: text on a terminal, else json")
	return c
}

func (o *serveOptions) check() error {
	for _, p := range o.paused {
		if p != "command" && p != "feed" {
			return badSetting("paused", "%q is neither command nor feed", p)
		}
	}
	if err := o.checkRoles(); err != nil {
		return err
	}
	if o.partitions < 0 || o.partitions > millrace.MaxPartitions {
		return badSetting("partitions", "must be between 1 and %d", millrace.MaxPartitions)
	}
	switch {
	case o.store == "" && o.node != "":
		return badSetting("node", "is for nodes that share a store: name it by --store")
	case o.store == "" && o.direct != "":
		return badSetting("direct", "is for nodes that share a store: name it by --store")
	case o.direct != "" && o.direct != noDirect && !isDSN(o.direct):
		return badSetting("direct", "must begin with postgres:// or postgresql://, or be none")
	case o.store != "" && o.data != "":
		return badSetting("store", "and --data are two stores: name one")
	case o.store != "" && !isDSN(o.store):
		return badSetting("store", "must begin with postgres:// or postgresql://")
	}
	if o.maxBacklog < 0 {
		return badSetting("max-backlog", "must not be below zero")
	}
	if !o.insecure {
		if err := loopback(o.http); err != nil {
			return badSetting("http", "%w", err)
		}
		if err := loopback(o.admin); err != nil {
			return badSetting("admin", "%w", err)
		}
	}
	if _, err := o.notifications(slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	if _, err := o.fulfilment(); err != nil {
		return err
	}
	_, err := newLogger(o.logLevel, o.logFormat)
	return err
}

// noDirect says that the pool in --store is the only way to the database.
const noDirect = "none"

// shared are the options of a store that nodes share.
func (o *serveOptions) shared(log *slog.Logger) pgstore.Options {
	s := pgstore.Options{Node: o.node, Partitions: o.partitions, Reports: sqlReports(), Logger: log}
	if s.NoListen = o.direct == noDirect; !s.NoListen {
		s.ListenDSN = o.direct
	}
	return s
}

// loopback says no to an address that other machines can reach: there is no authentication.
func loopback(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("address %q: %w", addr, err)
	}
	if host == "localhost" {
		return nil
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("address %q can be reached by other machines, and there is no authentication yet: use 127.0.0.1, or say --insecure", addr)
	}
	return nil
}

func newLogger(level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, badSetting("log-level", "must be debug, info, warn or error")
	}
	ho := &slog.HandlerOptions{Level: l}
	if format == "auto" {
		format = "json"
		if isTerminal(os.Stderr) {
			format = "text"
		}
	}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, ho)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, ho)), nil
	}
	return nil, badSetting("log-format", "must be text, json or auto")
}

func serve(ctx context.Context, o serveOptions) (err error) {
	log, err := newLogger(o.logLevel, o.logFormat)
	if err != nil {
		return err
	}
	channels, err := o.notifications(log)
	if err != nil {
		return err
	}
	fulfil, err := o.fulfilment()
	if err != nil {
		return err
	}
	if o.data == "" && o.store == "" {
		o.data = "millrace-data"
		if o.demo {
			dir, err := os.MkdirTemp("", "millrace-demo-")
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
			o.data = dir
		}
	}
	// The addresses first: a server that cannot listen need not recover a store.
	lns, err := o.listen(ctx)
	if err != nil {
		return err
	}
	var store *millrace.Store
	var shared *cluster
	if o.store != "" {
		store, shared, err = openShared(ctx, o.store, o.shared(log))
	} else {
		store, err = openStore(o.data, o.partitions, log)
	}
	if err != nil {
		return errors.Join(err, lns.close())
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if open, err := transfer.Incomplete(ctx, store); err != nil || open {
		if open {
			err = client.WithCode(client.ExitCheck, errors.New("the store is a copy that was never finished: run `millrace copy` again"))
		}
		return errors.Join(err, lns.close())
	}
	n, err := newNode(ctx, store, nodeOptions{
		pauseCommand: slices.Contains(o.paused, "command"), pauseFeed: slices.Contains(o.paused, "feed"),
		maxBacklog: o.maxBacklog, holdReadModels: o.hold, cluster: shared, roles: o.roles, notify: channels, fulfil: fulfil, log: log,
	})
	if err != nil {
		return errors.Join(err, lns.close())
	}
	return serveNode(ctx, n, lns, &o)
}

// listeners are what a process listens on: without the role intake, there is no API.
type listeners struct {
	http  net.Listener // nil for none
	admin net.Listener
}

func (o *serveOptions) listen(ctx context.Context) (l listeners, err error) {
	if roles(o.roles).has(roleIntake) {
		if l.http, err = listen(ctx, o.http); err != nil {
			return l, err
		}
	}
	if l.admin, err = listen(ctx, o.admin); err != nil {
		return l, errors.Join(err, l.close())
	}
	return l, nil
}

func (l listeners) close() error {
	var errs []error
	for _, one := range []net.Listener{l.http, l.admin} {
		if one != nil {
			errs = append(errs, one.Close())
		}
	}
	return errors.Join(errs...)
}

func listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	return ln, nil
}

// isDSN says whether a store is named by the address of a database.
func isDSN(store string) bool {
	return strings.HasPrefix(store, "postgres://") || strings.HasPrefix(store, "postgresql://")
}

// openStore opens the embedded store. Damage is an answer of its own.
func openStore(dir string, partitions int, log *slog.Logger) (*millrace.Store, error) {
	store, err := localstore.Open(filepath.Clean(dir), &localstore.Options{Partitions: partitions, Logger: log})
	if errors.Is(err, millrace.ErrCorrupt) {
		return nil, client.WithCode(client.ExitCheck, err)
	}
	return store, err
}

// serveNode runs a node behind its listeners. On the way down the API drains first, then the deciding stops.
func serveNode(ctx context.Context, n *node, lns listeners, o *serveOptions) error {
	admin := n.admin()
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	edge, edgeCtx := errgroup.WithContext(ctx)
	core, coreCtx := errgroup.WithContext(inner)
	core.Go(func() error { return n.run(coreCtx) })
	if lns.http != nil {
		edge.Go(func() error {
			return httpapi.Serve(edgeCtx, lns.http, n.api, &httpapi.ServeOptions{
				Logger: n.log, OnDrain: func() { admin.Drain(); n.api.Drain() },
			})
		})
	}
	edge.Go(func() error {
		select {
		case <-coreCtx.Done(): // the core failed: nothing can be served any more
			return core.Wait()
		case <-edgeCtx.Done():
			return nil
		}
	})
	core.Go(func() error {
		// Probes answer until the very end.
		return httpapi.Serve(coreCtx, lns.admin, admin, &httpapi.ServeOptions{Logger: n.log, WriteTimeout: 2 * time.Minute, Drain: time.Second})
	})
	if o.demo {
		edge.Go(func() error { return demo(edgeCtx, n, lns.http.Addr().String()) })
	}
	where := "data " + o.data
	if n.cluster != nil {
		where = "store postgres node " + n.cluster.driver.Node()
	}
	if len(o.roles) > 0 {
		where += " roles " + strings.Join(o.roles, ",")
	}
	api := ""
	if lns.http != nil {
		api = fmt.Sprintf("http://%s ", lns.http.Addr())
	}
	fmt.Printf("millrace is ready: %sadmin http://%s %s%s\n", api, lns.admin.Addr(), where, pausedText(o.paused))
	err := edge.Wait()
	stop()
	return errors.Join(err, core.Wait())
}

func pausedText(paused []string) string {
	if len(paused) == 0 {
		return ""
	}
	return " paused " + strings.Join(paused, ",")
}

// demoRate is gentle: something to watch, and nothing to warm a machine.
const demoRate = 5

func demo(ctx context.Context, n *node, addr string) error {
	_, err := sim.Orders(ctx, sim.Options{Servers: []string{"http://" + addr}, Rate: demoRate, Now: true, NoReconcile: true})
	if err != nil && ctx.Err() == nil {
		n.log.Warn("the demo load ended", "error", err)
	}
	return nil
}
