package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/sim/gateway"
	"github.com/millrace-io/millrace/sim/scenario"
)

// scenarioFlags are the flags of the scenarios.
type scenarioFlags struct {
	scenario.Options
	gateway string
	output  string
	quiet   bool
}

func newSimulateScenarioCommand(s scenario.Scenario) *cobra.Command {
	var f scenarioFlags
	cmd := &cobra.Command{
		Use:   s.Name,
		Short: "Orders that carry themselves through: " + s.About,
		Long: `Receives stock, places orders that carry themselves through, and waits until each has come to its end: ` + s.About + `.

Without --server it runs against a server of its own, in a temporary folder, with the simulated payment gateway in the same
process. With --server it drives that one; --gateway then names the simulated gateway to which that server's --payments
point (see millrace simulate gateway), so that its ledger is compared too. Its faults are those of the story, and it has none
afterwards.

At the end every order, every stock level and every payment is read back and compared. Where a figure differs, it is named and
the exit code is 3.`,
		Example:      "  millrace simulate " + s.Name + " --orders 500",
		Args:         usageOf(cobra.NoArgs),
		SilenceUsage: true,
		RunE:         func(cmd *cobra.Command, _ []string) error { return simulateScenario(cmd, &s, &f) },
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return client.WithCode(client.ExitUsage, err) })
	flags := cmd.Flags()
	flags.StringSliceVar(&f.Servers, "server", nil, "base `URL` of a server to drive; may be given several times (default: a server of its own)")
	flags.StringVar(&f.gateway, "gateway", "", "`URL` of the simulated payment gateway of that server")
	flags.IntVar(&f.Orders, "orders", 200, "how many orders are placed")
	flags.Uint64Var(&f.Seed, "seed", 0, "fixes what is ordered and what becomes of it")
	flags.StringVar(&f.Run, "run", "", "name that leads all ids of the run (default: a random one)")
	flags.DurationVar(&f.Patience, "patience", 2*time.Minute, "how long an order may take to its end")
	flags.StringVar(&f.output, "output", "text", "form of the result: text or json")
	flags.BoolVar(&f.quiet, "quiet", false, "show no progress")
	return cmd
}

func simulateScenario(cmd *cobra.Command, s *scenario.Scenario, f *scenarioFlags) (err error) {
	if err := checkOutput(f.output); err != nil {
		return err
	}
	if f.Patience <= 0 || f.Orders < 1 {
		return client.WithCode(client.ExitUsage, errors.New("--orders and --patience must be above zero"))
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
	defer stop()
	o := f.Options
	end, err := f.stage(ctx, &o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	bar := newProgress(cmd.ErrOrStderr(), "orders", o.Orders, f.quiet)
	o.OnProgress = func(done, _ int) { bar.set(done) }
	rep, err := s.Run(ctx, o)
	bar.end()
	switch {
	case errors.Is(err, context.Canceled):
		return client.WithCode(client.ExitInterrupted, errors.New("interrupted; nothing was reconciled"))
	case err != nil:
		return err
	}
	if f.output == "json" {
		err = printJSON(cmd, rep)
	} else {
		err = printScenario(cmd.OutOrStdout(), rep)
	}
	if err == nil && !rep.OK {
		err = client.WithCode(client.ExitCheck, errors.New("the accounts of the scenario and the server differ"))
	}
	return err
}

// stage is what a scenario is played on: the servers and the gateway of the flags, or one of each of its own.
func (f *scenarioFlags) stage(ctx context.Context, o *scenario.Options) (end func() error, err error) {
	nothing := func() error { return nil }
	switch {
	case len(f.Servers) == 0 && f.gateway != "":
		return nil, badSetting("gateway", "is that of a server: name it by --server")
	case len(f.Servers) == 0:
		return ownStage(ctx, o)
	case f.gateway == "":
		return nothing, nil
	}
	g, closing, err := scenario.Remote(f.gateway)
	if err != nil {
		return nil, badSetting("gateway", "%w", err)
	}
	o.Gateway = g
	return func() error { closing(); return nil }, nil
}

// ownStage is a server on a temporary folder, with a gateway in the same process.
func ownStage(ctx context.Context, o *scenario.Options) (end func() error, err error) {
	g, err := gateway.New(&gateway.Options{Seed: o.Seed})
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "millrace-simulate-")
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.DiscardHandler) // the gateway misbehaves, and is meant to
	store, err := openStore(dir, 0, log)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	n, err := newNode(ctx, store, nodeOptions{log: log, fulfil: &fulfilment{payments: payments{g, gatewayCalls}}})
	if err != nil {
		return nil, errors.Join(err, store.Close(), os.RemoveAll(dir))
	}
	stop := running(ctx, n.run)
	addr, shut, err := listenAndServe(ctx, n.api)
	if err != nil {
		return nil, errors.Join(err, stop(), store.Close(), os.RemoveAll(dir))
	}
	o.Servers, o.Gateway = []string{"http://" + addr}, scenario.Local(g)
	return func() error {
		g.Close()
		return errors.Join(shut(), stop(), store.Close(), os.RemoveAll(dir))
	}, nil
}

func printScenario(out io.Writer, rep *scenario.Report) error {
	w := bufio.NewWriter(out)
	printf := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) } // Flush reports every error
	printf("%s, run %s, seed %d: %d orders in %.1f s\n", rep.Scenario, rep.Run, rep.Seed, rep.Orders, rep.Seconds)
	for _, end := range slices.Sorted(maps.Keys(rep.Ends)) {
		printf("  %6d %s\n", rep.Ends[end], end)
	}
	for _, c := range rep.Checks {
		verdict := "ok"
		if !c.OK {
			verdict = "DIFFERS: " + c.Detail
		}
		printf("%-40s %12d %12d  %s\n", c.Name, c.Want, c.Have, verdict)
	}
	return w.Flush()
}
