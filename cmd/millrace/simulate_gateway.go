package main

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/client"
	pay "github.com/millrace-io/millrace/internal/payment"
	"github.com/millrace-io/millrace/sim/gateway"
)

// gatewayFlags are the flags of simulate gateway.
type gatewayFlags struct {
	http      string
	insecure  bool
	seed      uint64
	faults    gateway.Faults
	slowFor   time.Duration
	downFor   time.Duration
	downEvery time.Duration
	output    string
	quiet     bool
}

// gatewayAddress is apart from those of serve, so that both run on one machine as they are.
const gatewayAddress = "127.0.0.1:8090"

// gatewayDrain is how long requests under way may take when the gateway stops. It does not wait for slow answers.
const gatewayDrain = 5 * time.Second

func newSimulateGatewayCommand() *cobra.Command {
	var f gatewayFlags
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "A payment gateway that takes no money, and misbehaves as real ones do",
		Long: `Runs a payment gateway in memory, by the interface in docs/reference/payment-gateway.md, with a ledger to compare with.

It prints one line with its address when it is ready. SIGTERM or Ctrl-C stops it, and it prints what its ledger comes to.

Rates are shares of the orders, from 0 to 1, for each kind of request apart. Which orders they hit follows from --seed, the
order and the kind. POST /v1/faults changes all of it while it runs.`,
		Example:      "  millrace simulate gateway --decline 0.05 --lose 0.02 --fail 0.02",
		Args:         usageOf(cobra.NoArgs),
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return simulateGateway(cmd, &f)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return client.WithCode(client.ExitUsage, err) })
	flags := cmd.Flags()
	flags.StringVar(&f.http, "http", gatewayAddress, "address of the gateway")
	flags.BoolVar(&f.insecure, "insecure", false, "allow an address that other machines can reach: anybody may then use it and change it")
	flags.Uint64Var(&f.seed, "seed", 0, "fixes which orders meet with what")
	flags.Float64Var(&f.faults.Decline, "decline", 0, "share of authorisations that are declined")
	flags.Float64Var(&f.faults.Lose, "lose", 0, "share of requests that are done, and whose connection is cut before the answer")
	flags.Float64Var(&f.faults.Hang, "hang", 0, "share of requests that are done and not answered")
	flags.IntVar(&f.faults.LoseTimes, "lose-times", 1, "how many answers to a key are lost, or hang")
	flags.Float64Var(&f.faults.Fail, "fail", 0, "share of requests that are answered with 500 before anything is done")
	flags.IntVar(&f.faults.FailTimes, "fail-times", 1, "how many attempts under a key fail")
	flags.Float64Var(&f.faults.Twice, "twice", 0, "share of requests that are answered two times on their connection")
	flags.Float64Var(&f.faults.Slow, "slow", 0, "share of requests whose answer is slow")
	flags.DurationVar(&f.slowFor, "slow-for", time.Second, "how much longer a slow answer takes, at most a minute")
	flags.DurationVar(&f.downFor, "down-for", 0, "for how long it is down at the end of each --down-every")
	flags.DurationVar(&f.downEvery, "down-every", time.Minute, "period of being down, at most a day")
	flags.BoolVar(&f.faults.Mute, "mute", false, "cut connections while it is down, instead of answering 503")
	flags.StringVar(&f.output, "output", "text", "form of the result: text or json")
	flags.BoolVar(&f.quiet, "quiet", false, "do not tell of faults that are set while it runs")
	// Its address is not the server's, nor is what somebody allowed the server.
	ownFlags(cmd, "http", "insecure")
	return cmd
}

// check settles the faults of the flags.
func (f *gatewayFlags) check() error {
	if err := checkOutput(f.output); err != nil {
		return err
	}
	if !f.insecure {
		if err := loopback(f.http); err != nil {
			return badSetting("http", "%w", err)
		}
	}
	f.faults.SlowMS = f.slowFor.Milliseconds()
	if f.faults.DownForMS = f.downFor.Milliseconds(); f.downFor != 0 {
		f.faults.DownEveryMS = f.downEvery.Milliseconds()
	}
	if err := f.faults.Check(); err != nil {
		return client.WithCode(client.ExitUsage, err)
	}
	return nil
}

// simulateGateway runs a gateway until ctx ends, and tells then what its ledger comes to.
func simulateGateway(cmd *cobra.Command, f *gatewayFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	ctx := cmd.Context()
	log := slog.New(slog.DiscardHandler)
	if !f.quiet {
		log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	}
	g, err := gateway.New(&gateway.Options{Seed: f.seed, Faults: f.faults, OnFaults: func(set gateway.Faults) {
		log.InfoContext(ctx, "faults are set", "faults", fmt.Sprintf("%+v", set))
	}})
	if err != nil {
		return err
	}
	defer g.Close()
	ln, err := listen(ctx, f.http)
	if err != nil {
		return err
	}
	if err := printReady(cmd, f.output, "http://"+ln.Addr().String()); err != nil {
		_ = ln.Close()
		return err
	}
	if err := httpapi.Serve(ctx, ln, g, &httpapi.ServeOptions{
		WriteTimeout: 2 * time.Minute, // above what an answer may be slow or hang
		Drain:        gatewayDrain, OnDrain: g.Close,
	}); err != nil {
		return err
	}
	l := g.Ledger()
	if f.output == "json" {
		return printJSON(cmd, &l)
	}
	return printLedger(cmd.OutOrStdout(), &l)
}

func printReady(cmd *cobra.Command, form, url string) error {
	if form == "json" {
		return printJSON(cmd, map[string]string{"url": url})
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "the payment gateway is ready: %s\n", url)
	return err
}

func printLedger(out io.Writer, l *gateway.Ledger) error {
	w := bufio.NewWriter(out)
	printf := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) } // Flush reports every error
	printf("ledger      %d orders, %d payments\n", l.Orders, l.Payments)
	for _, c := range l.Currencies {
		printf("%-11s authorised %s = open %s + captured %s + released %s + voided %s; refunded %s\n",
			c.Currency, c.Authorised, c.Open, c.Captured, c.Released, c.Voided, c.Refunded)
	}
	for _, kind := range []pay.Kind{pay.Authorise, pay.Capture, pay.Void, pay.Refund} {
		t := l.Requests[kind]
		printf("%-11s %d attempts: %d approved, %d declined, %d not taken\n", kind, t.Attempts, t.Approved, t.Declined, t.Refused)
	}
	printf("also        %d repeated, %d failed, %d lost, %d answered twice, %d slow, %d while it was down\n",
		l.Repeated, l.Failed, l.Lost, l.Twice, l.Slow, l.Unavailable)
	return w.Flush()
}
