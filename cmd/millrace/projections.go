package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/id"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// rebuildLook is how often a rebuild is looked at while somebody waits for it.
const rebuildLook = 100 * time.Millisecond

func newProjectionsCommand() *cobra.Command {
	var servers []string
	var output string
	var retryFor time.Duration
	c := &cobra.Command{Use: "projections", Short: "See and rebuild read models", Args: cobra.NoArgs}
	list := &cobra.Command{
		Use: "list", Short: "List the read models of a server", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := projectionClient(servers, output, retryFor)
			if err != nil {
				return err
			}
			defer api.Close()
			return listProjections(c, api, output)
		},
	}
	rebuild := &cobra.Command{
		Use: "rebuild NAME", Short: "Build a read model again from the first event",
		Long: `Build a read model again from the first event, beside the live one, and switch over when it has caught up. The
command waits for that. Where both stood at the same position, it says whether they were the same, byte for byte,
and exits with 3 if they were not. Where the rebuild fails, the live one stays, and the exit code is 1. A server whose
feed is paused refuses at once.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := projectionClient(servers, output, retryFor)
			if err != nil {
				return err
			}
			defer api.Close()
			return rebuildProjection(c, api, args[0], output)
		},
	}
	for _, sub := range []*cobra.Command{list, rebuild} {
		serverFlag(sub, &servers)
		sub.Flags().DurationVar(&retryFor, "retry-for", client.DefaultRetryFor, "for how long all servers may be away or too busy")
		outputFlag(sub, &output)
		c.AddCommand(sub)
	}
	return c
}

func projectionClient(servers []string, output string, retryFor time.Duration) (*client.Client, error) {
	if err := checkOutput(output); err != nil {
		return nil, err
	}
	if retryFor < 0 {
		return nil, badSetting("retry-for", "must not be below zero")
	}
	return newClient(servers, &client.Options{RetryFor: retryFor})
}

func listProjections(c *cobra.Command, api *client.Client, output string) error {
	r, err := api.Get(c.Context(), "/v1/projections")
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return err
	}
	if output == "json" {
		_, err = fmt.Fprintf(c.OutOrStdout(), "%s\n", r.Body)
		return err
	}
	var all struct {
		Items []httpapi.ProjectionStatus `json:"items"`
	}
	if err := jsonx.Unmarshal(r.Body, &all); err != nil {
		return fmt.Errorf("the server's answer: %w", err)
	}
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "NAME\tVERSION\tGENERATION\tSTATE\tGAP\tPARKED")
	for _, p := range all.Items {
		_, _ = fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%d\t%d\n", p.Name, p.Version, p.Generation, p.State, p.Gap, p.Parked)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, p := range all.Items {
		if p.Rebuild != nil && p.Rebuild.Error != "" {
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: its rebuild failed at %s: %s\n", p.Name, p.Rebuild.Finished.Format(time.RFC3339), p.Rebuild.Error)
		}
	}
	return err
}

func readProjection(ctx context.Context, api *client.Client, name string) (p httpapi.ProjectionStatus, err error) {
	r, err := api.Get(ctx, "/v1/projections/"+url.PathEscape(name))
	if err == nil {
		err = r.Err()
	}
	if err == nil {
		err = jsonx.Unmarshal(r.Body, &p)
	}
	return p, err
}

func rebuildProjection(c *cobra.Command, api *client.Client, name, output string) error {
	ctx := c.Context()
	r, err := api.Post(ctx, "/v1/projections/"+url.PathEscape(name)+"/rebuild", id.New(), []byte("{}"), 0)
	if err != nil {
		return err
	}
	if r.Status != http.StatusAccepted {
		return fmt.Errorf("the server did not begin: %w", cmp.Or(r.Err(), error(&statusError{r.Status})))
	}
	var begun httpapi.ProjectionStatus
	if err := jsonx.Unmarshal(r.Body, &begun); err != nil {
		return fmt.Errorf("the server's answer: %w", err)
	}
	if begun.Rebuild == nil {
		return errors.New("the server's answer does not name a rebuild")
	}
	for {
		now, err := readProjection(ctx, api, name)
		if err != nil {
			return err
		}
		switch b := now.Rebuild; {
		case now.Generation >= begun.Rebuild.Generation:
			return printRebuilt(c, &now, output)
		case b == nil:
			return errors.New("the server was started anew, and the rebuild was given up; what was live is live")
		case b.Error != "" && !b.Started.Before(begun.Rebuild.Started):
			return printFailed(c, &now, output)
		}
		if err := client.Pause(ctx, rebuildLook); err != nil {
			return err
		}
	}
}

// statusError is an answer that is no problem, and not the one that was due either.
type statusError struct{ status int }

func (e *statusError) Error() string { return fmt.Sprintf("it answers %d", e.status) }

func printFailed(c *cobra.Command, p *httpapi.ProjectionStatus, output string) error {
	if output == "json" {
		if err := printJSON(c, p); err != nil {
			return err
		}
	}
	return fmt.Errorf("the rebuild of %s failed, and generation %d stays live: %s", p.Name, p.Generation, p.Rebuild.Error)
}

func printRebuilt(c *cobra.Command, p *httpapi.ProjectionStatus, output string) error {
	if output == "json" {
		if err := printJSON(c, p); err != nil {
			return err
		}
	} else {
		said := "not compared: it moved on meanwhile"
		if p.Identical != nil {
			said = map[bool]string{true: "byte for byte as before", false: "NOT as before"}[*p.Identical]
		}
		if _, err := fmt.Fprintf(c.OutOrStdout(), "%s rebuilt as generation %d: %s\n", p.Name, p.Generation, said); err != nil {
			return err
		}
	}
	if p.Identical != nil && !*p.Identical {
		return client.WithCode(client.ExitCheck, fmt.Errorf("the rebuilt read model differs from the one before"))
	}
	return nil
}
