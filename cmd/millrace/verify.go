package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/localstore"
)

// maxProblems bounds what verify prints: damage seldom comes alone, and the first lines say enough.
const maxProblems = 100

func newVerifyCommand() *cobra.Command {
	var data, output string
	c := &cobra.Command{
		Use:   "verify",
		Short: "Check everything that a data folder holds",
		Long: `Read the whole journal and check every record, both hash chains and the anchor; then that the index says what the
journal says, and nothing else. The server must not be running on the folder.

Exits with 0 when all is well and with 3 when something is wrong, which it names.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if data == "" {
				return badSetting("data", "must name the data folder")
			}
			return verify(c, data, output)
		},
	}
	c.Flags().StringVar(&data, "data", "", "data folder (required)")
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
}

func verify(c *cobra.Command, data, output string) error {
	if _, err := os.Stat(filepath.Join(data, "journal")); errors.Is(err, fs.ErrNotExist) {
		// Opening would make a new store, and a new store is always in order.
		if _, err := os.Stat(filepath.Join(data, "ANCHOR")); errors.Is(err, fs.ErrNotExist) {
			return client.WithCode(client.ExitUsage, fmt.Errorf("%s holds no store", data))
		}
	}
	v := verdict{Problems: []string{}}
	report := func(p string) {
		if len(v.Problems) < maxProblems {
			v.Problems = append(v.Problems, p)
		} else {
			v.More++
		}
	}
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
		err = store.Verify(c.Context(), report)
		for _, p := range store.Head().Positions {
			v.Events += p
		}
		v.Backlog = store.Backlog()
		if err = errors.Join(err, store.Close()); err != nil {
			return err
		}
	}
	v.OK = len(v.Problems) == 0
	return printVerdict(c, &v, output)
}

func printVerdict(c *cobra.Command, v *verdict, output string) error {
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
