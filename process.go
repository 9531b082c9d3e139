package millrace

import (
	"fmt"
	"slices"
	"time"

	"github.com/millrace-io/millrace/internal/jsonx"
)

// Limits of a process. A reaction that goes beyond them is a fault of the process, which stops for that instance.
const (
	// MaxProcessName and MaxStepName leave room for a stream's name in the id of a command: see [StepID].
	MaxProcessName = 20
	MaxStepName    = 24
	// MaxSteps bounds the commands that an instance sends in its life. An order of the most lines reserves each, tries again,
	// commits or releases in parts, and takes back: see the limits in domain/order. A step that is settled is four values of
	// the document, of which the JSON decoder takes 200,000.
	MaxSteps = 45_000
	// MaxTimers and MaxCalls bound the timers and the calls of an instance.
	MaxTimers = 64
	MaxCalls  = 256
)

// Process is the declaration of a process manager: what is to happen after an event, over time and over several streams. An
// instance belongs to one stream of the category. It follows that stream's events, the outcomes of the commands that it has
// sent, wherever these went, the results of its calls, and its own timers; what another stream has to tell it comes as a
// command to its stream.
//
// The functions are pure, as those of a [Domain] are. React is called after each input with the state that Evolve made, and
// says what is to have been done by then. It does not matter how often it says so: a step is sent once, under an id that is
// made of the process, the stream and the step's name, a call is made until it is answered, and a timer fires once. To do a
// thing again is another step with another name.
type Process[S any] struct {
	Name     string
	Category string
	// Initial is the state of a stream's instance before its first input.
	Initial func(s Stream) S
	// Evolve applies one input. It knows every input in every state: early, late and unknown ones change nothing.
	Evolve func(state S, in *Input) S
	React  func(state S) Reaction
}

// Input is one thing that a process hears of: an event of its stream, the outcome of a step, the result of a call, or a timer.
type Input struct {
	// At is when it happened: the event's or the outcome's time, when the call was answered, or when the timer was due.
	At time.Time
	// Event is the decoded body of an event, and Version the stream's version with it.
	Event   any
	Version uint64
	// Step names the step of an outcome.
	Step    string
	Outcome *Outcome
	// Call names the call that was answered, and Result is the answer: JSON, or empty.
	Call   string
	Result []byte
	// Timer names the timer that fired.
	Timer string
}

// Reaction is what a process wants in a state.
type Reaction struct {
	// State names where the instance stands, for people and for lists: "reserving". An instance that has never had one is not
	// kept: the next event of its stream begins from Initial again. So a process passes by streams that are not its business.
	State string
	// Waits says what for: "stock of 2 lines". Empty where it waits for nothing.
	Waits string
	// Key is a business key to find the instance by, besides its stream. Optional.
	Key string
	// Steps are commands that are to have been sent, in this order. Those that were sent before may be left out or be there
	// still.
	Steps []Step
	// Timers are all that are to be pending, by name. One that is left out is cancelled, one that has another time is moved;
	// one that has fired does not fire again for the same time.
	Timers []Timer
	// Calls are to have been made, by name. One that was not answered yet and is left out is made no more, but for the attempt
	// that is under way, whose answer comes all the same.
	Calls []Call
	// Done says that nothing is to come any more. Further inputs are taken all the same.
	Done bool
}

// Step is a command that a process sends.
type Step struct {
	Name   string // unique within the instance
	Stream Stream
	// Command is a pointer to the type that the registry has for it, a [*RawCommand], or a [*Resent].
	Command any
}

// RawCommand is the command of a step by its type and its bytes, which are JSON: the registry need not know it.
type RawCommand struct {
	Type string
	Data []byte
}

// Resent is the command of a step that sends a dead letter again: the type, the body and the expected version that the
// command of that id came with, to the byte. The command must be a dead letter; what was decided or refused is never sent
// again, and the instance stops.
type Resent struct{ CommandID string }

// Call is something that a process wants of the world outside, a payment or a mail: it is made by who runs the process, again
// and again until there is an answer, each time under the same id. A no is an answer too.
type Call struct {
	Name    string // unique within the instance
	Request any    // becomes JSON
}

