package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/pgstore"
	"github.com/millrace-io/millrace/transfer"
)

// copyPatience is how long a copy waits for the partitions of a shared store: for the leases of nodes that were killed.
const copyPatience = 15 * time.Second

func newCopyCommand() *cobra.Command {
	var from, to, output string
	var quiet bool
	c := &cobra.Command{
		Use:   "copy --from STORE --to STORE",
		Short: "Carry a store over to another backend",
		Long: `Copy everything that a store holds: facts with their positions and hash chains, commands that wait for a decision,
read models and checkpoints. A store is a data folder, or a database as postgres://…. Cursors stay valid, because the copy
has the store's identity. Both ends are compared when it is done.

No server may run on either of the two. A copy that was interrupted cannot be served; the same command goes on where it
stopped.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			switch {
			case from == "":
				return badSetting("from", "must name a data folder or a database")
			case to == "":
				return badSetting("to", "must name a data folder or a database")
			case from == to:
				return badSetting("to", "names the same store as --from")
			}
			return copyStore(c, from, to, output, quiet)
		},
	}
	c.Flags().StringVar(&from, "from", "", "data folder, or postgres://… (required)")
	c.Flags().StringVar(&to, "to", "", "data folder, or postgres://… (required)")
	c.Flags().BoolVar(&quiet, "quiet", false, "no progress")
	outputFlag(c, &output)
	return c
}

func copyStore(c *cobra.Command, from, to, output string, quiet bool) (err error) {
	ctx := c.Context()
	if !isDSN(from) {
		// Opening would make a new store.
		if _, err := os.Stat(filepath.Join(from, "journal")); errors.Is(err, fs.ErrNotExist) {
			return client.WithCode(client.ExitUsage, fmt.Errorf("%s holds no store", from))
		}
	}
	// Nor are the tables of a database changed that is only read from.
	source, err := openWhole(ctx, from, pgstore.Options{NoMigrate: true})
	if errors.Is(err, pgstore.ErrNoStore) {
		return client.WithCode(client.ExitUsage, errNoStore)
	}
	if err != nil {
		return fmt.Errorf("open the source: %w", err)
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	switch open, err := transfer.Incomplete(ctx, source); {
	case err != nil:
		return err
	case open:
		return client.WithCode(client.ExitCheck, errors.New("the source is itself a copy that was never finished"))
	}
	meta := source.Meta()
	target, err := openWhole(ctx, to, pgstore.Options{Copy: &meta})
	if errors.Is(err, millrace.ErrInvalid) { // it is another store
		err = client.WithCode(client.ExitCheck, err)
	}
	if err != nil {
		return fmt.Errorf("open the target: %w", err)
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	total := uint64(0)
	for _, h := range source.Heads() {
		total += h.Position
	}
	p := newProgress(c.ErrOrStderr(), "events", int(total), quiet)
	report, err := transfer.Copy(ctx, source, target, transfer.Options{
		Progress: func(r transfer.Report) { p.set(int(r.Events)) }, //nolint:gosec // a count
	})
	p.end()
	if errors.Is(err, millrace.ErrCorrupt) || errors.Is(err, millrace.ErrInvalid) {
		err = client.WithCode(client.ExitCheck, err)
	}
	if err != nil {
		return err
	}
	if output == "json" {
		b, err := jsonx.Marshal(report)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "%s\n", b)
		return err
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), "copied %d decisions with %d events, %d waiting commands, %d documents; both ends agree\n",
		report.Decisions, report.Events, report.Pending, report.Documents)
	return err
}

// openWhole opens a store with all of its partitions, whichever backend it has; o says how, as far as it has a say there.
func openWhole(ctx context.Context, name string, o pgstore.Options) (*millrace.Store, error) {
	log := slog.New(slog.DiscardHandler)
	if isDSN(name) {
		ctx, cancel := context.WithTimeout(ctx, copyPatience)
		defer cancel()
		o.OwnAll, o.Logger = true, log
		if o.Copy != nil { // the target, by a role that makes tables
			o.Reports = sqlReports()
		}
		return pgstore.Open(ctx, name, &o)
	}
	store, err := localstore.Open(filepath.Clean(name), &localstore.Options{Copy: o.Copy, Logger: log})
	if errors.Is(err, millrace.ErrCorrupt) {
		return nil, client.WithCode(client.ExitCheck, err)
	}
	return store, err
}
