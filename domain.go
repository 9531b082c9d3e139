package millrace

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/millrace-io/millrace/internal/jsonx"
)

// Message binds the name of a command or event type to the Go type of its body. Bodies are always handled as
// pointers to that type.
type Message struct {
	Name   string
	typ    reflect.Type
	decode func([]byte) (any, error)
}

// MessageOf declares a message whose body is a *T.
func MessageOf[T any](name string) Message {
	return Message{Name: name, typ: reflect.TypeFor[*T](), decode: func(data []byte) (any, error) { return decodeBody[T](data) }}
}

// decodeBody reads a *T, by its own decoder where it has one and that one knows the form.
func decodeBody[T any](data []byte) (any, error) {
	v := new(T)
	if d, ok := any(v).(Decoder); ok {
		if d.DecodeJSON(data) {
			return v, nil
		}
		v = new(T) // the decoder may have got half-way
	}
	if err := jsonx.Unmarshal(data, v); err != nil {
		return nil, err
	}
	return v, nil
}

// Validator is implemented by command bodies that have more to say about their form than their Go type does.
// What depends on a state or is a rule of the business belongs into Decide instead, where a no is remembered.
type Validator interface{ Validate() []FieldError }

// Appender is implemented by bodies that write their own JSON; it must be what the decoder reads back.
type Appender interface{ AppendJSON(dst []byte) []byte }

// FormError says that a command's body has the wrong form. Nothing was kept.
type FormError struct{ Errors []FieldError }

func (e *FormError) Error() string { return "the body has the wrong form" }

// Unwrap makes a FormError an [ErrInvalid].
func (e *FormError) Unwrap() error { return ErrInvalid }

// Decoder is implemented by bodies that read their own JSON in the form in which it mostly comes. DecodeJSON returns
// false for every other form, valid or not, which is then read in the general way; what it accepts, it must read
// exactly as the general way would, and what that would refuse it must not accept.
type Decoder interface{ DecodeJSON(data []byte) bool }

// Upcaster turns the body of an old event type into the type and body that follow it. It is pure.
type Upcaster func(data []byte) (newType string, newData []byte, err error)

// Domain is the rules of one category as pure functions over a state S. Events and commands arrive as pointers
// to the types declared for them. None of the functions may read a clock, draw a random number, do I/O or change
// what it was given: the state that Evolve returns may share with the old one only what neither will change.
type Domain[S any] struct {
	// Category is the part of the stream's name before the hyphen.
	Category string
	// StateVersion changes whenever S or Evolve do: snapshots of another version are not read.
	StateVersion int
	// Initial is the state of a stream without events.
	Initial func(id string) S
	// Decide answers a command: events (none, where nothing is to be done any more) or a refusal. at is when the
	// command was accepted.
	Decide func(state S, command any, at time.Time) ([]any, *Refusal)
	// Evolve applies an event. It knows every declared event, in every state that Decide has led to.
	Evolve func(state S, event any) S

	Commands  []Message
	Events    []Message
	Upcasters map[string]Upcaster
}

// Definition is a Domain of any state.
type Definition interface{ category() (*Category, error) }

// Category is a domain with the type of its state erased. Its functions are safe for use by several goroutines.
type Category struct {
	Name         string
	StateVersion int

	initial     func(id string) any
	decide      func(state, command any, at time.Time) ([]any, *Refusal)
	evolve      func(state, event any) any
	decodeState func([]byte) (any, error)
	eventName   map[reflect.Type]string
	commands    []Message
	events      []Message
	upcasters   map[string]Upcaster
}

func (d Domain[S]) category() (*Category, error) {
	switch {
	case NewStream(d.Category, "x").Validate() != nil:
		return nil, fmt.Errorf("category %q: must be lower-case letters and digits", d.Category)
	case d.Initial == nil || d.Decide == nil || d.Evolve == nil:
		return nil, fmt.Errorf("category %q: Initial, Decide and Evolve are required", d.Category)
	}
	c := &Category{
		Name: d.Category, StateVersion: d.StateVersion,
		initial: func(id string) any { return d.Initial(id) },
		decide: func(state, command any, at time.Time) ([]any, *Refusal) {
			return d.Decide(state.(S), command, at) //nolint:forcetypeassert // only initial, evolve and decodeState make states
		},
		evolve: func(state, event any) any {
			return d.Evolve(state.(S), event) //nolint:forcetypeassert // as above
		},
		decodeState: func(data []byte) (any, error) {
			var s S
			if err := jsonx.Unmarshal(data, &s); err != nil {
				return nil, err
			}
			return s, nil
		},
		eventName: make(map[reflect.Type]string, len(d.Events)),
		commands:  d.Commands, events: d.Events, upcasters: d.Upcasters,
	}
	for _, m := range d.Events {
		c.eventName[m.typ] = m.Name
	}
	return c, nil
}

// Initial is the state of a stream without events.
func (c *Category) Initial(s Stream) any { return c.initial(s.ID()) }

// Decide runs the domain's decision. It may panic where the domain does: the caller must recover.
func (c *Category) Decide(state, command any, at time.Time) ([]any, *Refusal) {
	return c.decide(state, command, at)
}

// Evolve applies a decoded event to a state.
func (c *Category) Evolve(state, event any) any { return c.evolve(state, event) }

// EncodeEvent gives an event its name and its bytes.
func (c *Category) EncodeEvent(event any) (NewEvent, error) {
	name, ok := c.eventName[reflect.TypeOf(event)]
	if !ok {
		return NewEvent{}, fmt.Errorf("category %s: event type %T is not declared", c.Name, event)
	}
	data, err := encodeBody(event)
	if err != nil {
		return NewEvent{}, fmt.Errorf("category %s: encode %s: %w", c.Name, name, err)
	}
	return NewEvent{Type: name, Data: data, Body: event}, nil
}

