package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/id"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// projectionLook is how often a read model is looked at while somebody waits for it.
const projectionLook = 100 * time.Millisecond

// projectionAsk is a subcommand at work.
type projectionAsk struct {
	*cobra.Command
	api    *client.Client
	output string
}

func newProjectionsCommand() *cobra.Command {
	var servers []string
	var output string
	var retryFor time.Duration
	c := &cobra.Command{Use: "projections", Short: "See, rebuild, switch and repair read models", Args: cobra.NoArgs}
	add := func(sub *cobra.Command, run func(p *projectionAsk, args []string) error) *cobra.Command {
		sub.RunE = func(c *cobra.Command, args []string) error {
			api, err := projectionClient(servers, output, retryFor)
			if err != nil {
				return err
			}
			defer api.Close()
			return run(&projectionAsk{c, api, output}, args)
		}
		serverFlag(sub, &servers)
		sub.Flags().DurationVar(&retryFor, "retry-for", client.DefaultRetryFor, "for how long all servers may be away or too busy")
		outputFlag(sub, &output)
		c.AddCommand(sub)
		return sub
	}
	add(&cobra.Command{Use: "list", Short: "List the read models of a server", Args: cobra.NoArgs},
		func(p *projectionAsk, _ []string) error { return p.list() })
	var hold bool
	add(&cobra.Command{
		Use: "rebuild NAME", Short: "Build a read model again from the first event",
		Long: `Build a read model again from the first event, beside the live one, compare the two, and switch over when it has
caught up. The command waits for that. It counts the documents that differ, and exits with 3 if there are any. Where the
rebuild fails, the live one stays, and the exit code is 1. A server whose feed is paused refuses at once.

With --hold it is not switched to: it is kept up to date until "projections switch" or "projections discard".`,
		Args: cobra.ExactArgs(1),
	}, func(p *projectionAsk, args []string) error { return p.rebuild(args[0], hold) }).
		Flags().BoolVar(&hold, "hold", false, "build and compare, and wait for `projections switch`")
	var generation uint64
	add(&cobra.Command{
		Use: "switch NAME", Short: "Make another generation of a read model live",
		Long: `Make the generation live that was built with --hold; or, with --generation, also the one that was live before, which
is kept for an hour. The switch comes when that generation has seen all that the live one has: no reader sees an older
state. The command waits for it. The server must run the version of the code that made the generation.`,
		Args: cobra.ExactArgs(1),
	}, func(p *projectionAsk, args []string) error { return p.switchTo(args[0], generation) }).
		Flags().Uint64Var(&generation, "generation", 0, "its number (default: the one that was built and held)")
	add(&cobra.Command{
		Use: "discard NAME", Short: "Remove the generation beside the live one",
		Long: `Remove the generation that is being built or held; or, where there is none, the one that was live before.`,
		Args: cobra.ExactArgs(1),
	}, func(p *projectionAsk, args []string) error { return p.discard(args[0]) })
	add(&cobra.Command{
		Use: "repair NAME STREAM", Short: "Make the documents of one stream again",
		Long: `Make the documents of one stream again from its events, in place, and go on with it where it was parked. Only where
the documents of a stream follow from that stream alone: totals over several do not, and then it is refused.`,
		Args: cobra.ExactArgs(2),
	}, func(p *projectionAsk, args []string) error { return p.repair(args[0], args[1]) })
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

func (p *projectionAsk) list() error {
	r, err := p.api.Get(p.Context(), "/v1/projections")
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return err
	}
	out := p.OutOrStdout()
	if p.output == "json" {
		_, err = fmt.Fprintf(out, "%s\n", r.Body)
		return err
	}
	var all struct {
		Items []httpapi.ProjectionStatus `json:"items"`
	}
	if err := jsonx.Unmarshal(r.Body, &all); err != nil {
		return fmt.Errorf("the server's answer: %w", err)
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "NAME\tVERSION\tGENERATION\tSTATE\tGAP\tLAG\tPARKED")
	for i := range all.Items {
		s := &all.Items[i]
		lag := time.Duration(s.Lag * float64(time.Second)).Round(time.Millisecond)
		_, _ = fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%d\t%s\t%d\n", s.Name, s.Version, s.Generation, s.State, s.Gap, lag, s.Parked)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for i := range all.Items {
		printNotes(out, &all.Items[i])
	}
	return nil
}

