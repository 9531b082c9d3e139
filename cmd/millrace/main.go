// Command millrace is the whole platform in one binary.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace/internal/client"
)

func main() { os.Exit(run(os.Args[1:])) }

// gcPercent trades memory for the collector's share of the processors, which is a fifth of the work at Go's own 100.
// memoryLimit bounds that trade: beyond it the collector works as hard as it must. What lives on the heap is bounded
// by the queues and caches to well below it. GOGC and GOMEMLIMIT count where they are set.
const (
	gcPercent   = 400
	memoryLimit = 2 << 30
)

func run(args []string) int {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	c, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	err = explain(c, err)
	fmt.Fprintln(os.Stderr, "millrace:", err)
	return client.ExitCode(err)
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "millrace",
		Short: "Event-driven order processing in one binary",
		Long: `Millrace takes orders over HTTP, keeps each one on disk before it answers, decides it by pure functions, and
lets read models follow from the events.

  millrace serve --demo          run it, with a gentle load
  millrace import online-retail  bring in a shop's invoices
  millrace verify                check everything a data folder holds

Settings come from flags, else from the environment (MILLRACE_…), else from a file: see millrace config --help.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 it ran, and the answer is no; 4 a server did not answer; 130 interrupted.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error { return readSettings(c) },
	}
	root.PersistentFlags().String(configFlag, "", "`FILE` of settings, as YAML (default: see millrace config --help)")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return client.WithCode(client.ExitUsage, err) })
	root.AddCommand(newServeCommand(), newVerifyCommand(), newNodesCommand(), newCopyCommand(), newProjectionsCommand(), newProcessesCommand(), newConsumersCommand(), newDeadLettersCommand(), newConfigCommand(), newVersionCommand(),
		newImportCommand(), newSimulateCommand(), newBenchCommand())
	root.CompletionOptions.HiddenDefaultCmd = true
	usageErrors(root)
	return root
}

// usageErrors makes wrong arguments of every command a usage error. A group of commands tells what it has, and takes a
// name that it does not have for what it is: otherwise a script with a typing error would be answered with help and 0.
func usageErrors(c *cobra.Command) {
	if !c.Runnable() {
		c.Args, c.RunE = cobra.NoArgs, func(c *cobra.Command, _ []string) error { return c.Help() }
	}
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return client.WithCode(client.ExitUsage, err)
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		usageErrors(sub)
	}
}
