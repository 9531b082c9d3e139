package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/letter"
)

// letterLine is a dead letter as the API lists it.
type letterLine struct {
	ID       string         `json:"id"`
	Kind     string         `json:"kind"`
	State    string         `json:"state"`
	Reason   string         `json:"reason"`
	Error    string         `json:"error"`
	Type     string         `json:"type"`
	Stream   string         `json:"stream"`
	Source   string         `json:"source"`
	Consumer string         `json:"consumer"`
	Attempts int            `json:"attempts"`
	First    time.Time      `json:"first_at"`
	Last     time.Time      `json:"last_at"`
	Redrives int            `json:"redrives"`
	Edits    int            `json:"edits"`
	Answer   *letter.Answer `json:"answer"`
}

// letters prints a list, page after page, until there are as many as are wanted. As JSON it is one page.
func (p *asker) letters(q url.Values, most int) error {
	w := p.table()
	q.Set("limit", limitOf(most))
	for n, first := 0, true; ; first = false {
		var page struct {
			Items []letterLine `json:"items"`
			Next  string       `json:"next_cursor"`
		}
		printed, err := p.get("/v1/dead-letters?"+q.Encode(), &page)
		if printed || err != nil {
			return err
		}
		if first {
			_, _ = fmt.Fprintln(w, "ID\tSTATE\tREASON\tTYPE\tSTREAM\tREDRIVES\tSINCE")
		}
		for i := range page.Items {
			if n == most {
				break
			}
			n++
			l := &page.Items[i]
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", l.ID, l.State, l.Reason, cmp.Or(l.Type, "-"), l.Stream, l.Redrives, formatTime(l.First))
		}
		if page.Next == "" || n == most {
			if err := w.Flush(); err != nil || page.Next == "" {
				return err
			}
			_, err = fmt.Fprintln(p.OutOrStdout(), "there may be more")
			return err
		}
		q.Set("cursor", page.Next)
	}
}

func (p *asker) causes(q url.Values) error {
	var all letter.Causes
	if printed, err := p.get("/v1/dead-letters/causes?"+q.Encode(), &all); printed || err != nil {
		return err
	}
	return p.printCauses(&all)
}

