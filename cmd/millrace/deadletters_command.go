package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/id"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/letter"
)

// letterWait is how long a subcommand waits for the outcome of what it has asked for.
const letterWait = 10 * time.Second

// letterFlags say which dead letters are meant.
type letterFlags struct {
	reason, typ, source, stream, since, until string
}

func (f *letterFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.reason, "reason", "", "only those of this reason, such as decision_failed")
	c.Flags().StringVar(&f.typ, "type", "", "only commands of this type")
	c.Flags().StringVar(&f.source, "source", "", "only commands that came through this door")
	c.Flags().StringVar(&f.stream, "stream", "", "only those of this stream")
	c.Flags().StringVar(&f.since, "since", "", "only those accepted since then: a date, a time, or how long ago, such as 2h")
	c.Flags().StringVar(&f.until, "until", "", "only those accepted until then")
}

func (f *letterFlags) none() bool { return *f == letterFlags{} }

// filter reads the flags; times are those of this machine's clock.
func (f *letterFlags) filter() (letter.Filter, error) {
	out := letter.Filter{Reason: f.reason, Type: f.typ, Source: f.source, Stream: millrace.Stream(f.stream)}
	for _, t := range []struct {
		name, text string
		into       *time.Time
	}{{"since", f.since, &out.From}, {"until", f.until, &out.To}} {
		if t.text == "" {
			continue
		}
		if ago, err := time.ParseDuration(t.text); err == nil && ago > 0 {
			*t.into = time.Now().Add(-ago).UTC()
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, t.text)
		if err != nil {
			at, err = time.Parse(time.DateOnly, t.text)
		}
		if err != nil {
			return out, badSetting(t.name, "must be a date, a time of RFC 3339, or how long ago, such as 2h")
		}
		*t.into = at.UTC()
	}
	return out, nil
}

// query is the filter as parameters.
func (f *letterFlags) query() (url.Values, error) {
	filter, err := f.filter()
	q := url.Values{}
	for name, value := range map[string]string{
		"reason": filter.Reason, "type": filter.Type, "source": filter.Source, "stream": string(filter.Stream),
		"from": momentText(filter.From), "to": momentText(filter.To),
	} {
		if value != "" {
			q.Set(name, value)
		}
	}
	return q, err
}

func momentText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339Nano)
}

// whoFlags say who does something, and why.
type whoFlags struct{ by, why string }

func (w *whoFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&w.by, "by", "", "who does it (default: the name of the operating system's user)")
	c.Flags().StringVar(&w.why, "why", "", "what for; it stays in the log")
}

// name is who does it.
func (w *whoFlags) name() string {
	if w.by == "" {
		if u, err := user.Current(); err == nil {
			return cmp.Or(u.Username, "cli")
		}
	}
	return cmp.Or(w.by, "cli")
}

func newDeadLettersCommand() *cobra.Command {
	c := &cobra.Command{Use: "dead-letters", Short: "See what could not be decided or handled, and repair it", Args: cobra.NoArgs}
	asking(c, func(add func(sub *cobra.Command, run func(p *asker, args []string) error)) {
		addLetterReads(add)
		addLetterActions(add)
	})
	jobs := &cobra.Command{Use: "jobs", Short: "See the jobs that redrive many, and hold or stop them", Args: cobra.NoArgs}
	asking(jobs, addLetterJobs)
	c.AddCommand(jobs)
	return c
}

type adder func(sub *cobra.Command, run func(p *asker, args []string) error)

