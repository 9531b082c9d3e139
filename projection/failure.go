package projection

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace-io/millrace"
)

// The errors of what is asked of a read model.
var (
	// ErrBusy: the projection is being rebuilt, or a rebuilt generation waits to be switched to or discarded.
	ErrBusy = errors.New("the projection is being rebuilt already")
	// ErrPaused: the read models stand still on this node, so that what is asked for would never be done.
	ErrPaused = errors.New("the read models are paused")
	// ErrNoGeneration: there is no such generation beside the live one, or it is not complete.
	ErrNoGeneration = errors.New("there is no such generation beside the live one, or it is not complete")
	// ErrOtherCode: the generation was made by another version of the code than this node has, which cannot go on with it.
	ErrOtherCode = errors.New("the generation is of another version of the code than this node runs")
	// ErrNotByStream: documents of the projection depend on several streams, so that those of one cannot be made alone.
	ErrNotByStream = errors.New("documents of this projection depend on several streams: rebuild it instead")
	// ErrReplaced: the generation was removed while it was being read. Another try reads the live one.
	ErrReplaced = errors.New("the documents were replaced while they were being read")
	// ErrNoAnswer: the node that coordinates read models did not answer in time. It may have taken the request all the same.
	ErrNoAnswer = errors.New("the node that coordinates read models does not answer")
)

// codes are the refusals as they stand in the store.
var codes = map[string]error{"busy": ErrBusy, "no_generation": ErrNoGeneration, "other_code": ErrOtherCode}

// refusal is the error of a code; a code of a newer program is one too.
func refusal(code string) error {
	if code == "" {
		return nil
	}
	if err := codes[code]; err != nil {
		return err
	}
	return fmt.Errorf("%w: refused as %s", millrace.ErrInvalid, code)
}

func codeOf(err error) string {
	for code, e := range codes {
		if errors.Is(err, e) {
			return code
		}
	}
	return ""
}

// Reasons of what failed, for those who must not see the error's text.
const (
	ReasonIncomplete = "incomplete" // streams would be given up that the live documents follow
	ReasonFull       = "full"       // the disk is full or nearly so
	ReasonCorrupt    = "corrupt"    // the store holds something that cannot be read
	ReasonBehind     = "behind"     // it cannot come up to the live one: no node runs its code
	ReasonFailed     = "failed"     // anything else
	ReasonReplaced   = "replaced"   // newer code has come, or older code has gone
	ReasonDiscarded  = "discarded"  // somebody wanted it so
)

// reasonOf finds the reason of an error.
func reasonOf(err error) string {
	var incomplete *IncompleteError
	switch {
	case errors.As(err, &incomplete):
		return ReasonIncomplete
	case errors.Is(err, millrace.ErrFull):
		return ReasonFull
	case errors.Is(err, millrace.ErrCorrupt):
		return ReasonCorrupt
	case errors.Is(err, errBehind):
		return ReasonBehind
	}
	return ReasonFailed
}

var errBehind = errors.New("it does not come up to the live generation: no node runs the code that could continue it")

// Fault is the newest failure of a read model.
type Fault struct {
	What   string    `json:"what"` // rebuild, switch, repair or parked
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`           // one of the Reason constants, or a parked stream's reason
	Stream string    `json:"stream,omitempty"` // of a repair, of a parked stream
	Node   string    `json:"node,omitempty"`
	// Error may hold values and paths: it is for operators.
	Error string `json:"error"`
}

// IncompleteError says that a rebuild has given streams up that the live documents follow. Switching to it would take
// documents away from readers.
type IncompleteError struct {
	Streams int             // how many
	First   millrace.Stream // one of them; the log has all, with their events
}

func (e *IncompleteError) Error() string {
	return fmt.Sprintf("the handler failed for events of %d streams that the live documents follow, such as %s", e.Streams, e.First)
}

// complete says no to a generation that has given up streams which the live one follows. Streams that both have given up
// are no reason: the rebuild is no worse.
func (m *Model) complete(ctx context.Context, live, next uint64) error {
	after, err := m.parked(ctx, next)
	if err != nil || len(after) == 0 {
		return err
	}
	before, err := m.parked(ctx, live)
	if err != nil {
		return err
	}
	known := make(map[millrace.Stream]bool, len(before))
	for i := range before {
		known[millrace.Stream(before[i].Stream)] = true
	}
	after = slices.DeleteFunc(after, func(p millrace.Parked) bool { return known[millrace.Stream(p.Stream)] })
	if len(after) == 0 {
		return nil
	}
	return &IncompleteError{Streams: len(after), First: millrace.Stream(after[0].Stream)}
}

func (m *Model) parkedCollection(generation uint64) string {
	return m.name(generation) + "." + millrace.ParkedName
}

// parked are the streams that a generation has given up.
func (m *Model) parked(ctx context.Context, generation uint64) ([]millrace.Parked, error) {
	var streams []millrace.Parked
	for d, err := range m.s.store.Documents(ctx, millrace.Query{Collection: m.parkedCollection(generation), Index: -1, Partition: -1}) {
		if err != nil {
			return nil, err
		}
		p, err := millrace.ParkedTable.Decode(d.Data)
		if err != nil {
			return nil, fmt.Errorf("%w: a document of %s", millrace.ErrCorrupt, d.Collection)
		}
		streams = append(streams, *p)
	}
	return streams, nil
}
