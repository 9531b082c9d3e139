package main

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func newConfigCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "config", Short: "See and check the settings", Args: cobra.NoArgs,
		Long: "See and check the settings.\n\n" + settingsHelp,
	}
	var output string
	show := &cobra.Command{
		Use: "print", Short: "Print each setting, and where it comes from", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			return printSettings(c, output)
		},
	}
	outputFlag(show, &output)
	validate := &cobra.Command{
		Use: "validate", Short: "Check the environment and the file of settings, and do nothing else", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := validateSettings(c); err != nil {
				return err
			}
			_, err := fmt.Fprintln(c.OutOrStdout(), "the settings are in order")
			return err
		},
	}
	c.AddCommand(show, validate)
	return c
}

// settled is a setting as config print shows it.
type settled struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	From  string `json:"from"`
}

// printSettings shows what the commands would run with, were they given no flags.
func printSettings(c *cobra.Command, output string) error {
	if err := validateSettings(c); err != nil {
		return err
	}
	file, err := openSettings(c)
	if err != nil {
		return err
	}
	all := []settled{}
	for _, name := range settingNames() {
		owner := commandWith(c.Root(), name)
		if owner == nil {
			continue
		}
		s := settled{Name: name, Value: shown(name, owner.Flags().Lookup(name).Value), From: origin(owner, name)}
		if s.From == "" {
			s.From = "default"
		}
		all = append(all, s)
	}
	if output == "json" {
		return printJSON(c, struct {
			File     string    `json:"file,omitempty"`
			Settings []settled `json:"settings"`
		}{file.name, all})
	}
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "SETTING\tVALUE\tFROM") // Flush reports every error
	for _, s := range all {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", s.Name, s.Value, s.From)
	}
	return w.Flush()
}

// shown is a value without the password that the URL of a server or of a database may hold. Of an endpoint only the host is
// shown: paths of such are secrets as often as not.
func shown(name string, v fmt.Stringer) string {
	if u, err := url.Parse(v.String()); name == "notify-webhook" && v.String() != "" {
		if err != nil {
			return "xxxxx"
		}
		return u.Scheme + "://" + u.Host + "/…"
	}
	values := []string{v.String()}
	if list, ok := v.(interface{ GetSlice() []string }); ok {
		values = slices.Clone(list.GetSlice())
	}
	for i, value := range values {
		u, err := url.Parse(value)
		if err != nil || u.User == nil && !u.Query().Has("password") {
			continue
		}
		if q := u.Query(); q.Has("password") { // a DSN may have it here
			q.Set("password", "xxxxx")
			u.RawQuery = q.Encode()
		}
		values[i] = u.Redacted()
	}
	return strings.Join(values, ",")
}

// validateSettings reads the settings for every command, and lets those check them that can without doing anything.
func validateSettings(c *cobra.Command) error {
	var errs []error
	var visit func(sub *cobra.Command)
	visit = func(sub *cobra.Command) {
		if sub != c && sub.Runnable() && len(errs) == 0 {
			err := readSettings(sub)
			if err == nil && sub.PreRunE != nil {
				err = sub.PreRunE(sub, nil)
			}
			if err != nil {
				errs = append(errs, explain(sub, err))
			}
		}
		for _, next := range sub.Commands() {
			visit(next)
		}
	}
	visit(c.Root())
	return errors.Join(errs...)
}

// commandWith is the first command that has a setting.
func commandWith(c *cobra.Command, name string) *cobra.Command {
	if c.Runnable() && c.Flags().Lookup(name) != nil && c.Name() != "print" {
		return c
	}
	for _, sub := range c.Commands() {
		if found := commandWith(sub, name); found != nil {
			return found
		}
	}
	return nil
}
