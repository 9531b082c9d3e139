package letter

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-io/millrace"
)

const (
	// CategoryJob is that of the streams of jobs that redrive many dead letters.
	CategoryJob = "redrivejob"
	// Jobs is the name of the consumer that runs them.
	Jobs = "redrive-jobs"
	// DefaultRate is how many dead letters a job redrives in a second where nobody says otherwise: few enough that what has
	// broken once is not overrun, and all of a bad hour in some minutes.
	DefaultRate = 100
	// MaxRate is the most that can be asked for.
	MaxRate = 10_000
	// MaxJobID bounds the id of a job: it stands in the ids of its commands.
	MaxJobID = 64
)

// Filter says which dead letters are meant. What is empty excludes none.
type Filter struct {
	Reason string          `json:"reason,omitempty"`
	Type   string          `json:"type,omitempty"` // of the command, as it came
	Source string          `json:"source,omitempty"`
	Stream millrace.Stream `json:"stream,omitempty"`
	From   time.Time       `json:"from,omitzero"` // accepted then or later
	To     time.Time       `json:"to,omitzero"`   // accepted before
}

// Fits says whether a dead letter is meant.
func (f *Filter) Fits(d *millrace.DeadLetter) bool {
	return (f.Reason == "" || f.Reason == d.Reason) && (f.Type == "" || f.Type == d.Type) &&
		(f.Source == "" || f.Source == d.Source) && (f.Stream == "" || f.Stream == d.Stream) &&
		(f.From.IsZero() || !d.AcceptedAt.Before(f.From)) && (f.To.IsZero() || d.AcceptedAt.Before(f.To))
}

// JobStream is the stream of a job.
func JobStream(id string) millrace.Stream { return millrace.NewStream(CategoryJob, id) }

// The ids of a job's commands follow from the job and from what they are about, so that a page that is done again after a crash
// sends nothing twice. They are of the processes' own, which no client can take.

// JobRedriveID is the id of the command by which a job redrives a dead letter.
func JobRedriveID(job, commandID string) string {
	sum := sha256.Sum256([]byte(commandID))
	return millrace.StepPrefix + Jobs + "/" + job + "/" + hex.EncodeToString(sum[:])
}

// JobPageID is the id of the command that records a page.
func JobPageID(job string, page int) string {
	return millrace.StepPrefix + Jobs + "/" + job + "/page " + strconv.Itoa(page)
}

// SentID is the id of the command by which a dead letter is sent again, for each attempt another one.
func SentID(s millrace.Stream, attempt int) string {
	return millrace.StepID(Process, s, SendStep(attempt))
}

// SendStep names the step of an attempt.
func SendStep(attempt int) string { return "send " + strconv.Itoa(attempt) }

// Counts are what became of dead letters that a job has met.
type Counts struct {
	Decided int `json:"decided"`
	Refused int `json:"refused"`
	Dead    int `json:"dead"` // died again, and are open
	// Held are open still: an earlier one of their stream died again, and they are not sent before it.
	Held    int `json:"held"`
	Skipped int `json:"skipped"` // were redriven or discarded by somebody else
}

// Plus adds up.
func (c Counts) Plus(o Counts) Counts {
	return Counts{c.Decided + o.Decided, c.Refused + o.Refused, c.Dead + o.Dead, c.Held + o.Held, c.Skipped + o.Skipped}
}

// Total is how many there were.
func (c Counts) Total() int { return c.Decided + c.Refused + c.Dead + c.Held + c.Skipped }

// Place is where a job stands: behind a document of the index by stream. A key holds bytes that text cannot.
type Place struct {
	Key       []byte `json:"key"`
	Partition int    `json:"partition"`
	ID        string `json:"id"`
}

// PlaceOf is the form of a place that a fact can hold.
func PlaceOf(p *millrace.Place) *Place {
	return &Place{Key: []byte(p.Key), Partition: p.Partition, ID: p.ID}
}

// Place is it as a query wants it; nil for the beginning.
func (p *Place) Place() *millrace.Place {
	if p == nil {
		return nil
	}
	return &millrace.Place{Key: string(p.Key), Partition: p.Partition, ID: p.ID}
}

