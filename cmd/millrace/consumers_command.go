package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/id"
	"github.com/millrace-io/millrace/internal/jsonx"
)

func newConsumersCommand() *cobra.Command {
	c := &cobra.Command{Use: "consumers", Short: "See, pause, resume and drain what follows the feed, and go on with what is parked", Args: cobra.NoArgs}
	asking(c, func(add func(sub *cobra.Command, run func(p *asker, args []string) error)) {
		add(&cobra.Command{Use: "list", Short: "List the consumers of a server", Args: cobra.NoArgs},
			func(p *asker, _ []string) error { return p.consumers() })
		for _, do := range consumerVerbs {
			var who whoFlags
			sub := &cobra.Command{Use: do.name + " NAME", Short: do.short, Long: do.long, Args: cobra.ExactArgs(1)}
			who.add(sub)
			sub.Flags().Lookup("why").Usage += " (required)"
			add(sub, func(p *asker, args []string) error { return p.control(args[0], do.name, &who) })
		}
		add(&cobra.Command{
			Use: "parked NAME", Short: "List the streams that wait behind an event that failed", Args: cobra.ExactArgs(1),
		}, func(p *asker, args []string) error { return p.parked(args[0]) })
		var who whoFlags
		redrive := &cobra.Command{
			Use: "redrive NAME [STREAM]", Short: "Go on with a parked stream, or with all of a consumer's",
			Long: `Go on with a stream from the event that failed, in order; without STREAM, with all that are parked for the consumer.
It is done within a few seconds by whichever node runs the consumer there. Where an event fails again, the stream is parked
from there. Of a process it also sets going an instance that has stopped.`,
			Args: cobra.RangeArgs(1, 2),
		}
		who.add(redrive)
		add(redrive, func(p *asker, args []string) error {
			if len(args) == 2 {
				return p.redrive(args[0], args[1], &who)
			}
			return p.redriveAll(args[0], &who)
		})
	})
	return c
}

// asker is a subcommand at work that asks a server.
type asker struct {
	*cobra.Command
	api    *client.Client
	output string
}

// asking gives a command its subcommands, with the flags that all of them have.
func asking(c *cobra.Command, subs func(add func(sub *cobra.Command, run func(p *asker, args []string) error))) {
	var servers []string
	var output string
	var retryFor time.Duration
	subs(func(sub *cobra.Command, run func(p *asker, args []string) error) {
		sub.RunE = func(c *cobra.Command, args []string) error {
			api, err := projectionClient(servers, output, retryFor)
			if err != nil {
				return err
			}
			defer api.Close()
			return run(&asker{c, api, output}, args)
		}
		serverFlag(sub, &servers)
		sub.Flags().DurationVar(&retryFor, "retry-for", client.DefaultRetryFor, "for how long all servers may be away or too busy")
		outputFlag(sub, &output)
		c.AddCommand(sub)
	})
}

// get asks the server and prints its answer where that is what is wanted; otherwise it is read into v.
func (p *asker) get(path string, v any) (printed bool, err error) {
	r, err := p.api.Get(p.Context(), path)
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return false, err
	}
	if p.output == "json" {
		_, err = fmt.Fprintf(p.OutOrStdout(), "%s\n", r.Body)
		return true, err
	}
	if err := jsonx.Unmarshal(r.Body, v); err != nil {
		return false, fmt.Errorf("the server's answer: %w", err)
	}
	return false, nil
}

func (p *asker) consumers() error {
	var all struct {
		Items []consumerState `json:"items"`
	}
	if printed, err := p.get("/v1/consumers", &all); printed || err != nil {
		return err
	}
	w := tabwriter.NewWriter(p.OutOrStdout(), 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "NAME\tGAP\tPARKED\tSTATE\tSINCE\tBY\tWHY")
	for _, s := range all.Items {
		_, _ = fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\t%s\n", s.Name, s.Gap, s.Parked, s.State,
			cmp.Or(formatTime(s.Since), "-"), cmp.Or(s.By, "-"), cmp.Or(s.Why, "-"))
	}
	return w.Flush()
}

// consumerState is how a consumer is, as the API says it.
type consumerState struct {
	Name   string    `json:"name"`
	State  string    `json:"state"`
	Since  time.Time `json:"since,omitzero"`
	By     string    `json:"by"`
	Why    string    `json:"why"`
	Gap    uint64    `json:"gap"`
	Parked int       `json:"parked"`
	Cursor string    `json:"cursor"`
}

