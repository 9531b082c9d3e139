package millracetest

import (
	"time"

	"github.com/millrace-io/millrace"
)

// Tally is a tiny domain for tests: streams "tally-…" that count up to a limit. It has one of everything: events,
// refusals, a command without effect, and one that panics.
type (
	// TallyState is its state.
	TallyState struct {
		Total int64 `json:"total"`
		Count int64 `json:"count"`
	}
	// Add adds N; a negative N is refused, zero does nothing.
	Add struct {
		N int64 `json:"n"`
		// Note makes the command as large as a test wants.
		Note string `json:"note,omitempty"`
	}
	// Split adds N as N events of one.
	Split struct {
		N int64 `json:"n"`
	}
	// Explode makes the decision panic.
	Explode struct{}
	// Added is the event of Add and Split.
	Added struct {
		N     int64  `json:"n"`
		Total int64  `json:"total"`
		Note  string `json:"note,omitempty"`
	}
)

// TallyLimit is the most that a tally holds.
const TallyLimit = 1_000_000_000

// Tally returns the domain.
func Tally() millrace.Domain[TallyState] {
	return millrace.Domain[TallyState]{
		Category: "tally", StateVersion: 1,
		Initial: func(string) TallyState { return TallyState{} },
		Decide:  decideTally,
		Evolve: func(s TallyState, event any) TallyState {
			if e, ok := event.(*Added); ok {
				return TallyState{Total: e.Total, Count: s.Count + 1}
			}
			return s
		},
		Commands: []millrace.Message{millrace.MessageOf[Add]("Add"), millrace.MessageOf[Split]("Split"), millrace.MessageOf[Explode]("Explode")},
		Events:   []millrace.Message{millrace.MessageOf[Added]("Added")},
	}
}

func decideTally(s TallyState, command any, _ time.Time) ([]any, *millrace.Refusal) {
	switch c := command.(type) {
	case *Add:
		switch {
		case c.N < 0:
			return nil, &millrace.Refusal{Kind: millrace.RefusedRule, Code: "negative", Detail: "a tally only grows"}
		case c.N == 0:
			return nil, nil
		case s.Total+c.N > TallyLimit:
			return nil, &millrace.Refusal{Kind: millrace.RefusedConflict, Code: "limit", Detail: "the tally is full"}
		}
		return []any{&Added{N: c.N, Total: s.Total + c.N, Note: c.Note}}, nil
	case *Split:
		var events []any
		for i := range c.N {
			events = append(events, &Added{N: 1, Total: s.Total + i + 1})
		}
		return events, nil
	default:
		panic("a command that makes the decision panic")
	}
}

// TallyDocument is the read model of a tally.
type TallyDocument struct {
	Stream  string `json:"stream"`
	Total   int64  `json:"total"`
	Version uint64 `json:"version"`
}

// TallyTable holds a document for each tally, by stream, with an index by the last digit of the total.
var TallyTable = millrace.NewTable("tallies", []string{"digit"}, func(d *TallyDocument) []string {
	return []string{millrace.Key(string(rune('0'+d.Total%10)), d.Stream)}
})

// Tallies is the projection of tallies.
func Tallies() millrace.Projection {
	return millrace.Projection{
		Name: "tallies", Version: 1, Categories: []string{"tally"}, Tables: []*millrace.Table{TallyTable.Table},
		OfStream: func(s millrace.Stream) []millrace.DocumentName {
			return []millrace.DocumentName{{Table: TallyTable.Table, ID: string(s)}}
		},
		Project: func(v millrace.Views, e *millrace.Recorded) error {
			added, ok := e.Body.(*Added)
			if !ok {
				return nil
			}
			doc := &TallyDocument{Stream: string(e.Stream)}
			if e.Version > 1 {
				var err error
				if doc, err = TallyTable.Get(v, string(e.Stream)); err != nil {
					return err
				}
			}
			doc.Total, doc.Version = added.Total, e.Version
			if e.Version == 1 {
				TallyTable.Insert(v, string(e.Stream), doc)
			} else {
				TallyTable.Put(v, string(e.Stream), doc)
			}
			return nil
		},
	}
}