func encodeBody(v any) ([]byte, error) {
	if a, ok := v.(Appender); ok {
		return a.AppendJSON(nil), nil
	}
	return jsonx.Marshal(v)
}

// EncodeState and DecodeState turn a state into a snapshot and back.
func (c *Category) EncodeState(state any) ([]byte, error) { return encodeBody(state) }

// DecodeState reads what EncodeState wrote for the same StateVersion.
func (c *Category) DecodeState(data []byte) (any, error) { return c.decodeState(data) }

// Registry knows every category, command type and event type of a program.
type Registry struct {
	categories map[string]*Category
	commands   map[string]commandType
	bodies     map[reflect.Type]string // the command type of each body; "" where several have it
	events     map[eventKey]Message
	upcasters  map[eventKey]Upcaster
}

type commandType struct {
	message  Message
	category *Category
}

// eventKey: two categories may each have an event "Opened".
type eventKey struct{ category, name string }

// maxUpcasts bounds the steps from an event's oldest form to its present one; a longer way is a loop.
const maxUpcasts = 64

// NewRegistry registers domains. Category names and command types must be unique over all of them.
func NewRegistry(domains ...Definition) (*Registry, error) {
	r := &Registry{
		categories: map[string]*Category{}, commands: map[string]commandType{}, bodies: map[reflect.Type]string{},
		events: map[eventKey]Message{}, upcasters: map[eventKey]Upcaster{},
	}
	for _, d := range domains {
		c, err := d.category()
		if err != nil {
			return nil, err
		}
		if r.categories[c.Name] != nil {
			return nil, fmt.Errorf("category %q is registered twice", c.Name)
		}
		r.categories[c.Name] = c
		for _, m := range c.commands {
			if _, ok := r.commands[m.Name]; ok || m.Name == "" || len(m.Name) > MaxTypeName {
				return nil, fmt.Errorf("command type %q is registered twice, empty or too long", m.Name)
			}
			r.commands[m.Name] = commandType{message: m, category: c}
			name := m.Name
			if _, several := r.bodies[m.typ]; several {
				name = ""
			}
			r.bodies[m.typ] = name
		}
		for _, m := range c.events {
			if _, ok := r.events[eventKey{c.Name, m.Name}]; ok || m.Name == "" || len(m.Name) > MaxTypeName {
				return nil, fmt.Errorf("event type %q of category %q is registered twice, empty or too long", m.Name, c.Name)
			}
			r.events[eventKey{c.Name, m.Name}] = m
		}
		for name, u := range c.upcasters {
			r.upcasters[eventKey{c.Name, name}] = u
		}
	}
	return r, nil
}

// Category finds the rules of a stream's category.
func (r *Registry) Category(s Stream) (*Category, bool) {
	c, ok := r.categories[s.Category()]
	return c, ok
}

// Knows says whether a command type is registered, and for which category.
func (r *Registry) Knows(commandTypeName string) (category string, ok bool) {
	t, ok := r.commands[commandTypeName]
	if !ok {
		return "", false
	}
	return t.category.Name, true
}

// ErrUnknownType: no command of that type is known for the stream's category. Such a message becomes a dead
// letter: it may be the sender that is ahead of us.
var ErrUnknownType = errors.New("unknown command type")

// DecodeCommand maps a command to the body of its type: [ErrUnknownType], or a [*FormError] that names each fault.
func (r *Registry) DecodeCommand(c *Command) (any, error) {
	t, ok := r.commands[c.Type]
	if !ok || t.category.Name != c.Stream.Category() {
		return nil, ErrUnknownType
	}
	if c.Body != nil && reflect.TypeOf(c.Body) == t.message.typ {
		return c.Body, nil
	}
	if string(bytes.TrimSpace(c.Data)) == "null" {
		return nil, &FormError{Errors: []FieldError{{Detail: "must be an object"}}}
	}
	body, err := t.message.decode(c.Data)
	if err != nil {
		var je *jsonx.Error
		if errors.As(err, &je) {
			return nil, &FormError{Errors: []FieldError{{Pointer: je.Pointer, Detail: je.Detail}}}
		}
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if v, ok := body.(Validator); ok {
		if faults := v.Validate(); len(faults) > 0 {
			return nil, &FormError{Errors: faults}
		}
	}
	return body, nil
}

// EncodeCommand gives a command's body its type and its bytes.
func (r *Registry) EncodeCommand(body any) (name string, data []byte, err error) {
	if name = r.bodies[reflect.TypeOf(body)]; name == "" {
		return "", nil, fmt.Errorf("%w: %T is the body of no command type, or of several", ErrInvalid, body)
	}
	data, err = encodeBody(body)
	return name, data, err
}

// Body decodes and upcasts an event, once: it is kept in e.Body. An unknown type is an error, never skipped.
func (r *Registry) Body(e *Recorded) (any, error) {
	if e.Body != nil {
		return e.Body, nil
	}
	category, name, data := e.Stream.Category(), e.Type, e.Data
	for range maxUpcasts {
		up, ok := r.upcasters[eventKey{category, name}]
		if !ok {
			break
		}
		var err error
		if name, data, err = up(data); err != nil {
			return nil, fmt.Errorf("upcast event %s of type %s: %w", e.ID(), e.Type, err)
		}
	}
	m, ok := r.events[eventKey{category, name}]
	if !ok {
		return nil, fmt.Errorf("event %s has the unknown type %s", e.ID(), name)
	}
	body, err := m.decode(data)
	if err != nil {
		return nil, fmt.Errorf("decode event %s of type %s: %w", e.ID(), name, err)
	}
	e.Body = body
	return body, nil
}