func addLetterReads(add adder) {
	var f letterFlags
	var kind, state, consumer string
	var limit int
	list := &cobra.Command{
		Use: "list", Short: "List dead letters",
		Long: `List commands that could not be decided, the oldest first, and behind them the streams that are parked for consumers. Only open
ones are listed unless --state says otherwise.`,
		Args: cobra.NoArgs,
	}
	f.add(list)
	list.Flags().StringVar(&kind, "kind", "", "command or event")
	list.Flags().StringVar(&state, "state", string(letter.Open), "open, redriving, redriven, discarded or all")
	list.Flags().StringVar(&consumer, "consumer", "", "only streams that are parked for this consumer")
	list.Flags().IntVar(&limit, "limit", 100, "how many at the most")
	add(list, func(p *asker, _ []string) error {
		q, err := f.query()
		if err != nil {
			return err
		}
		for name, value := range map[string]string{"kind": kind, "state": state, "consumer": consumer} {
			if value != "" && value != "all" {
				q.Set(name, value)
			}
		}
		return p.letters(q, limit)
	})
	var of letterFlags
	causes := &cobra.Command{Use: "causes", Short: "Group open dead letters by what they have in common", Args: cobra.NoArgs}
	of.add(causes)
	add(causes, func(p *asker, _ []string) error {
		q, err := of.query()
		if err != nil {
			return err
		}
		return p.causes(q)
	})
	add(&cobra.Command{
		Use: "show ID", Short: "Show all that is known of a dead letter",
		Long: `Show a dead letter, with its body and all that was done with it. ID is that of the command; of a parked stream, the consumer's
name, a slash and the stream.`,
		Args: cobra.ExactArgs(1),
	}, func(p *asker, args []string) error { return p.letter(args[0]) })
}

func addLetterActions(add adder) {
	var f letterFlags
	var who whoFlags
	var all, dry bool
	var rate int
	redrive := &cobra.Command{
		Use: "redrive [ID…]", Short: "Send dead letters again",
		Long: `Send one dead letter again, or several; or, without ID, start a job for all open ones that the flags name (--all for every one).
Those of a stream are sent in the order of acceptance. With --dry-run nothing is kept: it says what would come of it.`,
	}
	f.add(redrive)
	who.add(redrive)
	redrive.Flags().BoolVar(&all, "all", false, "all that are open")
	redrive.Flags().BoolVar(&dry, "dry-run", false, "decide them on the present states, and keep nothing")
	redrive.Flags().IntVar(&rate, "rate", letter.DefaultRate, "how many a job redrives in a second")
	add(redrive, func(p *asker, args []string) error {
		switch {
		case len(args) > 0 && (all || dry || !f.none()):
			return badSetting("all", "and filters, --dry-run too, are for redriving without ID")
		case len(args) == 0 && !all && !dry && f.none():
			return badSetting("all", "or a filter says what is redriven, where there is no ID")
		case len(args) == 0:
			return p.redriveMany(&f, &who, rate, dry)
		}
		for _, name := range args {
			if err := p.actOn(name, "redrive", map[string]any{"by": who.name(), "why": who.why}, "is sent again"); err != nil {
				return err
			}
		}
		return nil
	})
	var editor whoFlags
	var typ, data string
	edit := &cobra.Command{
		Use: "edit ID", Short: "Give a dead letter another body",
		Long: `Give a dead letter another body, and maybe another type. What came is kept; the newest edit is what a redrive sends. It must fit
the contract of its type.`,
		Args: cobra.ExactArgs(1),
	}
	editor.add(edit)
	edit.Flags().StringVar(&typ, "type", "", "the type of the command (default: that of the dead letter)")
	edit.Flags().StringVar(&data, "data", "-", "`FILE` of the body as JSON, or - for standard input")
	add(edit, func(p *asker, args []string) error {
		body, err := readBody(p.InOrStdin(), data)
		if err != nil {
			return err
		}
		return p.actOn(args[0], "edit", map[string]any{"by": editor.name(), "why": editor.why, "type": typ, "data": jsonx.RawValue(body)}, "is edited")
	})
	var discarder whoFlags
	discard := &cobra.Command{
		Use: "discard ID", Short: "Give a dead letter up for good",
		Long: `Give a dead letter up for good, with a reason (--why). Of a parked stream, the event that failed is left out, and the consumer goes
on behind it.`,
		Args: cobra.ExactArgs(1),
	}
	discarder.add(discard)
	add(discard, func(p *asker, args []string) error {
		return p.actOn(args[0], "discard", map[string]any{"by": discarder.name(), "why": discarder.why}, "is discarded")
	})
}

