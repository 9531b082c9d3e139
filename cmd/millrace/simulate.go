package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/sim"
	"github.com/millrace-io/millrace/sim/scenario"
)

// simulateFlags are the flags of simulate orders.
type simulateFlags struct {
	sim.Options
	output string
	quiet  bool
}

func newSimulateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Stand in for the world around a server: shops that order, a payment gateway",
	}
	cmd.AddCommand(newSimulateOrdersCommand(), newSimulateGatewayCommand())
	for _, s := range scenario.All() {
		cmd.AddCommand(newSimulateScenarioCommand(s))
	}
	return cmd
}

func newSimulateOrdersCommand() *cobra.Command {
	var f simulateFlags
	cmd := &cobra.Command{
		Use:   "orders",
		Short: "Web orders, point-of-sale batches, repetitions, broken and unknown messages, stock",
		Long: `Sends an open-loop load: what is sent, and when, follows from --seed alone, and latency counts from the moment at which a
request was due, so that a stall of the server is seen in full.

At the end everything that the server acknowledged is looked up, and every order, stock level and sum is read back and
compared. Where a figure differs, it is named and the exit code is 3.

The orders of a run are placed on a day of its own between 1990 and 2017, so that the server's totals of that day are those
of the run. --now dates them by the server's clock instead, and leaves these totals out of the comparison.`,
		Example:      "  millrace simulate orders --rate 500 --duration 30s",
		Args:         usageOf(cobra.NoArgs),
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return simulateOrders(cmd, &f)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return client.WithCode(client.ExitUsage, err) })
	flags := cmd.Flags()
	serverFlag(cmd, &f.Servers)
	flags.Float64Var(&f.Rate, "rate", 100, "arrivals per second, on average")
	flags.DurationVar(&f.Duration, "duration", 10*time.Second, "for how long arrivals come")
	flags.Uint64Var(&f.Seed, "seed", 0, "fixes what is sent and when")
	flags.StringVar(&f.Run, "run", "", "name that leads all ids of the run (default: a random one)")
	flags.BoolVar(&f.Now, "now", false, "date the orders by the server's clock")
	flags.IntVar(&f.LookUp, "look-up", 0, "look up at most so many commands at the end (default: all)")
	flags.DurationVar(&f.RetryFor, "retry-for", client.DefaultRetryFor, "for how long a server may be away or too busy")
	flags.StringVar(&f.output, "output", "text", "form of the result: text or json")
	flags.BoolVar(&f.quiet, "quiet", false, "show no progress")
	return cmd
}

func simulateOrders(cmd *cobra.Command, f *simulateFlags) error {
	if err := checkOutput(f.output); err != nil {
		return err
	}
	switch {
	case f.RetryFor <= 0:
		return badSetting("retry-for", "must be above zero")
	case f.Rate <= 0 || f.Duration <= 0 || f.LookUp < 0:
		return client.WithCode(client.ExitUsage, errors.New("--rate and --duration must be above zero, --look-up not below"))
	}
	c, err := newClient(f.Servers, nil) // the simulation makes its own; this one only looks at the URLs
	if err != nil {
		return err
	}
	c.Close()
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
	defer stop()
	bar := newProgress(cmd.ErrOrStderr(), "arrivals", int(f.Rate*f.Duration.Seconds()), f.quiet)
	o := f.Options
	o.OnProgress = func(done, _ int) { bar.set(done) }
	rep, err := sim.Orders(ctx, o)
	bar.end()
	switch {
	case errors.Is(err, context.Canceled):
		return client.WithCode(client.ExitInterrupted, errors.New("interrupted; nothing was reconciled"))
	case err != nil:
		return err
	}
	if err := printSimulation(cmd.OutOrStdout(), f.output, rep); err != nil {
		return err
	}
	if !rep.OK {
		return client.WithCode(client.ExitCheck, errors.New("the accounts of the simulation and the server differ"))
	}
	return nil
}

func printSimulation(out io.Writer, form string, rep *sim.Report) error {
	if form == "json" {
		line, err := jsonx.Marshal(rep)
		if err != nil {
			return err
		}
		_, err = out.Write(append(line, '\n'))
		return err
	}
	w := bufio.NewWriter(out)
	printf := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) } // Flush reports every error
	printf("run %s, seed %d: %d arrivals in %.1f s, %.1f/s of %.1f/s asked for\n", rep.Run, rep.Seed, rep.Arrivals, rep.Seconds, rep.Achieved, rep.Rate)
	printf("commands  %d: %d decided, %d refused, %d dead\n", rep.Commands, rep.Decided, rep.Refused, rep.Dead)
	printf("also      %d replayed, %d malformed, %d without an answer\n", rep.Replayed, rep.Malformed, rep.Unavailable)
	printf("orders    %d with %d units\n", rep.Orders, rep.Units)
	printf("sender    late by %.1f ms at most\n", rep.MaxLateMS)
	for _, name := range []string{"order", "batch", "other"} {
		if p, ok := rep.Latency[name]; ok {
			printf("latency   %-5s  p50 %.2f  p90 %.2f  p99 %.2f  p99.9 %.2f  max %.2f ms  (%d)\n", name, p.P50, p.P90, p.P99, p.P999, p.Max, p.Count)
		}
	}
	for _, c := range rep.Checks {
		mark, detail := "ok  ", ""
		if !c.OK {
			mark, detail = "DIFF", "  "+c.Detail
		}
		printf("%s      %-26s sent %d, server %d%s\n", mark, c.Name, c.Sent, c.Server, detail)
	}
	for _, s := range slices.Compact(slices.Sorted(slices.Values(rep.Surprises))) {
		printf("surprise  %s\n", s)
	}
	if rep.SurpriseCount > len(rep.Surprises) {
		printf("surprise  … %d in all\n", rep.SurpriseCount)
	}
	return w.Flush()
}