// consumerVerbs are what can be done to a consumer.
var consumerVerbs = []struct{ name, short, long string }{
	{"pause", "Have a consumer, or the deciding, stand still", `Have a consumer stand still where it is, on every node within about a second, until it is resumed; restarts do not change that.
All else goes on. NAME is one of those that list shows. With command, it is the deciding: commands are accepted, and wait.`},
	{"resume", "Have a paused consumer go on", `Have a consumer go on from where it stands. Nothing is lost, and nothing that it did is done again.`},
	{"drain", "Have a consumer go on to where the log is now, and stand still then", `Have a consumer go on to where the log is now, at least, and stand still then, as before maintenance. The deciding is drained
when all that was accepted before is decided. It answers at once; list shows when it is paused.`},
}

// control pauses, resumes or drains a consumer.
func (p *asker) control(name, do string, who *whoFlags) error {
	if who.why == "" {
		return badSetting("why", "is required: it stands in the log for those who come after")
	}
	body, err := jsonx.Marshal(map[string]string{"by": who.name(), "why": who.why})
	if err != nil {
		return err
	}
	r, err := p.api.Post(p.Context(), "/v1/consumers/"+url.PathEscape(name)+"/"+do, id.New(), body, 0)
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return err
	}
	if p.output == "json" {
		_, err = fmt.Fprintf(p.OutOrStdout(), "%s\n", r.Body)
		return err
	}
	if r.Status == http.StatusAccepted {
		_, err = fmt.Fprintf(p.OutOrStdout(), "%s: asked for, and not decided yet\n", name)
		return err
	}
	var s consumerState
	if err := jsonx.Unmarshal(r.Body, &s); err != nil {
		return fmt.Errorf("the server's answer: %w", err)
	}
	_, err = fmt.Fprintf(p.OutOrStdout(), "%s: %s, gap %d\n", s.Name, s.State, s.Gap)
	return err
}

// parkedStreams is a page of what a consumer has parked.
type parkedStreams struct {
	Items []struct {
		Stream   string    `json:"stream"`
		Version  uint64    `json:"version"`
		Position uint64    `json:"position"`
		Reason   string    `json:"reason"`
		Attempts int       `json:"attempts"`
		Since    time.Time `json:"since"`
	} `json:"items"`
	Next string `json:"next_cursor"`
}

func parkedPath(name, cursor string) string {
	path := "/v1/consumers/" + url.PathEscape(name) + "/parked?limit=500"
	if cursor != "" {
		path += "&cursor=" + url.QueryEscape(cursor)
	}
	return path
}

func (p *asker) parked(name string) error {
	w := tabwriter.NewWriter(p.OutOrStdout(), 0, 4, 2, ' ', 0)
	for cursor, first := "", true; first || cursor != ""; first = false {
		var page parkedStreams
		printed, err := p.get(parkedPath(name, cursor), &page)
		if printed || err != nil {
			return err
		}
		if first {
			_, _ = fmt.Fprintln(w, "STREAM\tVERSION\tREASON\tATTEMPTS\tSINCE")
		}
		for _, s := range page.Items {
			_, _ = fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\n", s.Stream, s.Version, s.Reason, s.Attempts, s.Since.Format(time.RFC3339))
		}
		cursor = page.Next
	}
	return w.Flush()
}

func (p *asker) redrive(name, stream string, who *whoFlags) error {
	body, err := jsonx.Marshal(map[string]string{"stream": stream, "by": who.name(), "why": who.why})
	if err != nil {
		return err
	}
	r, err := p.api.Post(p.Context(), "/v1/consumers/"+url.PathEscape(name)+"/redrive", id.New(), body, 0)
	if err == nil {
		err = r.Err()
	}
	if err == nil && p.output == "json" {
		_, err = fmt.Fprintf(p.OutOrStdout(), "%s\n", r.Body)
	} else if err == nil {
		_, err = fmt.Fprintf(p.OutOrStdout(), "%s: asked for\n", stream)
	}
	return err
}

// redriveAll asks for every stream that is parked now. One that is not parked any more by then is no fault.
func (p *asker) redriveAll(name string, who *whoFlags) error {
	var all []string
	for cursor, first := "", true; first || cursor != ""; first = false {
		r, err := p.api.Get(p.Context(), parkedPath(name, cursor))
		if err == nil {
			err = r.Err()
		}
		if err != nil {
			return err
		}
		var page parkedStreams
		if err := jsonx.Unmarshal(r.Body, &page); err != nil {
			return fmt.Errorf("the server's answer: %w", err)
		}
		for _, s := range page.Items {
			all = append(all, s.Stream)
		}
		cursor = page.Next
	}
	for _, stream := range all {
		var said *client.Problem
		if err := p.redrive(name, stream, who); err != nil && (!errors.As(err, &said) || said.Status != http.StatusNotFound) {
			return err
		}
	}
	return nil
}
