package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/pgstore"
)

// maxProblems bounds what verify prints: damage seldom comes alone, and the first lines say enough.
const maxProblems = 100

func newVerifyCommand() *cobra.Command {
	var data, store, output string
	var domain bool
	c := &cobra.Command{
		Use:   "verify",
		Short: "Check everything that a store holds",
		Long: `Read all that a store holds, and check it.

Of a data folder: every record of the journal, both hash chains and the anchor; then that the index says what the
journal says, and nothing else. The server must not be running on the folder.

Of a database: that positions, versions and chains follow from what is kept, that every command has its claim and either
an outcome or a place among the undecided, and that documents and their indexes belong together. It reads one snapshot,
owns nothing, changes nothing, and may run beside the nodes. Tables of an older or a newer version than this program's
are refused, and left as they are.

With --domain it reads all events of orders, stock and returns as well, and recomputes from them alone what they say: stock
levels, totals, what was shipped, returned, paid and refunded; and between them that what left the stock is what was
shipped, that nothing is reserved, authorised or owed for an order that has come to its end.

Exits with 0 when all is well, with 3 when something is wrong, which it names, and with 1 when it could not check.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			switch {
			case data != "" && store != "":
				return badSetting("store", "and --data are two stores: name one")
			case store != "" && !isDSN(store):
				return badSetting("store", "must begin with postgres:// or postgresql://")
			case store != "":
				return verifyShared(c, store, output, domain)
			case data == "":
				return badSetting("data", "must name the data folder, or --store a database")
			}
			return verify(c, data, output, domain)
		},
	}
	c.Flags().StringVar(&data, "data", "", "data folder")
	c.Flags().StringVar(&store, "store", "", "PostgreSQL database that nodes share, as postgres://…; instead of --data")
	c.Flags().BoolVar(&domain, "domain", false, "check the sums of stock and money too, from events alone")
	outputFlag(c, &output)
	return c
}

// verdict is what verify prints as JSON.
type verdict struct {
	OK       bool     `json:"ok"`
	Problems []string `json:"problems"`
	More     int      `json:"more,omitzero"`      // problems that were not printed
	Repaired []string `json:"repaired,omitempty"` // what a crash had left torn, and opening the store mended
	Events   uint64   `json:"events"`
	Backlog  int64    `json:"backlog"`
	// Domain is of --domain.
	Domain *domainVerdict `json:"domain,omitempty"`
}

func verify(c *cobra.Command, data, output string, domain bool) error {
	if _, err := os.Stat(filepath.Join(data, "journal")); errors.Is(err, fs.ErrNotExist) {
		// Opening would make a new store, and a new store is always in order.
		if _, err := os.Stat(filepath.Join(data, "ANCHOR")); errors.Is(err, fs.ErrNotExist) {
			return client.WithCode(client.ExitUsage, fmt.Errorf("%s holds no store", data))
		}
	}
	v := verdict{Problems: []string{}}
	report := v.report
	store, err := localstore.Open(filepath.Clean(data), &localstore.Options{OnRepair: func(what string, torn bool) {
		if torn {
			v.Repaired = append(v.Repaired, what)
		} else {
			report(what)
		}
	}})
	switch {
	case errors.Is(err, millrace.ErrCorrupt):
		report(err.Error())
	case err != nil:
		return err
	default:
		if err := v.check(c.Context(), store, domain); err != nil {
			return err
		}
	}
	return printVerdict(c, &v, output)
}

// report keeps what is wrong.
func (v *verdict) report(p string) {
	if len(v.Problems) < maxProblems {
		v.Problems = append(v.Problems, p)
	} else {
		v.More++
	}
}

// check reads all of a store, and closes it.
func (v *verdict) check(ctx context.Context, store *millrace.Store, domain bool) error {
	err := store.Verify(ctx, v.report)
	if err == nil && domain {
		err = v.checkDomain(ctx, store)
	}
	for _, p := range store.Head().Positions {
		v.Events += p
	}
	v.Backlog = store.Backlog()
	return errors.Join(err, store.Close())
}

// verifyShared checks a store that nodes may be at work on. It owns no partition and changes no table, so that nothing of
// theirs is touched.
func verifyShared(c *cobra.Command, dsn, output string, domain bool) error {
	ctx := c.Context()
	v := verdict{Problems: []string{}}
	failed := make(chan error, 1) // the store calls once
	store, err := pgstore.Open(ctx, dsn, &pgstore.Options{NoMigrate: true, NoListen: true, Fatal: func(err error) { failed <- err }})
	switch {
	case errors.Is(err, pgstore.ErrNoStore): // as with a folder
		return client.WithCode(client.ExitUsage, errNoStore)
	case errors.Is(err, millrace.ErrCorrupt):
		v.report(err.Error())
	case err != nil:
		return err
	default:
		if err := v.check(ctx, store, domain); err != nil {
			return err
		}
	}
	select {
	case err := <-failed:
		v.report(err.Error())
	default:
	}
	return printVerdict(c, &v, output)
}

// errNoStore is said of a database that somebody took for one with a store.
var errNoStore = errors.New("the database holds no store")

func printVerdict(c *cobra.Command, v *verdict, output string) error {
	v.OK = len(v.Problems) == 0
	if output == "json" {
		if err := printJSON(c, v); err != nil {
			return err
		}
	} else {
		for _, p := range v.Problems {
			_, _ = fmt.Fprintln(c.OutOrStdout(), p)
		}
		if v.More > 0 {
			_, _ = fmt.Fprintf(c.OutOrStdout(), "… and %d more\n", v.More)
		}
		for _, r := range v.Repaired {
			_, _ = fmt.Fprintln(c.OutOrStdout(), "repaired:", r)
		}
		if v.OK {
			_, _ = fmt.Fprintf(c.OutOrStdout(), "all is well: %d events, %d commands undecided\n", v.Events, v.Backlog)
		}
		if d := v.Domain; d != nil {
			t := &d.Totals
			_, _ = fmt.Fprintf(c.OutOrStdout(), "%d orders, of which %d are on their way; stock: %d received, %d adjusted, %d committed, %d on hand, %d reserved\n",
				t.Orders, d.Unsettled, t.Received, t.Adjusted, t.Committed, t.OnHand, t.Reserved)
			for _, code := range slices.Sorted(maps.Keys(t.Money)) {
				m := t.Money[code]
				_, _ = fmt.Fprintf(c.OutOrStdout(), "%s: %s ordered, %s captured, %s paid otherwise, %s refunded\n",
					code, m.Ordered, m.Captured, m.Otherwise, m.Refunded)
			}
		}
	}
	if !v.OK {
		return client.WithCode(client.ExitCheck, fmt.Errorf("%d problems", len(v.Problems)+v.More))
	}
	return nil
}

func outputFlag(c *cobra.Command, output *string) {
	c.Flags().StringVar(output, "output", "text", "text or json")
}

func checkOutput(output string) error {
	if output != "text" && output != "json" {
		return badSetting("output", "must be text or json")
	}
	return nil
}

func printJSON(c *cobra.Command, v any) error {
	data, err := jsonx.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), "%s\n", data)
	return err
}

func newVersionCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			v := httpapi.ReadVersion()
			if output == "json" {
				return printJSON(c, v)
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "millrace %s %s %s %s\n", v.Version, v.Revision, v.Go, v.Platform)
			return err
		},
	}
	outputFlag(c, &output)
	return c
}
