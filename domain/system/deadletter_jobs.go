package system

import (
	"fmt"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/letter"
)

// The codes of refusals of jobs.
const (
	CodeJobNotFound = "redrive_job_not_found"
	CodeJobExists   = "redrive_job_exists"
	CodeJobOver     = "redrive_job_over"
)

// jobStateVersion is as letterStateVersion.
const jobStateVersion = 1

func jobs() millrace.Domain[*letter.Job] {
	return millrace.Domain[*letter.Job]{
		Category: letter.CategoryJob, StateVersion: jobStateVersion,
		Initial: func(id string) *letter.Job { return &letter.Job{ID: id} },
		Decide:  decideJob, Evolve: evolveJob,
		Commands: []millrace.Message{
			millrace.MessageOf[letter.StartRedriveJob]("StartRedriveJob"),
			millrace.MessageOf[letter.PauseRedriveJob]("PauseRedriveJob"),
			millrace.MessageOf[letter.ResumeRedriveJob]("ResumeRedriveJob"),
			millrace.MessageOf[letter.StopRedriveJob]("StopRedriveJob"),
			millrace.MessageOf[letter.RecordRedrivePage]("RecordRedrivePage"),
		},
		Events: []millrace.Message{
			millrace.MessageOf[letter.RedriveJobStarted]("RedriveJobStarted"),
			millrace.MessageOf[letter.RedriveJobPaused]("RedriveJobPaused"),
			millrace.MessageOf[letter.RedriveJobResumed]("RedriveJobResumed"),
			millrace.MessageOf[letter.RedriveJobStopped]("RedriveJobStopped"),
			millrace.MessageOf[letter.RedrivePageDone]("RedrivePageDone"),
		},
	}
}

func decideJob(j *letter.Job, command any, at time.Time) ([]any, *millrace.Refusal) {
	at = at.UTC()
	switch c := command.(type) {
	case *letter.StartRedriveJob:
		if j.Status != "" {
			return nil, conflict(CodeJobExists, "there is a job of this id")
		}
		return []any{&letter.RedriveJobStarted{At: at, Filter: c.Filter, Rate: c.Rate, By: c.By, Why: c.Why}}, nil
	case *letter.PauseRedriveJob:
		return move(j, letter.JobPaused, &letter.RedriveJobPaused{At: at, By: c.By, Why: c.Why})
	case *letter.ResumeRedriveJob:
		return move(j, letter.JobRunning, &letter.RedriveJobResumed{At: at, By: c.By, Why: c.Why})
	case *letter.StopRedriveJob:
		return move(j, letter.JobStopped, &letter.RedriveJobStopped{At: at, By: c.By, Why: c.Why})
	case *letter.RecordRedrivePage:
		// A page that was under way when the job was paused or stopped counts too: it is done.
		if j.Status == "" || j.Status == letter.JobDone || c.Page != j.Page+1 {
			return nil, nil
		}
		return []any{&letter.RedrivePageDone{At: at, Page: c.Page, Next: c.Next, Held: c.Held, Counts: c.Counts, Done: c.Done}}, nil
	}
	panic(fmt.Sprintf("system: command %T is not declared", command))
}

// move brings a job that is not over into another status.
func move(j *letter.Job, to letter.JobStatus, event any) ([]any, *millrace.Refusal) {
	switch j.Status {
	case "":
		return nil, &millrace.Refusal{Kind: millrace.RefusedNotFound, Code: CodeJobNotFound, Detail: "there is no job of this id"}
	case to:
		return nil, nil
	case letter.JobDone, letter.JobStopped:
		return nil, conflict(CodeJobOver, "the job is over")
	case letter.JobRunning, letter.JobPaused:
	}
	return []any{event}, nil
}

func evolveJob(j *letter.Job, event any) *letter.Job {
	n := *j
	n.Version++
	switch e := event.(type) {
	case *letter.RedriveJobStarted:
		n.Status, n.Filter, n.Rate, n.By, n.Why = letter.JobRunning, e.Filter, e.Rate, e.By, e.Why
		n.StartedAt, n.UpdatedAt = e.At, e.At
	case *letter.RedriveJobPaused:
		n.Status, n.UpdatedAt = letter.JobPaused, e.At
	case *letter.RedriveJobResumed:
		n.Status, n.UpdatedAt = letter.JobRunning, e.At
	case *letter.RedriveJobStopped:
		n.Status, n.UpdatedAt = letter.JobStopped, e.At
	case *letter.RedrivePageDone:
		n.Page, n.Next, n.Held, n.UpdatedAt = e.Page, e.Next, e.Held, e.At
		n.Counts = n.Counts.Plus(e.Counts)
		if e.Done && n.Status != letter.JobStopped {
			n.Status = letter.JobDone
		}
	default:
		panic(fmt.Sprintf("system: event %T is not declared", event))
	}
	return &n
}