// printNotes prints what does not fit into a row.
func printNotes(w io.Writer, s *httpapi.ProjectionStatus) {
	if s.Code != s.Version {
		_, _ = fmt.Fprintf(w, "%s: the server runs version %d of the code\n", s.Name, s.Code)
	}
	if r := s.Rebuild; r != nil && r.Finished.IsZero() {
		_, _ = fmt.Fprintf(w, "%s: generation %d, of version %d, has %d of %d events, and is complete in %d partitions\n",
			s.Name, r.Generation, r.Version, r.Events, r.Total, r.Done)
		for _, n := range r.Nodes {
			_, _ = fmt.Fprintf(w, "  %s: %d of %d events, complete in %d of %d partitions\n",
				cmp.Or(n.Node, "(nobody)"), n.Events, n.Total, n.Done, n.Partitions)
		}
	}
	if v := s.Previous; v != nil {
		_, _ = fmt.Fprintf(w, "%s: generation %d, of version %d, is kept until %s\n", s.Name, v.Generation, v.Version, v.Until.Format(time.RFC3339))
	}
	if e := s.LastError; e != nil {
		_, _ = fmt.Fprintf(w, "%s: %s%s at %s: %s\n", s.Name, e.What, strings.TrimRight(" "+e.Stream, " "), e.At.Format(time.RFC3339), e.Error)
	}
}

// status reads how a read model is.
func (p *projectionAsk) status(name string) (*httpapi.ProjectionStatus, error) {
	r, err := p.api.Get(p.Context(), "/v1/projections/"+url.PathEscape(name))
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return nil, err
	}
	return decodeStatus(r.Body)
}

func decodeStatus(body []byte) (*httpapi.ProjectionStatus, error) {
	s := &httpapi.ProjectionStatus{}
	if err := jsonx.Unmarshal(body, s); err != nil {
		return nil, fmt.Errorf("the server's answer: %w", err)
	}
	return s, nil
}

// ask sends a request, and returns how the read model is then.
func (p *projectionAsk) ask(name, verb string, body any) (*httpapi.ProjectionStatus, error) {
	data, err := jsonx.Marshal(body)
	if err != nil {
		return nil, err
	}
	r, err := p.api.Post(p.Context(), "/v1/projections/"+url.PathEscape(name)+"/"+verb, id.New(), data, 0)
	if err != nil {
		return nil, err
	}
	if r.Status != http.StatusAccepted {
		return nil, fmt.Errorf("the server did not begin: %w", cmp.Or(r.Err(), error(&statusError{r.Status})))
	}
	return decodeStatus(r.Body)
}

// follow looks at a read model until done says so.
func (p *projectionAsk) follow(name string, s *httpapi.ProjectionStatus, done func(*httpapi.ProjectionStatus) (bool, error)) (*httpapi.ProjectionStatus, error) {
	for {
		if ok, err := done(s); ok || err != nil {
			return s, err
		}
		if err := client.Pause(p.Context(), projectionLook); err != nil {
			return s, err
		}
		var err error
		if s, err = p.status(name); err != nil {
			return nil, err
		}
	}
}

// statusError is an answer that is no problem, and not the one that was due either.
type statusError struct{ status int }

func (e *statusError) Error() string { return fmt.Sprintf("it answers %d", e.status) }

func (p *projectionAsk) rebuild(name string, hold bool) error {
	begun, err := p.ask(name, "rebuild", map[string]bool{"hold": hold})
	if err != nil {
		return err
	}
	if begun.Rebuild == nil {
		return errors.New("the server's answer does not name a rebuild")
	}
	s, err := p.follow(name, begun, func(s *httpapi.ProjectionStatus) (bool, error) {
		if r := s.Rebuild; r == nil || r.Generation != begun.Rebuild.Generation {
			return false, fmt.Errorf("generation %d is not there any more: another one has taken its place, or the store has lost it", begun.Rebuild.Generation)
		}
		return s.Rebuild.Ready || !s.Rebuild.Finished.IsZero(), nil
	})
	if err != nil {
		return err
	}
	if p.output == "json" {
		if err := printJSON(p.Command, s); err != nil {
			return err
		}
	}
	if s.Rebuild.Error != "" {
		return fmt.Errorf("the rebuild of %s failed, and generation %d stays live: %s", s.Name, s.Generation, s.Rebuild.Error)
	}
	if p.output != "json" {
		printRebuilt(p.OutOrStdout(), s)
	}
	if s.Identical != nil && !*s.Identical {
		return client.WithCode(client.ExitCheck, fmt.Errorf("the rebuilt read model differs from the one before"))
	}
	return nil
}

