package process_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
)

// A step sends a dead letter again to the byte, whatever it is, and a command by its bytes. What is no dead letter is never sent
// again: the instance stops.
func TestStepsThatSendBytes(t *testing.T) {
	letters := map[string]any{
		"dead":    &millrace.Resent{CommandID: "poison"},
		"decided": &millrace.Resent{CommandID: "fill a"},
		"nothing": &millrace.Resent{CommandID: "nobody's"},
		"raw":     &millrace.RawCommand{Type: "FillShelf", Data: []byte(`{ "n" : 7 }`)},
		"unknown": &millrace.RawCommand{Type: "Teleport", Data: []byte(`{}`)},
		"no JSON": &millrace.RawCommand{Type: "FillShelf", Data: []byte("\xff")},
	}
	p := process1()
	react := p.React
	p.React = func(s doing) millrace.Reaction {
		r := react(s)
		if c := letters[s.Job]; c != nil {
			r.Steps = append(r.Steps, millrace.Step{Name: "x", Stream: "shelf-a", Command: c})
		}
		return r
	}
	w := start(t, worldOptions{process: p})
	defer w.mustStop()
	w.fill("a", 100)
	ctx := t.Context()
	poison := millrace.Command{ID: "poison", Stream: "shelf-a", Type: "FillShelf", Data: []byte("\xff no JSON"), Expected: new(uint64)}
	r, err := w.p.Accept(ctx, poison)
	if err != nil {
		t.Fatal(err)
	}
	if o, err := r.Wait(ctx); err != nil || o.Status != millrace.StatusDead {
		t.Fatalf("%+v %v", o, err)
	}
	for job := range letters {
		w.job(job, time.Time{})
	}
	step := func(job string) *millrace.InstanceStep {
		i := w.until(job, func(i *millrace.Instance) bool { return i.Failed != "" || i.Pending() == 0 && len(i.Steps) > 1 })
		for k := range i.Steps {
			if i.Steps[k].Name == "x" {
				return &i.Steps[k]
			}
		}
		t.Fatalf("%s: %+v", job, i)
		return nil
	}
	for job, want := range map[string]string{"dead": "dead undecodable", "raw": "decided ", "unknown": "dead unknown_type"} {
		if s := step(job); s.Status+" "+s.Code != want || s.Of != "" || s.Data != nil {
			t.Errorf("%s: %+v", job, s)
		}
	}
	sent, err := w.s.Command(ctx, millrace.StepID("jobs", "job-dead", "x"))
	if err != nil || string(sent.Data) != string(poison.Data) || sent.Type != poison.Type || sent.Expected == nil || *sent.Expected != 0 {
		t.Errorf("%+v %v", sent, err)
	}
	for _, job := range []string{"decided", "nothing"} {
		i := w.until(job, func(i *millrace.Instance) bool { return i.Failed != "" })
		if !strings.HasPrefix(i.Failed, "step x: ") {
			t.Errorf("%s: %+v", job, i)
		}
	}
	w.until("raw", func(*millrace.Instance) bool { return slices.Contains(w.ids("jobs.parked"), "job-no JSON") })
	if left := fold[Shelf](w, "shelf-a").Left; left != 107 {
		t.Errorf("the shelf has %d", left)
	}
}