// CallRequest is one attempt at a call.
type CallRequest struct {
	// ID is the same for every attempt, also after a crash: an idempotency key. See [StepID].
	ID            string
	Process, Name string
	Stream        Stream
	CorrelationID string
	Attempt       int    // from 1
	Request       []byte // JSON
}

// Timer is a point in time that a process waits for.
type Timer struct {
	Name string    `json:"name"`
	At   time.Time `json:"at"`
}

// StepID is the id of the command of a step, or of a call: the same however often the step is taken. Ids that begin so are the processes'
// own.
func StepID(process string, s Stream, step string) string {
	return StepPrefix + process + "/" + string(s) + "/" + step
}

// StepPrefix begins the ids of the commands that processes send.
const StepPrefix = "process/"

// ProcessManager is a Process with the type of its state erased.
type ProcessManager struct {
	Name, Category string

	initial func(s Stream) any
	evolve  func(state any, in *Input) any
	react   func(state any) Reaction
	decode  func(data []byte) (any, error)
}

// Manager erases the type of the state, which is kept as JSON.
func (p Process[S]) Manager() (*ProcessManager, error) {
	switch {
	case ValidateID("process name", p.Name, MaxProcessName) != nil:
		return nil, fmt.Errorf("%w: a process's name has 1 to %d bytes", ErrInvalid, MaxProcessName)
	case p.Initial == nil || p.Evolve == nil || p.React == nil:
		return nil, fmt.Errorf("%w: process %s: Initial, Evolve and React are required", ErrInvalid, p.Name)
	}
	return &ProcessManager{
		Name: p.Name, Category: p.Category,
		initial: func(s Stream) any { return p.Initial(s) },
		evolve: func(state any, in *Input) any {
			return p.Evolve(state.(S), in) //nolint:forcetypeassert // only initial, evolve and decode make states
		},
		react: func(state any) Reaction {
			return p.React(state.(S)) //nolint:forcetypeassert // as above
		},
		decode: func(data []byte) (any, error) {
			var s S
			err := jsonx.Unmarshal(data, &s)
			return s, err
		},
	}, nil
}

// Initial is the state of a stream's instance before its first input.
func (p *ProcessManager) Initial(s Stream) any { return p.initial(s) }

// Evolve applies one input. It may panic where the process does: the caller must recover.
func (p *ProcessManager) Evolve(state any, in *Input) any { return p.evolve(state, in) }

// React says what is wanted in a state. It may panic as Evolve may. A reaction beyond the limits is an error.
func (p *ProcessManager) React(state any) (Reaction, error) {
	r := p.react(state)
	if len(r.Timers) > MaxTimers || len(r.Steps) > MaxSteps || len(r.Calls) > MaxCalls {
		return r, fmt.Errorf("process %s: a reaction has %d steps, %d calls and %d timers", p.Name, len(r.Steps), len(r.Calls), len(r.Timers))
	}
	for _, c := range r.Calls {
		if err := ValidateID("call name", c.Name, MaxStepName); err != nil {
			return r, fmt.Errorf("process %s: %w", p.Name, err)
		}
	}
	for _, s := range r.Steps {
		if err := ValidateID("step name", s.Name, MaxStepName); err != nil {
			return r, fmt.Errorf("process %s: %w", p.Name, err)
		}
	}
	for i, t := range r.Timers {
		if t.Name == "" || slices.ContainsFunc(r.Timers[:i], func(o Timer) bool { return o.Name == t.Name }) {
			return r, fmt.Errorf("process %s: a timer's name is empty or there twice", p.Name)
		}
	}
	return r, nil
}

// EncodeCall gives the bytes of a call's request.
func (p *ProcessManager) EncodeCall(c Call) ([]byte, error) { return encodeBody(c.Request) }

// EncodeState and DecodeState turn a state into JSON and back.
func (p *ProcessManager) EncodeState(state any) ([]byte, error) { return encodeBody(state) }

// DecodeState reads what EncodeState wrote.
func (p *ProcessManager) DecodeState(data []byte) (any, error) { return p.decode(data) }
