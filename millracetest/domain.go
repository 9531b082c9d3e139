package millracetest

import (
	"reflect"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
)

// Example is a history to check domains with: commands in the order in which they are decided, on one stream or on
// several. Stream, Type and Data are needed. A Time that is missing is a minute after the command before.
type Example struct {
	Name     string
	Commands []millrace.Command
}

// CheckDomain holds domains to the contracts that the engine leans on, along examples of what may happen to them. It
// decides and evolves as the engine does, and again in other ways that must come to the same:
//
//   - Bodies come back from their encoding as they were, and are then written in the same bytes. Consumers that are up to
//     date see the body that Decide returned, those that rebuild see the one that was read. A [millrace.Decoder] reads what
//     the general way reads.
//   - Decide says the same each time, returns events or a refusal and not both, and changes neither state nor command.
//     Refusals have a kind, a code for programs and a text for people.
//   - Evolve comes to the same state each time, and over events that were read to the same as over those that Decide
//     returned. It changes neither the state nor the event that it was given, also not later, by way of memory that old and
//     new states share.
//   - A snapshot that was written and read again leads to the same decisions and states.
//
// What no example shows is not checked: so every declared command must be in one, and every declared event must come of
// one. A clock or chance is found out when it changes something between calls that follow at once, which a clock of whole
// seconds rarely does.
func CheckDomain(t testing.TB, domains []millrace.Definition, examples []Example) {
	t.Helper()
	registry, err := millrace.NewRegistry(domains...)
	if err != nil {
		t.Fatalf("the domains cannot be registered: %v", err)
		return
	}
	c := &domainCheck{t: t, registry: registry, said: map[string]bool{}, commands: map[string]bool{}, events: map[string]bool{}}
	for i := range examples {
		c.example(&examples[i])
	}
	for _, d := range domains {
		c.covered(d)
	}
}

// exampleStart is when the first command of an example is accepted. Any time will do that is neither now nor zero.
var exampleStart = time.Date(2010, 12, 1, 8, 26, 0, 0, time.UTC)

// domainCheck is one run of CheckDomain.
type domainCheck struct {
	t        testing.TB
	registry *millrace.Registry
	where    string          // the command at hand
	said     map[string]bool // each fault is told once, with the first command that shows it

	commands, events map[string]bool // that were seen, by category and name
}

// fault tells a broken contract. what is the same for the same fault of the same thing.
func (c *domainCheck) fault(what, format string, args ...any) {
	c.t.Helper()
	if c.said[what] {
		return
	}
	c.said[what] = true
	c.t.Errorf("%s: %s"+format, append([]any{c.where, what}, args...)...)
}

// example runs through one history.
func (c *domainCheck) example(e *Example) {
	c.t.Helper()
	streams := map[millrace.Stream]*streamCheck{}
	var order []*streamCheck
	at := exampleStart
	for i := range e.Commands {
		cmd := e.Commands[i]
		if cmd.Time.IsZero() {
			cmd.Time = at
		}
		cmd.Time = cmd.Time.UTC()
		at = cmd.Time.Add(time.Minute)
		c.where = describe(e, i)
		s := streams[cmd.Stream]
		if s == nil {
			category, ok := c.registry.Category(cmd.Stream)
			if !ok || cmd.Stream.Validate() != nil {
				c.fault("the stream belongs to none of the domains", "")
				continue
			}
			s = &streamCheck{c: c, name: cmd.Stream, category: category}
			if !s.begin() {
				continue
			}
			streams[cmd.Stream] = s
			order = append(order, s)
		}
		if !s.broken {
			s.step(&cmd)
		}
	}
	for _, s := range order {
		if !s.broken {
			s.end(e)
		}
	}
}

// covered wants every declared command and event to have been seen.
func (c *domainCheck) covered(d millrace.Definition) {
	c.t.Helper()
	v := reflect.ValueOf(d) // a Domain[S] of whatever S: there is no other Definition
	names := func(field string) []string {
		var out []string
		if f := v.FieldByName(field); f.IsValid() {
			messages, _ := f.Interface().([]millrace.Message)
			for _, m := range messages {
				out = append(out, m.Name)
			}
		}
		return out
	}
	category := v.FieldByName("Category").String()
	c.where = "category " + category
	for _, name := range names("Commands") {
		if !c.commands[category+" "+name] {
			c.fault("no example has the command "+name, ": what no example shows is not checked")
		}
	}
	for _, name := range names("Events") {
		if !c.events[category+" "+name] {
			c.fault("no example leads to the event "+name, ": what no example shows is not checked")
		}
	}
}