func (p *asker) printCauses(all *letter.Causes) error {
	w := p.table()
	_, _ = fmt.Fprintln(w, "COUNT\tREASON\tTYPE\tFIRST\tLAST\tERROR")
	for i := range all.Items {
		c := &all.Items[i]
		_, _ = fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", c.Count, c.Reason, c.Type, formatTime(c.First), formatTime(c.Last), c.Error)
	}
	if all.Others > 0 {
		_, _ = fmt.Fprintf(w, "%d\tof further causes\n", all.Others)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if !all.Complete {
		_, _ = fmt.Fprintln(p.OutOrStdout(), "there are more than were looked at: name them more closely")
	}
	return nil
}

func (p *asker) trial(t *letter.Trial) error {
	w := p.table()
	_, _ = fmt.Fprintf(w, "would be decided\t%d\n", t.Decided)
	for _, code := range slices.Sorted(maps.Keys(t.Refused)) {
		_, _ = fmt.Fprintf(w, "would be refused: %s\t%d\n", code, t.Refused[code])
	}
	for _, reason := range slices.Sorted(maps.Keys(t.Dead)) {
		_, _ = fmt.Fprintf(w, "would die again: %s\t%d\n", reason, t.Dead[reason])
	}
	_, _ = fmt.Fprintf(w, "would be held\t%d\n", t.Held)
	_, _ = fmt.Fprintf(w, "tried\t%d\n", t.Matched)
	if err := w.Flush(); err != nil {
		return err
	}
	if !t.Complete {
		_, _ = fmt.Fprintln(p.OutOrStdout(), "there are more than were tried: name them more closely")
		return nil
	}
	return p.printCauses(&t.Causes)
}

// letter prints all that is known of a dead letter.
func (p *asker) letter(id string) error {
	var l struct {
		letterLine
		CorrelationID string                `json:"correlation_id"`
		CausationID   string                `json:"causation_id"`
		Data          jsonx.RawValue        `json:"data"`
		Raw           []byte                `json:"raw"`
		Decodes       bool                  `json:"decodes"`
		Faults        []millrace.FieldError `json:"faults"`
		Edit          *letter.Edit          `json:"edit"`
		Partition     int                   `json:"partition"`
		Position      uint64                `json:"position"`
		Version       uint64                `json:"version"`
		Cursor        string                `json:"cursor"`
		Event         jsonx.RawValue        `json:"event"`
		History       []struct {
			ID            string         `json:"id"`
			Type          string         `json:"type"`
			Version       uint64         `json:"version"`
			Partition     int            `json:"partition"`
			Position      uint64         `json:"position"`
			Time          time.Time      `json:"time"`
			Data          map[string]any `json:"data"`
			CommandID     string         `json:"command_id"`
			CorrelationID string         `json:"correlation_id"`
			CausationID   string         `json:"causation_id"`
		} `json:"history"`
	}
	if printed, err := p.get("/v1/dead-letters/"+url.PathEscape(id), &l); printed || err != nil {
		return err
	}
	out := p.OutOrStdout()
	line := func(name, value string) {
		if value != "" {
			_, _ = fmt.Fprintf(out, "%-12s %s\n", name, value)
		}
	}
	line("id", l.ID)
	line("state", l.State)
	line("reason", fmt.Sprintf("%s, after %d attempts", l.Reason, l.Attempts))
	line("error", l.Error)
	line("type", l.Type)
	line("stream", l.Stream)
	line("source", l.Source)
	line("consumer", l.Consumer)
	line("first", formatTime(l.First))
	line("last", formatTime(l.Last))
	line("correlation", l.CorrelationID)
	line("causation", l.CausationID)
	line("position", fmt.Sprintf("%d of partition %d", l.Position, l.Partition))
	line("data", string(l.Data))
	if len(l.Raw) > 0 {
		line("raw", fmt.Sprintf("%q", l.Raw))
	}
	line("event", string(l.Event))
	if l.Edit != nil {
		line("edit", l.Edit.Type+" "+string(l.Edit.Data))
	}
	if !l.Decodes {
		line("decodes", "no")
	}
	for _, f := range l.Faults {
		line("fault", f.Pointer+" "+f.Detail)
	}
	for _, h := range l.History {
		text := formatTime(h.Time) + " " + h.Type
		for _, name := range []string{"by", "why", "status", "code", "error"} {
			if v, ok := h.Data[name].(string); ok && v != "" {
				text += fmt.Sprintf(" %s=%q", name, v)
			}
		}
		line("history", text)
	}
	return nil
}

func (p *asker) letterJobs() error {
	var page struct {
		Items []letter.Job `json:"items"`
		Next  string       `json:"next_cursor"`
	}
	if printed, err := p.get("/v1/redrive-jobs?limit=500", &page); printed || err != nil {
		return err
	}
	w := p.table()
	_, _ = fmt.Fprintln(w, "JOB\tSTATUS\tMET\tDECIDED\tREFUSED\tDEAD\tHELD\tSKIPPED\tRATE\tBY\tSTARTED")
	for i := range page.Items {
		j := &page.Items[i]
		_, _ = fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%s\n", j.ID, j.Status, j.Counts.Total(), j.Counts.Decided, j.Counts.Refused,
			j.Counts.Dead, j.Counts.Held, j.Counts.Skipped, j.Rate, j.By, formatTime(j.StartedAt))
	}
	return w.Flush()
}

func (p *asker) letterJob(id string) error {
	var j letter.Job
	if printed, err := p.get("/v1/redrive-jobs/"+url.PathEscape(id), &j); printed || err != nil {
		return err
	}
	out := p.OutOrStdout()
	_, _ = fmt.Fprintf(out, "%s is %s, begun %s by %s at %d in a second\n", j.ID, j.Status, formatTime(j.StartedAt), j.By, j.Rate)
	c := j.Counts
	_, err := fmt.Fprintf(out, "%d met: %d decided, %d refused, %d died again, %d held, %d skipped\n", c.Total(), c.Decided, c.Refused, c.Dead, c.Held, c.Skipped)
	return err
}
