package letter

import (
	"strings"
	"time"

	"github.com/millrace-io/millrace"
)

// Item is a dead letter with what was done with it.
type Item struct {
	Letter *millrace.DeadLetter
	// State is nil where nobody has done anything with it.
	State *State
	// Place is where it stands in the list.
	Place millrace.Place
}

// Status is how far it has come.
func (i *Item) Status() Status {
	if i.State == nil {
		return Open
	}
	return i.State.Status
}

// Ordering is an index of dead letters with the part of it that a list reads.
type Ordering struct {
	Index            int
	Prefix, From, To string
}

// Order chooses how a list with a filter is read.
func (f *Filter) Order() Ordering {
	o := Ordering{Index: millrace.DeadLettersByTime}
	switch {
	case f.Stream != "":
		o.Index, o.Prefix = millrace.DeadLettersByStream, millrace.KeyPrefix(string(f.Stream))
	case f.Reason != "":
		o.Index, o.Prefix = millrace.DeadLettersByReason, millrace.KeyPrefix(f.Reason)
	}
	if !f.From.IsZero() {
		o.From = o.Prefix + timeKey(f.From)
	}
	if !f.To.IsZero() {
		o.To = o.Prefix + timeKey(f.To)
	}
	return o
}

func timeKey(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000000Z") }

// Cause is what dead letters have in common: the reason, the type, and the error without what differs from one to the next.
type Cause struct {
	Reason string    `json:"reason"`
	Type   string    `json:"type"`
	Error  string    `json:"error"`
	Count  int       `json:"count"`
	First  time.Time `json:"first_at"`
	Last   time.Time `json:"last_at"`
}

// Causes are open dead letters by their causes, the most frequent first.
type Causes struct {
	Items []Cause `json:"items"`
	// Others counts those whose causes were too many to tell apart.
	Others int `json:"others"`
	// Complete says that all were looked at.
	Complete bool `json:"complete"`
}

// Trial is what would come of redriving dead letters now.
type Trial struct {
	Matched int            `json:"matched"`
	Decided int            `json:"decided"`
	Refused map[string]int `json:"refused"` // by code
	Dead    map[string]int `json:"dead"`    // by reason: they would die again
	Held    int            `json:"held"`
	Causes  Causes         `json:"causes"`
	// Complete says that all were tried; else it was too many, or took too long.
	Complete bool `json:"complete"`
}

// maxShape bounds the shape of an error, in bytes: a line.
const maxShape = 200

// Shape is an error's text without what differs from one to the next: its first line, with numbers and what stands in quotes
// left out.
func Shape(text string) string {
	text, _, _ = strings.Cut(text, "\n")
	var b strings.Builder
	quoted := rune(0)
	digits := false
	for _, r := range text {
		if b.Len() >= maxShape {
			break
		}
		switch {
		case quoted != 0:
			if r == quoted {
				b.WriteRune(r)
				quoted = 0
			}
			continue
		case r == '"' || r == '`':
			b.WriteRune(r)
			b.WriteString("…")
			quoted, digits = r, false
			continue
		case r >= '0' && r <= '9':
			if !digits {
				b.WriteByte('#')
			}
			digits = true
			continue
		}
		digits = false
		b.WriteRune(r)
	}
	return b.String()
}