// printRebuilt says what came of a rebuild.
func printRebuilt(w io.Writer, s *httpapi.ProjectionStatus) {
	what := "%s rebuilt as generation %d: %s\n"
	if s.Rebuild.Ready {
		what = "%s is built as generation %d, and not switched to: %s\n"
	}
	d := s.Rebuild.Differences
	said := "not compared"
	switch {
	case s.Identical != nil && *s.Identical:
		said = "byte for byte as before"
	case s.Identical != nil:
		said = "NOT as before"
	case d != nil:
		said = "as before as far as could be seen"
	}
	_, _ = fmt.Fprintf(w, what, s.Name, s.Rebuild.Generation, said)
	if d == nil {
		return
	}
	if len(d.Tables) > 0 {
		t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
		_, _ = fmt.Fprintln(t, "TABLE\tMISSING\tEXTRA\tDIFFERENT\tSUCH AS")
		for _, one := range d.Tables {
			_, _ = fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%s\n", one.Table, one.Missing, one.Extra, one.Different, strings.Join(one.Examples, " "))
		}
		_ = t.Flush() // into w, whose errors nobody asks for here
	}
	if d.Unsettled > 0 {
		_, _ = fmt.Fprintf(w, "%d documents changed too often to be compared\n", d.Unsettled)
	}
	if d.Uncompared > 0 {
		_, _ = fmt.Fprintf(w, "%d partitions were not compared: the live generation stands still there\n", d.Uncompared)
	}
}

func (p *projectionAsk) switchTo(name string, generation uint64) error {
	s, err := p.status(name)
	if err != nil {
		return err
	}
	if generation == 0 && s.Rebuild != nil && s.Rebuild.Ready {
		generation = s.Rebuild.Generation
	}
	if s, err = p.ask(name, "switch", map[string]uint64{"generation": generation}); err != nil {
		return err
	}
	s, err = p.follow(name, s, func(s *httpapi.ProjectionStatus) (bool, error) {
		if s.Generation == generation || s.State == "switching" {
			return s.Generation == generation, nil
		}
		if e := s.LastError; e != nil {
			return false, fmt.Errorf("generation %d stays live: %s", s.Generation, e.Error)
		}
		return false, fmt.Errorf("generation %d stays live: the switch was given up", s.Generation)
	})
	if err != nil {
		return err
	}
	return p.tell(s, fmt.Sprintf("generation %d of %s is live", generation, name))
}

func (p *projectionAsk) discard(name string) error {
	s, err := p.ask(name, "discard", struct{}{})
	if err != nil {
		return err
	}
	return p.tell(s, fmt.Sprintf("generation %d of %s is live, and there is no other any more", s.Generation, name))
}

func (p *projectionAsk) repair(name, stream string) error {
	s, err := p.ask(name, "repair", map[string]string{"stream": stream})
	if err != nil {
		return err
	}
	fault := ""
	s, err = p.follow(name, s, func(s *httpapi.ProjectionStatus) (bool, error) {
		for i := len(s.Repairs) - 1; i >= 0; i-- {
			if r := s.Repairs[i]; r.Stream == stream {
				fault = r.Error
				return !r.Finished.IsZero(), nil
			}
		}
		return false, errors.New("the server does not know of the repair any more")
	})
	if err != nil {
		return err
	}
	if fault != "" {
		return fmt.Errorf("%s stays as it was: %s", stream, fault)
	}
	return p.tell(s, fmt.Sprintf("the documents of %s in %s are made again", stream, name))
}

// tell prints what was done.
func (p *projectionAsk) tell(s *httpapi.ProjectionStatus, text string) error {
	if p.output == "json" {
		return printJSON(p.Command, s)
	}
	_, err := fmt.Fprintln(p.OutOrStdout(), text)
	return err
}
