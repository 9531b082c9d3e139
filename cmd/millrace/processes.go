package main

import (
	"cmp"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace"
)

func newProcessesCommand() *cobra.Command {
	c := &cobra.Command{Use: "processes", Short: "See process managers and their instances", Args: cobra.NoArgs}
	asking(c, func(add func(sub *cobra.Command, run func(p *asker, args []string) error)) {
		add(&cobra.Command{Use: "list", Short: "List the processes of a server", Args: cobra.NoArgs},
			func(p *asker, _ []string) error { return p.processes() })
		var state, key string
		var limit int
		instances := &cobra.Command{
			Use: "instances NAME", Short: "List the instances of a process",
			Long: `List the instances of a process: all, by their streams; those in one state, the longest unchanged first; or those with
a business key.`,
			Args: cobra.ExactArgs(1),
		}
		instances.Flags().StringVar(&state, "state", "", "only those in this state")
		instances.Flags().StringVar(&key, "key", "", "only those with this business key")
		instances.Flags().IntVar(&limit, "limit", 100, "how many at the most, up to 500")
		add(instances, func(p *asker, args []string) error { return p.instances(args[0], state, key, limit) })
		add(&cobra.Command{
			Use: "show NAME STREAM", Short: "Show what a process has made of a stream",
			Long: `Show the instance of a stream: its state, what it waits for, the commands that it has sent with their outcomes, its calls
and its timers.`,
			Args: cobra.ExactArgs(2),
		}, func(p *asker, args []string) error { return p.instance(args[0], args[1]) })
	})
	return c
}

func (p *asker) processes() error {
	var all struct {
		Items []struct {
			Name     string `json:"name"`
			Category string `json:"category"`
		} `json:"items"`
	}
	if printed, err := p.get("/v1/processes", &all); printed || err != nil {
		return err
	}
	w := tabwriter.NewWriter(p.OutOrStdout(), 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "NAME\tCATEGORY")
	for _, s := range all.Items {
		_, _ = fmt.Fprintf(w, "%s\t%s\n", s.Name, s.Category)
	}
	return w.Flush()
}

func (p *asker) instances(name, state, key string, limit int) error {
	if state != "" && key != "" {
		return badSetting("state", "cannot be combined with --key")
	}
	q := url.Values{"limit": {strconv.Itoa(limit)}}
	if state != "" {
		q.Set("state", state)
	}
	if key != "" {
		q.Set("key", key)
	}
	var page struct {
		Items []millrace.Instance `json:"items"`
		Next  string              `json:"next_cursor"`
	}
	printed, err := p.get("/v1/processes/"+url.PathEscape(name)+"/instances?"+q.Encode(), &page)
	if printed || err != nil {
		return err
	}
	w := tabwriter.NewWriter(p.OutOrStdout(), 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "STREAM\tSTATE\tSINCE\tWAITS\tKEY")
	for i := range page.Items {
		s := &page.Items[i]
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.Stream, standing(s), s.SinceAt.Format(time.RFC3339), cmp.Or(s.Waits, "-"), cmp.Or(s.Key, "-"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if page.Next != "" {
		_, _ = fmt.Fprintln(p.OutOrStdout(), "there are more")
	}
	return nil
}

// standing is an instance's state, and whether it goes on from there.
func standing(i *millrace.Instance) string {
	switch {
	case i.Failed != "":
		return i.State + " (stopped)"
	case i.Done:
		return i.State + " (done)"
	}
	return i.State
}

func (p *asker) instance(name, stream string) error {
	var i millrace.Instance
	printed, err := p.get("/v1/processes/"+url.PathEscape(name)+"/instances/"+url.PathEscape(stream), &i)
	if printed || err != nil {
		return err
	}
	out := p.OutOrStdout()
	line := func(name, value string) {
		if value != "" {
			_, _ = fmt.Fprintf(out, "%-12s %s\n", name, value)
		}
	}
	line("stream", fmt.Sprintf("%s at version %d", i.Stream, i.Version))
	line("state", standing(&i)+" since "+i.SinceAt.Format(time.RFC3339))
	line("waits for", i.Waits)
	line("stopped", i.Failed)
	line("key", i.Key)
	line("correlation", i.CorrelationID)
	for _, s := range i.Steps {
		line("step", strings.TrimRight(fmt.Sprintf("%s: %s at %s %s", s.Name, s.Status, s.Stream, s.Code), " "))
	}
	for k := range i.Calls {
		c := &i.Calls[k]
		text := fmt.Sprintf("%s: waits, next attempt %s", c.Name, cmp.Or(formatTime(c.NextAt), "now"))
		switch {
		case !c.DoneAt.IsZero():
			text = c.Name + ": answered " + formatTime(c.DoneAt)
		case !c.CancelledAt.IsZero():
			text = c.Name + ": cancelled " + formatTime(c.CancelledAt)
		}
		if c.Attempts > 0 {
			text += fmt.Sprintf(", after %d failed attempts (%s)", c.Attempts, c.Error)
		}
		line("call", text)
	}
	for _, t := range i.Timers {
		line("timer", t.Name+" at "+formatTime(t.At))
	}
	return nil
}

// formatTime is empty for no time.
func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339)
}