// The commands of the stream of a job.
type (
	// StartRedriveJob begins it. It redrives what is a dead letter by then.
	StartRedriveJob struct {
		Filter Filter `json:"filter"`
		Rate   int    `json:"rate"` // dead letters in a second
		By     string `json:"by"`
		Why    string `json:"why,omitempty"`
	}
	// PauseRedriveJob has it stand still after the page at hand.
	PauseRedriveJob struct {
		By  string `json:"by"`
		Why string `json:"why,omitempty"`
	}
	// ResumeRedriveJob has it go on.
	ResumeRedriveJob struct {
		By  string `json:"by"`
		Why string `json:"why,omitempty"`
	}
	// StopRedriveJob ends it after the page at hand.
	StopRedriveJob struct {
		By  string `json:"by"`
		Why string `json:"why,omitempty"`
	}
	// RecordRedrivePage says what came of a page, and where the next one begins. Who runs the job sends it.
	RecordRedrivePage struct {
		Page   int             `json:"page"` // from 1
		Next   *Place          `json:"next,omitempty"`
		Held   millrace.Stream `json:"held,omitempty"` // the last stream, where it is held
		Counts Counts          `json:"counts"`
		Done   bool            `json:"done"` // there is no more
	}
)

// Validate checks the form.
func (c *StartRedriveJob) Validate() []millrace.FieldError {
	out := checkWho(c.By, c.Why, false)
	if c.Rate < 1 || c.Rate > MaxRate {
		out = append(out, millrace.FieldError{Pointer: "/rate", Detail: "must be from 1 to 10000 dead letters in a second"})
	}
	if !c.Filter.To.IsZero() && !c.Filter.From.Before(c.Filter.To) {
		out = append(out, millrace.FieldError{Pointer: "/filter/to", Detail: "must be after from"})
	}
	return out
}

// Validate checks the form.
func (c *PauseRedriveJob) Validate() []millrace.FieldError { return checkWho(c.By, c.Why, false) }

// Validate checks the form.
func (c *ResumeRedriveJob) Validate() []millrace.FieldError { return checkWho(c.By, c.Why, false) }

// Validate checks the form.
func (c *StopRedriveJob) Validate() []millrace.FieldError { return checkWho(c.By, c.Why, false) }

// The events of the stream of a job.
type (
	// RedriveJobStarted begins it.
	RedriveJobStarted struct {
		At     time.Time `json:"at"`
		Filter Filter    `json:"filter"`
		Rate   int       `json:"rate"`
		By     string    `json:"by"`
		Why    string    `json:"why,omitempty"`
	}
	// RedriveJobPaused has it stand still.
	RedriveJobPaused struct {
		At  time.Time `json:"at"`
		By  string    `json:"by"`
		Why string    `json:"why,omitempty"`
	}
	// RedriveJobResumed has it go on.
	RedriveJobResumed struct {
		At  time.Time `json:"at"`
		By  string    `json:"by"`
		Why string    `json:"why,omitempty"`
	}
	// RedriveJobStopped ends it by somebody's word.
	RedriveJobStopped struct {
		At  time.Time `json:"at"`
		By  string    `json:"by"`
		Why string    `json:"why,omitempty"`
	}
	// RedrivePageDone is a page. The last one ends the job.
	RedrivePageDone struct {
		At     time.Time       `json:"at"`
		Page   int             `json:"page"`
		Next   *Place          `json:"next,omitempty"`
		Held   millrace.Stream `json:"held,omitempty"`
		Counts Counts          `json:"counts"`
		Done   bool            `json:"done"`
	}
)

// JobStatus is how far a job has come.
type JobStatus string

// The statuses of a job. Jobs without events have none.
const (
	JobRunning JobStatus = "running"
	JobPaused  JobStatus = "paused"
	JobStopped JobStatus = "stopped" // by somebody's word, for good
	JobDone    JobStatus = "done"
)

// Job is what the stream of a job comes to, and its document. It is never changed.
type Job struct {
	ID        string          `json:"id"`
	Version   uint64          `json:"version"`
	Status    JobStatus       `json:"status"`
	Filter    Filter          `json:"filter"`
	Rate      int             `json:"rate"`
	By        string          `json:"by"`
	Why       string          `json:"why,omitempty"`
	StartedAt time.Time       `json:"started_at"`
	UpdatedAt time.Time       `json:"updated_at"`
	Page      int             `json:"pages"`
	Next      *Place          `json:"next,omitempty"`
	Held      millrace.Stream `json:"held,omitempty"`
	Counts    Counts          `json:"counts"`
}

// The indexes of JobsTable.
const (
	JobsByStatus = 0 // then time of the start
	JobsByTime   = 1
)

// JobsTable holds the jobs of the consumer that runs them, by the ids of their streams.
var JobsTable = millrace.NewTable("jobs", []string{"status", "time"}, func(j *Job) []string {
	at := j.StartedAt.UTC().Format("2006-01-02T15:04:05.000000000Z")
	return []string{millrace.Key(string(j.Status), at, j.ID), millrace.Key(at, j.ID)}
})

// ValidJobID says whether a job can have an id.
func ValidJobID(id string) bool {
	return millrace.ValidateID("job", id, MaxJobID) == nil && !strings.Contains(id, "/")
}