func addLetterJobs(add func(sub *cobra.Command, run func(p *asker, args []string) error)) {
	add(&cobra.Command{Use: "list", Short: "List jobs, the newest first", Args: cobra.NoArgs}, func(p *asker, _ []string) error { return p.letterJobs() })
	add(&cobra.Command{Use: "show JOB", Short: "Show how far a job is", Args: cobra.ExactArgs(1)}, func(p *asker, args []string) error {
		return p.letterJob(args[0])
	})
	for _, v := range []struct{ verb, short, done string }{
		{"pause", "Have a job stand still", "stands still after the page at hand"},
		{"resume", "Have a job go on", "goes on"},
		{"stop", "End a job for good", "ends after the page at hand"},
	} {
		var who whoFlags
		c := &cobra.Command{Use: v.verb + " JOB", Short: v.short, Args: cobra.ExactArgs(1)}
		who.add(c)
		add(c, func(p *asker, args []string) error {
			path := "/v1/redrive-jobs/" + url.PathEscape(args[0]) + "/" + v.verb
			_, err := p.ask(path, map[string]any{"by": who.name(), "why": who.why}, args[0]+" "+v.done)
			return err
		})
	}
}

// readBody reads a file, or standard input.
func readBody(stdin io.Reader, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(io.LimitReader(stdin, letter.MaxEdit+1))
	}
	return os.ReadFile(name) //nolint:gosec // the user's own file
}

// ask sends a command and prints the answer, or what it means.
func (p *asker) ask(path string, body any, done string) (*client.Response, error) {
	data, err := jsonx.Marshal(body)
	if err != nil {
		return nil, err
	}
	r, err := p.api.Post(p.Context(), path, id.New(), data, letterWait)
	if err == nil {
		err = r.Err()
	}
	switch {
	case err != nil:
		return nil, err
	case p.output == "json":
		_, err = fmt.Fprintf(p.OutOrStdout(), "%s\n", r.Body)
	case done != "":
		_, err = fmt.Fprintln(p.OutOrStdout(), done)
	}
	return r, err
}

func (p *asker) actOn(name, verb string, body map[string]any, done string) error {
	for k, v := range body {
		if v == "" {
			delete(body, k)
		}
	}
	_, err := p.ask("/v1/dead-letters/"+url.PathEscape(name)+"/"+verb, body, name+" "+done)
	var said *client.Problem
	if errors.As(err, &said) && said.Status == http.StatusNotFound {
		return fmt.Errorf("%s: %w", name, err)
	}
	return err
}

func (p *asker) redriveMany(f *letterFlags, who *whoFlags, rate int, dry bool) error {
	filter, err := f.filter()
	if err != nil {
		return err
	}
	body := map[string]any{"filter": filter, "dry_run": dry}
	if !dry {
		body["by"], body["why"], body["rate"] = who.name(), who.why, rate
	}
	r, err := p.ask("/v1/dead-letters/redrive", body, "")
	if err != nil || p.output == "json" {
		return err
	}
	if !dry {
		var started map[string]any
		if err := jsonx.Unmarshal(r.Body, &started); err != nil {
			return fmt.Errorf("the server's answer: %w", err)
		}
		_, err = fmt.Fprintf(p.OutOrStdout(), "job %v has begun: millrace dead-letters jobs show %v\n", started["id"], started["id"])
		return err
	}
	var t letter.Trial
	if err := jsonx.Unmarshal(r.Body, &t); err != nil {
		return fmt.Errorf("the server's answer: %w", err)
	}
	return p.trial(&t)
}

func (p *asker) table() *tabwriter.Writer {
	return tabwriter.NewWriter(p.OutOrStdout(), 0, 4, 2, ' ', 0)
}

// limitOf is the size of a page.
func limitOf(most int) string { return strconv.Itoa(max(1, min(most, 500))) }
