package system

import (
	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/letter"
)

// lettersProjection is the read model of what was done with dead letters.
func lettersProjection() millrace.Projection {
	return millrace.Projection{
		Name: letter.Projection, Version: 1, Categories: []string{letter.Category}, Tables: []*millrace.Table{letter.StatesTable.Table},
		Project: func(v millrace.Views, e *millrace.Recorded) error {
			id := e.Stream.ID()
			s := &letter.State{ID: id, Status: letter.Open}
			if e.Version > 1 {
				var err error
				if s, err = letter.StatesTable.Get(v, id); err != nil {
					return err
				}
			}
			letter.StatesTable.Put(v, id, evolveLetter(s, e.Body))
			return nil
		},
		OfStream: func(s millrace.Stream) []millrace.DocumentName {
			return []millrace.DocumentName{{Table: letter.StatesTable.Table, ID: s.ID()}}
		},
	}
}
